"""How `imap` decides: stay serial or start workers, which kind, how many items a chunk, how far to run ahead.

Arithmetic on what was measured; no clock, no workers. The model is the bottleneck law (throughput is that of the
slowest of the caller, the workers, the processors); when to start follows the ski-rental rule: at the latest when
staying serial has cost as much as starting would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import Final, Literal

__all__ = [
    "MOST_ITEMS",
    "Estimate",
    "Flow",
    "Kind",
    "Limits",
    "chunk_items",
    "estimate",
    "serial_block",
    "threads_for",
    "window_items",
]

Kind = Literal["serial", "process", "thread"]

#: share of a chunk's time that its handling may take
OVERHEAD: Final = 0.04
#: seconds a chunk should take at most, so that results, errors and Ctrl-C do not wait long
LATENCY_S: Final = 0.1
#: most items in one go or one chunk
MOST_ITEMS: Final = 8192
#: bytes a chunk should carry at most in either direction
CHUNK_BYTES: Final = 4 << 20
#: seconds the caller spends on a chunk that carries next to nothing, and a worker process does
CALLER_S: Final = 60e-6
WORKER_S: Final = 40e-6
#: the same for a thread, most of it under the interpreter's lock; and with the wait for that, where it is busy
THREAD_S: Final = 30e-6
THREAD_WAIT_S: Final = 80e-6
#: bytes a second that pass from process to process, in and out of memory that both see
BYTES_PER_S: Final = 2.5e9
#: seconds the caller spends on an item, however little it carries
ITEM_S: Final = 2e-7
#: gain below which workers are not worth their trouble
WORTH: Final = 1.15
#: threads for work that only waits
MOST_THREADS: Final = 32
#: items that may be ahead of the consumer, whatever they weigh
MOST_AHEAD: Final = 1 << 17


@dataclass(slots=True)
class Flow:
    """What is known of the stream, all times in seconds an item.

    Parameters:
        run_s: in ``func``.
        longest_s: the longest of late.
        source_s: until the source gives an item.
        consumer_s: the consumer takes with a result.
        cpu_share: of ``run_s`` that the thread was computing rather than waiting.
        held_share: of ``run_s`` that the interpreter's lock was held; 1.0 until measured.
        pickle_s: to pack an item and its result, or to unpack them.
        in_bytes, out_bytes: of an item and its result, as they travel or lie in memory.
    """

    run_s: float = 0.0
    longest_s: float = 0.0
    source_s: float = 0.0
    consumer_s: float = 0.0
    cpu_share: float = 1.0
    held_share: float = 1.0
    pickle_s: float = 0.0
    in_bytes: float = 0.0
    out_bytes: float = 0.0

    def __str__(self) -> str:
        if not self.run_s:
            return "nothing measured yet"
        parts = [f"{self.run_s * 1e6:,.3g} us an item, {self.cpu_share:.0%} of it computing"]
        if self.held_share < 1.0:
            parts.append(f"the interpreter's lock held for {self.held_share:.0%}")
        if self.in_bytes or self.out_bytes:
            parts.append(f"{self.in_bytes:,.0f} B in, {self.out_bytes:,.0f} B out")
        if self.source_s > 1e-5 or self.consumer_s > 1e-5:
            parts.append(f"source {self.source_s * 1e6:,.3g} us, consumer {self.consumer_s * 1e6:,.3g} us")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Limits:
    """What does not change in a run.

    Parameters:
        cpus: processors this process may use.
        workers: given by the user; 0: free.
        chunk: items a chunk, given by the user; 0: free.
        bytes: most that results and items ahead of the consumer may weigh.
        ahead: most items ahead of the consumer; 0: free.
    """

    cpus: int
    workers: int = 0
    chunk: int = 0
    bytes: int = 256 << 20
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one kind of backend would give.

    Parameters:
        kind: the backend.
        workers: how many.
        item_s: seconds an item that the whole would take.
        gain: how many times the plain loop's speed.
    """

    kind: Kind
    workers: int = 1
    item_s: float = inf
    gain: float = 1.0


def threads_for(flow: Flow, limits: Limits) -> int:
    """Threads worth having: as many as keep the lock and the processors busy."""
    if limits.workers:
        return limits.workers
    by_lock = 1.5 / max(flow.held_share * flow.cpu_share, 1e-3)
    by_cpus = 1.5 * limits.cpus / max(flow.cpu_share, 1e-3)
    if flow.cpu_share > 0.5:
        by_cpus = min(by_cpus, limits.cpus)
    return max(1, min(MOST_THREADS, ceil(by_lock), ceil(by_cpus)))


