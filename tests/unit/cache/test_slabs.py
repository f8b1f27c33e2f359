"""Loads of slabs: right items whichever way they are kept, no byte twice, and nothing left behind at any end."""

from __future__ import annotations

import contextlib
import gc
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import datasets
from support.benches import Bench
from support.sources import DiarySource, Postman

from lazystore.cache.slabs import PACKED, SlabLoad, TableShelf
from lazystore.errors import ArenaFullError, DatasetNotFoundError, FetchError, FormatError, LazyStoreError

COUNTS = [300, 1, 2000, 40]
SIZES = [150, 30_000, 12, 3000]


def stored_items() -> list[list[bytes]]:
    return [
        [datasets.item_bytes([b"%0*d" % (size + k * 13 % 50, k)]) for k in range(count)]
        for count, size in zip(COUNTS, SIZES, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.craft(tmp_path_factory.mktemp("slabs") / "set", stored_items(), ["bytes"])


@pytest.fixture(params=["tables kept", "tables not kept"])
def bench(folder: Path, request: pytest.FixtureRequest) -> Bench:
    room = 1 << 20 if request.param == "tables kept" else 0
    return Bench(DiarySource.of(folder), 1 << 20, tables_room=room)


def load(bench: Bench, chunk: int, first: int, last: int, *, shared: bool = False, granted: bool = True) -> SlabLoad:
    made = bench.memory.slabs.load(chunk, first, last, 0, shared=shared)
    made.granted = granted
    return made


def finish(bench: Bench, made: SlabLoad, turns: int = 5000) -> list[bytes]:
    """The items of the slab, once it is there."""
    for _ in range(turns):
        bench.memory.settle()
        if made.pump():
            assert made.slab is not None
            return [made.slab.item(i) for i in range(made.first, made.last)]
    raise AssertionError(f"{made!r} is not done")


RUNS = [
    (0, 0, 300),
    (0, 5, 6),
    (0, 0, 1),
    (0, 299, 300),
    (0, 100, 300),
    (1, 0, 1),
    (2, 0, 2000),
    (2, 999, 1001),
    (3, 3, 37),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_any_run_comes_with_its_items(bench: Bench, run: tuple[int, int, int], shared: bool) -> None:
    chunk, first, last = run
    made = load(bench, *run, shared=shared)
    assert finish(bench, made) == stored_items()[chunk][first:last]
    assert bench.store.filling == 0
    made.close()
    made.close()
    bench.check()


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_runs_loaded_together_fetch_nothing_twice(folder: Path, shared: bool, seed: int | None) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 20, tables_room=1 << 20)
    runs = [(0, a, a + 50) for a in range(0, 300, 50)] + [(3, 0, 20), (3, 20, 40), (1, 0, 1), (2, 0, 2000)]
    with Postman(bench.source, seed):
        made = [load(bench, *run, shared=shared) for run in runs]
        waiting = made
        while waiting:
            bench.memory.settle()
            waiting = [one for one in waiting if not one.pump()]
    for one, (chunk, first, last) in zip(made, runs, strict=True):
        assert one.slab is not None
        assert [one.slab.item(i) for i in range(first, last)] == stored_items()[chunk][first:last]
    asked = bench.source.asked()
    # A head of eight bytes may be asked for beside what needs it.
    assert not {at for (_, at), times in asked.items() if times > 1 and at >= 8}
    for one in made:
        one.close()
    bench.check()


def test_packed_runs_fetch_their_own_bytes_only(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 20)
    made = load(bench, 0, 100, 110)
    finish(bench, made)
    items = stored_items()[0]
    assert bench.source.nbytes() == 8 + 4 * 11 + sum(map(len, items[100:110]))
    assert {row[0] for row in bench.store.contents()} == {PACKED}
    made.close()


def test_a_whole_chunk_lies_where_everybody_finds_it(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 20)
    made = load(bench, 0, 0, 300)
    finish(bench, made)
    made.close()
    waves = len(bench.source.waves)
    assert [bench.reader.get(i) for i in range(300)] == [item[4:] for item in stored_items()[0]]
    assert len(bench.source.waves) == waves
    again = load(bench, 0, 0, 300)
    assert again.pump() or again.pump()
    assert len(bench.source.waves) == waves
    again.close()
    bench.check()


def test_nothing_is_sent_before_the_first_pump_and_no_frame_taken_before_it_is_granted(bench: Bench) -> None:
    made = load(bench, 0, 0, 300, granted=False)
    assert not bench.source.waves
    for _ in range(5):
        assert not made.pump()
    assert bench.store.counters()["pins"] == 0
    made.granted = True
    assert finish(bench, made) == stored_items()[0]
    made.close()
    bench.check()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pumps", range(6))
def test_closed_at_any_point_it_leaves_nothing(bench: Bench, pumps: int, shared: bool) -> None:
    with Postman(bench.source, patience=0.0):
        made = load(bench, 2, 500, 1500, shared=shared)
        for _ in range(pumps):
            bench.memory.settle()
            if made.pump():
                break
        made.close()
        assert bench.store.counters()["pins"] == 0
        assert bench.store.filling == 0
    bench.memory.settle()
    bench.check()
    assert finish(bench, load(bench, 2, 500, 1500, shared=shared)) == stored_items()[2][500:1500]


def test_a_load_that_is_forgotten_leaves_nothing(bench: Bench) -> None:
    for pumps in range(4):
        for shared in (False, True):
            made = load(bench, 0, 10, 200, shared=shared)
            for _ in range(pumps):
                made.pump()
            del made
            gc.collect()  # its steps know it
            bench.memory.settle()
            bench.check()


# -- room -----------------------------------------------------------------------------------


def pinned(bench: Bench, leave: int) -> list[Any]:
    """All frames but a few, held by somebody else."""
    held = []
    while len(held) < bench.store.n_frames - leave:
        fill = bench.store.begin(77, len(held), 64)
        assert fill is not None
        memoryview(fill)[:] = bytes(64)
        fill.commit()
        held.append(fill)
    return held


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("leave", [0, 1, 2])
def test_without_room_it_is_stuck_and_says_so_and_comes_once_there_is(folder: Path, shared: bool, leave: int) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 18, tables_room=1 << 20)
    held = pinned(bench, leave)
    made = load(bench, 3, 0, 39, shared=shared)
    for _ in range(20):
        bench.memory.settle()
        assert not made.pump()
    assert made.stuck
    for fill in held:
        fill.release()
    assert finish(bench, made) == stored_items()[3][:39]
    assert not made.stuck
    made.close()
    bench.check()


def test_packed_frames_are_all_or_none(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 18, tables_room=1 << 20)
    held = pinned(bench, 3)
    made = load(bench, 3, 0, 39)
    for _ in range(5):
        made.pump()
    assert made.stuck
    assert bench.store.filling == 0
    assert bench.store.counters()["pins"] == len(held)
    made.close()
    for fill in held:
        fill.release()
    bench.check()


# -- trouble --------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "error", [FetchError("far away"), DatasetNotFoundError("gone")], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("wave", range(3))
def test_a_failed_wave_is_raised_and_a_new_load_begins_afresh(
    bench: Bench, shared: bool, error: LazyStoreError, wave: int
) -> None:
    count = 0

    def before(reads: Any) -> None:
        nonlocal count
        count += 1
        if count == wave + 1:
            raise error

    bench.source.before = before
    made = load(bench, 0, 20, 280, shared=shared)
    try:
        found = finish(bench, made)
    except type(error):
        made.close()
        bench.check()
        made = load(bench, 0, 20, 280, shared=shared)
        found = finish(bench, made)
    else:
        assert count <= wave
    assert found == stored_items()[0][20:280]
    made.close()
    bench.check()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
@pytest.mark.parametrize("wave", range(2))
def test_an_interrupted_load_is_over_and_says_so(
    bench: Bench, shared: bool, error: type[BaseException], wave: int
) -> None:
    count, start = 0, bench.source.start

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == wave + 1:
            raise error("now")
        return start(*args, **kwargs)

    bench.source.start = interrupted  # type: ignore[method-assign]
    made = load(bench, 0, 20, 280, shared=shared)
    with contextlib.suppress(error):
        finish(bench, made)
    if made.slab is None:
        # Not for ever: whoever goes on with it is told that it is over.
        with pytest.raises(LazyStoreError):
            made.pump()
    made.close()
    bench.check()
    again = load(bench, 0, 20, 280, shared=shared)
    assert finish(bench, again) == stored_items()[0][20:280]
    again.close()
    bench.check()


def damaged(folder: Path, tmp_path: Path, change: Callable[[bytearray], None], hint: bool = True) -> Bench:
    """The dataset with its first chunk changed."""
    copied = datasets.copy(folder, tmp_path / "set")
    path = copied / "chunk-0-0.bin"
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return Bench(DiarySource.of(copied), 1 << 20)


def backwards(content: bytearray) -> None:
    struct.pack_into("<I", content, 4 + 4 * 150, 1300)


def beyond(content: bytearray) -> None:
    struct.pack_into("<I", content, 4 + 4 * 150, 2**31)


def miscounted(content: bytearray) -> None:
    struct.pack_into("<I", content, 0, 299)


def truncated(content: bytearray) -> None:
    del content[-5000:]


def cut_in_table(content: bytearray) -> None:
    del content[600:]


def emptied(content: bytearray) -> None:
    content.clear()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("run", [(0, 0, 300), (0, 100, 200), (0, 149, 150)], ids=str)
@pytest.mark.parametrize("change", [backwards, beyond, miscounted, truncated, cut_in_table, emptied])
def test_a_damaged_chunk_is_named(
    folder: Path, tmp_path: Path, change: Callable[[bytearray], None], run: tuple[int, int, int], shared: bool
) -> None:
    bench = damaged(folder, tmp_path, change)
    made = load(bench, *run, shared=shared)
    try:
        found = finish(bench, made)
    except FormatError as error:
        assert "chunk-0-0.bin" in str(error)
        assert "chunk 0" in str(error)
    else:  # the damage lies elsewhere
        assert found == stored_items()[0][run[1] : run[2]]
        assert run != (0, 0, 300) and change in (truncated, backwards, beyond)
    made.close()
    bench.check()


def test_a_chunk_that_ends_inside_the_run_is_named(folder: Path, tmp_path: Path) -> None:
    def lying(content: bytearray) -> None:
        """The offsets agree with the length the chunk had."""
        del content[-5000:]

    bench = damaged(folder, tmp_path, lying)
    for run in ((0, 280, 300), (0, 299, 300)):
        made = load(bench, *run)
        with pytest.raises(FormatError, match=r"chunk-0-0.bin \(chunk 0\)"):
            finish(bench, made)
        made.close()
    bench.check()


# -- tables ---------------------------------------------------------------------------------


def test_the_shelf_keeps_what_fits_and_drops_the_oldest() -> None:
    shelf = TableShelf(100, 1000)
    assert not shelf.all_fit
    for chunk in range(5):
        shelf.keep(chunk, bytes(30))
    assert [bool(shelf.find(chunk)) for chunk in range(5)] == [False, False, True, True, True]
    shelf.find(2)
    shelf.keep(7, bytes(30))
    assert [bool(shelf.find(chunk)) for chunk in (2, 3, 4, 7)] == [True, False, True, True]
    shelf.keep(7, bytes(30))
    shelf.keep(8, bytes(500))  # alone it may stay: somebody reads it now
    assert [bool(shelf.find(chunk)) for chunk in (2, 4, 7, 8)] == [False, False, False, True]


def test_tables_that_fit_are_fetched_once(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 20, tables_room=1 << 20)
    assert bench.memory.slabs.shelf.all_fit
    for first in range(0, 300, 30):
        made = load(bench, 0, first, first + 30)
        finish(bench, made)
        made.close()
    table_end = 4 + 4 * 301
    asked = bench.source.asked()
    assert {asked["chunk-0-0.bin", at] for at in range(8, table_end)} == {1}


def test_the_arena_refuses_a_run_longer_than_itself(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 16)
    made = load(bench, 3, 0, 40)
    for _ in range(10):
        bench.memory.settle()
        assert not made.pump()
    assert made.stuck
    made.close()
    bench.check()
    with pytest.raises(ArenaFullError):
        held = [bench.store.begin(9, k, 10) for k in range(1000)]
        del held
