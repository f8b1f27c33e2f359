"""Bad input gets an error of its own type that names the place, and loses nothing that is good."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import datasets

from lazystore import (
    DatasetNotFoundError,
    FetchError,
    FormatError,
    LazyStoreError,
    SourceChangedError,
    StreamingDataset,
    UnsafeDataError,
    UnsupportedError,
)

COUNT, PER_CHUNK = 120, 40
TABLE_END = 4 + 4 * (PER_CHUNK + 1)
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
    with pytest.raises(DatasetNotFoundError, match=rf"{tmp_path}/nowhere/index\.json.*path is wrong") as raised:
        StreamingDataset(tmp_path / "nowhere")
    assert isinstance(raised.value, FileNotFoundError)


def test_a_directory_without_an_index(folder: Path) -> None:
    (folder / "index.json").rename(folder / "0.index.json")
    with pytest.raises(DatasetNotFoundError, match=rf"{folder}/index\.json.*not finished"):
        StreamingDataset(folder)


def test_a_file_instead_of_a_directory(folder: Path) -> None:
    with pytest.raises(LazyStoreError, match=r"index\.json"):
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
        ({"data_format": ["int", "str", "bytes", "json"]}, UnsupportedError, "json"),
        ({"data_format": ["int", "str", "bytes", "graph"]}, UnsupportedError, "graph"),
        ({"data_format": ["int"] * 3}, FormatError, "4 leaves.* 3"),
        ({"data_format": ["int"] * 5}, FormatError, "4 leaves.* 5"),
        ({"data_spec": "{"}, FormatError, "data_spec"),
        ({"data_spec": "[" * 100_000}, FormatError, "data_spec"),
        ({"data_spec": "[2, null]"}, FormatError, "protocol 2"),
        ({"data_spec": datasets.tree_spec("os.system", "null", 4)}, FormatError, "os.system"),
        ({"compression": "lzma"}, UnsupportedError, "lzma"),
        ({"compression": "zstd:99"}, UnsupportedError, "zstd:99"),
        ({"compression": 5}, FormatError, "compression"),
        ({"compression": "zstd", "compression_level": "sample"}, UnsupportedError, "sample"),
        ({"encryption": {"algorithm": "fernet", "level": "sample"}}, UnsupportedError, "encrypted"),
        ({"item_loader": "ParquetLoader"}, UnsupportedError, "ParquetLoader"),
        ({"item_loader": "TemporalArrayLoader"}, UnsupportedError, "TemporalArrayLoader"),
        ({"item_loader": "TokensLoader"}, FormatError, "4 leaves"),
    ],
)
def test_a_config_that_cannot_be_read(
    folder: Path, config: dict[str, Any], error: type[Exception], told: str
) -> None:
    datasets.edit_index(folder, lambda index: index["config"].update(config))
    with pytest.raises(error, match=told) as raised:
        StreamingDataset(folder)
    assert type(raised.value) is error
    assert str(folder) in str(raised.value), "the message does not say which dataset"


def test_a_mosaicml_index_is_told_apart(folder: Path) -> None:
    (folder / "index.json").write_text('{"version": 2, "shards": []}')
    with pytest.raises(UnsupportedError, match=r"index\.json is a MosaicML index"):
        StreamingDataset(folder)


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


# -- one bad chunk among good ones ----------------------------------------------------------


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def set_bytes(at: int, data: bytes) -> Callable[[Path], None]:
    return lambda path: datasets.edit_bytes(path, at, data)


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def entry(k: int) -> int:
    """Position of an entry of the offset table."""
    return 4 + 4 * k


#: what is done to the chunk, the error, and what its message tells
CHUNK_DAMAGE: dict[str, tuple[Callable[[Path], None], type[LazyStoreError], str]] = {
    "missing": (Path.unlink, DatasetNotFoundError, "does not exist"),
    "empty": (cut(0), FormatError, "empty or truncated"),
    "three bytes": (cut(3), FormatError, "empty or truncated"),
    "cut after the count": (cut(4), FormatError, "truncated"),
    "cut in the table": (cut(TABLE_END - 2), FormatError, "truncated"),
    "cut after the table": (cut(TABLE_END), FormatError, "truncated|past the end"),
    "cut in the items": (cut(5000), FormatError, "truncated|past the end"),
    "one item more": (set_bytes(0, words(PER_CHUNK + 1)), FormatError, "41 items, the index says 40"),
    "one item less": (set_bytes(0, words(PER_CHUNK - 1)), FormatError, "39 items, the index says 40"),
    "no items": (set_bytes(0, words(0)), FormatError, "0 items, the index says 40"),
    "2**32 - 1 items": (set_bytes(0, words(2**32 - 1)), FormatError, "4294967295 items, the index says 40"),
    "framed zstd": (set_bytes(0, b"LDFZ01\0\0"), UnsupportedError, "zstd"),
}


def reads(dataset: StreamingDataset, i: int) -> dict[str, Callable[[], Any]]:
    """Every way to one item, each giving the decoded item."""
    return {
        "index": lambda: dataset[i],
        "batch": lambda: dataset.get_many([i])[0],
        "slice": lambda: dataset[i : i + 1][0],
        "bytes": lambda: dataset._plan(dataset.get_bytes(i)),
        "view": lambda: dataset._plan(memoryview(dataset.view(i))),
    }


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_a_bad_chunk_is_named_and_the_others_are_read(folder: Path, damage: str, memory: int | str) -> None:
    spoil, error, told = CHUNK_DAMAGE[damage]
    spoil(folder / BAD)
    others = [*range(PER_CHUNK), *range(2 * PER_CHUNK, COUNT)]
    with StreamingDataset(folder, memory=memory) as dataset:
        for i in (PER_CHUNK, PER_CHUNK + 7, 2 * PER_CHUNK - 1):
            for way, read in reads(dataset, i).items():
                with pytest.raises(error, match=BAD) as raised:
                    read()
                assert type(raised.value) is error, way
                raised.match(told)
                assert str(raised.value).count(BAD) == 1, "the place is told more than once"
        datasets.check((dataset[i] for i in others), others)
        datasets.check(dataset.get_many(others), others)
        assert dataset.stats()["fallbacks"] == 0


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_iterating_gives_everything_before_a_bad_chunk_then_its_error(
    folder: Path, damage: str, memory: int | str
) -> None:
    spoil, error, told = CHUNK_DAMAGE[damage]
    spoil(folder / BAD)
    with StreamingDataset(folder, memory=memory) as dataset:
        items = iter(dataset)
        datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK))
        with pytest.raises(error, match=BAD) as raised:
            next(items)
        raised.match(told)
        datasets.check(dataset[2 * PER_CHUNK :], range(2 * PER_CHUNK, COUNT))


def test_a_chunk_that_comes_back_is_read(folder: Path) -> None:
    (folder / BAD).rename(folder / "away")
    with StreamingDataset(folder) as dataset:
        with pytest.raises(DatasetNotFoundError, match=BAD):
            dataset[50]
        (folder / "away").rename(folder / BAD)
        datasets.check(dataset, range(COUNT))


@pytest.mark.parametrize("kind", ["directory", "pipe", "no permission", "link to nothing", "link in a circle"])
def test_a_chunk_that_is_no_readable_file(folder: Path, kind: str) -> None:
    path = folder / BAD
    if kind == "no permission":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    else:
        path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to(path.name if "circle" in kind else "nothing")
    error = DatasetNotFoundError if kind == "link to nothing" else FetchError
    with StreamingDataset(folder) as dataset:
        for way, read in reads(dataset, 50).items():
            with pytest.raises(error, match=BAD) as raised:
                read()
            assert isinstance(raised.value, OSError), way
        items = iter(dataset)
        datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK))
        with pytest.raises(error, match=BAD):
            next(items)


def test_more_behind_the_last_item_is_not_looked_at(folder: Path) -> None:
    with (folder / BAD).open("ab") as file:
        file.write(b"a footer of a later version" * 500)
    with StreamingDataset(folder, memory=65536) as dataset:
        datasets.check(dataset, range(COUNT))
        datasets.check((dataset[i] for i in range(COUNT)), range(COUNT))


def test_a_gap_between_table_and_items_is_not_looked_at(folder: Path) -> None:
    items = [datasets.item_bytes([str(i).encode() * 30]) for i in range(3)]
    crafted = datasets.craft(folder.parent / "gap", [items], ["str"])
    data = datasets.chunk_bytes(items)
    table = struct.unpack_from("<4I", data, 4)
    path = crafted / "chunk-0-0.bin"
    path.write_bytes(words(3, *(offset + 100 for offset in table)) + bytes(100) + data[20:])
    with StreamingDataset(crafted) as dataset:
        assert list(dataset) == dataset[:] == [str(i) * 30 for i in range(3)]


def test_arrow_rows_are_told_apart(folder: Path) -> None:
    table = words(PER_CHUNK, *([TABLE_END] * (PER_CHUNK + 1)))
    (folder / BAD).write_bytes(table + b"arrow stream" * 40 + words(3) + b"LDARW01\0")
    with StreamingDataset(folder) as dataset:
        for read in reads(dataset, PER_CHUNK).values():
            with pytest.raises(UnsupportedError, match=rf"{BAD}.*Arrow rows"):
                read()
        datasets.check(dataset[:PER_CHUNK], range(PER_CHUNK))


# -- one bad item among good ones -----------------------------------------------------------


def table_of(path: Path) -> tuple[int, ...]:
    return struct.unpack_from(f"<{PER_CHUNK + 1}I", path.read_bytes(), 4)


#: (which entry of the table, its new value from the old table and the chunk's length)
OFFSET_DAMAGE: dict[str, tuple[int, Callable[[tuple[int, ...], int], int]]] = {
    "backwards": (9, lambda table, size: table[8] - 1),
    "first one into the table": (0, lambda table, size: 12),
    "zero": (9, lambda table, size: 0),
    "first one zero": (0, lambda table, size: 0),
    "last one zero": (PER_CHUNK, lambda table, size: 0),
    "past the end": (9, lambda table, size: size + 1),
    "first one past the end": (0, lambda table, size: 2**32 - 1),
    "last one past the end": (PER_CHUNK, lambda table, size: size + 1),
    "last one far past the end": (PER_CHUNK, lambda table, size: 2**32 - 1),
    "after the next": (9, lambda table, size: table[12]),
}


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", OFFSET_DAMAGE)
def test_offsets_that_make_no_sense_are_refused_before_anything_is_read_through_them(
    folder: Path, damage: str, memory: int | str
) -> None:
    path = folder / BAD
    position, value = OFFSET_DAMAGE[damage]
    datasets.edit_bytes(path, entry(position), words(value(table_of(path), path.stat().st_size)))
    touched = [PER_CHUNK + k for k in (position - 1, position) if 0 <= k < PER_CHUNK]
    if damage == "after the next":
        del touched[0]  # it ends inside the chunk: whether it decodes is the leaves' business
    others = [*range(PER_CHUNK), *range(2 * PER_CHUNK, COUNT)]
    with StreamingDataset(folder, memory=memory) as dataset:
        for i in touched:
            for way, read in reads(dataset, i).items():
                with pytest.raises(FormatError, match=rf"{BAD} \(chunk 1\)") as raised:
                    read()
                assert type(raised.value) is FormatError, way
                raised.match("offset|bytes")
        datasets.check((dataset[i] for i in others), others)
        with pytest.raises(FormatError, match=BAD):
            list(dataset)


SIZE_DAMAGE = {
    "too large": lambda sizes: [sizes[0], sizes[1] + 1, sizes[2], sizes[3]],
    "too small": lambda sizes: [sizes[0], sizes[1], sizes[2], sizes[3] - 4],
    "huge": lambda sizes: [sizes[0], 2**32 - 1, sizes[2], sizes[3]],
    "all huge": lambda sizes: [2**32 - 1] * 4,
    "sum wraps to the item": lambda sizes: [sizes[0], 2**32 - 1, sizes[2], sizes[3] + sizes[1] + 1],
    "zero": lambda sizes: [0, 0, 0, 0],
}


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", SIZE_DAMAGE)
def test_leaf_sizes_that_do_not_fit_spoil_one_item(folder: Path, damage: str, memory: int | str) -> None:
    path = folder / BAD
    begin = table_of(path)[20]
    sizes = struct.unpack_from("<4I", path.read_bytes(), begin)
    datasets.edit_bytes(path, begin, words(*SIZE_DAMAGE[damage](sizes)))
    bad = PER_CHUNK + 20
    others = [i for i in range(COUNT) if i != bad]
    with StreamingDataset(folder, memory=memory) as dataset:
        for read in (lambda: dataset[bad], lambda: dataset.get_many([0, bad, 1]), lambda: dataset[bad:]):
            with pytest.raises(FormatError, match=rf"{BAD} \(chunk 1\), item 20: .*(leaf|leaves)") as raised:
                read()
            assert str(raised.value).count(BAD) == 1, "the place is told more than once"
        datasets.check((dataset[i] for i in others), others)
        datasets.check(dataset.get_many(others), others)
        items = iter(dataset)
        datasets.check([next(items) for _ in range(bad)], range(bad))
        for _ in range(2):  # an iterator stays where it is: it never skips in silence
            with pytest.raises(FormatError, match="item 20"):
                next(items)
        datasets.check((dataset[i] for i in others), others)
        assert len(dataset.get_bytes(bad)) == table_of(path)[21] - begin


@pytest.mark.parametrize("memory", [65536, "8MB"])
def test_text_that_is_not_utf8_spoils_one_item(folder: Path, memory: int | str) -> None:
    path = folder / BAD
    text = table_of(path)[3] + 16 + 8
    datasets.edit_bytes(path, text, b"\xff")
    with StreamingDataset(folder, memory=memory) as dataset:
        for read in (lambda: dataset[43], lambda: dataset.get_many([43]), lambda: list(dataset)):
            with pytest.raises(FormatError, match=rf"{BAD} \(chunk 1\), item 3: .*utf-8"):
                read()
        datasets.check((dataset[i] for i in (42, 44)), (42, 44))


def test_a_pickle_that_is_no_pickle_is_a_format_error(tmp_path: Path) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "pickle", [b"\x80\x04N.", b"garbage", b"", b"\x80\x05"])
    with StreamingDataset(folder, allow_pickle=True) as dataset:
        assert dataset[0] is None
        for i in (1, 2, 3):
            with pytest.raises(FormatError, match=rf"item {i}: .*pickle"):
                dataset[i]


def test_a_pickle_is_not_executed_without_leave(tmp_path: Path) -> None:
    bomb = b"cos\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR."
    folder = datasets.one_leaf(tmp_path / "d", "pickle", [bomb])
    with StreamingDataset(folder) as dataset:
        for read in (lambda: dataset[0], lambda: list(dataset), lambda: dataset.get_many([0])):
            with pytest.raises(UnsafeDataError, match="allow_pickle=True"):
                read()
    assert not (tmp_path / "ran").exists()


# -- files that change under the reader -----------------------------------------------------


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """One chunk of ~3 MB, so that some of it is always unread."""
    return datasets.write(tmp_path / "big", 2000, size=1000, chunk_bytes="64MB")


def rewrite(path: Path, data: bytes) -> None:
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))  # however coarse the clock


def replace(path: Path, data: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(data)
    os.replace(other, path)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "same length": lambda data: data[:4] + bytes(len(data) - 4),
    "longer": lambda data: data + b"more",
    "shorter": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_chunk_rewritten_while_it_is_read_is_an_error_never_wrong_data(big: Path, change: str) -> None:
    path = big / "chunk-0-0.bin"
    with StreamingDataset(big, memory=200_000) as dataset:
        items = iter(dataset)
        datasets.check([next(items) for _ in range(300)], range(300), 1000)
        resident = [i for i in range(2000) if dataset.is_item_available(i)]
        rewrite(path, CHANGES[change](path.read_bytes()))
        datasets.check((dataset[i] for i in resident), resident, 1000)
        for way, read in reads(dataset, 1999).items():
            with pytest.raises(SourceChangedError, match=r"chunk-0-0\.bin.*changed.*open the dataset anew"):
                read()
            assert dataset.stats()["fallbacks"] == 0, way
        with pytest.raises(SourceChangedError):
            for k, item in enumerate(items):
                datasets.check([item], [300 + k], 1000)


def test_a_chunk_replaced_while_it_is_read_gives_the_old_items_or_an_error(big: Path) -> None:
    path = big / "chunk-0-0.bin"
    with StreamingDataset(big, memory=200_000) as dataset:
        datasets.check([dataset[0]], [0], 1000)
        replace(path, bytes(path.stat().st_size))
        for i in range(0, 2000, 13):
            try:
                datasets.check([dataset[i]], [i], 1000)
            except SourceChangedError:
                break


def test_a_chunk_deleted_while_it_is_read_gives_its_items_or_an_error(big: Path) -> None:
    with StreamingDataset(big, memory=200_000) as dataset:
        datasets.check([dataset[0]], [0], 1000)
        (big / "chunk-0-0.bin").unlink()
        for i in range(0, 2000, 13):
            try:
                datasets.check([dataset[i]], [i], 1000)
            except (DatasetNotFoundError, SourceChangedError):
                break


def test_a_new_dataset_object_reads_the_new_files(big: Path) -> None:
    path = big / "chunk-0-0.bin"
    data = path.read_bytes()
    with StreamingDataset(big, memory=200_000) as dataset:
        dataset[0]
        rewrite(path, b"")
        with pytest.raises(SourceChangedError):
            dataset[1999]
        rewrite(path, data)
    with StreamingDataset(big, memory=200_000) as dataset:
        datasets.check(dataset, range(2000), 1000)


def test_an_index_is_read_once(folder: Path) -> None:
    with StreamingDataset(folder) as dataset:
        (folder / "index.json").write_text(json.dumps({"chunks": [], "config": None}))
        datasets.check(dataset, range(COUNT))
