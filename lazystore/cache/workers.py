"""The threads that background loading may use: a fixed number of daemons.

What a job does (load, store, settle a flight) is its function's business; who waits for it, and the one load a key,
are ``single_flight.py``'s and ``loads.py``'s; the order of jobs is ``job_queue.py``'s. Nothing here knows of values,
budgets or event loops.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext

from lazystore.cache.job_queue import CANCELLED, DONE, QUEUED, RUNNING, TAU_S, Job, JobQueue
from lazystore.errors import ClosedError, ConfigError

__all__ = ["Job", "Workers"]

#: Seconds after which a thread without work ends.
IDLE_S = 5.0


class _Crew:
    """What the threads share. They know this, never the :class:`Workers`: a forgotten one can go."""

    def __init__(self, count: int, name: str, idle: float, queue: Callable[[], JobQueue]) -> None:
        self._count = count
        self._speculative = max(1, count - 1)
        self._name = name
        self._idle = idle
        self._make_queue = queue
        self._started = 0
        self._generation = 0
        self.closed = False
        self.ending = False
        self._begin()

    def _begin(self) -> None:
        # Re-entrant: a destructor may submit, cancel, or drop a Workers in a thread that holds it.
        self.condition = threading.Condition(threading.RLock())
        self.queue = self._make_queue()
        self.threads: set[threading.Thread] = set()
        self.running: set[Job] = set()
        self.resting = 0
        self.blocked = 0
        self.speculating = 0

    def after_fork(self) -> None:
        """Begin anew in a child, where neither the threads nor, perhaps, the lock's holder exist."""
        for job in (*self.running, *self.queue.jobs()):
            job.state = CANCELLED
        self._generation += 1
        self._begin()

    def submit(self, job: Job) -> Job:
        with self.condition:
            if self.closed:
                raise ClosedError(f"{self._name}: these workers are closed: submit before close()")
            queued = self.queue.find(job.key)
            if queued is None:
                self.queue.push(queued := job)
            else:
                self.queue.promote(queued, job.priority, job.demand)
            try:
                self._call_hand()
            except RuntimeError:  # no thread, so it would never run
                self.cancel(queued)
                raise
        return queued

    def promote(self, job: Job, priority: float, demand: bool) -> bool:
        _check(priority)
        with self.condition:
            if job.state != QUEUED:
                return False
            if self.queue.promote(job, priority, demand):
                self._call_hand()
            return True

    def cancel(self, job: Job) -> bool:
        with self.condition:
            if job.state != QUEUED:
                return False
            self.queue.drop(job)
            job.state = CANCELLED
        _let_go(job)
        return True

    def _call_hand(self) -> None:
        """Wake or start a thread, if there is a job that one may take."""
        room = max(0, self._speculative - self.speculating)
        wanted = self.queue.waiting(True) + min(self.queue.waiting(False), room)
        if not wanted:
            return
        if wanted <= self.resting or len(self.threads) - self.blocked >= self._count:
            self.condition.notify()
            return
        self._started += 1
        name = f"{self._name}-{self._started}"
        thread = threading.Thread(target=self._work, args=(self._generation,), name=name, daemon=True)
        self.threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had, or the interpreter is ending
            self.threads.discard(thread)
            if not self.threads:
                raise

    def _work(self, generation: int) -> None:
        _here.crew = self
        while (job := self._take()) is not None:
            func, job._func, job._dropped = job._func, None, None
            try:
                assert func is not None
                func()
            except BaseException as error:  # noqa: BLE001 - told like one that ended a thread; this one goes on
                _tell(error)
            del func
            if generation != self._generation:
                return  # the job forked: in the child this thread is no worker any more
            with self.condition:
                job.state = DONE
                self.running.discard(job)
                self.speculating -= not job.demand
            del job  # a resting thread holds no data

    def _take(self) -> Job | None:
        """The next job, or None: this thread shall end."""
        called = True
        with self.condition:
            while len(self.threads) - self.blocked <= self._count:
                job = self.queue.pop(self.speculating < self._speculative)
                if job is not None:
                    job.state = RUNNING
                    self.running.add(job)
                    self.speculating += not job.demand
                    return job
                if self.ending or not called:
                    break
                self.resting += 1
                called = self.condition.wait(self._idle)
                self.resting -= 1
            self.threads.discard(threading.current_thread())
            self._call_hand()  # this thread may have been called for a job, and be one too many
            return None

    def block(self) -> int:
        """A thread waits for other jobs from now on; the generation it belongs to."""
        with self.condition:
            self.blocked += 1
            self._call_hand()
            return self._generation

    def unblock(self, generation: int) -> None:
        with self.condition:
            self.blocked -= generation == self._generation

    def end(self) -> None:
        """Let the threads end once nothing is queued. Called for a forgotten Workers, from wherever it went."""
        with self.condition:
            self.ending = True
            self.condition.notify_all()

    def close(self, grace: float) -> bool:
        with self.condition:
            self.closed = True
            dropped = []
            while (job := self.queue.pop()) is not None:
                job.state = CANCELLED
                dropped.append(job)
            self.end()
            threads = self.threads - {threading.current_thread()}
        for job in dropped:
            _let_go(job)
        end = time.monotonic() + grace
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


