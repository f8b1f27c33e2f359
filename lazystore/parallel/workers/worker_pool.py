"""Worker processes that are kept between runs: who starts them, who has them, and how they end.

A worker belongs to one run at a time. No thread watches them: what becomes of one shows when somebody waits for it.
What is said to workers during a run is in ``process_backend``, how a process comes to be in ``launch``.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable

from lazystore.errors import WorkerError
from lazystore.parallel.chunk import Chunk
from lazystore.parallel.workers.inner_threads import thread_environment
from lazystore.parallel.workers.launch import (
    Child,
    ForkServer,
    has_fork_server,
    leave_all,
    refuse_where_processes_are_forbidden,
    start_interpreter,
)
from lazystore.parallel.workers.transport import Channel, Kind, Message, open_channel

__all__ = ["POOL", "WorkerHandle", "WorkerPool", "warm_workers"]

#: modules every worker has from its start
PRELOAD = ("lazystore.parallel.workers.worker_main",)

#: seconds a worker is kept without work; less than it would stay by itself, so that none ends while it is given work
WARM_S = 50.0

#: seconds a run that ends waits for chunks that are nearly done, to keep their workers
LINGER_S = 0.05

#: seconds a worker has to end after SIGTERM; then it is killed
TERM_S = 0.5

#: seconds a killed process has to be gone
KILL_S = 0.5


class WorkerHandle:
    """A worker process and the way to it.

    Attributes:
        number: the worker's, unique in this process.
        child: the process.
        channel: the way to it.
        ready: whether it said that it is up.
        tag: names the initializer that it ran; b"" for none.
        job: the job it was told last; -1 for none.
        job_at: when (``time.monotonic``).
        sent: chunks it was sent in its life; the last one's number.
        job_from: the number before that of the job's first chunk.
        unanswered: chunks it has, by number, the one that runs first.
        withdrawn: numbers of chunks taken back from it that it has not skipped yet: they still fill its pipe.
        midway: a message is being sent or taken; if it stays so, that was interrupted and the worker is of no more use.
        idle_since: when it was given back (``time.monotonic``).
        tracked: whether it knows the resource tracker of this process.
    """

    # fmt: off
    __slots__ = (
        "channel", "child", "idle_since", "job", "job_at", "job_from", "midway", "number", "ready", "sent", "tag",
        "tracked", "unanswered", "withdrawn",
    )
    # fmt: on

    def __init__(self, number: int, child: Child, channel: Channel) -> None:
        self.number = number
        self.child = child
        self.channel = channel
        self.ready = False
        self.tag = b""
        self.job = -1
        self.job_at = 0.0
        self.job_from = 0
        self.sent = 0
        self.unanswered: dict[int, Chunk] = {}
        self.withdrawn: set[int] = set()
        self.midway = False
        self.idle_since = time.monotonic()
        self.tracked = _has_tracker()

    def alive(self) -> bool:
        return self.child.look() is None and not self.channel.ended

    @property
    def load(self) -> int:
        """Chunks it was sent and has said nothing of yet."""
        return len(self.unanswered) + len(self.withdrawn)

    def usable(self) -> bool:
        """Whether the next run may have it."""
        return self.alive() and not self.midway and not self.load

    def hear(self) -> list[Message]:
        """What it sent, without waiting."""
        self.midway = True
        messages = self.channel.messages()
        self.midway = False
        return messages

    def skip(self) -> None:
        """Take what it sent, and drop it."""
        for message in self.hear():
            if message.kind == Kind.HELLO:
                self.ready = True
            elif message.kind in (Kind.REPORT, Kind.AGAIN, Kind.SKIPPED):
                self.unanswered.pop(message.number, None)
                self.withdrawn.discard(message.number)

    def close(self) -> None:
        """Close the way to it: an idle worker ends, one at work when it next answers. May be called again."""
        self.channel.close()
        self.child.close()


class WorkerPool:
    """The worker processes of this process.

    Safe to use from several threads. In a child of ``fork`` it starts empty. Workers end with the interpreter, without
    being waited for, and when this process is killed. The fork server they come from stays as long as this process: an
    interpreter with lazystore's modules, whose memory workers share (without numpy, which takes longer than all the
    rest and is not needed by all).

    Attributes:
        generation: how often all workers were ended.
    """

    def __init__(self) -> None:
        # reentrant: a run that the garbage collector ends gives its workers back in whatever thread that happens
        self._lock = threading.RLock()
        self._idle: list[WorkerHandle] = []
        self._all: set[WorkerHandle] = set()
        self._server: ForkServer | None = None
        self._numbers = itertools.count(1)
        self.generation = 0
        self._registered = False

    def warm(self, tag: bytes = b"") -> int:
        """Idle workers that could start at once on a job with this initializer."""
        with self._lock:
            self._sweep()
            return sum(handle.ready and handle.tag in (b"", tag) for handle in self._idle)

    def lease(self, crew: list[WorkerHandle], count: int, tag: bytes = b"", inner_threads: int = 0) -> None:
        """Add workers to a crew: first those that are warm, then new ones, which may be used before they are up.

        Parameters:
            crew: gets each worker as soon as there is one, so that none is lost if this is interrupted.
            count: how many.
            tag: names the run's initializer; a worker that ran another one is not taken.
            inner_threads: what new workers limit libraries to when they load them; 0: as they like.

        Raises:
            WorkerError: processes cannot be started here.
        """
        refuse_where_processes_are_forbidden()
        with self._lock:
            self._sweep()
            fit = [handle for handle in self._idle if handle.tag in (b"", tag)]
            fit.sort(key=lambda handle: (handle.tag == tag, handle.ready, handle.idle_since))
            for _ in range(count):
                if fit:
                    handle = fit.pop()
                    self._idle.remove(handle)
                    crew.append(handle)
                else:
                    self._start(crew, inner_threads)

    def give_back(self, crew: list[WorkerHandle]) -> None:
        """Take workers back and empty the crew.

        Those at work have 50 ms to finish; then they are ended: at most half a second more, usually a millisecond.
        """
        with self._lock:
            mine = [handle for handle in crew if handle in self._all]  # after a fork they are the parent's
        for handle in crew:
            if handle not in mine:
                handle.close()
        crew[:] = mine
        try:
            _linger(crew)
        finally:
            with self._lock:
                kept = [handle for handle in crew if handle.usable()]
                ended = [handle for handle in crew if handle not in kept]
                for handle in kept:
                    handle.channel.trim()
                    handle.idle_since = time.monotonic()
                self._idle += kept
                crew.clear()
                self._all.difference_update(ended)
            _end(ended)

    def bury(self, handle: WorkerHandle) -> int:
        """Put an end to a worker that died or must die; its exit code (negative: a signal)."""
        with self._lock:
            self._all.discard(handle)
        if handle.child.look() is None:
            # its channel closed a moment ago, or it is to be killed
            _wait([handle], KILL_S if handle.channel.ended else 0.0)
            handle.child.signal(signal.SIGKILL)
            _wait([handle], KILL_S)
        code = handle.child.look()
        handle.close()
        return -signal.SIGKILL if code is None else code

    def end_all(self) -> None:
        """End all workers without waiting for them: those at work are killed, the others see that nobody is there.

        At the interpreter's end a daemon thread may have some of them; what it has is not taken from under its hands.
        """
        with self._lock:
            self.generation += 1
            for handle in self._all:
                if handle.load:
                    handle.child.signal(signal.SIGKILL)
            for handle in self._idle:
                handle.close()
            self._clear()

    def forget(self) -> None:
        """After a fork, in the child: these are the parent's workers."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        for handle in self._all:
            handle.close()
        self._clear()

    def _clear(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._all.clear()
        self._idle.clear()
        leave_all()

    def _sweep(self) -> None:
        """Let go of idle workers that ended or would end soon, or that lack what new ones have."""
        now = time.monotonic()
        tracked = _has_tracker()
        for handle in list(self._idle):
            if not handle.ready:
                handle.skip()
            if not handle.usable() or now - handle.idle_since > WARM_S or handle.tracked != tracked:
                self._idle.remove(handle)
                self._all.discard(handle)
                handle.close()

    def _start(self, crew: list[WorkerHandle], inner_threads: int) -> None:
        if not self._registered:
            atexit.register(self.end_all)
            os.register_at_fork(after_in_child=self.forget)
            self._registered = True
        try:
            channel, fds = open_channel()
        except OSError as error:
            raise WorkerError(f"no pipes for another worker process: {error}; raise the limit (ulimit -n)") from error
        try:
            number = next(self._numbers)
            child = self._child(number, fds, os.environ | thread_environment(inner_threads))
        except BaseException:
            channel.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)
        handle = WorkerHandle(number, child, channel)
        self._all.add(handle)
        crew.append(handle)

    def _child(self, number: int, fds: tuple[int, ...], variables: dict[str, str]) -> Child:
        if not has_fork_server():
            return start_interpreter(number, fds, variables)
        if self._server is not None and self._server.alive():
            # WorkerError: it ended this moment
            with contextlib.suppress(WorkerError):
                return self._server.start(number, fds)
        if self._server is not None:
            self._server.close()
        self._server = ForkServer(PRELOAD, variables)
        return self._server.start(number, fds)


