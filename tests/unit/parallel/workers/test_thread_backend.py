"""Chunks in threads: each ends exactly once, whatever functions do, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
import weakref

import pytest
from support.driving import all_ended, chunks

from lazystore.errors import ClosedError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers.thread_backend import ThreadBackend


@pytest.fixture
def started():
    """Makes backends and closes them."""
    made = []

    def make(func, workers=2, **options):
        backend = ThreadBackend(Job(func, **options))
        backend.start(workers)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


def named():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lazystore-imap-")]


def ended(threads):
    for thread in threads:
        thread.join(30)
    return not any(thread.is_alive() for thread in threads)


def test_every_chunk_comes_back_once_with_its_results(started):
    reports = all_ended(started(lambda x: -x, 3), chunks(200, size=7))
    assert sorted(report.chunk.number for report in reports) == list(range(200))
    for report in reports:
        assert report.results == [-x for x in report.chunk.items]
        assert report.failures == 0
        assert report.in_bytes == report.out_bytes == 0


def test_items_and_results_are_the_objects_themselves(started):
    items = [object() for _ in range(5)]
    (report,) = all_ended(started(lambda x: x), [Chunk(0, 0, items)])
    assert all(result is item for result, item in zip(report.results, items, strict=True))


def test_threads_start_when_there_is_something_for_them(started):
    before = len(named())
    backend = started(str, 8)
    assert (len(named()) - before, backend.ready(), backend.workers) == (0, 8, 8)
    all_ended(backend, chunks(1))
    assert len(named()) - before == 1
    assert all(thread.daemon for thread in named())


def test_as_many_run_side_by_side_as_were_asked_for(started):
    barrier = threading.Barrier(64)
    reports = all_ended(started(lambda x: barrier.wait(60), 64), chunks(64), depth=1)
    assert sorted(report.results[0] for report in reports) == list(range(64))
    assert len({report.worker for report in reports}) == 64


def test_more_workers_may_be_asked_for_later(started):
    backend = started(lambda x: barrier.wait(60), 1)
    backend.start(3)
    barrier = threading.Barrier(3)
    assert len(all_ended(backend, chunks(3), depth=1)) == 3


def test_room_counts_what_was_not_collected(started):
    backend = started(str, 2)
    assert (backend.room(1), backend.room(3)) == (2, 6)
    backend.submit(Chunk(0, 0, [1]))
    assert (backend.room(1), backend.room(3)) == (1, 5)
    assert len(backend.wait(60)) == 1
    assert backend.room(1) == 2


def test_waiting_ends_when_time_is_over(started):
    backend = started(str)
    assert backend.wait(0) == []
    assert backend.wait(0.01) == []


@pytest.mark.parametrize("timeout", [None, 50.0])
def test_a_signal_ends_the_wait(started, timeout):
    release = threading.Event()
    backend = started(lambda x: release.wait(60), timeout=timeout)
    backend.submit(Chunk(0, 0, [1]))

    class Rang(Exception):
        pass

    def ring(number, frame):
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Rang):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            backend.wait(None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        release.set()
    assert len(backend.wait(60)) == 1  # and nothing was lost


def test_an_item_that_fails_hurts_no_neighbour(started):
    def fail(x):
        if x == 5:
            raise KeyError("five")
        if x == 11:
            raise SystemExit(3)
        return x

    reports = all_ended(started(fail), chunks(4, size=4))
    failed = {r.number: r.error for report in reports for r in report.results if isinstance(r, Failed)}
    assert {n: type(error) for n, error in failed.items()} == {5: KeyError, 11: SystemExit}
    good = [r for report in reports for r in report.results if not isinstance(r, Failed)]
    assert sorted(good) == [x for x in range(16) if x not in (5, 11)]
    assert sum(report.failures for report in reports) == 2


def test_the_initializer_runs_once_in_each_thread_before_its_items(started):
    local, count = threading.local(), []

    def begin():
        count.append(threading.get_ident())
        local.begun = True

    barrier = threading.Barrier(3)
    backend = started(lambda x: (local.begun, barrier.wait(60) * 0)[0], 3, initializer=begin)
    reports = all_ended(backend, chunks(9), depth=1)
    assert all(report.results == [True] for report in reports)
    assert len(count) == len(set(count)) == 3


def test_an_initializer_that_raises_ends_the_run_and_says_why(started):
    def begin():
        raise OSError("no licence")

    backend = started(str, initializer=begin)
    backend.submit(Chunk(0, 0, [1]))
    with pytest.raises(WorkerError, match="OSError: no licence") as caught:
        backend.wait(60)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(WorkerError, match="no licence"):
        backend.wait(0)


def test_no_thread_at_all_is_an_error_and_fewer_are_not(started, monkeypatch):
    start, allowed = threading.Thread.start, [1]

    def limited(thread):
        if not allowed:
            raise RuntimeError("can't start new thread")
        allowed.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    backend = started(str, 4)
    assert len(all_ended(backend, chunks(20))) == 20
    assert backend.workers == 1
    with pytest.raises(WorkerError, match="can't start new thread"):
        started(str).submit(Chunk(0, 0, [1]))


def test_a_late_item_is_reported_and_another_thread_goes_on(started):
    release = threading.Event()
    before = set(named())
    backend = started(lambda x: release.wait(60) if x == 102 else x, 1, timeout=0.05)
    events = []
    for number in range(4):
        backend.submit(Chunk(number, 100 + number * 2, [100 + number * 2, 101 + number * 2]))
    while len(events) < 4:
        events += backend.wait(60)
    lost = [event for event in events if isinstance(event, Lost)]
    assert [(event.chunk.number, event.began, event.late_at) for event in lost] == [(1, True, 102)]
    assert [event.results for event in events if isinstance(event, Report)] == [[100, 101], [104, 105], [106, 107]]
    late, *_ = [thread for thread in named() if thread not in before]
    release.set()
    assert ended([late])
    assert backend.wait(0) == []  # what it had to say comes too late
    assert len(all_ended(backend, chunks(3))) == 3


def test_each_try_of_an_item_has_its_own_time(started):
    tries = []

    def second_time(x):
        tries.append(x)
        if len(tries) == 1:
            time.sleep(0.6)
            raise ValueError
        time.sleep(0.6)
        return x

    (report,) = all_ended(started(second_time, 1, timeout=1.0, retries=1), [Chunk(0, 0, [7])])
    assert isinstance(report, Report)
    assert (report.results, report.retried) == ([7], 1)


def test_chunks_end_once_when_items_are_about_as_long_as_the_timeout(started):
    dice = random.Random(4)
    naps = [dice.choice([0.0, 0.004, 0.006]) for _ in range(240)]
    backend = started(lambda x: time.sleep(naps[x]) or x, 4, timeout=0.005)
    events = all_ended(backend, chunks(80, size=3), depth=3)
    assert sorted(event.chunk.number for event in events) == list(range(80))
    for event in events:
        if isinstance(event, Report):
            assert event.results == event.chunk.items
        else:
            assert event.chunk.first <= event.late_at < event.chunk.first + 3
    assert backend.room(1) == 4


def test_closing_ends_threads_after_the_item_they_are_at(started):
    before, ran, at = set(named()), [], threading.Event()
    release = threading.Event()

    def item(x):
        ran.append(x)
        at.set()
        release.wait(60)

    backend = started(item, 1)
    backend.submit(Chunk(0, 0, list(range(50))))
    backend.submit(Chunk(1, 50, list(range(50, 100))))
    assert at.wait(60)
    threads = [thread for thread in named() if thread not in before]
    threading.Timer(0.05, release.set).start()
    backend.close()
    assert ended(threads)
    assert ran == [0]


def test_closing_leaves_a_thread_that_does_not_end(started):
    release, at = threading.Event(), threading.Event()
    before = set(named())
    backend = started(lambda x: (at.set(), release.wait(60)), 1)
    backend.submit(Chunk(0, 0, [1, 2, 3]))
    assert at.wait(60)
    backend.close()
    threads = [thread for thread in named() if thread not in before]
    assert [thread.is_alive() for thread in threads] == [True]
    release.set()
    assert ended(threads)


def test_idle_threads_end_at_once_when_closed(started):
    before = set(named())
    backend = started(str, 4)
    all_ended(backend, chunks(8))
    threads = [thread for thread in named() if thread not in before]
    backend.close()
    backend.close()
    assert not any(thread.is_alive() for thread in threads)
    for use in (lambda: backend.wait(0), lambda: backend.submit(Chunk(0, 0, [1])), lambda: backend.start(1)):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_it_may_be_closed_in_one_of_its_own_threads(started):
    backend = started(lambda x: backend.close(), 2)
    backend.submit(Chunk(0, 0, [1]))
    until = time.monotonic() + 30
    while not backend._closed and time.monotonic() < until:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        backend.wait(1)


def test_nothing_is_held_on_to_once_a_report_is_dropped(started):
    class Big:
        pass

    backend = started(lambda x: Big(), 1)
    item = Big()
    held = [weakref.ref(item)]
    (report,) = all_ended(backend, [Chunk(0, 0, [item])])
    held.append(weakref.ref(report.results[0]))
    del item, report
    all_ended(backend, chunks(1))  # the thread has gone on
    gc.collect()
    assert [ref() for ref in held] == [None, None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_that_it_has_no_threads(started):
    backend = started(str)
    all_ended(backend, chunks(2))
    child = os.fork()
    if child == 0:
        told = 0
        for use in (lambda: backend.wait(None), lambda: backend.submit(Chunk(0, 0, [1])), lambda: backend.start(1)):
            try:
                use()
            except ClosedError as error:
                told += "call imap again in the child" in str(error)
        backend.close()
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert len(all_ended(backend, chunks(2))) == 2
