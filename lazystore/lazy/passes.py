"""One pass over a source, cut by a chunker or as it is, sync or async. Nothing is held or read ahead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
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
    opened: Any = source.open() if source.opens_at_once else await bridge.acall(source.open)
    if source.instant:
        for piece in opened if chunker is None else chunker.pieces(iter(opened)):  # its items, not its buffer
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
