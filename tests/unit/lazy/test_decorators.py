from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, get_type_hints

import pytest

from lazystore.errors import ConfigError, LoadTimeoutError, UnhashableKeyError
from lazystore.lazy.decorators import chunked_load, lazy_load, streaming_load
from lazystore.lazy.store import LazyStore, default_store
from lazystore.lazy.strategy import LoadingStrategy, Strategy

PATIENCE = 20.0


@pytest.fixture
def store() -> Iterator[LazyStore]:
    with LazyStore(memory="8MB", name="decorated") as store:
        yield store


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


# --- keys ---


def test_the_same_call_in_other_words_is_one_load(store: LazyStore) -> None:
    calls = []

    @lazy_load(store=store)
    def load(a: int, b: int = 2) -> tuple[int, int]:
        calls.append((a, b))
        return a, b

    assert load(1) == load(a=1) == load(1, 2) == load(b=2, a=1) == (1, 2)
    assert load(2) == (2, 2) and calls == [(1, 2), (2, 2)]


def test_a_wrong_call_raises_what_python_raises(store: LazyStore) -> None:
    @lazy_load(store=store)
    def load(a: int) -> int:
        return a

    with pytest.raises(TypeError, match=r"load\(\) missing 1 required positional argument: 'a'"):
        load()
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'z'"):
        load(1, z=2)
    assert load.stats()["loads"] == 0


def test_functions_that_only_look_alike_share_nothing(store: LazyStore) -> None:
    def made(result: str) -> Any:
        @lazy_load(store=store)
        def load(a: int) -> str:
            return result

        return load

    one, two = made("one"), made("two")
    assert (one(1), two(1), one(1)) == ("one", "two", "one")


def test_an_argument_that_cannot_be_hashed_is_named_and_key_helps(store: LazyStore) -> None:
    @lazy_load(store=store)
    def load(first: int, rows: list[int], *rest: Any) -> int:
        return sum(rows)

    for ask in (load, load.invalidate):
        with pytest.raises(UnhashableKeyError, match=r"argument 'rows' of .*load\(\) is not hashable \(list\)"):
            ask(1, [2, 3])

    @lazy_load(store=store, key=lambda rows: tuple(rows))
    def total(rows: list[int]) -> int:
        return sum(rows)

    assert total([2, 3]) == total([2, 3]) == 5 and total.stats()["loads"] == 1
    assert total.invalidate([2, 3]) and not total.invalidate([2, 3])

    @lazy_load(store=store, key=lambda a: [a])
    def wrong(a: int) -> int:
        return a

    with pytest.raises(UnhashableKeyError, match="what key= gives"):
        wrong(1)
    with pytest.raises(ConfigError, match="key="):
        lazy_load(store=store, key="a")(len)


def test_none_is_a_result_like_any_other(store: LazyStore) -> None:
    calls = []
    load = lazy_load(store=store)(lambda: calls.append(1))
    assert load() is None and load() is None and calls == [1]


# --- ways to use it ---


@lazy_load
def bare(a: int) -> int:
    """Twice."""
    return 2 * a


@lazy_load()
async def bare_async(a: int) -> int:
    await asyncio.sleep(0)
    return 3 * a


def test_with_and_without_parentheses_and_with_a_strategy() -> None:
    assert bare(2) == 4

    async def main() -> None:
        assert await bare_async(2) == await bare_async(a=2) == 6

    asyncio.run(main())
    for strategy in (LoadingStrategy.LAZY, Strategy.EAGER, "auto", Strategy.IMMEDIATE):
        assert lazy_load(strategy)(lambda: 7)() == 7
    with pytest.raises(ConfigError):
        lazy_load("slowly")


def test_all_share_one_store_unless_they_are_given_another(store: LazyStore) -> None:
    assert bare.store is bare_async.store is default_store()
    assert lazy_load(store=store)(abs).store is store


def test_a_closed_default_store_is_replaced() -> None:
    calls = []
    load = lazy_load(lambda: calls.append(1))
    load()
    default_store().close()
    load()
    load()
    assert calls == [1, 1]


def test_it_looks_like_its_function() -> None:
    assert bare.__name__ == "bare" and bare.__doc__ == "Twice." and bare.__wrapped__(4) == 8
    assert inspect.signature(bare) == inspect.signature(bare.__wrapped__)
    assert get_type_hints(bare) == {"a": int, "return": int}
    assert "bare" in repr(bare)
    assert inspect.iscoroutinefunction(bare_async) or asyncio.iscoroutinefunction(bare_async)
    assert not inspect.iscoroutinefunction(bare)


