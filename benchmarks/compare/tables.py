"""The works of the comparison, one function each: who runs, which columns, which promises.

Each takes a ``Field`` and a ``harness.Report``; the figures come from ``works.py`` in the children.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import harness
from harness import Report, Row, Rows

from compare.contenders import OURS, Field

__all__ = ["REMOTE_WORKS", "WORKS"]

Column = Callable[[Row], str]
LOOKUPS = 50
BATCH = 256
WORKERS = 2
LOADER_MEMORY = 64_000_000
#: Seconds of timed lookups in a run.
SECONDS = 2.0
COLD_SECONDS = 20.0


def _rate(run: dict[str, Any]) -> float:
    """Items per second of the fastest pass after the first, or of the only one."""
    return float(run["items"] / min(run["seconds"][1:] or run["seconds"]))


def _rates(measure: Callable[[dict[str, Any]], float]) -> Column:
    return lambda row: harness.spread(row.values(measure))


def _last(key: str, unit: float = 1.0) -> Column:
    """A counter of the last round; the rounds hardly differ in it."""
    return lambda row: harness.number(row.runs[-1][key] / unit)


def _version(row: Row) -> str:
    return str(row.runs[-1]["version"])


def _times(rows: Rows, measure: Callable[[dict[str, Any]], float]) -> Column:
    """How many times slower than lazystore, round by round."""
    return harness.ratio(rows.named(OURS), measure)


def best_peer(rows: Rows, measure: Callable[[dict[str, Any]], float]) -> Row | None:
    """The peer with the highest median that stayed in the race."""
    peers = [row for row in rows if row.runs and not row.problem and not row.contender.name.startswith(OURS)]
    return max(peers, key=lambda row: statistics.median(row.values(measure)), default=None)


def _against_best(out: Report, what: str, rows: Rows, measure: Callable[[dict[str, Any]], float], bound: float) -> None:
    best = best_peer(rows, measure)
    if best is not None:
        promise = f"{what}, times the best peer ({best.contender.name})"
        out.target(promise, harness.share(best, rows.named(OURS), measure), bound)


def _run(field: Field, call: str, work: str, kind: str, **spec: Any) -> Rows:
    contenders = field.contenders(call, work, kind, **spec)
    return harness.compare(contenders, field.options, field.struck(contenders))


def local(field: Field, out: Report, kind: str) -> None:
    """Whole passes over local files, in order and shuffled, from a warm page cache."""
    found: dict[bool, Rows] = {}
    for shuffle, work in ((False, "passes"), (True, "shuffled")):
        rows = found[shuffle] = _run(field, "passes", work, kind, shuffle=shuffle, passes=2)
        out.table(
            f"{kind}, local, {'shuffled' if shuffle else 'sequential'}",
            rows,
            {
                "items/s, first pass": _rates(harness.first_rate),
                "items/s, second pass": lambda row: _rates(_rate)(row) if len(row.runs[-1]["seconds"]) > 1 else "",
                "lazystore is": _times(rows, _rate),
                "items per CPU s": _rates(harness.first_cpu_rate),
                "peak RSS, MB": harness.megabytes("rss_peak"),
                "disk, MB": _last("disk", 1e6),
                "version": _version,
            },
        )
    if kind == "blob":
        return
    _against_best(out, f"{kind}: local shuffled epoch", found[True], _rate, 8.0)
    part = harness.share(found[False].named(OURS), found[True].named(OURS), _rate)
    out.target(f"{kind}: local shuffled epoch, share of the sequential speed", part, 0.7)


def warm(field: Field, out: Report, kind: str) -> None:
    """``ds[i]`` in random order, everything resident that the library can keep."""
    memory = field.data.profile.resident if kind == "blob" else field.data.profile.memory
    rows = _run(field, "warm", "warm", kind, seconds=SECONDS, memory=memory)
    out.table(
        f"{kind}, local, random ds[i], warm",
        rows,
        {
            "items/s": _rates(harness.first_rate),
            "lazystore is": _times(rows, harness.first_rate),
            "peak RSS, MB": harness.megabytes("rss_peak"),
            "version": _version,
        },
    )


def loader(field: Field, out: Report, kind: str) -> None:
    """torch's DataLoader over local files, two workers, batches of 256, in order."""
    rows = _run(field, "loader", "loader", kind, batch=BATCH, workers=WORKERS, passes=2, memory=LOADER_MEMORY)
    out.table(
        f"{kind}, local, DataLoader with {WORKERS} workers, batch {BATCH}",
        rows,
        {
            "items/s, first pass": _rates(harness.first_rate),
            "items/s, second pass": _rates(_rate),
            "lazystore is": _times(rows, harness.first_rate),
            "first batch, ms": _rates(lambda run: run["first_batch"] * 1e3),
            "PSS of all processes, MB": harness.megabytes("pss"),
            "version": _version,
        },
    )
    if kind == "text":
        _against_best(out, f"{kind}: DataLoader, {WORKERS} workers", rows, harness.first_rate, 2.0)


def epoch(field: Field, out: Report, kind: str) -> None:
    """An epoch from the object store with nothing cached, in order and shuffled."""
    for shuffle in (False, True):
        rows = _run(field, "epoch", "epoch", kind, shuffle=shuffle)
        out.table(
            f"{kind}, object store, epoch {'shuffled' if shuffle else 'in order'}",
            rows,
            {
                "first item, s": _rates(lambda run: run["first_seconds"]),
                "epoch, s": _rates(lambda run: run["seconds"][0]),
                "lazystore is": _times(rows, harness.first_rate),
                "CPU s": _rates(lambda run: run["cpu_seconds"][0]),
                "peak RSS over import, MB": _rates(lambda run: (run["rss_peak"] - run["rss_after_import"]) / 1e6),
                "MB fetched": _last("bytes_fetched", 1e6),
                "requests": _last("requests"),
                "disk, MB": _last("disk", 1e6),
                "version": _version,
            },
        )


def cold(field: Field, out: Report, kind: str) -> None:
    """Random ``ds[i]`` from the object store, each of an item not asked for before."""
    rows = _run(field, "cold", "cold", kind, lookups=LOOKUPS, seconds=COLD_SECONDS)
    out.table(
        f"{kind}, object store, random ds[i], cold",
        rows,
        {
            "opening, s": _rates(lambda run: run["open_seconds"]),
            "MB to open": _last("open_bytes", 1e6),
            "p50, ms": _rates(lambda run: statistics.median(run["seconds"]) * 1e3),
            "mean, ms": _rates(lambda run: statistics.mean(run["seconds"]) * 1e3),
            "requests a lookup": lambda row: harness.number(row.runs[-1]["requests"] / len(row.runs[-1]["seconds"])),
            "kB a lookup": lambda row: harness.number(
                row.runs[-1]["bytes_fetched"] / 1e3 / len(row.runs[-1]["seconds"])
            ),
            "peak RSS over import, MB": _rates(lambda run: (run["rss_peak"] - run["rss_after_import"]) / 1e6),
            "disk, MB": _last("disk", 1e6),
            "version": _version,
        },
    )


WORKS: dict[str, Callable[[Field, Report, str], None]] = {
    "local": local,
    "warm": warm,
    "loader": loader,
    "epoch": epoch,
    "cold": cold,
}
REMOTE_WORKS = frozenset(("epoch", "cold"))
