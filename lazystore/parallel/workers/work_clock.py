"""How long a thread was kept from running by others: what a busy machine adds to every time that is taken.

A clock on the wall says that a function took 30 ms when it took 8 and waited 22 for a processor. Judging functions by
that would take those that compute for sleepers, and those that are quick for slow ones.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

__all__ = ["Watch", "run_delay"]

#: Linux: "nanoseconds of computing, nanoseconds of waiting for a processor, turns" of a thread
_SCHEDSTAT: Final = "/proc/{}/schedstat"
#: looks at a thread that show it runnable, though it has not computed much, until that is no coincidence
SURE: Final = 3


class _Schedstat:
    """An open file about one thread."""

    def __init__(self, thread: str) -> None:
        self.process = os.getpid()
        try:
            self._file = os.open(_SCHEDSTAT.format(thread), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not Linux, or a kernel that does not count
            self._file = -1

    def delay(self) -> float:
        if self._file < 0:
            return 0.0
        try:
            return int(os.pread(self._file, 96, 0).split(b" ", 2)[1]) * 1e-9
        except (OSError, IndexError, ValueError):  # the thread has ended
            return 0.0

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class _Own(threading.local):
    stat: _Schedstat | None = None


_own = _Own()


def run_delay() -> float:
    """Seconds the calling thread could have run so far but had no processor; always 0.0 where the system does not tell.

    0.9 us. Each thread keeps a file open until it ends.
    """
    stat = _own.stat
    if stat is None or stat.process != os.getpid():  # a child of fork would read its parent's
        stat = _own.stat = _Schedstat("thread-self")
    return stat.delay()


class Watch:
    """Looks at another thread of this process while it works.

    Parameters:
        thread: has been started.
        began: when, by ``time.perf_counter`` and ``time.process_time``; it has done next to nothing before.
    """

    def __init__(self, thread: threading.Thread, began: tuple[float, float]) -> None:
        assert thread.ident is not None
        self._stat = _Schedstat(f"self/task/{thread.native_id}")
        self._clock = time.pthread_getcpuclockid(thread.ident) if hasattr(time, "pthread_getcpuclockid") else None
        self._state = f"/proc/self/task/{thread.native_id}/stat"
        self._looks = self._runnable = 0
        #: whether the last look is to be relied on
        self.sure = False
        self._began, self._process_before = began

    def _computed(self) -> float:
        if self._clock is not None:
            return time.clock_gettime(self._clock)
        return time.process_time() - self._process_before

    def look(self) -> tuple[float, float]:
        """Seconds since the beginning without those it had no processor, and the share of them that it computed.

        Only while the thread is alive.
        """
        computed = self._computed()
        self._looks += 1
        self._runnable += self._is_runnable()
        own = max(time.perf_counter() - self._began - self._stat.delay(), computed, 1e-9)
        # what it waits for a processor at this moment is not in its delay yet
        by_state = self._runnable / self._looks
        # a thread that waits is runnable too, for the moment in which it wakes up
        self.sure = self._looks >= SURE or computed / own > 0.5 or by_state < 0.5
        return own, min(1.0, max(computed / own, by_state))

    def _is_runnable(self) -> bool:
        try:
            with open(self._state, "rb") as file:
                return file.read().rpartition(b") ")[2][:1] == b"R"
        except OSError:  # not Linux, or it has ended
            return False
