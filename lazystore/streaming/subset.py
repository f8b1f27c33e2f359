"""Parts of a dataset as values: what `subsample`, `train_test_split` and `subset` select, as runs of chunk items.

Index arithmetic only. To the orders a selection is a dataset of its own, whose chunks are the runs: they work on
:meth:`Selection.shape` and what they give is brought back to real chunks by :meth:`Selection.legs`.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import index as as_int
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError, ItemIndexError
from lazystore.streaming.order import Group, ListLeg, RangeLeg, Shape, Span, WindowLeg

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from lazystore.streaming.order import Leg

__all__ = ["Selection", "split", "subsample", "subset"]

#: Runs shorter than this are not worth a range of their own when read in order.
SHORT_RUN = 16
LIST_ITEMS = 4096

#: NumPy's legacy generator takes numbers of 32 bits.
WORD = 2**32

#: What sums of fractions may be off by.
EPSILON = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Items of a dataset in an order of its own, as runs: run r is ends[r]-ends[r-1] items of a chunk from one on.

    Immutable; any thread, fork and pickle. Memory: 24 bytes a run.

    Attributes:
        chunks: the run's chunk; the same chunk, and the same items, may come in several runs.
        firsts: number in the chunk of the run's first item.
        ends: position in the selection where the run ends.
    """

    chunks: array[int]
    firsts: array[int]
    ends: array[int]

    @classmethod
    def whole(cls, counts: Sequence[int]) -> Selection:
        """All items of chunks of that many; a run is a chunk."""
        return cls(array("q", range(len(counts))), array("q", bytes(8 * len(counts))), array("q", accumulate(counts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def locate(self, position: int) -> tuple[int, int]:
        """(chunk, number in the chunk) of an item; negative positions count from the end. Cost: O(log runs).

        Raises:
            ItemIndexError: there is no such position.
        """
        length = len(self)
        place = position + length if position < 0 else position
        if not 0 <= place < length:
            raise ItemIndexError(f"item {position} of a selection of {length} items")
        run = bisect_right(self.ends, place)
        return self.chunks[run], self.firsts[run] + place - (self.ends[run - 1] if run else 0)

    def shape(self, dataset: Shape) -> Shape:
        """The selection as a dataset whose chunks are the runs; bytes are shares of their chunks', rounded up."""
        lengths = array("q", (end - begin for begin, end in self._bounds()))
        shares = (
            -(-dataset.nbytes[chunk] * length // max(1, dataset.counts[chunk]))
            for chunk, length in zip(self.chunks, lengths, strict=True)
        )
        return Shape(lengths, array("q", shares))

    def legs(self, legs: Iterable[Leg], starts: Sequence[int]) -> Iterator[Leg]:
        """Legs of a route over :meth:`shape`, in the dataset's own chunks and global numbers.

        Parameters:
            legs: of a route made for this selection's shape.
            starts: global number of each chunk's first item.

        Positions and order stay; a range becomes as many legs as it needs. Two runs of the same items are two spans
        that look alike.
        """
        for leg in legs:
            if isinstance(leg, RangeLeg):
                yield from self._ranges(leg, starts)
            elif isinstance(leg, ListLeg):
                yield ListLeg(array("q", (starts[chunk] + number for chunk, number in map(self.locate, leg.items))))
            else:
                groups = tuple(Group(self._span(group.span), self._numbers(group)) for group in leg.groups)
                enter, leave = (tuple(map(self._span, spans)) for spans in (leg.enter, leg.leave))
                yield WindowLeg(enter, leave, groups, leg.places, leg.skip)

    def digest(self) -> bytes:
        """16 bytes that name what is selected, for states and caches; the same on every platform."""
        named = hashlib.blake2b(digest_size=16)
        for column in (self.chunks, self.firsts, self.ends):
            named.update(_little_endian(column))
        return named.digest()

    def _bounds(self) -> Iterator[tuple[int, int]]:
        begin = 0
        for end in self.ends:
            yield begin, end
            begin = end

    def _span(self, span: Span) -> Span:
        first = self.firsts[span.chunk]
        return Span(self.chunks[span.chunk], first + span.first, first + span.last)

    def _numbers(self, group: Group) -> array[int]:
        first = self.firsts[group.span.chunk]
        if first == 0:
            return group.numbers
        import numpy as np

        return array("I", (np.frombuffer(group.numbers, dtype=np.uint32) + np.uint32(first)).tobytes())

    def _ranges(self, leg: RangeLeg, starts: Sequence[int]) -> Iterator[Leg]:
        """Runs that follow on from each other are one range; stretches of short ones are lists."""
        few = array("q")
        for first, last in self._joined(leg, starts):
            short = last - first < SHORT_RUN
            if few and (not short or len(few) + last - first > LIST_ITEMS):
                yield ListLeg(few)
                few = array("q")
            if short:
                few.extend(range(first, last))
            else:
                yield RangeLeg(first, last)
        if few:
            yield ListLeg(few)

    def _joined(self, leg: RangeLeg, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Global numbers (first, last) of the positions leg.first..leg.last-1, as few as can be."""
        first = last = -1
        position, run = leg.first, bisect_right(self.ends, leg.first)
        while position < leg.last:
            end = min(self.ends[run], leg.last)
            chunk, number = self.chunks[run], self.firsts[run] + position - (self.ends[run - 1] if run else 0)
            begin = starts[chunk] + number
            if begin != last:
                if first < last:
                    yield first, last
                first = last = begin
            last += end - position
            position, run = end, run + 1
        if first < last:
            yield first, last


def subsample(selection: Selection, fraction: float, *, shuffle: bool = False, seed: int = 42) -> Selection:
    """A share of the items, or more than all of them: the same items as LitData's `subsample=` selects.

    Parameters:
        selection: of which.
        fraction: above 0. Whole copies for each 1.0 in it, then the first int(items * rest) items.
        shuffle: permute the runs (chunks) before each copy and before the rest is taken.
        seed: of that permutation, 0..2**64-1 (LitData's: below 2**32).

    Raises:
        ConfigError: the fraction is not a finite number above 0, or the seed out of range.

    Cost: O(runs * fraction).
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < math.inf:
        raise ConfigError(f"subsample={fraction!r} is not a number above 0")
    if math.isclose(fraction, 1.0):
        return selection
    draw = _draws(seed) if shuffle else None
    parts = []
    while fraction > 0:  # one by one, as LitData counts down: the rest is off by the same rounding
        if draw is not None:
            selection = _reordered(selection, draw.permutation(len(selection.ends)).tolist())
        length = len(selection)
        parts.append(_stretch(selection, 0, length if fraction >= 1 else int(length * fraction)))
        fraction -= 1
    return _laid_end_to_end(parts)


def split(selection: Selection, splits: Sequence[float], *, seed: int = 42, shuffle: bool = True) -> list[Selection]:
    """Disjoint parts of the given shares, each within one item of exact; shares that sum to 1 leave nothing out.

    Chunks stay together as far as shares allow: they are permuted, then cut at the borders. Where the shares are whole
    items, the parts are those of LitData's `train_test_split` for the same seed; it rounds the others down one by one.

    Parameters:
        selection: what to split.
        splits: shares in 0..1 that sum to at most 1.
        seed: of the permutation of runs, 0..2**64-1 (LitData's: below 2**32).
        shuffle: whether to permute them at all.

    Raises:
        ConfigError: shares that are no such numbers, or a seed out of range.
    """
    from fractions import Fraction  # with decimal it takes longer to import than all the rest of the package

    shares = [_share(value) for value in splits]
    bounds: list[Fraction] = list(accumulate(shares, initial=Fraction(0)))
    if not shares or bounds[-1] > 1 + EPSILON:
        raise ConfigError(f"splits={list(splits)!r} sum to {float(bounds[-1]):g}; give shares that sum to at most 1")
    if bounds[-1] > 1 - EPSILON:
        bounds[-1] = Fraction(1)
    if shuffle:
        selection = _reordered(selection, _draws(seed).permutation(len(selection.ends)).tolist())
    length = len(selection)
    places = [int(length * min(bound, Fraction(1))) for bound in bounds]
    return [_stretch(selection, begin, end) for begin, end in pairwise(places)]


def subset(selection: Selection, indices: Sequence[int] | slice) -> Selection:
    """The items at these positions, in this order; positions may repeat.

    Parameters:
        selection: of which.
        indices: a slice, or a sequence or array of ints; negative ones count from the end.

    Raises:
        ConfigError: not a slice nor a flat sequence of ints (a mask, floats, ...).
        ItemIndexError: a position outside the selection.

    Memory: 24 bytes for each run of neighbours, 24 bytes an index at worst; about 60 while it is built.
    """
    length = len(selection)
    if isinstance(indices, slice):
        asked = range(*indices.indices(length))
        if asked.step == 1:
            return _stretch(selection, asked.start, asked.stop)
        indices = asked
    positions = _positions(indices, length)
    return _runs(selection, positions) if len(positions) else _stretch(selection, 0, 0)


# -- pieces ---------------------------------------------------------------------------------


def _share(value: float) -> Fraction:
    from fractions import Fraction

    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"a split of {value!r} is not a share between 0 and 1")
    return Fraction(value).limit_denominator(10**12)  # what was meant by 0.1, so that borders are not off by one


def _draws(seed: int) -> np.random.RandomState:
    import numpy as np

    if not 0 <= as_int(seed) < WORD**2:
        raise ConfigError(f"seed={seed} is not in 0 .. 2**64 - 1")
    high, low = divmod(seed, WORD)
    return np.random.RandomState([low, high] if high else [low])


def _reordered(selection: Selection, order: list[int]) -> Selection:
    ends = selection.ends
    return Selection(
        array("q", [selection.chunks[run] for run in order]),
        array("q", [selection.firsts[run] for run in order]),
        array("q", accumulate(ends[run] - (ends[run - 1] if run else 0) for run in order)),
    )


def _stretch(selection: Selection, begin: int, end: int) -> Selection:
    """Positions begin..end-1."""
    if begin >= end:
        return Selection(array("q"), array("q"), array("q"))
    first, last = bisect_right(selection.ends, begin), bisect_left(selection.ends, end)
    runs = slice(first, last + 1)
    firsts = selection.firsts[runs]
    firsts[0] += begin - (selection.ends[first - 1] if first else 0)
    ends = array("q", (bound - begin for bound in selection.ends[runs]))
    ends[-1] = end - begin
    return Selection(selection.chunks[runs], firsts, ends)


def _laid_end_to_end(parts: list[Selection]) -> Selection:
    chunks, firsts, ends = array("q"), array("q"), array("q")
    for part in parts:
        begin = ends[-1] if ends else 0
        chunks.extend(part.chunks)
        firsts.extend(part.firsts)
        ends.extend(begin + end for end in part.ends)
    return Selection(chunks, firsts, ends)


def _positions(indices: Any, length: int) -> NDArray[np.int64]:
    import numpy as np

    if isinstance(indices, range):
        positions = np.arange(indices.start, indices.stop, indices.step, dtype=np.int64)
    else:
        given = np.asarray(indices)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ConfigError(
                "indices of a subset are a slice or a flat sequence of ints; of a mask take its nonzero()"
            )
        positions = given.astype(np.int64)
    wrapped: NDArray[np.int64] = np.where(positions < 0, positions + length, positions)
    outside = np.flatnonzero((wrapped < 0) | (wrapped >= length))
    if outside.size:
        raise ItemIndexError(f"item {positions[outside[0]]} of a selection of {length} items")
    return wrapped


def _runs(selection: Selection, positions: NDArray[np.int64]) -> Selection:
    """Neighbours in a run of the selection, asked for one after the other, stay together."""
    import numpy as np

    ends = np.frombuffer(selection.ends, dtype=np.int64)
    run = np.searchsorted(ends, positions, side="right")
    breaks = (np.diff(run) != 0) | (np.diff(positions) != 1)
    heads = np.flatnonzero(np.concatenate([[True], breaks]))
    run, begins = run[heads], positions[heads]
    starts = np.concatenate([[0], ends])[run]
    columns = (
        np.frombuffer(selection.chunks, dtype=np.int64)[run],
        np.frombuffer(selection.firsts, dtype=np.int64)[run] + begins - starts,
        np.append(heads[1:], len(positions)),
    )
    return Selection(*(array("q", column.astype(np.int64).tobytes()) for column in columns))


def _little_endian(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()
