"""What does a file in an object store cost to read, through fsspec's caches and through ``lazystore::``?

A local object store with 20 ms latency and 200 MB/s in all, S3 protocol, every contender in a process of its own that
begins with nothing cached. Each gets 64 MiB to cache in (where it can be told), and 1 MiB blocks or pages; fsspec's
caches belong to one open file and end with it, so a second pass opens it again. Requests and bytes are the store's
own count.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import Contender
from remote import control

if TYPE_CHECKING:
    from worker import Run

    from lazystore.testing import ObjectStore

LATENCY_MS = 20.0
BANDWIDTH = "200MB"
BUCKET = "bench-files"
LIMIT_S = 180.0
MIB = 1 << 20
BUDGET = 64 * MIB
BLOCK = MIB
STEP = 64 << 10
RANDOM_BYTES = 100_000
SEED = 20260927
ENVIRONMENT = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
#: Name, how it is reached, and what it is told.
CONTENDERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("lazystore, obstore", "lazystore", {"backend": "obstore"}),
    ("lazystore, s3fs", "lazystore", {"backend": "fsspec"}),
    ("lazystore, s3fs, pages of 128 KiB", "lazystore", {"backend": "fsspec", "page": 128 << 10}),
    ("lazystore, s3fs, disk tier", "lazystore", {"backend": "fsspec", "disk": True}),
    ("fsspec none", "s3fs", {"cache_type": "none"}),
    ("fsspec readahead", "s3fs", {"cache_type": "readahead"}),
    ("fsspec blockcache", "s3fs", {"cache_type": "blockcache", "cache_options": {"maxblocks": BUDGET // BLOCK}}),
    ("fsspec background", "s3fs", {"cache_type": "background", "cache_options": {"maxblocks": BUDGET // BLOCK}}),
    ("fsspec adaptive", "s3fs", {"cache_type": "adaptive"}),
    ("fsspec all", "s3fs", {"cache_type": "all"}),
    ("fsspec simplecache::", "simplecache", {}),
)


#: Left out of sequential reading, where it sends a request for each 64 KiB.
UNCACHED = ("fsspec none",)


# -- the child's side -------------------------------------------------------------------


class Files:
    """How one contender opens files."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import fsspec

        s3 = {
            "anon": True,
            "endpoint_url": spec["endpoint"],
            "client_kwargs": {"region_name": "us-east-1"},
            "skip_instance_cache": True,
        }
        told = dict(spec["told"])
        self.disk = tempfile.mkdtemp()
        self._open: dict[str, Any] = {}
        if spec["reach"] == "lazystore":
            from lazystore.adapters.filesystem import LazyStoreFileSystem

            if told.get("disk"):
                told["disk"] = {"path": f"{self.disk}/tier", "max_bytes": "1GB", "mode": "through", "codec": "none"}
            self.fs: Any = LazyStoreFileSystem("s3", s3, **{"memory": BUDGET, "page": BLOCK, **told})
        elif spec["reach"] == "simplecache":
            self.fs = fsspec.filesystem("simplecache", target_protocol="s3", target_options=s3, cache_storage=self.disk)
        else:
            import fsspec.caching

            if told["cache_type"] not in fsspec.caching.caches:
                raise ModuleNotFoundError(name=f"fsspec with cache_type={told['cache_type']!r}")
            self.fs = fsspec.filesystem("s3", **s3)
            self._open = {**told, "block_size": BLOCK}

    def open(self, name: str) -> Any:
        return self.fs.open(f"{BUCKET}/{name}", "rb", **self._open)

    def stored(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in Path(self.disk).rglob("*") if path.is_file())


def _prepared(run: Run) -> Files:
    import aiobotocore.session  # noqa: F401 - its memory belongs to the imports
    import s3fs  # noqa: F401

    if run.spec["told"].get("backend") == "obstore":
        import obstore.store  # noqa: F401
    return Files(run.spec)


def _timed(run: Run, files: Files, passes: int, work: Callable[[], None]) -> None:
    run.ready()
    seconds, requests, fetched = [], [], []
    for _ in range(passes):
        control(run.spec, "reset")
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
        told = control(run.spec, "stats")
        requests.append(sum(told["requests"].values()))
        fetched.append(told["bytes_sent"])
    run.peak()
    run.result.update(seconds=seconds, requests=requests, fetched=fetched, disk=files.stored())


def sequential(run: Run) -> None:
    """The whole file in pieces of 64 KiB, twice."""
    files = _prepared(run)
    digests: list[str] = []

    def work() -> None:
        digest = hashlib.blake2b()
        with files.open("big.bin") as file:
            while piece := file.read(STEP):
                digest.update(piece[:64])
        digests.append(digest.hexdigest())

    _timed(run, files, 2, work)
    run.result["digest"] = digests[0]
    run.result["useful"] = run.spec["size"]


def scattered(run: Run) -> None:
    """100 kB at random places of the first ``span`` bytes, one after the other, by one open file."""
    files = _prepared(run)
    chance = random.Random(SEED)
    places = [chance.randrange(run.spec["span"] - RANDOM_BYTES) for _ in range(run.spec["reads"])]
    digests: list[str] = []
    opened: list[Any] = []

    def work() -> None:
        if not opened:
            opened.append(files.open("big.bin"))
        digest = hashlib.blake2b()
        for place in places:
            opened[0].seek(place)
            digest.update(opened[0].read(RANDOM_BYTES)[:64])
        digests.append(digest.hexdigest())

    _timed(run, files, 2, work)
    opened[0].close()
    run.result["digest"] = digests[0]
    run.result["useful"] = RANDOM_BYTES * len(places)