class Workers:
    """At most ``count`` daemon threads at work, which run jobs, the most urgent first.

    Threads start one by one, when a job finds none resting, and end after a few seconds without work; none exists
    before the first :meth:`submit`. Demand jobs pass all others, and jobs nobody waits for never hold the last thread
    (of one thread alone there is no other to leave free: demand then waits for the job that runs).

    Threads: any may submit, promote, cancel and close. Fork: the child's is empty and open, with threads of its own;
    the parent's jobs are its parent's. Pickling: none. A forgotten Workers runs what is queued, then its threads end.
    Interpreter exit: waits for nothing. :meth:`close` joins.

    Parameters:
        count: threads, 1 or more.
        name: what the threads' names begin with.
        tau: seconds of waiting that count like one step of priority.
        idle: seconds after which a thread without work ends.
        clock: seconds, monotonic; for the order of jobs only.

    Raises:
        ConfigError: a count below 1.
    """

    def __init__(
        self,
        count: int,
        name: str = "lazystore-worker",
        *,
        tau: float = TAU_S,
        idle: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if count < 1:
            raise ConfigError(f"{count} workers can run nothing: give 1 or more")
        self._crew = _Crew(count, name, idle, lambda: JobQueue(tau, clock))
        weakref.finalize(self, self._crew.end).atexit = False
        _ALL.add(self)

    def submit(
        self,
        func: Callable[[], object],
        *,
        priority: float = 0.0,
        key: Hashable | None = None,
        demand: bool = False,
        dropped: Callable[[], object] | None = None,
    ) -> Job:
        """Queue ``func`` and return its job, or the queued job of the same key, raised to the greater priority.

        Parameters:
            func: called without arguments in a worker thread. What it raises goes to ``threading.excepthook``: a job
                that somebody waits for has to settle that itself.
            priority: higher runs sooner.
            key: jobs of an equal key are one while they are queued; the first one's ``func`` and ``dropped`` stay.
            demand: somebody waits for it.
            dropped: called if the job will never run (:meth:`Job.cancel`, :meth:`close`), in the thread that drops it.

        Raises:
            ClosedError: after :meth:`close`.
            ConfigError: the priority is NaN.
            RuntimeError: no thread can be started (the interpreter is ending).

        Cost: some microseconds; the first ones start a thread.
        """
        _check(priority)
        job = Job(self._crew, func, key=key, priority=priority, demand=demand, dropped=dropped)
        return self._crew.submit(job)

    def blocked(self) -> AbstractContextManager[None]:
        """While inside, the job of this thread waits for other jobs, and another thread may run in its place.

        Without it as many jobs as there are threads could wait for one that is still queued, for ever. In a thread
        that is none of these it does nothing. May be nested.
        """
        return _Blocked(self._crew) if getattr(_here, "crew", None) is self._crew else _NOT_HERE

    @property
    def queued(self) -> int:
        """Jobs that wait for a thread."""
        return len(self._crew.queue)

    @property
    def running(self) -> int:
        """Jobs that run now."""
        return len(self._crew.running)

    @property
    def threads(self) -> int:
        """Threads that exist now."""
        return len(self._crew.threads)

    @property
    def closed(self) -> bool:
        return self._crew.closed

    def close(self, grace: float = 2.0) -> bool:
        """Drop what is queued, let what runs end, and join the threads. Closing twice is harmless.

        Parameters:
            grace: seconds to wait for running jobs, all together. One that takes longer is left to itself: a daemon.

        Returns: whether every thread has ended (but the caller's own, if it is one of them).
        """
        return self._crew.close(grace)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.running} running, {self.queued} queued"
        return f"<Workers {self._crew._name}: {self.threads} of {self._crew._count} threads, {state}>"


class _Blocked:
    """See :meth:`Workers.blocked`. What is entered twice in one thread counts once."""

    __slots__ = ("_crew", "_generation")

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._generation: int | None = None

    def __enter__(self) -> None:
        if not getattr(_here, "blocked", False):
            _here.blocked = True
            self._generation = self._crew.block()

    def __exit__(self, *exc: object) -> None:
        if self._generation is not None:
            _here.blocked = False
            self._crew.unblock(self._generation)


#: Which threads a thread is one of, and whether its job waits for others.
_here = threading.local()
_NOT_HERE: AbstractContextManager[None] = nullcontext()


def _check(priority: float) -> None:
    if math.isnan(priority):
        raise ConfigError("NaN is no priority: nothing is above or below it")


def _let_go(job: Job) -> None:
    """Tell that a job will not run, and free what it holds, outside the lock."""
    dropped, job._func, job._dropped = job._dropped, None, None
    if dropped is not None:
        try:
            dropped()
        except Exception as error:  # noqa: BLE001 - told, as a job's own: others are to be let go as well
            _tell(error)


def _tell(error: BaseException) -> None:
    """What would have ended the thread, to where such errors go."""
    args = threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    try:
        threading.excepthook(args)
    except Exception:  # noqa: BLE001 - the hook is a user's; told the way threading tells it
        sys.excepthook(*sys.exc_info())


_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for workers in list(_ALL):
        workers._crew.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
