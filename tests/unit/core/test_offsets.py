"""Offset tables: what is refused, and who holds the buffers."""

from __future__ import annotations

import copy
import pickle
import struct
from itertools import pairwise
from typing import Any

import pytest

from lazystore._core.frames import FrameStore
from lazystore._core.offsets import OffsetTable, check_offsets, leaf_sizes
from lazystore.errors import ConfigError, FormatError, ItemIndexError


def u32(*entries: int) -> bytes:
    return struct.pack(f"<{len(entries)}I", *entries)


def u64(*entries: int) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries)


@pytest.mark.parametrize("width", [0, 1, 2, 5, 16, -4])
def test_only_4_and_8_byte_offsets_exist(width: int) -> None:
    with pytest.raises(ConfigError):
        check_offsets(u64(1), width=width, highest=9)
    with pytest.raises(ConfigError):
        OffsetTable([u64(1)], width=width, highest=9)


@pytest.mark.parametrize("data", [b"", b"123", u32(1) + b"1"])
def test_bytes_that_are_no_whole_offsets_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        check_offsets(data, highest=9)
    with pytest.raises(ConfigError):
        OffsetTable([data], highest=9)


def test_none_is_no_buffer() -> None:
    missing: Any = None
    with pytest.raises(TypeError):
        check_offsets(missing, highest=9)
    with pytest.raises(TypeError):
        leaf_sizes(missing, 0)
    with pytest.raises(TypeError):
        OffsetTable([missing], highest=9)


def test_a_table_needs_a_buffer() -> None:
    with pytest.raises(ConfigError):
        OffsetTable([], highest=9)


@pytest.mark.parametrize("lengths", [(2, 3), (2, 40), (2, 1, 2), (1, 2, 1), (3, 2, 3)])
def test_only_the_last_buffer_may_differ_and_only_be_shorter(lengths: tuple[int, ...]) -> None:
    buffers, first = [], 0
    for length in lengths:
        buffers.append(u32(*range(first, first + length)))
        first += length
    with pytest.raises(ConfigError):
        OffsetTable(buffers, highest=100)


def test_a_last_shorter_buffer_is_fine() -> None:
    table = OffsetTable([u32(4, 5), u32(6, 9), u32(9)], highest=9)
    assert [table.span(i) for i in range(4)] == [(4, 5), (5, 6), (6, 9), (9, 9)]


def test_offsets_of_8_bytes_reach_the_end_of_the_world() -> None:
    top = 2**64 - 1
    table = OffsetTable([u64(0, top - 1), u64(top)], width=8, highest=top)
    assert table.span(1) == (top - 1, top)
    assert table.find(top - 1) == 1
    with pytest.raises(ItemIndexError):
        table.find(top)


def test_a_single_entry_is_a_table_without_items() -> None:
    table = OffsetTable([u32(8)], highest=8)
    assert len(table) == 0
    with pytest.raises(ItemIndexError):
        table.find(8)
    with pytest.raises(ItemIndexError):
        table.span(0)


@pytest.mark.parametrize("item", [-1, 2, 2**62])
def test_items_outside_are_index_errors(item: int) -> None:
    with pytest.raises(ItemIndexError, match=r"0\.\.1"):
        OffsetTable([u32(4, 5, 6)], highest=6).span(item)


def test_errors_say_backwards_or_past_the_end() -> None:
    with pytest.raises(FormatError, match="offset 12 is 3, it goes backwards"):
        check_offsets(u32(4, 5, 3), highest=9, first=10)
    with pytest.raises(FormatError, match="offset 1 is 50, past the end at 9"):
        check_offsets(u32(4, 50, 3), highest=9)
    with pytest.raises(FormatError, match="offset 0 is 3, it goes backwards"):
        check_offsets(u32(3), lowest=4, highest=9)


@pytest.mark.parametrize("n_leaves", [2**30, 2**31 - 1, 2**29])
def test_absurd_leaf_counts_are_refused(n_leaves: int) -> None:
    with pytest.raises(FormatError):
        leaf_sizes(b"abcd", n_leaves)


def test_negative_leaf_counts_are_refused() -> None:
    with pytest.raises(ConfigError):
        leaf_sizes(b"", -1)


def test_a_table_over_leases_keeps_them_pinned_as_long_as_it_lives() -> None:
    store = FrameStore(1 << 20, frame_bytes=4096)
    entries = list(range(0, 5 * 2048, 5))
    data = u32(*entries)
    for part in range(2):
        fill = store.begin(0, part, 4096)
        assert fill is not None
        memoryview(fill)[:] = data[part * 4096 : (part + 1) * 4096]
        fill.commit()
        del fill
    table = OffsetTable([store.lease(0, at, at + 4096) for at in (0, 4096)], highest=entries[-1])
    assert store.counters()["pins"] == 2
    assert not store.drop(0, 0)
    assert [table.span(i) for i in range(len(table))] == list(pairwise(entries))
    store.close()
    assert table.span(1500) == (7500, 7505)
    assert table.find(7504) == 1500


def test_a_refused_table_lets_its_buffers_go() -> None:
    data = bytearray(u32(4, 5, 3))
    with pytest.raises(FormatError):
        OffsetTable([data], highest=9)
    data.append(0)  # would be a BufferError if the table still held it


def test_buffers_are_held_against_resizing() -> None:
    data = bytearray(u32(4, 5, 6))
    table = OffsetTable([data], highest=9)
    with pytest.raises(BufferError):
        data.append(0)
    del table
    data.append(0)


def test_pickling_and_copying_are_refused() -> None:
    table = OffsetTable([u32(4, 5)], highest=9)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(table)
    with pytest.raises(TypeError):
        copy.copy(table)


def test_repr_says_what_it_is() -> None:
    assert repr(OffsetTable([u32(4, 5), u32(6)], highest=9)) == "<OffsetTable 2 items, 4-byte offsets in 2 buffers>"
