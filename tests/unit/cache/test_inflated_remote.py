"""Compressed chunks from far away: each byte once, ahead of the reader, and nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import datasets, scripts

from lazystore import ClosedError, DatasetNotFoundError, FormatError, StreamingDataset
from lazystore.testing import Faults, ObjectStore, dependent_waves

pytest.importorskip("zstandard")
pytest.importorskip("aiohttp")

COUNT, PER_CHUNK, SIZE = 2400, 200, 1500
CHUNKS = COUNT // PER_CHUNK


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bucket with twelve chunks of ~450 kB, ~60 kB compressed, and one that lacks the chunk before the last."""
    root = tmp_path_factory.mktemp("far")
    datasets.write(root / "bucket" / "data", COUNT, size=SIZE, chunk_size=PER_CHUNK, compression="zstd")
    datasets.copy(root / "bucket" / "data", root / "bucket" / "torn")
    (root / "bucket" / "torn" / "chunk-0-10.zstd.bin").unlink()
    (root / "bucket" / "torn" / "chunk-0-11.zstd.bin").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[ObjectStore]:
    with ObjectStore(root, latency_ms=5) as store:
        yield store


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    running.configure(faults=None, latency_ms=5)
    running.reset()
    yield running


def opened(store: ObjectStore, name: str = "data", **options: Any) -> StreamingDataset:
    options.setdefault("memory", "8MB")
    return StreamingDataset(store.http_url("bucket", name), backend="fsspec", **options)


def stored(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "bucket" / "data").glob("*.bin"))


def asked(store: ObjectStore) -> list[dict[str, Any]]:
    """The requests for chunks, in order."""
    return [entry for entry in store.stats()["log"] if entry["path"].endswith(".bin")]


def test_a_pass_asks_for_each_byte_once(store: ObjectStore, root: Path) -> None:
    with opened(store) as dataset:
        store.reset()
        datasets.check(dataset, range(COUNT), SIZE)
        # the first chunk in a short piece and the rest, the others in one each
        assert store.stats()["bytes_sent"] <= 1.001 * stored(root)
        assert len(asked(store)) <= CHUNKS + 3
        assert dataset.stats()["high_water_mark"] <= 8_000_000


def test_a_pass_takes_few_round_trips(store: ObjectStore) -> None:
    with opened(store) as dataset:
        store.configure(latency_ms=100)
        store.reset()
        list(dataset)
        assert dependent_waves(asked(store)) <= 4


def test_the_first_item_takes_one_round_trip_and_little_more_than_its_chunk(store: ObjectStore, root: Path) -> None:
    with opened(store) as dataset:
        store.configure(latency_ms=100)
        store.reset()
        datasets.check([next(iter(dataset))], [0], SIZE)
        assert dependent_waves([entry for entry in asked(store) if "0-0" in entry["path"]][:1]) == 1
        items = iter(dataset)
        datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK), SIZE)
    assert store.stats()["bytes_sent"] < stored(root)


def test_a_second_pass_over_what_is_resident_asks_for_nothing(store: ObjectStore) -> None:
    with opened(store, memory="32MB") as dataset:
        list(dataset)
        store.reset()
        datasets.check(dataset, range(COUNT), SIZE)
        assert asked(store) == []


def test_passes_from_the_middle_and_two_at_once_give_the_same_items(store: ObjectStore) -> None:
    with opened(store, memory="2MB") as dataset:
        first, second = iter(dataset), iter(dataset)
        for i in range(0, COUNT, 300):
            datasets.check([next(first) for _ in range(300)], range(i, i + 300), SIZE)
            datasets.check([next(second) for _ in range(300)], range(i, i + 300), SIZE)
            datasets.check([dataset[COUNT - 1 - i]], [COUNT - 1 - i], SIZE)


def test_chunks_expected_in_another_order_are_fetched_ahead_and_once(store: ObjectStore, root: Path) -> None:
    order = [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 4, 6]
    with opened(store) as dataset:
        store.configure(latency_ms=100)
        store.reset()
        dataset._memory.opener.expect(order)
        for chunk in order:
            items = range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)
            datasets.check(dataset[items.start : items.stop], items, SIZE)
        assert store.stats()["bytes_sent"] <= 1.001 * stored(root)
        assert dependent_waves(asked(store)) <= 4


def test_faults_are_survived(store: ObjectStore) -> None:
    with opened(store, timeout=20) as dataset:
        store.configure(faults=Faults(error_503=0.2, cut=0.2, seed=3))
        datasets.check(dataset, range(COUNT), SIZE)
        assert dataset.stats()["retries"] > 0


@pytest.mark.parametrize("memory", ["1MB", "32MB"])
def test_trouble_ahead_shows_when_it_is_reached(store: ObjectStore, memory: str) -> None:
    with opened(store, "torn", memory=memory) as dataset:
        items, good = iter(dataset), 10 * PER_CHUNK
        datasets.check([next(items) for _ in range(good)], range(good), SIZE)
        with pytest.raises(DatasetNotFoundError, match=r"chunk-0-10\.zstd\.bin"):
            next(items)
        with pytest.raises(FormatError, match=r"chunk-0-11\.zstd\.bin \(chunk 11\).*zstd"):
            dataset[COUNT - 1]
        datasets.check([dataset[5]], [5], SIZE)


def test_close_ends_what_is_under_way(store: ObjectStore) -> None:
    before = threading.active_count()
    dataset = opened(store)
    items = iter(dataset)
    next(items)
    store.configure(latency_ms=3000)
    for _ in range(PER_CHUNK // 2):
        next(items)
    dataset.close()
    assert threading.active_count() <= before
    with pytest.raises(ClosedError):
        list(items)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_fetches_for_itself(store: ObjectStore) -> None:
    with opened(store) as dataset:
        items = iter(dataset)
        next(items)
        pid = os.fork()
        if not pid:
            try:
                datasets.check(dataset, range(COUNT), SIZE)
            except BaseException:  # noqa: BLE001 - the parent learns it from the code
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        datasets.check(items, range(1, COUNT), SIZE)


PEAK = (
    scripts.MEASURE
    + """
import sys
from lazystore import StreamingDataset

dataset = StreamingDataset(sys.argv[1], memory="24MB", backend="fsspec")
dataset[0]
before = restart_peak()
for k, item in enumerate(dataset):
    assert (item["id"], len(item["blob"])) == (k, 50_000)
print(memory("VmHWM") - before, dataset.stats()["high_water_mark"])
dataset.close()
"""
)


@pytest.mark.stress
@pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own")
def test_peak_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """Half noise, half zeros: 80 MB that compress to 40."""
    from lazystore import DatasetWriter

    noise = os.urandom(1 << 20)
    with DatasetWriter(tmp_path / "b" / "d", chunk_bytes="8MB", compression="zstd") as writer:
        for i in range(1600):
            at = i * 7919 % (len(noise) - 25_000)
            writer.write({"id": i, "blob": noise[at : at + 25_000] + bytes(25_000)})
    with ObjectStore(tmp_path, latency_ms=2) as store:
        grown, mark = map(int, scripts.run(PEAK, store.http_url("b", "d"), timeout=90).split())
    assert mark <= 24_000_000
    assert grown <= 24_000_000 + (8 << 20)
