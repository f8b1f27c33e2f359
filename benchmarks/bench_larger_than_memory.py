"""Does a dataset 15 times the budget, in chunks as large as the budget, keep the disk's speed?

Blob in 64 MB chunks, read in a 64 MB and in an 8 MB budget, against plain preadv of the same files
into a ring of the same size.
"""

from __future__ import annotations

import sys

import harness
from data import Data
from harness import Contender

LIMIT_S = 120.0
PASSES = 3


def main() -> int:
    """Measure what the arguments ask for."""
    options = harness.parser("A dataset much larger than the budget.").parse_args()
    data = Data.of(options)
    out = harness.Report("A dataset 15 and 120 times the budget", options.json)
    first, later = harness.first_rate, harness.later_rate
    for memory in data.profile.small:
        spec = {
            "library": "lazystore",
            "kind": "blob",
            "path": data.classic("blob"),
            "count": data.profile.counts["blob"],
            "passes": PASSES,
            "memory": memory,
        }
        rows = harness.compare(
            [
                Contender("lazystore, bytes", "readers:sequential", spec, limit_s=LIMIT_S),
                Contender("lazystore, views", "readers:views", spec, limit_s=LIMIT_S),
                Contender(harness.PLAIN, "readers:plain_preadv", spec, limit_s=LIMIT_S),
                Contender(harness.PLAIN_HUGE, "readers:plain_preadv", {**spec, "huge": True}, limit_s=LIMIT_S),
            ],
            options,
        )
        plain = rows.named(harness.PLAIN)
        size = f"{memory / 1e6:g} MB"
        out.table(
            f"blob in a budget of {size}, items/s",
            rows,
            {
                "first pass": lambda row: harness.spread(row.values(first)),
                "share of preadv, first pass": harness.part(plain, first),
                "first pass, per CPU s": lambda row: harness.spread(row.values(harness.first_cpu_rate)),
                "later passes": lambda row: harness.spread(row.values(later)),
                "share of preadv, later passes": harness.part(plain, later),
                "RSS after import, MB": harness.megabytes("rss_after_import"),
                "peak RSS, MB": harness.megabytes("rss_peak"),
            },
        )
        for name, bound in (("bytes", 0.7), ("views", 0.9)):
            row = rows.named(f"lazystore, {name}")
            harness.floor_targets(out, f"{size}: {name}", row, rows, bound)
            out.target(
                f"{size}: {name}, peak RSS beyond imports and budget, bytes",
                harness.excess(row, memory),
                harness.RSS_ALLOWANCE,
                at_least=False,
            )
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
