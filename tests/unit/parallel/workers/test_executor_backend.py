"""Chunks in other people's executors: threads, processes, a Dask cluster, and some that tell nothing of themselves."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from support import carried
from support.driving import HANG_S, all_ended, chunks

from lazystore.errors import ClosedError, TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers import executor_backend
from lazystore.parallel.workers.executor_backend import ExecutorBackend, executor_workers

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        yield executor


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(params=["threads", "processes"])
def either(request):
    return request.getfixturevalue(request.param)


def results(events):
    return sorted(result for event in events for result in event.results if not isinstance(result, Failed))


def failures(events):
    return {r.number: r.error for event in events for r in event.results if isinstance(r, Failed)}


class Reversed(Executor):
    """Runs nothing until it holds three calls, and then the last one first; tells nothing of itself."""

    def __init__(self):
        self.held = []
        self.shut = False

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.held.append((future, fn, args, kwargs))
        if len(self.held) == 3:
            threading.Thread(target=self.run).start()
        return future

    def run(self):
        held, self.held = self.held, []
        for future, fn, args, kwargs in reversed(held):
            if future.set_running_or_notify_cancel():
                future.set_result(fn(*args, **kwargs))

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.shut = True


class ByHand(Executor):
    """Runs nothing by itself."""

    def __init__(self):
        self.held = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.held.append((future, lambda: fn(*args, **kwargs)))
        return future


class AtOnce(Executor):
    """Runs a call while it is submitted."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_every_chunk_comes_back_once_with_its_results(either):
    backend = ExecutorBackend(Job(carried.square), either)
    backend.start(2)
    events = all_ended(backend, chunks(30, size=5))
    assert sorted(event.chunk.number for event in events) == list(range(30))
    assert all(event.results == [x * x for x in event.chunk.items] for event in events)
    backend.close()
    assert either.submit(abs, -1).result(60) == 1  # it is still open


def test_threads_get_and_give_the_objects_themselves(threads):
    items = [threading.Lock() for _ in range(3)]
    backend = ExecutorBackend(Job(lambda lock: lock), threads)
    (event,) = all_ended(backend, [Chunk(0, 0, items)])
    assert all(result is item for result, item in zip(event.results, items, strict=True))
    assert event.out_bytes == 0


def test_reports_from_elsewhere_weigh_what_travelled(processes):
    (event,) = all_ended(ExecutorBackend(Job(carried.square), processes), [Chunk(0, 0, [2, 3])])
    assert event.out_bytes > 0
    assert event.run_s > 0


def test_executors_that_tell_nothing_of_themselves_will_do():
    executor = Reversed()
    assert executor_workers(executor) == executor_backend.usable_cpus()
    assert executor_workers(executor, 3) == 3
    assert executor_workers(ThreadPoolExecutor(7)) == 7
    backend = ExecutorBackend(Job(carried.square), executor, workers=3)
    backend.start(3)
    assert backend.ready() == 3
    events = all_ended(backend, chunks(9), depth=1)
    assert sorted(numbers := [event.chunk.number for event in events]) == list(range(9)) != numbers
    assert results(events) == [x * x for x in range(9)]
    backend.close()
    assert not executor.shut


def test_an_executor_may_run_what_it_is_given_at_once():
    backend = ExecutorBackend(Job(carried.square), AtOnce(), workers=1)
    assert results(all_ended(backend, chunks(5))) == [0, 1, 4, 9, 16]


def test_no_more_workers_are_used_than_asked_for(threads):
    backend = ExecutorBackend(Job(carried.square), threads)
    backend.start(1)
    assert (backend.workers, backend.room(2)) == (1, 2)
    backend.start(100)
    assert backend.workers == 2
    backend.submit(Chunk(0, 0, [1]))
    assert backend.room(2) == 3


def test_waiting_ends_when_time_is_over(threads):
    backend = ExecutorBackend(Job(carried.square), threads)
    assert backend.wait(0) == []
    assert backend.wait(0.01) == []


@pytest.mark.parametrize(
    ("func", "error"),
    [
        (carried.fail_at_three, ValueError),
        (carried.lock_at_three, TransportError),
        (carried.one_way_at_three, TransportError),
    ],
)
def test_an_item_that_fails_or_whose_result_cannot_travel_hurts_no_neighbour(processes, func, error):
    (event,) = all_ended(ExecutorBackend(Job(func), processes), [Chunk(0, 0, [0, 1, 2, 3, 4])])
    assert results([event]) == [0, 1, 2, 4]
    assert {number: type(found) for number, found in failures([event]).items()} == {3: error}
    assert event.failures == 1


def test_a_function_or_an_item_that_cannot_travel_is_told(processes):
    for job, item in ((Job(lambda x: x), 1), (Job(carried.square), threading.Lock())):
        backend = ExecutorBackend(job, processes)
        with pytest.raises(TransportError, match="cannot carry the function or an item"):
            all_ended(backend, [Chunk(0, 0, [item])])
    assert results(all_ended(ExecutorBackend(Job(carried.square), processes), chunks(3))) == [0, 1, 4]


def test_what_waits_can_be_taken_back(threads):
    gate = threading.Event()
    backend = ExecutorBackend(Job(lambda _: gate.wait(HANG_S)), threads)
    backend.start(2)
    chunks = [Chunk(k, k, [k]) for k in range(6)]
    for chunk in chunks:
        backend.submit(chunk)
    assert backend.take_waiting(3) == chunks[3:]
    assert backend.room(2) == 1
    assert backend.take_waiting(9) == chunks[2:3]
    assert backend.take_waiting(9) == []
    gate.set()
    ended = []
    while len(ended) < 2:
        ended += [event.chunk.number for event in backend.wait(HANG_S)]
    assert sorted(ended) == [0, 1]
    assert backend.wait(0) == []
    backend.submit(chunks[5])
    assert [event.chunk.number for event in backend.wait(HANG_S)] == [5]
    backend.close()


