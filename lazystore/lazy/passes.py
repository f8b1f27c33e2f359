"""One pass over a source, cut by a chunker or as it is, sync or async. Nothing is held or read ahead."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from lazystore.lazy.source import Source

if TYPE_CHECKING:
    from lazystore.cache.bridge import Bridge
    from lazystore.lazy.chunker import DataChunker

__all__ = ["async_pieces", "sync_pieces"]

#: Items of a sync source that one hop to a worker thread may take, where they are gathered in chunks anyway.
HOP = 16


def sync_pieces(steps: Any, chunker: DataChunker | None) -> Generator[Any, None, None]:
    """The pieces of an iterator of the bridge, which is closed whichever way this ends."""
    try:
        yield from steps if chunker is None else chunker.pieces(steps)
    finally:
        steps.close()


async def async_pieces(source: Source, bridge: Bridge, chunker: DataChunker | None) -> AsyncGenerator[Any, None]:
    """The same of a source, which is opened, stepped and closed without blocking the event loop."""
    opened: Any = source.open() if _opens_at_once(source) else await bridge.acall(source.open)
    if source.instant:
        for piece in opened if chunker is None else chunker.pieces(opened):
            yield piece
        return
    steps = bridge.aiterate(opened, batch=1 if chunker is None else HOP)
    try:
        if chunker is None:
            async for piece in steps:
                yield piece
        else:
            pieces = chunker.apieces(steps)
            try:
                async for piece in pieces:
                    yield piece
            finally:
                await pieces.aclose()
    finally:
        await steps.aclose()  # type: ignore[attr-defined]


def _opens_at_once(source: Source) -> bool:
    """Whether opening runs none of the user's code that could block, so that an event loop may do it."""
    function: Any = source._open
    while isinstance(function, partial):
        function = function.func
    kinds = (inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction)
    return source.instant or source.cached or any(kind(function) for kind in kinds) or _is_iterable(source)


def _is_iterable(source: Source) -> bool:
    return isinstance(source.identity, tuple) and source.identity[:1] == ("iterable",)
