"""The walk from memory over disk to the loader: what is asked, kept, counted, served stale, and told."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazystore.cache.flight import Deadline
from lazystore.cache.retries import Retries
from lazystore.cache.tiers import Tiers
from lazystore.errors import (
    ClosedError,
    ConfigError,
    FetchError,
    LoadTimeoutError,
    ReentrantLoadError,
    SourceChangedError,
    UnhashableKeyError,
)
from lazystore.testing import FakeClock

MIB = 1 << 20
Make = Callable[..., Tiers]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(clock: FakeClock) -> Iterator[Make]:
    made: list[Tiers] = []

    def tiers(**options: Any) -> Tiers:
        made.append(Tiers(**{"memory": MIB, "clock": clock, "rng": lambda: 0.5, **options}))
        return made[-1]

    yield tiers
    for each in made:
        each.close()


def refuse() -> Any:
    raise AssertionError("loaded again")


def counted(tiers: Tiers) -> dict[str, Any]:
    """The counters, after what always holds of them."""
    told: dict[str, Any] = tiers.counters()
    assert told["hits"] + told["misses"] + told["joins"] == told["requests"]
    assert told["bytes"] <= told["limit"]
    return told


class Source:
    """A loader that gives what it is told to, and counts."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def later(self) -> Any:
        await asyncio.sleep(0)
        return self()


def ended(tiers: Tiers) -> None:
    """Wait for what runs in the background."""
    for flight in tiers.loads.flights.under_way():
        flight.wait_end(Deadline(30))


# -- asking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, b"", [], "text", object()])
def test_a_value_is_loaded_once_whatever_it_is(make: Make, value: Any) -> None:
    tiers = make()
    assert tiers.get("k", lambda: value) is value
    assert tiers.get("k", refuse) is value
    assert tiers.hit("k", "default") is value
    told = counted(tiers)
    assert (told["requests"], told["hits"], told["misses"], told["loads"], told["entries"]) == (3, 2, 1, 1, 1)


def test_threads_and_tasks_ask_alike(make: Make) -> None:
    tiers = make()
    source = Source(7)

    async def ask() -> list[Any]:
        return [
            await tiers.aget("a", source.later),
            await tiers.aget("b", source),
            await tiers.aget("c", lambda: source.later()),
            await tiers.aget("a", refuse),
        ]

    assert asyncio.run(ask()) == [7] * 4
    assert tiers.get("d", source.later) == 7
    assert tiers.get("e", lambda: source.later()) == 7
    assert [tiers.get(key, refuse) for key in "abcde"] == [7] * 5
    assert counted(tiers)["loads"] == source.calls == 5


def test_what_a_loader_raises_reaches_the_caller_and_is_not_kept(make: Make) -> None:
    tiers = make(retries=Retries(attempts=1))
    error = KeyError("gone")
    with pytest.raises(KeyError) as caught:
        tiers.get("k", Source(error))
    assert caught.value is error
    with pytest.raises(KeyError):
        asyncio.run(tiers.aget("k", Source(error).later))
    assert tiers.get("k", lambda: 1) == 1
    told = counted(tiers)
    assert (told["load_errors"], told["loads"], told["last_error"]) == (2, 3, "KeyError: 'gone'")


@pytest.mark.parametrize("key", [[], {}, ("a", [])])
def test_a_key_that_is_not_hashable_is_refused_by_every_verb(make: Make, key: Any) -> None:
    tiers = make()
    for call in (
        lambda: tiers.get(key, refuse), lambda: asyncio.run(tiers.aget(key, refuse)), lambda: tiers.start(key, refuse),
        lambda: tiers.peek(key), lambda: tiers.put(key, 1), lambda: tiers.invalidate(key), lambda: tiers.holds(key),
    ):  # fmt: skip
        with pytest.raises(UnhashableKeyError, match="cannot be found again"):
            call()
    assert counted(tiers)["requests"] == 0


