"""How near does `imap` come to the best that can be made of a machine by hand, and to what the others make of it?

    python benchmarks/bench_imap.py [--peers] [--cell sleep] [--rounds 3] [--json grid.json]

Some 58 cells of item time, shape, bytes, source, consumer and kind of work; see ``imap/cells.py``. One interpreter
must have everything: lazystore, and with --peers joblib and mpire (``peers.txt``). Figures for two workers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import harness
from imap import tables
from imap.cells import CELLS, QUICK
from imap.rounds import Field, measure
from imap.work import calibrate

ROUNDS = 3


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("lazystore.imap beside a plain loop, pools, joblib, mpire, and its own best setting.")
    parser.add_argument(
        "--cell", metavar="PART", action="append", help="only cells whose name contains it (repeatable)"
    )
    options = parser.parse_args()
    cells = [
        c for c in (QUICK if options.quick else CELLS) if not options.cell or any(p in c.name for p in options.cell)
    ]
    out = harness.Report(f"imap: {len(cells)} cells", options.json)
    calibration = calibrate()
    print(
        ", ".join(f"{kind}: {harness.number(rate)} units/us" for kind, rate in calibration.items()) + "\n", flush=True
    )
    rounds = int(options.rounds or (1 if options.quick else ROUNDS))
    field = Field(calibration, rounds, options.peers, options.only)
    measured = []
    for place, cell in enumerate(cells):
        print(f"  {place + 1}/{len(cells)}: {cell.name}", file=sys.stderr, flush=True)
        measured.append(measure(cell, field))
        out.tables = [{"calibration": calibration, "cells": [tables.as_json(each) for each in measured]}]
        if options.json:  # the whole grid takes long; what is known is there if it is stopped
            Path(options.json).write_text(json.dumps(out.tables))
    tables.report(measured, out)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
