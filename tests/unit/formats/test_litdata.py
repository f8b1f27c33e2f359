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
from lazystore.formats.litdata import ChunkNames, LitDataIndex, parse_chunks, parse_index

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


@pytest.mark.parametrize("name", sorted(path.parent.name for path in golden.GOLDEN.glob("litdata-*/data")))
def test_indexes_of_the_real_writer(name: str) -> None:
    golden.require(name)
    path = golden.GOLDEN / name / "data" / "index.json"
    stored = json.loads(path.read_text())
    index = parse_index(path.read_bytes(), place=str(path))
    assert index.names == [chunk["filename"] for chunk in stored["chunks"]]
    assert list(index.counts) == [chunk["chunk_size"] for chunk in stored["chunks"]]
    assert index.tags == stored["config"]["data_format"]
    config = stored["config"]
    level = config.get("compression_level") or ""
    assert (index.compression, index.compression_level) == ("" if level else config["compression"] or "", level)
    assert index.frame_rows == (config.get("compression_batch_size") or 256)
    assert (index.types, index.ipc_compression) == (config.get("types"), config.get("ipc_compression") or "")
    encryption = config["encryption"]
    assert index.encryption == (encryption and (encryption["algorithm"], encryption["level"]))
    assert index.dated == ("updated_at" in stored) and not index.old
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


@pytest.mark.parametrize("level", ["batch", "sample"])
def test_compression_inside_chunks_is_no_compression_of_chunks(level: str) -> None:
    index = parse(compression="zstd:7", compression_level=level, compression_batch_size=16)
    assert (index.compression, index.compression_level, index.frame_rows) == ("", level, 16)
    with pytest.raises(UnsupportedError, match="gzip"):
        parse(compression="gzip", compression_level=level)


@pytest.mark.parametrize("config", [{}, {"compression_level": None}, {"compression_level": "chunk"}])
def test_compression_without_a_level_is_of_whole_chunks(config: dict[str, Any]) -> None:
    pytest.importorskip("zstandard")
    index = parse(compression="zstd", **config)
    assert (index.compression, index.compression_level) == ("zstd", "")


def test_a_level_without_compression_means_nothing() -> None:
    assert parse(compression=None, compression_level="batch").compression_level == ""


@pytest.mark.parametrize("level", ["frame", 3, ["batch"]])
def test_other_levels_of_compression_are_told(level: Any) -> None:
    with pytest.raises(UnsupportedError, match="compression_level"):
        parse(compression="zstd", compression_level=level)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "16", 1 << 40])
def test_frames_have_a_number_of_items(rows: Any) -> None:
    with pytest.raises(FormatError, match="compression_batch_size"):
        parse(compression_batch_size=rows)


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
    assert parse(encryption={"algorithm": "rsa", "level": "chunk"}).encryption == ("rsa", "chunk")
    assert parse(encryption=None).encryption is None


@pytest.mark.parametrize(
    "encryption",
    ["fernet", {}, {"algorithm": "fernet"}, {"algorithm": 5, "level": "chunk"}, {"algorithm": "a", "level": "x"}],
)
def test_encryption_without_algorithm_and_level_is_refused(encryption: Any) -> None:
    with pytest.raises(FormatError, match="encryption"):
        parse(encryption=encryption)


@pytest.mark.parametrize("loader", ["ParquetLoader", "TemporalArrayLoader"])
def test_datasets_of_other_loaders_are_told(loader: str) -> None:
    with pytest.raises(UnsupportedError, match=loader):
        parse(item_loader=loader)


def test_indexes_without_the_keys_of_2024_are_old() -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("encryption", "item_loader")}
    assert parse({"chunks": [], "config": config}).old
    assert not parse({"chunks": [], "config": config | {"encryption": None}}).old
    assert not parse({"chunks": [], "config": config}).dated


# -- checksums and keys ---------------------------------------------------------------------


