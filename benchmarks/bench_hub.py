"""What do samples of a hub dataset cost through `StreamingDatasetWrapper`, beside `datasets`' own streaming?

A local hub (``lazystore.testing.LocalHub``, a process of its own) with 20 ms latency and 200 MB/s in all; every
contender in a process of its own, which knows nothing of the repository. The repositories are ``hub_data.py``'s, who
reads and what is timed ``hub_readers.py``'s. Requests and bytes are the hub's own count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import harness
from harness import Contender, Row, Rows
from hub_data import FEW_COLUMNS, Repo, add, repositories

from lazystore.testing import LocalHub

LATENCY_MS = 20.0
#: For counting round trips: see ``lazystore.testing.dependent_waves``.
LONG_LATENCY_MS = 150.0
BANDWIDTH = "200MB"
LIMIT_S = 300.0
MIB = 1 << 20
MEMORY = 64 * MIB
PLENTY = 2048 * MIB
ALLOWANCE = 32 * MIB
OURS = "lazystore, hub name"
WRAPPED = "lazystore, around load_dataset"
PEER = "load_dataset"
SELECTED = "load_dataset, select_columns"
ARGUMENT = "load_dataset(columns=)"
SHUFFLED = ", shuffled"
QUESTIONS = ("first", "passes", "columns", "cached", "memory", "threads", "resume", "leaks")

Measure = Callable[[dict[str, Any]], float]


class Bench:
    """The hub with its repositories, and the questions."""

    def __init__(self, options: argparse.Namespace, hub: LocalHub, repos: dict[str, Repo]) -> None:
        self.options, self.hub, self.repos = options, hub, repos
        self.out = harness.Report("Hub datasets, 20 ms and 200 MB/s", options.json)
        control = hub.control
        self._environment = {**hub.environment("hf-home"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        self._control = {"endpoint": control}

    def contender(self, name: str, call: str, kind: str, reader: str, **spec: Any) -> Contender:
        repo = self.repos[kind]
        told = {
            **self._control, "reader": reader, "repo": repo.name, "count": repo.count,
            "warm": self.repos["warm images" if repo.images else "warm"].name, **spec,
        }  # fmt: skip
        return Contender(name, f"hub_readers:{call}", told, limit_s=LIMIT_S, environment=self._environment)

    def compare(self, contenders: Iterable[Contender], rounds: int | None = None) -> Rows:
        """Those that are wanted, in turn; peers only with --peers."""
        options = argparse.Namespace(**vars(self.options))
        options.rounds = rounds or options.rounds
        return harness.compare([c for c in contenders if self.options.peers or "lazystore" in c.name], options)

    def kinds(self) -> list[str]:
        return [kind for kind in ("text", "files", "images") if kind in self.repos]

    # -- the questions ----------------------------------------------------------------------

    def first(self) -> None:
        for kind in self.kinds():
            chosen = [
                self.contender(OURS, "first", kind, "name", memory=MEMORY),
                self.contender(WRAPPED, "first", kind, "wrapped", memory=MEMORY),
                self.contender(PEER, "first", kind, "datasets"),
            ]
            rows = self.compare(chosen)
            self.hub.set(latency_ms=LONG_LATENCY_MS)
            slow = self.compare(chosen, rounds=1)
            self.hub.set(latency_ms=LATENCY_MS)
            took: Measure = lambda run: run["seconds"][0]  # noqa: E731
            self.out.table(
                f"{kind}: from the call to the first sample",
                rows,
                {
                    "ms": lambda row: harness.spread(row.values(lambda run: run["seconds"][0] * 1e3)),
                    "of it opening, ms": lambda row: harness.spread(row.values(lambda run: run["opening"] * 1e3)),
                    "of load_dataset's": harness.part(rows.named(PEER), took),
                    "requests": lambda row: harness.spread(row.values(lambda run: run["requests"])),
                    "MB": lambda row: harness.spread(row.values(lambda run: run["bytes_fetched"] / 1e6)),
                    "round trips, at 150 ms": _waves(slow),
                },
            )
            share = harness.share(rows.named(PEER), rows.named(OURS), took)
            self.out.target(f"{kind}: time to the first sample, of load_dataset's", share, 0.5, at_least=False)

    def passes(self) -> None:
        for kind in self.kinds():
            chosen = [
                self.contender(OURS, "passes", kind, "name", memory=MEMORY),
                self.contender(WRAPPED, "passes", kind, "wrapped", memory=MEMORY),
                self.contender(PEER, "passes", kind, "datasets"),
                self.contender(f"{PEER}, DataLoader, 2 workers", "passes", kind, "loader", workers=2),
            ]
            rows = self.compare(chosen)
            self._rates(f"{kind}: a whole pass", rows)
            if kind == "text":
                self._faster("text: rows/s, times load_dataset's", rows, (PEER,), 3)

    def columns(self) -> None:
        spec = {"columns": FEW_COLUMNS}
        chosen = [
            self.contender(OURS, "passes", "text", "name", memory=MEMORY, **spec),
            self.contender(WRAPPED, "passes", "text", "wrapped", memory=MEMORY, by="argument", **spec),
            self.contender(ARGUMENT, "passes", "text", "datasets", by="argument", **spec),
            self.contender(SELECTED, "passes", "text", "datasets", **spec),
        ]
        rows = self.compare(chosen)
        self._rates(f"text: a whole pass of the columns {', '.join(FEW_COLUMNS)}", rows)
        self._faster("text, two columns: rows/s, times the better of load_dataset's", rows, (ARGUMENT, SELECTED), 5)

    def cached(self) -> None:
        spec = {"passes": 4, "memory": PLENTY, "cache_size": self.repos["small"].count}
        chosen = [
            self.contender(OURS, "cached", "small", "name", **spec),
            self.contender(WRAPPED, "cached", "small", "wrapped", **spec),
            self.contender(PEER, "cached", "small", "datasets", passes=2),
        ]
        rows = self.compare(chosen)
        peer = rows.named(PEER)
        self.out.table(
            "passes over what memory holds, rows/s",
            rows,
            {
                "first pass": lambda row: harness.spread(row.values(harness.first_rate)),
                "later passes": lambda row: harness.spread(row.values(harness.later_rate)),
                "times load_dataset's": harness.part(peer, harness.later_rate),
                "requests of the last": lambda row: harness.spread(row.values(lambda run: run["requests"])),
            },
        )
        for name in (OURS, WRAPPED):
            times = harness.share(peer, rows.named(name), harness.later_rate)
            self.out.target(f"cached pass, {name}: times load_dataset's", times, 20)

    def memory(self) -> None:
        chosen = []
        for memory in (32 * MIB, 64 * MIB):
            named = f", {memory // MIB} MiB"
            chosen.append(self.contender(OURS + named, "passes", "text", "name", memory=memory))
            chosen.append(self.contender(WRAPPED + named, "passes", "text", "wrapped", memory=memory))
        chosen.append(self.contender(PEER, "passes", "text", "datasets"))
        rows = self.compare(chosen, rounds=min(2, harness.rounds(self.options)))

        def beyond(row: Row) -> str:
            return f"{(harness.excess(row, row.contender.spec.get('memory', 0)) or 0) / MIB:.1f}"

        self.out.table(
            "text: peak RSS of a pass",
            rows,
            {
                "beyond imports and memory=, MiB": beyond,
                "rows/s": lambda row: harness.spread(row.values(harness.first_rate)),
            },
        )
        beside = harness.excess(rows.named(PEER), 0)
        for row in rows:
            if row.contender.name.startswith(OURS):
                excess = harness.excess(row, row.contender.spec["memory"])
                promise = f"{row.contender.name}: peak RSS beyond imports and memory=, bytes"
                self.out.target(promise, excess, ALLOWANCE, at_least=False)
            elif row.contender.name.startswith(WRAPPED) and beside is not None:
                # What the library needs for the same pass is not the wrapper's to change.
                excess = harness.excess(row, row.contender.spec["memory"])
                promise = f"{row.contender.name}: the same, and beyond {PEER}'s own pass, bytes"
                self.out.target(promise, None if excess is None else excess - beside, ALLOWANCE, at_least=False)

    def threads(self) -> None:
        for shared, title in ((True, "eight threads on one pass"), (False, "eight threads, each with a pass")):
            spec = {"shared": shared, "locked": False}
            chosen = [
                self.contender(OURS, "threads", "small", "name", memory=MEMORY, **spec),
                self.contender(WRAPPED, "threads", "small", "wrapped", memory=MEMORY, **spec),
                self.contender(PEER, "threads", "small", "datasets", **spec),
            ]
            if shared:
                chosen.append(
                    self.contender(f"{PEER}, a lock", "threads", "small", "datasets", shared=True, locked=True)
                )
            rows = self.compare(chosen)
            self.out.table(
                title,
                rows,
                {
                    "rows/s, all threads": lambda row: harness.spread(row.values(harness.first_rate)),
                    "lost": lambda row: _worst(row, "lost"),
                    "doubled": lambda row: _worst(row, "doubled"),
                    "threads that failed": lambda row: _worst(row, "failed"),
                    "requests": lambda row: harness.spread(row.values(lambda run: run["requests"])),
                    "MB": lambda row: harness.spread(row.values(lambda run: run["bytes_fetched"] / 1e6)),
                },
            )
            for name in (OURS, WRAPPED):
                wrong = _largest(rows.named(name), "lost", "doubled", "failed")
                self.out.target(f"{title}, {name}: samples lost or doubled", wrong, 0, at_least=False)

    def resume(self) -> None:
        spec = {"positions": 10 if self.options.quick else 100}
        chosen = []
        for named, more in (("", {}), (SHUFFLED, {"shuffle": True})):
            if not named:
                chosen.append(self.contender(OURS, "resume", "resume", "name", memory=MEMORY, **spec))
            chosen.append(self.contender(WRAPPED + named, "resume", "resume", "wrapped", memory=MEMORY, **spec, **more))
            chosen.append(self.contender(PEER + named, "resume", "resume", "datasets", **spec, **more))
        rows = self.compare(chosen, rounds=1)
        self.out.table(
            f"taken up again at {spec['positions']} random positions",
            rows,
            {
                "wrong rests": lambda row: _worst(row, "wrong"),
                "samples lost": lambda row: _worst(row, "lost"),
                "repeated": lambda row: _worst(row, "doubled"),
                "opened, loaded, first sample, ms, median": lambda row: f"{row.runs[0]['seconds'][0] * 1e3:.0f}",
                "at most": lambda row: f"{row.runs[0]['slowest'] * 1e3:.0f}",
                "largest state, bytes": lambda row: _worst(row, "state"),
            },
        )
        for row in rows:
            if "lazystore" in row.contender.name:
                self.out.target(f"{row.contender.name}: wrong rests", _largest(row, "wrong"), 0, at_least=False)

    def leaks(self) -> None:
        times = 20 if self.options.quick else 500
        chosen = []
        for named, close in (("", False), (", closed", True)):
            for name, reader in ((OURS, "name"), (WRAPPED, "wrapped")):
                spec = {"times": times, "close": close, "memory": MEMORY}
                chosen.append(self.contender(name + named, "leaks", "resume", reader, **spec))
        chosen.append(self.contender(PEER, "leaks", "resume", "datasets", times=times, close=False))
        self.hub.set(latency_ms=0)
        rows = self.compare(chosen, rounds=1)
        self.hub.set(latency_ms=LATENCY_MS)
        self.out.table(
            f"opened, begun and dropped {times} times (no latency)",
            rows,
            {
                "threads left": lambda row: _worst(row, "threads"),
                "descriptors left": lambda row: _worst(row, "descriptors"),
                "RSS grown, MB": lambda row: f"{row.runs[0]['bytes'] / 1e6:.1f}",
                "ms each": lambda row: f"{row.runs[0]['seconds'][0] / times * 1e3:.1f}",
            },
        )
        for row in rows:
            if "lazystore" in row.contender.name:
                self.out.target(f"{row.contender.name}: threads left", _largest(row, "threads"), 0, at_least=False)

    # -- parts of them ----------------------------------------------------------------------

    def _rates(self, title: str, rows: Rows) -> None:
        self.out.table(
            title,
            rows,
            {
                "rows/s": lambda row: harness.spread(row.values(harness.first_rate)),
                "per CPU s": lambda row: harness.spread(row.values(harness.first_cpu_rate)),
                "lazystore faster": harness.ratio(rows.named(OURS), harness.first_rate),
                "requests": lambda row: harness.spread(row.values(lambda run: run["requests"])),
                "MB": lambda row: harness.spread(row.values(lambda run: run["bytes_fetched"] / 1e6)),
                "peak RSS beyond imports, MB": lambda row: f"{(harness.excess(row, 0) or 0) / 1e6:.0f}",
            },
        )

    def _faster(self, promise: str, rows: Rows, peers: Iterable[str], bound: float) -> None:
        shares = [harness.share(rows.named(peer), rows.named(OURS), harness.first_rate) for peer in peers]
        self.out.target(promise, min((share for share in shares if share is not None), default=None), bound)


def _waves(slow: Rows) -> Callable[[Row], str]:
    """A column: round trips of the same contender in other rows."""

    def cell(row: Row) -> str:
        runs = slow.named(row.contender.name).runs
        return harness.number(runs[0]["waves"]) if runs else "-"

    return cell


def _largest(row: Row, *names: str) -> float | None:
    return max((float(run[name]) for run in row.runs for name in names), default=None)


def _worst(row: Row, name: str) -> str:
    """One count of all rounds, the largest; their median where it differs."""
    values = row.values(lambda run: run[name])
    middle = statistics.median(values)
    return f"{max(values):g}" if middle == max(values) else f"{max(values):g} (median {middle:g})"


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("Hub datasets, streamed.")
    parser.add_argument("--question", choices=QUESTIONS, action="append", help="only this one (repeatable)")
    options = parser.parse_args()
    repos = repositories(options.quick)
    folder = Path(harness.data_folder(options), "hub")
    with LocalHub(latency_ms=LATENCY_MS, bandwidth=BANDWIDTH) as hub:
        for repo in repos.values():
            add(hub, folder, repo)
        bench = Bench(options, hub, repos)
        for question in options.question or QUESTIONS:
            getattr(bench, question)()
        return bench.out.finish()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
