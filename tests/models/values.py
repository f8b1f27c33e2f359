"""Self-describing values with ``struct`` and recursion: the oracle of ``lazystore._core.values``, and its writer."""

from __future__ import annotations

import struct
from typing import Any

from lazystore.errors import FormatError

MAX_DEPTH = 64


def encode_value(value: Any) -> bytes:
    """A value as ``_core.values`` reads it: None, bool, int (64 bits, signed or not), float, str, bytes, list, dict."""
    if value is None or value is False or value is True:
        return bytes([(None, False, True).index(value)])
    match value:
        case int():
            return b"\x09" + struct.pack("<Q", value) if value >= 1 << 63 else b"\3" + struct.pack("<q", value)
        case float():
            return b"\4" + struct.pack("<d", value)
        case str():
            return b"\5" + _sized(value.encode())
        case bytes():
            return b"\6" + _sized(value)
        case list():
            return b"\7" + struct.pack("<I", len(value)) + b"".join(map(encode_value, value))
        case dict():
            pairs = [_sized(key.encode()) + encode_value(inner) for key, inner in value.items()]
            return b"\x08" + struct.pack("<I", len(value)) + b"".join(pairs)
    raise TypeError(f"{type(value).__name__} is no value")


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def decode_value(data: bytes) -> Any:
    value, at = _read(data, 0, 0)
    if at != len(data):
        raise FormatError("bytes after the value")
    return value


def _take(data: bytes, at: int, n: int) -> tuple[bytes, int]:
    if at + n > len(data):
        raise FormatError("the value ends early")
    return data[at : at + n], at + n


def _take_sized(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _take(data, at, 4)
    return _take(data, at, int.from_bytes(size, "little"))


def _read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    tag, at = _take(data, at, 1)
    match tag[0]:
        case 0 | 1 | 2:
            return (None, False, True)[tag[0]], at
        case 3 | 4 | 9:
            number, at = _take(data, at, 8)
            return struct.unpack({3: "<q", 4: "<d", 9: "<Q"}[tag[0]], number)[0], at
        case 5:
            text, at = _take_sized(data, at)
            return text.decode(), at
        case 6:
            return _take_sized(data, at)
        case 7 | 8:
            return _read_container(data, at, depth, tag[0] == 8)
    raise FormatError("unknown tag")


def _read_container(data: bytes, at: int, depth: int, keyed: bool) -> tuple[Any, int]:
    count, at = _take(data, at, 4)
    left = int.from_bytes(count, "little")
    if depth == MAX_DEPTH or left * (5 if keyed else 1) > len(data) - at:
        raise FormatError("too deep, or too many")
    values: list[Any] = []
    keys: list[str] = []
    for _ in range(left):
        if keyed:
            key, at = _take_sized(data, at)
            keys.append(key.decode())
        value, at = _read(data, at, depth + 1)
        values.append(value)
    return (dict(zip(keys, values, strict=True)) if keyed else values), at
