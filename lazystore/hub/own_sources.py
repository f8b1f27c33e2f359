"""Feeds of our own kinds: `StreamingDataset` and `LazyStore`. Both keep what was read inside their own budgets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from lazystore.errors import ItemIndexError, UnsupportedError
from lazystore.fetch.options import redact
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.readings import IteratorReading, digest

if TYPE_CHECKING:
    from lazystore.hub.hub_name import Origin
    from lazystore.lazy.store import LazyStore
    from lazystore.streaming.dataset import StreamingDataset

__all__ = ["DatasetFeed", "StoreFeed"]


class DatasetFeed(Feed):
    """A :class:`~lazystore.StreamingDataset`: a pass is an iteration of it in its order, from where its epoch stands.

    Samples are numbered in the order of a pass, by :meth:`get` too: ``dataset[i]`` itself goes by the stored order.

    Parameters:
        dataset: read through its own memory; its epoch and position are not moved.
        origin: which way of which hub name this is: opened for this feed then, and closed with it.
        part: with ``origin``: which of the samples these are; None: all of them.
    """

    random = True
    keeps = True

    def __init__(
        self,
        dataset: StreamingDataset,
        *,
        name: str = "",
        identity: str = "",
        origin: Origin | None = None,
        part: range | None = None,
    ) -> None:
        self.origin = origin
        self.dataset = dataset
        self.name = name or redact(str(getattr(dataset, "_recipe", ("StreamingDataset",))[0]))
        self._identity = identity
        self._epoch: int | None = None
        self.part = part

    @property
    def length(self) -> int | None:  # type: ignore[override]
        if self.origin is not None:
            return self.dataset.total  # of every rank and worker: who divides is the feed
        return len(self.dataset) if self.dataset.indexed else None  # to learn it would be to read all of the text

    @property
    def identity(self) -> str:
        if not self._identity:
            state = self.dataset.state_dict(yielded=0)
            self._identity = digest("dataset", state["fingerprint"], sorted(state["order"].items()))
        return self._identity

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        if position == 0 and not self.dataset.indexed:
            return IteratorReading(lambda: iter(self.dataset))  # text is read at once: no index is made first
        return IteratorReading(lambda: self._twin(whole=self.origin is not None).iter_from(position), position)

    def _twin(self, *, whole: bool) -> StreamingDataset:
        """The dataset at this feed's epoch, for one pass; see :meth:`StreamingDataset.apart`."""
        twin = self.dataset.apart(whole=whole)
        if self._epoch is not None:
            twin.set_epoch(self._epoch)
        return twin

    def get(self, index: int) -> Any:
        return self.dataset[index] if self.dataset.as_stored else self._at(index)

    def get_many(self, indices: Sequence[int]) -> list[Any]:
        if self.dataset.as_stored:
            return self.dataset.__getitems__(indices)
        return [self._at(index) for index in indices]

    def _at(self, index: int) -> Any:
        """A sample of a pass over everything, where that is not in the stored order."""
        walk: Any = self._twin(whole=True).iter_from(index)
        try:
            return next(walk)
        except StopIteration:
            raise ItemIndexError(f"{self.name} has no sample {index}") from None
        finally:
            walk.close()

    @property
    def epoch(self) -> int:
        if self._epoch is not None:
            return self._epoch
        return self.dataset.epoch if self.dataset.indexed else 1

    def set_epoch(self, epoch: int) -> bool:
        changed = epoch != self.epoch
        self._epoch = epoch
        return changed and self.dataset.shuffled

    def share(self, index: int, count: int) -> Self | None:
        if self.origin is None:
            return self  # a pass is this rank's and worker's part already
        total = self.dataset.total
        part = range(total * index // count, total * (index + 1) // count)
        chosen = self.dataset.subset(slice(part.start, part.stop))
        return type(self)(chosen, name=self.name, identity=digest(self.identity, part), origin=self.origin, part=part)

    def counters(self) -> dict[str, Any]:
        way = {} if self.origin is None else self.origin.counters()
        return way | ({"source": self.dataset.stats()} if self.dataset.indexed else {})

    def close(self) -> None:
        if self.origin is not None and self.part is None:
            self.dataset.close()


class StoreFeed(Feed):
    """A :class:`~lazystore.LazyStore`: by number where its source can be read by position, else in passes.

    Samples are the source's items; of a source of bytes, chunks of them.

    Raises:
        UnsupportedError: the store's source is one by key, or none: that has no order.
    """

    def __init__(self, store: LazyStore) -> None:
        self.store = store
        source = store._open_source()
        source.require("range", "stream")
        self._source = source
        self.name = store.options.name or f"LazyStore over {source!r}"
        self.random = self.keeps = "range" in source.can
        self._of_bytes = source.unit == "bytes"

    @property
    def length(self) -> int | None:  # type: ignore[override]
        if not self.random:
            return None
        if self._of_bytes:
            return self.store.chunks().total  # type: ignore[union-attr]
        return self._source.size

    @property
    def identity(self) -> str:
        kind = "bytes" if self._of_bytes else "items"
        identity: Any = self._source.identity
        named = identity if isinstance(identity, str) else identity[:2]  # the rest is of this process
        return digest("store", kind, named, self.length if self._source.is_sized else None)

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        if self.random:
            return IteratorReading(lambda: self._from(position), position)
        return IteratorReading(self.store.stream, position, skip=position)

    def _from(self, position: int) -> Iterator[Any]:
        chunks: Any = self.store.chunks()
        size = 1 if self._of_bytes else self.store.options.items
        for number in itertools.count(position // size):
            try:
                part = chunks[number]
            except ItemIndexError:
                total = chunks.total
                if total is None or number < total:
                    raise  # the loader's own
                return
            items = (part,) if self._of_bytes else part
            yield from items[position - number * size :] if position > number * size else items

    def get(self, index: int) -> Any:
        if not self.random:
            raise UnsupportedError(f"{self.name}: a stream has no samples by number")
        if self._of_bytes:
            return self.store.chunks()[index]
        return self.store.get(index)

    def counters(self) -> dict[str, Any]:
        return {"source": self.store._counters()}

    def close(self) -> None:
        """Nothing: the store was given."""
