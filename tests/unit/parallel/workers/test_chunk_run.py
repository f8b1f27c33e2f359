"""A chunk's items run once each, in order, until a limit; failures stay where they belong."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.parallel.chunk import Job
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers.chunk_run import STRETCH, Ran, run_chunk, weigh


class Clock:
    """Time passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def double(value: int) -> int:
    return 2 * value


def test_results_are_in_order_and_complete() -> None:
    ran = run_chunk(Job(double), range(5000), 0)
    assert ran.results == [2 * value for value in range(5000)]
    assert (ran.failures, ran.retried) == (0, 0)
    assert 0 < ran.longest_s <= ran.run_s
    assert 0 <= ran.longest_at < 5000


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 2), st.integers(0, 1000))
def test_each_item_fails_for_itself_after_its_tries(needed: list[int], retries: int, first: int) -> None:
    """An item needs so many tries."""
    calls: list[int] = []

    def func(place: int) -> int:
        calls.append(place)
        if calls.count(place) <= needed[place]:
            raise LookupError(f"no {place}")
        return -place

    ran = run_chunk(Job(func, retries=retries), range(len(needed)), first)
    assert len(ran.results) == len(needed)
    for place, (result, tries) in enumerate(zip(ran.results, needed, strict=True)):
        assert calls.count(place) == min(tries, retries) + 1
        if tries > retries:
            assert isinstance(result, Failed)
            assert result.number == first + place
            assert result.error.__notes__ == [f"imap: item {first + place} ({place})"]
        else:
            assert result == -place
    assert calls == sorted(calls)
    assert ran.failures == sum(tries > retries for tries in needed)
    assert ran.retried == sum(min(tries, retries) for tries in needed)


def test_it_stops_after_the_item_in_which_time_is_over() -> None:
    clock = Clock()

    def func(seconds: float) -> float:
        clock.now += seconds
        return seconds

    items = [0.01, 0.01, 0.05, 0.01, 0.01, 0.01]
    ran = run_chunk(Job(func), items, 40, limit_s=0.06, clock=clock, delay=float)
    assert ran.results == items[:3]
    assert ran.run_s == pytest.approx(0.07)
    assert ran.longest_s == pytest.approx(0.05)
    assert ran.longest_at == 42


def test_time_without_a_processor_does_not_count() -> None:
    clock, delay = Clock(), Clock()
    clock.now = delay.now = 7.0

    def func(seconds: float) -> float:
        clock.now += seconds
        if seconds == 0.05:
            clock.now += 0.02
            delay.now += 0.02
        return seconds

    items = [0.01, 0.05, 0.01, 0.01, 0.01]
    ran = run_chunk(Job(func), items, 40, limit_s=0.0699, clock=clock, delay=delay)
    assert ran.results == items[:3]
    assert ran.run_s == pytest.approx(0.07)
    assert ran.longest_s == pytest.approx(0.05)
    assert ran.longest_at == 41
    ran = run_chunk(Job(func), [0.05] * 4, 40, clock=clock, delay=delay)
    assert ran.run_s == pytest.approx(0.2)
    assert ran.longest_s == pytest.approx(0.05)


def test_one_item_is_run_whatever_the_limits() -> None:
    assert run_chunk(Job(double), [3, 4], 0, limit_s=0.0).results == [6]
    assert run_chunk(Job(double), [3, 4], 0, limit_bytes=0).results == [6]


def test_no_items_is_no_work() -> None:
    assert run_chunk(Job(double), [], 0) == Ran()


def test_the_clock_is_looked_at_rarely_between_quick_items_and_often_between_slow_ones() -> None:
    clock = Clock()
    looks: list[float] = []

    def look() -> float:
        looks.append(clock.now)
        return clock.now

    def func(seconds: float) -> None:
        clock.now += seconds

    run_chunk(Job(func), [1e-6] * 10_000, 0, clock=look, delay=float)
    assert len(looks) < 10_000 / STRETCH + 10
    looks.clear()
    run_chunk(Job(func), [1e-3] * 100, 0, clock=look, delay=float)
    assert len(looks) > 100
    looks.clear()
    # quick ones that become slow are not run in stretches for long
    ran = run_chunk(Job(func), [2e-6] * 1000 + [1e-3] * 1000, 0, limit_s=0.1, clock=look, delay=float)
    assert 1000 < len(ran.results) < 1000 + 100 + STRETCH


