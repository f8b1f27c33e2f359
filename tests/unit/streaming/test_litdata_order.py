"""LitData's order against what LitData itself gave, and its legs against the engine's rules for spans."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError, ItemIndexError
from lazystore.streaming.litdata_order import LITDATA_KINDS, litdata_length, litdata_route
from lazystore.streaming.order import ListLeg, OrderSpec, RangeLeg, Shape, Topology, WindowLeg, make_route, shard_length

GOLDEN = Path(__file__).parents[2] / "golden" / "orders"
ITEM_BYTES = 10

#: Budgets under which the parts of the golden datasets are resident whole, by blocks, and not at all.
ROOM = {"whole": 1 << 24, "blocks": 2 * 256 * ITEM_BYTES + 2, "none": 2}


def spec_of(kind: str, room: str = "whole", *, seed: int = 42, drop_last: bool = False) -> OrderSpec:
    return OrderSpec(kind, seed, ROOM[room], max(1, ROOM[room] // 4), drop_last)


def shape_of(sizes: list[int]) -> Shape:
    return Shape(sizes, [ITEM_BYTES * size for size in sizes])


def emitted(legs: Any, shape: Shape) -> list[int]:
    """Global numbers as the engine would emit them."""
    bases = [0]
    for count in shape.counts:
        bases.append(bases[-1] + count)
    out: list[int] = []
    for leg in legs:
        if isinstance(leg, ListLeg):
            out += leg.items
        elif isinstance(leg, RangeLeg):
            out += range(leg.first, leg.last)
        else:
            laid = [bases[group.span.chunk] + number for group in leg.groups for number in group.numbers]
            emission = dict(zip(leg.places, laid, strict=True))
            assert sorted(emission) == list(range(len(laid)))
            out += [emission[place] for place in range(leg.skip, len(laid))]
    return out


def golden() -> list[Any]:
    cases = []
    for kind, version in zip(LITDATA_KINDS, ("0.2.76", "0.2.70"), strict=True):
        for path in (GOLDEN / f"litdata-{version}.json", GOLDEN / f"litdata-{version}-datasets.json"):
            file = json.loads(path.read_text())
            by_sizes: dict[str, list[Any]] = {}
            for case in file["cases"]:
                named = case["sizes"]
                sizes = named if isinstance(named, list) else file["sizes"][named]
                case = {"seed": file["seed"], **case, "sizes": sizes}
                by_sizes.setdefault(named if isinstance(named, str) else f"dataset{sum(sizes)}", []).append(case)
            cases += [pytest.param(kind, some, id=f"{kind}-{name}") for name, some in by_sizes.items()]
    return cases


def readers(case: dict[str, Any]) -> list[Topology]:
    return [
        Topology(rank, case["world"], worker, case["workers"], case["batch"])
        for rank in range(case["world"])
        for worker in range(case["workers"])
    ]


@pytest.mark.parametrize(("kind", "cases"), golden())
def test_every_reader_gets_litdatas_samples_in_litdatas_order(kind: str, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        shape = shape_of(case["sizes"])
        nodes = {"nodes": case.get("nodes", 1), "node_cache": case.get("max_cache_size", 0)}
        spec = spec_of(kind, seed=case["seed"], drop_last=case["drop_last"])
        orders = []
        for topology in readers(case):
            route = litdata_route(spec, shape, topology, case["epoch"], **nodes)
            orders.append(emitted(route.legs(), shape))
            assert route.length == len(orders[-1]) == litdata_length(spec, shape, topology, case["epoch"], **nodes)
        if "orders" in case:
            assert orders == case["orders"], case
        else:
            digest = hashlib.sha256(json.dumps(orders, separators=(",", ":")).encode()).hexdigest()
            assert digest == case["sha256"], case


SIZES = [300, 1, 0, 520, 256, 40]


@pytest.mark.parametrize("room", ROOM)
@pytest.mark.parametrize("kind", LITDATA_KINDS)
def test_the_budget_decides_how_items_come_and_never_in_which_order(kind: str, room: str) -> None:
    shape = shape_of(SIZES)
    for worker in range(2):
        topology = Topology(worker=worker, workers=2, batch_size=4)
        route = litdata_route(spec_of(kind, room), shape, topology, 2)
        roomy = litdata_route(spec_of(kind, "whole"), shape, topology, 2)
        assert emitted(route.legs(), shape) == emitted(roomy.legs(), shape)


def test_only_what_is_too_large_for_its_room_comes_one_by_one() -> None:
    shape, reader = shape_of([1000]), Topology()
    kinds = {
        (kind, room): {type(leg) for leg in litdata_route(spec_of(kind, room), shape, reader, 1).legs()}
        for kind in LITDATA_KINDS
        for room in ROOM
    }
    assert kinds["litdata", "whole"] == kinds["litdata", "blocks"] == {WindowLeg}
    assert kinds["litdata", "none"] == kinds["litdata-0.2.70", "none"] == {ListLeg}
    assert kinds["litdata-0.2.70", "whole"] == {WindowLeg}
    assert kinds["litdata-0.2.70", "blocks"] == {ListLeg}  # a full permutation has no blocks


def test_a_chunk_of_unknown_size_is_taken_for_a_large_one() -> None:
    unknown = {
        count: litdata_route(spec_of("litdata-0.2.70"), Shape([count], [0]), Topology(), 1) for count in (9, 9999)
    }
    assert {count: {type(leg) for leg in route.legs()} for count, route in unknown.items()} == {
        9: {WindowLeg},
        9999: {ListLeg},
    }


@given(
    kind=st.sampled_from(LITDATA_KINDS),
    room=st.sampled_from(sorted(ROOM)),
    sizes=st.lists(st.integers(0, 700), max_size=6),
    workers=st.integers(1, 3),
    data=st.data(),
)
def test_any_stretch_of_the_route_is_that_stretch_of_the_whole(
    kind: str, room: str, sizes: list[int], workers: int, data: st.DataObject
) -> None:
    shape = shape_of(sizes)
    worker = data.draw(st.integers(0, workers - 1))
    route = litdata_route(spec_of(kind, room), shape, Topology(worker=worker, workers=workers, batch_size=2), 1)
    whole = emitted(route.legs(), shape)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.one_of(st.none(), st.integers(start, len(whole))))
    assert emitted(route.legs(start, stop), shape) == whole[start:stop]


@pytest.mark.parametrize("start", [0, 299, 301, 35000])
@pytest.mark.parametrize(("kind", "room"), [("litdata", "whole"), ("litdata", "blocks"), ("litdata-0.2.70", "whole")])
def test_items_lie_in_spans_that_are_resident_and_every_span_is_left(kind: str, room: str, start: int) -> None:
    shape = shape_of([300, 70000, 520])
    resident: set[Any] = set()
    for leg in litdata_route(spec_of(kind, room), shape, Topology(), 1).legs(start):
        assert isinstance(leg, WindowLeg)
        assert len(leg) <= 32768
        assert not resident & set(leg.enter)
        resident |= set(leg.enter)
        for span, numbers in leg.groups:
            assert span in resident
            assert (span.last - span.first) * ITEM_BYTES <= ROOM[room] // 2
            assert all(span.first <= number < span.last for number in numbers)
        assert set(leg.leave) <= resident
        resident -= set(leg.leave)
    assert not resident


@pytest.mark.parametrize("room", [10, 300])
@pytest.mark.parametrize("block_bytes", [1, 9000, 1 << 40])
def test_a_leg_of_blocks_holds_no_more_than_a_leg_may(block_bytes: int, room: int) -> None:
    window = 2 * room * 256 * ITEM_BYTES
    route = litdata_route(OrderSpec("litdata", 42, window, block_bytes, False), shape_of([100_000]), Topology(), 1)
    legs = list(route.legs())
    assert len(legs) > 1
    for leg in legs:
        assert isinstance(leg, WindowLeg)
        assert 0 < len(leg) <= 32768
        held = sum((span.last - span.first) * ITEM_BYTES for span in leg.enter)
        assert held <= min(max(block_bytes, 256 * ITEM_BYTES), window // 2)


def test_a_walk_of_blocks_fetches_each_span_once() -> None:
    route = litdata_route(spec_of("litdata", "blocks"), shape_of([5000, 1025]), Topology(), 1)
    entered = [span for leg in route.legs() if isinstance(leg, WindowLeg) for span in leg.enter]
    assert len(entered) == len(set(entered))
    for chunk, size in enumerate((5000, 1025)):
        own = sorted(span for span in entered if span.chunk == chunk)
        assert own[0].first == 0 and own[-1].last == size
        assert all(left.last == right.first for left, right in pairwise(own))


@pytest.mark.parametrize("kind", LITDATA_KINDS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_readers_of_an_epoch_share_out_the_dataset(kind: str, drop_last: bool) -> None:
    shape, spec = shape_of(SIZES), spec_of(kind, drop_last=drop_last)
    world, workers, batch = 3, 2, 5
    rounds = [Topology(rank, world, worker, workers, batch) for rank in range(world) for worker in range(workers)]
    got = [item for reader in rounds for item in emitted(litdata_route(spec, shape, reader, 1).legs(), shape)]
    lengths = [litdata_length(spec, shape, reader, 1) for reader in rounds]
    assert len(set(got)) == len(got)
    if drop_last:
        assert all(length % batch == 0 for length in lengths)
        assert len({sum(lengths[at : at + workers]) for at in range(0, len(lengths), workers)}) == 1
        assert sum(SIZES) - len(got) < world * batch
    else:
        assert sorted(got) == list(range(sum(SIZES)))


def test_routes_travel_by_pickle() -> None:
    shape = shape_of(SIZES)
    route = litdata_route(spec_of("litdata"), shape, Topology(), 1)
    assert emitted(pickle.loads(pickle.dumps(route)).legs(7), shape) == emitted(route.legs(7), shape)


def test_a_route_holds_nothing_for_each_sample() -> None:
    few, many = (
        len(pickle.dumps(litdata_route(spec_of("litdata"), shape_of([size] * 50), Topology(), 1)))
        for size in (10, 1_000_000)
    )
    assert many == few


def test_a_hundred_thousand_chunks_are_shared_out_among_64_readers() -> None:
    counts = [random.Random(3).randrange(0, 40) for _ in range(100_000)]
    shape, spec = shape_of(counts), spec_of("litdata")
    readers = [Topology(rank, 8, worker, 8, 16) for rank in range(8) for worker in range(8)]
    routes = [litdata_route(spec, shape, reader, 1) for reader in readers]
    assert sum(route.length for route in routes) == sum(counts)
    # as in LitData, a chunk goes to one reader, or to two or more where their shares meet
    visited = sum(len(route.chunks) for route in routes)
    assert sum(count > 0 for count in counts) <= visited <= sum(count > 0 for count in counts) + 63


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4), (0, 12), (12, None)])
def test_positions_that_the_route_does_not_have_are_refused(start: int, stop: int | None) -> None:
    with pytest.raises(ItemIndexError):
        litdata_route(spec_of("litdata"), shape_of([4, 7]), Topology(), 1).legs(start, stop)


def test_the_orders_are_had_by_name() -> None:
    shape = shape_of(SIZES)
    for kind in LITDATA_KINDS:
        route = make_route(spec_of(kind), shape, Topology(), 2)
        assert emitted(route.legs(), shape) == emitted(litdata_route(spec_of(kind), shape, Topology(), 2).legs(), shape)
        assert shard_length(spec_of(kind), shape, Topology(), 2) == route.length


@pytest.mark.parametrize("seed", [2**32, 2**64 - 1])
def test_a_seed_numpy_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed"):
        litdata_route(spec_of("litdata", seed=seed), shape_of([3]), Topology(), 1)


def test_nodes_that_do_not_divide_the_world_are_refused() -> None:
    with pytest.raises(ConfigError, match="nodes"):
        litdata_length(spec_of("litdata"), shape_of([3]), Topology(world=3), 2, nodes=2)


def test_an_order_of_our_own_is_none_of_litdatas() -> None:
    with pytest.raises(ConfigError, match=r"'window'.*litdata-0\.2\.70"):
        litdata_route(spec_of("window"), shape_of([3]), Topology(), 1)
