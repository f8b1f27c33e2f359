"""How near does an epoch from an object store come to the bare transfer of its bytes?

lazystore in a 64 MB budget, in order and shuffled, against the same bytes fetched through the same
filesystem in parallel ranges of 1 MiB and thrown away, in the same rounds. Then the same for
zstd-compressed chunks, under faults, and for an index of a million chunks. Object store: 20 ms, 200 MB/s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from compare.checksum import expected
from compare.contenders import BUCKET
from data import MILLION, ZSTD, Data
from harness import Contender, Row, Rows

if TYPE_CHECKING:
    from lazystore.testing import ObjectStore

LINKS = {"near": (20.0, "200MB"), "far": (100.0, "1GB")}
MIB = 1 << 20
PARALLEL = (16, 32)
BUDGET = 64_000_000
#: Resident memory beyond imports and budget, bytes.
ALLOWANCE = 32 * MIB
LIMIT_S = 120.0
FAULTS = {"error_503": 0.10, "cut": 0.05, "stall": 0.01, "seed": 11}
ORDERS = ((False, "in order"), (True, "shuffled"))
QUESTIONS = ("plain", "zstd", "faults", "million")


class Bench:
    """The store, the data and the arguments, which every question needs."""

    def __init__(self, data: Data, options: argparse.Namespace, store: ObjectStore, scratch: str) -> None:
        self.data = data
        self.options = options
        self.store = store
        self.scratch = scratch
        self.latency_s = LINKS[options.link][0] / 1e3
        latency_ms, bandwidth = LINKS[options.link]
        self.out = harness.Report(f"An epoch from the object store, {latency_ms:g} ms, {bandwidth}/s", options.json)

    def plain(self) -> None:
        """An epoch of text and of blob."""
        for kind in self.options.kind or ("text", "blob"):
            for via in self.options.via or ["http"]:
                self._against_bare(kind, Path(self.data.classic(kind)).name, via, 1.10, kind)

    def zstd(self) -> None:
        """An epoch of text that LitData compressed, against its smaller transfer."""
        self.data.ensure("text", ZSTD)
        for via in self.options.via or ["http"]:
            self._against_bare("text", ZSTD, via, 1.15, "text, zstd")

    def faults(self) -> None:
        """The same epoch with and without 10 % 503s, 5 % cut bodies and 1 % stalls."""
        format = Path(self.data.classic("text")).name
        wanted = expected("text", self.data.profile.counts["text"], self.data.root / "checksums.json")
        for via in self.options.via or ["http"]:
            contenders = []
            for shuffle, order in ORDERS:
                for faults, name in ((None, "without faults"), (FAULTS, "with faults")):
                    spec = {"shuffle": shuffle, "faults": faults}
                    contenders.append(self._ours(f"{order}, {name}", "epoch", "text", format, via, **spec))
            checks = [
                self._ours(f"{order}, with faults", "check", "text", format, via, shuffle=shuffle, faults=FAULTS)
                for shuffle, order in ORDERS
            ]
            once = argparse.Namespace(**{**vars(self.options), "rounds": 1})
            checked = harness.compare(checks, once)
            struck = {
                row.contender.name: row.problem or "yields other samples than were written"
                for row in checked
                if row.problem or any(run["checksum"] != wanted for run in row.runs)
            }
            rows = harness.compare(contenders, self.options, struck)
            self._fault_table(via, rows)
        self.store.configure(faults=None)

    def _fault_table(self, via: str, rows: Rows) -> None:
        def calm(row: Row) -> Row:
            return rows.named(row.contender.name.partition(",")[0] + ", without faults")

        self.out.table(
            f"text under faults, {via}",
            rows,
            {
                "epoch, s": lambda row: harness.spread(row.values(_seconds)),
                "times fault-free": lambda row: _ratios(row, calm(row)),
                "first item, s": lambda row: harness.spread(row.values(_first)),
                "requests": lambda row: harness.number(row.runs[-1]["requests"]),
                "faults met": lambda row: harness.number(row.runs[-1]["faults"]),
                "MB fetched": lambda row: harness.number(row.runs[-1]["bytes_fetched"] / 1e6),
            },
        )
        for _, order in ORDERS:
            row = rows.named(f"{order}, with faults")
            measured = None if row.problem else _ratio(row, rows.named(f"{order}, without faults"))
            promise = f"text, {via}, {order}: under faults, times the fault-free epoch (samples checked)"
            self.out.target(promise, measured, 2.0, at_least=False)

    def million(self) -> None:
        """Opening an index of a million chunks, and the first item, beside an index of ordinary length."""
        ordinary = self.data.classic("text")
        many = self.data.ensure("text", MILLION)
        contenders = []
        for path, name in ((ordinary, "ordinary"), (many, "many chunks")):
            for shuffle, order in ORDERS:
                # Not "path": nobody wants a million files read beforehand.
                local = self._ours(f"{name}, local, {order}", "opening", "text", "", "", shuffle=shuffle)
                del local.spec["endpoint"]
                local.spec["path"] = path
                distant = self._ours(
                    f"{name}, http, {order}", "opening", "text", Path(path).name, "http", shuffle=shuffle
                )
                contenders += [local, distant]
        rows = harness.compare(contenders, self.options)
        chunks = len(json.loads(Path(many, "index.json").read_text())["chunks"])
        self.out.table(
            f"opening {chunks} chunks",
            rows,
            {
                "open, s": lambda row: harness.spread(row.values(_open)),
                "peak RSS over import by then, MB": lambda row: harness.spread(
                    row.values(lambda run: (run["rss_open"] - run["rss_after_import"]) / 1e6)
                ),
                "first item, ms": lambda row: harness.spread(row.values(lambda run: run["first_seconds"] * 1e3)),
                "peak RSS over import, MB": lambda row: harness.spread(row.values(_over_import)),
            },
        )
        for _, order in ORDERS:
            row = rows.named(f"many chunks, local, {order}")
            self.out.target(f"{chunks} chunks, {order}: open, s", row.median(_open), 3.0, at_least=False)
            peak = row.median(_over_import)
            self.out.target(f"{chunks} chunks, {order}: peak RSS over import, MB", peak, 200.0, at_least=False)
            distant, usual = rows.named(f"many chunks, http, {order}"), rows.named(f"ordinary, http, {order}")
            extra = None
            if distant.runs and usual.runs:
                extra = (distant.median(_first) - usual.median(_first)) / self.latency_s  # type: ignore[operator]
            promise = f"{chunks} chunks, http, {order}: first item later than usual, round trips"
            self.out.target(promise, extra, 1.0, at_least=False)

    # --- an epoch beside its bare transfer ---

    def _against_bare(self, kind: str, format: str, via: str, bound: float, title: str) -> None:
        folder = self.data.root / kind / format
        files = _files(folder)
        total = sum(size for _, size in files)
        bare = [
            self._bare(f"bare, {parallel} at a time", kind, format, via, files=files, parallel=parallel)
            for parallel in PARALLEL
        ]
        # What any reader must wait for that does not know the dataset: shown, not the measure.
        indexed = self._bare(
            "bare, index first", kind, format, via, files=files, parallel=PARALLEL[-1], before=["index.json"]
        )
        info = self._child("first info call", "remote:first_info", kind, format, via)
        ours = [self._ours(f"lazystore, {o}", "epoch", kind, format, via, shuffle=s) for s, o in ORDERS]
        rows = harness.compare([*bare, indexed, info, *ours], self.options)
        best = _best(rows.named(bare[0].name), rows.named(bare[1].name))
        self.out.table(
            f"{title}, {via}: an epoch of {total / 1e6:.1f} MB",
            rows,
            {
                "seconds": lambda row: harness.spread(row.values(_seconds)),
                "times bare": lambda row: _ratios(row, best),
                "first item, round trips": lambda row: self._trips(row),
                "CPU s": lambda row: _of_epoch(row, "cpu_seconds", lambda value: value[0]),
                "bytes / dataset": lambda row: _of_epoch(row, "bytes_fetched", lambda value: value / total),
                "requests": lambda row: _of_epoch(row, "requests", float),
                "peak RSS over import, MB": lambda row: (
                    harness.spread(row.values(_over_import)) if "rss_peak" in row.runs[-1] else ""
                ),
                "disk, MB": lambda row: _of_epoch(row, "disk", lambda value: value / 1e6),
            },
        )
        for shuffle, order in ORDERS:
            self._targets(f"{title}, {via}, {order}", rows.named(f"lazystore, {order}"), rows, best, bound, total)
            limit = 1.05 if shuffle else 1.01
            row = rows.named(f"lazystore, {order}")
            fetched = row.median(lambda run: run["bytes_fetched"] / total)
            self.out.target(f"{title}, {via}, {order}: bytes / dataset", fetched, limit, at_least=False)

    def _targets(self, what: str, row: Row, rows: Rows, best: Row, bound: float, total: int) -> None:
        self.out.target(f"{what}: epoch, times the bare transfer", _ratio(row, best), bound, at_least=False)
        trips = row.median(lambda run: run["first_seconds"] / self.latency_s)
        self.out.target(f"{what}: first item, round trips, opening and connecting included", trips, 4, at_least=False)
        excess = harness.excess(row, self.options.memory)
        self.out.target(f"{what}: peak RSS beyond imports and budget, bytes", excess, ALLOWANCE, at_least=False)
        self.out.target(f"{what}: bytes on disk", row.median(lambda run: run["disk"]), 0, at_least=False)

    def _trips(self, row: Row) -> str:
        if "first_seconds" in row.runs[-1]:
            return harness.spread(row.values(lambda run: run["first_seconds"] / self.latency_s))
        if row.contender.name == "first info call":
            return harness.spread(row.values(lambda run: _seconds(run) / self.latency_s))
        return ""

    # --- children ---

    def _child(self, name: str, call: str, kind: str, format: str, via: str, **spec: Any) -> Contender:
        common = {
            "library": "lazystore",
            "endpoint": self.store.url,
            "bucket": BUCKET,
            "prefix": f"{kind}/{format}",
            "via": via,
            "kind": kind,
            "count": self.data.profile.counts[kind],
            "memory": self.options.memory,
            "scratch": self.scratch,
            "files": [],
        }
        return Contender(name, call, {**common, **spec}, limit_s=self.options.limit)

    def _ours(self, name: str, work: str, kind: str, format: str, via: str, **spec: Any) -> Contender:
        return self._child(name, f"compare.works:{work}", kind, format, via, **spec)

    def _bare(self, name: str, kind: str, format: str, via: str, **spec: Any) -> Contender:
        spec = {"range": MIB, "before": [], **spec}
        return self._child(name, "remote:bare_epoch", kind, format, via, **spec)


def _files(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of everything an epoch must fetch."""
    return [(entry.name, entry.stat().st_size) for entry in sorted(os.scandir(folder), key=lambda e: e.name)]


