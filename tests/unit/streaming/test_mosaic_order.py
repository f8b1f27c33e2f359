"""MosaicML's orders against what MosaicML itself gave, and their legs against the engine's rules for spans."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.routes import Player

from lazystore.errors import ConfigError, ItemIndexError
from lazystore.streaming.mosaic_order import MosaicRoute, canonical_nodes, shuffle_block
from lazystore.streaming.order import (
    KINDS,
    ListLeg,
    OrderSpec,
    Route,
    Shape,
    Topology,
    WindowLeg,
    first_epoch,
    make_route,
    shard_length,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "orders" / "mosaic-0.13.json"
MOSAIC = [kind for kind in KINDS if kind.startswith("mosaic")]
ITEM_BYTES = 10
#: Window bytes under which all shards of the golden datasets are resident, and none.
ROOM = {"all": 1 << 24, "none": 1}


def spec_of(kind: str, room: str = "all", **settings: Any) -> OrderSpec:
    return OrderSpec(
        kind, **{"seed": 9176, "window_bytes": ROOM[room], "block_bytes": 1, "drop_last": False, **settings}
    )


def shape_of(sizes: list[int]) -> Shape:
    return Shape(sizes, [ITEM_BYTES * size for size in sizes])


def emitted(route: Route, shape: Shape, start: int = 0, stop: int | None = None) -> list[int]:
    """Global numbers as the engine would emit them."""
    bases = np.cumsum([0, *shape.counts]).tolist()
    return [bases[chunk] + number for chunk, number in Player(shape.counts).play(route, start, stop)]


def readers(world: int, workers: int, batch: int) -> list[Topology]:
    return [Topology(rank, world, worker, workers, batch) for rank in range(world) for worker in range(workers)]


def golden() -> list[Any]:
    file = json.loads(GOLDEN.read_text())
    groups: dict[str, list[Any]] = {}
    for case in file["cases"]:
        named = case["sizes"]
        sizes = named if isinstance(named, list) else file["sizes"][named]
        key = f"{case['algo']}-{'iterated' if isinstance(named, list) else named}"
        groups.setdefault(key, []).append({**case, "sizes": sizes})
    return [pytest.param(cases, id=name) for name, cases in groups.items()]


@pytest.mark.parametrize("room", ROOM)
@pytest.mark.parametrize("cases", golden())
def test_every_reader_gets_mosaicmls_samples_in_mosaicmls_order(cases: list[dict[str, Any]], room: str) -> None:
    for case in cases:
        shape = shape_of(case["sizes"])
        spec = spec_of(
            f"mosaic-{case['algo']}", room, seed=case["seed"], num_nodes=case["nodes"],
            num_canonical_nodes=case["canonical"], shuffle_block_size=case["block"],
        )  # fmt: skip
        among = readers(case["nodes"] * case["ranks"], case["workers"], case["batch"])
        if case.get("error"):
            for reader in among:
                with pytest.raises(ConfigError):
                    make_route(spec, shape, reader, case["epoch"])
            continue
        orders = []
        for reader in among:
            route = make_route(spec, shape, reader, case["epoch"])
            orders.append(emitted(route, shape))
            assert route.length == len(orders[-1]) == shard_length(spec, shape, reader, case["epoch"])
        if "orders" in case:
            assert orders == case["orders"], case
        else:
            digest = hashlib.sha256(json.dumps(orders, separators=(",", ":")).encode()).hexdigest()
            assert digest == case["sha256"], case


SIZES = [300, 1, 0, 520, 256, 40]


@pytest.mark.parametrize("kind", MOSAIC)
@given(data=st.data(), sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6), workers=st.integers(1, 3))
def test_any_stretch_of_the_route_is_that_stretch_of_the_whole_in_any_room(
    kind: str, data: st.DataObject, sizes: list[int], workers: int
) -> None:
    shape = shape_of(sizes)
    world = data.draw(st.integers(1, 3))
    canonical = data.draw(st.integers(1, min(3, max(1, sum(sizes)))))
    worker, rank = data.draw(st.integers(0, workers - 1)), data.draw(st.integers(0, world - 1))
    reader = Topology(rank, world, worker, workers, data.draw(st.integers(1, 4)))
    room = data.draw(st.sampled_from([1, 100, 600, 10**6]))
    spec = spec_of(kind, num_canonical_nodes=canonical, shuffle_block_size=20, window_bytes=room)
    route = make_route(spec, shape, reader, 1)
    whole = emitted(make_route(spec_of(kind, "none", num_canonical_nodes=canonical, shuffle_block_size=20), shape,
                               reader, 1), shape)  # fmt: skip
    start = data.draw(st.integers(0, route.length))
    stop = data.draw(st.integers(start, route.length))
    assert emitted(route, shape, start, stop) == whole[start:stop]


@pytest.mark.parametrize("kind", MOSAIC)
@pytest.mark.parametrize(("world", "nodes", "canonical"), [(1, 1, 1), (4, 2, 2), (6, 3, 1), (4, 1, 4)])
def test_readers_have_every_sample_and_ranks_equally_many(kind: str, world: int, nodes: int, canonical: int) -> None:
    shape = shape_of(SIZES)
    spec = spec_of(kind, num_nodes=nodes, num_canonical_nodes=canonical)
    orders = [emitted(make_route(spec, shape, reader, 3), shape) for reader in readers(world, 2, 4)]
    lengths = [len(orders[at]) + len(orders[at + 1]) for at in range(0, len(orders), 2)]
    assert len(set(lengths)) == 1
    assert sum(lengths) - shape.total < 2 * world + canonical
    assert {item for order in orders for item in order} == set(range(shape.total))


def test_shards_are_resident_if_all_that_are_needed_at_once_fit_the_window() -> None:
    sizes = [5000] * 40
    shape, reader = shape_of(sizes), Topology()
    settings = {"num_canonical_nodes": 1, "shuffle_block_size": 10000}
    everything = ITEM_BYTES * sum(sizes)
    for kind, needed in (("mosaic-py1s", 4), ("mosaic-py1e", 8), ("mosaic-naive", 40)):
        player = Player(sizes)
        few = make_route(spec_of(kind, window_bytes=everything * needed // 40, **settings), shape, reader, 0)
        assert {type(leg) for leg in few.legs()} == {WindowLeg}
        player.play(few)
        assert player.most_resident <= needed
        fewer = make_route(spec_of(kind, window_bytes=everything // 40, **settings), shape, reader, 0)
        assert {type(leg) for leg in fewer.legs()} == {ListLeg}


def test_a_shard_of_unknown_size_is_taken_for_a_large_one() -> None:
    route = make_route(spec_of("mosaic-py1s", window_bytes=10000), Shape([10], [0]), Topology(), 0)
    assert {type(leg) for leg in route.legs()} == {ListLeg}


def test_a_reader_of_part_of_a_shard_holds_that_part_only() -> None:
    spec = spec_of("mosaic-py1s", num_nodes=2, num_canonical_nodes=2)
    for rank in range(2):
        (leg,) = make_route(spec, shape_of([1000]), Topology(rank, 2), 0).legs()
        assert isinstance(leg, WindowLeg)
        assert [(span.chunk, span.last - span.first) for span in leg.enter] == [(0, 500)]


@pytest.mark.parametrize(
    ("kind", "settings", "canonical", "block"),
    [
        ("mosaic-py1e", {}, 1, 4_000_000),
        ("mosaic-py1e", {"num_nodes": 4}, 4, 1_000_000),
        ("mosaic-py1br", {"num_nodes": 40}, 40, 1 << 18),
        ("mosaic-py1s", {"num_nodes": 2}, 128, 1 << 18),
        ("mosaic-py2s", {}, 64, 1 << 18),
        ("mosaic-py1e", {"num_nodes": 2, "num_canonical_nodes": 8}, 8, 500_000),
        ("mosaic-py1s", {"num_canonical_nodes": 3, "shuffle_block_size": 7}, 3, 7),
    ],
)
def test_defaults_are_mosaicmls(kind: str, settings: dict[str, int], canonical: int, block: int) -> None:
    assert canonical_nodes(spec_of(kind, **settings)) == canonical
    assert shuffle_block(spec_of(kind, **settings)) == block


@pytest.mark.parametrize("kind", MOSAIC)
def test_a_dataset_of_nothing_has_empty_routes(kind: str) -> None:
    for shape in (Shape([], []), Shape([0, 0], [0, 0])):
        route = make_route(spec_of(kind, num_canonical_nodes=2), shape, Topology(1, 2, 1, 2, 3), 0)
        assert route.length == shard_length(spec_of(kind), shape, Topology(), 0) == 0
        assert list(route.legs()) == []


@pytest.mark.parametrize(
    ("kind", "world", "settings", "says"),
    [
        ("mosaic-py1e", 3, {"num_nodes": 2}, "num_nodes=2 cannot hold 3 ranks"),
        ("mosaic-py1s", 2, {"num_nodes": 2, "num_canonical_nodes": 3}, "num_canonical_nodes=3 neither divides"),
        ("mosaic-py1e", 1, {"num_canonical_nodes": 2000}, "num_canonical_nodes=2000 is more than the dataset's 1117"),
        ("mosaic-py1br", 1, {"shuffle_block_size": 1}, "shuffle_block_size=1 is too small"),
    ],
)
def test_what_mosaicml_refuses_is_refused(kind: str, world: int, settings: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_route(spec_of(kind, **settings), shape_of(SIZES), Topology(0, world), 0)


@pytest.mark.parametrize(
    "settings", [{"num_nodes": 0}, {"num_canonical_nodes": -1}, {"shuffle_block_size": -1}, {"num_nodes": 2**40}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        spec_of("mosaic-py1e", **settings)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4), (0, 12), (12, None)])
def test_positions_that_the_route_does_not_have_are_refused_at_once(start: int, stop: int | None) -> None:
    route = make_route(spec_of("mosaic-py1e"), shape_of([11]), Topology(), 0)
    with pytest.raises(ItemIndexError):
        route.legs(start, stop)


def test_routes_travel_by_pickle_and_hold_nothing_for_each_sample() -> None:
    shape = Shape([1 << 40] * 3, [1] * 3)
    route = make_route(spec_of("mosaic-py1e"), shape, Topology(1, 2), 0)
    assert isinstance(route, MosaicRoute)
    assert len(pickle.dumps(route)) < 2000
    assert pickle.loads(pickle.dumps(route)) == route
    assert route.length == 3 << 39


def test_epochs_count_as_mosaicml_counts_them() -> None:
    assert {first_epoch(kind) for kind in MOSAIC} == {0}
    assert {first_epoch(kind) for kind in KINDS if kind not in MOSAIC} == {1}


def test_lengths_need_no_route_and_a_dataset_of_any_size() -> None:
    shape = Shape([10**6] * 1000, [1] * 1000)
    lengths = [shard_length(spec_of("mosaic-py1e", num_nodes=7), shape, reader, 0) for reader in readers(21, 5, 256)]
    assert shape.total <= sum(lengths) < shape.total + 100
