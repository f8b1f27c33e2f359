"""The first item of an `imap` runs in a thread of its own, so that a long one is seen while it still runs.

Quick ones cost a tenth of a millisecond more, once; of long ones it is known after a few milliseconds whether they
compute or wait and whether they let other threads run, and the second item need not wait for the first.
"""

from __future__ import annotations

import time
from typing import Any

from lazystore.parallel.scheduling.fleet import Fleet
from lazystore.parallel.workers.thread_backend import ThreadBackend
from lazystore.parallel.workers.work_clock import Watch

__all__ = ["FirstCall"]


class FirstCall:
    """One item under way in one thread.

    Parameters:
        fleet: of one thread; its reports go where all go.
        items: the item.
        first: its number.
    """

    def __init__(self, fleet: Fleet, items: list[Any], first: int) -> None:
        self.fleet = fleet
        backend = fleet.backend
        assert isinstance(backend, ThreadBackend)
        backend.start(1)
        fleet.add(items, first)
        fleet.feed(new=False)
        self._thread = backend.threads[0]
        self._began = time.perf_counter(), time.process_time()
        self._watch: Watch | None = None  # most first items are over before anybody looks
        #: whether it was looked at while it ran
        self.seen = False

    def over(self, timeout: float) -> bool:
        """Whether it is done, after ``timeout`` seconds at most."""
        self.fleet.collect(timeout)
        return not self.fleet.busy

    def taken(self) -> tuple[float, float]:
        """Seconds it took in the end, and the share of them that it computed."""
        run_s = self.fleet.done_s
        return run_s, self.fleet.computed_s / run_s if run_s > 0 else 1.0

    def look(self) -> tuple[float, float]:
        """Seconds it has worked or waited so far, and the share of them that it computed."""
        self.seen = True
        if self._watch is None:
            self._watch = Watch(self._thread, self._began)
        return self._watch.look()

    @property
    def sure(self) -> bool:
        """Whether that share can be relied on."""
        return self._watch is not None and self._watch.sure
