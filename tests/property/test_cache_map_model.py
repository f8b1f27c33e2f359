"""``CacheMap`` against its model, and with keys, values and clocks that call it back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from models.cache_map import CacheMapModel

from lazystore._core.cache_map import CacheMap

MAX_WEIGHT = 60
few_keys = st.one_of(
    st.integers(0, 30), st.sampled_from([1.0, True, "1", "é", None, (1, 2), -1, -2, 2**61 - 1, 2**80, 1.5])
)
weights = st.one_of(st.integers(0, 4), st.integers(0, MAX_WEIGHT // 2))
times = st.sampled_from([(0, 0), (0, 0), (5, 0), (5, 5), (5, 12), (20, 40), (1, 2**63 - 1)])


class CacheMapMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(["s3fifo", "lru"]))
    def make(self, policy: str) -> None:
        self.now = 100
        self.map = CacheMap(MAX_WEIGHT, policy=policy, clock=lambda: self.now)
        self.model = CacheMapModel(MAX_WEIGHT, policy, lambda: self.now)
        self.puts = 0

    @rule(key=few_keys, weight=weights, times=times, probation=st.booleans())
    def put(self, key: Any, weight: int, times: tuple[int, int], probation: bool) -> None:
        self.puts += 1
        weight = min(weight, self.map.max_weight)
        found = self.map.put(key, self.puts, weight, fresh_ns=times[0], keep_ns=times[1], probation=probation)
        assert found == self.model.put(key, self.puts, weight, *times, probation)

    @rule(keys=st.lists(few_keys, max_size=40))
    def use(self, keys: list[Any]) -> None:
        """As a cache is used: what is not there is put."""
        for key in keys:
            found = self.map.get(key)
            assert found == self.model.get(key)
            if found is None:
                self.put(key, 3, (0, 0), True)

    @rule(first=st.integers(0, 1000), count=st.integers(1, 200))
    def put_many(self, first: int, count: int) -> None:
        """Past the first array: it grows."""
        for key in range(first, first + count):
            assert self.map.put(key, key, 0) == self.model.put(key, key, 0)

    @rule(key=few_keys)
    def look(self, key: Any) -> None:
        assert self.map.peek(key, "no") == self.model.peek(key, "no")
        assert (key in self.map) == (self.model.fresh(key) is not None)
        assert self.map.entry(key, "no") == self.model.entry(key, "no")

    @rule(key=few_keys)
    def pop(self, key: Any) -> None:
        assert self.map.pop(key, "no") == self.model.pop(key, "no")

    @rule(nanoseconds=st.integers(-3, 30))
    def wait(self, nanoseconds: int) -> None:
        self.now += nanoseconds

    @rule()
    def expire(self) -> None:
        assert len(self.map) < 1024
        assert set(self.map.expire()) == self.model.expire()

    @rule(max_weight=st.integers(1, 2 * MAX_WEIGHT))
    def resize(self, max_weight: int) -> None:
        assert self.map.resize(max_weight) == self.model.resize(max_weight)

    @rule()
    def clear(self) -> None:
        self.map.clear()
        self.model.clear()

    @invariant()
    def agrees(self) -> None:
        assert self.map.items() == self.model.items()
        assert self.map.keys() == [key for key, _ in self.model.items()]
        assert len(self.map) == len(self.model)
        assert self.map.weight == self.model.weight <= self.map.max_weight
        assert (self.map.hits, self.map.misses) == (self.model.hits, self.model.misses)
        assert (self.map.evictions, self.map.expirations) == (self.model.evictions, self.model.expirations)


TestCacheMap = CacheMapMachine.TestCase
TestCacheMap.settings = settings(stateful_step_count=40)


@settings(max_examples=20)
@given(
    st.sampled_from(["s3fifo", "lru"]),
    st.integers(20, 300),
    st.lists(st.tuples(st.integers(0, 600), st.integers(1, 400)), min_size=1, max_size=12),
)
def test_victims_are_the_models_on_scans_and_loops(policy: str, room: int, stretches: list[tuple[int, int]]) -> None:
    real, model = CacheMap(room, policy=policy), CacheMapModel(room, policy, lambda: 0)
    for first, length in stretches:
        for key in range(first, first + length):
            found = real.get(key)
            assert found == model.get(key)
            if found is None:
                assert real.put(key, str(key)) == model.put(key, str(key), 1)


# -- keys, values and clocks that call the map from inside it ------------------------------------

Hook = Callable[[], object]
Operation = tuple[str, int, int]
operations = st.tuples(
    st.sampled_from(["get", "put", "put", "ttl", "pop", "clear", "contains", "entry", "resize", "expire", "items"]),
    st.integers(0, 5),
    st.integers(1, 9),
)


class Caller:
    """A key whose comparisons, and whose end, may call the map; all of them collide."""

    hooks: list[Hook] = []  # noqa: RUF012 (shared on purpose: any comparison takes the next)

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        call_back()
        return self.name % 2

    def __eq__(self, other: object) -> bool:
        call_back()
        return isinstance(other, Caller) and self.name == other.name

    def __del__(self) -> None:
        call_back()


def call_back() -> None:
    if Caller.hooks:
        Caller.hooks.pop()()


def run(cache: CacheMap, operation: Operation) -> None:
    name, number, weight = operation
    key = Caller(number)
    calls: dict[str, Hook] = {
        "get": lambda: cache.get(key),
        "put": lambda: cache.put(key, (Caller(number), weight), weight),
        "ttl": lambda: cache.put(key, (Caller(number), weight), weight, fresh_ns=weight, keep_ns=2 * weight),
        "pop": lambda: cache.pop(key),
        "clear": cache.clear,
        "contains": lambda: key in cache,
        "entry": lambda: cache.entry(key),
        "resize": lambda: cache.resize(10 + weight),
        "expire": cache.expire,
        "items": cache.items,
    }
    calls[name]()


@pytest.mark.parametrize("policy", ["s3fifo", "lru"])
@given(script=st.lists(st.tuples(operations, st.lists(operations, max_size=3)), max_size=25))
def test_a_map_stays_whole_when_keys_values_and_clock_call_it(
    policy: str, script: list[tuple[Operation, list[Operation]]]
) -> None:
    now = 0

    def clock() -> int:
        nonlocal now
        now += 1
        call_back()
        return now

    cache = CacheMap(20, policy=policy, clock=clock)
    try:
        for operation, nested in script:
            Caller.hooks = [partial(run, cache, inner) for inner in nested]
            run(cache, operation)
            Caller.hooks = []
            found = cache.items()
            assert len({key.name for key, _ in found}) == len(found) == len(cache)
            assert cache.weight == sum(weight for _, (_, weight) in found) <= cache.max_weight
            assert cache.keys() == [key for key, _ in found]
            assert sys.getsizeof(cache) > 0
    finally:
        Caller.hooks = []
