"""Samples of a wrapper by number: one, slices, many; and how many there are. Passes are ``wrapper``'s business."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable
from itertools import count as count_from
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError, ItemIndexError, UnsupportedError
from lazystore.hub.feed import Feed

if TYPE_CHECKING:
    import threading

    from lazystore.hub.batches import Batches
    from lazystore.hub.reader import Reader
    from lazystore.hub.recovery import OnError

__all__ = ["ByNumber"]


class ByNumber:
    """The part of a :class:`~lazystore.hub.StreamingDatasetWrapper` that is asked for samples by number."""

    _feed: Feed
    _lock: threading.RLock
    _on_error: OnError
    _readers: dict[tuple[int, int], Reader]
    _transform: Callable[[Any], Any] | None
    _warned: bool

    if TYPE_CHECKING:

        def _reader(self) -> Reader: ...

    @property
    def length(self) -> int | None:
        """Samples of a pass over everything; None while it is not known: a stream tells it at its end."""
        if self._feed.length is not None:
            return self._feed.length
        reader = self._readers.get((0, 1))
        return None if reader is None or reader.batches is None else reader.batches.length

    def __len__(self) -> int:
        """Samples of a pass on this rank, over all of its workers.

        Raises:
            TypeError: not known.
        """
        length = self.length
        if length is None:
            raise TypeError(
                f"{self._feed.name}: nobody knows how many samples it has before a pass has come to its end"
            )
        rank, world = self._feed.ranks()
        if world == 1:
            return length
        share = self._feed.share(rank, world)
        if share is None:
            return max(0, -(-(length - rank) // world))
        if share.length is None:
            raise TypeError(f"{self._feed.name}: nobody knows how many samples rank {rank} of {world} gets")
        return share.length

    def __bool__(self) -> bool:
        return self.length != 0

    def __getitem__(self, index: Any) -> Any:
        """One sample by int (negative where the length is known), or a list by slice, in the order of a pass.

        Of a ``StreamingDataset`` in stored order, as its own ``[i]``.

        Cost: at once from the cache; ahead: streaming up to there; behind: the source's own random access, else reading
        again, which is counted in ``stats()["reread_samples"]`` and warned about once.

        Raises:
            ItemIndexError: there is no such sample.
        """
        if isinstance(index, slice):
            return self._slice(index)
        sample = self._sample(self._number(index))
        return sample if self._transform is None else self._transform(sample)

    def _number(self, index: Any) -> int:
        number = operator.index(index)
        length = self.length
        if number < 0:
            if length is None:
                raise ConfigError(
                    f"index {number} counts from the end, and the length of {self._feed.name} is not known"
                )
            number += length
        beyond = length is not None and number >= length and not self._feed.random  # which tells by itself
        if number < 0 or beyond:
            raise ItemIndexError(f"{self._feed.name} has no sample {index}: it has {length}")
        return number

    def _slice(self, index: slice) -> list[Any]:
        length = self.length
        if length is not None:
            return self.get_many(range(*index.indices(length)))
        start, step = index.start or 0, 1 if index.step is None else index.step
        if start < 0 or step < 1 or (index.stop or 0) < 0:
            raise ConfigError(f"{index} counts from the end, and the length of {self._feed.name} is not known")
        found = []
        for number in count_from(start, step) if index.stop is None else range(start, index.stop, step):
            try:
                found.append(self[number])
            except ItemIndexError:
                break
        return found

    def get_many(self, indices: Iterable[int]) -> list[Any]:
        """Samples by number, in the order asked; read in their own."""
        numbers = [self._number(index) for index in indices]
        feed = self._reader().feed
        found = self._together(feed, numbers) if feed.keeps and feed.random else None
        if found is None:
            found = [None] * len(numbers)
            for at in sorted(range(len(numbers)), key=numbers.__getitem__):
                found[at] = self._sample(numbers[at])
        return found if self._transform is None else list(map(self._transform, found))

    def _together(self, feed: Feed, numbers: list[int]) -> list[Any] | None:
        """Samples of a feed that can be asked for many; None when it cannot go on, and others can one by one."""
        try:
            found = feed.get_many(numbers)
        except IndexError:
            raise
        except Exception:
            if self._on_error != "fallback":
                raise
            return None
        self._reader().direct_samples += len(found)
        return found

    def __getitems__(self, indices: Iterable[int]) -> list[Any]:
        """:meth:`get_many`, as torch's loaders ask for it."""
        return self.get_many(indices)

    def _sample(self, number: int) -> Any:
        reader = self._reader()
        while True:
            feed = reader.recovery.feed
            batches = None if feed.keeps else self._stream(reader)
            if not feed.random or (batches is not None and batches.holds(number)):
                break
            try:
                sample = feed.get(number)
            except IndexError:
                raise
            except Exception as error:
                if self._on_error != "fallback" or not reader.recovery.take_over(error, feed, number):
                    raise
            else:
                reader.direct_samples += 1
                return sample
        if batches is None:
            raise UnsupportedError(f"{feed.name}: samples cannot be had by number")
        if number < batches.reached and not batches.holds(number):
            self._warn(number)
        return batches.get(number)

    def _stream(self, reader: Reader) -> Batches:
        with self._lock:
            return reader.stream()

    def _warn(self, number: int) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        warnings.warn(
            f"{self._feed.name}: sample {number} was read before and is not held any more: the stream is read again to "
            "get it. Raise cache_size= or memory=, or read in order (further times are only counted: "
            "stats()['reread_samples'])",
            RuntimeWarning,
            stacklevel=4,
        )
