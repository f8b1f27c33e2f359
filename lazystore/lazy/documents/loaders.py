"""The first document's loaders: one store behind each, its verbs under the document's names. Async, as there.

Page numbers count from 0 here, as in that document; everywhere else in lazystore they count from 1.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from lazystore.cache.keys import Kind
from lazystore.cache.tiers import UNSET, Tiers
from lazystore.errors import ConfigError, KeyNotFoundError, UnsupportedError
from lazystore.lazy.choosing import choose, strategy_of
from lazystore.lazy.chunk import DataChunk
from lazystore.lazy.documents.configs import LazyLoadingConfig
from lazystore.lazy.documents.metrics import metrics_of
from lazystore.lazy.handle import Handle
from lazystore.lazy.numbered import aread_pages, page_numbers
from lazystore.lazy.page import Page
from lazystore.lazy.predict import Markov, Stride, behaviour, remember
from lazystore.lazy.source import Source, as_source, function_key
from lazystore.lazy.store import LazyStore
from lazystore.lazy.strategy import LoadingStrategy, Strategy

__all__ = [
    "AdaptiveLazyLoader",
    "AdvancedLazyLoader",
    "BackgroundLoader",
    "IntelligentBackgroundLoader",
    "PaginatedDataLoader",
    "StreamingDataLoader",
]

#: Keys of a known order that are prefetched at a time.
MOST_HINTED = 8
#: Names whose loaders a :class:`BackgroundLoader` remembers.
MOST_NAMES = 100_000

L = TypeVar("L", bound="_OverStore")


class _OverStore:
    """A store of its own, or one that is shared.

    Parameters:
        config: None: the document's defaults.
        store: one that exists already; it is not closed with the loader then.

    Threads, fork, pickling: as the store. Use it in ``async with``, or close it.
    """

    def __init__(self, config: LazyLoadingConfig | None = None, *, store: LazyStore | None = None) -> None:
        self.config = LazyLoadingConfig() if config is None else config
        self._owns = store is None
        self.store = LazyStore(name=type(self).__name__, **self.config.settings()) if store is None else store

    def get_metrics(self) -> dict[str, Any]:
        """:func:`lazystore.lazy.get_metrics` of its store."""
        return metrics_of(self.store)

    async def close(self) -> None:
        """Close the store, if it is the loader's own. Harmless twice."""
        if self._owns:
            await self.store.aclose()

    async def __aenter__(self: L) -> L:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.store!r}>"

    def _allow(self, is_enabled: bool, switch: str) -> None:
        if not is_enabled:
            raise UnsupportedError(f"{type(self).__name__} was configured with {switch}=False")


class AdvancedLazyLoader(_OverStore):
    """Everything of the document in one: ``await loader.load_data(data_id, loader_func, strategy)``.

    Parameters:
        config: None: the document's defaults.
        store: a store that exists already; it is not closed with the loader then, and its settings are what counts,
            but for the configuration's switches.

    Threads, fork, pickling: as the store. Use it in ``async with``, or close it.
    """

    async def initialize(self) -> None:
        """Nothing to begin: threads start when they are needed."""

    async def cleanup(self) -> None:
        """:meth:`close`."""
        await self.close()

    async def load_data(
        self, data_id: Hashable, loader_func: Any, strategy: LoadingStrategy | str | None = None, **how: Any
    ) -> Any:
        """Load something by name; see :meth:`LazyStore.load` for ``how``.

        EAGER and LAZY give the value (awaiting is asking), BACKGROUND a handle that is queued, STREAMING a
        :class:`Stream`, CHUNKED :class:`Chunks`, PAGINATED :class:`Pages`, HYBRID what suits the size.

        Raises:
            UnsupportedError: the configuration switched this strategy off. ConfigError: no such strategy.
        """
        given = self.config.default_strategy if strategy is None else strategy
        chosen, config = strategy_of(given), self.config
        is_function = callable(loader_func) and not isinstance(loader_func, Source)
        what = loader_func if is_function else self.store._open_source(loader_func)
        taken = chosen
        if chosen is Strategy.AUTO:  # may open an object for its size: not in the loop
            taken, _ = await self.store.tiers.bridge.acall(choose, what, how.get("nbytes"))
        for refused, is_enabled, switch in (
            (Strategy.STREAMING, config.enable_streaming, "enable_streaming"),
            (Strategy.CHUNKED, config.enable_chunking, "enable_chunking"),
            (Strategy.PAGINATED, config.enable_pagination, "enable_pagination"),
            (Strategy.BACKGROUND, config.enable_background_loading, "enable_background_loading"),
        ):
            if taken is refused:
                self._allow(is_enabled, switch)
        found = await self.store.aload(data_id, what, chosen, **how)
        return await found if taken is Strategy.LAZY else found


class AdaptiveLazyLoader(AdvancedLazyLoader):
    """Chooses the strategy by itself, from what is known of the size; no loader runs twice to find out.

    Parameters:
        config, store: as of :class:`AdvancedLazyLoader`.
    """

    async def load_adaptive(self, data_id: Hashable, loader_func: Any, **how: Any) -> Any:
        """:meth:`load_data` with strategy AUTO."""
        return await self.load_data(data_id, loader_func, Strategy.AUTO, **how)


