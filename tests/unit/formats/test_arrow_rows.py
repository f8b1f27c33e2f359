"""Arrow columns come back as rows exactly as pyarrow's own ``to_pylist`` has them."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.rows import row
from support.images import items_of

from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, FormatError, MissingExtraError, UnsupportedError

pa = pytest.importorskip("pyarrow")

from lazystore.formats.arrow_rows import Cell, RowsSchema  # noqa: E402


def rows_of(batches: Sequence[Any], first: int, n: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Through the plan, as a dataset reads them."""
    schema = RowsSchema.from_arrow(batches[0].schema, columns)
    image = schema.writer(batches[0].schema, columns).image(batches, first, n)
    plan = DecodePlan(schema.leaves, schema.tree, names=schema.names)
    return [plan(item) for item in items_of(image)]


def loose_rows_of(batch: Any) -> list[dict[str, Any]]:
    image = RowsSchema(None).writer(batch.schema).image([batch], 0, batch.num_rows)
    return [row(item, (), ()) for item in items_of(image)]


PLAIN = {
    "int": pa.array([1, None, -3, 2**63 - 1]),
    "int8": pa.array([1, None, -128, 4], pa.int8()),
    "uint16": pa.array([1, None, 65535, 4], pa.uint16()),
    "uint64": pa.array([1, None, 2**64 - 1, 4], pa.uint64()),
    "half": pa.array([1.5, None, float("inf"), -6e-8], pa.float16()),
    "single": pa.array([1.5, None, 0.1, -0.0], pa.float32()),
    "double": pa.array([1.5, None, 0.1, 1e308]),
    "bool": pa.array([True, None, False, True]),
    "str": pa.array(["a", None, "", "ü" * 100]),
    "large_str": pa.array(["a", None, "", "\0x"], pa.large_string()),
    "bytes": pa.array([b"a", None, b"", b"\xff\xfe"]),
    "fixed_bytes": pa.array([b"abc", None, b"def", b"\0\0\0"], pa.binary(3)),
    "null": pa.nulls(4),
    "list": pa.array([[1, 2], None, [], [None]]),
    "large_list": pa.array([["x"], None, [], [None, "yy"]], pa.large_list(pa.string())),
    "array": pa.array([[1, 2], None, [3, 4], [5, None]], pa.list_(pa.int16(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 5, "b": []}]),
    "deep": pa.array([[{"a": [[1]]}, None], [], None, [{"a": None}, {"a": [None, []]}]]),
    "dictionary": pa.array(["x", None, "y", "x"]).dictionary_encode(),
    "words": pa.array([["x", "y"], None, [None], ["y"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
}
CELLS = {
    "timestamp": pa.array(
        [dt.datetime(2020, 1, 1), None, dt.datetime(1960, 1, 1), dt.datetime(9999, 1, 1, 1, 2, 3, 4)]
    ),
    "zoned": pa.array([0, None, -(10**15), 5], pa.timestamp("us", tz="Europe/Paris")),
    "date32": pa.array([dt.date(2020, 1, 1), None, dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "date64": pa.array([0, None, -86400000, 86400000], pa.date64()),
    "time32": pa.array([1, None, 3, 86399], pa.time32("s")),
    "time64": pa.array([1, None, 3, 4], pa.time64("us")),
    "duration": pa.array([1, None, -3, 4], pa.duration("ms")),
    "decimal": pa.array(
        [decimal.Decimal("1.5"), None, decimal.Decimal("-2.5"), decimal.Decimal(0)], pa.decimal128(9, 2)
    ),
    "decimal256": pa.array([1, None, -3, 4], pa.decimal256(50, 3)),
    "interval": pa.array([(1, 2, 3), None, (3, 4, 5), (-1, 1, 1)], pa.month_day_nano_interval()),
}
PACKED = {
    "map": pa.array([[("a", 1)], None, [], [("b", None)]], pa.map_(pa.string(), pa.int64())),
    "times": pa.array([[dt.datetime(2020, 1, 1)], None, [], [None]]),
    "view": pa.array(["a", None, "", "ü" * 20], pa.string_view()),
    "union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1], pa.int8()), [pa.array([1, 2, 3, 4]), pa.array(list("abcd"))]
    ),
    "run_ends": pa.RunEndEncodedArray.from_arrays(pa.array([1, 3, 4], pa.int32()), pa.array(["x", None, "y"])),
    "uuid": pa.array([b"0123456789abcdef", None, b"\0" * 16, b"f" * 16], pa.uuid()),
    "labels": pa.array(
        [[("a", "x")], None, [], [("b", "x")]], pa.map_(pa.string(), pa.dictionary(pa.int8(), pa.string()))
    ),
}
ALL = PLAIN | CELLS | PACKED


@pytest.mark.parametrize("name", ALL)
def test_each_type_comes_back_as_pyarrow_has_it_from_any_slice(name: str) -> None:
    whole = pa.record_batch({"before": PLAIN["str"], name: ALL[name], "after": PLAIN["int"]})
    for skip in range(4):
        batches = [whole.slice(skip), whole.slice(1, 2), whole]
        wanted = [one for batch in batches for one in batch.to_pylist()]
        for first in range(len(wanted)):
            for n in {0, 1, len(wanted) - first}:
                assert repr(rows_of(batches, first, n)) == repr(wanted[first : first + n])


def test_loose_rows_name_their_columns_themselves() -> None:
    batch = pa.record_batch(PLAIN)
    assert repr(loose_rows_of(batch)) == repr(batch.to_pylist())
    assert repr(loose_rows_of(batch.slice(1, 2))) == repr(batch.slice(1, 2).to_pylist())


@pytest.mark.parametrize("name", [*CELLS, *PACKED])
def test_loose_rows_of_types_that_only_pyarrow_decodes_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        loose_rows_of(pa.record_batch({name: ALL[name]}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "ç"]), VALUES), max_size=8), st.booleans())
def test_whatever_rows_arrow_takes_come_back(rows: list[dict[str, Any]], loose: bool) -> None:
    try:
        batches = pa.Table.from_pylist(rows).combine_chunks().to_batches()
    except (pa.ArrowException, TypeError, OverflowError):
        return  # rows whose values have no common type
    if not batches:
        return
    (batch,) = batches
    wanted = batch.to_pylist()
    found = loose_rows_of(batch) if loose else rows_of([batch], 0, len(wanted))
    assert repr(found) == repr(wanted)


def test_columns_come_in_the_order_asked_for_and_no_others() -> None:
    batch = pa.record_batch(ALL)
    found = rows_of([batch], 0, 4, ["map", "str", "int"])
    assert repr(found) == repr([{k: one[k] for k in ("map", "str", "int")} for one in batch.to_pylist()])
    assert rows_of([batch], 0, 4, []) == [{}, {}, {}, {}]


def test_a_table_will_do_as_well() -> None:
    table = pa.Table.from_batches([pa.record_batch(PLAIN)] * 3)
    schema = RowsSchema.from_arrow(table.schema)
    assert len(items_of(schema.writer(table.schema).image(table, 2, 9))) == 9


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        (["int", "nope"], ConfigError, "nope"),
        ("int", ConfigError, "list"),
        ([1], ConfigError, "list"),
        (["int", "int"], ConfigError, "twice"),
    ],
)
def test_columns_that_cannot_be_had_are_refused(columns: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        RowsSchema.from_arrow(pa.record_batch(PLAIN).schema, columns)


def test_two_columns_of_one_name_are_refused_unless_others_are_chosen() -> None:
    batch = pa.record_batch([PLAIN["int"], PLAIN["str"], PLAIN["bool"]], names=["a", "a", "b"])
    with pytest.raises(UnsupportedError, match="'a'"):
        RowsSchema.from_arrow(batch.schema)
    assert rows_of([batch], 0, 1, ["b"]) == [{"b": True}]


LITDATA = [("id", "int", None), ("text", "str", None), ("score", "float", None)]


@pytest.mark.parametrize(
    ("columns", "loose"),
    [
        ({"id": "int", "text": "str", "score": "double"}, False),
        ({"id": "int8", "text": "large_str", "score": "single"}, False),
        ({"id": "null", "text": "str", "score": "null"}, False),
        ({"text": "str", "id": "int", "score": "double"}, True),
        ({"id": "int", "text": "str"}, True),
        ({"id": "int", "text": "bytes", "score": "double"}, True),
        ({"id": "int", "text": "str", "score": "int"}, True),
        ({"id": "uint64", "text": "str", "score": "double"}, True),
        ({"id": "int", "text": "str", "score": "double", "more": "list"}, True),
    ],
)
def test_columns_of_another_plan_are_written_for_it_where_they_fit_and_loose_where_not(
    columns: dict[str, str], loose: bool
) -> None:
    schema = RowsSchema(LITDATA)
    batch = pa.record_batch({name: PLAIN[kind] for name, kind in columns.items()})
    writer = schema.writer(batch.schema)
    assert writer.loose is loose
    found = [row(item, schema.keys, schema.leaves) for item in items_of(writer.image([batch], 0, 4))]
    assert repr(found) == repr(batch.to_pylist())


def test_batches_of_another_schema_or_with_too_few_rows_are_refused() -> None:
    batch = pa.record_batch({"a": PLAIN["int"]})
    writer = RowsSchema.from_arrow(batch.schema).writer(batch.schema)
    with pytest.raises(FormatError, match="columns"):
        writer.image([pa.record_batch({"a": PLAIN["str"]})], 0, 1)
    with pytest.raises(FormatError, match="missing"):
        writer.image([batch], 2, 3)


def test_a_cell_that_python_cannot_hold_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="date64"):
        Cell(pa.date64())((2**62).to_bytes(8, "little"))
    with pytest.raises(FormatError, match="timestamp"):
        Cell(pa.timestamp("s"))((2**62).to_bytes(8, "little"))


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.record_batch(PLAIN).schema
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"lazystore\[arrow\]"):
        RowsSchema.from_arrow(schema)
