"""Plain-Python model of row images: what a chunk of rows made from columns says, decoded without the core."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

NULL = 0xFFFFFFFF
LOOSE = 0xFFFFFFFE


def value(data: bytes, at: int = 0) -> tuple[Any, int]:
    """A self-describing value and where it ends."""
    tag = data[at]
    at += 1
    if tag <= 2:
        return (None, False, True)[tag], at
    if tag in (3, 4, 9):
        return struct.unpack_from({3: "<q", 4: "<d", 9: "<Q"}[tag], data, at)[0], at + 8
    (n,) = struct.unpack_from("<I", data, at)
    at += 4
    if tag in (5, 6):
        assert at + n <= len(data)
        return (data[at : at + n].decode() if tag == 5 else data[at : at + n]), at + n
    assert tag in (7, 8), tag
    items: list[Any] = []
    for _ in range(n):
        if tag == 8:
            (size,) = struct.unpack_from("<I", data, at)
            key = data[at + 4 : at + 4 + size].decode()
            inner, at = value(data, at + 4 + size)
            items.append((key, inner))
        else:
            inner, at = value(data, at)
            items.append(inner)
    return (dict(items) if tag == 8 else items), at


def cell(op: str, argument: Any, data: bytes) -> Any:
    if op == "value":
        found, end = value(data)
        assert end == len(data)
        return found
    if op == "call":
        return argument(data)
    if op in ("int", "float"):
        return struct.unpack("<q" if op == "int" else "<d", data)[0]
    if op == "bool":
        assert data in (b"\0", b"\1")
        return data == b"\1"
    return data.decode() if op == "str" else data


def row(data: bytes, keys: Sequence[str], leaves: Sequence[tuple[str, Any, Any]]) -> dict[str, Any]:
    """One row: ``u32 size[columns] | cells``, or a loose one."""
    if len(data) >= 4 and struct.unpack_from("<I", data)[0] == LOOSE:
        found, end = value(data, 4)
        assert end == len(data) and type(found) is dict
        return found
    sizes = struct.unpack_from(f"<{len(keys)}I", data)
    at = 4 * len(keys)
    found = {}
    for key, size, (op, argument, flags) in zip(keys, sizes, leaves, strict=True):
        if size == NULL:
            assert flags["nullable"]
            found[key] = None
            continue
        assert at + size <= len(data)
        found[key] = cell(op, argument, data[at : at + size])
        at += size
    assert at == len(data)
    return found
