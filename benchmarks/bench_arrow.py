"""Rows out of Arrow: how fast beside pyarrow's own ``to_pylist`` over the same record batches, and at random?

Three ways the same text is stored: an Arrow IPC file, Parquet files, and LitData 0.2.76's chunks, which hold Arrow rows
in batches of 256. pyarrow has the files in RAM before the clock starts; lazystore reads them inside a budget
that holds about half of them. Needs pyarrow; LitData's chunks, and LitData itself, with --peers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from data import Data
from harness import Contender

if TYPE_CHECKING:
    from worker import Run

LIMIT_S = 120.0
PASSES = 3
SECONDS = 1.0
PYARROW = "pyarrow to_pylist"
LITDATA = "litdata-0.2.76"
#: Formats, what they are called, and how many times LitData's random lookups lazystore's should be.
FORMATS = {"arrow": "Arrow IPC", "parquet": "Parquet", LITDATA: "LitData 0.2.76 Arrow rows"}
SHARE = 0.85
TIMES_LITDATA = 20.0


# -- the child side -------------------------------------------------------------------------


def pyarrow_rows(run: Run) -> None:
    """Passes of ``to_pylist`` over the record batches of files in RAM."""
    import pyarrow as pa

    files = [path for path in sorted(Path(run.spec["path"]).iterdir()) if path.suffix != ".json"]
    run.ready()
    loaded = [path.read_bytes() for path in files]
    batches = _BATCHES[run.spec["format"]]

    def rows() -> Iterator[dict[str, Any]]:
        for data in loaded:
            for batch in batches(pa, data):
                yield from batch.to_pylist()

    run.passes(rows, run.spec["count"])


def _ipc_batches(pa: Any, data: Any) -> Iterator[Any]:
    with pa.ipc.open_file(pa.py_buffer(data)) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _litdata_batches(pa: Any, data: bytes) -> Iterator[Any]:
    """The IPC file of a chunk: ``blob | u32 bytes | LDARW01 00`` is how the chunk ends."""
    length = int.from_bytes(data[-12:-8], "little")
    yield from _ipc_batches(pa, memoryview(data)[len(data) - 12 - length : len(data) - 12])


def _parquet_batches(pa: Any, data: bytes) -> Iterator[Any]:
    from pyarrow import parquet

    yield from parquet.ParquetFile(pa.BufferReader(data)).iter_batches(1024)


_BATCHES: dict[str, Callable[[Any, bytes], Iterator[Any]]] = {
    "arrow": _ipc_batches,
    "parquet": _parquet_batches,
    LITDATA: _litdata_batches,
}


# -- the tables -----------------------------------------------------------------------------


def sequential(out: harness.Report, data: Data, format: str, options: argparse.Namespace) -> None:
    """One format: passes in order."""
    spec = {
        "path": data.ensure("text", format), "format": format, "kind": "text", "passes": PASSES,
        "count": data.profile.counts["text"], "memory": data.profile.memory // 4, "library": "lazystore",
    }  # fmt: skip
    chosen = [
        Contender("lazystore", "readers:sequential", spec, limit_s=LIMIT_S),
        Contender(PYARROW, "bench_arrow:pyarrow_rows", spec, limit_s=LIMIT_S),
    ]
    if format == LITDATA:
        chosen.append(
            Contender("LitData 0.2.76", "readers:sequential", {**spec, "library": "litdata"}, limit_s=LIMIT_S)
        )
    rows = harness.compare(chosen, options)
    ours, theirs = rows.named("lazystore"), rows.named(PYARROW)
    later, busy = harness.later_rate, harness.first_cpu_rate
    out.table(
        f"{FORMATS[format]}: sequential, rows/s",
        rows,
        {
            "first pass": lambda row: harness.spread(row.values(harness.first_rate)),
            "per CPU s": lambda row: harness.spread(row.values(busy)),
            "later passes": lambda row: harness.spread(row.values(later)),
            "share of to_pylist, later passes": harness.part(theirs, later),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )
    out.target(f"{FORMATS[format]}, share of to_pylist, later passes", harness.share(theirs, ours, later), SHARE)


def at_random(out: harness.Report, data: Data, options: argparse.Namespace) -> None:
    """``ds[i]`` in random order, all formats, and LitData on its own."""
    chosen = []
    for format, name in FORMATS.items():
        if format == LITDATA and not options.peers:
            continue
        spec = {
            "path": data.ensure("text", format), "kind": "text", "count": data.profile.counts["text"],
            "memory": data.profile.memory, "library": "lazystore", "seconds": SECONDS, "batch": 1,
        }  # fmt: skip
        chosen.append(Contender(f"lazystore, {name}", "readers:random_items", spec, limit_s=LIMIT_S))
        if format == LITDATA:
            theirs = {**spec, "library": "litdata"}
            chosen.append(Contender("LitData 0.2.76", "readers:random_items", theirs, limit_s=LIMIT_S))
    rows = harness.compare(chosen, options)
    ours, litdata = rows.named(f"lazystore, {FORMATS[LITDATA]}"), rows.named("LitData 0.2.76")
    rate = harness.first_rate
    out.table(
        "Random ds[i], resident, rows/s",
        rows,
        {
            "rows/s": lambda row: harness.spread(row.values(rate)),
            "lazystore faster": harness.ratio(ours, rate),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )
    out.target("random ds[i], times LitData's", harness.share(litdata, ours, rate), TIMES_LITDATA)


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("Rows out of Arrow IPC, Parquet, and LitData's Arrow chunks.")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this format (repeatable)")
    options = parser.parse_args()
    data = Data.of(options)
    out = harness.Report("Rows out of Arrow", options.json)
    for format in options.format or FORMATS:
        if format != LITDATA or options.peers:
            sequential(out, data, format, options)
    at_random(out, data, options)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
