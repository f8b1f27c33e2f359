"""Parquet pages that decode to far more than they are stored in: read in small steps or refused."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from support import scripts
from support.images import images_from, items_of
from support.sources import DiarySource

from lazystore.errors import BudgetTooSmallError, FormatError
from lazystore.formats.format import Opened, Options, Place

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from lazystore.formats import parquet_images  # noqa: E402
from lazystore.formats.arrow import ParquetFormat  # noqa: E402

MIB = 1 << 20


def parquet(data: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(data, sink, **options)
    return sink.getvalue()


def opened_from(stored: bytes, budget: int = 64 * MIB) -> Opened:
    source = DiarySource({"part": stored})
    opened = ParquetFormat().open(Place(source, "diary://objects", {"part": len(stored)}, b"", 30.0, budget), Options())
    assert isinstance(opened, Opened)
    return opened


def rows_of(opened: Opened) -> list[Any]:
    images = opened.images
    assert images is not None
    return [
        opened.plan(item)
        for run in range(len(images.runs) - 1)
        for image in images_from(images, opened.source, images.runs[run])
        for item in items_of(image.data)
    ]


def words(n: int, *long: str) -> Any:
    """A column of ``n`` rows that take turns with a few words, as other writers store it."""
    return pa.DictionaryArray.from_arrays(pa.array([i % len(long) for i in range(n)], pa.int32()), pa.array(long))


# -- what comes out is the same --------------------------------------------------------------

CHANCE = random.Random(3)
WORDS = [None, "", "a", "b" * 300, "\u00fc"]
TYPES = {
    "text": pa.string(), "large": pa.large_string(), "bytes": pa.binary(), "large bytes": pa.large_binary(),
    "category": pa.dictionary(pa.int16(), pa.string()), "list": pa.list_(pa.string()), "view": pa.string_view(),
    "pair": pa.list_(pa.string(), 2), "struct": pa.struct([("a", pa.string()), ("b", pa.list_(pa.large_string()))]),
    "map": pa.map_(pa.string(), pa.string()), "fixed": pa.binary(3), "days": pa.list_(pa.date32()),
    "nothing": pa.null(), "decimals": pa.decimal128(20, 2),
}  # fmt: skip


def one(type_: Any) -> Any:
    types = pa.types
    if types.is_null(type_) or CHANCE.random() < 0.2:
        return None
    if types.is_struct(type_):
        return {type_.field(k).name: one(type_.field(k).type) for k in range(type_.num_fields)}
    if types.is_map(type_):
        return [(CHANCE.choice(WORDS) or "key", one(type_.item_type)) for _ in range(CHANCE.randrange(3))]
    if types.is_list(type_) or types.is_fixed_size_list(type_):
        return [one(type_.value_type) for _ in range(2 if types.is_fixed_size_list(type_) else CHANCE.randrange(3))]
    if types.is_date(type_) or types.is_decimal(type_):
        return CHANCE.randrange(9)
    if types.is_fixed_size_binary(type_):
        return b"abc"
    word = CHANCE.choice(WORDS)
    return word.encode() if word is not None and "binary" in str(type_) else word


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"store_schema": False},
        {"data_page_version": "2.0", "compression": "zstd"},
        {"dictionary_pagesize_limit": 200, "write_batch_size": 8, "compression": "none"},
    ],
)
def test_dictionaries_make_no_difference_to_rows(name: str, options: dict[str, Any]) -> None:
    data = pa.table({name: pa.array([one(TYPES[name]) for _ in range(300)], TYPES[name]), "n": range(300)})
    stored = parquet(data, row_group_size=130, **options)
    wanted = pq.read_table(io.BytesIO(stored)).to_pylist()
    assert repr(rows_of(opened_from(stored))) == repr(wanted)


def test_blocks_are_cut_by_what_texts_come_to_not_by_their_dictionary() -> None:
    word = "x" * 10_000
    for store_schema in (True, False):
        opened = opened_from(parquet(pa.table({"a": words(500, word)}), store_schema=store_schema))
        assert 15 <= len(opened.counts) <= 30
        assert rows_of(opened) == [{"a": word}] * 500


def test_blocks_that_turn_out_long_are_made_as_long_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(footer: Any, *, end: int) -> Any:
        schema, rows, chunks, hints = scan(footer, end=end)
        hints[1::4] = type(hints)("q", [-1] * (len(hints) // 4))
        return schema, rows, chunks, hints

    scan = parquet_images.scan_footer
    monkeypatch.setattr(parquet_images, "scan_footer", silent)
    word = "x" * 10_000
    for plain in ("", "y" * 999):  # all words, and some that are in no dictionary
        tail = [plain + str(i) for i in range(60)] if plain else []
        column = pa.array([word] * 500 + tail)
        stored = parquet(pa.table({"a": column}), dictionary_pagesize_limit=15_000, write_batch_size=20)
        assert rows_of(opened_from(stored)) == pa.table({"a": column}).to_pylist()
        with pytest.raises(BudgetTooSmallError, match="give at least") as caught:
            rows_of(opened_from(stored, 4 * MIB))
        assert caught.value.needed > MIB
        assert rows_of(opened_from(stored, 5 * caught.value.needed)) == pa.table({"a": column}).to_pylist()


# -- what is refused -------------------------------------------------------------------------


def test_pages_of_more_list_elements_than_fit_are_refused_before_they_are_decoded() -> None:
    nulls = pa.nulls(3_000_000, pa.int64())
    lists = pa.ListArray.from_arrays(pa.array([0, 3_000_000], pa.int32()), nulls)
    for version in ("1.0", "2.0"):
        stored = parquet(pa.table({"a": lists}), data_page_version=version)
        assert len(stored) < 10_000
        with pytest.raises(BudgetTooSmallError, match="3000000 values in lists"):
            rows_of(opened_from(stored, 8 * MIB))
        assert rows_of(opened_from(stored, 160 * MIB)) == [{"a": [None] * 3_000_000}]


def test_a_dictionary_that_is_no_dictionary_is_refused() -> None:
    stored = parquet(pa.table({"a": words(50, "a" * 100, "b" * 100)}), compression="none", store_schema=False)
    at = stored.index(b"d\0\0\0" + b"a" * 100)
    damaged = stored[: at + 104] + b"\xff\xff" + stored[at + 106 :]
    with pytest.raises(FormatError):
        rows_of(opened_from(damaged))


BOMBS = """
import sys, pyarrow as pa, pyarrow.parquet
from lazystore import LazyStoreError, StreamingDataset
import lazystore.formats.arrow
def outcome(path):
    with StreamingDataset(path, memory="8MB") as dataset:
        try:
            n = sum(len(row["a"]) for row in dataset)
            assert len(dataset[dataset.total - 1]["a"]) and len(dataset[0]["a"])
            return n
        except LazyStoreError as error:
            return type(error).__name__
