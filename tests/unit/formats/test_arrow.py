"""Parquet and Arrow IPC files as datasets: every row, only the bytes needed, and nothing believed unchecked."""

from __future__ import annotations

import datetime
import decimal
import io
import itertools
import json
import random
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import images_from, items_of
from support.sources import DiarySource

from lazystore import StreamingDataset
from lazystore.errors import (
    BudgetTooSmallError,
    ConfigError,
    FetchError,
    FormatError,
    LazyStoreError,
    MissingExtraError,
    UnsupportedError,
)
from lazystore.formats.format import Ahead, Arrival, Format, Image, Opened, Options, Place

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from lazystore.formats import arrow_images, parquet_images  # noqa: E402
from lazystore.formats.arrow import ArrowFormat, ParquetFormat  # noqa: E402

BUDGET = 64 << 20


def table(n: int, seed: int = 0, *, size: int = 60) -> Any:
    """Rows of the common types, of many lengths."""
    chance = random.Random(seed)
    return pa.table(
        {
            "id": pa.array(range(n)),
            "text": pa.array([chance.choice([None, "", "ü" * chance.randrange(size)]) for _ in range(n)]),
            "score": pa.array([chance.choice([None, chance.random()]) for _ in range(n)]),
            "tags": pa.array([[chance.choice("abc")] * chance.randrange(3) for _ in range(n)]),
            "meta": pa.array([{"a": i, "b": chance.randbytes(chance.randrange(9))} for i in range(n)]),
            "flag": pa.array([i % 3 == 0 for i in range(n)]),
        }
    )


def ipc(data: Any, *, rows: int = 10, stream: bool = False, **options: Any) -> bytes:
    sink = io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, data.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(data, max_chunksize=rows)
    return sink.getvalue()


