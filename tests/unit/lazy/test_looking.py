"""What a store tells: plain values, invariants that hold after anything, and no work for who does not ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.cache.disk import DiskTier
from lazystore.lazy.store import LazyStore
from lazystore.lazy.strategy import Strategy


def load(key: int) -> bytes:
    if key % 7 == 6:
        raise OSError("down")
    return bytes(key * 50)


def numbers() -> Iterator[int]:
    yield from range(100)


def test_a_new_store_counts_nothing_and_tells_it_in_plain_values() -> None:
    with LazyStore(memory="1MB", name="shop") as store:
        stats = store.stats()
        assert json.loads(json.dumps(stats)) == stats, "as a route or a log would write it"
        assert (stats["name"], stats["memory_limit"], stats["memory_used"]) == ("shop", 1_000_000, 0)
        assert stats["requests"] == stats["hits"] == stats["misses"] == stats["joins"] == stats["hit_ratio"] == 0
        assert (stats["disk"], stats["disk_bytes"], stats["disk_health"]) == ({}, 0, "ok")
        assert stats["background"] == {} and "background" not in vars(store), "asking starts nothing"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["get", "aget", "load", "invalidate", "clear"]), st.integers(0, 30))))
def test_requests_are_hits_misses_and_joins_and_memory_is_the_sum_of_the_entries(
    steps: list[tuple[str, int]],
) -> None:
    with LazyStore.from_keys(load, memory="20kB", prefetch=0) as store:
        for verb, key in steps:
            if verb == "get":
                store.get(key, fallback=b"")
            elif verb == "aget":
                asyncio.run(store.aget(key, fallback=b""))
            elif verb == "load":
                store.load(key, lambda: b"x", Strategy.EAGER)
            elif verb == "invalidate":
                store.invalidate(key)
            else:
                store.clear()
            stats = store.stats()
            assert stats["hits"] + stats["misses"] + stats["joins"] == stats["requests"]
            assert stats["memory_used"] == store.tiers.ledger.used <= stats["memory_limit"]
            assert (stats["memory_used"] == 0) == (stats["entries"] == 0)
            assert sum(stats["entries_by_kind"].values()) == stats["entries"] == len(store.tiers.memory.map)
            assert sum(stats["loads_by_kind"].values()) == stats["loads"]
            assert 0 <= stats["hit_ratio"] <= 1


def test_entries_are_told_apart_by_kind() -> None:
    def rows(offset: int, limit: int) -> list[int]:
        return list(range(offset, min(offset + limit, 500)))

    with LazyStore.from_range(rows, prefetch=0) as store:
        store.page(1)
        assert len(store.chunks(items=100)[0]) == 100
        store.load("x", lambda: 1, Strategy.EAGER)
        assert store.stats()["entries_by_kind"] == {"page": 1, "chunk": 1, "load": 1}
        assert store.stats()["operations"] | {"eager": 1, "chunked": 1, "paginated": 1} == store.stats()["operations"]


def test_only_streams_that_are_open_and_not_read_out_are_active() -> None:
    with LazyStore() as store:
        with store.stream(numbers()) as first, store.stream(numbers()) as second:
            next(first)
            assert store.stats()["active_streams"] == 2
            assert len(list(second)) == 100
            assert store.stats()["active_streams"] == 1
        assert store.stats()["active_streams"] == 0


def test_disk_hits_of_loads_ahead_are_no_requests(tmp_path: Path) -> None:
    for _ in range(2):
        disk = DiskTier(tmp_path / "tier", "10MB", mode="through")
        with LazyStore.from_keys(load, disk=disk, name="things") as store:
            for handle in store.prefetch([1, 2, 3, 4, 5]):
                handle.get(30)
            store.get(1)
            stats = store.stats()
            assert 0 <= stats["hit_ratio"] <= 1
            assert stats["disk_bytes"] > 0 and stats["disk_health"] == "ok"
    assert stats["disk_hits"] == 5, "they were found, and yet served no request"


def test_a_closed_store_still_tells() -> None:
    with LazyStore.from_keys(load) as store:
        store.get(1)
    stats = store.stats()
    assert stats["closed"] and stats["entries"] == 0 and stats["memory_used"] == 0 and stats["misses"] == 1
    assert store.health()["reasons"] == ["the store is closed"]
