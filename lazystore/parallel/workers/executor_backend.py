"""Chunks run by somebody's ``concurrent.futures.Executor``: threads, processes, or other machines (Dask, MPI).

Carrying chunks only: how many are under way and what becomes of reports is decided in ``engine``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import replace
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final

from lazystore.errors import ClosedError, TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.cpus import usable_cpus
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers.thread_backend import ThreadBackend, run_report

__all__ = ["ExecutorBackend", "executor_workers"]

#: seconds between looks whether a run with a timeout was closed
LOOK_S: Final = 0.2


class ExecutorBackend:
    """Runs chunks in an executor, which stays open.

    A chunk is one call of a function of this module; its arguments and what it returns are picklable where the
    function, items and results are. Threads of this process get and give objects as they are. Elsewhere results
    are pickled one by one, so that one that cannot be is a failure of its own item only. lazystore must be
    importable where the executor's workers run.

    A worker's death is the executor's business: those that move the work elsewhere (Dask) go on, those that break
    (``ProcessPoolExecutor``) end the run. The initializer runs once in each worker thread, before its first chunk.
    ``Job.inner_threads`` is not applied: the workers are not ours.

    Timeout: a call that takes too long is given up, as with threads: the item is reported as late, the worker takes the
    next chunk, and the call goes on in a thread of the worker's until it ends. (With a timeout functions run in such
    a thread from the start.)

    Close: calls that have not begun are cancelled; those in threads of this process end after the item they are at,
    those elsewhere when their chunk is done. Nothing is waited for.

    Fork: in a child, using its copy raises :class:`~lazystore.errors.ClosedError`. Does not pickle.

    Parameters:
        job: what is done with the items.
        executor: whose workers do it.
        workers: how many chunks it runs at a time; 0: as :func:`executor_workers` finds.
    """

    kind: str = "executor"

    def __init__(self, job: Job, executor: Executor, workers: int = 0) -> None:
        self.workers = self._most = executor_workers(executor, workers)
        self._job = job
        self._executor = executor
        self._pid = os.getpid()
        self._run = os.urandom(12).hex()
        self._running: dict[Future[_Outcome], Chunk] = {}
        self._done: SimpleQueue[Future[_Outcome]] = SimpleQueue()
        self._broken: Exception | None = None
        self._closed = False
        _open_runs.add(self._run)

    def start(self, workers: int) -> None:
        """Use up to ``workers`` of the executor's workers."""
        self._check()
        self.workers = min(workers, self._most)

    def ready(self) -> int:
        """All of them, as far as can be seen from here."""
        return self.workers

    def room(self, depth: int) -> int:
        """Chunks that may be submitted so that there are at most ``depth`` a worker."""
        return self.workers * depth - len(self._running)

    def submit(self, chunk: Chunk) -> None:
        """Submit the chunk to the executor.

        Raises:
            ClosedError: closed, or the process was forked.
            TransportError: the executor cannot send an item (some find out later).
            WorkerError: the executor broke or is shut down.
        """
        self._check()
        try:
            future = self._executor.submit(_run_chunk, (_PROCESS, self._pid), self._run, self._job, chunk)
        except Exception as error:
            refusal = _refusal(error)
            if isinstance(refusal, TransportError) and _travels(chunk.items):  # it is the function, in every chunk
                self._broken, refusal.__cause__ = refusal, error
                return
            raise refusal from error
        self._running[future] = chunk
        future.add_done_callback(self._done.put)

    def take_waiting(self, most: int) -> list[Chunk]:
        """Chunks beyond those that the executor runs at a time, the latest, as far as it lets go of them."""
        self._check()
        taken: list[Chunk] = []
        # not all executors tell what they have begun (Dask), so those that may be are left alone
        for future in list(self._running)[: self.workers - 1 : -1]:
            if len(taken) < most and future.cancel():
                taken.append(self._running.pop(future))
        return taken[::-1]

    def wait(self, timeout: float | None) -> list[Report | Lost]:
        """Chunks that are done and chunks with a late item; Ctrl-C and other signals are seen while it waits.

        Raises:
            ClosedError: closed, or the process was forked.
            TransportError: the function, an item or results cannot travel.
            WorkerError: the executor broke or dropped the chunk, or the initializer raised.
        """
        self._check()
        found: list[Report | Lost] = []
        with contextlib.suppress(Empty):
            while self._broken is None:
                future = self._done.get_nowait() if found or timeout == 0 else self._done.get(timeout=timeout)
                chunk = self._running.pop(future, None)
                if chunk is None:
                    continue  # it was taken back
                try:
                    found.append(_opened(*future.result(), chunk))
                except (CancelledError, Exception) as error:  # noqa: BLE001 (told to the caller by type)
                    self._broken = _refusal(error)
                    self._broken.__cause__ = error
        if self._broken is not None and not found:
            raise self._broken
        return found

    def close(self) -> None:
        """Cancel what has not begun; the executor stays open."""
        if self._closed:
            return
        self._closed = True
        _open_runs.discard(self._run)
        if os.getpid() == self._pid:
            for future in self._running:
                future.cancel()
        self._running.clear()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("this imap was closed")
        if os.getpid() != self._pid:
            raise ClosedError(f"this imap belongs to process {self._pid}, not to its fork {os.getpid()}; call it again")


