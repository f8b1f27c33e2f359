"""``import lazystore`` costs little: no thread, no heavy package, few megabytes.

Time is reported, not judged: a loaded machine must not fail the suite.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lazystore

MAX_GROWTH_MB = 30.0
#: imported by nobody until first needed
HEAVY = ["numpy", "torch", "fsspec", "asyncio", "aiohttp", "concurrent.futures", "PIL"]

PROBE = """
import json, os, sys, threading, time
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, start = rss(), time.perf_counter()
import lazystore
seconds, after = time.perf_counter() - start, rss()
print(json.dumps({
    "seconds": seconds,
    "growth": after - before,
    "python_threads": threading.active_count(),
    "threads": len(os.listdir("/proc/self/task")),
    "modules": sorted(sys.modules),
}))
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(Path(lazystore.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def test_import_starts_no_thread(probe: dict[str, object]) -> None:
    assert probe["python_threads"] == 1
    assert probe["threads"] == 1


@pytest.mark.parametrize("module", HEAVY)
def test_import_leaves_heavy_package_alone(probe: dict[str, object], module: str) -> None:
    assert module not in probe["modules"]  # type: ignore[operator]


@pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers keep shadow memory")
def test_import_grows_memory_by_few_megabytes(probe: dict[str, object], record_property: pytest.RecordProperty) -> None:
    growth = int(probe["growth"]) / 1e6  # type: ignore[call-overload]
    record_property("import_seconds", probe["seconds"])
    record_property("import_growth_mb", growth)
    print(f"import lazystore: {1e3 * float(probe['seconds']):.1f} ms, {growth:.1f} MB")  # type: ignore[arg-type]
    assert growth <= MAX_GROWTH_MB
