"""How well does each order shuffle, and what does it cost to draw? Against a uniform permutation.

    python benchmarks/bench_shuffle.py [--quick] [--only window] [--json FILE]

No I/O: the orders of one epoch over a synthetic dataset, one reader. The measures of quality are
deterministic; those of a uniform permutation are in the first row. Beside lazystore's orders: LitData's chunk
shuffle, a shuffle buffer over shuffled shards (as in WebDataset and HF datasets) and MosaicML's py1e,
the last two written here from their definitions, each holding as many bytes as the window beside it.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import harness
import numpy as np
from harness import Contender, Report, Row, Rows
from numpy.typing import NDArray
from worker import Run

from lazystore.streaming.order import Leg, ListLeg, OrderSpec, RangeLeg, Shape, Topology, WindowLeg, make_route
from lazystore.streaming.prefetch import WINDOW_SHARE, window_bytes

Numbers = NDArray[np.int64]

ITEM_BYTES = 256
CHUNKS = 64
CLASSES = 10
LAGS = 8
BINS = 256
SEED = 42
WINDOWS = {"1/16": 16, "1/4": 4, "1/2": 2}
UNIFORM = "uniform permutation (NumPy)"


def contenders(options: Any) -> list[Contender]:
    """The orders, by what they may hold in memory."""
    chunk_items = 1024 if options.quick else 16384

    def one(name: str, call: str, part: int = 1, **spec: Any) -> Contender:
        return Contender(name, f"bench_shuffle:{call}", {"chunk_items": chunk_items, "part": part, **spec})

    found = [
        one(UNIFORM, "uniform"),
        one("sequential", "route", kind="sequential"),
        one("window, all", "route", kind="window"),
        one("global", "route", kind="global"),
        one("litdata", "route", kind="litdata"),
        one("litdata-0.2.70", "route", kind="litdata-0.2.70"),
    ]
    for name, part in WINDOWS.items():
        found += [
            one(f"window, {name}", "route", part, kind="window"),
            one(f"buffer over shuffled shards, {name}", "shuffle_buffer", part),
            one(f"MosaicML py1e, {name}", "py1e", part),
        ]
    return found


# -- the orders -----------------------------------------------------------------------------


def route(run: Run) -> None:
    """An order of lazystore: time its legs, then look at the items."""
    chunk_items = run.spec["chunk_items"]
    shape = Shape(array("Q", [chunk_items] * CHUNKS), array("Q", [chunk_items * ITEM_BYTES] * CHUNKS))
    # the budget whose window is this part of the dataset
    window, block = window_bytes(sum(shape.nbytes) // run.spec["part"] * WINDOW_SHARE, compressed=False)
    spec = OrderSpec(run.spec["kind"], SEED, window, block, False)
    begin = time.perf_counter()
    made = make_route(spec, shape, Topology(), 1)
    count = sum(len(leg) for leg in made.legs())
    run.result["seconds"] = [time.perf_counter() - begin]
    run.result["items"] = count
    run.result["quality"] = quality(flat(made.legs(), chunk_items))


def flat(legs: Iterable[Leg], chunk_items: int) -> Numbers:
    """The global numbers that legs emit."""
    rows: list[Numbers] = []
    for leg in legs:
        if isinstance(leg, RangeLeg):
            rows.append(np.arange(leg.first, leg.last))
        elif isinstance(leg, ListLeg):
            rows.append(np.frombuffer(leg.items, np.int64))
        else:
            rows.append(window_row(leg, chunk_items))
    return np.concatenate(rows)


def window_row(leg: WindowLeg, chunk_items: int) -> Numbers:
    """The global numbers of a leg, in the order they come."""
    groups = [span.chunk * chunk_items + np.frombuffer(numbers, np.uint32) for span, numbers in leg.groups]
    row = np.empty(len(leg.places), np.int64)
    row[np.frombuffer(leg.places, np.uint32)] = np.concatenate(groups)
    return row[leg.skip :]


def uniform(run: Run) -> None:
    """Every order equally likely; eight bytes an item."""
    total = CHUNKS * run.spec["chunk_items"]
    begin = time.perf_counter()
    numbers = np.random.default_rng(SEED).permutation(total)
    run.result["seconds"] = [time.perf_counter() - begin]
    run.result["items"] = total
    run.result["quality"] = quality(numbers)


def shuffle_buffer(run: Run) -> None:
    """Shards in random order, read one after the other; each item takes the place of a random one in a buffer."""
    chunk_items = run.spec["chunk_items"]
    rng = np.random.default_rng(SEED)
    stream = (rng.permutation(CHUNKS)[:, None] * chunk_items + np.arange(chunk_items)).ravel()
    size = len(stream) // run.spec["part"]
    draws = rng.integers(0, size, len(stream) - size)
    buffer, out = stream[:size].copy(), np.empty_like(stream)
    for at, (draw, number) in enumerate(zip(draws.tolist(), stream[size:].tolist(), strict=True)):
        out[at] = buffer[draw]
        buffer[draw] = number
    rng.shuffle(buffer)
    out[-size:] = buffer
    run.result["quality"] = quality(out)


def py1e(run: Run) -> None:
    """MosaicML's default with the block that fills the window: what it holds is its block's shards."""
    chunk_items = run.spec["chunk_items"]
    total = CHUNKS * chunk_items
    run.result["quality"] = quality(py1e_order([chunk_items] * CHUNKS, total // run.spec["part"], 1, SEED, 1))


def py1e_order(sizes: list[int], block: int, nodes: int, seed: int, epoch: int) -> Numbers:
    """Shards permuted once a run, their parts once an epoch, then every item moves by half a block at most."""
    once, now = np.random.default_rng(seed), np.random.default_rng(seed + epoch)
    ends = np.cumsum(sizes).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    once.shuffle(spans)
    homes = [list(split(spans, ends[-1] * k // nodes, ends[-1] * (k + 1) // nodes)) for k in range(nodes)]
    for home in homes:
        now.shuffle(home)
    return np.concatenate([jittered(home, block, now) for home in homes])


def split(spans: list[tuple[int, int]], low: int, high: int) -> Iterator[tuple[int, int]]:
    """The parts of spans, laid end to end, that lie between two positions."""
    at = 0
    for first, last in spans:
        begin, end = max(low - at, 0), min(high - at, last - first)
        if begin < end:
            yield first + begin, first + end
        at += last - first


def jittered(spans: list[tuple[int, int]], block: int, rng: np.random.Generator) -> Numbers:
    """The items of one node in their order."""
    rows = [np.arange(first, last) for first, last in spans]
    for row in rows:
        rng.shuffle(row)
    total = sum(map(len, rows))
    positions = np.arange(total, dtype=np.float64)
    at = 0
    for row in rows:
        size = rng.integers(int(0.75 * block), int(1.25 * block))
        reach = max(0, (size - len(row)) / 2)
        low, high = max(-reach, -at), min(reach, total - at - len(row))
        positions[at : at + len(row)] += rng.uniform(low, high, len(row))
        at += len(row)
    return np.concatenate(rows)[np.argsort(positions)]


# -- how well they shuffle ------------------------------------------------------------------


def quality(numbers: Numbers) -> dict[str, float]:
    """What tells an order from a uniform one; every item must be there once."""
    total = len(numbers)
    if not np.array_equal(np.sort(numbers), np.arange(total)):
        raise AssertionError("not every item comes exactly once")
    steps = np.abs(np.diff(numbers))
    shares = np.histogram(steps, BINS, (0, total))[0] / len(steps)
    shares = shares[shares > 0]
    runs = np.diff(np.flatnonzero(np.diff(numbers * CLASSES // total, prepend=-1, append=CLASSES)))
    centred = numbers - numbers.mean()
    lags = [float((centred[:-lag] * centred[lag:]).mean() / centred.var()) for lag in range(1, LAGS + 1)]
    # of a uniform permutation: (n * n - 1) / (3 * n) from its place, (n + 1) / 3 from its neighbour
    return {
        "step": float(steps.mean() / ((total + 1) / 3)),
        "entropy": float(-(shares * np.log2(shares)).sum()),
        "mean_run": float(runs.mean()),
        "longest_run": float(runs.max()),
        "autocorrelation": max(lags, key=abs),
        "displacement": float(np.abs(numbers - np.arange(total)).mean() / ((total * total - 1) / (3 * total))),
    }


def column(name: str, digits: int = 3) -> Callable[[Row], str]:
    """A measure of quality; all rounds give the same."""
    return lambda row: f"{row.runs[0]['quality'][name]:.{digits}f}"


def speed(row: Row) -> str:
    """Indices per second, for those whose code is the one that would run."""
    return harness.spread(row.values(harness.first_rate)) if "seconds" in row.runs[0] else "-"


def targets(out: Report, rows: Rows, options: Any) -> None:
    """What the window must reach; small data has too few items a leg to tell the speed."""
    for name, bound in (("1/16", 0.8), ("1/4", 0.9), ("1/2", 0.95)):
        row = rows.named(f"window, {name}")
        step = row.median(lambda run: run["quality"]["step"])
        out.target(f"window of {name}: neighbours' distance, of a uniform shuffle's", step, bound)
    if not options.quick:
        out.target("window of 1/16: indices/s", rows.named("window, 1/16").median(harness.first_rate), 20e6)


def main() -> int:
    """Compare the orders."""
    options = harness.parser("How well do the orders shuffle, and how fast are they drawn?").parse_args()
    out = Report("How well do the orders shuffle, and how fast are they drawn?", options.json)
    rows = harness.compare(contenders(options), options)
    out.table(
        f"One epoch, {CHUNKS} chunks; the part is what an order may hold in memory",
        rows,
        {
            "neighbours' distance": column("step"),
            f"its entropy, bits (of {np.log2(BINS):.0f})": column("entropy"),
            "mean run of a label": column("mean_run", 2),
            "longest": column("longest_run", 0),
            f"largest autocorrelation, lags 1-{LAGS}": column("autocorrelation"),
            "displacement": column("displacement"),
            "indices/s": speed,
        },
    )
    targets(out, rows, options)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
