"""Pages of any source: by number or cursor, cached, the next one read ahead, many at once.

`Pager` puts together how pages lie in a source (``addressing``), where they are kept (``cache.tiers``) and how they
are named to clients (``cursor``); what it gives out is a ``page``.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple, NoReturn

from lazystore.cache.bridge import is_awaitable
from lazystore.cache.clock import Clock
from lazystore.cache.flight import Deadline
from lazystore.cache.keys import Kind
from lazystore.cache.tiers import UNSET, Tiers
from lazystore.config import whole
from lazystore.errors import ConfigError, LoadCancelledError
from lazystore.lazy.addressing import Around, ByOffset, Rows, addressing_of, run
from lazystore.lazy.cursor import BINDING_BYTES, CursorSigner, Position
from lazystore.lazy.filters import bound, frozen
from lazystore.lazy.keysets import Keyset
from lazystore.lazy.next_page import NextPages
from lazystore.lazy.page import Page
from lazystore.lazy.source import Source, function_key

__all__ = ["Pager", "Pages"]

MAX_SIZE = 1000
#: Pages under way at once in ``load_pages``.
CONCURRENCY = 4


class _Ask(NamedTuple):
    """One page that is wanted: ``key`` names it in the cache."""

    key: tuple[Any, ...]
    position: Position
    size: int
    filters: dict[str, Any]
    cursor: str | None = None
    carried: tuple[Any, ...] = ()


class _Load:
    """The loading of one page, as the tiers want it; ``record`` is what it gave, to tell a hit from a load."""

    __slots__ = ("_ask", "_clock", "_read", "begun", "record")

    def __init__(self, ask: _Ask, read: Callable[[_Ask], Any], clock: Clock) -> None:
        self._ask, self._read, self._clock = ask, read, clock
        self.begun = False
        self.record: tuple[Any, ...] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self._ask.key

    def load(self) -> Any:
        self.begun = True
        found = self._read(self._ask)
        return self._awaited(found) if is_awaitable(found) else self._stamped(found)

    async def aload(self) -> tuple[Any, ...]:
        """The same of a source whose function is async: a loop need not ask a thread to find that out."""
        self.begun = True
        found = self._read(self._ask)
        return self._stamped(await found if is_awaitable(found) else found)

    async def _awaited(self, found: Any) -> tuple[Any, ...]:
        return self._stamped(await found)

    def _stamped(self, rows: Rows) -> tuple[Any, ...]:
        record = self.record = (self._clock.time(), *rows)
        return record


class Pager:
    """Pages of a source.

    Parameters:
        source: items by position (sequences, datasets, ``from_range``), with cursors of its own (``from_cursor``), or,
            with ``keyset``, rows in a total order: a sorted sequence, or ``fetch_after(seek, limit)``.
        tiers: where pages are cached. What a source caches by itself (``source.cached``) is read, not cached again.
        size: items a page, where none is asked for; ``max_size``: the most, more is clamped (Google's AIP-158).
        ttl: seconds a cached page stays fresh; UNSET: the tiers' own.
        keyset: the order, for cursors that neither lose nor repeat rows while others are inserted and deleted.
        signer: of cursors; None: one with a random secret.
        total: what ``page.total_items`` is, unless a call says otherwise: None, a number, ``total(**filters)`` (sync or
            async; kept ``total_ttl`` seconds), or True for sources that know their size.
        timeout: seconds to wait for a page, whose load goes on; None: as long as it takes.
        prefetch: read the next page in the background (a worker thread) once two were asked for one after the other;
            ends by itself where that is of no use.
        clock: of ages and cursors; None: the tiers' own.

    Page numbers count from 1 and need a source with positions: item (n - 1) * size begins page n, at a cost that does
    not grow with n. Other sources are walked by cursor. Whether something follows is known from one row more than
    the page has, so it is right for the last full page too. A page behind the last one is empty, with ``has_next``
    False: that is no error, since rows may have been deleted. Filters (keywords) go to the source's function.

    Cost: beyond reading the items some 10 us; of a cached page the tiers' hit and as much again.
    Threads: any. Fork: as its tiers. Pickling: none; make a new one over the same source.
    """

    def __init__(
        self,
        source: Source,
        tiers: Tiers,
        *,
        size: int = 50,
        max_size: int = MAX_SIZE,
        ttl: Any = UNSET,
        keyset: Keyset | None = None,
        signer: CursorSigner | None = None,
        total: int | bool | Callable[..., Any] | None = None,
        total_ttl: Any = UNSET,
        prefetch: bool = True,
        timeout: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._source = source
        self._tiers = tiers
        self._max = whole("max_size", max_size)
        self._size = min(whole("size", size), self._max)
        self._ttl = ttl
        self._clock = clock or tiers.clock
        self._way = addressing_of(source, keyset)
        self._signer = signer or CursorSigner(clock=self._clock)
        self._total = total
        self._total_ttl = total_ttl
        self._timeout = timeout
        self._ahead = NextPages(tiers, prefetch and not source.cached)
        self._unfiltered = b""

    # -- one page -----------------------------------------------------------------------

    def page(
        self, number: int | None = None, /, *, cursor: str | None = None, size: int | None = None, total: Any = UNSET,
        **filters: Any,
    ) -> Page[Any]:  # fmt: skip
        """A page by number (the first one if nothing is said), or the one of a cursor.

        Raises:
            ConfigError: page 0 or a size below 1; a number where the source has only cursors; both.
            CursorTamperedError, CursorMismatchError, CursorExpiredError: the cursor cannot be used.
            LoadError: the source gave no items, or too many. What it raises itself comes as it is.
        """
        ask = self._ask(number, cursor, size, filters)
        record, hit, age = self._loaded(ask)
        return self._made(ask, record, hit, age, self._counted(total, filters))

    async def apage(
        self, number: int | None = None, /, *, cursor: str | None = None, size: int | None = None, total: Any = UNSET,
        **filters: Any,
    ) -> Page[Any]:  # fmt: skip
        """:meth:`page` for event loops; sync sources are read in worker threads."""
        ask = self._ask(number, cursor, size, filters)
        record, hit, age = await self._aloaded(ask)
        return self._made(ask, record, hit, age, await self._acounted(total, filters))

    # -- many pages ---------------------------------------------------------------------

    def pages(self, start: int = 1, stop: int | None = None, *, size: int | None = None, **filters: Any) -> Pages:
        """Pages ``start`` to ``stop`` (exclusive; None: to the end), under ``for`` and ``async for``.

        Each loop is a walk of its own. Of sources without numbers the pages before ``start`` are walked through.
        Every row is read once, the one that told of the next page too. Raises as :meth:`page`, when the walk is there.
        """
        start = whole("start", start, hint=_FROM_1)
        self._sized(size)
        return Pages(self, start, None if stop is None else whole("stop", stop, hint=_FROM_1), size, filters)

    def load_pages(
        self, start: int, stop: int, *, size: int | None = None, concurrency: int = CONCURRENCY, **filters: Any
    ) -> list[Page[Any]]:
        """Pages ``start`` to ``stop`` (exclusive), in order, at most ``concurrency`` under way at once, in the workers.

        Ends at the last page there is. The first error (in the order of pages) is raised as soon as those under way
        have ended; those that wait are cancelled. Sources without numbers, and those in memory, are walked.
        """
        concurrency = whole("concurrency", concurrency)
        walked = self.pages(start, stop, size=size, **filters)
        if not self._way.numbered or self._source.cached:
            return list(walked)
        found: list[Page[Any]] = []
        jobs: deque[_PageJob] = deque()
        following = start
        try:
            while following < stop or jobs:
                while following < stop and len(jobs) < concurrency:
                    job = _PageJob(partial(self.page, following, size=size, **filters))
                    job.start(self._tiers)
                    jobs.append(job)
                    following += 1
                page = jobs.popleft().result()
                if page:
                    found.append(page)
                if not page.has_next:
                    break
        finally:
            for job in jobs:
                job.drop()
            for job in jobs:
                job.wait()
        return found

    async def aload_pages(
        self, start: int, stop: int, *, size: int | None = None, concurrency: int = CONCURRENCY, **filters: Any
    ) -> list[Page[Any]]:
        """:meth:`load_pages` for event loops: the first error cancels the tasks of the others."""
        import asyncio

        concurrency = whole("concurrency", concurrency)
        walked = self.pages(start, stop, size=size, **filters)
        if not self._way.numbered:
            return [page async for page in walked]
        found: list[Page[Any]] = []
        tasks: deque[asyncio.Task[Page[Any]]] = deque()
        following = start
        try:
            while following < stop or tasks:
                while following < stop and len(tasks) < concurrency:
                    tasks.append(asyncio.create_task(self.apage(following, size=size, **filters)))
                    following += 1
                page = await tasks.popleft()
                if page:
                    found.append(page)
                if not page.has_next:
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    # -- what is asked for --------------------------------------------------------------

    def _ask(self, number: int | None, cursor: str | None, size: int | None, filters: dict[str, Any]) -> _Ask:
        if cursor is None:
            return self._asked(self._numbered(1 if number is None else number, self._sized(size)), size, filters)
        if number is not None:
            raise ConfigError(f"page={number!r} and cursor= both say where to begin; give one of them")
        position = self._signer.open(cursor, self._binding(filters))
        return self._asked(position, size, filters)._replace(cursor=cursor)

    def _numbered(self, number: int, size: int) -> Position:
        number = whole("page", number, hint=_FROM_1)
        if isinstance(self._way, ByOffset):
            return self._way.at(number, size)
        if number != 1:
            raise ConfigError(
                f"page={number}: {self._source!r} has no page numbers: go on with cursor=page.next_cursor or pages()"
            )
        return self._way.first()

    def _asked(
        self, position: Position, size: int | None, filters: dict[str, Any], carried: tuple[Any, ...] = ()
    ) -> _Ask:
        if filters and self._source.cached:
            raise ConfigError(
                f"{self._source!r} takes no filters ({', '.join(filters)}): they go to a source's function"
            )
        count = self._sized(size)
        key = (Kind.PAGE, self._source.identity, frozen(filters), self._way.order, self._way.key(position), count)
        return _Ask(key, position, count, filters, None, carried)

    def _sized(self, size: int | None) -> int:
        return self._size if size is None else min(whole("size", size), self._max)

    def _binding(self, filters: dict[str, Any]) -> bytes:
        """What cursors are bound to, in 8 bytes."""
        if not filters and self._unfiltered:
            return self._unfiltered
        parts = (self._way.mode, self._way.order, self._source.identity, frozen(filters))
        found = hashlib.blake2b(b"".join(map(bound, parts)), digest_size=BINDING_BYTES).digest()
        if not filters:
            self._unfiltered = found
        return found

    # -- loading ------------------------------------------------------------------------

    def _read(self, ask: _Ask) -> Any:
        return run(self._way.read(ask.position, ask.size, ask.filters, ask.carried))

    def _loaded(self, ask: _Ask) -> tuple[Any, bool, float]:
        """The record of a page, whether it was cached, and its age."""
        asked = self._clock.time()
        if self._source.cached:
            rows = self._read(ask)
            return (asked, *(self._tiers.bridge.call(lambda: rows) if is_awaitable(rows) else rows)), False, 0.0
        load = _Load(ask, self._read, self._clock)
        try:
            record = self._tiers.get(ask.key, self._call_of(load), ttl=self._ttl, deadline=self._deadline())
        except Exception:
            if load.begun or not self._ahead.asked(ask.key, useful=False):
                raise
            # what failed was read ahead, in a thread that perhaps cannot read it: this one tries itself
            record = self._tiers.get(ask.key, self._call_of(load), ttl=self._ttl, deadline=self._deadline())
        return self._judged(asked, load, record)

    async def _aloaded(self, ask: _Ask) -> tuple[Any, bool, float]:
        asked = self._clock.time()
        if self._source.cached:
            if self._source.instant:
                return (asked, *self._read(ask)), False, 0.0
            return (asked, *await self._tiers.bridge.acall(self._read, ask)), False, 0.0
        load = _Load(ask, self._read, self._clock)
        try:
            record = await self._tiers.aget(ask.key, self._call_of(load), ttl=self._ttl, deadline=self._deadline())
        except Exception:
            if load.begun or not self._ahead.asked(ask.key, useful=False):
                raise
            record = await self._tiers.aget(ask.key, self._call_of(load), ttl=self._ttl, deadline=self._deadline())
        return self._judged(asked, load, record)

    def _deadline(self) -> Deadline | None:
        return None if self._timeout is None else Deadline(self._timeout)

    def _call_of(self, load: _Load) -> Callable[[], Any]:
        return load.aload if self._way.is_async else load.load

    def _judged(self, asked: float, load: _Load, record: Any) -> tuple[Any, bool, float]:
        """A record that is not of our own load, nor of one we waited for, was there before we asked."""
        self._ahead.asked(load.key, useful=not load.begun)
        hit = record is not load.record and record[0] <= asked
        return record, hit, max(0.0, asked - record[0]) if hit else 0.0

    def _made(self, ask: _Ask, record: Any, hit: bool, age: float, total: int | None) -> Page[Any]:
        rows = Rows(*record[1:])
        around = self._way.around(ask.position, rows, ask.size, ask.filters)
        if self._ahead.enabled:
            self._look_ahead(ask, rows, around, hit)
        return Page(
            rows.items, page=around.number, page_size=ask.size, has_next=around.has_next,
            has_previous=around.has_previous, total_items=total, hit=hit, age=age, loaded=record[0],
            numbered=self._way.numbered, cursors=partial(self._signed, ask, around),
        )  # fmt: skip

    def _signed(self, ask: _Ask, around: Around) -> tuple[str | None, str | None, str | None]:
        binding = self._binding(ask.filters)
        return ask.cursor, self._sign(around.next, binding), self._sign(around.previous, binding)

    def _sign(self, position: Position | None, binding: bytes) -> str | None:
        while position is not None:
            try:
                return self._signer.sign(position, binding)
            except ConfigError:
                if position.mode != "source" or not position.values[1]:
                    raise
                # the way back is a comfort: as much of it as there is room for
                position = position._replace(values=(position.values[0], position.values[1][1:]))
        return None

    # -- the next page, and totals ------------------------------------------------------

    def _following(self, ask: _Ask, rows: Rows, around: Around, hit: bool) -> _Ask | None:
        """What comes after a page; the row that told of it is not read again, unless it is an old one."""
        if around.next is None:
            return None
        carried = rows.probe if self._way.numbered and not hit else ()
        return self._asked(around.next, ask.size, ask.filters, carried)

    def _look_ahead(self, ask: _Ask, rows: Rows, around: Around, hit: bool) -> None:
        """Start loading the next page if this one was the next page of another one."""
        following = None if ask.position.backward else self._following(ask, rows, around, hit)
        if self._ahead.follows(ask.key, following and following.key) and following is not None:
            load = _Load(following, self._read, self._clock)
            self._ahead.start(following.key, self._call_of(load), self._ttl)

    def _total_of(self, total: Any, filters: dict[str, Any]) -> Any:
        """None, a number, or a function to ask."""
        total = self._total if total is UNSET else total
        if total is True:
            if filters or self._source.size is None:
                raise ConfigError(f"{self._source!r} does not know how many items there are; give total=function")
            return self._source.size
        if total is None or total is False or callable(total):
            return total or None
        if not hasattr(total, "__index__") or total < 0:
            raise ConfigError(f"total={total!r} is no number of items; give an int, a function, True or None")
        return int(total)

    def _counted(self, total: Any, filters: dict[str, Any]) -> int | None:
        found = self._total_of(total, filters)
        if callable(found):
            load, deadline = partial(found, **filters), self._deadline()
            found = self._tiers.get(self._total_key(found, filters), load, ttl=self._total_ttl, deadline=deadline)
        return found if found is None else int(found)

    async def _acounted(self, total: Any, filters: dict[str, Any]) -> int | None:
        found = self._total_of(total, filters)
        if callable(found):
            load, deadline = partial(found, **filters), self._deadline()
            key = self._total_key(found, filters)
            found = await self._tiers.aget(key, load, ttl=self._total_ttl, deadline=deadline)
        return found if found is None else int(found)

    def _total_key(self, total: Callable[..., Any], filters: dict[str, Any]) -> tuple[Any, ...]:
        return (Kind.PAGE, self._source.identity, frozen(filters), "total", function_key(total))


class Pages:
    """A walk through pages, for ``for`` and ``async for``; made by :meth:`Pager.pages`. Each loop begins anew."""

    def __init__(self, pager: Pager, start: int, stop: int | None, size: int | None, filters: dict[str, Any]) -> None:
        self._pager = pager
        self._start, self._stop = start, stop
        self._size, self._filters = size, filters

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a walk through pages belongs to a live store and cannot be pickled: send the store, or the pages"
        )

    def _first(self) -> tuple[int, _Ask | None]:
        """Number and position of the first page of the walk."""
        number = self._start if self._pager._way.numbered else 1
        if self._stop is not None and self._start >= self._stop:
            return number, None
        return number, self._pager._ask(number, None, self._size, self._filters)

    def _next(self, number: int, ask: _Ask, record: Any, hit: bool) -> _Ask | None:
        if self._stop is not None and number + 1 >= self._stop:
            return None
        pager, rows = self._pager, Rows(*record[1:])
        return pager._following(ask, rows, pager._way.around(ask.position, rows, ask.size, ask.filters), hit)

    def __iter__(self) -> Iterator[Page[Any]]:
        pager = self._pager
        number, ask = self._first()
        while ask is not None:
            record, hit, age = pager._loaded(ask)
            page = pager._made(ask, record, hit, age, pager._counted(UNSET, ask.filters))
            if page and number >= self._start:
                yield page
            ask, number = self._next(number, ask, record, hit), number + 1

    async def __aiter__(self) -> AsyncIterator[Page[Any]]:
        pager = self._pager
        number, ask = self._first()
        while ask is not None:
            record, hit, age = await pager._aloaded(ask)
            page = pager._made(ask, record, hit, age, await pager._acounted(UNSET, ask.filters))
            if page and number >= self._start:
                yield page
            ask, number = self._next(number, ask, record, hit), number + 1


class _PageJob:
    """One page on its way in a worker thread."""

    def __init__(self, load: Callable[[], Page[Any]]) -> None:
        self._load = load
        self._context = copy_context()
        self._ended = threading.Event()
        self._page: Page[Any] | None = None
        self._error: BaseException | None = None
        self._job: Any = None

    def start(self, tiers: Tiers) -> None:
        self._blocked = tiers.bridge.blocked
        self._job = tiers.workers.submit(self._run, demand=True, dropped=self._ended.set)

    def _run(self) -> None:
        try:
            self._page = self._context.run(self._load)
        except BaseException as error:  # noqa: BLE001 (it is the waiter's)
            self._error = error
        finally:
            self._ended.set()

    def result(self) -> Page[Any]:
        self.wait()
        if self._error is not None:
            raise self._error
        if self._page is None:
            raise LoadCancelledError("the store was closed while its pages were loaded")
        return self._page

    def drop(self) -> None:
        """Cancel it if no thread has begun."""
        self._job.cancel()

    def wait(self) -> None:
        with self._blocked():  # who waits may be a worker itself
            self._ended.wait()


_FROM_1 = "pages count from 1"
