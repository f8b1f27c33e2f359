"""Items as text: a short form to look at, and JSON.

JSON can say less than items can hold; what it cannot say has these forms, which are written and never read back:

- tuples are lists; numpy's and torch's numbers, arrays and tensors are numbers and nested lists of them;
- floats that are not finite are the strings "NaN", "Infinity" and "-Infinity";
- bytes are ``{"base64": "..."}``; images ``{"mode": "RGB", "size": [w, h], "base64": "..."}`` (their raw pixels);
- dates are ISO 8601 strings, ``Decimal`` a string of its digits.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from lazystore.errors import UnsupportedError

__all__ = ["json_line", "kind_of", "short", "size_text"]

#: Characters, bytes and elements that the short form shows.
MOST_CHARACTERS, MOST_BYTES, MOST_ELEMENTS = 200, 48, 12
#: Kinds of numpy's numbers: bool, signed, unsigned, float.
_NUMBERS = "biuf"


def json_line(value: object, *, binary: bool = True, ascii_only: bool = False) -> str:
    """An item as one line of JSON; see the module.

    Parameters:
        binary: bytes and images may be written.
        ascii_only: escape everything else.

    Raises:
        UnsupportedError: something that has no form; says where in the item it is.
    """
    try:
        plain = _plain(value, "", binary)
    except RecursionError:
        raise UnsupportedError("the item is nested too deeply for JSON") from None
    return json.dumps(plain, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))


def _plain(value: Any, at: str, binary: bool) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise UnsupportedError(f"{_place(at)}: the key {odd!r} is no string, as JSON's keys are")
        return {key: _plain(child, f"{at}[{key!r}]", binary) for key, child in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [_plain(child, f"{at}[{number}]", binary) for number, child in enumerate(value)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": _base64(value, at, binary)}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _array(value, at)
    if _is_image(value):
        return {"mode": value.mode, "size": list(value.size), "base64": _base64(value.tobytes(), at, binary)}
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ == "Decimal":
        return str(value)
    raise UnsupportedError(f"{_place(at)}: a {type(value).__name__} has no form in JSON")


def _array(value: Any, at: str) -> Any:
    """Numbers, or nested lists of them; of what is not a number, strings."""
    kind = getattr(value.dtype, "kind", None)
    if kind is None:  # torch's dtypes have no kind
        kind = "f" if value.dtype.is_floating_point else "c" if value.dtype.is_complex else "i"
    if kind == "f":
        return _floats(value.tolist())
    if kind in _NUMBERS or kind == "U":
        return value.tolist()
    if kind == "M":
        return value.astype(str).tolist()
    raise UnsupportedError(f"{_place(at)}: an array of {value.dtype} has no form in JSON")


def _floats(value: Any) -> Any:
    return [_floats(child) for child in value] if isinstance(value, list) else _float(value)


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _base64(data: bytes | bytearray | memoryview, at: str, binary: bool) -> str:
    if not binary:
        raise UnsupportedError(f"{_place(at)} holds bytes, which JSON cannot: give --json-bytes base64")
    return base64.b64encode(data).decode("ascii")


def _place(at: str) -> str:
    return f"the leaf {at}" if at else "the item"


def _is_image(value: object) -> bool:
    return hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size")


def short(value: Any) -> str:
    """An item to look at: long strings, bytes and arrays are cut, and say how long they are."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {short(child)}" for key, child in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(short, value[:MOST_ELEMENTS]))
        if len(value) > MOST_ELEMENTS:
            inner += f", ... {len(value)} in all"
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, str):
        return _cut(value, MOST_CHARACTERS, "characters")
    if isinstance(value, bytes):
        return _cut(value, MOST_BYTES, "bytes")
    if hasattr(value, "dtype") and hasattr(value, "shape") and value.shape != ():
        flat = value.reshape(-1)
        inner = ", ".join(str(element) for element in flat[:MOST_ELEMENTS].tolist())
        more = ", ..." if len(flat) > MOST_ELEMENTS else ""
        return f"{kind_of(value)}[{inner}{more}]"
    return repr(value)


def _cut(value: str | bytes, most: int, unit: str) -> str:
    return repr(value) if len(value) <= most else f"{value[:most]!r}... {len(value):,} {unit}"


def kind_of(value: object) -> str:
    """What an item is made of, without its contents."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {kind_of(child)}" for key, child in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(kind_of, value[:MOST_ELEMENTS])) + (", ..." if len(value) > MOST_ELEMENTS else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__}({value.dtype}, {tuple(value.shape)})"
    return type(value).__name__


def size_text(nbytes: int) -> str:
    """Bytes in decimal units, four digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{nbytes} bytes"
