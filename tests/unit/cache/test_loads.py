"""Who runs a load, and that every storm of callers ends: one load, right outcomes, nothing left behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from support.loading import in_thread, joined, opened, outcome, until

from lazystore.cache.bridge import deadline_left
from lazystore.cache.flight import Deadline
from lazystore.cache.loads import Loads
from lazystore.cache.single_flight import Flight
from lazystore.errors import (
    ClosedError,
    ConfigError,
    LoadCancelledError,
    LoadError,
    LoadTimeoutError,
    ReentrantLoadError,
)


@pytest.fixture
def loads() -> Iterator[Loads]:
    with opened() as loads:
        yield loads


class Held:
    """A loader that runs until it is let go, and counts its runs."""

    def __init__(self, result: Any = 42) -> None:
        self.result = result
        self.runs = 0
        self.begun = threading.Event()
        self.go = threading.Event()

    def end(self) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def sync(self) -> Any:
        self.runs += 1
        self.begun.set()
        assert self.go.wait(30)
        return self.end()

    async def coro(self) -> Any:
        self.runs += 1
        self.begun.set()
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return self.end()

    def either(self, kind: str) -> Any:
        return self.sync if kind == "sync" else self.coro if kind == "async" else lambda: self.coro()


KINDS = ["sync", "async", "returns an awaitable"]


# -- one load ---------------------------------------------------------------------------------


def test_sync_use_of_sync_loaders_starts_no_thread(loads: Loads) -> None:
    before = threading.active_count()
    here = threading.current_thread()
    assert loads.load("k", threading.current_thread) is here
    assert loads.load("k", lambda: None) is None
    assert threading.active_count() == before
    assert (loads.flights.leads, loads.flights.joins) == (2, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("result", [42, None, ValueError("mine"), StopIteration(3)], ids=repr)
def test_one_load_for_threads_and_tasks_of_several_loops(kind: str, result: Any, loads: Loads) -> None:
    if kind != "sync" and isinstance(result, StopIteration):
        pytest.skip("no coroutine can raise it")
    held = Held(result)
    got: list[Any] = []

    async def task() -> None:
        try:
            got.append(await loads.aload("k", held.either(kind)))
        except Exception as error:  # noqa: BLE001 - compared below
            got.append(error)

    async def many() -> None:
        await asyncio.gather(*(task() for _ in range(50)))

    threads = [in_thread(lambda: asyncio.run(many())) for _ in range(3)]
    threads += [in_thread(lambda: got.append(outcome(lambda: loads.load("k", held.either(kind))))) for _ in range(16)]
    until(lambda: loads.flights.joins == 165)
    held.go.set()
    joined(*threads)
    assert held.runs == 1 and len(got) == 166
    if isinstance(result, StopIteration):
        assert all(one is result or isinstance(one, RuntimeError) for one in got)  # as from any coroutine
    else:
        assert all(one is result for one in got)
    assert loads.load("k", lambda: "anew") == "anew"


def test_a_loader_may_be_anything_callable(loads: Loads) -> None:
    class Callable:
        async def __call__(self) -> str:
            return "object"

        async def method(self, x: int) -> int:
            return x

    async def use() -> list[Any]:
        return [
            await loads.aload(1, Callable()),
            await loads.aload(2, partial(Callable().method, 5)),
            await loads.aload(3, partial(int, 7)),
            await loads.aload(4, lambda: Callable().method(6)),
        ]

    assert asyncio.run(use()) == ["object", 5, 7, 6]
    assert loads.load(2, partial(Callable().method, 5)) == 5
    assert loads.load(3, partial(int, 7), deadline=Deadline(30)) == 7
    assert loads.load(4, lambda: Callable().method(6), deadline=Deadline(30)) == 6


def test_generators_are_values_like_any_other(loads: Loads) -> None:
    def items() -> Iterator[int]:
        yield from range(3)

    async def aitems() -> Any:
        yield 1

    assert list(loads.load("k", items)) == [0, 1, 2]
    assert hasattr(loads.load("a", aitems), "__anext__")

    async def use() -> None:
        assert list(await loads.aload("k", items)) == [0, 1, 2]
        async for item in await loads.aload("a", aitems):
            assert item == 1

    asyncio.run(use())


def test_the_caller_s_context_reaches_the_loader_everywhere(loads: Loads) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("mine")

    async def coro() -> str:
        return name.get()

    async def use() -> list[str]:
        name.set("task's")
        return [await loads.aload(1, coro), await loads.aload(2, name.get), await loads.aload(3, lambda: coro())]

    assert asyncio.run(use()) == ["task's"] * 3
    assert [loads.load(1, coro), loads.load(2, name.get), loads.load(3, name.get, deadline=Deadline(30))] == [
        "mine"
    ] * 3
    assert loads.start(4, name.get).wait() == "mine"


def test_a_sync_loader_never_blocks_the_loop(loads: Loads) -> None:
    held = Held()

    async def use() -> None:
        beats = 0
        load = asyncio.create_task(loads.aload("k", held.sync))
        while beats < 20:
            await asyncio.sleep(0.001)
            beats += 1
        assert held.begun.is_set() and not load.done()
        held.go.set()
        assert await load == 42

    asyncio.run(use())


def test_an_error_keeps_nothing_of_a_load_alive(loads: Loads) -> None:
    def fails() -> None:
        raise ValueError("x")

    async def afails() -> None:
        raise ValueError("x")

    async def use(loader: Any) -> None:
        await loads.aload("k", loader)

    def flights() -> list[str]:
        return [type(one).__name__ for one in gc.get_objects() if isinstance(one, Flight) and one.key == "k"]

    ways = [
        lambda: loads.load("k", fails),
        lambda: loads.load("k", afails),
        lambda: loads.load("k", fails, deadline=Deadline(30)),
        lambda: asyncio.run(use(fails)),
        lambda: asyncio.run(use(afails)),
        lambda: loads.start("k", fails).wait(),
    ]
    gc.collect()
    gc.disable()
    try:
        for way in ways:
            with suppress(ValueError):
                way()
            until(lambda: not flights(), 5)
    finally:
        gc.enable()


# -- interrupted leaders ----------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_interrupted_thread_leaves_the_lead_to_a_waiter(interrupt: type[BaseException], loads: Loads) -> None:
    first, second = Held(interrupt()), Held("second")
    got: list[Any] = []
    leader = in_thread(lambda: got.append(outcome(lambda: loads.load("k", first.sync))))
    assert first.begun.wait(30)
    waiters = [in_thread(lambda: got.append(loads.load("k", second.sync))) for _ in range(5)]
    until(lambda: loads.flights.joins == 5)
    first.go.set()
    joined(leader)
    assert isinstance(got.pop(), interrupt)
    assert second.begun.wait(30)
    second.go.set()
    joined(*waiters)
    assert got == ["second"] * 5 and (first.runs, second.runs) == (1, 1)


def test_a_cancelled_task_cancels_nobody_else(loads: Loads) -> None:
    held = Held()

    async def use() -> None:
        leader = asyncio.create_task(loads.aload("k", held.coro))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(loads.aload("k", held.coro)) for _ in range(5)]
        thread = in_thread(lambda: got.append(loads.load("k", held.coro)))
        await asyncio.sleep(0.01)
        leader.cancel()
        others[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        held.go.set()
        assert await asyncio.gather(*others[1:]) == [42] * 4
        await asyncio.to_thread(joined, thread)

    got: list[Any] = []
    asyncio.run(use())
    assert got == [42] and held.runs == 1


def test_a_coroutine_that_nobody_wants_any_more_is_cancelled(loads: Loads) -> None:
    ended: list[str] = []

    async def loader() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("closed")

    async def use() -> None:
        tasks = [asyncio.create_task(loads.aload("k", loader)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        until_then = asyncio.get_running_loop().time() + 30
        while loads.slots.held:
            assert asyncio.get_running_loop().time() < until_then
            await asyncio.sleep(0.001)
        assert ended == ["closed"]
        with pytest.raises(LoadTimeoutError):
            await loads.aload("k", loader, deadline=Deadline(0.01))

    asyncio.run(use())
    until(lambda: ended == ["closed"] * 2)


def test_a_background_load_goes_on_when_its_waiters_leave(loads: Loads) -> None:
    held = Held()
    flight = loads.start("k", held.coro)
    assert held.begun.wait(30)
    with pytest.raises(LoadTimeoutError):
        loads.load("k", held.coro, deadline=Deadline(0.01))

    async def use() -> None:
        with pytest.raises(LoadTimeoutError):
            await loads.aload("k", held.coro, deadline=Deadline(0.01))

    asyncio.run(use())
    held.go.set()
    assert flight.wait() == 42 and held.runs == 1


def test_a_background_load_goes_on_in_a_worker_when_who_leads_it_is_interrupted(loads: Loads) -> None:
    first, second = Held(KeyboardInterrupt()), Held("second")
    leader = in_thread(lambda: outcome(lambda: loads.load("k", first.sync)))
    assert first.begun.wait(30)
    flight = loads.start("k", second.sync)
    first.go.set()
    joined(leader)
    assert second.begun.wait(30)
    second.go.set()
    assert flight.wait() == "second" and not flight.abandoned


@pytest.mark.parametrize("politely", [True, False], ids=["by asyncio.run", "closed under it"])
@pytest.mark.parametrize("kind", ["async", "returns an awaitable"])
def test_a_loop_that_closes_leaves_its_loads_to_others(kind: str, politely: bool, loads: Loads) -> None:
    ended: list[str] = []

    async def stuck() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            ended.append("closed")

    begun = threading.Event()
    got: list[Any] = []
    loop = asyncio.SelectorEventLoop()
    call: Any = stuck if kind == "async" else lambda: stuck()

    async def lead() -> None:
        load = asyncio.create_task(loads.aload("k", call))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        waiter.append(in_thread(lambda: got.append(loads.load("k", lambda: "anew"))))
        while loads.flights.joins < 1:
            await asyncio.sleep(0.001)
        if not politely:
            load._log_destroy_pending = False  # type: ignore[attr-defined]  # the test's own task
            keep.append(load)

    waiter: list[threading.Thread] = []
    keep: list[Any] = []
    if politely:
        asyncio.run(lead())
    else:
        loop.run_until_complete(lead())
    loop.close()
    joined(*waiter)
    assert got == ["anew"] and ended == ["closed"]


def test_a_loop_that_is_closed_before_its_load_begins_gives_it_up(loads: Loads) -> None:
    with opened(concurrency=1) as loads:
        held = Held()
        leader = in_thread(lambda: loads.load("slow", held.sync))
        assert held.begun.wait(30)
        loop = asyncio.SelectorEventLoop()
        called: list[int] = []

        async def never() -> None:
            called.append(1)

        async def queue() -> None:
            task = asyncio.create_task(loads.aload("k", never))
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            keep.append(task)
            await asyncio.sleep(0)

        keep: list[Any] = []
        loop.run_until_complete(queue())
        loop.close()
        held.go.set()
        joined(leader)
        assert loads.load("k", lambda: 5) == 5 and not called


def test_cancelled_from_inside_is_the_loader_s_failure(loads: Loads) -> None:
    async def loader() -> None:
        raise asyncio.CancelledError

    def sync() -> None:
        raise asyncio.CancelledError

    async def use() -> None:
        for call in (loader, sync):
            with pytest.raises(LoadCancelledError, match="from inside"):
                await loads.aload("k", call)

    asyncio.run(use())
    with pytest.raises(LoadCancelledError):
        loads.load("k", loader)


# -- loads in loads ---------------------------------------------------------------------------


def test_a_loader_that_asks_for_its_own_key_is_told(loads: Loads) -> None:
    def sync() -> Any:
        return loads.load("k", sync)

    async def coro() -> Any:
        return await loads.aload("k", coro)

    def timed() -> Any:
        return loads.load("k", timed, deadline=Deadline(30))

    async def use() -> None:
        for loader in (coro, lambda: coro()):
            with pytest.raises(ReentrantLoadError, match="'k' -> 'k'"):
                await loads.aload("k", loader)
        with pytest.raises(ReentrantLoadError):
            await loads.aload("k", sync)

    for loader in (sync, coro, timed, lambda: asyncio.run(coro())):
        with pytest.raises(ReentrantLoadError, match="'k' -> 'k'"):
            loads.load("k", loader)
    asyncio.run(use())
    with pytest.raises(ReentrantLoadError):
        loads.start("k", sync).wait()


def test_other_keys_nest_without_a_second_slot() -> None:
    with opened(workers=1, concurrency=1) as loads:

        def sync(k: int) -> int:
            return k if k == 0 else 1 + loads.load(k - 1, partial(sync, k - 1))

        def timed(k: int) -> int:
            return k if k == 0 else 1 + loads.load(k - 1, partial(timed, k - 1), deadline=Deadline(60))

        async def coro(k: int) -> int:
            return k if k == 0 else 1 + await loads.aload(k - 1, partial(coro, k - 1))

        def mixed(k: int) -> int:
            return k if k == 0 else 1 + asyncio.run(loads.aload(k - 1, partial(mixed, k - 1)))

        for loader in (sync, timed, coro, mixed):
            assert loads.load(9, partial(loader, 9)) == 9
            assert asyncio.run(loads.aload(9, partial(loader, 9))) == 9
            assert loads.start(9, partial(loader, 9)).wait(Deadline(60)) == 9


def test_a_circle_over_keys_and_threads_is_refused_at_one_and_everybody_gets_on(loads: Loads) -> None:
    barrier = threading.Barrier(3)
    refused: list[str] = []

    def loader(own: str, other: str) -> str:
        barrier.wait(30)
        try:
            return loads.load(other, partial(loader, other, own))
        except ReentrantLoadError as error:
            refused.append(str(error))
            return own

    keys = ["a", "b", "c"]
    threads = [
        in_thread(lambda k=k: loads.load(keys[k], partial(loader, keys[k], keys[(k + 1) % 3]))) for k in range(3)
    ]
    joined(*threads)
    assert len(refused) == 1


def test_a_circle_over_tasks_and_threads_is_refused(loads: Loads) -> None:
    barrier = threading.Barrier(2)

    def sync() -> Any:
        barrier.wait(30)
        return loads.load("task's", coro)

    async def coro() -> Any:
        await asyncio.to_thread(barrier.wait, 30)
        return await loads.aload("thread's", sync)

    got: list[Any] = []
    thread = in_thread(lambda: got.append(outcome(lambda: loads.load("thread's", sync))))
    got.append(outcome(lambda: asyncio.run(loads.aload("task's", coro))))
    joined(thread)
    assert all(isinstance(one, ReentrantLoadError) for one in got)


def test_a_load_that_waits_for_one_that_waits_for_its_slot_lends_it() -> None:
    with opened(concurrency=1) as loads:
        begun, go = threading.Event(), threading.Event()

        def outer() -> Any:
            begun.set()
            assert go.wait(30)
            return loads.load("inner", lambda: "mine")

        for way in ("thread", "task", "deadline", "background"):
            begun.clear()
            go.clear()
            got: list[Any] = []
            holder = in_thread(lambda got=got: got.append(loads.load("outer", outer)))
            assert begun.wait(30)
            if way == "thread":
                other = in_thread(lambda: loads.load("inner", lambda: "other's"))
            elif way == "task":
                other = in_thread(lambda: asyncio.run(loads.aload("inner", lambda: "other's")))
            elif way == "deadline":
                other = in_thread(lambda: loads.load("inner", lambda: "other's", deadline=Deadline(30)))
            else:
                other = in_thread(loads.start("inner", lambda: "other's").wait)
            until(lambda: len(loads.flights) == 2)
            go.set()
            joined(holder, other)
            assert got == ["other's"] or (way == "background" and got == ["mine"])  # there it may be taken over


def test_more_waiting_loads_than_workers_do_not_starve_what_they_wait_for() -> None:
    with opened(workers=2, concurrency=20) as loads:
        held = Held()

        async def use() -> list[Any]:
            outer = [
                asyncio.create_task(loads.aload(k, lambda: loads.load("shared", held.sync, deadline=Deadline(60))))
                for k in range(6)
            ]
            while not held.begun.is_set() or loads.flights.joins < 5:
                await asyncio.sleep(0.001)
            held.go.set()
            return await asyncio.gather(*outer)

        assert asyncio.run(use()) == [42] * 6
        assert held.runs == 1


# -- sync callers on a running loop -------------------------------------------------------------


def test_waiting_for_a_coroutine_inside_a_running_loop_is_refused_with_a_remedy(loads: Loads) -> None:
    held = Held()
    other = Held("other's")

    async def use() -> None:
        with pytest.raises(LoadError, match=r"await aget\(\)"):
            loads.load("k", held.coro)
        task = asyncio.create_task(loads.aload("k", held.coro))
        await asyncio.sleep(0.01)
        with pytest.raises(LoadError, match=r"await aget\(\)"):
            loads.load("k", held.coro)  # would wait for the task of this very loop
        nesting = in_thread(lambda: loads.load("outer", lambda: loads.load("k", held.coro)))
        while "outer" not in [flight.key for flight in loads.flights.under_way()] or loads.flights.joins < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        with pytest.raises(LoadError, match=r"await aget\(\)"):
            loads.load("outer", lambda: None)  # would wait for it through a thread
        assert loads.load("sync", lambda: 1) == 1  # blocks the loop, as any function does
        held.go.set()
        assert await task == 42
        joined(nesting)

    asyncio.run(use())
    assert held.runs == 1 and not other.runs


def test_a_refusal_inside_a_loop_is_not_the_error_of_those_who_may_wait(loads: Loads) -> None:
    held = Held()
    entered, go = threading.Event(), threading.Event()

    def slow_to_tell() -> Any:
        entered.set()
        assert go.wait(30)
        return held.coro()

    async def inside() -> None:
        with pytest.raises(LoadError):
            loads.load("k", slow_to_tell)

    got: list[Any] = []
    refused = in_thread(lambda: asyncio.run(inside()))
    assert entered.wait(30)
    waiter = in_thread(lambda: got.append(loads.load("k", held.coro)))
    until(lambda: loads.flights.joins == 1)
    go.set()
    held.go.set()
    joined(refused, waiter)
    assert got == [42] and held.runs == 1


def test_no_slot_is_waited_for_inside_the_loop_that_would_free_it() -> None:
    with opened(concurrency=1) as loads:
        held = Held()

        async def use() -> None:
            task = asyncio.create_task(loads.aload("k", held.coro))
            await asyncio.sleep(0.01)
            with pytest.raises(LoadError, match="concurrency"):
                loads.load("other", lambda: 1)
            held.go.set()
            await task
            assert loads.load("other", lambda: 1) == 1

        asyncio.run(use())


# -- deadlines --------------------------------------------------------------------------------


def test_a_thread_leaves_at_its_deadline_and_the_load_goes_on(loads: Loads) -> None:
    held = Held()
    with pytest.raises(LoadTimeoutError, match=r"'k'.*0\.01 s"):
        loads.load("k", held.sync, deadline=Deadline(0.01))
    got: list[Any] = []
    patient = in_thread(lambda: got.append(loads.load("k", held.sync)))
    assert held.begun.wait(30)
    held.go.set()
    joined(patient)
    assert got == [42] and held.runs == 1


def test_what_has_not_begun_at_the_deadline_never_begins() -> None:
    with opened(concurrency=1) as loads:
        held = Held()
        leader = in_thread(lambda: loads.load("slow", held.sync))
        assert held.begun.wait(30)
        called: list[int] = []

        async def coro() -> None:
            called.append(1)

        async def use() -> None:
            for call in (coro, lambda: called.append(1)):
                with pytest.raises(LoadTimeoutError):
                    await loads.aload("k", call, deadline=Deadline(0.01))

        asyncio.run(use())
        with pytest.raises(LoadTimeoutError):
            loads.load("k", lambda: called.append(1), deadline=Deadline(0.01))
        held.go.set()
        joined(leader)
        until(lambda: loads.slots.held == 0)
        assert not called and loads.load("k", lambda: 3) == 3


def test_the_loader_knows_the_time_left_and_nested_ones_have_no_more(loads: Loads) -> None:
    async def coro() -> float | None:
        return deadline_left()

    def nested() -> list[float | None]:
        return [
            deadline_left(),
            loads.load(1, deadline_left),
            loads.load(2, deadline_left, deadline=Deadline(5000)),
            loads.load(3, deadline_left, deadline=Deadline(5)),
            loads.load(4, coro),
        ]

    assert loads.load("k", nested)[:2] == [None, None]
    left = loads.load("k", nested, deadline=Deadline(50))
    assert all(one is not None and 0 < one <= 50 for one in left) and left[3] <= 5
    left = asyncio.run(loads.aload("k", nested, deadline=Deadline(50)))
    assert all(one is not None and 0 < one <= 50 for one in left)
    assert 0 < asyncio.run(loads.aload("k", coro, deadline=Deadline(50))) <= 50
    assert loads.start("k", deadline_left).wait() is None
    assert deadline_left() is None


# -- background -------------------------------------------------------------------------------


def test_demand_and_background_share_one_hard_limit() -> None:
    with opened(workers=8, concurrency=3) as loads:
        lock, now, most = threading.Lock(), 0, 0

        def enter(step: int) -> None:
            nonlocal now, most
            with lock:
                now += step
                most = max(most, now)

        def sync() -> None:
            enter(1)
            time.sleep(0.002)
            enter(-1)

        async def coro() -> None:
            enter(1)
            await asyncio.sleep(0.002)
            enter(-1)

        async def many(base: int) -> None:
            await asyncio.gather(*(loads.aload((base, k), coro if k % 2 else sync) for k in range(20)))

        flights = [loads.start(("background", k), sync if k % 2 else coro) for k in range(20)]
        threads = [in_thread(lambda k=k: asyncio.run(many(k))) for k in range(2)]
        threads += [in_thread(lambda k=k: loads.load(("thread", k), sync if k % 2 else coro)) for k in range(10)]
        threads += [in_thread(lambda k=k: loads.load(("late", k), sync, deadline=Deadline(60))) for k in range(10)]
        joined(*threads)
        for flight in flights:
            flight.wait(Deadline(60))
        assert most == 3


def test_a_thread_takes_over_what_is_still_queued(loads: Loads) -> None:
    with opened(workers=2) as loads:
        held = Held()
        busy = [loads.start(k, held.sync) for k in range(4)]
        until(lambda: held.runs == 1)
        flight = loads.start("k", threading.current_thread)
        assert loads.load("k", threading.current_thread) is threading.current_thread()
        assert flight.wait() is threading.current_thread()
        held.go.set()
        assert [one.wait(Deadline(30)) for one in busy] == [42] * 4


def test_a_task_has_what_is_queued_hurried() -> None:
    with opened(workers=2) as loads:
        held = Held()
        busy = [loads.start(k, held.sync, priority=9) for k in range(4)]
        until(lambda: held.runs == 1)
        loads.start("k", lambda: "k")
        assert asyncio.run(asyncio.wait_for(loads.aload("k", lambda: "k"), 30)) == "k"
        assert loads.load("k", lambda: "k", deadline=Deadline(30)) == "k"
        held.go.set()
        assert [one.wait(Deadline(30)) for one in busy] == [42] * 4


def test_many_hurried_loads_do_not_take_a_thread_each() -> None:
    with opened(workers=2, concurrency=1) as loads:
        held = Held()
        blocker = in_thread(lambda: loads.load("blocker", held.sync))
        assert held.begun.wait(30)
        for k in range(50):
            loads.start(k, lambda k=k: k)

        async def use() -> list[int]:
            tasks = [asyncio.create_task(loads.aload(k, lambda k=k: k)) for k in range(50)]
            await asyncio.sleep(0.05)
            assert loads.bridge.workers.threads <= 4
            held.go.set()
            return await asyncio.gather(*tasks)

        assert asyncio.run(use()) == list(range(50))
        joined(blocker)


def test_a_coroutine_started_on_a_loop_runs_there_and_else_on_the_bridge_s(loads: Loads) -> None:
    async def where() -> Any:
        return asyncio.get_running_loop()

    async def use() -> None:
        assert await loads.start("k", where).wait_async() is asyncio.get_running_loop()

    asyncio.run(use())
    assert loads.start("k", where).wait() is loads.bridge.loop


def test_a_start_of_what_is_under_way_is_that_flight(loads: Loads) -> None:
    held = Held()
    told: list[Any] = []
    flight = loads.start("k", held.sync, on_done=told.append)
    assert loads.start("k", held.sync, on_done=told.append) is flight
    held.go.set()
    flight.wait()
    until(lambda: told == [flight, flight])
    assert held.runs == 1


def test_who_asks_after_forgetting_loads_anew(loads: Loads) -> None:
    held = Held("old")
    old = loads.start("k", held.sync)
    assert held.begun.wait(30)
    loads.forget("k")
    assert loads.load("k", lambda: "new") == "new"
    held.go.set()
    assert old.wait() == "old"


# -- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_closing_waits_for_what_runs(kind: str, loads: Loads) -> None:
    held = Held()
    got: list[Any] = []
    thread = in_thread(lambda: got.append(loads.load("k", held.either(kind))))
    assert held.begun.wait(30)
    closing = in_thread(loads.close)
    until(lambda: loads.closed)
    held.go.set()
    joined(thread, closing)
    assert got == [42]
    with pytest.raises(ClosedError):
        loads.load("k", lambda: 1)
    with pytest.raises(ClosedError):
        asyncio.run(loads.aload("k", lambda: 1))
    with pytest.raises(ClosedError):
        loads.start("k", lambda: 1)
    loads.close()


def test_closing_gives_up_what_takes_longer_and_everybody_is_told() -> None:
    with opened(concurrency=2) as loads:
        held, queued, told = Held(), Held(), list[Any]()
        leader = in_thread(lambda: told.append(("leader", outcome(lambda: loads.load("k", held.sync)))))
        assert held.begun.wait(30)
        other = in_thread(lambda: told.append(("coro", outcome(lambda: loads.load("coro", held.coro)))))
        until(lambda: loads.slots.held == 2)
        threads = [in_thread(lambda: told.append(("joined", outcome(lambda: loads.load("k", held.sync)))))]
        threads += [in_thread(lambda: told.append(("no slot", outcome(lambda: loads.load("x", queued.sync)))))]
        threads += [in_thread(lambda: asyncio.run(waiting(told, loads, queued)))]
        until(lambda: len(loads.flights) == 4 and loads.flights.joins == 1)
        background = loads.start("background", queued.sync)
        loads.close(grace=0.01)
        joined(other, *threads)
        assert sorted(name for name, _ in told) == ["coro", "joined", "no slot", "task"]
        assert all(isinstance(error, LoadCancelledError) for _, error in told)
        with pytest.raises(LoadCancelledError, match="closed"):
            background.wait()
        held.go.set()
        joined(leader)
        assert told[-1] == ("leader", 42) and not queued.runs


async def waiting(told: list[Any], loads: Loads, queued: Held) -> None:
    try:
        await loads.aload("y", queued.coro)
    except LoadCancelledError as error:
        told.append(("task", error))


def test_closing_on_the_loop_that_loads_does_not_stop_it(loads: Loads) -> None:
    held = Held()

    async def use(close: Any) -> None:
        task = asyncio.create_task(loads.aload("k", held.coro))
        await asyncio.sleep(0.01)
        await close()
        with pytest.raises(LoadCancelledError):
            await task

    async def sync_close() -> None:
        loads.close(60)

    asyncio.run(use(sync_close))
    with opened() as loads:
        asyncio.run(use(partial(loads.aclose, 0.01)))
    with opened() as loads:

        async def in_time() -> None:
            task = asyncio.create_task(loads.aload("k", held.coro))
            await asyncio.sleep(0.01)
            asyncio.get_running_loop().call_later(0.01, held.go.set)
            await loads.aclose()
            assert await task == 42

        asyncio.run(in_time())


def test_a_loader_may_close(loads: Loads) -> None:
    assert loads.load("k", lambda: loads.load("inner", lambda: loads.close(60))) is None
    with opened() as loads:
        assert loads.start("k", lambda: loads.close(60)) is not None


def test_closed_workers_end_what_they_drop() -> None:
    with opened(workers=2) as loads:
        held = Held()
        running = loads.start("running", held.sync)
        assert held.begun.wait(30)
        dropped = [loads.start(k, held.sync) for k in range(3)]
        closing = in_thread(lambda: loads.bridge.workers.close(30))
        until(lambda: all(flight.done for flight in dropped))
        held.go.set()
        joined(closing)
        assert running.wait() == 42
        with pytest.raises(LoadCancelledError):
            dropped[0].wait()
        with pytest.raises(LoadCancelledError):
            asyncio.run(loads.aload("late", lambda: 1))
        assert loads.load("here", lambda: 1) == 1


def test_concurrency_below_one_is_refused() -> None:
    with opened() as loads, pytest.raises(ConfigError):
        Loads(loads.bridge, concurrency=0)
