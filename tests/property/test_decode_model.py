"""``DecodePlan`` against its model: any schema, good items and hostile ones.

A mutated item decodes to what the model makes of it, or raises as the model does; it never crashes.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from models.decode_plan import DTYPES, NONE, DecodePlanModel, same

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError

Leaf = tuple[str, Any]
Step = tuple[Any, ...]
Schema = tuple[list[Leaf], list[Step], bool]


def called(data: bytes) -> tuple[str, bytes]:
    return "called", data


leaves = st.one_of(
    st.sampled_from(["str", "bytes", "int", "float", "bool", "ndarray"]).map(lambda op: (op, None)),
    st.integers(0, len(DTYPES) - 1).map(lambda index: ("array", index)),
    st.sampled_from(["call", "none_or_call"]).map(lambda op: (op, called)),
)
keys = st.one_of(st.text(max_size=3), st.integers(-3, 3), st.none())


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Leaf], list[Step]]:
    """Leaves and the postfix program of a random tree over them."""
    found: list[Leaf] = []
    program: list[Step] = []

    def node(depth: int) -> None:
        kind = draw(st.sampled_from(["leaf", "dict", "list", "tuple", "ordered"] if depth < 3 else ["leaf"]))
        if kind == "leaf":
            found.append(draw(leaves))
            program.append(("leaf",))
            return
        size = draw(st.integers(0, 3))
        for _ in range(size):
            node(depth + 1)
        if kind == "dict":
            program.append(("dict", draw(st.lists(keys, min_size=size, max_size=size))))
        elif kind == "ordered":
            names = draw(st.lists(keys, min_size=size, max_size=size, unique=True))
            program.append(("call", size, lambda values: OrderedDict(zip(names, values, strict=True))))
        else:
            program.append((kind, size))

    node(0)
    return found, program


@st.composite
def flat_dicts(draw: st.DrawFn) -> tuple[list[Leaf], list[Step]]:
    """The commonest schema, which has a loop of its own."""
    found = draw(st.lists(leaves, max_size=5))
    names = draw(st.lists(keys, min_size=len(found), max_size=len(found)))
    return found, [*[("leaf",)] * len(found), ("dict", names)]


schemas = st.one_of(
    programs().map(lambda both: (*both, False)),
    flat_dicts().map(lambda both: (*both, False)),
    leaves.map(lambda leaf: ([leaf], [("leaf",)], True)),
)


def leaf_bytes(draw: st.DrawFn, leaf: Leaf) -> bytes:
    op, argument = leaf
    match op:
        case "str":
            return draw(st.text(max_size=12)).encode()
        case "int":
            return draw(st.integers(-(2**63), 2**63 - 1)).to_bytes(8, "little", signed=True)
        case "float":
            return struct.pack("<d", draw(st.floats()))
        case "bool":
            return draw(st.sampled_from([b"\0", b"\1", b"\x80"]))
        case "array":
            return draw(st.binary(max_size=4)) * np.dtype(DTYPES[argument]).itemsize
        case "ndarray":
            index = draw(st.integers(0, len(DTYPES) - 1))
            dims = draw(st.lists(st.integers(0, 3), max_size=4))
            size = int(np.prod(dims, dtype=int)) * np.dtype(DTYPES[index]).itemsize
            header = struct.pack(f"<{2 + len(dims)}I", index, len(dims), *dims)
            return header + (bytes(range(1, 8)) * size)[:size]
        case "none_or_call":
            return draw(st.one_of(st.just(NONE), st.binary(max_size=8)))
    return draw(st.binary(max_size=12))


@st.composite
def items(draw: st.DrawFn) -> tuple[Schema, bytes]:
    schema = draw(schemas)
    parts = [leaf_bytes(draw, leaf) for leaf in schema[0]]
    if schema[2]:
        return schema, parts[0]
    return schema, struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


@st.composite
def hostile_items(draw: st.DrawFn) -> tuple[Schema, bytes]:
    """A good item with bytes changed, cut out, or put in."""
    schema, item = draw(items())
    changed = bytearray(item)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        kind = draw(st.sampled_from(["flip", "number", "cut", "insert"]))
        if kind == "flip" and at < len(changed):
            changed[at] ^= draw(st.integers(1, 255))
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1]))
            at -= at % 4
            changed[at : at + 4] = struct.pack("<I", number)
        elif kind == "cut":
            del changed[at : at + draw(st.integers(1, 9))]
        elif kind == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=9))
    return schema, bytes(changed)


def plan_and_model(schema: Schema) -> tuple[DecodePlan, DecodePlanModel]:
    found, program, headless = schema
    names = [op for op, _ in found]
    return DecodePlan(found, program, names=names, headless=headless), DecodePlanModel(
        found, program, headless=headless
    )


@given(items(), st.integers(0, 9))
def test_good_items_decode_as_the_model_says_from_any_buffer_at_any_address(
    case: tuple[Schema, bytes], shift: int
) -> None:
    schema, item = case
    plan, model = plan_and_model(schema)
    expected = model(item)
    shifted = memoryview(bytearray(shift) + item + b"rest")[shift : shift + len(item)]
    for buffer in (item, bytearray(item), shifted):
        assert same(plan(buffer), expected)


@given(hostile_items())
def test_hostile_items_decode_or_raise_as_the_model_does(case: tuple[Schema, bytes]) -> None:
    schema, item = case
    plan, model = plan_and_model(schema)
    # Which of several faults of an item is found first is the plan's affair.
    try:
        expected = model(item)
    except (FormatError, UnicodeDecodeError):
        try:
            unexpected = plan(item)
        except (FormatError, UnicodeDecodeError):
            return
        raise AssertionError(f"{item!r} decoded to {unexpected!r}") from None
    assert same(plan(item), expected)


@given(st.binary(max_size=48))
def test_an_array_leaf_of_any_bytes_decodes_or_is_refused(data: bytes) -> None:
    plan = DecodePlan([("ndarray", None)], [("leaf",)], names=["x"], headless=True)
    model = DecodePlanModel([("ndarray", None)], [("leaf",)], headless=True)
    try:
        expected = model(data)
    except FormatError:
        expected = None
    try:
        found = plan(data)
    except FormatError:
        found = None
    assert same(found, expected)
