"""MDS datasets: what the real writer stored comes back equal, what is damaged or forged is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.golden import GOLDEN, assert_same, difference, expected
from support.mosaic import (
    COLUMNS,
    chunk,
    mds_shard,
    opened,
    put,
    stored_items,
    text_item,
    values,
    write_index,
    write_mds,
)
from support.sources import DiarySource

from lazystore import StreamingDataset
from lazystore._core.offsets import check_offsets
from lazystore.errors import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FormatError,
    LazyStoreError,
    MissingExtraError,
    UnsafeDataError,
    UnsupportedError,
)
from lazystore.fetch.local import LocalSource
from lazystore.fetch.verify import VerifyingSource
from lazystore.formats.mosaic_index import parse_index
from lazystore.formats.registry import format_for_index

NEEDS = {"mds-br": "brotli", "mds-snappy": "cramjam", "mds-zstd": "zstandard", "mds-leaves": "PIL"}
ALL = sorted(path.name for path in GOLDEN.glob("mds-*"))


@pytest.mark.parametrize("name", ALL)
def test_what_the_real_writer_stored_comes_back_equal(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    found = opened(GOLDEN / name / "data", allow_pickle=True)
    assert_same(values(found), expected(name))
    assert sum(found.counts) == len(expected(name))
    assert found.exact


@pytest.mark.parametrize("name", ALL)
def test_the_registry_knows_the_index(name: str) -> None:
    index = (GOLDEN / name / "data" / "index.json").read_bytes()
    format = format_for_index(index, place=name)
    assert format.name == "mds"
    assert format.recognises({"shards": [], "version": 2})
    assert not format.recognises({"chunks": [], "config": {}})


def test_stored_image_files_are_handed_out_as_they_are_when_raw() -> None:
    found = opened(GOLDEN / "mds-leaves" / "data", raw=True)
    for value, want in zip(values(found), expected("mds-leaves"), strict=True):
        for column, kind in (("jp", "jpeg_file"), ("pn", "png_file")):
            wanted = want["dict"][column][kind]
            assert type(value[column]) is bytes and len(value[column]) == wanted["len"]
            assert hashlib.sha256(value[column]).hexdigest() == wanted["sha256"]
        assert value["a_int"] == struct.pack("<q", want["dict"]["a_int"]["int"])
        assert value["s"].decode() == want["dict"]["s"]["str"]


def test_png_pixels_are_those_that_were_written() -> None:
    pytest.importorskip("PIL")
    found = opened(GOLDEN / "mds-leaves" / "data", allow_pickle=True)
    for value, want in zip(values(found), expected("mds-leaves"), strict=True):
        assert hashlib.sha256(value["pn"].tobytes()).hexdigest() == want["dict"]["pn"]["png_file"]["pixels_sha256"]


def test_a_pickle_column_is_refused_unless_it_is_allowed() -> None:
    found = opened(GOLDEN / "mds-leaves" / "data")
    with pytest.raises(UnsafeDataError, match="allow_pickle=True"):
        found.plan(stored_items(found)[0])


# -- the layout, by its written example ------------------------------------------------------

EXAMPLE_CONFIG = (
    b'{"column_encodings": ["int", "str"], "column_names": ["number", "words"], "column_sizes": [8, null], '
    b'"compression": null, "format": "mds", "hashes": [], "size_limit": 67108864, "version": 2}'
)
EXAMPLE = mds_shard([text_item(1, "hi"), text_item(-2, "déjà")], EXAMPLE_CONFIG)


def dataset(shard: bytes, samples: int, /, **entry: Any) -> tuple[DiarySource, dict[str, Any]]:
    """A dataset of one shard as it would be on storage far away."""
    info = {"basename": "shard.00000.mds", "bytes": len(shard), "hashes": {}}
    known = {"version": 2, "format": "mds", "samples": samples, "compression": None, "hashes": [], "size_limit": None}
    known |= copy.deepcopy(COLUMNS) | {"raw_data": info, "zip_data": None} | entry
    return DiarySource({"shard.00000.mds": shard}), {"version": 2, "shards": [known]}


def test_the_worked_example_is_the_file_the_real_writer_makes() -> None:
    assert hashlib.sha1(EXAMPLE).hexdigest() == "cada805e83b409b7a34f6f6b7845a1160d9cec1c"
    assert values(opened(*dataset(EXAMPLE, 2))) == [{"number": 1, "words": "hi"}, {"number": -2, "words": "déjà"}]


def test_opening_sends_no_request() -> None:
    source, index = dataset(EXAMPLE, 2)
    opened(source, index)
    assert source.waves == []


# -- encodings -------------------------------------------------------------------------------


def column(encoding: str, size: int | None, data: bytes, **options: Any) -> Any:
    """What a sample of one column gives."""
    item = data if size else struct.pack("<I", len(data)) + data
    entry = {"column_names": ["c"], "column_encodings": [encoding], "column_sizes": [size]}
    return values(opened(*dataset(mds_shard([item]), 1, **entry), **options))[0]["c"]


@pytest.mark.parametrize(
    ("encoding", "size", "data", "wanted"),
    [
        ("uint8", 1, b"\xff", {"npscalar": {"dtype": "|u1", "value": 255}}),
        ("int16", 2, b"\xff\x7f", {"npscalar": {"dtype": "<i2", "value": 32767}}),
        ("uint64", 8, b"\xff" * 8, {"npscalar": {"dtype": "<u8", "value": 2**64 - 1}}),
        ("float16", 2, b"\x00\x3c", {"npscalar": {"dtype": "<f2", "value": (1.0).hex()}}),
        ("float64", 8, struct.pack("<d", math.inf), {"npscalar": {"dtype": "<f8", "value": "inf"}}),
        ("float32", None, struct.pack("<f", 0.5), {"npscalar": {"dtype": "<f4", "value": (0.5).hex()}}),
        ("int", 8, b"rawbytes", {"int": int.from_bytes(b"rawbytes", "little")}),
        ("int", None, b"\1" + bytes(7), {"int": 1}),
        ("str_int", None, b"-1" + b"0" * 50, {"int": -(10**50)}),
        ("str_float", None, b"1e300", {"float": (1e300).hex()}),
        ("str_decimal", None, b"0.10000000000000000000000001", {"decimal": "0.10000000000000000000000001"}),
        ("json", None, b'{"a": [1, NaN]}', {"dict": {"a": {"list": [{"int": 1}, {"float": "nan"}]}}}),
        ("list[png]", None, struct.pack("<II", 0, 0), {"list": []}),
    ],
)  # fmt: skip
def test_an_encoding_gives_its_type(encoding: str, size: int | None, data: bytes, wanted: dict[str, Any]) -> None:
    assert not difference(column(encoding, size, data), wanted)


def test_arrays_come_in_all_three_kinds() -> None:
    import numpy as np

    wanted = np.arange(300, dtype="<i2")
    header = b"\x11\x05\x2c\x01"  # int16; one dimension, as u16; 300
    for encoding, size, data in (
        ("ndarray", None, header + wanted.tobytes()),
        ("ndarray:int16", None, header[1:] + wanted.tobytes()),
        ("ndarray:int16:300", 600, wanted.tobytes()),
        ("ndarray:int16:3,100", 600, wanted.tobytes()),
    ):
        found = column(encoding, size, data)
        assert found.dtype == np.int16 and found.flags.writeable
        assert (found.reshape(-1) == wanted).all()
        assert found.shape == ((3, 100) if encoding.endswith("3,100") else (300,))


@pytest.mark.parametrize(
    ("encoding", "size", "data"),
    [
        ("int", None, b"123"), ("uint16", None, b"123"), ("str", None, b"\xff\xfe"), ("str_int", None, b"1.5"),
        ("str_int", None, b"9" * 5000), ("str_float", None, b"one"), ("str_decimal", None, b"one"),
        ("str_decimal", None, b"\xff"), ("json", None, b"{"), ("json", None, b"[" * 100_000), ("json", None, b"\xff"),
        ("list[pil]", None, b""), ("list[jpeg]", None, struct.pack("<II", 0, 1 << 31)),
        ("list[png]", None, struct.pack("<III", 0, 1, 5)), ("ndarray", None, b""), ("ndarray", None, b"\x07\x04\x01."),
        ("ndarray:float32", None, b"\xff" * 30), ("ndarray:int8", None, b"\x04"),
    ],
)  # fmt: skip
def test_a_damaged_value_is_a_format_error(encoding: str, size: int | None, data: bytes) -> None:
    with pytest.raises((FormatError, UnicodeDecodeError)):
        column(encoding, size, data)


@pytest.mark.parametrize(
    ("encoding", "size"),
    [
        ("int", 4), ("uint8", 8), ("str", 5), ("ndarray", 5), ("ndarray:int8:2,3", 7), ("ndarray::2,3", 6),
        ("ndarray:bool:2", 2), ("ndarray:int8:", None), ("ndarray:int8:0", None), ("ndarray:int8:-1", None),
        ("ndarray:int64:9999999999,9999999999", None), ("nonsense", None), ("list[str]", None), ("", None),
        ("ndarray:int8:" + ",".join(["1"] * 80), 1),
    ],
)  # fmt: skip
def test_an_encoding_nobody_knows_or_of_another_size_is_refused_at_the_door(encoding: str, size: int | None) -> None:
    with pytest.raises(FormatError, match=r"encoding|column 'c'"):
        column(encoding, size, b"12345678")


def test_the_users_serializers_come_first_by_column_and_by_encoding() -> None:
    class Upper:
        def deserialize(self, data: bytes) -> bytes:
            return data.upper()

    assert column("own", None, b"abc", serializers={"own": Upper()}) == b"ABC"
    assert column("str", None, b"abc", serializers={"c": bytes.title, "str": Upper()}) == b"Abc"
    assert column("own:4", 4, b"abcd", serializers={"own:4": len}) == 4


# -- the traps a robust reader has to handle --------------------------------------------------


def test_empty_shards_are_passed_over_whatever_they_say_of_columns(tmp_path: Path) -> None:
    index = write_mds(tmp_path, [[], ["a", "b"], [], ["c"], []], [None] * 5)
    index["shards"][0] |= {"column_names": ["x"], "column_encodings": ["str"], "column_sizes": [None]}
    found = opened(tmp_path, index)
    assert list(found.counts) == [0, 2, 0, 1, 0]
    assert [value["words"] for value in values(found)] == ["a", "b", "c"]
    assert found.plan.names == ("number", "words")


def test_a_dataset_of_nothing_opens() -> None:
    assert list(opened(DiarySource({}), {"version": 2, "shards": []}).counts) == []


def test_shards_beyond_32_bit_offsets_are_refused() -> None:
    source, index = dataset(EXAMPLE, 2)
    index["shards"][0]["raw_data"]["bytes"] = 1 << 32
    with pytest.raises(FormatError, match="wrapped around"):
        opened(source, index)


def test_more_samples_than_the_file_can_hold_are_refused() -> None:
    with pytest.raises(FormatError, match="60 samples in 238 bytes"):
        opened(*dataset(EXAMPLE, 60))


def test_samples_whose_columns_do_not_add_up_are_format_errors() -> None:
    for item in (text_item(1, "hi") + b"x", text_item(1, "hi")[:-1], b"\x02\0\0\0", b""):
        with pytest.raises(FormatError):
            values(opened(*dataset(mds_shard([item]), 1)))


def test_source_files_are_neither_written_nor_deleted(tmp_path: Path) -> None:
    write_mds(tmp_path, [["a"], ["b"]], ["gz", "gz"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    values(opened(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- plain and compressed shards side by side --------------------------------------------------


def names_read(folder: Path) -> list[str]:
    found = opened(folder)
    assert [value["words"] for value in values(found)] == ["a", "b" * 100, "c"]
    return list(found.names)


def test_plain_shards_are_read_where_they_are_whole_and_compressed_ones_otherwise(tmp_path: Path) -> None:
    write_mds(tmp_path, [["a"], ["b" * 100], ["c"]], ["gz", "gz:1", "bz2"])
    whole = tmp_path / "plain"
    write_mds(whole, [["a"], ["b" * 100], ["c"]], [None] * 3)
    zipped = ["shard.00000.mds.gz", "shard.00001.mds.gz", "shard.00002.mds.bz2"]
    assert names_read(tmp_path) == zipped
    (tmp_path / "shard.00001.mds").write_bytes((whole / "shard.00001.mds").read_bytes())
    assert names_read(tmp_path) == [zipped[0], "shard.00001.mds", zipped[2]]
    (tmp_path / "shard.00001.mds").write_bytes((whole / "shard.00001.mds").read_bytes()[:-1])
    assert names_read(tmp_path) == zipped
    for name in ("shard.00000.mds", "shard.00001.mds", "shard.00002.mds"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    assert names_read(tmp_path) == [name.rpartition(".")[0] for name in zipped]
    assert opened(tmp_path).codec is None


def test_far_away_the_compressed_shards_are_read_and_no_others_asked_for(tmp_path: Path) -> None:
    write_mds(tmp_path, [["a"]], ["gz"])
    source = DiarySource.of(tmp_path)
    source.objects["shard.00000.mds"] = b"not asked for"
    found = opened(source, json.loads(source.objects["index.json"]))
    assert list(found.names) == ["shard.00000.mds.gz"]
    assert source.waves == []
    assert values(found) == [{"number": 0, "words": "a"}]


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_mixed_shards_come_whole_whatever_the_pieces(tmp_path: Path, piece: int) -> None:
    write_mds(tmp_path, [["a" * 50] * 20, ["b"] * 30, ["c"]], [None, "gz", "bz2:3"])
    found = opened(tmp_path)
    for i in range(3):
        data = chunk(found, i, piece=piece, steps=97)
        assert len(data) == found.hints[i]
        check_offsets(data[4 : 8 + 4 * found.counts[i]], lowest=8, highest=len(data))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_mds(tmp_path, [["a"]], ["gz"])
    (tmp_path / "shard.00000.mds.gz").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"shard\.00000\.mds\.gz"):
        values(opened(tmp_path))


# -- merged ------------------------------------------------------------------------------------


def test_shards_of_different_columns_are_refused_with_a_remedy(tmp_path: Path) -> None:
    index = write_mds(tmp_path, [["a"], ["b"]], [None, None])
    index["shards"][1]["column_encodings"] = ["int", "bytes"]
    with pytest.raises(UnsupportedError, match=r"words: str.*words: bytes.*one by one"):
        opened(tmp_path, index)


def test_shards_that_differ_in_what_does_not_matter_are_one_dataset(tmp_path: Path) -> None:
    index = write_mds(tmp_path, [["a"], ["b"]], [None, None])
    index["shards"][1] |= {"size_limit": 5, "hashes": ["md5"], "column_sizes": [8, 0]}
    assert [value["words"] for value in values(opened(tmp_path, index))] == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../b", "a//b", "./a", "a\\b", "..", "", "a\0b", "s3://b/k", "a/", "C:\\x", 5, None],
)
def test_names_that_leave_the_dataset_are_refused(name: Any) -> None:
    source, index = dataset(EXAMPLE, 2)
    index["shards"][0]["raw_data"]["basename"] = name
    with pytest.raises(FormatError, match="refused"):
        opened(source, index)


# -- versions and other refusals -----------------------------------------------------------------


def test_other_versions_are_refused_at_both_levels() -> None:
    for version in (1, 3, None, True, "2"):
        source, index = dataset(EXAMPLE, 2)
        with pytest.raises(UnsupportedError, match="version"):
            opened(source, index | {"version": version})
        index["shards"][0]["version"] = version
        with pytest.raises(UnsupportedError, match=r"shard 0.*version"):
            opened(source, index)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": -1}, {"samples": 1.5}, {"samples": None}, {"samples": True}, {"samples": 1 << 40},
        {"raw_data": None}, {"raw_data": []}, {"raw_data": {"basename": "x", "bytes": -1, "hashes": {}}},
        {"raw_data": {"basename": "x", "bytes": "7", "hashes": {}}}, {"compression": 5}, {"compression": "gz"},
        {"raw_data": {"basename": "x", "bytes": 238, "hashes": {"md5": 5}}}, {"column_names": None},
        {"column_names": ["number"]}, {"column_names": ["number", "number"]}, {"column_names": ["number", 3]},
        {"column_sizes": [8]}, {"column_sizes": [8, -1]}, {"column_sizes": [8, "x"]}, {"column_sizes": [1 << 40, 0]},
        {"column_encodings": {}},
    ],
)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_a_format_error_that_names_the_shard(change: dict[str, Any]) -> None:
    source, index = dataset(EXAMPLE, 2)
    index["shards"][0] |= change
    with pytest.raises(FormatError, match=r"shard 0|column"):
        opened(source, index)


def test_unknown_formats_and_compressions_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="'parquet'"):
        opened(*dataset(EXAMPLE, 2, format="parquet"))
    zipped = {"basename": "shard.00000.mds.lz4", "bytes": 5, "hashes": {}}
    with pytest.raises(UnsupportedError, match="'lz4'"):
        opened(*dataset(EXAMPLE, 2, compression="lz4", zip_data=zipped))


@pytest.mark.parametrize(
    "option", [{"columns": ["number"]}, {"extra": {"x": 1}}, {"encryption": object()}, {"block_size": 4}]
)
def test_options_for_other_formats_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"format_options|not for datasets in format 'mds'"):
        opened(*dataset(EXAMPLE, 2), **option)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"5", b'{"version": 2}', b'{"shards": {}, "version": 2}', b"[" * 99999]
)
def test_what_is_no_index_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_index(data, place="here")


def test_a_folder_without_an_index_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "shard.00000.mds").write_bytes(b"")
    with pytest.raises(DatasetNotFoundError, match=r"index\.json does not exist"):
        StreamingDataset(tmp_path, format="mds")


# -- hashes --------------------------------------------------------------------------------------


def test_hashes_of_the_real_writer_are_verified() -> None:
    pytest.importorskip("xxhash")
    for options in ({"verify": True}, {"validate_hash": "sha1"}, {"validate_hash": "xxh64"}):
        found = opened(GOLDEN / "mds-hashes" / "data", **options)
        assert isinstance(found.source, VerifyingSource)
        assert_same(values(found), expected("mds-hashes"))
        assert found.source.counters.extra["verified"] == 2


def test_a_hash_the_index_does_not_have_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"md5.*sha1, xxh64"):
        opened(GOLDEN / "mds-hashes" / "data", validate_hash="md5")
    with pytest.raises(ConfigError, match="no hashes"):
        opened(GOLDEN / "mds-plain" / "data", verify=True)


def test_hashes_that_need_a_package_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingExtraError, match=r"xxhash.*lazystore\[mds\]"):
        opened(GOLDEN / "mds-hashes" / "data", validate_hash="xxh64")
    opened(GOLDEN / "mds-hashes" / "data", verify=True)  # sha1 will do


def test_of_compressed_shards_the_compressed_file_is_verified(tmp_path: Path) -> None:
    index = write_mds(tmp_path, [["a"], [], ["b"]], ["gz"] * 3, ["sha1"])
    for shard in index["shards"]:
        shard["raw_data"]["hashes"]["sha1"] = "0" * 40
    found = opened(tmp_path, index, verify=True)
    assert [value["words"] for value in values(found)] == ["a", "b"]
    index["shards"][2]["zip_data"]["hashes"]["sha1"] = "0" * 40
    with pytest.raises(FormatError, match=r"shard\.00002\.mds\.gz has the sha1 checksum"):
        values(opened(tmp_path, index, verify=True))


# -- mutations -----------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 1 << 70), st.floats(), st.text(max_size=5), st.builds(list),
    st.builds(dict),
    st.sampled_from(["mds", "json", "gz", "zstd:3", "../x", "ndarray:int8:9", "str", "pkl", 2, 4, 1 << 31]),
)  # fmt: skip


def _paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, child in inner for path in _paths(child, (*here, key)))]


@given(st.data())
@settings(max_examples=150)
def test_a_forged_index_is_refused_or_the_items_are_those_it_describes(data: st.DataObject) -> None:
    source, index = dataset(EXAMPLE, 2)
    index["shards"].append(copy.deepcopy(index["shards"][0]))
    for _ in range(data.draw(st.integers(1, 3))):
        paths = [path for path in _paths(index) if path]
        if not paths:
            break
        *way, last = data.draw(st.sampled_from(paths))
        target: Any = index
        for key in way:
            target = target[key]
        if data.draw(st.booleans()):
            target[last] = data.draw(JUNK)
        else:
            del target[last]
    try:
        found = opened(source, index)
        got = values(found)
    except (LazyStoreError, AssertionError, struct.error, UnicodeDecodeError):
        return  # assertions and struct errors are what support.mosaic raises in the machinery's place
    assert len(got) == sum(found.counts)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["mds-plain", "mds-gz", "mds-zstd", "mds-snappy", "mds-br", "mds-bz2"])
def test_a_damaged_shard_is_refused_or_read_and_nothing_else(name: str, data: st.DataObject) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    folder = GOLDEN / name / "data"
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"] = index["shards"][:1]
    shard = index["shards"][0]
    stored = (shard["zip_data"] or shard["raw_data"])["basename"]
    content = bytearray((folder / stored).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "huge", "cut", "extend", "swap"]))
        if how == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "huge":
            content[at : at + 4] = b"\xff\xff\xff\xff"
        elif how == "cut":
            del content[at:]
            content = content or bytearray(1)
        elif how == "extend":
            content += data.draw(st.binary(min_size=1, max_size=9))
        else:
            content[at : at + 4], content[:4] = content[:4], content[at : at + 4]
    source = DiarySource({stored: bytes(content)}, local=data.draw(st.booleans()))
    found = opened(source, index)
    try:
        chunk_bytes = chunk(found, 0)
        if len(chunk_bytes) != found.hints[0] or int.from_bytes(chunk_bytes[:4], "little") != found.counts[0]:
            return  # what the machinery refuses at the door
        end = found.table_end(0)
        check_offsets(chunk_bytes[4:end], lowest=end, highest=len(chunk_bytes))
        offsets = struct.unpack_from(f"<{found.counts[0] + 1}I", chunk_bytes, 4)
        for i in range(found.counts[0]):
            value = found.plan(chunk_bytes[offsets[i] : offsets[i + 1]])
            assert set(value) == {"id", "text"}
    except (FormatError, FetchError, UnicodeDecodeError):
        return


def test_indexes_of_many_shards_share_what_they_say_of_columns() -> None:
    _, index = dataset(EXAMPLE, 2)
    index["shards"] *= 2000
    found = parse_index(json.dumps(index).encode(), place="here")
    assert len(found.shards) == 2000 and found.columns.names == ("number", "words")


def test_a_merged_dataset_reads_from_its_subdirectories(tmp_path: Path) -> None:
    entries = []
    for part in ("a", "b"):
        entry = put(tmp_path / part, 0, "mds", {"data": mds_shard([text_item(0, part)])}, None)
        entry["raw_data"]["basename"] = f"{part}/{entry['raw_data']['basename']}"
        entries.append(entry | COLUMNS | {"samples": 1})
    index = write_index(tmp_path, entries)
    assert [v["words"] for v in values(opened(LocalSource(str(tmp_path)), index))] == ["a", "b"]
