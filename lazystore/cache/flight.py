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
        self._condition = threading.Condition()

    def announce(self) -> None:
        """Something landed, or was given up."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, deadline: Deadline) -> None:
        """Return when something was announced, after a short while, or at the deadline."""
        with self._condition:
            self._condition.wait(min(POLL, deadline.left()))

    def reset(self) -> None:
        """Forget waiters that do not exist in a forked child."""
        self._condition = threading.Condition()
