"""`LazyStore`: lazy access to any source, inside one memory budget.

Here: arguments, the verbs, and who owns what. How things are cached is the tiers' business (``cache.tiers``), how
they are cut or counted that of ``chunks``, ``pages`` and ``stream``.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from lazystore.cache.locks import forkable_lock
from lazystore.cache.retries import Retries
from lazystore.cache.tiers import UNSET, Tiers
from lazystore.errors import ClosedError, ConfigError, UnsupportedError
from lazystore.lazy.events import Events
from lazystore.lazy.health import HealthWindow
from lazystore.lazy.loading import Loading
from lazystore.lazy.looking import Looking
from lazystore.lazy.options import StoreOptions, preset
from lazystore.lazy.parts import part
from lazystore.lazy.source import AnyIterable, Source, as_source, is_stable
from lazystore.lazy.strategy import DataSize, Strategy

if TYPE_CHECKING:
    from lazystore.cache.disk import DiskTier
    from lazystore.cache.origins import Origins
    from lazystore.cache.paged import PagedObject
    from lazystore.lazy.background import Background
    from lazystore.lazy.chunks import ByKeys, ChunkPass, Chunks
    from lazystore.lazy.cursor import CursorSigner
    from lazystore.lazy.file import LazyFile
    from lazystore.lazy.handle import Handle
    from lazystore.lazy.page import Page
    from lazystore.lazy.pages import Pager, Pages
    from lazystore.lazy.stream import Stream
    from lazystore.lazy.streams import Streams

__all__ = ["LazyStore", "default_store"]

#: Seconds a load takes on average, from which on loading ahead in a thread is worth its cost.
WORTH_AHEAD_S = 0.0005

S = TypeVar("S", bound="LazyStore")


class _Open:
    """``LazyStore.open(url)`` makes a store over one object; ``store.open(url)`` a file over its page cache."""

    def __get__(self, store: LazyStore | None, owner: type[LazyStore]) -> Callable[..., Any]:
        return owner.from_url if store is None else store.open_file


class LazyStore(Loading, Looking):
    """Lazy access to a source: values, chunks, pages, streams and background loads, in one memory budget.

    Parameters:
        source: a URL or path (any object fsspec knows), a sequence, a :class:`~lazystore.StreamingDataset`, a mapping,
            bytes, an iterable, or None (what is loaded is said in each call). Functions say what they take:
            :meth:`from_keys`, :meth:`from_range`, :meth:`from_cursor`, :meth:`from_stream`. Sync and async ones alike:
            sync ones called from an event loop run in worker threads.
        memory: hard budget in bytes (``"64MB"``) for cached values, windows of streams, reads in flight; ``"auto"``:
            256 MiB, or a quarter of the memory limit if that is less; 0 caches nothing.
        disk: a second tier: a :class:`~lazystore.DiskTier`, or the folder of one.
        ttl: seconds a value stays fresh (spread by ``ttl_jitter``, a share of it); None: for ever.
        chunk: bytes a chunk of :meth:`chunks`, and a page of :meth:`open`'s files.
        page: items a page where none is said; ``max_page`` is the most (1000).
        prefetch: parts that are read ahead once the use is sequential; ``"auto"``: 2, growing to 8; 0: none.
        concurrency: loads under way at once, background ones included; ``"auto"``: 10.
        codec: of what goes to disk: "auto" (zstd, else zlib), "zstd", "zlib", "none".
        policy: what leaves memory first: "s3fifo" (scans flush nothing), or "lru".
        key: makes a hashable cache key of a key of :meth:`get`, where keys are not hashable or mean the same.
        name: of the store in messages, and the namespace of its entries on disk. Needed with ``disk`` where the source
            has no name of its own (a lambda, a function in a function or in ``__main__``).
        secret: signs page cursors: at least 16 bytes, or several such (the first signs, all are accepted). None: made
            at random, so that cursors end with this store.
        storage_options: of URLs; as in :class:`~lazystore.StreamingDataset`.
        settings: ``items`` (a chunk of items, 1000), ``window`` (bytes a stream holds: 8 MiB, or a quarter of the
            memory if that is less), ``max_page`` (1000), ``ttl_jitter`` (0.1), ``negative_ttl`` (seconds an error is
            remembered, 0), ``stale_while_revalidate`` and ``stale_if_error`` (seconds behind the ttl, RFC 5861; 0),
            ``attempts`` (in all, of a load that fails for a while; 1), ``timeout`` (seconds a caller waits for a load),
            ``idle_timeout`` (seconds after which a stream that nobody reads closes), ``background_workers`` (threads,
            4), ``cursor_ttl`` (seconds a cursor is good: three days; None: for ever), ``slow_after`` (seconds from
            which on a load is logged, 1), ``weigh(value)`` (its bytes; measured if None), ``on_evict(key, value,
            cause)``, ``clock`` (for tests: :class:`lazystore.testing.FakeClock`).

    Values are handed out as they are, not copied: do not change what a cached value holds. ``None`` is a value like
    any other. What a loader raises reaches everyone who waits for it, as it is.

    Raises:
        ConfigError: an argument that cannot work. BudgetTooSmallError: memory too small for the window.

    Memory: at most ``memory`` bytes by the store's own accounting, plus what callers hold. Cost of a hit: one call
    into C. Threads: any number; one load a key, whoever asks. No thread is started until a background load, a load
    with a timeout, or a sync loader under an event loop needs one; :meth:`close` joins them. Fork: a child keeps what
    is in memory as its own copy and starts its own threads. Pickling, spawn: by its arguments; the copy is empty.
    Interpreter exit: nothing to wait for.
    """

    def __init__(
        self,
        source: Any = None,
        *,
        memory: int | str = "auto",
        disk: Any = None,
        ttl: float | None = None,
        chunk: int | str = "1MiB",
        page: int = 50,
        prefetch: int | str = "auto",
        concurrency: int | str = "auto",
        codec: Any = "auto",
        policy: str = "s3fifo",
        key: Callable[[Any], Hashable] | None = None,
        name: str | None = None,
        secret: bytes | Iterable[bytes] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if key is not None and not callable(key):
            raise ConfigError(f"key={key!r} is not a function")
        if storage_options is not None and not isinstance(storage_options, Mapping):
            raise ConfigError(f"storage_options={storage_options!r} is not a mapping")
        named = {
            "memory": memory, "disk": disk, "ttl": ttl, "chunk": chunk, "page": page, "prefetch": prefetch,
            "concurrency": concurrency, "codec": codec, "policy": policy, "name": name,
        }  # fmt: skip
        options = StoreOptions.made({**named, **settings})
        self._arguments = {"key": key, "secret": secret, "storage_options": storage_options, **options.given()}
        self._given = source
        self._key = key
        self.options = options
        self._secret = secret
        self._storage_options = storage_options
        self._lock = forkable_lock()
        self._pager: Pager | None = None
        self._open_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._closed = False
        self._source: Source | None = None
        self._events = Events(options.name or "LazyStore", options.slow_after)
        self._health = HealthWindow()
        self._tiers = self._make_tiers(options)
        self._hit = self._tiers.hit
        if secret is not None:
            _ = self._signer  # says at once what is wrong with it
        self._predicts = self._fast = False
        if source is not None:
            found = self._source = self._adopt(self._as_source(source))
            # Async loaders may be bound to their caller's loop: they are loaded ahead only when asked to.
            load = found.key_function
            self._fast = load is not None and key is None
            is_sync = load is not None and not self._tiers.bridge.is_async(load)
            self._predicts = options.prefetch != 0 and self._fast and is_sync

    def _make_tiers(self, options: StoreOptions) -> Tiers:
        return Tiers(
            memory=options.memory, disk=_disk_tier(options), namespace=options.name or "", policy=options.policy,
            ttl=options.ttl, ttl_jitter=options.ttl_jitter, negative_ttl=options.negative_ttl,
            stale_while_revalidate=options.stale_while_revalidate, stale_if_error=options.stale_if_error,
            weigh=options.weigh, concurrency=options.concurrency, retries=Retries(attempts=options.attempts),
            on_evict=options.on_evict, on_load=self._events.loaded, clock=options.clock,
        )  # fmt: skip

    # -- how stores are made ------------------------------------------------------------

    @classmethod
    def from_keys(cls: type[S], function: Callable[[Any], Any], **settings: Any) -> S:
        """A store over ``function(key)``, sync or async."""
        return cls(Source.from_keys(function), **settings)

    @classmethod
    def from_range(
        cls: type[S], function: Callable[..., Any], *, size: int | Callable[[], int] | None = None, **settings: Any
    ) -> S:
        """A store over ``function(offset, limit)`` that gives at most ``limit`` items, fewer only at the end.

        Parameters:
            size: items in all, or a function that tells; None: unknown. Known sizes give ``len`` and page totals.
        """
        return cls(Source.from_range(function, size=size), **settings)

    @classmethod
    def from_cursor(cls: type[S], function: Callable[..., Any], **settings: Any) -> S:
        """A store over ``function(cursor, limit)`` that gives ``(items, next_cursor)``; None begins and ends.

        With ``keyset=`` in :meth:`page` and its kin the cursor is a :class:`~lazystore.lazy.keysets.Seek` (``clause()``
        is its SQL), and the function gives rows only.
        """
        return cls(Source.from_cursor(function), **settings)

    @classmethod
    def from_stream(cls: type[S], function: Callable[[], AnyIterable] | AnyIterable, **settings: Any) -> S:
        """A store over ``function()`` that gives an iterator (sync or async), or over an iterable itself."""
        return cls(Source.from_stream(function), **settings)

    @classmethod
    def from_url(cls: type[S], url: str | os.PathLike[str], **settings: Any) -> S:
        """A store over the bytes of one object. Also spelled ``LazyStore.open(url)``."""
        return cls(os.fspath(url), **settings)

    @classmethod
    def preset(cls: type[S], size: DataSize | str, source: Any = None, **settings: Any) -> S:
        """A store with the settings of a size class (:func:`lazystore.lazy.options.preset`); ``settings`` win."""
        return cls(source, **{**preset(size), **settings})

    open = _Open()

    def open_file(self, url: str | os.PathLike[str], mode: str = "rb", **how: Any) -> Any:
        """A file over the store's page cache: ``store.open(url)``.

        Parameters:
            url: any object fsspec knows.
            mode: "rb", or "r" for text (``encoding``, ``errors``, ``newline`` as in :func:`open`).
            how: ``buffering`` (0: the raw :class:`~lazystore.lazy.file.LazyFile`), ``storage_options``.

        Raises:
            DatasetNotFoundError, FetchError, UnsupportedError (a mode that writes), ClosedError.
        """
        from lazystore.lazy.file import check_mode, open_paged

        self._check_open()
        options = how.pop("storage_options", None)
        check_mode(mode, **{"buffering": -1, "encoding": None, "errors": None, "newline": None, **how})
        return open_paged(self._raw_file(os.fspath(url), options), mode, **how)

    def _raw_file(self, url: str, options: Mapping[str, Any] | None) -> LazyFile:
        from lazystore.lazy.file import LazyFile

        return LazyFile(self._paged(url, options), reopen=partial(_reopened, self, url, options))

    def _as_source(self, given: Any) -> Source:
        if isinstance(given, (str, os.PathLike)):
            return self._object(os.fspath(given))
        return as_source(given)

    def _object(self, url: str) -> Source:
        return Source.from_object(url, cache(partial(self._paged, url)))

    def _paged(self, url: str, options: Mapping[str, Any] | None = None) -> PagedObject:
        from lazystore.cache.paged import PagedObject

        return PagedObject(self._origins.find(url, options), self._tiers, page=self.options.chunk)

    @part
    def _origins(self) -> Origins:
        """Where objects come from: one source a bucket or host, for all files of the store."""
        from lazystore.cache.origins import Origins

        return Origins(self._storage_options)

    def _adopt(self, source: Source) -> Source:
        """The store's own source; on disk its entries need a name that means the same in every process."""
        if self.options.disk is None or source.cached or is_stable(source.identity):
            return source
        if self.options.name is None:
            raise ConfigError(
                f"{source!r} has no name of its own that another process could know: give the store a name=, "
                "under which its entries are found on disk"
            )
        return source.named(self.options.name)

    def _open_source(self, given: Any = None) -> Source:
        """The source of a call: what was given to it, else the store's."""
        self._check_open()
        if given is not None:
            return self._as_source(given)
        if self._source is None:
            raise ConfigError(
                "this store has no source: make it by LazyStore(source), from_keys(f), from_range(f), from_cursor(f) "
                "or from_stream(f), or say in the call what is loaded"
            )
        return self._source

    # -- parts --------------------------------------------------------------------------

    def chunks(
        self,
        source: Any = None,
        *,
        chunk: int | str | None = None,
        items: int | None = None,
        keys: Iterable[Hashable] | None = None,
        prefetch: int | str | None = None,
        **cutting: Any,
    ) -> Chunks | ByKeys | ChunkPass:
        """The source in chunks, each loaded and cached by itself; under ``for`` and ``async for``.

        Parameters:
            source: another source than the store's: whatever a store can be made from.
            chunk: bytes a chunk, of sources of bytes. items: items a chunk, of the others; give one of them.
            keys: the chunks are the values of these keys, of a source by key.
            prefetch: chunks that are read ahead in sequential use; None: as the store's.
            cutting: what else :class:`~lazystore.lazy.chunker.DataChunker` takes; the source is read in one pass then.

        Sources by position give ``len`` (if the size is known), ``[i]`` and slices; what is a stream gives one pass.
        Raises UnsupportedError where the source cannot be cut like that, ConfigError for sizes that cannot be.
        """
        from lazystore.lazy.chunks import ByKeys, chunks_of

        found = self._open_source(source)
        self._events.operation(Strategy.CHUNKED)
        ahead = self.options.prefetch if prefetch is None else prefetch
        if keys is not None:
            return ByKeys(found, self._tiers, keys, prefetch=ahead)
        if chunk is None and items is None:
            in_bytes = found.unit == "bytes" or cutting
            chunk, items = (self.options.chunk, None) if in_bytes else (None, self.options.items)
        return chunks_of(found, self._tiers, chunk=chunk, items=items, prefetch=ahead, **cutting)

    def _parts(self, source: Source) -> Chunks:
        """The chunks that single items of a source come out of."""
        from lazystore.lazy.chunks import Chunks

        return Chunks(source, self._tiers, items=self.options.page, prefetch=self.options.prefetch)

    def page(
        self, number: int | None = None, *, cursor: str | None = None, size: int | None = None, **how: Any
    ) -> Page[Any]:
        """One page: by number, counted from 1, or by the cursor of another page.

        Parameters:
            number: of sources by position; without number and cursor the first page.
            cursor: ``next_cursor`` or ``previous_cursor`` of a page.
            size: items a page; above ``max_page`` it is clamped.
            how: ``source``, ``total`` (a number, a function, or True), ``keyset``; the rest are filters and go to the
                source's function.

        Raises:
            ConfigError: page 0, a size below 1. CursorTamperedError, CursorMismatchError, CursorExpiredError.
        """
        pager, total, filters = self._paging(how)
        return pager.page(number, cursor=cursor, size=size, total=total, **filters)

    async def apage(
        self, number: int | None = None, *, cursor: str | None = None, size: int | None = None, **how: Any
    ) -> Page[Any]:
        """:meth:`page` for event loops."""
        pager, total, filters = self._paging(how)
        return await pager.apage(number, cursor=cursor, size=size, total=total, **filters)

    def pages(self, start: int = 1, stop: int | None = None, *, size: int | None = None, **how: Any) -> Pages:
        """The pages from ``start`` to before ``stop`` (None: to the end), under ``for`` and ``async for``."""
        pager, _, filters = self._paging(how)
        return pager.pages(start, stop, size=size, **filters)

    def load_pages(self, start: int, stop: int, *, size: int | None = None, **how: Any) -> list[Page[Any]]:
        """The pages ``start`` to ``stop`` (exclusive), loaded several at once and given in order."""
        pager, _, filters = self._paging(how)
        return pager.load_pages(start, stop, size=size, concurrency=self.options.concurrency, **filters)

    async def aload_pages(self, start: int, stop: int, *, size: int | None = None, **how: Any) -> list[Page[Any]]:
        """:meth:`load_pages` for event loops."""
        pager, _, filters = self._paging(how)
        return await pager.aload_pages(start, stop, size=size, concurrency=self.options.concurrency, **filters)

    def _paging(self, how: dict[str, Any]) -> tuple[Pager, Any, dict[str, Any]]:
        """The pager of a call, what it says about totals, and its filters."""
        source = self._open_source(how.pop("source", None))
        keyset, total = how.pop("keyset", None), how.pop("total", UNSET)
        self._events.operation(Strategy.PAGINATED)
        if source is self._source and keyset is None:
            with self._lock:
                if self._pager is None:
                    self._pager = self._make_pager(source, None)
                return self._pager, total, how
        return self._make_pager(source, keyset), total, how

    def _make_pager(self, source: Source, keyset: Any) -> Pager:
        from lazystore.lazy.pages import Pager

        return Pager(
            source, self._tiers, size=self.options.page, max_size=self.options.max_page, keyset=keyset,
            signer=self._signer, prefetch=self.options.prefetch != 0, timeout=self.options.timeout,
        )  # fmt: skip

    @part
    def _signer(self) -> CursorSigner:
        from lazystore.lazy.cursor import CursorSigner

        return CursorSigner(self._secret, lifetime=self.options.cursor_ttl)

    def stream(
        self,
        source: Any = None,
        *,
        window: int | str | None = None,
        ahead: bool = False,
        idle_timeout: Any = UNSET,
        name: str | None = None,
        chunk: int | str | None = None,
        items: int | None = None,
        **cutting: Any,
    ) -> Stream:
        """One ordered pass over the source in a bounded window; under ``for`` and ``async for``.

        Parameters:
            source: another source than the store's.
            window: bytes it may hold, unread or read; of the store's memory while it is open.
            ahead: read on in the background as far as the window goes; else a piece is read when it is asked for.
            idle_timeout: seconds after which a stream that nobody reads closes itself; None: never.
            name: in messages.
            chunk, items: cut it into chunks of so many bytes or items; None: as the source gives it.
            cutting: what else :class:`~lazystore.lazy.chunker.DataChunker` takes.

        Close it, or use it in a ``with`` statement; a forgotten one closes with a ResourceWarning.
        Raises UnsupportedError for a source that has no passes, BudgetTooSmallError for a window above half the memory.
        """
        from lazystore.lazy.chunker import DataChunker
        from lazystore.lazy.stream import Stream

        found = self._open_source(source)
        found.require("stream")
        self._events.operation(Strategy.STREAMING)
        cut = chunk is not None or items is not None or cutting
        stream = Stream(
            found, bridge=self._tiers.bridge, ledger=self._tiers.ledger if self.options.memory else None,
            window=self.options.window if window is None else window, ahead=ahead,
            idle_timeout=self.options.idle_timeout if idle_timeout is UNSET else idle_timeout,
            name=name or self._events.name, chunker=DataChunker(chunk, items=items, **cutting) if cut else None,
        )  # fmt: skip
        with self._lock:
            self._open_streams.add(stream)
        return stream

    @part
    def streams(self) -> Streams:
        """Streams by name: ``create_stream``, ``get_stream_chunk`` and their kin."""
        from lazystore.lazy.streams import Streams

        return Streams(self.stream)

    # -- background ---------------------------------------------------------------------

    def prefetch(self, keys: Iterable[Any], priority: float = 0.0) -> list[Handle[Any]]:
        """Load keys of :meth:`get` in the background, higher priority sooner; handles of the loads.

        A key that is asked for meanwhile is loaded at once. Under memory pressure what nobody waits for is refused.
        """
        self._check_open()
        if isinstance(priority, bool) or not isinstance(priority, (int, float)):
            raise ConfigError(f"priority={priority!r} is not a number")
        return self.background.prefetch(keys, priority=priority)

    @part
    def background(self) -> Background:
        """What loads ahead: ``prefetch``, ``hint(keys)`` (a known order), ``predict_and_prefetch(history)``."""
        from lazystore.lazy.background import Background

        return Background(
            self._tiers, self._load_of, key_of=self._key, slots=max(1, self.options.background_workers - 1),
            timeout=self.options.timeout, predictors=() if self.options.prefetch == 0 else None,
        )  # fmt: skip

    def _load_of(self, key: Any) -> Callable[[], Any]:
        source = self._open_source()
        return source.load_of_key(key)

    def _seen(self, key: Any) -> None:
        """Show a key that was no plain hit (loaded now, or ahead of demand) to who predicts the next ones."""
        times = self._tiers.counts.times
        is_worth = self._predicts and times.total > WORTH_AHEAD_S * times.count
        if is_worth or ("background" in self.__dict__ and self.background.active):
            self.background.observe(key, missed=is_worth)

    def _handle(self, key: Hashable, load: Callable[[], Any], ttl: Any, timeout: float | None) -> Handle[Any]:
        from lazystore.lazy.handle import Handle

        return Handle(self._tiers, key, load, timeout=timeout, ttl=ttl)

    def _in_background(self, key: Hashable, load: Callable[[], Any], ttl: Any, priority: float) -> Handle[Any]:
        return self.background.submit(key, load, priority=priority, ttl=ttl)

    # -- forgetting ---------------------------------------------------------------------

    def invalidate(self, key: Any) -> bool:
        """Forget the value of a key of :meth:`get`, in memory and on disk; a load under way is not kept.

        Returns: whether there was one. What :meth:`load` keeps under a name goes by ``clear(prefix=name)``.
        """
        self._check_open()
        return self._tiers.invalidate(key if self._key is None else self._key(key))

    def clear(self, *, memory: bool = True, disk: bool = False, prefix: str | None = None) -> int:
        """Forget everything (that begins with ``prefix``); the number of entries dropped.

        Parameters:
            memory, disk: in which tiers.
            prefix: of keys that are text, or tuples that begin with text.
        """
        self._check_open()
        return self._tiers.clear(memory=memory, disk=disk, prefix=prefix)

    # -- looking ------------------------------------------------------------------------

    @property
    def tiers(self) -> Tiers:
        """The cache below: memory, disk, and who loads."""
        return self._tiers

    def __len__(self) -> int:
        total = self._open_source().size
        if total is None:
            raise UnsupportedError(f"{self!r} does not know how long its source is")
        return total

    def __bool__(self) -> bool:
        return True  # also of an empty source, and of one whose length is unknown

    def __repr__(self) -> str:
        held = self._tiers.counters()
        state = "closed" if self._closed else f"{held['entries']} entries, {held['bytes']} bytes"
        return f"<LazyStore {self._events.name!r} over {self._source!r}: {state} of {self.options.memory}>"

    # -- ending -------------------------------------------------------------------------

    def close(self, grace: float = 5.0) -> None:
        """End streams, background loads and threads; drop what is in memory. The disk tier stays. Harmless twice.

        Parameters:
            grace: seconds to wait for loads under way; who waits for one that is not done then gets LoadCancelledError.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams = list(self._open_streams)
        if "background" in self.__dict__:
            self.background.close()
        for stream in streams:
            stream.close()
        self._tiers.close(grace)
        if "_origins" in self.__dict__:
            self._origins.close()

    async def aclose(self, grace: float = 5.0) -> None:
        """:meth:`close` for event loops: waits in a thread of its own."""
        import asyncio

        await asyncio.to_thread(self.close, grace)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._events.name} is closed")

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self: S) -> S:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self._given, self._arguments)


def _reopened(store: LazyStore, url: str, options: Mapping[str, Any] | None) -> LazyFile:
    """A file that was pickled with its store, opened again over the store's copy."""
    return store._raw_file(url, options)


def _disk_tier(options: StoreOptions) -> DiskTier | None:
    """The tier that was given, or one in the folder that was given."""
    if not isinstance(options.disk, (str, os.PathLike)):
        return options.disk
    from lazystore.cache.disk import DiskTier

    return DiskTier(options.disk, codec=options.codec)


def _rebuilt(kind: type[S], source: Any, arguments: dict[str, Any]) -> S:
    return kind(source, **arguments)


_default: LazyStore | None = None
_default_lock = forkable_lock()


def default_store() -> LazyStore:
    """The store that decorators share where none is given; made at the first use."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = LazyStore(name="default")
        return _default
