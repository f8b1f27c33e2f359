"""How far ahead of its reader the next chunks are loaded: a window that opens while chunks are read in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazystore._core.weigh import weigh
from lazystore.errors import ClosedError

if TYPE_CHECKING:
    from lazystore.cache.single_flight import Flight
    from lazystore.cache.tiers import Tiers

__all__ = ["ChunkAhead"]

#: Chunks ahead when reading in order is noticed, and the most of them.
FIRST, MOST = 2, 8
#: A share of the budget that what is ahead stays below.
SHARE = 4
#: Loads in a row that failed, until no more are started.
PATIENCE = 3
#: Every so many chunks one is weighed, where their size is not known.
WEIGH_EVERY = 8


class ChunkAhead:
    """The read-ahead of one reader.

    Two chunks in order open the window to 2; a chunk that was started and still was not there when it was asked for
    doubles it, to 8 at most; a jump closes it. What is ahead stays within a quarter of the budget.

    Parameters:
        start: ``start(index)`` loads a chunk in the background; None: there is none.
        tiers: asked whether there is memory to speculate with.
        fixed: so many chunks ahead, from the first one on; None: as above.
        nbytes: of a chunk; None: the reader's are weighed now and then.

    Threads: readers that share one may read ahead a chunk too few or too many, no worse.
    """

    __slots__ = (
        "_fixed", "_flights", "_in_vain", "_nbytes", "_next", "_seen", "_start", "_tiers", "_upto", "_weighs", "window",
    )  # fmt: skip

    def __init__(
        self, start: Callable[[int], Flight | None], tiers: Tiers, fixed: int | None, nbytes: int | None
    ) -> None:
        self.window = fixed or 0
        self._start = start
        self._tiers = tiers
        self._fixed = fixed
        self._nbytes = nbytes
        self._weighs = nbytes is None
        self._next = 0 if fixed else -1
        self._upto = 0
        self._seen = 0
        self._in_vain = 0
        self._flights: dict[int, Flight] = {}

    def touch(self, index: int) -> Flight | None:
        """A chunk is about to be asked for: start those behind it, if it looks as if they were next.

        Returns: the load of this one, if it was started and has not ended.
        """
        if self._fixed == 0:
            return self._flights.pop(index, None) if self._flights else None
        in_order, self._next = index == self._next, index + 1
        flight = self._flights.pop(index, None)
        if flight is not None and flight.done:
            self._judge(flight)
            flight = None
        if not in_order:
            self._flights.clear()
            self._upto = 0
            if self._fixed is None:
                self.window = 0
                return flight
        elif self._fixed is None:
            if not self.window:
                self.window = FIRST
            elif flight is not None:
                self.window = min(MOST, 2 * self.window)
        self._go(index)
        return flight

    def failed(self, flight: Flight | None) -> bool:
        """A chunk could not be had. Whether who asked should try itself: what failed was started here, in a thread
        that perhaps cannot load it (a connection that belongs to another one)."""
        if flight is None or flight.error is None:
            return False
        self._judge(flight)
        return True

    def _judge(self, flight: Flight) -> None:
        """After three loads in a row that failed, no more are started."""
        self._in_vain = self._in_vain + 1 if flight.error is not None else 0
        if self._in_vain >= PATIENCE:
            self._fixed = self.window = 0

    def saw(self, value: Any) -> None:
        """A chunk that was given; weighed now and then while reading goes on in order."""
        if self._weighs and self._fixed != 0:
            if self._seen % WEIGH_EVERY == 0:
                self._nbytes = weigh(value)
            self._seen += 1

    def _go(self, index: int) -> None:
        room = self.window
        if self._nbytes:
            room = min(room, self._tiers.budget // SHARE // self._nbytes)
        for number in range(max(self._upto, index + 1), index + 1 + room):
            if not self._tiers.may_speculate:
                return
            try:
                flight = self._start(number)
            except ClosedError:
                return  # who asks next is told
            if flight is None:
                return
            self._upto = number + 1
            self._flights[number] = flight
