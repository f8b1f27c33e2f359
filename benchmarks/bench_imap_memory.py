"""What do results that nobody takes yet cost: an endless source with a slow consumer, and a straggler in the way?

    python benchmarks/bench_imap_memory.py [--peers] [--seconds 60] [--question slow|straggler]

Items of 2 ms with results of 1 MB. "slow": the source is endless and the consumer takes 100 times as long as two
workers need for a result. "straggler": the consumer takes everything at once, but one item takes most of the time,
so that what comes after it must wait where results are ordered. Memory is the PSS of all processes and what lies in
files in memory; a run that passes --most is stopped.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import harness
from harness import Contender, Row
from imap.footprint import Footprint
from imap.work import Work, calibrate, packed

if TYPE_CHECKING:
    from worker import Run

ITEM_US = 2_000
RESULT = 1_000_000
WORKERS = 2
#: The consumer takes this many times what the workers need for a result.
SLOWER = 100
BUDGET = 32_000_000
#: What all processes may grow by beyond the budget, bytes.
ALLOWANCE = 32 << 20
#: The straggler's place in the data.
STRAGGLER = 200
OURS = "lazystore"


def items(run: Run) -> Iterator[int]:
    """Endless; with a straggler in it where the question is that one."""
    units = run.spec["units"]
    straggling = run.spec["units"] * int(run.spec["seconds"] * 0.8e6 / ITEM_US)
    for seed in itertools.count():
        yield packed(seed, straggling if run.spec["straggler"] and seed == STRAGGLER else units)


def watch(run: Run, results: Iterable[Any], footprint: Footprint) -> None:
    """Take results for spec["seconds"], or until the straggler has come, or too much is held."""
    begin = time.monotonic()
    pause = 0.0 if run.spec["straggler"] else SLOWER * ITEM_US * 1e-6 / WORKERS
    taken, first = 0, 0.0
    for result in results:
        taken += 1
        seed = int(result[0])
        if run.spec["ordered"] and seed != taken - 1:
            raise ValueError(f"result {taken - 1} is that of item {seed}")
        first = first or time.monotonic() - begin
        if footprint.full.wait(pause) or time.monotonic() - begin > run.spec["seconds"]:
            break
        if run.spec["straggler"] and (seed == STRAGGLER):
            break
    footprint.stop()
    run.result.update(base=footprint.base, samples=footprint.samples, taken=taken, first_s=first)
    run.result["stopped_s"] = footprint.samples[-1][0] if footprint.full.is_set() else None


def _begin(run: Run) -> tuple[Work, Footprint]:
    import numpy  # noqa: F401 (its memory is not the question)

    return Work("python", "array", RESULT), Footprint(run.spec["most"])


def ours(run: Run) -> None:
    """lazystore.imap in a budget."""
    from lazystore import imap

    func, footprint = _begin(run)
    with imap(
        func, items(run), ordered=run.spec["ordered"], max_buffer_bytes=BUDGET, **run.spec["settings"]
    ) as results:
        watch(run, results, footprint)


def pool(run: Run) -> None:
    """multiprocessing.Pool."""
    from multiprocessing import Pool

    func, footprint = _begin(run)
    with Pool(WORKERS) as workers:
        watch(run, (workers.imap if run.spec["ordered"] else workers.imap_unordered)(func, items(run)), footprint)


def threads(run: Run) -> None:
    """multiprocessing's ThreadPool."""
    from multiprocessing.pool import ThreadPool

    func, footprint = _begin(run)
    with ThreadPool(WORKERS) as workers:
        watch(run, (workers.imap if run.spec["ordered"] else workers.imap_unordered)(func, items(run)), footprint)


def joblib(run: Run) -> None:
    """joblib's generators over loky."""
    from joblib import Parallel, delayed

    how = "generator" if run.spec["ordered"] else "generator_unordered"
    func, footprint = _begin(run)
    watch(run, Parallel(n_jobs=WORKERS, return_as=how)(delayed(func)(item) for item in items(run)), footprint)


def mpire(run: Run) -> None:
    """mpire, which is not told a length."""
    from mpire import WorkerPool

    func, footprint = _begin(run)
    with WorkerPool(WORKERS) as workers:
        watch(run, (workers.imap if run.spec["ordered"] else workers.imap_unordered)(func, items(run)), footprint)


