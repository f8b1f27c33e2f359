"""Ranges are merged, capped and split as told; see also the property tests."""

from __future__ import annotations

import pytest

from lazystore.errors import ConfigError
from lazystore.fetch.plan import MAX_MERGED_BYTES, PART_BYTES, Run, coalesce, split


def test_ranges_closer_than_the_gap_become_one_run() -> None:
    assert coalesce([(0, 10), (15, 20)], max_gap=5) == [Run(0, 20, (0, 1))]
    assert coalesce([(0, 10), (15, 20)], max_gap=4) == [Run(0, 10, (0,)), Run(15, 20, (1,))]


def test_members_are_positions_in_the_callers_order() -> None:
    assert coalesce([(50, 60), (0, 10), (12, 14)], max_gap=2) == [Run(0, 14, (1, 2)), Run(50, 60, (0,))]


def test_ranges_that_touch_are_merged_without_any_gap() -> None:
    assert coalesce([(0, 10), (10, 20)], max_gap=0) == [Run(0, 20, (0, 1))]


def test_a_run_spans_no_more_than_the_cap() -> None:
    runs = coalesce([(i * 10, i * 10 + 10) for i in range(10)], max_gap=0, max_bytes=30)
    assert [(run.begin, run.end) for run in runs] == [(0, 30), (30, 60), (60, 90), (90, 100)]


def test_overlapping_ranges_share_a_run_even_beyond_the_cap() -> None:
    assert coalesce([(0, 100), (50, 150), (149, 160)], max_bytes=10) == [Run(0, 160, (0, 1, 2))]


def test_a_repeated_range_is_requested_once() -> None:
    assert coalesce([(5, 9), (5, 9)]) == [Run(5, 9, (0, 1))]


def test_empty_ranges_are_in_no_run() -> None:
    assert coalesce([(5, 5), (7, 8)]) == [Run(7, 8, (1,))]
    assert coalesce([]) == []
    assert coalesce([(3, 3)]) == []


def test_the_smallest_gaps_are_closed_first_when_waste_is_limited() -> None:
    spans = [(0, 10), (13, 20), (21, 30), (40, 50)]  # gaps of 3, 1 and 10
    assert [run.members for run in coalesce(spans, max_gap=100, max_waste=1)] == [(0,), (1, 2), (3,)]
    assert [run.members for run in coalesce(spans, max_gap=100, max_waste=4)] == [(0, 1, 2), (3,)]
    assert [run.members for run in coalesce(spans, max_gap=100, max_waste=14)] == [(0, 1, 2, 3)]
    assert [run.members for run in coalesce(spans, max_gap=100, max_waste=0)] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("span", [(5, 4), (-1, 4)])
def test_impossible_ranges_are_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="not a byte range"):
        coalesce([span])


def test_a_long_range_is_split_evenly() -> None:
    assert split(100, 125, max_bytes=10) == [(100, 109), (109, 118), (118, 125)]


def test_a_short_range_stays_whole() -> None:
    assert split(3, 13, max_bytes=10) == [(3, 13)]
    assert split(3, 3) == []


def test_parts_begin_at_multiples_of_the_alignment() -> None:
    assert split(0, 100, max_bytes=48, align=16) == [(0, 48), (48, 96), (96, 100)]


@pytest.mark.parametrize(("max_bytes", "align"), [(0, 1), (10, 0), (10, 11)])
def test_impossible_part_sizes_are_refused(max_bytes: int, align: int) -> None:
    with pytest.raises(ConfigError, match="align"):
        split(0, 100, max_bytes=max_bytes, align=align)


def test_a_merged_run_is_worth_at_most_a_few_parts() -> None:
    assert PART_BYTES <= MAX_MERGED_BYTES <= 4 * PART_BYTES