def parquet(data: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(data, sink, **options)
    return sink.getvalue()


def open_files(
    kind: type[Format], files: Mapping[str, bytes], *, budget: int = BUDGET, index: bytes = b"", **options: Any
) -> Opened:
    source = DiarySource(files)
    names = {} if index else {name: len(data) for name, data in files.items()}
    opened = kind().open(Place(source, "diary://objects", names, index, 30.0, budget), Options(**options))
    assert isinstance(opened, Opened)
    return opened


def rows_of(opened: Opened, *, backwards: bool = False) -> list[Any]:
    """Every row, run by run; each run within the scratch it says it needs, each block of the rows promised."""
    images = opened.images
    assert images is not None
    found: dict[int, list[Any]] = {}
    runs = range(len(images.runs) - 1)
    for run in reversed(runs) if backwards else runs:
        for image in images_from(images, opened.source, images.runs[run]):
            found[image.block] = [opened.plan(item) for item in items_of(image.data)]
            assert len(found[image.block]) == opened.counts[image.block]
    return [one for block in sorted(found) for one in found[block]]


IPC = {
    "file": {},
    "stream": {"stream": True},
    "lz4": {"compression": "lz4"},
    "zstd": {"compression": "zstd"},
    "zstd stream": {"compression": "zstd", "stream": True},
    "one row each": {"rows": 1},
    "one batch": {"rows": 1 << 20},
}
PARQUET = {
    "snappy": {},
    "zstd, many groups": {"compression": "zstd", "row_group_size": 13},
    "version 2 pages": {"data_page_version": "2.0", "compression": "gzip"},
    "tiny pages": {"data_page_size": 64, "write_batch_size": 4, "use_dictionary": False, "compression": "none"},
    "page checksums": {"write_page_checksum": True},
}
FILES = [
    *[pytest.param(ArrowFormat, lambda t, o=options: ipc(t, **o), id=f"ipc {name}") for name, options in IPC.items()],
    *[pytest.param(ParquetFormat, lambda t, o=o: parquet(t, **o), id=f"parquet {name}") for name, o in PARQUET.items()],
]


# -- what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "write"), FILES)
def test_every_row_of_every_file_comes_back_in_order(kind: type[Format], write: Any) -> None:
    tables = [table(57, 1), table(0, 2), table(200, 3)]
    opened = open_files(kind, {f"part-{k}": write(one) for k, one in enumerate(tables)})
    wanted = [row for one in tables for row in one.to_pylist()]
    assert repr(rows_of(opened)) == repr(wanted)
    assert repr(rows_of(opened, backwards=True)) == repr(wanted)
    assert opened.files is not None
    assert list(opened.files.counts) == [57, 0, 200]
    assert sum(opened.counts) == 257


@pytest.mark.parametrize(("kind", "write"), FILES)
def test_columns_are_those_asked_for_in_that_order(kind: type[Format], write: Any) -> None:
    data = table(100)
    opened = open_files(kind, {"part": write(data)}, columns=["meta", "id"])
    assert repr(rows_of(opened)) == repr(data.select(["meta", "id"]).to_pylist())
    assert list(opened.about["schema"]) == ["meta", "id"]
    with pytest.raises(ConfigError, match="nope"):
        open_files(kind, {"part": write(data)}, columns=["nope"])


@pytest.mark.parametrize("kind", [ArrowFormat, ParquetFormat])
def test_types_that_only_pyarrow_knows_come_back_exactly(kind: type[Format]) -> None:
    data = pa.table(
        {
            "when": pa.array([0, None, 10**15], pa.timestamp("us", tz="Europe/Paris")),
            "word": pa.array(["x", None, "x"]).dictionary_encode(),
            "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "big": pa.array([1, None, 2**64 - 1], pa.uint64()),
        }
    )
    numbers = data.select(["big"])
    assert rows_of(open_files(ArrowFormat, {"part": ipc(numbers)})) == numbers.to_pylist()
    for rows in (1, 2, 3):
        for stream in (True, False):
            stored = ipc(data, rows=rows, stream=stream) if kind is ArrowFormat else parquet(data, row_group_size=rows)
            opened = open_files(kind, {"part": stored})
            assert repr(rows_of(opened)) == repr(data.to_pylist())


@pytest.mark.parametrize("kind", [ArrowFormat, ParquetFormat])
def test_files_with_other_columns_give_rows_of_their_own(kind: type[Format]) -> None:
    write = ipc if kind is ArrowFormat else parquet
    tables = [table(20), table(20).select(["text", "id"]), table(20).drop_columns(["flag"])]
    opened = open_files(kind, {f"{k}": write(one) for k, one in enumerate(tables)})
    assert repr(rows_of(opened)) == repr([one for data in tables for one in data.to_pylist()])
    dated = pa.table({"when": pa.array([0], pa.timestamp("s"))})
    with pytest.raises(UnsupportedError, match="when"):
        open_files(kind, {"a": write(tables[0]), "b": write(dated)})


def test_dictionaries_that_change_within_a_stream_are_followed() -> None:
    schema = pa.schema([("word", pa.dictionary(pa.int8(), pa.string()))])
    batches = [pa.record_batch([pa.array(words).dictionary_encode().cast(schema[0].type)], schema=schema)
               for words in (["a", "b"], ["b", "c", "b"], ["z"])]  # fmt: skip
    for deltas in (False, True):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)) as writer:
            for batch in batches:
                writer.write_batch(batch)
        opened = open_files(ArrowFormat, {"part": sink.getvalue()})
        assert [one["word"] for one in rows_of(opened)] == ["a", "b", "b", "c", "b", "z"]


def test_litdatas_index_of_parquet_files_is_read() -> None:
    tables = {"b.parquet": table(30, 1), "a.parquet": table(5, 2)}
    files = {name: parquet(one) for name, one in tables.items()}
    index = {
        "chunks": [
            {"chunk_bytes": len(files[name]), "chunk_size": one.num_rows, "dim": None, "filename": name}
            for name, one in tables.items()
        ],
        "config": {
            "chunk_bytes": None, "chunk_size": None, "compression": None, "encryption": None, "data_spec": None,
            "data_format": [str(kind) for kind in tables["a.parquet"].schema.types], "item_loader": "ParquetLoader",
        },
        "updated_at": "1",
    }  # fmt: skip
    assert ParquetFormat().recognises({"chunks": [], "config": index["config"]})
    assert not ParquetFormat().recognises({"chunks": [], "config": {"item_loader": "PyTreeLoader"}})
    opened = open_files(ParquetFormat, files, index=json.dumps(index).encode())
    assert repr(rows_of(opened)) == repr([row for one in tables.values() for row in one.to_pylist()])
    index["chunks"][1]["chunk_size"] = 6  # type: ignore[index]
    with pytest.raises(FormatError, match=r"a\.parquet has 5 rows, the index says 6"):
        open_files(ParquetFormat, files, index=json.dumps(index).encode())


