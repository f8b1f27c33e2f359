"""Samples to item bytes of LitData's classic format: the tree of a sample, and its leaves.

The first sample fixes the tree (dicts, lists, tuples) and each leaf's encoding; every later one must
fit them, because the format stores both once per dataset. Chunks and files belong to ``writer``,
decoding to ``leaves`` and the Cython core. An item is ``u32 size[leaves] | leaf bytes ...``.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import OrderedDict
from typing import Any

from lazystore.errors import FormatError

__all__ = ["SampleEncoder"]

#: None has no encoding of its own in the format: it is this pickle, which readers know by its bytes.
PICKLED_NONE = b"\x80\x04N."

#: numpy's array protocol type string without byte order -> dtype index; sized strings, datetimes and
#: records have no index, and objects (14) would need pickle.
NUMPY_DTYPES = {
    **{f"i{size}": index for index, size in enumerate((1, 2, 4, 8))},
    **{f"u{size}": 4 + index for index, size in enumerate((1, 2, 4, 8))},
    "f2": 8,
    "f4": 9,
    "f8": 10,
    "c8": 11,
    "c16": 12,
    "b1": 13,
}

CONTAINERS = {
    dict: "builtins.dict",
    OrderedDict: "collections.OrderedDict",
    list: "builtins.list",
    tuple: "builtins.tuple",
}

WRITABLE = "str, bytes, bool, int, float, None and numpy arrays, in dicts, OrderedDicts, lists and tuples"

_INT64 = struct.Struct("<q")
_FLOAT64 = struct.Struct("<d")


class _MisfitError(Exception):
    """Something in a sample cannot be written; ``path`` grows from the leaf outwards."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[object] = []


class _Leaf:
    """One leaf: its tag in ``data_format``, and values to bytes."""

    def __init__(self, value: object) -> None:
        self.tag = _tag(value)

    def spec(self) -> dict[str, Any]:
        return {"type": None, "context": None, "children_spec": []}

    def leaves(self) -> list[_Leaf]:
        return [self]

    def encode(self, value: object, out: list[bytes]) -> None:
        tag = _tag(value)
        if tag != self.tag:
            raise _MisfitError(
                f"{_describe(value)} (encoding {tag!r}) where the first sample has encoding {self.tag!r}"
            )
        out.append(_leaf_bytes(tag, value))


class _Dict:
    """A dict or OrderedDict: its keys in the first sample's order, which all samples are written in."""

    def __init__(self, value: dict[Any, object]) -> None:
        self.type = type(value)
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise _MisfitError(f"the key {key!r} is neither a str nor an int, the two kinds JSON can keep")
        self.children = {key: _grown(child, key) for key, child in value.items()}

    def spec(self) -> dict[str, Any]:
        return {
            "type": CONTAINERS[self.type],
            "context": json.dumps(list(self.children)),
            "children_spec": [child.spec() for child in self.children.values()],
        }

    def leaves(self) -> list[_Leaf]:
        return [leaf for child in self.children.values() for leaf in child.leaves()]

    def encode(self, value: object, out: list[bytes]) -> None:
        if type(value) is not self.type:
            raise _MisfitError(f"{_describe(value)} where the first sample has a {self.type.__name__}")
        if value.keys() != self.children.keys():
            missing = [k for k in self.children if k not in value]
            extra = [k for k in value if k not in self.children]
            raise _MisfitError(f"keys differ from the first sample's: missing {missing!r}, unexpected {extra!r}")
        for key, child in self.children.items():
            try:
                child.encode(value[key], out)
            except _MisfitError as error:
                error.path.append(key)
                raise


class _Sequence:
    """A list or tuple: as many children, each of its own kind, as the first sample had."""

    def __init__(self, value: list[object] | tuple[object, ...]) -> None:
        self.type = type(value)
        self.children = [_grown(child, position) for position, child in enumerate(value)]

    def spec(self) -> dict[str, Any]:
        return {
            "type": CONTAINERS[self.type],
            "context": "null",
            "children_spec": [child.spec() for child in self.children],
        }

    def leaves(self) -> list[_Leaf]:
        return [leaf for child in self.children for leaf in child.leaves()]

    def encode(self, value: object, out: list[bytes]) -> None:
        if type(value) is not self.type:
            raise _MisfitError(f"{_describe(value)} where the first sample has a {self.type.__name__}")
        assert isinstance(value, (list, tuple))  # the line above, said to the type checker
        if len(value) != len(self.children):
            raise _MisfitError(
                f"{len(value)} elements where the first sample has {len(self.children)}; the format keeps "
                "one length for all samples (variable lengths fit in a numpy array, str or bytes)"
            )
        for position, child in enumerate(self.children):
            try:
                child.encode(value[position], out)
            except _MisfitError as error:
                error.path.append(position)
                raise


