"""What travels between `imap`'s engine and those who run items: a job, chunks of items, and reports about them.

Values only. The engine (``engine``) makes chunks and takes reports; backends (``process_backend``,
``thread_backend``, ``executor_backend``) carry them to workers; ``chunk_run`` runs the items, wherever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

__all__ = ["Backend", "Chunk", "Job", "Lost", "Report"]


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with every item; the same for all chunks of a run.

    Parameters:
        func: what is called with each item.
        initializer: called once in each worker (process or thread) before its first item.
        retries: times an item whose ``func`` raised an ``Exception`` is tried again, on the spot.
        timeout: seconds one call of ``func`` may take; None for no limit.
        reader: for data that workers read themselves: turns the chunk's keys into the items, in that order.
        inner_threads: threads that libraries (BLAS, OpenMP) may use inside ``func`` in a worker process; 0: any number.
    """

    func: Callable[[Any], Any]
    initializer: Callable[[], object] | None = None
    retries: int = 0
    timeout: float | None = None
    reader: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    inner_threads: int = 0


@dataclass(slots=True)
class Chunk:
    """Neighbouring items, run one after the other by one worker.

    Parameters:
        number: names the chunk within its run.
        first: index of the first item in the data.
        items: what ``func`` is called with, or keys for ``Job.reader``.
        limit_s: the worker stops after the item that is running when so many seconds have passed.
        limit_bytes: it stops likewise when results so far weigh this many bytes.
        deaths: workers that died while they ran it.
        sent_at: when it was given to a worker, by the engine's clock.
    """

    number: int
    first: int
    items: Sequence[Any]
    limit_s: float = float("inf")
    limit_bytes: int = 1 << 62
    deaths: int = 0
    sent_at: float = 0.0


@dataclass(slots=True)
class Report:
    """What became of a chunk.

    Parameters:
        chunk: the chunk.
        results: of its first ``len(results)`` items, at least one; a :class:`~lazystore.parallel.failures.Failed`
            stands where an item failed. Items behind them were not begun: the worker handed them back.
        failures: how many of the results are ``Failed``.
        retried: tries beyond the first of each item.
        run_s: seconds in ``func``, all items together.
        computed_s: of those the seconds of a processor; infinite where nobody looked: taken for computing all the time.
        longest_s: seconds of the slowest item that was timed by itself (or the mean of a stretch of quick ones).
        longest_at: index in the data of that item.
        transport_s: seconds in the worker to take the items apart and pack the results.
        in_bytes, out_bytes: what travelled; 0 where nothing is packed (threads).
        worker: number of the worker.
    """

    chunk: Chunk
    results: list[Any]
    failures: int = 0
    retried: int = 0
    run_s: float = 0.0
    computed_s: float = inf
    longest_s: float = 0.0
    longest_at: int = -1
    transport_s: float = 0.0
    in_bytes: int = 0
    out_bytes: int = 0
    worker: int = 0


@dataclass(slots=True)
class Lost:
    """A chunk that did not come back.

    Parameters:
        chunk: the chunk.
        began: whether a worker may have begun it; False: it was waiting behind another and is as good as new.
        exit_code: of the process that died; negative: the signal. 0 where no process died.
        late_at: index of the item that took longer than ``Job.timeout``; -1: none did.
    """

    chunk: Chunk
    began: bool
    exit_code: int = 0
    late_at: int = -1


class Backend(Protocol):
    """Runs chunks of one job. Called by one thread at a time; starts nothing before :meth:`start`.

    Attributes:
        kind: "process", "thread" or "executor".
        workers: how many there are, those that are still starting included.
    """

    @property
    def kind(self) -> str: ...

    @property
    def workers(self) -> int: ...

    def start(self, workers: int) -> None:
        """Bring up ``workers`` workers in all; returns at once. Chunks may be submitted before they are up.

        Raises:
            TransportError: the job cannot be sent to them.
        """
        ...

    def ready(self) -> int:
        """Workers that are up."""
        ...

    def room(self, depth: int) -> int:
        """Chunks that may be submitted now so that no worker has more than ``depth`` of them."""
        ...

    def submit(self, chunk: Chunk) -> None:
        """Give a chunk to the worker that has least to do.

        Raises:
            TransportError: an item cannot travel; nothing was sent.
        """
        ...

    def take_waiting(self, most: int) -> list[Chunk]:
        """Take back up to ``most`` chunks that no worker has begun; they are the caller's again, as good as new.

        For workers that have nothing to do while chunks wait behind others. May take fewer than there are.
        """
        ...

    def wait(self, timeout: float | None) -> list[Report | Lost]:
        """What ended, in any order; waits until something did, or ``timeout`` seconds (None: no limit, 0: a look).

        Raises:
            TransportError: workers cannot load the job's function.
            WorkerError: workers cannot be started, or the executor broke.
        """
        ...

    def close(self) -> None:
        """Give the workers up: idle ones may be kept warm for others, those at work are stopped as far as can be."""
        ...
