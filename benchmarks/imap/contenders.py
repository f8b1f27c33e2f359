"""The ways to run a cell: the standard library, joblib, mpire, and lazystore, tuned by itself or by hand.

Each is a context manager that gives an iterator over the results: whatever it takes to get ready is inside the clock.
Start methods are each library's own default (fork for the standard library and mpire up to Python 3.13).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from imap.cells import Cell

__all__ = ["MAKERS", "OURS", "PLAIN", "WARMERS", "Contender", "chunk_sizes", "oracles", "peers", "pools"]

WORKERS = 2
MANY_THREADS = 32
#: Chunks below so many microseconds of work cannot be an engine's best; they are not tried.
LEAST_CHUNK_US = 150.0

Func = Callable[[Any], Any]
Results = AbstractContextManager[Iterable[Any]]


@dataclass(frozen=True)
class Contender:
    """A column of the table.

    Parameters:
        name: how it is called.
        maker: which of :data:`MAKERS`.
        options: its arguments.
        warm: its workers are brought up before the clock.
        fresh: needs an interpreter in which nothing has run yet.
        ordered: results come in the order of the data.
        families: the columns it stands in; a column shows the best of its family for the cell. Its name by default.
    """

    name: str
    maker: str
    options: dict[str, Any] = field(default_factory=dict)
    warm: bool = False
    fresh: bool = False
    ordered: bool = True
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families) or (self.name,))


PLAIN = Contender("plain loop", "plain")
COLD = Contender("lazystore, cold", "lazystore", fresh=True)
WARM = Contender("lazystore, warm", "lazystore", warm=True)
UNORDERED = Contender("lazystore, unordered", "lazystore", {"ordered": False}, warm=True, ordered=False)
OURS = (COLD, WARM, UNORDERED)
POOL_ONE, POOL_BEST, POOL_UNORDERED = "Pool, chunk 1", "Pool, best chunk", "Pool, unordered"
EXECUTOR_ONE, EXECUTOR_BEST = "Executor, chunk 1", "Executor, best chunk"
ORACLE_WARM, ORACLE_COLD = "oracle, warm", "oracle, cold"


def chunk_sizes(cell: Cell) -> list[int]:
    """Chunk sizes worth a try: powers of four, an eighth and a half of the data."""
    least = LEAST_CHUNK_US / cell.item_us
    tried = {4**k for k in range(8)} | {math.ceil(cell.count / 8), math.ceil(cell.count / 2)}
    return sorted(size for size in tried if least <= size <= math.ceil(cell.count / 2)) or [math.ceil(cell.count / 2)]


def pools(cell: Cell) -> list[Contender]:
    """multiprocessing.Pool.imap and ProcessPoolExecutor.map with chunk sizes to choose from."""
    made = [
        Contender(POOL_ONE, "pool", {"chunk": 1}, families=(POOL_ONE, POOL_BEST)),
        Contender(EXECUTOR_ONE, "executor", {"chunk": 1}, families=(EXECUTOR_ONE, EXECUTOR_BEST)),
    ]
    sizes = [size for size in chunk_sizes(cell) if size > 1]
    made += [Contender(f"Pool, chunk {n}", "pool", {"chunk": n}, families=(POOL_BEST,)) for n in sizes]
    made += [Contender(f"Executor, chunk {n}", "executor", {"chunk": n}, families=(EXECUTOR_BEST,)) for n in sizes[::2]]
    return made


def peers() -> list[Contender]:
    """Those that have nothing to be tried out."""
    return [
        Contender("threads 2", "threads", {"workers": WORKERS}),
        Contender("threads 32", "threads", {"workers": MANY_THREADS}),
        Contender("joblib, cold", "joblib", fresh=True),
        Contender("joblib, warm", "joblib", warm=True),
        Contender("mpire", "mpire"),
    ]


def oracles(cell: Cell) -> list[Contender]:
    """The engine with its tuning off, in every setting that may be the best one."""
    settings: list[tuple[str, int, int]] = [("serial", 1, 1)]
    sizes = chunk_sizes(cell)
    settings += [("thread", WORKERS, size) for size in sizes[:: max(1, len(sizes) // 3)]]
    if cell.kind in ("sleep", "mixed") or cell.source == "sleeping" or cell.consumer == "sleeping":
        settings += [("thread", MANY_THREADS, size) for size in sizes[:2]]
    settings += [("process", WORKERS, size) for size in sizes]
    settings += [("process", 1, size) for size in sizes[1:4:2]]
    return [
        Contender(
            f"{backend} {jobs} x {size}",
            "lazystore",
            {"backend": backend, "n_jobs": jobs, "chunksize": size},
            warm=True,
            families=(ORACLE_WARM,),
        )
        for backend, jobs, size in settings
    ]


@contextlib.contextmanager
def plain(func: Func, data: Iterable[Any], cell: Cell) -> Iterator[Iterable[Any]]:
    """What everything is measured by."""

    def loop() -> Iterator[Any]:
        for item in data:
            yield func(item)

    yield loop()


@contextlib.contextmanager
def pool(func: Func, data: Iterable[Any], cell: Cell, chunk: int, ordered: bool = True) -> Iterator[Iterable[Any]]:
    """multiprocessing.Pool."""
    from multiprocessing import Pool

    with Pool(WORKERS) as workers:
        yield (workers.imap if ordered else workers.imap_unordered)(func, data, chunk)


@contextlib.contextmanager
def threads(func: Func, data: Iterable[Any], cell: Cell, workers: int) -> Iterator[Iterable[Any]]:
    """multiprocessing's ThreadPool."""
    from multiprocessing.pool import ThreadPool

    with ThreadPool(workers) as crew:
        yield crew.imap(func, data)


