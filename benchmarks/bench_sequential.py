"""How fast does one pass over a dataset go, from a warm page cache, inside a 256 MB budget?

Text and arr fit the budget, blob is about four times as large. "First pass" is what a user waits for:
memory is faulted in and bytes are read; "later" is the median of the further passes of the same process.
"""

from __future__ import annotations

import argparse
import sys

import harness
from data import CLASSIC, Data
from harness import Contender

LIMIT_S = 180.0


def contenders(data: Data, kind: str, options: argparse.Namespace) -> list[Contender]:
    """lazystore on classic data, then the peers each on its own."""

    def reads(name: str, library: str, path: str, side: str = "", **more: object) -> Contender:
        spec = {
            "library": library,
            "kind": kind,
            "path": path,
            "passes": 3,
            "count": data.profile.counts[kind],
        }
        return Contender(name, "readers:sequential", {**spec, **more}, side=side, limit_s=LIMIT_S)

    classic = data.classic(kind)
    memory = data.profile.memory
    chosen = [reads("lazystore", "lazystore", classic, memory=memory)]
    if kind == "blob":
        spec = {**chosen[0].spec, "memory": memory}
        chosen.append(Contender("lazystore, views", "readers:views", spec, limit_s=LIMIT_S))
        chosen.append(Contender(harness.PLAIN, "readers:plain_preadv", spec, limit_s=LIMIT_S))
        huge = {**spec, "huge": True}
        chosen.append(Contender(harness.PLAIN_HUGE, "readers:plain_preadv", huge, limit_s=LIMIT_S))
        whole = data.profile.resident
        chosen.append(reads("lazystore, all resident", "lazystore", classic, memory=whole, resident=True))
    if not options.peers:
        return chosen
    current = data.ensure(kind, "litdata-0.2.76")
    chosen.append(reads("LitData 0.2.76", "litdata", current))
    chosen.append(reads("LitData 0.2.76, classic data", "litdata", classic))
    chosen.append(reads("LitData 0.2.61", "litdata", classic, side=CLASSIC))
    if kind == "blob":
        chosen.append(reads("LitData 0.2.76, image copied", "litdata_copied", current))
    chosen.append(reads("Lance", "lance", data.ensure(kind, "lance")))
    if kind != "blob":
        arrow = data.ensure(kind, "arrow")
        chosen.append(reads("pyarrow to_pylist from RAM", "pyarrow", arrow, to_pylist=True))
        if kind == "arr":
            chosen.append(reads("pyarrow numpy rows from RAM", "pyarrow", arrow))
    chosen.append(reads("HF datasets", "hf", data.ensure(kind, "hf")))
    return chosen


def report(out: harness.Report, data: Data, kind: str, rows: harness.Rows) -> None:
    """One table, and the promises it can be held against."""
    ours = rows.named("lazystore")
    first, later = harness.first_rate, harness.later_rate
    out.table(
        f"{kind}: sequential, items/s",
        rows,
        {
            "first pass": lambda row: harness.spread(row.values(first)),
            "lazystore faster, first pass": harness.ratio(ours, first),
            "first pass, per CPU s": lambda row: harness.spread(row.values(harness.first_cpu_rate)),
            "later passes": lambda row: harness.spread(row.values(later)),
            "lazystore faster, later passes": harness.ratio(ours, later),
            "RSS after import, MB": harness.megabytes("rss_after_import"),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )
    if kind == "blob":
        harness.floor_targets(out, "blob as bytes", ours, rows, 0.7)
        harness.floor_targets(out, "blob as views", rows.named("lazystore, views"), rows, 0.9)
        resident = rows.named("lazystore, all resident")
        out.target("blob as bytes, all resident, items/s", resident.median(later), 200e3)
    else:
        out.target(f"{kind}, items/s", ours.median(first), {"text": 4.5e6, "arr": 1.5e6}[kind])
        for name, bound in (("LitData 0.2.76", 10.0), ("Lance", 1.0), ("pyarrow to_pylist from RAM", 1.0)):
            out.target(f"{kind}, times {name}", harness.share(rows.named(name), ours, first), bound)
    out.target(
        f"{kind}, peak RSS beyond imports and budget, bytes",
        harness.excess(ours, data.profile.memory),
        harness.RSS_ALLOWANCE,
        at_least=False,
    )


def main() -> int:
    parser = harness.parser("Sequential reading from a warm page cache.")
    parser.add_argument("--kind", choices=("text", "arr", "blob"), action="append")
    options = parser.parse_args()
    data = Data.of(options)
    out = harness.Report("Sequential, warm page cache", options.json)
    for kind in options.kind or ("text", "arr", "blob"):
        rows = harness.compare(contenders(data, kind, options), options)
        report(out, data, kind, rows)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
