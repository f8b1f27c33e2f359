"""Either kind of function from either kind of caller, and iterating likewise; nothing is left open or running."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.loading import NAME, in_thread, joined, until

from lazystore.cache.bridge import Bridge, close_unawaited, is_async
from lazystore.cache.workers import Workers
from lazystore.errors import ClosedError, ConfigError, LoadCancelledError, LoadError


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    workers = Workers(2, NAME)
    bridge = Bridge(workers)
    yield bridge
    bridge.close()
    assert workers.close(30)
    assert not [t.name for t in threading.enumerate() if t.name.startswith((NAME, "lazystore-bridge"))]


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


class Adder:
    async def __call__(self, a: int, b: int) -> int:
        return a + b

    async def method(self, a: int, b: int) -> int:
        return a + b

    def sync(self, a: int, b: int) -> int:
        return a + b


# -- calls ------------------------------------------------------------------------------------


def test_what_is_async() -> None:
    adder = Adder()
    assert all(map(is_async, [add, adder, adder.method, functools.partial(functools.partial(add, 1), 2)]))
    assert not any(map(is_async, [adder.sync, len, Adder, lambda: add(1, 2), functools.partial(adder.sync, 1)]))
    assert Bridge.is_async(add)


def test_calls_of_either_kind_from_either_side(bridge: Bridge) -> None:
    adder = Adder()
    functions: list[Any] = [add, adder, adder.method, adder.sync, lambda a, b: add(a, b)]
    assert [bridge.call(function, 1, 2) for function in functions] == [3] * 5

    async def use() -> list[int]:
        return [await bridge.acall(function, 1, 2) for function in functions]

    assert asyncio.run(use()) == [3] * 5


def test_errors_come_as_they_are(bridge: Bridge) -> None:
    error = KeyError("mine")

    def fails() -> None:
        raise error

    async def afails() -> None:
        raise error

    async def use() -> None:
        for function in (fails, afails):
            with pytest.raises(KeyError) as caught:
                await bridge.acall(function)
            assert caught.value is error

    asyncio.run(use())
    for function in (fails, afails):
        with pytest.raises(KeyError) as caught:
            bridge.call(function)
        assert caught.value is error


def test_a_coroutine_inside_a_running_loop_is_refused(bridge: Bridge) -> None:
    async def use() -> None:
        with pytest.raises(LoadError, match=r"add is asynchronous.*aget"):
            bridge.call(add, 1, 2)
        with pytest.raises(LoadError, match="async for"):
            bridge.iterate(numbers([]))
        with pytest.raises(LoadError):
            bridge.iterate(gives(numbers([])))
        assert list(bridge.iterate([1, 2])) == [1, 2]
        assert bridge.call(max, 1, 2) == 2

    asyncio.run(use())
    bridge.call(use)  # its own loop is one, too


def test_blocking_functions_run_in_workers_in_the_caller_s_context(bridge: Bridge) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    async def use() -> None:
        name.set("task")
        assert await bridge.acall(lambda: (threading.current_thread().name[: len(NAME)], name.get())) == (NAME, "task")
        beats, gate = 0, threading.Event()
        call = asyncio.create_task(bridge.acall(gate.wait, 30))
        while beats < 10:
            await asyncio.sleep(0.001)
            beats += 1
        gate.set()
        assert await call

    asyncio.run(use())


def test_a_cancelled_call_leaves_the_queue(bridge: Bridge) -> None:
    gate = threading.Event()
    ran: list[int] = []

    async def use() -> None:
        busy = [asyncio.create_task(bridge.acall(gate.wait, 30)) for _ in range(2)]
        await asyncio.sleep(0.01)
        queued = asyncio.create_task(bridge.acall(ran.append, 1))
        await asyncio.sleep(0.01)
        queued.cancel()
        busy[0].cancel()
        await asyncio.wait((queued, busy[0]))
        gate.set()
        assert await busy[1]
        await bridge.acall(int)

    asyncio.run(use())
    assert not ran


def test_closing_ends_what_runs_on_the_own_loop(bridge: Bridge) -> None:
    begun = threading.Event()
    ended: list[Any] = []

    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("closed")

    def call() -> None:
        with pytest.raises(LoadCancelledError):
            bridge.call(hangs)
        ended.append("told")

    thread = in_thread(call)
    assert begun.wait(30)
    bridge.close()
    bridge.close()
    joined(thread)
    assert ended == ["closed", "told"]
    with pytest.raises(ClosedError):
        bridge.call(add, 1, 2)


def test_a_dropped_bridge_takes_its_loop_along() -> None:
    bridge = Bridge(Workers(1, NAME))
    assert bridge.call(add, 1, 2) == 3
    assert [t for t in threading.enumerate() if t.name == "lazystore-bridge"]
    del bridge
    gc.collect()
    until(lambda: not [t for t in threading.enumerate() if t.name == "lazystore-bridge"])


# -- iterating --------------------------------------------------------------------------------


async def numbers(log: list[Any], count: int = 5, error: Exception | None = None) -> AsyncIterator[int]:
    try:
        for k in range(count):
            log.append(k)
            yield k
        if error is not None:
            raise error
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def plain(log: list[Any], count: int = 5, error: Exception | None = None) -> Iterator[int]:
    try:
        for k in range(count):
            log.append(k)
            yield k
        if error is not None:
            raise error
    finally:
        log.append("closed")


async def gives(value: Any) -> Any:
    return value


MAKERS: list[Any] = [numbers, plain, lambda *args: gives(numbers(*args)), lambda *args: gives(plain(*args))]


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("make", MAKERS)
def test_every_item_in_order_from_either_side(make: Any, batch: int, bridge: Bridge) -> None:
    log: list[Any] = []
    assert list(bridge.iterate(make(log), batch=batch)) == list(range(5))
    assert log == [0, 1, 2, 3, 4, "closed"]

    async def use() -> list[int]:
        return [item async for item in bridge.aiterate(make(log), batch=batch)]

    log.clear()
    assert asyncio.run(use()) == list(range(5))
    assert log == [0, 1, 2, 3, 4, "closed"]


@pytest.mark.parametrize("make", MAKERS)
def test_one_item_at_a_time_unless_asked_for_more(make: Any, bridge: Bridge) -> None:
    log: list[Any] = []
    walk = bridge.iterate(make(log))
    assert not [one for one in log if one != "closed"]
    for k in range(3):
        assert next(walk) == k and log[-1] == k
    del walk
    until(lambda: log[-1] == "closed")
    log.clear()
    batched = bridge.iterate(make(log), batch=3)
    next(batched)
    assert len(log) <= 3
    del batched
    until(lambda: log[-1] == "closed")

    async def use() -> None:
        log.clear()
        async for item in bridge.aiterate(make(log)):
            assert log[-1] == item
            if item == 2:
                break
        for _ in range(2000):
            if log[-1] == "closed":
                break
            await asyncio.sleep(0.001)
        assert log == [0, 1, 2, "closed"]

    asyncio.run(use())


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("make", MAKERS)
def test_errors_come_after_the_items_before_them_and_close(make: Any, batch: int, bridge: Bridge) -> None:
    log: list[Any] = []
    error = KeyError("mine")

    def over(walk: Iterator[int]) -> list[int]:
        got = []
        with pytest.raises(KeyError) as caught:
            for item in walk:
                got.append(item)
        assert caught.value is error
        assert next(walk, "end") == "end"
        return got

    async def aover(walk: AsyncIterator[int]) -> list[int]:
        got = []
        with pytest.raises(KeyError) as caught:
            async for item in walk:
                got.append(item)
        assert caught.value is error
        with pytest.raises(StopAsyncIteration):
            await anext(walk)
        return got

    assert over(bridge.iterate(make(log, 3, error), batch=batch)) == [0, 1, 2]
    assert log == [0, 1, 2, "closed"]

    async def use() -> list[int]:
        return await aover(bridge.aiterate(make(log, 3, error), batch=batch))

    assert asyncio.run(use()) == [0, 1, 2]
    assert log == [0, 1, 2, "closed"] * 2


@pytest.mark.parametrize("make", MAKERS)
def test_closing_runs_the_source_s_finally_at_once(make: Any, bridge: Bridge) -> None:
    log: list[Any] = []
    walk: Any = bridge.iterate(make(log))
    next(walk)
    walk.close()
    assert log == [0, "closed"]
    assert next(walk, "end") == "end"
    walk.close()
    unused: Any = bridge.iterate(make(log))
    unused.close()

    async def use() -> None:
        log.clear()
        walk: Any = bridge.aiterate(make(log))
        await anext(walk)
        await walk.aclose()
        assert log == [0, "closed"]
        with pytest.raises(StopAsyncIteration):
            await anext(walk)
        await walk.aclose()
        unused: Any = bridge.aiterate(make(log))
        await unused.aclose()

    asyncio.run(use())


def test_a_blocking_source_never_blocks_the_loop_and_a_cancelled_step_loses_nothing(bridge: Bridge) -> None:
    gate = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        assert gate.wait(30)
        yield 1
        yield 2

    async def use() -> None:
        walk = bridge.aiterate(slow())
        assert await anext(walk) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(walk), 0.02)
        gate.set()
        assert [item async for item in walk] == [1, 2]

    asyncio.run(use())


def test_closing_during_a_step_closes_after_it(bridge: Bridge) -> None:
    begun, gate, log = threading.Event(), threading.Event(), list[Any]()

    def slow() -> Iterator[int]:
        try:
            begun.set()
            assert gate.wait(30)
            yield 1
        finally:
            log.append("closed")

    async def left(walk: Any) -> None:
        """A step that is under way, and whose task is cancelled."""
        step = asyncio.ensure_future(anext(walk))
        assert await asyncio.to_thread(begun.wait, 30)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step

    async def use() -> None:
        walk: Any = bridge.aiterate(slow())
        await left(walk)
        asyncio.get_running_loop().call_later(0.01, gate.set)
        await walk.aclose()
        assert log == ["closed"]

        begun.clear()
        gate.clear()
        log.clear()
        walk = bridge.aiterate(slow())
        await left(walk)
        del walk
        gate.set()

    asyncio.run(use())
    until(lambda: log == ["closed"])


def test_an_async_source_runs_in_one_task_and_context(bridge: Bridge) -> None:
    name: contextvars.ContextVar[int] = contextvars.ContextVar("name", default=-1)

    async def source() -> AsyncIterator[tuple[Any, int]]:
        async with asyncio.timeout(60):  # must be left in the task that entered it
            for k in range(3):
                name.set(name.get() + 1)
                yield asyncio.current_task(), k

    got = list(bridge.iterate(source()))
    assert len({id(task) for task, _ in got}) == 1 and [k for _, k in got] == [0, 1, 2]


def test_other_iterables_and_iterators_with_a_close(bridge: Bridge) -> None:
    class Lines:
        def __init__(self) -> None:
            self.left, self.closed = [1, 2], 0

        def __iter__(self) -> Lines:
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration
            return self.left.pop(0)

        def close(self) -> None:
            self.closed += 1

    class Rows:
        def __init__(self) -> None:
            self.left, self.closed = [1, 2], 0

        def __aiter__(self) -> Rows:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

        async def aclose(self) -> None:
            self.closed += 1

    async def use(source: Any) -> list[int]:
        return [item async for item in bridge.aiterate(source)]

    async def broken(source: Any) -> None:
        async for _ in bridge.aiterate(source):
            break
        for _ in range(2000):
            if source.closed:
                return
            await asyncio.sleep(0.001)

    for make in (Lines, Rows):
        source: Any = make()
        assert list(bridge.iterate(source)) == [1, 2] and source.closed == 1
        source = make()
        assert asyncio.run(use(source)) == [1, 2] and source.closed == 1
        source = make()
        asyncio.run(broken(source))
        assert source.closed == 1
    assert list(bridge.iterate(range(3))) == asyncio.run(use(range(3))) == [0, 1, 2]
    for batch in (0, -1):
        with pytest.raises(ConfigError):
            bridge.iterate([], batch=batch)
        with pytest.raises(ConfigError):
            bridge.aiterate([], batch=batch)


def test_closing_the_bridge_ends_iterations(bridge: Bridge) -> None:
    log: list[Any] = []
    walk = bridge.iterate(numbers(log))
    next(walk)
    bridge.close()
    assert log == [0, "closed"]
    with pytest.raises((LoadCancelledError, ClosedError), match="closed"):
        next(walk)


def test_closed_workers_end_an_iteration_with_an_error(bridge: Bridge) -> None:
    async def use() -> None:
        walk = bridge.aiterate(plain([]))
        assert await anext(walk) == 0
        bridge.workers.close()
        with pytest.raises(ClosedError):
            await anext(walk)

    asyncio.run(use())


def test_coroutines_that_nobody_awaits_are_closed_with_those_they_were_to_await() -> None:
    async def inner() -> int:
        return 1

    async def outer(first: Any) -> int:
        return int(await first)

    innermost = inner()
    value = outer(outer(innermost))
    close_unawaited(value)  # warnings are errors here
    assert inspect.getcoroutinestate(innermost) == inspect.CORO_CLOSED
    close_unawaited(value)
    close_unawaited("no coroutine")
