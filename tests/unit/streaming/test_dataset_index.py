"""A directory, an index or a config that cannot be read gets an error of its own type that says which and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support import datasets

from lazystore import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FormatError,
    LazyStoreError,
    StreamingDataset,
    UnsafeDataError,
    UnsupportedError,
)

COUNT, PER_CHUNK = 120, 40
BAD = "chunk-0-1.bin"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of 40 items, ~12 kB each: several frames of the smallest budget."""
    return datasets.write(tmp_path_factory.mktemp("damage") / "good", COUNT, chunk_size=PER_CHUNK)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return datasets.copy(good, tmp_path / "dataset")


# -- the directory and the index ------------------------------------------------------------


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=rf"{tmp_path}/nowhere does not exist") as raised:
        StreamingDataset(tmp_path / "nowhere")
    assert isinstance(raised.value, FileNotFoundError)


def test_a_directory_without_an_index(folder: Path) -> None:
    (folder / "index.json").rename(folder / "0.index.json")
    with pytest.raises(DatasetNotFoundError, match=rf"{folder}/index\.json.*0\.index\.json.*interrupted"):
        StreamingDataset(folder)


def test_a_file_instead_of_a_directory(folder: Path) -> None:
    with pytest.raises(LazyStoreError, match=rf"{BAD}.*format="):
        StreamingDataset(folder / BAD)


def test_an_index_that_is_a_directory(folder: Path) -> None:
    (folder / "index.json").unlink()
    (folder / "index.json").mkdir()
    with pytest.raises(FetchError, match=r"index\.json"):
        StreamingDataset(folder)


def test_an_index_that_may_not_be_read(folder: Path) -> None:
    (folder / "index.json").chmod(0)
    if os.access(folder / "index.json", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(FetchError, match=r"index\.json.*Permission"):
        StreamingDataset(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe{}", b"chunks", b"\x00" * 40, b"[" * 100_000, b'{"chunks": [' * 50_000, b"\x80\x04N."],
)
def test_an_index_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"index\.json is not JSON"):
        StreamingDataset(folder)


@pytest.mark.parametrize(
    "content",
    [
        "null", "[]", "5", '"index"', "{}", '{"chunks": {}}', '{"chunks": 5, "config": {}}', '{"config": {}}',
        '{"chunks": [], "config": null}', '{"chunks": [], "config": []}', '{"chunks": []}',
        '{"chunks": [], "config": {}}', '{"chunks": [], "config": {"data_format": "str"}}',
        '{"chunks": [], "config": {"data_format": [5]}}',
        '{"chunks": [], "config": {"data_format": ["str"], "data_spec": 5}}',
    ],
)  # fmt: skip
def test_json_that_is_no_index(folder: Path, content: str) -> None:
    (folder / "index.json").write_text(content)
    with pytest.raises(FormatError, match=r"index\.json"):
        StreamingDataset(folder)


def test_a_null_config_says_what_happened(folder: Path) -> None:
    datasets.edit_index(folder, lambda index: index.update(config=None))
    with pytest.raises(FormatError, match=r'index\.json has "config": null.*write the dataset again'):
        StreamingDataset(folder)


@pytest.mark.parametrize(
    "config, error, told",
    [
        ({"data_format": ["int", "str", "bytes", "mystery"]}, FormatError, "mystery.*serializers"),
        ({"data_format": ["int", "str", "bytes", ""]}, FormatError, "encoding ''"),
        ({"data_format": ["int", "str", "bytes", "no_header_numpy:99"]}, FormatError, "no_header_numpy:99"),
        ({"data_format": ["int", "str", "bytes", "no_header_numpy:-1"]}, FormatError, "no_header_numpy:-1"),
        ({"data_format": ["int", "str", "bytes", "no_header_numpy:²"]}, FormatError, "no_header_numpy:²"),
        ({"data_format": ["int", "str", "bytes", "no_header_numpy:" + "9" * 5000]}, FormatError, "no_header_numpy:9"),
        ({"data_format": ["int", "str", "bytes", "no_header_numpy"]}, FormatError, "no_header_numpy"),
        ({"data_format": ["int", "str", "bytes", "no_header_numpy:14"]}, UnsafeDataError, "object"),
        ({"data_format": ["int"] * 3}, FormatError, "4 leaves.* 3"),
        ({"data_format": ["int"] * 5}, FormatError, "4 leaves.* 5"),
        ({"data_spec": "{"}, FormatError, "data_spec"),
        ({"data_spec": "[" * 100_000}, FormatError, "data_spec"),
        ({"data_spec": "[2, null]"}, FormatError, "protocol 2"),
        ({"data_spec": datasets.tree_spec("os.system", "null", 4)}, FormatError, "os.system"),
        ({"compression": "lzma"}, UnsupportedError, "lzma"),
        ({"compression": "zstd:99"}, UnsupportedError, "zstd:99"),
        ({"compression": 5}, FormatError, "compression"),
        ({"compression": "zstd", "compression_level": "page"}, UnsupportedError, "page"),
        ({"encryption": {"algorithm": "fernet", "level": "sample"}}, ConfigError, "encryption="),
        ({"encryption": {"algorithm": "rot13", "level": "sample"}}, ConfigError, "rot13"),
        ({"item_loader": "TemporalArrayLoader"}, UnsupportedError, "TemporalArrayLoader"),
        ({"item_loader": "TokensLoader"}, FormatError, "4 leaves"),
    ],
)
def test_a_config_that_cannot_be_read(folder: Path, config: dict[str, Any], error: type[Exception], told: str) -> None:
    datasets.edit_index(folder, lambda index: index["config"].update(config))
    with pytest.raises(error, match=told) as raised:
        StreamingDataset(folder)
    assert type(raised.value) is error
    assert str(folder) in str(raised.value), "the message does not say which dataset"


@pytest.mark.parametrize(
    "name",
    [
        "../outside.bin", "..", ".", "", "/etc/passwd", "a/b.bin", "a\\b.bin", "..\\b.bin", "C:\\b.bin", "b\0.bin",
        "s3://bucket/key", "file:///etc/passwd", None, 5, ["b"], {},
    ],
)  # fmt: skip
def test_a_chunk_file_outside_the_directory_is_refused_before_it_is_touched(folder: Path, name: Any) -> None:
    (folder.parent / "outside.bin").write_bytes((folder / BAD).read_bytes())
    datasets.edit_index(folder, lambda index: index["chunks"][1].update(filename=name))
    with pytest.raises(FormatError, match=r"index\.json: chunk 1"):
        StreamingDataset(folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("chunk_size", -1), ("chunk_size", None), ("chunk_size", "40"), ("chunk_size", 40.0), ("chunk_size", True),
        ("chunk_size", 10**30), ("chunk_size", 2**31), ("dim", "x"), ("dim", -1), ("dim", 2**40), ("dim", 1.5),
    ],
)  # fmt: skip
def test_a_chunk_entry_that_makes_no_sense(folder: Path, key: str, value: Any) -> None:
    datasets.edit_index(folder, lambda index: index["chunks"][1].update({key: value}))
    with pytest.raises(FormatError, match=rf'index\.json: chunk 1 .*{BAD}.*"{key}"'):
        StreamingDataset(folder)


