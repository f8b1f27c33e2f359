"""Decoding with ``struct`` and recursion over nothing: the oracle of ``DecodePlan``.

Hostile bytes must give the same outcome here and there: the same value, or the same kind of error.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from models.values import decode_value

from lazystore.errors import FormatError

DTYPES = ["i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"]
NONE = b"\x80\x04N."
MAX_DIMS = 32
MAX_PACKED_DIMS = 63 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
NULL = 0xFFFFFFFF
LOOSE = b"\xfe\xff\xff\xff"
PACKED_DTYPES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip


def split(item: bytes, leaves: list[tuple[Any, ...]]) -> list[bytes | None]:
    """``u32 size[of those that vary] | leaves`` cut into leaves; None where a nullable one is."""
    head = 4 * sum("fixed" not in flags_of(spec) for spec in leaves)
    if len(item) < head:
        raise FormatError("too short for its sizes")
    stored = iter(struct.unpack_from(f"<{head // 4}I", item))
    parts: list[bytes | None] = []
    at = head
    for spec in leaves:
        flags = flags_of(spec)
        size = flags["fixed"] if "fixed" in flags else next(stored)
        if size == NULL and flags.get("nullable"):
            parts.append(None)
            continue
        parts.append(item[at : at + size])
        at += size
    if at != len(item):
        raise FormatError("sizes do not add up")
    return parts


def flags_of(spec: tuple[Any, ...]) -> dict[str, Any]:
    return spec[2] if len(spec) > 2 else {}


def leaves_of(item: bytes, leaves: list[tuple[Any, ...]], headless: bool) -> list[Any]:
    """An opened item's decoded leaves. All sizes are checked before the first leaf."""
    parts = [item] if headless else split(item, leaves)
    return [None if data is None else leaf(*spec[:2], data) for spec, data in zip(leaves, parts, strict=True)]


def scalar(form: str, data: bytes) -> Any:
    if len(data) != struct.calcsize(form):
        raise FormatError("wrong length")
    return struct.unpack(form, data)[0]


def array_1d(data: bytes, index: int) -> Any:
    if len(data) % np.dtype(DTYPES[index]).itemsize:
        raise FormatError("not whole elements")
    return np.frombuffer(data, DTYPES[index])


def array_nd(data: bytes) -> Any:
    """``u32 dtype | u32 ndim | u32 dims[ndim] | C-order data``."""
    if len(data) < 8:
        raise FormatError("no header")
    index, ndim = struct.unpack_from("<2I", data)
    if index >= len(DTYPES) or ndim > MAX_DIMS or len(data) < 8 + 4 * ndim:
        raise FormatError("bad header")
    dims = struct.unpack_from(f"<{ndim}I", data, 8)
    body = data[8 + 4 * ndim :]
    if len(body) != math.prod(dims) * np.dtype(DTYPES[index]).itemsize:
        raise FormatError("dimensions do not fit the bytes")
    if math.prod(dim or 1 for dim in dims) > 1 << 48:
        raise FormatError("an empty array of impossible shape")
    return np.frombuffer(body, DTYPES[index]).reshape(dims)


def packed_array(data: bytes, dtype: str, shape: tuple[int, ...] | None) -> Any:
    """``[u8 dtype] | [u8 ndim << 2 | k, ndim dims of 2**k bytes] | C-order data``; a scalar for the shape ()."""
    if not dtype:
        if not data or data[0] not in PACKED_DTYPES:
            raise FormatError("no dtype")
        dtype, data = PACKED_DTYPES[data[0]], data[1:]
    if shape is None:
        ndim, width = (data[0] >> 2, 1 << (data[0] & 3)) if data else (0, 1)
        end = 1 + ndim * width
        if not 0 < ndim <= MAX_PACKED_DIMS or len(data) < end:
            raise FormatError("no shape")
        shape = tuple(int.from_bytes(data[at : at + width], "little") for at in range(1, end, width))
        data = data[end:]
    if len(data) != math.prod(shape) * np.dtype(dtype).itemsize or math.prod(dim or 1 for dim in shape) > 1 << 48:
        raise FormatError("dimensions do not fit the bytes")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if shape else array[()]


def leaf(op: str, argument: Any, data: bytes) -> Any:
    match op:
        case "str":
            return data.decode("utf-8")
        case "bytes":
            return data
        case "int":
            return scalar("<q", data)
        case "float":
            return scalar("<d", data)
        case "bool":
            return scalar("<B", data) != 0
        case "array":
            return array_1d(data, argument)
        case "ndarray":
            return array_nd(data)
        case "packed_array":
            return packed_array(data, *argument)
        case "value":
            return decode_value(data)
        case "none_or_call" if data == NONE:
            return None
    return argument(data)


def assemble(tree: list[tuple[Any, ...]], values: list[Any]) -> Any:
    """The postfix program, with a stack."""
    stack: list[Any] = []
    left = iter(values)
    for step in tree:
        if step[0] == "leaf":
            stack.append(next(left))
            continue
        count = len(step[1]) if step[0] == "dict" else step[1]
        children = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        match step[0]:
            case "dict":
                stack.append(dict(zip(step[1], children, strict=True)))
            case "list":
                stack.append(children)
            case "tuple":
                stack.append(tuple(children))
            case "call":
                stack.append(step[2](children))
    (root,) = stack
    return root


class DecodePlanModel:
    def __init__(
        self,
        leaves: list[tuple[Any, ...]],
        tree: list[tuple[Any, ...]],
        *,
        headless: bool = False,
        opener: Callable[[bytes], bytes] | None = None,
        loose: bool = False,
    ) -> None:
        self.loose = loose
        self.leaves = leaves
        self.tree = tree
        self.headless = headless
        self.opener = opener

    def __call__(self, item: bytes) -> Any:
        """Of several faults of an item another one may show than in the plan."""
        if self.opener is not None:
            item = self.opener(item)
        if self.loose and item[:4] == LOOSE:
            return decode_value(item[4:])
        return assemble(self.tree, leaves_of(item, self.leaves, self.headless))


def same(a: Any, b: Any) -> bool:
    """Deep equality with types, NaNs equal, arrays by dtype, shape and bytes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return bool(a == b)
