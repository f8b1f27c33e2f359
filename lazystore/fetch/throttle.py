"""How many requests a storage is asked for at once: more while that brings more bytes, half when it pushes back.

By Little's law latency times throughput are under way when a link is full. Neither is known beforehand, so the
number grows until throughput does not. Nothing here waits or sends (``flow.py``, ``engine.py``); the clock is
handed in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

__all__ = ["SMALL_BYTES", "HedgeAllowance", "Throttle"]

#: Requests below this many bytes hardly load a link: only the number of slots bounds them.
SMALL_BYTES = 64 << 10
#: Big requests at once to begin with, and whatever happens.
FIRST = 16
FEWEST = 2
#: Requests of any size at once, however much the storage pushes back.
FEWEST_LANES = 8
#: How much faster a generation must be for its number of requests to have been worth it.
GAIN = 1.1
#: Generations in a row without that before the climb ends.
FLAT = 2
#: How far the number may go on growing, slowly, beyond that which sufficed for the best throughput.
HEADROOM = 2
#: The last so many answers are judged; so many refusals, and this share of them, are a push-back. Less is the
#: ordinary bad luck of single requests, which waiting before their next attempt cures.
JUDGED = 64
REFUSALS = 6
SHARE = 0.25

#: Second requests for the same, and their bytes, as a share of all those sent so far.
HEDGE_SHARE = 0.02
#: Requests that may be doubled before that share allows one.
HEDGE_FREE = 2


class Throttle:
    """The bounds of one link; belongs to its event loop.

    Args:
        slots: requests at once, ever.
        clock: monotonic seconds.

    Attributes:
        lanes: requests of any size at once; below ``slots`` only after push-backs.
        limit: big requests at once.
        backoffs: times both were halved.

    A generation is as many big answers as there may be at once. While requests wait for their turn the limit
    grows by one with every big answer, so it doubles with each generation, until one is not faster than the
    best before; from then on, and after a push-back, it grows by one a generation.
    """

    __slots__ = (
        *("_best", "_bytes", "_ceiling", "_climbing", "_clock", "_enough", "_flat", "_left", "_recent", "_size"),
        *("_started", "_steady", "_under_way", "_wanting", "backoffs", "lanes", "limit", "slots"),
    )

    def __init__(self, slots: int, clock: Callable[[], float]) -> None:
        self.slots = slots
        self.lanes = slots
        self.limit = min(FIRST, slots)
        self.backoffs = 0
        self._clock = clock
        self._under_way = 0
        self._wanting = False
        self._climbing = True
        self._ceiling = slots
        self._best = 0.0
        self._enough = self.limit
        self._flat = 0
        self._steady = 0
        self._recent: deque[bool] = deque(maxlen=JUDGED)
        self._begin()

    def full(self) -> bool:
        """Whether another big request has to wait."""
        return self._under_way >= self.limit

    def pressed(self) -> bool:
        """Whether refusals are so many, or a push-back so recent, that they are more than bad luck."""
        return sum(self._recent) > SHARE * len(self._recent) or (self.backoffs > 0 and len(self._recent) < JUDGED)

    def wanted(self) -> None:
        """A big request waits because of :meth:`full`."""
        self._wanting = True

    def entered(self, weight: int) -> None:
        """A request of so many bytes is sent."""
        if weight >= SMALL_BYTES:
            if not self._under_way:
                self._begin()  # a pause is not slowness
            self._under_way += 1

    def left(self, weight: int) -> None:
        """It ended, well or not."""
        if weight >= SMALL_BYTES:
            self._under_way -= 1

    def served(self, weight: int) -> None:
        """A request got all its bytes."""
        self._recent.append(False)
        self._steady += 1
        if self.lanes < self.slots and self._steady >= self.lanes:
            self._steady = 0
            self.lanes = min(self.slots, self.lanes + max(1, self.lanes // 8))
        if weight < SMALL_BYTES:
            return
        self._bytes += weight
        if self._climbing and self._wanting:
            self.limit = min(self._ceiling, self.limit + 1)
        self._left -= 1
        if self._left <= 0:
            self._judge()
            self._begin()

    def refused(self) -> None:
        """A request was turned away for now, timed out or fell silent."""
        recent = self._recent
        recent.append(True)
        refusals = sum(recent)
        if refusals < REFUSALS or refusals <= SHARE * len(recent):
            return
        recent.clear()
        self.backoffs += 1
        self.limit = max(FEWEST, self.limit // 2)
        self.lanes = max(min(FEWEST_LANES, self.slots), self.lanes // 2)
        self._climbing = False
        self._ceiling = self.slots
        self._steady = 0
        self._begin()

    def _begin(self) -> None:
        self._left = self._size = self.limit
        self._started = self._clock()
        self._bytes = 0
        self._wanting = False

    def _judge(self) -> None:
        """A generation is complete."""
        if not self._wanting:
            return
        if not self._climbing:
            self.limit = min(self._ceiling, self.limit + 1)
            return
        elapsed = self._clock() - self._started
        rate = self._bytes / elapsed if elapsed > 0 else math.inf
        if rate > GAIN * self._best:
            self._best, self._enough, self._flat = rate, self._size, 0
            return
        self._flat += 1
        if self._flat >= FLAT:
            self._climbing = False
            self.limit = self._enough
            self._ceiling = min(self.slots, HEADROOM * self._enough)


class HedgeAllowance:
    """How many requests may be doubled; counts what was sent. Belongs to one event loop."""

    __slots__ = ("_bytes", "_hedged_bytes", "_hedges", "_requests")

    def __init__(self) -> None:
        self._requests = self._bytes = self._hedges = self._hedged_bytes = 0

    def sent(self, weight: int) -> None:
        """An ordinary request for so many bytes was sent."""
        self._requests += 1
        self._bytes += weight

    def allows(self, weight: int) -> bool:
        """Whether a request for so many bytes may be doubled now."""
        requests, bytes_ = self._hedges + 1, self._hedged_bytes + weight
        return requests <= HEDGE_FREE + HEDGE_SHARE * self._requests and (
            bytes_ <= HEDGE_FREE * weight + HEDGE_SHARE * self._bytes
        )

    def spend(self, weight: int) -> None:
        """One was doubled."""
        self._hedges += 1
        self._hedged_bytes += weight
