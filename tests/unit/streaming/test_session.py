"""Where a dataset stands: epochs that end by themselves, states that are taken anywhere, settings that change."""

from __future__ import annotations

import json
import random
from array import array
from typing import Any

import pytest
from models.walk import route_items

from lazystore._core.walk import Progress
from lazystore.errors import ConfigError, FormatError, UnsupportedError
from lazystore.streaming.order import KINDS, Shape, first_epoch
from lazystore.streaming.session import Session, order_kind

COUNTS = array("Q", [30, 1, 0, 50, 20])
TOTAL = sum(COUNTS)
MARK = "0123456789abcdef"


#: With more canonical nodes MosaicML's orders repeat items.
ONE_ROW = {"num_canonical_nodes": 1}


def session(kind: str = "window", **options: Any) -> Session:
    settings: dict[str, Any] = {
        "seed": 7, "drop_last": None, "budget": 1 << 16, "rank": 0, "world_size": 1, "batch_size": 1, **options,
    }  # fmt: skip
    return Session(Shape(COUNTS, array("Q", [count * 900 for count in COUNTS])), MARK, kind=kind, **settings)


def read(made: Session, count: int | None = None, start: int = 0) -> list[int]:
    """A pass of ``count`` items, or to its end."""
    route, progress = made.begin(start)
    items = route_items(route.legs(min(start, route.length)), COUNTS)
    if count is None or count > len(items):
        progress.position += len(items)
        progress.finished = True
        return items
    progress.position += count
    return items[:count]


# -- the kind of order ----------------------------------------------------------------------


def test_each_way_to_name_an_order() -> None:
    assert [order_kind(shuffle, None) for shuffle in (False, True, "chunk", "global")] == [
        "sequential", "window", "litdata", "global",
    ]  # fmt: skip
    for kind in KINDS:
        assert order_kind(True, kind) == kind


@pytest.mark.parametrize("shuffle", [None, "window", 2, "", [], {}, 0.0, b"chunk"])
def test_other_shuffles_are_refused_by_name(shuffle: Any) -> None:
    with pytest.raises(ConfigError, match="shuffle="):
        order_kind(shuffle, None)


@pytest.mark.parametrize("order", ["", "chunk", "Window", 3, True, []])
def test_other_orders_are_refused_by_name(order: Any) -> None:
    with pytest.raises((ConfigError, TypeError), match=r"order=|unhashable"):
        order_kind(False, order)


# -- epochs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_pass_that_ends_is_another_epoch_with_all_items(kind: str) -> None:
    made = session(kind, **ONE_ROW)
    passes = []
    first = first_epoch(kind)
    for epoch in range(first, first + 3):
        assert made.epoch == epoch
        passes.append(read(made))
        assert sorted(passes[-1]) == list(range(TOTAL))
    assert made.epoch == first + 3
    if kind != "sequential":
        assert len(set(map(tuple, passes))) == 3


def test_a_pass_that_is_broken_off_begins_again() -> None:
    made = session()
    first = read(made, 30)
    assert made.epoch == 1
    assert read(made)[:30] == first
    assert made.epoch == 2


def test_of_passes_that_overlap_the_latest_counts() -> None:
    made = session()
    _, older = made.begin()
    _, newer = made.begin()
    older.finished = True
    assert made.epoch == 1
    newer.finished = True
    assert made.epoch == 2
    assert made.epoch == 2  # once


def test_an_epoch_that_is_set_is_read_next() -> None:
    made, other = session(), session()
    made.set_epoch(5)
    for _ in range(4):
        read(other)
    assert made.epoch == other.epoch == 5
    assert read(made) == read(other)
    assert made.epoch == 6
    made.set_epoch(0)
    assert made.epoch == 0
    read(made)
    assert made.epoch == 1


def test_setting_the_present_epoch_changes_nothing() -> None:
    made = session()
    items = read(made, 40)
    made.set_epoch(1)
    state = made.state_dict(None, None)
    assert state["history"] == [[1, 1, 1, 40]]
    made.load_state_dict(state, False)
    made.set_epoch(1)
    assert items + read(made) == read(fresh := session()) and fresh.epoch == 2


def test_setting_another_epoch_drops_what_was_loaded() -> None:
    made = session()
    read(made, 40)
    made.load_state_dict(made.state_dict(None, None), False)
    made.set_epoch(2)
    assert len(read(made)) == TOTAL
    assert made.epoch == 3


@pytest.mark.parametrize("epoch", [-1, 1.0, "1", None, True, [1]])
def test_what_is_no_epoch_is_refused(epoch: Any) -> None:
    made = session()
    with pytest.raises(ConfigError, match="epoch="):
        made.set_epoch(epoch)
    assert made.epoch == 1


def test_numbers_of_numpy_are_epochs() -> None:
    numpy = pytest.importorskip("numpy")
    made = session()
    made.set_epoch(numpy.int64(4))
    assert made.epoch == 4
    json.dumps(made.state_dict(None, None))


