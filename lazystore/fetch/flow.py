"""What may be under way at once (Gate), and for how long it may be silent (Watch).

Both live on one event loop and hold no data.
"""

from __future__ import annotations

import asyncio
from collections import deque

from lazystore.fetch.source import FetchCounters

__all__ = ["Gate", "Watch"]

#: A timer that fires this many seconds late says that the loop was starved (a long call held the GIL),
#: not that the server was silent: answers may lie in the socket unread.
LAG_S = 0.1


class Gate:
    """Admits requests while both their number and their bytes stay within bounds.

    First come, first served, but those in a hurry before all others that wait.

    Args:
        slots: requests at once.
        room: bytes at once; no single weight may exceed it.
        counters: where bytes in flight and their peak are kept.
    """

    __slots__ = ("_counters", "_room", "_slots", "_urgent", "_waiting", "room")

    def __init__(self, slots: int, room: int, counters: FetchCounters) -> None:
        self._slots = slots
        self._room = room
        self._counters = counters
        self._waiting: deque[_Turn] = deque()
        self._urgent: deque[_Turn] = deque()
        self.room = room

    async def enter(self, weight: int, urgent: bool = False) -> None:
        """Wait for a slot and ``weight`` bytes of room; pair with :meth:`leave`."""
        line = self._urgent if urgent else self._waiting
        if not line and not self._urgent and self._slots > 0 and weight <= self._room:
            self._take(weight)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (weight, turn)
        line.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(weight)  # admitted and cancelled in the same breath
            else:
                line.remove(entry)
                self._admit()  # those behind a heavy waiter may fit now
            raise

    def leave(self, weight: int) -> None:
        """Give back what :meth:`enter` took."""
        self._slots += 1
        self._room += weight
        self._counters.in_flight_bytes -= weight
        self._admit()

    def _take(self, weight: int) -> None:
        counters = self._counters
        self._slots -= 1
        self._room -= weight
        counters.in_flight_bytes += weight
        if counters.in_flight_bytes > counters.in_flight_peak:
            counters.in_flight_peak = counters.in_flight_bytes

    def _admit(self) -> None:
        for line in (self._urgent, self._waiting):
            while line:
                weight, turn = line[0]
                if turn.cancelled():
                    line.popleft()
                    continue
                if self._slots <= 0 or weight > self._room:
                    return
                line.popleft()
                self._take(weight)
                turn.set_result(None)


#: Bytes wanted, and what is awaited for them.
_Turn = tuple[int, "asyncio.Future[None]"]


class Watch:
    """Cancels the current task when nothing is heard for too long.

    Unlike ``asyncio.timeout`` it is fed by progress at the cost of one clock reading, and forgives a
    timer that fires late because the whole loop was held up. Use::

        watch.start(seconds)
        try:
            await request        # calls watch.feed() as bytes arrive
        except asyncio.CancelledError:
            if not watch.barked():
                raise            # somebody else's cancellation
            ...                  # silent for too long
        finally:
            watch.stop()
    """

    __slots__ = ("_allowed", "_barked", "_extra", "_handle", "_heard", "_loop", "_task", "first", "started")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = asyncio.current_task()
        self._handle: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._allowed = 0.0
        self._extra = 0.0
        self._barked = False
        self.started = 0.0
        #: Seconds from the start to the first sign of life; 0.0 while there was none.
        self.first = 0.0

    def start(self, seconds: float) -> None:
        """Begin to watch; ``seconds`` of silence are allowed from now on."""
        self.started = self._heard = self._loop.time()
        self.first = 0.0
        self._allowed = seconds
        self._extra = 0.0
        self._barked = False
        self._handle = self._loop.call_at(self._heard + seconds, self._expire)

    def feed(self, extra: float = 0.0) -> None:
        """Something was heard; the next silence may last ``extra`` seconds longer than the allowance."""
        self._heard = now = self._loop.time()
        self._extra = extra
        if not self.first:
            self.first = now - self.started

    def stop(self) -> None:
        """Cease to watch."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._barked and self._task is not None:
            self._barked = False  # the request turned our cancellation into something else
            self._task.uncancel()

    def barked(self) -> bool:
        """Whether the cancellation just caught is this watch's own, and no other is pending."""
        if not self._barked or self._task is None:
            return False
        self._barked = False
        return self._task.uncancel() <= 0

    def _expire(self) -> None:
        now = self._loop.time()
        due = self._heard + self._allowed + self._extra
        handle = self._handle
        if handle is None or self._task is None:
            return
        if now < due:
            self._handle = self._loop.call_at(due, self._expire)
        elif now - handle.when() > LAG_S:
            self._heard = now
            self._handle = self._loop.call_at(now + self._allowed, self._expire)
        else:
            self._handle = None
            self._barked = True
            self._task.cancel()