def columns(run: Run) -> None:
    """Two columns of a Parquet file, by pyarrow or pandas, twice."""
    files = _prepared(run)
    import pyarrow
    import pyarrow.parquet as parquet

    if run.spec["reader"] == "pandas":
        import pandas
    small = io.BytesIO()  # what the library loads with its first table is not the file's cost
    parquet.write_table(pyarrow.table({"c1": [0.5]}), small)
    parquet.read_table(small)
    if run.spec["reader"] == "pandas":
        pandas.read_parquet(small)
    wanted = ["c1", "c4"]
    sums: list[str] = []

    def work() -> None:
        with files.open("table.parquet") as file:
            if run.spec["reader"] == "pandas":
                frame = pandas.read_parquet(file, columns=wanted)
                sums.append(repr(float(frame["c1"].sum())))
            else:
                table = parquet.read_table(file, columns=wanted)
                sums.append(repr(float(table.column("c1").to_numpy().sum())))

    _timed(run, files, 2, work)
    run.result["digest"] = sums[0]
    run.result["useful"] = run.spec["useful"]


# -- the parent's side ------------------------------------------------------------------


def make_files(root: Path, size: int) -> int:
    """The files, made once; returns the bytes of two of the table's columns."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(SEED)
    if not (root / "big.bin").exists() or (root / "big.bin").stat().st_size != size:
        (root / "big.bin").write_bytes(chance.bytes(size))
    rows = size // 80
    if not (root / "table.parquet").exists():
        table = pa.table({f"c{number}": chance.random(rows) for number in range(10)})
        parquet.write_table(table, root / "table.parquet", row_group_size=rows // 10, compression="none")
    return 2 * 8 * rows


class Bench:
    """The store, and the arguments of every question."""

    def __init__(self, options: Any, store: ObjectStore, size: int, useful: int) -> None:
        self.options, self.store, self.size, self.useful = options, store, size, useful
        self.out = harness.Report("Files in an object store, 20 ms and 200 MB/s", options.json)

    def ask(self, title: str, call: str, without: tuple[str, ...] = (), **spec: Any) -> None:
        chosen = [
            Contender(
                name,
                f"bench_files:{call}",
                {"endpoint": self.store.url, "reach": reach, "told": told, "size": self.size, **spec},
                limit_s=LIMIT_S,
                environment=ENVIRONMENT,
            )
            for name, reach, told in CONTENDERS
            if (self.options.peers or reach == "lazystore") and name not in without
        ]
        rows = harness.compare(chosen, self.options)
        self.out.table(
            title,
            rows,
            {
                "MB/s": lambda row: harness.spread(row.values(lambda run: _rate(run, 0))),
                "again, MB/s": lambda row: harness.spread(row.values(lambda run: _rate(run, 1))),
                "requests": lambda row: _counts(row, "requests", 1),
                "MB fetched": lambda row: _counts(row, "fetched", 1e6),
                "peak RSS beyond imports, MB": lambda row: f"{max(map(_grown, row.runs)) / 1e6:.0f}",
                "MB on disk": lambda row: f"{row.runs[-1]['disk'] / 1e6:.0f}",
            },
        )
        for row in rows:
            # A table is more than its file's pages, and the library's own affair.
            if row.contender.name.startswith("lazystore") and row.runs and call != "columns":
                promise = f"{title}: {row.contender.name}, peak RSS beyond imports, bytes"
                self.out.target(promise, max(map(_grown, row.runs)), BUDGET + (32 << 20), at_least=False)

    def sequential(self) -> None:
        self.ask(f"{self.size / 1e6:.0f} MB in pieces of 64 KiB", "sequential", without=UNCACHED)

    def random(self) -> None:
        reads = 100
        self.ask("100 kB at random, of 32 MB (held)", "scattered", span=32_000_000, reads=reads)
        self.ask(f"100 kB at random, of {self.size / 1e6:.0f} MB", "scattered", span=self.size, reads=reads)

    def parquet(self) -> None:
        for reader in ("pyarrow", "pandas"):
            self.ask(f"two of ten Parquet columns, {reader}", "columns", reader=reader, useful=self.useful)


def _rate(run: dict[str, Any], turn: int) -> float:
    return float(run["useful"] / run["seconds"][turn] / 1e6)


def _grown(run: dict[str, Any]) -> float:
    return float(run["rss_peak"] - run["rss_after_import"])


def _counts(row: harness.Row, key: str, unit: float) -> str:
    """First and second pass; the medians of the rounds."""
    return " + ".join(harness.number(statistics.median(run[key][turn] / unit for run in row.runs)) for turn in (0, 1))


def main() -> int:
    """Measure what the arguments ask for."""
    from lazystore.testing import ObjectStore

    parser = harness.parser("Files in an object store, through caches.")
    questions = ("sequential", "random", "parquet")
    parser.add_argument("--question", choices=questions, action="append", help="only this one (repeatable)")
    options = parser.parse_args()
    size = 60_000_000 if options.quick else 200_000_000
    folder = Path(harness.data_folder(options), f"files-{size // 1_000_000}")
    useful = make_files(folder, size)
    with ObjectStore({BUCKET: folder}, latency_ms=LATENCY_MS, bandwidth=BANDWIDTH) as store:
        bench = Bench(options, store, size, useful)
        for question in options.question or questions:
            getattr(bench, question)()
        return bench.out.finish()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
