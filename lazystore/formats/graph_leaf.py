"""The ``graph`` leaf: a torch-geometric graph as named tensors, and a pickle that says how they belong together.

``"LDGR" | u8 version | number of fields | fields``; a field is ``name length | name | kind | u32 payload length |
payload``, big-endian; lengths and numbers are u16 since version 3, u8 before; kinds (0 tensor, 1 pickle) exist since 2.
Reading one unpickles: only for datasets whose writer is trusted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lazystore.errors import FormatError

__all__ = ["unpack_graph"]

MAGIC = b"LDGR"
VERSIONS = (1, 2, 3)
META = "_meta"
PICKLED = 1
#: Stands for a tensor in the tree of a graph's values.
TENSOR_MARK = "__ldgr_t__"
MAX_DEPTH = 64


def unpack_graph(data: bytes, *, tensor: Callable[[bytes], Any], load: Callable[[bytes], Any]) -> Any:
    """A graph: torch-geometric's ``Data`` or ``HeteroData``; where that is not installed, the dict it is made from.

    Parameters:
        data: the leaf. One that does not begin with the magic is a pickle as a whole.
        tensor: decodes a ``tensor`` leaf.
        load: unpickles.

    Raises:
        FormatError: it is damaged, or of a later version.
    """
    if not data.startswith(MAGIC):
        return load(data)
    fields = _Fields(data)
    values: dict[str, Any] = {}
    for name, kind, payload in fields:
        if kind == PICKLED or name == META:
            found = load(payload)
            if not isinstance(found, dict):
                raise FormatError(f"a graph leaf describes itself with a {type(found).__name__} instead of a dict")
            values.update(found)
        else:
            values[name] = tensor(payload)
    return _rebuild(values)


class _Fields:
    """Iterates a packed graph's fields, every length checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = len(MAGIC)
        version = self._number(1)
        if version not in VERSIONS:
            raise FormatError(f"a graph leaf has version {version}; 1 to 3 are known")
        self._width, self._kinds = 2 if version >= 3 else 1, version >= 2

    def __iter__(self) -> Any:
        for _ in range(self._number(self._width)):
            name = self._take(self._number(self._width))
            kind = self._number(1) if self._kinds else 0
            yield name.decode("utf-8", "replace"), kind, self._take(self._number(4))
        if self._at != len(self._data):
            raise FormatError(f"a graph leaf has {len(self._data) - self._at} bytes after its last field")

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise FormatError(f"a graph leaf of {len(self._data)} bytes ends early, at {self._at}")
        self._at += n
        return self._data[self._at - n : self._at]

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")


def _rebuild(values: dict[str, Any]) -> Any:
    tree, paths, names = values.pop("_tree", None), values.pop("_paths", None), values.pop("_fields", None)
    kind = values.pop("_cls", "data")
    if tree is not None and paths is not None and names is not None:
        try:
            tensors = {tuple(path): values[name] for path, name in zip(paths, names, strict=True)}
            values = _filled(tree, tensors, ())
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"a graph leaf's description does not fit its tensors ({error!r})") from None
    try:
        geometric = importlib.import_module("torch_geometric.data")
    except ImportError:
        return values
    return (geometric.HeteroData if kind == "hetero" else geometric.Data).from_dict(values)


def _filled(tree: Any, tensors: dict[Any, Any], path: tuple[Any, ...]) -> Any:
    if len(path) > MAX_DEPTH:
        raise FormatError(f"a graph leaf is nested deeper than {MAX_DEPTH}")
    if isinstance(tree, str) and tree == TENSOR_MARK:
        return tensors[path]
    if isinstance(tree, dict):
        return {key: _filled(child, tensors, (*path, key)) for key, child in tree.items()}
    return tree