# -- what it costs --------------------------------------------------------------------------


def test_only_the_wanted_column_chunks_are_fetched_and_each_byte_once() -> None:
    data = pa.table({"id": range(20_000), "text": [f"{i:0200}" for i in range(20_000)]})
    stored = parquet(data, row_group_size=5_000, compression="none", use_dictionary=False)
    opened = open_files(ParquetFormat, {"part": stored}, columns=["id"])
    source = opened.source
    assert isinstance(source, DiarySource)
    at_opening = source.nbytes()
    assert at_opening <= 70_000
    assert [row["id"] for row in rows_of(opened)] == list(range(20_000))
    assert source.nbytes() - at_opening < 300_000 < len(stored) // 10
    assert max(source.asked().values()) <= 2  # the footer, which small files' tails hold already


def test_footers_that_are_kept_are_not_fetched_again_and_their_bytes_are_accounted_for() -> None:
    files = {name: parquet(table(8_000, seed, size=200)) for seed, name in enumerate("abc")}
    assert min(map(len, files.values())) > parquet_images.TAIL_BYTES
    opened = open_files(ParquetFormat, files, budget=8 << 20)
    source = opened.source
    assert isinstance(source, DiarySource)
    begun = len(source.waves)
    assert len(rows_of(opened)) == 24_000
    ends = {(name, end) for wave in source.waves[begun:] for name, _, end in wave}
    assert not any(end > len(files[name]) - 8 for name, end in ends)
    footers = sum(int.from_bytes(stored[-8:-4], "little") for stored in files.values())
    assert opened.reserved >= footers


def test_footers_that_there_is_no_room_for_are_fetched_again() -> None:
    kept = parquet_images.KeptFooters(10)
    assert kept.keep(memoryview(bytes(11))) is None and kept.keep(memoryview(b"12345678")) == b"12345678"
    assert kept.keep(memoryview(b"123")) is None and kept.taken == 8
    files = {"a": parquet(table(8_000, size=200))}
    opened = open_files(ParquetFormat, files, budget=1 << 16)
    assert opened.reserved == 0
    assert len(rows_of(opened)) == 8_000


def test_of_a_row_group_in_pieces_the_next_one_is_sent_for_while_one_is_decoded() -> None:
    chance = random.Random(5)
    text = [chance.randbytes(200).hex() for _ in range(60_000)]
    stored = parquet(
        pa.table({"id": range(60_000), "text": text}),
        row_group_size=60_000, data_page_size=100_000, compression="none", use_dictionary=False,
    )  # fmt: skip
    opened = open_files(ParquetFormat, {"part": stored})
    images = opened.images
    assert images is not None
    steps = images.open(0, 0)
    waited = went_along = 0
    answer, ahead = None, []
    most = 0

    def bytes_of(wants: list[Any]) -> list[memoryview]:
        return [memoryview(stored)[want.begin : want.begin + want.nbytes] for want in wants]

    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            break
        most = max(most, images.scratch(0))
        answer = None
        if isinstance(step, Ahead):
            ahead, answer = step.wants, True
        elif isinstance(step, Arrival):
            went_along += 1
            answer = bytes_of(ahead)
        elif isinstance(step, list):
            waited += 1
            answer = bytes_of(step)
    assert waited <= 2 and went_along >= 2
    assert most <= 2 * images.scratch(0)
    assert images.scratch(0) < len(stored)


def test_rows_are_decoded_in_memory_that_is_given_back_when_it_is_freed() -> None:
    opened = open_files(ParquetFormat, {"a": parquet(table(20_000, size=300))})
    images = opened.images
    assert images is not None
    pools = pa.default_memory_pool(), pa.system_memory_pool()
    before = [pool.bytes_allocated() for pool in pools]
    made = images_from(images, opened.source, 0)
    next(made)
    grown = [pool.bytes_allocated() - then for pool, then in zip(pools, before, strict=True)]
    made.close()
    # What is inflated page by page stays in the default one.
    assert grown[1] >= 2 * opened.hints[0]
    assert pools[0].backend_name == "system" or grown[0] < grown[1], grown


