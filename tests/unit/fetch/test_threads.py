"""Threads are few, daemons, and gone after closing."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from lazystore.fetch.threads import DaemonPool, LoopThread


def test_a_loop_thread_runs_until_it_is_stopped() -> None:
    thread = LoopThread("testing-loop")

    async def where() -> str:
        return threading.current_thread().name

    assert asyncio.run_coroutine_threadsafe(where(), thread.loop).result(10) == "testing-loop"
    thread.stop()
    thread.stop()
    assert thread.loop.is_closed()
    assert "testing-loop" not in {t.name for t in threading.enumerate()}


def test_a_loop_may_stop_itself() -> None:
    thread = LoopThread("testing-loop")
    running = thread._thread
    assert running.daemon
    thread.loop.call_soon_threadsafe(thread.stop)
    running.join(10)
    assert not running.is_alive()


def pool_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("testing-pool")]


def test_calls_share_a_bounded_number_of_daemon_threads() -> None:
    pool = DaemonPool(3, "testing-pool")
    assert pool_threads() == []
    at_once = [0, 0]
    lock = threading.Lock()

    def call(value: int) -> int:
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        time.sleep(0.005)
        with lock:
            at_once[0] -= 1
        return value * 2

    async def scene() -> list[int]:
        return list(await asyncio.gather(*[pool.call(call, i) for i in range(30)]))

    assert asyncio.run(scene()) == [i * 2 for i in range(30)]
    assert at_once[1] <= 3
    assert len(pool_threads()) == 3
    assert all(thread.daemon for thread in pool_threads())
    pool.close()
    assert pool_threads() == []


def test_one_call_after_the_other_needs_one_thread() -> None:
    pool = DaemonPool(8, "testing-pool")

    async def scene() -> None:
        for i in range(5):
            assert await pool.call(lambda x: x, i) == i
            await asyncio.sleep(0.02)  # the thread reports idle after the result

    asyncio.run(scene())
    assert len(pool_threads()) <= 2
    pool.close()


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (ValueError("x"), ValueError),
        (StopIteration(), RuntimeError),
        (KeyboardInterrupt(), RuntimeError),
        (asyncio.CancelledError(), RuntimeError),
    ],
)
def test_errors_reach_the_caller_and_spare_the_loop(raised: BaseException, seen: type[Exception]) -> None:
    pool = DaemonPool(2, "testing-pool")

    def call() -> Any:
        raise raised

    async def scene() -> None:
        with pytest.raises(seen):
            await pool.call(call)
        assert await pool.call(lambda: 5) == 5

    asyncio.run(scene())
    pool.close()


def test_a_result_nobody_waits_for_is_dropped() -> None:
    pool = DaemonPool(1, "testing-pool")
    release = threading.Event()

    async def scene() -> None:
        task = asyncio.create_task(pool.call(release.wait, 10))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        release.set()
        assert await pool.call(lambda: 7) == 7

    asyncio.run(scene())
    pool.close()
