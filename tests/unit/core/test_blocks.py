"""A part cut into blocks: sizes, estimates and errors; the ranges themselves are checked against the model."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from lazystore._core.blocks import Blocks, cut_blocks
from lazystore._core.permute import Permutation
from lazystore.errors import ConfigError, ItemIndexError


def cut(
    counts: Any, nbytes: Any, first: int = 0, last: int | None = None, order: Permutation | None = None, **limits: int
) -> Blocks:
    settings = {"block_bytes": 1000, "block_items": 16384, **limits}
    return cut_blocks(counts, nbytes, order, first, sum(counts) if last is None else last, **settings)


def spans(blocks: Blocks) -> list[tuple[int, int, int]]:
    return [blocks.span(block) for block in range(len(blocks))]


def test_chunks_are_cut_evenly_and_small_ones_left_whole() -> None:
    blocks = cut([10, 0, 4], [2500, 99, 400])
    assert spans(blocks) == [(0, 0, 3), (0, 3, 6), (0, 6, 10), (2, 0, 4)]
    assert (blocks.items, blocks.nbytes, blocks.largest) == (14, 2900, 4)


def test_a_part_begins_and_ends_inside_chunks() -> None:
    blocks = cut([10, 10, 10], [1000, 1000, 1000], 7, 22)
    assert spans(blocks) == [(0, 7, 10), (1, 0, 10), (2, 0, 2)]
    assert blocks.nbytes == 1500


def test_items_larger_than_a_block_are_blocks_of_one() -> None:
    assert spans(cut([3], [10**9])) == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]


def test_sizes_nobody_knows_count_four_kib_an_item() -> None:
    assert cut([10], [0]).nbytes == 40960


def test_the_largest_numbers_there_can_be_are_cut_exactly() -> None:
    count = 2**32 - 1
    blocks = cut([count] * 3, [2**62] * 3, count - 5, 2 * count + 5, block_bytes=2**61, block_items=2**32)
    assert spans(blocks)[0] == (0, count - 5, count)
    assert spans(blocks)[-1] == (2, 0, 5)
    assert sum(last - first for _, first, last in spans(blocks)) == blocks.items == count + 10


def test_blocks_pickle() -> None:
    blocks = cut([10, 0, 40], [2500, 99, 4000], 3, 47)
    again = pickle.loads(pickle.dumps(blocks))
    assert spans(again) == spans(blocks)
    assert (again.items, again.nbytes, again.largest) == (blocks.items, blocks.nbytes, blocks.largest)


def test_a_part_of_nothing_has_no_blocks() -> None:
    assert len(cut([], [])) == len(cut([5], [5], 3, 3)) == len(cut([0, 0], [1, 1])) == 0


def test_dealt_items_come_by_block_with_their_places() -> None:
    blocks = cut([6, 6], [1200, 900])
    order = Permutation(12, 7)
    flat = [(chunk, k) for chunk, first, last in spans(blocks) for k in range(first, last)]
    dealt, places = blocks.deal(order, 2, 9)
    row = dict(zip(places, [(blocks.span(block)[0], k) for block, ks in dealt for k in ks], strict=True))
    assert [row[place] for place in range(9)] == [flat[item] for item in order.fill(2, 9)]
    for block, numbers in dealt:
        assert all(blocks.span(block)[1] <= number < blocks.span(block)[2] for number in numbers)
    assert [blocks.deal(order, 2, 0), blocks.deal(order, 12, 0)] == [([], array("I")), ([], array("I"))]


@pytest.mark.parametrize(
    "call",
    [
        lambda blocks: blocks.span(-1),
        lambda blocks: blocks.span(3),
        lambda blocks: blocks.find(Permutation(3, 0), 12),
        lambda blocks: blocks.find(Permutation(3, 0), -1),
        lambda blocks: blocks.find(Permutation(4, 0), 0),
        lambda blocks: blocks.count(Permutation(3, 0), 2, 4),
        lambda blocks: blocks.count(Permutation(3, 0), 2, 1),
        lambda blocks: blocks.deal(Permutation(12, 0), 10, 3),
        lambda blocks: blocks.deal(Permutation(12, 0), 2**62, 2**62),
        lambda blocks: blocks.deal(Permutation(13, 0), 0, 1),
        lambda blocks: blocks.deal(Permutation(12, 0), -1, 1),
    ],
)
def test_what_is_not_there_is_refused(call: Callable[[Blocks], object]) -> None:
    with pytest.raises(ItemIndexError):
        call(cut([6, 6], [1200, 900]))


@pytest.mark.parametrize(
    ("counts", "nbytes", "changes"),
    [
        ([2**32], [1], {}),
        ([1, -1, 2], [1, 1, 1], {}),
        ([1], [-1], {}),
        ([1], [2**64], {}),
        ([1], ["much"], {}),
        ([1, 2], [1], {}),
        ([1, 2], [1, 2], {"order": Permutation(3, 0)}),
        ([5], [5], {"last": 6}),
        ([5], [5], {"first": -1}),
        ([5], [5], {"first": 3, "last": 2}),
        ([5], [5], {"block_bytes": 0}),
        ([5], [5], {"block_items": 0}),
    ],
)
def test_what_cannot_be_cut_is_refused(counts: list[int], nbytes: list[Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        cut(counts, nbytes, **changes)


def test_blocks_of_other_arrays_are_refused() -> None:
    good = array("I", [0]), array("q", [5]), array("q", [1])
    assert Blocks(*good, lead=0, nbytes=1, largest=5).span(0) == (0, 0, 5)
    for wrong in ((good[1], good[1], good[2]), (good[0], array("q"), good[2]), (good[0], good[1], array("q", [1, 2]))):
        with pytest.raises(ConfigError, match="cut_blocks"):
            Blocks(*wrong, lead=0, nbytes=1, largest=5)
