"""The shuffling window: how well it mixes, what is resident when, and what a route costs to keep and to resume."""

from __future__ import annotations

import itertools
import pickle
import random
import statistics
from array import array

from support.routes import Player

from lazystore.streaming.order import OrderSpec, Route, Shape, Span, Topology, WindowLeg, make_route
from lazystore.streaming.windows import BLOCK_ITEMS, UNIFORM_LEG, UniformRoute, WindowRoute

MB = 1 << 20


def window_route(
    counts: list[int], nbytes: list[int], window: int, block: int, epoch: int = 1, reader: Topology | None = None
) -> Route:
    spec = OrderSpec("window", 42, window, block, False)
    return make_route(spec, Shape(array("Q", counts), array("Q", nbytes)), reader or Topology(), epoch)


def window_legs(route: Route, start: int = 0, stop: int | None = None) -> list[WindowLeg]:
    legs = []
    for leg in route.legs(start, stop):
        assert isinstance(leg, WindowLeg)
        legs.append(leg)
    return legs


def nbytes_of(span: Span, item_bytes: int) -> int:
    return (span.last - span.first) * item_bytes


# -- what is resident -----------------------------------------------------------------------


def test_the_window_keeps_within_its_bytes_and_moves_a_block_a_leg() -> None:
    route = window_route([4000] * 20, [4 * MB] * 20, 8 * MB, MB)
    assert isinstance(route, WindowRoute)
    assert (route.window, route.together, len(route.blocks)) == (8, 1, 80)
    resident: dict[Span, None] = {}
    sizes = []
    for leg in window_legs(route):
        assert len(leg.enter) <= 1
        resident.update(dict.fromkeys(leg.enter))
        sizes.append(sum(nbytes_of(span, MB // 1000) for span in resident))
        for span in leg.leave:
            del resident[span]
    assert max(sizes) <= 8 * MB
    assert statistics.mean(sizes[8:-8]) > 7.9 * MB


def test_the_first_leg_needs_one_block() -> None:
    first = window_legs(window_route([4000] * 20, [4 * MB] * 20, 8 * MB, MB))[0]
    assert len(first.enter) == 1
    assert len(first) == 125


def test_small_chunks_enter_together_so_that_the_window_is_used() -> None:
    route = window_route([10] * 4000, [10_000] * 4000, MB, 100_000)
    assert isinstance(route, WindowRoute)
    assert (route.window, route.together) == (10, 10)
    player = Player([10] * 4000)
    player.play(route)
    assert 90 <= player.most_resident <= 100
    assert player.legs == 4000 // 10 + 9


def test_items_larger_than_a_block_are_there_for_one_leg_only() -> None:
    route = window_route([8] * 50, [8 * MB] * 50, 4 * MB, 100_000)
    for leg in window_legs(route):
        assert set(leg.leave) == set(leg.enter)


def test_a_block_never_has_more_items_than_legs_may_have() -> None:
    route = window_route([10_000_000], [10_000_000], 5 * MB, 4 * MB)
    assert isinstance(route, WindowRoute)
    assert route.blocks.largest <= BLOCK_ITEMS
    assert max(map(len, window_legs(route))) <= 2 * BLOCK_ITEMS


def test_chunks_of_unknown_size_count_four_kib_an_item() -> None:
    route = window_route([1000], [0], 400 * 4096, 100 * 4096)
    assert isinstance(route, WindowRoute)
    assert (len(route.blocks), route.window) == (10, 4)


def test_a_window_of_less_than_a_block_shuffles_block_by_block() -> None:
    legs = window_legs(window_route([1000] * 4, [MB] * 4, 10, 256 * 1024))
    assert len(legs) == 16
    for leg in legs:
        assert leg.enter == leg.leave == tuple(group.span for group in leg.groups)


# -- a part that fits -----------------------------------------------------------------------


def test_a_part_that_fits_is_a_uniform_permutation_in_growing_legs() -> None:
    route = window_route([1000] * 40, [MB] * 40, 40 * MB, MB)
    assert isinstance(route, UniformRoute)
    legs = window_legs(route)
    assert [len(leg) for leg in legs] == [*(2**k for k in range(14)), UNIFORM_LEG, UNIFORM_LEG, 40_000 - 2**15 + 1]
    assert [len(leg.enter) for leg in legs[:2]] == [1, 2]
    entered = list(itertools.chain.from_iterable(leg.enter for leg in legs))
    assert len(entered) == len(set(entered)) == 40
    assert set(legs[-1].leave) == set(entered)


def test_resuming_a_part_that_fits_begins_with_a_short_leg() -> None:
    route = window_route([1000] * 40, [MB] * 40, 40 * MB, MB)
    first = next(iter(route.legs(12_345)))
    assert len(first) == 1


# -- how well it mixes ----------------------------------------------------------------------


def emitted(route: Route, counts: list[int]) -> list[int]:
    """Numbers of the items in the sequence of the chunks as they are stored."""
    begins = [0, *itertools.accumulate(counts)]
    return [begins[chunk] + number for chunk, number in Player(counts).play(route)]


def mean_step(numbers: list[int]) -> float:
    """Distance of neighbours, as a share of what a uniform shuffle has (a third of the length)."""
    steps = [abs(a - b) for a, b in itertools.pairwise(numbers)]
    return statistics.mean(steps) / (len(numbers) / 3)


def test_neighbours_come_from_all_over_the_dataset() -> None:
    counts = [1000] * 40
    for epoch in (1, 2):
        numbers = emitted(window_route(counts, [MB] * 40, 10 * MB, MB // 4, epoch), counts)
        assert mean_step(numbers) > 0.9
        assert mean_step(numbers[10_000:30_000]) * 2 > 0.95


def test_the_last_items_are_mixed_as_well() -> None:
    counts = [1000] * 64
    legs = window_legs(window_route(counts, [MB] * 64, 32 * MB, MB))
    drain = [leg for leg in legs if not leg.enter][-31:]
    assert all(len(leg.groups) > 25 for leg in drain)
    assert all(300 < len(leg) < 800 for leg in drain)


def test_a_leg_mixes_all_its_groups() -> None:
    route = window_route([4000] * 40, [4 * MB] * 40, 16 * MB, MB)
    leg = window_legs(route)[80]
    assert len(leg.groups) == 16
    owners = [number for number, group in enumerate(leg.groups) for _ in group.numbers]
    row = [owner for _, owner in sorted(zip(leg.places, owners, strict=True))]
    same = sum(a == b for a, b in itertools.pairwise(row)) / len(row)
    assert 0.04 < same < 0.09  # a sixteenth


def test_items_of_a_block_do_not_come_in_an_order_of_theirs() -> None:
    counts = [2000] * 30
    numbers = emitted(window_route(counts, [2 * MB] * 30, 8 * MB, MB), counts)
    inside = [number % 1000 for number in numbers]
    middle, variance = 499.5, (1000**2 - 1) / 12
    for lag in range(1, 9):
        products = [(a - middle) * (b - middle) for a, b in zip(inside, inside[lag:], strict=False)]
        assert abs(statistics.mean(products)) / variance < 0.03


def test_blocks_of_fewer_items_than_the_window_are_dealt_evenly() -> None:
    counts = [3] * 3000
    route = window_route(counts, [30_000] * 3000, 3_200_000, 30_000)
    assert isinstance(route, WindowRoute)
    assert route.window == 106
    sizes = [len(leg) for leg in window_legs(route)][150:-150]
    assert abs(statistics.mean(sizes) - 3) < 0.2
    assert max(sizes) < 15


def test_readers_shuffle_their_parts_independently() -> None:
    counts = [1000] * 8
    rows = [emitted(window_route(counts, [MB] * 8, 10**9, MB, reader=Topology(rank, 2)), counts) for rank in range(2)]
    ranked = [sorted(range(4000), key=row.__getitem__) for row in rows]
    assert sum(a == b for a, b in zip(*ranked, strict=True)) < 12


# -- what it costs --------------------------------------------------------------------------


def test_a_route_over_a_million_chunks_keeps_some_bytes_a_chunk() -> None:
    route = window_route([100] * 1_000_000, [100_000] * 1_000_000, 32 * MB, MB)
    assert len(pickle.dumps(route)) < 21 * 1_000_000
    first = next(iter(route.legs()))
    assert 0 < len(first) < 1000
    part = window_route([100] * 1_000_000, [100_000] * 1_000_000, 32 * MB, MB, reader=Topology(5, 1000))
    assert part.length == 100_000
    assert len(pickle.dumps(part)) < 25_000


def test_resuming_deep_inside_needs_no_walk_over_the_legs_before() -> None:
    counts = [100] * 200_000
    route = window_route(counts, [100_000] * 200_000, 32 * MB, MB)
    position = random.Random(1).randrange(route.length // 2, route.length)
    first = next(iter(route.legs(position)))
    assert isinstance(first, WindowLeg)
    assert isinstance(route, WindowRoute)
    assert 0 < len(first.enter) <= route.window * route.together
    again = next(iter(route.legs(position, position + len(first))))
    assert (again.groups, again.places) == (first.groups, first.places)
