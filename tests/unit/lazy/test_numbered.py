"""Rows by position out of pages by number: the same as slicing, and no page read that is not needed."""

from __future__ import annotations

import asyncio

import pytest

from lazystore.lazy.numbered import aread_pages, page_numbers, read_pages


@pytest.mark.parametrize("total", [0, 1, 9, 10, 11, 37])
@pytest.mark.parametrize(("offset", "limit"), [(0, 10), (0, 11), (3, 4), (9, 2), (10, 10), (15, 100), (40, 5)])
def test_pages_give_what_a_slice_would(total: int, offset: int, limit: int) -> None:
    rows = list(range(total))
    asked: list[int] = []

    def read(number: int) -> list[int]:
        asked.append(number)
        return rows[number * 10 : (number + 1) * 10]

    async def aread(number: int) -> list[int]:
        return read(number)

    expected = rows[offset : offset + limit]
    assert read_pages(page_numbers(offset, limit, 10), read) == expected
    first = list(asked)
    assert first == list(range(offset // 10, offset // 10 + len(first)))
    assert len(first) <= (offset + limit - 1) // 10 - offset // 10 + 1
    assert asyncio.run(aread_pages(page_numbers(offset, limit, 10), aread)) == expected
    assert asked == first * 2


@pytest.mark.parametrize("error", [LookupError, StopIteration])
def test_what_a_page_raises_comes_as_it_is(error: type[Exception]) -> None:
    def read(number: int) -> list[int]:
        raise error(number)

    with pytest.raises(error):
        read_pages(page_numbers(0, 1, 10), read)
