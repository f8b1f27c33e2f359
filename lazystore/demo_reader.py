"""The reading half of the demo: one phase in a process of its own, so that its memory peak is its own.

``python -m lazystore.demo_reader`` takes a request as JSON on stdin and answers with a result as JSON
on stdout. Started by ``demo``, which knows what the figures are for; not for other callers.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from lazystore.progress import Progress

__all__ = ["PHASES", "Phase", "file_sample", "run_phase"]

#: items between two updates of the progress bar
PROGRESS_STEP = 64

Request = dict[str, Any]
Result = dict[str, Any]
Phase = Callable[[Request, Callable[[], Any]], Result]


def file_sample(path: str) -> dict[str, Any]:
    """The sample that stands for a file: what the demo writes, and what it must get back.

    Raises:
        UnicodeDecodeError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    return {"path": path, "source": data.decode("utf-8"), "lines": data.count(b"\n"), "size": len(data)}


def stream(request: Request, open_dataset: Callable[[], Any]) -> Result:
    """The timed pass: every item once in order, nothing done with it but counting its bytes."""
    start = time.perf_counter()
    items = size = 0
    first = 0.0
    with open_dataset() as dataset, Progress(len(request["paths"]), "streaming") as progress:
        for sample in dataset:
            if not items:
                first = time.perf_counter() - start
            items += 1
            size += sample["size"]
            if items % PROGRESS_STEP == 0:
                progress.update(PROGRESS_STEP)
        progress.update(items % PROGRESS_STEP)
        seconds = time.perf_counter() - start
    return {"first_s": first, "seconds": seconds, "items": items, "bytes": size}


def verify(request: Request, open_dataset: Callable[[], Any]) -> Result:
    """Every item against its file on disk, in order."""
    paths: list[str] = request["paths"]
    good, seen = 0, 0
    wrong: list[str] = []
    with open_dataset() as dataset, Progress(len(paths), "verifying") as progress:
        for sample in dataset:
            expected = file_sample(paths[seen]) if seen < len(paths) else None
            if sample == expected:
                good += 1
            else:
                wrong.append(f"item {seen}: not equal to {paths[seen] if expected else 'any file'}")
            seen += 1
            progress.update()
    if seen < len(paths):
        wrong.append(f"items {seen} to {len(paths) - 1} did not come")
    return {"verified": good, "wrong": wrong[:5]}


def random_reads(request: Request, open_dataset: Callable[[], Any]) -> Result:
    """Single items at random positions through a dataset that holds nothing yet, each of them timed."""
    paths: list[str] = request["paths"]
    count = min(request["reads"], len(paths))
    positions = random.Random(request["seed"]).sample(range(len(paths)), count)
    times: list[float] = []
    good = 0
    wrong: list[str] = []
    with open_dataset() as dataset, Progress(count, "random reads", unit="reads") as progress:
        assert len(dataset) == len(paths)  # opens the dataset: the index is not part of the first read
        for position in positions:
            start = time.perf_counter()
            sample = dataset[position]
            times.append(time.perf_counter() - start)
            if sample == file_sample(paths[position]):
                good += 1
            else:
                wrong.append(f"random read of item {position}: not equal to {paths[position]}")
            progress.update()
    return {"times": times, "verified": good, "wrong": wrong[:5]}


PHASES: dict[str, Phase] = {"stream": stream, "verify": verify, "random": random_reads}


def run_phase(request: Request) -> Result:
    """Load the packages, note the memory in use, run one phase, note its peak."""
    from lazystore import StreamingDataset

    _load_transports()
    url, memory = request["url"], request["memory"]

    def open_dataset() -> Any:
        return StreamingDataset(url, memory=memory)

    baseline = _reset_peak()
    result = PHASES[request["phase"]](request, open_dataset)
    return {**result, "baseline_rss": baseline, "peak_rss": _peak_rss()}


def _load_transports() -> None:
    """Import what will carry the bytes: fsspec's HTTP filesystem, and obstore if it is installed."""
    import fsspec

    fsspec.get_filesystem_class("http")
    if importlib.util.find_spec("obstore") is not None:
        importlib.import_module("obstore.store")


def _reset_peak() -> int:
    """Resident bytes now; from here on the kernel's high-water mark counts anew, where it can."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # no such control: the mark then covers the imports as well, which only makes it stricter
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_rss()  # not Linux


def _peak_rss() -> int:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: ask the C library
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """One request from stdin, one result to stdout."""
    request: Request = json.load(sys.stdin)
    try:
        result = run_phase(request)
    except KeyboardInterrupt:
        return 130  # the demo says so
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
