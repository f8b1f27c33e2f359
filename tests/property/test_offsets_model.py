"""Offset tables against a list of ints: good ones answer alike, bad ones are refused for the right entry."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.offset_table import OffsetTableModel, first_bad, leaf_sizes, pack, unpack

from lazystore._core import offsets
from lazystore.errors import FormatError, ItemIndexError

widths = st.sampled_from([4, 8])
gaps = st.lists(st.one_of(st.just(0), st.integers(0, 300)), min_size=1, max_size=40)
U64 = 2**64 - 1


def cut(data: bytes, width: int, per_buffer: int) -> list[bytes]:
    """The table as it lies across frames."""
    step = width * per_buffer
    return [data[at : at + step] for at in range(0, len(data), step)]


@given(widths, st.integers(0, 1000), gaps, st.integers(1, 7), st.integers(0, 500))
def test_good_tables_answer_like_a_list(width: int, lowest: int, steps: list[int], per: int, room: int) -> None:
    entries = list(accumulate([lowest + steps[0], *steps[1:]]))
    model = OffsetTableModel(entries)
    buffers = cut(pack(entries, width), width, per)
    table = offsets.OffsetTable(buffers, width=width, lowest=lowest, highest=entries[-1] + room)
    assert len(table) == table.n_items == len(model)
    assert [table.span(i) for i in range(len(table))] == [model.span(i) for i in range(len(model))]
    for byte in {b for entry in entries for b in (entry - 1, entry, entry + 1) if b >= 0} | {0, U64}:
        expected = model.find(byte)
        if expected is None:
            with pytest.raises(ItemIndexError):
                table.find(byte)
        else:
            assert table.find(byte) == expected


@given(widths, st.binary(max_size=200), st.integers(0, 2**32), st.integers(0, U64), st.integers(1, 5))
def test_hostile_tables_are_refused_at_the_first_bad_entry(
    width: int, data: bytes, lowest: int, highest: int, per: int
) -> None:
    entries = unpack(data[: len(data) // width * width], width)
    if not entries:
        return
    packed = pack(entries, width)
    bad = first_bad(entries, lowest, highest)
    if bad is None:
        assert offsets.check_offsets(packed, width=width, lowest=lowest, highest=highest) == entries[-1]
        table = offsets.OffsetTable(cut(packed, width, per), width=width, lowest=lowest, highest=highest)
        assert [table.span(i) for i in range(len(table))] == list(pairwise(entries))
        return
    with pytest.raises(FormatError, match=rf"offset {bad + 70} is {entries[bad]}, "):
        offsets.check_offsets(packed, width=width, lowest=lowest, highest=highest, first=70)
    with pytest.raises(FormatError, match=rf"offset {bad} is {entries[bad]}, "):
        offsets.OffsetTable(cut(packed, width, per), width=width, lowest=lowest, highest=highest)


@given(st.integers(0, 8), st.binary(max_size=60))
def test_leaf_sizes_of_any_bytes(n_leaves: int, item: bytes) -> None:
    expected = leaf_sizes(item, n_leaves)
    if expected is None:
        with pytest.raises(FormatError):
            offsets.leaf_sizes(item, n_leaves)
    else:
        assert offsets.leaf_sizes(item, n_leaves) == expected


@given(st.lists(st.integers(0, 40), max_size=8))
def test_leaf_sizes_that_add_up_are_read(sizes: list[int]) -> None:
    item = pack(sizes, 4) + bytes(sum(sizes))
    assert offsets.leaf_sizes(item, len(sizes)) == tuple(sizes)
    with pytest.raises(FormatError):
        offsets.leaf_sizes(item + b"x", len(sizes))
