"""A slab: the items of a run of frames, pinned while it lives, and arguments that are no slab refused."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import struct
from typing import Any

import pytest
from models.chunked import TABLE_AT, ChunkedItems

from lazystore._core.frames import FrameStore
from lazystore._core.slab import Slab
from lazystore.errors import ArenaFullError, ClosedError, ConfigError, FormatError, ItemIndexError

FRAME = 4096
# Lengths that make items inside a frame, across two, across many, exactly at a border, and empty ones.
SIZES = [0, 1, 100, 4000, 4096, 0, 9000, 3, 20000, 0, 0, 1000, 4095, 4097]


class World:
    """One chunk in a store, whole, and slabs of it."""

    def __init__(self, sizes: list[int], *, budget: int = 1 << 20, chunk: int = 3) -> None:
        chance = random.Random(len(sizes))
        self.items = [chance.randbytes(size) for size in sizes]
        self.data = ChunkedItems([self.items])
        self.content = self.data.chunks[0]
        self.chunk = chunk
        self.store = FrameStore(budget, frame_bytes=FRAME)
        self.parts = -(-len(self.content) // FRAME)
        self.load()

    def load(self) -> None:
        for part in range(self.parts):
            self.put(part, self.content[part * FRAME : (part + 1) * FRAME])

    def put(self, part: int, content: bytes) -> None:
        fill = self.store.begin(self.chunk, part, len(content))
        if fill is not None:
            memoryview(fill)[:] = content
            fill.commit()
            fill.release()

    def arguments(self, first: int = 0, last: int | None = None) -> dict[str, Any]:
        last = len(self.items) if last is None else last
        entry = TABLE_AT + 4 * first
        begin = self.data.span(0, first)[0] if first < len(self.items) else len(self.content)
        end = self.data.span(0, last - 1)[1] if last else begin
        table, body = entry // FRAME, begin // FRAME
        return {
            "table": (self.chunk, table, (entry + 4 * (last - first + 1) - 1) // FRAME - table + 1),
            "table_at": entry - table * FRAME,
            "body": (self.chunk, body, (end - 1) // FRAME - body + 1 if end > begin else 0),
            "body_at": begin - body * FRAME,
            "begin": begin,
            "end": end,
        }

    def slab(self, first: int = 0, last: int | None = None, **changes: Any) -> Slab:
        last = len(self.items) if last is None else last
        return Slab(self.store, self.chunk, first, last, **{**self.arguments(first, last), **changes})

    def pins(self) -> int:
        return self.store.counters()["pins"]


# -- items ----------------------------------------------------------------------------------


def test_a_slab_of_a_whole_chunk_gives_every_item() -> None:
    world = World(SIZES)
    slab = world.slab()
    assert len(slab) == len(SIZES)
    assert [slab.item(i) for i in range(len(SIZES))] == world.items


@pytest.mark.parametrize("seed", range(8))
def test_a_slab_of_any_run_gives_the_items_of_the_run(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance.choices([*SIZES, 10, 20], k=chance.choice([5, 60, 1500])), budget=32 << 20)
    for _ in range(30):
        first, last = sorted(chance.choices(range(len(world.items) + 1), k=2))
        if first < last:
            slab = world.slab(first, last)
            assert [slab.item(i) for i in range(first, last)] == world.items[first:last]
            del slab
    assert world.pins() == 0


def test_items_of_one_length_need_no_table() -> None:
    world = World([700] * 40)
    begin, end = world.data.span(0, 5)[0], world.data.span(0, 24)[1]
    slab = world.slab(5, 25, table=(world.chunk, 0, 0), table_at=0, stride=700)
    assert (end - begin) == 20 * 700
    assert [slab.item(i) for i in range(5, 25)] == world.items[5:25]


def test_a_slab_of_no_items_is_one() -> None:
    world = World(SIZES)
    slab = world.slab(4, 4, table=(world.chunk, 0, 1), table_at=20, body=(world.chunk, 0, 0), body_at=0, begin=9, end=9)
    assert len(slab) == 0
    with pytest.raises(ItemIndexError):
        slab.item(4)


@pytest.mark.parametrize("number", [-1, 1, 6, 2**31, 2**40, -(2**40)])
def test_items_outside_the_run_are_refused_by_name(number: int) -> None:
    slab = World(SIZES).slab(2, 6)
    with pytest.raises(ItemIndexError, match=rf"item {number} is not among 2\.\.5"):
        slab.item(number)


# -- pins -----------------------------------------------------------------------------------


def test_frames_are_pinned_until_release_and_then_leave_first() -> None:
    world = World(SIZES, budget=1 << 16)
    slab = world.slab()
    assert world.pins() == slab_frames(world)
    slab.release()
    assert world.pins() == 0
    assert {entry[:2] for entry in world.store.eviction_order()[: world.parts]} == {
        (world.chunk, part) for part in range(world.parts)
    }
    slab.release()
    world.store.check()


def slab_frames(world: World) -> int:
    """Pins of a slab of everything: its table's frames and its body's, the common ones twice."""
    arguments = world.arguments()
    return int(arguments["table"][2] + arguments["body"][2])


def test_frames_are_pinned_until_the_slab_is_gone() -> None:
    world = World(SIZES)
    slab = world.slab()
    assert world.pins()
    del slab
    gc.collect()
    assert world.pins() == 0
    world.store.check()


def test_a_released_slab_gives_nothing() -> None:
    world = World(SIZES)
    slab = world.slab()
    slab.release()
    assert slab.released
    with pytest.raises(ClosedError):
        slab.item(0)
    assert "released" in repr(slab)


def test_slabs_over_the_same_frames_pin_them_each() -> None:
    world = World(SIZES)
    one, other = world.slab(), world.slab(2, 9)
    one.release()
    assert [other.item(i) for i in range(2, 9)] == world.items[2:9]
    other.release()
    assert world.pins() == 0


def test_what_a_slab_holds_cannot_be_evicted() -> None:
    world = World([3000] * 8, budget=1 << 16)
    slab = world.slab()
    held = []
    with pytest.raises(ArenaFullError):
        while True:
            fill = world.store.begin(50, len(held), FRAME)
            assert fill is not None
            memoryview(fill)[:] = b"x" * FRAME
            fill.commit()
            held.append(fill)
    assert [slab.item(i) for i in range(8)] == world.items


@pytest.mark.parametrize("missing", ["table", "body", "last"])
def test_a_part_that_is_not_resident_refuses_the_slab_and_pins_nothing(missing: str) -> None:
    world = World([30] * 2000 + [3000] * 8, budget=1 << 20)
    part = {"table": 0, "body": world.arguments()["body"][1] + 1, "last": world.parts - 1}[missing]
    assert world.store.drop(world.chunk, part)
    with pytest.raises(KeyError):
        world.slab()
    assert world.pins() == 0
    world.store.check()


def test_a_part_being_filled_refuses_the_slab() -> None:
    world = World(SIZES)
    world.store.drop(world.chunk, 1)
    fill = world.store.begin(world.chunk, 1, FRAME)
    assert fill is not None
    with pytest.raises(KeyError):
        world.slab()
    assert world.pins() == 1  # the fill's
    fill.release()
    assert world.pins() == 0


def test_a_closed_store_makes_no_slab() -> None:
    world = World(SIZES)
    world.store.close()
    with pytest.raises(ClosedError):
        world.slab()


def test_a_slab_outlives_its_store_closed() -> None:
    world = World(SIZES)
    slab = world.slab()
    world.store.close()
    assert [slab.item(i) for i in range(len(SIZES))] == world.items
    slab.release()
    with pytest.raises(ClosedError):
        slab.item(0)
    del slab, world
    gc.collect()


# -- damage ---------------------------------------------------------------------------------


def damaged(offsets: dict[int, int]) -> World:
    """A chunk in which some offsets are others."""
    world = World([100] * 20)
    content = bytearray(world.content)
    for entry, value in offsets.items():
        struct.pack_into("<I", content, TABLE_AT + 4 * entry, value)
    world.store.drop(world.chunk, 0)
    world.content = bytes(content)
    world.load()
    return world


@pytest.mark.parametrize("value", [0, 3, 2**32 - 1, 10**6])
def test_offsets_outside_are_refused_item_by_item(value: int) -> None:
    clean = World([100] * 20).arguments()
    slab = damaged({7: value}).slab(**clean)
    for i in range(20):
        if i in (6, 7):
            with pytest.raises(FormatError, match=f"item {i} of chunk 3"):
                slab.item(i)
        else:
            assert len(slab.item(i)) == 100


# -- hostile arguments ----------------------------------------------------------------------

HOSTILE: list[dict[str, Any]] = [
    {"table_at": 2**64 - 4},
    {"table_at": 2**64 - 1},
    {"table_at": 2**63},
    {"table_at": 40_000},
    {"body_at": 2**64 - 1},
    {"body_at": 2**64 - 8, "begin": 0, "end": 1000, "stride": 1},
    {"body_at": 2**63, "begin": 0, "end": 2**63 + 1000, "stride": 10},
    {"body_at": 10**6},
    {"begin": 0, "end": 2**64 - 1},
    {"begin": 2**64 - 1, "end": 0},
    {"begin": 2**64 - 1, "end": 2**64 - 1},
    {"end": 2**62, "body": (3, 0, 2**50)},
    {"table": (3, 0, 2**62)},
    {"body": (3, 0, 2**62)},
    {"body": (3, 0, 2**62 - 1)},
    {"body": (3, 0, 2**63 - 1)},
    {"body": (3, 0, 2**63 - 1), "table": (3, 0, 2**63 - 1)},
    {"body": (3, 0, 2**48)},
    {"table": (3, 0, 2**48)},
    {"table": (3, 0, 0)},
    {"body": (3, 0, 0)},
    {"body": (3, 0, -1)},
    {"table": (3, 0, -1)},
    {"table": (3, 0, -(2**63))},
    {"body": (2**63, 0, 1)},
    {"body": (3, 2**63, 2)},
    {"body": (3, 2**64 - 1, 5)},
    {"body": (2**40, 0, 5)},
    {"body": (-1, 0, 5)},
    {"stride": 2**63},
    {"stride": 2**64 - 1, "begin": 0, "end": 2**64 - 1},
    {"stride": 10**9},
    {"begin": -1},
    {"stride": 2**64},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_arguments_that_are_no_slab_are_refused_or_harmless(changes: dict[str, Any]) -> None:
    world = World([100] * 200)
    try:
        slab = world.slab(0, 10, **changes)
    except (ConfigError, KeyError, OverflowError, MemoryError):
        slab = None
    else:
        for i in range(10):
            try:
                slab.item(i)
            except FormatError:
                continue
    del slab
    gc.collect()
    assert world.pins() == 0
    world.store.check()


@pytest.mark.parametrize("run", [(-1, 3), (5, 2), (0, 2**62), (0, 2**63 - 1), (2**62, 2**62 + 4), (0, 1 << 40)])
def test_runs_that_are_none_are_refused(run: tuple[int, int]) -> None:
    world = World([100] * 20)
    with pytest.raises((ConfigError, KeyError)):
        Slab(world.store, 3, *run, **world.arguments())
    assert world.pins() == 0


@pytest.mark.parametrize("row", [(), (3,), (3, 0), (3, 0, "x"), ("x", 0, 1), None, [3, 0, 1]])
def test_rows_of_another_kind_are_refused(row: Any) -> None:
    world = World([100] * 20)
    for name in ("table", "body"):
        with pytest.raises((TypeError, IndexError, ConfigError)):
            world.slab(**{name: row})
    assert world.pins() == 0


def test_slabs_cannot_be_copied_or_pickled() -> None:
    slab = World(SIZES).slab()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pins memory"):
            attempt(slab)
