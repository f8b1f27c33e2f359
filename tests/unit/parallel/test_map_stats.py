"""What a run's counters keep: sums that agree with what was reported, bounded histories, drawings that can be read."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.parallel.chunk import Chunk, Report
from lazystore.parallel.map_stats import MOST_DECISIONS, MOST_POINTS, MOST_SLOW, MapStats, progress_of
from lazystore.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def report(number: int, size: int, run_s: float = 0.01, **others: object) -> Report:
    return Report(Chunk(number, number * 100, [0] * size), [0] * size, run_s=run_s, **others)  # type: ignore[arg-type]


def test_reports_add_up(clock: Clock) -> None:
    stats = MapStats(clock=clock)
    stats.ran_here(8, (4, 0.2, 0.1, 0.1, 2))
    stats.report(report(1, 5, failures=2, retried=3, transport_s=0.5, in_bytes=10, out_bytes=20), 101.0)
    stats.report(report(2, 7), 102.0)
    stats.delivered(11)
    stats.died(4)
    stats.packed(0.25)
    assert (stats.done, stats.in_caller, stats.failed, stats.retried) == (20, 8, 2, 3)
    assert stats.executing_s == pytest.approx(0.4 + 0.02)  # four of eight were timed
    assert stats.caller_s == pytest.approx(0.4)
    assert (stats.transport_s, stats.packing_s) == (0.75, 0.25)
    assert (stats.in_bytes, stats.out_bytes, stats.handed_out) == (10, 20, 11)
    assert (stats.deaths, stats.run_again, stats.chunks) == (1, 4, 2)


@given(sizes=st.lists(st.integers(1, 5000), max_size=2000))
def test_the_curve_of_chunk_sizes_is_bounded_and_spans_the_run(sizes: list[int]) -> None:
    clock = Clock()
    stats = MapStats(clock=clock)
    for number, size in enumerate(sizes):
        clock.now += 1.0
        stats.report(report(number, size), clock.now)
    points = stats.chunk_sizes
    assert len(points) <= MOST_POINTS
    assert len(points) >= min(len(sizes), MOST_POINTS // 2)
    if sizes:
        at = [round(seconds) - 1 for seconds, _, _ in points]
        assert [sizes[k] for k in at] == [size for _, size, _ in points]
        steps = {after - before for before, after in itertools.pairwise(at)}
        assert at[0] == 0 and len(steps) <= 1  # thinned evenly
    assert str(stats)


@given(times=st.lists(st.floats(0, 100), max_size=100))
def test_the_slowest_items_are_those(times: list[float]) -> None:
    stats = MapStats(clock=Clock())
    for index, seconds in enumerate(times):
        stats.ran(index, seconds)
    assert [seconds for seconds, _ in stats.slowest] == sorted(times, reverse=True)[:MOST_SLOW]
    assert all(times[index] == seconds for seconds, index in stats.slowest)


def test_decisions_are_bounded_and_the_first_and_last_are_kept(clock: Clock) -> None:
    stats = MapStats(clock=clock)
    for number in range(10 * MOST_DECISIONS):
        clock.now += 1.0
        stats.decided(clock.now, f"decision {number}", "thread", 1)
    texts = [text for _, text in stats.decisions]
    assert len(texts) == MOST_DECISIONS
    assert texts[0] == "decision 0" and texts[-1] == f"decision {10 * MOST_DECISIONS - 1}"
    assert f"{9 * MOST_DECISIONS} decisions between" in str(stats)


def test_time_and_workers_stand_still_after_the_end(clock: Clock) -> None:
    stats = MapStats(clock=clock)
    clock.now += 1.0
    stats.decided(clock.now, "workers pay", "process", 2)
    clock.now += 2.0
    stats.decided(clock.now, "more", "process", 4)
    clock.now += 1.0
    stats.ended(clock.now)
    clock.now += 50.0
    stats.ended(clock.now)
    assert stats.over
    assert stats.elapsed_s == pytest.approx(4.0)
    assert stats.worker_s == pytest.approx(2 * 2.0 + 4 * 1.0)
    assert (stats.backend, stats.workers) == ("process", 4)


def test_it_is_plain_json_and_a_copy_stands_still(clock: Clock) -> None:
    stats = MapStats(clock=clock)
    stats.report(report(1, 5, longest_s=0.5, longest_at=3), 101.0)
    stats.decided(101.0, "why", "process", 2)
    clock.now = 104.0
    plain = json.loads(json.dumps(stats.as_dict()))
    assert plain["done"] == 5 and plain["chunk_sizes"] == [[1.0, 5, 0.01]] and plain["slowest"] == [[0.5, 3]]
    assert plain["decisions"] == [[1.0, "why"]] and plain["over"] is False
    copy = pickle.loads(pickle.dumps(MapStats()))
    assert copy.elapsed_s == copy.elapsed_s and copy.as_dict()["over"] is True


def drawn(change: Callable[[MapStats, Clock], object]) -> str:
    clock = Clock()
    stats = MapStats(clock=clock)
    change(stats, clock)
    return str(stats)


def test_the_drawing_shows_shares_and_sizes() -> None:
    def run(stats: MapStats, clock: Clock) -> None:
        stats.decided(100.0, "2 processes pay", "process", 2)
        for number, size in enumerate([1, 2, 4, 8, 16, 32, 64, 128]):
            stats.report(report(number, size, 0.5, out_bytes=1_500_000), 100.0 + number)
        stats.waiting_s = 5.0
        stats.failed = 3
        clock.now = 110.0

    lines = drawn(run).splitlines()
    assert "255 items in 10 s" in lines[0] and "process x 2" in lines[0]
    assert "waiting 50%" in lines[1] and "scheduling 50%" in lines[1]
    assert "func 20%" in lines[2] and "idle 80%" in lines[2]
    assert "▁▂▃▄▅▆▇█" in lines[3] and "1..128 items" in lines[3]
    assert "12 MB back" in lines[4] and "3 failed" in lines[5] and "2 processes pay" in lines[6]


@given(
    seconds=st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
    elapsed=st.floats(0.001, 1e6),
    size=st.integers(1, 10**6),
)
def test_any_counts_can_be_drawn(seconds: list[float], elapsed: float, size: int) -> None:
    def run(stats: MapStats, clock: Clock) -> None:
        stats.waiting_s, stats.consumer_s, stats.source_s, stats.packing_s, stats.caller_s, stats.executing_s = seconds
        stats.decided(100.0, "", "thread", 1)
        stats.report(report(1, size), 100.0)
        clock.now += elapsed

    bars = [line for line in drawn(run).splitlines() if line.startswith(("  caller", "  workers"))]
    assert [len(line[11:59].strip()) for line in bars] == [48, 48]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_follows_what_is_handed_out_and_ends_with_the_run() -> None:
    progress = Progress(10, "squares", file=Terminal())
    stats = MapStats(progress)
    stats.delivered(3)
    stats.delivered(4)
    assert progress.done == 7
    stats.ended(0.0)
    stats.ended(0.0)
    assert not progress._watched


def test_progress_is_true_or_a_label() -> None:
    assert progress_of(None, len, 3) is None and progress_of(False, len, 3) is None
    assert progress_of(True, len, 3)._label == "len"  # type: ignore[union-attr]
    assert progress_of("counting", len, None)._label == "counting"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="progress=3"):
        progress_of(3, len, None)  # type: ignore[arg-type]
