"""``DecodePlan`` against its model: any schema, good items and hostile ones.

A mutated item decodes to what the model makes of it, or raises as the model does; it never crashes.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from models import values as values_model
from models.decode_plan import DTYPES, LOOSE, NONE, PACKED_DTYPES, DecodePlanModel, same
from models.values import encode_value
from support.leaf_flags import flagged, item_of

from lazystore._core.decode import DecodePlan
from lazystore._core.values import decode_value
from lazystore.errors import FormatError

Leaf = tuple[Any, ...]
Step = tuple[Any, ...]
Schema = tuple[list[Leaf], list[Step], bool]


def called(data: bytes) -> tuple[str, bytes]:
    return "called", data


packed = st.tuples(
    st.sampled_from(["", *PACKED_DTYPES.values()]),
    st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=4).map(tuple)),
)
bare_leaves = st.one_of(
    st.sampled_from(["str", "bytes", "int", "float", "bool", "ndarray", "value"]).map(lambda op: (op, None)),
    st.integers(0, len(DTYPES) - 1).map(lambda index: ("array", index)),
    packed.map(lambda argument: ("packed_array", argument)),
    st.sampled_from(["call", "none_or_call"]).map(lambda op: (op, called)),
)
leaves = flagged(bare_leaves)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=9),
        st.binary(max_size=9),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=12,
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
    bare_leaves.map(lambda leaf: ([leaf], [("leaf",)], True)),
)


def leaf_bytes(draw: st.DrawFn, leaf: Leaf) -> bytes:
    op, argument = leaf[:2]
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
        case "packed_array":
            return packed_bytes(draw, *argument)
        case "value":
            return encode_value(draw(values))
        case "none_or_call":
            return draw(st.one_of(st.just(NONE), st.binary(max_size=8)))
    return draw(st.binary(max_size=12))


def packed_bytes(draw: st.DrawFn, dtype: str, shape: tuple[int, ...] | None) -> bytes:
    header = b""
    if not dtype:
        code = draw(st.sampled_from(list(PACKED_DTYPES)))
        dtype, header = PACKED_DTYPES[code], bytes([code])
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)))
        k = draw(st.integers(0, 3))
        header += bytes([len(shape) << 2 | k]) + b"".join(dim.to_bytes(1 << k, "little") for dim in shape)
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    return header + (bytes(range(1, 8)) * size)[:size]


@st.composite
def items(draw: st.DrawFn) -> tuple[Schema, bytes]:
    schema = draw(schemas)
    if schema[2]:
        return schema, leaf_bytes(draw, schema[0][0])
    return schema, item_of(draw, schema[0], leaf_bytes)


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


def turned(item: bytes) -> bytes:
    """An opener."""
    return item[::-1]


def plan_and_model(
    schema: Schema, opener: Callable[[bytes], bytes] | None = None, loose: bool = False
) -> tuple[DecodePlan, DecodePlanModel]:
    found, program, headless = schema
    names = [op for op, *_ in found]
    return (
        DecodePlan(found, program, names=names, headless=headless, opener=opener, loose=loose),
        DecodePlanModel(found, program, headless=headless, opener=opener, loose=loose),
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


@given(items())
def test_stored_bytes_are_opened_before_they_are_decoded(case: tuple[Schema, bytes]) -> None:
    schema, item = case
    plan, model = plan_and_model(schema, turned)
    assert same(plan(turned(item)), model(turned(item)))


@given(items(), values, st.booleans())
def test_loose_items_are_what_they_say_among_others(case: tuple[Schema, bytes], value: Any, opened: bool) -> None:
    schema, item = case
    if schema[2]:
        return
    plan, model = plan_and_model(schema, turned if opened else None, loose=True)
    loose = LOOSE + encode_value(value)
    strict, _ = plan_and_model(schema)
    for data in (item, loose):
        stored = turned(data) if opened else data
        assert same(plan(stored), model(stored))
    assert same(plan(turned(loose) if opened else loose), value)
    assert outcome(strict, loose) is None


@given(hostile_items(), st.booleans())
def test_hostile_loose_items_decode_or_raise_as_the_model_does(case: tuple[Schema, bytes], marked: bool) -> None:
    schema, item = case
    if schema[2]:
        return
    plan, model = plan_and_model(schema, loose=True)
    item = LOOSE + item if marked else item
    assert same(outcome(plan, item), outcome(model, item))


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


def outcome(decode: Callable[[bytes], Any], data: bytes) -> Any:
    """What it makes of any bytes; None if it refuses them."""
    try:
        return [decode(data)]
    except (FormatError, UnicodeDecodeError):
        return None


ANY_BYTES_LEAVES: list[Leaf] = [
    ("ndarray", None),
    ("packed_array", ("", None)),
    ("packed_array", ("uint8", None)),
    ("packed_array", ("int16", (3, 2))),
    ("value", None),
]


@given(st.sampled_from(ANY_BYTES_LEAVES), st.binary(max_size=48))
def test_a_leaf_that_describes_itself_is_decoded_from_any_bytes_or_refused(leaf: Leaf, data: bytes) -> None:
    plan, model = plan_and_model(([leaf], [("leaf",)], True))
    assert same(outcome(plan, data), outcome(model, data))


@given(values, st.data())
def test_a_value_that_was_changed_is_decoded_or_refused(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_value(value))
    assert same(decode_value(encoded), value)
    at = data.draw(st.integers(0, len(encoded) - 1))
    change = data.draw(st.sampled_from([b"", b"\0", b"\7\1\0\0\0", b"\xff\xff\xff\xff", b"\5", b"\x08"]))
    encoded[at : at + data.draw(st.integers(0, 5))] = change
    assert same(outcome(decode_value, bytes(encoded)), outcome(values_model.decode_value, bytes(encoded)))
