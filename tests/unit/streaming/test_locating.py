"""What a URL names is found out without guessing: a folder with an index, files, a pattern, one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import datasets

from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError, LazyStoreError
from lazystore.fetch import open_source
from lazystore.formats.format import Place
from lazystore.streaming.locating import Root, find_place, root_of


def found(url: str, format: str | None = None) -> tuple[str, Place]:
    root = root_of(url, format)
    source = open_source(root.url)
    which, place = find_place(
        source, root, url=url, format=format, storage_options={}, timeout=5.0, budget=1 << 20
    )  # fmt: skip
    return which.name, place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b10.jsonl", "b9.jsonl", "README.md"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize(
    "url, root",
    [
        ("s3://b/data", Root("s3://b/data")),
        ("s3://b/data/", Root("s3://b/data/")),
        ("s3://b/data/x.jsonl", Root("s3://b/data", "x.jsonl", named=True)),
        ("https://h/p/x.CSV.GZ", Root("https://h/p", "x.CSV.GZ", named=True)),
        ("gs://b/data/part-*.parquet", Root("gs://b/data", "part-*.parquet")),
        ("s3://b/data/x.bin", Root("s3://b/data/x.bin")),
    ],
)
def test_remote_urls_are_taken_apart_by_their_last_part_alone(url: str, root: Root) -> None:
    assert root_of(url, None) == root


def test_a_local_path_is_what_it_is_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").mkdir()
    (tmp_path / "data").write_text("{}\n")
    assert root_of(str(tmp_path / "set.jsonl"), None) == Root(str(tmp_path / "set.jsonl"))
    assert root_of(str(tmp_path / "data"), None) == Root(str(tmp_path), "data", named=True)


def test_an_index_tells_the_format(tmp_path: Path) -> None:
    name, place = found(str(datasets.write(tmp_path / "set", 10)))
    assert name == "litdata" and place.index.startswith(b"{") and not place.names


def test_a_folder_of_files_is_read_in_natural_order_and_other_files_are_left_out(folder: Path) -> None:
    name, place = found(str(folder))
    assert name == "jsonl" and list(place.names) == ["a.jsonl", "b9.jsonl", "b10.jsonl"]
    assert not place.index and set(place.names.values()) == {3}


def test_a_pattern_takes_the_files_that_fit(folder: Path) -> None:
    name, place = found(f"{folder}/b*.jsonl")
    assert name == "jsonl" and list(place.names) == ["b9.jsonl", "b10.jsonl"]
    with pytest.raises(DatasetNotFoundError, match=r"c\*\.jsonl"):
        found(f"{folder}/c*.jsonl")


def test_one_file_by_its_name_and_by_a_format_that_is_said(folder: Path) -> None:
    assert list(found(f"{folder}/a.jsonl")[1].names) == ["a.jsonl"]
    name, place = found(f"{folder}/README.md", "lines")
    assert name == "lines" and list(place.names) == ["README.md"]
    with pytest.raises(FormatError, match=r"README\.md.*format="):
        found(f"{folder}/README.md")


def test_files_of_several_formats_need_a_word(folder: Path) -> None:
    (folder / "t.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError, match=r"jsonl, csv.*format="):
        found(str(folder))
    name, place = found(str(folder), "csv")
    assert name == "csv" and list(place.names) == ["t.csv"]


@pytest.mark.parametrize("format", ["jsonx", "", "LitData"])
def test_a_format_nobody_knows_is_told_with_those_that_are(folder: Path, format: str) -> None:
    if format:
        with pytest.raises(ConfigError, match=r"litdata, mds, jsonl"):
            found(str(folder), format)


def test_nothing_there(tmp_path: Path) -> None:
    for url in (str(tmp_path), str(tmp_path / "missing"), str(tmp_path / "missing.jsonl")):
        with pytest.raises(LazyStoreError, match=tmp_path.name):
            found(url)


def test_an_interrupted_write_is_told_apart_from_a_wrong_path(tmp_path: Path) -> None:
    (tmp_path / "0.index.json").write_text("{}")
    with pytest.raises(DatasetNotFoundError, match=r"0\.index\.json.*complete_dataset"):
        found(str(tmp_path))


@pytest.mark.parametrize("index", [b"", b"[1]", b"{", b'{"a": 1}', b'{"config": {}}', b"\xff" * 100])
def test_an_index_of_nobody_is_refused(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(FormatError, match=r"index\.json"):
        found(str(tmp_path))


def test_the_long_list_of_an_index_is_not_parsed_to_learn_whose_it_is() -> None:
    from lazystore.formats.registry import format_for_index

    chunks = b", ".join([b'{"chunk_bytes": 1, "chunk_size": 1, "dim": null, "filename": "c"}'] * 3)
    index = b'{"chunks": [' + chunks + b'], "config": {"data_spec": "], \\"config\\": 1"}}'
    assert format_for_index(index, place="index.json").name == "litdata"
    broken = index.replace(b'"filename"', b"filename")  # in the list only: whoever parses it finds out
    assert format_for_index(broken, place="index.json").name == "litdata"
