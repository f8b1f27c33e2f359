"""The frame store: budgets, fills, leases and lifetimes one promise at a time."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lazystore._core.arena import MIN_BYTES, Arena, frame_size_for
from lazystore._core.frames import Fill, FrameStore, Lease
from lazystore.errors import ArenaFullError, BudgetTooSmallError, ClosedError, ConfigError, FormatError

KIB = 1024
FRAME = 4 * KIB
BLOCK = FRAME // 64


def make(frames: int = 16, policy: str = "lru") -> FrameStore:
    store = FrameStore(frames * (FRAME + 256) + 8 * KIB, frame_bytes=FRAME, policy=policy)
    assert store.n_frames >= frames
    return store


def begin(store: FrameStore, chunk: int, part: int, nbytes: int = FRAME, *, scan: bool = False) -> Fill:
    fill = store.begin(chunk, part, nbytes, scan)
    assert fill is not None
    return fill


def put(store: FrameStore, chunk: int, part: int, *, scan: bool = False) -> bytes:
    data = pattern(chunk, part)
    fill = begin(store, chunk, part, scan=scan)
    memoryview(fill)[:] = data
    fill.commit()
    return data


def pattern(chunk: int, part: int) -> bytes:
    return (chunk.to_bytes(2, "big") + part.to_bytes(2, "big")) * (FRAME // 4)


# -- the budget -----------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [MIN_BYTES, 100_000, 1 << 20, 5_000_000, 64 << 20])
@pytest.mark.parametrize("policy", ["lru", "fifo", "s3fifo"])
def test_arena_and_tables_fit_the_budget(budget: int, policy: str) -> None:
    store = FrameStore(budget, policy=policy)
    assert store.n_frames * store.frame_bytes + store.table_bytes <= store.max_bytes == budget
    assert store.n_frames >= 8
    assert store.frame_bytes == 1 << store.shift == frame_size_for(budget)
    # What is lost to rounding is less than a frame and a fiftieth.
    assert store.n_frames * store.frame_bytes > budget * 0.93 - 2 * store.frame_bytes
    counters = store.counters()
    assert counters["used_bytes"] == counters["peak_bytes"] == store.table_bytes


@pytest.mark.parametrize("budget", [-(2**63), -1, 0, 1, MIN_BYTES - 1])
def test_too_small_a_budget_names_one_that_works(budget: int) -> None:
    with pytest.raises(BudgetTooSmallError, match="give at least") as caught:
        FrameStore(budget)
    enough = int(str(caught.value).split("at least ")[1].split()[0])
    assert FrameStore(enough).n_frames >= 8


def test_a_frame_size_that_leaves_too_few_frames_names_the_budget_it_needs() -> None:
    with pytest.raises(BudgetTooSmallError) as caught:
        FrameStore(1 << 20, frame_bytes=1 << 18)
    enough = int(str(caught.value).split("at least ")[1].split()[0])
    assert FrameStore(enough, frame_bytes=1 << 18).n_frames == 8


@pytest.mark.parametrize("frame_bytes", [-4096, 1, 2048, 4097, 3 * 4096, 1 << 31])
def test_frames_are_powers_of_two_from_4_kib(frame_bytes: int) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        FrameStore(1 << 30, frame_bytes=frame_bytes)


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="lru, fifo, s3fifo"):
        FrameStore(1 << 20, policy="clock")


# -- filling --------------------------------------------------------------------------------


def test_bytes_are_readable_as_soon_as_their_blocks_landed_in_any_order() -> None:
    store = make()
    fill = begin(store, 3, 1)
    view = memoryview(fill)
    base = FRAME
    for block in (63, 0, 2, 1):
        view[block * BLOCK : (block + 1) * BLOCK] = bytes([block]) * BLOCK
        assert not store.available(3, base + block * BLOCK, base + (block + 1) * BLOCK)
        fill.landed(block * BLOCK, (block + 1) * BLOCK)
        assert store.available(3, base + block * BLOCK, base + (block + 1) * BLOCK)
    assert store.available(3, base, base + 3 * BLOCK)
    assert not store.available(3, base, base + 3 * BLOCK + 1)
    assert bytes(store.lease(3, base + BLOCK - 2, base + 2 * BLOCK + 2)) == b"\0\0" + b"\1" * BLOCK + b"\2\2"
    with pytest.raises(KeyError):
        store.lease(3, base, base + 4 * BLOCK)
    with pytest.raises(FormatError):
        fill.commit(False)
    assert store.state(3, 1) == "filling"
    fill.commit()
    assert store.state(3, 1) == "ready"
    assert store.available(3, base, base + FRAME)


def test_a_block_half_landed_is_not_readable() -> None:
    store = make()
    fill = begin(store, 0, 0)
    fill.landed(1, BLOCK)
    fill.landed(0, BLOCK - 1)
    assert not store.available(0, 0, 1)
    assert store.contents()[0][2] == 0


def test_the_last_block_of_a_short_part_counts_when_its_end_landed() -> None:
    store = make()
    fill = begin(store, 0, 0, BLOCK + 10)
    fill.landed(BLOCK, BLOCK + 10)
    assert store.available(0, BLOCK, BLOCK + 10)
    assert not store.available(0, BLOCK, BLOCK + 11)
    assert store.contents()[0][2] == 10
    fill.landed(0, BLOCK)
    fill.commit(False)
    assert store.contents()[0][2] == BLOCK + 10


def test_a_part_may_turn_out_shorter() -> None:
    store = make()
    fill = begin(store, 0, 0)
    fill.landed(0, 4 * BLOCK)
    fill.shrink(BLOCK + 1)
    assert len(fill) == len(memoryview(fill)) == BLOCK + 1
    assert store.contents()[0][2] == BLOCK + 1
    assert not store.available(0, 0, BLOCK + 2)
    fill.commit(False)
    assert not store.available(0, 0, BLOCK + 2)
    assert store.available(0, 0, BLOCK + 1)


@pytest.mark.parametrize(("begin_at", "end_at"), [(2, 1), (0, FRAME + 1), (FRAME + 1, FRAME + 2)])
def test_landing_outside_the_part_is_refused(begin_at: int, end_at: int) -> None:
    fill = begin(make(), 0, 0)
    with pytest.raises(ConfigError):
        fill.landed(begin_at, end_at)


@pytest.mark.parametrize("nbytes", [0, FRAME + 1])
def test_parts_longer_than_a_frame_or_empty_are_refused(nbytes: int) -> None:
    store = make()
    with pytest.raises(ConfigError):
        store.begin(0, 0, nbytes)
    with pytest.raises(ConfigError):
        begin(store, 0, 0).shrink(nbytes)


def test_a_part_is_filled_by_one_at_a_time() -> None:
    store = make()
    first = begin(store, 0, 0)
    assert store.begin(0, 0, FRAME) is None
    first.abort()
    second = begin(store, 0, 0)
    assert store.filling == 2  # the aborted one still has its frame: somebody may be writing
    del first
    assert store.filling == 1
    second.commit()
    assert store.begin(0, 0, FRAME) is None
    assert store.filling == 0


def test_an_uncommitted_fill_gives_its_frame_back_when_dropped() -> None:
    store = make()
    for _ in range(3 * store.n_frames):
        begin(store, 0, 0)
    assert store.counters()["frames_in_use"] == 0
    assert store.check() == store.n_frames


def test_after_commit_or_abort_a_fill_is_over() -> None:
    store = make()
    committed, aborted = begin(store, 0, 0), begin(store, 0, 1)
    committed.commit()
    aborted.abort()
    aborted.abort()
    committed.abort()
    assert store.state(0, 0) == "ready"
    for fill in (committed, aborted):
        assert len(fill) == 0
        with pytest.raises(ClosedError):
            fill.landed(0, 1)
        with pytest.raises(ClosedError):
            fill.shrink(1)
        with pytest.raises(ClosedError):
            fill.commit()
        with pytest.raises(BufferError):
            memoryview(fill)


def test_a_late_writer_of_an_aborted_fill_harms_nobody() -> None:
    store = make()
    fill = begin(store, 9, 9)
    writer = memoryview(fill)
    fill.abort()
    del fill
    expected = {part: put(store, 0, part) for part in range(store.n_frames - 1)}
    writer[:] = b"\xff" * FRAME
    for part, data in expected.items():
        assert bytes(store.lease(0, part * FRAME, (part + 1) * FRAME)) == data
    assert store.filling == 1
    writer.release()
    assert store.filling == 0
    put(store, 0, store.n_frames)
    store.check()


def test_leases_on_a_fill_that_failed_stay_true() -> None:
    """What had landed may be looked at while the fetch of the rest fails: the frame is not reused meanwhile."""
    store = make()
    fill = begin(store, 0, 0)
    memoryview(fill)[:BLOCK] = b"A" * BLOCK
    fill.landed(0, BLOCK)
    lease = store.lease(0, 0, BLOCK)
    view = memoryview(lease)
    fill.abort()
    del fill
    assert store.state(0, 0) == "absent"
    for part in range(2 * store.n_frames):
        put(store, 1, part)
        store.check()
    assert view == b"A" * BLOCK
    assert bytes(lease) == b"A" * BLOCK
    view.release()
    del lease
    assert store.check() == store.n_frames
    assert store.counters()["pins"] == 0


# -- leases ---------------------------------------------------------------------------------


def test_leases_are_read_only_buffers() -> None:
    store = make()
    data = put(store, 0, 0)
    lease = store.lease(0, 4, 12)
    view = memoryview(lease)
    assert (view.readonly, view.nbytes, view.format) == (True, 8, "B")
    assert view == bytes(lease) == data[4:12]
    assert len(lease) == 8
    with pytest.raises(TypeError):
        view[0] = 1
    buffer: Any = lease
    array = np.frombuffer(buffer, dtype="u1")
    assert not array.flags.writeable
    assert not lease.copied


def test_released_leases_refuse_new_views_and_unpin_with_the_last() -> None:
    store = make()
    put(store, 0, 0)
    with store.lease(0, 0, 8) as lease:
        view = memoryview(lease)
    for refused in (memoryview, bytes):
        with pytest.raises(ClosedError, match="released"):
            refused(lease)
    assert "released" in repr(lease)
    assert view == pattern(0, 0)[:8]
    assert store.counters()["pins"] == 1
    view.release()
    assert store.counters()["pins"] == 0
    lease.release()
    assert store.counters()["pins"] == 0


def test_every_view_of_a_released_lease_pins() -> None:
    store = make()
    put(store, 0, 0)
    lease = store.lease(0, 0, 8)
    views = [memoryview(lease) for _ in range(3)]
    lease.release()
    while views:
        assert store.counters()["pins"] == 1
        assert not store.drop(0, 0)
        views.pop().release()
    assert store.counters()["pins"] == 0
    assert store.drop(0, 0)


def test_pinned_frames_are_passed_by() -> None:
    store = make()
    expected = {part: put(store, 0, part) for part in range(store.n_frames)}
    leases = {part: store.lease(0, part * FRAME, (part + 1) * FRAME) for part in (0, 1, store.n_frames - 1)}
    for part in range(3 * store.n_frames):
        put(store, 1, part)
    for part, lease in leases.items():
        assert bytes(lease) == expected[part]
        assert store.state(0, part) == "ready"
        assert not store.drop(0, part)
    assert store.state(0, 2) == "absent"
    store.check()


def test_a_full_arena_names_its_holders_and_grows_no_further() -> None:
    store = make()
    for part in range(store.n_frames):
        put(store, 0, part)
    leases = [store.lease(0, part * FRAME, part * FRAME + 1) for part in range(store.n_frames - 1)]
    fill = begin(store, 1, 0)
    with pytest.raises(ArenaFullError, match=rf"{store.n_frames - 1} by leases or running reads, 1 being filled"):
        store.begin(1, 1, FRAME)
    assert store.put_piece(2, 0, 0, b"x") is False
    assert store.counters()["peak_bytes"] <= store.max_bytes
    leases.pop()
    assert store.begin(1, 1, FRAME) is not None
    del fill
    store.check()


def test_empty_stretches_need_no_frame() -> None:
    lease = make().lease(5, 10**6, 10**6)
    assert bytes(lease) == b""
    assert len(lease) == 0
    assert lease.copied
    assert memoryview(lease).nbytes == 0


def test_stretches_across_frames_cannot_be_leased() -> None:
    store = make()
    put(store, 0, 0)
    put(store, 0, 1)
    with pytest.raises(ConfigError, match="straddle"):
        store.lease(0, FRAME - 1, FRAME + 1)
    assert store.available(0, FRAME - 1, FRAME + 1)


# -- numbers outside the key space ------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "part"), [(2**31, 0), (2**32, 0), (2**32 - 1, 2**32 - 1), (0, 2**32), (2**63, 0)])
def test_parts_beyond_the_key_space_are_nowhere(chunk: int, part: int) -> None:
    store = make()
    put(store, 0, 0)
    put(store, 1, 0)
    at = part * FRAME
    with pytest.raises(ConfigError, match="key space"):
        store.begin(chunk, part, 1)
    assert store.state(chunk, part) == "absent"
    assert not store.drop(chunk, part)
    assert not store.available(chunk, at, at + 1)
    with pytest.raises(KeyError):
        store.lease(chunk, at, at + 1)
    store.mark_passed(chunk, part)
    assert store.eviction_order() == [(0, 0), (1, 0)]


@pytest.mark.parametrize(("kind", "chunk", "number"), [(1, 0, 0), (4, 0, 0), (2, 2**30, 0), (2, 0, 2**32), (-1, 0, 0)])
def test_pieces_beyond_the_key_space_are_nowhere(kind: int, chunk: int, number: int) -> None:
    store = make()
    assert store.put_piece(2, 0, 0, b"item")
    assert store.put_piece(3, 0, 0, b"table")
    with pytest.raises(ConfigError, match="key space"):
        store.put_piece(kind, chunk, number, b"x")
    with pytest.raises(KeyError):
        store.piece(kind, chunk, number)


def test_the_end_of_the_world_is_not_available() -> None:
    assert not make().available(0, 0, 2**64 - 1)
    assert not make().available(0, 2**64 - 2, 2**64 - 1)


# -- pieces ---------------------------------------------------------------------------------


def test_pieces_are_kept_as_they_came_and_found_by_all_three_numbers() -> None:
    store = make()
    pieces = {(kind, chunk, n): os.urandom(n * 7) for kind in (2, 3) for chunk in (0, 77) for n in range(20)}
    for key, data in pieces.items():
        assert store.put_piece(*key, data)
        assert store.put_piece(*key, b"something else")
    for key, data in pieces.items():
        assert bytes(store.piece(*key)) == data
    with pytest.raises(KeyError):
        store.piece(2, 1, 0)
    assert store.counters()["pieces"] == len(pieces)


def test_a_piece_longer_than_a_frame_is_not_kept() -> None:
    store = make()
    assert store.put_piece(2, 0, 0, bytes(FRAME - 16))
    assert not store.put_piece(2, 0, 1, bytes(FRAME - 15))
    assert store.counters()["pieces"] == 1
    with pytest.raises(TypeError):
        store.put_piece(2, 0, 2, None)  # type: ignore[arg-type]


def test_leases_on_pieces_stay_true_while_logs_are_evicted() -> None:
    store = make()
    assert store.put_piece(2, 0, 0, b"keep me" * 100)
    lease = store.piece(2, 0, 0)
    for number in range(1, 40 * store.n_frames):
        store.put_piece(2, 0, number, number.to_bytes(4, "big") * 300)
    assert store.counters()["evictions_pieces"] > store.n_frames
    assert bytes(lease) == b"keep me" * 100
    assert bytes(store.piece(2, 0, 0)) == b"keep me" * 100
    del lease
    for number in range(1, 40 * store.n_frames):
        store.put_piece(2, 1, number, number.to_bytes(4, "big") * 300)
    with pytest.raises(KeyError):
        store.piece(2, 0, 0)
    store.check()


def test_many_small_pieces_push_out_pieces_and_not_parts() -> None:
    """The piece table is full long before the frames are: old logs make room, parts stay."""
    store = FrameStore(1 << 20, frame_bytes=FRAME)
    parts = store.n_frames // 2
    for part in range(parts):
        put(store, 0, part)
    for number in range(50 * store.n_frames):
        assert store.put_piece(2, 1, number, b"12345678")
    counters = store.counters()
    assert counters["evictions_capacity"] == 0
    assert counters["evictions_pieces"] > 0
    assert len(store.contents()) == parts
    assert bytes(store.piece(2, 1, 50 * store.n_frames - 1)) == b"12345678"
    store.check()


# -- who leaves first -------------------------------------------------------------------------


def test_lru_evicts_what_was_not_asked_for_longest() -> None:
    store = make()
    for part in range(store.n_frames):
        put(store, 0, part)
    store.lease(0, 0, 1)
    put(store, 1, 0)
    assert store.state(0, 0) == "ready"
    assert store.state(0, 1) == "absent"


def test_fifo_evicts_in_order_of_arrival_whatever_was_asked_for() -> None:
    store = make(policy="fifo")
    for part in range(store.n_frames):
        put(store, 0, part)
    store.lease(0, 0, 1)
    put(store, 1, 0)
    assert store.state(0, 0) == "absent"
    assert store.state(0, 1) == "ready"


def test_s3fifo_keeps_what_is_asked_for_through_a_flood_of_others() -> None:
    store = make(32, policy="s3fifo")
    hot = range(8)
    for part in hot:
        put(store, 0, part)
    for part in hot:
        for _ in range(3):
            store.lease(0, part * FRAME, part * FRAME + 1)
    for part in range(5 * store.n_frames):
        put(store, 1, part)
        store.check()
    assert [part for part in hot if store.state(0, part) == "ready"] == list(hot)


def test_s3fifo_remembers_what_it_evicted_too_soon() -> None:
    store = make(32, policy="s3fifo")
    put(store, 0, 0)
    for part in range(store.n_frames):
        put(store, 1, part)
    assert store.state(0, 0) == "absent"
    put(store, 0, 0)
    for part in range(store.n_frames, 2 * store.n_frames):
        put(store, 1, part)
    assert store.state(0, 0) == "ready"


@pytest.mark.parametrize("policy", ["lru", "fifo", "s3fifo"])
def test_what_a_scan_has_passed_leaves_first_and_newest_first(policy: str) -> None:
    store = make(policy=policy)
    put(store, 0, 0)
    for part in range(1, store.n_frames):
        put(store, 1, part, scan=True)
    for part in (1, 2, 3):
        store.mark_passed(1, part)
    store.mark_passed(0, 0)  # nobody's scan brought it in
    assert store.eviction_order()[:3] == [(1, 3), (1, 2), (1, 1)]
    put(store, 2, 0)
    put(store, 2, 1)
    assert [store.state(1, part) for part in (1, 2, 3)] == ["ready", "absent", "absent"]
    assert store.counters()["evictions_scan"] == 2
    store.lease(1, FRAME, FRAME + 1)  # asked for by itself: no longer the scan's
    store.mark_passed(1, 1)
    assert (1, 1) not in store.eviction_order()[:1]
    store.check()


def test_a_scans_own_lease_leaves_its_parts_to_the_scan() -> None:
    store = make()
    put(store, 0, 0, scan=True)
    put(store, 0, 1, scan=True)
    store.lease(0, 0, 1, scan=True)
    store.mark_passed(0, 0)
    assert store.eviction_order() == [(0, 0), (0, 1)]
    assert store.contents()[0][3] == 1


def test_bytes_nobody_asked_for_count_as_wasted() -> None:
    store = make()
    for part in range(store.n_frames):
        put(store, 0, part)
    store.lease(0, 0, 1)
    for part in range(store.n_frames):
        put(store, 1, part)
    assert store.counters()["bytes_wasted"] == (store.n_frames - 1) * FRAME


# -- the end --------------------------------------------------------------------------------


def test_leases_outlive_a_closed_store_and_the_store_object() -> None:
    store = make()
    data = put(store, 0, 0)
    lease, other = store.lease(0, 0, FRAME), store.lease(0, 5, 6)
    view = memoryview(lease)
    store.close()
    store.close()
    assert store.is_closed
    assert "closed" in repr(store)
    assert store.counters()["used_bytes"] > 0
    del other
    assert store.counters()["used_bytes"] > 0
    del lease
    assert view == data
    counters = store.counters
    view.release()
    assert counters()["used_bytes"] == 0


def test_a_dropped_store_lives_on_in_its_leases() -> None:
    store = make()
    data = put(store, 0, 0)
    view = memoryview(store.lease(0, 0, FRAME))
    del store
    gc.collect()
    assert view == data


@pytest.mark.parametrize("late", ["commit", "abort", "drop"])
def test_a_fill_may_end_after_its_store_was_closed(late: str) -> None:
    store = make()
    assert store.put_piece(2, 0, 0, b"x")
    fill = begin(store, 0, 0)
    view = memoryview(fill)
    store.close()
    view[:] = b"y" * FRAME
    if late == "commit":
        with pytest.raises(ClosedError):
            fill.commit()
    elif late == "abort":
        fill.abort()
    view.release()
    assert store.counters()["used_bytes"] > 0
    del fill, view
    assert store.counters()["used_bytes"] == 0


def test_everything_but_looking_is_refused_once_closed() -> None:
    store = make()
    store.name = "the dataset s3://bucket"
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.begin(0, 0, 1), lambda: store.lease(0, 0, 1), lambda: store.lease(0, 0, 0),
        lambda: store.available(0, 0, 1), lambda: store.state(0, 0), lambda: store.drop(0, 0),
        lambda: store.mark_passed(0, 0), lambda: store.put_piece(2, 0, 0, b""), lambda: store.piece(2, 0, 0),
        store.contents, store.check, store.eviction_order, store.abandon_fills,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="the dataset s3://bucket is closed"):
            call()
    assert store.filling == 0
    assert store.counters()["used_bytes"] == 0
    assert "held" in store.full_message()


def test_a_collector_that_closes_the_store_while_it_is_looked_at_is_harmless() -> None:
    store = make(600)
    for part in range(store.n_frames):
        put(store, 0, part)
    threshold = gc.get_threshold()
    closing = [lambda phase, info: store.close()]
    gc.collect()
    gc.callbacks.append(closing[0])
    gc.set_threshold(100, 1, 1)
    try:
        rows = store.contents()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(closing[0])
    assert len(rows) == store.n_frames
    gc.collect()


# -- fork -----------------------------------------------------------------------------------


def test_abandoned_fills_free_their_parts_but_not_what_leases_look_at() -> None:
    store = make()
    looked_at, other, done = begin(store, 0, 0), begin(store, 0, 1), begin(store, 0, 2)
    memoryview(looked_at)[:] = b"A" * FRAME
    looked_at.landed(0, FRAME)
    memoryview(done)[:] = b"D" * FRAME
    done.commit()
    lease = store.lease(0, 0, FRAME)
    assert store.abandon_fills() == 2
    assert [store.state(0, part) for part in range(3)] == ["absent", "absent", "ready"]
    store.check()
    for part in range(2 * store.n_frames):
        put(store, 1, part)
        store.check()
    assert bytes(lease) == b"A" * FRAME
    # The fills are over: nothing they do reaches the frames others have now.
    for fill in (looked_at, other):
        with pytest.raises(ClosedError):
            fill.commit()
        with pytest.raises(ClosedError):
            fill.landed(0, 1)
        with pytest.raises(BufferError):
            memoryview(fill)
        fill.abort()
    del looked_at, other, done, fill, lease
    assert store.check() == store.n_frames
    assert store.counters()["pins"] == 0
    assert store.abandon_fills() == 0


FORK = """
import os, sys, threading
from lazystore._core.frames import FrameStore