def test_a_comparison_that_raises_is_not_mistaken_for_an_unhashable_key(make: Make) -> None:
    class Odd:
        def __hash__(self) -> int:
            return 5

        def __eq__(self, other: object) -> bool:
            raise TypeError("no comparison")

    tiers = make()
    tiers.put(Odd(), 1)
    with pytest.raises(TypeError, match="no comparison") as caught:
        tiers.get(Odd(), refuse)
    assert not isinstance(caught.value, UnhashableKeyError)


def test_keep_false_hands_out_and_forgets(make: Make) -> None:
    tiers = make()
    assert tiers.get("k", lambda: 1, keep=False) == 1
    assert tiers.peek("k", "nothing") == "nothing"
    assert len(tiers.memory.map) == 0


def test_a_loader_that_asks_for_its_own_key_is_told_so(make: Make) -> None:
    tiers = make()
    with pytest.raises(ReentrantLoadError):
        tiers.get("k", lambda: tiers.get("k", refuse))
    assert tiers.get("k", lambda: tiers.get("other", lambda: 5)) == 5
    counted(tiers)


def test_a_waiter_leaves_at_its_deadline_and_the_load_goes_on(make: Make) -> None:
    tiers = make()
    go = threading.Event()
    started = threading.Event()

    def slow() -> int:
        started.set()
        go.wait(30)
        return 5

    tiers.start("k", slow)
    assert started.wait(30)
    with pytest.raises(LoadTimeoutError):
        tiers.get("k", refuse, deadline=Deadline(0.02))
    go.set()
    ended(tiers)
    assert tiers.get("k", refuse) == 5
    counted(tiers)


def test_memory_0_keeps_nothing_and_loads_once_at_a_time(make: Make) -> None:
    tiers = make(memory=0)
    source = Source(1, 2)
    assert [tiers.get("k", source), tiers.get("k", source)] == [1, 2]
    assert counted(tiers)["bytes"] == 0


def test_peek_put_and_holds_count_nothing(make: Make) -> None:
    tiers = make()
    assert tiers.peek("k") is None
    tiers.put("k", 5)
    assert (tiers.peek("k"), tiers.holds("k"), tiers.holds("other")) == (5, True, False)
    assert counted(tiers)["requests"] == 0


# -- weights --------------------------------------------------------------------------------


def test_a_small_budget_holds_one_value_of_its_own_size(make: Make) -> None:
    tiers = make(memory=100_000)
    tiers.put("k", bytes(99_000))
    assert tiers.holds("k")
    tiers.put("l", bytes(99_000))
    assert (tiers.holds("k"), tiers.holds("l")) == (False, True)
    assert counted(tiers)["evicted_size"] == 1


@pytest.mark.parametrize(("budget", "largest"), [(4, 4), (8, 8), (16, 8), (64, 8), (80, 10), (1024, 128)])
def test_a_value_may_take_an_eighth_or_8_mib(make: Make, budget: int, largest: int) -> None:
    tiers = make(memory=budget * MIB, weigh=lambda value: value)
    tiers.put("fits", largest * MIB - 1000)
    tiers.put("too large", largest * MIB + 1)
    assert (tiers.holds("fits"), tiers.holds("too large")) == (True, False)
    assert counted(tiers)["too_large"] == 1


def test_a_value_that_is_too_large_is_handed_out_and_replaces_the_old_one(make: Make) -> None:
    tiers = make(memory=1000)
    tiers.put("k", 1)
    tiers.put("k", bytes(2000))
    assert not tiers.holds("k")
    assert tiers.get("k", lambda: bytes(3000)) == bytes(3000)
    assert counted(tiers)["too_large"] == 2


