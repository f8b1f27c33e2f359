"""Jobs, and the order in which they run: a queue of two classes, with priorities that grow with waiting.

Threads and locks are ``workers.py``'s.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Hashable
from typing import Any, Protocol

__all__ = ["CANCELLED", "DONE", "QUEUED", "RUNNING", "TAU_S", "Job", "JobQueue"]

#: Seconds of waiting that are worth one step of priority: nothing waits for ever behind what came later.
TAU_S = 5.0
#: Entries of cancelled and promoted jobs that may stay in a heap before it is built anew (and at most half of it).
SLACK = 32

QUEUED, RUNNING, DONE, CANCELLED = "queued", "running", "done", "cancelled"


class Keeper(Protocol):
    """Whoever has a job in its queue."""

    def cancel(self, job: Job) -> bool: ...

    def promote(self, job: Job, priority: float, demand: bool) -> bool: ...


class Job:
    """A function that waits for a thread, or runs, or has run. Made by :meth:`~lazystore.cache.workers.Workers.submit`.

    Threads: any may call anything. Fork: cancelled in the child. Pickling: none.
    """

    __slots__ = ("_dropped", "_func", "_keeper", "_since", "_step", "demand", "key", "priority", "state")

    def __init__(
        self,
        keeper: Keeper | None,
        func: Callable[[], object],
        *,
        key: Hashable | None = None,
        priority: float = 0.0,
        demand: bool = False,
        dropped: Callable[[], object] | None = None,
    ) -> None:
        self._keeper = keeper
        self._func: Callable[[], object] | None = func
        self._dropped = dropped
        self._since = 0.0  # when it was queued; kept by a promotion, so that the wait goes on counting
        self._step: list[Any] = []  # its live entry in a heap; another entry of this job there is a dead one
        self.key = key
        #: Higher runs sooner.
        self.priority = priority
        #: Somebody waits for it: it passes all that nobody waits for.
        self.demand = demand
        #: ``"queued"``, ``"running"``, ``"done"`` or ``"cancelled"``.
        self.state = QUEUED

    @property
    def done(self) -> bool:
        """It has run, or never will."""
        return self.state in (DONE, CANCELLED)

    def cancel(self) -> bool:
        """Take it from the queue, for everybody it was merged for; its ``dropped`` is called here.

        Returns: whether it was still queued. A job that runs is not interrupted. Cost: O(1).
        """
        keeper = self._keeper
        return keeper is not None and keeper.cancel(self)

    def promote(self, priority: float | None = None, *, demand: bool = False) -> bool:
        """Raise its priority, or its class; never lowers either. The time it waited keeps counting.

        Parameters:
            priority: at least this one from now on. None: as it is.
            demand: somebody waits for it now.

        Returns: whether it was still queued. Raises :class:`ConfigError` for NaN. Cost: O(log n).
        """
        keeper = self._keeper
        return keeper is not None and keeper.promote(self, self.priority if priority is None else priority, demand)

    def __repr__(self) -> str:
        kind = "demand" if self.demand else "speculative"
        return f"<Job {self.state}, {kind}, priority {self.priority:g}, key {self.key!r}>"


class JobQueue:
    """Jobs in the order in which they shall run. Not locked: whoever has it does that.

    Demand goes before the rest; within a class the greatest ``priority + wait / tau`` is next, and the oldest of
    equals. All waits grow alike, so the order of two jobs never changes: ``since - priority * tau`` sorts them once.

    Parameters:
        tau: seconds of waiting that are worth one step of priority.
        clock: seconds, monotonic.
    """

    def __init__(self, tau: float = TAU_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._tau = tau
        self._clock = clock
        self._heaps: tuple[list[list[Any]], list[list[Any]]] = ([], [])  # speculative, demand: [order, number, job]
        self._live = [0, 0]
        self._by_key: dict[Hashable, Job] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._live[0] + self._live[1]

    def waiting(self, demand: bool) -> int:
        """How many jobs of a class are queued."""
        return self._live[demand]

    def jobs(self) -> list[Job]:
        """What is queued, in no order."""
        return [step[2] for heap in self._heaps for step in heap if step[2] is not None]

    def find(self, key: Hashable | None) -> Job | None:
        """The queued job of a key."""
        return None if key is None else self._by_key.get(key)

    def push(self, job: Job) -> None:
        if job.key is not None:
            self._by_key[job.key] = job
        job._since = self._clock()
        self._count += 1
        self._enter(job, self._count)

    def _enter(self, job: Job, number: int) -> None:
        job._step = [job._since - job.priority * self._tau, number, job]
        heapq.heappush(self._heaps[job.demand], job._step)
        self._live[job.demand] += 1

    def promote(self, job: Job, priority: float, demand: bool) -> bool:
        """Raise a queued job; False where it stands as high already."""
        if priority <= job.priority and (job.demand or not demand):
            return False
        number = job._step[1]
        self._leave(job)
        job.priority = max(job.priority, priority)
        job.demand = job.demand or demand
        self._enter(job, number)
        return True

    def drop(self, job: Job) -> None:
        """Take a queued job out."""
        self._forget_key(job)
        self._leave(job)

    def _leave(self, job: Job) -> None:
        job._step[2] = None  # the entry stays, dead: a heap has no cheap removal
        self._live[job.demand] -= 1
        heap = self._heaps[job.demand]
        if len(heap) > 2 * self._live[job.demand] + SLACK:
            heap[:] = [step for step in heap if step[2] is not None]
            heapq.heapify(heap)

    def pop(self, speculative: bool = True) -> Job | None:
        """The next job; only one of demand unless ``speculative``. None: there is none."""
        for demand in (1, 0) if speculative else (1,):
            heap = self._heaps[demand]
            while heap:
                job: Job | None = heapq.heappop(heap)[2]
                if job is not None:
                    self._live[demand] -= 1
                    self._forget_key(job)
                    return job
        return None

    def _forget_key(self, job: Job) -> None:
        if job.key is not None:
            self._by_key.pop(job.key, None)