@pytest.mark.parametrize("result", [b"x" * 10_000, numpy.zeros(10_000, "u1"), numpy.zeros(20_000, "u1")[::2][:5000]])
def test_it_stops_when_results_weigh_enough(result: Any) -> None:
    ran = run_chunk(Job(lambda _: result), range(10_000), 0, limit_bytes=100_000)
    assert 1 <= len(ran.results) <= 10 + 2 * STRETCH


def test_views_weigh_what_they_show() -> None:
    whole = numpy.zeros(1 << 20, "u1")
    assert weigh(whole[: 1 << 19]) >= 1 << 19
    assert weigh(memoryview(bytearray(1 << 20))) >= 1 << 20


def test_containers_weigh_what_is_in_them() -> None:
    assert weigh({"image": numpy.zeros(1 << 20, "u1"), "label": 3}) >= 1 << 20
    assert weigh([b"x" * 1000] * 100) >= 100_000
    assert weigh(([b"x" * 1000], 3)) >= 1000
    assert weigh([]) > 0


def test_a_value_that_cannot_be_weighed_does_no_harm() -> None:
    class Heavy:
        def __sizeof__(self) -> int:
            raise LookupError("no scales")

        @property
        def nbytes(self) -> int:
            raise LookupError("no scales")

    assert run_chunk(Job(lambda _: Heavy()), range(3), 0).failures == 0


def test_stop_iteration_is_a_failure_and_ends_nothing() -> None:
    def func(value: int) -> int:
        if value == 2:
            raise StopIteration("enough")
        return value

    ran = run_chunk(Job(func), range(5), 0)
    assert [result for result in ran.results if not isinstance(result, Failed)] == [0, 1, 3, 4]
    assert isinstance(ran.results[2], Failed)
    assert isinstance(ran.results[2].error, RuntimeError)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_exception_is_not_tried_again_and_ends_the_chunk(error: BaseException) -> None:
    calls: list[int] = []

    def func(value: int) -> int:
        calls.append(value)
        if value == 2:
            raise error
        return value

    ran = run_chunk(Job(func, retries=5), range(5), 0)
    assert calls == [0, 1, 2]
    assert ran.results[:2] == [0, 1]
    assert ran.results[2].error is error
    assert ran.results[2].fatal


