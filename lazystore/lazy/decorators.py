"""Decorators that put a function's calls behind a store: ``lazy_load``, ``chunked_load``, ``streaming_load``.

Keys of calls are made in ``calls.py``; ``paginated`` is in ``paginated.py``. All of them share one store unless they
are given another.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from lazystore.cache.entries import MISSING
from lazystore.cache.locks import forkable_lock
from lazystore.cache.tiers import UNSET
from lazystore.config import whole
from lazystore.errors import ConfigError
from lazystore.lazy.calls import CallKeys
from lazystore.lazy.choosing import strategy_of
from lazystore.lazy.decorated import Stored
from lazystore.lazy.paginated import paginated
from lazystore.lazy.source import as_source
from lazystore.lazy.strategy import ChunkStrategy, Strategy

if TYPE_CHECKING:
    from lazystore.lazy.store import LazyStore

__all__ = ["Loaded", "chunked_load", "lazy_load", "paginated", "streaming_load"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Loaded(Stored, Generic[P, R]):
    """A function whose results are cached by its arguments. Made by :func:`lazy_load` and :func:`chunked_load`.

    Threads: any; one load a key. Fork: as its store. Pickling: by its name. Cost of a hit: a microsecond.
    """

    def __init__(
        self, function: Callable[..., Any], strategy: Strategy, how: dict[str, Any], *, ttl: Any, key: Any,
        store: LazyStore | None, timeout: float | None,
    ) -> None:  # fmt: skip
        super().__init__(function, store)
        self._keys = CallKeys(function, key)
        self._key = self._keys.make
        self._method = self._keys.of_method
        self._strategy, self._how = strategy, how
        self._ttl, self._timeout = ttl, timeout
        self._plain = strategy not in (Strategy.CHUNKED, Strategy.PAGINATED, Strategy.BACKGROUND)
        self._hit: Callable[[Any, Any], Any] = _nothing
        self._calls = itertools.count()
        self._counting = forkable_lock()
        self._counts = {"misses": 0, "loads": 0, "errors": 0, "refreshes": 0}

    def __set_name__(self, owner: type, name: str) -> None:
        self._of_method()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if not self._method:
            self._of_method()
        return super().__get__(instance, owner)

    def _of_method(self) -> None:
        self._keys.become_method()
        self._key = self._keys.make
        self._method = True

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        next(self._calls)
        key = self._key(*args, **kwargs)
        try:
            found = self._hit(key, MISSING)
        except TypeError as error:
            raise self._keys.unhashable(key) or error from None
        if found is MISSING:
            store = self._missed()
            load = functools.partial(self._run, args, kwargs)
            found = store._tiers.get(key, load, ttl=self._kept, deadline=store._deadline(self._wait))
        return found if self._plain else self._shaped(found, key, args, kwargs)  # type: ignore[no-any-return]

    # -- ways in ------------------------------------------------------------------------

    def _missed(self) -> LazyStore:
        with self._counting:
            self._counts["misses"] += 1
        store = self.store
        self._hit = store._tiers.hit
        return store

    @property
    def _kept(self) -> Any:
        """Seconds a value is kept: those of BACKGROUND for ever, they are refreshed."""
        return None if self._strategy is Strategy.BACKGROUND else self._ttl

    @property
    def _wait(self) -> Any:
        return UNSET if self._timeout is None else self._timeout

    def _run(self, args: Any, kwargs: Any) -> Any:
        self._count("loads")
        try:
            return self._stamped(self.__wrapped__(*args, **kwargs))
        except BaseException:
            self._count("errors")
            raise

    def _count(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1

    # -- what is handed out -------------------------------------------------------------

    def _stamped(self, value: Any) -> Any:
        """A value of BACKGROUND with the time at which it was loaded."""
        return (value, time.time()) if self._strategy is Strategy.BACKGROUND else value

    def _shaped(self, found: Any, key: Any, args: Any, kwargs: Any) -> Any:
        if self._strategy is Strategy.BACKGROUND:
            value, loaded = found
            ttl = self.store.options.ttl if self._ttl is UNSET else self._ttl
            if ttl is not None and time.time() - loaded > ttl:
                self._refresh(key, args, kwargs)
            return value
        source = as_source(found)
        if self._strategy is Strategy.PAGINATED:
            return self.store.pages(source=source, **self._how)
        how = dict(self._how)
        if "size" in how:
            how["chunk" if source.unit == "bytes" else "items"] = how.pop("size")
        return self.store.chunks(source, **how)

    def _refresh(self, key: Any, args: Any, kwargs: Any) -> None:
        """Load a stale value anew in the background, once at a time."""
        tiers = self.store._tiers

        def renew(value: Any) -> None:
            tiers.put(key, value, ttl=None)

        async def later() -> None:
            renew(await self._run(args, kwargs))

        def now() -> None:
            renew(self._run(args, kwargs))

        self._count("refreshes")
        # What this leaves under the key of its own is nothing, and for a moment.
        tiers.start((*key, _REFRESH), later if isinstance(self, AsyncLoaded) else now, ttl=1e-6, priority=1.0)

    # -- what users ask -----------------------------------------------------------------

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the result of these arguments (of a method: the instance first). Whether there was one."""
        key = self._key(*args, **kwargs)
        try:
            return self.store._tiers.invalidate(key)
        except TypeError as error:
            raise self._keys.unhashable(key) or error from None

    def clear(self) -> int:
        """Forget all its results, in memory and on disk. How many there were."""
        return self.store._tiers.clear(disk=True, prefix=self._keys.name)

    def stats(self) -> dict[str, Any]:
        """``requests``, ``hits`` (from memory at once), ``misses``, ``loads`` (calls of the function), ``errors``,
        ``refreshes``, ``hit_ratio``: of this function, in this process."""
        with self._counting:
            counts: dict[str, Any] = dict(self._counts)
        requests = int(repr(self._calls)[6:-1])  # a counter that threads share without a lock; it shows its next number
        hits = max(0, requests - counts["misses"])
        return {"requests": requests, "hits": hits, **counts, "hit_ratio": hits / requests if requests else 0.0}


