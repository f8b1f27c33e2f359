"""One pass over a source that is read by position or from cursor to cursor: its items one by one, block after block.

So whatever a source's function takes, it can be streamed. Caching, windows and cutting are elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sized
from typing import Any

from lazystore.cache.bridge import is_async, is_awaitable
from lazystore.errors import LoadError

__all__ = ["ITEMS_A_BLOCK", "by_cursor", "by_range"]

#: Items that a function is asked for at once.
ITEMS_A_BLOCK = 100

#: ``ask(position)`` gives a block or an awaitable of it; ``read(position, block)`` its items, and the next position.
Ask = Callable[[Any], Any]
Read = Callable[[Any, Any], tuple[Any, Any]]


def by_range(function: Callable[..., Any], size: Callable[[], int | None]) -> Any:
    """All items of ``function(offset, limit)``: an iterator, or an async one where the function is.

    Raises, while it is iterated over:
        LoadError: a block is no list of items, has more than was asked for, or fewer although the size says otherwise.
        What the function raises.
    """
    total = None

    def ask(offset: int) -> Any:
        nonlocal total
        total = size()
        limit = ITEMS_A_BLOCK if total is None else max(0, min(ITEMS_A_BLOCK, total - offset))
        return function(offset, limit) if limit else ()

    def read(offset: int, block: Any) -> tuple[Any, Any]:
        limit = ITEMS_A_BLOCK if total is None else max(0, min(ITEMS_A_BLOCK, total - offset))
        count = len(_items(block))
        if count > limit or (total is not None and count < limit):
            raise LoadError(f"the source gave {count} items from {offset} on where {limit} were asked for")
        return block, offset + count if count == ITEMS_A_BLOCK else None

    return _walk(function, ask, read, 0)


def by_cursor(function: Callable[..., Any]) -> Any:
    """All items of ``function(cursor, limit)``, until it gives no next cursor; raises as :func:`by_range` does."""

    def ask(cursor: Any) -> Any:
        return function(cursor, ITEMS_A_BLOCK)

    def read(cursor: Any, given: Any) -> tuple[Any, Any]:
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise LoadError(f"the source gave a {type(given).__name__}, not (items, next_cursor)")
        items, following = given
        if following is not None and following == cursor:
            raise LoadError(f"the source gave the cursor it was asked with, {cursor!r:.80}: it would never end")
        return _items(items), following

    return _walk(function, ask, read, None)


def _items(block: Any) -> Any:
    if isinstance(block, (str, bytes, Mapping)) or not isinstance(block, Sized):
        raise LoadError(f"the source gave a {type(block).__name__}, not a list of items")
    return block


def _walk(function: Callable[..., Any], ask: Ask, read: Read, first: Any) -> Any:
    if is_async(function):
        return _asynchronous(ask, read, first, None)
    given = ask(first)  # also a function that is no coroutine function may give an awaitable
    return _asynchronous(ask, read, first, given) if is_awaitable(given) else _synchronous(ask, read, first, given)


def _synchronous(ask: Ask, read: Read, position: Any, given: Any) -> Generator[Any, None, None]:
    while True:
        items, position = read(position, given)
        yield from items
        if position is None:
            return
        given = ask(position)


async def _asynchronous(ask: Ask, read: Read, position: Any, coming: Any) -> AsyncGenerator[Any, None]:
    while True:
        given = ask(position) if coming is None else coming
        coming = None
        items, position = read(position, await given if is_awaitable(given) else given)
        for item in items:
            yield item
        if position is None:
            return
