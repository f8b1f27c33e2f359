"""Results that wait: in order or as they came, each once, and counted."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lazystore.parallel.scheduling.arrivals import Arrivals, Part


@st.composite
def parts_in_any_order(draw: st.DrawFn) -> tuple[int, list[Part]]:
    first = at = draw(st.integers(0, 1 << 40))
    parts = []
    for size in draw(st.lists(st.integers(1, 5), max_size=8)):
        items = list(range(at, at + size))
        parts.append(Part(at, list(items), items, item_bytes=draw(st.sampled_from([0.0, 1.5, 1000.0]))))
        at += size
    return first, draw(st.permutations(parts))


@given(parts_in_any_order(), st.booleans(), st.data())
def test_everything_that_came_is_handed_out_once_and_in_turn(
    given_parts: tuple[int, list[Part]], ordered: bool, data: st.DataObject
) -> None:
    first, parts = given_parts
    arrivals = Arrivals(ordered=ordered, first=first)
    came: list[Part] = []
    found: list[Any] = []
    wanted = sum(len(part.results) for part in parts)
    while len(found) < wanted:
        if len(came) < len(parts) and (not arrivals.ready or data.draw(st.booleans())):
            arrivals.put(parts[len(came)])
            came.append(parts[len(came)])
        elif arrivals.ready:
            part = arrivals.peek()
            count = data.draw(st.integers(1, len(part.results) - part.at))
            found += part.results[part.at : part.at + count]
            arrivals.used(count)
        waiting = [part for part in came if part.at < len(part.results)]
        assert arrivals.items == sum(len(part.results) - part.at for part in waiting)
        assert arrivals.bytes == sum((len(part.results) - part.at) * part.item_bytes for part in waiting)
        reached = min((part.first for part in parts if part.at < len(part.results)), default=first + wanted)
        if ordered:
            assert arrivals.due == reached
            assert arrivals.ready == any(part.first == reached for part in waiting)
        else:
            assert arrivals.ready == bool(waiting)
        assert arrivals.is_due(reached) == ordered
        assert not arrivals.is_due(reached + 1)
    in_order = [
        result for part in (parts if not ordered else sorted(parts, key=lambda p: p.first)) for result in part.results
    ]
    assert found == in_order
    assert not arrivals.ready


def test_items_that_are_delivered_elsewhere_make_way_for_those_behind_them() -> None:
    arrivals = Arrivals(ordered=True, first=3)
    arrivals.put(Part(7, ["seven"], [7]))
    assert not arrivals.ready
    arrivals.passed(3)
    assert not arrivals.ready
    arrivals.passed(1)
    assert arrivals.ready
    assert arrivals.peek().results == ["seven"]
