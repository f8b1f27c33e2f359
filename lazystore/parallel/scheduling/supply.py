"""The data of an `imap`, pulled item by item in the caller's thread, never more than was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

__all__ = ["Supply"]

#: seconds that pulling items in one go should take, so that the clock is looked at often enough
STRETCH_S: Final = 0.0002
#: most items in one go
STRETCH_ITEMS: Final = 1024


class Supply:
    """An iterator that is asked for several items at a time.

    An error of the source is kept until the items before it were given out; nothing that was pulled is lost, also
    when the pulling is interrupted.

    Parameters:
        data: iterated once, here and in the calling thread only.
        first: number of its first item.
        clock: seconds, monotonic.
    """

    def __init__(self, data: Iterable[Any], *, first: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._source: Iterator[Any] = iter(data)
        self._spare: list[Any] = []
        self._stretch = 1
        self._clock = clock
        #: number of the item that comes next
        self.index = first
        #: nothing will come any more
        self.ended = False
        #: what the source raised, where that is why it ended
        self.error: Exception | None = None
        #: seconds spent in the source
        self.seconds = 0.0
        #: seconds an item, of late
        self.item_s = 0.0

    def take(self, most: int, patience_s: float) -> list[Any]:
        """Up to ``most`` items, at least one unless it ended; fewer when more would take longer than ``patience_s``."""
        items, self._spare = self._spare, []
        if len(items) > most:
            self._spare = items[most:]
            del items[most:]
        began = self._clock()
        pulled = len(items)
        try:
            while len(items) < most and not self.ended:
                self._pull(items, min(most - len(items), self._stretch))
                if self._clock() - began > patience_s:
                    break
        except BaseException:
            self._spare = items + self._spare
            raise
        self.index += len(items)
        if len(items) > pulled:
            self.item_s = (self._clock() - began) / (len(items) - pulled)
        return items

    def replace(self, data: Iterable[Any]) -> None:
        """Go on with other items, the first of which has number :attr:`index`."""
        self._source = iter(data)
        self._spare = []
        if self.error is None:  # the old ones may have ended while some of them were spare
            self.ended = False

    def _pull(self, items: list[Any], count: int) -> None:
        before, began = len(items), self._clock()
        try:
            # keeps what came before an error
            items.extend(islice(self._source, count))
        except Exception as error:  # noqa: BLE001 (the caller's own; it is raised where its turn comes)
            self.error = error
            self.ended = True
        took = self._clock() - began
        self.seconds += took
        if len(items) - before < count:
            self.ended = True
        self._stretch = min(2 * self._stretch, STRETCH_ITEMS) if took < STRETCH_S else max(1, self._stretch // 2)