def executor_workers(executor: Executor, given: int = 0) -> int:
    """Chunks that the executor runs at a time: as given; or as it says itself; or one for each CPU of this machine."""
    own = getattr(executor, "_max_workers", None)  # as those of the standard library call it
    return given or (own if isinstance(own, int) and own > 0 else usable_cpus())


def _travels(items: Sequence[Any]) -> bool:
    try:
        pickle.dumps(items)
    except Exception:  # noqa: BLE001 (classes may raise anything; only whether they do is asked)
        return False
    return True


def _refusal(error: BaseException) -> TransportError | WorkerError:
    """What an executor's error means here."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, WorkerError):
        return error
    if isinstance(error, BrokenExecutor):
        return WorkerError(
            f"the executor broke ({what}); make a new one, or leave it out: lazystore's own processes replace a worker "
            "that dies and find the item it died of"
        )
    if isinstance(error, CancelledError):
        return WorkerError("the executor cancelled items it had not begun: keep it open while imap runs")
    # what func raises is part of the report, so this is the way there and back
    if isinstance(error, (pickle.PickleError, TypeError, AttributeError, ImportError)):
        return TransportError(
            f"the executor cannot carry the function or an item ({what}); both must be picklable by it and importable "
            "where its workers run; threads take anything"
        )
    return WorkerError(f"the executor did not run the items ({what})")


# -- where the executor's workers are ---------------------------------------------------------------------------------

#: this process, together with its id: a fork has the same token, another machine may have the same id
_PROCESS: Final = os.urandom(12).hex()
#: runs of this process that are not closed
_open_runs: set[str] = set()
#: runs whose initializer was called in this thread
_begun = threading.local()

#: whether results are pickled one by one; the report or loss, without its chunk
_Outcome = tuple[bool, Report | Lost]


def _run_chunk(home: tuple[str, int], run: str, job: Job, chunk: Chunk) -> _Outcome:
    """Run a chunk in the executor's worker.

    Raises:
        WorkerError: the initializer raised.
    """
    here = home == (_PROCESS, os.getpid())
    if job.initializer is not None:
        _initialize(job.initializer, run)

    def closed() -> bool:
        return here and run not in _open_runs

    if closed():
        ended: Report | Lost = Lost(chunk, began=False)
    elif job.timeout is None:
        ended = run_report(job, chunk, lambda: inf if closed() else time.perf_counter())
    else:
        ended = _run_timed(job, chunk, closed)
    if not here and isinstance(ended, Report):
        _pack(ended)
    ended.chunk = Chunk(chunk.number, chunk.first, ())  # the caller has it
    return not here, ended


def _initialize(initializer: Callable[[], object], run: str) -> None:
    runs: set[str] = _begun.__dict__.setdefault("runs", set())
    if run in runs:
        return
    try:
        initializer()
    except Exception as error:
        raise WorkerError(f"the initializer raised {type(error).__name__}: {error}") from error
    runs.add(run)


def _run_timed(job: Job, chunk: Chunk, closed: Callable[[], bool]) -> Report | Lost:
    """The chunk in a thread of its own, which can be left behind when an item is late."""
    backend = ThreadBackend(replace(job, initializer=None))
    try:
        backend.start(1)
        backend.submit(chunk)
        while not (ended := backend.wait(LOOK_S)):
            if closed():
                return Lost(chunk, began=True)
        return ended[0]
    finally:
        backend.close()


def _pack(report: Report) -> None:
    """Results as pickles."""
    began = time.perf_counter()
    for k, result in enumerate(report.results):
        try:
            data = pickle.dumps(result, 5)
        except Exception as error:  # noqa: BLE001 (classes may raise anything from here; it is told for this item)
            data = pickle.dumps(_stuck(error, "the result cannot be pickled", report, k), 5)
            report.failures += 1
        report.results[k] = data
        report.out_bytes += len(data)
    report.transport_s = time.perf_counter() - began


def _opened(packed: bool, ended: Report | Lost, chunk: Chunk) -> Report | Lost:
    ended.chunk = chunk
    if packed and isinstance(ended, Report):
        began = time.perf_counter()
        for k, data in enumerate(ended.results):
            try:
                ended.results[k] = pickle.loads(data)
            except Exception as error:  # noqa: BLE001 (as above)
                ended.results[k] = _stuck(error, "the result cannot be unpickled here", ended, k)
                ended.failures += 1
        ended.transport_s += time.perf_counter() - began
    return ended


def _stuck(error: Exception, what: str, report: Report, k: int) -> Failed:
    index = report.chunk.first + k
    told = TransportError(f"item {index}: {what} ({type(error).__name__}: {error})")
    return Failed(told, index, report.chunk.items[k])
