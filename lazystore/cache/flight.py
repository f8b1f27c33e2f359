"""Waiting for bytes that somebody else is fetching.

The frame arena says *that* a part is being filled; this says *when* something changed.
One condition a memory: fills are rare next to reads, and a woken waiter looks again.
"""

from __future__ import annotations

import threading
import time

__all__ = ["Arrivals", "Deadline"]

#: Seconds between looks when nobody announces anything: a lease that is dropped tells no one.
POLL = 0.02


class Deadline:
    """A point in time that a whole operation, retries included, must not pass.

    Parameters:
        timeout: seconds from now.
    """

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    def left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        return time.monotonic() >= self._end


class Arrivals:
    """Tells waiters that a fill has ended, well or badly.

    Threads: any number wait and announce. Fork: :meth:`reset` in the child. Pickling: none.
    """

    def __init__(self) -> None:
        # Re-entrant: a finalizer may announce in the very thread that is announcing.
        self._condition = threading.Condition(threading.RLock())
        self._count = 0

    @property
    def count(self) -> int:
        """Announcements so far. Read it before looking, and hand it to :meth:`wait`: nothing is missed then."""
        return self._count

    def announce(self) -> None:
        """Something landed, or was given up."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, deadline: Deadline, seen: int = -1) -> None:
        """Return when something was announced (since ``seen``), after a short while, or at the deadline."""
        with self._condition:
            if seen in (-1, self._count):
                self._condition.wait(min(POLL, deadline.left()))

    def reset(self) -> None:
        """Forget waiters that do not exist in a forked child."""
        self._condition = threading.Condition(threading.RLock())
