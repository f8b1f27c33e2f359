"""What time it is, for everything that expires or waits: one object, so that tests can put a still one in its place.

Spans inside a process are measured by the monotonic clock; the wall clock is only for what other processes, and
this one after a restart, must understand (the disk tier). What sets a fake time is in ``lazystore.testing``.
"""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """The machine's clocks.

    Threads: any. Fork, spawn, pickle: it has no state.
    """

    __slots__ = ()

    #: Whether :meth:`monotonic_ns` is CLOCK_MONOTONIC itself, which C code can read without a call.
    real = True

    def monotonic(self) -> float:
        """Seconds since some moment, never going back."""
        return self.monotonic_ns() / 1e9

    def monotonic_ns(self) -> int:
        """The same in nanoseconds."""
        return time.monotonic_ns()

    def time(self) -> float:
        """Seconds since 1970 by the wall clock, which may be set back."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Hold this thread up."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Hold this task up, not its loop."""
        import asyncio

        await asyncio.sleep(seconds)
