"""One thread that reads ahead for a local source, and the errands it is given.

Which bytes those are, and how they are checked, is the source's business (``local.py``).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lazystore.errors import FetchError
from lazystore.fetch.flight import Outcome, Wave

__all__ = ["Errand", "ErrandFlight", "ReadAhead", "Runnable"]

#: Bytes of one system call: as long as one takes, calling an errand off may have to wait.
PIECE = 4 << 20
#: Seconds to wait for the thread at closing; one that is stuck in a system call is left to itself.
JOIN_S = 2.0


class Errand:
    """One flight's reads, to be done by another thread.

    Args:
        work: does it with the ``preadv`` it is handed, and returns the sizes asked for.
    """

    __slots__ = ("_lock", "_work", "live", "outcome")

    def __init__(self, outcome: Outcome, work: Callable[[Callable[..., int]], Mapping[str, int]]) -> None:
        self.outcome = outcome
        self.live = True
        self._work = work
        self._lock = threading.Lock()

    def run(self) -> None:
        """Do it and tell the outcome."""
        if not self.live:
            self.outcome.settle(error=_called_off())
            return
        try:
            sizes = self._work(self._pread)
        except Exception as error:  # noqa: BLE001 - raised where the flight's result is asked for
            self.outcome.settle(error=error)
        else:
            self.outcome.settle(sizes)

    def take_back(self) -> None:
        """After this returns no byte is written into its buffers."""
        self.live = False
        with self._lock:
            pass  # the piece that was being read is complete

    def abandon(self, error: BaseException) -> None:
        self.take_back()
        self.outcome.settle(error=error)

    def _pread(self, fd: int, views: list[memoryview], position: int) -> int:
        with self._lock:
            if not self.live:
                raise _called_off()
            return os.preadv(fd, _at_most(views, PIECE), position)


class ErrandFlight(Wave):
    """The caller's end of an errand; forgotten unfinished, it is cancelled."""

    __slots__ = ("_errand",)

    def __init__(self, outcome: Outcome, url: str, timeout: float, errand: Errand) -> None:
        super().__init__(outcome, url, timeout)
        self._errand = errand

    def _take_back(self) -> None:
        self._errand.take_back()

    def __del__(self) -> None:
        # Without the lock: at any moment in any thread. The errand's own views outlive the piece being read.
        self._errand.live = False


class Runnable(Protocol):
    """What the thread is given: it tells its own outcome and raises nothing."""

    def run(self) -> None: ...


class ReadAhead:
    """A daemon thread that does errands one after the other; it starts with the first.

    Threads: any may call. Fork: the child starts anew, without the parent's errands.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._errands: deque[Runnable] = deque()
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, errand: Runnable, *, urgent: bool = False) -> None:
        """Hand over an errand; an urgent one is done before all that wait."""
        if self._pid != os.getpid():
            self.__init__()  # type: ignore[misc]
        with self._turn:
            (self._errands.appendleft if urgent else self._errands.append)(errand)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="lazystore-readahead", daemon=True)
                self._thread.start()
            self._turn.notify()

    def close(self, *, join: bool = True) -> None:
        """End the thread once it did what waits, and join it."""
        if self._pid != os.getpid():
            return  # its thread and its lock's holder stayed with the parent
        with self._turn:
            self._closed = True
            thread, self._thread = self._thread, None
            self._turn.notify()
        if join and thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def _work(self) -> None:
        while (errand := self._next()) is not None:
            errand.run()
            del errand  # an idle thread holds no buffers

    def _next(self) -> Runnable | None:
        with self._turn:
            while not self._errands and not self._closed:
                self._turn.wait()
            return self._errands.popleft() if self._errands else None


def _at_most(views: list[memoryview], length: int) -> list[Any]:
    """The first of these buffers, ``length`` bytes of them in all."""
    first = []
    for view in views:
        if len(view) >= length:
            first.append(view[:length])
            break
        first.append(view)
        length -= len(view)
    return first


def _called_off() -> FetchError:
    return FetchError("the read was cancelled")
