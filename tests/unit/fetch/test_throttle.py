"""Requests at once: as many as bring more bytes, half of them when the storage pushes back."""

from __future__ import annotations

import heapq

import pytest

from lazystore.fetch.throttle import (
    FEWEST,
    FEWEST_LANES,
    FIRST,
    HEDGE_FREE,
    HEDGE_SHARE,
    REFUSALS,
    SMALL_BYTES,
    HedgeAllowance,
    Throttle,
)

MIB = 1 << 20


class Link:
    """A model: every request waits ``latency`` seconds, then its body passes a shared pipe."""

    def __init__(self, latency: float, bandwidth: float, slots: int = 256) -> None:
        self.now = 0.0
        self.latency = latency
        self.bandwidth = bandwidth
        self.throttle = Throttle(slots, lambda: self.now)
        self._free = 0.0
        self._ends: list[float] = []

    def epoch(self, count: int, size: int = MIB) -> float:
        """Seconds for so many requests, as many at once as the throttle lets."""
        begun, sent, done, throttle = self.now, 0, 0, self.throttle
        while done < count:
            while sent < count and not throttle.full():
                throttle.entered(size)
                self._free = max(self._free, self.now + self.latency) + size / self.bandwidth
                heapq.heappush(self._ends, self._free)
                sent += 1
            if sent < count:
                throttle.wanted()
            self.now = heapq.heappop(self._ends)
            done += 1
            throttle.served(size)
            throttle.left(size)
        return self.now - begun


@pytest.mark.parametrize(("latency", "bandwidth"), [(0.02, 200e6), (0.1, 1e9), (0.001, 1e9), (0.2, 50e6)])
def test_an_epoch_reaches_the_speed_of_the_link_within_a_few_round_trips(latency: float, bandwidth: float) -> None:
    link = Link(latency, bandwidth)
    count = 2000
    bare = latency + count * MIB / bandwidth
    assert link.epoch(count) < bare + 6 * latency


def test_it_stops_where_more_requests_bring_nothing() -> None:
    link = Link(0.02, 200e6)
    link.epoch(2000)
    # Four under way fill this link.
    assert link.throttle.limit <= 4 * FIRST
    before = link.throttle.limit
    link.epoch(2000)
    assert link.throttle.limit <= 2 * before


def test_it_never_exceeds_its_slots() -> None:
    link = Link(1.0, 1e12, slots=40)
    link.epoch(2000)
    assert link.throttle.limit == 40
    assert Throttle(3, lambda: 0.0).limit == 3


def test_who_wants_no_more_does_not_make_it_climb() -> None:
    throttle = Throttle(256, lambda: 0.0)
    for _ in range(1000):
        throttle.entered(MIB)
        throttle.served(MIB)
        throttle.left(MIB)
    assert throttle.limit == FIRST


def test_small_requests_are_not_counted() -> None:
    throttle = Throttle(256, lambda: 0.0)
    for _ in range(200):
        throttle.entered(SMALL_BYTES - 1)
    assert not throttle.full()
    assert throttle.lanes == 256


def test_single_refusals_are_bad_luck() -> None:
    throttle = Throttle(256, lambda: 0.0)
    for _ in range(100):
        throttle.refused()
        for _ in range(7):
            throttle.served(MIB)
    assert throttle.backoffs == 0


def test_waits_need_not_grow_where_most_requests_fare_well() -> None:
    throttle = Throttle(256, lambda: 0.0)
    assert not throttle.pressed()
    throttle.refused()
    assert throttle.pressed()
    for _ in range(10):
        throttle.served(MIB)
    assert not throttle.pressed()
    for _ in range(20):
        throttle.refused()
    assert throttle.backoffs > 0
    for _ in range(20):
        throttle.served(MIB)
    assert throttle.pressed()
    for _ in range(100):
        throttle.served(MIB)
    assert not throttle.pressed()


def test_a_push_back_halves_both_bounds_down_to_the_fewest() -> None:
    throttle = Throttle(256, lambda: 0.0)
    for _ in range(REFUSALS):
        assert throttle.backoffs == 0
        throttle.refused()
    assert (throttle.limit, throttle.lanes, throttle.backoffs) == (FIRST // 2, 128, 1)
    for _ in range(100 * REFUSALS):
        throttle.refused()
    assert (throttle.limit, throttle.lanes) == (FEWEST, FEWEST_LANES)
    tiny = Throttle(2, lambda: 0.0)
    for _ in range(100 * REFUSALS):
        tiny.refused()
    assert (tiny.limit, tiny.lanes) == (2, 2)


def test_it_recovers_slowly() -> None:
    link = Link(0.02, 200e6)
    throttle = link.throttle
    for _ in range(3 * REFUSALS):
        throttle.refused()
    low = throttle.limit
    link.epoch(2 * low)
    assert throttle.limit == low + 1
    link.epoch(5000)
    assert throttle.limit > 2 * FIRST
    assert throttle.lanes == 256


def test_a_pause_is_not_taken_for_slowness() -> None:
    link = Link(0.1, 1e9)
    link.epoch(FIRST)
    link.now += 1000.0
    link.epoch(1000)
    assert link.throttle.limit > 2 * FIRST


def test_only_few_requests_are_doubled() -> None:
    allowance = HedgeAllowance()
    doubled = requests = 0
    for _ in range(10_000):
        allowance.sent(MIB)
        requests += 1
        if allowance.allows(MIB):
            allowance.spend(MIB)
            doubled += 1
        assert doubled <= HEDGE_FREE + HEDGE_SHARE * requests
    assert doubled >= HEDGE_SHARE * requests


def test_few_bytes_are_doubled_though_most_requests_are_small() -> None:
    allowance = HedgeAllowance()
    sent = extra = 0
    for k in range(10_000):
        weight = 8 * MIB if k % 100 == 0 else 1000
        allowance.sent(weight)
        sent += weight
        if weight > MIB and allowance.allows(weight):
            allowance.spend(weight)
            extra += weight
    assert 0 < extra <= HEDGE_FREE * 8 * MIB + HEDGE_SHARE * sent
