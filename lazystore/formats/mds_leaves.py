"""What a column of an MDS shard holds: MosaicML's encoding names to operations of the decode plan.

The fast ones are C operations; the rest are functions of the column's bytes. What LitData stores in the same
way is decoded in ``leaves.py``.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from lazystore.errors import FormatError
from lazystore.formats.leaves import LeafFunction, leaf_operation

__all__ = ["column_leaf", "encoding_bytes"]

#: Bytes of numpy's scalars and array elements.
ITEM_BYTES = {
    "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "uint32": 4, "int32": 4, "float32": 4,
    "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
#: LitData's order of them, by which ``array`` knows them.
_LITDATA_DTYPES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_DIRECT = ("str", "bytes", "int")
#: Encodings that LitData has as well, by its names.
_SHARED = {"pil": "pil", "jpeg": "jpeg", "png": "image:png", "jpeg_array": "jpeg_array", "pkl": "pickle"}
_LISTS = {"list[pil]": "pil", "list[jpeg]": "jpeg", "list[png]": "image:png"}
_SHAPE = re.compile(r"[1-9][0-9]{0,9}(,[1-9][0-9]{0,9})*")


def column_leaf(
    name: str, encoding: str, size: int, *, allow_pickle: bool, serializers: Mapping[str, Any] | None, raw: bool
) -> tuple[str, Any, dict[str, Any]]:
    """The leaf of a column, as :class:`~lazystore._core.decode.DecodePlan` takes it.

    Parameters:
        name, encoding: of the column.
        size: bytes of every value; 0 where they vary.
        allow_pickle: ``pkl`` columns may be unpickled.
        serializers: the user's own, by column or by encoding: objects with ``deserialize(bytes)``, or functions;
            tried first.
        raw: give the stored bytes, whatever the encoding.

    Raises:
        FormatError: nobody knows the encoding, or its values have another size.
    """
    flags = {"fixed": size} if size else {}
    if raw:
        return "bytes", None, flags
    for key in (name, encoding):
        if serializers and key in serializers:
            return "call", getattr(serializers[key], "deserialize", serializers[key]), flags
    fixed = encoding_bytes(encoding)
    if size and size != fixed:
        raise FormatError(
            f"column {name!r} holds {encoding} in {size} bytes, "
            + (f"it takes {fixed}" if fixed else "but their length varies")
        )
    op, argument = _operation(name, encoding, allow_pickle, size)
    return op, argument, flags


def encoding_bytes(encoding: str) -> int:
    """Bytes a value of an encoding takes; 0 where they vary.

    Raises:
        FormatError: an ``ndarray`` of a kind that does not exist.
    """
    if encoding == "int":
        return 8
    kind, _, rest = encoding.partition(":")
    if kind == "ndarray":
        dtype, shape = _array(encoding, rest)
        return ITEM_BYTES[dtype] * math.prod(shape) if shape else 0
    return ITEM_BYTES.get(encoding, 0)


def _operation(name: str, encoding: str, allow_pickle: bool, size: int) -> tuple[str, Any]:
    if encoding in _DIRECT:
        return encoding, None
    if encoding in ITEM_BYTES:
        return "packed_array", (encoding, ())
    if encoding in _TEXTS:
        return "call", _TEXTS[encoding]
    if encoding in _SHARED:
        return leaf_operation(_SHARED[encoding], allow_pickle=allow_pickle)
    if encoding in _LISTS:
        return "call", _list_of(leaf_operation(_LISTS[encoding], allow_pickle=False)[1])
    kind, _, rest = encoding.partition(":")
    if kind == "ndarray":
        dtype, shape = _array(encoding, rest)
        if size and shape and len(shape) == 1:  # the length says it all
            return "array", _LITDATA_DTYPES.index(dtype)
        return "packed_array", (dtype, shape)
    raise FormatError(
        f"column {name!r} has the encoding {encoding!r}, which is unknown; if it is your own, "
        f"pass serializers={{{encoding!r}: object with deserialize(bytes)}}"
    )


def _array(encoding: str, rest: str) -> tuple[str, tuple[int, ...] | None]:
    """Dtype ("": stored with each value) and shape (None: stored with each value) of an ndarray encoding."""
    dtype, colon, shape = rest.partition(":")
    if encoding == "ndarray":
        return "", None
    if dtype not in ITEM_BYTES or (colon and not _SHAPE.fullmatch(shape)):
        raise FormatError(f"the encoding {encoding!r} is not ndarray, ndarray:DTYPE or ndarray:DTYPE:D0,D1,...")
    dims = tuple(map(int, shape.split(","))) if colon else None
    if dims and (len(dims) > 64 or math.prod(dims) * ITEM_BYTES[dtype] >> 32):
        raise FormatError(f"the encoding {encoding!r} asks for more than a shard can hold")
    return dtype, dims


def _text(what: str, parse: Callable[[str], Any]) -> LeafFunction:
    def decode(data: bytes) -> Any:
        try:
            return parse(data.decode("utf-8"))
        except (ValueError, InvalidOperation, RecursionError) as error:
            shown = data[:40] + b"..." * (len(data) > 40)
            raise FormatError(f"{shown!r} ({len(data)} bytes) is no {what}: {error or type(error).__name__}") from None

    return decode


#: Numbers of any length, as far as Python's own limit on digits goes.
_TEXTS: dict[str, LeafFunction] = {
    "str_int": _text("int", int),
    "str_float": _text("float", float),
    "str_decimal": _text("decimal", Decimal),
    "json": _text("JSON", json.loads),
}


def _list_of(element: LeafFunction) -> LeafFunction:
    """``u32 0 | u32 n | u32 size[n] | elements``."""

    def decode(data: bytes) -> list[Any]:
        n = struct.unpack_from("<I", data, 4)[0] if len(data) >= 8 else 0
        if len(data) < 8 + 4 * n:
            raise FormatError(f"a list in {len(data)} bytes cannot hold {n} sizes")
        sizes = struct.unpack_from(f"<{n}I", data, 8)
        at = 8 + 4 * n
        if at + sum(sizes) != len(data):
            raise FormatError(f"the sizes of {n} elements do not add up to the list's {len(data)} bytes")
        values = []
        for size in sizes:
            values.append(element(data[at : at + size]))
            at += size
        return values

    return decode
