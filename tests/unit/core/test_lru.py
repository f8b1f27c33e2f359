"""Recency lists and the LRU map: promises the models do not cover."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from lazystore._core.lru import LruMap, RecencyLists
from lazystore.errors import ConfigError


@pytest.mark.parametrize("arguments", [(-1, 1), (1, 0), (1, -3)])
def test_impossible_sizes_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        RecencyLists(*arguments)


def test_entries_and_queues_outside_are_index_errors() -> None:
    lists = RecencyLists(3, 2)
    for entry, queue in [(-1, 0), (3, 0), (0, -1), (0, 2)]:
        with pytest.raises(IndexError):
            lists.push_front(entry, queue)
        with pytest.raises(IndexError):
            lists.push_back(entry, queue)
    of_entries: list[Callable[[int], object]] = [lists.touch, lists.remove, lists.queue_of]
    of_queues: list[Callable[[int], object]] = [lists.order, lists.count, lists.weight]
    for refused in of_entries:
        with pytest.raises(IndexError):
            refused(3)
    for refused in of_queues:
        with pytest.raises(IndexError):
            refused(2)
    with pytest.raises(IndexError):
        RecencyLists(0).touch(0)


def test_candidate_needs_a_byte_for_every_entry() -> None:
    lists = RecencyLists(4)
    lists.push_front(3)
    with pytest.raises(ConfigError, match="4 are needed"):
        lists.candidate(0, b"\0" * 3)
    with pytest.raises(TypeError):
        lists.candidate(0, None)  # type: ignore[arg-type]
    assert lists.candidate(0, b"\0" * 4) == 3


@pytest.mark.parametrize("weight", [-1, 2**32])
def test_weights_beyond_32_bits_are_refused(weight: int) -> None:
    with pytest.raises(OverflowError):
        RecencyLists(1).push_front(0, 0, weight)
    with pytest.raises(ConfigError):
        LruMap(10).put("key", 1, weight)


def test_map_needs_room_for_something() -> None:
    with pytest.raises(ConfigError):
        LruMap(0)


def test_an_entry_too_heavy_comes_back_and_replaces_nothing_else() -> None:
    lru = LruMap(10)
    lru.put("small", 1, 4)
    assert lru.put("big", 2, 11) == [("big", 2)]
    assert lru.keys() == ["small"]
    assert lru.put("small", 3, 11) == [("small", 3)]
    assert len(lru) == 0


def test_thousands_of_keys_come_back_in_order() -> None:
    lru = LruMap(10_000)
    for key in range(10_000):
        assert lru.put(key, -key) == []
    assert [lru.get(key) for key in range(10_000)] == [-key for key in range(10_000)]
    assert lru.put("one more", 0) == [(0, 0)]
    assert lru.keys()[:2] == ["one more", 9_999]


def test_unhashable_keys_are_type_errors_and_change_nothing() -> None:
    lru = LruMap(10)
    lru.put(1, 1)
    key: Any = []
    calls: list[Callable[[], object]] = [
        lambda: lru.put(key, 1),
        lambda: lru.get(key),
        lambda: lru.pop(key),
        lambda: key in lru,
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert lru.keys() == [1]


def test_a_comparison_that_raises_leaves_the_map_as_it_was() -> None:
    class Angry:
        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    lru = LruMap(10)
    lru.put(7, "seven")
    for call in (lambda: lru.put(Angry(), 1), lambda: lru.get(Angry()), lambda: lru.pop(Angry())):
        with pytest.raises(ZeroDivisionError):
            call()
    assert lru.keys() == [7]
    assert lru.get(7) == "seven"


def test_a_key_that_clears_the_map_while_it_is_looked_up_finds_nothing() -> None:
    lru = LruMap(1000)

    class Clearing:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            lru.clear()
            return True

    lru.put(1, "one")
    assert lru.get(Clearing(), "nothing") == "nothing"
    lru.put(1, "one")
    lru.put(Clearing(), "two")
    assert len(lru) == len(lru.keys()) == 1


def test_values_that_use_the_map_as_they_die_find_it_whole() -> None:
    lru = LruMap(1000)
    deaths = []

    class Value:
        def __del__(self) -> None:
            deaths.append((len(lru), len(lru.keys())))
            lru.put("last words", 1)

    for key in range(300):
        lru.put(key, Value())
    lru.clear()
    assert len(deaths) == 300
    assert all(count == listed for count, listed in deaths)
    assert lru.keys() == ["last words"]
    lru.put("dying", Value())
    lru.pop("dying")
    assert len(deaths) == 301
    lru.put("replaced", Value())
    lru.put("replaced", 0)
    assert len(deaths) == 302


def test_cycles_through_a_map_are_collected() -> None:
    alive = []

    class Value:
        def __init__(self, lru: LruMap) -> None:
            self.lru = lru

        def __del__(self) -> None:
            alive.append(self.lru.get("key") is self)

    lru = LruMap(10)
    lru.put("key", Value(lru))
    del lru
    gc.collect()
    assert alive == [True]


@pytest.mark.parametrize("thing", [RecencyLists(2), LruMap(2)])
def test_pickling_and_copying_are_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(thing)
    with pytest.raises(TypeError):
        copy.copy(thing)


def test_repr_says_what_it_is() -> None:
    lru = LruMap(7)
    lru.put("a", 1, 3)
    assert repr(lru) == "<LruMap 1 keys, weight 3 of 7>"
    assert repr(RecencyLists(4, 2)) == "<RecencyLists 4 entries, 2 queues>"
