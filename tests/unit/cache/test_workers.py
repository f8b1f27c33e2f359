from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazystore.cache.workers import Job, Workers
from lazystore.errors import ClosedError, ConfigError

PATIENCE = 20.0


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


@pytest.fixture
def one() -> Iterator[Workers]:
    with Workers(1, "test-one") as workers:
        yield workers
    assert not named("test-one")


class Gate:
    """Holds a thread until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE)


def hold(workers: Workers, *, demand: bool = True) -> Gate:
    gate = Gate()
    workers.submit(gate, demand=demand)
    assert gate.entered.wait(PATIENCE)
    return gate


# --- jobs in threads ---


def test_a_waiting_thread_takes_the_most_urgent_first(one: Workers) -> None:
    gate, ran = hold(one), []
    for priority in (1, 5, 3, 5):
        one.submit(lambda priority=priority: ran.append(priority), priority=priority)
    one.submit(lambda: ran.append("demand"), demand=True)
    gate.opened.set()
    until(lambda: len(ran) == 5)
    assert ran == ["demand", 5, 5, 3, 1]


def test_equal_keys_are_one_job_at_the_greater_priority_while_queued(one: Workers) -> None:
    gate, ran = hold(one), []
    first = one.submit(lambda: ran.append("low"), priority=1, key="a")
    one.submit(lambda: ran.append("high"), priority=2, key="b")
    assert one.submit(lambda: ran.append("merged"), priority=3, key="a") is first
    assert first.priority == 3 and one.queued == 2
    gate.opened.set()
    until(lambda: len(ran) == 2)
    assert ran == ["low", "high"]
    until(lambda: first.done)
    assert one.submit(lambda: ran.append("again"), key="a") is not first
    until(lambda: ran[-1] == "again")


def test_a_promoted_job_passes_the_others(one: Workers) -> None:
    gate, ran = hold(one), []
    jobs = [one.submit(lambda number=number: ran.append(number)) for number in range(4)]
    assert jobs[2].promote(7) and jobs[3].promote(demand=True)
    assert jobs[2].promote(1) and jobs[2].priority == 7, "never lowered"
    gate.opened.set()
    until(lambda: len(ran) == 4)
    assert ran == [3, 2, 0, 1]
    until(lambda: jobs[1].done)
    assert not jobs[1].promote(9)


def test_a_cancelled_job_never_runs_and_frees_what_it_holds(one: Workers) -> None:
    class Held:
        def __call__(self) -> None:
            pytest.fail("ran")

    gate, told, held = hold(one), [], Held()
    gone = weakref.ref(held)
    job = one.submit(held, key="k", dropped=lambda: told.append("dropped"))
    del held
    assert job.cancel() and job.state == "cancelled" and job.done
    assert told == ["dropped"] and gone() is None
    assert not job.cancel() and told == ["dropped"]
    assert one.submit(int, key="k") is not job
    gate.opened.set()
    until(lambda: not one.queued and not one.running)


def test_what_runs_is_not_cancelled(one: Workers) -> None:
    gate = Gate()
    job = one.submit(gate)
    assert gate.entered.wait(PATIENCE)
    assert not job.cancel() and job.state == "running" and not job.done
    gate.opened.set()
    until(lambda: job.state == "done")


def test_jobs_nobody_waits_for_leave_one_thread_to_demand() -> None:
    with Workers(3, "test-last") as workers:
        gates = [hold(workers, demand=False), hold(workers, demand=False)]
        more = workers.submit(int)
        assert workers.queued == 1 and workers.threads == 2
        ran = threading.Event()
        workers.submit(ran.set, demand=True)
        assert ran.wait(PATIENCE), "demand had to wait for speculation"
        assert more.state == "queued"
        more.promote(demand=True)
        until(lambda: more.done)
        for gate in gates:
            gate.opened.set()


def test_demand_may_take_every_thread() -> None:
    with Workers(3, "test-all") as workers:
        gates = [hold(workers) for _ in range(3)]
        assert workers.running == 3 and workers.threads == 3
        for gate in gates:
            gate.opened.set()


@pytest.mark.parametrize("count", [1, 3])
def test_jobs_that_wait_for_queued_jobs_let_another_thread_run(count: int) -> None:
    def nest(depth: int) -> None:
        if depth:
            inner = workers.submit(lambda: nest(depth - 1), demand=True)
            with workers.blocked(), workers.blocked():
                until(lambda: inner.done)

    with Workers(count, "test-nest", idle=60) as workers:
        with workers.blocked():
            assert workers._crew.blocked == 0, "this thread is none of theirs"
        jobs = [workers.submit(lambda: nest(5), demand=True) for _ in range(4)]
        until(lambda: all(job.done for job in jobs))
        until(lambda: workers.threads <= count)
        assert workers._crew.blocked == 0
        gates = [hold(workers) for _ in range(count)]
        workers.submit(int, demand=True)
        assert workers.threads == count and workers.queued == 1
        for gate in gates:
            gate.opened.set()


def test_threads_start_one_by_one_and_only_with_the_first_job() -> None:
    with Workers(4, "test-lazy") as workers:
        assert workers.threads == 0 and not named("test-lazy")
        for _ in range(5):
            job = workers.submit(int, demand=True)
            until(lambda job=job: job.done)
            until(lambda: workers._crew.resting == 1)
        assert workers.threads == 1, "a resting thread was there"
        gates = [hold(workers) for _ in range(4)]
        assert workers.threads == len(named("test-lazy")) == 4
        assert all(thread.daemon for thread in named("test-lazy"))
        for gate in gates:
            gate.opened.set()


def test_idle_threads_end_and_others_start_when_needed() -> None:
    with Workers(2, "test-idle", idle=0.02) as workers:
        workers.submit(int)
        until(lambda: workers.threads == 0 and not named("test-idle"))
        ran = threading.Event()
        workers.submit(ran.set)
        assert ran.wait(PATIENCE)


def test_an_escaping_exception_is_told_and_kills_no_thread(one: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))

    def leave(error: type[BaseException]) -> None:
        raise error

    for error in (ValueError, SystemExit, KeyboardInterrupt):
        one.submit(lambda error=error: leave(error))
    ran = threading.Event()
    one.submit(ran.set)
    assert ran.wait(PATIENCE)
    assert told == [ValueError, SystemExit, KeyboardInterrupt] and one.threads == 1


def test_a_thread_outlives_a_hook_that_raises(
    one: Workers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: 1 / 0)
    one.submit(lambda: [][1])
    ran = threading.Event()
    one.submit(ran.set)
    assert ran.wait(PATIENCE)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_resting_thread_keeps_nothing_of_its_job_alive(one: Workers) -> None:
    class Data:
        pass

    data = Data()
    gone = weakref.ref(data)
    job = one.submit(lambda data=data: data)
    del data
    until(lambda: job.done)
    until(lambda: gone() is None)


# --- ends ---


def test_close_drops_what_is_queued_and_joins_what_runs() -> None:
    workers, dropped = Workers(1, "test-close"), []
    gate = hold(workers)
    job = workers.submit(int, dropped=lambda: dropped.append(1))
    threading.Timer(0.02, gate.opened.set).start()
    assert workers.close(PATIENCE)
    assert dropped == [1] and job.state == "cancelled" and not named("test-close")
    with pytest.raises(ClosedError, match="closed"):
        workers.submit(int)
    assert workers.close() and workers.closed


def test_close_waits_no_longer_than_its_grace() -> None:
    workers = Workers(1, "test-grace")
    gate = hold(workers)
    assert not workers.close(0.01)
    gate.opened.set()
    assert workers.close(PATIENCE)


def test_one_that_raises_in_being_dropped_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    workers, dropped = Workers(1), []
    gate = hold(workers)
    workers.submit(int, dropped=lambda: [][1])
    workers.submit(int, dropped=lambda: dropped.append(1))
    threading.Timer(0.02, gate.opened.set).start()
    workers.close(PATIENCE)
    assert told == [IndexError] and dropped == [1]


def test_a_job_may_close_its_own_workers() -> None:
    workers = Workers(2, "test-own")
    job = workers.submit(lambda: workers.close(0.1))
    until(lambda: job.done)
    until(lambda: not named("test-own"))


def test_forgotten_workers_run_what_is_queued_and_end() -> None:
    workers, ran = Workers(2, "test-forgotten"), []
    gone = weakref.ref(workers)
    gate = hold(workers)
    for number in range(3):
        workers.submit(lambda number=number: ran.append(number), demand=True)
    gate.opened.set()
    del workers
    gc.collect()
    assert gone() is None
    until(lambda: not named("test-forgotten"))
    assert sorted(ran) == [0, 1, 2]


def test_many_threads_submit_promote_and_cancel_and_each_job_ends_once() -> None:
    with Workers(4, "test-storm") as workers:
        ran: list[int] = []
        dropped: list[int] = []
        jobs: list[Job] = []

        def push(base: int) -> None:
            for number in range(base, base + 200):
                jobs.append(
                    job := workers.submit(
                        lambda number=number: ran.append(number),
                        priority=number % 7,
                        demand=number % 5 == 0,
                        dropped=lambda number=number: dropped.append(number),
                    )
                )
                if number % 3 == 0:
                    job.promote(number % 11, demand=number % 2 == 0)
                if number % 4 == 0:
                    job.cancel()

        threads = [threading.Thread(target=push, args=(base,)) for base in range(0, 1600, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: all(job.done for job in jobs))
        until(lambda: not workers.running)
        assert sorted(ran + dropped) == list(range(1600))


# --- bad input, forks, the end of the interpreter ---


def test_a_count_below_one_and_a_priority_that_is_no_number_are_refused(one: Workers) -> None:
    with pytest.raises(ConfigError, match="0 workers"):
        Workers(0)
    with pytest.raises(ConfigError, match="NaN"):
        one.submit(int, priority=float("nan"))
    with pytest.raises(TypeError):
        one.submit(int, priority="high")  # type: ignore[arg-type]
    assert one.queued == 0 and one.threads == 0


def test_no_thread_to_be_had_is_an_error_and_leaves_nothing_queued(
    one: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            one.submit(int)
    assert one.queued == 0 and one.threads == 0
    ran = threading.Event()
    one.submit(ran.set)
    assert ran.wait(PATIENCE)


def run_script(source: str) -> str:
    script = textwrap.dedent(source)
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", script]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_a_forked_child_starts_empty_and_its_parents_jobs_go_on() -> None:
    out = run_script(
        """
        import os, threading, time, warnings
        from lazystore.cache.workers import Workers

        warnings.simplefilter("ignore", DeprecationWarning)  # later versions warn of forks with threads
        workers, statuses = Workers(2, "w"), []

        def child():
            ok = workers.queued == 0 and workers.threads == 0 and running.done
            ok = ok and not running.cancel() and not running.promote(3)
            ran = threading.Event()
            workers.submit(ran.set)
            return 0 if ok and ran.wait(20) else 1

        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(child())
            statuses.append(os.waitpid(pid, 0)[1])

        inside, go = threading.Event(), threading.Event()
        running = workers.submit(lambda: (inside.set(), go.wait(20)), demand=True)
        jobs = [running] + [workers.submit(lambda: go.wait(20)) for _ in range(40)]
        inside.wait(20)
        with workers._crew.condition:  # its holder is another thread than the one that forks
            forker = threading.Thread(target=fork)
            forker.start()
            forker.join()
        go.set()
        while not all(job.done for job in jobs):
            time.sleep(0.001)
        print(statuses, {job.state for job in jobs})
        workers.close()
        """
    )
    assert out == "[0] {'done'}\n"


def test_a_job_that_forks_ends_its_thread_in_the_child_only() -> None:
    out = run_script(
        """
        import os, threading, warnings
        from lazystore.cache.workers import Workers

        warnings.simplefilter("ignore", DeprecationWarning)
        workers, pids = Workers(1, "w"), []
        workers.submit(lambda: pids.append(os.fork()))
        ran = threading.Event()
        try:
            workers.submit(ran.set)
            ran.wait(20)
            print(os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]), workers.running, flush=True)
        finally:
            workers.close()
        """
    )
    assert out == "0 0\n"


def test_the_interpreter_ends_at_once_with_jobs_running_and_queued() -> None:
    begun = time.monotonic()
    out = run_script(
        """
        import threading, time
        from lazystore.cache.workers import Workers

        workers, inside = Workers(2), threading.Event()
        workers.submit(lambda: (inside.set(), time.sleep(50)), demand=True)
        for _ in range(10):
            workers.submit(lambda: time.sleep(50))
        inside.wait(20)
        print("end")
        """
    )
    assert out == "end\n" and time.monotonic() - begun < 40
