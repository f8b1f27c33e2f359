"""A second request for bytes whose first one is slower to answer than most: whoever answers first lands them.

When that is worth it is told by ``retry.py`` (how slow is slow) and ``throttle.py`` (how often); the attempt
it belongs to is in ``engine.py``.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from lazystore.fetch.jobs import PartJob
from lazystore.fetch.link import Link
from lazystore.fetch.retry import Verdict, WireError
from lazystore.fetch.source import FetchCounters
from lazystore.fetch.wire import Identity

__all__ = ["Rival"]


class Rival:
    """The second request for a job whose first has shown no sign of life; it lands bytes once it has won.

    Both are checked alike. The first acceptable answer wins: the other request is cancelled at that moment and
    nothing of it lands any more.
    """

    __slots__ = ("_alone", "_begun", "_counters", "_job", "_lost", "_won", "error", "task")

    def __init__(self, link: Link, job: PartJob, counters: FetchCounters) -> None:
        self._job = job
        self._counters = counters
        self._begun = link.wire.loop.time()
        self._alone = self._lost = self._won = False
        self.error: BaseException | None = None
        self.task = link.wire.loop.create_task(self._run(link))
        link.calls.add(self.task)
        self.task.add_done_callback(functools.partial(self._ended, link))

    @classmethod
    def send(cls, link: Link, job: PartJob, counters: FetchCounters) -> bool:
        """Send one, if there is room and the allowance lets it."""
        if not link.hedges.allows(job.weight) or not link.gate.slip_in(job.weight):
            return False
        link.hedges.spend(job.weight)
        counters.requests += 1
        counters.extra["hedges"] += 1
        job.rival = cls(link, job, counters)
        return True

    def lose(self) -> None:
        """The first request has answered after all."""
        self._lost = True
        self.task.cancel()

    async def outcome(self) -> BaseException | None:
        """Wait for its end, the first request having ended; what went wrong, None if nothing did."""
        self._alone = True
        await self.task
        return self.error

    async def _run(self, link: Link) -> None:
        try:
            await self._job.attempt(link.wire, self)
        except Exception as error:  # noqa: BLE001 - judged as the attempt's own error, or of no interest
            self.error = error

    def _ended(self, link: Link, task: asyncio.Task[None]) -> None:
        link.calls.discard(task)
        link.gate.leave(self._job.weight)

    # --- as a Landing -----------------------------------------------------------------------------

    def answered(self, begin: int, end: int, identity: Identity | None) -> None:
        self._check()
        self._job.accept(begin, end, identity)
        self._win()

    def expect(self, length: int) -> None:
        if self._won:
            self._job.expect(length)

    def write(self, data: Any) -> None:
        self._check()
        self._win()
        self._job.land(data)

    def _check(self) -> None:
        if self._lost:
            raise WireError(Verdict.RETRY, "the first request was faster")

    def _win(self) -> None:
        if self._won:
            return
        self._won = True
        self._counters.extra["hedge_wins"] += 1
        if not self._alone:
            self._job.yield_to(self._begun)
