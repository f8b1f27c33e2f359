"""What is measured of a function: shares of time that hold on a busy machine, and what travels."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import threading
import time
import tracemalloc
from types import SimpleNamespace

import pytest

from lazystore.parallel.scheduling import evidence
from lazystore.parallel.scheduling.evidence import CallClock, CallTimes, GilSampler, travel_cost


class Clocks:
    """Stands for the time module: each reading of a clock is the next of those given."""

    def __init__(self, wall, thread, process):
        self.perf_counter = iter(wall).__next__
        self.thread_time = iter(thread).__next__
        self.process_time = iter(process).__next__


def test_stretches_of_calls_add_up(monkeypatch):
    monkeypatch.setattr(
        evidence, "time", Clocks([10.0, 12.0, 20.0, 21.0], [1.0, 1.5, 2.0, 2.25], [5.0, 6.0, 7.0, 7.25])
    )
    clock = CallClock()
    clock.begin()
    clock.end(40)
    assert clock.call(str, 7) == "7"
    assert clock.times == CallTimes(41, 3.0, 0.75, 1.25)
    assert clock.times.cpu_share == 0.25
    assert clock.times.others_s == 0.5


def test_a_call_that_raises_is_timed_too():
    clock = CallClock()
    with pytest.raises(ZeroDivisionError):
        clock.call(lambda x: x / 0, 1)
    assert clock.times.count == 1


def test_shares_of_no_calls_are_zero():
    assert CallTimes().cpu_share == 0.0
    assert CallTimes().others_s == 0.0


def test_a_function_that_waits_has_next_to_no_cpu_share():
    clock = CallClock()
    clock.call(time.sleep, 0.05)
    assert clock.times.wall_s >= 0.05
    assert clock.times.cpu_share < 0.5


def sampled(work, looks=8, deadline_s=30.0):
    """What the sampler finds while this thread works."""
    sampler = GilSampler()
    sampler.start()
    try:
        until = time.monotonic() + deadline_s
        while sampler.share().samples < looks and time.monotonic() < until:
            work()
    finally:
        share = sampler.stop()
    assert share.samples >= looks
    return share


needs_lock = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this interpreter has no lock"
)


@needs_lock
def test_pure_python_is_seen_to_hold_the_lock():
    shares = [sampled(lambda: sum(range(1000))).held for _ in range(3)]
    assert max(shares) > 0.5, shares


@needs_lock
@pytest.mark.parametrize(
    "work",
    [lambda: time.sleep(0.002), lambda data=bytes(1 << 20): hashlib.sha256(data).digest()],
    ids=["sleep", "hash"],
)
def test_work_that_lets_go_of_the_lock_is_seen_to(work):
    shares = [sampled(work).held for _ in range(3)]
    assert min(shares) < 0.4, shares


def test_a_sampler_leaves_no_thread_and_keeps_what_it_saw():
    before = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
    sampler = GilSampler()
    sampler.start()
    time.sleep(0.01)
    share = sampler.stop()
    assert sampler.share() == share
    assert sampler.stop() == share
    if sys.platform == "linux":
        until = time.monotonic() + 10  # the thread's last instructions come after it says that it has ended
        while len(os.listdir("/proc/self/task")) > before and time.monotonic() < until:
            time.sleep(0.001)
        assert len(os.listdir("/proc/self/task")) <= before


def test_a_sampler_that_never_looked_says_nothing():
    share = GilSampler().stop()
    assert (share.held, share.samples) == (0.0, 0)


def test_a_sampler_nobody_stops_ends_by_itself(monkeypatch):
    monkeypatch.setattr(evidence, "MOST_LOOKS", 2)
    sampler = GilSampler()
    sampler.start()
    assert sampler._ended.acquire(timeout=30)
    sampler._ended.release()
    assert sampler.stop().samples == 2 * (not sampler.share().free_threaded)


def test_without_the_lock_nothing_is_sampled(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    threads = threading.active_count()
    sampler = GilSampler()
    sampler.start()
    assert threading.active_count() == threads
    share = sampler.stop()
    assert (share.held, share.samples, share.free_threaded) == (0.0, 0, True)


@needs_lock
def test_where_threads_waits_are_not_counted_being_late_counts(monkeypatch):
    monkeypatch.setattr(evidence, "wait_counter", lambda: int)
    shares = [sampled(lambda: sum(range(1000))).held for _ in range(3)]
    assert max(shares) > 0.5, shares


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not count waits of a thread")
def test_waits_of_this_thread_are_counted_and_no_others():
    count = evidence.wait_counter()
    other = threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(50)])
    other.start()
    before = count()
    time.sleep(0.001)
    after = count()
    other.join()
    assert 1 <= after - before < 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_stopping_in_a_forked_child_does_not_hang():
    sampler = GilSampler()
    sampler.start()
    child = os.fork()
    if child == 0:
        sampler.stop()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    sampler.stop()
    assert os.waitstatus_to_exitcode(status) == 7


def test_an_item_and_a_result_are_weighed():
    cost = travel_cost([1, 2, 3], "x" * 5000, len)
    assert cost.error == ""
    assert 5000 <= cost.out_bytes < 5100
    assert 0 < cost.in_bytes < 100
    assert cost.seconds == cost.item.seconds + cost.result.seconds > 0


def test_what_pickling_takes_the_first_time_and_what_a_pickler_takes_is_left_out(monkeypatch):
    now = 0.0

    class Value:
        def __init__(self, *takes):
            self.takes = list(takes)

        def __reduce__(self):
            nonlocal now
            now += self.takes.pop(0)
            return int, ()

    class Pickler(pickle.Pickler):
        def __init__(self, *args, **options):
            nonlocal now
            now += 20e-6
            super().__init__(*args, **options)

    monkeypatch.setattr(evidence, "pickle", SimpleNamespace(Pickler=Pickler))
    monkeypatch.setattr(evidence, "time", SimpleNamespace(perf_counter=lambda: now))
    cost = travel_cost(Value(0.5e-3, 0.2e-3), 7)
    assert cost.item.seconds == pytest.approx(0.2e-3)
    assert cost.result.seconds == 0.0
    slow = Value(0.5, 0.1)
    assert travel_cost(slow, 7).seconds == pytest.approx(0.5, rel=1e-3)
    assert slow.takes == [0.1]  # what takes long is tried once


def test_the_function_is_not_called():
    called = []
    travel_cost(1, 2, called.append)
    assert called == []


def test_buffers_are_counted_but_not_copied():
    numpy = pytest.importorskip("numpy")
    size = 32 << 20
    array, plain = numpy.zeros(size, "u1"), bytes(size)
    tracemalloc.start()
    try:
        cost = travel_cost([array, array[::2]], {"a": plain})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size * 1.5 <= cost.in_bytes < size * 1.6
    assert size <= cost.out_bytes < size * 1.1
    assert peak < size  # the half that is not contiguous is copied by numpy itself


class Refuses:
    def __reduce__(self):
        raise RuntimeError("not from here")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (Refuses(), "RuntimeError: not from here"),
        (threading.Lock(), "TypeError: cannot pickle"),
        ((n for n in range(3)), "TypeError: cannot pickle"),
        (nested(100_000), "RecursionError"),
    ],
)
def test_what_cannot_be_pickled_is_told_with_the_reason(value, error):
    assert travel_cost(value, 1, len).item.error.startswith(error)
    assert travel_cost(1, value, len).error.startswith(error)


def test_a_function_that_cannot_be_pickled_is_told():
    cost = travel_cost(1, 2, lambda x: x)
    assert cost.func.error
    assert cost.error == cost.func.error
    assert not cost.item.error
    assert not cost.result.error
