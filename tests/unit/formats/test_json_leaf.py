"""``json`` leaves: every tag and the text form become their values; damaged ones a FormatError, in bounded memory."""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import json_leaf
from support import golden

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError
from lazystore.formats.json_leaf import decode_json_leaf
from lazystore.formats.leaves import leaf_operation

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
RECORDS = st.lists(st.text(max_size=4), max_size=3, unique=True).flatmap(
    lambda keys: st.lists(st.fixed_dictionaries(dict.fromkeys(keys, SCALARS)), max_size=4)
)
LISTS = st.lists(st.text()) | st.lists(st.integers()) | st.lists(st.booleans()) | st.lists(st.floats(allow_nan=False))
VALUES = st.recursive(
    SCALARS | RECORDS | LISTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def same(value: Any, wanted: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(value) is not type(wanted):
        return False
    if isinstance(value, dict):
        return list(value) == list(wanted) and all(same(value[key], wanted[key]) for key in wanted)
    if isinstance(value, list):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    return bool(value == wanted)


@given(VALUES)
@example([])
@example({})
@example([{}, {}])
@example([{"a": None, "b": "x", "c": 5, "d": 0.5, "e": True}] * 2)
@example([1, "a", None, [2.5]])
@example(1 << 80)
@example([1 << 63])
def test_every_value_comes_back_from_both_forms(value: Any) -> None:
    assert same(decode_json_leaf(json_leaf.encode(value)), value)
    assert same(decode_json_leaf(json.dumps(value).encode()), value)


@pytest.mark.parametrize(
    "data, value",
    [
        ("00 03000000 5b315d", [1]),
        ("01 02000000 01000000 61 00000000", ["a", ""]),
        ("01 00000000", []),
        ("02 01000000 ffffffffffffffff", [-1]),
        ("03 01000000 000000000000f03f", [1.0]),
        ("04 03000000 00 01 ff", [False, True, True]),
        ("05 01000000 01000000 6b 0b", {"k": None}),
        ("06 01000000 01000000 01000000 6b 12 0500000000000000", [{"k": 5}]),
        ("06 02000000 01000000 01000000 6b 10 14 00", [{"k": None}, {"k": False}]),
        ("07 02000000 c3bc", "ü"),
        ("08 feffffffffffffff", -2),
        ("09 000000000000e0bf", -0.5),
        ("0a 01", True),
        ("0b", None),
        ("5b 5d", []),
        ("20 31", 1),
        ("0d 31", 1),
    ],
)
def test_each_tag(data: str, value: Any) -> None:
    assert same(decode_json_leaf(bytes.fromhex(data)), value)


def test_the_leaf_is_known_to_the_decode_plan() -> None:
    plan = DecodePlan([leaf_operation("json", allow_pickle=False)], [("leaf",)], names=["json"], headless=True)
    assert plan(b"\x02\x01\0\0\0\x07\0\0\0\0\0\0\0") == [7]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00", b"\x01\x01\0\0\0", b"\x02\x02\0\0\0" + bytes(15), b"\x08" + bytes(7), b"\x0b\x0b", b"\x0c",
        b"\x1f", b"{", b"nul", b"\xff", b"\x07\x01\0\0\0\xff",
        b"\x06\x01\0\0\0\x01\0\0\0\x01\0\0\0k\x15", b"\x0a", b"[" * 10**5,
        b"\x05\x01\0\0\0\0\0\0\0" * 10**4,
    ],
)  # fmt: skip
def test_damaged_leaves_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="json leaf"):
        decode_json_leaf(data)


@pytest.mark.parametrize("tag", range(7))
def test_a_forged_count_allocates_nothing(tag: int) -> None:
    import tracemalloc

    for counts in ((0xFFFFFFFF,), (0xFFFFFFFF, 0), (0xFFFFFFFF, 1), (0x10000000, 0xFFFFFFFF)):
        data = bytes([tag]) + struct.pack(f"<{len(counts)}I", *counts) + bytes(40)
        tracemalloc.start()
        try:
            with pytest.raises(FormatError):
                decode_json_leaf(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


def golden_leaves() -> list[bytes]:
    """The json leaves of a golden dataset, as stored."""
    data = (golden.GOLDEN / "litdata-json-leaf" / "data" / "chunk-0-0.bin").read_bytes()
    (n,) = struct.unpack_from("<I", data)
    found = []
    for begin in struct.unpack_from(f"<{n}I", data, 4):
        sizes = struct.unpack_from("<6I", data, begin)
        at = begin + 24 + sizes[0]
        for size in sizes[1:]:
            found.append(data[at : at + size])
            at += size
    return found


@given(st.sampled_from(golden_leaves()), st.data())
def test_mutated_leaves_are_a_value_or_a_format_error(leaf: bytes, data: st.DataObject) -> None:
    changed = bytearray(leaf)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "extend", "length"]))
        if kind == "flip" and changed:
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[at:]
        elif kind == "length" and len(changed) >= at + 4:
            changed[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 1 << 20, (1 << 32) - 1])))
        else:
            changed += bytes([data.draw(st.integers(0, 255))])
    try:
        value = decode_json_leaf(bytes(changed))
    except FormatError:
        return
    assert sys.getsizeof(value) < 10**6
