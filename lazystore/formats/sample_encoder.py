"""Samples to item bytes of LitData's classic format: the tree of a sample, frozen, and its items.

The first sample (or the schema of a dataset that is added to) fixes the tree and each leaf's encoding; every later
sample must fit them, because the format stores both once per dataset. Leaves are ``leaf_encodings``', chunks
``packing``'s, decoding ``leaves``' and the core's. An item is ``u32 size[leaves] | leaf bytes ...``; tokens are bare.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any

from lazystore._core.encode import FlatEncoder
from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.leaf_encodings import WRITABLE, MisfitError, describe, is_jpegs, leaf_bytes, leaf_tag
from lazystore.formats.pytree import MAX_DEPTH

__all__ = ["SampleEncoder", "TokenEncoder"]

CONTAINERS: dict[type, str] = {
    dict: "builtins.dict",
    OrderedDict: "collections.OrderedDict",
    list: "builtins.list",
    tuple: "builtins.tuple",
    deque: "collections.deque",
}
_TYPES = {name: kind for kind, name in CONTAINERS.items()}
#: Leaves that the core encodes, and how many of them at most.
FLAT_TAGS = frozenset({"str", "bytes", "int", "float", "bool"})
MAX_FLAT = 1024
_LEAF_SPEC: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


class _Leaf:
    """One leaf: its tag in ``data_format``, and values to bytes."""

    def __init__(self, tag: str, allow_pickle: bool) -> None:
        self.tag = tag
        self._pickles = allow_pickle and tag == "pickle"

    def spec(self) -> dict[str, Any]:
        return _LEAF_SPEC

    def leaves(self) -> list[_Leaf]:
        return [self]

    def encode(self, value: object, out: list[bytes]) -> None:
        if not self._pickles:
            tag = leaf_tag(value)
            if tag != self.tag:
                raise MisfitError(
                    f"{describe(value)} (encoding {tag!r}) where the first sample has encoding {self.tag!r}"
                )
        out.append(leaf_bytes(self.tag, value))


class _Dict:
    """A dict or OrderedDict: its keys in the first sample's order, which all samples are written in."""

    def __init__(self, kind: type, children: dict[Any, _Node]) -> None:
        self.type = kind
        self.children = children

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
            raise MisfitError(f"{describe(value)} where the first sample has a {self.type.__name__}")
        assert isinstance(value, dict)  # the line above, said to the type checker
        if value.keys() != self.children.keys():
            missing = [k for k in self.children if k not in value]
            extra = [k for k in value if k not in self.children]
            raise MisfitError(f"keys differ from the first sample's: missing {missing!r}, unexpected {extra!r}")
        for key, child in self.children.items():
            try:
                child.encode(value[key], out)
            except MisfitError as error:
                error.path.append(key)
                raise


class _Sequence:
    """A list, tuple or deque: as many children, each of its own kind, as the first sample had."""

    def __init__(self, kind: type, children: list[_Node], context: str) -> None:
        self.type = kind
        self.children = children
        self._context = context

    def spec(self) -> dict[str, Any]:
        return {
            "type": CONTAINERS[self.type],
            "context": self._context,
            "children_spec": [child.spec() for child in self.children],
        }

    def leaves(self) -> list[_Leaf]:
        return [leaf for child in self.children for leaf in child.leaves()]

    def encode(self, value: object, out: list[bytes]) -> None:
        if type(value) is not self.type:
            raise MisfitError(f"{describe(value)} where the first sample has a {self.type.__name__}")
        assert isinstance(value, (list, tuple, deque))  # the line above, said to the type checker
        if len(value) != len(self.children):
            raise MisfitError(
                f"{len(value)} elements where the first sample has {len(self.children)}; the format keeps "
                "one length for all samples (variable lengths fit in a numpy array, str or bytes)"
            )
        if _context(value) != self._context:
            raise MisfitError(f"a deque of maxlen {_context(value)} where the first sample has {self._context}")
        for position, child in enumerate(self.children):
            try:
                child.encode(value[position], out)
            except MisfitError as error:
                error.path.append(position)
                raise


_Node = _Leaf | _Dict | _Sequence


class SampleEncoder:
    """Item bytes of samples shaped like the first one.

    Holds no sample and no file; usable from one thread at a time.

    Parameters:
        first: the sample that fixes tree and leaf encodings (encode it as well to write it).
        number: its position in the dataset, for messages.
        allow_pickle: what has no other encoding is pickled; readers then need ``allow_pickle=True``, too.

    Raises:
        FormatError: a leaf or container that the format cannot keep; names sample and key.
    """

    #: Bytes a token; 0: items are no tokens.
    token_bytes = 0

    def __init__(self, first: object, *, number: int = 0, allow_pickle: bool = False) -> None:
        try:
            root = _grow(first, allow_pickle, 0)
        except MisfitError as error:
            raise _format_error(error, number) from None
        self._freeze(root)

    def _freeze(self, root: _Node) -> None:
        self._root = root
        self._leaves = root.leaves()
        self._sizes = struct.Struct(f"<{len(self._leaves)}I")
        #: the core's encoder of such samples; None where they are no flat dicts of plain values
        self.flat = _flat(root)

    @classmethod
    def from_schema(cls, data_format: list[str], data_spec: str, *, allow_pickle: bool = False) -> SampleEncoder:
        """An encoder for more samples of a dataset, from the two strings in its ``config``.

        Raises:
            FormatError: they are damaged.
            UnsupportedError: a container that is only read.
        """
        encoder = cls.__new__(cls)
        tags = iter(data_format)
        try:
            version, root = json.loads(data_spec)
            if version != 1:
                raise ValueError(f"protocol {version!r}")
            encoder._freeze(_from_spec(root, tags, allow_pickle, 0))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"data_spec is not a serialized tree that can be written: {error!r}") from None
        if next(tags, None) is not None:
            raise FormatError("data_format has more leaves than data_spec")
        return encoder

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
        if self.flat is not None:
            item = self.flat(sample)
            if item is not None:
                return item
        parts: list[bytes] = []
        try:
            self._root.encode(sample, parts)
        except MisfitError as error:
            raise _format_error(error, number) from None
        try:
            header = self._sizes.pack(*map(len, parts))
        except struct.error:
            raise FormatError(
                f"sample {number}: a leaf of {max(map(len, parts))} bytes; the format's sizes end at 4 GiB, "
                "so split the sample"
            ) from None
        return header + b"".join(parts)


