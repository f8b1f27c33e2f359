"""Alone or with its frame, and how far ahead: the two rules, as arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazystore.cache import admission
from lazystore.cache.admission import RentOrBuy, Streams

PART = (3, 7)


def test_a_frame_is_bought_once_rent_has_reached_its_price() -> None:
    rule = RentOrBuy(frame_bytes=1000, request_bytes=100)
    for _ in range(9):
        assert not rule.should_buy(PART)
        rule.rent(PART, 20)
    assert not rule.should_buy(PART)  # 9 * 120 of 1100
    rule.rent(PART, 20)
    assert rule.should_buy(PART)
    assert not rule.should_buy((3, 8))
    rule.bought(PART)
    assert not rule.should_buy(PART)


def test_an_item_as_long_as_the_frame_buys_it_at_once() -> None:
    rule = RentOrBuy(frame_bytes=1000, request_bytes=100)
    rule.rent(PART, 1000)
    assert rule.should_buy(PART)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.lists(st.integers(0, 10**5), max_size=50))
def test_rent_never_exceeds_twice_the_price(frame: int, request: int, items: list[int]) -> None:
    rule, paid = RentOrBuy(frame, request), 0
    for item in items:
        if rule.should_buy(PART):
            break
        rule.rent(PART, min(item, frame))
        paid += min(item, frame) + request
    assert paid <= 2 * (frame + request)


def test_what_is_remembered_is_bounded() -> None:
    rule = RentOrBuy(frame_bytes=1000, request_bytes=600)
    rule.rent(PART, 0)
    for k in range(3 * admission.MAX_TRACKED):
        rule.rent((9, k), 0)
    assert len(rule._paid) == admission.MAX_TRACKED
    rule.rent(PART, 0)  # forgotten: it starts over
    assert not rule.should_buy(PART)
    streams = Streams(8)
    for k in range(3 * admission.MAX_TRACKED):
        streams.expect((9, k), 1)
    assert len(streams._expected) <= admission.MAX_TRACKED


def test_a_forward_reader_gets_twice_the_window_each_time() -> None:
    streams, at, windows = Streams(8), 0, []
    for _ in range(6):
        window = streams.window((0, at))
        windows.append(window)
        at += window
        streams.expect((0, at), window)
    assert windows == [1, 2, 4, 8, 8, 8]


def test_a_reader_that_jumps_starts_small_and_others_keep_their_pace() -> None:
    streams = Streams(8)
    streams.expect((0, 5), 4)
    assert not streams.follows((1, 0))
    assert streams.window((1, 0)) == 1
    assert streams.follows((0, 5))
    assert streams.window((0, 5)) == 8
    assert not streams.follows((0, 5))


def test_a_window_has_at_least_one_frame() -> None:
    streams = Streams(0)
    assert streams.window(PART) == 1
    streams.expect(PART, 1)
    assert streams.window(PART) == 1
