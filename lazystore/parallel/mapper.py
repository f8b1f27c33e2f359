"""`imap`, `imap_unordered`: a function over a stream, on as many workers as pay, results as a stream.

Here: arguments, and the iterator that callers hold. What happens when is the ``engine``'s business.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import iscoroutinefunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, cast

from lazystore._core.delivery import Delivery
from lazystore.errors import ClosedError, ConfigError, UnsupportedError
from lazystore.parallel.arguments import Given, length_of
from lazystore.parallel.chunk import Backend, Job
from lazystore.parallel.cpus import usable_cpus
from lazystore.parallel.dataset_items import DatasetItems, items_of
from lazystore.parallel.failures import Failed
from lazystore.parallel.map_stats import MapStats, progress_of
from lazystore.parallel.scheduling.arrivals import Part
from lazystore.parallel.scheduling.engine import Engine
from lazystore.parallel.scheduling.policy import OnError, Policy
from lazystore.parallel.scheduling.supply import Supply
from lazystore.parallel.scheduling.tuner import Limits
from lazystore.parallel.workers import worker_main
from lazystore.parallel.workers.process_backend import ProcessBackend
from lazystore.parallel.workers.thread_backend import ThreadBackend
from lazystore.parallel.workers.worker_pool import warm_workers

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Imap", "imap", "imap_unordered", "start_imap"]

BackendName = Literal["auto", "process", "thread", "serial"]

_KINDS: Final = {
    "auto": ("serial", "thread", "process"),
    "process": ("process",),
    "thread": ("thread",),
    "serial": ("serial",),
}
#: threads where threads were asked for and their number was not, as concurrent.futures has it
FEW_THREADS: Final = 4
MANY_THREADS: Final = 32


def imap(
    func: Callable[[Any], Any],
    data: Iterable[Any],
    *,
    ordered: bool = True,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    backend: BackendName | Executor = "auto",
    max_buffer_bytes: int | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    timeout: float | None = None,
    initializer: Callable[[], object] | None = None,
    progress: bool | str | None = None,
    total: int | None = None,
) -> Imap:
    """``func`` of every item of ``data``, lazily: like ``map``, on as many workers as pay.

    The first items run in the caller. What they show (how long they take, whether they compute or wait, whether they
    let other threads run, what their results weigh) decides whether the rest stays there, or goes to threads or
    processes, in chunks of a size that is tuned all the time. Nothing runs ahead of the consumer by more than a
    bounded window: an endless source and a slow consumer stay in constant memory. ``data`` is iterated in the
    calling thread only, inside ``next()``; where it is a `StreamingDataset`, workers are sent the numbers of items and
    read those themselves.

    Parameters:
        func: called with one item. With "auto" it may be called in this thread, in several threads at once, or in other
            processes: "process" keeps it out of this one.
        data: any iterable, endless ones too.
        ordered: results in the order of ``data``; False: in the order they are done.
        n_jobs: workers; None: as many as the processors this process may use (affinity, cgroup quota), and more
            threads than that for work that waits. 1 with "auto" means serial.
        chunksize: items that travel together; None: tuned.
        backend: "auto", "process", "thread", "serial", or a ``concurrent.futures.Executor`` (also of a cluster), which
            is not shut down here.
        max_buffer_bytes: what items under way and results that wait for the consumer may weigh, about;
            ``64_000_000`` or ``"64MB"``; None: an eighth of memory, at most 256 MiB. An item whose turn it is always
            runs.
        on_error: of an item whose ``func`` raises an ``Exception``: "raise" (in its place; iteration can go on behind
            it), "yield" (a `Failure` in its place), "skip", or a function of the `Failure` whose result stands for
            the item's.
        retries: times such an item is tried again first, on the spot.
        timeout: seconds an item may take; its worker process is killed then and the item fails with `ItemTimeoutError`.
            A thread cannot be killed: it is left behind. No item runs in the caller.
        initializer: called once in each worker before its first item, and here before the first that runs here.
        progress: True or a label: a progress bar where a terminal watches.
        total: items in ``data``, for the bar and the last chunks, where ``len(data)`` does not tell.

    Returns:
        an iterator; also a context manager with ``close()`` and ``stats``.

    Raises:
        ConfigError: an argument cannot work; at once.
        WorkerDiedError: while iterating: an item ended the process it ran in, again and again.
        TransportError: while iterating: a result does not pickle; with "process", also ``func`` or an item.

    An item runs once, unless the worker that has it dies: then it may run again elsewhere (at least once), and its
    result is given once. Errors carry a note with the item's number and the traceback of the worker.
    """
    given = Given(n_jobs, chunksize, max_buffer_bytes, retries, timeout, total)
    return start_imap(
        func,
        data,
        ordered=ordered,
        backend=backend,
        on_error=on_error,
        initializer=initializer,
        progress=progress,
        given=given,
    )


def imap_unordered(func: Callable[[Any], Any], data: Iterable[Any], **arguments: Any) -> Imap:
    """:func:`imap` with results in the order they are done; the same arguments, but for ``ordered``."""
    if "ordered" in arguments:
        raise ConfigError("imap_unordered has no argument ordered; use imap(..., ordered=...)")
    return imap(func, data, ordered=False, **arguments)


def start_imap(
    func: Callable[[Any], Any],
    data: Iterable[Any],
    *,
    given: Given,
    ordered: bool = True,
    backend: BackendName | Executor = "auto",
    on_error: OnError = "raise",
    initializer: Callable[[], object] | None = None,
    progress: bool | str | None = None,
    ahead: int = 0,
    first: int = 0,
    done: Sequence[Any] = (),
    done_items: Sequence[Any] = (),
    dataset: DatasetItems | None = None,
) -> Imap:
    """What :func:`imap` does, also from the middle.

    Parameters:
        given: the numbers, checked.
        ahead: most items ahead of the consumer; 0: free.
        first: number of the first item.
        done: results (or ``Failed``) of the first items, which are ``done_items``; ``data`` is what follows them.
        dataset: a pass over a dataset that ``data`` comes from, where it was begun already.
    """
    if worker_main.importing_main():
        worker_main.leave_unguarded()
    if not callable(func):
        raise ConfigError(f"func={func!r} cannot be called; give a function of one item")
    if iscoroutinefunction(func):
        raise ConfigError(f"func={func!r} is an async function; use aimap")
    if initializer is not None and not callable(initializer):
        raise ConfigError(f"initializer={initializer!r} cannot be called; give a function without arguments, or None")
    kinds = _kinds(backend, given)
    policy = Policy(on_error)
    begun = dataset is not None or bool(done)
    dataset = dataset if begun else items_of(data, ordered=ordered)
    try:
        supply = Supply(data if dataset is None or begun else dataset.items(), first=first + len(done))
    except TypeError as error:
        raise ConfigError(f"data, a {type(data).__name__}, cannot be iterated: {error}") from error
    total = given.total
    if total is None:
        total = dataset.length if dataset is not None else length_of(data, len(done))
    if total is not None:
        total += first
    cpus = usable_cpus()
    workers = given.workers
    if not workers and "serial" not in kinds:
        workers = _workers(backend, kinds, cpus)
    job = Job(func, initializer, given.retries, given.timeout, inner_threads=max(1, cpus // (workers or cpus)))
    stats = MapStats(progress_of(progress, func, total))
    engine = Engine(
        job,
        supply,
        policy=policy,
        limits=Limits(cpus, workers, given.chunk, given.bytes, ahead),
        backends=partial(_backend, None if isinstance(backend, str) else backend),
        kinds=kinds,
        warm=warm_workers,
        ordered=ordered,
        total=total,
        stats=stats,
        done=Part(first, list(done), done_items, sum(isinstance(each, Failed) for each in done)) if done else None,
        dataset=dataset,
        # an initializer would run in that thread and again in this one
        watch_first=len(kinds) > 1 and "serial" in kinds and total != 1 and initializer is None and not done,
    )
    return Imap(engine, stats, f"{getattr(func, '__qualname__', type(func).__name__)}", total)


def _kinds(backend: object, given: Given) -> tuple[str, ...]:
    """Backends that may be used, for the engine."""
    if not isinstance(backend, str):
        if not callable(getattr(backend, "submit", None)):
            raise ConfigError(
                f'backend={backend!r}: give "auto", "process", "thread", "serial" or a concurrent.futures.Executor'
            )
        return ("executor",)
    if backend not in _KINDS:
        raise ConfigError(f'backend={backend!r}: give "auto", "process", "thread", "serial" or an Executor')
    if given.timeout is not None:
        if backend == "serial":
            raise ConfigError("timeout= needs workers: an item that runs in the caller cannot be stopped")
        if backend == "auto":
            # in a worker the processors are taken by its like
            return ("thread",) if worker_main.serving() else ("process", "thread")
        return _KINDS[backend]
    if backend == "auto" and given.workers == 1:
        return ("serial",)
    if backend == "auto" and worker_main.serving():
        return ("serial", "thread")  # the processors are taken by workers like this one
    return _KINDS[backend]


def _workers(backend: object, kinds: tuple[str, ...], cpus: int) -> int:
    """Workers where none but this kind will do and their number was not given."""
    if kinds == ("executor",):
        from lazystore.parallel.workers.executor_backend import executor_workers

        return executor_workers(cast("Executor", backend))
    return min(MANY_THREADS, cpus + FEW_THREADS) if kinds == ("thread",) else cpus


def _backend(executor: Executor | None, kind: str, job: Job, workers: int) -> Backend:
    if executor is not None:
        from lazystore.parallel.workers.executor_backend import ExecutorBackend

        return ExecutorBackend(job, executor, workers)
    if kind == "process":
        return ProcessBackend(job)
    return ThreadBackend(job)


class Imap(Delivery):
    """Results of :func:`imap`: an iterator.

    Closed at its end, by ``close()``, as a context manager, or when nobody holds it any more: workers that are idle
    stay warm for the next run, those at work are stopped. For one thread at a time, in the process that made it; a
    child of ``fork`` gets a ClosedError. Not picklable. Costs about 50 ns a result more than a plain loop.
    """

    def __init__(self, engine: Engine, stats: MapStats, name: str, total: int | None) -> None:
        super().__init__()
        self._engine = engine
        self._stats = stats
        self._name = name
        self._total = total
        self._process = os.getpid()
        _living.add(self)
        self._late: Exception | None = None

    @property
    def stats(self) -> MapStats:
        """Counters, times, chunk sizes and the slowest items so far."""
        return self._stats

    def more(self) -> bool:
        """Have the engine provide results; for :class:`Delivery`."""
        if os.getpid() != self._process:
            raise ClosedError("this imap belongs to the parent process; call imap in the child")
        return self._engine.more(self)

    def caught(self, error: Exception, index: int, item: Any) -> tuple[Any, ...]:
        """What stands for an item that raised; for :class:`Delivery`."""
        return self._engine.caught(error, index, item)

    def take_ready(self, timeout: float | None = None) -> list[Any]:
        """All results that are there, one at least; none when ``timeout`` seconds passed without.

        Raises:
            StopIteration: there will be no more.
            BaseException: as ``next()``; after the results before it were taken.
        """
        if self._late is not None:
            error, self._late = self._late, None
            raise error
        taken = self.take()
        if not taken and not self.waiting:
            self._engine.patience_s = timeout
            try:
                if not self.more():
                    raise StopIteration
            finally:
                self._engine.patience_s = None
            taken = self.take()
        began = time.perf_counter()
        while self.waiting and time.perf_counter() - began < 0.002:
            try:
                taken.append(next(self))
            except StopIteration:
                break
            except Exception as error:
                if not taken:
                    raise
                self._late = error
                break
        return taken

    def close(self) -> None:
        """Stop: nothing more is pulled or run. Items in processes are stopped, those in threads run to their end."""
        if os.getpid() == self._process:
            self._engine.close()
            self.take()
            self.untouched()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError("an imap cannot be pickled: it belongs to the process that iterates it")

    def __repr__(self) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        return f"<imap of {self._name}: {self._stats.handed_out:,}{of} results, {self._stats.backend}>"


def _after_fork_in_child() -> None:
    """What waits in an iterator is the parent's to hand out."""
    for each in list(_living):
        each.take()
        each.untouched()


_living: weakref.WeakSet[Imap] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork_in_child)
