"""What the orders promise one by one: the same for ever, arithmetic where possible, errors that name the remedy."""

from __future__ import annotations

import pickle
from array import array
from typing import Any

import pytest
from support.routes import Player

from lazystore.errors import ConfigError, ItemIndexError
from lazystore.streaming.order import (
    KINDS,
    MAX_LEG,
    Group,
    ListLeg,
    OrderSpec,
    RangeLeg,
    Route,
    Shape,
    Span,
    Topology,
    WindowLeg,
    clip,
    make_route,
    shard_length,
    share,
)

MB = 1 << 20
OWN = ["sequential", "window", "global"]


def spec(kind: str, **changes: Any) -> OrderSpec:
    settings = {"kind": kind, "seed": 42, "window_bytes": 32 * MB, "block_bytes": MB, "drop_last": False, **changes}
    if kind.startswith("mosaic"):
        settings["num_canonical_nodes"] = 1  # with more of them it repeats items
    return OrderSpec(**settings)


SMALL = Shape([5, 0, 3, 7, 4], [500, 0, 300, 700, 400])


def numbers_of(route: Route, shape: Shape) -> list[int]:
    """Global numbers of what a route visits."""
    begins = [sum(shape.counts[:chunk]) for chunk in range(len(shape.counts))]
    return [begins[chunk] + number for chunk, number in Player(shape.counts).play(route)]


# -- for ever -------------------------------------------------------------------------------

GOLDEN = {
    ("sequential", 1, 10**6): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
    ("global", 1, 10**6): [4, 15, 12, 7, 10, 1, 13, 6, 5, 2, 16, 9, 11, 17, 3, 0, 18, 14, 8],
    ("global", 2, 10**6): [6, 8, 2, 16, 1, 9, 14, 3, 11, 17, 4, 12, 13, 5, 15, 18, 7, 10, 0],
    ("window", 1, 10**6): [15, 11, 8, 16, 9, 2, 1, 7, 10, 6, 4, 14, 3, 12, 13, 18, 0, 17, 5],
    ("window", 1, 1000): [12, 18, 11, 13, 3, 14, 10, 17, 9, 16, 4, 0, 15, 6, 2, 5, 7, 8, 1],
    ("window", 2, 1000): [5, 13, 11, 7, 14, 0, 12, 6, 16, 17, 15, 1, 3, 2, 18, 10, 4, 9, 8],
    ("window", 1, 200): [12, 11, 13, 14, 17, 18, 10, 9, 4, 3, 0, 16, 15, 5, 7, 6, 8, 1, 2],
}


@pytest.mark.parametrize(("kind", "epoch", "window"), GOLDEN)
def test_orders_are_those_they_always_were(kind: str, epoch: int, window: int) -> None:
    route = make_route(spec(kind, window_bytes=window, block_bytes=200), SMALL, Topology(), epoch)
    assert numbers_of(route, SMALL) == GOLDEN[kind, epoch, window]


def test_the_order_of_a_large_dataset_is_the_one_it_always_was() -> None:
    shape = Shape([1000] * 50, [10 * MB] * 50)
    route = make_route(spec("window"), shape, Topology(1, 2, 1, 2, 8), 3)
    assert numbers_of(route, shape)[::1000] == [
        16084,
        46025,
        16800,
        23106,
        8814,
        37826,
        6643,
        46115,
        46129,
        46856,
        10120,
        10877,
        16960,
    ]


# -- sharing --------------------------------------------------------------------------------


def test_ranks_take_contiguous_parts_and_the_first_take_what_is_over() -> None:
    assert [share(11, Topology(rank, 3), False) for rank in range(3)] == [(0, 4), (4, 8), (8, 11)]
    assert [share(11, Topology(rank, 3), True) for rank in range(3)] == [(0, 3), (3, 6), (6, 9)]


def test_workers_take_whole_batches_and_one_takes_the_short_one() -> None:
    # 11 items are batches of 4, 4 and 3; the third is the first worker's second
    assert [share(11, Topology(0, 1, worker, 2, 4), False) for worker in range(2)] == [(0, 7), (7, 11)]
    assert [share(3, Topology(0, 1, worker, 3, 2), False) for worker in range(3)] == [(0, 2), (2, 3), (3, 3)]


@pytest.mark.parametrize("kind", OWN)
def test_who_gets_which_item_does_not_depend_on_the_window(kind: str) -> None:
    shape = Shape([100] * 7, [10_000] * 7)
    for reader in (Topology(0, 2, 1, 2, 16), Topology(1, 2, 0, 2, 16)):
        parts = {
            frozenset(numbers_of(make_route(spec(kind, window_bytes=w, block_bytes=b), shape, reader, 1), shape))
            for w, b in [(1, 1), (5000, 300), (10**9, 1000)]
        }
        assert len(parts) == 1


@pytest.mark.parametrize("kind", OWN)
def test_lengths_need_no_route_and_a_dataset_of_any_size(kind: str) -> None:
    shape = Shape([2**31] * 1000, [2**40] * 1000)
    length = shard_length(spec(kind), shape, Topology(3, 7, 2, 5, 256), 1)
    assert length == make_route(spec(kind), shape, Topology(3, 7, 2, 5, 256), 1).length
    total = sum(shard_length(spec(kind), shape, Topology(r, 7, w, 5, 256), 1) for r in range(7) for w in range(5))
    assert total == 2**31 * 1000