class StreamingDataLoader(_OverStore):
    """Streams by name. :class:`lazystore.StreamingDataLoader` is another: torch's loader for datasets.

    Parameters:
        config, store: as of :class:`AdvancedLazyLoader`.
    """

    async def create_stream(self, stream_id: str, data_source: Any, chunk_size: int | str | None = None) -> str:
        """Open a stream over a function, generator, iterable or bytes; gives its name back.

        Parameters:
            chunk_size: bytes a chunk; None: what the source yields, one by one.

        Raises:
            ConfigError: there is one of that name.
        """
        self._allow(self.config.enable_streaming, "enable_streaming")
        source = Source.from_stream(data_source) if callable(data_source) else as_source(data_source)
        self.store.streams.create_stream(stream_id, source, chunk_size)
        return stream_id

    async def get_stream_chunk(self, stream_id: str, chunk_index: int | None = None) -> DataChunk:
        """The next chunk, or the one of an index: read on to, or in the window still.

        Raises:
            KeyNotFoundError: no such stream. ItemIndexError: the chunk left the window, or the stream ended before it.
        """
        return await self.store.streams.aget_stream_chunk(stream_id, chunk_index)

    def get_stream_chunks(self, stream_id: str) -> AsyncIterator[DataChunk]:
        """``async for chunk in loader.get_stream_chunks(name)``: what is left of the stream."""
        return self.store.streams.aget_stream_chunks(stream_id)

    async def close_stream(self, stream_id: str) -> bool:
        """End a stream; its source is closed. Whether there was one."""
        return await self.store.streams.aclose_stream(stream_id)

    def get_stream_info(self, stream_id: str) -> dict[str, Any]:
        """What a stream has produced, given out, and holds; with the document's keys too."""
        info = self.store.streams.get_stream_info(stream_id)
        return {
            **asdict(info),
            "stream_id": info.name,
            "created_at": info.created,
            "total_chunks": info.produced if info.done else None,
            "consumed_chunks": info.consumed,
        }


class PaginatedDataLoader(_OverStore):
    """Pages of ``data_source(page, page_size)`` (from 0), or of a sequence; as dicts.

    Parameters:
        config, store: as of :class:`AdvancedLazyLoader`.
    """

    async def load_page(
        self, data_source: Any, page: int = 0, page_size: int = 100, cache_key: Hashable | None = None
    ) -> dict[str, Any]:
        """``{"data", "page", "page_size", "has_next", "has_previous", "total_pages", "total_items", ...}``.

        Parameters:
            page: counted from 0.
            page_size: items; above 1000 it is clamped.
            cache_key: names the source in the cache; needed where a function made anew each time means the same.

        What is not known is None. A function of pages is asked for the next one to know ``has_next`` of a full page;
        that one is cached.
        """
        self._allow(self.config.enable_pagination, "enable_pagination")
        _from_zero("page", page)
        source = self._source_of(data_source, page_size, cache_key)
        return _as_dict(await self.store.apage(page + 1, size=page_size, source=source))

    async def load_pages(
        self, data_source: Any, start_page: int = 0, end_page: int = 1, page_size: int = 100
    ) -> list[dict[str, Any]]:
        """Pages ``start_page`` to ``end_page`` (exclusive, as ``range`` has it), several at once, in order."""
        self._allow(self.config.enable_pagination, "enable_pagination")
        _from_zero("start_page", start_page)
        _from_zero("end_page", end_page)
        source = self._source_of(data_source, page_size, None)
        pages = await self.store.aload_pages(start_page + 1, end_page + 1, size=page_size, source=source)
        return [_as_dict(page) for page in pages]

    def _source_of(self, given: Any, page_size: int, cache_key: Hashable | None) -> Source:
        """A source by position over a function of (page, page_size), or over what is a source already."""
        if isinstance(given, Source) or not callable(given):
            source = as_source(given)
            return source if cache_key is None else source.named(cache_key)
        key = function_key(given) if cache_key is None else cache_key
        return Source.from_range(_ByPage(given, page_size, self.store.tiers, key)).named(("pages", key, page_size))

    def get_page_cache_info(self) -> dict[str, Any]:
        """Pages held, and the hits and misses of the store they are in."""
        stats = self.store.stats()
        return {
            "cached_pages": stats["entries_by_kind"].get("page", 0),
            **{name: stats[name] for name in ("hits", "misses", "joins", "requests", "memory_used", "evictions")},
        }


