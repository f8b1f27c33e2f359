"""What does cold reading from an object store cost, in round trips, bytes and time?

A local object store with 20 ms latency and 200 MB/s in all; every run starts with nothing cached.
First item and cold ds[i] are in round trips of 20 ms; 256 items at once are held against 256 bare
parallel ranged GETs of exactly those items through the same filesystem. Waves are counted in runs of
their own at 400 ms latency, where one wave is longer than a client needs to send it.
"""

from __future__ import annotations

import json
import random
import statistics
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from data import Data
from harness import Contender
from readers import ORDER_SEED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from lazystore.testing import ObjectStore

LATENCY_MS = 20.0
WAVE_LATENCY_MS = 400.0
BANDWIDTH = "200MB"
BUCKET = "bench"
VIAS = ("http", "s3", "obstore")
LOOKUPS = 50
BATCH = 256
LIMIT_S = 90.0
#: Seconds after which a run of cold lookups stops early.
SECONDS = 20.0
#: MosaicML takes endpoint and keys from here; a proxy would be asked for localhost.
CHILD_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
PEERS = (
    ("LitData 0.2.76", "litdata", "litdata-0.2.76"),
    ("LitData 0.2.76, classic data", "litdata", "litdata-0.2.61"),
    ("MosaicML 0.13", "mosaicml", "mds"),
    ("Lance", "lance", "lance"),
)


