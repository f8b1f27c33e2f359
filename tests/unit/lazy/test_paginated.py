from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.errors import ConfigError, CursorTamperedError
from lazystore.lazy.page import Page
from lazystore.lazy.paginated import paginated
from lazystore.lazy.store import LazyStore, default_store

ROWS = [f"row {number}" for number in range(25)]


@pytest.fixture
def store() -> Iterator[LazyStore]:
    with LazyStore(memory="8MB", name="paged", prefetch=0) as store:
        yield store


def by_offset(user: str, offset: int = 0, limit: int = 10) -> list[str]:
    return [f"{user} {row}" for row in ROWS[offset : offset + limit]]


def by_number(user: str, page: int = 1, page_size: int = 10) -> list[str]:
    return [f"{user} {row}" for row in ROWS[(page - 1) * page_size : page * page_size]]


def by_number_from_0(user: str, page: int = 0) -> list[str]:
    return [f"{user} {row}" for row in ROWS[page * 10 : (page + 1) * 10]]


def by_cursor(user: str, cursor: Any = None, limit: int = 10) -> tuple[list[str], Any]:
    begin = cursor or 0
    rows = [f"{user} {row}" for row in ROWS[begin : begin + limit]]
    return rows, begin + limit if begin + limit < len(ROWS) else None


def made_async(function: Any) -> Any:
    """The same as a coroutine function, with the same parameters."""
    import inspect

    async def call(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    call.__qualname__ = call.__name__ = f"async_{function.__name__}"
    return call


FUNCTIONS = [by_offset, by_number, by_number_from_0]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_pages_are_asked_for_by_number_from_1(store: LazyStore, function: Any) -> None:
    rows = paginated(10, store=store)(function)
    first, last = rows("ann"), rows("ann", page=3)
    assert isinstance(first, Page) and list(first) == [f"ann {row}" for row in ROWS[:10]]
    assert (first.page, first.has_next, first.has_previous) == (1, True, False)
    assert list(last) == [f"ann {row}" for row in ROWS[20:]] and not last.has_next
    assert list(rows(user="bob", page=2)) == [f"bob {row}" for row in ROWS[10:20]]
    assert list(rows("ann", page=9)) == []
    assert list(rows("ann", cursor=first.next_cursor)) == list(rows("ann", page=2))
    with pytest.raises(ConfigError, match="page"):
        rows("ann", page=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_coroutine_function_gives_pages_to_await(store: LazyStore, function: Any) -> None:
    rows = paginated(10, store=store)(made_async(function))

    async def main() -> None:
        page = await rows("ann", page=2)
        assert list(page) == [f"ann {row}" for row in ROWS[10:20]] and page.has_next
        walked = [row async for page in rows.pages("ann") for row in page]
        assert walked == [f"ann {row}" for row in ROWS]

    asyncio.run(main())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 4, 10, 25, 26])
def test_a_walk_gives_each_row_once(store: LazyStore, function: Any, size: int) -> None:
    rows = paginated(10, store=store)(function)
    assert [row for page in rows.pages("ann", size=size) for row in page] == [f"ann {row}" for row in ROWS]


def test_cursor_mode_goes_on_where_the_function_says(store: LazyStore) -> None:
    rows = paginated(size=10, mode="cursor", store=store)(by_cursor)
    page, seen = rows("ann"), []
    while True:
        seen += page
        if not page.has_next:
            break
        page = rows("ann", cursor=page.next_cursor)
    assert seen == [f"ann {row}" for row in ROWS]
    with pytest.raises(ConfigError, match="by cursor"):
        rows("ann", page=2)
    with pytest.raises(CursorTamperedError):
        rows("ann", cursor="made up")
    offsets = paginated(size=10, mode="cursor", store=store)(by_offset)
    assert list(offsets("ann", cursor=offsets("ann").next_cursor)) == [f"ann {row}" for row in ROWS[10:20]]


def test_pages_are_cached_and_forgotten(store: LazyStore) -> None:
    calls = []

    @paginated(size=10, store=store)
    def rows(page: int = 1, page_size: int = 10) -> list[str]:
        calls.append(page)
        return ROWS[(page - 1) * page_size : page * page_size]

    for _ in range(2):
        assert len(rows()) == len(rows(page=2)) == 10
    assert calls == [1, 2, 3], "each once; that another follows is known from its first row"
    assert rows.invalidate()
    rows()
    assert calls[3:] == [1, 2] and "requests" in rows.stats() and rows.store is store


def test_sizes_are_clamped_and_checked(store: LazyStore) -> None:
    rows = paginated(5, max_size=8, store=store)(by_offset)
    assert len(rows("ann")) == 5 and len(rows("ann", size=7)) == 7 and len(rows("ann", size=100)) == 8
    with pytest.raises(ConfigError):
        rows("ann", size=0)
    for wrong in ({"size": 0}, {"size": True}, {"max_size": -1}, {"mode": "both"}):
        with pytest.raises(ConfigError):
            paginated(**wrong)


def test_a_function_that_gives_longer_pages_than_it_was_asked_for_is_told(store: LazyStore) -> None:
    rows = paginated(5, store=store)(by_number_from_0)
    with pytest.raises(ConfigError, match="10 rows for a page of 5"):
        rows("ann")


def test_functions_that_cannot_be_paged_are_refused() -> None:
    def nothing(user: str) -> list[str]:
        return []

    def starred(*users: str, page: int = 1) -> list[str]:
        return []

    def total(total: int, page: int = 1) -> list[str]:
        return []

    for function, what in ((nothing, "offset, limit"), (starred, "by names"), (total, "rename")):
        with pytest.raises(ConfigError, match=what):
            paginated(function)


def test_wrong_calls_raise_as_calls_do(store: LazyStore) -> None:
    rows = paginated(10, store=store)(by_offset)
    with pytest.raises(TypeError, match="misses argument 'user'"):
        rows()
    with pytest.raises(TypeError, match="twice"):
        rows("ann", user="bob")
    with pytest.raises(TypeError, match="takes 1"):
        rows("ann", 3)


class Feed:
    def __init__(self, name: str) -> None:
        self.name = name

    @paginated(size=10)
    def posts(self, offset: int, limit: int) -> list[str]:
        return [f"{self.name} {row}" for row in ROWS[offset : offset + limit]]

    @staticmethod
    @paginated(size=2)
    def words(offset: int, limit: int) -> list[str]:
        return list("abcdef")[offset : offset + limit]


def test_each_instance_has_pages_of_its_own_and_is_not_kept_alive() -> None:
    one, two = Feed("one"), Feed("two")
    assert list(one.posts(page=3)) == [f"one {row}" for row in ROWS[20:]]
    assert two.posts()[0] == "two row 0" and one.posts()[0] == "one row 0"
    assert sum(len(page) for page in one.posts.pages()) == 25
    assert list(one.posts(cursor=one.posts().next_cursor)) == list(one.posts(page=2))
    assert one.posts.store is default_store()
    gone = weakref.ref(one)
    del one
    end = time.monotonic() + 20
    while gone() is not None:  # a page that is being read ahead still needs it
        assert time.monotonic() < end
        gc.collect()
        time.sleep(0.01)
    assert list(Feed.words(page=2)) == ["c", "d"]


def test_it_looks_like_its_function_with_and_without_parentheses() -> None:
    for decorated in (paginated(by_offset), paginated()(by_offset)):
        assert (
            decorated.__name__ == "by_offset" and decorated.__wrapped__ is by_offset and "by_offset" in repr(decorated)
        )
        assert len(decorated("ann")) == 25
