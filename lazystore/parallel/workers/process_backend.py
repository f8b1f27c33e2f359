"""Chunks run by worker processes: what is sent to which worker, what comes back, and what becomes of those that die.

Workers come from ``worker_pool`` and go back there. Whether a lost chunk runs again is the engine's business; how
messages look is that of ``transport``.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from lazystore.errors import LazyStoreError, TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.workers.packing import Packed, joined, pack, packed_pickle
from lazystore.parallel.workers.surroundings import Surroundings
from lazystore.parallel.workers.transport import Kind, Message
from lazystore.parallel.workers.worker_main import IDLE_EXIT, UNGUARDED_EXIT, unpack_report
from lazystore.parallel.workers.worker_pool import POOL, WorkerHandle

__all__ = ["ProcessBackend"]

#: workers in a row that may end before they are up: by themselves, and by a signal that others send as well
STILLBORN = 3
STILLBORN_BY_SIGNAL = 30
#: the same for those that end before they began a chunk
UNBEGUN_BY_SIGNAL = 10
_FOREIGN = (-signal.SIGKILL, -signal.SIGTERM)

_job_numbers = itertools.count(1)


class ProcessBackend:
    """Runs chunks of one job in worker processes of this machine.

    A worker that ends is replaced. Bulk data of a worker's chunks and results wait in memory that it shares with
    the caller: of at most as many chunks as it was given (two, with the engine's depth).

    Used by one thread at a time; several backends may be used at once, with different workers. After a fork the
    child's copy raises ``WorkerError``. Closed or collected, it gives its workers up; the interpreter's end ends them.

    Parameters:
        job: the job.

    Attributes:
        kind: "process".
        workers: how many there are, those that are still starting included.
        deaths: workers that ended unasked.
        through_pipe: messages whose bulk had to go through the pipe, because there was no memory to share.
        packing_s: seconds the caller spent on packing and sending chunks, and on unpacking reports.
        start_s: seconds from the first start until the first worker was up; 0.0 before that.
    """

    kind = "process"

    def __init__(self, job: Job) -> None:
        self.deaths = 0
        self.packing_s = self.start_s = 0.0
        self._job = job
        self._number = next(_job_numbers)
        self._pid = os.getpid()
        self._generation = POOL.generation
        self._target = 0
        self._crew: list[WorkerHandle] = []
        self._by_fd: dict[int, WorkerHandle] = {}
        self._poll = select.poll()
        self._events: list[Report | Lost] = []
        self._trouble: LazyStoreError | None = None
        self._stillborn = 0
        self._unbegun = 0
        self._started_at = 0.0
        self._piped_before = 0
        self._out = 0
        self._work: _Work | None = None
        self._finish = weakref.finalize(self, POOL.give_back, self._crew)
        self._finish.atexit = False  # the pool ends all workers at once

    @property
    def workers(self) -> int:
        return len(self._crew)

    @property
    def through_pipe(self) -> int:
        return self._piped_before + sum(handle.channel.through_pipe for handle in self._crew)

    def start(self, workers: int) -> None:
        """Bring up ``workers`` workers in all; returns in about a millisecond each. May be called again with more.

        Raises:
            TransportError: the job does not pickle.
            WorkerError: processes cannot be started here.
        """
        self._check_owner()
        if self._work is None:
            self._work = _Work(self._job, self._number)
            self._started_at = time.perf_counter()
        self._target = max(self._target, workers)
        self._fill()

    def ready(self) -> int:
        count = sum(handle.ready for handle in self._crew)
        if count < len(self._crew):
            self._look(0.0)
            count = sum(handle.ready for handle in self._crew)
        return count

    def room(self, depth: int) -> int:
        # a large message to a worker at work that shares no memory waits until that work is done
        return sum(max(0, (depth if handle.channel.bulk else 1) - handle.load) for handle in self._crew)

    def submit(self, chunk: Chunk) -> None:
        """Give a chunk to the worker that has least to do; one that is up before one that is not.

        Raises:
            TransportError: an item does not pickle; nothing was sent.
        """
        self._check_owner()
        assert self._work is not None
        begin = time.perf_counter()
        packed = self._work.packed(chunk)
        # where there is trouble, the next wait tells of it
        while self._trouble is None and not self._send(min(self._crew, key=_load), chunk, packed):
            pass
        self.packing_s += time.perf_counter() - begin

    def take_waiting(self, most: int) -> list[Chunk]:
        """Chunks that wait behind others, or for a worker that is not up; the first of the data first. 2 us each.

        Without a file in memory (macOS) there are none: nobody can tell what a worker has read from its pipe.
        """
        self._check_owner()
        waiting = [
            (chunk.first, number, handle)
            for handle in self._crew
            for number, chunk in islice(handle.unanswered.items(), int(handle.ready), None)
        ]
        taken: list[Chunk] = []
        for _, number, handle in sorted(waiting, key=lambda each: each[0]):
            if len(taken) < most and handle.channel.withdraw(number):
                handle.withdrawn.add(number)
                taken.append(handle.unanswered.pop(number))
                self._out -= 1
        return taken

    def wait(self, timeout: float | None) -> list[Report | Lost]:
        self._check_owner()
        deadline = math.inf if timeout is None else time.perf_counter() + timeout
        left = math.inf if timeout is None else timeout
        while not self._events and self._trouble is None:
            self._look(left if self._out else min(left, 0.1))  # there may be nothing to wait for
            left = deadline - time.perf_counter()
            if not self._out or left <= 0:
                break
        events, self._events = self._events, []
        if self._trouble is not None:
            # what is finished is given out first; what is lost or under way ends here
            events = [event for event in events if isinstance(event, Report)]
            if not events:
                raise self._trouble
        return events

    def close(self) -> None:
        """Give the workers up: idle ones stay warm for the next run; those at work have 50 ms, then they are ended.

        May be called again; it is called when this is collected.
        """
        self._finish()

    def _check_owner(self) -> None:
        if self._pid != os.getpid():
            raise WorkerError("this run belongs to the process that this one was forked from; start a new one here")
        if not self._finish.alive:
            raise WorkerError("this run is closed")
        self._check_pool()

    def _check_pool(self) -> None:
        """Daemon threads still run when the interpreter ends: they go no further, and say nothing."""
        if self._generation != POOL.generation:
            while threading.current_thread().daemon:
                time.sleep(3600.0)
            raise WorkerError("the workers of this run were ended with the interpreter")

    def _fill(self) -> None:
        """Have as many workers as there should be."""
        assert self._work is not None
        known = len(self._crew)
        try:
            POOL.lease(self._crew, self._target - known, self._work.tag, self._job.inner_threads)
        finally:
            for handle in self._crew[known:]:
                for fd in (handle.channel.reading, handle.child.sentinel):
                    self._poll.register(fd, select.POLLIN)
                    self._by_fd[fd] = handle
                self._piped_before -= handle.channel.through_pipe  # of earlier runs
                if handle.ready:
                    self._note_ready()

    def _note_ready(self) -> None:
        self._stillborn = 0
        self.start_s = self.start_s or time.perf_counter() - self._started_at

    def _send(self, handle: WorkerHandle, chunk: Chunk, packed: Packed) -> bool:
        """Send a chunk, and the job before it if need be; False if the worker is gone."""
        assert self._work is not None
        handle.midway = True
        try:
            if handle.job != self._number:
                handle.channel.send(Kind.JOB, self._number, self._work.for_worker(handle.tag))
                handle.job = self._number
                handle.job_at = time.monotonic()
                handle.job_from = handle.sent
                handle.tag = self._work.tag or handle.tag
            handle.sent += 1
            handle.channel.send(Kind.CHUNK, handle.sent, packed)
        except BrokenPipeError:
            handle.midway = False
            self._take(handle)
            self._bury(handle)
            return False
        handle.midway = False
        handle.unanswered[handle.sent] = chunk
        self._out += 1
        if handle.channel.pending:
            self._take(handle)
        return True

    def _look(self, seconds: float) -> None:
        """Take what workers have to say; waits until one has, or so many seconds."""
        if self._job.timeout is not None and self._out:
            seconds = min(seconds, self._end_late())
        found = self._poll.poll(None if seconds == math.inf else seconds * 1000)
        self._check_pool()
        for fd, _ in found:
            handle = self._by_fd.get(fd)
            if handle is None:
                continue  # buried a moment ago
            if fd == handle.child.sentinel and handle.child.look() is None:
                continue  # it was born
            self._take(handle)
            if not handle.alive():
                self._take(handle)  # what it sent before it ended
                self._bury(handle)

    def _take(self, handle: WorkerHandle) -> None:
        """Take what a worker sent."""
        for message in handle.hear():
            if message.kind == Kind.REPORT:
                self._take_report(handle, message)
            elif message.kind == Kind.HELLO:
                handle.ready = True
                self._note_ready()
            elif message.kind == Kind.AGAIN:
                self._send_apart(handle, message.number)
            elif message.kind == Kind.SKIPPED:
                self._take_skipped(handle, message.number)
            elif message.kind == Kind.REFUSED:
                during, reason = message.unpack()
                self._trouble = _refusal(during, reason)
                if during == "load":  # the next run may have it; a worker with half an initializer is ended
                    self._out -= len(handle.unanswered)
                    handle.unanswered.clear()
                    handle.withdrawn.clear()

    def _take_report(self, handle: WorkerHandle, message: Message) -> None:
        chunk = handle.unanswered.get(message.number)
        if chunk is None:
            return
        begin = time.perf_counter()
        try:
            report = unpack_report(message, chunk, handle.number)
        except EOFError:
            handle.child.signal(signal.SIGKILL)  # what it sends is damaged
            return
        self.packing_s += time.perf_counter() - begin
        if report is None:
            self._say(handle, Kind.AGAIN, message.number, chunk)
            return
        del handle.unanswered[message.number]
        self._out -= 1
        self._unbegun = 0
        self._events.append(report)

    def _take_skipped(self, handle: WorkerHandle, number: int) -> None:
        """The worker saw that a chunk was withdrawn; it may have seen that before this side could tell."""
        handle.withdrawn.discard(number)
        chunk = handle.unanswered.pop(number, None)
        if chunk is not None:
            self._out -= 1
            self._events.append(Lost(chunk, began=False))

    def _send_apart(self, handle: WorkerHandle, number: int) -> None:
        """Send a chunk that the worker could not unpack once more, item by item."""
        assert self._work is not None
        chunk = handle.unanswered.pop(number, None)
        if chunk is not None:
            handle.sent += 1
            self._say(handle, Kind.CHUNK, handle.sent, chunk, self._work.packed_apart(chunk))

    def _say(self, handle: WorkerHandle, kind: Kind, number: int, chunk: Chunk, packed: Packed | None = None) -> None:
        """Tell a worker something about a chunk that it has, and will answer behind the others."""
        handle.midway = True
        # BrokenPipeError: it is gone, which will show
        with contextlib.suppress(BrokenPipeError):
            handle.channel.send(kind, number, packed)
        handle.midway = False
        handle.unanswered.pop(number, None)
        handle.unanswered[number] = chunk

    def _bury(self, handle: WorkerHandle, late_at: int = -1) -> None:
        """A worker is gone, or has to go: its chunks are lost, and another takes its place."""
        for fd in (handle.channel.reading, handle.child.sentinel):
            self._poll.unregister(fd)
            del self._by_fd[fd]
        self._crew.remove(handle)
        self._piped_before += handle.channel.through_pipe
        trouble = handle.child.trouble
        begun = handle.channel.begun()
        code = POOL.bury(handle)
        if begun < 0:  # it cannot tell; it may be the first one
            begun = next(iter(handle.unanswered), 0) if handle.ready else 0
        elif handle.ready and handle.job == self._number and begun <= handle.job_from:
            self._unbegun += code != IDLE_EXIT
        for number, chunk in handle.unanswered.items():
            began = number == begun and code != IDLE_EXIT
            self._events.append(Lost(chunk, began, code, late_at if _within(late_at, chunk) else -1))
            self._out -= 1
        handle.unanswered.clear()
        handle.withdrawn.clear()
        self.deaths += code != IDLE_EXIT
        self._note_end(handle.ready, code, trouble)
        if self._trouble is None:
            try:
                self._fill()
            except WorkerError as error:
                self._trouble = error

    def _note_end(self, ready: bool, code: int, trouble: str) -> None:
        """Whether it makes sense to start another worker after one that ended this way."""
        if code == UNGUARDED_EXIT:
            self._trouble = TransportError(
                "the function is defined in a script that calls imap when it is imported, and workers import it; put "
                "the call under `if __name__ == '__main__':`"
            )
        elif self._unbegun >= (UNBEGUN_BY_SIGNAL if code in _FOREIGN else STILLBORN):
            self._trouble = WorkerError(
                f"{self._unbegun} worker processes ended while they loaded the function or ran the initializer, the "
                f"last one by {_way(code)}; what they said is on stderr"
            )
        elif not ready:
            self._stillborn += 1
            if self._stillborn >= (STILLBORN_BY_SIGNAL if code in _FOREIGN else STILLBORN):
                self._trouble = WorkerError(
                    f"{self._stillborn} worker processes ended before they were up, the last one by {_way(code)}"
                    f"{': ' * bool(trouble)}{trouble}; what they said is on stderr"
                )

    def _end_late(self) -> float:
        """End workers whose item takes too long; seconds until the next one may."""
        timeout = self._job.timeout
        assert timeout is not None
        soonest = timeout
        now = time.monotonic()
        for handle in list(self._crew):
            if not handle.unanswered:
                continue
            index, since = handle.channel.progress()
            if since < handle.job_at or not any(_within(index, chunk) for chunk in handle.unanswered.values()):
                continue  # it tells of the past
            left = since + timeout - now
            if left > 0:
                soonest = min(soonest, left)
                continue
            handle.child.signal(signal.SIGKILL)
            self._take(handle)
            self._bury(handle, index)
            soonest = 0.0
        return soonest


class _Work:
    """The job as workers get it.

    Attributes:
        tag: names the initializer; b"" without one.

    Raises:
        TransportError: it does not pickle.
    """

    def __init__(self, job: Job, number: int) -> None:
        self._job = job
        self._number = number
        self._surroundings = Surroundings.capture()
        self._session = self._surroundings.main == ("", "")
        self._by_value = False
        try:
            self._work = self._dumps(job)
        except Exception as error:  # noqa: BLE001 (a user's class may raise anything; cloudpickle has its own ways)
            self._take_by_value(f"{type(error).__name__}: {error}", error)
        if self._session and b"__main__" in self._work and not self._by_value:
            self._take_by_value("it is defined in a session that workers cannot import")
        self.tag = b"" if job.initializer is None else self._dumps(job.initializer)

    def _take_by_value(self, reason: str, cause: Exception | None = None) -> None:
        """Send functions and classes as what they are, not by their names."""
        self._by_value = True
        try:
            self._work = self._dumps(self._job)
        except ImportError:
            raise TransportError(
                f"{_name(self._job.func)} cannot be sent to worker processes: {reason}; define it in a module, install "
                "cloudpickle (pip install cloudpickle), or use backend='thread'"
            ) from cause
        except Exception as error:
            raise TransportError(
                f"{_name(self._job.func)} cannot be sent to worker processes: {type(error).__name__}: {error}; have it "
                "open files, locks and connections itself (in initializer), or use backend='thread'"
            ) from error

    def for_worker(self, tag: bytes) -> Packed:
        """The message that tells a worker its job; an initializer that the worker ran already is left out."""
        work = self._work
        if self.tag and tag == self.tag:
            work = self._dumps(replace(self._job, initializer=None))
        by_value = self._by_value or self._session
        return pack({"job": self._number, "surroundings": self._surroundings, "work": work, "by_value": by_value})

    def packed(self, chunk: Chunk) -> Packed:
        """The message that gives a worker a chunk.

        Raises:
            TransportError: an item does not pickle.
        """
        try:
            return self._pack((chunk.first, chunk.items, chunk.limit_s, chunk.limit_bytes))
        except Exception as error:  # noqa: BLE001 (classes may raise anything)
            index, cause = self._culprit(chunk, error)
            raise TransportError(
                f"item {index}, a {type(chunk.items[index - chunk.first]).__name__}, cannot be sent to worker "
                f"processes: {type(cause).__name__}: {cause}; give items that pickle (paths rather than open files), "
                "or use backend='thread'"
            ) from cause

    def packed_apart(self, chunk: Chunk) -> Packed:
        """The same, with every item a part of its own."""
        head = pack((chunk.first, None, chunk.limit_s, chunk.limit_bytes))
        return joined([head, *map(self._pack, chunk.items)])

    def _pack(self, value: object) -> Packed:
        try:
            packed = pack(value)
        except Exception:
            if not self._by_value:
                raise
            return packed_pickle(_by_value(value))
        if self._session and any(b"__main__" in piece for piece in packed.pieces if isinstance(piece, bytes)):
            return packed_pickle(_by_value(value))
        return packed

    def _culprit(self, chunk: Chunk, error: Exception) -> tuple[int, Exception]:
        for index, item in enumerate(chunk.items, chunk.first):
            try:
                self._pack(item)
            except Exception as cause:  # noqa: BLE001 (classes may raise anything; it is what the message is about)
                return index, cause
        return chunk.first, error

    def _dumps(self, value: object) -> bytes:
        return _by_value(value) if self._by_value else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _by_value(value: object) -> bytes:
    """Pickled with functions and classes as what they are, where their names would not be found.

    Raises:
        ImportError: cloudpickle is not installed.
        Exception: whatever pickling the value raises.
    """
    import cloudpickle

    return bytes(cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def _within(index: int, chunk: Chunk) -> bool:
    return chunk.first <= index < chunk.first + len(chunk.items)


def _load(handle: WorkerHandle) -> tuple[int, bool]:
    return handle.load, not handle.ready


def _refusal(during: str, reason: str) -> TransportError | WorkerError:
    if during == "initializer":
        return WorkerError(f"the initializer failed in a worker process: {reason}")
    return TransportError(
        f"worker processes cannot load the function: {reason}; define it, and what it refers to, in a module that can "
        "be imported, or use backend='thread'"
    )


def _name(func: Callable[..., Any]) -> str:
    return f"func ({getattr(func, '__qualname__', type(func).__qualname__)})"


def _way(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