def _best(*rows: Row) -> Row:
    """A row made of the fastest run of each round."""
    made = Row(Contender("bare", "", {}))
    for runs in zip(*(row.runs for row in rows), strict=False):
        made.runs.append(min(runs, key=_seconds))
    return made


def _seconds(run: dict[str, Any]) -> float:
    return float(run["seconds"][0])


def _first(run: dict[str, Any]) -> float:
    return float(run["first_seconds"])


def _open(run: dict[str, Any]) -> float:
    return float(run["open_seconds"])


def _over_import(run: dict[str, Any]) -> float:
    return float(run["rss_peak"] - run["rss_after_import"]) / 1e6


def _pairs(row: Row, other: Row) -> list[float]:
    """How many times longer the row took, round by round."""
    return [mine / base for mine, base in zip(row.values(_seconds), other.values(_seconds), strict=False)]


def _ratios(row: Row, other: Row) -> str:
    pairs = _pairs(row, other)
    return harness.spread(pairs) if pairs and "rss_peak" in row.runs[-1] else ""


def _ratio(row: Row, other: Row) -> float | None:
    pairs = _pairs(row, other)
    return statistics.median(pairs) if pairs else None


def _of_epoch(row: Row, key: str, value: Any) -> str:
    """A figure of the last round, where the contender has it."""
    return harness.number(value(row.runs[-1][key])) if key in row.runs[-1] else ""


