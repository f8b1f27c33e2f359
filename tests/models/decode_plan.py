"""Decoding with ``struct`` and recursion over nothing: the oracle of ``DecodePlan``.

Hostile bytes must give the same outcome here and there: the same value, or the same kind of error.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from lazystore.errors import FormatError

DTYPES = ["i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"]
NONE = b"\x80\x04N."
MAX_DIMS = 32


def split(item: bytes, n_leaves: int) -> list[bytes]:
    """``u32 size[n] | leaves`` cut into leaves."""
    if len(item) < 4 * n_leaves:
        raise FormatError("too short for its sizes")
    sizes = struct.unpack_from(f"<{n_leaves}I", item)
    if 4 * n_leaves + sum(sizes) != len(item):
        raise FormatError("sizes do not add up")
    leaves, at = [], 4 * n_leaves
    for size in sizes:
        leaves.append(item[at : at + size])
        at += size
    return leaves


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
    def __init__(self, leaves: list[tuple[str, Any]], tree: list[tuple[Any, ...]], *, headless: bool = False) -> None:
        self.leaves = leaves
        self.tree = tree
        self.headless = headless

    def __call__(self, item: bytes) -> Any:
        """All sizes are checked before the first leaf; of several faults another one may show than in the plan."""
        parts = [item] if self.headless else split(item, len(self.leaves))
        values = [leaf(op, argument, data) for (op, argument), data in zip(self.leaves, parts, strict=True)]
        return assemble(self.tree, values)


def same(a: Any, b: Any) -> bool:
    """Deep equality with types, NaNs equal, arrays by dtype, shape and bytes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return bool(a == b)
