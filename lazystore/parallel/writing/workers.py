"""lazystore's own worker processes: spawned, fed one task at a time, replaced when they die.

One pipe a worker, so that a death is known to belong to one task, and a word of shared memory that says which
input it is at. No threads: the caller's thread waits on all pipes at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
from collections import deque
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from lazystore.errors import ConfigError, WorkerError
from lazystore.parallel.writing.crew import parcel
from lazystore.parallel.writing.tasks import Job, Outcome, Parcel, Task, run_task

__all__ = ["ProcessCrew"]

#: workers that one task may kill, and that may die before their first task
DEATHS = 3

#: seconds for a worker to go away by itself
PATIENCE_S = 5.0


class ProcessCrew:
    """Tasks in processes of our own.

    Processes are spawned, never forked: the caller may have threads. They start when there is work for them, ignore
    Ctrl-C (the caller ends them), and end by themselves when the caller is gone.

    Parameters:
        job: pickled once for each worker.
        workers: how many processes.

    Raises:
        ConfigError: ``fn`` or an option cannot be pickled.
    """

    def __init__(self, job: Job, *, workers: int) -> None:
        self.workers = workers
        self.pack = parcel
        try:
            self._job = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise ConfigError(
                f"fn or an option cannot be sent to worker processes: {error}; give a function of a module (no "
                "lambda, nothing defined inside a function), or executor=ThreadPoolExecutor()"
            ) from error
        self._crew: list[_Worker] = []
        self._queue: deque[Task] = deque()
        self._outcomes: list[tuple[Task, Outcome]] = []
        self._deaths: dict[int, int] = {}
        self._stillborn = 0

    def submit(self, task: Task) -> None:
        self._queue.append(task)
        self._feed()

    def inputs_under_way(self) -> int:
        return sum(worker.at.value - worker.task.first for worker in self._crew if worker.task is not None)

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        if not self._outcomes:
            self.look(timeout)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def look(self, timeout: float = 0.0) -> None:
        self._feed()
        watched = {worker.pipe: worker for worker in self._crew}
        # A dead worker's pipe is ready as well: the other end is closed.
        for pipe in connection.wait(list(watched), timeout):
            worker = watched[pipe]  # type: ignore[index]
            try:
                outcome = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):  # it may have died in the middle of a message
                self._bury(worker)
                continue
            if worker.task is None:
                worker.greet(outcome)
            else:
                self._outcomes.append((worker.task, outcome))
                worker.task = None
        self._feed()

    def close(self) -> None:
        for worker in self._crew:
            worker.end()
        for worker in self._crew:
            worker.bury()
        self._crew.clear()
        self._queue.clear()

    def _feed(self) -> None:
        """Give waiting tasks to idle workers; start workers while there are too few."""
        for worker in list(self._crew):
            if not self._queue:
                return
            if worker.ready and worker.task is None:
                task = self._queue.popleft()
                if not worker.give(task):
                    self._bury(worker)
        starting = sum(not worker.ready for worker in self._crew)
        while len(self._crew) < self.workers and starting < len(self._queue):
            self._crew.append(_Worker(self._job))
            starting += 1

    def _bury(self, worker: _Worker) -> None:
        """A worker died: its task goes to the next one, unless it is the task that kills."""
        self._crew.remove(worker)
        status = worker.bury()
        task = worker.task
        if task is None:
            self._stillborn += not worker.ready
            if self._stillborn and (status > 0 or self._stillborn >= DEATHS):
                raise WorkerError(
                    f"a worker process ended before it began ({_way(status)}). Where the calling program is a script, "
                    "the call belongs under `if __name__ == '__main__':`, because workers import the script"
                )
            return
        deaths = self._deaths[task.number] = self._deaths.get(task.number, 0) + 1
        if deaths >= DEATHS:
            raise WorkerError(
                f"inputs {task.first} to {task.first + task.count - 1} killed {deaths} worker processes, the last one "
                f"at input {worker.at.value} ({_way(status)}); leave that input out, or give workers more memory"
            )
        self._queue.appendleft(task)


class _Worker:
    """One process, seen from the caller."""

    def __init__(self, job: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.at: Any = context.RawValue(ctypes.c_uint64)
        self.ready = False
        self.task: Task | None = None
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, self.at, job, os.getpid()), name="lazystore-writer"
        )
        self._process.start()
        theirs.close()

    def greet(self, trouble: str) -> None:
        if trouble:
            raise ConfigError(
                f"fn cannot be had in a worker process: {trouble}; define it in a module that workers can import"
            )
        self.ready = True

    def give(self, task: Task) -> bool:
        """Send a task; False if the worker is dead."""
        self.task = task
        self.at.value = task.first
        try:
            # parcels for themselves, so that they are not copied into one message
            self.pipe.send_bytes(pickle.dumps((replace(task, parcels=[]), len(task.parcels))))
            for each in task.parcels:
                assert isinstance(each, Parcel)  # our pack makes no others
                self.pipe.send_bytes(each.data)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """Ask it to go: an idle one goes when its pipe closes, a busy one is told."""
        self.pipe.close()
        if self.task is not None or not self.ready:
            self._process.terminate()

    def bury(self) -> int:
        """Wait until it is gone; its exit status (negative: the signal that ended it)."""
        self.pipe.close()
        self._process.join(PATIENCE_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        status = self._process.exitcode
        self._process.close()
        return status if status is not None else 0


def _way(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"{name}, which is also how a process ends that is out of memory" if name == "SIGKILL" else name


def _serve(pipe: Connection, at: Any, job: bytes, parent: int) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A caller that was killed closes its end of the pipe, so sending and receiving fail; there is nobody to tell.
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            work: Job = pickle.loads(job)
        except Exception as error:  # noqa: BLE001 (whatever importing the user's module raises is reported)
            pipe.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
            return
        pipe.send_bytes(pickle.dumps(""))

        def note(number: int) -> None:
            at.value = number
            if os.getppid() != parent:
                os._exit(1)  # nobody wants this task's result any more

        while True:
            task, parcels = pickle.loads(pipe.recv_bytes())
            task.parcels = [Parcel(pipe.recv_bytes()) for _ in range(parcels)]
            outcome = run_task(work, task, note)
            pipe.send_bytes(pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL))