class Bench:
    """The store, the data and the arguments, which every question needs."""

    def __init__(self, data: Data, options: argparse.Namespace, store: ObjectStore, scratch: str) -> None:
        self.data = data
        self.options = options
        self.store = store
        self.scratch = scratch
        self.out = harness.Report("Object store, 20 ms and 200 MB/s", options.json)

    def contender(self, name: str, call: str, kind: str, format: str, **spec: Any) -> Contender:
        """One child; ``spec`` adds library, via and what its function takes."""
        common = {
            "endpoint": self.store.url,
            "bucket": BUCKET,
            "prefix": f"{kind}/{format}",
            "kind": kind,
            "count": self.data.profile.counts[kind],
            "memory": self.data.profile.memory,
            "scratch": self.scratch,
            "lookups": LOOKUPS,
            "batch": BATCH,
            "seconds": SECONDS,
        }
        environment = {**CHILD_ENVIRONMENT, "S3_ENDPOINT_URL": self.store.url}
        return Contender(name, f"remote:{call}", {**common, **spec}, limit_s=LIMIT_S, environment=environment)

    def everyone(self, call: str, kind: str) -> Iterator[Contender]:
        """lazystore through each filesystem, then the peers."""
        format = Path(self.data.classic(kind)).name
        for via in VIAS:
            yield self.contender(f"lazystore, {via}", call, kind, format, library="lazystore", via=via)
        if self.options.peers:
            for name, library, own in PEERS:
                self.data.ensure(kind, own)
                yield self.contender(name, call, kind, own, library=library)

    # --- the three questions ---

    def first_item(self) -> None:
        """Round trips to the first item, beyond the filesystem's own first info call."""
        format = Path(self.data.classic("text")).name
        bare = [self.contender(f"first info call, {via}", "first_info", "text", format, via=via) for via in VIAS]
        for kind in ("text", "blob"):
            rows = harness.compare([*bare, *self.everyone("first_item", kind)], self.options)
            self.out.table(
                f"{kind}: first item from nothing",
                rows,
                {
                    "ms": lambda row: harness.spread(row.values(_milliseconds)),
                    "round trips": lambda row: harness.spread(row.values(_trips)),
                    "beyond first info": lambda row, rows=rows: _beyond(rows, row),  # type: ignore[misc]
                    "requests": lambda row: _last(row, "requests"),
                    "MB fetched": lambda row: _last(row, "bytes_fetched", 1e6),
                    "peak RSS, MB": lambda row: _last(row, "rss_peak", 1e6),
                },
            )
            for via in VIAS:
                ours, info = rows.named(f"lazystore, {via}"), rows.named(f"first info call, {via}")
                trips = [o - i for o, i in zip(ours.values(_trips), info.values(_trips), strict=False)]
                promise = f"{kind}, {via}: first item, round trips beyond first info"
                self.out.target(promise, statistics.median(trips) if trips else None, 4.0, at_least=False)
                self._memory_target(f"{kind}, {via}: first item", ours)

    def cold_items(self) -> None:
        """Round trips of a cold ds[i]."""
        for kind in ("text", "blob"):
            rows = harness.compare(list(self.everyone("cold_items", kind)), self.options)
            self.out.table(
                f"{kind}: cold ds[i]",
                rows,
                {
                    "p50, ms": lambda row: harness.spread(row.values(lambda run: _p50(run) * 1e3)),
                    "p50, round trips": lambda row: harness.spread(row.values(_p50_trips)),
                    "mean, ms": lambda row: harness.spread(row.values(_mean_ms)),
                    "p90, ms": lambda row: harness.spread(row.values(_p90_ms)),
                    "requests a lookup": lambda row: _a_lookup(row, "requests"),
                    "kB a lookup": lambda row: _a_lookup(row, "bytes_fetched", 1e3),
                    "peak RSS, MB": lambda row: _last(row, "rss_peak", 1e6),
                },
            )
            for via in VIAS:
                ours = rows.named(f"lazystore, {via}")
                measured = ours.median(_p50_trips)
                bound = 1.2 if via == "obstore" else 1.5
                promise = f"{kind}, {via}: cold ds[i] p50, round trips"
                self.out.target(promise, measured, bound, at_least=False)
                self._memory_target(f"{kind}, {via}: cold ds[i]", ours)

    def many(self) -> None:
        """256 random text items at once."""
        format = Path(self.data.classic("text")).name
        ranges = Path(self.scratch, "ranges.json")
        ranges.write_text(json.dumps(_ranges(self.data, BATCH)))
        bare = [
            self.contender(f"{BATCH} bare GETs, {via}", "bare_ranges", "text", format, via=via, ranges=str(ranges))
            for via in VIAS
        ]
        contenders = [*bare, *self.everyone("many", "text")]
        rows = harness.compare(contenders, self.options)
        self.store.configure(latency_ms=WAVE_LATENCY_MS)
        slow = harness.compare([c for c in contenders if "lazystore" in c.name], _once(self.options))
        self.store.configure(latency_ms=LATENCY_MS)
        self.out.table(
            f"text: {BATCH} random items at once",
            rows,
            {
                "ms": lambda row: harness.spread(row.values(_milliseconds)),
                "times bare": lambda row: _times_bare(rows, row),
                "MB fetched": lambda row: _last(row, "bytes_fetched", 1e6),
                "requests": lambda row: _last(row, "requests"),
                "dependent waves": lambda row: _last(slow.named(row.contender.name), "waves"),
                "peak RSS, MB": lambda row: _last(row, "rss_peak", 1e6),
            },
        )
        for via in VIAS:
            self._many_targets(via, rows, slow)

    def _many_targets(self, via: str, rows: harness.Rows, slow: harness.Rows) -> None:
        name = f"lazystore, {via}"
        ours, plain = rows.named(name), rows.named(f"{BATCH} bare GETs, {via}")
        fetched = ours.median(lambda run: run["bytes_fetched"])
        self.out.target(f"{via}: {BATCH} text items, bytes", fetched, 4e6, at_least=False)
        waves = slow.named(name).median(lambda run: run["waves"])
        self.out.target(f"{via}: {BATCH} text items, dependent waves", waves, 3, at_least=False)
        measured, bare = ours.median(_milliseconds), plain.median(_milliseconds)
        promise = f"{via}: {BATCH} text items, ms (1.3 x bare + one round trip)"
        if bare is not None:
            self.out.target(promise, measured, 1.3 * bare + LATENCY_MS, at_least=False)
        if via == "obstore":
            self.out.target(f"{via}: {BATCH} text items, ms", measured, 70, at_least=False)
        self._memory_target(f"{via}: {BATCH} text items", ours)

    def _memory_target(self, what: str, ours: harness.Row) -> None:
        excess = harness.excess(ours, self.data.profile.memory)
        promise = f"{what}, peak RSS beyond imports and budget, bytes"
        self.out.target(promise, excess, harness.RSS_ALLOWANCE, at_least=False)


