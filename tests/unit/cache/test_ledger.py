"""One budget: the cache gives way, at most half is reserved, and nothing that is given back is lost."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.cache.ledger import Ledger, Reservation
from lazystore.errors import BudgetTooSmallError, ConfigError, LoadTimeoutError


def test_the_cache_gives_way_before_a_reservation_is_granted() -> None:
    told: list[tuple[int, int]] = []
    after: list[int] = []

    def make_room(room: int) -> Callable[[], None]:
        told.append((room, ledger.reserved))
        return lambda: after.append(room)

    ledger = Ledger(1000, make_room=make_room, used=lambda: 0)
    with ledger.reserve(300, what="stream"):
        assert told == [(700, 300)]
        assert after == [700]
        assert (ledger.room, ledger.reserved) == (700, 300)
    assert told[-1] == (1000, 0)
    assert ledger.room == 1000


def test_more_than_half_can_never_be_had() -> None:
    ledger = Ledger(1000)
    with pytest.raises(BudgetTooSmallError, match="half") as caught:
        ledger.reserve(501, what="window")
    assert caught.value.needed == 1002
    assert ledger.reserved == 0
    with ledger.reserve(500, what="window"):
        assert ledger.room == 500


def test_what_could_fit_is_waited_for() -> None:
    ledger = Ledger(1000)
    first = ledger.reserve(400, what="stream")
    got = threading.Event()

    def second() -> None:
        with ledger.reserve(200, what="window", timeout=60):
            got.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not got.wait(0.05)
    first.release()
    thread.join(60)
    assert got.is_set()
    assert ledger.reserved == 0


def test_the_wait_ends_at_its_deadline_and_names_who_holds() -> None:
    ledger = Ledger(1000)
    with ledger.reserve(450, what="stream"):
        with pytest.raises(LoadTimeoutError, match="stream 450"):
            ledger.reserve(100, what="window", timeout=0)
    assert ledger.holders() == {}


def test_a_task_waits_without_holding_its_loop_up() -> None:
    async def both() -> list[str]:
        order: list[str] = []
        first = await ledger.areserve(400, what="stream")

        async def second() -> None:
            with await ledger.areserve(400, what="window", timeout=60):
                order.append("granted")

        task = asyncio.create_task(second())
        await asyncio.sleep(0.02)
        order.append("released")
        first.release()
        await task
        with pytest.raises(BudgetTooSmallError):
            await ledger.areserve(501, what="window")
        with ledger.reserve(500, what="stream"), pytest.raises(LoadTimeoutError):
            await ledger.areserve(1, what="window", timeout=0.01)
        return order

    ledger = Ledger(1000)
    assert asyncio.run(both()) == ["released", "granted"]


def test_a_reservation_grows_and_shrinks_and_keeps_what_it_held_when_refused() -> None:
    ledger = Ledger(1000)
    held = ledger.reserve(100, what="stream")
    held.resize(300)
    assert (held.nbytes, ledger.reserved) == (300, 300)
    with ledger.reserve(200, what="other"), pytest.raises(LoadTimeoutError):
        held.resize(301, timeout=0)
    assert (held.nbytes, ledger.reserved) == (300, 300)
    held.resize(50)
    assert ledger.reserved == 50
    held.release()
    held.release()
    assert ledger.reserved == 0
    with pytest.raises(ConfigError):
        held.resize(-1)


def test_a_forgotten_reservation_is_given_back() -> None:
    ledger = Ledger(1000)
    held = ledger.reserve(300, what="stream")
    assert ledger.reserved == 300
    del held
    gc.collect()
    assert ledger.reserved == 0


def test_a_finalizer_may_give_back_in_the_thread_that_holds_the_lock() -> None:
    ledger = Ledger(1000)
    held: list[Reservation] = [ledger.reserve(300, what="stream")]
    with ledger.lock:
        held.clear()
    assert ledger.reserved == 0


def test_pressure_lowers_the_target_and_grants_stay() -> None:
    rooms: list[int] = []
    ledger = Ledger(1000, make_room=lambda room: lambda: rooms.append(room))
    with ledger.reserve(500, what="stream"):
        ledger.retarget(0.5)
        assert (ledger.target, ledger.room, ledger.reserved) == (500, 0, 500)
    ledger.retarget(1.0)
    assert rooms == [500, 0, 500, 1000]


def test_what_the_cache_itself_takes_counts_up_to_a_quarter() -> None:
    ledger = Ledger(1000)
    ledger.charge(100)
    assert (ledger.room, ledger.charged, ledger.peak) == (900, 100, 100)
    ledger.charge(10**9)
    assert ledger.room == 750


def test_the_peak_is_what_was_held_at_once() -> None:
    used = [0]
    ledger = Ledger(1000, used=lambda: used[0])
    with ledger.reserve(300, what="stream"):
        used[0] = 600
        ledger.note(600)
    used[0] = 100
    assert ledger.peak == 900
    assert "100 cached" in repr(ledger)


def test_a_ledger_is_not_pickled() -> None:
    ledger = Ledger(10)
    for thing in (ledger, ledger.reserve(1, what="stream")):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(thing)
    with pytest.raises(ConfigError):
        Ledger(-1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 700)), max_size=40))
def test_sums_are_right_after_any_sequence(steps: list[tuple[int, int]]) -> None:
    rooms: list[int] = []
    ledger = Ledger(1000, make_room=lambda room: lambda: rooms.append(room))
    held: dict[int, int] = {}
    reservations: dict[int, Reservation] = {}
    for which, nbytes in steps:
        if which not in reservations:
            reservations[which] = ledger.reserve(0, what=str(which))
        fits = sum(held.values()) - held.get(which, 0) + nbytes <= 500 or nbytes <= held.get(which, 0)
        try:
            reservations[which].resize(nbytes, timeout=0)
        except (BudgetTooSmallError, LoadTimeoutError) as error:
            assert not fits
            assert isinstance(error, BudgetTooSmallError) == (nbytes > 500)
        else:
            assert fits
            held[which] = nbytes
        assert ledger.reserved == sum(held.values()) <= 500
        assert ledger.room == 1000 - ledger.reserved
        assert ledger.holders() == {str(which): nbytes for which, nbytes in held.items() if nbytes}
    assert not rooms or rooms[-1] == ledger.room
