"""The order of datasets that are interleaved by weight: against sorting by time, and by what it promises."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.hub.interleave import Interleave, Walk, shares

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


def walked(walk: Walk, most: int = 10**6) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while walk.part is not None and len(found) < most:
        part = walk.part
        found.append((part, walk.take()))
    return found


@st.composite
def orders(draw: st.DrawFn, stop: str | None = None) -> Interleave:
    weights = draw(WEIGHTS)
    lengths = draw(st.lists(st.integers(0, 40), min_size=len(weights), max_size=len(weights)))
    kind = stop or draw(st.sampled_from(["all", "first"]))
    return Interleave(shares(weights), draw(st.integers(0, 2**64 - 1)), kind, lengths)


@given(orders("all"))
def test_every_sample_comes_once_and_each_dataset_in_its_own_order(order: Interleave) -> None:
    found = walked(order.walk())
    for part, length in enumerate(order.lengths):
        assert [number for of, number in found if of == part] == list(range(length or 0))
    assert len(found) == order.length


@given(orders("all"))
def test_the_order_is_that_of_the_times_samples_are_due(order: Interleave) -> None:
    lengths = [length or 0 for length in order.lengths]
    plain = sorted(
        ((order.time(part, number), part, number) for part, length in enumerate(lengths) for number in range(length))
    )
    assert walked(order.walk()) == [(part, number) for _, part, number in plain]


@given(orders())
def test_a_walk_from_any_position_is_the_rest_of_the_whole_walk(order: Interleave) -> None:
    whole = walked(order.walk())
    assert len(whole) == order.length
    for position in range(0, len(whole) + 1, max(1, len(whole) // 12)):
        walk = order.walk(position)
        assert walk.position == position
        assert walked(walk) == whole[position:]
    assert walked(order.walk(len(whole) + 7)) == []


@given(orders())
def test_lengths_found_on_the_way_give_the_same_order_as_lengths_known_before(order: Interleave) -> None:
    unknown = Interleave(order.parts, 0, order.stop)
    unknown._keys = order._keys
    found: list[tuple[int, int]] = []
    walk = unknown.walk()
    while walk.part is not None:
        if walk.counts[walk.part] == order.lengths[walk.part]:
            unknown.lengths[walk.part] = order.lengths[walk.part]
            walk.ended()
        else:
            part = walk.part
            found.append((part, walk.take()))
            again = unknown.walk(len(found) - 1)
            assert (again.part, again.take()) == found[-1]
    assert found == walked(order.walk())


@given(orders("first"))
def test_with_stop_first_it_ends_when_a_dataset_that_has_ended_is_due(order: Interleave) -> None:
    found = walked(order.walk())
    endless = Interleave(order.parts, 0)
    endless._keys = order._keys
    on = walked(endless.walk(), len(found) + 1)
    assert on[:-1] == found
    part, number = on[-1]
    assert number == order.lengths[part]


@given(WEIGHTS, st.integers(0, 2**64 - 1), st.integers(0, 10**12))
def test_each_dataset_has_its_share_at_any_position(weights: list[float], seed: int, position: int) -> None:
    parts = shares(weights)
    walk = Interleave(parts, seed).walk(position)
    assert walk.position == position
    for part, count in zip(parts, walk.counts, strict=True):
        assert abs(count - position * part / sum(parts)) <= len(parts) + 1


def test_the_order_of_a_seed_is_the_same_for_ever() -> None:
    order = Interleave(shares([3, 1, 1]), 42, lengths=[12, 12, 4])
    assert "".join(str(part) for part, _ in walked(order.walk())) == "2010002100002101200011111111"


def test_another_seed_is_another_order() -> None:
    drawn = {tuple(walked(Interleave(shares([1, 1]), seed).walk(), 64)) for seed in range(20)}
    assert len(drawn) == 20


def test_neighbours_differ_even_at_equal_weights() -> None:
    """Jittered, not A B A B: who is next cannot be told from who was last."""
    found = [part for part, _ in walked(Interleave(shares([1, 1]), 1).walk(), 4000)]
    changes = Counter(a != b for a, b in itertools.pairwise(found))
    assert 0.5 < changes[True] / len(found) < 0.85


def test_positions_far_out_cost_no_walk_to_them() -> None:
    order = Interleave(shares([5, 3, 1]), 7, lengths=[10**14, 10**14, 10**11])
    walk = order.walk(10**14)
    assert walk.position == 10**14
    assert walk.counts[2] == 10**11  # ended on the way


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [math.nan], [math.inf, 1], [True], ["1"]])
def test_weights_that_cannot_work_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="above zero"):
        shares(weights)


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=6))
def test_shares_add_up_whatever_the_scale(weights: list[float]) -> None:
    found = shares(weights)
    assert min(found) >= 1
    assert abs(sum(found) - 2**32) <= 2 * len(weights)
