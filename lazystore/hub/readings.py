"""`IteratorReading`: a reading over any iterator, shared by the feeds; and digests that identities are made of.

What a source is, and how its iterator comes about, is not here.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lazystore.errors import without_trace
from lazystore.hub.feed import Mark, Reading

__all__ = ["IteratorReading", "digest"]


class IteratorReading(Reading):
    """A reading of what an iterator gives.

    Parameters:
        samples: called once, at the first sample: nothing is opened before.
        position: number of the first sample handed out.
        skip: samples of the iterator before that one, which are read and dropped.
        mark: gives the mark at a position, or None.
        close: called once, after the iterator's own ``close()``.

    Threads: one at a time.
    """

    def __init__(
        self,
        samples: Callable[[], Iterable[Any]],
        position: int = 0,
        *,
        skip: int = 0,
        mark: Callable[[int], Mark | None] | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.position = position
        self._begin: Callable[[], Iterable[Any]] | None = samples
        self._samples: Iterator[Any] = iter(())
        self._skip = skip
        self._mark = mark
        self._close = close
        self._error: BaseException | None = None
        self._going = False

    def __next__(self) -> Any:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._going = False  # what ends a reading, or an error, leaves no state to go on from
        if self._begin is not None:
            self._enter()
        sample = next(self._samples)
        self.position += 1
        self._going = True
        return sample

    def _enter(self) -> None:
        """Open the source, and go to the first sample."""
        begin, self._begin = self._begin, None
        assert begin is not None
        self._samples = iter(begin())
        if self._skip:
            for _ in itertools.islice(self._samples, self._skip):
                self.passed += 1

    def take(self, count: int) -> list[Any]:
        samples: list[Any] = []
        try:
            if count > 0:
                samples.append(next(self))
                samples.extend(itertools.islice(self._samples, count - 1))  # keeps what came before an error
        except StopIteration:
            return samples
        except Exception as error:
            if not samples:
                raise
            self._error = without_trace(error)  # what was read before it comes first
            self._going = False
        self.position += max(0, len(samples) - 1)  # of the first it is known already
        if len(samples) < count:
            self._going = False
        return samples

    def mark(self) -> Mark | None:
        return self._mark(self.position) if self._going and self._mark is not None else None

    def close(self) -> None:
        samples, self._samples = self._samples, iter(())
        self._begin = lambda: ()
        self._skip = 0
        self._going = False
        shut = getattr(samples, "close", None)
        if shut is not None:
            shut()
        close, self._close = self._close, None
        if close is not None:
            close()


def digest(*parts: object) -> str:
    """16 hex digits of the parts' text: the same in every process for plain values."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