def test_weights_are_bytes_and_sum_up(make: Make) -> None:
    tiers = make()
    tiers.put("k", bytes(1000))
    alone = tiers.ledger.used
    assert 1000 <= alone <= 1000 + 33 + 100 + 200
    tiers.put("l", bytes(1000), weigh=lambda value: 500)
    tiers.invalidate("k")
    assert tiers.ledger.used == 500 + alone - len(b"\0" * 1000) - 33
    tiers.clear()
    assert tiers.ledger.used == 0


@pytest.mark.parametrize("weight", [-1, 1.5, None, "5"])
def test_a_weight_that_is_none_is_refused(make: Make, weight: Any) -> None:
    tiers = make(weigh=lambda value: weight)
    with pytest.raises(ConfigError, match="weigh"):
        tiers.get("k", lambda: 1)
    assert tiers.ledger.used == 0


def test_reservations_push_values_out_and_give_the_room_back(make: Make) -> None:
    left: list[Any] = []
    tiers = make(memory=100_000, on_evict=lambda key, value, cause: left.append((key, cause)))
    for key in range(9):
        tiers.put(key, bytes(10_000))
    with tiers.ledger.reserve(50_000, what="stream"):
        assert tiers.ledger.used <= 50_000
        assert {cause for _, cause in left} == {"room"}
        assert tiers.get("large", lambda: bytes(60_000)) == bytes(60_000)
        assert counted(tiers)["too_large"] == 1
    tiers.put("large", bytes(60_000))
    assert tiers.holds("large")
    assert counted(tiers)["peak"] <= 100_000


# -- freshness ------------------------------------------------------------------------------


def test_a_value_is_fresh_for_its_ttl(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10)
    source = Source(1, 2)
    tiers.get("k", source)
    clock.advance(9.99)
    assert tiers.get("k", source) == 1
    clock.advance(0.02)
    assert not tiers.holds("k")
    assert tiers.get("k", source) == 2


def test_a_call_may_have_its_own_ttl(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10)
    tiers.get("long", lambda: 1, ttl=100)
    tiers.get("ever", lambda: 1, ttl=None)
    tiers.put("put", 1, ttl=100)
    clock.advance(50)
    assert [tiers.holds(key) for key in ("long", "ever", "put")] == [True, True, True]
    clock.advance(10**6)
    assert [tiers.holds(key) for key in ("long", "ever", "put")] == [False, True, False]


def test_ttls_differ_by_a_tenth_so_that_not_all_expires_at_once(make: Make, clock: FakeClock) -> None:
    draws = iter([0.0, 0.0, 0.5, 0.999999])
    tiers = make(ttl=100, rng=lambda: next(draws))
    for key in ("first", "middle", "last"):
        tiers.put(key, 1)
    held = {}
    for now in (89, 91, 99, 101, 109, 111):
        clock.advance(now + 1000 - clock.monotonic())
        held[now] = [key for key in ("first", "middle", "last") if tiers.holds(key)]
    assert held == {
        89: ["first", "middle", "last"], 91: ["middle", "last"], 99: ["middle", "last"], 101: ["last"], 109: ["last"],
        111: [],
    }  # fmt: skip


def test_a_stale_value_is_served_at_once_while_one_load_refreshes_it(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_while_revalidate=5)
    go = threading.Event()

    def slow() -> str:
        go.wait(30)
        return "new"

    tiers.get("k", lambda: "old")
    clock.advance(12)
    assert [tiers.get("k", slow) for _ in range(5)] == ["old"] * 5
    go.set()
    ended(tiers)
    assert tiers.get("k", refuse) == "new"
    told = counted(tiers)
    assert (told["stale_served"], told["refreshes"], told["loads"], told["misses"]) == (5, 1, 2, 1)


def test_a_value_that_is_too_stale_is_waited_for(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_while_revalidate=5)
    tiers.get("k", lambda: "old")
    clock.advance(15)
    assert tiers.get("k", lambda: "new") == "new"
    assert counted(tiers)["stale_served"] == 0


