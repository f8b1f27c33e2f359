from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazystore.cache.tiers import Tiers
from lazystore.errors import ClosedError, LoadCancelledError, LoadTimeoutError
from lazystore.lazy.handle import Handle

PATIENCE = 20.0


@pytest.fixture(params=[1 << 20, 0], ids=["cached", "uncached"])
def tiers(request: pytest.FixtureRequest) -> Iterator[Tiers]:
    tiers = Tiers(memory=request.param)
    yield tiers
    tiers.close()


class Loader:
    """Counts its calls; waits for ``go`` if there is one."""

    def __init__(self, value: Any = "value", *, held: bool = False, error: Exception | None = None) -> None:
        self.value, self.error = value, error
        self.calls = 0
        self.entered, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.value


async def forty_two() -> int:
    await asyncio.sleep(0)
    return 42


def test_nothing_runs_before_it_is_asked(tiers: Tiers) -> None:
    load = Loader()
    handle = Handle(tiers, "k", load)
    assert load.calls == 0 and not handle.done and handle.error is None
    assert handle.peek() is None and handle.peek("nothing yet") == "nothing yet"
    assert "not asked yet" in repr(handle) and "'k'" in repr(handle)
    assert load.calls == 0


def test_get_loads_once_and_remembers(tiers: Tiers) -> None:
    load = Loader(None)
    handle = Handle(tiers, "k", load)
    assert handle.get() is None and handle.get() is None and handle.peek("other") is None
    tiers.clear()
    assert handle.get() is None, "it keeps its value, whatever becomes of the cache"
    assert load.calls == 1 and handle.done and "done" in repr(handle)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lazystore-load")]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_await_gives_what_sync_and_async_loads_give(tiers: Tiers, asynchronous: bool) -> None:
    async def main() -> None:
        handle = Handle(tiers, "k", forty_two if asynchronous else Loader(42))
        assert await handle == 42 and await handle == 42
        assert handle.done and handle.get() == 42, "done, so that it does not block the loop"

    asyncio.run(main())


def test_get_of_an_async_load_runs_it_on_the_own_loop(tiers: Tiers) -> None:
    assert Handle(tiers, "k", forty_two).get() == 42
    assert Handle(tiers, "j", lambda: forty_two()).get() == 42


def test_many_threads_and_tasks_load_once(tiers: Tiers) -> None:
    load = Loader(object(), held=True)
    handle = Handle(tiers, "k", load)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(handle.get())) for _ in range(16)]

    async def main() -> None:
        waiting = [asyncio.ensure_future(_awaited(handle)) for _ in range(50)]
        while not load.entered.is_set():
            await asyncio.sleep(0.001)
        load.go.set()
        found.extend(await asyncio.gather(*waiting))

    for thread in threads:
        thread.start()
    asyncio.run(main())
    for thread in threads:
        thread.join()
    assert load.calls == 1 and len(found) == 66 and all(value is load.value for value in found)


async def _awaited(handle: Handle[Any]) -> Any:
    return await handle


def test_late_threads_find_the_value_also_where_nothing_is_cached(tiers: Tiers) -> None:
    for _ in range(30):
        load = Loader(1)
        handle = Handle(tiers, object(), load)
        threads = [threading.Thread(target=handle.get) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert load.calls == 1


def test_an_error_is_raised_as_it_is_and_stays(tiers: Tiers) -> None:
    error = LookupError("not there")
    load = Loader(error=error)
    handle = Handle(tiers, "k", load)
    depths = []
    for _ in range(3):
        with pytest.raises(LookupError, match="not there") as caught:
            handle.get()
        assert caught.value is error
        depths.append(len(caught.traceback))
    assert load.calls == 1 and handle.done and handle.error is error and handle.peek("none") == "none"
    assert depths[1] == depths[2], "raising it again does not make its traceback grow"
    assert "LookupError" in repr(handle)
    assert not handle.cancel()

    async def main() -> None:
        with pytest.raises(LookupError):
            await handle

    asyncio.run(main())


def test_a_wait_that_is_too_short_ends_the_wait_and_not_the_load(tiers: Tiers) -> None:
    load = Loader("late", held=True)
    handle = Handle(tiers, "k", load)
    with pytest.raises(LoadTimeoutError):
        handle.get(timeout=0.02)
    assert not handle.done and handle.error is None
    load.go.set()
    assert handle.get(timeout=PATIENCE) == "late"
    assert load.calls == 1


def test_a_handles_own_timeout_holds_for_get_and_await(tiers: Tiers) -> None:
    load = Loader(held=True)
    handle = Handle(tiers, "k", load, timeout=0.02)

    async def main() -> None:
        with pytest.raises(LoadTimeoutError):
            await handle

    asyncio.run(main())
    with pytest.raises(LoadTimeoutError):
        handle.get()
    load.go.set()
    assert handle.get(timeout=PATIENCE) == "value"


def test_a_cancelled_handle_never_loads(tiers: Tiers) -> None:
    load = Loader()
    handle = Handle(tiers, "k", load)
    assert handle.cancel() and handle.cancel() and handle.done
    with pytest.raises(LoadCancelledError, match="'k' was cancelled before it began"):
        handle.get()
    assert isinstance(handle.error, LoadCancelledError) and "cancelled" in repr(handle) and load.calls == 0


def test_a_load_that_began_is_not_cancelled(tiers: Tiers) -> None:
    load = Loader(held=True)
    handle = Handle(tiers, "k", load)
    thread = threading.Thread(target=handle.get)
    thread.start()
    assert load.entered.wait(PATIENCE)
    assert not handle.cancel() and "loading" in repr(handle)
    load.go.set()
    thread.join()
    assert handle.get() == "value" and not handle.cancel()


def test_a_cancelled_task_does_not_cancel_for_others(tiers: Tiers) -> None:
    async def main() -> None:
        load = Loader("kept", held=True)
        handle = Handle(tiers, "k", load)
        leaver, stayer = asyncio.ensure_future(_awaited(handle)), asyncio.ensure_future(_awaited(handle))
        while not load.entered.is_set():
            await asyncio.sleep(0.001)
        leaver.cancel()
        await asyncio.sleep(0)
        load.go.set()
        assert await stayer == "kept" and load.calls == 1

    asyncio.run(main())


def test_peek_sees_what_the_cache_has() -> None:
    tiers = Tiers(memory=1 << 20)
    load = Loader()
    tiers.put("k", "cached")
    handle = Handle(tiers, "k", load)
    assert handle.peek() == "cached" and not handle.done
    assert handle.get() == "cached" and load.calls == 0 and handle.done
    tiers.close()


def test_after_close_it_keeps_what_it_has_and_loads_no_more(tiers: Tiers) -> None:
    done, not_done = Handle(tiers, "a", Loader(1)), Handle(tiers, "b", Loader(2))
    assert done.get() == 1
    tiers.close()
    assert done.get() == 1
    with pytest.raises(ClosedError):
        not_done.get()


def test_options_reach_the_tiers() -> None:
    tiers = Tiers(memory=1 << 20)
    assert Handle(tiers, "k", Loader(1), keep=False).get() == 1
    assert tiers.peek("k", "nothing") == "nothing"
    tiers.close()


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy])
def test_it_is_not_pickled_nor_copied(tiers: Tiers, how: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="pickle its value"):
        how(Handle(tiers, "k", Loader()))


def test_it_is_no_stand_in_for_its_value(tiers: Tiers) -> None:
    handle: Any = Handle(tiers, "k", Loader([1, 2]))
    with pytest.raises(TypeError):
        iter(handle)
    with pytest.raises(AttributeError):
        handle.append(3)
