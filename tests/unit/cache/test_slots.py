"""A hard limit with two queues: demand first, in order; giving back twice, or what was never taken, harms nobody."""

from __future__ import annotations

import pytest

from lazystore.cache.single_flight import Flight
from lazystore.cache.slots import Slots
from lazystore.errors import ConfigError


def owners(count: int) -> list[Flight]:
    return [Flight(None, k) for k in range(count)]


def taking(slots: Slots, owner: Flight, gone: list[object], *, demand: bool = True, goes: bool = True) -> bool:
    def go() -> bool:
        gone.append(owner.key)
        return goes

    return slots.take(owner, go, demand=demand)


def test_no_more_than_the_limit_hold_and_demand_goes_first() -> None:
    slots, gone = Slots(2), list[object]()
    a, b, c, d, e = owners(5)
    assert taking(slots, a, gone) and taking(slots, b, gone, demand=False)
    assert not taking(slots, c, gone, demand=False)
    assert not taking(slots, d, gone)
    assert not taking(slots, e, gone)
    assert slots.held == 2 and not gone
    for owner in (a, b, d):
        slots.give(owner)
        assert slots.held == 2
    assert gone == [3, 4, 2]
    slots.give(e)
    slots.give(c)
    assert slots.held == 0


def test_giving_twice_or_what_is_not_held_or_leaving_the_queue_changes_nothing_else() -> None:
    slots, gone = Slots(1), list[object]()
    a, b, c = owners(3)
    slots.give(c)
    assert taking(slots, a, gone)
    assert not taking(slots, b, gone)
    slots.give(b)
    slots.give(a)
    slots.give(a)
    assert (slots.held, gone) == (0, [])
    assert taking(slots, c, gone)


def test_an_urged_owner_joins_the_demanded() -> None:
    slots, gone = Slots(1), list[object]()
    a, b, c = owners(3)
    taking(slots, a, gone)
    taking(slots, b, gone, demand=False)
    taking(slots, c, gone, demand=False)
    slots.urge(c)
    slots.urge(a)
    slots.give(a)
    assert gone == [2]


def test_who_is_excused_goes_without_one() -> None:
    slots, gone = Slots(1), list[object]()
    a, b, c = owners(3)
    taking(slots, a, gone)
    assert not taking(slots, b, gone)
    b.excused = True
    slots.excuse(b)
    assert gone == [1] and slots.holders() == [a]
    c.excused = True
    assert taking(slots, c, gone)
    slots.give(b)
    slots.give(c)
    assert slots.holders() == [a]


def test_a_slot_passes_by_all_that_cannot_go_any_more() -> None:
    slots, gone = Slots(1), list[object]()
    first, *dead, last = owners(3000)
    taking(slots, first, gone)
    for owner in dead:
        taking(slots, owner, gone, goes=False)
    taking(slots, last, gone)
    slots.give(first)
    assert gone == list(range(1, 3000)) and slots.holders() == [last]


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="concurrency is 0"):
        Slots(0)
