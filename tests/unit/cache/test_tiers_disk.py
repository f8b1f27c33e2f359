"""Memory and disk as one cache: what goes there, what comes back, and that an invalidation reaches both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazystore.cache.disk import DiskTier
from lazystore.cache.flight import Deadline
from lazystore.cache.keys import Kind
from lazystore.cache.tiers import Tiers
from lazystore.testing import FakeClock

MODES = ("through", "spill")
Make = Callable[..., Tiers]


def refuse() -> Any:
    raise AssertionError("loaded again")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(tmp_path: Path, clock: FakeClock) -> Iterator[Make]:
    """Caches of 100 kB, each as after a restart: new memory, the same folder."""
    made: list[Tiers] = []

    def tiers(mode: str = "through", allow_pickle: bool = False, **options: Any) -> Tiers:
        disk = DiskTier(tmp_path / "disk", "16MB", mode=mode, codec="none", allow_pickle=allow_pickle)
        made.append(Tiers(**{"memory": 100_000, "disk": disk, "clock": clock, "rng": lambda: 0.5, **options}))
        return made[-1]

    yield tiers
    for each in made:
        each.close()
        assert each.shelf is not None
        each.shelf.tier.close()


def push_out(tiers: Tiers) -> None:
    """Make all values leave memory for room."""
    tiers.ledger.retarget(0.0)
    tiers.ledger.retarget(1.0)


def test_through_writes_when_it_is_loaded(make: Make) -> None:
    assert make().get("k", lambda: {"a": [1, 2.5, None]}) == {"a": [1, 2.5, None]}
    again = make()
    assert again.holds("k")
    assert again.get("k", refuse) == {"a": [1, 2.5, None]}
    told = again.counters()
    assert (told["disk_hits"], told["disk_misses"], told["loads"], told["misses"]) == (1, 0, 0, 1)
    assert again.hit("k") == {"a": [1, 2.5, None]}  # promoted


def test_spill_writes_when_it_leaves_memory(make: Make) -> None:
    tiers = make("spill")
    tiers.put("k", b"value")
    assert tiers.shelf is not None
    assert "k" not in tiers.shelf
    push_out(tiers)
    assert tiers.peek("k") is None
    assert "k" in tiers.shelf
    assert tiers.holds("k")
    assert tiers.get("k", refuse) == b"value"
    stores = tiers.shelf.tier.counters()["stores"]
    push_out(tiers)
    assert tiers.peek("k") is None
    assert tiers.get("k", refuse) == b"value"
    told = tiers.counters()
    assert (told["disk_hits"], told["spills"]) == (2, 1)
    assert tiers.shelf.tier.counters()["stores"] == stores  # it is there already and is not written again


def test_what_is_pushed_out_by_others_is_spilled(make: Make) -> None:
    tiers = make("spill")
    for number in range(40):
        tiers.put(number, bytes([number]) * 10_000)
    told = tiers.counters()
    assert told["spills"] == told["evicted_size"] == 40 - told["entries"] > 20
    for number in range(40):
        assert tiers.get(number, refuse) == bytes([number]) * 10_000


def test_tasks_read_and_write_the_disk_too(make: Make) -> None:
    async def load() -> bytes:
        return b"value"

    async def ask(tiers: Tiers, loader: Any) -> Any:
        return await tiers.aget("k", loader)

    assert asyncio.run(ask(make(), load)) == b"value"
    assert asyncio.run(ask(make(), refuse)) == b"value"

    async def never() -> Any:
        refuse()

    assert asyncio.run(ask(make(), never)) == b"value"


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_back_keeps_what_is_left_of_its_ttl(make: Make, clock: FakeClock, mode: str) -> None:
    tiers = make(mode, ttl=10, stale_while_revalidate=3)
    tiers.get("k", lambda: b"old")
    clock.advance(4)
    push_out(tiers)
    assert tiers.peek("k") is None
    assert tiers.get("k", refuse) == b"old"
    clock.advance(5)
    assert tiers.get("k", refuse) == b"old"
    clock.advance(2)
    assert not tiers.holds("k")
    assert tiers.get("k", lambda: b"new") == b"old"
    for flight in tiers.loads.flights.under_way():
        flight.wait_end(Deadline(30))
    assert tiers.get("k", refuse) == b"new"


@pytest.mark.parametrize("mode", MODES)
def test_a_newer_value_replaces_the_one_on_disk(make: Make, mode: str) -> None:
    tiers = make(mode)
    tiers.put("k", b"old")
    push_out(tiers)
    tiers.put("k", b"new")
    push_out(tiers)
    assert tiers.peek("k") is None
    assert tiers.get("k", refuse) == b"new"
    tiers.put("k", object())  # has no form on disk: what is there must not come back
    push_out(tiers)
    assert tiers.get("k", lambda: b"loaded") == b"loaded"


@pytest.mark.parametrize("mode", MODES)
def test_an_invalidation_reaches_the_disk(make: Make, mode: str) -> None:
    tiers = make(mode)
    tiers.put("k", b"old")
    push_out(tiers)
    assert tiers.invalidate("k")
    assert not tiers.holds("k")
    assert tiers.get("k", lambda: b"new") == b"new"
    assert not tiers.invalidate("other")


def test_an_invalidation_during_a_load_keeps_it_out_of_the_disk(make: Make) -> None:
    tiers = make()

    def load() -> bytes:
        tiers.invalidate("k")
        return b"old"

    assert tiers.get("k", load) == b"old"
    assert not tiers.holds("k")


def test_an_invalidation_while_the_disk_is_written_takes_it_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in MODES:
        tiers = make(mode)
        assert tiers.shelf is not None
        written = tiers.shelf.tier.put
        invalidated: list[bool] = []

        def put(name: bytes, *args: Any, **options: Any) -> bool:
            if b"\x03k\x00" in name and not invalidated:  # noqa: B023
                thread = threading.Thread(target=lambda: invalidated.append(tiers.invalidate("k")))  # noqa: B023
                thread.start()
                thread.join(30)
            return written(name, *args, **options)  # noqa: B023

        monkeypatch.setattr(tiers.shelf.tier, "put", put)
        tiers.get("k", lambda: b"old")
        push_out(tiers)
        assert len(invalidated) == 1
        assert not tiers.holds("k")
        assert not len(tiers.memory.claims)


def test_clear_leaves_the_disk_unless_told(make: Make) -> None:
    tiers = make()
    other = make(namespace="other")
    for key in ("user:1", b"user:2", (Kind.PAGE, "user:3", 4), "item", 5):
        tiers.put(key, b"value")
    other.put("user:1", b"theirs")
    assert tiers.clear() == 5
    assert tiers.get("user:1", refuse) == b"value"
    assert tiers.clear(disk=True, prefix="user:") == 1 + 3
    assert [tiers.holds(key) for key in ("user:1", b"user:2", (Kind.PAGE, "user:3", 4), "item")] == [False] * 3 + [True]
    assert tiers.clear(memory=False, disk=True) == 2
    assert other.get("user:1", refuse) == b"theirs"


def test_caches_of_one_name_share_and_others_do_not(make: Make) -> None:
    make(namespace="one").put("k", b"value")
    assert make(namespace="one").holds("k")
    assert not make(namespace="two").holds("k")
    assert not make().holds("k")


def test_keys_and_values_without_a_form_stay_in_memory_and_are_counted(make: Make) -> None:
    tiers = make()
    key = object()
    value = object()
    assert tiers.get(key, lambda: b"value") == b"value"
    assert tiers.get("k", lambda: value) is value
    assert (tiers.hit(key), tiers.hit("k")) == (b"value", value)
    told = tiers.counters()
    assert (told["disk_unpackable"], told["disk_misses"]) == (1, 1)
    assert told["disk_unkeyable"] >= 1
    assert tiers.shelf is not None
    assert len(tiers.shelf.tier) == 0
    spilling = make("spill")
    for number in range(20):
        spilling.put((object(), number), bytes(10_000))
    assert spilling.counters()["disk_unkeyable"] >= 10


def test_a_value_too_large_for_memory_lives_on_disk(make: Make) -> None:
    for mode in MODES:
        tiers = make(mode)
        assert tiers.get(mode, lambda: bytes(200_000)) == bytes(200_000)
        assert tiers.get(mode, refuse) == bytes(200_000)
        assert tiers.ledger.used == 0


def test_what_does_not_unpack_is_a_miss_and_goes(make: Make) -> None:
    make(allow_pickle=True).put("k", 5 + 2j)
    tiers = make(allow_pickle=True)
    assert tiers.get("k", refuse) == 5 + 2j
    strict = make()
    assert strict.get("k", lambda: b"loaded") == b"loaded"
    told = strict.counters()
    assert (told["disk_hits"], told["disk_misses"]) == (0, 1)


def test_keep_false_reads_the_disk_and_leaves_memory_alone(make: Make) -> None:
    make().put("k", b"value")
    tiers = make()
    assert tiers.get("k", refuse, keep=False) == b"value"
    assert tiers.peek("k") is None


def test_the_disks_index_counts_in_the_budget(make: Make) -> None:
    tiers = make("through")
    for number in range(500):
        tiers.put(number, b"v")
    tiers.clock.sleep(5)
    tiers.get("k", lambda: 1)
    assert tiers.shelf is not None
    assert tiers.ledger.charged == min(tiers.shelf.index_bytes, 25_000) > 0
    assert tiers.ledger.used + tiers.ledger.charged <= 100_000


def test_a_crowd_that_leaves_at_once_is_written_in_part(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazystore.cache.memory_tier.SPILL_MOST", 15_000)
    tiers = make("spill")
    for number in range(9):
        tiers.put(number, bytes(10_000))
    tiers.ledger.retarget(0.1)
    told = tiers.counters()
    assert (told["spills"], told["spill_dropped"], told["evicted_room"]) == (2, 7, 9)


def test_reading_ahead_comes_from_disk_and_counts_as_used(make: Make) -> None:
    make().put("k", b"value")
    tiers = make()
    assert tiers.start("k", refuse).wait(Deadline(30)) == b"value"
    assert tiers.get("k", refuse) == b"value"
    told = tiers.counters()
    assert (told["prefetch_issued"], told["prefetch_used"], told["disk_hits"], told["loads"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_closing_writes_what_is_fresh_and_only_in_memory(make: Make, clock: FakeClock, asynchronous: bool) -> None:
    tiers = make("spill", negative_ttl=100, ttl=50)
    tiers.put("stale", b"v", ttl=1)
    clock.advance(2)
    tiers.put("fresh", b"v")
    tiers.put("ever", b"v", ttl=None)
    tiers.start("unused", lambda: b"v").wait(Deadline(30))
    with pytest.raises(KeyError):
        tiers.get("error", lambda: {}["no"])
    if asynchronous:
        asyncio.run(tiers.aclose())
    else:
        tiers.close()
    again = make("spill", ttl=50)
    clock.advance(40)
    assert [again.get(key, lambda: None, keep=False) for key in ("fresh", "ever", "stale", "unused", "error")] == [
        b"v", b"v", None, None, None,
    ]  # fmt: skip
    clock.advance(11)
    assert again.peek("fresh") is None
    assert again.peek("ever") is None


def test_closing_after_the_tier_keeps_nothing_and_raises_nothing(make: Make) -> None:
    tiers = make("spill")
    tiers.put("k", b"v")
    assert tiers.shelf is not None
    tiers.shelf.tier.close()
    tiers.close()
