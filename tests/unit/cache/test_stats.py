"""Statistics of a dataset's memory: every documented key, and what the numbers mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import datasets

from lazystore import InMemoryItemLoader, StreamingConfig, StreamingDataset

COUNT, PER_CHUNK, CHUNKS = 400, 50, 8
TINY = 65536
KEYS = {
    "total_memory_usage", "max_memory_size", "memory_utilization", "num_chunks_cached", "hits", "misses",
    "evictions", "bytes_fetched", "bytes_wasted", "requests", "retries", "fallbacks", "in_flight_bytes",
    "high_water_mark",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("stats") / "dataset", COUNT, chunk_size=PER_CHUNK)


def test_every_documented_key_is_there(folder: Path) -> None:
    with StreamingDataset(folder) as dataset:
        found = dataset.get_memory_stats()
        assert found.keys() >= KEYS | {"chunks"}
        assert found["evictions"].keys() == {"capacity", "scan", "pieces"}
        short = dataset.stats()
        assert short.keys() >= KEYS | {"url", "items", "n_chunks"}
        assert "chunks" not in short
        assert (short["url"], short["items"], short["n_chunks"]) == (str(folder), COUNT, CHUNKS)


def test_hits_misses_and_bytes_add_up(folder: Path) -> None:
    stored = sum(path.stat().st_size for path in folder.glob("*.bin"))
    with StreamingDataset(folder, memory="1MB") as dataset:
        before = dataset.get_memory_stats()
        assert (before["hits"], before["misses"], before["num_chunks_cached"], before["chunks"]) == (0, 0, 0, {})
        list(dataset)
        after = dataset.get_memory_stats()
        assert after["hits"] + after["misses"] == COUNT
        assert after["bytes_fetched"] - before["bytes_fetched"] == stored
        assert after["requests"] - before["requests"] >= CHUNKS
        assert after["num_chunks_cached"] == len(after["chunks"]) == CHUNKS
        assert sum(after["evictions"].values()) == after["bytes_wasted"] == after["retries"] == 0
        assert after["max_memory_size"] == 1_000_000
        assert after["memory_utilization"] == after["total_memory_usage"] / 1_000_000
        assert stored <= after["total_memory_usage"] <= after["high_water_mark"] <= 1_000_000
        list(dataset)
        again = dataset.get_memory_stats()
        assert again["hits"] == after["hits"] + COUNT
        assert (again["misses"], again["bytes_fetched"]) == (after["misses"], after["bytes_fetched"])


@pytest.mark.parametrize("way", ["index", "batch", "view", "bytes"])
def test_every_way_to_an_item_is_one_hit_or_one_miss(folder: Path, way: str) -> None:
    with StreamingDataset(folder, memory="1MB") as dataset:
        read = {
            "index": dataset.__getitem__, "batch": lambda i: dataset.get_many([i]), "view": dataset.view,
            "bytes": dataset.get_bytes,
        }[way]  # fmt: skip
        for hits, misses in ((0, 1), (1, 1), (2, 1)):
            read(123)
            assert (dataset.stats()["hits"], dataset.stats()["misses"]) == (hits, misses)


def test_each_chunk_is_described(folder: Path) -> None:
    with StreamingDataset(folder, memory="1MB") as dataset:
        for _ in range(3):
            datasets.check(dataset, range(COUNT))
        chunks = dataset.get_memory_stats()["chunks"]
        assert sorted(chunks) == list(range(CHUNKS))
        for chunk, entry in chunks.items():
            size = (folder / f"chunk-0-{chunk}.bin").stat().st_size
            assert (entry["size"], entry["bytes_total"], entry["complete"]) == (size, size, True)
            assert entry["items_available"] == PER_CHUNK
            assert entry["hits"] > 0
            assert entry["idle_seconds"] >= 0
            assert entry["pins"] == 0


def test_pins_are_counted_where_they_are(folder: Path) -> None:
    with StreamingDataset(folder, memory="1MB") as dataset:
        list(dataset)
        with dataset.view(60) as one, dataset.view(61) as two:
            held = sum(not lease.copied for lease in (one, two))
            assert held
            assert dataset.stats()["pins"] == held
            chunks = dataset.get_memory_stats()["chunks"]
            assert {chunk: entry["pins"] for chunk, entry in chunks.items() if entry["pins"]} == {1: held}
        assert dataset.stats()["pins"] == 0


def test_a_chunk_in_part_says_which_part(folder: Path) -> None:
    with StreamingDataset(folder, memory=TINY) as dataset:
        datasets.check(dataset, range(COUNT))
        entries = dataset.get_memory_stats()["chunks"]
        for chunk, entry in entries.items():
            assert 0 < entry["size"] <= entry["bytes_total"]
            assert entry["complete"] == (entry["size"] == entry["bytes_total"])
            assert entry["items_available"] <= PER_CHUNK
            numbers = range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)
            assert entry["items_available"] == sum(map(dataset.is_item_available, numbers))
            assert dataset.get_chunk_progress(chunk) == pytest.approx(entry["size"] / entry["bytes_total"])


def test_descriptions_of_chunks_can_be_switched_off(folder: Path) -> None:
    quiet = InMemoryItemLoader(StreamingConfig(enable_memory_monitoring=False))
    with StreamingDataset(folder, item_loader=quiet) as dataset:
        list(dataset)
        assert dataset.get_memory_stats()["chunks"] == {}
        assert dataset.get_memory_stats()["num_chunks_cached"] == CHUNKS


def test_evictions_are_counted_by_cause_and_the_budget_holds(folder: Path) -> None:
    with StreamingDataset(folder, memory=TINY) as dataset:
        for _ in range(2):
            list(dataset)
        assert dataset.stats()["evictions"]["scan"] > 0
        for i in range(0, COUNT, 3):
            dataset[i * 7 % COUNT]
        found = dataset.get_memory_stats()
        assert found["evictions"]["capacity"] + found["evictions"]["pieces"] > 0
        assert found["total_memory_usage"] <= found["high_water_mark"] <= TINY
        assert 0 < found["memory_utilization"] <= 1


def test_looking_changes_nothing(folder: Path) -> None:
    with StreamingDataset(folder, memory="1MB") as dataset:
        list(dataset)
        first = dataset.get_memory_stats()
        for _ in range(3):
            dataset.stats()
            repr(dataset)
            dataset.get_chunk_progress(3)
            dataset.is_item_available(7)
        second = dataset.get_memory_stats()
        for entry in (*first["chunks"].values(), *second["chunks"].values()):
            del entry["idle_seconds"]
        assert first == second


def test_after_closing_the_counts_remain_and_the_memory_is_gone(folder: Path) -> None:
    with StreamingDataset(folder) as dataset:
        list(dataset)
        before = dataset.stats()
    after = dataset.get_memory_stats()
    assert (after["num_chunks_cached"], after["chunks"]) == (0, {})
    assert (after["hits"], after["misses"]) == (before["hits"], before["misses"])
    assert (after["total_memory_usage"], after["memory_utilization"]) == (0, 0.0)
