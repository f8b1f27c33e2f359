"""What workers are given, and what becomes of what they hand back or lose; one backend, no engine."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from support.simulated_workers import Costs, Script, SimulatedBackend, VirtualClock

from lazystore.errors import TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.map_stats import MapStats
from lazystore.parallel.scheduling.arrivals import Arrivals
from lazystore.parallel.scheduling.fleet import Fleet
from lazystore.parallel.scheduling.supply import Supply
from lazystore.parallel.scheduling.tuner import Flow, Limits


class Crew:
    """A fleet over simulated workers, all of its parts at hand."""

    def __init__(
        self,
        script: Script,
        data: Iterable[Any],
        *,
        workers: int = 2,
        limits: Limits | None = None,
        flow: Flow | None = None,
        total: int | None = None,
        kind: str = "process",
        **options: Any,
    ) -> None:
        self.clock = VirtualClock()
        self.job = Job(str)
        self.backend = SimulatedBackend(
            self.clock, self.job, script, Costs(start_s=0.0, birth_s=0.0), kind=kind, **options
        )
        self.backend.start(workers)
        self.arrivals = Arrivals(ordered=True)
        self.supply = Supply(data, clock=self.clock)
        self.stats = MapStats(clock=self.clock)
        self.flow = flow or Flow()
        self.sent: list[Chunk] = []
        self.fleet = Fleet(
            self.job,
            self.backend,
            supply=self.supply,
            arrivals=self.arrivals,
            limits=limits or Limits(workers, workers),
            flow=self.flow,
            stats=self.stats,
            total=total,
            clock=self.clock,
        )
        submit = self.backend.submit
        self.backend.submit = lambda chunk: (self.sent.append(chunk), submit(chunk))[1]  # type: ignore[method-assign]

    def run(self) -> list[Any]:
        """All results."""
        found: list[Any] = []
        while not self.fleet.idle or self.arrivals.ready:
            self.clock.fresh()
            self.fleet.feed()
            if self.fleet.busy:
                self.fleet.collect(None)
            while self.arrivals.ready:
                part = self.arrivals.peek()
                found += part.results
                self.arrivals.used(len(part.results))
        return found


def test_chunks_begin_small_and_grow_no_faster_than_they_may() -> None:
    crew = Crew(Script([20e-6] * 20_000), range(20_000), workers=2)
    assert crew.run() == [str(k) for k in range(20_000)]
    sizes = [len(chunk.items) for chunk in crew.sent]
    assert sizes[0] == 1
    assert max(sizes) > 50
    assert all(after <= 2 * before for before, after in pairwise(sizes))


def test_what_the_caller_measured_gives_the_first_size() -> None:
    crew = Crew(Script([1e-4] * 2000), range(2000), flow=Flow(run_s=1e-4))
    crew.fleet.feed()
    assert len(crew.sent[0].items) == pytest.approx(24, abs=1)


def test_a_chunk_that_takes_far_longer_than_expected_comes_back_unfinished_and_the_next_are_smaller() -> None:
    seconds = [1e-5] * 3000 + [0.05] * 40
    crew = Crew(Script(seconds), range(3040), flow=Flow(run_s=1e-5))
    assert crew.run() == [str(k) for k in range(3040)]
    assert {len(chunk.items) for chunk in crew.sent[-20:]} == {1}
    assert crew.backend.reported.total() == 3040
    # 40 items of 50 ms on two workers
    assert crew.clock.now < 1.3


@pytest.mark.parametrize("total", [None, 24_000])
def test_what_comes_back_after_the_end_of_the_source_is_not_sent_in_crumbs(total: int | None) -> None:
    seconds = [0.475e-6] * 12_000 + [9.525e-6] * 12_000
    crew = Crew(Script(seconds), range(24_000), workers=16, total=total)
    assert crew.run() == [str(k) for k in range(24_000)]
    assert crew.backend.chunks < 200
    assert crew.clock.now < 0.03


def test_chunks_of_a_given_size_have_no_limit() -> None:
    crew = Crew(Script([0.01] * 60), range(60), limits=Limits(2, 2, chunk=30), flow=Flow(run_s=1e-6))
    assert crew.run() == [str(k) for k in range(60)]
    assert [len(chunk.items) for chunk in crew.sent] == [30, 30]


def test_results_that_turn_out_heavy_come_back_before_all_of_them_are_made() -> None:
    crew = Crew(
        Script([1e-5] * 1000, result_bytes=1_000_000),
        range(1000),
        limits=Limits(2, 2, bytes=8_000_000),
        flow=Flow(1e-5),
    )
    crew.fleet.feed()
    crew.fleet.collect(None)
    assert len(crew.arrivals.peek().results) <= 2
    assert crew.run() == [str(k) for k in range(1000)]
    assert crew.stats.peak_bytes <= 9_000_000


def test_workers_have_two_chunks_unless_a_chunk_is_long_and_the_caller_quick() -> None:
    for run_s, consumer_s, each in ((1e-3, 0.0, 2), (0.1, 0.0, 1), (0.1, 0.01, 2)):
        crew = Crew(Script([run_s] * 100), range(100), workers=3, flow=Flow(run_s=run_s, consumer_s=consumer_s))
        crew.fleet._size()
        crew.fleet.feed()
        assert crew.backend.out == 3 * each


def test_a_lost_chunk_is_run_again_item_by_item_where_a_worker_had_begun_it() -> None:
    crew = Crew(Script([0.001] * 40, kills={3: 1}), range(40), limits=Limits(1, 1, chunk=5), workers=1)
    assert crew.run() == [str(k) for k in range(40)]
    again = [(chunk.first, len(chunk.items)) for chunk in crew.sent[2:8]]
    # the one that was waiting behind it goes as it was, when it is its turn
    assert again == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 5)]
    assert (crew.stats.deaths, crew.stats.run_again) == (1, 5)


def test_an_item_that_cannot_travel_fails_alone_or_is_run_here() -> None:
    crew = Crew(Script([0.001] * 10, stuck=[4]), range(10), limits=Limits(2, 2, chunk=5))
    found = crew.run()
    assert isinstance(found[4], Failed)
    assert isinstance(found[4].error, TransportError)
    assert found[:4] + found[5:] == [str(k) for k in range(10) if k != 4]

    crew = Crew(Script([0.001] * 10, stuck=[4]), range(10), limits=Limits(2, 2, chunk=5))
    crew.fleet.run_here = lambda chunk: Report(chunk, ["here"], run_s=0.001, longest_s=0.001, longest_at=chunk.first)
    with pytest.warns(RuntimeWarning, match="item 4 cannot be sent"):
        assert crew.run() == ["here" if k == 4 else str(k) for k in range(10)]


def test_what_is_under_way_stays_known_when_the_backend_breaks() -> None:
    crew = Crew(Script([0.01] * 100), range(100), limits=Limits(2, 2, chunk=3), breaks_at=0.05)
    found: list[int] = []
    with pytest.raises(WorkerError):
        while True:
            crew.fleet.feed()
            crew.fleet.collect(None)
            while crew.arrivals.ready:
                found += crew.arrivals.peek().items
                crew.arrivals.used(3)
    back = [item for chunk in crew.fleet.take_back() for item in chunk.items]
    assert found + back == list(range(crew.supply.index))
    assert not crew.fleet.busy


def test_items_added_go_before_those_of_the_source() -> None:
    crew = Crew(Script([0.001] * 30), iter(range(5, 30)), limits=Limits(2, 2, chunk=5))
    crew.supply.index = 5
    crew.fleet.add([0, 1, 2, 3, 4], 0)
    assert crew.run() == [str(k) for k in range(30)]
    assert crew.sent[0].first == 0


def test_the_rest_can_be_had_by_somebody_else() -> None:
    crew = Crew(Script([0.001] * 30), range(30))
    crew.fleet.add([7, 8], 7)
    crew.fleet.add([1, 2, 3], 1)
    assert [(chunk.first, chunk.items) for chunk in crew.fleet.unsent()] == [(7, [7, 8]), (1, [1, 2, 3])]
    assert crew.fleet.unsent() == []


def test_a_slow_source_does_not_hold_up_results_that_are_there() -> None:
    clock: list[VirtualClock] = []

    def slow() -> Iterable[int]:
        for number in range(20):
            clock[0].advance(1.0)
            yield number

    crew = Crew(Script([0.01] * 20), slow(), limits=Limits(2, 2, chunk=1))
    clock.append(crew.clock)
    crew.fleet.feed()
    crew.fleet.collect(0.0)
    pulled = crew.supply.index
    assert crew.arrivals.ready
    crew.fleet.feed()
    assert crew.supply.index <= pulled + 1