def test_a_large_row_group_is_held_in_pieces() -> None:
    chance = random.Random(5)
    data = pa.table({"id": range(60_000), "text": [chance.randbytes(200).hex() for _ in range(60_000)]})
    for options in (
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd"},
        {"data_page_version": "2.0"},
    ):
        stored = parquet(data, row_group_size=60_000, data_page_size=100_000, **options)
        opened = open_files(ParquetFormat, {"part": stored})
        images = opened.images
        assert images is not None
        assert len(images.runs) == 2
        assert images.scratch(0) < len(stored) * 0.9 or len(stored) < 16 << 20
        seen = [opened.plan(item) for image in images_from(images, opened.source, 0) for item in items_of(image.data)]
        assert seen == data.to_pylist()
        # From the middle of a run, too.
        block = len(opened.counts) // 2
        first = sum(opened.counts[:block])
        image = next(images_from(images, opened.source, block))
        assert [opened.plan(item) for item in items_of(image.data)] == data.slice(
            first, opened.counts[block]
        ).to_pylist()


@pytest.mark.parametrize(("kind", "write"), FILES)
def test_blocks_do_not_depend_on_the_budget(kind: type[Format], write: Any) -> None:
    files = {"a": write(table(3_000)), "b": write(table(50))}
    small, large = (open_files(kind, files, budget=budget) for budget in (8 << 20, 1 << 30))
    assert small.counts == large.counts
    assert small.version == large.version
    assert small.version != open_files(kind, {"a": write(table(3_000, 9)), "b": files["b"]}).version


def test_small_batches_share_a_block_and_large_ones_are_cut() -> None:
    small = open_files(ArrowFormat, {"part": ipc(table(4_000), rows=10)})
    assert 1 <= len(small.counts) < 10
    large = open_files(ArrowFormat, {"part": ipc(table(40_000), rows=40_000)})
    assert large.images is not None
    assert len(large.images.runs) == 2
    assert len(large.counts) > 4
    lengths = [len(image.data) for image in images_from(large.images, large.source, 0)]
    assert max(lengths) < 400_000
    assert all(abs(found - said) < 100_000 for found, said in zip(lengths, large.hints, strict=True))


def test_directories_of_many_files_are_read_in_common_waves() -> None:
    for kind, write in ((ArrowFormat, ipc), (ParquetFormat, parquet)):
        opened = open_files(kind, {f"{k:03}": write(table(7, k)) for k in range(100)})
        assert isinstance(opened.source, DiarySource)
        assert len(opened.source.waves) <= 6


# -- what is left out of record batches -----------------------------------------------------

DAY = datetime.date(2024, 2, 29)
WORDS = pa.array(["x", None, "y", "x"]).dictionary_encode()
#: Four cells of each type.
CELLS = {
    "null": pa.nulls(4),
    "bool": pa.array([True, None, False, True]),
    "int8": pa.array([1, None, -3, 4], pa.int8()),
    "uint64": pa.array([1, None, 2**64 - 1, 4], pa.uint64()),
    "half": pa.array([1.5, None, 3, 4], pa.float32()).cast(pa.float16()),
    "double": pa.array([1.5, 2, 3, 4], pa.float64()),
    "text": pa.array(["ü", None, "", "4"]),
    "large": pa.array([b"1", None, b"", b"\0\0"], pa.large_binary()),
    "fixed": pa.array([b"abc", None, b"def", b"ghi"], pa.binary(3)),
    "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-3.25"), None], pa.decimal128(9, 2)),
    "date": pa.array([DAY, None, DAY, DAY]),
    "timestamp": pa.array([0, None, 10**15, 4], pa.timestamp("us", tz="Europe/Paris")),
    "interval": pa.array([(1, 2, 3), None, (4, 5, 6), (7, 8, 9)], pa.month_day_nano_interval()),
    "list": pa.array([[1, 2], None, [], [None]]),
    "large list": pa.array([["a"], None, [], ["b", None]], pa.large_list(pa.string())),
    "array": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int16(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 4, "b": []}]),
    "map": pa.array([[("a", 1)], None, [], [("b", None), ("c", 3)]], pa.map_(pa.string(), pa.int64())),
    "dictionary": WORDS,
    "list of dictionary": pa.ListArray.from_arrays(pa.array([0, 2, 2, 3, 4], pa.int32()), WORDS),
    "struct of dictionary": pa.StructArray.from_arrays([pa.array(range(4)), WORDS], ["n", "word"]),
}
FORMS = [(stream, compression) for stream in (False, True) for compression in (None, "lz4", "zstd")]


