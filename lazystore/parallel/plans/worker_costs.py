"""What workers cost on this machine: until the first is up, and for each chunk; measured with a worker that stays warm.

The assumed figures are medians measured on Linux with CPython 3.11; they stand in where nothing was measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

from lazystore.parallel.chunk import Backend, Chunk, Job
from lazystore.parallel.plans.forecast import Costs

__all__ = ["assumed_costs", "measured_costs", "start_method"]

#: seconds until the first worker of a start method answers
START_S: Final = {"fork": 0.010, "forkserver": 0.055, "spawn": 0.050}
#: seconds that handling a chunk takes, both ends together
CHUNK_S: Final = 100e-6
#: most seconds to wait for a worker, to spend on round trips, and most round trips
PATIENCE_S: Final = 0.12
TRIPS_S: Final = 0.01
TRIPS: Final = 30

#: the last cold start that was seen in this process; warm ones say nothing about a pool of the caller's own
_cold_start_s: float | None = None


def start_method() -> str:
    """How ``multiprocessing`` would start a process; asking does not settle it, as ``get_start_method()`` does."""
    import multiprocessing

    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def assumed_costs() -> Costs:
    """Constants, for the start method in force."""
    return Costs(START_S.get(start_method(), max(START_S.values())), CHUNK_S)


def measured_costs(make_backend: Callable[[Job], Backend], *, start: bool, chunks: bool) -> Costs:
    """Start one worker and send it chunks of nothing, for 0.15 s at most; it is given back and stays warm.

    Parameters:
        make_backend: of processes.
        start, chunks: what is wanted; the rest is assumed, as is what takes longer than that.

    Raises:
        LazyStoreError: workers cannot be started here.
    """
    global _cold_start_s
    assumed = assumed_costs()
    backend = make_backend(Job(func=abs))
    try:
        began = time.perf_counter()
        backend.start(1)
        warm = backend.ready() > 0
        answered = _round_trip(backend, 0, PATIENCE_S)
        took = time.perf_counter() - began
        trips = _round_trips(backend) if answered and chunks else []
    finally:
        backend.close()
    if not answered:
        return Costs(max(took, assumed.start_s), CHUNK_S)
    if not warm:
        _cold_start_s = took
    known = start and _cold_start_s is not None
    return Costs(
        _cold_start_s if known and _cold_start_s is not None else assumed.start_s,
        statistics.median(trips) if trips else CHUNK_S,
        start_measured=known,
        chunk_measured=bool(trips),
    )


def _round_trips(backend: Backend) -> list[float]:
    until = time.perf_counter() + TRIPS_S
    took: list[float] = []
    while len(took) < TRIPS and (began := time.perf_counter()) < until:
        if not _round_trip(backend, 1 + len(took), TRIPS_S):
            break
        took.append(time.perf_counter() - began)
    return took


def _round_trip(backend: Backend, number: int, patience_s: float) -> bool:
    backend.submit(Chunk(number, number, [0]))
    until = time.perf_counter() + patience_s
    while (left := until - time.perf_counter()) > 0:
        if backend.wait(left):
            return True
    return False
