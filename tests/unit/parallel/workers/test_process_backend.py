"""Worker processes do what they are given, and what was given to those that die comes back."""

from __future__ import annotations

import gc
import operator
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from support import imap_funcs
from support.driving import HANG_S, await_news, await_ready, drive

from lazystore.errors import TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.workers.process_backend import ProcessBackend
from lazystore.parallel.workers.worker_pool import POOL, warm_workers


@pytest.fixture(autouse=True)
def no_worker_stays_busy() -> Iterator[None]:
    yield
    gc.collect()
    assert all(not handle.unanswered for handle in POOL._all)
    assert set(POOL._idle) == POOL._all


def worker_pids(backend: ProcessBackend) -> list[int]:
    deadline = time.monotonic() + HANG_S
    for handle in backend._crew:
        while handle.child.look() is None and not handle.child.pid:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return [handle.child.pid for handle in backend._crew if handle.child.exit_code is None]


def gone(pid: int) -> bool:
    """Whether the process ends soon."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.005)
    return False


def test_every_item_comes_back_once() -> None:
    backend = ProcessBackend(Job(imap_funcs.double))
    assert drive(backend, range(10_000), size=7) == [2 * number for number in range(10_000)]
    assert backend.deaths == 0
    backend.close()


def test_arrays_and_long_bytes_travel_both_ways() -> None:
    items = [numpy.arange(k * 100_000, dtype="f4") for k in range(1, 6)]
    backend = ProcessBackend(Job(operator.neg))
    for got, item in zip(drive(backend, items), items, strict=True):
        numpy.testing.assert_array_equal(got, -item)
        got += 1.0  # results belong to the caller
    backend.close()
    backend = ProcessBackend(Job(bytes.swapcase))
    assert drive(backend, [b"ab" * 1_000_000] * 6) == [b"AB" * 1_000_000] * 6
    backend.close()


def test_chunks_may_be_given_before_workers_are_up() -> None:
    POOL.end_all()
    backend = ProcessBackend(Job(imap_funcs.double))
    backend.start(2)
    assert backend.workers == 2
    assert backend.start_s == 0.0
    for number in range(4):
        backend.submit(Chunk(number, number, [number]))
    assert backend.room(2) == 0
    seen = []
    while len(seen) < 4:
        seen += [event.results[0] for event in await_news(backend) if isinstance(event, Report)]
    assert sorted(seen) == [0, 2, 4, 6]
    assert backend.start_s > 0.0
    backend.close()


def test_reports_tell_the_worker_and_the_time() -> None:
    backend = ProcessBackend(Job(imap_funcs.nap))
    backend.start(1)
    backend.submit(Chunk(5, 50, [0.01, 0.2]))
    (report,) = await_news(backend)
    assert isinstance(report, Report)
    assert report.chunk.number == 5
    assert report.run_s >= 0.2
    assert report.longest_at == 51
    assert report.worker > 0
    backend.close()


def test_workers_are_kept_for_the_next_run_and_shared_with_nobody() -> None:
    first = ProcessBackend(Job(imap_funcs.pid))
    pids = set(drive(first, range(50)))
    await_ready(first, 2)
    second = ProcessBackend(Job(imap_funcs.pid))
    others = set(drive(second, range(50)))
    assert pids.isdisjoint(others)
    await_ready(second, 2)
    first.close()
    second.close()
    assert warm_workers() >= 4
    third = ProcessBackend(Job(imap_funcs.pid))
    third.start(2)
    assert third.ready() == 2
    assert set(drive(third, range(50))) <= pids | others
    third.close()


def test_runs_in_several_threads_do_not_mix() -> None:
    results: dict[int, list[int]] = {}

    def run(base: int) -> None:
        backend = ProcessBackend(Job(imap_funcs.double))
        results[base] = drive(backend, range(base, base + 300), size=3)
        backend.close()

    threads = [threading.Thread(target=run, args=(1000 * k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1000 * k: [2 * n for n in range(1000 * k, 1000 * k + 300)] for k in range(3)}


def test_more_workers_can_be_had_during_a_run() -> None:
    backend = ProcessBackend(Job(imap_funcs.double))
    drive(backend, range(20), workers=1)
    assert backend.workers == 1
    assert drive(backend, range(20), workers=3) == [2 * n for n in range(20)]
    assert backend.workers == 3
    backend.close()


def test_nothing_is_lost_when_workers_are_killed_at_random() -> None:
    backend = ProcessBackend(Job(imap_funcs.slow_double))
    chance = random.Random(3)
    lost: list[Lost] = []
    kills = 0

    def kill(done: int) -> None:
        nonlocal kills
        if kills < 30 and done >= 5 * kills:
            pids = worker_pids(backend)
            if pids:  # else all of them are dead already
                os.kill(chance.choice(pids), signal.SIGKILL)
                kills += 1
            time.sleep(chance.random() * 0.003)

    assert drive(backend, range(400), size=2, lost=lost, news=kill) == [2 * n for n in range(400)]
    assert kills == 30
    assert backend.deaths >= 15  # several may hit the same worker
    assert {event.exit_code for event in lost} <= {-signal.SIGKILL}
    assert backend.workers == 2
    backend.close()
    POOL.end_all()  # the last ones that were hit may not be dead yet


def test_only_the_chunk_a_dead_worker_was_at_began() -> None:
    backend = ProcessBackend(Job(imap_funcs.leave))
    backend.start(1)
    backend.submit(Chunk(0, 6, [6, 7, 8]))
    backend.submit(Chunk(1, 9, [9]))
    first, second = await_news(backend)
    assert isinstance(first, Lost) and isinstance(second, Lost)
    assert (first.chunk.number, first.began, first.exit_code) == (0, True, 3)
    assert (second.chunk.number, second.began) == (1, False)
    assert backend.workers == 1
    assert backend.deaths == 1
    backend.submit(second.chunk)
    (report,) = await_news(backend)
    assert isinstance(report, Report)
    assert report.results == [9]
    backend.close()


def test_chunks_of_a_worker_that_had_not_begun_them_did_not_begin() -> None:
    backend = ProcessBackend(Job(imap_funcs.double, initializer=imap_funcs.rest))
    backend.start(1)
    await_ready(backend, 1)
    backend.submit(Chunk(0, 0, [1]))
    time.sleep(0.05)
    (pid,) = worker_pids(backend)
    os.kill(pid, signal.SIGKILL)
    (lost,) = await_news(backend)
    assert isinstance(lost, Lost)
    assert (lost.began, lost.exit_code) == (False, -signal.SIGKILL)
    backend.close()


def test_workers_that_end_in_the_initializer_are_an_error() -> None:
    backend = ProcessBackend(Job(imap_funcs.double, initializer=imap_funcs.leave_early))
    with pytest.raises(WorkerError, match=r"[34] worker processes ended while .* the initializer, .* exit status 3"):
        drive(backend, range(10), lost=[])
    backend.close()


def test_a_chunk_that_waits_can_be_taken_back(tmp_path: Path) -> None:
    backend = ProcessBackend(Job(imap_funcs.await_file))
    backend.start(2)
    await_ready(backend, 2)
    there, awaited = tmp_path, tmp_path / "go"
    chunks = [Chunk(0, 0, [awaited]), Chunk(1, 1, [there]), Chunk(2, 2, [there]), Chunk(3, 3, [there])]
    for chunk in chunks:
        backend.submit(chunk)
    done = []
    while len(done) < 2:
        done += [event.chunk.number for event in await_news(backend)]
    assert done == [1, 3]
    assert backend.room(2) == 2
    assert backend.take_waiting(0) == []
    assert backend.take_waiting(5) == [chunks[2]]
    assert backend.take_waiting(5) == []
    assert backend.room(2) == 2  # it still fills the pipe
    backend.submit(chunks[2])
    (report,) = await_news(backend)
    assert isinstance(report, Report)
    assert (report.chunk.number, report.results) == (2, [there])
    awaited.touch()
    (report,) = await_news(backend)
    assert report.chunk.number == 0
    deadline = time.monotonic() + HANG_S
    while backend.room(2) < 4:
        assert time.monotonic() < deadline
        assert backend.wait(0.01) == []
    backend.close()


def test_workers_with_chunks_taken_back_serve_the_next_run() -> None:
    for _ in range(20):
        backend = ProcessBackend(Job(imap_funcs.nap))
        backend.start(1)
        await_ready(backend, 1)
        pids = worker_pids(backend)
        backend.submit(Chunk(0, 0, [0.005]))
        for number in range(1, 4):
            backend.submit(Chunk(number, number, [b"x" * 100_000]))
        assert len(backend.take_waiting(9)) == 3
        (report,) = await_news(backend)
        assert report.chunk.number == 0
        backend.close()
        backend = ProcessBackend(Job(imap_funcs.double))
        assert drive(backend, range(5), workers=1) == [0, 2, 4, 6, 8]
        assert worker_pids(backend) == pids
        backend.close()


def test_nothing_is_lost_or_run_twice_when_chunks_are_taken_back_at_random(tmp_path: Path) -> None:
    backend = ProcessBackend(Job(imap_funcs.mark))
    chance = random.Random(8)
    lost: list[Lost] = []
    taken = 0

    def take(done: int) -> None:
        nonlocal taken
        if chance.random() < 0.5:
            for chunk in backend.take_waiting(chance.randrange(3)):
                taken += 1
                lost.append(Lost(chunk, began=False))
                backend.submit(chunk)

    items = [(tmp_path, number) for number in range(400)]
    assert drive(backend, items, depth=4, lost=lost, news=take) == list(range(400))
    assert taken > 20
    assert not any(event.began for event in lost)
    backend.close()


def test_trouble_of_the_job_is_told_by_waiting_and_not_by_submitting() -> None:
    backend = ProcessBackend(Job(imap_funcs.double, initializer=imap_funcs.Remember("fail")))
    backend.start(1)
    for number in range(200):
        backend.submit(Chunk(number, number, [number]))
        time.sleep(0.001)
    with pytest.raises(WorkerError, match="initializer"):
        await_news(backend)
    backend.submit(Chunk(200, 200, [200]))
    with pytest.raises(WorkerError, match="initializer"):
        await_news(backend)
    backend.close()


def test_what_a_worker_sent_before_it_died_is_not_lost(tmp_path: Path) -> None:
    backend = ProcessBackend(Job(imap_funcs.leave_once))
    lost: list[Lost] = []
    items = [(tmp_path / "mark", number) for number in range(20)]
    assert drive(backend, items, workers=1, lost=lost) == list(range(20))
    assert [event.chunk.first for event in lost if event.began] == [7]
    backend.close()


def test_a_worker_killed_while_idle_is_replaced_unnoticed() -> None:
    backend = ProcessBackend(Job(imap_funcs.pid))
    before = set(drive(backend, range(20)))
    await_ready(backend, 2)
    backend.close()
    for handle in list(POOL._idle):
        os.kill(handle.child.pid, signal.SIGKILL)
        assert gone(handle.child.pid)
    backend = ProcessBackend(Job(imap_funcs.pid))
    assert before.isdisjoint(drive(backend, range(20)))
    for pid in worker_pids(backend):
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    drive(backend, range(20), lost=[])
    backend.close()


def test_a_worker_whose_pipe_lives_on_in_another_process_is_seen_to_be_dead(tmp_path: Path) -> None:
    backend = ProcessBackend(Job(imap_funcs.forks_and_dies))
    backend.start(1)
    backend.submit(Chunk(0, 0, [tmp_path / "pid"]))
    (event,) = await_news(backend)
    assert isinstance(event, Lost)
    assert event.exit_code == -signal.SIGKILL
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    backend.close()


def test_the_fork_server_may_be_killed() -> None:
    backend = ProcessBackend(Job(imap_funcs.slow_double))
    backend.start(2)
    await_ready(backend, 2)
    server = POOL._server
    assert server is not None

    def kill(done: int) -> None:
        if done > 20 and POOL._server is server:
            server._popen.kill()

    lost: list[Lost] = []
    assert drive(backend, range(100), lost=lost, news=kill) == [2 * n for n in range(100)]
    assert POOL._server is not server
    backend.close()


def test_an_item_over_time_ends_its_worker_only() -> None:
    backend = ProcessBackend(Job(imap_funcs.nap, timeout=0.3))
    backend.start(2)
    backend.submit(Chunk(0, 0, [0.001] * 5 + [20.0] + [0.001]))
    backend.submit(Chunk(1, 10, [0.1] * 5))
    backend.submit(Chunk(2, 20, [0.001]))
    events = {}
    while len(events) < 3:
        events.update({event.chunk.number: event for event in await_news(backend)})
    late = events[0]
    assert isinstance(late, Lost)
    assert (late.began, late.late_at) == (True, 5)
    assert isinstance(events[1], Report)  # longer than the limit, but none of its items is
    assert isinstance(events[2], Report) or events[2].late_at == -1
    assert backend.workers == 2
    backend.close()


def test_what_an_earlier_run_was_at_counts_for_nothing() -> None:
    for _ in range(2):
        backend = ProcessBackend(Job(imap_funcs.nap, timeout=0.5))
        assert drive(backend, [0.01] * 3, workers=1) == [0.01] * 3
        backend.close()
        time.sleep(0.6)


def test_an_item_that_does_not_pickle_is_named() -> None:
    backend = ProcessBackend(Job(imap_funcs.double))
    backend.start(1)
    with pytest.raises(TransportError, match=r"item 12, a generator.*backend='thread'"):
        backend.submit(Chunk(0, 10, [1, 2, (n for n in ()), 4]))
    backend.submit(Chunk(1, 0, [5]))
    (report,) = await_news(backend)
    assert isinstance(report, Report)
    assert report.results == [10]
    backend.close()


def test_a_function_that_nothing_can_pickle_is_refused_at_the_start() -> None:
    lock = threading.Lock()
    backend = ProcessBackend(Job(lambda item: lock))
    with pytest.raises(TransportError, match=r"func \(.*<lambda>.*backend='thread'"):
        backend.start(2)
    assert backend.workers == 0
    backend.close()


def test_lambdas_and_closures_go_by_value() -> None:
    pytest.importorskip("cloudpickle")
    add = 3
    backend = ProcessBackend(Job(lambda number: number + add))
    assert drive(backend, range(10)) == list(range(3, 13))
    backend.close()


def test_a_module_that_workers_lack_is_a_transport_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("only_here")
    exec("def f(item):\n    return item", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    backend = ProcessBackend(Job(module.f))
    backend.start(1)
    backend.submit(Chunk(0, 0, [1]))
    with pytest.raises(TransportError, match=r"cannot load.*only_here"):
        await_news(backend)
    (handle,) = backend._crew
    backend.close()
    assert handle in POOL._idle  # it is as good as before
    backend = ProcessBackend(Job(imap_funcs.double))
    assert drive(backend, range(20), workers=warm_workers()) == [2 * n for n in range(20)]
    assert backend.deaths == 0
    backend.close()


def test_a_failing_initializer_is_an_error_and_its_worker_is_not_used_again() -> None:
    job = Job(imap_funcs.double, imap_funcs.Remember("fail"))
    for _ in range(2):
        backend = ProcessBackend(job)
        backend.start(1)
        backend.submit(Chunk(0, 0, [1]))
        with pytest.raises(WorkerError, match=r"initializer failed.*no memory for that"):
            await_news(backend)
        backend.close()


def test_workers_see_the_caller_s_directory_environment_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ProcessBackend(Job(imap_funcs.surroundings))
    drive(backend, [1])
    backend.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAZYSTORE_TEST", "now")
    monkeypatch.syspath_prepend("/lazystore/test")
    backend = ProcessBackend(Job(imap_funcs.surroundings))  # its workers are older than that
    assert set(drive(backend, range(4))) == {(str(tmp_path), "now", True)}
    backend.close()
    monkeypatch.delenv("LAZYSTORE_TEST")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    backend = ProcessBackend(Job(imap_funcs.surroundings))
    assert {variable for _, variable, _ in drive(backend, range(4))} == {None}
    backend.close()
    monkeypatch.chdir(tmp_path)


def test_an_initializer_runs_once_in_each_worker_and_its_workers_serve_no_other() -> None:
    one, two = Job(imap_funcs.remembered, imap_funcs.Remember("one")), Job(imap_funcs.remembered)
    pids = set()
    for _ in range(2):
        backend = ProcessBackend(one)
        seen = drive(backend, range(20))
        assert all(names == ["one"] for _, names in seen)
        pids |= {pid for pid, _ in seen}
        await_ready(backend, 2)
        backend.close()
    backend = ProcessBackend(two)
    seen = drive(backend, range(20))
    assert all(names == [] for _, names in seen)
    assert pids.isdisjoint(pid for pid, _ in seen)
    backend.close()


def test_random_numbers_of_workers_differ() -> None:
    backend = ProcessBackend(Job(imap_funcs.draw))
    seen = drive(backend, range(20), workers=3)
    first = {pid: numbers for pid, *numbers in reversed(seen)}
    assert len(first) > 1
    assert len({value for numbers in first.values() for value in numbers}) == 2 * len(first)
    backend.close()


def test_multiprocessing_takes_a_worker_for_a_process_of_its_own() -> None:
    import multiprocessing

    backend = ProcessBackend(Job(imap_funcs.kinship))
    ((parent, alive, name, daemon),) = drive(backend, [1])
    assert parent == os.getpid()
    assert alive
    assert name.startswith("lazystore-worker-")
    assert not daemon
    assert multiprocessing.active_children() == []
    backend.close()


def test_functions_may_start_processes() -> None:
    backend = ProcessBackend(Job(imap_funcs.starts_processes))
    assert drive(backend, [21], workers=1) == [21]
    backend.close()


def test_closing_ends_workers_at_work_and_keeps_the_others(tmp_path: Path) -> None:
    backend = ProcessBackend(Job(imap_funcs.nap))
    backend.start(2)
    await_ready(backend, 2)
    backend.submit(Chunk(0, 0, [60.0]))
    busy = next(handle.child.pid for handle in backend._crew if handle.unanswered)
    idle = next(handle for handle in backend._crew if not handle.unanswered)
    began = time.monotonic()
    backend.close()
    assert time.monotonic() - began < 10.0
    assert gone(busy)
    assert idle in POOL._idle and idle.alive()
    backend.close()
    with pytest.raises(WorkerError, match="closed"):
        backend.wait(0)


def test_workers_that_take_no_notice_are_killed(tmp_path: Path) -> None:
    backend = ProcessBackend(Job(imap_funcs.stubborn))
    backend.start(1)
    backend.submit(Chunk(0, 0, [tmp_path / "began"]))
    deadline = time.monotonic() + HANG_S
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        backend.wait(0.01)
    (pid,) = worker_pids(backend)
    backend.close()
    assert gone(pid)


def test_a_run_that_is_dropped_gives_its_workers_back() -> None:
    backend = ProcessBackend(Job(imap_funcs.nap))
    backend.start(2)
    await_ready(backend, 2)
    backend.submit(Chunk(0, 0, [0.01]))
    before = warm_workers()
    del backend
    gc.collect()
    assert warm_workers() == before + 2


def test_workers_that_cannot_come_up_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    POOL.end_all()
    monkeypatch.setattr("lazystore.parallel.workers.worker_pool.PRELOAD", ("lazystore.parallel.workers.worker_main",))
    monkeypatch.setattr("lazystore.parallel.workers.launch._executable", lambda: "/bin/false")
    backend = ProcessBackend(Job(imap_funcs.double))
    with pytest.raises(WorkerError):
        drive(backend, [1], lost=[])
    backend.close()
    POOL.end_all()


def test_waiting_for_nothing_ends() -> None:
    backend = ProcessBackend(Job(imap_funcs.double))
    backend.start(1)
    assert backend.wait(None) == []
    assert drive(backend, [1]) == [2]
    assert backend.wait(None) == []
    backend.close()


def test_where_nothing_may_be_forked_workers_are_interpreters_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    POOL.end_all()
    monkeypatch.setattr("lazystore.parallel.workers.worker_pool.has_fork_server", lambda: False)
    backend = ProcessBackend(Job(imap_funcs.leave))
    lost: list[Lost] = []
    backend.start(1)
    backend.submit(Chunk(0, 7, [7]))
    (event,) = await_news(backend)
    assert isinstance(event, Lost)
    assert event.exit_code == 3
    assert drive(backend, [1, 2, 3], workers=1, lost=lost) == [1, 2, 3]
    backend.submit(Chunk(9, 0, [b"x" * 1_000_000]))
    (report,) = await_news(backend)
    assert isinstance(report, Report)
    assert report.results == [b"x" * 1_000_000]
    assert POOL._server is None
    (pid,) = worker_pids(backend)
    backend.close()
    POOL.end_all()
    assert gone(pid)


def test_a_worker_interrupted_amid_a_message_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from lazystore.parallel.workers.transport import Channel

    backend = ProcessBackend(Job(imap_funcs.double))
    backend.start(1)
    await_ready(backend, 1)
    (handle,) = backend._crew

    def interrupted(self: Channel, *arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.submit(Chunk(0, 0, [1]))
    pid = handle.child.pid
    backend.close()
    assert handle not in POOL._all
    assert gone(pid)
