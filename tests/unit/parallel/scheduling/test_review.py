"""Whether workers pay, told from what they got done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lazystore.parallel.scheduling import review as review_module
from lazystore.parallel.scheduling.review import LOOK_S, Review
from lazystore.parallel.scheduling.tuner import MOST_THREADS, Flow, Limits


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has nothing else to do."""
    monkeypatch.setattr(review_module, "run_delay", lambda: 0.0)


def fleet(kind: str, items: int, item_s: float, workers: int = 4) -> Any:
    return SimpleNamespace(done_items=items, done_s=items * item_s, backend=SimpleNamespace(kind=kind, workers=workers))


def verdict(
    kind: str,
    items: int,
    item_s: float,
    *,
    alone_s: float,
    away_s: float = 0.0,
    source_s: float = 0.0,
    cpu: float = 1.0,
) -> str:
    """After two seconds, in each of which so much was the consumer's and the source's."""
    review = Review(100.0, Flow(run_s=alone_s))
    assert review.look(100.0, fleet(kind, 0, 0.0), Flow(cpu_share=cpu), 5.0) == ""
    review.away_s = away_s
    first = review.look(101.0, fleet(kind, items, item_s), Flow(cpu_share=cpu), 5.0 + source_s)
    review.away_s = away_s
    return first or review.look(102.0, fleet(kind, 2 * items, item_s), Flow(cpu_share=cpu), 5.0 + 2 * source_s)


def test_workers_that_are_faster_than_the_caller_stay() -> None:
    assert verdict("process", 4000, 0.001, alone_s=0.001) == ""
    assert verdict("thread", 4000, 0.001, alone_s=0.001) == ""


def test_processes_slower_than_the_work_itself_give_way_to_the_caller() -> None:
    assert verdict("process", 800, 0.001, alone_s=0.001) == "serial"
    assert verdict("process", 950, 0.001, alone_s=0.001) == ""  # not for a hair


def test_one_slow_look_is_no_reason_to_give_up() -> None:
    review = Review(0.0, Flow(run_s=0.001))
    done = [(1.0, 500), (2.0, 4500), (3.0, 5000), (4.0, 5500)]
    found = [review.look(at, fleet("process", items, 0.001), Flow(), 0.0) for at, items in done]
    assert found == ["", "", "", "serial"]


def test_threads_that_compute_and_gain_nothing_give_way_to_processes() -> None:
    assert verdict("thread", 1100, 0.004, alone_s=0.001) == "process"
    assert verdict("thread", 1100, 0.004, alone_s=0.001, cpu=0.1) == ""


@pytest.mark.parametrize(("away_s", "source_s"), [(0.8, 0.0), (0.0, 0.8), (0.4, 0.4)])
def test_nothing_is_said_where_the_consumer_or_the_source_is_what_takes_long(away_s: float, source_s: float) -> None:
    assert verdict("process", 100, 0.001, alone_s=0.001, away_s=away_s, source_s=source_s) == ""
    assert verdict("thread", 100, 0.001, alone_s=0.001, away_s=away_s, source_s=source_s) == ""


def test_time_of_consumer_and_source_is_not_held_against_the_workers() -> None:
    assert verdict("process", 900, 0.001, alone_s=0.001, away_s=0.25, source_s=0.25) == ""


def test_no_verdict_rests_on_a_short_look_or_a_few_items() -> None:
    review = Review(0.0, Flow(run_s=0.001))
    assert review.look(0.9 * LOOK_S, fleet("thread", 20, 0.001), Flow(), 0.0) == ""
    assert review.look(2 * LOOK_S, fleet("thread", 15, 0.001), Flow(), 0.0) == ""
    assert review.look(2 * LOOK_S, fleet("thread", 16, 0.001), Flow(), 0.0) == "process"


def test_each_look_is_at_what_was_done_since_the_last() -> None:
    review = Review(0.0, Flow(run_s=0.001))
    assert review.look(1.0, fleet("thread", 4000, 0.001), Flow(), 0.0) == ""
    assert review.look(2.0, fleet("thread", 4500, 0.001), Flow(), 0.0) == "process"


def test_workers_that_did_not_pay_are_not_tried_again_for_items_like_these() -> None:
    review = Review(0.0, Flow(run_s=0.001))
    assert not review.hopeless(Flow(run_s=0.001))
    review.look(1.0, fleet("process", 100, 0.001), Flow(), 0.0)
    review.look(2.0, fleet("process", 200, 0.001), Flow(), 0.0)
    assert [review.hopeless(Flow(run_s=run_s)) for run_s in (1e-4, 8e-4, 1e-3, 2e-3, 0.01)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_a_machine_too_busy_to_tell_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    delay = iter([0.0, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr(review_module, "run_delay", lambda: next(delay))
    review = Review(0.0, Flow(run_s=0.001))
    assert review.look(1.0, fleet("thread", 100, 0.001), Flow(), 0.0) == ""
    assert review.look(2.0, fleet("thread", 200, 0.001), Flow(), 0.0) == "process"


def threads(items: int, computed_s: float, workers: int = 8) -> Any:
    backend = SimpleNamespace(kind="thread", workers=workers)
    return SimpleNamespace(done_items=items, done_s=items * 0.002, computed_s=items * computed_s, backend=backend)


def test_threads_that_compute_less_than_they_seemed_to_become_more() -> None:
    flow = Flow(run_s=0.002, cpu_share=0.2)
    assert Review(0.0, flow).more_threads(threads(8, 40e-6), flow, Limits(2)) == MOST_THREADS
    assert flow.cpu_share == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("fleet", "limits", "cpu"),
    [
        (threads(7, 40e-6), Limits(2), 0.2),  # not one item each yet
        (threads(100, 400e-6), Limits(2), 0.2),  # it is as it seemed
        (threads(100, 1e-3), Limits(2), 0.2),  # they compute more
        (threads(100, 40e-6), Limits(2, workers=8), 0.2),  # the user's number
        (threads(100, 40e-6), Limits(2), 0.9),  # they are there because the lock is free
        (threads(100, 40e-6, MOST_THREADS), Limits(2), 0.2),
        (fleet("process", 100, 0.002), Limits(2), 0.2),
    ],
)
def test_there_are_no_more_threads_without_a_reason(fleet: Any, limits: Limits, cpu: float) -> None:
    flow = Flow(run_s=0.002, cpu_share=cpu)
    assert Review(0.0, flow).more_threads(fleet, flow, limits) == 0
