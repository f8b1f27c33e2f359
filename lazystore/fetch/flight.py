"""What ``start`` hands back: the outcome of one wave, waited for, called off or forgotten.

How bytes travel is not decided here; what a storage adds (taking its buffers back) is its own subclass'
business. Neither asyncio nor a storage client is imported: local files use this too.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

from lazystore.errors import FetchError, FetchTimeoutError
from lazystore.fetch.options import redact

__all__ = ["STUCK_S", "Outcome", "Wave", "finish"]

#: Seconds beyond its deadline that a result is waited for when whoever reads does not react at all.
STUCK_S = 5.0


class Outcome:
    """What became of a wave: settled once, by whichever thread comes first; holds no buffers."""

    __slots__ = ("_event", "_lock", "_on_done", "error", "sizes")

    def __init__(self, on_done: Callable[[], None] | None = None) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._on_done = on_done
        self.sizes: Mapping[str, int] = {}
        self.error: BaseException | None = None

    @property
    def settled(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float) -> bool:
        return self._event.wait(timeout)

    def settle(self, sizes: Mapping[str, int] | None = None, error: BaseException | None = None) -> bool:
        """Tell the end, unless it was told before; returns whether this call did."""
        with self._lock:
            if self._event.is_set():
                return False
            self.sizes, self.error = sizes or {}, error
            self._event.set()
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            try:
                on_done()
            except Exception:  # noqa: BLE001 - it must not end the thread that reads for everybody
                sys.excepthook(*sys.exc_info())
        return True


class Wave:
    """A :class:`lazystore.fetch.source.Flight`; see there. Nothing to call off when it is made settled.

    Args:
        url: whose bytes are read, for messages.
        timeout: seconds after which :meth:`result` stops waiting (and STUCK_S more).
    """

    __slots__ = ("__weakref__", "_pid", "_started", "_timeout", "_url", "outcome")

    def __init__(self, outcome: Outcome, url: str, timeout: float) -> None:
        self.outcome = outcome
        self._url = url
        self._timeout = timeout
        self._started = time.monotonic()
        self._pid = os.getpid()

    def done(self) -> bool:
        """Whether it ended, well or not; never waits."""
        return self.outcome.settled or self._pid != os.getpid()

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds; True once it ended. Raises nothing of the wave's."""
        return self.done() or self.outcome.wait(timeout)

    def result(self) -> dict[str, int]:
        """The sizes asked for, or the wave's error; waits for the end up to the wave's deadline."""
        if not self.done():
            self._may_wait()
            if not self.outcome.wait(self._remaining() + STUCK_S):
                self._end(self._stuck())
        error = self._lost() if self._astray() else self.outcome.error
        if error is None:
            return dict(self.outcome.sizes)
        try:
            raise error
        finally:
            del self, error  # the traceback must not keep the flight, which has the error, and its buffers

    def cancel(self) -> None:
        """End it now, if it has not ended: no byte is written into its buffers after this returns."""
        if not self.done():
            self._end(FetchError(f"reading {redact(self._url)!r} was cancelled"))

    def _end(self, error: FetchError) -> None:
        self._take_back()
        self.outcome.settle(error=error)
        self._halt()

    def _may_wait(self) -> None:
        """Raise where waiting would never end."""

    def _remaining(self) -> float:
        return max(0.0, self._started + self._timeout - time.monotonic())

    def _take_back(self) -> None:
        """Take the buffers away from whoever writes into them; any thread, must not wait for storage."""

    def _halt(self) -> None:
        """Stop what is still under way, without waiting for it."""

    def _stuck(self) -> FetchTimeoutError:
        return FetchTimeoutError(
            f"reading {redact(self._url)!r} did not end within {self._timeout:g} s: its thread does not react",
            elapsed=self._timeout,
        )

    def _astray(self) -> bool:
        """In a forked child: whoever was to end it has stayed with the parent."""
        return self._pid != os.getpid() and not self.outcome.settled

    def _lost(self) -> FetchError:
        return FetchError(f"reading {redact(self._url)!r} began before this process was forked: start it anew here")


def finish(wave: Wave) -> dict[str, int]:
    """Wait for a wave; an interrupted wait cancels it."""
    try:
        return wave.result()
    except BaseException:
        wave.cancel()
        raise
    finally:
        del wave
