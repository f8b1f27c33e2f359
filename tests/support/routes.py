"""Walking a route as the engine does, with every promise of a leg checked on the way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from lazystore.streaming.order import MAX_LEG, ListLeg, RangeLeg, Route, Span, WindowLeg

Item = tuple[int, int]  # chunk, number in the chunk


class Player:
    """Plays legs; afterwards ``most_resident`` tells how many spans were resident at once, ``legs`` how many came."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.ends = list(accumulate(counts))
        self.resident: set[Span] = set()
        self.entered: set[Span] = set()
        self.most_resident = 0
        self.legs = 0

    def place(self, number: int) -> Item:
        """Where the item with this global number lies."""
        chunk = bisect_right(self.ends, number)
        return chunk, number - (self.ends[chunk - 1] if chunk else 0)

    def play(self, route: Route, start: int = 0, stop: int | None = None) -> list[Item]:
        """The items that the legs emit."""
        items: list[Item] = []
        for leg in route.legs(start, stop):
            before = len(items)
            if isinstance(leg, RangeLeg):
                items += [self.place(number) for number in range(leg.first, leg.last)]
            elif isinstance(leg, ListLeg):
                assert leg.items.typecode == "q"
                items += [self.place(number) for number in leg.items]
            else:
                items += self._window(leg)
            assert 0 < len(leg) == len(items) - before <= MAX_LEG
            self.legs += 1
        assert not self.resident, "spans that nobody leaves"
        return items

    def _window(self, leg: WindowLeg) -> list[Item]:
        assert not self.entered.intersection(leg.enter), "a span enters once"
        assert len(set(leg.enter)) == len(leg.enter)
        self.entered.update(leg.enter)
        self.resident.update(leg.enter)
        self.most_resident = max(self.most_resident, len(self.resident))
        assert leg.places.typecode == "I"
        assert sorted(leg.places) == list(range(len(leg.places)))
        assert len({group.span for group in leg.groups}) == len(leg.groups)
        row: dict[int, Item] = {}
        places = iter(leg.places)
        first_places: dict[Span, int] = {}
        for span, numbers in leg.groups:
            assert span in self.resident, "used before it entered or after it left"
            assert numbers.typecode == "I"
            assert len(numbers) > 0
            assert all(span.first <= number < span.last for number in numbers)
            mine = {next(places): (span.chunk, number) for number in numbers}
            first_places[span] = min(mine)
            row.update(mine)
        needs = [first_places[span] for span in leg.enter if span in first_places]
        assert needs == sorted(needs), "first needed first"
        assert self.resident.issuperset(leg.leave)
        assert len(set(leg.leave)) == len(leg.leave)
        self.resident.difference_update(leg.leave)
        return [row[place] for place in range(leg.skip, len(row))]
