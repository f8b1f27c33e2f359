"""The reader and its iterator: arguments, errors, and Python code that runs in the middle of a read."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from models.chunked import ChunkedItems, Loader

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import Fill, FrameStore
from lazystore._core.reader import TABLE_BLOCK, Reader
from lazystore._core.scan import ItemIterator
from lazystore.errors import ClosedError, ConfigError, FetchError, FormatError, ItemIndexError

FRAME = 4096
BYTES = DecodePlan([("bytes", None)], [("leaf",)], names=["x"], headless=True)


def calling(function: Callable[[bytes], Any]) -> DecodePlan:
    return DecodePlan([("call", function)], [("leaf",)], names=["x"], headless=True)


def world(
    items: list[list[bytes]],
    plan: DecodePlan = BYTES,
    *,
    budget: int = 1 << 20,
    mode: str = "frames",
    policy: str = "lru",
    width: int = 4,
    transform: Any = None,
) -> tuple[FrameStore, Loader, Reader]:
    """A store, a loader over the items, and the reader of both."""
    store = FrameStore(budget, frame_bytes=FRAME, policy=policy)
    data = ChunkedItems(items, width=width)
    loader = Loader(store, data, mode)
    reader = loader.reader = Reader(store, plan, loader, data.counts, width=width, transform=transform)
    return store, loader, reader


def numbered(*counts: int, size: int = 50) -> list[list[bytes]]:
    numbers = iter(range(sum(counts)))
    return [[str(next(numbers)).encode().ljust(size, b".") for _ in range(count)] for count in counts]


def scan(reader: Reader, start: int = 0, stop: int | None = None) -> ItemIterator:
    total = reader.first_item(reader.n_chunks - 1) + reader.chunk_items(reader.n_chunks - 1)
    return ItemIterator(reader, start, total if stop is None else stop)


# -- numbers --------------------------------------------------------------------------------


def test_items_are_found_by_any_integer_from_both_ends() -> None:
    _, _, reader = world(numbered(3, 0, 4))
    flat = [item for chunk in numbered(3, 0, 4) for item in chunk]
    for index in range(7):
        for kind in (int, np.int8, np.uint64, np.int64):
            assert reader.get(kind(index)) == flat[index]
        assert reader.get(index - 7) == reader.get(np.int64(index - 7)) == flat[index]
    assert reader.get(True) == flat[1]
    assert [reader.where(i) for i in (0, 2, 3, -1)] == [(0, 0), (0, 2), (2, 0), (2, 3)]


@pytest.mark.parametrize("index", [7, -8, 2**31, 2**62, -(2**62), 2**63, 2**70, -(2**70), np.uint64(2**64 - 1)])
def test_numbers_outside_are_index_errors(index: Any) -> None:
    _, loader, reader = world(numbered(3, 0, 4))
    calls: list[Callable[[], object]] = [
        lambda: reader.get(index), lambda: reader.view(index), lambda: reader.get_bytes(index),
        lambda: reader.get_many([0, index]), lambda: reader.where(index), lambda: reader.is_resident(index),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ItemIndexError, match="not in a dataset of 7 items"):
            call()
    assert (1, 0, False) not in loader.asked


@pytest.mark.parametrize("index", [1.0, "1", None, [1], slice(1)])
def test_things_that_are_no_integers_are_type_errors(index: Any) -> None:
    _, _, reader = world(numbered(3))
    with pytest.raises(TypeError):
        reader.get(index)
    with pytest.raises(TypeError):
        reader.get_many([index])


def test_a_dataset_of_nothing_has_no_items() -> None:
    for counts in ([], [0], [0, 0, 0]):
        _, _, reader = world([[] for _ in counts])
        with pytest.raises(ItemIndexError):
            reader.get(0)
        with pytest.raises(ItemIndexError):
            reader.get(-1)
        assert reader.get_many([]) == []
        assert list(ItemIterator(reader, 0, 0)) == []


@pytest.mark.parametrize("chunk", [-1, 2, 2**62])
def test_chunks_outside_are_index_errors(chunk: int) -> None:
    _, _, reader = world(numbered(3, 4))
    calls: list[Callable[[int], object]] = [
        reader.chunk_length, reader.chunk_items, reader.first_item, reader.items_resident,
        lambda c: reader.resident_span(c, 0), lambda c: reader.open_chunk(c, 10, 5),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ItemIndexError):
            call(chunk)


def test_spans_of_items_a_chunk_does_not_have_are_index_errors() -> None:
    _, loader, reader = world(numbered(3, 4))
    loader.fill_all()
    for i in (3, 2**62, 2**64 - 1):
        with pytest.raises(ItemIndexError):
            reader.resident_span(0, i)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (2, 1), (0, 8), (8, 8)])
def test_iterators_outside_are_index_errors(start: int, stop: int) -> None:
    _, _, reader = world(numbered(3, 4))
    with pytest.raises(ItemIndexError):
        ItemIterator(reader, start, stop)


@pytest.mark.parametrize("arguments", [{"width": 5}, {"table_at": -1}, {"stride": -1}])
def test_chunks_that_cannot_be_are_refused(arguments: dict[str, int]) -> None:
    loader: Any = None
    with pytest.raises(ConfigError):
        Reader(FrameStore(1 << 20), BYTES, loader, [1], **arguments)


@pytest.mark.parametrize("counts", [[2**63], [2**62, 1], [2**61] * 3])
def test_absurd_totals_are_refused(counts: list[int]) -> None:
    loader: Any = None
    with pytest.raises(ConfigError, match="more than 2"):
        Reader(FrameStore(1 << 20), BYTES, loader, counts)


def test_counts_that_change_while_they_are_read_harm_nothing() -> None:
    counts: list[Any] = []

    class Growing:
        def __index__(self) -> int:
            counts.extend([1] * 10_000)
            return 1

        __int__ = __index__

    loader: Any = None
    counts += [Growing(), 1]
    reader = Reader(FrameStore(1 << 20), BYTES, loader, counts)
    assert (reader.n_chunks, reader.n_items) == (2, 2)


def test_negative_counts_are_refused() -> None:
    loader: Any = None
    with pytest.raises(OverflowError):
        Reader(FrameStore(1 << 20), BYTES, loader, [1, -1])


# -- reading --------------------------------------------------------------------------------


def test_what_is_resident_is_read_without_the_loader_and_counted() -> None:
    _, loader, reader = world(numbered(5, 5))
    loader.fill_all()
    expected = [item for chunk in loader.data.items for item in chunk]
    assert list(scan(reader)) == expected
    assert [reader.get(i) for i in range(10)] == expected
    assert reader.get_many([9, 0, 9, -1]) == [expected[i] for i in (9, 0, 9, 9)]
    assert loader.asked == []
    assert (reader.hits, reader.misses) == (24, 0)


def test_a_miss_asks_the_loader_once_and_says_whether_it_is_a_scan() -> None:
    _, loader, reader = world(numbered(2, 1), mode="nothing")
    reader.get(1)
    next(scan(reader, 2))
    reader.get_many([1, 0, 1])
    assert loader.asked == [(0, 1, False), (1, 0, True), (0, 1, False), (0, 0, False), (0, 1, False)]
    assert (reader.hits, reader.misses) == (0, 5)


def test_many_more_items_than_are_found_at_a_time_come_in_order() -> None:
    _, _, reader = world(numbered(40, 300, 1))
    flat = [item for chunk in numbered(40, 300, 1) for item in chunk]
    wanted = random.Random(1).choices(range(341), k=1000)
    assert reader.get_many(iter(wanted)) == [flat[i] for i in wanted]
    assert reader.get_many(np.array(wanted)) == [flat[i] for i in wanted]


def test_pieces_serve_items_of_every_table_block() -> None:
    count = 2 * TABLE_BLOCK + 3
    store = FrameStore(1 << 20, frame_bytes=8192)  # a block of offsets is a little longer than 2048 bytes
    loader = Loader(store, ChunkedItems(numbered(count, size=20)), "pieces")
    reader = loader.reader = Reader(store, BYTES, loader, [count])
    wanted = [0, TABLE_BLOCK - 1, TABLE_BLOCK, 2 * TABLE_BLOCK - 1, 2 * TABLE_BLOCK, count - 1]
    for index in wanted:
        assert not reader.is_resident(index)
        reader.get(index)
        assert reader.is_resident(index)
    assert reader.get_many(wanted) == [loader.data.flat[i] for i in wanted]
    assert len(loader.asked) == len(wanted)
    assert store.contents() == []
    assert reader.items_resident(0) == len(wanted)


def test_items_of_one_length_need_no_table() -> None:
    store = FrameStore(1 << 20, frame_bytes=FRAME)
    body = bytes(range(256)) * 40

    class Strided:
        def place(self, chunk: int, i: int) -> str:
            return f"chunk {chunk}, item {i}"

        def item(self, chunk: int, i: int, scan: bool) -> bytes:
            return b"from the loader"

        def items(self, wanted: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
            return iter(())

    reader = Reader(store, BYTES, Strided(), [10], stride=1000)
    assert reader.get(0) == b"from the loader"
    reader.open_chunk(0, 10_010, 8)
    for part in range(3):
        fill = store.begin(0, part, min(FRAME, len(body) - part * FRAME))
        assert fill is not None
        memoryview(fill)[:] = body[part * FRAME : (part + 1) * FRAME]
        fill.commit()
        del fill
    expected = [body[8 + 1000 * i : 1008 + 1000 * i] for i in range(10)]
    assert [reader.get(i) for i in range(10)] == list(scan(reader)) == expected
    assert reader.resident_span(0, 9) == (9008, 10_008)
    reader.open_chunk(0, 10_007, 8)
    with pytest.raises(FormatError, match=r"9008\.\.10008, items lie in 8\.\.10007"):
        reader.get(9)


@pytest.mark.parametrize("stride", [2**62, 2**63 - 1, 2**32])
def test_strides_that_wrap_around_are_refused(stride: int) -> None:
    _, loader, _ = world(numbered(1))
    reader = Reader(FrameStore(1 << 20), BYTES, loader, [2**30], stride=stride)
    reader.open_chunk(0, 1000, 8)
    for index in (0, 1, 2, 3, 4, 8, 2**30 - 1):
        with pytest.raises(FormatError):
            reader.get(index)


def test_views_are_leases_where_one_frame_holds_the_item_and_copies_where_not() -> None:
    items = [[b"a" * 3000, b"b" * 3000, b"", b"c" * 100]]
    store, loader, reader = world(items)
    loader.fill_all()
    views = [reader.view(i) for i in range(4)]
    assert [bytes(view) for view in views] == items[0]
    assert [view.copied for view in views] == [False, True, True, False]
    assert store.counters()["pins"] == 2
    assert [reader.get_bytes(i) for i in range(4)] == items[0]
    assert store.counters()["pins"] == 2
    store.close()
    assert [bytes(view) for view in views] == items[0]


def test_the_transform_runs_on_every_path() -> None:
    _, _, reader = world(numbered(3), transform=len)
    assert reader.get(0) == 50
    assert reader.get_many([0, 1]) == [50, 50]
    assert list(scan(reader)) == [50, 50, 50]
    assert bytes(reader.view(0)) == numbered(3)[0][0]


# -- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
def test_errors_of_an_items_bytes_name_its_place_and_keep_their_cause(resident: bool) -> None:
    plan = DecodePlan([("str", None)], [("leaf",)], names=["x"])
    good = struct.pack("<I", 4) + b"good"
    _, loader, reader = world([[good, struct.pack("<I", 9) + b"bad", struct.pack("<I", 1) + b"\xff"]], plan)
    if resident:
        loader.fill_all()
    calls: list[Callable[[int], object]] = [
        reader.get,
        lambda i: reader.get_many([0, i]),
        lambda i: next(ItemIterator(reader, i, 3)),
    ]
    for index, cause in ((1, FormatError), (2, UnicodeDecodeError)):
        for call in calls:
            with pytest.raises(FormatError, match=rf"memory/0.bin \(chunk 0\), item {index}: ") as caught:
                call(index)
            assert isinstance(caught.value.__cause__, cause)
            assert str(caught.value).count("memory/0.bin") == 1
    iterator = scan(reader)
    assert next(iterator) == "good"
    for _ in range(2):
        with pytest.raises(FormatError):
            next(iterator)
    assert iterator.position == 1


def test_kinds_of_format_error_are_kept() -> None:
    from lazystore.errors import UnsafeDataError

    def refuse(data: bytes) -> Any:
        raise UnsafeDataError("no")

    _, _, reader = world(numbered(1), calling(refuse))
    with pytest.raises(UnsafeDataError, match=r"item 0: no$"):
        reader.get(0)


def test_errors_of_the_loader_go_through_and_get_a_place_if_they_have_none() -> None:
    _, loader, reader = world(numbered(3))
    errors: list[Exception] = []

    def fail(chunk: int, i: int, scan: bool) -> Any:
        raise errors[-1]

    loader.item = fail  # type: ignore[method-assign]
    calls: list[Callable[[], object]] = [
        lambda: reader.get(1), lambda: reader.view(1), lambda: next(ItemIterator(reader, 1, 3)),
    ]  # fmt: skip
    for call in calls:
        errors.append(FetchError("the network is down"))
        with pytest.raises(FetchError, match=r"^the network is down$"):
            call()
        errors.append(FormatError("truncated"))
        with pytest.raises(FormatError, match=r"^memory/0.bin \(chunk 0\), item 1: truncated$"):
            call()
        errors.append(FormatError("memory/0.bin (chunk 0) is truncated"))
        with pytest.raises(FormatError, match=r"^memory/0.bin \(chunk 0\) is truncated$"):
            call()
        errors.append(KeyboardInterrupt())  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            call()
    assert reader.get_many([]) == []


def test_a_chunk_shorter_than_its_table_is_refused_at_the_door() -> None:
    _, _, reader = world(numbered(3))
    with pytest.raises(FormatError, match="items would begin at 20, the chunk has 19 bytes"):
        reader.open_chunk(0, 19, 20)
    assert reader.chunk_length(0) == 0


def test_bytes_of_a_chunk_that_was_never_opened_are_not_believed() -> None:
    store, loader, reader = world(numbered(3))
    content = loader.data.chunks[0]
    fill = store.begin(0, 0, len(content))
    assert fill is not None
    memoryview(fill)[:] = content
    fill.commit()
    assert not reader.is_resident(0)
    assert reader.items_resident(0) == 0
    with pytest.raises(KeyError):
        reader.resident_span(0, 0)


# -- Python code in the middle of a read ------------------------------------------------------


def test_a_closed_store_refuses_reads_but_ends_finished_iterators() -> None:
    store, _, reader = world(numbered(3))
    finished, unfinished = scan(reader), scan(reader)
    assert len(list(finished)) == 3
    next(unfinished)
    store.close()
    assert list(finished) == []
    calls: list[Callable[[], object]] = [
        lambda: next(unfinished), lambda: reader.get(0), lambda: reader.get_many([0]), lambda: reader.get_many([]),
        lambda: reader.view(0), lambda: reader.get_bytes(0), lambda: reader.is_resident(0),
        lambda: reader.items_resident(0), lambda: reader.resident_span(0, 0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError):
            call()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("at", [0, 3, 99])
def test_a_transform_that_closes_the_store_ends_the_scan_with_a_closed_error(resident: bool, at: int) -> None:
    store: FrameStore

    def close(item: bytes) -> bytes:
        if item.startswith(str(at).encode() + b"."):
            store.close()
        return item

    store, loader, reader = world(numbered(50, 60), transform=close)
    if resident:
        loader.fill_all()
    found = []
    with pytest.raises(ClosedError):
        for item in scan(reader):
            found.append(item)
    assert found == [item for chunk in numbered(50, 60) for item in chunk][: at + 1]


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("how", ["get", "get_many", "iterate", "straddling"])
def test_decoding_that_closes_the_store_finishes_on_valid_memory(resident: bool, how: str) -> None:
    store: FrameStore
    closing: list[bool] = []

    def close(data: bytes) -> bytes:
        if closing and closing.pop():
            store.close()
            gc.collect()
        return data

    leaves: list[tuple[str, Any]] = [("call", close), ("bytes", None), ("bytes", None)]
    plan = DecodePlan(leaves, [("leaf",)] * 3 + [("tuple", 3)], names=["a", "b", "c"])
    size = 3000 if how == "straddling" else 10
    value = (b"first", b"b" * size, b"c" * size)
    item = struct.pack("<3I", *map(len, value)) + b"".join(value)
    store, loader, reader = world([[item] * 40], plan)
    if resident:
        loader.fill_all()
    closing.append(True)
    if how == "get_many":
        # Items after the one that closed were found before: they are read, or the store is closed.
        try:
            assert reader.get_many(range(5)) == [value] * 5
        except ClosedError:
            assert not resident
    elif how == "get":
        assert reader.get(3) == value
    elif how == "straddling":
        assert reader.get(1) == value
    else:
        with pytest.raises(ClosedError):
            list(scan(reader))
    assert store.is_closed
    assert store.counters()["used_bytes"] == 0


def test_a_number_that_closes_the_store_is_a_closed_error() -> None:
    store, loader, reader = world(numbered(9))
    loader.fill_all()

    class Closing:
        def __index__(self) -> int:
            store.close()
            return 1

    with pytest.raises(ClosedError):
        reader.get_many([0, Closing(), 2])
    assert store.counters()["used_bytes"] == 0
    with pytest.raises(ClosedError):
        reader.get(Closing())


def test_a_transform_may_read_the_same_dataset() -> None:
    reader: Reader

    def neighbours(item: bytes) -> Any:
        if depth:
            return item
        depth.append(1)
        try:
            return reader.get(0), reader.get_many([1, 2]), len(list(ItemIterator(reader, 0, 5))), item
        finally:
            depth.pop()

    depth: list[int] = []
    _, _, reader = world(numbered(30, 30), transform=neighbours, budget=64 * 1024)
    flat = [item for chunk in numbered(30, 30) for item in chunk]
    assert [row[3] for row in scan(reader)] == flat
    assert reader.get(7) == (flat[0], flat[1:3], 5, flat[7])


@pytest.mark.parametrize("resident", [True, False])
def test_an_iterator_asked_from_inside_its_own_decode_refuses_and_goes_on(resident: bool) -> None:
    iterator: ItemIterator
    refused: list[int] = []

    def nested(data: bytes) -> bytes:
        if data.startswith((b"3", b"7.", b"8.", b"9.")):
            with pytest.raises(ValueError, match="already running"):
                next(iterator)
            refused.append(1)
        return data

    _, loader, reader = world(numbered(5, 0, 4, 6), calling(nested))
    if resident:
        loader.fill_all()
    iterator = scan(reader)
    assert list(iterator) == [item for chunk in loader.data.items for item in chunk]
    assert len(refused) == 4


def test_a_transform_may_take_the_next_item_of_its_own_scan() -> None:
    iterator: ItemIterator

    def pair(item: bytes) -> Any:
        if pairing:
            return item
        pairing.append(1)
        try:
            return item, next(iterator)
        finally:
            pairing.pop()

    pairing: list[int] = []
    _, loader, reader = world(numbered(4, 4), transform=pair)
    iterator = scan(reader)
    flat = loader.data.flat
    assert list(iterator) == list(zip(flat[::2], flat[1::2], strict=True))


def test_an_iterator_is_usable_again_after_an_error_in_its_decode() -> None:
    failing = [True]

    def fail_once(data: bytes) -> bytes:
        if data.startswith(b"2.") and failing.pop():
            failing.append(False)
            raise ZeroDivisionError
        return data

    _, loader, reader = world(numbered(4), calling(fail_once))
    loader.fill_all()
    iterator = scan(reader)
    assert [next(iterator), next(iterator)] == numbered(4)[0][:2]
    with pytest.raises(ZeroDivisionError):
        next(iterator)
    assert list(iterator) == numbered(4)[0][2:]


def test_decoding_that_evicts_everything_else_keeps_its_own_bytes() -> None:
    reader: Reader

    def crowd_out(data: bytes) -> bytes:
        if not busy:
            busy.append(1)
            for index in range(0, 600, 20):
                reader.get(index)
            busy.pop()
        return bytes(data)

    busy: list[int] = []
    leaves: list[tuple[str, Any]] = [("call", crowd_out), ("bytes", None)]
    plan = DecodePlan(leaves, [("leaf",), ("leaf",), ("tuple", 2)], names=["a", "b"])
    bodies = [str(k).encode() * 300 for k in range(600)]
    items = [[struct.pack("<2I", 1, len(body)) + b"." + body for body in bodies]]
    _, _, reader = world(items, plan, budget=64 * 1024)
    for index in (5, 333, 599):
        assert reader.get(index) == (b".", bodies[index])
    assert reader.get_many([7, 8, 300]) == [(b".", bodies[k]) for k in (7, 8, 300)]
    assert [body for _, body in ItemIterator(reader, 0, 90)] == bodies[:90]


@pytest.mark.parametrize("ending", ["abort", "release", "abandon"])
def test_a_fill_given_up_while_its_straddling_item_is_decoded_harms_nobody(ending: str) -> None:
    """Landed blocks make an item readable before its parts are ready; the parts may fail in mid-decode."""
    store: FrameStore
    fills: list[Fill] = []

    def give_up(data: bytes) -> bytes:
        if fills:
            if ending == "abandon":
                store.abandon_fills()
            for fill in fills:
                fill.release() if ending == "release" else fill.abort()
            fills.clear()
            for part in range(2 * store.n_frames):
                other = store.begin(1, part, FRAME)
                assert other is not None
                memoryview(other)[:] = b"\xee" * FRAME
                other.commit()
                del other
        return data

    leaves: list[tuple[str, Any]] = [("call", give_up), ("bytes", None), ("call", bytes.hex), ("bytes", None)]
    plan = DecodePlan(leaves, [("leaf",)] * 4 + [("tuple", 4)], names=list("abcd"))
    value = [b"first", b"b" * 5000, b"c" * 3000, b"d" * 7000]
    item = struct.pack("<4I", *map(len, value)) + b"".join(value)
    store, loader, reader = world([[item], [b""]], plan)
    content = loader.data.chunks[0]
    loader.open(0)
    for part in range(-(-len(content) // FRAME)):
        fill = store.begin(0, part, len(content[part * FRAME : (part + 1) * FRAME]))
        assert fill is not None
        memoryview(fill)[:] = content[part * FRAME : (part + 1) * FRAME]
        fill.landed(0, len(fill))
        fills.append(fill)
    del fill
    assert reader.is_resident(0)
    assert reader.get(0) == (value[0], value[1], value[2].hex(), value[3])
    store.check()
    assert store.counters()["pins"] == 0
    assert not reader.is_resident(0)


# -- scans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "fifo", "s3fifo"])
@pytest.mark.parametrize("read_ahead", [True, False])
@pytest.mark.parametrize("size", [50, 333, 1500, 5000])
def test_a_scan_leaves_every_part_it_has_passed_to_go_first_newest_first(
    policy: str, read_ahead: bool, size: int
) -> None:
    store, loader, reader = world(numbered(6, 40, 1, 30, size=size), policy=policy)
    wanted = store.begin(100, 0, 1)  # by somebody else, before: it would be the first to go
    assert wanted is not None
    wanted.commit()
    if read_ahead:
        loader.fill_all(scan=True)
    assert list(scan(reader)) == loader.data.flat
    order = store.eviction_order()
    assert len(order) == len(store.contents())
    assert order[-1] == (100, 0)
    assert (order[0][0], order[-2][0]) == (3, 0)
    last = max(part for chunk, part in order if chunk == 1)
    bodies = [part for chunk, part in order if chunk == 1 and 0 < part < last - 1]  # the table's part is passed late
    assert bodies == sorted(bodies, reverse=True)


def test_a_scan_through_a_tiny_arena_keeps_what_others_ask_for() -> None:
    store, loader, reader = world(numbered(100, 3000, size=60), budget=64 * 1024)
    for index in (0, 99):
        reader.get(index)
    asked = len(loader.asked)
    kept = [row[:2] for row in store.contents()]
    assert len(list(scan(reader, 100))) == 3000
    assert [row[:2] for row in store.contents() if row[0] == 0] == kept
    before = len(loader.asked)
    assert before > asked
    assert [reader.get(index) for index in (0, 99)] == [loader.data.flat[0], loader.data.flat[99]]
    assert len(loader.asked) == before
    assert store.counters()["evictions_scan"] > 30
    assert store.counters()["evictions_capacity"] == 0


@pytest.mark.parametrize("dropped", ["body", "table", "both"])
def test_an_iterator_notices_that_its_frames_hold_other_parts_now(dropped: str) -> None:
    """It remembers frames by number between items; each may be evicted and filled anew meanwhile."""
    items = [[k.to_bytes(4, "big") * 5 for k in range(3000)]]
    store, loader, reader = world(items)
    loader.fill_all()
    expected, iterator = loader.data.flat, scan(reader)
    # What the frames hold next looks like offsets, too, but a little larger ones.
    offsets = np.frombuffer(loader.data.chunks[0], "<u4", count=3 * FRAME // 4).copy() + 4
    for index in range(3000):
        if index % 100 == 50:  # in the middle of a part
            table_part = loader.data.entries(index)[0] // FRAME
            body_part = loader.data.span(0, index)[0] // FRAME
            for part in {"body": [body_part], "table": [table_part], "both": [body_part, table_part]}[dropped]:
                assert store.drop(0, part)
            for part in range(store.n_frames - store.counters()["frames_in_use"]):
                other = store.begin(index, part, FRAME)
                assert other is not None
                memoryview(other)[:] = offsets[table_part * FRAME // 4 :][: FRAME // 4].tobytes()
                other.commit()
                del other
        assert next(iterator) == expected[index]
    store.check()


def test_abandoned_iterators_hold_nothing() -> None:
    store, _, reader = world(numbered(500, size=100))
    iterators = [ItemIterator(reader, start, 500) for start in range(0, 500, 50)]
    for iterator in iterators:
        next(iterator)
    assert store.counters()["pins"] == 0
    del iterators, iterator
    store.check()


def test_an_iterator_lives_on_without_anybody_else() -> None:
    _, loader, reader = world(numbered(40, 40))
    iterator, expected = scan(reader), loader.data.flat
    next(iterator)
    del reader, loader
    gc.collect()
    assert list(iterator) == expected[1:]


def test_iterators_know_where_they_are() -> None:
    _, _, reader = world(numbered(4, 4))
    iterator = ItemIterator(reader, 2, 7)
    assert iter(iterator) is iterator
    assert (iterator.position, iterator.__length_hint__(), repr(iterator)) == (2, 5, "<ItemIterator at 2 of 7>")
    next(iterator)
    assert (iterator.position, iterator.__length_hint__()) == (3, 4)
    assert len(list(iterator)) == 4
    assert (iterator.position, iterator.__length_hint__()) == (7, 0)
    assert list(iterator) == []


# -- lifetimes ------------------------------------------------------------------------------


def test_a_reader_and_its_loader_are_collected_together() -> None:
    store, loader, reader = world(numbered(5))
    reader.get(0)
    watch = weakref.ref(loader)
    del loader, reader
    gc.collect()
    assert watch() is None
    store.check()


EXIT = """
import sys, threading
sys.path.insert(0, {tests!r})
from models.chunked import ChunkedItems, Loader
from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader
from lazystore._core.scan import ItemIterator

