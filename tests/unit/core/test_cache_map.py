"""The cache map: promises the model does not cover."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import random
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from lazystore._core.cache_map import FOREVER, POLICIES, CacheMap
from lazystore.errors import ConfigError

SECOND = 10**9


class Value:
    """Something that can be watched and can hold others."""


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_weight", [0, -1])
def test_a_map_needs_room_for_something(max_weight: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        CacheMap(max_weight)
    with pytest.raises(ConfigError, match="at least 1"):
        CacheMap(1).resize(max_weight)


def test_a_limit_beyond_what_weights_can_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="2\\*\\*55"):
        CacheMap(2**55)
    with pytest.raises(ConfigError, match="2\\*\\*55"):
        CacheMap(1).resize(2**60)
    cache = CacheMap(2**55 - 1)
    assert cache.put("whale", 1, 2**55 - 1) == []
    assert cache.weight == 2**55 - 1


def test_unknown_policies_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="policy='arc' is not one of s3fifo, lru"):
        CacheMap(1, policy="arc")


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -1},
        {"weight": 11},
        {"fresh_ns": -2},
        {"keep_ns": -1},
        {"fresh_ns": 5, "keep_ns": 4},
        {"keep_ns": 5},
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(wrong: dict[str, int]) -> None:
    cache = CacheMap(10)
    cache.put("key", "value", 10)
    with pytest.raises(ConfigError):
        cache.put("key", "other", **wrong)
    assert cache.items() == [("key", "value")]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_map_is_not_copied_or_pickled(duplicate: Callable[[CacheMap], object]) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        duplicate(CacheMap(10))


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [[], {}, set()])
def test_unhashable_keys_are_type_errors(key: Any) -> None:
    cache = CacheMap(10)
    cache.put(1, 1)
    calls: list[Callable[[], object]] = [
        lambda: cache.put(key, 1),
        lambda: cache.get(key),
        lambda: cache.peek(key),
        lambda: cache.entry(key),
        lambda: cache.pop(key),
        lambda: key in cache,
    ]
    for call in calls:
        with pytest.raises(TypeError, match="unhashable"):
            call()
    assert cache.keys() == [1]


def test_an_error_of_a_comparison_or_a_hash_comes_through_and_changes_nothing() -> None:
    class Angry:
        def __hash__(self) -> int:
            return hash(7)

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not comparable")

    class Hashless:
        def __hash__(self) -> int:
            raise RuntimeError("no hash today")

    cache = CacheMap(10)
    cache.put(7, "seven")
    for key, message in ((Angry(), "not comparable"), (Hashless(), "no hash today")):
        calls: list[Callable[[], object]] = [
            lambda key=key: cache.put(key, 1),
            lambda key=key: cache.get(key),
            lambda key=key: cache.pop(key),
            lambda key=key: key in cache,
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match=message):
                call()
    assert cache.items() == [(7, "seven")]
    assert (cache.hits, cache.misses) == (0, 0)


def test_keys_are_equal_as_in_a_dict() -> None:
    """Strings of every width, ints of every length, equal keys of different types."""

    class Shouting(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return str(self).lower() == str(other).lower()

    keys = [
        "",
        "a",
        "ab",
        "é",
        "\u20ac",
        "\U0001f600",
        "a" * 1000,
        b"a",
        0,
        -1,
        -2,
        1,
        2**30,
        -(2**30),
        2**61 - 1,
        2**61,
    ]
    keys += [2**200, -(2**200), 1.5, None, True, 0.0, (1, "a"), frozenset({1}), Shouting("x"), "x", float("inf")]
    cache = CacheMap(1000)
    truth: dict[Any, int] = {}
    for number, key in enumerate(keys):
        cache.put(key, number)
        truth[key] = number
    for key in keys:
        again = pickle.loads(pickle.dumps(key)) if not isinstance(key, Shouting) else key
        assert cache.get(again) == truth[again]
    assert len(cache) == len(truth)
    assert cache.get("A") is None


def test_a_nan_is_found_by_identity() -> None:
    nan = float("nan")
    cache = CacheMap(10)
    cache.put(nan, "not a number")
    assert cache.get(nan) == "not a number"
    assert cache.get(float("nan")) is None


def test_keys_whose_hashes_differ_in_few_bits_only_are_all_found() -> None:
    class Poor:
        def __init__(self, n: int) -> None:
            self.n = n

        def __hash__(self) -> int:
            return self.n % 4 << 60

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Poor) and self.n == other.n

    cache = CacheMap(10_000)
    for shift in range(0, 62, 6):
        for n in range(64):
            cache.put(n << shift, (n, shift))
    for n in range(200):
        cache.put(Poor(n), n)
    assert [cache.get(Poor(n)) for n in range(200)] == list(range(200))
    assert all(cache.get(n << shift) is not None for shift in range(0, 62, 6) for n in range(64))


def test_a_key_that_clears_the_map_while_compared_is_not_found_there() -> None:
    cache = CacheMap(1000)

    class Clearing:
        def __hash__(self) -> int:
            return hash(1)

        def __eq__(self, other: object) -> bool:
            cache.clear()
            return True

    cache.put(1, "one")
    assert cache.get(Clearing(), "nothing") == "nothing"
    cache.put(1, "one")
    cache.put(Clearing(), "two")
    assert len(cache) == len(cache.keys()) == 1


def test_no_entry_is_lost_when_comparisons_make_the_table_grow() -> None:
    cache = CacheMap(100_000)
    fillers = itertools.count()

    class Filling:
        def __init__(self, n: int) -> None:
            self.n = n

        def __hash__(self) -> int:
            return 5

        def __eq__(self, other: object) -> bool:
            if next(budget, None) is not None:
                for _ in range(50):
                    cache.put(("filler", next(fillers)), None)
            return isinstance(other, Filling) and self.n == other.n

    budget = iter(range(40))
    for n in range(30):
        cache.put(Filling(n), n)
    budget = iter(range(40))
    assert [cache.get(Filling(n)) for n in range(30)] == list(range(30))
    assert len(cache) == 30 + next(fillers)


# -- weights and eviction ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_limit_is_never_passed_and_no_pair_is_lost(policy: str) -> None:
    rng = random.Random(5)
    cache = CacheMap(10_000, policy=policy)
    held: dict[int, tuple[object, int]] = {}
    for _ in range(20_000):
        key, weight, value = rng.randrange(400), rng.choice([0, 1, 30, 30, 900, 10_000]), object()
        if rng.random() < 0.5 and cache.get(key) is not None:
            continue
        before = held.get(key)
        held[key] = (value, weight)
        out = cache.put(key, value, weight)
        if before:
            assert out[0] == (key, before[0])
            out = out[1:]
        for gone, old in out:
            assert held.pop(gone)[0] is old
        assert cache.weight == sum(weight for _, weight in held.values()) <= 10_000
    assert dict(cache.items()) == {key: value for key, (value, _) in held.items()}


def test_resize_evicts_to_the_new_limit_and_gives_memory_back() -> None:
    cache = CacheMap(100_000)
    for key in range(100_000):
        cache.put(key, key)
    large = sys.getsizeof(cache)
    gone = cache.resize(1000)
    assert len(gone) == 99_000 == cache.evictions
    assert {key for key, _ in gone} | set(cache.keys()) == set(range(100_000))
    assert sys.getsizeof(cache) < large // 50
    assert all(cache.get(key) == value == key for key, value in cache.items())
    cache.resize(2000)
    for key in range(-1000, 0):
        assert cache.put(key, key) == []
    assert len(cache) == 2000


def test_clear_gives_all_memory_back() -> None:
    cache = CacheMap(10_000)
    empty = sys.getsizeof(cache)
    for key in range(10_000):
        cache.put(key, key)
    cache.clear()
    assert (len(cache), cache.weight, sys.getsizeof(cache)) == (0, 0, empty)
    assert cache.put("again", 1) == []


@pytest.mark.parametrize("expiring", [False, True])
def test_the_overhead_of_an_entry_is_what_it_says(expiring: bool) -> None:
    cache = CacheMap(10**6)
    empty = sys.getsizeof(cache)
    for key in range(20_000):
        cache.put(key, key, fresh_ns=SECOND if expiring else 0)
        if key >= 1000 and key % 97 == 0:
            assert (sys.getsizeof(cache) - empty) / (key + 1) <= cache.entry_overhead
    assert cache.entry_overhead <= (120 if expiring else 96)


def test_a_known_key_goes_past_probation() -> None:
    """A scan of new keys takes the places of those on probation, not of those that were put as wanted."""
    cache = CacheMap(100)
    for key in range(100):
        cache.put(("scan", key), 0)
    for key in range(80):
        cache.put(("wanted", key), 0, probation=False)
    for key in range(1000):
        cache.put(("another scan", key), 0)
    assert all(("wanted", key) in cache for key in range(80))


# -- the policy ----------------------------------------------------------------------------------


def hit_ratio(trace: list[int], size: int, policy: str) -> float:
    cache = CacheMap(size, policy=policy)
    for key in trace:
        if cache.get(key) is None:
            cache.put(key, key)
    return cache.hits / len(trace)


def lru_hit_ratio(trace: list[int], size: int) -> float:
    entries: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in entries:
            hits += 1
            entries.move_to_end(key)
        else:
            entries[key] = None
            if len(entries) > size:
                entries.popitem(last=False)
    return hits / len(trace)


def zipf(rng: random.Random, universe: int, accesses: int) -> list[int]:
    cumulative = list(itertools.accumulate(1 / (rank + 1) ** 0.9 for rank in range(universe)))
    return rng.choices(range(universe), cum_weights=cumulative, k=accesses)


def shuffled_epochs(rng: random.Random, items: int, epochs: int) -> Iterator[int]:
    for _ in range(epochs):
        yield from rng.sample(range(items), items)


def with_scans(popular: list[int]) -> Iterator[int]:
    cold = itertools.count(10**9)
    for n, key in enumerate(popular):
        yield key
        if n % 2000 == 1999:
            yield from itertools.islice(cold, 1500)


def twice(accesses: int) -> Iterator[int]:
    for n in range(accesses):
        yield n
        if n >= 400:
            yield n - 400


def test_lru_is_lru() -> None:
    trace = zipf(random.Random(1), 3000, 20_000)
    assert hit_ratio(trace, 300, "lru") == lru_hit_ratio(trace, 300)


TRACES: dict[str, tuple[list[int], float]] = {
    # accesses, and by how much the default policy beats LRU with 1000 entries, at least
    "zipf": (zipf(random.Random(1), 10_000, 40_000), 0.06),
    "zipf and scans": (list(with_scans(zipf(random.Random(1), 10_000, 30_000))), 0.08),
    "a loop of 1.05 times the map": ([n % 1050 for n in range(20_000)], 0.75),
    "a loop of twice the map": ([n % 2000 for n in range(30_000)], 0.38),
    "a loop of eight times the map": ([n % 8000 for n in range(40_000)], 0.08),
    "shuffled epochs": (list(shuffled_epochs(random.Random(1), 3000, 15)), 0.12),
    "each key twice": (list(twice(20_000)), -0.03),
}


@pytest.mark.parametrize("name", TRACES)
def test_the_default_policy_is_better_than_recency(name: str) -> None:
    trace, margin = TRACES[name]
    assert hit_ratio(trace, 1000, "s3fifo") >= lru_hit_ratio(trace, 1000) + margin


# -- time ----------------------------------------------------------------------------------------


def test_the_systems_clock_makes_entries_stale_and_dead() -> None:
    cache = CacheMap(10)
    cache.put("short", 1, fresh_ns=1, keep_ns=2)
    cache.put("stale", 2, 3, fresh_ns=1)
    cache.put("long", 3, fresh_ns=3600 * SECOND, keep_ns=7200 * SECOND)
    cache.put("ever", 4)
    time.sleep(0.001)
    assert [cache.get(key) for key in ("short", "stale", "long", "ever")] == [None, None, 3, 4]
    assert cache.entry("ever") == (4, 1, 0, FOREVER, FOREVER)
    value, weight, age, fresh, keep = cache.entry("stale")
    assert (value, weight, keep) == (2, 3, FOREVER)
    assert 0 < age == 1 - fresh < 60 * SECOND
    value, weight, age, fresh, keep = cache.entry("long")
    assert age + fresh == 3600 * SECOND
    assert age + keep == 7200 * SECOND
    assert len(cache) == 4
    assert cache.entry("short", "dead") == "dead"
    assert (len(cache), cache.expirations) == (3, 1)


def test_a_clock_is_read_for_entries_that_expire_only() -> None:
    readings: list[int] = []

    def clock() -> int:
        readings.append(1)
        return len(readings)

    cache = CacheMap(10, clock=clock)
    cache.put("ever", 1)
    assert (cache.get("ever"), cache.peek("ever"), cache.entry("ever")[0], cache.pop("ever")) == (1, 1, 1, 1)
    assert cache.expire() == []
    assert not readings
    cache.put("once", 1, fresh_ns=100)
    assert len(readings) == 1


@pytest.mark.parametrize("clock", [None, lambda: 0, lambda: 1000])
def test_an_entry_can_be_stale_from_the_start(clock: Callable[[], int] | None) -> None:
    cache = CacheMap(10, clock=clock)
    cache.put("key", 1, fresh_ns=-1)
    assert cache.get("key") is cache.peek("key") is None
    assert cache.entry("key")[:2] == (1, 1)
    assert cache.entry("key")[3] < 0
    assert cache.put("key", 2, fresh_ns=-1, keep_ns=10**15) == [("key", 1)]
    assert cache.get("key") is None
    assert cache.entry("key")[0] == 2


def test_a_clock_that_raises_changes_nothing() -> None:
    def clock() -> int:
        if broken:
            raise OSError("no time")
        return 0

    broken = False
    cache = CacheMap(10, clock=clock)
    cache.put("key", 1, fresh_ns=5)
    broken = True
    calls: list[Callable[[], object]] = [
        lambda: cache.get("key"),
        lambda: cache.put("other", 1, fresh_ns=1),
        cache.expire,
    ]
    for call in calls:
        with pytest.raises(OSError, match="no time"):
            call()
    assert cache.items() == [("key", 1)]


def test_a_clock_that_jumps_makes_no_entry_live_longer_than_its_time() -> None:
    now = 1000 * SECOND
    cache = CacheMap(10, clock=lambda: now)
    cache.put("key", 1, fresh_ns=10 * SECOND, keep_ns=20 * SECOND)
    now -= 500 * SECOND
    assert cache.get("key") == 1
    assert cache.entry("key")[2] == 0
    now += 10**6 * SECOND
    assert cache.get("key") is None
    assert cache.expire() == [("key", 1)]
    now = -(2**62)
    cache.put("early", 1, fresh_ns=1)
    assert cache.get("early") == 1
    now = 2**63 - 2
    assert cache.get("early") is None
    cache.put("late", 1, fresh_ns=5, keep_ns=2**63 - 1)
    assert cache.get("late") == 1


def test_expire_does_a_bounded_part_each_time_and_all_of_it_in_turns() -> None:
    now = 0
    cache = CacheMap(10_000, clock=lambda: now)
    for key in range(10_000):
        cache.put(key, key, fresh_ns=5 if key % 2 else 0, keep_ns=5 if key % 2 else 0)
    assert cache.expire() == []
    now = 5
    dropped = []
    for _ in range(10):
        found = cache.expire()
        assert len(found) <= 1024
        dropped += found
    assert sorted(dropped) == [(key, key) for key in range(1, 10_000, 2)]
    assert cache.expirations == 5000
    assert cache.expire() == []


def test_a_put_renews_what_was_stale() -> None:
    now = 0
    cache = CacheMap(10, clock=lambda: now)
    cache.put("key", "old", fresh_ns=5)
    now = 7
    assert cache.put("key", "new", fresh_ns=5) == [("key", "old")]
    assert cache.get("key") == "new"
    assert cache.put("key", "newest") == [("key", "new")]
    now = 10**6
    assert cache.get("key") == "newest"


# -- ownership -----------------------------------------------------------------------------------


def test_finalizers_that_call_the_map_find_it_whole() -> None:
    cache = CacheMap(1000)
    deaths = []

    class Dying:
        def __del__(self) -> None:
            deaths.append((len(cache), len(cache.keys())))
            cache.put("last words", 1)

    for key in range(50):
        cache.put(key, Dying())
    cache.clear()
    assert len(deaths) == 50
    assert all(counted == listed for counted, listed in deaths)
    assert cache.keys() == ["last words"]
    cache.put("dying", Dying())
    cache.pop("dying")
    assert len(deaths) == 51
    cache.put("replaced", Dying())
    cache.put("replaced", 0)
    assert len(deaths) == 52
    cache.put("evicted", Dying(), 990)
    cache.resize(20)
    assert len(deaths) == 53


@pytest.mark.parametrize("policy", POLICIES)
def test_cycles_through_keys_and_values_are_collected(policy: str) -> None:
    def cycle() -> list[weakref.ref[Value]]:
        cache = CacheMap(10, policy=policy)
        value, key = Value(), Value()
        value.map = key.map = cache  # type: ignore[attr-defined]
        cache.put("a", value)
        cache.put(key, 1)
        cache.put("b", [cache])
        return [weakref.ref(value), weakref.ref(key)]

    watched = cycle()
    gc.collect()
    assert [watch() for watch in watched] == [None, None]


def test_a_map_that_dies_in_a_cycle_can_still_be_called_by_what_dies_with_it() -> None:
    found = []

    class Calling:
        def __init__(self, cache: CacheMap) -> None:
            self.cache = cache

        def __del__(self) -> None:
            found.append(self.cache.get("key") is self)

    cache = CacheMap(10)
    cache.put("key", Calling(cache))
    del cache
    gc.collect()
    assert found == [True]


def test_no_reference_is_kept_of_what_left() -> None:
    cache = CacheMap(10)
    values = [Value() for _ in range(40)]
    watched = [weakref.ref(value) for value in values]
    for key, value in enumerate(values):
        cache.put(key, value)
        cache.get(key)
        cache.entry(key)
        cache.items()
    kept = {key for key, _ in cache.items()}
    del values, value
    assert {key for key, watch in enumerate(watched) if watch()} == kept
    cache.pop(min(kept))
    cache.resize(3)
    assert len([watch for watch in watched if watch()]) == len(cache) <= 3
    del cache
    assert not [watch for watch in watched if watch()]


@pytest.mark.stress
@pytest.mark.parametrize("policy", POLICIES)
def test_threads_cannot_break_it(policy: str) -> None:
    """Keys with Python hashes and comparisons, so that threads change in the middle of calls."""

    class Slow:
        def __init__(self, n: int) -> None:
            self.n = n

        def __hash__(self) -> int:
            return self.n % 7

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Slow) and self.n == other.n

    cache = CacheMap(60, policy=policy)
    wrong: list[object] = []
    ends = time.monotonic() + 0.7

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while time.monotonic() < ends:
                n = rng.randrange(40)
                key: Any = Slow(n) if rng.random() < 0.5 else n + 100
                found = cache.get(key)
                if found is None:
                    cache.put(key, key, rng.randrange(1, 5), fresh_ns=rng.choice([0, 0, 1000, SECOND]))
                elif found != key:
                    wrong.append((key, found))
                if rng.random() < 0.02:
                    rng.choice([partial(cache.pop, key), cache.expire, cache.items, partial(cache.resize, 30 + n)])()
                if cache.weight > 70:
                    wrong.append(cache.weight)
        except Exception as error:  # noqa: BLE001 (reported by the test)
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    found = cache.items()
    assert len({key.n if isinstance(key, Slow) else key for key, _ in found}) == len(found) == len(cache)
