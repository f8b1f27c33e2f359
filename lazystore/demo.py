"""``lazystore demo``: the main job on real input, with its figures and a proof.

The Python sources of this machine become a dataset, a local object store serves it with latency, and
fresh processes (``demo_reader``) stream it inside a budget several times smaller, read it at random
and compare every item with its file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lazystore.config import parse_bytes
from lazystore.demo_reader import file_sample
from lazystore.errors import ConfigError, LazyStoreError
from lazystore.formats.writer import DatasetWriter
from lazystore.progress import Progress
from lazystore.testing import ObjectStore

__all__ = ["DemoOptions", "Report", "python_sources", "run"]

MB = 1_000_000
CHUNK_BYTES = 16 * MB

#: Sources beyond this many bytes are left out, to stay under a minute on machines full of packages.
MAX_DATASET_BYTES = 300 * MB

#: The default budget is a fifth of the dataset, but not less than this many bytes.
MIN_DEFAULT_MEMORY = 8 * MB

#: What a process may use beyond its imports and the budget: sockets, the event loop, one item in hand.
RSS_ALLOWANCE = 16 << 20

BUCKET = "demo"
READER_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What ``lazystore demo`` is told.

    Attributes:
        memory: byte budget; None: a fifth of the dataset, at least 8 MB.
        latency_ms: milliseconds the object store waits before each answer.
        bandwidth: bytes per second of the object store.
        folder: keep the dataset here; None: a temporary folder.
        limit: use at most this many files; None: all.
        reads: cold random reads.
        seed: of the random positions.

    Raises:
        ConfigError: a value that cannot work.
    """

    memory: int | None = None
    latency_ms: float = 20.0
    bandwidth: int = 200 * MB
    folder: Path | None = None
    limit: int | None = None
    reads: int = 200
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.latency_ms <= 10_000:
            raise ConfigError(f"latency_ms={self.latency_ms!r} must be between 0 and 10000 milliseconds")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit!r} must be at least one file")


@dataclass(slots=True)
class Report:
    """The figures of one run; ``lines`` prints them."""

    options: DemoOptions
    memory: int
    items: int
    dataset_bytes: int
    chunks: int
    skipped: int
    left_out: int
    write_s: float
    stream: dict[str, Any] = field(default_factory=dict)
    verify: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """What did not come back as it was written; empty when all is well."""
        found = [*self.verify["wrong"], *self.random["wrong"]]
        if self.stream["items"] != self.items:
            found.append(f"the timed pass yielded {self.stream['items']} of {self.items} items")
        return found

    @property
    def ok(self) -> bool:
        return not self.wrong and self.verify["verified"] == self.items

    @property
    def peak_over_imports(self) -> int:
        """The largest growth beyond the imports among the reading processes, in bytes."""
        phases = (self.stream, self.verify, self.random)
        return max(int(p["peak_rss"]) - int(p["baseline_rss"]) for p in phases)

    def preface(self, folder: Path) -> Iterator[str]:
        """What there is before the figures: the dataset and its store."""
        skipped = f", {self.skipped} not in UTF-8 skipped" if self.skipped else ""
        left_out = f", {self.left_out:,} left out beyond {_mb(MAX_DATASET_BYTES)}" if self.left_out else ""
        kept = f" to {folder}" if self.options.folder else ""
        size = f"{_mb(self.dataset_bytes)} in {self.chunks} chunks"
        yield f"dataset       {self.items:,} Python files of this machine{skipped}{left_out}"
        yield f"              {size}, written in {self.write_s:.1f} s{kept}"
        speed = f"{self.options.latency_ms:g} ms latency per request, {_mb(self.options.bandwidth)}/s"
        yield f"object store  HTTP on this machine, {speed}"

    def lines(self) -> Iterator[str]:
        """The table, line by line."""
        for label, value in [*self._speed_rows(), *self._proof_rows()]:
            yield f"  {label:<24}{value}"

    def _speed_rows(self) -> Iterator[tuple[str, str]]:
        stream, seconds = self.stream, self.stream["seconds"]
        yield (
            "memory budget",
            f"{_mb(self.memory)}; the dataset is {self.dataset_bytes / self.memory:.1f} times it",
        )
        yield "first item", self._trips(stream["first_s"])
        speed = f"{stream['items'] / seconds:,.0f} items/s, {stream['bytes'] / seconds / MB:,.1f} MB/s"
        yield "streaming", f"{speed} ({seconds:.2f} s, opening included)"
        yield "  requests", _served(stream["served"], self.dataset_bytes)
        times = sorted(self.random["times"])
        p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
        speed = f"p50 {self._trips(statistics.median(times))}, p95 {self._trips(p95)}"
        yield f"{len(times)} cold random reads", speed
        yield "  requests", _served(self.random["served"], self.dataset_bytes)

    def _proof_rows(self) -> Iterator[tuple[str, str]]:
        allowed = self.memory + RSS_ALLOWANCE
        verdict = "within" if self.peak_over_imports <= allowed else "OVER"
        above = f"{_mb(self.peak_over_imports)} above the imports' {_mb(self.stream['baseline_rss'])}"
        yield "peak RSS", f"{above}: {verdict} budget + 16 MiB = {_mb(allowed)}"
        reads = f"{self.random['verified']} of {len(self.random['times'])} random reads"
        yield "verified", f"{self.verify['verified']:,} of {self.items:,} items equal to their files, {reads}"

    def _trips(self, seconds: float) -> str:
        latency = self.options.latency_ms / 1000
        text = f"{seconds * 1000:.0f} ms"
        return f"{text} = {seconds / latency:.1f} round trips" if latency else text


