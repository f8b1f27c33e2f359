"""Items pulled from a source: all of them, in order, no sooner than asked for, whatever the source does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_workers import VirtualClock

from lazystore.parallel.scheduling.supply import STRETCH_ITEMS, Supply


class Source:
    """Numbers; each takes a while, some raise."""

    def __init__(
        self, count: int, clock: VirtualClock, seconds: float = 0.0, raising: dict[int, BaseException] | None = None
    ) -> None:
        self.pulled = 0
        self._count = count
        self._clock = clock
        self._seconds = seconds
        self._raising = raising or {}

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self._clock.advance(self._seconds)
        error = self._raising.pop(self.pulled, None)
        if error is not None:
            raise error
        if self.pulled == self._count:
            raise StopIteration
        self.pulled += 1
        return self.pulled - 1


def supplied(source: Source, clock: VirtualClock, first: int = 0) -> Supply:
    return Supply(source, first=first, clock=clock)


@given(
    count=st.integers(0, 400),
    seconds=st.sampled_from([0.0, 1e-6, 1e-3]),
    asked=st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.002, 10.0])), max_size=12),
    first=st.integers(0, 1 << 40),
)
def test_items_come_in_order_and_never_more_than_asked_for(
    count: int, seconds: float, asked: list[tuple[int, float]], first: int
) -> None:
    clock = VirtualClock()
    source = Source(count, clock, seconds)
    supply = supplied(source, clock, first)
    found: list[int] = []
    for most, patience_s in asked:
        items = supply.take(most, patience_s)
        assert len(items) <= most
        assert items or supply.ended
        found += items
        assert source.pulled == len(found)
        assert supply.index == first + len(found)
    assert found == list(range(len(found)))
    assert supply.ended <= (len(found) == count)
    assert supply.seconds <= clock.now + 1e-9


def test_a_slow_source_is_not_waited_for_longer_than_patience_allows() -> None:
    clock = VirtualClock()
    supply = supplied(Source(100, clock, 0.01), clock)
    assert supply.take(50, 0.025) == [0, 1, 2]
    assert supply.item_s == pytest.approx(0.01)
    began = clock.now
    assert supply.take(50, 0.0) == [3]
    assert clock.now - began == pytest.approx(0.01)


def test_a_source_that_becomes_slow_is_noticed_within_a_stretch() -> None:
    clock = VirtualClock()

    def stalls() -> Iterator[int]:
        for number in range(100_000):
            clock.advance(1e-8 if number < 20_000 else 0.001)
            yield number

    supply = Supply(stalls(), clock=clock)
    assert len(supply.take(20_000, 1.0)) == 20_000
    began = clock.now
    items = supply.take(50_000, 0.002)
    assert len(items) <= STRETCH_ITEMS
    assert clock.now - began < 2 * STRETCH_ITEMS * 0.001
    assert len(supply.take(50_000, 0.002)) <= STRETCH_ITEMS // 2


def test_an_error_of_the_source_waits_until_the_items_before_it_are_given() -> None:
    clock = VirtualClock()
    supply = supplied(Source(10, clock, raising={4: OSError("gone")}), clock)
    assert supply.take(8, 10.0) == [0, 1, 2, 3]
    assert supply.ended
    assert isinstance(supply.error, OSError)
    assert supply.take(8, 10.0) == []
    assert supply.index == 4


@given(at=st.integers(0, 30), most=st.integers(1, 20), smaller=st.integers(1, 20))
def test_nothing_is_lost_when_pulling_is_interrupted(at: int, most: int, smaller: int) -> None:
    clock = VirtualClock()
    supply = supplied(Source(30, clock, raising={at: KeyboardInterrupt()}), clock)
    found: list[int] = []
    interrupted = 0
    while not supply.ended or supply.index < 30:
        try:
            found += supply.take(smaller if interrupted else most, 10.0)
        except KeyboardInterrupt:
            interrupted += 1
            assert supply.index == len(found)
    assert found == list(range(30))
    assert interrupted == 1
    assert supply.error is None


def test_other_items_may_follow_under_the_same_numbers() -> None:
    clock = VirtualClock()
    supply = supplied(Source(30, clock), clock)
    supply.take(7, 1.0)
    supply.replace(iter("abc"))
    assert (supply.index, supply.take(9, 1.0), supply.index) == (7, ["a", "b", "c"], 10)


@pytest.mark.parametrize("broken", [5, None])
def test_what_cannot_be_iterated_is_told_at_once(broken: object) -> None:
    with pytest.raises(TypeError):
        Supply(broken)  # type: ignore[arg-type]
