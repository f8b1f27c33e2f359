"""How fast are random lookups when everything is resident: ds[i], and 256 items in one call?

lazystore reads the dataset once before the clock starts; the peers keep what they keep (maps, open
files) after 300 lookups. Libraries without a call for many items are asked one by one.
"""

from __future__ import annotations

import argparse
import sys

import harness
from data import CLASSIC, Data
from harness import Contender

KINDS = ("text", "arr", "blob")
LIMIT_S = 120.0
BATCH = 256
#: Seconds of lookups in one run.
SECONDS = 1.0


def contenders(data: Data, kind: str, call: str, options: argparse.Namespace) -> list[Contender]:
    """lazystore on classic data, then the peers each on its own."""

    def reads(name: str, library: str, path: str, side: str = "", memory: int = 0) -> Contender:
        spec = {
            "library": library,
            "kind": kind,
            "path": path,
            "memory": memory,
            "seconds": SECONDS / 4 if options.quick else SECONDS,
            "count": data.profile.counts[kind],
            "batch": BATCH,
        }
        return Contender(name, f"readers:{call}", spec, side=side, limit_s=LIMIT_S)

    classic = data.classic(kind)
    memory = data.profile.resident if kind == "blob" else data.profile.memory
    chosen = [reads("lazystore", "lazystore", classic, memory=memory)]
    if options.peers:
        chosen += [
            reads("LitData 0.2.76", "litdata", data.ensure(kind, "litdata-0.2.76")),
            reads("LitData 0.2.61", "litdata", classic, side=CLASSIC),
            reads("MosaicML 0.13", "mosaicml", data.ensure(kind, "mds")),
            reads("HF datasets", "hf", data.ensure(kind, "hf")),
            reads("Lance", "lance", data.ensure(kind, "lance")),
        ]
    return chosen


def report(out: harness.Report, data: Data, kind: str, call: str, rows: harness.Rows) -> None:
    """One table, and the promises it can be held against."""
    ours = rows.named("lazystore")
    rate = harness.first_rate
    title = "ds[i], resident" if call == "random_items" else f"{BATCH} random items a call, resident"
    out.table(
        f"{kind}: {title}, items/s",
        rows,
        {
            "items/s": lambda row: harness.spread(row.values(rate)),
            "items per CPU s": lambda row: harness.spread(row.values(harness.first_cpu_rate)),
            "lazystore faster": harness.ratio(ours, rate),
            "RSS after import, MB": harness.megabytes("rss_after_import"),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )
    bounds = {("text", "random_items"): 1.2e6, ("arr", "random_items"): 0.7e6, ("text", "batches"): 2.5e6}
    if (kind, call) in bounds:
        out.target(f"{kind}, {title}, items/s", ours.median(rate), bounds[kind, call])
    if (kind, call) == ("text", "random_items"):
        shares = [harness.share(row, ours, rate) for row in rows if row is not ours]
        measured = [share for share in shares if share is not None]
        out.target("text, ds[i], times the best peer", min(measured) if measured else None, 20.0)
    budget = data.profile.resident if kind == "blob" else data.profile.memory
    out.target(
        f"{kind}, {title}, peak RSS beyond imports and budget, bytes",
        harness.excess(ours, budget),
        harness.RSS_ALLOWANCE,
        at_least=False,
    )


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("Random lookups, all resident.")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind (repeatable)")
    options = parser.parse_args()
    data = Data.of(options)
    out = harness.Report("Random lookups, all resident", options.json)
    for kind in options.kind or KINDS:
        for call in ("random_items", "batches"):
            report(out, data, kind, call, harness.compare(contenders(data, kind, call, options), options))
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
