"""The door: what is admitted, what is refused, and that each entry of a table is looked at."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sources import DiarySource

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader
from lazystore.cache.door import Door
from lazystore.errors import FormatError, UnsupportedError


class Layout:
    """One chunk of ``count`` items."""

    exact = False

    def __init__(self, count: int) -> None:
        self.names: Sequence[str] = ["c.bin"]
        self.stored_counts = array("Q", [count])
        self.hints = array("Q", [0])

    def table_end(self, chunk: int) -> int:
        return 4 + 4 * (self.stored_counts[chunk] + 1)


class Loader:
    """Only places are asked of it here."""

    def place(self, chunk: int, i: int) -> str:
        return f"chunk {chunk}, item {i}"


def opened(count: int, data: bytes = b"") -> Door:
    door = Door(Layout(count), DiarySource({"c.bin": data}))
    plan = DecodePlan([("bytes", None)], [("leaf",)], names=["b"])
    door.reader = Reader(FrameStore(1 << 17), plan, Loader(), [count])
    return door


def head(count: int) -> bytes:
    return struct.pack("<2I", count, 0)


def table(count: int, *offsets: int) -> bytes:
    return struct.pack(f"<{1 + len(offsets)}I", count, *offsets)


def test_a_chunk_that_fits_the_index_is_opened() -> None:
    door = opened(2)
    door.admit(0, 50, head(2))
    assert door.reader is not None
    assert door.reader.chunk_length(0) == 50


@pytest.mark.parametrize(
    "size, first, error, told",
    [
        (0, b"", FormatError, "0 bytes: empty or truncated"),
        (3, b"\2\0\0", FormatError, "3 bytes: empty or truncated"),
        (50, head(3), FormatError, "holds 3 items, the index says 2"),
        (50, head(0), FormatError, "holds 0 items, the index says 2"),
        (15, head(2), FormatError, "15 bytes, its offset table alone needs 16"),
        (50, b"LDFZ01\0\0", UnsupportedError, "framed zstd"),
    ],
)
def test_a_chunk_that_does_not_is_refused_by_name(size: int, first: bytes, error: type[Exception], told: str) -> None:
    door = opened(2)
    with pytest.raises(error, match=rf"diary://objects/c\.bin \(chunk 0\).*{told}"):
        door.admit(0, size, first)
    assert door.reader is not None
    assert door.reader.chunk_length(0) == 0


def test_a_table_without_items_behind_it_is_a_chunk_of_empty_items() -> None:
    door = opened(3)
    door.admit(0, 20, head(3))
    door.check_table(0, memoryview(table(3, 20, 20, 20, 20)), 0)


@pytest.mark.parametrize(
    "offsets, told",
    [
        ((20, 30, 40, 51), "offset 3 is 51, past the end at 50"),
        ((20, 30, 29, 50), "offset 2 is 29"),
        ((19, 30, 40, 50), "offset 0 is 19"),
        ((0, 0, 0, 0), "offset 0 is 0"),
        ((20, 2**32 - 1, 40, 50), "offset 1 is 4294967295, past the end"),
    ],
)
def test_an_offset_that_makes_no_sense_is_named(offsets: tuple[int, ...], told: str) -> None:
    door = opened(3)
    door.admit(0, 50, head(3))
    with pytest.raises(FormatError, match=rf"diary://objects/c\.bin \(chunk 0\): {told}"):
        door.check_table(0, memoryview(table(3, *offsets)), 0)


def test_items_may_end_before_the_chunk_does() -> None:
    door = opened(2)
    door.admit(0, 500, head(2))
    door.check_table(0, memoryview(table(2, 100, 120, 130) + bytes(484)), 0)


@given(
    st.lists(st.integers(0, 30), min_size=3, max_size=40),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
)
def test_any_cut_of_the_table_is_checked_entry_by_entry(
    steps: list[int], begin: int, end: int, value: int, where: int
) -> None:
    """Parts see a stretch of the table: a bad entry is found exactly by the stretches that hold it whole."""
    count = len(steps)
    table_end = 4 + 4 * (count + 1)
    offsets = [table_end + 1]
    for step in steps:
        offsets.append(offsets[-1] + step)
    size = offsets[-1]
    where %= count + 1
    offsets[where] = value
    data = table(count, *offsets)
    begin, end = sorted((begin % len(data), end % (len(data) + 1)))
    door = opened(count, data.ljust(size, b"\0"))
    door.admit(0, size, data[:8])
    seen = [k for k in range(count + 1) if begin <= 4 + 4 * k and 8 + 4 * k <= end]
    run = [offsets[k] for k in seen]
    fits = run == sorted(run) and all(table_end <= offset <= size for offset in run)
    try:
        door.check_table(0, memoryview(data)[begin:end], begin)
    except FormatError:
        assert not fits
    else:
        assert fits


def test_bytes_without_a_table_are_not_looked_at() -> None:
    door = opened(2)
    door.admit(0, 5000, head(2))
    door.check_table(0, memoryview(b"\xff" * 4000), 1000)
    door.check_table(0, memoryview(b""), 0)


def test_rows_are_told_apart_by_their_last_bytes() -> None:
    data = table(2, 16, 16, 16) + b"arrow" * 10 + struct.pack("<I", 2) + b"LDARW01\0"
    door = opened(2, data)
    door.admit(0, len(data), data[:8])
    with pytest.raises(UnsupportedError, match=r"c\.bin \(chunk 0\) holds Arrow rows"):
        door.check_table(0, memoryview(data)[:40], 0)
