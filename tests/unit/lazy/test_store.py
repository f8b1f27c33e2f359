"""`LazyStore`: one engine over any source. What each verb promises, in threads and in event loops."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazystore.cache.disk import DiskTier
from lazystore.errors import (
    ClosedError,
    ConfigError,
    KeyNotFoundError,
    LoadTimeoutError,
    ReentrantLoadError,
    UnhashableKeyError,
    UnsupportedError,
)
from lazystore.lazy.source import Source
from lazystore.lazy.store import LazyStore, default_store
from lazystore.lazy.strategy import DataSize, Strategy


class Counted:
    """A loader that remembers what it was asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[Any] = []
        self.threads: set[str] = set()
        self.seconds = seconds
        self._lock = threading.Lock()

    def __call__(self, key: Any) -> Any:
        with self._lock:
            self.asked.append(key)
            self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        return {"key": key}


def rows(offset: int, limit: int) -> list[int]:
    return list(range(offset, min(offset + limit, 120)))


def double(key: int) -> int:
    return key * 2


# -- get ------------------------------------------------------------------------------------


def test_a_value_is_loaded_once_and_then_found() -> None:
    load = Counted()
    with LazyStore.from_keys(load) as store:
        assert store.get("a") is store.get("a")
        assert load.asked == ["a"]
        stats = store.stats()
        assert (stats["requests"], stats["misses"], stats["hits"]) == (2, 1, 1)


def test_nothing_is_a_value_like_any_other() -> None:
    calls: list[int] = []
    with LazyStore.from_keys(calls.append) as store:
        assert store.get(1) is None
        assert store.get(1) is None
    assert calls == [1]


def test_a_sync_loader_runs_in_the_calling_thread_and_starts_none() -> None:
    load = Counted()
    before = threading.active_count()
    with LazyStore.from_keys(load, prefetch=0) as store:
        for key in range(50):
            store.get(key)
        assert threading.active_count() == before
    assert load.threads == {threading.current_thread().name}


def test_what_a_loader_raises_comes_as_it_is_and_is_asked_again() -> None:
    calls = []

    def load(key: Any) -> Any:
        calls.append(key)
        raise LookupError(f"no {key}")

    with LazyStore.from_keys(load) as store:
        for _ in range(2):
            with pytest.raises(LookupError, match="no x"):
                store.get("x")
        assert len(calls) == 2
        assert store.stats()["load_errors"] == 2


def test_a_fallback_stands_in_and_is_counted() -> None:
    def load(key: Any) -> Any:
        raise OSError("down")

    with LazyStore.from_keys(load) as store:
        assert store.get(1, fallback=None) is None
        assert store.get(2, fallback=lambda key: key + 1) == 3
        assert store.stats()["fallbacks"] == 2

        async def other() -> None:
            async def later(key: int) -> int:
                return key + 2

            assert await store.aget(3, fallback=later) == 5

        asyncio.run(other())


def test_no_fallback_hides_a_mistake() -> None:
    store = LazyStore.from_keys(double)
    with pytest.raises(UnhashableKeyError, match="key="):
        store.get([1], fallback=0)
    store.close()
    with pytest.raises(ClosedError):
        store.get(1, fallback=0)


def test_a_key_function_makes_keys_of_what_is_not_hashable() -> None:
    load = Counted()
    with LazyStore.from_keys(load, key=lambda query: tuple(sorted(query.items()))) as store:
        assert store.get({"a": 1, "b": 2}) is store.get({"b": 2, "a": 1})
        assert store.invalidate({"a": 1, "b": 2})
        store.get({"a": 1, "b": 2})
    assert len(load.asked) == 2


def test_a_load_that_hangs_is_left_at_the_timeout_and_lands_for_others() -> None:
    go = threading.Event()

    def load(key: Any) -> Any:
        go.wait(30)
        return key

    with LazyStore.from_keys(load) as store:
        begun = time.monotonic()
        with pytest.raises(LoadTimeoutError):
            store.get(1, timeout=0.05)
        assert time.monotonic() - begun < 20
        go.set()
        assert store.get(1, timeout=30) == 1