def _once(options: argparse.Namespace) -> argparse.Namespace:
    once = type(options)(**vars(options))
    once.rounds = 1
    return once


def _milliseconds(run: dict[str, Any]) -> float:
    return float(run["seconds"][0]) * 1e3


def _trips(run: dict[str, Any]) -> float:
    return _milliseconds(run) / LATENCY_MS


def _p50(run: dict[str, Any]) -> float:
    return float(statistics.median(run["seconds"]))


def _p50_trips(run: dict[str, Any]) -> float:
    return _p50(run) * 1e3 / LATENCY_MS


def _mean_ms(run: dict[str, Any]) -> float:
    return float(statistics.mean(run["seconds"])) * 1e3


def _p90_ms(run: dict[str, Any]) -> float:
    return float(sorted(run["seconds"])[len(run["seconds"]) * 9 // 10]) * 1e3


def _last(row: harness.Row, key: str, unit: float = 1.0) -> str:
    """A counter of the last round; the rounds hardly differ in it."""
    if not row.runs or key not in row.runs[-1]:
        return ""
    return harness.number(row.runs[-1][key] / unit)


def _a_lookup(row: harness.Row, key: str, unit: float = 1.0) -> str:
    run = row.runs[-1]
    return harness.number(run[key] / unit / len(run["seconds"]))


def _beyond(rows: harness.Rows, row: harness.Row) -> str:
    name, _, via = row.contender.name.partition(", ")
    info = rows.named(f"first info call, {via}")
    if name != "lazystore" or not info.runs:
        return ""
    pairs = zip(row.values(_trips), info.values(_trips), strict=False)
    return harness.spread([ours - theirs for ours, theirs in pairs])


def _times_bare(rows: harness.Rows, row: harness.Row) -> str:
    name, _, via = row.contender.name.partition(", ")
    bare = rows.named(f"{BATCH} bare GETs, {via}")
    if name != "lazystore" or not bare.runs:
        return ""
    pairs = zip(row.values(_milliseconds), bare.values(_milliseconds), strict=False)
    return harness.spread([ours / theirs for ours, theirs in pairs])


def _ranges(data: Data, length: int) -> list[tuple[str, int, int]]:
    """(file, first byte, end) of the items that the children ask for, from the classic offset tables."""
    folder = Path(data.classic("text"))
    wanted = random.Random(ORDER_SEED).sample(range(1, data.profile.counts["text"]), length)
    index = json.loads((folder / "index.json").read_text())
    found: dict[int, tuple[str, int, int]] = {}
    first = 0
    for chunk in index["chunks"]:
        count, name = chunk["chunk_size"], chunk["filename"]
        inside = [item for item in wanted if first <= item < first + count]
        with open(folder / name, "rb") as file:
            offsets = struct.unpack(f"<{count + 1}I", file.read(4 + 4 * (count + 1))[4:])
        for item in inside:
            found[item] = (name, offsets[item - first], offsets[item - first + 1])
        first += count
    return [found[item] for item in wanted]


def main() -> int:
    """Measure what the arguments ask for."""
    from lazystore.testing import ObjectStore

    parser = harness.parser("Cold reading from an object store.")
    questions = ("first_item", "cold_items", "many")
    parser.add_argument("--question", choices=questions, action="append", help="only this one (repeatable)")
    options = parser.parse_args()
    data = Data.of(options)
    for kind in ("text", "blob"):
        data.classic(kind)
    with (
        tempfile.TemporaryDirectory(dir=data.root) as scratch,
        ObjectStore({BUCKET: data.root}, latency_ms=LATENCY_MS, bandwidth=BANDWIDTH) as store,
    ):
        bench = Bench(data, options, store, scratch)
        for question in options.question or questions:
            getattr(bench, question)()
        return bench.out.finish()


if __name__ == "__main__":
    sys.exit(main())