@contextlib.contextmanager
def executor(func: Func, data: Iterable[Any], cell: Cell, chunk: int) -> Iterator[Iterable[Any]]:
    """concurrent.futures."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as workers:
        yield workers.map(func, data, chunksize=chunk)


@contextlib.contextmanager
def joblib(func: Func, data: Iterable[Any], cell: Cell) -> Iterator[Iterable[Any]]:
    """joblib's generator over loky; its workers stay for the next call."""
    from joblib import Parallel, delayed

    yield Parallel(n_jobs=WORKERS, return_as="generator")(delayed(func)(item) for item in data)


@contextlib.contextmanager
def mpire(func: Func, data: Iterable[Any], cell: Cell) -> Iterator[Iterable[Any]]:
    """mpire, which is told the length where it can be known."""
    from mpire import WorkerPool

    with WorkerPool(WORKERS) as workers:
        yield workers.imap(func, data, iterable_len=len(data) if isinstance(data, list) else None)


@contextlib.contextmanager
def lazystore(
    func: Func, data: Iterable[Any], cell: Cell, ordered: bool = True, **settings: Any
) -> Iterator[Iterable[Any]]:
    """lazystore's imap; without settings it tunes itself."""
    from lazystore import imap

    with contextlib.closing(imap(func, data, ordered=ordered, **settings)) as results:
        yield results


def warm_joblib(light: Callable[[int], list[Any]], func: Func, options: dict[str, Any]) -> None:
    """Bring loky's workers up."""
    with joblib(func, light(4 * WORKERS), _NO_CELL) as results:
        list(results)


def warm_lazystore(light: Callable[[int], list[Any]], func: Func, options: dict[str, Any]) -> None:
    """Bring worker processes up and have them load the function, whatever the run is going to use."""
    with lazystore(func, light(16 * WORKERS), _NO_CELL, n_jobs=WORKERS, backend="process", chunksize=1) as results:
        list(results)


_NO_CELL = Cell("", 1, 1)
MAKERS: dict[str, Callable[..., Results]] = {
    "plain": plain,
    "pool": pool,
    "threads": threads,
    "executor": executor,
    "joblib": joblib,
    "mpire": mpire,
    "lazystore": lazystore,
}
WARMERS: dict[str, Callable[[Callable[[int], list[Any]], Func, dict[str, Any]], None]] = {
    "joblib": warm_joblib,
    "lazystore": warm_lazystore,
}
#: What each imports before its clock starts: a module, or something that is loaded when it is asked for.
MODULES = {
    "pool": ("multiprocessing.pool",),
    "threads": ("multiprocessing.pool",),
    "executor": ("concurrent.futures.process",),
    "joblib": ("joblib",),
    "mpire": ("mpire",),
    "lazystore": ("lazystore:imap",),
}