def test_it_pickles_by_its_name() -> None:
    script = """
        import pickle, sys, types
        module = types.ModuleType("some_module")
        sys.modules["some_module"] = module
        exec("from lazystore.lazy.decorators import lazy_load\\n@lazy_load\\ndef f(a): return a\\nclass C:\\n"
             "    @lazy_load\\n    def m(self): return 1\\n    def __eq__(self, o): return True\\n", module.__dict__)
        assert pickle.loads(pickle.dumps(module.f)) is module.f
        assert pickle.loads(pickle.dumps(module.C.m)) is module.C.m
        assert pickle.loads(pickle.dumps(module.C().m))() == 1
    """
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(script)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_results_are_forgotten_one_by_one_and_all_at_once(store: LazyStore) -> None:
    load, other = lazy_load(store=store)(lambda a: object()), lazy_load(store=store)(lambda a: object())
    first, second, theirs = load(1), load(2), other(1)
    assert load.invalidate(1) and not load.invalidate(1)
    assert load(1) is not first and load(2) is second
    assert load.clear() == 2 and load(2) is not second and other(1) is theirs


def test_stats_are_of_the_function_and_add_up(store: LazyStore) -> None:
    @lazy_load(store=store)
    def load(a: int) -> int:
        return 1 // a

    for a in (1, 1, 2, 1):
        load(a)
    with pytest.raises(ZeroDivisionError):
        load(0)
    assert load.stats() == {
        "requests": 5, "hits": 2, "misses": 3, "loads": 3, "errors": 1, "refreshes": 0, "hit_ratio": 0.4,
    }  # fmt: skip


def test_ttl_and_timeout_are_those_of_the_decorator(store: LazyStore) -> None:
    calls = []
    load = lazy_load(store=store, ttl=0.02)(lambda: calls.append(1))
    load()
    until(lambda: load() is None and len(calls) > 1)
    gate = threading.Event()
    slow = lazy_load(store=store, timeout=0.02)(lambda: gate.wait(PATIENCE))
    with pytest.raises(LoadTimeoutError):
        slow()
    gate.set()
    until(lambda: slow() is True)