class BackgroundLoader(_OverStore):
    """Loads ahead of demand, by priority. Values are the store's to keep: one that left it is loaded again.

    Parameters:
        config, store: as of :class:`AdvancedLazyLoader`.
    """

    def __init__(self, config: LazyLoadingConfig | None = None, *, store: LazyStore | None = None) -> None:
        super().__init__(config, store=store)
        self._loaders: dict[Hashable, Callable[[], Any]] = {}
        # Not kept alive: values are the store's to keep, inside its budget.
        self._handles: weakref.WeakValueDictionary[Hashable, Handle[Any]] = weakref.WeakValueDictionary()

    async def start(self) -> None:
        """Nothing to begin: threads start with the first load."""

    async def stop(self) -> None:
        """:meth:`close`: what is queued is dropped, what runs is waited for a little."""
        await self.close()

    async def prefetch_data(
        self, data_id: Hashable, loader_func: Callable[[], Any], priority: float = 1
    ) -> Handle[Any]:
        """Queue a load; higher priority is sooner. The handle gives the value; so does :meth:`get`."""
        self._allow(self.config.enable_background_loading, "enable_background_loading")
        handle: Handle[Any] = self.store.load(data_id, loader_func, Strategy.BACKGROUND, priority=priority)
        self._handles[data_id] = handle
        self._loaders.pop(data_id, None)
        self._loaders[data_id] = loader_func
        if len(self._loaders) > MOST_NAMES:
            del self._loaders[next(iter(self._loaders))]
        return handle

    async def get(self, data_id: Hashable, timeout: float | None = None) -> Any:
        """What was queued under a name: waited for if it is on its way, loaded at once if it is queued still, or gone.

        Parameters:
            timeout: seconds to wait; the load goes on. None: as the store's.

        Raises:
            KeyNotFoundError: nothing was queued under it (of the last 100,000 names). LoadTimeoutError, ClosedError,
            and what the loader raises.
        """
        loader = self._loaders.get(data_id)
        if loader is None:
            raise KeyNotFoundError(f"nothing was prefetched as {data_id!r}")
        waits = UNSET if timeout is None else timeout
        handle = self._handles.get(data_id)
        if handle is None:
            return await self.store.aload(data_id, loader, Strategy.EAGER, timeout=waits)
        return await handle if timeout is None else await self.store.tiers.bridge.acall(handle.get, timeout)


class IntelligentBackgroundLoader(BackgroundLoader):
    """Guesses what is needed next.

    Parameters:
        config, store: as of :class:`AdvancedLazyLoader`.
        loader_of: ``loader_of(data_id)`` gives the function that loads it, for what is predicted.
    """

    def __init__(
        self,
        config: LazyLoadingConfig | None = None,
        *,
        loader_of: Callable[[Any], Callable[[], Any]] | None = None,
        store: LazyStore | None = None,
    ) -> None:
        super().__init__(config, store=store)
        self._loader_of = loader_of
        self._history = remember()
        self._successors = Markov()

    async def predict_and_prefetch(self, user_behavior: Mapping[str, Any] | Iterable[Hashable]) -> list[Handle[Any]]:
        """Prefetch what is likely next; handles of what was queued.

        Parameters:
            user_behavior: keys as they were asked for, oldest first; or a mapping of keys to scores; or a mapping with
                any of "history", "scores" and "hint" (keys in the order in which they will be needed).

        Raises:
            ConfigError: none of these, or no ``loader_of``.
        """
        likely = self._predict_likely_data(user_behavior)
        return [await self.prefetch_data(key, self._get_loader(key), priority) for key, priority in likely]

    def _predict_likely_data(self, user_behavior: Mapping[str, Any] | Iterable[Hashable]) -> list[tuple[Any, float]]:
        """``(data_id, priority)``, best first. Override it for a predictor of your own."""
        history, scores, hint = behaviour(user_behavior)
        for key in history:
            self._successors.learn(key)
            self._history.append(key)
        known = scores or [(key, 1.0) for key in islice(hint, MOST_HINTED)]
        return known or Stride()(self._history) or self._successors(self._history)

    def _get_loader(self, data_id: Any) -> Callable[[], Any]:
        """What loads a predicted key. Override it, or give ``loader_of``."""
        if self._loader_of is None:
            raise ConfigError("IntelligentBackgroundLoader needs loader_of=, which gives the loader of a key")
        return self._loader_of(data_id)


def _from_zero(name: str, page: Any) -> None:
    if isinstance(page, bool) or not isinstance(page, int) or page < 0:
        raise ConfigError(f"{name}={page!r} must be a page number, counted from 0 here")


class _ByPage:
    """``f(page, page_size)`` read by position. Each of its pages is cached: the one that was only looked at too."""

    def __init__(self, function: Callable[[int, int], Any], size: int, tiers: Tiers, key: Hashable) -> None:
        self._function, self._size, self._tiers, self._key = function, size, tiers, key

    async def __call__(self, offset: int, limit: int) -> list[Any]:
        return await aread_pages(page_numbers(offset, limit, self._size), self._page)

    async def _page(self, number: int) -> list[Any]:
        load = partial(self._function, number, self._size)
        return list(await self._tiers.aget((Kind.CALL, self._key, number, self._size), load))


def _as_dict(page: Page[Any]) -> dict[str, Any]:
    found = page.to_dict()
    found.update(data=list(page), page=(page.page or 1) - 1, timestamp=time.time())
    return found