def contenders(options: Any, straggler: bool) -> list[Contender]:
    """Who takes part."""
    spec = {
        "units": round(ITEM_US * calibrate()["python"]),
        "seconds": options.seconds,
        "most": options.most,
        "straggler": straggler,
    }
    limit_s = 2 * options.seconds + 60
    made = []
    for ordered in (True,) if straggler else (True, False):
        how = "ordered" if ordered else "unordered"
        for settings in ({"backend": "process", "n_jobs": WORKERS}, {"backend": "thread", "n_jobs": WORKERS}, {}):
            name = f"{OURS}, {settings.get('backend', 'auto')}, {how}"
            ours_spec = {**spec, "ordered": ordered, "settings": settings}
            made.append(Contender(name, "bench_imap_memory:ours", ours_spec, limit_s=limit_s))
        if options.peers:
            for call, name in (("pool", "Pool"), ("threads", "ThreadPool"), ("joblib", "joblib"), ("mpire", "mpire")):
                call = f"bench_imap_memory:{call}"
                made.append(Contender(f"{name}, {how}", call, {**spec, "ordered": ordered}, limit_s=limit_s))
    return made


def growth(run: dict[str, Any]) -> float:
    """Bytes added after the first result, at most; the start of the workers is before it."""
    after = [(when, held) for when, held in run["samples"] if when >= run["first_s"] + 0.2] or run["samples"]
    return float(max(held for _, held in after) - after[0][1])


def late_growth(run: dict[str, Any]) -> float:
    """Bytes a second over the later half of the run, from its first to its last quarter's mean."""
    samples = run["samples"][len(run["samples"]) // 2 :]
    quarter = max(1, len(samples) // 2)
    early, late = samples[:quarter], samples[-quarter:]
    span = late[-1][0] - early[0][0] if len(samples) > 1 else 1.0

    def mean(part: list[list[float]]) -> float:
        return sum(held for _, held in part) / len(part)

    return 2 * (mean(late) - mean(early)) / max(span, 0.1)


def peak(run: dict[str, Any]) -> float:
    """Bytes beyond what there was before the workers, at most."""
    return float(max(held for _, held in run["samples"]) - run["base"])


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("Memory of imap with a slow consumer.")
    parser.add_argument("--seconds", type=float, default=None, help="of a run (default 60; quick 3)")
    parser.add_argument("--most", type=int, default=3_000_000_000, help="bytes at which a run is stopped")
    parser.add_argument("--question", choices=("slow", "straggler"), help="only this one")
    options = parser.parse_args()
    options.seconds = options.seconds or (3.0 if options.quick else 60.0)
    options.rounds = options.rounds or 1
    out = harness.Report(f"imap: memory in {options.seconds:g} s, results of 1 MB", options.json)
    for question, title in (
        ("slow", "consumer 100x slower than the workers"),
        ("straggler", "one straggler, in order"),
    ):
        if options.question not in (None, question):
            continue
        rows = harness.compare(contenders(options, question == "straggler"), options)
        out.table(
            title,
            rows,
            {
                "growth after the first result, MB": lambda row: f"{max(map(growth, row.runs)) / 1e6:.0f}",
                "peak beyond base, MB": lambda row: f"{max(map(peak, row.runs)) / 1e6:.0f}",
                "later half, MB/s": lambda row: f"{max(map(late_growth, row.runs)) / 1e6:.1f}",
                "base, MB": lambda row: f"{row.runs[-1]['base'] / 1e6:.0f}",
                "results taken": lambda row: str(row.runs[-1]["taken"]),
                "stopped": _stopped,
            },
        )
        for row in rows:
            if row.contender.name.startswith(OURS):
                measured = max(map(growth, row.runs)) if row.runs and not row.problem else None
                out.target(
                    f"{title}: growth of {row.contender.name}, bytes", measured, BUDGET + ALLOWANCE, at_least=False
                )
    return out.finish()


def _stopped(row: Row) -> str:
    stopped = row.runs[-1]["stopped_s"]
    return f"at {stopped:.1f} s" if stopped else ""


if __name__ == "__main__":
    sys.exit(main())
