"""``RecencyLists`` and ``LruMap`` against their models, and ``LruMap`` with keys that call it back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from models.lru_map import LruMapModel
from models.recency_lists import RecencyListsModel

from lazystore._core.lru import LruMap, RecencyLists

ENTRIES, QUEUES = 6, 3
entries = st.integers(0, ENTRIES - 1)
queues = st.integers(0, QUEUES - 1)
weights = st.integers(0, 2**32 - 1)


class RecencyListsMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.lists = RecencyLists(ENTRIES, QUEUES)
        self.model = RecencyListsModel(ENTRIES, QUEUES)

    @rule(entry=entries, queue=queues, weight=weights, front=st.booleans())
    def push(self, entry: int, queue: int, weight: int, front: bool) -> None:
        if front:
            self.lists.push_front(entry, queue, weight)
            self.model.push_front(entry, queue, weight)
        else:
            self.lists.push_back(entry, queue, weight)
            self.model.push_back(entry, queue, weight)

    @rule(entry=entries)
    def touch(self, entry: int) -> None:
        self.lists.touch(entry)
        self.model.touch(entry)

    @rule(entry=entries)
    def remove(self, entry: int) -> None:
        self.lists.remove(entry)
        self.model.remove(entry)

    @rule(queue=queues, pinned=st.lists(st.integers(0, 2), min_size=ENTRIES, max_size=ENTRIES + 2).map(bytes))
    def candidate(self, queue: int, pinned: bytes) -> None:
        assert self.lists.candidate(queue, pinned) == self.model.candidate(queue, pinned)

    @invariant()
    def agrees(self) -> None:
        for queue in range(QUEUES):
            assert self.lists.order(queue) == self.model.order(queue)
            assert self.lists.count(queue) == self.model.count(queue)
            assert self.lists.weight(queue) == self.model.weight(queue)
        for entry in range(ENTRIES):
            assert self.lists.queue_of(entry) == self.model.queue_of(entry)


MAX_WEIGHT = 40
keys = st.one_of(st.integers(0, 12), st.sampled_from([1.0, True, "1", None, (1, 2), -1, -2, 2**61 - 1]))


class LruMapMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.map = LruMap(MAX_WEIGHT)
        self.model = LruMapModel(MAX_WEIGHT)
        self.puts = 0

    @rule(key=keys, weight=st.one_of(st.integers(0, 3), st.integers(0, MAX_WEIGHT + 2)))
    def put(self, key: Any, weight: int) -> None:
        self.puts += 1
        assert self.map.put(key, self.puts, weight) == self.model.put(key, self.puts, weight)

    @rule(first=st.integers(0, 500), count=st.integers(1, 200))
    def put_many(self, first: int, count: int) -> None:
        """Past the slots of the first table: it grows."""
        for key in range(first, first + count):
            assert self.map.put(key, key, 0) == self.model.put(key, key, 0)

    @rule(key=keys)
    def get(self, key: Any) -> None:
        assert self.map.get(key) == self.model.get(key)

    @rule(key=keys)
    def pop(self, key: Any) -> None:
        if key in self.model.entries:
            assert self.map.pop(key) == self.model.pop(key)
        else:
            with pytest.raises(KeyError):
                self.map.pop(key)

    @rule()
    def clear(self) -> None:
        self.map.clear()
        self.model.clear()

    @invariant()
    def agrees(self) -> None:
        assert self.map.keys() == self.model.keys()
        assert len(self.map) == len(self.model.entries)
        assert self.map.weight == self.model.weight <= MAX_WEIGHT
        assert (self.map.hits, self.map.misses) == (self.model.hits, self.model.misses)
        assert self.map.evictions == self.model.evictions
        assert all(key in self.map for key in self.model.entries)


TestRecencyLists = RecencyListsMachine.TestCase
TestLruMap = LruMapMachine.TestCase
TestRecencyLists.settings = TestLruMap.settings = settings(stateful_step_count=30)

# -- keys and values that call the map from inside it ----------------------------------------

Hook = Callable[[], object]
names = st.integers(0, 4)
operations = st.tuples(st.sampled_from(["get", "put", "pop", "clear", "contains"]), names, st.integers(0, 9))


class Caller:
    """A key whose comparisons, and whose end, may call the map; all of them collide."""

    hooks: list[Hook] = []  # noqa: RUF012 (shared on purpose: any comparison takes the next)

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return self.name % 2

    def __eq__(self, other: object) -> bool:
        self.call_back()
        return isinstance(other, Caller) and self.name == other.name

    def __del__(self) -> None:
        self.call_back()

    def call_back(self) -> None:
        if self.hooks:
            self.hooks.pop()()


def run(lru: LruMap, operation: tuple[str, int, int]) -> None:
    name, number, weight = operation
    key = Caller(number)
    if name == "get":
        lru.get(key)
    elif name == "put":
        lru.put(key, (Caller(number), weight), weight)
    elif name == "pop":
        if key in lru:
            with contextlib.suppress(KeyError):  # gone again meanwhile, by another hook
                lru.pop(key)
    elif name == "clear":
        lru.clear()
    else:
        assert isinstance(key in lru, bool)


@given(st.lists(st.tuples(operations, st.lists(operations, max_size=3)), max_size=25))
def test_a_map_stays_whole_when_its_keys_and_values_call_it(
    script: list[tuple[tuple[str, int, int], list[tuple[str, int, int]]]],
) -> None:
    lru = LruMap(20)
    try:
        for operation, nested in script:
            Caller.hooks = [partial(run, lru, inner) for inner in nested]
            run(lru, operation)
            Caller.hooks = []
            found = lru.keys()
            assert len({key.name for key in found}) == len(found) == len(lru)
            held = [lru.get(key) for key in reversed(found)]
            assert lru.weight == sum(weight for _, weight in held) <= 20
            assert lru.keys() == found
    finally:
        Caller.hooks = []
