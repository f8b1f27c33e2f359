"""Chunks run by threads of this process: for functions that wait, or that let go of the interpreter's lock.

Carrying chunks only: which backend, how many threads and what becomes of reports is decided in ``engine``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue
from typing import Final

from lazystore.errors import ClosedError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.workers.chunk_run import run_chunk

__all__ = ["ThreadBackend", "run_report"]

#: seconds that closing waits for threads that are at an item
CLOSING_S: Final = 1.0


class _Worker:
    """What a thread and the caller know of each other.

    Parameters:
        number: of the thread.

    Attributes:
        at: the chunk and index of the item it is at, and since when; only where the job has a timeout.
        given_up: the caller wants nothing from it any more.
        lock: held to give it up, and to report a chunk: only one of the two becomes of a chunk.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.thread: threading.Thread | None = None
        self.at: tuple[Chunk, int, float] | None = None
        self.given_up = False
        self.lock = threading.Lock()


class ThreadBackend:
    """Runs chunks in threads of its own.

    Threads are daemons, named ``lazystore-imap-N``, started as chunks come in, and all take from one queue. Items and
    results are passed as they are: nothing is copied. The initializer runs once in each thread; what it raises ends
    the run. An exception of the function is part of the report.

    Timeout: a thread cannot be stopped from outside. One that is at an item for too long is given up: the item is
    reported as late, another thread takes its place, and the late one ends, without a word, when its item does.

    Close: threads end after the item they are at. :meth:`close` waits up to a second for that, then leaves them
    behind; as daemons they do not keep the interpreter from ending.

    Fork: a child has no threads; using its copy raises :class:`~lazystore.errors.ClosedError`. Does not pickle.
    Free-threaded Python: may be used there, and then runs pure Python side by side too.

    Cost: 10 to 40 us a chunk; a thread 0.1 ms to start and some 20 KiB.

    Parameters:
        job: what is done with the items.
    """

    kind: str = "thread"

    def __init__(self, job: Job) -> None:
        self.workers = 0
        self._job = job
        self._pid = os.getpid()
        self._closed = False
        self._chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self._ended: SimpleQueue[tuple[_Worker, Report | BaseException]] = SimpleQueue()
        self._crew: list[_Worker] = []
        self._number = 0
        self._out = 0
        self._broken: WorkerError | None = None

    def start(self, workers: int) -> None:
        """Have up to ``workers`` threads; each is started when there is a chunk for it."""
        self._check()
        self.workers = workers

    def ready(self) -> int:
        """All of them: a thread needs no time to come up."""
        return self.workers

    def room(self, depth: int) -> int:
        """Chunks that may be submitted so that there are at most ``depth`` a thread."""
        return self.workers * depth - self._out

    def submit(self, chunk: Chunk) -> None:
        """Put the chunk behind those that wait; the first thread that is free takes it.

        Raises:
            ClosedError: closed, or the process was forked.
            WorkerError: no thread can be started.
        """
        self._check()
        self._out += 1
        self._chunks.put(chunk)
        if len(self._crew) < min(self._out, self.workers):
            self._hire()

    def wait(self, timeout: float | None) -> list[Report | Lost]:
        """Chunks that are done and chunks with a late item; Ctrl-C and other signals are seen while it waits.

        Raises:
            ClosedError: closed, or the process was forked.
            WorkerError: the initializer raised, or the function ended its thread.
        """
        self._check()
        until = inf if timeout is None else time.monotonic() + timeout
        while True:
            found: list[Report | Lost] = [] if self._job.timeout is None else self._late(self._job.timeout)
            # a late item must be noticed while nothing else happens
            left = 0.0 if found else min(until - time.monotonic(), self._next_look())
            with contextlib.suppress(Empty):
                while True:
                    self._take(*self._get(left), found)
                    left = 0.0
            if found:
                return found
            if self._broken is not None:
                raise self._broken
            if time.monotonic() >= until:
                return found

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that were started."""
        return [worker.thread for worker in self._crew if worker.thread is not None]

    def take_waiting(self, most: int) -> list[Chunk]:
        """Up to ``most`` chunks that no thread has begun; they are the caller's again."""
        taken: list[Chunk] = []
        with contextlib.suppress(Empty):
            while len(taken) < most:
                chunk = self._chunks.get_nowait()
                assert chunk is not None  # that is put in when all is over
                taken.append(chunk)
        self._out -= len(taken)
        return taken

    def close(self) -> None:
        """End the threads after the item each is at, waiting a second at most; what is under way is forgotten."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        for worker in self._crew:
            worker.given_up = True
        with contextlib.suppress(Empty):
            while True:
                self._chunks.get_nowait()
        for _ in self._crew:
            self._chunks.put(None)
        until = time.monotonic() + CLOSING_S
        for worker in self._crew:
            # the last reference to a run may go in one of its own threads
            if worker.thread is not None and worker.thread is not threading.current_thread():
                worker.thread.join(max(0.0, until - time.monotonic()))
        self._crew.clear()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("the threads of this imap have ended: it was closed")
        if os.getpid() != self._pid:
            raise ClosedError(
                f"the threads of this imap are in process {self._pid}, not in its fork {os.getpid()}; "
                "call imap again in the child"
            )

    def _hire(self) -> None:
        """One more thread."""
        worker = _Worker(self._number)
        self._number += 1
        worker.thread = threading.Thread(
            target=_work,
            args=(worker, self._job, self._chunks, self._ended),
            name=f"lazystore-imap-{worker.number}",
            daemon=True,
        )
        try:
            worker.thread.start()
        except RuntimeError as error:  # the system's limit, or the interpreter is ending
            if not self._crew:
                raise WorkerError(f"no thread can be started: {error}; raise the limit (ulimit -u)") from error
            self.workers = len(self._crew)  # go on with those there are
            return
        self._crew.append(worker)

    def _get(self, timeout: float) -> tuple[_Worker, Report | BaseException]:
        if timeout <= 0:
            return self._ended.get_nowait()
        return self._ended.get(timeout=None if timeout == inf else timeout)

    def _take(self, worker: _Worker, ended: Report | BaseException, found: list[Report | Lost]) -> None:
        if isinstance(ended, Report):
            self._out -= 1
            found.append(ended)
            return
        self._crew.remove(worker)
        self._broken = WorkerError(f"a thread of this imap ended: {type(ended).__name__}: {ended}")
        self._broken.__cause__ = ended

    def _late(self, limit: float) -> list[Report | Lost]:
        """Give up threads that are over time; their chunks are lost."""
        found: list[Report | Lost] = []
        for worker in self._crew.copy():
            with worker.lock:
                at = worker.at
                if at is None or time.perf_counter() - at[2] <= limit:
                    continue
                worker.given_up = True
            self._crew.remove(worker)
            self._out -= 1
            found.append(Lost(at[0], began=True, late_at=at[1]))
            if self._out > len(self._crew):
                self._hire()
        return found

    def _next_look(self) -> float:
        """Seconds until an item may be over time."""
        limit = self._job.timeout
        if limit is None:
            return inf
        now = time.perf_counter()
        # items that begin from now on are not over time before ``limit`` has passed
        return max(1e-3, min([at[2] + limit - now for worker in self._crew if (at := worker.at)], default=limit))


def _work(
    worker: _Worker,
    job: Job,
    chunks: SimpleQueue[Chunk | None],
    ended: SimpleQueue[tuple[_Worker, Report | BaseException]],
) -> None:
    """What a thread does."""

    def clock() -> float:
        return inf if worker.given_up else time.perf_counter()  # run_chunk stops when time is over

    def noting(chunk: Chunk) -> Callable[[int], None]:
        def begin(index: int) -> None:
            worker.at = (chunk, index, time.perf_counter())

        return begin

    try:
        if job.initializer is not None:
            job.initializer()
        while (chunk := chunks.get()) is not None and not worker.given_up:
            report = run_report(job, chunk, clock, noting(chunk) if job.timeout is not None else None, worker.number)
            with worker.lock:
                if worker.given_up:
                    return
                worker.at = None
                ended.put((worker, report))
            del chunk, report  # nothing is held on to while it waits
    except BaseException as error:  # noqa: BLE001 (raised where the caller waits)
        with worker.lock:
            if not worker.given_up:
                ended.put((worker, error))


def run_report(
    job: Job, chunk: Chunk, clock: Callable[[], float], begin: Callable[[int], None] | None = None, worker: int = 0
) -> Report:
    """Run a chunk in this thread, on the items themselves.

    Parameters:
        clock: tells seconds; infinite when the chunk is to end after the item that is running.
        begin: told the index of each item before it is run.
        worker: who runs it.
    """
    ran = run_chunk(job, chunk.items, chunk.first, chunk.limit_s, chunk.limit_bytes, clock, note=begin)
    return Report(
        chunk,
        ran.results,
        failures=ran.failures,
        retried=ran.retried,
        run_s=ran.run_s,
        computed_s=ran.computed_s,
        longest_s=ran.longest_s,
        longest_at=ran.longest_at,
        worker=worker,
    )
