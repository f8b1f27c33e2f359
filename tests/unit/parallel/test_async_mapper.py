"""`aimap` keeps the promises of `imap` in an event loop, for functions of both kinds, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from support.elsewhere import long_nap, nap, square, square_but_odd

from lazystore.errors import ConfigError, ItemTimeoutError, WorkerError
from lazystore.parallel.async_mapper import AsyncImap, aimap
from lazystore.parallel.failures import Failure
from lazystore.parallel.mapper import imap

BACKENDS = ["auto", "serial", "thread", "tasks"]


def start(func: Callable[[Any], Any], data: Any, backend: str, **arguments: Any) -> AsyncImap:
    """``func`` by a backend of `imap`, or as tasks."""
    if backend == "tasks":
        return aimap(as_async(func), data, **arguments)
    return aimap(func, data, backend=backend, **arguments)


def as_async(func: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    naps = {nap: 0.01, long_nap: 0.05}

    async def run(x: Any) -> Any:
        await asyncio.sleep(naps.get(func, 0.0))
        return x if func in naps else func(x)

    return run


async def numbers(stop: int | None = None, log: list[int] | None = None) -> AsyncIterator[int]:
    for number in itertools.count() if stop is None else range(stop):
        if log is not None:
            log.append(number)
        if number % 7 == 0:
            await asyncio.sleep(0)
        yield number


def threads() -> list[threading.Thread]:
    """Those of ours that run."""
    return [thread for thread in threading.enumerate() if thread.name == "lazystore-aimap"]


@pytest.fixture(autouse=True)
def leaves_no_thread() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    while threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- results --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["range", "async", "generator"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, 500])
def test_results_come_in_order(backend: str, source: str, count: int) -> None:
    async def run() -> list[int]:
        data = {"range": range(count), "async": numbers(count), "generator": (x for x in range(count))}[source]
        return [result async for result in start(square, data, backend)]

    assert asyncio.run(run()) == [x * x for x in range(count)]


@pytest.mark.parametrize("backend", ["thread", "tasks"])
def test_unordered_results_are_all_there_and_quick_ones_first(backend: str) -> None:
    def late(x: int) -> int:
        time.sleep(0.2 * (x == 0))
        return x

    async def late_task(x: int) -> int:
        await asyncio.sleep(0.2 * (x == 0))
        return x

    async def run() -> list[int]:
        func = late_task if backend == "tasks" else late
        arguments = {} if backend == "tasks" else {"backend": backend, "chunksize": 1}
        return [x async for x in aimap(func, range(60), ordered=False, n_jobs=4, **arguments)]  # type: ignore[arg-type]

    found = asyncio.run(run())
    assert sorted(found) == list(range(60)) and found[0] != 0


def test_processes_serve_a_loop() -> None:
    async def run() -> list[int]:
        return [x async for x in aimap(square, numbers(300), backend="process", n_jobs=2)]

    assert asyncio.run(run()) == [x * x for x in range(300)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_tasks_share_one_iterator(backend: str) -> None:
    async def run() -> list[int]:
        found: list[int] = []
        results = start(square, range(300), backend)

        async def take() -> None:
            async for result in results:
                found.append(result)
                await asyncio.sleep(0)

        await asyncio.gather(*(take() for _ in range(4)))
        return found

    assert sorted(asyncio.run(run())) == sorted(x * x for x in range(300))


# -- a bounded window -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_endless_source_is_read_no_further_than_a_window_ahead(backend: str) -> None:
    async def run() -> None:
        log: list[int] = []
        async with start(nap, numbers(log=log), backend, n_jobs=4) as results:
            taken = [await anext(results) for _ in range(30)]
            assert taken == list(range(30))
            while True:  # nobody asks any more: it comes to rest
                seen = len(log)
                await asyncio.sleep(0.15)
                if len(log) == seen:
                    break
                assert len(log) < 2000
            assert len(log) < 500

    asyncio.run(run())


def test_tasks_take_no_more_items_than_they_said() -> None:
    async def run() -> None:
        log: list[int] = []
        most = 0
        running = 0

        async def one(x: int) -> int:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.1 if x == 0 else 0.001)
            running -= 1
            return x

        async with aimap(one, numbers(log=log), n_jobs=5) as results:
            for k in range(100):
                assert await anext(results) == k
                assert len(log) <= k + 1 + 2 * 5
        assert most == 5

    asyncio.run(run())


def test_tasks_wait_while_finished_results_weigh_too_much() -> None:
    async def run() -> int:
        log: list[int] = []

        async def heavy(x: int) -> bytes:
            await asyncio.sleep(0)
            return bytes(1000)

        async with aimap(heavy, numbers(log=log), max_buffer_bytes=3000, n_jobs=32) as results:
            for _ in range(10):
                await anext(results)
                await asyncio.sleep(0.01)
            return results.stats.peak_bytes

    assert asyncio.run(run()) < 32 * 1100 + 3000


@pytest.mark.parametrize("backend", ["auto", "serial", "thread", "process"])
def test_the_loop_goes_on_while_items_are_worked_on(backend: str) -> None:
    async def run() -> tuple[int, float]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.create_task(tick())
        began = time.monotonic()
        assert [x async for x in aimap(long_nap, range(8), backend=backend, n_jobs=2)] == list(range(8))
        ticker.cancel()
        return ticks, time.monotonic() - began

    ticks, seconds = asyncio.run(run())
    assert ticks >= 0.1 * seconds / 0.005  # blocked, it would tick once an item or not at all


def test_the_loop_gets_its_turn_while_results_are_at_hand() -> None:
    async def run() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        async for _ in aimap(square, range(2000), backend="serial"):
            time.sleep(0.00005)  # a consumer that never awaits
        counting.cancel()
        return turns

    assert asyncio.run(run()) > 10


# -- cancelling and leaving -----------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_wait_loses_no_result(backend: str) -> None:
    async def run() -> list[int]:
        found: list[int] = []
        cancelled = 0
        results = start(nap, numbers(40), backend, n_jobs=2)
        while True:
            try:
                found.append(await asyncio.wait_for(anext(results), 0.003))
            except TimeoutError:
                cancelled += 1
            except StopAsyncIteration:
                break
        assert cancelled
        return found

    assert asyncio.run(run()) == list(range(40))


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_in_the_middle_stops_everything(backend: str) -> None:
    async def run() -> None:
        log: list[int] = []
        async with start(nap, numbers(log=log), backend, n_jobs=2) as results:
            async for result in results:
                if result == 5:
                    break
        assert not threads()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        seen = len(log)
        await asyncio.sleep(0.05)
        assert len(log) == seen
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        await results.aclose()
        assert "closed" in repr(results)

    asyncio.run(run())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_end_of_the_loop_ends_what_was_left_open(backend: str) -> None:
    kept = []

    async def run() -> None:
        results = start(nap, numbers(), backend, n_jobs=2)
        kept.append(results)
        assert await anext(results) == 0

    asyncio.run(run())
    assert not threads()


def test_a_loop_that_just_stops_does_not_keep_the_thread() -> None:
    loop = asyncio.new_event_loop()
    results = aimap(nap, range(10**9), backend="serial")
    assert loop.run_until_complete(anext(results)) == 0
    assert threads()
    loop.close()
    deadline = time.monotonic() + 20
    while threads():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert repr(results)  # held all the time


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropping_the_iterator_ends_it(backend: str) -> None:
    async def run() -> None:
        results = start(nap, range(10**9), backend, n_jobs=2)
        assert await anext(results) == 0
        del results
        gc.collect()
        deadline = time.monotonic() + 20
        while len(asyncio.all_tasks()) > 1 or threads():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())


@pytest.mark.parametrize("backend", ["serial", "tasks"])
def test_whoever_waits_is_told_when_another_closes(backend: str) -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3600)

    async def run() -> None:
        results = start(square, silent(), backend)
        assert await anext(results) == 1
        waiting = asyncio.ensure_future(anext(results, "the end"))
        await asyncio.sleep(0.02)
        await results.aclose()
        assert await asyncio.wait_for(waiting, 20) == "the end"

    asyncio.run(run())


def test_a_cancelled_task_leaves_no_thread_behind() -> None:
    async def consume() -> None:
        async for _ in aimap(nap, numbers(), n_jobs=2):
            pass

    async def run() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


# -- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_comes_in_its_place_with_the_item_named_and_iteration_goes_on(backend: str) -> None:
    async def run() -> None:
        results = start(square_but_odd, range(6), backend)
        found: list[Any] = []
        while True:
            try:
                found.append(await anext(results))
            except ValueError as error:
                found.append(str(error))
                assert any(f"item {len(found) - 1}" in note for note in error.__notes__)
            except StopAsyncIteration:
                break
        assert found == [0, "odd 1", 4, 9, "odd 4", 25]

    asyncio.run(run())


@pytest.mark.parametrize("on_error", ["yield", "skip", "callable"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_failures_are_treated_as_imap_treats_them(backend: str, on_error: str) -> None:
    policy: Any = (lambda failure: -failure.index) if on_error == "callable" else on_error

    def told(result: Any) -> Any:
        return (result.index, result.item, str(result.error)) if isinstance(result, Failure) else result

    async def run() -> list[Any]:
        return [told(x) async for x in start(square_but_odd, range(50), backend, on_error=policy, retries=1)]

    expected = [told(x) for x in imap(square_but_odd, range(50), backend="serial", on_error=policy, retries=1)]
    assert asyncio.run(run()) == expected


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_the_data_comes_after_the_results_before_it(backend: str, asynchronous: bool) -> None:
    def broken() -> Iterator[int]:
        yield from range(20)
        raise KeyError("the data broke")

    async def broken_async() -> AsyncIterator[int]:
        for x in broken():
            yield x

    async def run() -> list[int]:
        found = []
        with pytest.raises(KeyError, match="the data broke"):
            async for result in start(square, broken_async() if asynchronous else broken(), backend):
                found.append(result)
        return found

    assert asyncio.run(run()) == [x * x for x in range(20)]


def test_retries_of_an_async_function_are_counted() -> None:
    tries: dict[int, int] = {}

    async def flaky(x: int) -> int:
        tries[x] = tries.get(x, 0) + 1
        if tries[x] <= x % 3:
            raise OSError("again")
        return x

    async def run() -> AsyncImap:
        results = aimap(flaky, range(9), retries=2)
        assert [x async for x in results] == list(range(9))
        return results

    stats = asyncio.run(run()).stats
    assert (stats.retried, stats.failed, stats.done) == (9, 0, 9)


def test_an_async_item_that_takes_too_long_fails_alone() -> None:
    async def slow(x: int) -> int:
        if x == 2:
            await asyncio.sleep(3600)
        if x == 3:
            raise TimeoutError("its own")
        return x

    async def run() -> list[Any]:
        return [x async for x in aimap(slow, range(5), timeout=0.05, on_error="yield")]

    found = asyncio.run(run())
    assert [x for x in found if not isinstance(x, Failure)] == [0, 1, 4]
    assert isinstance(found[2].error, ItemTimeoutError) and found[2].error.index == 2
    assert type(found[3].error) is TimeoutError


def test_a_function_that_is_cancelled_from_within_fails_as_an_item() -> None:
    async def gives_up(x: int) -> int:
        if x == 1:
            raise asyncio.CancelledError
        return x

    async def run() -> list[Any]:
        return [x async for x in aimap(gives_up, range(3), on_error="yield")]

    found = asyncio.run(run())
    assert [found[0], found[2]] == [0, 2] and isinstance(found[1].error, WorkerError)


def test_a_stop_iteration_of_the_function_does_not_look_like_the_end() -> None:
    async def stops(x: int) -> int:
        if x == 1:
            raise StopAsyncIteration
        return x

    async def run() -> None:
        results = aimap(stops, range(3))
        assert await anext(results) == 0
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            await anext(results)
        assert await anext(results) == 2

    asyncio.run(run())


def test_a_function_that_only_returns_coroutines_is_refused() -> None:
    async def fetch(x: int) -> int:
        return x

    async def run() -> None:
        async with aimap(lambda x: fetch(x), range(3), backend="serial") as results:
            with pytest.raises(ConfigError, match="async def"):
                await anext(results)

    asyncio.run(run())


@pytest.mark.parametrize(
    "wrong",
    [{"n_jobs": 0}, {"retries": -1}, {"timeout": 0}, {"on_error": "ignore"}, {"backend": "process"}, {"chunksize": 4}],
    ids=str,
)
def test_arguments_of_an_async_function_are_checked_at_once(wrong: dict[str, Any]) -> None:
    async def run() -> None:
        with pytest.raises(ConfigError):
            aimap(as_async(square), [1], **wrong)

    asyncio.run(run())


# -- around it ------------------------------------------------------------------------------


def test_an_initializer_runs_once_before_the_first_item_and_is_awaited() -> None:
    calls: list[str] = []

    async def prepare() -> None:
        await asyncio.sleep(0)
        calls.append("ready")

    async def one(x: int) -> int:
        calls.append(f"item {x}")
        return x

    async def run() -> None:
        assert [x async for x in aimap(one, range(3), initializer=prepare)] == [0, 1, 2]

    asyncio.run(run())
    assert calls == ["ready", "item 0", "item 1", "item 2"]


def test_context_variables_of_the_caller_are_seen() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    async def run() -> list[str]:
        user.set("anna")
        return [x async for x in aimap(lambda x: user.get(), range(2), backend="serial")]

    assert asyncio.run(run()) == ["anna", "anna"]


def test_stats_of_tasks_add_up() -> None:
    async def one(x: int) -> int:
        await asyncio.sleep(0.001)
        return square_but_odd(x)

    async def run() -> AsyncImap:
        results = aimap(one, range(30), n_jobs=3, on_error="skip")
        assert [x async for x in results] == [x * x for x in range(30) if x % 3 != 1]
        return results

    stats = asyncio.run(run()).stats
    assert (stats.done, stats.failed, stats.skipped, stats.handed_out) == (30, 10, 10, 20)
    assert stats.backend == "tasks" and stats.over and stats.executing_s >= 0.03 and stats.peak_items <= 6