# -- states ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_state_from_anywhere_goes_on_exactly(kind: str, epochs: int) -> None:
    whole = session(kind, **ONE_ROW)
    for _ in range(epochs):
        read(whole)
    items, following = read(whole), read(whole)
    for position in (0, 1, 29, 60, TOTAL - 1, TOTAL):
        made = session(kind, **ONE_ROW)
        for _ in range(epochs):
            read(made)
        assert read(made, position) == items[:position]
        state = json.loads(json.dumps(made.state_dict(None, None)))
        assert len(json.dumps(state)) <= 1024
        # The machine it goes on on may have another budget.
        other = session(kind, **ONE_ROW, budget=1 << 22)
        other.load_state_dict(state, False)
        assert other.epoch == epochs + first_epoch(kind)
        assert read(other) == items[position:]
        assert other.epoch == epochs + first_epoch(kind) + 1
        again = session(kind, **ONE_ROW)
        again.load_state_dict(state, False)
        read(again)
        assert read(again) == following


def test_states_of_states_add_up() -> None:
    items = read(session())
    chance = random.Random(1)
    made, found = session(), []
    while len(found) < TOTAL:
        found += read(made, min(chance.randrange(0, 15), TOTAL - len(found)))
        state = made.state_dict(None, None)
        made = session(budget=chance.choice([1 << 15, 1 << 16, 1 << 20]))
        made.load_state_dict(state, False)
        assert made.state_dict(None, None) == state
    assert found == items
    assert read(made) == []
    assert made.epoch == 2


def test_a_state_after_the_end_is_that_of_the_next_epoch() -> None:
    made = session()
    read(made)
    state = made.state_dict(None, None)
    assert (state["epoch"], state["history"]) == (2, [])
    other = session()
    other.load_state_dict(state, False)
    assert read(other) == read(made)


def test_a_state_of_items_that_a_loader_counted() -> None:
    items = read(session())
    made = session(batch_size=4)
    made.begin()
    state = made.state_dict(12, 0)
    other = session(batch_size=4)
    other.load_state_dict(state, False)
    assert read(other) == items[12:]


def test_a_pass_entered_inside_counts_from_there() -> None:
    items = read(session())
    made = session()
    assert read(made, 10, start=25) == items[25:35]
    state = made.state_dict(None, None)
    other = session()
    other.load_state_dict(state, False)
    assert read(other) == items[35:]


@pytest.mark.parametrize(
    "options",
    [{"seed": 8}, {"kind": "global"}, {"drop_last": True, "world_size": 2}],
    ids=lambda options: next(iter(options)),
)
def test_the_state_of_something_else_is_refused_and_can_be_forced(options: dict[str, Any]) -> None:
    made = session()
    read(made, 40)
    state = made.state_dict(None, None)
    other = session(**options)
    with pytest.raises(ConfigError, match="force=True"):
        other.load_state_dict(state, False)
    assert other.state_dict(None, None) == session(**options).state_dict(None, None)
    other.load_state_dict(state, True)
    assert other.epoch == 1
    assert len(read(other)) <= TOTAL - 40


@pytest.mark.parametrize("state", [None, {}, [], "state", {"version": 1}, {"version": 99}, {"version": "1"}])
def test_what_is_no_state_is_refused_and_changes_nothing(state: Any) -> None:
    made = session()
    read(made, 40)
    before = made.state_dict(None, None)
    with pytest.raises((FormatError, UnsupportedError), match="state"):
        made.load_state_dict(state, False)
    assert made.state_dict(None, None) == before


# -- ranks and settings ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sequential", "window", "global"])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_an_epoch(kind: str, world: int) -> None:
    parts = [session(kind, rank=rank, world_size=world, drop_last=False) for rank in range(world)]
    assert sorted(item for made in parts for item in read(made)) == list(range(TOTAL))
    assert sum(made.length() for made in parts) == TOTAL
    even = [session(kind, rank=rank, world_size=world) for rank in range(world)]
    assert {made.length() for made in even} == {TOTAL // world}
    assert {len(read(made)) for made in even} == {TOTAL // world}


def test_length_is_that_of_the_epoch_wherever_it_stands() -> None:
    made = session()
    assert made.length() == TOTAL
    read(made, 40)
    assert made.length() == TOTAL
    made.load_state_dict(made.state_dict(None, None), False)
    assert made.length() == TOTAL


def test_other_settings_hold_from_the_next_pass_on() -> None:
    made = session()
    read(made, 40)
    made.load_state_dict(made.state_dict(None, None), False)
    made.change(kind="window", drop_last=False)  # the same: nothing is lost
    assert len(read(made)) == TOTAL - 40
    made.change(kind="sequential")
    assert read(made) == list(range(TOTAL))
    made.change(batch_size=8)
    assert made.topology().batch_size == 8


def test_settings_carry_everything_that_is_not_an_argument() -> None:
    made = session()
    made.set_epoch(3)
    read(made, 40)
    made.load_state_dict(made.state_dict(None, None), False)
    other = session("sequential", seed=1).restore(made.settings())
    assert other.epoch == 3
    assert read(other) == read(made)


def test_readers_are_counted_before_they_read() -> None:
    made = session(batch_size=4)
    lengths = [made.reader_length(worker, 3) for worker in range(3)]
    assert sum(lengths) == TOTAL
    assert lengths == sorted(lengths, reverse=True)
    assert made.reader_length(0, 0) == TOTAL


def test_progress_without_a_pass_is_none() -> None:
    assert Progress().position == 0
    assert session().state_dict(None, None)["history"] == []
    assert "window" in repr(session())