def main() -> int:
    """Measure what the arguments ask for."""
    from lazystore.testing import ObjectStore

    parser = harness.parser("An epoch from an object store against its bare transfer.")
    parser.add_argument("--question", choices=QUESTIONS, action="append", help="only this one (repeatable)")
    parser.add_argument("--kind", choices=("text", "arr", "blob"), action="append", help="datasets of the plain epoch")
    parser.add_argument(
        "--via", choices=("http", "s3", "obstore"), action="append", help="filesystems (default http; repeatable)"
    )
    parser.add_argument("--link", choices=LINKS, default="near", help="20 ms, 200 MB/s; or 100 ms, 1 GB/s")
    parser.add_argument("--memory", type=int, default=BUDGET, help="budget, bytes")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds after which a run is given up")
    options = parser.parse_args()
    data = Data.of(options)
    for kind in ("text", "blob"):
        data.classic(kind)
    latency_ms, bandwidth = LINKS[options.link]
    with (
        tempfile.TemporaryDirectory(dir=data.root) as scratch,
        ObjectStore({BUCKET: data.root}, latency_ms=latency_ms, bandwidth=bandwidth) as store,
    ):
        bench = Bench(data, options, store, scratch)
        for question in options.question or QUESTIONS:
            getattr(bench, question)()
        return bench.out.finish()


if __name__ == "__main__":
    sys.exit(main())
