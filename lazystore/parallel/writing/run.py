"""One run of ``write_dataset``: tasks cut, handed out, collected and put in order.

Decides when a task is cut, what becomes of its outcome, and which schema holds. Files are the tasks' business,
the dataset's index the caller's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from lazystore.errors import ConfigError
from lazystore.formats.index_writer import same_schema
from lazystore.parallel.failures import Failed
from lazystore.parallel.writing.checkpoint import Checkpoint
from lazystore.parallel.writing.crew import Crew
from lazystore.parallel.writing.cutting import Cutter, known_tasks, task_size
from lazystore.parallel.writing.tasks import Done, Task

__all__ = ["Run"]

#: seconds between two looks at how far workers are
LOOK_S = 0.5


class Run:
    """One thread; does not pickle.

    Parameters:
        crew: who works.
        cutter: the inputs.
        checkpoint: where outcomes are noted, and those of an earlier run; None: nowhere.
        total: all inputs, if known.
        fixed: inputs a task; None: by what earlier tasks gave.
        like: the config of the dataset that is added to.
        show: called with how many more inputs were done.
    """

    def __init__(
        self,
        crew: Crew,
        cutter: Cutter,
        checkpoint: Checkpoint | None,
        total: int | None,
        fixed: int | None,
        like: dict[str, Any] | None,
        show: Callable[[int], object],
    ) -> None:
        self._crew = crew
        self._cutter = cutter
        self._checkpoint = checkpoint
        self._total = total
        self._fixed = fixed
        self._like = like
        self._show = show
        self._shown = 0
        self._through = 0  # inputs of all tasks that are done
        self._cut = 0  # tasks so far
        self._ended = False  # no inputs are left
        self._done: dict[int, Done] = {}
        self._held: dict[int, tuple[Task, Done]] = {}  # done before it was known which schema holds
        self._inputs = [0]  # of the first n tasks, as far as all of them are done
        self._fill = [0.0]

    def finish(self) -> list[Done]:
        """Run everything; what the tasks gave, in the order of the inputs.

        Raises:
            Exception: what ``fn`` or the inputs raised; WorkerError, ConfigError.
        """
        try:
            while True:
                self._hand_out()
                if len(self._done) == self._cut:
                    self._report()
                    return [self._done[number] for number in range(self._cut)]
                self._collect(LOOK_S)
                self._report()
        except Exception:
            # What is ready is noted for the run that continues; another failure says no more than the first.
            with contextlib.suppress(Exception):
                self._collect(0.0)
            raise

    def _collect(self, timeout: float) -> None:
        failed = None
        for task, outcome in self._crew.wait(timeout):
            if isinstance(outcome, Failed):
                failed = failed or outcome
            else:
                self._take(task, outcome)
        if failed is not None:
            raise failed.error

    def _hand_out(self) -> None:
        """Cut tasks as far as it may be done now."""
        while not self._ended and known_tasks(self._cut, self._crew.workers) < len(self._inputs):
            if self._adopt():
                continue
            first = self._cutter.position
            parcels = self._cutter.take(self._size())
            if not parcels:
                self._ended = True
                return
            count = self._cutter.position - first
            task = Task(self._cut, first, count, parcels, self._cutter.digest, self._like)
            self._cut += 1
            self._crew.submit(task)

    def _size(self) -> int:
        known = known_tasks(self._cut, self._crew.workers)
        size = self._fixed or task_size(
            self._inputs[known], self._fill[known], workers=self._crew.workers, total=self._total
        )
        following = None if self._checkpoint is None else self._checkpoint.next_first(self._cutter.position)
        return size if following is None else min(size, following - self._cutter.position)

    def _adopt(self) -> bool:
        """Take over what an earlier run has for the inputs that are next."""
        if self._checkpoint is None:
            return False
        done = self._checkpoint.records.get(self._cutter.position)
        if done is None:
            return False
        if self._cutter.skip(done.count) != done.digest:
            raise ConfigError(
                f"inputs {done.first} to {done.first + done.count - 1} are others than those of the run to continue; "
                "continue with the same inputs"
            )
        if self._like is None:
            self._like = done.part.config
        self._cut += 1
        self._keep(self._cut - 1, done)
        return True

    def _take(self, task: Task, done: Done) -> None:
        if self._like is not None:
            self._accept(task, done)
            return
        # The first sample of all decides the schema, whichever task ends first.
        self._held[task.number] = task, done
        while self._like is None and len(self._inputs) - 1 in self._held:
            task, done = self._held.pop(len(self._inputs) - 1)
            self._like = done.part.config
            self._accept(task, done)
        if self._like is not None:
            for task, done in self._held.values():
                self._accept(task, done)
            self._held.clear()

    def _accept(self, task: Task, done: Done) -> None:
        config = done.part.config
        if task.like is None and config is not None and self._like is not None and same_schema(self._like, config):
            # Its first sample has its keys in another order, or it does not fit: the encoder of the schema knows.
            task.like = self._like
            self._crew.submit(task)
            return
        if self._checkpoint is not None:
            self._checkpoint.add(done)
        self._keep(task.number, done)

    def _keep(self, number: int, done: Done) -> None:
        self._done[number] = done
        self._through += done.count
        while (following := self._done.get(len(self._inputs) - 1)) is not None:
            self._inputs.append(self._inputs[-1] + following.count)
            self._fill.append(self._fill[-1] + following.fill)

    def _report(self) -> None:
        done = self._through + self._crew.inputs_under_way()
        if done > self._shown:  # less, when a worker died
            self._show(done - self._shown)
            self._shown = done