def noise(n: int, seed: int) -> Any:
    """A column that compresses badly."""
    chance = random.Random(seed)
    return pa.array([chance.randbytes(chance.choice([200, 300])) for _ in range(n)])


def between(*cells: Any, n: int = 800, **others: Any) -> Any:
    """Columns between others: two wide ones, and some whose buffers must be counted only."""
    words = pa.array([f"{i % 7}" for i in range(n)]).dictionary_encode()
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2]] * n, pa.list_(pa.int8(), 2))
    )
    inner = {f"x{k}": pa.concat_arrays([one] * (n // 4)) for k, one in enumerate(cells)}
    return pa.table({"words": words, "wide": noise(n, 1), "tensor": tensors, **inner, **others, "more": noise(n, 2)})


def fetched_for(opened: Opened, wanted: Sequence[Any]) -> int:
    """Bytes fetched for all rows, which are as wanted."""
    source = opened.source
    assert isinstance(source, DiarySource)
    source.waves.clear()
    assert repr(rows_of(opened)) == repr(wanted)
    return source.nbytes()


@pytest.mark.parametrize(("stream", "compression"), FORMS)
@pytest.mark.parametrize("name", CELLS)
def test_only_what_a_column_takes_is_fetched_whatever_its_type(
    name: str, stream: bool, compression: str | None
) -> None:
    data = between(CELLS[name], n=400)
    stored = ipc(data, rows=200, stream=stream, compression=compression)
    opened = open_files(ArrowFormat, {"part": stored}, columns=["x0"])
    assert fetched_for(opened, data.select(["x0"]).to_pylist()) < len(stored) // 5


@pytest.mark.parametrize(("stream", "compression"), FORMS)
def test_columns_far_apart_are_fetched_without_what_is_between(stream: bool, compression: str | None) -> None:
    data = between(CELLS["struct"], CELLS["uint64"], last=pa.array(range(800)))
    stored = ipc(data.select(["x0", "wide", "x1", "more", "last"]), rows=400, stream=stream, compression=compression)
    opened = open_files(ArrowFormat, {"part": stored}, columns=["last", "x1", "x0"])
    wanted = data.select(["last", "x1", "x0"]).to_pylist()
    assert fetched_for(opened, wanted) < len(stored) // 4
    assert isinstance(opened.source, DiarySource)
    # Two batches share the block and come in one wave: headers with what follows, what is between, what is last.
    assert [len(wave) for wave in opened.source.waves] == [5]


def test_where_little_would_be_left_out_or_nobody_can_count_buffers_batches_are_fetched_whole() -> None:
    data = between(CELLS["int8"])
    views = pa.table({"view": pa.array(["v" * 20] * 800, pa.string_view()), "n": range(800), "wide": noise(800, 1)})
    for one, columns in ((data, ["wide", "more", "words"]), (views, ["n"]), (data, ["x0", "wide", "more"])):
        stored = ipc(one, rows=800)
        opened = open_files(ArrowFormat, {"part": stored}, columns=columns)
        assert fetched_for(opened, one.select(columns).to_pylist()) > 0.9 * len(stored)


def test_a_run_holds_no_more_than_it_says() -> None:
    data = between(CELLS["text"], n=8000, numbers=pa.array(range(8000)), other=noise(8000, 3))
    for columns in (["numbers"], ["other", "words"], ["numbers", "x0"]):
        for compression in (None, "zstd"):
            opened = open_files(ArrowFormat, {"part": ipc(data, rows=8000, compression=compression)}, columns=columns)
            images = opened.images
            assert images is not None
            (most, longest) = (0, 0)
            tracemalloc.start()
            for image in images_from(images, opened.source, 0):
                most = max(most, images.scratch(0))
                longest = max(longest, len(image.data))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < most + 3 * longest + (64 << 10)


def test_a_file_overwritten_after_it_was_opened_is_noticed() -> None:
    files = [ipc(between(CELLS["text"], n=n), rows=n) for n in (800, 1200)]
    opened = open_files(ArrowFormat, {"part": files[0]}, columns=["x0"])
    assert isinstance(opened.source, DiarySource)
    opened.source.objects["part"] = files[1]
    with pytest.raises(FormatError, match="part"):
        rows_of(opened)


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "error", "match"),
    [
        (ArrowFormat, b"", FormatError, "0 bytes"),
        (ArrowFormat, b"hello, this is no Arrow data at all", FormatError, "part"),
        (ArrowFormat, b"FEA1" + bytes(100), UnsupportedError, "version 1"),
        (ArrowFormat, b"ARROW1\0\0" + bytes(100), FormatError, "part"),
        (ParquetFormat, b"PAR1", FormatError, "4 bytes"),
        (ParquetFormat, b"PAR1" + bytes(100) + b"PAR1", FormatError, "footer"),
        (ParquetFormat, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", FormatError, "footer"),
        (ParquetFormat, b"PARE" + bytes(100) + b"PARE", UnsupportedError, "encrypted"),
        (ParquetFormat, b"a,b,c\n" * 100, FormatError, "end like a Parquet"),
    ],
)
def test_other_files_are_told_apart(kind: type[Format], data: bytes, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        open_files(kind, {"part": data})


def test_compressed_bodies_that_inflate_beyond_the_budget_are_refused() -> None:
    data = pa.table({"zeros": pa.array([0] * 4_000_000)})
    opened = open_files(ArrowFormat, {"bomb": ipc(data, rows=4_000_000, compression="zstd")}, budget=16 << 20)
    with pytest.raises(BudgetTooSmallError, match="inflates to 32000000"):
        rows_of(opened)
    data = pa.table({"zeros": [bytes(32_000_000)]})
    opened = open_files(ParquetFormat, {"bomb": parquet(data, compression="zstd")}, budget=16 << 20)
    with pytest.raises(BudgetTooSmallError, match="dictionary of 32000004 bytes"):
        rows_of(opened)


def test_options_that_mean_nothing_here_are_refused() -> None:
    for options in ({"raw": True}, {"block_size": 4}, {"verify": True}, {"extra": {"delimiter": ","}}):
        with pytest.raises(ConfigError):
            open_files(ArrowFormat, {"part": ipc(table(3))}, **options)


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = ipc(table(3))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for kind in (ArrowFormat, ParquetFormat):
        with pytest.raises(MissingExtraError, match=r"lazystore\[arrow\]"):
            open_files(kind, {"part": stored})


# -- damage ---------------------------------------------------------------------------------

SMALL = table(40, 4, size=8)
ORIGINALS = {
    "file": (ArrowFormat, ipc(SMALL)),
    "stream": (ArrowFormat, ipc(SMALL, stream=True)),
    "zstd": (ArrowFormat, ipc(SMALL, compression="zstd")),
    "dictionary": (ArrowFormat, ipc(pa.table({"w": pa.array(list("abca") * 9).dictionary_encode()}), stream=True)),
    "parquet": (ParquetFormat, parquet(SMALL, row_group_size=20)),
    "parquet zstd": (ParquetFormat, parquet(SMALL, compression="zstd", data_page_version="2.0")),
    "parquet plain": (ParquetFormat, parquet(SMALL, compression="none", use_dictionary=False)),
}


def damages(length: int) -> st.SearchStrategy[Sequence[tuple[str, int, bytes]]]:
    """Bytes overwritten (most often with what makes large or negative lengths), cut out, or put in."""
    telling = [b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(8), b"\x80", b"\0\0\0\0\0\0\0\x40", b"\x01"]
    change = st.tuples(
        st.sampled_from(["over", "over", "over", "cut", "in", "end"]),
        st.integers(0, length - 1),
        st.sampled_from(telling) | st.binary(min_size=1, max_size=16),
    )
    return st.lists(change, min_size=1, max_size=4)


def damaged(data: bytes, changes: Sequence[tuple[str, int, bytes]]) -> bytes:
    made = bytearray(data)
    for kind, at, new in changes:
        if kind == "over":
            made[at : at + len(new)] = new
        elif kind == "cut":
            del made[at : at + len(new) ** 2]
        elif kind == "in":
            made[at:at] = new
        else:
            del made[at:]
    return bytes(made)


@pytest.mark.parametrize("name", ORIGINALS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_raise_typed_errors_or_give_rows(name: str, data: st.DataObject) -> None:
    kind, original = ORIGINALS[name]
    files = {"part": damaged(original, data.draw(damages(len(original))))}
    with _memory_bounded():
        try:
            rows_of(open_files(kind, files, budget=8 << 20))
        except (LazyStoreError, UnicodeDecodeError):
            return


CUT = between(CELLS["list"], CELLS["text"], n=12)


@pytest.mark.parametrize("columns", [["x1", "x0"], ["words", "x1"]])
@pytest.mark.parametrize("options", [{}, {"stream": True}, {"compression": "zstd"}])
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_of_which_parts_are_read_raise_typed_errors_or_give_rows(
    columns: list[str], options: dict[str, Any], data: st.DataObject
) -> None:
    original = ipc(CUT, rows=6, **options)
    stored = damaged(original, data.draw(damages(len(original))))
    with _memory_bounded(), patch.object(arrow_images, "GAP", 0):
        assert len(open_files(ArrowFormat, {"part": original}, columns=columns).images._directories[0].spans) >= 4  # type: ignore[union-attr]
        try:
            rows_of(open_files(ArrowFormat, {"part": stored}, columns=columns, budget=8 << 20))
        except (LazyStoreError, UnicodeDecodeError):
            return


class _memory_bounded:
    """pyarrow allocates nothing that would be a multiple of the budget."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        assert pa.default_memory_pool().max_memory() < 1 << 30


@pytest.mark.parametrize("name", ORIGINALS)
def test_truncated_files_are_noticed_at_any_length(name: str) -> None:
    kind, original = ORIGINALS[name]
    for end in _some(len(original)):
        try:
            found = rows_of(open_files(kind, {"part": original[:end]}))
        except (FormatError, FetchError):
            continue
        # A stream may end after any message.
        assert name in ("stream", "dictionary")
        assert found == rows_of(open_files(kind, {"part": original}))[: len(found)]


def _some(n: int) -> Iterator[int]:
    yield from range(0, n, max(1, n // 300))


def test_runs_of_one_value_are_refused_before_they_fill_memory() -> None:
    most = (1 << 31) - 1
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([most]), pa.array(["x" * 1000]))
    opened = open_files(ArrowFormat, {"part": ipc(pa.table({"a": runs}), rows=most)}, budget=8 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(BudgetTooSmallError, match="give at least") as caught:
            rows_of(opened)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert 500 * max(opened.counts) < caught.value.needed < 3000 * max(opened.counts)
    few = pa.RunEndEncodedArray.from_arrays(pa.array([300, 900]), pa.array(["x" * 1000, None]))
    stored = ipc(pa.table({"a": few}), rows=900)
    assert rows_of(open_files(ArrowFormat, {"part": stored})) == [{"a": "x" * 1000}] * 300 + [{"a": None}] * 600


def test_a_batch_is_entered_anywhere_without_making_what_lies_before() -> None:
    data = pa.table({"a": range(60_000), "b": pa.nulls(60_000)})
    opened = open_files(ArrowFormat, {"part": ipc(data, rows=60_000)})
    images = opened.images
    assert images is not None and len(images.runs) == 2 and len(opened.counts) > 4
    firsts = [0, *itertools.accumulate(opened.counts)]
    steps = images.open(0, 1)
    (want,) = steps.send(None)  # type: ignore[misc]
    answer: Any = [memoryview(opened.source.objects["part"])[want.begin : want.begin + want.nbytes]]
    for block in (1, 4, 0, 3, len(opened.counts) - 1):
        image = steps.send(answer if block == 1 else block)
        assert isinstance(image, Image) and image.block == block and image.jumps
        assert opened.plan(items_of(image.data)[0]) == {"a": firsts[block], "b": None}
    with pytest.raises(StopIteration):
        steps.send(None)


def test_far_rows_of_one_batch_are_had_at_once_in_any_order(tmp_path: Any) -> None:
    nothing = pa.Array.from_buffers(pa.binary(0), 1 << 30, [None, pa.py_buffer(b"")])
    (tmp_path / "a.arrow").write_bytes(ipc(pa.table({"a": nothing}), rows=1 << 30))
    made: list[int] = []

    def note(block: int, *rest: Any, **more: Any) -> Image:
        made.append(block)
        return Image(block, *rest, **more)

    with (
        patch("lazystore.formats.arrow_images.Image", note),
        StreamingDataset(tmp_path / "a.arrow", memory="8MB") as dataset,
    ):
        for i in (5, (1 << 30) - 1, 1 << 29, 0, 1 << 28, 9):
            assert dataset[i] == {"a": b""}
        assert dataset.get_many([1 << 28, 1 << 20, 7]) == [{"a": b""}] * 3
    assert len(made) < 12
