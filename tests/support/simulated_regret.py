"""How far `imap`'s chunk tuning is from the best fixed chunk, with more workers than this machine has: in virtual time.

``PYTHONPATH=.:tests python -m support.simulated_regret [workers ...]`` prints a table. Workers are warm; each has a
processor of its own, and so has the caller, whose time a chunk, a byte and an item takes is part of the simulation.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, log

from support.simulated_workers import Costs, Script, Simulation

from lazystore.parallel.scheduling.tuner import Limits

COSTS = Costs(start_s=0.0, birth_s=0.0, item_s=150e-9)
SHAPES: dict[str, Callable[[float, int], list[float]]] = {}


def shape(make: Callable[[float, int], list[float]]) -> Callable[[float, int], list[float]]:
    SHAPES[make.__name__] = make
    return make


@shape
def constant(mean_s: float, count: int) -> list[float]:
    return [mean_s] * count


@shape
def exponential(mean_s: float, count: int) -> list[float]:
    draw = random.Random(1)
    return [draw.expovariate(1 / mean_s) for _ in range(count)]


@shape
def bimodal(mean_s: float, count: int) -> list[float]:
    draw = random.Random(2)
    return [mean_s * (10.5 if draw.random() < 0.05 else 0.5) for _ in range(count)]


@shape
def drifting(mean_s: float, count: int) -> list[float]:
    """The first half takes a twentieth of the second."""
    return [mean_s * (0.095 if k < count // 2 else 1.905) for k in range(count)]


@shape
def easing(mean_s: float, count: int) -> list[float]:
    return drifting(mean_s, count)[::-1]


@shape
def rising(mean_s: float, count: int) -> list[float]:
    return [2 * mean_s * (k + 1) / count for k in range(count)]


@dataclass(frozen=True)
class Workload:
    item_s: float
    shape: str = "constant"
    result_bytes: int = 0
    consumer_s: float = 0.0
    known: bool = True
    ordered: bool = True
    work_s: float = 0.25

    def __str__(self) -> str:
        extra = f" {self.result_bytes // 1000} kB" if self.result_bytes else ""
        extra += f" consumer {1e6 * self.consumer_s:.0f} us" if self.consumer_s else ""
        extra += "" if self.known else " endless"
        extra += "" if self.ordered else " unordered"
        return f"{1e6 * self.item_s:8.0f} us {self.shape}{extra}{' long' if self.work_s > 0.25 else ''}"


WORKLOADS = [
    *(Workload(item_s) for item_s in (2e-6, 10e-6, 50e-6, 200e-6, 1e-3, 5e-3, 20e-3, 200e-3)),
    *(Workload(item_s, known=False) for item_s in (2e-6, 50e-6, 1e-3)),
    *(Workload(item_s, "exponential") for item_s in (20e-6, 1e-3, 20e-3)),
    *(Workload(item_s, "bimodal") for item_s in (5e-6, 100e-6, 2e-3, 50e-3)),
    *(Workload(item_s, "bimodal", ordered=False) for item_s in (100e-6, 2e-3)),
    *(Workload(item_s, "drifting") for item_s in (5e-6, 100e-6, 2e-3, 20e-3)),
    *(Workload(item_s, "easing") for item_s in (20e-6, 2e-3)),
    *(Workload(item_s, "rising") for item_s in (20e-6, 500e-6)),
    *(Workload(item_s, result_bytes=100_000) for item_s in (200e-6, 2e-3)),
    Workload(20e-3, result_bytes=5_000_000),
    Workload(200e-6, consumer_s=20e-6),
    Workload(50e-6, work_s=2.0),
]


def makespan(load: Workload, workers: int, chunk: int = 0, kinds: tuple[str, ...] = ("process",)) -> float:
    most = min(max(1500 * workers, 20_000), 60_000)
    count = int(min(max(load.work_s * workers / load.item_s, 8 * workers), most * (load.work_s / 0.25)))
    simulation = Simulation(
        int,
        range(count),
        Script(SHAPES[load.shape](load.item_s, count), result_bytes=load.result_bytes),
        workers=workers,
        kinds=kinds,
        limits=Limits(workers, workers, chunk),
        total=count if load.known else None,
        ordered=load.ordered,
        costs=COSTS,
        consumer_s=load.consumer_s,
    )
    if kinds != ("process",):
        simulation.engine._warm = lambda: workers
    with simulation.serial_time():
        for _ in simulation.consumed() if load.consumer_s else simulation:
            pass
    return simulation.clock.now


def best_fixed(load: Workload, workers: int) -> tuple[float, int]:
    """Seconds with the best power of two as the chunk, and that."""
    found: dict[int, float] = {}

    def tried(chunk: int) -> float:
        if chunk < 1 or chunk > 8192 or (chunk * load.item_s > 1.0 and chunk > 1):
            return inf
        if chunk not in found:
            found[chunk] = makespan(load, workers, chunk)
        return found[chunk]

    low = max(1, int(8e-6 / load.item_s))
    start = 1 << (low.bit_length() - 1)
    for chunk in (start, start * 4, start * 16, start * 64, start * 256):
        tried(chunk)
    best = min(found, key=lambda chunk: found[chunk])
    for chunk in (best // 2, best * 2):
        tried(chunk)
    best = min(found, key=lambda chunk: found[chunk])
    return found[best], best


_best: dict[tuple[Workload, int], tuple[float, int]] = {}


def main(crews: list[int]) -> None:
    logs: dict[int, list[float]] = {crew: [] for crew in crews}
    print(f"{'workload':44}" + "".join(f"{f'P={crew}: regret (best ms, chunk) auto':>40}" for crew in crews))
    for load in WORKLOADS:
        line = f"{load!s:44}"
        for crew in crews:
            best, chunk = best_fixed(load, crew)
            tuned = makespan(load, crew)
            auto = makespan(load, crew, kinds=("serial", "process"))
            logs[crew].append(log(tuned / best))
            line += f"{tuned / best - 1:+20.0%} ({1e3 * best:6.1f}, {chunk:4}) {auto / best - 1:+5.0%}"
        print(line, flush=True)
    for crew in crews:
        ranked = sorted(logs[crew])
        mean = exp(sum(ranked) / len(ranked)) - 1
        print(f"P={crew}: geometric mean {mean:+.1%}, p95 {exp(ranked[int(0.95 * len(ranked))]) - 1:+.0%}, worst "
              f"{exp(ranked[-1]) - 1:+.0%}")  # fmt: skip


if __name__ == "__main__":
    main([int(crew) for crew in sys.argv[1:]] or [2, 8, 16, 64])
