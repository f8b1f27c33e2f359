"""Samples: each item is tried once, within bounds, and what it took is told apart."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.stream_work import append, odd_fails, square

from lazystore.parallel.plans import sampling
from lazystore.parallel.plans.sampling import Samples, take_samples
from lazystore.parallel.plans.source import Source

BIG = 1 << 40


def sampled(data: Any, count: int = 5, **options: Any) -> tuple[Source, Samples]:
    source = Source(data)
    return source, take_samples(source, options.pop("func", square), count, most_bytes=BIG, **options)


def test_an_endless_source_is_pulled_no_further_than_samples() -> None:
    pulled = []

    def endless() -> Iterator[int]:
        while True:
            pulled.append(len(pulled))
            yield pulled[-1]

    source, _ = sampled(endless(), 3)
    assert len(pulled) == 3
    assert [next(source.data) for _ in range(10)] == list(range(10))


def test_a_slow_source_is_not_waited_for_beyond_its_first_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "WAIT_S", 0.05)

    def slow() -> Iterator[int]:
        for i in range(4):
            time.sleep(0.03)
            yield i

    source, samples = sampled(slow())
    assert len(samples.trials) == 1
    assert "source took" in samples.stopped
    assert list(source.data) == [0, 1, 2, 3]


def test_slow_items_are_tried_twice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "RUN_S", 0.01)
    _, samples = sampled(range(9), func=lambda x: time.sleep(0.02))
    assert len(samples.trials) == 2
    assert "took" in samples.stopped


def test_results_that_are_kept_stay_within_their_bytes() -> None:
    source = Source(range(9))
    samples = take_samples(source, lambda x: np.zeros(1 << 20, np.uint8), 9, most_bytes=5 << 19)
    assert len(samples.trials) == 2
    assert "weigh" in samples.stopped
    assert len(take_samples(Source(range(9)), lambda x: np.zeros(1 << 20, np.uint8), 9, most_bytes=1).trials) == 1


def test_items_that_the_function_changes_are_whole_when_they_run_again() -> None:
    data = [[], [], []]
    source, samples = sampled(data, func=append)
    assert [trial.result for trial in samples.trials] == [[0], [0], [0]]
    assert list(source.data) == [[], [], []]


def test_workers_that_share_memory_get_the_items_themselves() -> None:
    data: list[list[int]] = [[], []]
    sampled(data, func=append, in_place=True)
    assert data == [[0], [0]]


def test_an_error_is_kept_with_its_item_and_the_others_count() -> None:
    _, samples = sampled(range(6), 6, func=odd_fails)
    assert [type(trial.error) for trial in samples.trials] == [type(None), ValueError] * 3
    assert len(samples.good) == 3
    assert samples.work(6).run_s > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_not_taken_for_a_failed_item(error: type[BaseException]) -> None:
    def leave(x: int) -> None:
        raise error

    with pytest.raises(error):
        sampled(range(3), func=leave)


def test_what_cannot_travel_is_found_and_named() -> None:
    _, samples = sampled(range(3), func=lambda x: x)
    assert "func does not pickle" in samples.stays
    _, samples = sampled([threading.Lock()], func=repr)
    assert "an item (lock) does not pickle" in samples.stays
    _, samples = sampled(range(3), func=_lock)
    assert "a result (lock) does not pickle" in samples.stays
    assert sampled(range(3))[1].stays == ""


def _lock(x: int) -> Any:
    return threading.Lock()


def test_a_first_call_that_stands_out_is_warm_up() -> None:
    calls = []

    def loads_first(x: int) -> None:
        time.sleep(0.0 if calls else 0.02)
        calls.append(x)

    _, samples = sampled(range(5), func=loads_first)
    work = samples.work(5)
    assert work.first_extra_s > 0.015
    assert work.run_s < 0.003, "the mean of all five would be 0.004"


def test_waiting_and_computing_are_told_apart() -> None:
    _, samples = sampled(range(3), func=lambda x: time.sleep(0.005))
    assert samples.cpu_share < 0.5
    _, samples = sampled(range(3), func=lambda x: math.factorial(3000))
    assert samples.cpu_share > 0.9
