"""The child side: one contender in a process of its own, measured and reported as JSON.

    python worker.py MODULE:FUNCTION SPEC_JSON RESULT_FILE

Kept small: what is imported here counts into the memory of every contender.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Run"]

perf_counter = time.perf_counter
process_time = time.process_time


def _status(field: str) -> int:
    """A memory field of /proc/self/status, bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(field)


class Run:
    """What a contender function gets: its spec, and the places to leave its measurements."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.result: dict[str, Any] = {}

    def ready(self) -> None:
        """Imports and preparations are done, nothing is opened: memory counts from here on."""
        # 5 resets the peak to the present RSS: otherwise an import's own peak would hide the run's.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self.result["rss_after_import"] = _status("VmRSS")

    def peak(self) -> None:
        """Note the peak; called at the end of the timed part, before any check."""
        self.result["rss_peak"] = _status("VmHWM")
        self.result["rss_anonymous"] = _status("RssAnon")

    def passes(self, make: Callable[[], Iterable[Any]], count: int) -> None:
        """Time whole passes over what ``make`` returns; items are dropped as they come."""
        seconds, cpu = [], []
        for _ in range(self.spec["passes"]):
            busy = process_time()
            begin = perf_counter()
            for _item in make():
                pass
            seconds.append(perf_counter() - begin)
            cpu.append(process_time() - busy)
        self.result["seconds"] = seconds
        self.result["cpu_seconds"] = cpu
        self.result["items"] = count
        self.peak()

    def calls(self, call: Callable[[list[int]], object], order: list[int], step: int) -> None:
        """Time ``call`` on slices of ``order``, ``step`` indices each, for about spec["seconds"]."""
        limit = self.spec["seconds"]
        done = 0
        busy = process_time()
        begin = perf_counter()
        while True:
            at = done % (len(order) - step + 1)
            call(order[at : at + step])
            done += step
            elapsed = perf_counter() - begin
            if elapsed >= limit:
                break
        self.result["seconds"] = [elapsed]
        self.result["cpu_seconds"] = [process_time() - busy]
        self.result["items"] = done
        self.peak()


def main() -> int:
    target, spec, result_file = sys.argv[1:]
    module, _, function = target.partition(":")
    run = Run(json.loads(spec))
    try:
        getattr(importlib.import_module(module), function)(run)
    except ModuleNotFoundError as error:
        run.result = {"missing": error.name or str(error)}
    with open(result_file, "w") as file:
        json.dump(run.result, file)
        file.flush()
    # Some libraries leave threads that never end; everything measured is written.
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
