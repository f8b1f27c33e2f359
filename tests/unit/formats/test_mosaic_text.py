"""MosaicML's JSON, CSV, TSV and XSV shards: their lines come back, plain or compressed, near or far."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import GOLDEN, assert_same, expected
from support.mosaic import LIMIT, Stream, chunk, opened, stored_items, values, write_text
from support.sources import DiarySource

from lazystore._core.offsets import check_offsets
from lazystore.errors import BudgetTooSmallError, FetchError, FormatError, LazyStoreError, UnsupportedError
from lazystore.formats.mosaic_codec import TextCodec

ALL = sorted(path.name for path in GOLDEN.glob("mosaic-*"))
JSON_LINES = [[b'{"a": 1}\n', b'{"a": [2, "x"]}\n'], [], [b'{"a": 3}\n'] * 40]
CSV = {"column_names": ["number", "words"], "column_encodings": ["int", "str"]}
CSV_LINES = [[b"1,one\n", b"-2,\xc3\xa9\xc2\x85 'quoted\"\n", b"3,\n"], [b"40,a\n"]]
CSV_ROWS = [
    {"number": 1, "words": "one"},
    {"number": -2, "words": "é\x85 'quoted\""},
    {"number": 3, "words": ""},
    {"number": 40, "words": "a"},
]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("far", [True, False])
def test_what_the_real_writer_stored_comes_back_equal(name: str, far: bool) -> None:
    folder = GOLDEN / name / "data"
    found = opened(DiarySource.of(folder), json.loads((folder / "index.json").read_bytes())) if far else opened(folder)
    assert_same(values(found), expected(name))
    assert sum(found.counts) == len(expected(name))


@pytest.mark.parametrize("name", ALL)
def test_raw_gives_the_lines_of_the_file(name: str) -> None:
    folder = GOLDEN / name / "data"
    found = opened(folder, raw=True)
    head = 0 if name.endswith("json") else 1
    lines = []
    for shard in json.loads((folder / "index.json").read_bytes())["shards"]:
        lines += (folder / shard["raw_data"]["basename"]).read_bytes().split(b"\n")[head:-1]
    assert values(found) == lines


def test_opening_sends_no_request_and_a_line_is_read_by_its_offsets(tmp_path: Path) -> None:
    write_text(tmp_path, "json", JSON_LINES, [None] * 3, columns={"a": "int"})
    source = DiarySource.of(tmp_path)
    found = opened(source, json.loads(source.objects["index.json"]))
    assert source.waves == []
    assert list(found.counts) == [2, 0, 40]
    assert values(found) == [{"a": 1}, {"a": [2, "x"]}] + [{"a": 3}] * 40


COMPRESSIONS = [["gz", "gz"], ["bz2:3", "gz:1"], [None, "gz"]]


@pytest.mark.parametrize("compressions", COMPRESSIONS, ids=str)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_compressed_shards_are_chunks_as_well(tmp_path: Path, compressions: list[str | None], piece: int) -> None:
    write_text(tmp_path, "csv", CSV_LINES, compressions, **CSV)
    found = opened(tmp_path)
    assert values(found) == CSV_ROWS
    for i in range(2):
        assert chunk(found, i, piece=piece, steps=5) == chunk(found, i)


def test_long_tables_are_moved_whole(tmp_path: Path) -> None:
    lines = [[b'{"a": %d}\n' % i for i in range(20_000)]]
    write_text(tmp_path, "json", lines, ["gz"], columns={"a": "int"})
    for steps in (1 << 20, 4099):
        found = opened(tmp_path)
        data = chunk(found, 0, steps=steps)
        offsets = struct.unpack_from("<20001I", data, 4)
        assert [data[a:b] for a, b in pairwise(offsets)] == lines[0]


def test_plain_text_is_read_where_both_its_files_are(tmp_path: Path) -> None:
    write_text(tmp_path, "csv", CSV_LINES, [None, None], **CSV)
    index = write_text(tmp_path, "csv", CSV_LINES, ["gz", "gz"], **CSV)
    assert opened(tmp_path).codec is None
    assert values(opened(tmp_path)) == CSV_ROWS
    (tmp_path / "shard.00000.csv.meta").unlink()
    found = opened(tmp_path)
    assert list(found.names) == ["shard.00000.csv.gz", "shard.00001.csv"]
    assert values(found) == CSV_ROWS
    assert index["shards"][0]["compression"] == "gz"


def test_separators_and_newlines_are_those_of_the_index(tmp_path: Path) -> None:
    lines = [[b"1;;a,b\r\n", b"2;;\r\n"]]
    write_text(tmp_path, "xsv", lines, [None], separator=";;", **CSV | {"newline": "\r\n"})
    assert values(opened(tmp_path)) == [{"number": 1, "words": "a,b"}, {"number": 2, "words": ""}]


def test_the_users_serializers_come_first(tmp_path: Path) -> None:
    write_text(tmp_path, "csv", CSV_LINES, [None, None], **CSV)
    found = opened(tmp_path, serializers={"number": len})
    assert [row["number"] for row in values(found)] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    "line",
    [b"1,two,three\n", b"1\n", b"\n", b"x,y\n", b"1.5,y\n", b"\xff,y\n", b"1,\xff\n", b"9" * 5000 + b",y\n"],
)
def test_a_row_that_does_not_fit_its_columns_is_a_format_error(tmp_path: Path, line: bytes) -> None:
    write_text(tmp_path, "csv", [[line]], [None], **CSV)
    with pytest.raises(FormatError):
        values(opened(tmp_path))


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"[" * 100_000 + b"\n", b"\xff\n", b'{"a": 1} {\n'])
def test_a_line_that_is_no_json_is_a_format_error(tmp_path: Path, line: bytes) -> None:
    write_text(tmp_path, "json", [[line]], [None], columns={"a": "int"})
    with pytest.raises(FormatError):
        values(opened(tmp_path))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"raw_meta": None}, FormatError), ({"newline": ""}, FormatError), ({"newline": None}, FormatError),
        ({"column_encodings": ["int", "jpeg"]}, FormatError), ({"samples": 99}, FormatError),
        ({"format": "xsv"}, FormatError), ({"format": "mds"}, LazyStoreError), ({"format": "jsonl"}, UnsupportedError),
        ({"raw_meta": {"basename": "../x", "bytes": 99, "hashes": {}}}, FormatError),
        ({"raw_data": {"basename": "x", "bytes": (1 << 32) - 20, "hashes": {}}}, FormatError),
    ],
)  # fmt: skip
def test_an_index_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    index = write_text(tmp_path, "csv", CSV_LINES, [None, None], **CSV)
    for shard in index["shards"]:
        shard |= change
    with pytest.raises(error):
        opened(tmp_path, index)


def test_mds_and_text_shards_in_one_index_are_refused(tmp_path: Path) -> None:
    index = write_text(tmp_path, "csv", CSV_LINES, [None, None], **CSV)
    index["shards"][1] |= {"format": "tsv"}
    with pytest.raises(UnsupportedError, match="not alike"):
        opened(tmp_path, index)


def test_hashes_of_table_and_data_are_both_verified(tmp_path: Path) -> None:
    from support.mosaic import put, table, write_index

    for compression in (None, "gz"):
        parts = {"data": CSV_LINES[1][0], "meta": table(CSV_LINES[1], 0)}
        entry = put(tmp_path, 0, "csv", parts, compression, ["md5"]) | CSV | {"samples": 1, "newline": "\n"}
        assert values(opened(tmp_path, write_index(tmp_path, [entry]), verify=True)) == [CSV_ROWS[3]]
        for part in ("data", "meta"):
            forged = json.loads(json.dumps(entry))
            forged[("zip_" if compression else "raw_") + part]["hashes"]["md5"] = "0" * 32
            with pytest.raises(FormatError, match="md5 checksum"):
                values(opened(DiarySource.of(tmp_path), write_index(tmp_path, [forged]), verify=True))


def test_an_offset_that_would_leave_32_bits_is_a_format_error(tmp_path: Path) -> None:
    index = write_text(tmp_path, "json", [[b"1\n", b"2\n"]], ["gz"], columns={})
    (tmp_path / "shard.00000.json.meta").write_bytes(struct.pack("<4I", 2, 0, 0xFFFFFFFE, 4) + b'{"config": 1}')
    (tmp_path / "shard.00000.json").write_bytes(b"1\n2\n")
    plain = opened(tmp_path, index)
    assert plain.codec is None
    with pytest.raises(FormatError, match="32 bits"):
        chunk(plain, 0)
    import gzip

    packed = gzip.compress((tmp_path / "shard.00000.json.meta").read_bytes())
    (tmp_path / "shard.00000.json.meta.gz").write_bytes(packed)
    (tmp_path / "shard.00000.json").unlink()
    index["shards"][0]["zip_meta"]["bytes"] = len(packed)
    with pytest.raises(FormatError, match="32 bits"):
        chunk(opened(tmp_path, index), 0)


def test_memory_is_bounded_by_what_is_allowed(tmp_path: Path) -> None:
    write_text(tmp_path, "csv", CSV_LINES, ["gz", "gz"], **CSV)
    found = opened(tmp_path)
    assert isinstance(found.codec, TextCodec)
    data = Stream(
        b"".join(bytes(part) for part in ()) or found.source.read_all(found.names[0], limit=LIMIT, timeout=9.0)
    )
    with pytest.raises(BudgetTooSmallError):
        found.codec.open(data, limit=100_000, stored=0, size=0)


@given(st.data())
@settings(max_examples=150)
@pytest.mark.parametrize("compression", [None, "gz"])
def test_damaged_files_are_refused_or_read_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, compression: str | None, data: st.DataObject
) -> None:
    source = DiarySource.of(_dataset(tmp_path_factory, compression))
    index = json.loads(source.objects["index.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(set(source.objects) - {"index.json"})))
        content = bytearray(source.objects[name])
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["flip", "huge", "cut", "extend"]))
        if how == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "huge":
            content[at : at + 4] = b"\xff\xff\xff\xff"
        elif how == "cut":
            del content[at:]
        else:
            content += b"more"
        source.objects[name] = bytes(content)
    found = opened(source, index)
    for i in range(len(found.names)):
        try:
            image = chunk(found, i)
        except (FormatError, FetchError):
            continue
        if len(image) != found.hints[i] or int.from_bytes(image[:4], "little") != found.counts[i]:
            continue  # what the machinery refuses at the door
        end = found.table_end(i)
        try:
            check_offsets(image[4:end], lowest=end, highest=len(image))
            offsets = struct.unpack_from(f"<{found.counts[i] + 1}I", image, 4)
            for a, b in pairwise(offsets):
                assert set(found.plan(image[a:b])) == {"number", "words"}
        except FormatError:
            continue


_folders: dict[str | None, Path] = {}


def _dataset(factory: pytest.TempPathFactory, compression: str | None) -> Path:
    if compression not in _folders:
        _folders[compression] = factory.mktemp("text")
        write_text(_folders[compression], "csv", CSV_LINES, [compression] * 2, **CSV)
    return _folders[compression]


def test_rows_of_all_items_are_what_the_chunk_holds(tmp_path: Path) -> None:
    write_text(tmp_path, "tsv", [[b"5\tx y\n"]], ["gz"], **CSV)
    found = opened(tmp_path)
    assert stored_items(found) == [b"5\tx y\n"]
    assert values(found) == [{"number": 5, "words": "x y"}]
