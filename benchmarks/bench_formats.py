"""Is another format as fast as LitData's? MosaicML's MDS through lazystore, beside LitData's classic chunks through it.

The same samples, sequential passes and random ``ds[i]``, everything resident; MosaicML's own reader with --peers. Text
and arr fit the 256 MB budget, blob is read in a budget that holds it. Needs the datasets that MosaicML's writer makes.
"""

from __future__ import annotations

import argparse
import sys

import harness
from data import Data
from harness import Contender

KINDS = ("text", "arr", "blob")
LIMIT_S = 180.0
SECONDS = 1.0
#: MDS may be this share of LitData's format slower.
SHARE = 0.9
LITDATA, MDS, MOSAICML = "lazystore on LitData's format", "lazystore on MDS", "MosaicML on MDS"


def contenders(data: Data, kind: str, call: str, options: argparse.Namespace) -> list[Contender]:
    """lazystore on both formats; MosaicML itself on its own."""

    def reads(name: str, library: str, path: str) -> Contender:
        spec = {
            "library": library,
            "kind": kind,
            "path": path,
            "memory": data.profile.resident if kind == "blob" else data.profile.memory,
            "resident": True,
            "passes": 3,
            "seconds": SECONDS / 4 if options.quick else SECONDS,
            "count": data.profile.counts[kind],
        }
        return Contender(name, f"readers:{call}", spec, limit_s=LIMIT_S)

    mds = data.ensure(kind, "mds")
    chosen = [reads(LITDATA, "lazystore", data.classic(kind)), reads(MDS, "lazystore", mds)]
    if options.peers:
        chosen.append(reads(MOSAICML, "mosaicml", mds))
    return chosen


def report(out: harness.Report, kind: str, call: str, rows: harness.Rows) -> None:
    """One table, and the promise."""
    rate = harness.later_rate if call == "sequential" else harness.first_rate
    ours = rows.named(MDS)
    title = "sequential" if call == "sequential" else "ds[i]"
    out.table(
        f"{kind}: {title}, items/s",
        rows,
        {
            "items/s": lambda row: harness.spread(row.values(rate)),
            "lazystore on MDS faster": harness.ratio(ours, rate),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )
    share = harness.share(rows.named(LITDATA), ours, rate)
    out.target(f"{kind}, {title}, times the speed of LitData's format", share, SHARE)


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("MDS beside LitData's format.")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind (repeatable)")
    options = parser.parse_args()
    data = Data.of(options)
    out = harness.Report("MDS beside LitData's format", options.json)
    for kind in options.kind or KINDS:
        for call in ("sequential", "random_items"):
            report(out, kind, call, harness.compare(contenders(data, kind, call, options), options))
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