store = FrameStore(1 << 20, frame_bytes=4096)
ready = store.begin(0, 0, 4096); memoryview(ready)[:] = b"r" * 4096; ready.commit(); del ready
half = store.begin(0, 1, 4096); memoryview(half)[:64] = b"h" * 64; half.landed(0, 64)
lease, glimpse = store.lease(0, 0, 4096), store.lease(0, 4096, 4160)
child = os.fork()
if not child:
    assert store.abandon_fills() == 1
    for part in range(600):
        fill = store.begin(1, part, 4096); memoryview(fill)[:] = b"c" * 4096; fill.commit(); del fill
    assert (bytes(lease), bytes(glimpse)) == (b"r" * 4096, b"h" * 64)
    assert store.state(0, 1) == "absent"
    del half, lease, glimpse
    store.check()
    assert store.counters()["pins"] == 0
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
memoryview(half)[64:] = b"h" * 4032
half.commit()
assert bytes(store.lease(0, 4096, 8192)) == b"h" * 4096
store.check()
"""

EXIT = """
import sys, threading
from lazystore._core.frames import FrameStore

store = FrameStore(1 << 20, frame_bytes=4096)
for part in range(8):
    fill = store.begin(0, part, 4096); fill.commit()
lease = store.lease(0, 0, 10)
view = memoryview(store.lease(0, 4096, 4100))
half = store.begin(9, 0, 100)
writer = memoryview(half)
store.put_piece(2, 0, 0, b"piece")
piece = store.piece(2, 0, 0)
cycle = [lease, piece]
cycle.append(cycle)
if "close" in sys.argv:
    store.close()
