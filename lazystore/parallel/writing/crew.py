"""Who runs tasks: any ``concurrent.futures.Executor``, or the calling thread.

A crew takes tasks and gives back outcomes in whatever order they come. Order, retries against another format
and what becomes of the outcomes belong to ``write``; lazystore's own processes are in ``workers``.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from lazystore.errors import ConfigError, WorkerError
from lazystore.parallel.writing.tasks import Job, Outcome, Parcel, Task, run_task

__all__ = ["CallingThread", "Crew", "ExecutorCrew", "parcel", "weighed"]

T = TypeVar("T")


class Crew(Protocol):
    """Runs tasks.

    Attributes:
        workers: how many tasks run at a time.
    """

    workers: int

    def pack(self, inputs: Sequence[Any], first: int) -> tuple[Any, int]:
        """Inputs as a task carries them, and the bytes they hold in this process.

        Raises:
            ConfigError: an input cannot travel.
        """
        ...

    def submit(self, task: Task) -> None:
        """Have a task run, after those that were submitted before."""
        ...

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Tasks that ended; none when ``timeout`` seconds passed before one did.

        Raises:
            WorkerError: workers died too often, or the executor broke.
            ConfigError: a task could not be sent.
        """
        ...

    def look(self) -> None:
        """See to the workers, without waiting: those that are through with a task get the next one."""
        ...

    def inputs_under_way(self) -> int:
        """Inputs that running tasks are through with."""
        ...

    def close(self) -> None:
        """Stop everything; tasks that still run are ended where that can be done."""
        ...


def parcel(inputs: Sequence[Any], first: int) -> tuple[Parcel, int]:
    """Inputs pickled.

    Raises:
        ConfigError: one of them cannot be; names it.
    """
    try:
        data = pickle.dumps(inputs, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        number, value = next(((n, v) for n, v in enumerate(inputs, first) if not _travels(v)), (first, inputs[0]))
        raise ConfigError(
            f"input {number}, a {type(value).__name__}, cannot be sent to a worker process: {error}; give inputs "
            "that can be pickled (paths rather than open files), or executor=ThreadPoolExecutor()"
        ) from error
    return Parcel(data), len(data)


def weighed(inputs: Sequence[Any], first: int) -> tuple[Sequence[Any], int]:
    """Inputs as they are, for workers in this process, and roughly what they weigh."""
    return inputs, sys.getsizeof(inputs) if isinstance(inputs, range) else sum(map(sys.getsizeof, inputs))


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 (classes may raise anything from here; the question is whether they do)
        return False
    return True


class CallingThread(Executor):
    """An executor that runs what it is given at once."""

    _max_workers = 1

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class ExecutorCrew:
    """Tasks in somebody's executor, which stays open.

    Each task is one call of a module-level function with picklable arguments: it writes its own chunk files and
    returns a few hundred bytes, wherever it runs. A worker's death is the executor's business: those that move
    the work elsewhere (Dask) go on, those that break (``ProcessPoolExecutor``) end the run.

    Parameters:
        executor: threads of this process get inputs as they are, all others pickled ones.
        workers: how many tasks it runs at a time.
    """

    def __init__(self, executor: Executor, job: Job, *, workers: int) -> None:
        self.workers = workers
        self.pack = weighed if isinstance(executor, (ThreadPoolExecutor, CallingThread)) else parcel
        self._executor = executor
        self._job = job
        self._running: dict[Future[Outcome], Task] = {}

    def submit(self, task: Task) -> None:
        try:
            future = self._executor.submit(run_task, self._job, task)
        except BrokenExecutor as error:
            raise _broken(error) from error
        self._running[future] = task

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        done, _ = concurrent.futures.wait(
            self._running, timeout=timeout, return_when=concurrent.futures.FIRST_COMPLETED
        )
        return [(self._running.pop(future), _outcome(future)) for future in done]

    def look(self) -> None:
        """The executor does that."""

    def inputs_under_way(self) -> int:
        return 0

    def close(self) -> None:
        for future in self._running:
            future.cancel()
        concurrent.futures.wait([future for future in self._running if not future.cancelled()])
        self._running.clear()


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except (BrokenExecutor, CancelledError) as error:
        raise _broken(error) from error
    except Exception as error:
        # what fn raises is part of the outcome, so this is the way there and back
        raise ConfigError(
            f"a task could not be sent to the executor, or its outcome not back: {error}; fn and its inputs must "
            "be picklable by this executor, and importable where its workers run"
        ) from error


def _broken(error: BaseException) -> WorkerError:
    return WorkerError(
        f"the executor gave up ({type(error).__name__}: {error}); with use_checkpoint=True the same call "
        "in a new executor continues, with executor=None lazystore's own processes replace a worker that dies"
    )
