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

#: Orders in which neighbours are stored side by side, or that pay for a request an item anyway.
PLAIN_ORDERS = ("sequential", "global")
#: From this size on an item is worth a request of its own.
REQUEST_BYTES = 128 * 1024


class Mappable:
    """`map` for every dataset that iterates."""

    def map(self, func: Callable[[Any], Any], **arguments: Any) -> Imap:
        """``lazystore.imap(func, dataset, ...)``: ``func`` of every item of one pass, by as many workers as pay.

        Workers read the items themselves where that is possible, and share the memory budget among them; the caller's
        dataset keeps its own. They take numbers of items in the dataset's order (shuffled, of this rank, of a subset,
        from a loaded state on). Text that has no index yet, compressed chunks and Parquet, mixtures of datasets, and
        shuffles of small remote items are read here and sent to the workers. ``stats.items_from`` says which it was.

        It counts as a pass of the dataset: its end ends the epoch; begun anew before, it starts where the epoch was
        entered. While it runs, ``state_dict()`` stands at most one chunk behind the results handed out (in order;
        without order at the pass' beginning), so that resuming repeats items and misses none; exact is
        ``state_dict(yielded=results)``.

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
        """A pass for workers to read, begun; None: its items are to be taken from ``iter(self)``."""
        from lazystore.streaming.dataset import StreamingDataset

        assert isinstance(self, StreamingDataset)
        if type(self).__iter__ is not StreamingDataset.__iter__:
            return None
        if (not self.indexed and self._streams_at_once()) or not _readable(self._opened, self._session.kind):
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


def _readable(opened: Opened, order: str) -> bool:
    """Whether others can read the items by number at about the cost of reading them in the order of a pass."""
    if opened.opaque or opened.source.url.startswith("memory:"):
        return False  # each would inflate every chunk; or there is nothing outside this process
    if opened.source.local or order in PLAIN_ORDERS:
        return True
    return sum(opened.hints) >= REQUEST_BYTES * max(1, sum(opened.counts))


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
        opened, (url, arguments) = dataset._opened, dataset._recipe
        budget = dataset._budget // dataset._shared[1]
        self.reader = DatasetReader(
            _reopen, (url, arguments, dataset._config, budget, smallest_budget(opened)), read=dataset._stored
        )

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
