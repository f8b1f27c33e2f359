"""One folder, many disk tiers: writers that are killed at any moment, and a cap that holds through all of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import lazystore
from lazystore.cache.disk import DiskTier

pytestmark = pytest.mark.stress

CAP = 2_000_000
KEYS = 300
WORK = """
import os, random, sys, time
from lazystore.cache.disk import DiskTier

path, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng, end = random.Random(seed), time.monotonic() + seconds
tier = DiskTier(path, 2_000_000)
print("ready", flush=True)
while time.monotonic() < end:
    key, choice = b"%d" % rng.randrange(300), rng.random()
    if choice < 0.5:
        tier.put(key, 1, [key + b":" + os.urandom(rng.choice([10, 1000, 9000, 60000]))], created=1.0)
    elif choice < 0.55:
        tier.delete(key)
    elif choice < 0.551:
        tier.clear(b"1")
    else:
        found = tier.get(key)
        assert found is None or found.payload.startswith(key + b":"), key
counters = tier.counters()
assert counters["corrupt"] == counters["write_errors"] == counters["read_errors"] == 0, counters
assert counters["stores"] > 0 and tier.health().ok
"""


def started(folder: Path, seed: int, seconds: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WORK, folder, str(seed), str(seconds)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(lazystore.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def total(folder: Path) -> int:
    found = 0
    for file in folder.iterdir():
        try:
            found += file.stat().st_size
        except FileNotFoundError:
            continue  # dropped since it was listed
    return found


class Watcher(threading.Thread):
    """The most bytes the folder ever had, looked at without a pause."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.peak, self.looks, self.ended = folder, 0, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.peak = max(self.peak, total(self.folder))
            self.looks += 1

    def stop(self) -> int:
        self.ended.set()
        self.join()
        assert self.looks > 10
        return self.peak


def values_are_whole(folder: Path) -> int:
    with DiskTier(folder, CAP) as tier:
        held = len(tier)
        for key in (b"%d" % number for number in range(KEYS)):
            found = tier.get(key)
            assert found is None or found.payload.startswith(key + b":")
        counters = tier.counters()
        assert counters["corrupt"] == counters["read_errors"] == 0
        assert counters["hits"] == held
        return held


def test_four_processes_together_never_pass_the_cap(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    folder.mkdir(mode=0o700)
    watcher = Watcher(folder)
    watcher.start()
    processes = [started(folder, seed, 1.5) for seed in range(4)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0] * 4
    assert CAP // 2 < watcher.stop() <= CAP
    assert values_are_whole(folder) > 10


def test_a_writer_killed_at_any_moment_leaves_whole_values(tmp_path: Path) -> None:
    folder, rng = tmp_path / "tier", random.Random(7)
    held = 0
    for turn in range(8):
        process = started(folder, turn, 600)
        time.sleep(rng.random() / 8)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        assert total(folder) <= CAP
        held = values_are_whole(folder)
    assert held > 10


def test_what_killed_writers_reserved_is_free_again(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    processes = [started(folder, seed, 600) for seed in range(6)]
    time.sleep(0.3)
    for process in processes:
        process.kill()
        process.communicate(timeout=120)
    with DiskTier(folder, CAP) as tier:
        for number in range(1000):
            assert tier.put(b"%d" % number, 1, [bytes(10_000)], created=1.0)
        assert tier.counters()["records"] > CAP // 10_100 * 3 // 4
    assert total(folder) <= CAP


def test_a_stopped_writer_keeps_its_reservation_and_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    process = started(folder, 1, 600)
    process.send_signal(signal.SIGSTOP)
    try:
        with DiskTier(folder, CAP) as tier:
            began = time.monotonic()
            stored = sum(tier.put(b"%d" % number, 1, [bytes(10_000)], created=1.0) for number in range(300))
            assert stored == 300 or not tier.health().ok  # it may have been stopped while it had the folder's lock
            assert time.monotonic() - began < 30
            assert total(folder) <= CAP
    finally:
        process.kill()
        process.communicate(timeout=120)
