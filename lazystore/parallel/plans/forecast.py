"""What a plan predicts: how many workers, how many items a chunk, and how long the whole would take.

Arithmetic on measured numbers for a run whose settings stay as they are, as those of ``multiprocessing.Pool`` do;
no clock, no workers. ``tuner`` decides for a run that can change its mind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Final, Literal

from lazystore.parallel.scheduling.tuner import CHUNK_BYTES, MOST_THREADS, THREAD_S

__all__ = ["Bounds", "Costs", "Forecast", "Work", "best_forecast", "chunk_for", "forecast"]

Kind = Literal["serial", "process", "thread"]

#: predicted gain below which workers are not worth their trouble
WORTH: Final = 1.1
#: share of a chunk's time its handling may take when items are alike; twice that when they are not
OVERHEAD: Final = 0.025
#: a coefficient of variation above this is called heterogeneous (the document's rule)
HETEROGENEOUS: Final = 0.5
#: what each worker after the first adds to the start of all, as a share of the first's
NEXT_START: Final = 0.3
#: fewer workers are taken when they come this close to the best, where it is not workers that are short
CLOSE: Final = 1.1
#: threads are taken when they come this close to processes
EVEN: Final = 1.02
MOST_ITEMS: Final = 1 << 20
QUICKEST_S: Final = 1e-7


@dataclass(frozen=True, slots=True)
class Work:
    """What the samples showed; seconds an item, unless said otherwise.

    Parameters:
        run_s: in ``func``.
        first_extra_s: what the first call took more than the others, where it stood out: every worker pays it once.
        variation: standard deviation of ``run_s`` over its mean.
        source_s: until the source gives an item.
        cpu_share: of ``run_s`` that was computing.
        held_share: of that computing, how much held the interpreter's lock; 1.0 where it was not measured.
        pack_in_s, unpack_in_s, pack_out_s, unpack_out_s: to pickle and unpickle an item and a result.
        in_bytes, out_bytes: of their pickles.
        total: items of the whole run; None: not known, perhaps endless.
    """

    run_s: float
    first_extra_s: float = 0.0
    variation: float = 0.0
    source_s: float = 0.0
    cpu_share: float = 1.0
    held_share: float = 1.0
    pack_in_s: float = 0.0
    unpack_in_s: float = 0.0
    pack_out_s: float = 0.0
    unpack_out_s: float = 0.0
    in_bytes: float = 0.0
    out_bytes: float = 0.0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that workers cost.

    Parameters:
        start_s: until the first worker is up.
        chunk_s: to hand a chunk over and take its results, whatever is in it.
        start_measured, chunk_measured: whether that was measured here and now, or assumed.
    """

    start_s: float
    chunk_s: float
    start_measured: bool = False
    chunk_measured: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the prediction may choose from.

    Parameters:
        cpus: processors this process may use.
        n_jobs, chunksize: given by the caller; None: free.
        target_s: most seconds a chunk should take.
        ahead: most items beyond the consumer; None: free.
    """

    cpus: int
    n_jobs: int | None = None
    chunksize: int | None = None
    target_s: float = 0.2
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """One way to run, and what it would take.

    Parameters:
        kind: of the workers.
        n_jobs: workers.
        chunksize: items a chunk.
        speedup: over a plain loop.
        most_speedup: over a plain loop if workers cost nothing at all.
        serial_s, parallel_s: of a plain loop and of this way, start included; None when the total is not known.
        start_s: until the workers are up.
        carry_s: of pickling, all items together; of one item when the total is not known.
        chunks_s: of handling chunks; likewise.
        compute_s: of the work itself, spread over the workers; likewise.
        bound: what limits it: "workers", "caller" or "processors".
    """

    kind: Kind
    n_jobs: int
    chunksize: int
    speedup: float = 1.0
    most_speedup: float = 1.0
    serial_s: float | None = None
    parallel_s: float | None = None
    start_s: float = 0.0
    carry_s: float = 0.0
    chunks_s: float = 0.0
    compute_s: float = 0.0
    bound: str = "workers"


def chunk_for(work: Work, costs: Costs, n_jobs: int, bounds: Bounds, *, kind: Kind = "process") -> int:
    """Items a chunk: the fewest whose handling hardly shows, not the most that fit a target duration.

    Few enough that a chunk keeps to the target duration, that each worker gets four or more, that a chunk weighs
    at most 4 MiB, and that the caller's window holds one for every worker. Items of unlike duration (variation
    above 0.5) shrink all but the byte limit, at most to half.
    """
    if bounds.chunksize is not None:
        return bounds.chunksize
    carried_s = work.unpack_in_s + work.pack_out_s if kind == "process" else 0.0
    item_s = max(work.run_s + carried_s, QUICKEST_S)
    # for a worker, and for the caller, who serves all workers and should be busy half of the time at most
    items = max(costs.chunk_s / OVERHEAD, 2 * n_jobs * costs.chunk_s) / item_s
    items = min(items, bounds.target_s / item_s, MOST_ITEMS)
    if work.total is not None:
        items = min(items, work.total / (4 * n_jobs))
    if bounds.ahead is not None:
        items = min(items, bounds.ahead / n_jobs)
    if work.variation > HETEROGENEOUS:
        items *= max(0.5, 1.0 - 0.5 * work.variation)
    heaviest = max(work.in_bytes, work.out_bytes)
    if heaviest and kind == "process":
        items = min(items, CHUNK_BYTES / heaviest)
    return max(1, int(items))


def forecast(work: Work, costs: Costs, n_jobs: int, bounds: Bounds, *, kind: Kind) -> Forecast:
    """What ``n_jobs`` workers of a kind would take, by the bottleneck law.

    The slowest of three stages sets the pace: the caller (source, pickling, a chunk's handling), the workers, and
    the processors that all of them share. With a known total the rounds of chunks are counted, so that a last
    round for a few workers is not free, and the start is added.
    """
    in_processes = kind == "process"
    if not in_processes:
        costs = replace(costs, chunk_s=THREAD_S)
    chunk = chunk_for(work, costs, n_jobs, bounds, kind=kind)
    caller_carry = work.pack_in_s + work.unpack_out_s if in_processes else 0.0
    worker_carry = work.unpack_in_s + work.pack_out_s if in_processes else 0.0
    computing = work.run_s * work.cpu_share
    each_chunk = costs.chunk_s / chunk
    caller_s = work.source_s + caller_carry + each_chunk
    worker_s = work.run_s + worker_carry + each_chunk
    processors_s = (computing + caller_carry + worker_carry + each_chunk) / bounds.cpus
    if not in_processes:
        processors_s = max(processors_s, computing * work.held_share + each_chunk)
    loop_s = max(work.run_s + work.source_s, QUICKEST_S)
    pace = max(worker_s / n_jobs, caller_s, processors_s, 1e-12)
    bound = "workers" if pace == worker_s / n_jobs else "caller" if pace == caller_s else "processors"
    most = loop_s / max(work.run_s / n_jobs, computing / bounds.cpus, work.source_s, 1e-12)
    if work.total is None:
        return Forecast(
            kind,
            n_jobs,
            chunk,
            loop_s / pace,
            most,
            carry_s=caller_carry + worker_carry,
            chunks_s=each_chunk,
            compute_s=work.run_s / n_jobs,
            bound=bound,
        )
    total = work.total
    start_s = costs.start_s * (1.0 + NEXT_START * (n_jobs - 1)) if in_processes else 0.0
    start_s += work.first_extra_s
    rounds_s = ceil(ceil(total / chunk) / n_jobs) * min(chunk, total) * worker_s
    serial_s = loop_s * total
    parallel_s = start_s + max(rounds_s, total * pace)
    return Forecast(
        kind,
        n_jobs,
        chunk,
        serial_s / parallel_s if parallel_s > 0 else 1.0,
        most,
        serial_s,
        parallel_s,
        start_s,
        (caller_carry + worker_carry) * total,
        costs.chunk_s * ceil(total / chunk),
        work.run_s * total / n_jobs,
        bound,
    )


def best_forecast(work: Work, costs: Costs, bounds: Bounds, kinds: tuple[Kind, ...]) -> Forecast:
    """The best of the kinds allowed; "serial" where none of them gains a tenth.

    A kind that is the only one allowed, and a number of workers that was given, stand whatever they gain.
    """
    found = [_best_of(work, costs, bounds, kind) for kind in kinds if kind != "serial"]
    if not found:
        return _serial(work, costs, bounds)
    best = max(found, key=lambda each: each.speedup)
    threads = [each for each in found if each.kind == "thread" and each.speedup * EVEN >= best.speedup]
    best = threads[0] if threads else best  # they start at once and nothing has to travel
    if "serial" in kinds and best.speedup < WORTH and bounds.n_jobs in (None, 1):
        return replace(_serial(work, costs, bounds), most_speedup=best.most_speedup)
    return best


def _best_of(work: Work, costs: Costs, bounds: Bounds, kind: Kind) -> Forecast:
    counts = [bounds.n_jobs] if bounds.n_jobs is not None else range(1, _most_jobs(work, bounds) + 1)
    found = [forecast(work, costs, count, bounds, kind=kind) for count in counts]
    best = max(found, key=lambda each: each.speedup)
    close = 1.0 if best.bound == "workers" else CLOSE
    return next(each for each in found if each.speedup * close >= best.speedup)


def _most_jobs(work: Work, bounds: Bounds) -> int:
    """Workers that could be at work at once: one a processor, more where they mostly wait."""
    jobs = bounds.cpus
    if work.cpu_share < 0.5:
        jobs = max(jobs, min(MOST_THREADS, ceil(1.5 * bounds.cpus / max(work.cpu_share, 1e-3))))
    return max(1, jobs if work.total is None else min(jobs, work.total))


def _serial(work: Work, costs: Costs, bounds: Bounds) -> Forecast:
    chunk = chunk_for(work, costs, 1, bounds)  # for a Pool of one worker, should the caller use one all the same
    serial_s = None if work.total is None else max(work.run_s + work.source_s, QUICKEST_S) * work.total
    return Forecast("serial", 1, chunk, serial_s=serial_s, parallel_s=serial_s, compute_s=serial_s or work.run_s)