class Refusing(Executor):
    """Pickles at once, as Dask does."""

    def submit(self, func, /, *args):
        pickle.dumps((func, args))
        raise AssertionError


def test_what_the_job_is_refused_for_is_not_taken_for_an_item_s_fault():
    backend = ExecutorBackend(Job(lambda _: None), Refusing())
    backend.start(2)
    backend.submit(Chunk(0, 0, [1]))
    with pytest.raises(TransportError, match="cannot carry the function"):
        backend.wait(HANG_S)
    backend = ExecutorBackend(Job(abs), Refusing())
    with pytest.raises(TransportError):
        backend.submit(Chunk(0, 0, [threading.Lock()]))
    backend.close()


def test_the_initializer_runs_once_in_each_worker(either):
    before = {}
    for _ in range(2):
        backend = ExecutorBackend(Job(carried.begun, initializer=carried.count_begin), either)
        begun = {result for event in all_ended(backend, chunks(20)) for result in event.results}
        assert begun == {(worker, before.get(worker, 0) + 1) for worker, _ in begun}
        before |= dict(begun)


def test_an_initializer_that_raises_ends_the_run_and_says_why(either):
    backend = ExecutorBackend(Job(carried.square, initializer=carried.refuse_begin), either)
    backend.submit(Chunk(0, 0, [1]))
    for _ in range(2):
        with pytest.raises(WorkerError, match="OSError: no licence"):
            backend.wait(60)


def test_an_executor_that_breaks_is_told_with_the_remedy():
    with ProcessPoolExecutor(1, mp_context=SPAWN) as executor:
        backend = ExecutorBackend(Job(carried.die), executor)
        with pytest.raises(WorkerError, match=r"the executor broke .* make a new one"):
            all_ended(backend, chunks(2))
        fresh = ExecutorBackend(Job(carried.square), executor)
        with pytest.raises(WorkerError, match="the executor broke"):
            fresh.submit(Chunk(0, 0, [1]))


def test_an_executor_that_is_shut_down_is_told():
    executor, gate = ThreadPoolExecutor(1), threading.Event()
    backend = ExecutorBackend(Job(lambda x: gate.wait(60) * 0 + x), executor, workers=2)
    for chunk in chunks(2):
        backend.submit(chunk)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(WorkerError, match=r"did not run the items .*after shutdown"):
        backend.submit(Chunk(2, 2, [2]))
    with pytest.raises(WorkerError, match="cancelled items it had not begun"):
        backend.wait(60)
    gate.set()


def test_what_is_done_is_had_before_the_error():
    executor = ByHand()
    backend = ExecutorBackend(Job(carried.square), executor, workers=2)
    for chunk in chunks(2):
        backend.submit(chunk)
    (future, run), (dropped, _) = executor.held
    future.set_result(run())
    dropped.cancel()
    assert results(backend.wait(0)) == [0]
    with pytest.raises(WorkerError, match="cancelled"):
        backend.wait(0)


def test_closing_cancels_what_has_not_begun_and_stops_the_rest_after_an_item():
    ran, at, release = [], threading.Event(), threading.Event()

    def item(x):
        ran.append(x)
        at.set()
        release.wait(60)

    with ThreadPoolExecutor(1) as executor:
        backend = ExecutorBackend(Job(item), executor)
        for chunk in chunks(3, size=4):
            backend.submit(chunk)
        assert at.wait(60)
        backend.close()
        backend.close()
        release.set()
        assert executor.submit(abs, -1).result(60) == 1
    assert ran == [0]
    with pytest.raises(ClosedError):
        backend.wait(0)
    with pytest.raises(ClosedError):
        backend.submit(Chunk(3, 0, [1]))


def test_a_late_item_is_reported_and_the_worker_goes_on(either):
    backend = ExecutorBackend(Job(carried.sleep_at_three, timeout=0.5), either)
    events = all_ended(backend, chunks(6, size=2))
    lost = [event for event in events if isinstance(event, Lost)]
    assert [(event.chunk.number, event.began, event.late_at) for event in lost] == [(1, True, 3)]
    assert lost[0].chunk.items == [2, 3]
    assert results([event for event in events if isinstance(event, Report)]) == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]


def test_closing_reaches_a_call_with_a_timeout(monkeypatch):
    monkeypatch.setattr(executor_backend, "LOOK_S", 0.01)
    at, release = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        backend = ExecutorBackend(Job(lambda x: (at.set(), release.wait(60)), timeout=100), executor)
        backend.submit(Chunk(0, 0, [1, 2]))
        assert at.wait(60)
        backend.close()
        assert executor.submit(abs, -1).result(60) == 1  # its worker is free again
        release.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(threads):
    backend = ExecutorBackend(Job(carried.square), threads)
    child = os.fork()
    if child == 0:
        try:
            backend.wait(None)
        except ClosedError:
            backend.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert results(all_ended(backend, chunks(2))) == [0, 1]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_that_were_forked_are_not_taken_for_this_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        (event,) = all_ended(ExecutorBackend(Job(carried.lock_at_three), executor), [Chunk(0, 0, [0, 1, 2, 3])])
    assert results([event]) == [0, 1, 2]
    assert isinstance(failures([event])[3], TransportError)


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_will_do():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        backend = ExecutorBackend(Job(carried.lock_at_three), executor, workers=2)
        events = all_ended(backend, chunks(4, size=2))
        assert results(events) == [0, 1, 2, 4, 5, 6, 7]
        assert isinstance(failures(events)[3], TransportError)
        backend.close()