def python_sources(limit: int | None = None) -> list[str]:
    """Paths of the ``.py`` files of the standard library and of site-packages, sorted within each."""
    where = sysconfig.get_paths()
    found: dict[str, None] = {}
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        own_packages = name in ("purelib", "platlib")
        for folder, folders, files in os.walk(where[name]):
            # inside a virtual environment the standard library's folder holds another one's packages
            folders[:] = sorted(f for f in folders if own_packages or f not in ("site-packages", "dist-packages"))
            for file in sorted(files):
                if file.endswith(".py"):
                    found[os.path.join(folder, file)] = None
                    if len(found) == limit:
                        return list(found)
    return list(found)


def run(options: DemoOptions, *, out: TextIO | None = None) -> Report:
    """Write, serve, stream, verify; prints to ``out`` (default stdout) and returns the figures.

    Raises:
        LazyStoreError: a phase failed; everything started is stopped again.
        ConfigError: the folder holds a dataset already.
    """
    out = sys.stdout if out is None else out
    with tempfile.TemporaryDirectory(prefix="lazystore-demo-") as temporary:
        folder = options.folder or Path(temporary) / "dataset"
        paths, report = _write(options, folder)
        for line in report.preface(folder):
            print(line, file=out, flush=True)
        store = ObjectStore({BUCKET: folder}, latency_ms=options.latency_ms, bandwidth=options.bandwidth)
        with store:
            request = {
                "url": store.http_url(BUCKET),
                "memory": report.memory,
                "paths": paths,
                "reads": options.reads,
                "seed": options.seed,
            }
            report.stream = _phase("stream", request, store)
            report.verify = _phase("verify", request, store)
            report.random = _phase("random", request, store)
    for line in report.lines():
        print(line, file=out)
    for line in report.wrong:
        print(f"  WRONG: {line}", file=out)
    out.flush()
    return report


def _write(options: DemoOptions, folder: Path) -> tuple[list[str], Report]:
    start = time.perf_counter()
    candidates = python_sources(options.limit)
    paths: list[str] = []
    size = skipped = 0
    with (
        DatasetWriter(folder, chunk_bytes=CHUNK_BYTES) as writer,
        Progress(len(candidates), "writing", unit="files") as progress,
    ):
        for path in candidates:
            progress.update()
            try:
                sample = file_sample(path)
            except (UnicodeDecodeError, OSError):
                skipped += 1  # printed with the figures: a test file in another encoding, a dangling link
                continue
            if size + sample["size"] > MAX_DATASET_BYTES:
                break
            writer.write(sample)
            paths.append(path)
            size += sample["size"]
    memory = max(MIN_DEFAULT_MEMORY, writer.bytes_written // 5) if options.memory is None else options.memory
    report = Report(
        options=options,
        memory=memory,
        items=len(paths),
        dataset_bytes=writer.bytes_written,
        chunks=len(list(folder.glob("chunk-*.bin"))),
        skipped=skipped,
        left_out=len(candidates) - len(paths) - skipped,
        write_s=time.perf_counter() - start,
    )
    return paths, report


def _phase(name: str, request: dict[str, Any], store: ObjectStore) -> dict[str, Any]:
    """Run one phase in a fresh process; its result, with what the store served meanwhile."""
    store.reset()
    package_home = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lazystore.demo_reader"],
            input=json.dumps({**request, "phase": name}),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=READER_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        raise LazyStoreError(f"the {name} phase of the demo took more than {READER_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise LazyStoreError(f"the {name} phase of the demo failed with status {done.returncode}, see above")
    result: dict[str, Any] = json.loads(done.stdout)
    stats = store.stats()
    result["served"] = {
        "gets": stats["gets"],
        "others": sum(stats["requests"].values()) - stats["gets"],
        "bytes": stats["bytes_sent"],
    }
    return result


def _served(served: dict[str, int], dataset_bytes: int) -> str:
    others = f" and {served['others']} HEADs" if served["others"] else ""
    share = served["bytes"] / dataset_bytes
    return f"{served['gets']} GETs{others}, {_mb(served['bytes'])} fetched ({share:.2f}x the dataset)"


def _mb(size: int) -> str:
    return f"{size / MB:,.1f} MB"


def options_from(
    *,
    memory: str | None,
    latency_ms: float,
    bandwidth: str,
    folder: str | None,
    limit: int | None,
) -> DemoOptions:
    """Options from the command line's strings.

    Raises:
        ConfigError: a value that cannot work.
    """
    return DemoOptions(
        memory=None if memory is None else parse_bytes(memory),
        latency_ms=latency_ms,
        bandwidth=parse_bytes(bandwidth, name="bandwidth"),
        folder=None if folder is None else Path(folder),
        limit=limit,
    )
