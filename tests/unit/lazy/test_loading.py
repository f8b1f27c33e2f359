"""`get` and `load`: mistakes are named, and what comes does not depend on who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from lazystore.errors import ConfigError, ItemIndexError, LoadTimeoutError, UnhashableKeyError
from lazystore.lazy import time_left
from lazystore.lazy.source import Source
from lazystore.lazy.store import LazyStore
from lazystore.lazy.strategy import Strategy


def got(store: LazyStore, is_async: bool, *args: Any, **how: Any) -> Any:
    return asyncio.run(store.aget(*args, **how)) if is_async else store.get(*args, **how)


def loaded(store: LazyStore, is_async: bool, *args: Any, **how: Any) -> Any:
    return asyncio.run(store.aload(*args, **how)) if is_async else store.load(*args, **how)


WAYS = pytest.mark.parametrize("is_async", [False, True], ids=["get", "aget"])


class Odd:
    """Equal to nothing: comparing it fails."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")


@WAYS
def test_a_key_that_cannot_be_compared_is_told_from_one_that_cannot_be_hashed(is_async: bool) -> None:
    with LazyStore.from_keys(str) as store:
        with pytest.raises(UnhashableKeyError, match=r"key \{\} is not hashable.*key="):
            got(store, is_async, {})
        with pytest.raises(UnhashableKeyError, match=r"data_id \[1\] is not hashable"):
            loaded(store, is_async, [1], str, "eager")
        store.get(Odd())
        with pytest.raises(TypeError, match="comparing key"):
            got(store, is_async, Odd())


@WAYS
def test_bytes_are_asked_for_by_slice_or_by_offset_and_length(is_async: bool) -> None:
    data = bytes(range(100))
    with LazyStore(data) as store:
        for key, found in (
            (slice(None), data), (slice(10, 20), data[10:20]), (slice(-5, None), data[-5:]), (slice(20, 10), b""),
            ((90, 50), data[90:]), ((5, 0), b""), (slice(95, 500), data[95:]),
        ):  # fmt: skip
            assert bytes(got(store, is_async, key)) == found
        for wrong in (slice(0, 10, 2), 5, "x", (1, -1), (1,), (1, 2, 3)):
            with pytest.raises(ConfigError, match=r"slice|steps"):
                got(store, is_async, wrong)


@WAYS
def test_items_by_position_are_those_of_their_part(is_async: bool) -> None:
    def rows(offset: int, limit: int) -> list[int]:
        return list(range(offset, min(offset + limit, 25)))

    with LazyStore.from_range(rows, size=25, page=10, prefetch=0) as store:
        assert [got(store, is_async, n) for n in (0, 9, 10, 24)] == [0, 9, 10, 24]
        assert [got(store, is_async, n) for n in (-1, -3, -21, -25)] == [24, 22, 4, 0]
        for beyond in (25, 31, -26, -40):
            with pytest.raises(ItemIndexError, match=f"item {beyond}"):
                got(store, is_async, beyond)
        for wrong in ("x", 1.0, True, None):
            with pytest.raises(ConfigError, match="position"):
                got(store, is_async, wrong)


@WAYS
def test_a_fallback_may_be_a_function_of_the_name(is_async: bool) -> None:
    def failing() -> None:
        raise OSError("down")

    async def later(name: str) -> str:
        return f"no {name}"

    with LazyStore() as store:
        for fallback in (later, lambda name: f"no {name}", "no x"):
            assert loaded(store, is_async, "x", failing, "eager", fallback=fallback) == "no x"
        assert store.stats()["fallbacks"] == 3
        with pytest.raises(ConfigError, match="timeout"):
            loaded(store, is_async, "x", failing, "eager", fallback="no x", timeout=0)


@WAYS
def test_what_the_fallback_raises_comes_out(is_async: bool) -> None:
    def failing(key: Any) -> None:
        raise OSError("down")

    def worse(key: Any) -> None:
        raise LookupError("nor here")

    with LazyStore.from_keys(failing) as store, pytest.raises(LookupError, match="nor here"):
        got(store, is_async, 1, fallback=worse)


def test_a_load_that_takes_too_long_takes_the_fallback() -> None:
    async def hanging(key: Any) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with LazyStore.from_keys(hanging) as store:
            assert await store.aget(1, timeout=0.02, fallback="late") == "late"
            with pytest.raises(LoadTimeoutError):
                await store.aget(1, timeout=0.02)

    asyncio.run(main())


@WAYS
def test_one_name_and_one_loader_are_loaded_once_and_another_loader_is_another_thing(is_async: bool) -> None:
    calls: list[str] = []

    class Loaders:
        def one(self) -> str:
            calls.append("one")
            return "one"

        def other(self) -> str:
            calls.append("other")
            return "other"

    mine = Loaders()
    with LazyStore() as store:
        for _ in range(2):
            assert loaded(store, is_async, "x", mine.one, "eager") == "one"
            assert loaded(store, is_async, "x", mine.other, "eager") == "other"
    assert calls == ["one", "other"]


