"""The first item of an `imap` runs in a thread of its own, so that a long one is seen while it still runs.

Quick ones cost a tenth of a millisecond more, once; of long ones it is known after a few milliseconds whether they
compute or wait and whether they let other threads run, and the second item need not wait for the first.
"""

from __future__ import annotations

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
        self._watch = Watch(backend.threads[0])
        self._share = 1.0
        #: whether it was looked at while it ran
        self.seen = False

    def over(self, timeout: float) -> bool:
        """Whether it is done, after ``timeout`` seconds at most."""
        self.fleet.collect(timeout)
        return not self.fleet.busy

    def taken(self) -> tuple[float, float]:
        """Seconds it took in the end, and the share of them that it computed, as far as that was seen."""
        return self.fleet.done_s, self._share

    def look(self) -> tuple[float, float]:
        """Seconds it has worked or waited so far, and the share of them that it computed."""
        self.seen = True
        run_s, self._share = self._watch.look()
        return run_s, self._share
