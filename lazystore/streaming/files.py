"""Orders that go by a dataset's own chunks, walked over the blocks those are read in."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from lazystore.streaming.order import Group, Leg, Span, WindowLeg

if TYPE_CHECKING:
    from lazystore.formats.format import Files

__all__ = ["in_blocks"]


def in_blocks(legs: Iterator[Leg], files: Files, counts: array[int]) -> Iterator[Leg]:
    """The same items in the same order, their spans in blocks.

    Parameters:
        legs: in the numbers of the dataset's own chunks.
        files: which blocks each of those has.
        counts: items of each block.

    Cost: O(items) of each leg, in NumPy. Legs by global numbers are not touched.
    """
    starts = array("Q", accumulate(counts, initial=0))
    for leg in legs:
        yield _leg(leg, files, starts) if isinstance(leg, WindowLeg) else leg


def _leg(leg: WindowLeg, files: Files, starts: array[int]) -> WindowLeg:
    import numpy as np

    places = np.asarray(leg.places)
    groups: list[Group] = []
    order: list[np.ndarray[tuple[int], np.dtype[np.uint32]]] = []
    at = 0
    for span, numbers in leg.groups:
        mine = places[at : at + len(numbers)]
        at += len(numbers)
        wanted = np.asarray(numbers)
        for block in _spans(span, files, starts):
            low = starts[block.chunk] - starts[files.blocks[span.chunk]]  # of the block, counted in its file
            inside = np.flatnonzero((wanted >= low + block.first) & (wanted < low + block.last))
            if len(inside):
                groups.append(Group(block, array("I", (wanted[inside] - low).astype(np.uint32).tobytes())))
                order.append(mine[inside])
    return WindowLeg(
        tuple(block for span in leg.enter for block in _spans(span, files, starts)),
        tuple(block for span in leg.leave for block in _spans(span, files, starts)),
        tuple(groups),
        array("I", np.concatenate(order).astype(np.uint32).tobytes() if order else b""),
        leg.skip,
    )


def _spans(span: Span, files: Files, starts: array[int]) -> Iterator[Span]:
    """A span of a file as spans of its blocks."""
    origin = starts[files.blocks[span.chunk]]
    for block in range(files.blocks[span.chunk], files.blocks[span.chunk + 1]):
        low, high = starts[block] - origin, starts[block + 1] - origin
        first, last = max(span.first, low), min(span.last, high)
        if first < last:
            yield Span(block, first - low, last - low)
