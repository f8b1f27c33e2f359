"""The second document's loader: pages and chunks of large data, sized by a preset. Async, as there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields, replace
from types import TracebackType
from typing import Any

from lazystore.errors import ConfigError, UnsupportedError
from lazystore.lazy.choosing import strategy_of
from lazystore.lazy.chunk import DataChunk, size_of
from lazystore.lazy.documents.configs import ChunkConfig, LargeDataConfig
from lazystore.lazy.documents.metrics import stats_of
from lazystore.lazy.options import PRESETS, size_class
from lazystore.lazy.page import Page, PageInfo
from lazystore.lazy.source import Source, function_key
from lazystore.lazy.store import LazyStore, default_store
from lazystore.lazy.strategy import DataSize, LoadStrategy

__all__ = ["LargeDataLoader", "create_lazy_loader", "large_dataset_context", "load_chunked_data", "load_paginated_data"]


class LargeDataLoader:
    """Pages and chunks of large data, in the memory and on the disk that a :class:`LargeDataConfig` allows.

    Parameters:
        config: None: the document's defaults.
        store: one that exists already; it is not closed with the loader then.

    Threads, fork, pickling: as its store. Use it in ``async with``, or :meth:`close` it.
    """

    def __init__(self, config: LargeDataConfig | None = None, *, store: LazyStore | None = None) -> None:
        self.config = LargeDataConfig() if config is None else config
        self._owns = store is None
        self.store = LazyStore(name="large-data", **self.config.settings()) if store is None else store
        if self._owns:
            self.store.tiers.pressure.threshold = self.config.memory_threshold

    async def load_paginated_data(
        self, loader_func: Callable[..., Any], page: int = 1, page_size: int | None = None, **filters: Any
    ) -> tuple[Page[Any], PageInfo]:
        """One page, and what is known about it: ``data, info = await loader.load_paginated_data(f, page=1)``.

        Parameters:
            loader_func: ``loader_func(offset=..., limit=..., **filters)``, sync or async.
            page: counted from 1.
            page_size: items; above the configured most it is clamped.
            filters: handed to ``loader_func``, and part of what the page is cached under.
        """
        return await load_paginated_data(loader_func, page, page_size, store=self.store, **filters)

    def load_chunked_data(
        self,
        loader_func: Callable[[Any], Any],
        chunk_ids: Iterable[Hashable],
        strategy: LoadStrategy = LoadStrategy.STREAMING,
    ) -> AsyncIterator[DataChunk]:
        """The chunks of ``chunk_ids``, in that order: ``async for chunk in ...``.

        STREAMING loads a few ahead, BACKGROUND all of them as memory allows, everything else one when it is asked for.
        Chunks are cached; ``loader_func(chunk_id)`` gives the data, or a :class:`DataChunk`.

        Raises:
            UnsupportedError: BACKGROUND, which the configuration switched off. ConfigError: no such strategy.
        """
        strategy = strategy_of(strategy)
        if strategy is LoadStrategy.BACKGROUND and not self.config.enable_background_loading:
            raise UnsupportedError("LargeDataLoader was configured with enable_background_loading=False")
        return load_chunked_data(loader_func, chunk_ids, strategy, store=self.store)

    async def get_stats(self) -> dict[str, Any]:
        """:func:`lazystore.lazy.get_stats` of its store."""
        return stats_of(self.store)

    async def batch_process_large_dataset(
        self, items: Iterable[Any], process: Callable[[list[Any]], Any], batch_size: int | None = None
    ) -> AsyncIterator[Any]:
        """Results of ``process(batch)`` over batches of items, in order, one batch at a time.

        Parameters:
            process: gives the results of a list of items; sync (in a worker thread) or async.
            batch_size: items; None: ``background_batch_size``.
        """
        size = self.config.background_batch_size if batch_size is None else batch_size
        batches = self.store.chunks(Source.from_stream(items), items=size)
        async with aclosing(aiter(batches)) as parts:  # type: ignore[type-var]
            async for batch in parts:
                for result in await self.store.tiers.bridge.acall(process, batch):
                    yield result

    async def clear_cache(self, *, disk: bool = False) -> int:
        """Forget what is in memory, and on disk if asked; the number of entries dropped."""
        return self.store.clear(disk=disk)

    async def close(self) -> None:
        """Close the store, if it is the loader's own. The disk tier stays."""
        if self._owns:
            await self.store.aclose()

    async def __aenter__(self) -> LargeDataLoader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<LargeDataLoader over {self.store!r}>"


async def load_paginated_data(
    loader_func: Callable[..., Any],
    page: int = 1,
    page_size: int | None = None,
    *,
    store: LazyStore | None = None,
    **filters: Any,
) -> tuple[Page[Any], PageInfo]:
    """As :meth:`LargeDataLoader.load_paginated_data`, in a store of yours or the one that decorators share."""
    source = Source.from_range(_ByOffset(loader_func)).named(function_key(loader_func))
    found = await (default_store() if store is None else store).apage(page, size=page_size, source=source, **filters)
    return found, found.info


async def load_chunked_data(
    loader_func: Callable[[Any], Any],
    chunk_ids: Iterable[Hashable],
    strategy: LoadStrategy = LoadStrategy.STREAMING,
    *,
    store: LazyStore | None = None,
) -> AsyncIterator[DataChunk]:
    """As :meth:`LargeDataLoader.load_chunked_data`, in a store of yours or the one that decorators share."""
    used = default_store() if store is None else store
    keys = list(chunk_ids)
    ahead = {LoadStrategy.STREAMING: None, LoadStrategy.BACKGROUND: len(keys)}.get(strategy_of(strategy), 0)
    parts = used.chunks(Source.from_keys(loader_func), keys=keys, prefetch=ahead)
    index = 0
    async for value in parts:
        if isinstance(value, DataChunk):
            yield value
        else:
            size = value.nbytes if hasattr(value, "nbytes") else size_of(value)
            yield DataChunk(value, index, size, metadata={"id": keys[index]})
        index += 1


def create_lazy_loader(data_size: DataSize = DataSize.MEDIUM, **settings: Any) -> LargeDataLoader:
    """A loader with the document's settings for a size class; ``settings`` (fields of :class:`LargeDataConfig`) win.

    Raises:
        ConfigError: no such size, or setting.
    """
    data_size = size_class("data_size", data_size)
    items, chunks, memory = PRESETS[data_size]
    known = {field.name for field in fields(LargeDataConfig)}
    if unknown := sorted(settings.keys() - known):
        raise ConfigError(f"LargeDataConfig has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    config = LargeDataConfig(
        max_memory_mb=memory,
        enable_disk_cache=data_size is not DataSize.SMALL,
        chunk_config=ChunkConfig(chunk_size=items, max_chunks_in_memory=chunks),
    )
    return LargeDataLoader(replace(config, **settings))


@asynccontextmanager
async def large_dataset_context(loader: LargeDataLoader | None = None) -> AsyncIterator[LargeDataLoader]:
    """``async with large_dataset_context(loader) as loader``: memory is freed at the end; what is on disk stays."""
    used = LargeDataLoader() if loader is None else loader
    try:
        yield used
    finally:
        if loader is None:
            await used.close()
        elif not used.store.stats()["closed"]:
            used.store.clear()


class _ByOffset:
    """``f(offset=, limit=)`` called by name, as the document's loaders want it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ConfigError(f"loader_func={function!r} is not a function of offset and limit")
        self._function = function

    def __call__(self, offset: int, limit: int, **filters: Any) -> Any | Awaitable[Any]:
        return self._function(offset=offset, limit=limit, **filters)
