"""What the caller's own thread runs of an `imap`, beside what its iterator runs item by item."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf
from pathlib import Path
from sys import _getframe
from typing import Any, Final

from lazystore.errors import WorkerError
from lazystore.parallel.chunk import Chunk, Job, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.map_stats import MapStats
from lazystore.parallel.scheduling.arrivals import Part
from lazystore.parallel.scheduling.policy import Policy
from lazystore.parallel.workers.chunk_run import Ran, run_chunk, weigh

__all__ = ["Caller", "warn"]

#: of all of `imap`: its iterator lies outside of this folder
_HERE: Final = str(Path(__file__).parents[1])


class Caller:
    """Runs items here and now; what is not an ``Exception`` (Ctrl-C) comes out of it.

    Parameters:
        job: what is done; may be replaced by one that reads its items by keys.
        policy: what becomes of failures.
        stats: kept up to date.
    """

    def __init__(self, job: Job, policy: Policy, stats: MapStats) -> None:
        self.job = job
        self._policy = policy
        self._stats = stats
        self._initialized = job.initializer is None

    def initialize(self) -> None:
        """Run the initializer, once, before the first item.

        Raises:
            WorkerError: it failed.
        """
        if self._initialized or self.job.initializer is None:
            return
        try:
            self.job.initializer()
        except Exception as error:
            raise WorkerError(f"the initializer failed: {type(error).__name__}: {error}") from error
        self._initialized = True

    def caught(self, error: Exception, index: int, item: Any) -> tuple[Any, ...]:
        """What stands for an item that raised: tried again, then by the policy."""
        for _ in range(self.job.retries):
            self._stats.retried += 1
            try:
                return (self.job.func(item),)
            except Exception as again:  # noqa: BLE001 (the caller's function; the last error is reported below)
                error = again
        self._stats.failed += 1
        if isinstance(error, StopIteration):  # it would end the stream
            error = RuntimeError("the function raised StopIteration")
        return self._policy.apply(Failed(error, index, item), item)

    def run(self, items: Sequence[Any], first: int, limit_s: float = inf) -> tuple[Ran, Part]:
        """Run items, or those of some keys; those that were not begun in so many seconds are left."""
        ran = run_chunk(self.job, items, first, limit_s, catch=Exception)
        self._stats.failed += ran.failures
        self._stats.retried += ran.retried
        return ran, Part(first, ran.results, items, ran.failures, weigh(ran.results[0]))

    def in_place_of_a_worker(self, chunk: Chunk) -> Report:
        """Run a chunk that no worker is to have."""
        self.initialize()
        ran = run_chunk(self.job, chunk.items, chunk.first, catch=Exception)
        self._stats.in_caller += len(chunk.items)
        self._stats.caller_s += ran.run_s  # the rest is counted with the report
        return Report(
            chunk, ran.results, ran.failures, ran.retried, ran.run_s, ran.computed_s, ran.longest_s, ran.longest_at
        )


def warn(text: str) -> None:
    """Warn at the line outside of this package that asked for the next result."""
    level, frame = 2, _getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)
