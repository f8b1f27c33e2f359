"""What a worker costs is measured within bounds, and told apart from what is assumed."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from lazystore.errors import WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.plans import worker_costs
from lazystore.parallel.plans.worker_costs import assumed_costs, measured_costs, start_method


class Worker:
    """A backend whose worker takes given times to be up and to answer."""

    kind = "process"
    workers = 1

    def __init__(self, start_s: float, answer_s: float = 0.0005) -> None:
        self.start_s, self.answer_s = start_s, answer_s
        self.up_at = 0.0
        self.waiting: list[Chunk] = []
        self.answered = 0
        self.closed = False

    def start(self, workers: int) -> None:
        self.up_at = time.perf_counter() + self.start_s

    def ready(self) -> int:
        return int(time.perf_counter() >= self.up_at)

    def room(self, depth: int) -> int:
        return depth

    def submit(self, chunk: Chunk) -> None:
        self.waiting.append(chunk)

    def wait(self, timeout: float | None) -> list[Report | Lost]:
        until = max(self.up_at, time.perf_counter() + self.answer_s)
        time.sleep(max(0.0, min(until - time.perf_counter(), timeout or 0.0)))
        if time.perf_counter() < until:
            return []
        self.answered += 1
        return [Report(self.waiting.pop(0), [0])]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_costs, "_cold_start_s", None)


def costs(worker: Worker, start: bool = True, chunks: bool = True) -> worker_costs.Costs:
    def make(job: Job) -> Worker:
        return worker

    return measured_costs(make, start=start, chunks=chunks)


def test_a_cold_start_and_round_trips_are_measured_and_the_worker_is_given_back() -> None:
    worker = Worker(0.02)
    found = costs(worker)
    assert found.start_measured and found.chunk_measured and worker.closed
    assert found.start_s >= 0.02
    assert found.chunk_s >= 0.0005


def test_a_warm_worker_says_nothing_about_a_start() -> None:
    found = costs(Worker(0.0))
    assert (found.start_s, found.start_measured) == (assumed_costs().start_s, False)
    assert found.chunk_measured


def test_a_start_that_was_measured_is_remembered_while_the_worker_is_warm() -> None:
    first, second = costs(Worker(0.02)), costs(Worker(0.0))
    assert second.start_s == first.start_s
    assert second.start_measured


def test_only_what_is_wanted_is_called_measured() -> None:
    worker = Worker(0.02)
    found = costs(worker, chunks=False)
    assert (found.start_measured, found.chunk_measured, worker.answered) == (True, False, 1)
    found = costs(Worker(0.02), start=False)
    assert (found.start_measured, found.chunk_measured) == (False, True)


def test_a_worker_that_is_not_up_in_time_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_costs, "PATIENCE_S", 0.08)
    worker = Worker(3600.0)
    found = costs(worker)
    assert worker.closed
    assert not (found.start_measured or found.chunk_measured)
    assert found.start_s >= 0.08, "it takes longer than was waited"


def test_a_worker_that_cannot_be_started_is_an_error_and_nothing_is_left() -> None:
    class Refused(Worker):
        def start(self, workers: int) -> None:
            raise WorkerError("no processes here")

    worker = Refused(0.0)
    with pytest.raises(WorkerError, match="no processes here"):
        costs(worker)
    assert worker.closed


def test_asking_for_the_start_method_does_not_settle_it() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    assert start_method() in multiprocessing.get_all_start_methods()
    assert multiprocessing.get_start_method(allow_none=True) == before
