"""The documents' metric keys are views of what a store counted: their sums hold whatever happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.cache.disk import DiskTier
from lazystore.lazy.documents.metrics import get_metrics, get_stats, metrics_of, stats_of
from lazystore.lazy.store import LazyStore, default_store
from lazystore.lazy.strategy import Strategy

MIB = 1 << 20


def load(key: int) -> Any:
    if key == 13:
        raise OSError("down")
    return bytes(key * 100)


def sums_hold(store: LazyStore) -> None:
    counted, metrics, stats = store.stats(), metrics_of(store), stats_of(store)
    assert metrics["cache_hits"] + metrics["cache_misses"] == counted["requests"]
    assert metrics["cache_hits"] >= 0 and metrics["cache_misses"] >= 0
    assert 0 <= metrics["cache_hit_rate"] <= 1 and 0 <= stats["hit_ratio"] <= 1
    assert metrics["cache_hit_rate"] == stats["hit_ratio"] == counted["hit_ratio"]
    assert metrics["memory_usage"] * MIB == stats["memory_usage_mb"] * MIB == store.tiers.ledger.used
    assert metrics["cache_sizes"]["data"] + metrics["cache_sizes"]["page"] == counted["entries"]
    assert metrics["total_operations"] == sum(counted["operations"].values())
    assert metrics["errors"] == sum(counted["errors_by_kind"].values())
    by_kind = ("streaming", "chunked", "paginated", "background")
    assert sum(metrics[f"{kind}_operations"] for kind in by_kind) <= metrics["total_operations"]
    assert stats["total_streams"] == metrics["streaming_operations"]


def test_a_new_store_has_zeros() -> None:
    with LazyStore() as store:
        sums_hold(store)
        flat = {**metrics_of(store), **metrics_of(store)["cache_sizes"], **stats_of(store)}
        del flat["cache_sizes"]
        assert set(flat.values()) == {0}


VERBS = ["get", "aget", "eager", "background", "page", "chunks", "stream", "prefetch", "invalidate"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 20)), max_size=25))
def test_sums_hold_whatever_is_done(steps: list[tuple[str, int]]) -> None:
    with LazyStore.from_keys(load, memory="30kB", window="4kB") as store:
        for verb, key in steps:
            if verb == "get":
                store.get(key, fallback=None)
            elif verb == "aget":
                asyncio.run(store.aget(key, fallback=None))
            elif verb in ("eager", "background"):
                found = store.load(key, lambda: 1, verb)
                assert found == 1 or found.get(30) == 1
            elif verb == "page":
                store.page(1, source=range(key), size=5)
            elif verb == "chunks":
                assert list(store.chunks(keys=[1, 2, key % 13])) is not None
            elif verb == "stream":
                with store.stream(iter(range(key))) as stream:
                    assert list(stream) == list(range(key))
            elif verb == "prefetch" and key != 13:
                [handle] = store.prefetch([key])
                handle.get(30)
            else:
                store.invalidate(key)
            sums_hold(store)


def test_what_loads_ahead_found_on_disk_is_no_hit_of_a_request(tmp_path: Path) -> None:
    for _ in range(2):
        disk = DiskTier(tmp_path / "tier", "10MB", mode="through")
        with LazyStore.from_keys(load, disk=disk, name="things") as store:
            for handle in store.prefetch([1, 2, 3, 4, 5]):
                handle.get(30)
            sums_hold(store)
            store.get(6)
            sums_hold(store)
            assert stats_of(store)["disk_cache_size_mb"] > 0
    assert stats_of(store)["disk_cache_hits"] >= 5


def test_times_are_those_of_loaders() -> None:
    with LazyStore.from_range(lambda offset, limit: list(range(offset, offset + limit)), prefetch=0) as store:
        for number in (1, 1, 2):
            store.page(number)
        stats, metrics = stats_of(store), metrics_of(store)
        assert stats["total_pages_loaded"] == 2 and stats["avg_page_load_time"] > 0
        assert stats["avg_chunk_load_time"] == 0
        assert abs(metrics["average_load_time"] * 2 - metrics["total_load_time"]) < 1e-9
        assert stats["active_pages"] == metrics["cache_sizes"]["page"] == 2


def test_a_store_or_the_shared_one() -> None:
    try:
        default_store().load("x", lambda: 1, Strategy.EAGER)
        with LazyStore() as store:
            store.load("x", lambda: 1, Strategy.STREAMING).close()
            assert get_metrics(store)["streaming_operations"] == get_stats(store)["total_streams"] == 1
            assert get_metrics()["streaming_operations"] == 0 and get_metrics()["total_operations"] == 1
    finally:
        default_store().close()
