"""How many items a second come out of a torch DataLoader with two workers, and what memory do all processes take?

Batches of 256 by torch's default collate, local data from a warm page cache, a budget of 64 MB for all workers
together. "First pass" includes starting the workers. Memory is the PSS of the parent and its workers in mid-pass;
pages that other processes on the machine share count in part only, so the imports are measured in the same run.
"""

from __future__ import annotations

import argparse
import sys

import harness
from data import Data
from harness import Contender

LIMIT_S = 240.0
BATCH, WORKERS = 256, 2
BUDGET = 64 << 20
#: What workers and parent together may take beyond the imports and the budget, bytes.
PSS_ALLOWANCE = 60_000_000
OURS = ("lazystore, DataLoader", "lazystore, StreamingDataLoader", "lazystore, StreamingDataLoader, shuffled")
BATCHES = "lazystore, ds.batches (one process, no torch)"
PEERS = ("LitData 0.2.76", "HF datasets, map", "HF datasets, iterable", "MosaicML")


def contenders(data: Data, kind: str, options: argparse.Namespace) -> list[Contender]:
    """lazystore in both loaders, in order and shuffled, then the peers."""

    def reads(name: str, library: str, path: str, **more: object) -> Contender:
        spec = {
            "library": library, "kind": kind, "path": path, "memory": BUDGET, "passes": 3,
            "count": data.profile.counts[kind], "batch": BATCH, "workers": WORKERS,
        }  # fmt: skip
        return Contender(name, "loaders:passes", {**spec, **more}, limit_s=LIMIT_S)

    classic = data.classic(kind)
    chosen = [
        reads(OURS[0], "lazystore", classic),
        reads(OURS[1], "lazystore_streaming", classic),
        reads(OURS[2], "lazystore_streaming", classic, shuffle=True),
        reads(BATCHES, "lazystore_batches", classic),
    ]
    if options.peers:
        hf = data.ensure(kind, "hf")
        chosen += [
            reads(PEERS[0], "litdata", data.ensure(kind, "litdata-0.2.76")),
            reads(PEERS[1], "hf_map", hf),
            reads(PEERS[2], "hf_iterable", hf),
            reads(PEERS[3], "mosaicml", data.ensure(kind, "mds")),
        ]
    return chosen


def report(out: harness.Report, kind: str, rows: harness.Rows) -> None:
    """One table, and the promises it can be held against."""
    ours = rows.named(OURS[1])
    first, later = harness.first_rate, harness.later_rate
    out.table(
        f"{kind}: DataLoader, {WORKERS} workers, batches of {BATCH}, items/s",
        rows,
        {
            "first pass": lambda row: harness.spread(row.values(first)),
            "later passes": lambda row: harness.spread(row.values(later)),
            "StreamingDataLoader faster, first pass": harness.ratio(ours, first),
            "first batch, ms": lambda row: f"{(row.median(lambda run: run['first_batch']) or 0) * 1e3:.0f}",
            "PSS after import, MB": harness.megabytes("pss_after_import"),
            "PSS of all processes, MB": harness.megabytes("pss"),
        },
    )
    speeds = [rate for name in PEERS if (rate := rows.named(name).median(first)) is not None]
    mine = ours.median(first)
    if kind == "text":
        ratio = mine / max(speeds) if mine is not None and speeds else None
        out.target("text, times the best peer", ratio, 2.0)
    alone = rows.named(BATCHES).median(later)
    loaded = ours.median(later)
    ratio = alone / loaded if alone is not None and loaded else None
    out.target(f"{kind}: ds.batches, times StreamingDataLoader, later passes", ratio, 4.0)
    for name in OURS:
        beyond = rows.named(name).median(lambda run: run["pss"] - run["pss_after_import"] - BUDGET)
        out.target(f"{kind}, {name}: PSS beyond imports and budget, bytes", beyond, PSS_ALLOWANCE, at_least=False)


def main() -> int:
    parser = harness.parser("Torch's DataLoader with two workers.")
    parser.add_argument("--kind", choices=("text", "arr"), action="append")
    options = parser.parse_args()
    data = Data.of(options)
    out = harness.Report("DataLoader, two workers", options.json)
    for kind in options.kind or ("text", "arr"):
        report(out, kind, harness.compare(contenders(data, kind, options), options))
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
