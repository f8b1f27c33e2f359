"""How fast is a dataset written, by one process, and by two?

    python benchmarks/bench_writer.py --data DIR [--peers]

The samples are in memory before the clock starts, and it stops when the index is there. lazystore's files are synced
by then, LitData's are not. What is written is read back and hashed: all contenders must have written the same samples.
LitData's ``Cache`` is its writer in one process; 0.2.76 stores such rows as Arrow, 0.2.61 classically, as we do.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import harness
from data import size_of
from harness import Contender
from samples import PROFILES, digest, probe_indices, samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker import Run

OURS = "lazystore"
TEAM = "lazystore, {} workers"
THEIRS = "LitData 0.2.76"
OLD = "LitData 0.2.61"
ZSTD = {"compression": "zstd"}
#: Ranges of samples that one input of write_dataset stands for, in the text profile: some dozens a run.
INPUT = 5_000


def _timed(run: Run, write: Any) -> str:
    """Run ``write(folder)`` on a new folder with the clock running; the folder stays for the check."""
    folder = tempfile.mkdtemp(dir=run.spec["scratch"])
    run.ready()
    run.passes(lambda: write(os.path.join(folder, "out")), run.spec["count"])
    run.result["bytes"] = size_of(folder)
    return folder


def _check(run: Run, folder: str) -> None:
    """Hash some of what was written, read by lazystore where it is installed; then remove it."""
    from lazystore import StreamingDataset

    with StreamingDataset(os.path.join(folder, "out"), memory="64MB") as dataset:
        run.result["digest"] = digest((i, dataset[i]) for i in probe_indices(run.spec["count"]))
    shutil.rmtree(folder)


def lazystore(run: Run) -> None:
    """DatasetWriter, one process."""
    from lazystore import DatasetWriter

    spec = run.spec
    rows = list(samples(spec["kind"], spec["count"]))

    def write(folder: str) -> Iterator[None]:
        with DatasetWriter(folder, chunk_bytes=spec["chunk_bytes"], **spec["options"]) as writer:
            for row in rows:
                writer.write(row)
        yield

    _check(run, _timed(run, write))


def litdata(run: Run) -> None:
    """LitData's Cache, one process."""
    from litdata.streaming.cache import Cache

    spec = run.spec
    rows = list(samples(spec["kind"], spec["count"]))

    def write(folder: str) -> Iterator[None]:
        cache = Cache(folder, chunk_bytes=spec["chunk_bytes"], **spec["options"])
        for index, row in enumerate(rows):
            cache[index] = row
        cache.done()
        cache.merge(1)
        yield

    folder = _timed(run, write)
    if spec["classic"]:
        _check(run, folder)
    else:
        shutil.rmtree(folder)


def rows_of(span: tuple[str, int, int]) -> Iterator[dict[str, Any]]:
    """The samples of one input of write_dataset, made in the worker."""
    kind, first, end = span
    yield from samples(kind, end, start=first)


def team(run: Run) -> None:
    """write_dataset with spec["workers"] processes, which make the samples, too."""
    from lazystore.parallel.writing.write import write_dataset

    spec = run.spec
    spans = [(spec["kind"], i, min(i + spec["input"], spec["count"])) for i in range(0, spec["count"], spec["input"])]

    def write(folder: str) -> Iterator[None]:
        write_dataset(rows_of, spans, folder, num_workers=spec["workers"], chunk_bytes=spec["chunk_bytes"])
        yield

    _check(run, _timed(run, write))


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("Writing datasets.")
    parser.add_argument("--kind", choices=("text", "arr", "blob"), default="text", help="which samples")
    options = parser.parse_args()
    profile = PROFILES["quick" if options.quick else "full"]
    kind = options.kind
    scratch = os.path.join(harness.data_folder(options), "written")
    os.makedirs(scratch, exist_ok=True)
    base = {
        "kind": kind,
        "count": profile.counts[kind],
        "chunk_bytes": profile.chunk_bytes[kind],
        "scratch": scratch,
        "passes": 1,
        "options": {},
        "input": max(1, INPUT * profile.counts[kind] // profile.counts["text"]),
    }
    plain = [Contender(OURS, "bench_writer:lazystore", base)]
    packed = [Contender(OURS, "bench_writer:lazystore", {**base, "options": ZSTD})]
    if options.peers:
        plain += [
            Contender(THEIRS, "bench_writer:litdata", {**base, "classic": False}),
            Contender(OLD, "bench_writer:litdata", {**base, "classic": True}, side="litdata-0.2.61"),
        ]
        packed.append(
            Contender(OLD, "bench_writer:litdata", {**base, "classic": True, "options": ZSTD}, side="litdata-0.2.61")
        )
    out = harness.Report(f"Writing: {base['count']} samples of {kind}", options.json)
    one = harness.compare(plain, options)
    _table(out, "one process", one)
    _table(out, "one process, whole chunks in zstd", harness.compare(packed, options))
    crews = [Contender(TEAM.format(n), "bench_writer:team", {**base, "workers": n}) for n in (1, 2)]
    teams = harness.compare(crews, options)
    _table(out, "write_dataset, workers make their samples", teams)
    ours = one.named(OURS)
    for name in (THEIRS, OLD):
        out.target(f"times {name}'s speed", harness.share(one.named(name), ours, harness.first_rate), 5.0)
    single, double = (teams.named(TEAM.format(n)) for n in (1, 2))
    out.target("two workers, times one", harness.share(single, double, harness.first_rate), 1.7)
    shutil.rmtree(scratch)
    return out.finish()


def _table(out: harness.Report, title: str, rows: harness.Rows) -> None:
    if not rows:
        return  # --only left none
    reference = rows[0]
    out.table(
        title,
        rows,
        {
            "samples/s": lambda row: harness.spread(row.values(harness.first_rate)),
            "seconds": lambda row: harness.spread(row.values(lambda run: run["seconds"][0])),
            "first row is": harness.ratio(reference, harness.first_rate),
            "bytes": lambda row: harness.number(row.runs[-1]["bytes"]),
            "RSS beyond the samples, MB": lambda row: f"{max(_beyond(run) for run in row.runs) / 1e6:.0f}",
        },
    )


def _beyond(run: dict[str, Any]) -> float:
    return float(run["rss_peak"] - run["rss_after_import"])


if __name__ == "__main__":
    sys.exit(main())
