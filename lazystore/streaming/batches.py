"""Batches without torch: what ``ds.batches(...)`` iterates, and how items become a batch.

The walk over the items is the engine's, the columns are filled in ``_core.collate``; here is the loop
between them, the choice of ``collate``, and the collating of items that a transform has made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from lazystore._core.collate import ColumnSink, ObjectSink, Sink
from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError

__all__ = ["Batches", "Walk", "collate_items", "make_sink"]

#: What becomes of a sink's batch before the user gets it.
Finish = Callable[[Any], Any]

#: Kinds of numpy dtypes whose arrays are stacked: numbers, truth values and times, no objects and no strings.
STACKED_KINDS = frozenset("biufcmM")
#: Dimensions of arrays that can be stacked: numpy 1.26 counts to 32.
MAX_STACKED = 31


class Walk(Protocol):
    """The items of an iteration, as bytes."""

    def pour(self, sink: Sink, n: int, /) -> int:
        """Add up to ``n`` next items and return how many; 0 at the end only."""
        ...


class Batches(Iterator[Any]):
    """An iterator of batches. It reads no item ahead of the batch it fills (its walk fetches ahead of both).

    Parameters:
        walk: where the items come from.
        sink: where they are collated.
        batch_size: items a batch.
        drop_last: leave out the last batch if it is short.
        finish: applied to every batch of the sink; None leaves it as it is.
        items: items that ``walk`` has to give, for ``len()``.

    An error in reading an item goes through and leaves the batch begun, without that item: the next ``next()``
    fills it up from where the walk goes on. An error in ``finish`` loses its batch. Threads: one iterator belongs to
    one thread; any number of iterators may run. Fork: the child has its own copy of the batch begun, and what the
    walk allows.
    Pickling: refused; the dataset's ``state_dict()`` resumes an iteration.
    """

    def __init__(
        self, walk: Walk, sink: Sink, batch_size: int, drop_last: bool, finish: Finish | None, *, items: int
    ) -> None:
        self._walk = walk
        self._sink = sink
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._finish = finish
        self._length = items // batch_size if drop_last else -(-items // batch_size)
        self._given = 0
        self._over = False

    def __next__(self) -> Any:
        sink = self._sink
        while sink.count < self._batch_size and not self._over:
            self._over = self._walk.pour(sink, self._batch_size - sink.count) == 0
        if sink.count == 0 or (self._drop_last and sink.count < self._batch_size):
            raise StopIteration
        batch = sink.take_batch()
        self._given += 1
        return batch if self._finish is None else self._finish(batch)

    def __len__(self) -> int:
        """Batches from the first to the last, whatever has been taken of them already. Cost: none."""
        return self._length

    def __reduce__(self) -> NoReturn:
        raise TypeError("an iterator of batches cannot be pickled; keep the dataset's state_dict() instead")

    def __repr__(self) -> str:
        return f"<Batches of {self._batch_size} items, {self._given} of {self._length} taken>"


def make_sink(
    plan: DecodePlan,
    batch_size: int,
    collate: str | Callable[[list[Any]], Any],
    transform: Callable[[Any], Any] | None = None,
) -> tuple[Sink, Finish | None]:
    """The sink for a way to collate, and what its batches still need: the two go into :class:`Batches`.

    Parameters:
        plan: decodes the items.
        batch_size: items a batch, at least 1.
        collate: ``"numpy"`` for columns (see :class:`~lazystore._core.collate.ColumnSink`), ``"list"`` for lists
            of items, or a function of such a list.
        transform: applied to every item first; columns are then made by :func:`collate_items`, as they are of plans
            whose items may be loose.

    Raises:
        ConfigError: there is no such ``collate``, or ``batch_size`` is not a number of items.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r} must be a number of items, at least 1")
    finish: Finish | None
    if collate == "numpy":
        if transform is None and not plan.loose:
            return ColumnSink(plan, batch_size), None
        finish = collate_items
    elif collate == "list":
        finish = None
    elif callable(collate):
        finish = collate
    else:
        raise ConfigError(f'collate={collate!r} is not "numpy", "list" or a function of a list of items')
    if transform is not None:
        finish = _after(transform, finish)
    return ObjectSink(plan), finish


def _after(transform: Callable[[Any], Any], finish: Finish | None) -> Finish:
    def transformed(items: list[Any]) -> Any:
        items = [transform(item) for item in items]
        return items if finish is None else finish(items)

    return transformed


# -- items to columns -----------------------------------------------------------------------


def collate_items(items: Sequence[Any]) -> Any:
    """Python items to one batch: the containers of an item with a column in the place of each leaf.

    Parameters:
        items: at least one; all dicts of the same keys, all tuples or lists of one length, or all leaves.

    Leaves that are all int, all float or all bool become int64, float64 and bool arrays; numpy arrays and scalars
    of one dtype and shape are stacked; everything else (strings, tensors, objects, leaves of several types or
    shapes, integers beyond 64 bits, arrays without elements) becomes a list.

    Raises:
        ConfigError: containers differ from item to item; they would be columns in one batch and not in the next.
    """
    kinds = set(map(type, items))
    if any(issubclass(kind, (dict, list, tuple)) for kind in kinds):
        return _containers(items, kinds)
    return _leaves(items, kinds)


def _containers(items: Sequence[Any], kinds: set[type]) -> Any:
    first = items[0]
    if len(kinds) > 1:
        names = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise _unlike(f"{names} values at the same place")
    if isinstance(first, dict):
        if any(item.keys() != first.keys() for item in items):
            raise _unlike("dicts of different keys at the same place")
        batch = copy.copy(first)  # an OrderedDict stays one
        for key in first:
            batch[key] = collate_items([item[key] for item in items])
        return batch
    if any(len(item) != len(first) for item in items):
        raise _unlike(f"{type(first).__name__}s of different lengths at the same place")
    columns = [collate_items(values) for values in zip(*items, strict=True)]
    if isinstance(first, list):
        return columns
    return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)


def _unlike(what: str) -> ConfigError:
    return ConfigError(
        f"items of one batch have {what}; let the transform return numpy arrays (they may differ in shape), "
        "or pass a function as collate="
    )


def _leaves(items: Sequence[Any], kinds: set[type]) -> Any:
    import numpy as np

    if len(kinds) != 1:
        return list(items)
    (kind,) = kinds
    if kind is bool or kind is float:
        return np.array(items, kind)
    if kind is int:
        fits = min(items) >= -(1 << 63) and max(items) < 1 << 63
        return np.array(items, np.int64) if fits else list(items)
    if kind is np.ndarray or issubclass(kind, np.generic):
        first = items[0]
        if (
            first.dtype.kind in STACKED_KINDS
            and first.size > 0
            and first.ndim <= MAX_STACKED
            and all(item.dtype == first.dtype and item.shape == first.shape for item in items)
        ):
            return np.stack(items)
    return list(items)
