"""``DatasetWriter`` writes what the real LitData writes and refuses what the format cannot keep."""

from __future__ import annotations

import json
import os
import struct
from collections import OrderedDict, defaultdict, deque, namedtuple
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import classic

from lazystore import StreamingDataset
from lazystore.errors import ClosedError, ConfigError, FormatError
from lazystore.formats import chunk_files, shard_writer
from lazystore.formats.sample_encoder import SampleEncoder
from lazystore.formats.writer import DatasetWriter


def write(folder: Path, samples: list[Any], **options: Any) -> dict[str, Any]:
    with DatasetWriter(folder, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return classic.read_index(folder)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and value; arrays by dtype, shape and bytes."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return bool(one == other)


# --- equal to the real writer ---------------------------------------------------------------------

REWRITABLE = ["text", "one-big-item", "single-leaf-str", "single-leaf-ndarray", "zstd"]


@pytest.mark.parametrize("name", REWRITABLE)
def test_rewriting_a_golden_dataset_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    golden = classic.GOLDEN / f"litdata-classic-{name}"
    theirs = classic.read_index(golden / "data")
    config = theirs["config"]
    ours = write(
        tmp_path,
        list(classic.golden_samples(golden)),
        chunk_bytes=config["chunk_bytes"],
        chunk_size=config["chunk_size"],
        compression=config["compression"],
        checksums=False,
    )
    assert files(tmp_path) == files(golden / "data")
    for chunk in theirs["chunks"]:
        assert classic.chunk_bytes(tmp_path, chunk, config["compression"]) == classic.chunk_bytes(
            golden / "data", chunk, config["compression"]
        )
    assert {**ours, "updated_at": ""} == {**theirs, "updated_at": ""}
    # the text too: key order, separators, escapes, no newline at the end
    text = (tmp_path / "index.json").read_text(encoding="ascii").split('"updated_at"')[0]
    assert text == (golden / "data" / "index.json").read_text(encoding="ascii").split('"updated_at"')[0]
    assert float(ours["updated_at"]) > 0


def test_every_plain_leaf_of_the_golden_leaves_has_the_golden_bytes() -> None:
    golden = classic.GOLDEN / "litdata-classic-leaves"
    config = classic.read_index(golden / "data")["config"]
    plain = [i for i, tag in enumerate(config["data_format"]) if "tensor" not in tag]
    encoder = None
    seen = 0
    for line, item in zip(classic.expected_lines(golden), classic.items(golden / "data"), strict=True):
        fields = {k: v for k, v in line["dict"].items() if "tensor" not in v}
        leaves = [(config["data_format"][i], item[i]) for i in plain]
        sample = classic.from_expected({"dict": fields}, iter(leaves))
        encoder = encoder or SampleEncoder(sample)
        encoded = encoder.encode(sample, number=seen)
        sizes = struct.pack(f"<{len(plain)}I", *(len(item[i]) for i in plain))
        assert encoded == sizes + b"".join(item[i] for i in plain)
        seen += 1
    assert encoder is not None
    assert encoder.data_format == [config["data_format"][i] for i in plain]
    assert seen == 48


def test_container_nodes_are_spelled_as_in_the_golden_spec() -> None:
    golden = classic.GOLDEN / "litdata-classic-containers"
    config = classic.read_index(golden / "data")["config"]
    _, root = json.loads(config["data_spec"])
    theirs = dict(zip(json.loads(root["context"]), root["children_spec"], strict=True))
    line = next(classic.expected_lines(golden))["dict"]
    for key in ("od", "ints", "t"):
        sample = classic.from_expected(line[key], iter([("bytes", b"")] * 20))
        assert SampleEncoder(sample).data_spec == json.dumps([1, theirs[key]])
    assert SampleEncoder(deque([0, 1, "x"], maxlen=5)).data_spec == json.dumps([1, theirs["dq"]])


def test_worked_example_of_the_format(tmp_path: Path) -> None:
    index = write(tmp_path, [{"a": 1, "b": "hi"}, {"a": 2, "b": "xyz"}])
    assert (tmp_path / "chunk-0-0.bin").read_bytes() == bytes.fromhex(
        "02000000 10000000 22000000 35000000 08000000 02000000 0100000000000000 6869"
        "08000000 03000000 0200000000000000 78797a"
    )
    assert index["chunks"] == [{"chunk_bytes": 53, "chunk_size": 2, "dim": None, "filename": "chunk-0-0.bin"}]
    assert index["config"]["chunk_bytes"] == 64_000_000
    assert index["config"]["item_loader"] == "PyTreeLoader"


def test_the_real_litdata_reads_it_back(tmp_path: Path) -> None:
    litdata = pytest.importorskip("litdata")
    samples = [{"id": i, "text": "ab" * i, "ok": i % 2 == 0, "x": np.arange(i + 1.0)} for i in range(50)]
    write(tmp_path / "d", samples, chunk_bytes=2000)
    dataset = litdata.StreamingDataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
    for sample, got in zip(samples, dataset, strict=True):
        assert (got["id"], got["text"], got["ok"]) == (sample["id"], sample["text"], sample["ok"])
        assert np.array_equal(got["x"], sample["x"])


# --- round trips ------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
    st.binary(),
    st.none(),
    st.lists(st.integers(0, 255), max_size=5).map(lambda v: np.array(v, dtype="u1")),
    st.lists(st.floats(width=32), max_size=4).map(lambda v: np.array(v, dtype="<f4").reshape(1, -1, 1)),
)
KEYS = st.one_of(st.text(max_size=4), st.integers(-5, 5))
SAMPLES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=8,
)


