"""Self-describing values: what they say, and what they may not."""

from __future__ import annotations

import gc
import math
import struct
import tracemalloc
from typing import Any

import pytest
from models.values import encode_value

from lazystore._core.decode import DecodePlan
from lazystore._core.values import decode_value
from lazystore.errors import FormatError

U32_MAX = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "value",
    [
        None,
        False,
        True,
        0,
        -(2**63),
        2**63 - 1,
        -0.5,
        math.inf,
        "",
        "short",
        "eight by eight",
        "日本語" * 20,
        b"",
        b"\0\xff",
        [],
        {},
        [None, [True, {"a": [1.5, "x", b"y"]}], {}],
        {"a": 1, "": {"b": [2]}, "ключ, не короткий": None},
    ],
)
def test_values_come_back_with_their_types(value: Any) -> None:
    found = decode_value(encode_value(value))
    assert found == value
    assert type(found) is type(value)


def test_the_encoding_is_what_its_module_says() -> None:
    number, n = struct.pack("<q", -2), struct.pack("<I", 1)
    assert decode_value(b"\x08" + n + n + b"k" + b"\x07" + struct.pack("<I", 7) + b"\0\1\2" + b"\3" + number
                        + b"\4" + struct.pack("<d", 0.5) + b"\5" + n + b"s" + b"\6" + n + b"b") == {
        "k": [None, False, True, -2, 0.5, "s", b"b"]
    }  # fmt: skip


def test_values_are_read_at_any_address() -> None:
    value = {"a": [1, 2.5, "text that is long enough"], "b": b"x"}
    for shift in range(9):
        buffer = memoryview(bytearray(shift) + encode_value(value) + b"\0")[shift:-1]
        assert decode_value(buffer) == value


def test_a_repeated_key_keeps_the_last_value() -> None:
    pair = struct.pack("<I", 1) + b"k"
    assert decode_value(b"\x08" + struct.pack("<I", 2) + pair + b"\1" + pair + b"\2") == {"k": True}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x09",
        b"\xff",
        b"\0\0",
        b"\3" + bytes(7),
        b"\3" + bytes(9),
        b"\4" + bytes(7),
        b"\5\1\0\0",
        b"\5\1\0\0\0",
        b"\6\2\0\0\0x",
        b"\6" + U32_MAX + b"x",
        b"\7\1\0\0\0",
        b"\7\2\0\0\0\0",
        b"\7" + U32_MAX + bytes(9),
        b"\x08\1\0\0\0\0\0\0\0",
        b"\x08" + U32_MAX + bytes(9),
        b"\x08\1\0\0\0" + U32_MAX + b"\0",
        b"\x08\1\0\0\0\2\0\0\0kk",
    ],
)
def test_what_is_no_value_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="value"):
        decode_value(data)
    with pytest.raises(FormatError, match="value"):
        decode_value(memoryview(data + bytes(16))[: len(data)])


@pytest.mark.parametrize("data", [b"\5\1\0\0\0\xff", b"\x08\1\0\0\0\1\0\0\0\xff\0", b"\5\x0a\0\0\0aaaaaaaaa\x80"])
def test_broken_utf8_is_a_unicode_error(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_value(data)


@pytest.mark.parametrize("around", [lambda inner: [inner], lambda inner: {"k": inner}, lambda inner: [1, [inner]]])
def test_depth_is_bounded(around: Any) -> None:
    value: Any = None
    while encode_value(value).count(b"\7") + encode_value(value).count(b"\x08") < 64:
        value = around(value)
    assert decode_value(encode_value(value)) == value
    with pytest.raises(FormatError, match="deeper than 64"):
        decode_value(encode_value([value]))
    with pytest.raises(FormatError, match="deeper than 64"):
        decode_value(b"\7\1\0\0\0" * 1_000_000 + b"\0")


def test_forged_counts_are_not_allocated() -> None:
    n = 1 << 20
    forged = b"".join(b"\7" + struct.pack("<I", n - 5 * depth) for depth in range(1, 64)).ljust(n, b"\xff")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode_value(forged)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_values_that_fail_half_way_leak_nothing() -> None:
    bad = encode_value([{"key": ["a text", 1.5, {}]}] * 50)[:-1] + b"\xff"
    for _ in range(3):
        with pytest.raises(FormatError):
            decode_value(bad)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        with pytest.raises(FormatError):
            decode_value(bad)
    gc.collect()
    assert len(gc.get_objects()) < before + 20


def test_a_plan_has_values_for_leaves() -> None:
    plan = DecodePlan([("value", None), ("value", None, {"nullable": True})], [("leaf",)] * 2 + [("list", 2)],
                      names="ab")  # fmt: skip
    inner = encode_value({"x": [1]})
    assert plan(struct.pack("<2I", len(inner), 2**32 - 1) + inner) == [{"x": [1]}, None]
    with pytest.raises(FormatError, match="value"):
        plan(struct.pack("<2I", len(inner) + 1, 2**32 - 1) + inner + b"\0")
