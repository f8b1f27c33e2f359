"""The tree of containers round an item's leaves: LitData's ``data_spec`` to a decode program.

The spec is JSON ``[1, node]``, node = ``{"type", "context", "children_spec"}``, a serialized
torch pytree (protocol 1). It comes from outside: depth and node count are bounded, and no
name in it is imported.
"""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Callable
from typing import Any

from lazystore.errors import FormatError, UnsafeDataError

__all__ = ["compile_tree", "leaf_names"]

Step = tuple[Any, ...]
MAX_DEPTH = 64
MAX_NODES = 100_000

#: Factories a stored defaultdict may name; anything else would import what the file says.
_FACTORIES: dict[str, Callable[[], Any]] = {
    "int": int, "float": float, "str": str, "bool": bool, "bytes": bytes,
    "list": list, "dict": dict, "set": set, "tuple": tuple,
}  # fmt: skip


def compile_tree(data_spec: str | None, n_leaves: int) -> list[Step]:
    """Postfix program for :class:`~lazystore._core.decode.DecodePlan` from a ``data_spec`` string.

    Parameters:
        data_spec: as in index.json; None stands for one bare leaf.
        n_leaves: leaves the item stores.

    Raises:
        FormatError: not a tree spec, or one of another number of leaves.
    """
    program: list[Step] = []
    if data_spec is None:
        program.append(("leaf",))
    else:
        _walk(_root(data_spec), program, 0)
    leaves = sum(step[0] == "leaf" for step in program)
    if leaves != n_leaves:
        raise FormatError(f"data_spec has {leaves} leaves, data_format has {n_leaves}")
    return program


def leaf_names(data_spec: str | None, tags: list[str]) -> list[str]:
    """A readable name a leaf for messages and ``repr``: its path in the tree and its tag."""
    paths: list[str] = []
    if data_spec is not None:
        _paths(_root(data_spec), "", paths)
    if len(paths) != len(tags):
        paths = [str(i) for i in range(len(tags))]
    return [f"{path or 'item'}: {tag}" for path, tag in zip(paths, tags, strict=True)]


def _root(data_spec: str) -> Any:
    try:
        spec = json.loads(data_spec)
        version, root = spec
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"data_spec is not a serialized tree: {error}") from None
    if version != 1:
        raise FormatError(f"data_spec has protocol {version!r}, 1 is known")
    return root


def _parts(node: Any) -> tuple[str | None, Any, list[Any]]:
    try:
        kind, context, children = node["type"], node["context"], node["children_spec"]
    except (TypeError, KeyError):
        raise FormatError("a node of data_spec lacks type, context or children_spec") from None
    if not isinstance(children, list) or not (kind is None or isinstance(kind, str)):
        raise FormatError(f"a node of data_spec is malformed: type {kind!r}")
    return kind, context, children


def _walk(node: Any, program: list[Step], depth: int) -> None:
    if depth > MAX_DEPTH or len(program) > MAX_NODES:
        raise FormatError(f"data_spec is deeper than {MAX_DEPTH} or larger than {MAX_NODES} nodes")
    kind, context, children = _parts(node)
    for child in children:
        _walk(child, program, depth + 1)
    program.append(_step(kind, context, len(children)))


def _step(kind: str | None, context: Any, n: int) -> Step:
    """The container that takes its ``n`` children off the stack."""
    if kind is None:
        if n:
            raise FormatError("a leaf of data_spec has children")
        return ("leaf",)
    if kind == "builtins.dict":
        return ("dict", _keys(context, n))
    if kind == "builtins.list":
        return ("list", n)
    if kind in ("builtins.tuple", "collections.namedtuple"):
        # A namedtuple's spec holds its registered name, not its fields: the values come as a tuple.
        return ("tuple", n)
    if kind == "collections.OrderedDict":
        keys = _keys(context, n)
        return ("call", n, lambda values: collections.OrderedDict(zip(keys, values, strict=True)))
    if kind == "collections.defaultdict":
        return ("call", n, _defaultdict(context, n))
    if kind == "collections.deque":
        maxlen = _json(context)
        if maxlen is not None and (not isinstance(maxlen, int) or not 0 <= maxlen <= sys.maxsize):
            raise FormatError(f"a deque in data_spec has maxlen {maxlen!r}")
        return ("call", n, lambda values: collections.deque(values, maxlen))
    raise FormatError(f"data_spec holds a container of type {kind!r}, which lazystore does not know")


def _json(context: Any) -> Any:
    """Contexts are JSON inside JSON."""
    try:
        return json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        raise FormatError(f"context {context!r} in data_spec is not JSON") from None


def _keys(context: Any, n: int) -> tuple[Any, ...]:
    keys = _json(context)
    if not isinstance(keys, list) or len(keys) != n:
        raise FormatError(f"a dict in data_spec has {n} values and the keys {keys!r}")
    if any(not isinstance(key, (str, int, float, bool, type(None))) for key in keys):
        raise FormatError(f"a dict in data_spec has keys that are not scalars: {keys!r}")
    return tuple(keys)


def _defaultdict(context: Any, n: int) -> Callable[[list[Any]], Any]:
    context = _json(context)
    try:
        module, name = context["default_factory_module"], context["default_factory_name"]
        keys = _keys(context["dict_context"], n)
    except (TypeError, KeyError):
        raise FormatError(f"a defaultdict in data_spec has the context {context!r}") from None
    if module != "builtins" or not isinstance(name, str) or name not in _FACTORIES:
        raise UnsafeDataError(f"a defaultdict in data_spec names the factory {module}.{name}; only builtins are used")
    factory = _FACTORIES[name]
    return lambda values: collections.defaultdict(factory, zip(keys, values, strict=True))


def _paths(node: Any, path: str, found: list[str]) -> None:
    kind, context, children = _parts(node)
    if kind is None:
        found.append(path)
        return
    names = range(len(children)) if kind != "builtins.dict" else _keys(context, len(children))
    for name, child in zip(names, children, strict=True):
        _paths(child, f"{path}.{name}" if path else str(name), found)