def test_it_may_pass_through_instead() -> None:
    def func(value: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chunk(Job(func), range(5), 0, catch=Exception)


def test_an_error_shows_the_functions_frames_only() -> None:
    def func(value: int) -> int:
        raise LookupError("gone")

    error = run_chunk(Job(func), [1], 0).results[0].error
    assert error.__traceback__.tb_frame.f_code is func.__code__


def test_items_are_announced_one_by_one() -> None:
    told: list[Any] = []

    def func(value: int) -> None:
        told.append(("ran", value))

    run_chunk(Job(func), range(3), 7, note=told.append)
    assert told == [7, ("ran", 0), 8, ("ran", 1), 9, ("ran", 2)]


def test_each_try_is_announced() -> None:
    told: list[int] = []
    run_chunk(Job(fail, retries=2), range(2), 7, note=told.append)
    assert told == [7, 7, 7, 8, 8, 8]


def fail(value: int) -> int:
    raise LookupError("gone")


def reader(bad: Sequence[int], calls: list[list[int]]) -> Callable[[Sequence[int]], list[str]]:
    def read(keys: Sequence[int]) -> list[str]:
        calls.append(list(keys))
        if any(key in bad for key in keys):
            raise OSError("unreadable")
        return [f"item {key}" for key in keys]

    return read


def test_a_reader_turns_keys_into_items_at_once() -> None:
    calls: list[list[int]] = []
    ran = run_chunk(Job(str.upper, reader=reader([], calls)), [5, 6, 7], 0)
    assert ran.results == ["ITEM 5", "ITEM 6", "ITEM 7"]
    assert calls == [[5, 6, 7]]


def test_keys_that_cannot_be_read_fail_alone() -> None:
    calls: list[list[int]] = []
    ran = run_chunk(Job(str.upper, reader=reader([6], calls)), [5, 6, 7], 0)
    assert (ran.results[0], ran.results[2]) == ("ITEM 5", "ITEM 7")
    assert isinstance(ran.results[1].error, OSError)
    assert ran.results[1].error.__notes__ == ["imap: item 1 (6)"]


def test_a_reader_that_gives_too_few_items_is_not_believed() -> None:
    ran = run_chunk(Job(str, reader=lambda keys: [1]), [5, 6], 0)
    assert ran.results == ["1", "1"]  # asked one by one it gives one each
    ran = run_chunk(Job(str, reader=lambda keys: []), [5, 6], 0)
    assert [type(result.error) for result in ran.results] == [ValueError, ValueError]


@pytest.mark.parametrize("way", ["returns", "raises", "exits"])
def test_a_forked_child_that_comes_back_is_ended(way: str, tmp_path: Any) -> None:
    """It must run nothing more; the parent runs all."""
    marks = tmp_path / "marks"

    def func(value: int) -> int:
        with marks.open("a") as file:
            file.write(f"{value}\n")
        if value == 1:
            child = os.fork()
            if child:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if way == "raises":
                raise LookupError("in the child")
            if way == "exits":
                sys.exit(7)
        return value

    here = os.getpid()
    try:
        ran = run_chunk(Job(func), range(4), 0)
    finally:
        if os.getpid() != here:  # it came out: end it here, or the tests would run twice
            os.kill(os.getpid(), signal.SIGKILL)
    assert ran.results == [0, {"returns": 0, "raises": 1, "exits": 7}[way], 2, 3]
    assert marks.read_text().split() == ["0", "1", "2", "3"]


def test_it_travels_as_a_task_of_any_executor() -> None:
    arguments = pickle.loads(pickle.dumps((run_chunk, Job(double), [1, 2], 0, 1.0, 1000)))
    ran = pickle.loads(pickle.dumps(arguments[0](*arguments[1:])))
    assert ran.results == [2, 4]


def test_a_chunk_is_not_kept_alive_by_an_error() -> None:
    class Big:
        pass

    import weakref

    seen: list[weakref.ref[Big]] = []

    def func(value: int) -> Any:
        if value == 1:
            raise LookupError("gone")
        big = Big()
        seen.append(weakref.ref(big))
        return big

    ran = run_chunk(Job(func), range(3), 0)
    error = ran.results[1].error
    del ran
    assert [ref() for ref in seen] == [None, None]
    assert isinstance(error, LookupError)


def test_times_are_those_of_the_clock() -> None:
    ran = run_chunk(Job(time.sleep), [0.001, 0.02, 0.001], 10, delay=float)
    assert ran.longest_at == 11
    assert ran.longest_s >= 0.02
    assert ran.run_s >= 0.022


def test_what_was_computed_and_what_was_waited_for_are_told_apart() -> None:
    slept = run_chunk(Job(time.sleep), [0.01] * 5, 0)
    assert slept.computed_s < 0.5 * slept.run_s
    spun = run_chunk(Job(lambda item: sum(range(200_000))), range(5), 0)
    assert spun.computed_s > 0.5 * spun.run_s
    assert 0.0 <= slept.computed_s <= slept.run_s
    assert spun.computed_s <= spun.run_s


def test_what_is_computed_is_never_more_than_the_time_it_took() -> None:
    ran = run_chunk(Job(abs), range(50), 0, computed=iter([0.0, 7.0]).__next__)  # several threads of the function's
    assert ran.computed_s == ran.run_s
