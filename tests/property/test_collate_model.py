"""Sinks against their model: any schema, any sequence of good and hostile items and of batches taken.

An item that fails leaves the batch as it was, in every column.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from models.collate import ColumnSinkModel, arrays_in
from models.decode_plan import DTYPES, NONE, same
from models.values import encode_value
from support.leaf_flags import flagged, item_of

from lazystore._core.collate import ColumnSink, ObjectSink, Sink
from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, FormatError
from lazystore.streaming.batches import collate_items

Leaf = tuple[Any, ...]
Step = tuple[Any, ...]
Schema = tuple[list[Leaf], list[Step], bool]

TAKE = None  # among items: take the batch
REFUSALS = (FormatError, UnicodeDecodeError, ConfigError, ZeroDivisionError)


def called(data: bytes) -> tuple[str, bytes]:
    if data[:1] == b"!":
        raise ZeroDivisionError("this leaf fails")
    return "called", data


bare_leaves = st.one_of(
    st.sampled_from(["str", "bytes", "int", "float", "bool", "ndarray"]).map(lambda op: (op, None)),
    st.integers(0, len(DTYPES) - 1).map(lambda index: ("array", index)),
    st.sampled_from([("", None), ("float32", None), ("int16", (2, 1)), ("uint8", (2,)), ("float64", ())]).map(
        lambda argument: ("packed_array", argument)
    ),
)
value_leaves = flagged(bare_leaves)
all_leaves = st.one_of(
    value_leaves,
    flagged(st.sampled_from(["call", "none_or_call"]).map(lambda op: (op, called))),
    st.just(("value", None)),
)


def trees(names: list[str]) -> st.SearchStrategy[list[Step]]:
    """Programs over as many leaves as there are names."""
    n = len(names)
    found: list[list[Step]] = [
        [*[("leaf",)] * n, ("dict", names)],
        [*[("leaf",)] * n, ("list", n)],
        [*[("leaf",)] * n, ("tuple", n)],
        [*[("leaf",)] * n, ("call", n, lambda values: OrderedDict(zip(names, values, strict=True)))],
        [*[("leaf",)] * n, ("tuple", n // 2), ("list", n - n // 2 + 1), ("dict", ["x"])],
    ]
    return st.sampled_from(found + ([[("leaf",)]] if n == 1 else []))


def schemas(leaves: st.SearchStrategy[Leaf]) -> st.SearchStrategy[Schema]:
    def unflagged(leaf: Leaf) -> Schema:
        return [leaf[:2]], [("leaf",)], True

    def trees_of(found: list[Leaf]) -> st.SearchStrategy[Schema]:
        names = [str(k) for k in range(len(found))]
        return st.tuples(st.just(found), trees(names), st.just(False))

    return st.one_of(
        st.lists(leaves, max_size=4).flatmap(trees_of),
        leaves.map(unflagged),
    )


def ndarray(index: int, dims: list[int], fill: int) -> bytes:
    size = int(np.prod(dims, dtype=int)) * np.dtype(DTYPES[index]).itemsize
    return struct.pack(f"<{2 + len(dims)}I", index, len(dims), *dims) + bytes([fill]) * size


def leaf_bytes(draw: st.DrawFn, leaf: Leaf) -> bytes:
    """Arrays come in few shapes, so that batches of one shape and of several both happen."""
    op, argument = leaf[:2]
    match op:
        case "str":
            return draw(st.text(max_size=3)).encode()
        case "int":
            return draw(st.integers(-(2**63), 2**63 - 1)).to_bytes(8, "little", signed=True)
        case "float":
            return struct.pack("<d", draw(st.floats()))
        case "bool":
            return draw(st.sampled_from([b"\0", b"\1", b"\x80"]))
        case "array":
            length = draw(st.sampled_from([2, 2, 2, 2, 2, 2, 0, 3]))
            return bytes([draw(st.integers(0, 1))]) * (length * np.dtype(DTYPES[argument]).itemsize)
        case "ndarray":
            index, dims = draw(st.sampled_from([(9, [2, 2])] * 6 + [(9, [4]), (7, [2, 1]), (9, []), (9, [2, 0])]))
            return ndarray(index, dims, draw(st.integers(0, 1)))
        case "packed_array":
            return packed_bytes(draw, *argument)
        case "value":
            return encode_value(draw(st.sampled_from([None, 1, ["a", {"b": 0.5}]])))
        case "none_or_call":
            return draw(st.one_of(st.just(NONE), st.sampled_from([b"", b"a", b"!"])))
    return draw(st.sampled_from([b"", b"a", b"bc", b"!"]))


def packed_bytes(draw: st.DrawFn, dtype: str, shape: tuple[int, ...] | None) -> bytes:
    if not dtype:
        return draw(st.sampled_from([b"\x22\x04\1aaaa"] * 4 + [b"\x08\x04\4aaaa", b"\x22\x08\1\1aaaa", b"\x22\x04\0"]))
    if shape is None:
        return draw(st.sampled_from([b"\x04\1aaaa"] * 4 + [b"\x08\1\1aaaa", b"\x04\2aaaabbbb"]))
    return draw(st.sampled_from([b"a", b"b"])) * (int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize)


def good_item(draw: st.DrawFn, schema: Schema) -> bytes:
    return leaf_bytes(draw, schema[0][0]) if schema[2] else item_of(draw, schema[0], leaf_bytes)


def hostile_item(draw: st.DrawFn, schema: Schema) -> bytes:
    changed = bytearray(good_item(draw, schema))
    at = draw(st.integers(0, len(changed)))
    match draw(st.sampled_from(["flip", "number", "cut", "insert"])):
        case "flip" if at < len(changed):
            changed[at] ^= draw(st.integers(1, 255))
        case "number":
            at -= at % 4
            changed[at : at + 4] = struct.pack("<I", draw(st.sampled_from([0, 1, 7, 9, 2**31 - 1, 2**31, 2**32 - 1])))
        case "cut":
            del changed[at : at + draw(st.integers(1, 9))]
        case _:
            changed[at:at] = draw(st.binary(min_size=1, max_size=9))
    return bytes(changed)


@st.composite
def stories(draw: st.DrawFn) -> tuple[Schema, int, list[bytes | None]]:
    """A schema, a capacity, and what happens to a sink."""
    schema = draw(schemas(all_leaves))
    steps: list[bytes | None] = []
    for kind in draw(st.lists(st.sampled_from("gggghht"), max_size=12)):
        steps.append(TAKE if kind == "t" else (good_item if kind == "g" else hostile_item)(draw, schema))
    return schema, draw(st.sampled_from([1, 2, 3, 100])), [*steps, TAKE]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Schema, list[bytes]]:
    schema = draw(schemas(value_leaves))
    return schema, [good_item(draw, schema) for _ in range(draw(st.integers(1, 5)))]


def plan_of(schema: Schema, opener: Callable[[bytes], bytes] | None = None) -> DecodePlan:
    return DecodePlan(schema[0], schema[1], names=[op for op, *_ in schema[0]], headless=schema[2], opener=opener)


def outcome(sink: Sink | ColumnSinkModel, step: bytes | None) -> tuple[bool, Any]:
    """Whether it worked, and what came of it; of several faults of an item any may show."""
    try:
        return True, sink.take_batch() if step is TAKE else sink.add_bytes(step)
    except REFUSALS:
        return False, None


@given(stories())
def test_columns_are_what_the_model_makes_of_the_decoded_items(
    story: tuple[Schema, int, list[bytes | None]],
) -> None:
    schema, capacity, steps = story
    sink = ColumnSink(plan_of(schema), capacity)
    model = ColumnSinkModel(schema[0], schema[1], capacity, headless=schema[2])
    for step in steps:
        (worked, found), (expected_to, expected) = outcome(sink, step), outcome(model, step)
        assert worked == expected_to
        assert same(found, expected)
        assert sink.count == model.count
        for array in arrays_in(found):
            assert array.flags.carray
            assert array.flags.owndata


@given(batches())
def test_stored_bytes_are_opened_before_they_are_collated(case: tuple[Schema, list[bytes]]) -> None:
    schema, items = case
    for make in (lambda plan: ColumnSink(plan, 5), ObjectSink):
        opened, plain = make(plan_of(schema, lambda stored: stored[::-1])), make(plan_of(schema))
        for item in items:
            opened.add_bytes(item[::-1])
            plain.add_bytes(item)
        assert same(opened.take_batch(), plain.take_batch())


@given(batches())
def test_batches_share_no_memory_with_each_other(case: tuple[Schema, list[bytes]]) -> None:
    schema, items = case
    sink = ColumnSink(plan_of(schema), 5)
    taken = []
    for _ in range(2):
        for item in items:
            sink.add_bytes(item)
        taken.append(sink.take_batch())
    for array in arrays_in(taken[0]):
        array.view("u1" if array.ndim else array.dtype)[...] = 7
    again = ColumnSink(plan_of(schema), 5)
    for item in items:
        again.add_bytes(item)
    assert same(taken[1], again.take_batch())


@given(batches())
def test_lists_are_the_decoded_items(case: tuple[Schema, list[bytes]]) -> None:
    schema, items = case
    plan = plan_of(schema)
    sink = ObjectSink(plan)
    for item in items:
        sink.add_bytes(item)
    assert same(sink.take_batch(), [plan(item) for item in items])


@given(batches())
def test_collating_decoded_items_gives_the_same_batch(case: tuple[Schema, list[bytes]]) -> None:
    schema, items = case
    plan = plan_of(schema)
    sink = ColumnSink(plan, len(items))
    for item in items:
        sink.add_bytes(item)
    assert same(collate_items([plan(item) for item in items]), sink.take_batch())