class TokenEncoder:
    """Item bytes of tokens: bare 1-D arrays or tensors, all of the first one's dtype.

    Parameters:
        first: the array that fixes kind and dtype.
        number: its position in the dataset, for messages.

    Raises:
        FormatError: not a 1-D array or tensor.
    """

    def __init__(self, first: object, *, number: int = 0) -> None:
        try:
            tag = leaf_tag(first)
            if not tag.startswith("no_header_"):
                raise MisfitError(f"{describe(first)} (encoding {tag!r}); tokens are 1-D numpy arrays or torch tensors")
        except MisfitError as error:
            raise _format_error(error, number) from None
        #: Bytes a token.
        self.token_bytes = int(getattr(first, "dtype").itemsize)  # noqa: B009 - both kinds have it
        self._leaf = _Leaf(tag, False)
        self.data_format = [tag]
        self.data_spec = json.dumps([1, _LEAF_SPEC])

    def encode(self, sample: object, *, number: int) -> bytes:
        """The item's bytes.

        Raises:
            FormatError: it is no array like the first one; names sample ``number``.
        """
        out: list[bytes] = []
        try:
            self._leaf.encode(sample, out)
        except MisfitError as error:
            raise _format_error(error, number) from None
        return out[0]


def _flat(root: _Node) -> FlatEncoder | None:
    """The quick way for plain samples, where the tree is a dict with plain leaves in it."""
    if not isinstance(root, _Dict) or root.type is not dict or not 0 < len(root.children) <= MAX_FLAT:
        return None
    tags = [child.tag if isinstance(child, _Leaf) else "" for child in root.children.values()]
    return FlatEncoder(root.children, tags) if FLAT_TAGS.issuperset(tags) else None


def _grow(value: object, allow_pickle: bool, depth: int) -> _Node:
    if depth > MAX_DEPTH:
        raise MisfitError(f"containers deeper than {MAX_DEPTH}")
    if not isinstance(value, (dict, list, tuple, deque)) or is_jpegs(value):
        return _Leaf(leaf_tag(value, allow_pickle=allow_pickle), allow_pickle)
    kind = type(value)
    if kind not in CONTAINERS:
        if allow_pickle:
            return _Leaf("pickle", True)
        raise MisfitError(f"{describe(value)} is not among the containers that are written: {WRITABLE}")
    if isinstance(value, dict):
        return _Dict(kind, {_key(key): _grown(child, allow_pickle, depth, key) for key, child in value.items()})
    children = [_grown(child, allow_pickle, depth, position) for position, child in enumerate(value)]
    return _Sequence(kind, children, _context(value))


def _grown(value: object, allow_pickle: bool, depth: int, key: object) -> _Node:
    try:
        return _grow(value, allow_pickle, depth + 1)
    except MisfitError as error:
        error.path.append(key)
        raise


def _key(key: object) -> str | int:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise MisfitError(f"the key {key!r} is neither a str nor an int, the two kinds JSON can keep")
    return key


def _context(value: Sequence[object] | deque[object]) -> str:
    return json.dumps(value.maxlen) if isinstance(value, deque) else "null"


def _from_spec(node: Any, tags: Iterator[str], allow_pickle: bool, depth: int) -> _Node:
    if depth > MAX_DEPTH:
        raise FormatError(f"data_spec is deeper than {MAX_DEPTH}")
    name, children = node["type"], node["children_spec"]
    if name is None:
        tag = next(tags, None)
        if tag is None:
            raise FormatError("data_spec has more leaves than data_format")
        return _Leaf(tag, allow_pickle)
    kind = _TYPES.get(name)
    if kind is None:
        raise UnsupportedError(f"datasets with a {name} in their samples are read, but not written")
    grown = [_from_spec(child, tags, allow_pickle, depth + 1) for child in children]
    context = node["context"]
    if not issubclass(kind, dict):
        return _Sequence(kind, grown, "null" if context is None else context)
    keys = json.loads(context) if isinstance(context, str) else context
    return _Dict(kind, dict(zip(map(_key, keys), grown, strict=True)))


def _format_error(error: MisfitError, number: int) -> FormatError:
    where = "".join(f"[{key!r}]" for key in reversed(error.path))
    return FormatError(f"sample {number}{', at ' + where if where else ''}: {error}")
