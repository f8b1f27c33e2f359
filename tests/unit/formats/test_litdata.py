"""``parse_index``: an index.json of any age becomes checked values, or an error that names the key."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from support import golden, scripts

from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.litdata import LitDataIndex, parse_index

CHUNK = {"chunk_bytes": 53, "chunk_size": 2, "dim": None, "filename": "chunk-0-0.bin"}
CONFIG: dict[str, Any] = {
    "chunk_bytes": None, "chunk_size": 10, "compression": None, "data_format": ["int", "str"],
    "data_spec": "[1, null]", "encryption": None, "item_loader": "PyTreeLoader",
}  # fmt: skip


def parse(index: Any = None, **config: Any) -> LitDataIndex:
    if index is None:
        index = {"chunks": [CHUNK], "config": CONFIG | config, "updated_at": "12.5"}
    return parse_index(json.dumps(index).encode(), place="s3://b/index.json")


def test_what_an_index_says() -> None:
    index = parse()
    assert index.names == ["chunk-0-0.bin"]
    assert (list(index.counts), list(index.hints), list(index.dims)) == ([2], [53], [-1])
    assert (index.tags, index.data_spec, index.tokens) == (["int", "str"], "[1, null]", False)
    assert (index.compression, index.updated_at) == ("", "12.5")


def test_items_begin_after_the_offset_table() -> None:
    # u32 count and three u32 offsets
    assert parse().table_end(0) == 16


@pytest.mark.parametrize("name", golden.READABLE)
def test_indexes_of_the_real_writer(name: str) -> None:
    golden.require(name)
    path = golden.GOLDEN / name / "data" / "index.json"
    stored = json.loads(path.read_text())
    index = parse_index(path.read_bytes(), place=str(path))
    assert index.names == [chunk["filename"] for chunk in stored["chunks"]]
    assert list(index.counts) == [chunk["chunk_size"] for chunk in stored["chunks"]]
    assert index.tags == stored["config"]["data_format"]
    assert index.compression == (stored["config"]["compression"] or "")
    assert index.tokens == (stored["config"]["item_loader"] == "TokensLoader")


def test_an_index_without_a_date_has_version_zero() -> None:
    assert parse({"chunks": [], "config": CONFIG}).updated_at == "0"


@pytest.mark.parametrize(
    "tags, loader, tokens",
    [
        (["no_header_tensor:16"], None, True),
        (["no_header_numpy:5"], None, True),
        (["no_header_tensor"], None, True),
        (["no_header_tensor:16"], "PyTreeLoader", False),
        (["no_header_tensor:16"], "TokensLoader", True),
        (["no_header_tensor:16", "int"], None, False),
        (["str"], None, False),
        ([], None, False),
        (["no_header_numpy:5"], "SomebodysLoader", False),
    ],
)
def test_which_datasets_are_tokens(tags: list[str], loader: str | None, tokens: bool) -> None:
    config = {**CONFIG, "data_format": tags, "item_loader": loader}
    if loader is None:
        del config["item_loader"]  # as before August 2024
    assert parse({"chunks": [], "config": config}).tokens is tokens


@pytest.mark.parametrize("compression", ["zstd", "zstd:1", "zstd:22"])
def test_whole_chunk_compression(compression: str) -> None:
    pytest.importorskip("zstandard")
    assert parse(compression=compression).compression == compression


def test_compression_in_frames_is_told_chunk_by_chunk() -> None:
    assert parse(compression="zstd", compression_level="batch").compression == ""


@pytest.mark.parametrize("compression", ["zstd:0", "zstd:23", "zstd:", "zstd:x", "ZSTD", "gzip", "zstd:3\n", ""])
def test_other_compressions_are_refused(compression: str) -> None:
    with pytest.raises(UnsupportedError, match="compression"):
        parse(compression=compression)


@pytest.mark.parametrize("hint, kept", [(5, 5), (None, 0), ("5", 0), (-1, 0), (True, 0), (1 << 62, 0), (5.0, 0)])
def test_sizes_are_hints(hint: Any, kept: int) -> None:
    index = parse({"chunks": [{**CHUNK, "chunk_bytes": hint}], "config": CONFIG})
    assert list(index.hints) == [kept]


@pytest.mark.parametrize("name", ["chunk-0-0.bin", "chunk-0-0.zstd:4.bin", "..bin", "a b.bin", "ünï.bin", "~", "-"])
def test_any_plain_name_is_a_file_name(name: str) -> None:
    assert parse({"chunks": [{**CHUNK, "filename": name}], "config": CONFIG}).names == [name]


@pytest.mark.parametrize("name", ["..", ".", "", "/a", "a/b", "a\\b", "../a", "a/../b", "a\0", "memory://a", None, 5])
def test_any_other_name_is_refused(name: Any) -> None:
    with pytest.raises(FormatError, match=r"s3://b/index\.json: chunk 0"):
        parse({"chunks": [{**CHUNK, "filename": name}], "config": CONFIG})


def test_many_chunks_stay_in_the_order_of_the_index() -> None:
    chunks = [{**CHUNK, "filename": f"chunk-{i % 7}-{i}.bin", "chunk_size": i} for i in range(1000)]
    index = parse({"chunks": chunks, "config": CONFIG})
    assert list(index.counts) == list(range(1000))
    assert index.names[10] == "chunk-3-10.bin"


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff", b"[" * 10**6, b'{"a":' * 10**5, b"1" * 10**4])
def test_bytes_that_are_no_json_name_the_file(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"s3://b/index\.json"):
        parse_index(data, place="s3://b/index.json")


def test_an_encrypted_dataset_tells_its_encryption() -> None:
    with pytest.raises(UnsupportedError, match=r"s3://b/index\.json is encrypted .*rsa"):
        parse(encryption={"algorithm": "rsa", "level": "chunk"})


# -- a million chunks -----------------------------------------------------------------------


def test_names_are_a_sequence_like_a_list_of_them() -> None:
    wanted = [f"chunk-{i}-ü.bin" if i % 7 == 0 else f"chunk-{i}.bin" for i in range(60)]
    names = parse({"chunks": [{**CHUNK, "filename": name} for name in wanted], "config": CONFIG}).names
    assert (len(names), list(names), names[-1], names[3:50:9]) == (60, wanted, wanted[-1], wanted[3:50:9])
    assert names == wanted and wanted == names and names != wanted[:-1] and names != [*wanted[:-1], "other"]
    assert list(pickle.loads(pickle.dumps(names))) == wanted
    for i in (60, -61):
        with pytest.raises(IndexError):
            names[i]


@pytest.mark.parametrize("form", [{}, {"indent": 1}, {"separators": (",", ":")}])
def test_entries_with_keys_of_other_tools_are_read(form: dict[str, Any]) -> None:
    chunks = [
        {"checksum": "ab", "filename": f"c{i}.bin", "extra": [i, {"chunk_size": 9}], "chunk_size": i, "ratio": 0.5}
        for i in range(100)
    ]
    text = json.dumps({"version": {"chunks": 7}, "chunks": chunks, "config": CONFIG}, **form)
    index = parse_index(text.encode(), place="s3://b/index.json")
    assert (list(index.counts), list(index.hints), index.names[99]) == (list(range(100)), [0] * 100, "c99.bin")


def test_what_is_wrong_with_the_whole_is_told_before_a_bad_entry() -> None:
    with pytest.raises(FormatError, match='"config": null'):
        parse({"chunks": [{**CHUNK, "filename": "../a"}], "config": None})
    with pytest.raises(FormatError, match="chunk 1 names"):
        parse({"chunks": [CHUNK, {**CHUNK, "filename": "../a"}, {**CHUNK, "chunk_size": -1}], "config": CONFIG})


MANY = (
    scripts.MEASURE
    + """
import sys
from lazystore.formats.litdata import parse_index

with open(sys.argv[1], "rb") as file:
    data = file.read()
before = restart_peak()
index = parse_index(data, place="index.json")
assert (len(index.names), index.names[299_999], index.hints[299_999]) == (300_000, "chunk-299999.bin", 299_999)
print(memory("VmHWM") - before)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own")
def test_many_chunks_take_less_memory_than_their_index(tmp_path: Path) -> None:
    entry = '{"chunk_bytes": %d, "chunk_size": 2, "dim": null, "filename": "chunk-%d.bin"}'
    entries = ", ".join(entry % (i, i) for i in range(300_000))
    path = tmp_path / "index.json"
    path.write_text('{"chunks": [' + entries + '], "config": {"data_format": ["int"]}}')
    grown = int(scripts.run(MANY, path))
    assert grown <= path.stat().st_size, f"{grown} bytes more for an index of {path.stat().st_size}"
