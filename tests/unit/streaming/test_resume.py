"""Resume: what a state holds, which ones are refused and how, and the arithmetic of turns and shares."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from lazystore.errors import ConfigError, FormatError, UnsupportedError
from lazystore.streaming.order import OrderSpec, RangeLeg, Shape, Topology, share
from lazystore.streaming.resume import (
    MAX_BATCH,
    MAX_EPOCH,
    MAX_ITEMS,
    MAX_RUNS,
    MAX_WORKERS,
    MAX_WORLD,
    Position,
    Run,
    WorkerMark,
    check,
    consumed,
    next_worker,
    parse,
    remaining_route,
)

SPEC = OrderSpec("sequential", 42, 1000, 100, False)
START = Position("0123456789abcdef", SPEC, 1)
SHAPE = Shape([10, 10, 10], [0, 0, 0])


def topology(world: int = 1, workers: int = 1, batch_size: int = 1, rank: int = 0, worker: int = 0) -> Topology:
    return Topology(rank, world, worker, workers, batch_size)


def items(position: Position, reader: Topology) -> list[int]:
    legs = list(remaining_route(position, SHAPE, reader).legs())
    assert all(isinstance(leg, RangeLeg) for leg in legs)
    return [item for leg in legs for item in range(leg.first, leg.last)]  # type: ignore[union-attr]


# -- the value ------------------------------------------------------------------------------


def test_steps_under_one_topology_merge() -> None:
    position = START.advanced(topology(2), 5).advanced(topology(2, rank=1), 4).advanced(topology(3), 1)
    assert position.history == (Run(2, 1, 1, 9), Run(3, 1, 1, 1))


def test_a_step_of_nothing_leaves_no_trace() -> None:
    assert START.advanced(topology(2), 0) == START


@pytest.mark.parametrize(
    "spec",
    [
        OrderSpec("litdata-0.2.70", 2**64 - 1, 2**48, 2**48, False),
        OrderSpec("mosaic-py1br", 2**64 - 1, 2**48, 2**48, False, 2**20, 2**20, 2**40),
    ],
)
def test_the_largest_state_fits_a_kilobyte(spec: OrderSpec) -> None:
    history = (Run(MAX_WORLD - 1, MAX_WORKERS - 1, MAX_BATCH - 1, MAX_ITEMS - 1),) * MAX_RUNS
    position = Position("f" * 16, spec, MAX_EPOCH - 1, history, WorkerMark(9997, MAX_WORKERS - 1, MAX_ITEMS - 1))
    text = json.dumps(position.to_json_dict())
    assert len(text) <= 1024
    assert parse(json.loads(text)) == position


def test_one_topology_too_many_is_refused_before_reading_and_says_what_to_do() -> None:
    position = START
    for world in range(1, MAX_RUNS + 1):
        position = position.advanced(topology(world), 1)
    position = position.advanced(topology(MAX_RUNS), 1)  # the same again is no new one
    for act in (lambda: position.advanced(topology(99), 1), lambda: remaining_route(position, SHAPE, topology(99))):
        with pytest.raises(ConfigError, match=r"17 changes .* at most 16 .*set_epoch"):
            act()


def test_a_loader_state_may_come_back_as_tuples() -> None:
    state = START.advanced(topology(2), 5).to_json_dict()
    state["history"] = tuple(map(tuple, state["history"]))
    assert parse(state).history == (Run(2, 1, 1, 5),)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", "1", r"state\['version'\] cannot be of type str"),
        ("fingerprint", "xyz", "fingerprint='xyz' is not 16 hex digits"),
        ("fingerprint", None, r"state\['fingerprint'\] cannot be of type NoneType"),
        ("order", [], r"state\['order'\] cannot be of type list"),
        ("order", {"kind": "window"}, r"state\['order'\]\['seed'\] is missing"),
        ("order", {**START.to_json_dict()["order"], "drop_last": 1}, r"\['drop_last'\] cannot be of type int"),
        ("order", {**START.to_json_dict()["order"], "seed": True}, r"\['seed'\] cannot be of type bool"),
        ("order", {**START.to_json_dict()["order"], "seed": 2**64}, r"seed=18446744073709551616 is not in"),
        ("order", {**START.to_json_dict()["order"], "block_bytes": 0}, r"block_bytes=0 "),
        ("epoch", -1, "epoch=-1 is outside 0"),
        ("epoch", 1.0, r"state\['epoch'\] cannot be of type float"),
        ("history", {}, r"state\['history'\] cannot be of type dict"),
        ("history", [[1, 1, 1]], r"state\['history'\]\[0\] is not a list of 4 integers"),
        ("history", [[1, 1, 1, 1], [1, 1, True, 1]], r"state\['history'\]\[1\] is not a list of 4 integers"),
        ("history", [[1, 1, 1, -1]], r"history\[0\].yielded=-1 is outside 0"),
        ("history", [[0, 1, 1, 1]], r"history\[0\].world=0 is outside 1"),
        ("history", [[1, 1, 1, 1]] * 10**5, r"state\['history'\] has 100000 entries; at most 16"),
        ("worker", [0, 2, 3], "worker: the last entry of history has another number of workers"),
        ("worker", None, r"state\['worker'\] is not a list of 3 integers"),
    ],
)
def test_a_damaged_state_is_refused_by_key(key: str, value: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        parse({**START.to_json_dict(), key: value})


@pytest.mark.parametrize("key", ["version", "fingerprint", "order", "epoch", "history"])
def test_a_state_without_a_key_is_refused(key: str) -> None:
    state = START.to_json_dict()
    del state[key]
    with pytest.raises(FormatError, match=rf"state\['{key}'\] is missing"):
        parse(state)


def test_what_is_no_dict_is_no_state() -> None:
    with pytest.raises(FormatError, match="a state is a dict, not list"):
        parse([1, 2])


def test_a_later_version_is_not_guessed_at() -> None:
    with pytest.raises(UnsupportedError, match="2; this lazystore reads version 1"):
        parse({**START.to_json_dict(), "version": 2})


# -- which states fit -----------------------------------------------------------------------


def test_a_state_is_refused_with_everything_that_differs() -> None:
    state = START.advanced(topology(), 3)
    mine = Position("f" * 16, OrderSpec("window", 43, 1000, 100, True), 1)
    with pytest.raises(ConfigError) as caught:
        check(state, mine)
    for part in (
        "dataset version is '0123456789abcdef' in the state and 'ffffffffffffffff' here",
        "order is 'sequential' in the state and 'window' here",
        "seed is 42 in the state and 43 here",
        "drop_last is False in the state and True here",
        "force=True",
    ):
        assert part in str(caught.value)


MOSAIC = OrderSpec("mosaic-py1e", 42, 1000, 100, False, num_nodes=2, num_canonical_nodes=4, shuffle_block_size=9)


def test_a_state_of_mosaicmls_order_carries_what_that_goes_by() -> None:
    position = Position("0123456789abcdef", MOSAIC, 0).advanced(topology(2), 3)
    state = position.to_json_dict()
    assert parse(json.loads(json.dumps(state))) == position
    for wrong in ([2, 4], [2, 4, "9"], [0, 4, 9], 2, None):
        state["order"]["mosaic"] = wrong
        with pytest.raises(FormatError, match=r"state\['order'\]"):
            parse(state)
    del state["order"]["mosaic"]
    with pytest.raises(FormatError, match=r"state\['order'\]\['mosaic'\] is missing"):
        parse(state)
    assert "mosaic" not in START.to_json_dict()["order"]


@pytest.mark.parametrize("name", ["num_canonical_nodes", "shuffle_block_size"])
def test_mosaicmls_settings_have_to_be_the_states_where_they_are_given(name: str) -> None:
    state = Position("0123456789abcdef", MOSAIC, 0).advanced(topology(2), 3)
    for value in (0, getattr(MOSAIC, name)):
        mine = dataclasses.replace(state, spec=dataclasses.replace(MOSAIC, num_nodes=1, **{name: value}))
        assert check(state, mine) == state
    mine = dataclasses.replace(state, spec=dataclasses.replace(MOSAIC, **{name: 6}))
    with pytest.raises(ConfigError, match=rf"{name} is {getattr(MOSAIC, name)} in the state and 6 here"):
        check(state, mine)


def test_an_epoch_that_was_not_begun_may_begin_on_other_nodes_with_the_canonical_ones_it_had() -> None:
    defaults = dataclasses.replace(MOSAIC, num_canonical_nodes=0, shuffle_block_size=0)
    state = Position("0123456789abcdef", defaults, 3)
    mine = dataclasses.replace(state, spec=dataclasses.replace(defaults, num_nodes=1))
    found = check(state, mine)
    assert found.epoch == 3
    assert (found.spec.num_nodes, found.spec.num_canonical_nodes, found.spec.shuffle_block_size) == (1, 2, 2_000_000)
    assert check(state.advanced(topology(2), 1), mine).spec == defaults


def test_only_what_differs_is_named() -> None:
    mine = dataclasses.replace(START, spec=dataclasses.replace(SPEC, seed=7))
    with pytest.raises(ConfigError) as caught:
        check(START, mine)
    assert "seed" in str(caught.value)
    assert "dataset version" not in str(caught.value) and "drop_last" not in str(caught.value)


def test_force_takes_the_position_and_the_present_order() -> None:
    state = dataclasses.replace(START, epoch=4).advanced(topology(), 3)
    mine = Position("f" * 16, OrderSpec("window", 43, 5, 6, True), 1)
    assert check(state, mine, force=True) == dataclasses.replace(mine, epoch=4, history=(Run(1, 1, 1, 3),))


@pytest.mark.parametrize("force", [False, True])
def test_another_budget_keeps_the_order_of_the_state(force: bool) -> None:
    state = START.advanced(topology(), 3)
    mine = dataclasses.replace(START, spec=dataclasses.replace(SPEC, window_bytes=5, block_bytes=7))
    assert check(state, mine, force) == state


# -- what is left ---------------------------------------------------------------------------


def test_the_same_reader_goes_on() -> None:
    assert items(START.advanced(topology(), 12), topology()) == list(range(12, 30))


def test_workers_go_on_where_they_were() -> None:
    position = START.advanced(topology(workers=2, batch_size=4), 16)
    first, second = (topology(workers=2, batch_size=4, worker=worker) for worker in (0, 1))
    assert items(position, first) == list(range(8, 16))
    assert items(position, second) == list(range(24, 30))


def test_workers_swap_parts_so_that_the_turns_go_on() -> None:
    position = START.advanced(topology(workers=2, batch_size=4), 12)  # two batches of worker 0, one of worker 1
    first, second = (topology(workers=2, batch_size=4, worker=worker) for worker in (0, 1))
    assert items(position, first) == list(range(20, 30))
    assert items(position, second) == list(range(8, 16))


def test_a_workers_state_keeps_the_part_it_was_given() -> None:
    position = START.advanced(topology(workers=2, batch_size=4), 12)
    first = topology(workers=2, batch_size=4)
    route = remaining_route(position, SHAPE, first)
    assert items(position.in_worker(first, route.taken + 3), first) == list(range(23, 30))


def test_inside_a_batch_the_rest_is_cut_anew_for_workers() -> None:
    position = START.advanced(topology(workers=2, batch_size=4), 10)
    again = position.advanced(topology(workers=2, batch_size=4), 4)
    assert position.history == (Run(1, 2, 4, 10),)
    assert again.history == (Run(1, 2, 4, 10), Run(1, 2, 4, 4))
    assert [items(position, topology(workers=2, batch_size=4, worker=worker)) for worker in (0, 1)] == [
        [*range(6, 16), 20, 21], [*range(22, 30)]
    ]  # fmt: skip


def test_the_rest_is_cut_anew_for_other_ranks() -> None:
    position = START.advanced(topology(2), 5)  # 0..14 and 15..29, five of each gone
    assert [items(position, topology(3, rank=rank)) for rank in range(3)] == [
        [*range(5, 12)], [*range(12, 15), *range(20, 24)], [*range(24, 30)]
    ]  # fmt: skip


def test_with_drop_last_ranks_stay_equal() -> None:
    position = dataclasses.replace(START, spec=dataclasses.replace(SPEC, drop_last=True)).advanced(topology(2), 5)
    parts = [items(position, topology(3, rank=rank)) for rank in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]


def test_a_finished_epoch_leaves_nothing() -> None:
    for readers in (topology(), topology(2), topology(2, 3, 4, 1, 2)):
        route = remaining_route(START.advanced(topology(), 30), SHAPE, readers)
        assert route.length == 0
        assert list(route.legs()) == []


def test_a_forced_state_of_a_larger_dataset_ends_instead_of_overrunning() -> None:
    position = START.advanced(topology(3), 10**9)
    assert items(position, topology(3)) == items(position, topology(2)) == []


def test_a_workers_state_is_for_that_worker_only() -> None:
    mine = topology(2, 3, 4, rank=1, worker=2)
    position = START.in_worker(mine, 1)
    assert remaining_route(position, SHAPE, mine).taken == 1
    for other in (
        topology(2, 3, 4, worker=1),
        topology(2, 4, 4, worker=2),
        topology(3, 3, 4, worker=2),
        topology(2, 3, 5, worker=2),
        topology(),
    ):
        with pytest.raises(ConfigError, match=r"DataLoader worker 2 of 3 \(world 2, batch size 4\); load it there"):
            remaining_route(position, SHAPE, other)
    with pytest.raises(ConfigError, match="cannot stand for a whole rank"):
        position.advanced(topology(), 1)


def test_a_remainder_is_picklable() -> None:
    route = remaining_route(START.advanced(topology(2), 5), SHAPE, topology(3))
    again = pickle.loads(pickle.dumps(route))
    assert again == route
    assert list(again.legs()) == list(route.legs())


def test_a_thousand_ranks_are_laid_out_from_lengths_alone() -> None:
    asked: list[Topology] = []

    def length_of(spec: OrderSpec, shape: Shape, reader: Topology, epoch: int) -> int:
        asked.append(reader)
        return 1_000_000

    def build(spec: OrderSpec, shape: Shape, reader: Topology, epoch: int) -> Any:
        raise AssertionError("routes are built while iterating")

    position = START.advanced(topology(1024, 4, 256), 300_000).advanced(topology(512, 4, 256), 300_000)
    route = remaining_route(position, SHAPE, topology(64, 2, 256, rank=63, worker=1), build, length_of)
    assert len(asked) == 4096
    left = 4096 * 1_000_000 - 1024 * 300_000 - 512 * 300_000
    assert abs(route.length - left / 128) <= 256
    assert len(route.pieces) < 100


# -- turns and shares -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yielded", "lengths", "batch_size", "expected"),
    [
        (0, [5, 5], 2, [0, 0]),
        (1, [5, 5], 2, [1, 0]),
        (7, [5, 5], 2, [4, 3]),
        (9, [5, 5], 2, [5, 4]),
        (9, [2, 9], 2, [2, 7]),
        (7, [0, 9], 4, [0, 7]),
        (7, [0, 0], 4, [0, 0]),
        (10**14, [5, 10**12], 4, [5, 10**12]),
    ],
)
def test_items_of_each_worker(yielded: int, lengths: list[int], batch_size: int, expected: list[int]) -> None:
    assert consumed(yielded, lengths, batch_size) == expected


@pytest.mark.parametrize(
    ("given", "lengths", "expected"),
    [
        ([0, 0], [8, 8], 0),
        ([4, 0], [8, 8], 1),
        ([4, 2], [8, 8], 1),
        ([4, 4], [8, 8], 0),
        ([3, 4], [3, 8], 1),
        ([8, 8], [8, 8], 0),
    ],
)
def test_whose_turn_it_is(given: list[int], lengths: list[int], expected: int) -> None:
    assert next_worker(given, lengths, 4) == expected


def test_the_short_batch_is_the_last_of_all() -> None:
    parts = [share(30, topology(1, 3, 4, worker=worker), False) for worker in range(3)]
    assert parts == [(0, 12), (12, 22), (22, 30)]  # batches: 3, 3, 2; the eighth and last has two items