def test_a_task_refreshes_in_its_own_loop(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_while_revalidate=50)
    loops: list[Any] = []

    async def load() -> str:
        loops.append(asyncio.get_running_loop())
        return "new"

    tiers.put("k", "old")
    clock.advance(12)

    async def stale() -> bool:
        assert await tiers.aget("k", load) == "old"
        while tiers.peek("k") != "new":
            await asyncio.sleep(0.001)
        return loops == [asyncio.get_running_loop()]

    assert asyncio.run(stale())
    assert counted(tiers)["refreshes"] == 1


def test_a_refresh_that_failed_is_not_tried_again_at_once(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_while_revalidate=100)
    source = Source(1, ValueError("down"), 2)
    tiers.get("k", source)
    clock.advance(12)
    for _ in range(3):
        assert tiers.get("k", source) == 1
        ended(tiers)
    told = counted(tiers)
    assert (source.calls, told["refreshes"], told["load_errors"]) == (2, 1, 1)
    assert told["last_error"] == "ValueError: down"
    clock.advance(2)
    assert tiers.get("k", source) == 1
    ended(tiers)
    assert tiers.get("k", refuse) == 2


def test_a_refresh_that_failed_rests_also_where_a_stale_value_stands_in(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_while_revalidate=100, stale_if_error=100)
    source = Source(1, ValueError("down"))
    tiers.get("k", source)
    clock.advance(12)
    for _ in range(3):
        assert tiers.get("k", source) == 1
        ended(tiers)
    told = counted(tiers)
    assert (source.calls, told["refreshes"], told["stale_on_error"]) == (2, 1, 0)


def test_a_stale_value_stands_in_for_an_error(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_if_error=60)
    source = Source(1, ValueError("down"))
    tiers.get("k", source)
    clock.advance(30)
    assert tiers.get("k", source) == 1
    assert asyncio.run(tiers.aget("k", source.later)) == 1
    told = counted(tiers)
    assert (told["stale_on_error"], told["load_errors"], told["last_error"]) == (2, 2, "ValueError: down")
    clock.advance(45)
    with pytest.raises(ValueError, match="down"):
        tiers.get("k", source)


def test_errors_are_remembered_as_long_as_told(make: Make, clock: FakeClock) -> None:
    tiers = make(negative_ttl=5)
    source = Source(KeyError("gone", 5))
    for _ in range(4):
        with pytest.raises(KeyError) as caught:
            tiers.get("k", source)
        assert caught.value.args == ("gone", 5)
    with pytest.raises(KeyError):
        asyncio.run(tiers.aget("k", source.later))
    told = counted(tiers)
    assert (source.calls, told["negative_hits"], told["hits"]) == (1, 4, 4)
    assert not tiers.holds("k")
    clock.advance(6)
    assert tiers.get("k", lambda: 1) == 1


def test_remembered_errors_hold_no_frames_and_do_not_grow(make: Make) -> None:
    class Large:
        pass

    def load() -> Any:
        large = Large()
        alive.append(weakref.ref(large))
        raise ValueError("no")

    tiers = make(negative_ttl=5)
    alive: list[weakref.ref[Large]] = []
    lengths = []
    for _ in range(3):
        try:
            tiers.get("k", load)
        except ValueError as error:
            trace, length = error.__traceback__, 0
            while trace is not None:
                trace, length = trace.tb_next, length + 1
            lengths.append(length)
            del error, trace
    gc.collect()
    assert len(alive) == 1
    assert alive[0]() is None
    assert lengths[1] == lengths[2] < 5