@given(sample=SAMPLES, copies=st.integers(1, 5), limit=st.integers(1, 80))
def test_what_is_written_is_read_by_the_plain_reader(
    sample: Any, copies: int, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("roundtrip")
    index = write(folder, [sample] * copies, chunk_bytes=limit)
    assert sum(c["chunk_size"] for c in index["chunks"]) == copies
    back = list(classic.samples(folder))
    assert len(back) == copies
    assert all(same(sample, b) for b in back)


@given(sample=SAMPLES, copies=st.integers(1, 5), limit=st.integers(1, 80))
def test_what_is_written_is_read_by_the_dataset(
    sample: Any, copies: int, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    write(folder, [sample] * copies, chunk_bytes=limit)
    with StreamingDataset(folder, memory="4MB") as dataset:
        assert len(dataset) == copies
        back = [*dataset, *(dataset[i] for i in range(copies)), *dataset.get_many(range(copies))]
    assert len(back) == 3 * copies
    assert all(same(sample, b) for b in back)


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=40), limit=st.integers(1, 120))
def test_chunks_close_exactly_where_the_packing_rule_says(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packing")
    index = write(folder, [b"x" * size for size in sizes], chunk_bytes=limit)
    items = iter(len(leaves[0]) + 4 for leaves in classic.items(folder))
    groups = [[next(items) for _ in range(chunk["chunk_size"])] for chunk in index["chunks"]]
    assert [size for group in groups for size in group] == [size + 4 for size in sizes]
    for group, following in pairwise(groups):
        assert sum(group) <= limit or len(group) == 1
        assert sum(group) + following[0] > limit
    for group, chunk in zip(groups, index["chunks"], strict=True):
        assert chunk["chunk_bytes"] == 4 + 4 * (len(group) + 1) + sum(group)


def test_chunk_size_counts_items(tmp_path: Path) -> None:
    index = write(tmp_path, list(range(10)), chunk_size=4)
    assert [c["chunk_size"] for c in index["chunks"]] == [4, 4, 2]
    assert index["config"]["chunk_size"] == 4
    assert index["config"]["chunk_bytes"] is None


@pytest.mark.parametrize("compression", ["zstd", "zstd:1", "zstd:22"])
def test_compressed_chunks_are_one_frame_that_states_its_size(compression: str, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    index = write(tmp_path, ["text " * 50] * 9, chunk_size=4, compression=compression)
    for number, chunk in enumerate(index["chunks"]):
        assert chunk["filename"] == f"chunk-0-{number}.{compression}.bin"
        data = (tmp_path / chunk["filename"]).read_bytes()
        parameters = zstandard.get_frame_parameters(data)
        assert parameters.content_size == chunk["chunk_bytes"] > len(data)
    assert list(classic.samples(tmp_path)) == ["text " * 50] * 9


def test_big_endian_and_strided_arrays_are_stored_little_endian_in_c_order(tmp_path: Path) -> None:
    grid = np.arange(12, dtype=">i4").reshape(3, 4)
    write(tmp_path, [{"v": grid[:, 1], "m": grid.T}])
    (sample,) = classic.samples(tmp_path)
    assert sample["v"].dtype == "<i4"
    assert np.array_equal(sample["v"], [1, 5, 9])
    assert np.array_equal(sample["m"], grid.T)


def test_n_dimensional_arrays_may_change_shape_and_dtype_between_samples(tmp_path: Path) -> None:
    arrays = [np.zeros((2, 2), "f4"), np.ones((1, 2, 3), "i8"), np.zeros((0, 5), bool)]
    write(tmp_path, arrays)
    assert all(map(same, classic.samples(tmp_path), arrays))


def test_dicts_with_another_key_order_are_put_in_the_first_ones(tmp_path: Path) -> None:
    write(tmp_path, [{"a": 1, "b": {"c": "x", "d": 2.0}}, {"b": {"d": 3.0, "c": "y"}, "a": 4}])
    assert list(classic.samples(tmp_path))[1] == {"a": 4, "b": {"c": "y", "d": 3.0}}


# --- refusals ---------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1}, {"a": "1"}, r"sample 1, at \['a'\]: a value of type str"),
        ({"a": 1}, {"a": 1.5}, r"sample 1, at \['a'\].*'float'.*'int'"),
        ({"a": 1}, {"a": True}, r"sample 1, at \['a'\].*'bool'.*'int'"),
        ({"a": 1}, {"a": None}, r"sample 1, at \['a'\]: None .*'pickle'.*'int'"),
        ({"a": 1}, {"a": 2**63}, r"sample 1, at \['a'\].*64 bits"),
        ({"a": "x"}, {"a": "\ud800"}, r"sample 1, at \['a'\].*UTF-8"),
        ({"a": 1}, {"b": 1}, r"sample 1: keys differ.*missing \['a'\], unexpected \['b'\]"),
        ({"a": 1}, [1], r"sample 1: a value of type list where the first sample has a dict"),
        ({"a": (1, 2)}, {"a": [1, 2]}, r"sample 1, at \['a'\].*list where.*tuple"),
        ({"a": [1, {"k": 2}]}, {"a": [1, {"k": b"2"}]}, r"sample 1, at \['a'\]\[1\]\['k'\].*'bytes'.*'int'"),
        ([1, 2], [1, 2, 3], r"sample 1: 3 elements where the first sample has 2"),
        (np.zeros(2, "f4"), np.zeros(2, "f8"), r"sample 1: .*'no_header_numpy:10'.*'no_header_numpy:9'"),
        (np.zeros(2), np.zeros((2, 2)), r"sample 1: .*'numpy'.*'no_header_numpy:10'"),
        (1, {1, 2}, r"sample 1: a value of type set cannot be written"),
    ],
)
def test_sample_unlike_the_first_is_refused_by_number_and_key(
    first: Any, second: Any, message: str, tmp_path: Path
) -> None:
    with DatasetWriter(tmp_path) as writer:
        writer.write(first)
        with pytest.raises(FormatError, match=message):
            writer.write(second)
        writer.write(first)  # the refused sample left no trace
    assert len(list(classic.items(tmp_path))) == 2


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"a": {1, 2}}, r"sample 0, at \['a'\]: a value of type set"),
        ({"a": 1j}, r"sample 0, at \['a'\]: a value of type complex"),
        ({"a": bytearray(b"x")}, "bytearray"),
        ({"a": np.int64(3)}, r"numpy.int64 cannot be written"),
        ({"a": np.array(3)}, r"0-dimensional array; write array.item\(\)"),
        ({"a": np.array([object()])}, "dtype object"),
        ({"a": np.array(["x"])}, "dtype <U1"),
        ({"a": np.ma.masked_array([1, 2], [0, 1])}, "masked array"),
        ({"a": defaultdict(int)}, "collections.defaultdict"),
        ({"p": Point(1, 2)}, "Point"),
        ({1.5: 1}, "the key 1.5"),
        ({"a": {None: 1}}, r"sample 0, at \['a'\]: the key None"),
        ({"a": {True: 1}}, "the key True"),
    ],
)
def test_first_sample_that_cannot_be_kept_is_refused(sample: Any, message: str, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path) as writer:
        with pytest.raises(FormatError, match=message):
            writer.write(sample)
        writer.write({"good": 1})  # the next one may still be the first
    assert list(classic.samples(tmp_path)) == [{"good": 1}]


