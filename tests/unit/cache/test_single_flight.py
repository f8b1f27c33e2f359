"""One flight a key: one leads, all get the outcome, circles of waiting are refused, forks begin anew."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import traceback
import weakref
from typing import Any

import pytest

from lazystore.cache.flight import Deadline
from lazystore.cache.single_flight import CURRENT, Flight, SingleFlight, deadline_left
from lazystore.errors import LoadCancelledError, LoadTimeoutError, ReentrantLoadError


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_first_leads_and_all_get_its_value() -> None:
    flights = SingleFlight()
    flight, leads = flights.join("k")
    assert leads
    got: list[Any] = []
    threads = [in_thread(lambda: got.append(flights.join("k")[0].wait(Deadline(30)))) for _ in range(8)]
    while flights.joins < 8:
        threading.Event().wait(0.001)
    assert flight.settle(7)
    for thread in threads:
        thread.join(30)
    assert got == [7] * 8
    assert (flights.leads, flights.joins, len(flights)) == (1, 8, 0)
    assert flights.join("k")[1]


def test_a_flight_ends_once() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k")
    assert flight.settle(None)
    assert not flight.settle(1)
    assert not flight.fail(ValueError())
    assert not flight.abandon()
    assert flight.done and flight.wait() is None and flight.error is None and not flight.abandoned


def test_an_old_flight_does_not_take_out_a_new_one_of_its_key() -> None:
    flights = SingleFlight()
    old, _ = flights.join("k")
    flights.forget("k")
    new, leads = flights.join("k")
    assert leads and new is not old
    assert set(flights.under_way()) == {old, new}
    old.settle("old")
    assert flights.join("k") == (new, False)
    new.settle("new")
    assert (old.wait(), new.wait(), flights.under_way()) == ("old", "new", [])
    flights.forget("k")  # of nothing


def test_an_error_reaches_every_waiter_as_it_is_and_its_traceback_does_not_grow() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k")
    try:
        raise KeyError("mine")
    except KeyError as error:
        flight.fail(error)
    depths = []
    for _ in range(50):
        with pytest.raises(KeyError) as caught:
            flight.wait()
        assert caught.value is flight.error
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(depths)) == 1 and depths[0] < 8


def test_an_error_that_was_raised_keeps_no_flight_alive() -> None:
    class Flyer(Flight):
        pass

    flight = Flyer(None, "k")
    flight.fail(ValueError("x"))
    gone = weakref.ref(flight)
    gc.disable()
    try:
        error: Exception | None = None
        try:
            flight.wait()
        except ValueError as caught:
            error = caught
        del flight
        assert gone() is None and error is not None
    finally:
        gc.enable()


def test_waiters_leave_at_their_deadline_and_the_flight_stays() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k")
    with pytest.raises(LoadTimeoutError, match=r"'k'.*0\.01 s"):
        flight.wait(Deadline(0.01))
    with pytest.raises(TimeoutError):
        asyncio.run(flight.wait_async(Deadline(0.01)))
    assert not flight.done and len(flights) == 1
    flight.settle(1)
    assert flight.wait(Deadline(0)) == 1


def test_the_last_waiter_that_leaves_calls_off_what_nobody_keeps() -> None:
    calls: list[int] = []
    flight = Flight(None, "k")
    flight.call_off = lambda: calls.append(1)
    with pytest.raises(LoadTimeoutError):
        flight.wait(Deadline(0))
    assert calls == [1]
    flight.kept = True
    with pytest.raises(LoadTimeoutError):
        flight.wait(Deadline(0))
    assert calls == [1]


def test_tasks_of_several_loops_and_threads_wait_together() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k")
    got: list[Any] = []

    async def many() -> None:
        got.extend(await asyncio.gather(*(flights.join("k")[0].wait_async() for _ in range(100))))

    threads = [in_thread(lambda: asyncio.run(many())) for _ in range(3)]
    threads += [in_thread(lambda: got.append(flight.wait())) for _ in range(3)]
    while len(flight._waiters) < 303:
        threading.Event().wait(0.001)
    flight.settle("v")
    for thread in threads:
        thread.join(30)
    assert got == ["v"] * 303


def test_waiters_of_an_abandoned_flight_are_told_to_ask_again() -> None:
    flight, _ = SingleFlight().join("k")
    flight.abandon()
    assert flight.abandoned
    with pytest.raises(LoadCancelledError, match="ask again"):
        flight.wait()


def test_an_heir_goes_on_with_an_abandoned_flight_once() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k")
    called: list[str] = []

    def closed() -> None:
        raise RuntimeError("no workers any more")

    flight.heirs = [lambda: called.append("heir"), closed]
    assert not flight.abandon()
    assert called == ["heir"] and not flight.done and len(flights) == 1
    assert flight.abandon()
    assert called == ["heir"] and flight.abandoned


def test_callbacks_come_once_also_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("sys.excepthook", lambda *error: told.append(error[0]))
    flight = Flight(None, "k")
    flight.on_done(lambda _: 1 / 0)
    flight.on_done(told.append)
    flight.settle(1)
    flight.on_done(told.append)
    assert told == [ZeroDivisionError, flight, flight]
    over = Flight.of("k", 3)
    assert over.done and over.result() == 3


def leading(flight: Flight, work: Any) -> Any:
    """Do what a loader does, as this flight's."""
    token = CURRENT.set(flight)
    try:
        return work()
    finally:
        CURRENT.reset(token)