def _has_tracker() -> bool:
    """Whether this process has a resource tracker that workers must know (see ``launch``)."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    return getattr(getattr(tracker, "_resource_tracker", None), "_fd", None) is not None


def _linger(crew: Iterable[WorkerHandle]) -> None:
    """Wait a moment for those that are at work."""
    busy = {handle.channel.reading: handle for handle in crew if handle.load and not handle.midway}
    poll = select.poll()
    for fd in busy:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + LINGER_S
    while busy and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            busy[fd].skip()
            if not busy[fd].load or busy[fd].channel.ended:
                poll.unregister(fd)
                del busy[fd]


def _end(handles: list[WorkerHandle]) -> None:
    """End processes, kindly first."""
    try:
        if any(handle.load for handle in handles):
            _wait(handles, TERM_S, signal.SIGTERM)
    finally:
        for handle in handles:
            handle.child.signal(signal.SIGKILL)
            handle.close()


def _wait(handles: list[WorkerHandle], seconds: float, number: int = 0) -> None:
    """Wait until processes have ended; send each a signal as soon as it is known which process it is."""
    deadline = time.monotonic() + seconds
    running = {handle.child.sentinel: handle for handle in handles if handle.child.look() is None}
    told: set[int] = set()
    poll = select.poll()
    for fd in running:
        poll.register(fd, select.POLLIN)
    while running:
        for fd, handle in running.items():
            if number and handle.child.pid and fd not in told:
                told.add(fd)
                handle.child.signal(number)
        left = deadline - time.monotonic()
        if left <= 0:
            return
        for fd, _ in poll.poll(left * 1000):
            if running[fd].child.look() is not None:
                poll.unregister(fd)
                del running[fd]
            else:
                time.sleep(0.001)  # it is about to be known


#: the workers of this process
POOL = WorkerPool()


def warm_workers() -> int:
    """Workers that could start on a job at once; 0 where the first would have to be started.

    Cost: some microseconds a worker.
    """
    return POOL.warm()
