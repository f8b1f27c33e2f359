"""`get` and `load` of a store, called from threads or awaited: which way a value comes, and what a strategy gives."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from lazystore.cache.bridge import deadline_left, is_awaitable
from lazystore.cache.entries import MISSING
from lazystore.cache.flight import Deadline
from lazystore.cache.keys import Kind
from lazystore.cache.tiers import UNSET, Tiers, check_ttl
from lazystore.config import seconds
from lazystore.errors import ClosedError, ConfigError, ItemIndexError, UnhashableKeyError, UnsupportedError
from lazystore.lazy.choosing import choose, is_generator, strategy_of
from lazystore.lazy.source import Source, as_source, function_identity
from lazystore.lazy.strategy import Strategy

if TYPE_CHECKING:
    from lazystore.lazy.events import Events
    from lazystore.lazy.handle import Handle
    from lazystore.lazy.options import StoreOptions

__all__ = ["Loading", "time_left"]

#: What a bad argument is, not what a loader met: no fallback is taken for it.
_MISTAKES = (UnhashableKeyError, ConfigError, ClosedError)


def time_left() -> float | None:
    """Seconds until the deadline of the load that is running here, for loaders that can hurry; None: there is none."""
    return deadline_left()


class Loading:
    """The verbs that give values. Mixed into :class:`~lazystore.LazyStore`, which owns all the parts."""

    _tiers: Tiers
    _hit: Callable[..., Any]
    #: Keys are cache keys as they are.
    _fast: bool
    _key: Callable[[Any], Hashable] | None
    _events: Events
    options: StoreOptions

    # What a store has besides (lazy/store.py).
    if TYPE_CHECKING:

        def _open_source(self, given: Any = None) -> Source: ...
        def _seen(self, key: Any) -> None: ...
        def chunks(self, source: Any = None, **how: Any) -> Any: ...
        def _parts(self, source: Source) -> Any: ...
        def pages(self, start: int = 1, stop: int | None = None, *, size: int | None = None, **how: Any) -> Any: ...
        def stream(self, source: Any = None, **how: Any) -> Any: ...
        def _handle(self, key: Hashable, load: Callable[[], Any], ttl: Any, timeout: float | None) -> Handle[Any]: ...
        def _in_background(self, key: Hashable, load: Callable[[], Any], ttl: Any, priority: float) -> Handle[Any]: ...

    # -- get ----------------------------------------------------------------------------

    def get(self, key: Any, *, ttl: Any = UNSET, fallback: Any = UNSET, timeout: Any = UNSET) -> Any:
        """The value of a key: from memory, from disk, or loaded once for everybody who asks.

        Parameters:
            key: of ``from_keys``; an index of a sequence or ``from_range``; a slice of bytes of an object.
            ttl: seconds this value stays fresh, instead of the store's; None: for ever.
            fallback: what is given instead when the load fails (counted): a value, or a function of the key.
            timeout: seconds to wait; the load goes on for others. None: as long as it takes.

        Raises:
            What the loader raises, as it is; LoadTimeoutError, UnhashableKeyError, ReentrantLoadError, ClosedError.

        Cost: a hit is one call into C. A miss runs the loader in this thread, unless there is a timeout.
        """
        if ttl is not UNSET:
            check_ttl(ttl)
        if self._fast:
            try:
                value = self._hit(key, MISSING)
            except TypeError as error:
                raise _unhashable(key) from error
            if value is not MISSING:
                return value
        try:
            load, cache_key = self._way_to(key)
            if cache_key is None:
                return self._tiers.bridge.call(load)
            value = self._tiers.get(cache_key, load, ttl=ttl, deadline=self._deadline(timeout))
        except Exception as error:  # noqa: BLE001 - decided there: raised again, or counted and replaced
            return self._tiers.bridge.call(self._fallback(error, key, fallback))
        self._seen(key)
        return value

    async def aget(self, key: Any, *, ttl: Any = UNSET, fallback: Any = UNSET, timeout: Any = UNSET) -> Any:
        """:meth:`get` for event loops: waits without blocking the loop; a sync loader runs in a worker thread.

        A task that is cancelled while it waits cancels nobody else's load.
        """
        if ttl is not UNSET:
            check_ttl(ttl)
        if self._fast:
            try:
                value = self._hit(key, MISSING)
            except TypeError as error:
                raise _unhashable(key) from error
            if value is not MISSING:
                return value
        try:
            load, cache_key = self._way_to(key)
            if cache_key is None:
                return await self._tiers.bridge.acall(load)
            value = await self._tiers.aget(cache_key, load, ttl=ttl, deadline=self._deadline(timeout))
        except Exception as error:  # noqa: BLE001 - as in get
            return await self._tiers.bridge.acall(self._fallback(error, key, fallback))
        self._seen(key)
        return value

    def _way_to(self, key: Any) -> tuple[Callable[[], Any], Hashable | None]:
        """What loads a key, and under which key it is cached (None: the source's own memory has it)."""
        source = self._open_source()
        if "bytes" in source.can:
            return partial(_part, source, key), None
        if "keys" not in source.can and "range" in source.can:
            # Awaited in the caller's loop under aget, where its function may be bound to.
            item = _aitem if self._tiers.bridge.is_async(source.load_of_range(0, 1)) else _item
            return partial(item, source, self._parts(source), key, self.options.page), None
        source.require("keys")
        load = source.load_of_key(key)
        if source.cached:
            return load, None
        return load, key if self._key is None else self._key(key)

    def _fallback(self, error: Exception, key: Any, fallback: Any) -> Callable[[], Any]:
        """What gives the fallback; raises the error where there is none, or where the call itself is the mistake."""
        if fallback is UNSET or isinstance(error, _MISTAKES):
            raise error
        self._events.fell_back()
        return partial(fallback, key) if callable(fallback) else lambda: fallback

    def _deadline(self, timeout: Any) -> Deadline | None:
        given = self.options.timeout if timeout is UNSET else timeout
        return None if given is None else Deadline(seconds("timeout", given, hint="or None"))

    # -- load ---------------------------------------------------------------------------

    def load(
        self,
        data_id: Hashable,
        loader: Any,
        strategy: Strategy | str = Strategy.AUTO,
        *,
        ttl: Any = UNSET,
        fallback: Any = UNSET,
        timeout: Any = UNSET,
        priority: float = 0.0,
        nbytes: int | None = None,
        **how: Any,
    ) -> Any:
        """Load something by name, in the way a strategy says.

        Parameters:
            data_id: names the data, in the cache too: the same name and loader are loaded once.
            loader: a function without arguments (bind them with ``functools.partial``), sync or async; or anything
                a store can be made from.
            strategy: EAGER: the value. LAZY: a :class:`Handle` that loads when asked. BACKGROUND: a handle that is
                queued now. STREAMING: a :class:`Stream`. CHUNKED: :class:`Chunks`. PAGINATED: :class:`Pages`.
                AUTO: one of them from the size; what was chosen, and why, is in ``stats()["auto_choices"]``.
            ttl, fallback, timeout: as in :meth:`get`.
            nbytes: the size for AUTO, where you know it.
            priority: of BACKGROUND: higher is sooner.
            how: arguments of :meth:`stream`, :meth:`chunks` or :meth:`pages`.

        CHUNKED and PAGINATED of a function's value load it as a whole once; give ``Source.from_range(f)`` to have each
        part loaded by itself.

        Raises as :meth:`get` does.
        """
        what, chosen = self._plan(loader, strategy, nbytes)
        found = self._without_value(data_id, what, chosen, ttl, timeout, priority, how)
        if found is not MISSING:
            return found
        key, load = self._named_load(data_id, what)
        try:
            value = self._tiers.get(key, load, ttl=ttl, deadline=self._deadline(timeout))
        except Exception as error:  # noqa: BLE001 - as in get
            value = self._tiers.bridge.call(self._fallback(error, data_id, fallback))
        return self._shape(value, chosen, how)

    async def aload(
        self,
        data_id: Hashable,
        loader: Any,
        strategy: Strategy | str = Strategy.AUTO,
        *,
        ttl: Any = UNSET,
        fallback: Any = UNSET,
        timeout: Any = UNSET,
        priority: float = 0.0,
        nbytes: int | None = None,
        **how: Any,
    ) -> Any:
        """:meth:`load` for event loops."""
        # Of a source AUTO asks for the size, which may open an object: not in the loop.
        plan = partial(self._plan, loader, strategy, nbytes)
        what, chosen = plan() if callable(loader) else await self._tiers.bridge.acall(plan)
        found = self._without_value(data_id, what, chosen, ttl, timeout, priority, how)
        if found is not MISSING:
            return found
        key, load = self._named_load(data_id, what)
        try:
            value = await self._tiers.aget(key, load, ttl=ttl, deadline=self._deadline(timeout))
        except Exception as error:  # noqa: BLE001 - as in get
            value = await self._tiers.bridge.acall(self._fallback(error, data_id, fallback))
        return self._shape(value, chosen, how)

    def _plan(self, loader: Any, strategy: Strategy | str, nbytes: int | None) -> tuple[Any, Strategy]:
        """What is loaded (a source, or a function), and by which strategy."""
        what = loader if callable(loader) and not isinstance(loader, Source) else self._open_source(loader)
        chosen, reason = strategy_of(strategy), ""
        if chosen is Strategy.AUTO:
            chosen, reason = choose(what, nbytes)
        if reason:
            self._events.chose(chosen, reason)
        if not isinstance(what, Source) and is_generator(what):
            what = Source.from_stream(what)  # what is kept of it is a list, not what was read once
        if chosen in (Strategy.EAGER, Strategy.LAZY, Strategy.BACKGROUND):
            self._events.operation(chosen)  # the others are counted by the verb that gives them
        return what, chosen

    def _without_value(
        self, data_id: Hashable, what: Any, strategy: Strategy, ttl: Any, timeout: Any, priority: float, how: Any
    ) -> Any:
        """What a strategy gives before anything is loaded; MISSING if the value is needed first."""
        is_source = isinstance(what, Source)
        if strategy is Strategy.STREAMING:
            return self.stream(what if is_source else Source.from_stream(what), name=str(data_id), **how)
        if strategy is Strategy.CHUNKED and is_source:
            return self.chunks(what, **how)
        if strategy is Strategy.PAGINATED and is_source and what.can & {"range", "cursor"}:
            return self.pages(source=what, **how)
        if strategy in (Strategy.CHUNKED, Strategy.PAGINATED):
            return MISSING
        if how:
            raise ConfigError(f"{', '.join(how)}: no setting of strategy {strategy.name}")
        key, load = self._named_load(data_id, what)
        if strategy is Strategy.LAZY:
            seconds = self.options.timeout if timeout is UNSET else timeout
            return self._handle(key, load, ttl, seconds)
        if strategy is Strategy.BACKGROUND:
            return self._in_background(key, load, ttl, priority)
        return MISSING

    def _named_load(self, data_id: Hashable, what: Any) -> tuple[Hashable, Callable[[], Any]]:
        try:
            hash(data_id)
        except TypeError as error:
            raise UnhashableKeyError(
                f"data_id {data_id!r:.200} is not hashable ({error}): name the data by text"
            ) from None
        if isinstance(what, Source):
            return (Kind.LOAD, data_id, what.identity), partial(_whole, what, self._tiers)
        return (Kind.LOAD, data_id, function_identity(what)), what

    def _shape(self, value: Any, strategy: Strategy, how: Any) -> Any:
        """A loaded value in the form of its strategy."""
        if strategy is Strategy.CHUNKED:
            return self.chunks(as_source(value), **how)
        if strategy is Strategy.PAGINATED:
            return self.pages(source=as_source(value), **how)
        return value


def _unhashable(key: Any) -> Exception:
    try:
        hash(key)
    except TypeError as error:
        return UnhashableKeyError(f"key {key!r:.200} is not hashable ({error}): give the store key=, which makes one")
    return TypeError(f"comparing key {key!r:.200} failed")


def _span(key: Any, source: Source) -> tuple[int, int]:
    """(offset, length) of a slice of bytes, or of such a pair."""
    if isinstance(key, slice):
        total = source.size or 0
        begin, end, step = key.indices(total)
        if step != 1:
            raise ConfigError(f"{key!r}: bytes are given without steps only")
        return begin, max(0, end - begin)
    if isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, int) and part >= 0 for part in key):
        return key
    raise ConfigError(f"{key!r} is neither a slice of bytes nor (offset, length)")


