"""What a route's legs mean, worked out item by item: the oracle of everything that runs them.

Nothing of lazystore is used but the plain values that legs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from lazystore.streaming.order import Leg, ListLeg, RangeLeg, Span

__all__ = ["covered", "leg_items", "route_items"]


def leg_items(leg: Leg, starts: Sequence[int]) -> list[int]:
    """Global numbers of a leg's items in the order in which they come."""
    if isinstance(leg, RangeLeg):
        return list(range(leg.first, leg.last))
    if isinstance(leg, ListLeg):
        return list(leg.items)
    row = [-1] * len(leg.places)
    laid = [starts[group.span.chunk] + number for group in leg.groups for number in group.numbers]
    for item, place in zip(laid, leg.places, strict=True):
        row[place] = item
    assert -1 not in row
    return row[leg.skip :]


def route_items(legs: Iterable[Leg], counts: Sequence[int]) -> list[int]:
    """Global numbers in the order of a route."""
    starts = list(accumulate(counts, initial=0))
    return [item for leg in legs for item in leg_items(leg, starts)]


def covered(spans: Iterable[Span], counts: Sequence[int]) -> list[int]:
    """Global numbers of the items of some spans."""
    starts = list(accumulate(counts, initial=0))
    return [starts[span.chunk] + number for span in spans for number in range(span.first, span.last)]