def test_many_threads_and_tasks_load_once(store: LazyStore) -> None:
    gate, calls = threading.Event(), []

    @lazy_load(store=store)
    def load(a: int) -> int:
        calls.append(a)
        assert gate.wait(PATIENCE)
        return a

    threads = [threading.Thread(target=load, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: calls)
    gate.set()
    for thread in threads:
        thread.join()
    assert calls == [1]

    @lazy_load(store=store)
    async def aload(a: int) -> int:
        calls.append(a)
        await asyncio.sleep(0.01)
        return a

    async def main() -> list[int]:
        return await asyncio.gather(*(aload(2) for _ in range(50)))

    assert asyncio.run(main()) == [2] * 50 and calls == [1, 2]


# --- methods ---


class Library:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0

    @lazy_load
    def book(self, number: int) -> str:
        self.calls += 1
        return f"{self.name} {number}"

    @lazy_load
    async def abook(self, number: int) -> str:
        self.calls += 1
        return f"{self.name} {number}"

    @property
    @lazy_load
    def title(self) -> str:
        self.calls += 1
        return self.name

    @staticmethod
    @lazy_load
    def motto(word: str = "read") -> object:
        return [word]

    @lazy_load
    @staticmethod
    def other_motto(word: str = "read") -> object:
        return [word]

    @classmethod
    @lazy_load
    def kind(cls) -> str:
        return cls.__name__

    @streaming_load
    def all(self, count: int) -> Iterator[str]:
        for number in range(count):
            yield f"{self.name} {number}"


def test_each_instance_has_results_of_its_own() -> None:
    one, two = Library("one"), Library("two")
    assert one.book(1) == one.book(number=1) == Library.book(one, 1) == "one 1"
    assert two.book(1) == "two 1" and (one.calls, two.calls) == (1, 1)
    assert one.title == one.title == "one" and one.calls == 2
    assert one.book.invalidate(1) and not two.book.invalidate(2)
    assert one.book(1) == "one 1" and one.calls == 3 and two.book(1) == "two 1" and two.calls == 1
    assert one.book == one.book != two.book and hash(one.book) == hash(one.book)
    assert one.book.stats()["requests"] >= 6 and one.book.store is default_store()
    assert list(one.all(2)) == ["one 0", "one 1"]

    async def main() -> None:
        assert await one.abook(5) == await one.abook(5) == "one 5"

    asyncio.run(main())
    assert inspect.iscoroutinefunction(one.abook) or asyncio.iscoroutinefunction(one.abook.func)


def test_static_and_class_methods() -> None:
    assert Library.motto() is Library("x").motto("read") and Library.other_motto() is Library("y").other_motto()

    class Archive(Library):
        pass

    assert Library.kind() == "Library" and Archive.kind() == "Archive" and Archive("z").kind() == "Archive"


def test_results_do_not_keep_an_instance_alive_and_are_not_anothers() -> None:
    for number in range(50):
        library = Library(f"library {number}")
        assert library.book(1) == f"library {number} 1", "an address that was used before means nothing"
        assert library.title == f"library {number}"
        gone = weakref.ref(library)
        del library
        gc.collect()
        assert gone() is None


def test_instances_that_cannot_be_referred_to_weakly_are_refused() -> None:
    class Slotted:
        __slots__ = ()

        @lazy_load
        def one(self) -> int:
            return 1

    with pytest.raises(ConfigError, match="__weakref__"):
        Slotted().one()


def test_a_key_of_arguments_still_tells_instances_apart(store: LazyStore) -> None:
    class Scaled:
        def __init__(self, by: int) -> None:
            self.by = by

        @lazy_load(store=store, key=lambda self, rows: tuple(rows))
        def total(self, rows: list[int]) -> int:
            return self.by * sum(rows)

    one, ten = Scaled(1), Scaled(10)
    assert (one.total([1, 2]), ten.total([1, 2]), one.total([1, 2])) == (3, 30, 3)


# --- BACKGROUND ---


def test_background_serves_a_stale_value_while_it_is_loaded_anew(store: LazyStore) -> None:
    numbers = iter(range(1000))
    gate = threading.Event()
    gate.set()

    @lazy_load(LoadingStrategy.BACKGROUND, ttl=0.05, store=store)
    def load() -> int:
        assert gate.wait(PATIENCE)
        return next(numbers)

    assert load() == 0
    gate.clear()
    time.sleep(0.06)
    assert load() == 0 and load() == 0, "stale, at once"
    gate.set()
    until(lambda: load() >= 1)
    assert load.stats()["refreshes"] >= 1


def test_background_of_a_coroutine_function_and_of_one_that_fails(store: LazyStore) -> None:
    calls: list[int] = []

    @lazy_load("background", ttl=0.01, store=store)
    async def load() -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("away")
        return len(calls)

    async def main() -> None:
        assert await load() == 1
        await asyncio.sleep(0.02)
        assert await load() == 1
        while await load() == 1:
            await asyncio.sleep(0.005)
        assert len(calls) >= 3, "a refresh that failed left the stale value, and was tried again"

    asyncio.run(main())


# --- CHUNKED and PAGINATED ---


def test_chunked_results_are_loaded_once_and_handed_out_in_chunks(store: LazyStore) -> None:
    calls = []

    @chunked_load(chunk_size=3, store=store)
    async def orders(user: int) -> list[int]:
        calls.append(user)
        return list(range(8))

    @lazy_load(LoadingStrategy.CHUNKED, items=3, store=store)
    def same(user: int) -> list[int]:
        return list(range(8))

    async def main() -> None:
        for _ in range(2):
            chunks = await orders(1)
            assert len(chunks) == 3 and list(chunks[1]) == [3, 4, 5]
            assert [list(chunk) async for chunk in chunks] == [[0, 1, 2], [3, 4, 5], [6, 7]]

    asyncio.run(main())
    assert calls == [1] and [list(chunk) for chunk in same(1)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    bare_chunks = chunked_load(lambda: list(range(10)))
    assert [list(chunk) for chunk in bare_chunks()] == [list(range(10))]


def test_chunk_sizes_of_bytes_count_bytes(store: LazyStore) -> None:
    load = chunked_load(4, store=store)(lambda: b"0123456789")
    assert [bytes(chunk) for chunk in load()] == [b"0123", b"4567", b"89"]


def test_a_result_in_pages(store: LazyStore) -> None:
    load = lazy_load("paginated", size=4, store=store)(lambda: list(range(10)))
    assert [list(page) for page in load()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# --- what cannot be cached ---


def test_generators_are_refused_with_a_remedy() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def anumbers() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, anumbers):
        with pytest.raises(ConfigError, match="streaming_load"):
            lazy_load(function)
    with pytest.raises(ConfigError, match="no function"):
        lazy_load()(3)
    with pytest.raises(ConfigError, match="items: no setting"):
        lazy_load(Strategy.LAZY, items=3)


def test_decorating_starts_no_thread() -> None:
    before = threading.active_count()
    load = lazy_load(lambda: 7)
    assert load() == load() == 7
    assert threading.active_count() == before


def test_an_interpreter_that_closes_nothing_ends_silently_and_at_once() -> None:
    script = """
        import asyncio, threading, time
        from lazystore.lazy.decorators import lazy_load, paginated, streaming_load
        from lazystore.lazy.store import default_store

        @lazy_load("background", ttl=0.001)
        def slow(a):
            time.sleep(0.002 if a else 50)
            return a

        @lazy_load
        async def fetched(a):
            await asyncio.sleep(0)
            return a

        @streaming_load(2)
        async def numbers():
            for number in range(5):
                yield number

        @paginated(size=2)
        def rows(offset, limit):
            return list(range(9))[offset : offset + limit]

        async def main():
            return await fetched(1), [chunk async for chunk in numbers()]

        slow(1); time.sleep(0.01); slow(1)
        handle = default_store().load("slow", lambda: slow(0), "background")
        print(asyncio.run(main()), list(rows(page=2)))
    """
    begun = time.monotonic()
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(script)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout == "(1, [[0, 1], [2, 3], [4]]) [2, 3]\n" and time.monotonic() - begun < 40
