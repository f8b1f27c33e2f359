"""Workers between runs: which are kept, which are taken, and which are let go."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from support.driving import HANG_S

from lazystore.parallel.workers import worker_pool
from lazystore.parallel.workers.worker_pool import WorkerHandle, WorkerPool


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    pool.end_all()


def come_up(pool: WorkerPool, crew: list[WorkerHandle]) -> None:
    deadline = time.monotonic() + HANG_S
    while not all(handle.ready for handle in crew):
        assert time.monotonic() < deadline
        time.sleep(0.005)
        for handle in crew:
            handle.skip()


def test_those_that_are_up_are_taken_before_new_ones_start(pool: WorkerPool) -> None:
    crew: list[WorkerHandle] = []
    pool.lease(crew, 2)
    come_up(pool, crew)
    known = set(crew)
    pool.give_back(crew)
    assert crew == []
    assert pool.warm() == 2
    pool.lease(crew, 3)
    assert known < set(crew)
    assert pool.warm() == 0


def test_those_that_have_not_come_up_yet_are_kept_as_well(pool: WorkerPool) -> None:
    crew: list[WorkerHandle] = []
    pool.lease(crew, 1)
    (handle,) = crew
    pool.give_back(crew)
    pool.lease(crew, 1)
    assert crew == [handle]
    come_up(pool, crew)


def test_initializers_are_told_apart_by_their_tags(pool: WorkerPool) -> None:
    crew: list[WorkerHandle] = []
    pool.lease(crew, 1, b"one")
    (one,) = crew
    one.tag = b"one"  # it ran that initializer
    come_up(pool, crew)
    pool.give_back(crew)
    assert (pool.warm(b"one"), pool.warm(b"two"), pool.warm()) == (1, 0, 0)
    pool.lease(crew, 1, b"two")
    assert crew[0] is not one
    pool.lease(crew, 1, b"one")
    assert crew[1] is one


def test_those_without_work_for_long_are_not_used_again(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    crew: list[WorkerHandle] = []
    pool.lease(crew, 1)
    come_up(pool, crew)
    (handle,) = crew
    pool.give_back(crew)
    monkeypatch.setattr(worker_pool, "WARM_S", 0.0)
    pool.lease(crew, 1)
    assert crew[0] is not handle
    assert handle.channel.reading == -1


def test_workers_know_the_resource_tracker_there_is(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a worker would, when it ends, unlink shared memory that the caller made."""
    crew: list[WorkerHandle] = []
    pool.lease(crew, 1)
    (handle,) = crew
    pool.give_back(crew)
    monkeypatch.setattr(worker_pool, "_has_tracker", lambda: not handle.tracked)
    pool.lease(crew, 1)
    assert crew[0] is not handle


def test_after_a_fork_nothing_is_known_of_the_parents_workers(pool: WorkerPool) -> None:
    crew: list[WorkerHandle] = []
    pool.lease(crew, 1)
    (handle,) = crew
    pool.forget()
    pool.give_back(crew)
    assert crew == []
    assert pool.warm() == 0
    assert handle.child.pid == 0  # nobody will send it signals