def test_exception_inside_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="stop"), DatasetWriter(tmp_path, chunk_size=1) as writer:
        writer.write(1)
        writer.write(2)
        assert "chunk-0-0.bin" in files(tmp_path)
        raise RuntimeError("stop")
    assert files(tmp_path) == ["notes.txt"]
    with pytest.raises(ClosedError):
        writer.write(3)


def test_failing_disk_leaves_no_index_and_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "index.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(chunk_files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"), DatasetWriter(tmp_path, chunk_size=1) as writer:
        writer.write(1)
        writer.write(2)
    assert files(tmp_path) == []


def test_index_appears_last_and_no_temporary_name_stays(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, chunk_size=2)
    for i in range(5):
        writer.write(i)
        assert "index.json" not in files(tmp_path)
    writer.close()
    writer.close()
    assert files(tmp_path) == ["chunk-0-0.bin", "chunk-0-1.bin", "chunk-0-2.bin", "index.json"]
    assert writer.num_items == 5
    assert writer.bytes_written == sum((tmp_path / f).stat().st_size for f in files(tmp_path)[:3])


@pytest.mark.parametrize("name", ["index.json", "0.index.json", "0-index.json", "chunk-0-0.bin", "chunk-3-1.zstd.bin"])
def test_folder_with_a_dataset_whole_or_torn_is_refused_untouched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ConfigError, match="another folder"):
        DatasetWriter(tmp_path)
    assert (tmp_path / name).read_bytes() == b"precious"
    assert files(tmp_path) == [name]


