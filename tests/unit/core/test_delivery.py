"""Results handed out one by one: promises the model does not cover."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazystore._core.delivery import Delivery


class Given(Delivery):
    """Has what `more` gives, once for each of its steps."""

    def __init__(self, steps: Callable[[Delivery], Iterator[object]]) -> None:
        super().__init__()
        self._steps = steps(self)

    def more(self) -> bool:
        return next(self._steps, self) is not self

    def caught(self, error: Exception, index: int, item: Any) -> tuple[Any, ...]:
        raise error


class Thing:
    pass


def test_it_is_an_iterator_that_stays_at_its_end() -> None:
    def steps(delivery: Delivery) -> Iterator[None]:
        yield delivery.deliver([1, 2])
        yield delivery.deliver([])
        yield delivery.serve(str, [3], 0, 1, False)

    given = Given(steps)
    assert iter(given) is given
    assert list(given) == [1, 2, "3"]
    assert list(given) == []


@pytest.mark.parametrize("served", [True, False])
def test_what_was_handed_out_is_the_consumers_alone(served: bool) -> None:
    things = [Thing(), Thing(), Thing()]
    alive = weakref.WeakSet(things)

    def steps(delivery: Delivery) -> Iterator[None]:
        yield delivery.serve(lambda thing: thing, things, 0, 1, True) if served else delivery.deliver(things)

    given = Given(steps)
    for left in (2, 1, 0):
        assert next(given) in alive
        assert len(alive) == left


@pytest.mark.parametrize("end", ["take", "untouched"])
def test_the_rest_is_let_go(end: str) -> None:
    things = [1, Thing()]
    gone = weakref.ref(things[1])

    def steps(delivery: Delivery) -> Iterator[None]:
        yield delivery.deliver(things) if end == "take" else delivery.serve(str, things, 0, 1, False)

    given = Given(steps)
    next(given)
    assert getattr(given, end)() == things[1:]
    things.clear()
    assert gone() is None
    assert given.waiting == 0


def test_a_circle_through_it_is_collected() -> None:
    given = Given(lambda _: iter(()))
    given.deliver([given])
    gone = weakref.ref(given)
    del given
    gc.collect()
    assert gone() is None


def test_the_first_and_every_so_manyth_call_is_timed() -> None:
    def steps(delivery: Delivery) -> Iterator[None]:
        yield delivery.serve(time.sleep, [0.002, 0.0, 0.0, 0.1, 0.0], 70, 3, True)
        yield delivery.serve(time.sleep, [0.0], 75, 1, False)

    given = Given(steps)
    for _ in range(5):
        next(given)
    timed, seconds, computed_s, longest_s, longest_at = given.served()
    assert (timed, longest_at) == (2, 73)
    assert seconds >= 0.102
    assert seconds > longest_s >= 0.1
    assert 0 < computed_s < seconds
    next(given)
    timed, seconds, computed_s, longest_s, longest_at = given.served()
    assert (timed, computed_s, longest_at) == (1, 0.0, 75)
    assert seconds == longest_s


def test_the_time_of_a_call_that_raises_counts_as_well() -> None:
    def fails(_: int) -> None:
        time.sleep(0.003)
        raise ValueError("late")

    given = Given(lambda delivery: iter([delivery.serve(fails, [1, 2], 5, 1, False)]))
    for index in (5, 6):
        with pytest.raises(ValueError, match="late"):
            next(given)
        timed, seconds, _, _, _ = given.served()
        assert timed == index - 4
        assert seconds >= 0.003 * timed


def test_a_second_thread_is_refused_and_the_first_goes_on() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(item: int) -> int:
        inside.set()
        assert leave.wait(30)
        return item

    given = Given(lambda delivery: iter([delivery.serve(slow, [1, 2], 0, 1, False)]))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(next(given)))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(ValueError, match="another thread"):
        next(given)
    leave.set()
    thread.join(30)
    assert found == [1]
    assert next(given) == 2


def test_a_function_that_asks_for_the_next_result_is_refused() -> None:
    given = Given(lambda delivery: iter([delivery.serve(lambda _: next(delivery), [1, 2], 0, 1, False)]))
    with pytest.raises(ValueError, match="further up"):
        next(given)
    assert given.waiting == 1


@pytest.mark.parametrize("every", [1, 3])
def test_a_block_that_takes_longer_than_its_budget_is_left_for_who_knows_better(every: int) -> None:
    rest: list[Any] = []

    def steps(delivery: Delivery) -> Iterator[object]:
        yield delivery.serve(time.sleep, [0.0] * 6 + [0.25] + [0.0] * 20, 0, every, False, 0.2)
        rest.extend(delivery.untouched())
        yield delivery.deliver(["the rest"])

    results = list(Given(steps))
    assert results[-1] == "the rest"
    assert len(results) == 8
    assert rest == [0.0] * 20


def test_a_block_that_is_over_its_budget_goes_on_where_nobody_wants_the_rest() -> None:
    asked: list[int] = []

    def steps(delivery: Delivery) -> Iterator[object]:
        yield delivery.serve(time.sleep, [0.0] * 5, 0, 1, False, 1e-9)
        while delivery.waiting:
            yield asked.append(delivery.waiting)

    assert list(Given(steps)) == [None] * 5
    assert asked == [4, 3, 2, 1]


def test_without_a_budget_a_block_is_never_left() -> None:
    given = Given(lambda delivery: iter([delivery.serve(time.sleep, [0.005] * 4, 0, 1, False)]))
    assert list(given) == [None] * 4
