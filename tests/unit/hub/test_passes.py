"""Passes: who gets which sample, where one stands, what it holds ahead and when its thread ends."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.hub_feeds import PlannedFeed, hundred, ids, numbers

from lazystore.errors import ClosedError, FetchError, LoadTimeoutError
from lazystore.hub import StreamingDatasetWrapper

PATIENCE = 60.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.002)


def ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lazystore-ahead")]


def drain_by_threads(found: Any, count: int, each: Callable[[Any], None]) -> None:
    def work() -> None:
        for sample in found:
            each(sample)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("prefetch", ["auto", 0, 3])
@pytest.mark.parametrize("keeps", [False, True])
def test_threads_that_share_a_pass_get_each_sample_once(prefetch: Any, keeps: bool) -> None:
    feed = PlannedFeed(5000, keeps=keeps, random=keeps)
    with StreamingDatasetWrapper(feed, cache_size=300, prefetch=prefetch) as wrapper:
        for _ in range(2):
            seen: list[int] = []
            found = iter(wrapper)
            drain_by_threads(found, 8, lambda sample, seen=seen: seen.append(sample["id"]))  # type: ignore[misc]
            assert sorted(seen) == list(range(5000))
            assert found.position == 5000


def test_threads_with_passes_of_their_own_get_all_samples_each() -> None:
    with StreamingDatasetWrapper(PlannedFeed(1500, marks=8), cache_size=100) as wrapper:
        found: list[list[int]] = []
        threads = [threading.Thread(target=lambda: found.append(ids(wrapper))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert found == [list(range(1500))] * 8


def test_the_position_counts_what_was_handed_out_and_nothing_that_is_held_ahead() -> None:
    with StreamingDatasetWrapper(PlannedFeed(300), cache_size=100, prefetch=50) as wrapper:
        found = iter(wrapper)
        for number in range(300):
            assert found.position == wrapper.state_dict()["position"] == number
            next(found)
        assert found.position == 300
        assert next(found, None) is None
        assert wrapper.state_dict()["position"] == 0


def test_a_slow_source_gives_each_sample_when_it_is_there() -> None:
    gate = threading.Semaphore(0)

    def slow() -> Any:
        for at in itertools.count():
            assert gate.acquire(timeout=PATIENCE)
            yield {"id": at}

    with StreamingDatasetWrapper(slow) as wrapper:
        found, other = iter(wrapper), iter(wrapper)
        for at in range(40):
            gate.release()
            assert next(found) == next(other) == {"id": at}
        gate.release(100)


@pytest.mark.parametrize(("prefetch", "least", "most"), [(20, 20, 20 + 16), (1, 1, 1 + 16)])
def test_a_number_of_samples_ahead_is_kept_to(prefetch: int, least: int, most: int) -> None:
    feed = PlannedFeed(5000)
    with StreamingDatasetWrapper(feed, cache_size=128, prefetch=prefetch) as wrapper:
        found = iter(wrapper)
        next(found)
        until(lambda: len(feed.read) >= 1 + least)
        time.sleep(0.05)
        assert len(feed.read) <= 1 + 16 + most


def test_bytes_ahead_are_kept_to() -> None:
    feed = PlannedFeed(500, make=lambda at: {"id": at, "data": bytes(10_000)})
    with StreamingDatasetWrapper(feed, cache_size=400, prefetch=300, memory=400_000) as wrapper:
        first, second = iter(wrapper), iter(wrapper)
        next(first), next(second)
        time.sleep(0.1)
        assert len(feed.read) <= 2 * 12 + 10
        assert ids(first) == ids(second) == list(range(1, 500))


def test_auto_reads_further_ahead_when_the_reader_had_to_wait() -> None:
    with StreamingDatasetWrapper(PlannedFeed(400, delay=0.0005), cache_size=1000) as wrapper:
        found = iter(wrapper)
        course = found._course
        assert course._window < 64
        list(found)
        assert course._window > 64


def test_a_pass_over_what_is_held_starts_no_thread() -> None:
    with StreamingDatasetWrapper(hundred, cache_size=1000) as wrapper:
        list(wrapper)
        found = iter(wrapper)
        assert ids(found) == list(range(100))
        assert found._course._thread is None


def test_a_pass_over_what_keeps_its_samples_starts_no_thread() -> None:
    with StreamingDatasetWrapper(PlannedFeed(100, keeps=True)) as wrapper:
        found = iter(wrapper)
        assert ids(found) == list(range(100))
        assert found._course._thread is None


@pytest.mark.parametrize("how", ["break", "close", "with", "end", "error"])
def test_no_thread_is_left_behind(how: str) -> None:
    feed = PlannedFeed(100_000 if how != "end" else 500, marks=1)
    if how == "error":
        feed.failures = {10: [ValueError("bad")] * 1000}
    before = len(ahead_threads())
    with StreamingDatasetWrapper(feed, cache_size=64) as wrapper:
        for _ in range(100):
            found: Any = iter(wrapper)
            if how == "error":
                with pytest.raises(ValueError, match="bad"):
                    list(found)
            elif how == "end":
                assert len(list(found)) == 500
            else:
                next(found)
            if how == "close":
                found.close()
            if how == "with":
                with found:
                    next(found)
            del found
        until(lambda: len(ahead_threads()) <= before)
        assert len(feed.opened_now) <= 6
    assert not feed.opened_now


def test_a_forgotten_wrapper_and_pass_let_go_of_everything() -> None:
    feed = PlannedFeed(100_000)
    wrapper = StreamingDatasetWrapper(feed)
    found = iter(wrapper)
    next(found)
    gone = [weakref.ref(wrapper), weakref.ref(found)]
    del wrapper
    gc.collect()
    assert next(found) == {"id": 1}  # a pass keeps its wrapper
    del found
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    until(lambda: not feed.opened_now and feed.closed == 1)
    until(lambda: not ahead_threads())


@pytest.mark.parametrize("prefetch", ["auto", 0])
def test_an_error_comes_at_its_position_and_ends_the_pass_but_not_the_wrapper(prefetch: Any) -> None:
    feed = PlannedFeed(200, failures={150: [ValueError("bad")]})
    with StreamingDatasetWrapper(feed, prefetch=prefetch) as wrapper:
        found = iter(wrapper)
        got = ids(itertools.islice(found, 150))
        assert got == list(range(150))
        with pytest.raises(ValueError, match="bad"):
            next(found)
        assert next(found, None) is None
        assert wrapper.state_dict()["position"] == 150
        assert ids(wrapper) == list(range(200))


def test_of_threads_that_share_a_pass_one_gets_the_error() -> None:
    feed = PlannedFeed(500, failures={300: [ValueError("bad")]})
    seen: list[int] = []
    caught: list[BaseException] = []
    with StreamingDatasetWrapper(feed) as wrapper:
        found = iter(wrapper)

        def work() -> None:
            try:
                for sample in found:
                    seen.append(sample["id"])
            except ValueError as error:
                caught.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(seen) == list(range(300))
    assert len(caught) == 1


def test_a_source_that_hangs_is_told_to_who_waits() -> None:
    gate = threading.Event()
    feed = PlannedFeed(10, gate=gate)
    with StreamingDatasetWrapper(feed, timeout=0.1) as wrapper:
        found = iter(wrapper)
        with pytest.raises(LoadTimeoutError, match=r"sample 0 has not come for 0.1 s"):
            next(found)
        gate.set()
        assert ids(found) == list(range(10))


def test_what_stays_broken_is_told_with_its_place() -> None:
    feed = PlannedFeed(100, failures={40: [ConnectionError("cut")] * 50})
    with StreamingDatasetWrapper(feed, retries=1) as wrapper:
        found = iter(wrapper)
        assert ids(itertools.islice(found, 40)) == list(range(40))
        with pytest.raises(FetchError, match="sample 40 could not be read in 2 attempts"):
            next(found)


def test_closing_the_wrapper_ends_its_passes_with_an_error_and_closing_a_pass_quietly() -> None:
    wrapper = StreamingDatasetWrapper(PlannedFeed(10_000))
    closed, ended = iter(wrapper), iter(wrapper)
    next(closed), next(ended)
    closed.close()
    closed.close()
    assert next(closed, None) is None
    assert closed.position == 1
    wrapper.close()
    wrapper.close()
    with pytest.raises(ClosedError, match="its wrapper is closed"):
        next(ended)
    with pytest.raises(ClosedError, match="make a new one"):
        iter(wrapper)
    with pytest.raises(ClosedError):
        wrapper[0]


def test_a_pass_closed_by_another_thread_is_not_taken_for_one_that_came_to_its_end() -> None:
    gate = threading.Event()
    with StreamingDatasetWrapper(PlannedFeed(10, gate=gate)) as wrapper:
        wrapper.load_state_dict({**wrapper.state_dict(), "position": 4})
        found = iter(wrapper)
        reader = threading.Thread(target=lambda: next(found, None))
        reader.start()
        until(lambda: bool(ahead_threads()))
        found._course.close()
        reader.join(PATIENCE)
        gate.set()
        assert wrapper.state_dict()["position"] == 4


def test_closing_wakes_those_who_wait() -> None:
    gate = threading.Event()
    wrapper = StreamingDatasetWrapper(PlannedFeed(10, gate=gate))
    caught: list[str] = []
    found = iter(wrapper)

    def work() -> None:
        try:
            next(found)
        except ClosedError:
            caught.append("closed")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: bool(ahead_threads()))
    found._course.close("closed by the test")
    for thread in threads:
        thread.join(PATIENCE)
    gate.set()
    wrapper.close()
    assert caught == ["closed"] * 3


def test_transforms_run_in_the_thread_that_gets_the_sample_and_outside_all_locks() -> None:
    with StreamingDatasetWrapper(hundred, transform=lambda sample: (sample["id"], threading.get_ident())) as wrapper:
        assert list(wrapper) == [(at, threading.get_ident()) for at in range(100)]
        both = threading.Barrier(2, timeout=PATIENCE)

        def meet(sample: Any) -> Any:
            both.wait()  # both are in here at the same time
            return sample

        with StreamingDatasetWrapper(hundred, transform=meet) as other:
            seen: list[int] = []
            drain_by_threads(iter(other), 2, lambda sample: seen.append(sample["id"]))
            assert sorted(seen) == list(range(100))


def test_what_a_transform_raises_comes_at_its_sample_and_the_pass_goes_on() -> None:
    def picky(sample: dict[str, int]) -> int:
        if sample["id"] == 30:
            raise KeyError("no")
        return sample["id"]

    with StreamingDatasetWrapper(hundred, transform=picky) as wrapper:
        found = iter(wrapper)
        assert list(itertools.islice(found, 30)) == list(range(30))
        with pytest.raises(KeyError):
            next(found)
        assert list(found) == list(range(31, 100))


def test_a_transform_that_raises_stop_iteration_loses_no_samples_quietly() -> None:
    def stopping(sample: dict[str, int]) -> int:
        if sample["id"] == 30:
            raise StopIteration
        return sample["id"]

    with StreamingDatasetWrapper(hundred, transform=stopping, prefetch=0) as wrapper:
        found = iter(wrapper)
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(found)


def test_samples_are_the_callers_to_change() -> None:
    def nested() -> Any:
        for at in range(50):
            yield {"id": at, "list": [at, [at]]}

    with StreamingDatasetWrapper(nested) as wrapper:
        for _ in range(3):
            for at, sample in enumerate(wrapper):
                assert sample == {"id": at, "list": [at, [at]]}
                sample["list"][1].append("x")
                sample["new"] = 1
        assert wrapper[7] == {"id": 7, "list": [7, [7]]}


def test_a_wrapper_inside_a_for_statement_alone_is_read_to_the_end() -> None:
    assert Counter(ids(StreamingDatasetWrapper(lambda: numbers(3000)))) == Counter(range(3000))


def test_two_passes_over_a_source_that_hung_go_on_when_it_gives_again() -> None:
    gate = threading.Event()
    feed = PlannedFeed(100, gate=gate)
    with StreamingDatasetWrapper(feed, timeout=0.1) as wrapper:
        passes = [iter(wrapper), iter(wrapper)]
        for _ in range(3):
            for found in passes:
                with pytest.raises(LoadTimeoutError):
                    next(found)
        gate.set()
        for found in passes:
            until(lambda found=found: _came(found))  # type: ignore[misc]
            assert ids(found) == list(range(1, 100))


def _came(found: Any) -> bool:
    try:
        return bool(next(found) == {"id": 0})
    except LoadTimeoutError:  # of the thread that waited while nothing came
        return False


def test_who_takes_over_may_take_longer_than_a_read() -> None:
    def instead(error: BaseException, position: int) -> Any:
        time.sleep(0.5)
        return ({"id": at} for at in range(position, 50))

    feed = PlannedFeed(50, failures={20: [ValueError("bad")]})
    with StreamingDatasetWrapper(feed, timeout=0.1, on_error=instead) as wrapper:
        passes = [iter(wrapper), iter(wrapper)]
        assert ids(itertools.islice(passes[0], 20)) == list(range(20))
        assert ids(passes[1]) == list(range(50))
        assert ids(passes[0]) == list(range(20, 50))
