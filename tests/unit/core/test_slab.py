"""A slab: the items of a run of frames, pinned while it lives, and arguments that are no slab refused."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import struct
from typing import Any

import pytest
from models.chunked import TABLE_AT
from support.slabs import FRAME, Resident

from lazystore._core.slab import Slab
from lazystore.errors import ArenaFullError, ClosedError, ConfigError, FormatError, ItemIndexError

# Lengths that make items inside a frame, across two, across many, exactly at a border, and empty ones.
SIZES = [0, 1, 100, 4000, 4096, 0, 9000, 3, 20000, 0, 0, 1000, 4095, 4097]


def world(sizes: list[int] = SIZES, **options: Any) -> Resident:
    """One chunk of items of these lengths."""
    chance = random.Random(len(sizes))
    return Resident([[chance.randbytes(size) for size in sizes]], **options)


# -- items ----------------------------------------------------------------------------------


def test_a_slab_of_a_whole_chunk_gives_every_item() -> None:
    resident = world()
    slab = resident.slab(0)
    assert len(slab) == len(SIZES)
    assert [slab.item(i) for i in range(len(SIZES))] == resident.items[0]


@pytest.mark.parametrize("seed", range(8))
def test_a_slab_of_any_run_gives_the_items_of_the_run(seed: int) -> None:
    chance = random.Random(seed)
    resident = world(chance.choices([*SIZES, 10, 20], k=chance.choice([5, 60, 1500])), budget=32 << 20)
    for _ in range(30):
        first, last = sorted(chance.choices(range(len(resident.items[0]) + 1), k=2))
        if first < last:
            slab = resident.slab(0, first, last)
            assert [slab.item(i) for i in range(first, last)] == resident.items[0][first:last]
            del slab
    assert resident.pins() == 0


def test_items_of_one_length_need_no_table() -> None:
    resident = world([700] * 40)
    begin, end = resident.data.span(0, 5)[0], resident.data.span(0, 24)[1]
    slab = resident.slab(0, 5, 25, table=(0, 0, 0), table_at=0, stride=700)
    assert (end - begin) == 20 * 700
    assert [slab.item(i) for i in range(5, 25)] == resident.items[0][5:25]


def test_a_slab_of_no_items_is_one() -> None:
    resident = world()
    slab = resident.slab(0, 4, 4, table=(0, 0, 1), table_at=20, body=(0, 0, 0), body_at=0, begin=9, end=9)
    assert len(slab) == 0
    with pytest.raises(ItemIndexError):
        slab.item(4)


@pytest.mark.parametrize("number", [-1, 1, 6, 2**31, 2**40, -(2**40)])
def test_items_outside_the_run_are_refused_by_name(number: int) -> None:
    slab = world().slab(0, 2, 6)
    with pytest.raises(ItemIndexError, match=rf"item {number} is not among 2\.\.5"):
        slab.item(number)


# -- pins -----------------------------------------------------------------------------------


def test_frames_are_pinned_until_release_and_then_leave_first() -> None:
    resident = world(SIZES, budget=1 << 16)
    slab = resident.slab(0)
    assert resident.pins() == slab_frames(resident)
    slab.release()
    assert resident.pins() == 0
    assert {entry[:2] for entry in resident.store.eviction_order()[: resident.parts(0)]} == {
        (0, part) for part in range(resident.parts(0))
    }
    slab.release()
    resident.store.check()


def slab_frames(resident: Resident) -> int:
    """Pins of a slab of everything: its table's frames and its body's, the common ones twice."""
    arguments = resident.arguments(0)
    return int(arguments["table"][2] + arguments["body"][2])


def test_frames_are_pinned_until_the_slab_is_gone() -> None:
    resident = world()
    slab = resident.slab(0)
    assert resident.pins()
    del slab
    gc.collect()
    assert resident.pins() == 0
    resident.store.check()


def test_a_released_slab_gives_nothing() -> None:
    resident = world()
    slab = resident.slab(0)
    slab.release()
    assert slab.released
    with pytest.raises(ClosedError):
        slab.item(0)
    assert "released" in repr(slab)


def test_slabs_over_the_same_frames_pin_them_each() -> None:
    resident = world()
    one, other = resident.slab(0), resident.slab(0, 2, 9)
    one.release()
    assert [other.item(i) for i in range(2, 9)] == resident.items[0][2:9]
    other.release()
    assert resident.pins() == 0


def test_what_a_slab_holds_cannot_be_evicted() -> None:
    resident = world([3000] * 8, budget=1 << 16)
    slab = resident.slab(0)
    held = []
    with pytest.raises(ArenaFullError):
        while True:
            fill = resident.store.begin(50, len(held), FRAME)
            assert fill is not None
            memoryview(fill)[:] = b"x" * FRAME
            fill.commit()
            held.append(fill)
    assert [slab.item(i) for i in range(8)] == resident.items[0]


@pytest.mark.parametrize("missing", ["table", "body", "last"])
def test_a_part_that_is_not_resident_refuses_the_slab_and_pins_nothing(missing: str) -> None:
    resident = world([30] * 2000 + [3000] * 8, budget=1 << 20)
    part = {"table": 0, "body": resident.arguments(0)["body"][1] + 1, "last": resident.parts(0) - 1}[missing]
    assert resident.store.drop(0, part)
    with pytest.raises(KeyError):
        resident.slab(0)
    assert resident.pins() == 0
    resident.store.check()


def test_a_part_being_filled_refuses_the_slab() -> None:
    resident = world()
    resident.store.drop(0, 1)
    fill = resident.store.begin(0, 1, FRAME)
    assert fill is not None
    with pytest.raises(KeyError):
        resident.slab(0)
    assert resident.pins() == 1  # the fill's
    fill.release()
    assert resident.pins() == 0


def test_a_closed_store_makes_no_slab() -> None:
    resident = world()
    resident.store.close()
    with pytest.raises(ClosedError):
        resident.slab(0)


def test_a_slab_outlives_its_store_closed() -> None:
    resident = world()
    slab = resident.slab(0)
    resident.store.close()
    assert [slab.item(i) for i in range(len(SIZES))] == resident.items[0]
    slab.release()
    with pytest.raises(ClosedError):
        slab.item(0)
    del slab, resident
    gc.collect()


# -- damage ---------------------------------------------------------------------------------


def damaged(offsets: dict[int, int]) -> Resident:
    """A chunk in which some offsets are others."""
    resident = world([100] * 20)
    content = bytearray(resident.data.chunks[0])
    for entry, value in offsets.items():
        struct.pack_into("<I", content, TABLE_AT + 4 * entry, value)
    assert resident.store.drop(0, 0)
    resident.data.chunks[0] = bytes(content)
    resident.loader.fill_all()
    return resident


@pytest.mark.parametrize("value", [0, 3, 2**32 - 1, 10**6])
def test_offsets_outside_are_refused_item_by_item(value: int) -> None:
    clean = world([100] * 20).arguments(0)
    slab = damaged({7: value}).slab(0, **clean)
    for i in range(20):
        if i in (6, 7):
            with pytest.raises(FormatError, match=f"item {i} of chunk 0"):
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
    {"end": 2**62, "body": (0, 0, 2**50)},
    {"table": (0, 0, 2**62)},
    {"body": (0, 0, 2**62)},
    {"body": (0, 0, 2**62 - 1)},
    {"body": (0, 0, 2**63 - 1)},
    {"body": (0, 0, 2**63 - 1), "table": (0, 0, 2**63 - 1)},
    {"body": (0, 0, 2**48)},
    {"table": (0, 0, 2**48)},
    {"table": (0, 0, 0)},
    {"body": (0, 0, 0)},
    {"body": (0, 0, -1)},
    {"table": (0, 0, -1)},
    {"table": (0, 0, -(2**63))},
    {"body": (2**63, 0, 1)},
    {"body": (0, 2**63, 2)},
    {"body": (0, 2**64 - 1, 5)},
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
    resident = world([100] * 200)
    try:
        slab = resident.slab(0, 0, 10, **changes)
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
    assert resident.pins() == 0
    resident.store.check()


@pytest.mark.parametrize("run", [(-1, 3), (5, 2), (0, 2**62), (0, 2**63 - 1), (0, 1 << 40)])
def test_runs_that_are_none_are_refused(run: tuple[int, int]) -> None:
    resident = world([100] * 20)
    with pytest.raises((ConfigError, KeyError)):
        Slab(resident.store, 0, *run, **resident.arguments(0))
    assert resident.pins() == 0


@pytest.mark.parametrize("row", [(), (0,), (0, 0), (0, 0, "x"), ("x", 0, 1), None, [0, 0, 1]])
def test_rows_of_another_kind_are_refused(row: Any) -> None:
    resident = world([100] * 20)
    for name in ("table", "body"):
        with pytest.raises((TypeError, IndexError, ValueError, ConfigError)):
            resident.slab(0, **{name: row})
    assert resident.pins() == 0


def test_slabs_cannot_be_copied_or_pickled() -> None:
    slab = world().slab(0)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pins memory"):
            attempt(slab)
