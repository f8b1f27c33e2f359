"""Peak memory of a process that reads far more than its budget: what it had after opening, the budget, 16 MiB."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import scripts

from lazystore import DatasetWriter

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own"),
]

MIB = 1 << 20
SLACK = 16 * MIB
COUNT = 3300


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~200 MB in chunks of 64 MB: items of 20 to 100 kB."""
    folder = tmp_path_factory.mktemp("blobs") / "dataset"
    noise = bytes(range(256)) * 800
    with DatasetWriter(folder, chunk_bytes="64MB") as writer:
        for i in range(COUNT):
            at = i % 256
            writer.write({"id": i, "blob": noise[at : at + 20_000 + i * 7919 % 80_000]})
    return folder


READ = (
    scripts.MEASURE
    + """
import random, sys
from lazystore import StreamingDataset

way, folder, budget = sys.argv[1:]
dataset = StreamingDataset(folder, memory=budget)
chance = random.Random(1)
noise = bytes(range(256)) * 800

def check(i, blob):
    at = i % 256
    assert len(blob) == 20_000 + i * 7919 % 80_000
    assert blob[:9] == noise[at : at + 9] and blob[-9:] == noise[at : at + len(blob)][-9:]

before = restart_peak()
if way == "iterate":
    for i, item in enumerate(dataset):
        assert item["id"] == i
        check(i, item["blob"])
elif way == "iterate twice, half":
    first, second = iter(dataset), iter(dataset)
    for i in range(len(dataset) // 2):
        check(i, next(first)["blob"])
        check(i, next(second)["blob"])
elif way == "random":
    for i in chance.choices(range(len(dataset)), k=2500):
        check(i, dataset[i]["blob"])
elif way == "views":
    for i in range(len(dataset)):
        with dataset.view(i) as lease:
            check(i, memoryview(lease)[16:])
elif way == "random views":
    for i in chance.choices(range(len(dataset)), k=2500):
        with dataset.view(i) as lease:
            check(i, memoryview(lease)[16:])
elif way == "batches":
    for _ in range(150):
        wanted = chance.choices(range(len(dataset)), k=8)
        for i, item in zip(wanted, dataset.get_many(wanted), strict=True):
            check(i, item["blob"])
elif way == "prefetch":
    for _ in range(5):
        dataset.prefetch_items(chance.choices(range(len(dataset)), k=400))
elif way == "two epochs by index":
    for i in [*range(len(dataset)), *range(len(dataset))]:
        check(i, dataset[i]["blob"])
else:
    raise SystemExit(way)
found = dataset.stats()
assert found["high_water_mark"] <= found["max_memory_size"], found
print(memory("VmHWM") - before, found["max_memory_size"])
"""
)

WAYS = [
    "iterate", "iterate twice, half", "random", "views", "random views", "batches", "prefetch", "two epochs by index",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", ["8MB", "32MB"])
def test_peak_memory_stays_within_the_budget(blobs: Path, way: str, budget: str) -> None:
    grown, bound = map(int, scripts.run(READ, way, blobs, budget, timeout=150).split())
    assert grown <= bound + SLACK, f"{grown / MIB:.1f} MiB for a budget of {budget}"


COMPRESSED = (
    scripts.MEASURE
    + """
import sys
from lazystore import StreamingDataset

dataset = StreamingDataset(sys.argv[1], memory="9MB")
before = restart_peak()
assert [item["id"] for item in dataset] == list(range(len(dataset)))
assert dataset[len(dataset) - 1]["id"] == len(dataset) - 1
print(memory("VmHWM") - before)
"""
)


def test_compressed_chunks_are_inflated_within_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    with DatasetWriter(tmp_path / "d", chunk_bytes="64MB", compression="zstd") as writer:
        for i in range(700):
            writer.write({"id": i, "blob": bytes([i % 256]) * 100_000})
    grown = int(scripts.run(COMPRESSED, tmp_path / "d", timeout=120))
    assert grown <= 9_000_000 + SLACK


PINNED = (
    scripts.MEASURE
    + """
import logging, sys
from lazystore import StreamingDataset

logging.getLogger("lazystore").setLevel(logging.ERROR)
dataset = StreamingDataset(sys.argv[1], memory="8MB")
before = restart_peak()
leases, copied = [], 0
for i in range(len(dataset)):
    lease = dataset.view(i)
    if lease.copied:
        copied += 1
    else:
        leases.append(lease)
for i in range(0, len(dataset), 11):
    assert dataset[i]["id"] == i
assert dataset.stats()["pins"] == len(leases) > 0
print(memory("VmHWM") - before)
"""
)


def test_views_that_hold_every_frame_do_not_push_memory_over_the_budget(blobs: Path) -> None:
    grown = int(scripts.run(PINNED, blobs, timeout=150))
    assert grown <= 8_000_000 + SLACK


CYCLES = (
    scripts.MEASURE
    + """
import gc, sys
from lazystore import StreamingDataset

def once(close):
    dataset = StreamingDataset(sys.argv[1], memory="32MB")
    for i in range(0, 1200):
        dataset[i]
    lease = dataset.view(3)
    running = iter(dataset)
    next(running)
    if close:
        dataset.close()

once(True)
gc.collect()
before = restart_peak()
for k in range(12):
    once(k % 2)
    gc.collect()
print(memory("VmHWM") - before, memory("VmRSS") - before)
"""
)


def test_datasets_that_come_and_go_leave_nothing(blobs: Path) -> None:
    peak, left = map(int, scripts.run(CYCLES, blobs, timeout=120).split())
    assert peak <= 32_000_000 + SLACK
    assert left <= SLACK
