"""Item bytes of flat dicts, spelled out: the oracle of the core's encoder."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

ROOM = 65_536

Kind = str | Callable[[Any], bytes]


def leaf(kind: Kind, value: Any) -> bytes | None:
    """The leaf's bytes, None where the value is not exactly of the kind."""
    if not isinstance(kind, str):
        made = kind(value)
        return made if type(made) is bytes else None
    if type(value).__name__ != kind:
        return None
    if kind == "str":
        try:
            return bytes(value.encode())
        except UnicodeEncodeError:
            return None
    if kind == "int":
        return struct.pack("<q", value) if -(2**63) <= value < 2**63 else None
    if kind == "float":
        return struct.pack("<d", value)
    return bytes([value]) if kind == "bool" else bytes(value)


def encode(keys: Sequence[Any], kinds: Sequence[Kind], sample: Any) -> bytes | None:
    if type(sample) is not dict or sample.keys() != set(keys):
        return None
    leaves = [leaf(kind, sample[key]) for key, kind in zip(keys, kinds, strict=True)]
    whole = [data for data in leaves if data is not None]
    if len(whole) < len(leaves):
        return None
    item = struct.pack(f"<{len(whole)}I", *map(len, whole)) + b"".join(whole)
    return item if len(item) <= ROOM else None
