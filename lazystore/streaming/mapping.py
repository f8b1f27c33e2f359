"""Functions over datasets with many workers: `ds.map(f)`, and how a pass is handed to `imap` as numbers of items.

The order of an epoch is arithmetic, so no byte is read to know which item comes when: workers get stored numbers, open
the dataset themselves and read what they were told. Running anything is ``parallel``'s business.
"""

from __future__ import annotations

import copy
import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lazystore.parallel.dataset_items import DatasetReader
from lazystore.streaming.division import smallest_budget
from lazystore.streaming.files import in_blocks
from lazystore.streaming.order import ListLeg, RangeLeg

if TYPE_CHECKING:
    from lazystore._core.walk import Progress
    from lazystore.config import StreamingConfig
    from lazystore.formats.format import Opened
    from lazystore.parallel.mapper import Imap
    from lazystore.streaming.dataset import StreamingDataset
    from lazystore.streaming.order import Leg
    from lazystore.streaming.resume import Remainder
    from lazystore.streaming.session import Session
    from lazystore.streaming.subset import Selection

__all__ = ["Mappable", "PassItems", "ReadByWorkers"]


class Mappable:
    """`map` for every dataset that iterates."""

    def map(self, func: Callable[[Any], Any], **arguments: Any) -> Imap:
        """``lazystore.imap(func, dataset, ...)``: ``func`` of every item of one pass, by as many workers as pay.

        Workers are sent the numbers of local items, in the dataset's order (shuffled, of this rank, of a subset, from a
        loaded state on), and read those themselves; they share the memory budget among them, the caller's dataset
        keeps its own. Remote data, compressed chunks, Parquet, text that has no index yet and mixtures of datasets are
        read here, ahead of the workers, who are sent the items. ``stats.items_from`` says which it was.

        It counts as a pass of the dataset: its end ends the epoch; begun anew before, it starts where the epoch was
        entered. While it runs, ``state_dict()`` stands at most one chunk behind the results handed out (in order;
        without order at the pass' beginning), so that resuming repeats items and misses none; exact is
        ``state_dict(yielded=results)``. Mixtures, and text without an index, count as items are taken from them.

        Parameters:
            func: called with each item.
            arguments: of :func:`lazystore.imap`.
        """
        from lazystore.parallel.mapper import imap

        return imap(func, self, **arguments)  # type: ignore[arg-type]


class ReadByWorkers(Mappable):
    """The part of a stored dataset that `imap` asks for."""

    if TYPE_CHECKING:
        _opened: Opened
        _selection: Selection | None
        _session: Session
        _recipe: tuple[str, dict[str, Any]]
        _config: StreamingConfig

        @property
        def indexed(self) -> bool: ...
        def _streams_at_once(self) -> bool: ...

    def _lazystore_items_(self, ordered: bool) -> PassItems | None:
        """A pass, begun, for workers to read or not; None: its items are to be taken from ``iter(self)``."""
        from lazystore.streaming.dataset import StreamingDataset

        assert isinstance(self, StreamingDataset)
        if type(self).__iter__ is not StreamingDataset.__iter__:
            return None
        if not self.indexed and self._streams_at_once():
            return None
        return PassItems(self, ordered)

    def _legs(self, route: Remainder, start: int) -> Iterator[Leg]:
        """What a route reads from its ``start``-th item on, in stored chunks and numbers."""
        legs = route.legs(min(start, route.length))
        if self._selection is not None:
            return self._selection.legs(legs, array("Q", accumulate(self._opened.counts, initial=0)))
        if self._session.by_file and self._opened.files is not None:
            return in_blocks(legs, self._opened.files, self._opened.counts)
        return legs


class PassItems:
    """One pass over a dataset; see :class:`~lazystore.parallel.dataset_items.DatasetItems`.

    Parameters:
        dataset: whose next pass it is; begun here.
        ordered: results come in the order of the items.

    Threads: one. Pickling: none; its ``reader`` travels.
    """

    def __init__(self, dataset: StreamingDataset, ordered: bool) -> None:
        dataset._share_budget()
        self._dataset = dataset
        self._ordered = ordered
        self._done = self._giving = 0
        self._route, self._progress = dataset._session.begin()
        self._walk = dataset._walk_along(self._route, self._progress)
        self.length = self._route.length
        self.reader = _reader(dataset)

    def items(self) -> Iterator[Any]:
        return self._walk

    def keys(self, start: int) -> Iterator[int]:
        self._walk.close()
        return stored_numbers(self._dataset._legs(self._route, start), self._dataset._opened.counts)

    def handed_out(self, count: int) -> None:
        progress: Progress = self._progress
        # Those of the call before are the consumer's by now; those of this call may not be yet.
        self._done += self._giving
        self._giving = count
        progress.position = self._done if self._ordered else 0
        progress.finished = False  # by the walk, whose end was reached ahead of the consumer

    def finish(self) -> None:
        self._progress.position = self.length
        self._progress.finished = True


def stored_numbers(legs: Iterable[Leg], counts: Sequence[int]) -> Iterator[int]:
    """Stored numbers of the items that legs emit, in their order. Memory: 8 bytes an item of one leg."""
    starts: array[int] | None = None
    for leg in legs:
        if isinstance(leg, RangeLeg):
            yield from range(leg.first, leg.last)
        elif isinstance(leg, ListLeg):
            yield from leg.items
        else:
            import numpy as np

            starts = starts or array("Q", accumulate(counts, initial=0))
            places = np.asarray(leg.places)
            numbers = np.empty(len(places), np.int64)
            at = 0
            for span, group in leg.groups:
                numbers[places[at : at + len(group)]] = np.asarray(group, np.int64) + starts[span.chunk]
                at += len(group)
            yield from numbers[leg.skip :].tolist()


def _reader(dataset: StreamingDataset) -> DatasetReader | None:
    """What reads the dataset in workers; None where they had better be sent its items.

    Compressed chunks would be inflated by each worker. Requests to remote storage are made far ahead by a pass, where
    workers would wait for theirs: at 20 ms a request and 1 ms an item, 1500 items of 20 kB took two workers 19 s, and
    2 to 4 s from a pass.
    """
    opened, (url, arguments) = dataset._opened, dataset._recipe
    if not opened.source.local or opened.opaque:
        return None
    budget = dataset._budget // dataset._shared[1]
    return DatasetReader(
        _reopen, (url, arguments, dataset._config, budget, smallest_budget(opened)), read=dataset._stored
    )


def _reopen(
    url: str, arguments: Mapping[str, Any], config: StreamingConfig, budget: int, least: int, workers: int
) -> Callable[[Sequence[int]], Sequence[Any]]:
    """In a worker: the dataset in its share of the budget; returns what reads stored numbers."""
    from lazystore.streaming.dataset import StreamingDataset

    share = max(budget // workers, least)
    loader = arguments["item_loader"]
    changed: dict[str, Any] = {"memory": share}
    if loader is not None and loader.streaming_config is not None:
        loader = copy.copy(loader)
        loader.streaming_config = dataclasses.replace(config, max_memory_size=share)
        changed = {"item_loader": loader}
    # Stored numbers need neither order nor selection.
    plain = {"subsample": 1.0, "shuffle": False, "order": None, "rank": 0, "world_size": 1}
    return StreamingDataset(url, **{**arguments, **plain, **changed})._stored