_Node = _Leaf | _Dict | _Sequence


class SampleEncoder:
    """Item bytes of samples shaped like the first one.

    Holds no sample and no file; usable from one thread at a time.

    Parameters:
        first: the sample that fixes tree and leaf encodings (encode it as well to write it).
        number: its position in the dataset, for messages.

    Raises:
        FormatError: a leaf or container that the format cannot keep; names sample and key.
    """

    def __init__(self, first: object, *, number: int = 0) -> None:
        try:
            self._root = _grow(first)
        except _MisfitError as error:
            raise _format_error(error, number) from None
        self._leaves = self._root.leaves()
        self._sizes = struct.Struct(f"<{len(self._leaves)}I")

    @property
    def data_format(self) -> list[str]:
        """One encoding name per leaf, as ``index.json`` lists them."""
        return [leaf.tag for leaf in self._leaves]

    @property
    def data_spec(self) -> str:
        """The tree, serialized as ``index.json`` keeps it."""
        return json.dumps([1, self._root.spec()])

    def encode(self, sample: object, *, number: int) -> bytes:
        """The item's bytes; dicts with another key order are put in the first sample's.

        Raises:
            FormatError: the sample does not fit the first one; names sample ``number`` and the key.
        """
        parts: list[bytes] = []
        try:
            self._root.encode(sample, parts)
        except _MisfitError as error:
            raise _format_error(error, number) from None
        try:
            header = self._sizes.pack(*map(len, parts))
        except struct.error:
            raise FormatError(
                f"sample {number}: a leaf of {max(map(len, parts))} bytes; the format's sizes end at 4 GiB, "
                "so split the sample"
            ) from None
        return header + b"".join(parts)


def _grow(value: object) -> _Node:
    if isinstance(value, (dict, list, tuple)):
        if type(value) not in CONTAINERS:
            raise _MisfitError(f"{_describe(value)} is not among the containers that are written: {WRITABLE}")
        return _Dict(value) if isinstance(value, dict) else _Sequence(value)
    return _Leaf(value)


def _grown(value: object, key: object) -> _Node:
    try:
        return _grow(value)
    except _MisfitError as error:
        error.path.append(key)
        raise


def _tag(value: object) -> str:
    """The encoding for a leaf; bool goes before int, whose subclass it is."""
    if isinstance(value, str):
        return "str"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, bytes):
        return "bytes"
    if value is None:
        return "pickle"
    numpy = sys.modules.get("numpy")  # an array in hand means that numpy is loaded
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _numpy_tag(value)
    raise _MisfitError(f"{_describe(value)} cannot be written; samples are made of {WRITABLE}")


def _numpy_tag(array: Any) -> str:
    index = NUMPY_DTYPES.get(array.dtype.str[1:])
    if index is None:
        raise _MisfitError(f"an array of dtype {array.dtype}; the format keeps bool, integers, floats and complex")
    if hasattr(array, "mask"):
        raise _MisfitError("a masked array, whose mask the format cannot keep; fill it first")
    if array.ndim == 0:
        raise _MisfitError("a 0-dimensional array; write array.item(), or array.reshape(1)")
    return "numpy" if array.ndim > 1 else f"no_header_numpy:{index}"


def _leaf_bytes(tag: str, value: Any) -> bytes:
    if tag == "str":
        try:
            return bytes(value.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise _MisfitError(f"text that UTF-8 cannot hold ({error.reason} at {error.start})") from None
    if tag == "int":
        try:
            return _INT64.pack(value)
        except struct.error:
            raise _MisfitError(f"the int {value} needs more than 64 bits; write it as a str") from None
    if tag == "float":
        return _FLOAT64.pack(value)
    if tag == "bytes":
        return bytes(value)
    if tag == "bool":
        return b"\x01" if value else b"\x00"
    if tag == "pickle":
        return PICKLED_NONE
    return _array_bytes(tag, value)


def _array_bytes(tag: str, array: Any) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data: bytes = little.tobytes("C")
    if tag != "numpy":
        return data
    index = NUMPY_DTYPES[array.dtype.str[1:]]
    return struct.pack(f"<2I{array.ndim}I", index, array.ndim, *array.shape) + data


def _describe(value: object) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return "None" if value is None else f"a value of type {name}"


def _format_error(error: _MisfitError, number: int) -> FormatError:
    where = "".join(f"[{key!r}]" for key in reversed(error.path))
    return FormatError(f"sample {number}{', at ' + where if where else ''}: {error}")