class AsyncLoaded(Loaded[P, R]):
    """The same of a coroutine function; it is one itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _mark_async(self)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        next(self._calls)
        key = self._key(*args, **kwargs)
        try:
            found = self._hit(key, MISSING)
        except TypeError as error:
            raise self._keys.unhashable(key) or error from None
        if found is MISSING:
            store = self._missed()
            load = functools.partial(self._run, args, kwargs)
            found = await store._tiers.aget(key, load, ttl=self._kept, deadline=store._deadline(self._wait))
        return found if self._plain else self._shaped(found, key, args, kwargs)  # type: ignore[no-any-return]

    async def _run(self, args: Any, kwargs: Any) -> Any:
        self._count("loads")
        try:
            return self._stamped(await self.__wrapped__(*args, **kwargs))
        except BaseException:
            self._count("errors")
            raise


# -- streams ----------------------------------------------------------------------------


class Streamed(Stored):
    """A function whose items are handed on, in chunks if it was asked for. Made by :func:`streaming_load`."""

    def __init__(
        self, function: Callable[..., Any], items: int | None, chunk: int | str | None, store: LazyStore | None
    ) -> None:
        super().__init__(function, store)
        self._items, self._chunk = items, chunk
        self._asynchronous = inspect.isasyncgenfunction(function) or inspect.iscoroutinefunction(function)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        found = self.__wrapped__(*args, **kwargs)
        self.store._events.operation(Strategy.STREAMING)
        if inspect.isawaitable(found) or hasattr(found, "__aiter__"):
            return self._apieces(found)
        return self._pieces(found)

    def _pieces(self, found: Any) -> Iterator[Any]:
        try:
            if self._chunk is not None:
                yield from self._chunker().chunk(found)
            elif self._items is None:
                yield from found
            else:
                items = iter(found)
                while chunk := list(itertools.islice(items, self._items)):
                    yield chunk
        finally:
            if hasattr(found, "close"):
                found.close()

    async def _apieces(self, found: Any) -> AsyncIterator[Any]:
        if not hasattr(found, "__aiter__"):
            found = await found
        items = self.store._tiers.bridge.aiterate(found)
        try:
            if self._chunk is not None:
                async for piece in self._chunker().achunk(items):
                    yield piece
            else:
                async for piece in _gathered(items, self._items):
                    yield piece
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    def _chunker(self) -> Any:
        from lazystore.lazy.chunker import DataChunker

        return DataChunker(self._chunk)

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """False: what is streamed is not cached."""
        return False

    def stats(self) -> dict[str, Any]:
        """Those of its store."""
        return self.store.stats()


async def _gathered(items: Any, count: int | None) -> AsyncIterator[Any]:
    if count is None:
        async for item in items:
            yield item
        return
    chunk: list[Any] = []
    async for item in items:
        chunk.append(item)
        if len(chunk) == count:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# -- the decorators ---------------------------------------------------------------------


@overload
def lazy_load(strategy: Callable[P, R], /) -> Loaded[P, R]: ...


@overload
def lazy_load(
    strategy: Strategy | str = ..., *, ttl: Any = ..., key: Callable[..., Hashable] | None = ...,
    store: LazyStore | None = ..., timeout: float | None = ..., **how: Any,
) -> Callable[[Callable[P, R]], Loaded[P, R]]: ...  # fmt: skip


def lazy_load(
    strategy: Any = Strategy.LAZY,
    *,
    ttl: Any = UNSET,
    key: Callable[..., Hashable] | None = None,
    store: LazyStore | None = None,
    timeout: float | None = None,
    **how: Any,
) -> Any:
    """Cache what a function gives, by its arguments; with or without parentheses.

    Parameters:
        strategy: LAZY, EAGER, AUTO: the value. BACKGROUND: the value, which is also served when it is older than
            ``ttl``, while it is loaded anew in the background. CHUNKED, PAGINATED: the value in chunks or pages.
            STREAMING: as :func:`streaming_load`.
        ttl: seconds a value stays fresh; None: for ever. Not given: the store's.
        key: makes what stands for the arguments in the cache; needed where they are not hashable.
        store: where values are kept. None: one that all decorated functions share.
        timeout: seconds to wait for a load, which goes on.
        how: arguments of ``LazyStore.chunks`` or ``pages``.

    Works on functions and coroutine functions, and on methods: each instance has results of its own, and is not kept
    alive by them. ``f(1)`` and ``f(a=1)`` are the same call. The decorated function has ``invalidate(*args)``,
    ``clear()``, ``stats()``, ``store`` and ``__wrapped__``. Values are handed out as they are, not copied.

    Raises:
        ConfigError: a generator function: what it gives can be read once only. Calls raise what the function raises,
        UnhashableKeyError (which names the argument), and what ``LazyStore.get`` raises.
    """
    if callable(strategy) and not isinstance(strategy, Strategy):
        return lazy_load()(strategy)
    chosen = strategy_of(strategy)
    if chosen is Strategy.STREAMING:
        return streaming_load(store=store, **how)
    if how and chosen not in (Strategy.CHUNKED, Strategy.PAGINATED):
        raise ConfigError(f"{', '.join(how)}: no setting of strategy {chosen.name}")
    settings: dict[str, Any] = {"ttl": ttl, "key": key, "store": store, "timeout": timeout}
    return lambda function: _decorated(function, lambda plain: _loaded(plain, chosen, how, settings))


def chunked_load(
    chunk_size: Any = None, strategy: ChunkStrategy | str | None = None, *, ttl: Any = UNSET,
    key: Callable[..., Hashable] | None = None, store: LazyStore | None = None, timeout: float | None = None,
    **how: Any,
) -> Any:  # fmt: skip
    """Cache what a function gives and hand it out in chunks; ``lazy_load`` with strategy CHUNKED.

    Parameters:
        chunk_size: elements of the value a chunk: items of a sequence, bytes of bytes. None: the store's.
        strategy: where the cuts are, see ``LazyStore.chunks``.
        how: other arguments of ``LazyStore.chunks``.
    """
    if callable(chunk_size):
        return chunked_load()(chunk_size)
    if chunk_size is not None:
        how["size"] = whole("chunk_size", chunk_size)
    if strategy is not None:
        how["strategy"] = strategy
    return lazy_load(Strategy.CHUNKED, ttl=ttl, key=key, store=store, timeout=timeout, **how)


def streaming_load(chunk_size: Any = None, *, chunk: int | str | None = None, store: LazyStore | None = None) -> Any:
    """Hand on what a generator gives, as it comes or in chunks; nothing is cached, nothing is read ahead.

    Parameters:
        chunk_size: items a chunk: lists of so many, the last one of fewer. None: each item as it comes.
        chunk: bytes a chunk (``"64KiB"``), of generators of bytes or text.
        store: whose statistics count it, and whose worker threads step through sync sources of async functions.

    Works on generators and async generators, on functions that return an iterable of either kind, and on methods. Of
    an async function an async iterator; it and its source are closed when it ends, or is closed.
    """
    if callable(chunk_size):
        return streaming_load()(chunk_size)
    if chunk_size is not None and chunk is not None:
        raise ConfigError(f"chunk_size={chunk_size!r} counts items and chunk={chunk!r} bytes; give one of them")
    items = None if chunk_size is None else whole("chunk_size", chunk_size)
    return lambda function: _decorated(function, lambda plain: Streamed(plain, items, chunk, store))


def _decorated(function: Any, wrap: Callable[[Any], Any]) -> Any:
    """``wrap`` what a function is, inside a staticmethod or classmethod if it is one."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(wrap(function.__func__))
    if not callable(function):
        raise ConfigError(f"{function!r} is no function that could be decorated")
    return wrap(function)


def _loaded(function: Any, strategy: Strategy, how: dict[str, Any], settings: dict[str, Any]) -> Loaded[..., Any]:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{function.__qualname__}() is a generator: what it gives can be read once, and is not cached; use "
            "@streaming_load, or return a list"
        )
    kind: type[Loaded[..., Any]] = AsyncLoaded if inspect.iscoroutinefunction(function) else Loaded
    return kind(function, strategy, how, **settings)


def _nothing(key: Any, default: Any) -> Any:
    """The cache before the store is known: empty, but as particular about keys."""
    hash(key)
    return default


_REFRESH = "refresh"


def _mark_async(function: Any) -> None:
    """Let frameworks see that calling it gives a coroutine."""
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        mark(function)
    else:
        import asyncio.coroutines

        function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
