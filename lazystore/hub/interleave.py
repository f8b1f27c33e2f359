"""`Interleave`: which dataset, and which of its samples, is at a position of several datasets interleaved by weight.

Arithmetic only: nothing here reads samples or knows what they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from lazystore._core.permute import derive_key
from lazystore.errors import ConfigError

__all__ = ["STOPS", "Interleave", "Walk", "shares"]

STOPS = ("all", "first")
#: What a key is for (``combine`` and ``order`` have others).
INTERLEAVE = 21
#: A share of 1, and the fraction of a sample's time, are this many bits.
BITS = 32
MASK = (1 << BITS) - 1


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as whole numbers that add up to 2**32 or so, each at least 1.

    Raises:
        ConfigError: one is not a number above zero.
    """
    for weight in weights:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight <= 0:
            raise ConfigError(
                f"weights={list(weights)} must be numbers above zero; leave a dataset out if nothing of it is wanted"
            )
    largest = max(weights)
    total = math.fsum(weight / largest for weight in weights)  # of fractions: no sum can overflow
    return tuple(max(1, round(weight / largest / total * (1 << BITS))) for weight in weights)


class Interleave:
    """An order of the samples of several datasets in which each keeps its own order and comes by its weight.

    Sample ``n`` of a dataset with share ``w`` is at time ``(n + u) / w``, where ``u`` in [0, 1) is drawn by seed,
    dataset and ``n``; the order is that of time. So in any stretch of a pass each dataset has its share to within
    two samples, one that has ended leaves the others' order as it is, and what is at a position is a formula:
    stratified (jittered) sampling, as in Pharr, Jakob, Humphreys: Physically Based Rendering, 8.3.

    Parameters:
        parts: shares of the datasets, from :func:`shares`.
        seed: of the draws.
        stop: ``"all"``: datasets that end drop out, the last one ends it; ``"first"``: it ends when a dataset that
            has ended is due.
        lengths: samples of each; None where that is not known yet: such a dataset goes on for ever.

    Whole numbers throughout, so that every machine has the same order. Cost: some microseconds a dataset for any
    position. ``lengths`` may be filled in later, which changes nothing before the end of that dataset.
    """

    def __init__(
        self, parts: Sequence[int], seed: int, stop: str = "all", lengths: Sequence[int | None] | None = None
    ) -> None:
        self.parts = tuple(parts)
        self.stop = stop
        self.lengths: list[int | None] = [None] * len(self.parts) if lengths is None else list(lengths)
        self._keys = [derive_key(seed, INTERLEAVE, part) for part in range(len(self.parts))]

    @property
    def length(self) -> int | None:
        """Samples of a pass; None: a dataset's length is not known."""
        return None if None in self.lengths else self._limit()

    def _limit(self) -> int | None:
        """The most samples a pass can have by the lengths that are known; None: no limit."""
        if self.stop == "all":
            return None if None in self.lengths else sum(length or 0 for length in self.lengths)
        ends = [(self.time(part, length), part) for part, length in enumerate(self.lengths) if length is not None]
        if not ends:
            return None
        end, ender = min(ends)
        # of equal times the dataset that was given first is first
        return sum(self._until(part, end if part < ender else end - 1) for part in range(len(self.parts)))

    def time(self, part: int, number: int) -> int:
        """When sample ``number`` of a dataset is due."""
        return ((number << BITS | self._fraction(part, number)) << BITS) // self.parts[part]

    def walk(self, position: int = 0) -> Walk:
        """The order from a position on; from its end on, if the position is beyond it."""
        count = len(self.parts)
        limit = self._limit()
        position = position if limit is None else min(position, limit)
        # Each has its share to within one sample: this early, no more than `position` samples are due for sure.
        moment = self._moment(position - count - 1)
        walk = Walk(self, [self._until(part, moment) for part in range(count)])
        while walk.position < position:
            walk.take()
        return walk

    def _fraction(self, part: int, number: int) -> int:
        return derive_key(self._keys[part], number) & MASK

    def _until(self, part: int, moment: int) -> int:
        """Samples of a dataset that are due until this moment, those of the moment included."""
        if moment < 0:
            return 0
        share = self.parts[part]
        due = (moment * share + share - 1) >> BITS  # the largest number and fraction with time() <= moment
        number = due >> BITS
        number += self._fraction(part, number) <= due & MASK
        length = self.lengths[part]
        return number if length is None else min(number, length)

    def _moment(self, samples: int) -> int:
        """When this many samples are due, were each dataset's evenly spread; rounded down."""
        if samples <= 0:
            return -1
        ends = sorted(
            ((length << 2 * BITS) // self.parts[part], part)
            for part, length in enumerate(self.lengths)
            if length is not None
        )
        share = sum(self.parts)
        for end, part in ends:
            moment = (samples << 2 * BITS) // share
            if moment <= end:
                return moment
            samples -= self.lengths[part] or 0
            share -= self.parts[part]
            if not share:
                return end
        return (samples << 2 * BITS) // share


class Walk:
    """The order of an :class:`Interleave` from some position on, sample by sample.

    Parameters:
        order: what is walked.
        counts: samples of each dataset that are behind.
        ended: datasets that are known to have no more.

    Attributes:
        counts: the same, as it goes.
        part: the dataset whose sample is next; None: the pass is over.
        gone: datasets that have ended.

    Not locked. Cost: about a microsecond a sample and dataset.
    """

    __slots__ = ("_due", "_order", "counts", "part")

    def __init__(self, order: Interleave, counts: Sequence[int], ended: Collection[int] = ()) -> None:
        self._order = order
        self.counts = list(counts)
        self._due = {part: order.time(part, count) for part, count in enumerate(self.counts)}
        self.part: int | None = None
        for part, count in enumerate(self.counts):
            length = order.lengths[part]
            if part in ended or (order.stop == "all" and length is not None and count >= length):
                del self._due[part]
        self._next()

    @property
    def position(self) -> int:
        return sum(self.counts)

    @property
    def gone(self) -> list[int]:
        return [part for part in range(len(self.counts)) if part not in self._due]

    def take(self) -> int:
        """Go on by one sample: its number in the dataset ``part``."""
        part = self.part
        assert part is not None
        number = self.counts[part]
        self.counts[part] = number + 1
        length = self._order.lengths[part]
        if self._order.stop == "all" and number + 1 == length:
            del self._due[part]
        else:
            self._due[part] = self._order.time(part, number + 1)
        self._next()
        return number

    def ended(self) -> None:
        """The dataset ``part`` turned out to have no further sample."""
        assert self.part is not None
        del self._due[self.part]
        if self._order.stop == "first":
            self.part = None
        else:
            self._next()

    def _next(self) -> None:
        due: Any = self._due
        self.part = min(due, key=due.__getitem__) if due else None  # of equal ones the first
        if self.part is not None and self._order.stop == "first":
            length = self._order.lengths[self.part]
            if length is not None and self.counts[self.part] >= length:
                self.part = None