class Stubborn(Exception):
    """Cannot be made from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_errors_that_cannot_be_copied_are_remembered_too(make: Make) -> None:
    tiers = make(negative_ttl=5)
    source = Source(Stubborn(1, 2))
    for _ in range(3):
        with pytest.raises(Stubborn, match="1 and 2"):
            tiers.get("k", source)
    assert source.calls == 1


def test_what_was_put_ends_a_remembered_error(make: Make) -> None:
    tiers = make(negative_ttl=5)
    with pytest.raises(ValueError, match="no"):
        tiers.get("k", Source(ValueError("no")))
    tiers.put("k", 1)
    assert tiers.get("k", refuse) == 1
    with pytest.raises(ValueError, match="no"):
        tiers.get("l", Source(ValueError("no")))
    tiers.invalidate("l")
    assert tiers.get("l", lambda: 2) == 2


# -- trying again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("reset"), True), (TimeoutError("late"), True), (FetchError("cut"), True),
        (SourceChangedError("other"), False), (ValueError("no"), False), (FileNotFoundError("no"), False),
        (ClosedError("closed"), False),
    ],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(make: Make, error: Exception, again: bool) -> None:
    for face in ("sync", "async", "awaitable"):
        tiers = make(retries=Retries(attempts=3, rng=lambda: 0.5))
        source = Source(error, error, 5)
        load = {"sync": source, "async": source.later, "awaitable": lambda: source.later()}[face]  # noqa: B023
        if again:
            assert tiers.get("k", load) == 5
        else:
            with pytest.raises(type(error)):
                tiers.get("k", load)
        assert source.calls == (3 if again else 1)
        assert counted(tiers)["retries"] == (2 if again else 0)


def test_attempts_are_counted_in_all_and_waits_grow(make: Make, clock: FakeClock) -> None:
    tiers = make(retries=Retries(attempts=4, base_s=1.0, cap_s=2.0, rng=lambda: 0.5))
    source = Source(TimeoutError("late"))
    began = clock.monotonic()
    with pytest.raises(TimeoutError):
        tiers.get("k", source)
    assert source.calls == 4
    assert clock.monotonic() - began == 0.5 + 1.0 + 1.0
    with pytest.raises(TimeoutError):
        tiers.get("k", source, retry=False)
    assert source.calls == 5
    told = counted(tiers)
    assert (told["load_errors"], told["retries"]) == (2, 3)


def test_no_wait_is_begun_that_would_not_end_in_time() -> None:
    retries = Retries(attempts=9, base_s=1.0, rng=lambda: 0.5)
    error = TimeoutError("late")
    assert retries.delay(1, error, None) == 0.5
    assert retries.delay(1, error, 0.6) == 0.5
    assert retries.delay(1, error, 0.5) is None
    assert retries.delay(9, error, None) is None
    assert Retries(retryable=lambda error: True, rng=lambda: 0.0).delay(1, KeyError(), None) == 0.0
    for wrong in ({"attempts": 0}, {"base_s": -1}, {"cap_s": -1}):
        with pytest.raises(ConfigError):
            Retries(**wrong)


# -- leaving --------------------------------------------------------------------------------


def test_on_evict_is_told_who_left_and_why(make: Make, clock: FakeClock) -> None:
    left: list[tuple[Any, Any, str]] = []
    tiers = make(memory=3000, ttl=10, on_evict=lambda *what: left.append(what))
    tiers.put("a", 1)
    tiers.put("a", 2)
    tiers.invalidate("a")
    tiers.put("b", 3)
    tiers.clear()
    tiers.put("c", bytes(2000))
    tiers.put("d", bytes(2000))
    assert left == [
        ("a", 1, "replaced"), ("a", 2, "invalidated"), ("b", 3, "cleared"), ("c", bytes(2000), "size"),
    ]  # fmt: skip
    left.clear()
    clock.advance(60)
    for key in range(200):
        tiers.put("e", key)
    assert ("d", bytes(2000), "expired") in left
    told = counted(tiers)
    assert (told["evicted_replaced"], told["evicted_invalidated"], told["evicted_cleared"]) == (200, 1, 1)
    assert (told["evicted_size"], told["evictions"], told["evicted_expired"], told["expirations"]) == (1, 1, 1, 1)


def test_on_evict_runs_with_no_lock_held(make: Make) -> None:
    def on_evict(key: Any, value: Any, cause: str) -> None:
        free: list[bool] = []

        def take() -> None:
            free.append(tiers.lock.acquire(timeout=30))
            tiers.lock.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join(30)
        found.append(free)
        tiers.get("nested", lambda: 1)

    found: list[list[bool]] = []
    tiers = make(memory=3000, on_evict=on_evict)
    tiers.put("a", bytes(2000))
    tiers.put("b", bytes(2000))
    tiers.invalidate("b")
    assert found == [[True]] * len(found)
    assert len(found) >= 2


def test_an_error_of_on_evict_breaks_nothing_and_is_told_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def on_evict(key: Any, value: Any, cause: str) -> None:
        raise RuntimeError("callback broke")

    tiers = make(on_evict=on_evict)
    with caplog.at_level(logging.ERROR, "lazystore.cache"):
        for key in range(5):
            tiers.put(key, key)
            assert tiers.invalidate(key)
    assert counted(tiers)["callback_errors"] == 5
    assert len(caplog.records) == 1
    assert "callback broke" in caplog.text


def test_on_load_is_told_of_each_load_that_ended(make: Make, clock: FakeClock) -> None:
    def slow() -> bytes:
        clock.advance(2)
        return bytes(1000)

    told: list[tuple[Any, float, int, Any]] = []
    tiers = make(on_load=lambda *what: told.append(what), retries=Retries(attempts=1))
    error = ValueError("no")
    tiers.get("k", slow)
    tiers.get("k", refuse)
    with pytest.raises(ValueError, match="no"):
        tiers.get("l", Source(error))
    asyncio.run(tiers.aget("m", Source(1).later))
    tiers.start("n", lambda: 1).wait(Deadline(30))
    tiers.get("o", lambda: 1, keep=False)
    assert [(key, seconds, failed) for key, seconds, _, failed in told] == [
        ("k", 2.0, None), ("l", 0.0, error), ("m", 0.0, None), ("n", 0.0, None), ("o", 0.0, None),
    ]  # fmt: skip
    assert told[0][2] > 1000
    assert told[1][2] == 0


# -- invalidating ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["invalidate", "clear", "clear prefix", "put"])
def test_what_is_on_its_way_is_kept_out(make: Make, how: str) -> None:
    tiers = make()
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go.wait(30)
        return "old"

    flight = tiers.start("key", slow)
    assert begun.wait(30)
    if how == "invalidate":
        assert tiers.invalidate("key")
    elif how == "clear":
        tiers.clear()
    elif how == "clear prefix":
        tiers.clear(prefix="other")
        tiers.clear(prefix="ke")
    else:
        tiers.put("key", "put")
    now = tiers.get("key", lambda: "new")  # never what set out before
    assert now == ("put" if how == "put" else "new")
    go.set()
    assert flight.wait(Deadline(30)) == "old"
    assert tiers.get("key", refuse) == now
    assert counted(tiers)["uncacheable"] == 1
    assert not len(tiers.memory.claims)
    assert not tiers.ahead


def test_a_load_of_another_key_is_not_kept_out(make: Make) -> None:
    tiers = make()

    def load() -> int:
        tiers.invalidate("other")
        tiers.clear(prefix="x")
        return 1

    tiers.get("k", load)
    assert tiers.get("k", refuse) == 1


def test_clear_takes_what_begins_with_the_prefix(make: Make) -> None:
    tiers = make()
    for key in ("user:1", "user:2", b"user:3", ("user:4", 5), ("x", "user:5"), "item:1", 7):
        tiers.put(key, 1)
    assert tiers.clear(prefix="user:") == 4
    assert set(tiers.memory.map.keys()) == {("x", "user:5"), "item:1", 7}
    assert tiers.clear() == 3
    assert tiers.clear() == 0


def test_invalidate_says_whether_there_was_anything(make: Make) -> None:
    tiers = make()
    assert not tiers.invalidate("k")
    tiers.put("k", None)
    assert tiers.invalidate("k")
    assert not tiers.invalidate("k")


# -- ahead ----------------------------------------------------------------------------------


def test_what_is_loaded_ahead_counts_as_used_when_it_is_asked_for_first(make: Make) -> None:
    tiers = make()
    tiers.start("k", lambda: bytes(1000)).wait(Deadline(30))
    told = counted(tiers)
    assert (told["prefetch_issued"], told["prefetch_used"], told["requests"]) == (1, 0, 0)
    assert told["prefetch_bytes"] > 1000
    assert tiers.peek("k") == bytes(1000)
    assert tiers.holds("k")
    assert tiers.hit("k", None) is None  # the first time only get() finds it
    for _ in range(3):
        assert tiers.get("k", refuse) == bytes(1000)
    assert tiers.hit("k", None) == bytes(1000)
    told = counted(tiers)
    assert (told["prefetch_used"], told["prefetch_late"], told["prefetch_wasted"], told["hits"]) == (1, 0, 0, 4)


def test_what_leaves_before_it_was_asked_for_is_wasted(make: Make) -> None:
    tiers = make(memory=3000)
    tiers.start("k", lambda: bytes(2000)).wait(Deadline(30))
    tiers.put("other", bytes(2500))
    tiers.start("large", lambda: bytes(5000)).wait(Deadline(30))
    told = counted(tiers)
    assert (told["prefetch_issued"], told["prefetch_used"], told["prefetch_wasted"]) == (2, 0, 2)
    assert 7000 < told["prefetch_wasted_bytes"] == told["prefetch_bytes"] < 8000


def test_what_is_asked_for_while_it_is_loaded_is_late_and_used(make: Make) -> None:
    tiers = make()
    begun, go = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        go.wait(30)
        return 5

    flight = tiers.start("k", slow)
    assert begun.wait(30)
    threads = [threading.Thread(target=lambda: tiers.get("k", refuse)) for _ in range(3)]
    for thread in threads:
        thread.start()
    while tiers.loads.flights.joins < 3:
        os.sched_yield()
    go.set()
    for thread in threads:
        thread.join(30)
    flight.wait(Deadline(30))
    told = counted(tiers)
    assert (told["prefetch_used"], told["prefetch_late"], told["joins"], told["prefetch_issued"]) == (1, 1, 3, 1)
    assert tiers.hit("k") == 5


def test_loading_ahead_keeps_the_ttl(make: Make, clock: FakeClock) -> None:
    tiers = make(ttl=10, stale_while_revalidate=5)
    for key in ("used", "unused", "stale"):
        tiers.start(key, lambda: 1).wait(Deadline(30))
    clock.advance(6)
    assert tiers.get("used", refuse) == 1
    clock.advance(6)
    assert not tiers.holds("used")
    assert not tiers.holds("unused")
    assert tiers.get("stale", lambda: 2) == 1
    ended(tiers)
    assert tiers.get("stale", refuse) == 2
    clock.advance(10)
    assert tiers.get("used", lambda: 3) == 3
    told = counted(tiers)
    assert (told["prefetch_used"], told["stale_served"], told["prefetch_wasted"]) == (2, 1, 0)
    assert not tiers.holds("unused")  # dead by now, and met
    assert counted(tiers)["prefetch_wasted"] == 1


def test_what_is_there_is_not_loaded_ahead(make: Make) -> None:
    tiers = make()
    tiers.put("k", 5)
    flight = tiers.start("k", refuse)
    assert flight.done
    assert flight.result() == 5
    assert counted(tiers)["prefetch_issued"] == 0


def test_an_error_ahead_is_the_flights_alone(make: Make) -> None:
    tiers = make()
    flight = tiers.start("k", Source(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        flight.wait(Deadline(30))
    told = counted(tiers)
    assert (told["prefetch_issued"], told["prefetch_errors"], told["load_errors"]) == (1, 1, 1)
    assert not tiers.ahead
    assert tiers.get("k", lambda: 1) == 1


# -- pressure -------------------------------------------------------------------------------


class Squeezed:
    """Memory pressure by hand."""

    severe = False
    reason = ""
    share = 1.0

    def due(self) -> bool:
        return True

    def look(self) -> float:
        return self.share

    def reset_after_fork(self) -> None:
        pass


def test_pressure_lowers_the_target_while_the_cache_is_used(make: Make) -> None:
    squeezed: Any = Squeezed()
    tiers = make(memory=100_000, pressure=squeezed)
    for key in range(9):
        tiers.get(key, lambda: bytes(10_000))
    squeezed.share, squeezed.severe = 0.5, True
    assert tiers.ledger.used > 90_000
    tiers.get("more", lambda: 1)
    assert tiers.ledger.used <= tiers.ledger.target == 50_000
    assert not tiers.may_speculate
    squeezed.share, squeezed.severe = 1.0, False
    assert tiers.may_speculate
    assert tiers.ledger.target == 100_000
    assert counted(tiers)["evicted_room"] >= 4


# -- closing, forking, and the rest ---------------------------------------------------------


def test_a_closed_cache_refuses_and_holds_nothing(make: Make) -> None:
    tiers = make()
    hit = tiers.hit
    tiers.put("k", 5)
    tiers.close()
    tiers.close()
    assert hit("k") is None
    for call in (lambda: tiers.get("k", refuse), lambda: tiers.start("k", refuse), lambda: tiers.put("k", 1)):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError):
        asyncio.run(tiers.aget("k", refuse))
    assert tiers.ledger.used == 0


def test_a_task_closes_without_stopping_its_loop(make: Make) -> None:
    async def both() -> Any:
        tiers = make()
        value = await tiers.aget("k", lambda: 5)
        await tiers.aclose()
        await tiers.aclose()
        return value, tiers.closed

    assert asyncio.run(both()) == (5, True)


def test_no_thread_runs_for_plain_calls(make: Make) -> None:
    before = threading.active_count()
    tiers = make(ttl=5, negative_ttl=5)
    for key in range(100):
        tiers.get(key, lambda: 1)
    assert threading.active_count() == before


def test_a_forgotten_cache_goes_at_once_with_its_values(clock: FakeClock) -> None:
    class Value:
        pass

    gc.collect()
    gc.disable()
    try:
        tiers = Tiers(memory=MIB, clock=clock)
        value = tiers.get("k", Value)
        gone = weakref.ref(value)
        del value
        assert gone() is not None
        del tiers
        assert gone() is None
    finally:
        gc.enable()


def test_a_child_has_the_values_and_locks_of_its_own(make: Make) -> None:
    tiers = make()
    tiers.put("k", 5)
    tiers.start("ahead", lambda: 6).wait(Deadline(30))
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with tiers.lock:
            held.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    child = os.fork()
    if not child:
        ok = False
        try:
            ok = tiers.get("k", refuse) == 5 and tiers.get("ahead", refuse) == 6 and tiers.get("l", lambda: 7) == 7
            ok = ok and tiers.start("m", lambda: 8).wait(Deadline(30)) == 8 and bool(counted(tiers))
        finally:
            os._exit(0 if ok else 1)
    go.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 0}, {"ttl": -1}, {"ttl": float("nan")}, {"negative_ttl": -1}, {"stale_while_revalidate": -1},
        {"stale_if_error": float("nan")}, {"ttl_jitter": 1.0}, {"ttl_jitter": -0.1}, {"policy": "other"},
        {"memory": -1}, {"concurrency": 0},
    ],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(**options)


def test_tiers_are_not_pickled(make: Make) -> None:
    tiers = make()
    for thing in (tiers, tiers.memory):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(thing)
    assert "0 values" in repr(tiers)
