"""Which eviction policy? Miss ratios of the frame store on access traces, with the optimum beside them.

Every trace runs through the real :class:`FrameStore` (frames of 4 KiB, one access a frame), and through
Belady's optimum computed from the whole trace. Deterministic: no timing, no I/O.

    python benchmarks/bench_policies.py [--accesses 200000] [--frames 1000]
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import random
from collections.abc import Iterator

from lazystore._core.frames import FrameStore

FRAME = 4096
POLICIES = ("lru", "fifo", "s3fifo")


def zipf(rng: random.Random, universe: int, accesses: int, skew: float = 0.9) -> Iterator[int]:
    """Popularity falling as rank**-skew: what a serving cache sees."""
    cumulative = list(itertools.accumulate(1 / (rank + 1) ** skew for rank in range(universe)))
    for _ in range(accesses):
        yield bisect.bisect_left(cumulative, rng.random() * cumulative[-1])


def zipf_with_scans(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """The same, and now and then somebody reads a long stretch once: a backup, a count, a new user."""
    popular = zipf(rng, universe, accesses)
    cold = itertools.count(universe)
    for n, part in enumerate(popular):
        yield part
        if n % 2000 == 1999:
            yield from itertools.islice(cold, 1500)


def shifting(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """What is popular changes: every tenth of the trace the ranks move on."""
    for n, part in enumerate(zipf(rng, universe, accesses)):
        yield (part + n * 10 // accesses * universe // 10) % universe


def loop(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """Epochs over something larger than the cache, by index, without telling the store."""
    return (n % universe for n in range(accesses))


def uniform(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """Shuffled reading: no policy can do better than the resident share."""
    return (rng.randrange(universe) for _ in range(accesses))


TRACES = {
    "zipf 0.9": zipf,
    "zipf with scans": zipf_with_scans,
    "shifting zipf": shifting,
    "loop": loop,
    "uniform": uniform,
}


def misses(policy: str, trace: list[int], frames: int) -> float:
    """Miss ratio of the real store."""
    # Tables take a few percent of the budget; ask for a bit more than the frames.
    budget = int(frames * FRAME * 1.03) + 8192
    store = FrameStore(budget, frame_bytes=FRAME, policy=policy)
    missed = 0
    for part in trace:
        if store.state(0, part) == "ready":
            store.lease(0, part * FRAME, part * FRAME + 1)
        else:
            missed += 1
            store.begin(0, part, FRAME).commit()
    return missed / len(trace)


def optimum(trace: list[int], frames: int) -> float:
    """Belady's rule: evict what is needed last. A heap of next uses, stale entries skipped."""
    never = len(trace)
    following = [never] * len(trace)
    last: dict[int, int] = {}
    for n in range(len(trace) - 1, -1, -1):
        following[n] = last.get(trace[n], never)
        last[trace[n]] = n
    resident: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    missed = 0
    for n, part in enumerate(trace):
        if part not in resident:
            missed += 1
            if len(resident) >= frames:
                while True:
                    use, victim = heapq.heappop(heap)
                    if resident.get(victim) == -use:
                        del resident[victim]
                        break
        resident[part] = following[n]
        heapq.heappush(heap, (-following[n], part))
    return missed / len(trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accesses", type=int, default=200_000)
    parser.add_argument("--frames", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"miss ratio, {arguments.frames} frames, {arguments.accesses} accesses, universe 10x the frames\n")
    print("| trace | " + " | ".join(POLICIES) + " | optimum |")
    print("|---|" + "---|" * (len(POLICIES) + 1))
    for name, make in TRACES.items():
        universe = arguments.frames * (10 if name != "loop" else 2)
        trace = list(make(random.Random(7), universe, arguments.accesses))
        row = [misses(policy, trace, arguments.frames) for policy in POLICIES]
        row.append(optimum(trace, arguments.frames))
        print(f"| {name} | " + " | ".join(f"{ratio:.3f}" for ratio in row) + " |")


if __name__ == "__main__":
    main()
