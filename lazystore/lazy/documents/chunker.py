"""The first document's `DataChunker`: the chunker with a configuration, and chunks that can be awaited as a list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from lazystore.lazy import chunker
from lazystore.lazy.chunk import DataChunk
from lazystore.lazy.documents.configs import LazyLoadingConfig
from lazystore.lazy.strategy import ChunkStrategy

__all__ = ["Cuts", "DataChunker"]


class DataChunker(chunker.DataChunker):
    """:class:`lazystore.lazy.chunker.DataChunker`, whose chunk size may come from a configuration.

    Parameters:
        config: a :class:`LazyLoadingConfig` (or anything with a ``chunk_size`` in bytes), or the bytes of a chunk.
        settings: those of the chunker.
    """

    def __init__(self, config: Any = None, **settings: Any) -> None:
        self.config = config if hasattr(config, "chunk_size") else LazyLoadingConfig()
        if config is not None and config is not self.config:
            settings["chunk"] = config
        elif "items" not in settings:
            settings.setdefault("chunk", self.config.chunk_size)
        self._settings = settings
        super().__init__(**settings)

    def chunk_data(
        self,
        data: Any,
        strategy: ChunkStrategy | str | None = None,
        chunk_size: int | str | None = None,
        *,
        items: int | None = None,
    ) -> Cuts:
        """The chunks of ``data``: ``for``, ``async for``, or ``await`` for a list of them.

        Parameters:
            strategy: another than the chunker's.
            chunk_size: bytes a chunk, in place of the chunker's. items: objects a chunk.
        """
        if strategy is None and chunk_size is None and items is None:
            return Cuts(self, data)
        settings = dict(self._settings)
        if strategy is not None:
            settings["strategy"] = strategy
        if items is not None:
            settings.pop("chunk", None)
            settings["items"] = items
        if chunk_size is not None:
            settings["chunk"] = chunk_size
        return Cuts(chunker.DataChunker(**settings), data)


class Cuts:
    """Chunks as they are asked for. Each loop cuts anew; what can be read once only gives its chunks once."""

    def __init__(self, cutter: chunker.DataChunker, data: Any) -> None:
        self._cutter, self._data = cutter, data

    def __iter__(self) -> Iterator[DataChunk]:
        return self._cutter.chunk(self._data)

    def __aiter__(self) -> AsyncIterator[DataChunk]:
        return self._cutter.achunk(self._data)

    def __await__(self) -> Generator[Any, Any, list[DataChunk]]:
        return self._all().__await__()

    async def _all(self) -> list[DataChunk]:
        return [found async for found in self]

    def __repr__(self) -> str:
        return f"<Cuts of {type(self._data).__name__} by {self._cutter!r}>"
