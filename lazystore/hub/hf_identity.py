"""What tells one pipeline of `datasets` from another: its nodes, files, functions and generators as one digest.

A digest of plain values, the same in every process that builds the same pipeline with the same version of the library.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

from lazystore.hub.readings import digest

__all__ = ["UNSEEDED", "addresses_of", "nodes_of", "pipeline_identity"]

#: How the identity of a pipeline ends that shuffles without a seed: no other process can build the same one.
UNSEEDED = "-shuffled-without-a-seed"
#: What a pass or a cache leaves in an object, and who may read: neither decides on samples.
_PASSING = frozenset({
    "_state_dict", "_original_state_dict", "_owned_loops_and_tasks", "_interleaved", "decoding_pool", "last_item",
    "token_per_repo_id", "_sleep_on_threads_shutdown", "sleep_on_threads_shutdown", "download_config", "data_files",
    "token", "_hash",
})  # fmt: skip
_DRAWS = ("BufferShuffledExamplesIterable", "RandomlyCyclingMultiSourcesExamplesIterable")
#: NumPy draws 128 bits where no seed is given; a seed of somebody's own is hardly that long.
_LONGEST_SEED = 1 << 64
_DEEPEST = 12


def nodes_of(node: Any) -> Iterator[Any]:
    """A node of a pipeline and all nodes below it."""
    yield node
    below = node.__dict__.get("ex_iterables") or ([node.ex_iterable] if "ex_iterable" in node.__dict__ else [])
    for child in below:
        yield from nodes_of(child)


def pipeline_identity(dataset: Any) -> str:
    """Digest of a ``datasets.IterableDataset``; ends in :data:`UNSEEDED` where only this process can build it."""
    import datasets

    nodes = list(nodes_of(dataset._ex_iterable))
    shuffling = getattr(dataset, "_shuffling", None)  # before version 5 beside the nodes
    draws = shuffling is not None or any(type(node).__name__ in _DRAWS for node in nodes)
    parts = (
        _told(dataset._ex_iterable, 0), _told(shuffling, 0), _told(dataset._distributed, 0),
        _told(dataset._formatting, 0), dataset.column_names,
        datasets.__version__.split(".")[:2] if draws else None,  # they may be drawn otherwise in another version
    )  # fmt: skip
    generators = [getattr(owner, "generator", None) for owner in (*nodes, shuffling)]
    return digest(parts) + (UNSEEDED if any(map(_is_unseeded, generators)) else "")


def addresses_of(dataset: Any) -> str:
    """What a ``datasets.IterableDataset`` is made from, files among it, as text."""
    return repr(_told(dataset._ex_iterable, 0))


def _is_unseeded(generator: Any) -> bool:
    seed = getattr(getattr(generator, "bit_generator", None), "seed_seq", None)
    entropy = getattr(seed, "entropy", None)
    return isinstance(entropy, int) and entropy >= _LONGEST_SEED


def _told(value: Any, depth: int) -> Any:
    """A value as plain ones, whose ``repr`` is the same wherever it is made."""
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # the library's tracked ones have a repr of their own
    if depth > _DEEPEST:
        return type(value).__qualname__
    if isinstance(value, (list, tuple)):
        return [_told(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return [(_told(key, depth + 1), _told(one, depth + 1)) for key, one in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_told(one, depth + 1)) for one in value)
    if isinstance(value, (types.FunctionType, types.MethodType, partial, type)):
        return _told_of_function(value, depth + 1)
    return _told_of_object(value, depth + 1)


def _told_of_object(value: Any, depth: int) -> Any:
    kind = type(value).__qualname__
    if hasattr(value, "_fingerprint"):  # a table of the library
        return kind, value._fingerprint, len(value)
    if hasattr(value, "bit_generator"):  # a generator of NumPy
        return kind, _told(value.bit_generator.state, depth)
    if hasattr(value, "__array_interface__"):  # an array
        return kind, str(value.dtype), value.shape, hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()
    if kind == "DownloadConfig":
        return kind
    if hasattr(value, "arrow_schema"):  # features, whose private parts are caches
        return kind, repr(value)
    own = getattr(value, "__dict__", {})
    return kind, [(name, _told(one, depth)) for name, one in sorted(own.items()) if name not in _PASSING]


def _told_of_function(function: Any, depth: int) -> Any:
    if isinstance(function, partial):
        return "partial", *(_told(part, depth) for part in (function.func, function.args, function.keywords))
    if isinstance(function, type):
        return "class", function.__qualname__
    if isinstance(function, types.MethodType):
        config = getattr(function.__self__, "config", None)  # of the library's builders: what is read, and how
        owner = type(function.__self__).__qualname__ if config is None else _told_of_object(config, depth)
        return "method", function.__qualname__, owner
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    return (
        "function", function.__qualname__, _told_of_code(function.__code__), _told(cells, depth),
        _told(function.__defaults__, depth), _told(function.__kwdefaults__, depth),
    )  # fmt: skip


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _told_of_code(code: types.CodeType) -> str:
    constants = [_told_of_code(one) if isinstance(one, types.CodeType) else _constant(one) for one in code.co_consts]
    return digest(code.co_code, code.co_names, constants)


def _constant(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value
