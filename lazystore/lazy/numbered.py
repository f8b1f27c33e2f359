"""Rows by position out of a function that gives pages by number: which pages are read, and what of them is taken.

The arithmetic once, as a generator, for sync and async readers. Where pages come from and are cached is the caller's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias

__all__ = ["aread_pages", "page_numbers", "read_pages"]

Numbers: TypeAlias = Generator[int, list[Any], list[Any]]


def page_numbers(offset: int, limit: int, size: int) -> Numbers:
    """Yields the number of a page (from 0), is sent its rows, and returns at most ``limit`` rows from ``offset`` on.

    Parameters:
        size: rows of every page but the last: a shorter one is the end.
    """
    number, skipped = divmod(offset, size)
    found: list[Any] = []
    while len(found) < limit:
        rows = yield number
        found += rows[skipped:]
        if len(rows) < size:
            break
        number, skipped = number + 1, 0
    return found[:limit]


def read_pages(numbers: Numbers, read: Callable[[int], list[Any]]) -> list[Any]:
    """The rows, each page by ``read(number)``."""
    number = next(numbers)
    while True:
        rows = read(number)  # not in the try: a StopIteration of its own is an error, not the end
        try:
            number = numbers.send(rows)
        except StopIteration as end:
            found: list[Any] = end.value
            return found


async def aread_pages(numbers: Numbers, read: Callable[[int], Awaitable[list[Any]]]) -> list[Any]:
    """The same, each page by ``await read(number)``."""
    number = next(numbers)
    while True:
        rows = await read(number)
        try:
            number = numbers.send(rows)
        except StopIteration as end:
            found: list[Any] = end.value
            return found