def with_top(**top: Any) -> LitDataIndex:
    return parse({"chunks": [CHUNK], "config": CONFIG, **top})


def test_checksums_of_lazystore_are_kept() -> None:
    found = with_top(checksums={"algorithm": "blake2b", "digest_size": 2, "files": {"chunk-0-0.bin": "00aF"}}).checksums
    assert found is not None
    assert (found.algorithm, found.digest_size, found.files) == ("blake2b", 2, {"chunk-0-0.bin": "00aF"})


@pytest.mark.parametrize("checksums", [None, [], "x", {}, {"algorithm": "md5"}, {"chunk-0-0.bin": "ab"}])
def test_what_others_put_under_that_key_is_theirs(checksums: Any) -> None:
    assert with_top(checksums=checksums).checksums is None
    assert with_top().checksums is None


@pytest.mark.parametrize(
    "changed",
    [
        {"digest_size": None}, {"digest_size": 0}, {"digest_size": 65}, {"digest_size": True}, {"files": None},
        {"files": ["ab"]}, {"files": {"a": "abc"}}, {"files": {"a": 5}}, {"files": {"a": "zzzz"}},
        {"files": {"a": "ab c"}}, {"files": {"a": "\u0661\u0661\u0661\u0661"}},
    ],
)  # fmt: skip
def test_damaged_checksums_are_refused(changed: dict[str, Any]) -> None:
    checksums = {"algorithm": "blake2b", "digest_size": 2, "files": {}} | changed
    with pytest.raises(FormatError, match="checksums"):
        with_top(checksums=checksums)


def test_checksums_of_an_earlier_date_are_those_of_an_earlier_dataset() -> None:
    checksums = {"algorithm": "blake2b", "digest_size": 2, "files": {"a": "00af"}, "updated_at": "17.5"}
    assert with_top(checksums=checksums, updated_at="17.5").checksums is not None
    assert with_top(checksums=checksums, updated_at="18.5").checksums is None
    assert with_top(checksums=checksums).checksums is None


def test_keys_are_kept_as_they_are() -> None:
    assert with_top(keys={"num_shards": 3}).keys == {"num_shards": 3}
    assert with_top().keys is None


# -- the chunk list alone -------------------------------------------------------------------


def test_chunk_lists_of_other_datasets_with_files_in_folders() -> None:
    entries = [{**CHUNK, "filename": name} for name in ("a.parquet", "b/c.parquet", "b/d e/f.parquet")]
    data = json.dumps({"chunks": entries, "config": {"item_loader": "ParquetLoader"}}).encode()
    rest, chunks = parse_chunks(data, place="index.json", paths=True)
    assert rest["config"] == {"item_loader": "ParquetLoader"}
    assert chunks.names == ["a.parquet", "b/c.parquet", "b/d e/f.parquet"] and list(chunks.counts) == [2, 2, 2]
    with pytest.raises(FormatError, match="chunk 1 names"):
        parse_chunks(data, place="index.json")[1]


@pytest.mark.parametrize("name", ["/a", "a//b", "a/../b", "./a", "a/.", "..", "a\\b", "a/b\0", "s3://a", "a/", ""])
def test_paths_stay_below_the_dataset(name: str) -> None:
    data = json.dumps({"chunks": [{**CHUNK, "filename": name}], "config": {}}).encode()
    with pytest.raises(FormatError, match="chunk 0"):
        parse_chunks(data, place="index.json", paths=True)


def test_ends_of_names() -> None:
    def names(*found: str) -> ChunkNames:
        return parse({"chunks": [{**CHUNK, "filename": name} for name in found], "config": CONFIG}).names

    assert names("a.zstd.bin", "b.zstd.bin").all_end_with(".zstd.bin")
    assert not names("a.zstd.bin", "zstd.bin").all_end_with(".zstd.bin")
    assert not names("a", ".zstd.bin").all_end_with("a.zstd.bin")
    assert names().all_end_with("x")


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