def _part(source: Source, key: Any) -> Any:
    """A slice of bytes. Asking for the size may open the object, so it is done where its bytes are read."""
    return source.fetch_range(*_span(key, source))


def _item(source: Source, chunks: Any, index: Any, items: int) -> Any:
    """One item of a source that is read by position: out of the cached chunk that has it."""
    number, place = _place(source, index, items)
    return _at(source, chunks[number] if number >= 0 else (), place, index)


async def _aitem(source: Source, chunks: Any, index: Any, items: int) -> Any:
    """The same of a source whose function is async."""
    number, place = _place(source, index, items)
    return _at(source, await chunks.aget(number) if number >= 0 else (), place, index)


def _place(source: Source, index: Any, items: int) -> tuple[int, int]:
    """(chunk, position in it) of an item; chunk -1 where there is none."""
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise ConfigError(f"{index!r} is not the position of an item")
    at, total = int(index), source.size
    if at < 0:
        if total is None:
            raise UnsupportedError(f"item {index}: {source!r} does not know where its end is")
        at += total
    return divmod(at, items) if at >= 0 and (total is None or at < total) else (-1, 0)


def _at(source: Source, part: Any, place: int, index: Any) -> Any:
    if place >= len(part):
        raise ItemIndexError(f"{source!r} has no item {index}")
    return part[place]


def _whole(source: Source, tiers: Tiers) -> Any:
    """All of a source, as one value."""
    if "range" in source.can and source.size is not None:
        return source.fetch_range(0, source.size)
    found = source.open()
    if hasattr(type(found), "__aiter__") or is_awaitable(found):
        return _gather(tiers.bridge.aiterate(found))
    return list(tiers.bridge.iterate(found))


async def _gather(items: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in items]