@pytest.mark.parametrize("kind", OWN)
def test_a_reader_without_items_has_an_empty_route(kind: str) -> None:
    for shape in (Shape([], []), Shape([0, 0], [0, 10]), Shape([3], [3])):
        route = make_route(spec(kind, drop_last=True), shape, Topology(0, 4), 1)
        assert route.length == 0
        assert list(route.legs()) == []
        assert list(route.legs(0, 0)) == []


# -- routes ---------------------------------------------------------------------------------


def test_a_sequential_route_is_ranges_in_order() -> None:
    route = make_route(spec("sequential"), Shape([100_000], [MB]), Topology(), 1)
    assert list(route.legs()) == [
        RangeLeg(0, MAX_LEG),
        RangeLeg(MAX_LEG, 2 * MAX_LEG),
        RangeLeg(2 * MAX_LEG, 3 * MAX_LEG),
        RangeLeg(3 * MAX_LEG, 100_000),
    ]
    assert list(route.legs(50_000, 50_002)) == [RangeLeg(50_000, 50_002)]


@pytest.mark.parametrize(("item_bytes", "items"), [(10, 8192), (4096, 1024), (MB, 16)])
def test_a_global_route_fetches_at_most_an_eighth_of_the_window_at_once(item_bytes: int, items: int) -> None:
    route = make_route(spec("global"), Shape([20_000], [20_000 * item_bytes]), Topology(), 1)
    assert {len(leg) for leg in list(route.legs())[:-1]} == {items}


def test_sizes_nobody_knows_count_as_four_kib_an_item() -> None:
    assert Shape([10, 20], [0, 0]).item_bytes == 4096
    assert Shape([10, 30], [10 * 100, 0]).item_bytes == (1000 + 30 * 4096) // 40
    assert Shape([], []).item_bytes == 1


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize(("start", "stop"), [(-1, None), (20, None), (5, 4), (0, 20), (0, -1)])
def test_positions_out_of_the_route_are_refused_at_once(kind: str, start: int, stop: int | None) -> None:
    route = make_route(spec(kind, window_bytes=600, block_bytes=100), SMALL, Topology(), 1)
    with pytest.raises(ItemIndexError, match=r"0 \.\. 18"):
        route.legs(start, stop)


@pytest.mark.parametrize("kind", KINDS)
def test_every_order_that_is_named_makes_routes_that_pickle(kind: str) -> None:
    route = make_route(spec(kind, block_bytes=100, window_bytes=300), SMALL, Topology(), 1)
    again = pickle.loads(pickle.dumps(route))
    items = numbers_of(again, SMALL)
    assert items == numbers_of(route, SMALL)
    assert sorted(items) == list(range(19))
    assert shard_length(spec(kind), SMALL, Topology(), 1) == 19


def test_a_leg_is_as_long_as_what_it_emits() -> None:
    groups = (Group(Span(0, 0, 9), array("I", [3, 1])), Group(Span(2, 4, 8), array("I", [7])))
    leg = WindowLeg((), (), groups, array("I", [2, 0, 1]), skip=1)
    assert [len(leg), len(RangeLeg(3, 9)), len(ListLeg(array("q", [1, 2])))] == [2, 6, 2]


def test_a_clipped_leg_keeps_its_positions_in_order() -> None:
    groups = (Group(Span(0, 0, 9), array("I", [3, 1])), Group(Span(2, 4, 8), array("I", [7, 5, 4])))
    # emitted: 1 7 5 3 4
    kept, places = clip(groups, array("I", [3, 0, 1, 2, 4]), 1, 3)
    assert kept == [Group(Span(2, 4, 8), array("I", [7, 5]))]
    assert places == array("I", [0, 1])


# -- what cannot work -----------------------------------------------------------------------


def test_an_unknown_order_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigError, match=r"'shuffled'.*'sequential', 'window', 'global', 'litdata', 'litdata-0\.2\.70'"
    ):
        spec("shuffled")


@pytest.mark.parametrize("changes", [{"seed": -1}, {"seed": 2**64}, {"window_bytes": 0}, {"block_bytes": 0}])
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        spec("window", **changes)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ((1, 1), "rank"),
        ((-1, 1), "rank"),
        ((0, 0), "rank"),
        ((0, 1, 2, 2), "worker"),
        ((0, 1, 0, 0), "worker"),
        ((0, 1, 0, 1, 0), "batch_size"),
    ],
)
def test_readers_that_are_not_there_are_refused(settings: tuple[int, ...], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Topology(*settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epoch", [-1, 2**64])
def test_epochs_out_of_range_are_refused(kind: str, epoch: int) -> None:
    with pytest.raises(ConfigError, match="epoch"):
        make_route(spec(kind), SMALL, Topology(), epoch)


def test_counts_and_sizes_of_different_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 chunks have item counts, 1 have sizes"):
        Shape([1, 2], [3])


@pytest.mark.parametrize("counts", [[2**32, 1], [4, -1]])
def test_counts_no_chunk_can_have_are_refused(counts: list[int]) -> None:
    with pytest.raises(ConfigError):
        make_route(spec("window"), Shape(counts, [1, 1]), Topology(), 1)
