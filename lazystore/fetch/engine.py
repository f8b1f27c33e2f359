"""How reads become bytes: one batch at a time handed to the event loop, many requests in flight,
every one of them retried, checked and bounded by the call's one deadline.

What a request looks like on a given storage is the Wire's business (``wire_http.py``, ``wire_s3.py``,
``remote.py``, ``obstore.py``); what a job still wants is the job's (``jobs.py``).
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from lazystore.errors import ClosedError, ConfigError, FetchError, FetchTimeoutError, LazyStoreError
from lazystore.fetch.failures import failure, timed_out
from lazystore.fetch.flight import Outcome, Wave, finish
from lazystore.fetch.flow import Watch
from lazystore.fetch.hedge import Rival
from lazystore.fetch.jobs import Batch, HeadJob, Job, PartJob, Pins, WholeJob, parts_of
from lazystore.fetch.link import CANCEL_S, LIVE, Link, let_go, orphan, shut
from lazystore.fetch.options import redact
from lazystore.fetch.plan import PART_BYTES
from lazystore.fetch.retry import Deadline, RetryPolicy, Verdict, WireError, classify
from lazystore.fetch.source import FetchCounters, Read
from lazystore.fetch.wire import UNKNOWN, Wire

__all__ = ["DEFAULT_IN_FLIGHT_BYTES", "WireSource"]

#: Payload bytes that one source may have under way at once, if not told otherwise.
DEFAULT_IN_FLIGHT_BYTES = 64 << 20
#: Where answers carry no identity, every so many-th call compares it afresh.
RECHECK_EVERY = 64
#: Seconds that must be left for another attempt to make sense.
SHORTEST_ATTEMPT_S = 0.01
#: Failures in a row up to which waits grow where the storage does not push back.
LUCKLESS = 2
#: What the counters tell besides the usual: HEAD requests, requests given up as silent, second requests for the
#: same bytes and those that won, big requests allowed at once by now, and how often that was halved.
COUNTED = ("stat_requests", "stalls", "hedges", "hedge_wins", "concurrency", "backoffs")

_RETRYABLE = frozenset({Verdict.RETRY, Verdict.STALL, Verdict.BRIEF})


class WireFlight(Wave):
    """A wave on the event loop of a link; forgotten unfinished, it is cancelled."""

    __slots__ = ("_batch", "_loop")

    def __init__(self, outcome: Outcome, url: str, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(outcome, url, batch.deadline.timeout)
        self._batch = batch
        self._loop = loop

    def _may_wait(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            raise ConfigError("a source cannot be waited for inside its own event loop: use another thread")

    def _remaining(self) -> float:
        return self._batch.deadline.remaining()

    def _take_back(self) -> None:
        self._batch.abandon()

    def _stuck(self) -> FetchTimeoutError:
        return FetchTimeoutError(
            f"the event loop that reads {redact(self._url)!r} does not react: something blocks it",
            elapsed=self._batch.deadline.elapsed(),
        )

    def _halt(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._batch.halt)
        except RuntimeError:
            return  # the loop is closed: nothing runs any more

    def __del__(self) -> None:
        # At any moment in any thread, so without locks. Who forgot the flight cannot ask about the byte
        # that is just being written, and the views keep its buffer alive.
        if not self.done() and not sys.is_finalizing():
            self._batch.live = False
            self._halt()


class WireSource:
    """The remote half of the Source protocol; subclasses say how to connect.

    Args:
        url: the root; names of objects are relative to it.
        concurrency: requests under way at once.
        max_in_flight_bytes: payload bytes under way at once. A read is cut into parts of at most
            this (and at most 8 MiB), so one larger than the bound works too.
        policy: waits, clock and chance of the retries.

    What is detected: each answer's length and position are checked. Where answers carry an identity
    (http, s3fs, obstore) every single one is compared with the first seen of its object, and
    ``If-Match`` is sent as well, so bytes of two versions are never mixed. Elsewhere the identity is
    compared at every 64th call only; a rewrite that keeps the length may go unseen until then.

    Threads: any number may call; their requests share the bounds. Nothing is started before the first
    read. Fork: the child connects anew on its first read. Pickle: as its recipe (URL and options).
    """

    local = False
    memory = 0

    def __init__(
        self,
        url: str,
        *,
        concurrency: int,
        max_in_flight_bytes: int = DEFAULT_IN_FLIGHT_BYTES,
        policy: RetryPolicy | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency={concurrency} must be at least 1")
        if max_in_flight_bytes < 1:
            raise ConfigError(f"max_in_flight_bytes={max_in_flight_bytes} must be above zero")
        self.url = url
        self.counters = FetchCounters(extra=dict.fromkeys(COUNTED, 0))
        self._concurrency = concurrency
        self._room = max_in_flight_bytes
        self._part_bytes = min(PART_BYTES, max_in_flight_bytes)
        self._policy = policy or RetryPolicy()
        self._pins = Pins()
        self._calls = 0
        self._closed = False
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._flights: set[Outcome] = set()
        LIVE.add(self)

    def _connect(self) -> Wire:
        """A fresh wire; called under a lock, in the thread of the first read."""
        raise NotImplementedError

    def _recipe(self) -> dict[str, Any]:
        """Keyword arguments that build an equal source."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self._recipe())

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._link else "not connected"
        return f"<{type(self).__name__} {redact(self.url)!r} {state}>"

    # --- what callers use -------------------------------------------------------------------------

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        """Fill the reads' buffers and tell sizes; see :class:`lazystore.fetch.source.Source`.

        ``Read.got`` is set when the call succeeds. After an error the buffers' contents are undefined,
        and nothing is written to them any more once the error is raised.
        """
        return finish(self.start(reads, stat=stat, timeout=timeout, urgent=True))

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Wave:
        """Begin the same on the loop's thread; see :class:`lazystore.fetch.source.Source`."""
        names = tuple(dict.fromkeys(stat))
        batch = Batch(Deadline(timeout, self._policy.clock), names, urgent=urgent)
        self._check_open()
        outcome = Outcome(on_done)
        jobs = parts_of(batch, reads, self._pins, self.counters, self._part_bytes)
        try:
            jobs = [job for job in jobs if self._worth_sending(batch, job)]
        except LazyStoreError as error:
            outcome.settle(error=error)
            return Wave(outcome, self.url, timeout)
        if jobs or any(self._pins.size(name) == UNKNOWN for name in names):
            return self._launch(batch, jobs, names, outcome)
        outcome.settle({name: self._pins.size(name) for name in names})
        return Wave(outcome, self.url, timeout)

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes | bytearray:
        """The whole object; see :class:`lazystore.fetch.source.Source`."""
        batch = Batch(Deadline(timeout, self._policy.clock), urgent=True)
        job = WholeJob(name, limit, self._pins, self.counters)
        finish(self._launch(batch, [job], (), Outcome()))
        return job.result()

    def identity(self, name: str, *, timeout: float) -> str:
        """Size and tag, or time of modification; see :class:`lazystore.fetch.source.Source`."""
        self.run([], stat=[name], timeout=timeout)
        pinned = self._pins.get(name)
        assert pinned is not None
        return f"{pinned.size}-{pinned.etag.removeprefix('W/') or pinned.mtime}"

    def forget(self, name: str) -> None:
        """Unpin an object; see :class:`lazystore.fetch.source.StorageSource`."""
        self._pins.forget(name)

    def close(self) -> None:
        """Cancel what is under way (its callers get ClosedError), close sessions, join threads."""
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
        if link is not None and link.pid == os.getpid():
            shut(link)
            for outcome in list(self._flights):  # the loop ended before it could tell them
                outcome.settle(error=self._closed_while_reading())

    # --- from the caller's thread to the loop -----------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the source {redact(self.url)!r} is closed; open it again")

    def _connected(self) -> Link:
        link = self._link
        if link is not None and link.pid == os.getpid():
            return link
        with self._lock:
            self._check_open()
            if self._link is None:
                wire = self._connect()
                self._link = Link(wire, self._concurrency, self._room, self.counters)
                weakref.finalize(self, let_go, self._link).atexit = False
            return self._link

    def _worth_sending(self, batch: Batch, job: PartJob) -> bool:
        try:
            return job.wanted()
        except WireError as error:
            raise self._failure(batch, job, error, error.verdict) from None

    def _launch(self, batch: Batch, jobs: Sequence[Job], names: Sequence[str], outcome: Outcome) -> WireFlight:
        """Hand a batch to the loop."""
        link = self._connected()
        flight = WireFlight(outcome, self.url, batch, link.wire.loop)
        self._flights.add(outcome)
        try:
            link.wire.loop.call_soon_threadsafe(self._begin, link, batch, jobs, names, outcome)
        except RuntimeError as error:
            self._flights.discard(outcome)
            raise ClosedError(f"the source {redact(self.url)!r} is closed; open it again") from error
        except BaseException:
            flight.cancel()  # an interrupt on the way there: what was sent must not land
            raise
        if self._closed:
            outcome.settle(error=self._closed_while_reading())
        return flight

    def _closed_while_reading(self) -> ClosedError:
        return ClosedError(f"the source {redact(self.url)!r} was closed while it was read")

    # --- on the loop ------------------------------------------------------------------------------

    def _begin(self, link: Link, batch: Batch, jobs: Sequence[Job], names: Sequence[str], outcome: Outcome) -> None:
        if self._closed or not batch.live:
            self._flights.discard(outcome)
            outcome.settle(error=self._closed_while_reading() if self._closed else self._cancelled())
            return
        task = link.wire.loop.create_task(self._drive(link, batch, jobs, names))
        batch.task = task
        link.calls.add(task)
        task.add_done_callback(functools.partial(self._end, link, batch, jobs, names, outcome))

    def _end(
        self,
        link: Link,
        batch: Batch,
        jobs: Sequence[Job],
        names: Sequence[str],
        outcome: Outcome,
        task: asyncio.Task[None],
    ) -> None:
        link.calls.discard(task)
        self._flights.discard(outcome)
        batch.task = None
        error = self._cancelled() if task.cancelled() else task.exception()
        if error is not None:
            batch.abandon()
            outcome.settle(error=self._closed_while_reading() if task.cancelled() and self._closed else error)
            return
        with batch.lock:
            if batch.live:  # else it was cancelled in this very moment, and its buffers are gone
                for job in jobs:
                    job.deliver()
        outcome.settle({name: self._pins.size(name) for name in names})

    def _cancelled(self) -> FetchError:
        return FetchError(f"reading {redact(self.url)!r} was cancelled from outside")

    async def _drive(self, link: Link, batch: Batch, jobs: Sequence[Job], names: Sequence[str]) -> None:
        """One wave: all jobs and sizes at once; the first final failure ends it."""
        self.counters.waves += 1
        if not link.prepared:
            await self._prepare(link, batch)
        told = {job.name for job in jobs} if link.wire.tells else set()
        for name in names:
            if name not in told and self._pins.size(name) == UNKNOWN:
                self._start_head(link, batch, name)
        self._recheck(link, batch, jobs)
        queue = deque(jobs)
        workers = min(len(queue), link.slots)
        tasks = [asyncio.create_task(self._work(link, batch, queue)) for _ in range(workers)]
        await self._finish(batch, [*tasks, *batch.heads.values()])
        for name in names:  # an answer need not tell the size
            if self._pins.size(name) == UNKNOWN:
                await self._finish(batch, [self._start_head(link, batch, name)])

    async def _prepare(self, link: Link, batch: Batch) -> None:
        job = HeadJob("", self._pins, self.counters)
        try:
            async with asyncio.timeout(batch.deadline.remaining()), link.lock:
                if not link.prepared:
                    await link.wire.prepare()
                    link.open()
        except TimeoutError as error:
            raise self._timed_out(batch, job, error) from error
        except Exception as error:
            raise self._failure(batch, job, error, classify(error)) from error

    def _start_head(self, link: Link, batch: Batch, name: str) -> asyncio.Task[None]:
        """The one task of this batch that asks for an object's size."""
        task = batch.heads.get(name)
        if task is None:
            task = asyncio.create_task(self._head(link, batch, name))
            batch.heads[name] = task
        return task

    async def _head(self, link: Link, batch: Batch, name: str) -> None:
        await self._perform(link, batch, HeadJob(name, self._pins, self.counters), Watch())

    def _recheck(self, link: Link, batch: Batch, jobs: Sequence[Job]) -> None:
        self._calls += 1
        if link.wire.tells or self._calls % RECHECK_EVERY:
            return
        for name in {job.name for job in jobs}:
            if self._pins.get(name) is not None:
                self._start_head(link, batch, name)

    async def _finish(self, batch: Batch, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Wait for all tasks; on the first failure, or when time is up, cancel the others."""
        every = set(tasks)
        pending = set(every)
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=batch.deadline.remaining(), return_when=asyncio.FIRST_EXCEPTION
                )
                for task in done:
                    if task.cancelled():
                        raise FetchError("a request was cancelled from outside")
                    if error := task.exception():
                        raise error
                if pending and not batch.deadline.remaining():
                    job = max(batch.under_way, key=lambda job: job.attempts, default=None)
                    raise self._timed_out(batch, job, job.error if job else None)
        finally:
            leftover = pending | {task for task in batch.heads.values() if not task.done()}
            for task in leftover:
                task.cancel()
            if leftover:
                await asyncio.wait(leftover, timeout=CANCEL_S)
            for task in every.union(batch.heads.values()):
                if task.done() and not task.cancelled():
                    task.exception()  # seen, so that asyncio does not report it

    async def _work(self, link: Link, batch: Batch, queue: deque[Job]) -> None:
        watch = Watch()
        while queue:
            await self._perform(link, batch, queue.popleft(), watch)

    async def _perform(self, link: Link, batch: Batch, job: Job, watch: Watch) -> None:
        """Attempt a job until nothing is wanted, or until trying makes no sense any more."""
        batch.under_way.add(job)
        job.watch = watch
        try:
            while job.wanted():
                job.attempts += 1
                error = await self._attempt(link, batch, job, watch)
                if error is None:
                    if not job.wanted():
                        break
                    error = WireError(Verdict.RETRY, "the answer was cut short")
                verdict = classify(error)
                if isinstance(job, PartJob) and await self._ended_early(link, batch, job, verdict):
                    break
                job.error = error
                await self._pause(link, batch, job, error, verdict)
        except WireError as error:
            raise self._failure(batch, job, error, error.verdict) from error
        batch.under_way.discard(job)

    async def _ended_early(self, link: Link, batch: Batch, job: PartJob, verdict: Verdict) -> bool:
        """Whether a short or refused answer just means that the object ends there."""
        if verdict is Verdict.BEYOND or (verdict is Verdict.RETRY and not link.wire.tells):
            if self._pins.size(job.name) == UNKNOWN:
                await self._start_head(link, batch, job.name)
            return not job.wanted()
        return False

    async def _attempt(self, link: Link, batch: Batch, job: Job, watch: Watch) -> BaseException | None:
        """One request, or two for the same; returns what went wrong."""
        gate, pace, number, silent = link.gate, link.pace, job.streak + 1, job.silent_bytes(link.wire)
        await gate.enter(job.weight, batch.urgent)
        job.gate, job.eased = gate, 0
        if isinstance(job, HeadJob):
            self.counters.extra["stat_requests"] += 1
        else:
            self.counters.requests += 1
            link.hedges.sent(job.weight)
        nudge = None
        if isinstance(job, PartJob) and link.wire.streams:
            nudge = functools.partial(self._hedge, link, job, watch)
        first = functools.partial(pace.patience, number, silent)
        if isinstance(job, HeadJob):
            first = functools.partial(pace.brief, number)
        watch.start(lambda heard: pace.lull(number) if heard else first(), nudge)
        try:
            try:
                error = await self._sent(link, job.attempt(link.wire), watch)
                self._judge(link, job, watch, error)
            finally:
                job.gate = None
                gate.leave(job.weight, job.eased)
            rival = job.rival
            if rival is not None and (job.beaten or (error is not None and classify(error) in _RETRYABLE)):
                error = await self._sent(link, rival.outcome(), watch)
                self._judge(link, job, watch, error)
        finally:
            watch.stop()
            job.alone()
        if error is None and watch.first:
            pace.add(watch.first, watch.lull)
            pace.answered(watch.started)
        return error

    async def _sent(
        self, link: Link, request: Coroutine[Any, Any, BaseException | None], watch: Watch
    ) -> BaseException | None:
        """Await a request under watch; returns what went wrong."""
        try:
            return await request
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if watch.barked():
                self.counters.extra["stalls"] += 1
                if watch.first:
                    link.pace.add(watch.first, watch.silence)
                return WireError(Verdict.STALL, f"the server was silent for {watch.silence:.1f} s")
            if watch.gave_way():
                return WireError(Verdict.RETRY, "another request for the same bytes was faster")
            if task is None or task.cancelling():
                raise
            return WireError(Verdict.RETRY, "the storage client cancelled the request by itself")
        except Exception as error:  # noqa: BLE001 - judged by classify(), and raised unless it can be cured
            return error

    def _hedge(self, link: Link, job: PartJob, watch: Watch, waited: float) -> bool:
        """Send a second request if the first keeps silent for too long; returns whether it was sent."""
        return link.pace.overdue(watch.started, waited) and Rival.send(link, job, self.counters)

    def _judge(self, link: Link, job: Job, watch: Watch, error: BaseException | None) -> None:
        """Tell the throttle how a request fared."""
        throttle, extra = link.gate.throttle, self.counters.extra
        if error is None:
            throttle.served(job.weight)
        elif not job.beaten and (verdict := classify(error)) in _RETRYABLE:
            # A body that is cut says nothing about load.
            refused = verdict is Verdict.STALL or not watch.first
            throttle.refused() if refused else throttle.served(0)
        extra["concurrency"] = throttle.limit
        extra["backoffs"] = throttle.backoffs

    async def _pause(self, link: Link, batch: Batch, job: Job, error: BaseException, verdict: Verdict) -> None:
        """Wait before the next attempt, or raise if there should be none."""
        policy = self._policy
        if verdict not in _RETRYABLE or (verdict is Verdict.BRIEF and job.attempts >= policy.brief_attempts):
            raise self._failure(batch, job, error, verdict) from error
        job.rewind(link.wire)
        remaining = batch.deadline.remaining()
        delay = 0.0
        if verdict is not Verdict.STALL or job.streak > 1:
            # Where most requests fare well, waits that double with every bad luck only hold up who needs the bytes.
            waits = job.streak if link.gate.throttle.pressed() else min(job.streak, LUCKLESS)
            delay = policy.delay(waits, remaining=remaining, retry_after=getattr(error, "retry_after", 0.0))
        if remaining - delay < SHORTEST_ATTEMPT_S:
            raise self._timed_out(batch, job, error) from error
        self.counters.retries += 1
        if delay:
            await policy.sleep(delay)

    # --- errors -----------------------------------------------------------------------------------

    def _url(self, job: Job) -> str:
        """The object's URL for messages."""
        link = self._link
        return link.wire.url(job.name) if link is not None else f"{redact(self.url).rstrip('/')}/{job.name}"

    def _failure(self, batch: Batch, job: Job, error: BaseException, verdict: Verdict) -> LazyStoreError:
        return failure(batch, job, self._url(job), error, verdict)

    def _timed_out(self, batch: Batch, job: Job | None, error: BaseException | None) -> FetchTimeoutError:
        return timed_out(batch, job, self._url(job) if job is not None else redact(self.url), error)

    def after_fork(self) -> None:
        """Called in a forked child: forget the parent's connection without touching it."""
        self._lock = threading.Lock()
        self._flights = set()
        link, self._link = self._link, None
        self.counters.in_flight_bytes = 0
        if link is not None:
            orphan(link)


def _rebuild(kind: type[WireSource], recipe: dict[str, Any]) -> WireSource:
    return kind(**recipe)