def test_waiting_for_itself_is_refused() -> None:
    flight, _ = SingleFlight().join("k")
    with pytest.raises(ReentrantLoadError, match="'k' -> 'k'"):
        leading(flight, flight.wait)
    with pytest.raises(ReentrantLoadError):
        leading(flight, lambda: asyncio.run(flight.wait_async()))


def test_a_circle_through_two_threads_is_refused_at_exactly_one() -> None:
    for _ in range(20):
        first, second = SingleFlight(), SingleFlight()  # circles may lead through several stores
        a, b = first.join("a")[0], second.join("b")[0]
        refused: list[str] = []

        def loader(own: Flight, other: Flight, refused: list[str] = refused) -> None:
            try:
                leading(own, other.wait)
            except ReentrantLoadError as error:
                refused.append(str(error))
            own.settle(1)

        threads = [in_thread(lambda a=a, b=b: loader(a, b)), in_thread(lambda a=a, b=b: loader(b, a))]
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert len(refused) == 1 and ("'a' -> 'b' -> 'a'" in refused[0] or "'b' -> 'a' -> 'b'" in refused[0])


def test_a_long_circle_is_refused_and_a_long_chain_is_not() -> None:
    flights = [SingleFlight().join(k)[0] for k in range(30)]
    threads = [in_thread(lambda k=k: leading(flights[k], flights[k + 1].wait)) for k in range(29)]
    while any(not flight._waits for flight in flights[:-1]):
        threading.Event().wait(0.001)
    with pytest.raises(ReentrantLoadError):
        leading(flights[29], flights[0].wait)
    with pytest.raises(LoadTimeoutError):
        leading(Flight(None, "other"), lambda: flights[0].wait(Deadline(0.01)))
    for flight in flights[1:]:
        flight.settle(0)
    for thread in threads:
        thread.join(30)
    assert not any(flight._waits for flight in flights)


def test_a_deadline_is_passed_down_and_widened_by_who_joins() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k", Deadline(10))
    assert deadline_left() is None
    left = leading(flight, deadline_left)
    assert left is not None and 0 < left <= 10
    flights.join("k", Deadline(5))
    assert (leading(flight, deadline_left) or 99) <= 10
    flights.join("k", Deadline(1000))
    assert (leading(flight, deadline_left) or 0) > 100
    flights.join("k")
    assert leading(flight, deadline_left) is None
    flight.settle(1)


class Odd:
    """A key whose comparison runs Python, which asks the registry itself."""

    flights: SingleFlight

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        inner, leads = self.flights.join("inner")
        if leads:
            inner.settle(0)
        return self is other


def test_keys_may_run_python_that_asks_again() -> None:
    flights = Odd.flights = SingleFlight()
    keys = [Odd() for _ in range(5)]
    leads = [flights.join(key) for key in keys]
    assert all(lead for _, lead in leads)
    for flight, _ in leads:
        flight.settle(1)
    assert len(flights) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_flights_are_abandoned_and_begin_anew() -> None:
    flights = SingleFlight()
    flight, _ = flights.join("k")
    waiter = in_thread(flight.wait)
    while not flight._waiters:
        threading.Event().wait(0.001)
    flights._counting.acquire()
    pid = os.fork()
    if pid == 0:
        try:
            assert flight.abandoned and len(flights) == 0
            assert flights.join("k")[1]
            os._exit(0)
        finally:
            os._exit(1)
    flights._counting.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not flight.done
    flight.settle(1)
    waiter.join(30)
    assert not waiter.is_alive()