if "keep" in sys.argv:
    sys.kept = [lease, view, half, writer, store]
    threading.kept_forever = sys.kept
"""


def run_script(script: str, *arguments: str) -> None:
    """A fresh interpreter runs it, exits with 0, and has nothing to say."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_and_its_parent_go_on_by_themselves() -> None:
    run_script(FORK)


@pytest.mark.parametrize("arguments", [(), ("close",), ("keep",), ("keep", "close")])
def test_the_interpreter_exits_quietly_with_live_leases_and_fills(arguments: tuple[str, ...]) -> None:
    run_script(EXIT, *arguments)


# -- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
def test_threads_that_fill_lease_and_evict_see_true_bytes(policy: str) -> None:
    store = make(policy=policy)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[tuple[Lease, bytes]] = []
        try:
            for _ in range(1500):
                chunk, part = rng.randrange(3), rng.randrange(9)
                begin_at = rng.randrange(FRAME - 64)
                at = part * FRAME + begin_at
                try:
                    lease = store.lease(chunk, at, at + 64)
                    held.append((lease, pattern(chunk, part)[begin_at : begin_at + 64]))
                except KeyError:
                    fill_slowly(rng, chunk, part)
                if len(held) > 2:
                    lease, expected = held.pop(rng.randrange(3))
                    assert memoryview(lease) == expected
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            errors.append(error)

    def fill_slowly(rng: random.Random, chunk: int, part: int) -> None:
        try:
            fill = store.begin(chunk, part, FRAME, rng.random() < 0.5)
        except ArenaFullError:
            return
        if fill is None:
            return
        view, data = memoryview(fill), pattern(chunk, part)
        for half in rng.sample((0, FRAME // 2), 2):
            view[half : half + FRAME // 2] = data[half : half + FRAME // 2]
            fill.landed(half, half + FRAME // 2)
            if rng.random() < 0.1:
                fill.abort()
                return
        fill.commit(False)
        store.mark_passed(chunk, part)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    store.check()
    assert store.counters()["pins"] == 0
    assert sum(count for cause, count in store.counters().items() if cause.startswith("evictions_")) > 50


# -- odds and ends --------------------------------------------------------------------------


def test_fills_and_leases_come_from_a_store_only() -> None:
    for kind in (Fill, Lease):
        with pytest.raises(TypeError, match="comes from"):
            kind()
    fill = Fill.__new__(Fill)
    fill.abort()
    assert len(fill) == 0
    with pytest.raises(BufferError):
        memoryview(fill)
    with pytest.raises(ClosedError):
        fill.commit()
    lease = Lease.__new__(Lease)
    assert bytes(lease) == b""
    lease.release()
    lease.release()


def test_pickling_and_copying_are_refused() -> None:
    store = make()
    put(store, 0, 0)
    things: list[Any] = [store, begin(store, 0, 1), store.lease(0, 0, 1), store.lease(0, 0, 0)]
    for thing in things:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)


def test_repr_says_what_it_is() -> None:
    store = make()
    put(store, 0, 0)
    assert repr(store) == f"<FrameStore 1/{store.n_frames} frames of 4096 bytes>"
    assert repr(begin(store, 5, 7)) == "<Fill of chunk 5, part 7>"
    assert repr(store.lease(0, 0, 10)) == "<Lease of 10 bytes>"
    assert isinstance(store, Arena)
