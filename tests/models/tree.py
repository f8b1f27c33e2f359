"""Plain values as ``_core/tree`` writes them, in plain Python."""

from __future__ import annotations

import struct
from typing import Any


def encode(value: Any) -> bytes:
    kind = type(value)
    if value is None:
        return b"N"
    if kind is bool:
        return b"T" if value else b"F"
    if kind is int:
        if -(2**63) <= value < 2**63:
            return struct.pack("<cq", b"i", value)
        return blob(b"I", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if kind is float:
        return struct.pack("<cd", b"f", value)
    if kind is str:
        return blob(b"s", value.encode("utf-8", "surrogatepass"))
    if kind is bytes:
        return blob(b"b", value)
    if kind is dict:
        items = [part for pair in value.items() for part in pair]
        return struct.pack("<cI", b"d", len(value)) + b"".join(map(encode, items))
    assert kind in (list, tuple)
    return struct.pack("<cI", b"l" if kind is list else b"t", len(value)) + b"".join(map(encode, value))


def blob(tag: bytes, data: bytes) -> bytes:
    return struct.pack("<cI", tag, len(data)) + data
