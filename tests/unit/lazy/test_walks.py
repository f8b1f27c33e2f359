"""One pass over sources by position and by cursor: every item once, sync and async, and no hole unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore import LazyStore
from lazystore.errors import LoadError
from lazystore.lazy.source import Source
from lazystore.lazy.walks import ITEMS_A_BLOCK, by_cursor, by_range


async def alist(items: Any) -> list[Any]:
    return [item async for item in items]


def rows(n: int) -> Callable[[int, int], list[int]]:
    return lambda offset, limit: list(range(n))[offset : offset + limit]


def from_cursor(n: int) -> Callable[[Any, int], tuple[list[int], Any]]:
    def after(cursor: int | None, limit: int) -> tuple[list[int], int | None]:
        begin = cursor or 0
        end = min(n, begin + limit)
        return list(range(begin, end)), end if end < n else None

    return after


def asynchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


@given(st.integers(0, 3 * ITEMS_A_BLOCK + 1), st.booleans())
def test_every_item_comes_once_by_position_and_by_cursor(n: int, is_known: bool) -> None:
    assert list(by_range(rows(n), lambda: n if is_known else None)) == list(range(n))
    assert list(by_cursor(from_cursor(n))) == list(range(n))


@pytest.mark.parametrize("n", [0, 1, ITEMS_A_BLOCK, 2 * ITEMS_A_BLOCK + 1])
def test_the_same_of_async_functions_and_of_functions_that_give_awaitables(n: int) -> None:
    for function in (rows(n), from_cursor(n)):
        walk = by_cursor if function.__name__ == "after" else lambda each: by_range(each, lambda: None)
        slow = asynchronous(function)
        assert asyncio.run(alist(walk(slow))) == list(range(n))
        assert asyncio.run(alist(walk(lambda *what, slow=slow: slow(*what)))) == list(range(n))


@pytest.mark.parametrize("kind", ["range", "cursor"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_store_streams_cuts_and_loads_whatever_its_function_takes(kind: str, is_async: bool) -> None:
    n = 250
    function: Any = rows(n) if kind == "range" else from_cursor(n)
    function = asynchronous(function) if is_async else function
    with LazyStore(Source.from_range(function) if kind == "range" else Source.from_cursor(function)) as store:
        with store.stream() as stream:
            assert list(stream) == list(range(n))
        assert asyncio.run(alist(store.stream())) == list(range(n))
        chunks = [list(range(at, min(n, at + 100))) for at in range(0, n, 100)]
        assert list(store.chunks(items=100)) == chunks
        assert asyncio.run(alist(store.chunks(items=100))) == chunks
        assert store.load("all", None, "eager") == list(range(n))


def test_a_block_that_is_too_long_or_too_short_or_none_is_named() -> None:
    with pytest.raises(LoadError, match="gave 1000 items from 0 on where 100"):
        list(by_range(lambda offset, limit: list(range(1000)), lambda: None))
    with pytest.raises(LoadError, match="gave 3 items from 0 on where 5"):
        list(by_range(lambda offset, limit: [1, 2, 3], lambda: 5))
    for wrong in (None, 5, "abc", {"a": 1}, iter([1])):
        with pytest.raises(LoadError, match="not a list of items"):
            list(by_range(lambda offset, limit, wrong=wrong: wrong, lambda: None))
    with pytest.raises(LoadError, match=r"not \(items, next_cursor\)"):
        list(by_cursor(lambda cursor, limit: [1, 2, 3]))
    with pytest.raises(LoadError, match="would never end"):
        list(by_cursor(lambda cursor, limit: ([1], "same")))


def test_what_the_function_raises_comes_as_it_is() -> None:
    error = OSError("gone")

    def fails(offset: int, limit: int) -> list[int]:
        if offset:
            raise error
        return list(range(limit))

    walk = by_range(fails, lambda: None)
    assert [next(walk) for _ in range(ITEMS_A_BLOCK)] == list(range(ITEMS_A_BLOCK))
    with pytest.raises(OSError, match="gone") as caught:
        next(walk)
    assert caught.value is error
