"""`PagedObject`: byte ranges of one stored object, through pages that are kept in the tiers.

Which pages are on their way is ``page_waves.py``'s, reading ahead ``page_ahead.py``'s, which source has the object
``origins.py``'s business. A position, and everything else that makes a file, is in ``lazy/file.py``.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lazystore.cache.flight import Deadline
from lazystore.cache.keys import Kind
from lazystore.cache.origins import Origin, Origins
from lazystore.cache.page_waves import CalledOff, PageWave, board_of
from lazystore.config import parse_bytes
from lazystore.errors import ClosedError, ConfigError, FetchError, LazyStoreError, LoadTimeoutError, SourceChangedError
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore.cache.ledger import Reservation
    from lazystore.cache.tiers import Tiers

__all__ = ["DEFAULT_PAGE", "PagedObject"]

KIB = 1 << 10
MIB = 1 << 20
DEFAULT_PAGE = MIB
#: A page is at most this share of the budget, so that some are kept while others travel; and at least so many bytes.
PAGE_SHARE = 16
SMALLEST_PAGE = 4 * KIB
#: Bytes that one read has on their way at once, and the share of the budget they may be.
BATCH = 8 * MIB
BATCH_SHARE = 8
DEFAULT_TIMEOUT = 30.0

#: Tells the openings of objects apart whose storage has nothing to tell versions apart by.
_openings = itertools.count(1)


class PagedObject:
    """One object, local or remote, as bytes by position.

    Args:
        place: a path or URL, or an :class:`~lazystore.cache.origins.Origin`.
        tiers: where pages are kept, and whose budget they count in.
        page: bytes of a page (``"1MiB"`` or an int): what a read of remote bytes fetches at least. Smaller ones suit
            small random reads. At most 1/16 of the memory budget, whatever is asked for.
        storage_options: how to reach the storage, if ``place`` is a URL.
        timeout: seconds that fetching may take, retries included.
        first_page: fetch the first page along with the size: one request instead of two for who reads from the start.

    The object is the one it was at opening: its identity (size and etag, or size and time of modification) is asked
    for then, once, and is part of every page's key, so that pages outlive the file and are found again by the next one
    that opens the same version. An object that changes meanwhile raises SourceChangedError, and its pages are
    dropped. A storage that tells nothing but the size gets pages that are used by this opening alone.

    Local files, and stores without memory, are read straight into the caller's buffer: the system has its own cache.

    Cost: a read inside one cached page is one look-up and one copy. Missing pages next to each other travel in one
    request (of up to 8 MiB), each fetched once however many files and threads want it. What is on its way is reserved
    in the budget.

    Threads: any. Fork: the child fetches anew what its parent had on its way. Pickle: not; :class:`LazyFile` does.
    Nothing to wait for at interpreter exit.

    Raises:
        DatasetNotFoundError: there is no such object.
        ConfigError: the URL, the options or ``page`` cannot work.
        FetchError: the storage does not answer as it should.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Origin,
        tiers: Tiers,
        *,
        page: int | str = DEFAULT_PAGE,
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        first_page: bool = False,
    ) -> None:
        self._prepare(place, tiers, page, storage_options, timeout)
        try:
            self._ask(first_page)
            self._learn()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open_many(
        cls,
        origins: Iterable[Origin],
        tiers: Tiers,
        *,
        page: int | str = DEFAULT_PAGE,
        timeout: float = DEFAULT_TIMEOUT,
        first_page: bool = False,
    ) -> list[PagedObject | LazyStoreError]:
        """Open several objects in the time of one; the error in the place of each that cannot be opened."""
        opened: list[PagedObject | LazyStoreError] = []
        for origin in origins:
            paged = cls.__new__(cls)
            try:
                paged._prepare(origin, tiers, page, None, timeout)
                paged._ask(first_page)
            except LazyStoreError as error:
                opened.append(error)
            else:
                opened.append(paged)
        for at, found in enumerate(opened):
            if isinstance(found, PagedObject):
                try:
                    found._learn()
                except LazyStoreError as error:
                    opened[at] = error
        return opened

    def _prepare(
        self, place: str | os.PathLike[str] | Origin, tiers: Tiers, page: int | str, options: Any, timeout: float
    ) -> None:
        """Everything that needs no storage."""
        self._closed = False
        self._own: Origins | None = None
        if isinstance(place, Origin):
            if options is not None:
                raise ConfigError("storage_options are for a URL: an Origin has its source already")
            origin = place
        else:
            self._own = Origins(options)
            origin = self._own.find(place)
        self.url, self._source, self._name, self._label = origin.url, origin.source, origin.name, origin.label
        self._timeout = timeout
        #: Bytes that the pages of all objects in these tiers may have, with all else that is in them.
        self.budget = tiers.ledger.limit
        #: Whether reads go to the storage itself rather than through pages.
        self.direct = self._source.local or not self.budget
        wanted = parse_bytes(page, name="page")
        self.page_bytes = wanted if self.direct else max(SMALLEST_PAGE, min(wanted, self.budget // PAGE_SHARE))
        #: Pages that one read has on their way at once.
        self.batch = max(1, min(BATCH, self.budget // BATCH_SHARE) // self.page_bytes)
        self._tiers, self._hit = tiers, tiers.hit
        self._board = board_of(tiers)

    def _ask(self, first_page: bool) -> None:
        """Ask which object it is now."""
        self._source.forget(self._name)
        self._first = bytearray(self.page_bytes if first_page and not self.direct else 0)
        reads = [Read(self._name, 0, memoryview(self._first))] if self._first else []
        self._asked = self._source.start(reads, stat=[self._name], timeout=self._timeout, urgent=True)

    def _learn(self) -> None:
        """Hear which object it is."""
        self.size = self._asked.result()[self._name]
        self._pinned = self._source.identity(self._name, timeout=self._timeout)
        first = self._first[: self.size]
        del self._asked, self._first
        #: What tells this version of the object from all others: for caches.
        self.identity = f"{self._pinned}{os.getpid()}.{next(_openings)}" if self._pinned.endswith("-") else self._pinned
        if self._pinned.partition("-")[0] != str(self.size):
            raise SourceChangedError(f"{self.url} was changed while it was opened; open it again", url=self.url)
        self._prefix = (Kind.OBJECT, self._label, self.identity, self.page_bytes)
        #: How many pages it has.
        self.pages = -(-self.size // self.page_bytes)
        if first:
            self.keep(self._key(0), memoryview(first).toreadonly())

    # -- reading ------------------------------------------------------------------------

    def read(self, offset: int = 0, nbytes: int = -1) -> bytes:
        """Bytes from ``offset`` on: ``nbytes`` of them, fewer at the end, all that follow if negative. One copy.

        Raises:
            SourceChangedError: the object is no longer the one that was opened.
            FetchError, ClosedError, ConfigError (a negative ``offset``).
        """
        length = self._length(offset, nbytes)
        if not length:
            return b""
        first, inside = divmod(offset, self.page_bytes)
        if inside + length <= self.page_bytes and not self.direct:
            return bytes(memoryview(self._page(first))[inside : inside + length])
        # Its getvalue() hands out the very bytes that were written: no second copy, however long they are.
        result = io.BytesIO()
        result.seek(length - 1)
        result.write(b"\0")
        with result.getbuffer() as buffer:
            self.readinto(offset, buffer)
        return result.getvalue()

    def readinto(self, offset: int, buffer: Any) -> int:
        """The same into a writable buffer; returns the bytes that are there, fewer than wanted only at the end."""
        with memoryview(buffer).cast("B") as view:  # released at once, whoever keeps the frame for a traceback
            length = self._length(offset, len(view))
            if not length:
                return 0
            if self.direct:
                return self._read_directly(offset, view[:length])
            return self._read_pages(offset, view, length)

    def read_view(self, offset: int, nbytes: int) -> memoryview:
        """The same, read-only and without a copy where the bytes lie inside one page.

        The view keeps its whole page alive, outside the budget once the page is evicted: do not collect them.
        """
        length = self._length(offset, nbytes)
        first, inside = divmod(offset, self.page_bytes)
        if length and inside + length <= self.page_bytes and not self.direct:
            return memoryview(self._page(first))[inside : inside + length]
        buffer = bytearray(length)
        self.readinto(offset, buffer)
        return memoryview(buffer).toreadonly()

    def read_ranges(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Several ``(begin, end)`` ranges, half open, cut at the object's end; what is missing travels together."""
        wanted = [(begin, begin + self._length(begin, max(0, end - begin))) for begin, end in ranges]
        if self.direct:
            return self._ranges_directly(wanted)
        found: list[bytes] = []
        while len(found) < len(wanted):
            some, numbers = self._together(wanted[len(found) :])
            wave = self.bring(numbers)
            try:
                found += [self.read(begin, end - begin) for begin, end in some]
            finally:
                if wave is not None:
                    wave.hand_over(self.keep)
        return found

    def send_for(self, ranges: Sequence[tuple[int, int]]) -> PageWave | None:
        """Begin to fetch what :meth:`read_ranges` needs first, if there is room for it now.

        Whoever calls this hands the wave over (:meth:`PageWave.hand_over` with :meth:`keep`) after reading.
        """
        return None if self.direct else self.bring(self._together(ranges)[1], ahead=True)

    def _together(self, wanted: Sequence[tuple[int, int]]) -> tuple[Sequence[tuple[int, int]], list[int]]:
        """The first ranges, whose pages can travel in one wave, and these pages; of one long range its first pages."""
        size = self.page_bytes
        numbers: dict[int, None] = {}
        for count, (begin, end) in enumerate(wanted):
            pages = range(begin // size, -(-end // size)) if end > begin else range(0)
            if count and len(numbers) + len(pages) > self.batch:
                return wanted[:count], list(numbers)
            numbers.update(dict.fromkeys(pages[: self.batch]))
        return wanted, list(numbers)

    def blocks(self) -> Iterator[memoryview]:
        """The whole object in order, a page at a time, read ahead; read-only views, as :meth:`read_view` gives."""
        from lazystore.cache.page_ahead import PagesAhead

        ahead = PagesAhead(self)
        try:
            for begin in range(0, self.size, self.page_bytes):
                ahead.reads(begin, min(begin + self.page_bytes, self.size))
                yield self.read_view(begin, self.page_bytes)
        finally:
            ahead.end()

    def close(self) -> None:
        """Refuse further reads; pages stay in the cache. A source of its own is closed."""
        self._closed = True
        if self._own is not None:
            self._own.close()

    @property
    def closed(self) -> bool:
        return self._closed

    # -- pages --------------------------------------------------------------------------

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of these pages that are neither cached nor on their way."""
        holds, wave = self._tiers.holds, self._board.wave
        return [n for n in numbers if wave(self._key(n)) is None and not holds(self._key(n))]

    def bring(self, numbers: Sequence[int], *, ahead: bool = False) -> PageWave | None:
        """Begin to fetch those of these pages that are missing, in one wave; None if none are.

        Args:
            ahead: nobody waits for them: None too where the budget has no room for them now.
        """
        missing = self.missing(numbers)
        return self._fetch(missing, ahead) if missing else None

    @property
    def may_speculate(self) -> bool:
        """Whether the machine has memory for what nobody waits for."""
        return self._tiers.may_speculate

    def under_way(self, number: int) -> bool:
        """Whether a page is being fetched and has not landed."""
        wave = self._board.wave(self._key(number))
        return wave is not None and not wave.ended

    def keep(self, key: Hashable, page: memoryview) -> None:
        """Put a page into the cache that nobody has read yet."""
        self._tiers.put(key, page, ttl=None, weigh=len)

    def _key(self, number: int) -> Hashable:
        return (*self._prefix, number)

    def _page(self, number: int) -> Any:
        page = self._hit(self._key(number), None)
        return self._load(number) if page is None else page

    def _read_pages(self, offset: int, view: memoryview, length: int) -> int:
        size, done = self.page_bytes, 0
        first, last = offset // size, (offset + length - 1) // size
        batches = [range(at, min(at + self.batch, last + 1)) for at in range(first, last + 1, self.batch)]
        waves = [self.bring(batches[0])] if last > first else []
        try:
            for number, batch in enumerate(batches, 1):
                if number < len(batches):  # the next is on its way while this one is read
                    waves = [*waves[-1:], self.bring(batches[number], ahead=True)]
                for page in batch:
                    inside = (offset + done) % size
                    some = memoryview(self._page(page))[inside : inside + length - done]
                    view[done : done + len(some)] = some
                    done += len(some)
        finally:
            for wave in filter(None, waves):
                wave.hand_over(self.keep)
        return done

    def _load(self, number: int) -> Any:
        """A page that is not in memory: from disk, from a wave that brings it, or fetched now."""
        key = self._key(number)
        mine = self.bring([number])
        try:
            if (wave := self._board.wave(key)) is not None:
                wave.wait(self._timeout)  # before it waits for its turn to load: who has that must not wait for room
            return self._tiers.get(key, partial(self._arrived, number, key), ttl=None, weigh=len, retry=False)
        finally:
            wave = self._board.wave(key)
            if wave is not None and wave.ended:
                wave.taken(key)
            if mine is not None:
                mine.give_up()  # another has put the page there meanwhile, or this thread was interrupted

    def _arrived(self, number: int, key: Hashable) -> memoryview:
        """What the tiers load a page with."""
        while True:
            wave = self._board.wave(key) or self._fetch([number], ahead=False)
            if wave is None:
                continue  # claimed by another in between
            try:
                return wave.page(key)
            except CalledOff:
                page: memoryview | None = self._tiers.peek(key)
                if page is not None:
                    return page  # it was handed over to the cache
            except SourceChangedError:
                self._drop()
                raise
            except FetchError:
                if not wave.ahead:
                    raise  # it was asked for in earnest; what was only read ahead is asked for once more

    def _fetch(self, numbers: Iterable[int], ahead: bool) -> PageWave | None:
        """Claim pages and send for them; None if all are claimed by others, or (ahead) there is no room."""
        if self._closed:
            raise ClosedError(f"{self.url} is closed; open it again")
        wave = PageWave(self._board, ahead=ahead)
        mine = {number: key for number in numbers if self._board.claim(key := self._key(number), wave)}
        if not mine:
            return None
        try:
            room = self._room(sum(map(self._page_length, mine)), wait=not ahead)
            if room is None:
                wave.call_off(mine.values())
                return None
            pages = {key: bytearray(self._page_length(number)) for number, key in mine.items()}
            reads = [Read(self._name, n * self.page_bytes, memoryview(pages[key])) for n, key in mine.items()]
            flight = self._source.start(reads, timeout=self._timeout, urgent=not ahead)
        except BaseException:
            wave.call_off(mine.values())
            raise
        wave.begin(pages, flight, room, self._check)
        return wave

    def _room(self, nbytes: int, *, wait: bool) -> Reservation | None:
        """Room for bytes on their way. Whatever has landed gives way: were it to wait for its readers, readers that
        wait for room could wait for each other.
        """
        reserve = self._tiers.ledger.reserve
        what = "pages on their way"
        deadline = Deadline(self._timeout)
        while True:
            try:
                return reserve(nbytes, what=what, timeout=0.0)
            except LoadTimeoutError:
                if not wait:
                    return None
                landed = [wave for wave in self._board.waves() if wave.ended]
                if not landed and deadline.passed():
                    raise
            for wave in landed:
                wave.hand_over(self.keep)
            if not landed:
                try:
                    return reserve(nbytes, what=what, timeout=min(0.05, deadline.left()))
                except LoadTimeoutError:
                    continue

    # -- the object ---------------------------------------------------------------------

    def _page_length(self, number: int) -> int:
        return min(self.page_bytes, self.size - number * self.page_bytes)

    def _length(self, offset: int, nbytes: int) -> int:
        """Bytes there are of those wanted."""
        if self._closed:
            raise ClosedError(f"{self.url} is closed; open it again")
        if offset < 0:
            raise ConfigError(f"offset={offset} lies before the beginning")
        left = max(0, self.size - offset)
        return left if nbytes < 0 else min(nbytes, left)

    def _check(self) -> None:
        """Whether what the source has pinned is still what was opened: another opening may have pinned anew."""
        if self._source.identity(self._name, timeout=self._timeout) != self._pinned:
            raise SourceChangedError(f"{self.url} was changed while it was being read; open it again", url=self.url)

    def _drop(self) -> None:
        """Forget the pages of a version that is no more."""
        for number in range(self.pages):
            self._tiers.invalidate(self._key(number))

    def _read_directly(self, offset: int, view: memoryview) -> int:
        self._source.run([Read(self._name, offset, view)], timeout=self._timeout)
        self._check()
        return len(view)

    def _ranges_directly(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        buffers = [bytearray(end - begin) for begin, end in wanted]
        reads = [Read(self._name, begin, memoryview(b)) for (begin, _), b in zip(wanted, buffers, strict=True)]
        self._source.run(reads, timeout=self._timeout)
        self._check()
        return [bytes(buffer) for buffer in buffers]

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<PagedObject {self.url}, {self.size} bytes in pages of {self.page_bytes}>"