def test_output_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        DatasetWriter(path)


def test_dataset_without_samples_is_an_error_and_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sample"), DatasetWriter(tmp_path / "new"):
        pass
    assert files(tmp_path / "new") == []


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_bytes": 100, "chunk_size": 10},
        {"chunk_size": 0},
        {"chunk_size": True},
        {"chunk_bytes": 0},
        {"chunk_bytes": "lots"},
        {"compression": "gzip"},
        {"compression": "zstd:0"},
        {"compression": "zstd:23"},
        {"compression": "zstd:x"},
    ],
)
def test_argument_that_cannot_work_is_refused_before_the_folder_is_made(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        DatasetWriter(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_chunks_end_before_their_offsets_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the limit is lowered: the promise is the same as at 4 GiB
    monkeypatch.setattr(shard_writer, "MAX_CHUNK_BYTES", 100)
    index = write(tmp_path, [b"x" * 20] * 10, chunk_size=1000)
    assert all(chunk["chunk_bytes"] <= 100 for chunk in index["chunks"])
    assert sum(chunk["chunk_size"] for chunk in index["chunks"]) == 10
    with DatasetWriter(tmp_path / "big") as writer:
        writer.write(b"")
        with pytest.raises(FormatError, match=r"sample 1: its 104 bytes do not fit"):
            writer.write(b"x" * 100)


def test_repr_says_where_and_how_much(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, chunk_size=1)
    writer.write("a")
    assert repr(writer) == f"DatasetWriter({str(tmp_path)!r}, 1 items, 0 chunks, open)"