outcome(sys.argv[1])
for path in sys.argv[2:]:
    before = restart_peak()
    print(outcome(path), (memory("VmHWM") - before) >> 20)
"""


def test_little_files_that_decode_to_much_stay_inside_the_budget(tmp_path: Any) -> None:
    word = "x" * 900_000
    half = {"use_dictionary": True, "dictionary_pagesize_limit": 901_000, "write_batch_size": 100}
    tables = {
        "warm": (pa.table({"a": words(10, "x")}), {}),
        "word": (pa.table({"a": words(300, word)}), {}),
        "words in lists": (
            pa.table({"a": pa.ListArray.from_arrays(pa.array(range(301), pa.int32()), words(300, word))}), {},
        ),
        "half": (pa.table({"a": [word] * 100 + [f"{i:09}" for i in range(2_000)]}), half),
        "pages": (
            pa.table({"a": ["x" * 400_000] * 150 + ["tiny"] * 50_000}),
            {"use_dictionary": False, "write_batch_size": 1},
        ),
    }  # fmt: skip
    paths = []
    for name, (data, options) in tables.items():
        paths.append(tmp_path / f"{name}.parquet")
        pq.write_table(data, paths[-1], store_schema=False, compression="zstd", **options)
        assert paths[-1].stat().st_size < MIB
    found = scripts.run(
        'import os; os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"\n' + scripts.MEASURE + BOMBS, *paths
    )
    outcomes, grown = zip(*(line.split() for line in found.splitlines()), strict=True)
    assert outcomes == (str(300 * 900_000), "300", "BudgetTooSmallError", "BudgetTooSmallError")
    assert all(int(mib) <= 8 + 24 for mib in grown), found