@pytest.mark.parametrize("entry", [None, 5, [], "chunk-0-1.bin", {}])
def test_a_chunk_entry_that_is_no_entry(folder: Path, entry: Any) -> None:
    datasets.edit_index(folder, lambda index: index["chunks"].__setitem__(1, entry))
    with pytest.raises(FormatError, match=r"index\.json: chunk 1"):
        StreamingDataset(folder)


@pytest.mark.parametrize("hint", [0, 1, 7, 4096, 10**7, 2**40, 2**61, 2**63, 10**30, -5, None, "12000", 1.5])
@pytest.mark.parametrize("memory", [65536, "8MB"])
def test_the_size_an_index_gives_is_a_hint_and_never_a_bound(folder: Path, hint: Any, memory: int | str) -> None:
    datasets.edit_index(folder, lambda index: [chunk.update(chunk_bytes=hint) for chunk in index["chunks"]])
    with StreamingDataset(folder, memory=memory) as dataset:
        datasets.check(dataset, range(COUNT))
        datasets.check((dataset[i] for i in range(0, COUNT, 7)), range(0, COUNT, 7))
    with StreamingDataset(folder, memory=memory) as dataset:
        datasets.check((dataset[-i] for i in range(1, COUNT)), range(COUNT - 1, 0, -1))
    with StreamingDataset(folder, memory=memory) as dataset:
        datasets.check(dataset.get_many(range(COUNT)), range(COUNT))


# -- the index of older writers -------------------------------------------------------------


@pytest.mark.parametrize("missing", ["updated_at", "encryption", "item_loader", "chunk_bytes", "compression", "dim"])
def test_keys_that_older_writers_did_not_have_may_be_missing(folder: Path, missing: str) -> None:
    def drop(index: dict[str, Any]) -> None:
        for part in (index, index["config"], *index["chunks"]):
            part.pop(missing, None)

    with StreamingDataset(datasets.edit_index(folder, drop)) as dataset:
        datasets.check(dataset, range(COUNT))


def test_keys_nobody_knows_are_ignored(folder: Path) -> None:
    def extend(index: dict[str, Any]) -> None:
        for part in (index, index["config"], *index["chunks"]):
            part["from_the_future"] = {"a": [1]}

    with StreamingDataset(datasets.edit_index(folder, extend)) as dataset:
        datasets.check(dataset, range(COUNT))
