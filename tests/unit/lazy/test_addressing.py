"""How pages lie in a source: every row on one page, neighbours that lead back, and sources that break their word."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError, LoadError, UnsupportedError
from lazystore.lazy.addressing import (
    CHAIN,
    Addressing,
    Around,
    ByKeyset,
    ByOffset,
    BySourceCursor,
    Rows,
    addressing_of,
    run,
)
from lazystore.lazy.cursor import Position
from lazystore.lazy.keysets import Seek, keyset
from lazystore.lazy.source import Source, as_source

ORDER = keyset(["-score", "id"], unique="id")


def table(n: int) -> list[dict[str, int]]:
    return sorted(
        ({"score": number % 3, "id": number} for number in range(n)), key=lambda row: (-row["score"], row["id"])
    )


def by_cursor(rows: list[Any]) -> Callable[[Any, int], Any]:
    def after(cursor: int | None, limit: int) -> Any:
        begin = cursor or 0
        return rows[begin : begin + limit], begin + limit if begin + limit < len(rows) else None

    return after


def by_seek(rows: list[Any]) -> Callable[[Seek, int], list[Any]]:
    def after(seek: Seek, limit: int) -> list[Any]:
        def is_wanted(row: Any) -> bool:
            if seek.values is None:
                return True
            found = seek.keyset.compare(seek.keyset.position(row), seek.values)
            return found < 0 if seek.backward else found > 0

        left = [row for row in (rows[::-1] if seek.backward else rows) if is_wanted(row)]
        return left[:limit]

    return after


def ways(rows: list[Any]) -> list[Addressing]:
    return [
        addressing_of(as_source(rows), None),
        addressing_of(Source.from_range(lambda offset, limit: rows[offset : offset + limit]), None),
        addressing_of(Source.from_cursor(by_cursor(rows)), None),
        addressing_of(as_source(rows), ORDER),
        addressing_of(Source.from_cursor(by_seek(rows)), ORDER),
    ]


def read(way: Addressing, position: Position, size: int, carried: tuple[Any, ...] = ()) -> tuple[Rows, Around]:
    found = run(way.read(position, size, {}, carried))
    assert isinstance(found, Rows)
    return found, way.around(position, found, size, {})


@given(n=st.integers(0, 23), size=st.integers(1, 9))
def test_a_walk_forward_meets_every_row_once_and_the_way_back_the_same(n: int, size: int) -> None:
    rows = table(n)
    for way in ways(rows):
        seen, pages, position = [], [], way.first()
        while True:
            found, around = read(way, position, size)
            seen += found.items
            pages.append((around.number, found.items))
            assert around.has_next == (around.next is not None) == (len(seen) < n)
            assert bool(around.has_previous) == (around.previous is not None) == (len(pages) > 1)
            if around.next is None:
                break
            position = around.next
        assert seen == rows
        assert [number for number, _ in pages] == list(range(1, len(pages) + 1))
        back = [pages[-1]]
        while around.previous is not None:
            found, around = read(way, around.previous, size)
            assert around.has_next
            back.append((around.number, found.items))
        assert back == pages[::-1][: len(back)]
        assert len(back) == (min(len(pages), CHAIN + 1) if isinstance(way, BySourceCursor) else len(pages))


def test_the_row_that_told_of_the_next_page_is_not_read_again() -> None:
    asked: list[tuple[int, int]] = []

    def rows(offset: int, limit: int) -> list[int]:
        asked.append((offset, limit))
        return list(range(100))[offset : offset + limit]

    way = addressing_of(Source.from_range(rows), None)
    first, around = read(way, way.first(), 10)
    assert first.probe == (10,)
    assert around.next is not None
    second, _ = read(way, around.next, 10, first.probe)
    assert second.items == tuple(range(10, 20))
    assert asked == [(0, 11), (11, 10)]


def test_behind_the_end_there_is_an_empty_page_that_leads_back() -> None:
    for source in (as_source([1, 2, 3]), Source.from_range(lambda offset, limit: [1, 2, 3][offset : offset + limit])):
        way = addressing_of(source, None)
        assert isinstance(way, ByOffset)
        found, around = read(way, way.at(100, 2), 2)
        assert found.items == ()
        assert not around.has_next
        assert around.has_previous
        assert around.previous is not None
    back, _ = read(addressing_of(as_source([1, 2, 3]), None), Position("offset", (3,), True), 2)
    assert back.items == (2, 3)


def asynchronous(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def test_async_sources_are_read_by_the_same_steps() -> None:
    rows = table(20)
    sources = [
        (Source.from_range(asynchronous(lambda offset, limit: rows[offset : offset + limit]), size=20), ORDER),
        (Source.from_range(asynchronous(lambda offset, limit: rows[offset : offset + limit])), None),
        (Source.from_cursor(asynchronous(by_cursor(rows))), None),
        (Source.from_cursor(asynchronous(by_seek(rows))), ORDER),
    ]
    for source, order in sources:
        way = addressing_of(source, order)
        assert way.is_async

        async def first(way: Addressing = way) -> Rows:
            found: Any = run(way.read(way.first(), 5, {}, ()))
            result: Rows = await found
            return result

        found = asyncio.run(first())
        assert found.items == tuple(rows[:5])
        assert found.more


@pytest.mark.parametrize("given", [None, 5, "abc", b"abc", {"a": 1}])
def test_what_is_no_list_of_rows_is_named(given: Any) -> None:
    for source in (Source.from_range(lambda *_: given), Source.from_cursor(lambda *_: (given, None))):
        way = addressing_of(source, None)
        with pytest.raises(LoadError, match="not a list of items"):
            read(way, way.first(), 2)


def test_a_source_must_keep_to_its_limit_and_go_on() -> None:
    too_many = addressing_of(Source.from_range(lambda offset, limit: list(range(limit + 1))), None)
    with pytest.raises(LoadError, match="4 items where 3"):
        read(too_many, too_many.first(), 2)
    stuck = addressing_of(Source.from_cursor(lambda cursor, limit: ([1], "same")), None)
    _, around = read(stuck, stuck.first(), 2)
    assert around.next is not None
    with pytest.raises(LoadError, match="never end"):
        read(stuck, around.next, 2)
    odd = addressing_of(Source.from_cursor(lambda cursor, limit: [1, 2, 3]), None)
    with pytest.raises(LoadError, match=r"\(items, next_cursor\)"):
        read(odd, odd.first(), 2)


def test_rows_that_are_not_sorted_or_gone_are_noticed() -> None:
    rows = table(9)
    way = addressing_of(as_source([*rows[:3], rows[5], rows[4]]), ORDER)
    with pytest.raises(LoadError, match="are not in the order"):
        read(way, way.first(), 9)
    shrunk = addressing_of(Source.from_range(lambda offset, limit: [], size=9), ORDER)
    with pytest.raises(LoadError, match="shorter"):
        read(shrunk, Position("keyset", (1, 1)), 2)


def test_keys_tell_positions_apart_also_where_they_cannot_be_hashed() -> None:
    rows = table(3)
    for way in ways(rows):
        assert way.key(way.first()) == way.key(way.first())
        hash(way.key(way.first()))
    offset = ByOffset(as_source(rows))
    assert offset.key(Position("offset", (4,))) != offset.key(Position("offset", (4,), True))
    cursor = BySourceCursor(Source.from_cursor(by_cursor(rows)))
    assert cursor.key(Position("source", ({"at": 1}, []))) != cursor.key(Position("source", ({"at": 2}, [])))
    assert cursor.key(Position("source", (1, []))) == cursor.key(Position("source", (1, [0])))


def test_what_cannot_be_paged_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="chunks"):
        addressing_of(as_source(b"abc"), None)
    with pytest.raises(UnsupportedError, match="from_range"):
        addressing_of(Source.from_stream(lambda: [1]), None)
    with pytest.raises(ConfigError, match="size="):
        ByKeyset(Source.from_range(lambda offset, limit: []), ORDER)
