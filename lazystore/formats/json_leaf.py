"""The ``json`` leaf of LitData 0.2.74 and later: lists and dicts of a row, in one small binary form or as JSON text.

Only decoding. A leaf whose first byte is above 32 is JSON text; below that it is a tag, and what follows depends on it.
Numbers are little-endian. Text is decoded by Python's json on purpose: faster parsers round integers beyond 64 bits.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from lazystore.errors import FormatError

__all__ = ["decode_json_leaf"]

MAX_DEPTH = 200
#: First bytes above this one begin JSON text.
LAST_TAG = 0x20

_U32 = struct.Struct("<I")
_I64 = struct.Struct("<q")
_F64 = struct.Struct("<d")


def decode_json_leaf(data: bytes) -> Any:
    """The list, dict or scalar a ``json`` leaf stands for.

    Raises:
        FormatError: no such leaf; the message says where.

    Cost: ~50 ns a value. A leaf holds nothing that its own bytes do not pay for, whatever counts it claims.
    """
    if not data or data[0] > LAST_TAG or data[0] >= len(_TAGS):
        return _text(data)
    try:
        value, end = _value(data, 0, 0)
    except (struct.error, IndexError):
        _damaged(data, "it ends early")
    if end != len(data):
        _damaged(data, f"{len(data) - end} bytes are left over")
    return value


def _damaged(data: bytes, what: str) -> NoReturn:
    raise FormatError(f"a json leaf of {len(data)} bytes is damaged: {what}")


def _text(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a json leaf of {len(text)} bytes is no JSON text ({error})") from None


def _count(data: bytes, at: int, each: int) -> int:
    """A count of things of at least ``each`` bytes that are all still there."""
    count = int(_U32.unpack_from(data, at)[0])
    if count * each > len(data) - at - 4:
        _damaged(data, f"{count} values are said to be in {len(data) - at - 4} bytes")
    return count


def _str(data: bytes, at: int) -> tuple[str, int]:
    begin = at + 4
    end = begin + _count(data, at, 1)
    try:
        return data[begin:end].decode(), end
    except UnicodeDecodeError as error:
        raise FormatError(f"a json leaf of {len(data)} bytes holds text that is not UTF-8 ({error})") from None


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value whose tag is at ``at``, and its end."""
    tag = data[at]
    if tag >= len(_TAGS):
        _damaged(data, f"tag {tag} at {at}")
    if depth > MAX_DEPTH:
        _damaged(data, f"it is nested deeper than {MAX_DEPTH}")
    return _TAGS[tag](data, at + 1, depth)


def _embedded(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _count(data, at, 1)
    return _text(data[at + 4 : end]), end


def _strs(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    found = []
    count = _count(data, at, 4)
    at += 4
    for _ in range(count):
        text, at = _str(data, at)
        found.append(text)
    return found, at


def _numbers(letter: str, size: int) -> Callable[[bytes, int, int], tuple[Any, int]]:
    def numbers(data: bytes, at: int, depth: int) -> tuple[Any, int]:
        count = _count(data, at, size)
        return list(struct.unpack_from(f"<{count}{letter}", data, at + 4)), at + 4 + size * count

    return numbers


def _bools(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = at + 4 + _count(data, at, 1)
    return [byte != 0 for byte in data[at + 4 : end]], end


def _dict(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    found = {}
    count = _count(data, at, 5)  # a key's length and a tag
    at += 4
    for _ in range(count):
        key, at = _str(data, at)
        found[key], at = _value(data, at, depth + 1)
    return found, at


def _records(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Dicts of the same keys, row by row; every value has a kind of its own."""
    rows, n_keys = int(_U32.unpack_from(data, at)[0]), _count(data, at + 4, 4)
    keys = []
    at += 8
    for _ in range(n_keys):
        key, at = _str(data, at)
        keys.append(key)
    if rows * max(n_keys, 1) > len(data) - at:
        _damaged(data, f"{rows} dicts of {n_keys} values are said to be in {len(data) - at} bytes")
    found = []
    for _ in range(rows):
        row: dict[str, Any] = {}
        for key in keys:
            kind = data[at]
            if kind not in _KINDS:
                _damaged(data, f"kind {kind} at {at}")
            row[key], at = _KINDS[kind](data, at + 1, depth)
        found.append(row)
    return found, at


def _just_str(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return _str(data, at)


def _int(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return _I64.unpack_from(data, at)[0], at + 8


def _float(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return _F64.unpack_from(data, at)[0], at + 8


def _bool(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return data[at] != 0, at + 1


def _none(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return None, at


#: By tag, 0 to 11.
_TAGS: tuple[Callable[[bytes, int, int], tuple[Any, int]], ...] = (
    _embedded, _strs, _numbers("q", 8), _numbers("d", 8), _bools, _dict, _records, _just_str, _int, _float, _bool,
    _none,
)  # fmt: skip
#: Of the values of records.
_KINDS = {0x10: _none, 0x11: _just_str, 0x12: _int, 0x13: _float, 0x14: _bool}