@pytest.mark.parametrize("timeout", [0, -1, True, "soon"])
def test_a_timeout_is_seconds(timeout: Any) -> None:
    with LazyStore.from_keys(double) as store, pytest.raises(ConfigError, match="timeout"):
        store.get(1, timeout=timeout)


@pytest.mark.parametrize("ttl", [0, -1, True, float("nan"), "soon"])
def test_a_ttl_is_checked_before_anything_is_loaded(ttl: Any) -> None:
    load = Counted()
    with LazyStore.from_keys(load) as store, pytest.raises(ConfigError, match="ttl="):
        store.get(1, ttl=ttl)
    assert load.asked == []


@pytest.mark.parametrize("ttl", [float("inf"), 1e300, None, 1e-9])
def test_any_time_above_zero_is_a_ttl(ttl: float | None) -> None:
    with LazyStore.from_keys(double, ttl=ttl, stale_if_error=float("inf"), negative_ttl=1e12) as store:
        assert store.get(1) == 2
        assert store.get(2, ttl=ttl) == 4


@pytest.mark.parametrize(
    "wrong",
    [{"secret": 5}, {"secret": b""}, {"secret": []}, {"storage_options": 5}, {"disk": 5}, {"disk": ""}, {"speed": 9}],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_when_the_store_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LazyStore.from_keys(double, **wrong)


@pytest.mark.parametrize("memory", [0, "10kB", "8MB", "16MB"])
def test_a_stream_fits_any_budget_unless_its_window_was_asked_for(memory: Any) -> None:
    with LazyStore(memory=memory) as store, store.stream(iter(range(100))) as stream:
        assert list(stream) == list(range(100))


def test_a_loader_that_asks_for_its_own_key_is_told() -> None:
    store = LazyStore.from_keys(lambda key: store.get(key))
    with pytest.raises(ReentrantLoadError):
        store.get(1)
    store.close()


def test_a_loader_may_ask_for_other_keys() -> None:
    store = LazyStore.from_keys(lambda n: n if n < 2 else store.get(n - 1) + store.get(n - 2), concurrency=1)
    assert store.get(30) == 832040
    store.close()


def test_many_threads_and_tasks_load_a_cold_key_once() -> None:
    load = Counted(seconds=0.05)
    with LazyStore.from_keys(load) as store:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(store.get("k"))) for _ in range(16)]

        async def tasks() -> None:
            found.extend(await asyncio.gather(*(store.aget("k") for _ in range(200))))

        threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert load.asked == ["k"]
        assert len(found) == 216 and all(one is found[0] for one in found)
        stats = store.stats()
        assert stats["hits"] + stats["misses"] + stats["joins"] == stats["requests"]


def test_a_sync_loader_does_not_block_the_loop() -> None:
    async def main() -> int:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.005)

        heart = asyncio.create_task(beat())
        async with LazyStore.from_keys(Counted(seconds=0.3)) as store:
            await store.aget(1)
        heart.cancel()
        return beats

    assert asyncio.run(main()) > 5


def test_async_loaders_work_from_threads_and_from_loops() -> None:
    async def load(key: int) -> int:
        await asyncio.sleep(0.001)
        return key + 1

    with LazyStore.from_keys(load) as store:
        assert store.get(1) == 2

        async def main() -> list[int]:
            return list(await asyncio.gather(store.aget(1), store.aget(5), store.aget(5)))

        assert asyncio.run(main()) == [2, 6, 6]


# -- sources --------------------------------------------------------------------------------


def test_a_sequence_is_read_in_place() -> None:
    data = [{"id": n} for n in range(7)]
    with LazyStore(data) as store:
        assert store.get(3) is data[3] and len(store) == 7
        assert [len(page) for page in store.pages(size=3)] == [3, 3, 1]
        assert store.stats()["entries"] == 0


def test_a_mapping_raises_its_own_error() -> None:
    with LazyStore({"a": 1}) as store:
        assert store.get("a") == 1
        with pytest.raises(KeyError, match="b"):
            store.get("b")


def test_items_of_a_range_come_out_of_cached_parts() -> None:
    asked: list[tuple[int, int]] = []

    def load(offset: int, limit: int) -> list[int]:
        asked.append((offset, limit))
        return rows(offset, limit)

    with LazyStore.from_range(load, page=10, prefetch=0) as store:
        assert [store.get(n) for n in (3, 4, 35)] == [3, 4, 35]
        assert len(asked) == 2