def estimate(flow: Flow, limits: Limits, kind: Kind) -> Estimate:
    """Seconds an item by the bottleneck law, for one kind of backend.

    The caller's own time (source, consumer, packing) is one stage of a pipeline, the workers' another; all of it
    that computes shares the processors, and what holds the lock in this process shares that.
    """
    serial_s = flow.run_s + flow.source_s + flow.consumer_s
    if kind == "serial" or serial_s <= 0:
        return Estimate("serial", 1, serial_s, 1.0)
    outside = flow.source_s + flow.consumer_s
    if kind == "process":
        workers = limits.workers or limits.cpus
        carry_s = ITEM_S + flow.pickle_s + (flow.in_bytes + flow.out_bytes) / BYTES_PER_S
        each = replace(flow, pickle_s=carry_s)
        chunk = chunk_items(each, limits, workers, kind=kind)
        caller_s = carry_s + CALLER_S / chunk
        worker_s = flow.run_s + carry_s + WORKER_S / chunk
        shared = (caller_s + worker_s - flow.run_s * (1.0 - flow.cpu_share)) / limits.cpus
        item_s = max(caller_s + outside, worker_s / workers, shared)
    else:
        workers = threads_for(flow, limits)
        chunk = chunk_items(flow, limits, workers, kind=kind)
        busy_s = flow.run_s * flow.cpu_share
        caller_s = THREAD_S / chunk
        locked = busy_s * flow.held_share + caller_s
        item_s = max(caller_s + outside, (flow.run_s + caller_s) / workers, locked, (busy_s + caller_s) / limits.cpus)
    return Estimate(kind, workers, item_s, serial_s / item_s)


def serial_block(flow: Flow, limits: Limits, waiting_s: float = 0.002) -> int:
    """Items the caller takes from the source in one go while it is serial."""
    each = flow.run_s + flow.source_s
    items = min(512.0, waiting_s / each) if each > 0 else 512.0
    if flow.in_bytes:
        items = min(items, limits.bytes / flow.in_bytes)
    return max(1, min(int(items), limits.ahead or 512))


def chunk_items(
    flow: Flow,
    limits: Limits,
    workers: int,
    *,
    kind: Kind = "process",
    overhead_s: float = 0.0,
    remaining: int | None = None,
    latency_s: float = LATENCY_S,
    ahead_s: float = 0.0,
) -> int:
    """Items of the next chunk.

    As many as make the handling of a chunk a small share of its work, both for a worker and for the caller who
    serves all workers; fewer where that would take too long, weigh too much, or leave workers without work at
    the end (half of an equal share, after factoring: Hummel, Schonberg, Flynn 1992).

    Parameters:
        overhead_s: measured seconds of handling a chunk; 0: not known yet.
        remaining: items that are left, where that is known.
        ahead_s: seconds of work that should wait behind the chunk that a worker is at.
    """
    if limits.chunk:
        return limits.chunk
    run_s = max(flow.run_s, 1e-7)
    least = THREAD_WAIT_S if kind == "thread" else CALLER_S + WORKER_S
    handling = max(overhead_s, least)
    by_work = handling * (1.0 - OVERHEAD) / (OVERHEAD * run_s)
    by_caller = workers * handling / (0.5 * run_s)
    items = max(by_work, by_caller, ahead_s / run_s)
    items = min(items, latency_s / run_s)
    heaviest = max(flow.in_bytes, flow.out_bytes)
    if heaviest:
        items = min(items, min(CHUNK_BYTES, limits.bytes / (4 * workers)) / heaviest)
    if remaining is not None:
        # not so few that handing chunks out, one after the other, takes longer than working them off:
        # n chunks cost n * handled here, and the last one is done remaining * run_s / n later
        handled = max(overhead_s, THREAD_S if kind == "thread" else CALLER_S)
        items = min(items, remaining, max(ceil(remaining / (2 * workers)), sqrt(remaining * handled / run_s)))
    return max(1, min(MOST_ITEMS, int(items)))


def window_items(flow: Flow, limits: Limits, workers: int, chunk: int, depth: int, age_s: float = 0.0) -> int:
    """Items that may be ahead of the consumer: enough to keep the workers busy behind the slowest item of late.

    Parameters:
        age_s: of the chunk that has been under way for longest; does not count where the user chose the chunks:
            then the window is a few of them.
    """
    if limits.ahead:
        return max(limits.ahead, 1)
    slowest_s = flow.longest_s if limits.chunk else max(flow.longest_s, age_s)
    straggling = min(slowest_s / max(flow.run_s, 1e-7), 2000.0) * workers
    items = 4 * workers * depth * chunk + 2 * straggling
    weight = flow.in_bytes + flow.out_bytes
    if weight:
        items = min(items, limits.bytes / weight)
    return max(workers, min(MOST_AHEAD, int(items)))
