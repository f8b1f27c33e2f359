"""Writes the ``json`` leaf in every one of its forms: what ``decode_json_leaf`` is compared with."""

from __future__ import annotations

import json
import struct
from typing import Any

I64 = range(-(1 << 63), 1 << 63)


def encode(value: Any) -> bytes:
    """The binary form that a writer would choose: the narrowest tag."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return tagged(5, len(value)) + b"".join(text(key) + encode(child) for key, child in value.items())
    if isinstance(value, list):
        return encode_list(value)
    scalar = encode_scalar(value, (7, 8, 9, 10, 11))
    return scalar if scalar is not None else as_text(value)


def encode_list(value: list[Any]) -> bytes:
    kinds = {type(child) for child in value}
    if kinds <= {str}:
        return tagged(1, len(value)) + b"".join(map(text, value))
    if kinds == {bool}:
        return tagged(4, len(value)) + bytes(value)
    if kinds == {int} and all(child in I64 for child in value):
        return tagged(2, len(value)) + struct.pack(f"<{len(value)}q", *value)
    if kinds == {float}:
        return tagged(3, len(value)) + struct.pack(f"<{len(value)}d", *value)
    if kinds == {dict} and value[0] and all(list(child) == list(value[0]) for child in value):
        cells = [encode_scalar(child, (0x11, 0x12, 0x13, 0x14, 0x10)) for row in value for child in row.values()]
        if None not in cells:
            return tagged(6, len(value)) + words(len(value[0])) + b"".join(map(text, value[0])) + b"".join(cells)
    return as_text(value)


def encode_scalar(value: Any, tags: tuple[int, int, int, int, int]) -> bytes | None:
    of_str, of_int, of_float, of_bool, of_none = tags
    if value is None:
        return bytes([of_none])
    if isinstance(value, bool):
        return bytes([of_bool, value])
    if isinstance(value, str):
        return bytes([of_str]) + text(value)
    if isinstance(value, float):
        return bytes([of_float]) + struct.pack("<d", value)
    return bytes([of_int]) + struct.pack("<q", value) if isinstance(value, int) and value in I64 else None


def as_text(value: Any) -> bytes:
    found = json.dumps(value).encode()
    return tagged(0, len(found)) + found


def tagged(tag: int, count: int) -> bytes:
    return bytes([tag]) + words(count)


def text(value: str) -> bytes:
    return words(len(value.encode())) + value.encode()


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)
