"""Whatever ranges are asked for: every wanted byte is requested exactly once, within the caps."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lazystore.fetch.plan import coalesce, split

spans = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 300)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=40
)
small = st.integers(0, 400)


@given(spans, small, st.integers(1, 1000), st.none() | small)
def test_every_span_lies_inside_exactly_one_run(
    wanted: list[tuple[int, int]], gap: int, cap: int, waste: int | None
) -> None:
    runs = coalesce(wanted, max_gap=gap, max_bytes=cap, max_waste=waste)
    members = [i for run in runs for i in run.members]
    assert sorted(members) == [i for i, (begin, end) in enumerate(wanted) if begin < end]
    for run in runs:
        assert run.begin == min(wanted[i][0] for i in run.members)
        assert run.end == max(wanted[i][1] for i in run.members)
        assert all(wanted[a][0] <= wanted[b][0] for a, b in itertools.pairwise(run.members))


@given(spans, small, st.integers(1, 1000), st.none() | small)
def test_runs_are_ascending_and_disjoint(wanted: list[tuple[int, int]], gap: int, cap: int, waste: int | None) -> None:
    runs = coalesce(wanted, max_gap=gap, max_bytes=cap, max_waste=waste)
    assert all(before.end <= after.begin for before, after in itertools.pairwise(runs))


@given(spans, small, st.integers(1, 1000), st.none() | small)
def test_unwanted_bytes_stay_within_gap_cap_and_waste(
    wanted: list[tuple[int, int]], gap: int, cap: int, waste: int | None
) -> None:
    useful = {byte for begin, end in wanted for byte in range(begin, end)}
    runs = coalesce(wanted, max_gap=gap, max_bytes=cap, max_waste=waste)
    wasted = 0
    for run in runs:
        stretch = 0
        holes = 0
        for byte in range(run.begin, run.end):
            stretch = 0 if byte in useful else stretch + 1
            assert stretch <= gap
            holes += byte not in useful
        wasted += holes
        if run.end - run.begin > cap:  # only because its ranges overlap
            assert holes == 0
    assert waste is None or wasted <= waste


@given(spans, small)
def test_without_caps_no_gap_that_may_be_closed_stays_open(wanted: list[tuple[int, int]], gap: int) -> None:
    runs = coalesce(wanted, max_gap=gap, max_bytes=1 << 40)
    assert all(after.begin - before.end > gap for before, after in itertools.pairwise(runs))


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 5000), st.data())
def test_parts_cover_the_range_and_keep_the_cap(begin: int, length: int, cap: int, data: st.DataObject) -> None:
    align = data.draw(st.integers(1, cap))
    parts = split(begin, begin + length, max_bytes=cap, align=align)
    position = begin
    for first, last in parts:
        assert first == position
        assert 0 < last - first <= cap
        assert (first - begin) % align == 0
        position = last
    assert position == begin + length


@given(st.integers(1, 10**5), st.integers(1, 5000))
def test_no_more_parts_than_needed(length: int, cap: int) -> None:
    assert len(split(0, length, max_bytes=cap)) == -(-length // cap)