def test_bytes_of_a_file_by_slice(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    path = tmp_path / "object.bin"
    path.write_bytes(data)
    for store in (LazyStore(path), LazyStore.open(str(path)), LazyStore(data)):
        with store:
            assert len(store) == len(data)
            assert bytes(store.get(slice(5, 70_000))) == data[5:70_000]
            assert bytes(store.get((299_990, 100))) == data[299_990:]
            assert b"".join(bytes(getattr(c, "data", c)) for c in store.chunks(chunk=65536)) == data


def test_a_store_opens_files(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    with LazyStore() as store:
        with store.open(path) as file:
            assert file.read() == b"one\ntwo\n"
        with store.open(path, "r") as file:
            assert list(file) == ["one\n", "two\n"]
        with pytest.raises(UnsupportedError, match="only reads"):
            store.open(path, "w")


def test_a_function_must_say_what_it_takes() -> None:
    with pytest.raises(ConfigError, match="from_keys"):
        LazyStore(double)


def test_a_call_without_a_source_says_what_to_do() -> None:
    with LazyStore() as store:
        for call in (lambda: store.get(1), store.page, store.chunks, store.stream):
            with pytest.raises(ConfigError, match="no source"):
                call()


def test_what_a_source_cannot_do_is_said() -> None:
    with LazyStore.from_keys(double) as store:
        for call in (store.page, store.stream, lambda: len(store)):
            with pytest.raises(UnsupportedError):
                call()


# -- load -----------------------------------------------------------------------------------


def test_eager_gives_the_value_once_loaded() -> None:
    load = Counted()
    with LazyStore() as store:
        for _ in range(2):
            assert store.load("x", functools.partial(load, 1), Strategy.EAGER) == {"key": 1}
    assert load.asked == [1]


def test_lazy_gives_a_handle_that_loads_when_asked() -> None:
    load = Counted()
    with LazyStore() as store:
        handle = store.load("x", functools.partial(load, 1), "lazy")
        assert load.asked == [] and not handle.done and handle.peek("nothing") == "nothing"
        assert handle.get() == {"key": 1} and handle.done

        async def main() -> Any:
            return await store.load("y", functools.partial(load, 2), Strategy.LAZY)

        assert asyncio.run(main()) == {"key": 2}


def test_background_gives_a_handle_that_is_under_way() -> None:
    load = Counted()
    with LazyStore() as store:
        handle = store.load("x", functools.partial(load, 1), Strategy.BACKGROUND, priority=2)
        deadline = time.monotonic() + 30
        while not load.asked and time.monotonic() < deadline:
            time.sleep(0.001)
        assert load.asked == [1]
        assert handle.get(30) == {"key": 1}
        assert load.threads != {threading.current_thread().name}


def test_streaming_gives_one_ordered_pass() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)

    async def later() -> AsyncIterator[int]:
        for n in range(5):
            yield n

    with LazyStore() as store:
        for loader in (numbers, later):
            with store.load(loader.__name__, loader, Strategy.STREAMING) as stream:
                assert list(stream) == [0, 1, 2, 3, 4]


def test_chunked_gives_parts_by_number() -> None:
    with LazyStore() as store:
        parts = store.load("x", lambda: list(range(10)), Strategy.CHUNKED, items=4)
        assert len(parts) == 3
        assert [list(getattr(part, "data", part)) for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_chunked_loads_each_part_of_a_range_by_itself() -> None:
    asked: list[int] = []

    def load(offset: int, limit: int) -> list[int]:
        asked.append(offset)
        return rows(offset, limit)

    with LazyStore() as store:
        parts = store.load("x", Source.from_range(load, size=120), Strategy.CHUNKED, items=50, prefetch=0)
        assert len(parts) == 3 and asked == []
        assert list(getattr(parts[2], "data", parts[2])) == list(range(100, 120))
        assert asked == [100]


def test_paginated_gives_pages() -> None:
    with LazyStore() as store:
        found = store.load("x", lambda: list(range(10)), Strategy.PAGINATED, size=4)
        assert [list(page) for page in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_auto_calls_no_loader_twice_and_says_why() -> None:
    load = Counted()

    def numbers() -> Iterator[int]:
        load(0)
        yield 1

    with LazyStore() as store:
        assert store.load("value", functools.partial(load, 1)) == {"key": 1}
        with store.load("stream", numbers) as stream:
            assert load.asked == [1]
            assert list(stream) == [1]
        assert load.asked == [1, 0]
        assert store.load("bytes", b"x" * 100) == b"x" * 100
        choices = store.stats()["auto_choices"]
        assert sum(choices.values()) == 3 and any("STREAMING" in choice for choice in choices)


@pytest.mark.parametrize(
    ("nbytes", "strategy"),
    [(10, "eager"), (5_000_000, "lazy"), (50_000_000, "chunked"), (500_000_000, "streaming")],
)
def test_auto_follows_the_size_that_is_given(nbytes: int, strategy: str) -> None:
    with LazyStore() as store:
        found = store.load("x", lambda: [1, 2], nbytes=nbytes)
        assert store.stats()["operations"][strategy] == 1
        if strategy == "streaming":
            found.close()


@pytest.mark.parametrize("strategy", ["quick", 3, None])
def test_an_unknown_strategy_names_the_known_ones(strategy: Any) -> None:
    with LazyStore() as store, pytest.raises(ConfigError, match="EAGER"):
        store.load("x", list, strategy)


def test_a_setting_of_another_strategy_is_refused() -> None:
    with LazyStore() as store, pytest.raises(ConfigError, match="items"):
        store.load("x", list, Strategy.EAGER, items=3)


def test_loads_are_awaited_in_loops() -> None:
    async def load() -> list[int]:
        await asyncio.sleep(0)
        return list(range(5))

    async def main() -> None:
        async with LazyStore() as store:
            assert await store.aload("x", load, Strategy.EAGER) == [0, 1, 2, 3, 4]
            pages = await store.aload("x", load, Strategy.PAGINATED, size=2)
            assert [len(page) async for page in pages] == [2, 2, 1]
            parts = await store.aload("x", load, Strategy.CHUNKED, items=2)
            assert [len(part) async for part in parts] == [2, 2, 1]
            assert store.stats()["loads"] == 1

    asyncio.run(main())


# -- the rest -------------------------------------------------------------------------------


def test_what_is_invalidated_is_loaded_again() -> None:
    load = Counted()
    with LazyStore.from_keys(load) as store:
        store.get("user:1")
        store.get("item:1")
        assert store.invalidate("user:1") and not store.invalidate("user:2")
        store.get("user:1")
        assert store.clear(prefix="user:") == 1
        store.get("item:1")
        assert load.asked == ["user:1", "item:1", "user:1"]
        assert store.clear() == 1


def test_prefetched_keys_are_there_when_asked_for() -> None:
    load = Counted()
    with LazyStore.from_keys(load) as store:
        for handle in store.prefetch(["a", "b"], priority=1):
            handle.get(30)
        assert store.get("a") == {"key": "a"}
        assert sorted(load.asked) == ["a", "b"]
        assert store.stats()["prefetch_used"] >= 1


def test_pages_count_from_one() -> None:
    with LazyStore.from_range(rows) as store:
        with pytest.raises(ConfigError, match="count from 1"):
            store.page(0)
        for size in (0, -3):
            with pytest.raises(ConfigError, match="size"):
                store.page(1, size=size)
        assert list(store.page(2, size=50)) == list(range(50, 100))
        assert [page.page for page in store.load_pages(1, 9)] == [1, 2, 3]


def test_filters_reach_the_function_and_the_cache_key() -> None:
    def load(offset: int, limit: int, user: int = 0) -> list[int]:
        return [user] * min(limit, 2 - offset)

    with LazyStore.from_range(load) as store:
        assert list(store.page(1, user=7)) == [7, 7]
        assert list(store.page(1, user=8)) == [8, 8]


def test_cursors_end_with_the_store_unless_a_secret_is_given() -> None:
    def made(secret: bytes | None) -> LazyStore:
        return LazyStore.from_range(rows, secret=secret)

    secret = b"0123456789abcdef"
    with made(secret) as one, made(secret) as two, made(None) as stranger:
        cursor = one.page(1).next_cursor
        assert list(two.page(cursor=cursor)) == list(one.page(2))
        with pytest.raises(ConfigError):
            stranger.page(cursor=cursor)


def test_health_is_well_until_loads_fail() -> None:
    def load(key: int) -> int:
        if key < 0:
            raise OSError("down")
        return key

    with LazyStore.from_keys(load) as store:
        assert store.health()["status"] == "ok"
        for key in range(-30, 0):
            with pytest.raises(OSError, match="down"):
                store.get(key)
        found = store.health()
        assert found["status"] == "failing" and "30 loads failed" in found["reasons"][0]
        with pytest.raises(ConfigError, match="unknown"):
            store.health({"unknown": 1})
    assert store.health()["status"] == "failing"


def test_a_preset_is_a_store_with_those_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LazyStore.preset(DataSize.SMALL, memory="8MB", page=7) as store:
        assert store.options.memory == 8_000_000
        assert (store.options.items, store.options.page) == (100, 7)
    with LazyStore.preset("large", memory="8MB") as store:
        assert (tmp_path / "lazystore").stat().st_mode & 0o777 == 0o700
        assert store.stats()["disk"]


@pytest.mark.parametrize("mode", ["spill", "through"])
def test_what_was_cached_survives_its_store_and_needs_a_name(tmp_path: Path, mode: str) -> None:
    load = Counted()
    for _ in range(2):
        disk = DiskTier(tmp_path / "tier", "10MB", mode=mode)
        with LazyStore.from_keys(load, disk=disk, name="things", memory="1MB") as store:
            assert store.get("a") == {"key": "a"}
    assert load.asked == ["a"]
    with pytest.raises(ConfigError, match="name="):
        LazyStore.from_keys(load, disk=tmp_path / "tier")


def test_a_closed_store_says_so_and_closes_twice() -> None:
    store = LazyStore.from_keys(double)
    store.get(1)
    store.close()
    store.close()
    for call in (lambda: store.get(1), lambda: store.load("x", list), lambda: store.prefetch([1]), store.clear):
        with pytest.raises(ClosedError, match="closed"):
            call()
    assert "closed" in repr(store)


def test_a_store_pickles_as_its_arguments() -> None:
    with LazyStore.from_keys(double, memory="2MB", ttl=60, name="twin") as store:
        store.get(4)
        with pickle.loads(pickle.dumps(store)) as twin:
            assert twin.options == store.options
            assert twin.stats()["entries"] == 0
            assert twin.get(4) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_what_was_in_memory_and_loads_by_itself() -> None:
    with LazyStore.from_keys(double) as store:
        store.get(1)
        [handle] = store.prefetch([2])
        handle.get(30)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            good = store.get(1) == 2 and store.get(5) == 10 and store.prefetch([6])[0].get(30) == 12
            store.close()
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.get(7) == 14


def test_decorators_share_one_store() -> None:
    assert default_store() is default_store()


def test_a_missing_stream_is_a_key_error() -> None:
    with LazyStore() as store, pytest.raises(KeyNotFoundError):
        store.streams.get_stream_info("none")


SILENT = """
import asyncio, threading, warnings
from lazystore import LazyStore

async def load(key):
    await asyncio.sleep(0.001)
    return key

def slow(key):
    return key

async def main():
    async with LazyStore.from_keys(load) as one, LazyStore.from_keys(slow) as two:
        await asyncio.gather(*(one.aget(n % 7) for n in range(100)), *(two.aget(n % 7) for n in range(100)))
        task = asyncio.create_task(one.aget("late"))
        await asyncio.sleep(0)
        task.cancel()
        async for page in LazyStore(list(range(100))).pages(size=30):
            pass
        async for chunk in two.chunks(list(range(100)), items=30):
            pass
        async with two.stream(iter(range(10))) as stream:
            async for item in stream:
                break

asyncio.run(main(), debug=False)
with LazyStore.from_keys(load) as store:
    store.get(1)
    store.get(2, timeout=5)
    store.prefetch(range(10, 20))
assert threading.active_count() == 1, threading.enumerate()
print("done")
"""


def test_nothing_is_left_behind_and_nothing_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", SILENT], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
