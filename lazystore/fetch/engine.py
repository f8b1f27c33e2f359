"""How reads become bytes: one batch at a time handed to the event loop, many requests in flight,
every one of them retried, checked and bounded by the call's one deadline.

What a request looks like on a given storage is the Wire's business (``wire_http.py``, ``wire_s3.py``,
``remote.py``, ``obstore.py``); what a job still wants is the job's (``jobs.py``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from lazystore.errors import (
    ClosedError,
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    LazyStoreError,
    SourceChangedError,
)
from lazystore.fetch.flow import Watch
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
#: Seconds beyond its deadline a call waits for a loop that does not react at all.
STUCK_S = 5.0
#: Seconds that must be left for another attempt to make sense.
SHORTEST_ATTEMPT_S = 0.01
#: Characters of a storage client's own words that go into our message.
MAX_CAUSE = 300

_RETRYABLE = frozenset({Verdict.RETRY, Verdict.STALL, Verdict.BRIEF})

_REMEDY = {
    Verdict.MISSING: "check the URL, and that the dataset is complete there",
    Verdict.DENIED: (
        "check the credentials in storage_options (a public bucket may need {'anon': True}); some stores "
        "answer like this for objects that do not exist"
    ),
    Verdict.CHANGED: "the dataset was rewritten while it was read: open it again",
    Verdict.BEYOND: "the object is shorter than its index says: upload it again",
    Verdict.BRIEF: "check the host, the port and the network",
}


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
        self.counters = FetchCounters(extra={"stat_requests": 0, "stalls": 0})
        self._concurrency = concurrency
        self._room = max_in_flight_bytes
        self._part_bytes = min(PART_BYTES, max_in_flight_bytes)
        self._policy = policy or RetryPolicy()
        self._pins = Pins()
        self._calls = 0
        self._closed = False
        self._lock = threading.Lock()
        self._link: Link | None = None
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
        names = tuple(dict.fromkeys(stat))
        batch = Batch(Deadline(timeout, self._policy.clock), names)
        self._check_open()
        jobs = parts_of(batch, reads, self._pins, self.counters, self._part_bytes)
        jobs = [job for job in jobs if self._worth_sending(batch, job)]
        if jobs or any(self._pins.size(name) == UNKNOWN for name in names):
            link = self._connected()
            self._submit(link, batch, self._drive(link, batch, jobs, names))
            for job in jobs:
                job.read.got += job.landed
        return {name: self._pins.size(name) for name in names}

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes:
        """The whole object; see :class:`lazystore.fetch.source.Source`."""
        batch = Batch(Deadline(timeout, self._policy.clock))
        job = WholeJob(name, limit, self._pins, self.counters)
        link = self._connected()
        self._submit(link, batch, self._drive(link, batch, [job], ()))
        return job.result()

    def close(self) -> None:
        """Cancel what is under way (its callers get ClosedError), close sessions, join threads."""
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
        if link is not None and link.pid == os.getpid():
            shut(link)

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

    def _submit(self, link: Link, batch: Batch, call: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop and wait for it; an interrupted wait cancels it."""
        if asyncio._get_running_loop() is link.wire.loop:
            call.close()
            raise ConfigError("a source cannot be read from inside its own event loop: use another thread")
        try:
            future = asyncio.run_coroutine_threadsafe(call, link.wire.loop)
        except RuntimeError as error:
            call.close()
            raise ClosedError(f"the source {redact(self.url)!r} is closed; open it again") from error
        except BaseException:
            batch.abandon()  # an interrupt on the way there: what was sent must not land
            raise
        try:
            future.result(batch.deadline.remaining() + STUCK_S)
        except concurrent.futures.CancelledError:
            batch.abandon()
            if self._closed:
                raise ClosedError(f"the source {redact(self.url)!r} was closed while it was read") from None
            raise FetchError(f"reading {redact(self.url)!r} was cancelled from outside") from None
        except BaseException as error:
            batch.abandon()
            if isinstance(error, TimeoutError) and not future.done():
                future.cancel()
                raise FetchTimeoutError(
                    f"the event loop that reads {redact(self.url)!r} does not react: something blocks it",
                    elapsed=batch.deadline.elapsed(),
                ) from None
            future.cancel()
            raise

    # --- on the loop ------------------------------------------------------------------------------

    async def _drive(self, link: Link, batch: Batch, jobs: Sequence[Job], names: Sequence[str]) -> None:
        """One wave: all jobs and sizes at once; the first final failure ends it."""
        task = asyncio.current_task()
        assert task is not None
        link.calls.add(task)
        self.counters.waves += 1
        try:
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
        finally:
            link.calls.discard(task)

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
        pending = set(tasks)
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
                for task in leftover:
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
                error = await self._attempt(link, job, watch)
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

    async def _attempt(self, link: Link, job: Job, watch: Watch) -> Exception | None:
        """One request; returns what went wrong."""
        counters, gate = self.counters, link.gate
        await gate.enter(job.weight)
        if isinstance(job, HeadJob):
            counters.extra["stat_requests"] += 1
        else:
            counters.requests += 1
        patience = link.pace.patience(job.streak + 1, job.silent_bytes(link.wire))
        watch.start(patience)
        try:
            await job.attempt(link.wire)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if watch.barked():
                counters.extra["stalls"] += 1
                return WireError(Verdict.STALL, f"the server was silent for {patience:.1f} s")
            if task is None or task.cancelling():
                raise
            return WireError(Verdict.RETRY, "the storage client cancelled the request by itself")
        except Exception as error:  # noqa: BLE001 - judged by classify(), and raised unless it can be cured
            return error
        finally:
            watch.stop()
            gate.leave(job.weight)
        if watch.first:
            link.pace.add(watch.first)
        return None

    async def _pause(self, link: Link, batch: Batch, job: Job, error: Exception, verdict: Verdict) -> None:
        """Wait before the next attempt, or raise if there should be none."""
        policy = self._policy
        if verdict not in _RETRYABLE or (verdict is Verdict.BRIEF and job.attempts >= policy.brief_attempts):
            raise self._failure(batch, job, error, verdict) from error
        job.rewind(link.wire)
        remaining = batch.deadline.remaining()
        delay = 0.0
        if verdict is not Verdict.STALL or job.streak > 1:
            delay = policy.delay(job.streak, remaining=remaining, retry_after=getattr(error, "retry_after", 0.0))
        if remaining - delay < SHORTEST_ATTEMPT_S:
            raise self._timed_out(batch, job, error) from error
        self.counters.retries += 1
        if delay:
            await policy.sleep(delay)

    # --- errors -----------------------------------------------------------------------------------

    def _where(self, job: Job) -> tuple[str, str]:
        """The object's URL, and the same with the range, for messages."""
        link = self._link
        url = link.wire.url(job.name) if link is not None else f"{redact(self.url).rstrip('/')}/{job.name}"
        return url, f"{url} bytes {job.begin}-{job.end}" if job.end >= 0 else url

    def _failure(self, batch: Batch, job: Job, error: BaseException, verdict: Verdict) -> LazyStoreError:
        """The error a caller gets for a failure that more attempts would not cure."""
        if isinstance(error, LazyStoreError):
            return error
        url, where = self._where(job)
        elapsed = batch.deadline.elapsed()
        tries = f"{job.attempts} attempt{'s' if job.attempts != 1 else ''}, {elapsed:.1f} s"
        message = f"cannot read {where}: {_words(error)} ({tries})"
        if remedy := _REMEDY.get(verdict):
            message += f"; {remedy}"
        if verdict is Verdict.MISSING:
            return DatasetNotFoundError(message)
        kind = SourceChangedError if verdict is Verdict.CHANGED else FetchError
        return kind(message, url=url, begin=job.begin, end=job.end, attempts=job.attempts, elapsed=elapsed)

    def _timed_out(self, batch: Batch, job: Job | None, error: BaseException | None) -> FetchTimeoutError:
        """The error of a call whose deadline passed, or would pass before another attempt."""
        elapsed = batch.deadline.elapsed()
        if job is None:
            return FetchTimeoutError(f"no answer from {redact(self.url)!r} in {elapsed:.1f} s", elapsed=elapsed)
        url, where = self._where(job)
        last = f"the last one failed with {_words(error)}" if error is not None else "none was answered"
        return FetchTimeoutError(
            f"{where} did not come within {batch.deadline.timeout:g} s: {job.attempts} attempts in "
            f"{elapsed:.1f} s, {last}; raise the timeout if the storage is just slow",
            url=url,
            begin=job.begin,
            end=job.end,
            attempts=job.attempts,
            elapsed=elapsed,
        )

    def after_fork(self) -> None:
        """Called in a forked child: forget the parent's connection without touching it."""
        self._lock = threading.Lock()
        link, self._link = self._link, None
        self.counters.in_flight_bytes = 0
        if link is not None:
            orphan(link)


def _words(error: BaseException) -> str:
    """The storage client's own words, shortened; obstore appends pages of debug output."""
    text = str(error).partition("\n\nDebug source")[0].strip().replace("\n", " ")
    if len(text) > MAX_CAUSE:
        text = text[: MAX_CAUSE - 3] + "..."
    if isinstance(error, WireError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _rebuild(kind: type[WireSource], recipe: dict[str, Any]) -> WireSource:
    return kind(**recipe)
