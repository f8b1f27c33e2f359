"""What may be under way at once (Gate), and for how long it may be silent (Watch).

Both live on one event loop and hold no data.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from lazystore.fetch.source import FetchCounters
from lazystore.fetch.throttle import SMALL_BYTES, Throttle

__all__ = ["Gate", "Watch"]

#: A timer that fires this many seconds late says that the loop was starved (a long call held the GIL),
#: not that the server was silent: answers may lie in the socket unread.
LAG_S = 0.1
#: Seconds between two looks at a request.
CHECK_S = 0.05
#: Seconds between finding a request silent for too long and giving it up.
SECOND_LOOK_S = 0.02

#: Tells the seconds of silence that are borne, given whether anything was heard yet.
Allowance = Callable[[bool], float]


#: Bytes wanted, what is awaited for them, and the number of the waiter.
_Turn = tuple[int, "asyncio.Future[None]", int]


class Gate:
    """Admits requests while their number and their bytes stay within bounds, and the throttle lets them.

    First come, first served, with two exceptions: those in a hurry pass all others that wait, and the throttle;
    small ones pass big ones that wait for nothing but the throttle.

    Args:
        slots: requests at once.
        room: bytes at once; no single weight may exceed it.
        counters: where bytes in flight and their peak are kept.
        throttle: how many are wise; one of its own without.
    """

    __slots__ = ("_big", "_busy", "_counters", "_number", "_room", "_small", "_urgent", "room", "throttle")

    def __init__(self, slots: int, room: int, counters: FetchCounters, throttle: Throttle | None = None) -> None:
        self.throttle = throttle or Throttle(slots, time.monotonic)
        self._busy = 0
        self._room = room
        self._counters = counters
        self._urgent: deque[_Turn] = deque()
        self._small: deque[_Turn] = deque()
        self._big: deque[_Turn] = deque()
        self._number = 0
        self.room = room

    async def enter(self, weight: int, urgent: bool = False) -> None:
        """Wait for a slot and ``weight`` bytes of room; pair with :meth:`leave`."""
        line = self._urgent if urgent else self._small if weight < SMALL_BYTES else self._big
        if self._passes(line, weight):
            self._take(weight)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        entry = (weight, turn, self._number)
        line.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(weight)  # admitted and cancelled in the same breath
            else:
                if entry in line:  # else it was cleared away meanwhile
                    line.remove(entry)
                self._admit()  # those behind a heavy waiter may fit now
            raise

    def slip_in(self, weight: int) -> bool:
        """Take a slot and room if nobody waits for them; pair with :meth:`leave` if so."""
        if self._urgent or self._small or not self._fits(weight) or (self._big and not self.throttle.full()):
            return False
        self._take(weight)
        return True

    def ease(self, nbytes: int) -> None:
        """Bytes of a request have landed: others may be sent for, before that request has ended.

        So requests that were sent together do not end together and leave the link idle for a round trip.
        """
        self._room += nbytes
        self._counters.in_flight_bytes -= nbytes
        self._admit()

    def leave(self, weight: int, eased: int = 0) -> None:
        """Give back what :meth:`enter` took, less what was given back by :meth:`ease`."""
        self._busy -= 1
        self._room += weight - eased
        self._counters.in_flight_bytes -= weight - eased
        self.throttle.left(weight)
        self._admit()

    def _fits(self, weight: int) -> bool:
        return self._busy < self.throttle.lanes and weight <= self._room

    def _passes(self, line: deque[_Turn], weight: int) -> bool:
        """Whether a newcomer need not wait."""
        if not self._fits(weight) or self._urgent:
            return False
        if line is self._urgent:
            return True
        full = self.throttle.full()
        if line is self._small:
            return not self._small and (full or not self._big)
        if full:
            self.throttle.wanted()
        return not (full or self._small or self._big)

    def _take(self, weight: int) -> None:
        counters = self._counters
        self._busy += 1
        self._room -= weight
        self.throttle.entered(weight)
        counters.in_flight_bytes += weight
        if counters.in_flight_bytes > counters.in_flight_peak:
            counters.in_flight_peak = counters.in_flight_bytes

    def _admit(self) -> None:
        while (line := self._first()) is not None:
            weight, turn, _ = line[0]
            if turn.cancelled():
                line.popleft()
                continue
            if not self._fits(weight):
                return
            line.popleft()
            self._take(weight)
            turn.set_result(None)

    def _first(self) -> deque[_Turn] | None:
        """The line whose head is next; None if nobody may go."""
        if self._urgent:
            return self._urgent
        small, big = self._small, self._big
        if big and self.throttle.full():
            self.throttle.wanted()
            return small or None
        if small and big:
            return small if small[0][2] < big[0][2] else big
        return small or big or None


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

    __slots__ = (
        *("_allowed", "_barked", "_extra", "_handle", "_heard", "_loop", "_nudge", "_second", "_task"),
        *("first", "lull", "overtaken", "silence", "started"),
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = asyncio.current_task()
        self._handle: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._allowed: Allowance = _never
        self._nudge: Callable[[float], bool] | None = None
        self._extra = 0.0
        self._barked = False
        self._second = False
        #: Whether another request took this one's place, which was cancelled therefore.
        self.overtaken = False
        self.started = 0.0
        #: Seconds from the start to the first sign of life; 0.0 while there was none.
        self.first = 0.0
        #: The longest silence after it, in seconds.
        self.lull = 0.0
        #: The silence that made it bark, in seconds.
        self.silence = 0.0

    def start(self, allowed: float | Allowance, nudge: Callable[[float], bool] | None = None) -> None:
        """Begin to watch.

        Args:
            allowed: seconds of silence that are borne; or a function that tells them, asked now and then with
                whether anything was heard yet.
            nudge: called every CHECK_S with the seconds of silence while nothing was heard at all, until it
                returns True.
        """
        self.started = self._heard = self._loop.time()
        self.first = self.lull = 0.0
        self._allowed = allowed if callable(allowed) else lambda heard: allowed
        self._nudge = nudge
        self._extra = 0.0
        self._barked = self._second = self.overtaken = False
        self._arm(self._heard + self._allowed(False))

    def feed(self, extra: float = 0.0) -> None:
        """Something was heard; the next silence may last ``extra`` seconds longer than the allowance."""
        now = self._loop.time()
        if not self.first:
            self.first = now - self.started
        elif now - self._heard > self.lull:
            self.lull = now - self._heard
        self._heard = now
        self._extra = extra

    def overtake(self, started: float) -> None:
        """Another request for the same, sent at ``started``, was faster: cancel this task's."""
        self.overtaken = True
        self.first = self._loop.time() - started
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Cease to watch."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._nudge, self._allowed = None, _never  # they know the job, which knows us, and holds the caller's buffers
        if self._task is None:
            return
        if self._barked:
            self._barked = False  # the request turned our cancellation into something else
            self._task.uncancel()
        if self.overtaken:
            self.overtaken = False
            self._task.uncancel()

    def barked(self) -> bool:
        """Whether the cancellation just caught is this watch's own, and no other is pending."""
        if not self._barked or self._task is None:
            return False
        self._barked = False
        return self._task.uncancel() <= 0

    def gave_way(self) -> bool:
        """The same, when it was cancelled by :meth:`overtake`."""
        if not self.overtaken or self._task is None:
            return False
        self.overtaken = False
        return self._task.uncancel() <= 0

    def _arm(self, due: float) -> None:
        self._handle = self._loop.call_at(min(due, self._loop.time() + CHECK_S), self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        handle = self._handle
        if handle is None or self._task is None:
            return
        if now - handle.when() > LAG_S:
            self._heard = now
        due = self._heard + self._allowed(self.first > 0) + self._extra
        if now < due:
            self._second = False
            if not self.first and self._nudge is not None and self._nudge(now - self._heard):
                self._nudge = None
            self._arm(due)
        elif not self._second:
            self._second = True  # what the socket holds by now gets a chance to be read
            self._handle = self._loop.call_at(now + SECOND_LOOK_S, self._expire)
        else:
            self._handle = None
            self._barked = True
            self.silence = now - self._heard
            self._task.cancel()


def _never(heard: bool) -> float:
    return math.inf