@WAYS
@pytest.mark.parametrize("strategy", [Strategy.EAGER, Strategy.LAZY, Strategy.BACKGROUND])
def test_settings_of_parts_are_refused_where_there_are_none(is_async: bool, strategy: Strategy) -> None:
    with LazyStore() as store:
        with pytest.raises(ConfigError, match=f"chunk, size: no setting of strategy {strategy.name}"):
            loaded(store, is_async, "x", list, strategy, chunk=1, size=2)
        assert store.stats()["loads"] == 0


@WAYS
def test_all_of_a_source_is_one_value(is_async: bool) -> None:
    async def later() -> AsyncIterator[int]:
        for n in range(3):
            yield n

    with LazyStore() as store:
        for source, found in (
            (Source.from_range(lambda offset, limit: [offset, limit], size=7), [0, 7]),
            (Source.from_stream(later), [0, 1, 2]),
            (Source.from_stream(lambda: iter("ab")), ["a", "b"]),
            ([4, 5], [4, 5]),
            (b"bytes", b"bytes"),
        ):
            assert loaded(store, is_async, "x", source, "eager") == found


@WAYS
def test_an_object_is_chosen_for_by_its_size(is_async: bool, tmp_path: Any) -> None:
    path = tmp_path / "object.bin"
    path.write_bytes(b"x" * 1000)
    with LazyStore() as store:
        assert bytes(loaded(store, is_async, "x", str(path))) == b"x" * 1000
        assert store.stats()["auto_choices"] == {"EAGER: SMALL: 1000 bytes": 1}


def test_a_ttl_of_one_value_stands_in_for_that_of_the_store() -> None:
    from lazystore.testing import FakeClock

    calls: list[int] = []
    clock = FakeClock()
    with LazyStore.from_keys(calls.append, ttl=100, ttl_jitter=0.0, clock=clock) as store:
        store.get(1, ttl=5)
        store.get(2, ttl=None)
        store.get(3)
        clock.advance(6)
        for key in (1, 2, 3):
            store.get(key)
        clock.advance(1000)
        for key in (2, 3):
            store.get(key)
    assert calls == [1, 2, 3, 1, 3]


def test_a_handle_has_the_timeout_of_the_call() -> None:
    async def hanging() -> None:
        await asyncio.sleep(60)

    with LazyStore(timeout=30) as store:
        handle = store.load("x", partial(hanging), Strategy.LAZY, timeout=0.02)
        with pytest.raises(LoadTimeoutError):
            handle.get()


def test_items_of_an_async_range_are_awaited_in_the_callers_loop() -> None:
    loops = set()

    async def rows(offset: int, limit: int) -> list[int]:
        loops.add(asyncio.get_running_loop())
        return list(range(offset, min(offset + limit, 40)))

    async def main() -> None:
        async with LazyStore.from_range(rows, size=40, page=10, prefetch=0) as store:
            assert [await store.aget(n) for n in (3, -1, 25)] == [3, 39, 25]
            with pytest.raises(ItemIndexError):
                await store.aget(40)
        assert loops == {asyncio.get_running_loop()}

    asyncio.run(main())


def test_a_loader_knows_how_long_it_has() -> None:
    def load(key: int) -> float | None:
        return time_left()

    with LazyStore.from_keys(load) as store:
        assert store.get(1) is None
        left = store.get(2, timeout=30)
        assert left is not None and 0 < left <= 30


# -- what can be read once ---------------------------------------------------------------------


def letters() -> Iterator[str]:
    yield from "ab"


async def aletters() -> AsyncIterator[str]:
    for letter in "ab":
        yield letter


async def opening() -> Iterator[str]:
    return iter("ab")


@pytest.mark.parametrize("loader", [letters, aletters, Source.from_stream(opening), Source.from_stream(aletters)])
def test_what_can_be_read_once_is_kept_as_a_list(loader: Any) -> None:
    with LazyStore() as store:
        for _ in range(2):
            assert store.load("letters", loader, "eager") == ["a", "b"]
            assert asyncio.run(store.aload("letters", loader, "eager")) == ["a", "b"]
            assert list(store.load("letters", loader, "chunked", items=1)) == [["a"], ["b"]]
            assert [list(page) for page in store.load("letters", loader, "paginated", size=1)] == [["a"], ["b"]]
        assert store.load("later", loader, "lazy").get() == ["a", "b"]
        assert store.load("meanwhile", loader, "background").get() == ["a", "b"]


def test_chunks_of_a_stream_take_what_the_chunker_takes() -> None:
    with LazyStore.from_stream(lambda: [b"a\nb", b"b\nc"], chunk=4) as store:
        assert [bytes(chunk) for chunk in store.chunks(delimiter="\n")] == [b"a\n", b"bb\n", b"c"]
    with LazyStore([1, 1, 2, 2, 3]) as store:
        assert list(store.chunks(boundary=lambda one, other: one != other)) == [[1, 1], [2, 2], [3]]
