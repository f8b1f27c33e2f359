"""A clock that stands still until it is told to go on: for tests of whatever expires, waits or tries again."""

from __future__ import annotations

import threading

from lazystore.cache.clock import Clock
from lazystore.errors import ConfigError

__all__ = ["FakeClock"]


class FakeClock(Clock):
    """Time by hand: ``LazyStore(..., clock=FakeClock())`` lets a test of an hour's TTL end at once.

    Parameters:
        start: what the monotonic clock shows first, in seconds.
        wall: what the wall clock shows first, in seconds since 1970.

    ``sleep`` returns at once and moves the clock on by what it was asked to sleep.
    Threads: any number read and advance. Fork: the child has a clock of its own. Pickle: with the time it shows.
    """

    __slots__ = ("_lock", "_now_ns", "_wall")

    real = False

    def __init__(self, start: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._now_ns = round(start * 1e9)
        self._wall = wall
        self._lock = threading.Lock()

    def monotonic_ns(self) -> int:
        return self._now_ns

    def time(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks.

        Raises:
            ConfigError: ``seconds`` is negative; a monotonic clock never goes back.
        """
        if not seconds >= 0:
            raise ConfigError(f"seconds={seconds!r} must not be negative: set the wall clock back with set_wall()")
        with self._lock:
            self._now_ns += round(seconds * 1e9)
            self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """Set the wall clock alone, as an administrator or a time server does; it may go back."""
        with self._lock:
            self._wall = wall

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    async def asleep(self, seconds: float) -> None:
        import asyncio

        self.advance(seconds)
        await asyncio.sleep(0)  # a task that waits lets others run

    def __reduce__(self) -> tuple[type[FakeClock], tuple[float, float]]:
        return type(self), (self._now_ns / 1e9, self._wall)