store = FrameStore(64 * 1024, frame_bytes=4096)
data = ChunkedItems([[b"x" * 700] * 200, [b"y"] * 50])
loader = Loader(store, data)
plan = DecodePlan([("bytes", None)], [("leaf",)], names=["x"], headless=True)
reader = loader.reader = Reader(store, plan, loader, data.counts)
iterators = [ItemIterator(reader, start, 250) for start in (0, 30, 210)]
for iterator in iterators:
    next(iterator), next(iterator)
views = [reader.view(5), memoryview(reader.view(6)), reader.get(7)]
threading.kept_forever = [iterators, views]
if "close" in sys.argv:
    store.close()
if "thread" in sys.argv:
    def go_on():
        try:
            while True:
                for index in range(250):
                    reader.get(index)
        except BaseException as error:
            sys.kept_error = error
    threading.Thread(target=go_on, daemon=True).start()
"""


@pytest.mark.parametrize("arguments", [(), ("close",), ("thread",)])
def test_the_interpreter_exits_quietly_with_live_iterators_and_views(arguments: tuple[str, ...]) -> None:
    from pathlib import Path

    script = EXIT.format(tests=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# -- threads --------------------------------------------------------------------------------


def test_threads_that_read_in_every_way_through_a_tiny_arena_get_true_items() -> None:
    rng = random.Random(5)
    items = [[rng.randbytes(rng.choice((0, 10, 300, 3000, 6000))) for _ in range(60)] for _ in range(3)]
    store, loader, reader = world(items, budget=64 * 1024, policy="s3fifo")
    flat = loader.data.flat
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[Any] = []
        try:
            for _ in range(250):
                index = rng.randrange(180)
                way = rng.randrange(5)
                if way == 0:
                    assert reader.get(index) == flat[index]
                elif way == 1:
                    wanted = rng.choices(range(180), k=8)
                    assert reader.get_many(wanted) == [flat[i] for i in wanted]
                elif way == 2:
                    held.append((memoryview(reader.view(index)), flat[index]))
                elif way == 3:
                    stop = min(180, index + 12)
                    assert list(ItemIterator(reader, index, stop)) == flat[index:stop]
                else:
                    loader.mode = rng.choice(("frames", "pieces", "frames"))
                if len(held) > 1:
                    view, expected = held.pop(0)
                    assert view == expected
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            errors.append(error)

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


# -- odds and ends --------------------------------------------------------------------------


def test_pickling_and_copying_are_refused() -> None:
    _, _, reader = world(numbered(3))
    for thing in (reader, ItemIterator(reader, 0, 3)):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)


def test_repr_says_what_it_is() -> None:
    _, _, reader = world(numbered(3, 4))
    assert repr(reader).startswith("<Reader of 7 items in 2 chunks over <FrameStore 0/")


def test_iterators_come_from_a_reader_only() -> None:
    for arguments in ((), (None, 0, 0)):
        with pytest.raises(TypeError):
            ItemIterator(*arguments)
