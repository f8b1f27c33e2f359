"""What ``store.chunks()`` gives: parts of a source that are addressed, loaded and cached each by itself.

Here: numbers, keys, and both ways of reading. Loading and keeping is the tiers' business (``cache.tiers``), reading
ahead ``chunk_ahead``'s. Sources that can only be read in one pass have :class:`ChunkPass`, which caches nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn, overload

from lazystore.cache.bridge import is_awaitable
from lazystore.cache.keys import Kind
from lazystore.cache.tiers import UNSET, Tiers
from lazystore.config import parse_bytes, whole
from lazystore.errors import ConfigError, ItemIndexError, LoadError, UnsupportedError
from lazystore.lazy.chunk_ahead import ChunkAhead
from lazystore.lazy.chunker import DataChunker
from lazystore.lazy.passes import async_pieces, sync_pieces
from lazystore.lazy.source import Source, as_source

__all__ = ["ByKeys", "ChunkPass", "Chunks", "chunks_of"]

MIB = 1 << 20
ITEMS = 1000


def chunks_of(
    source: Any,
    tiers: Tiers,
    *,
    chunk: int | str | None = None,
    items: int | None = None,
    prefetch: int | str = "auto",
    ttl: Any = UNSET,
    **cutting: Any,
) -> Chunks | ChunkPass:
    """:class:`Chunks` of a source that is read by position; :class:`ChunkPass` of others, and what is cut otherwise.

    Parameters:
        source: a :class:`Source`, or what one can be made from.
        chunk: bytes a chunk: of sources of bytes, and of items in one pass (by what they hold); default 1 MiB.
        items: items a chunk: of sources of items; default 1000.
        prefetch, ttl: as :class:`Chunks` has them.
        cutting: what else :class:`DataChunker` takes; the source is read in one pass then.

    Raises:
        ConfigError: no sizes, or sizes in a unit that the source does not count in.
        UnsupportedError: the source can be read neither by position nor in one pass.
    """
    found = as_source(source)
    found.require("range", "stream")
    if not cutting and "range" in found.can and not (found.unit == "items" and chunk is not None):
        return Chunks(found, tiers, chunk=chunk, items=items, prefetch=prefetch, ttl=ttl)
    if not cutting and chunk is None and items is None and found.unit == "items":
        items = ITEMS
    return ChunkPass(found, tiers, DataChunker(chunk, items=items, **cutting))


class _Addressed:
    """Numbered parts, each loaded when it is asked for, and cached."""

    def __init__(self, source: Source, tiers: Tiers, prefetch: int | str, ttl: Any) -> None:
        self._source = source
        self._tiers = tiers
        self._ttl = ttl
        self._end: int | None = None  # the number of parts, once it is known
        wanted = _prefetch(prefetch)
        self._prefetch = 0 if source.cached else wanted
        self._ahead = self._new_ahead()

    # What the parts are: one of these for each kind.

    def part(self, index: int) -> tuple[Hashable, Callable[[], Any]]:
        """Under which key a part is kept, and what loads it. Raises ItemIndexError if it is known that there is none"""
        raise NotImplementedError

    def _learn(self, index: int, value: Any) -> bool:
        """Whether there is such a part, now that its value is there."""
        return True

    def _nbytes(self) -> int | None:
        """Bytes of a part, where that is known beforehand."""
        return None

    @property
    def total(self) -> int | None:
        """How many parts there are; None where only reading to the end would tell."""
        return self._end

    # -- one ----------------------------------------------------------------------------

    def _new_ahead(self) -> ChunkAhead:
        return ChunkAhead(self._start, self._tiers, self._prefetch, self._nbytes())

    def _start(self, index: int) -> Any:
        """Load a part in the background; None: there is none."""
        try:
            key, load = self.part(index)
        except ItemIndexError:
            return None
        return self._tiers.start(key, load, ttl=self._ttl)

    def _get(self, index: int, ahead: ChunkAhead) -> Any:
        """The part ``index``; raises ItemIndexError if there is none."""
        key, load = self.part(index)
        if self._source.cached:
            return self._seen(index, self._tiers.bridge.call(load), ahead)
        started = ahead.touch(index)
        try:
            value = self._tiers.get(key, load, ttl=self._ttl)
        except Exception:
            if not ahead.failed(started):
                raise
            value = self._tiers.get(key, load, ttl=self._ttl)
        return self._seen(index, value, ahead)

    async def _aget(self, index: int, ahead: ChunkAhead) -> Any:
        if self._source.cached and not self._source.instant:  # opening it, and asking for its size, may wait
            return await self._tiers.bridge.acall(self._get, index, ahead)
        key, load = self.part(index)
        if self._source.instant:
            return self._seen(index, load(), ahead)
        started = ahead.touch(index)
        try:
            value = await self._tiers.aget(key, load, ttl=self._ttl)
        except Exception:
            if not ahead.failed(started):
                raise
            value = await self._tiers.aget(key, load, ttl=self._ttl)
        return self._seen(index, value, ahead)

    def _seen(self, index: int, value: Any, ahead: ChunkAhead) -> Any:
        if not self._learn(index, value):
            raise self._none(index)
        ahead.saw(value)
        return value

    def _is_behind(self, index: int) -> bool:
        """Whether it is known that the parts end before this one."""
        total = self.total
        return total is not None and index >= total

    def _none(self, index: int) -> ItemIndexError:
        return ItemIndexError(f"{self!r} has no chunk {index}")

    # -- many ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Chunks in all.

        Raises:
            TypeError: the source does not know its size, and was not read to its end yet.
        """
        total = self.total
        if total is None:
            raise TypeError(f"{self!r} has no len(): the source does not know its size; iterate, or give size=")
        return total

    def _number(self, index: Any) -> int:
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(f"chunks are addressed by whole numbers and slices, not by {index!r}")
        number = int(index.__index__())
        return number + self._known() if number < 0 else number

    def _numbers(self, part: slice) -> Iterable[int]:
        """The numbers of a slice, in order; of an unknown end those that may be there."""
        total = self.total
        if total is None:
            ends = (0 if part.start is None else part.start, part.stop)
            if ends[1] is not None and min(ends) >= 0 and (part.step is None or part.step > 0):
                return range(ends[0], ends[1], part.step or 1)
        return range(*part.indices(self._known()))

    def _known(self) -> int:
        total = self.total
        if total is None:
            raise UnsupportedError(
                f"{self!r} does not know its size: count chunks from the front, iterate, or give the source a size"
            )
        return total

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """A chunk, or a list of them.

        Raises:
            ItemIndexError: there is none. UnsupportedError: counted from the end of a source of unknown size. What the
            source raises.
        """
        if not isinstance(index, slice):
            return self._get(self._number(index), self._ahead)
        found: list[Any] = []
        for number in self._numbers(index):
            try:
                found.append(self._get(number, self._ahead))
            except ItemIndexError:
                if not self._is_behind(number):
                    raise  # the loader's own
                break
        return found

    async def aget(self, index: int | slice) -> Any:
        """``[index]`` for event loops."""
        if self._source.cached and not self._source.instant:
            return await self._tiers.bridge.acall(self.__getitem__, index)
        if not isinstance(index, slice):
            return await self._aget(self._number(index), self._ahead)
        found: list[Any] = []
        for number in self._numbers(index):
            try:
                found.append(await self._aget(number, self._ahead))
            except ItemIndexError:
                if not self._is_behind(number):
                    raise
                break
        return found

    def __iter__(self) -> Iterator[Any]:
        """All chunks in order, read ahead in the background once two were read."""
        ahead, index = self._new_ahead(), 0
        while True:
            try:
                value = self._get(index, ahead)
            except ItemIndexError:
                if not self._is_behind(index):
                    raise
                return
            yield value
            index += 1

    async def __aiter__(self) -> AsyncIterator[Any]:
        ahead, index = self._new_ahead(), 0
        while True:
            try:
                value = await self._aget(index, ahead)
            except ItemIndexError:
                if not self._is_behind(index):
                    raise
                return
            yield value
            index += 1

    def __contains__(self, value: object) -> NoReturn:
        raise UnsupportedError(f"looking for something in {self!r} would load all of it: iterate, and compare")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to a live store and cannot be pickled: send the store, or its source")


class Chunks(_Addressed):
    """A source in parts of one size: ``len()`` if the size is known, ``[i]``, slices, ``for``, ``async for``.

    Parameters:
        source: one that can "range".
        tiers: where parts are kept, and whose budget they are in.
        chunk: bytes a chunk, of a source that counts bytes; default 1 MiB.
        items: items a chunk, of one that counts items; default 1000.
        prefetch: chunks that are loaded ahead in the background while they are read in order; "auto": 2, and more (8
            at most) while they come too late; 0: none, and no thread.
        ttl: seconds a chunk stays fresh.

    Values are what the source gives: bytes or views, lists of items. A source whose own memory holds them is asked
    each time and nothing is cached or read ahead. Of a source of unknown size the end is a chunk that is shorter.

    Raises:
        ConfigError: a size that is none, or in a unit that the source does not count in.

    Cost of a chunk in memory: about 3 us. Threads: any number. Fork: as the tiers. Pickling: refused.
    """

    def __init__(
        self,
        source: Source,
        tiers: Tiers,
        *,
        chunk: int | str | None = None,
        items: int | None = None,
        prefetch: int | str = "auto",
        ttl: Any = UNSET,
    ) -> None:
        source.require("range")
        wrong, right = ("items", "chunk") if source.unit == "bytes" else ("chunk", "items")
        if {"items": items, "chunk": chunk}[wrong] is not None:
            raise ConfigError(f"{source!r} counts {source.unit}: say {right}= in place of {wrong}=")
        self.grain = _grain(source.unit, chunk, items)
        super().__init__(source, tiers, prefetch, ttl)

    @property
    def total(self) -> int | None:
        size = self._source.size
        return self._end if size is None else -(-size // self.grain)

    def part(self, index: int) -> tuple[Hashable, Callable[[], Any]]:
        source, offset, size = self._source, index * self.grain, self._source.size
        limit = self.grain if size is None else min(self.grain, size - offset)
        if index < 0 or limit <= 0 or (self._end is not None and index >= self._end):
            raise self._none(index)
        key: tuple[Hashable, ...] = (Kind.CHUNK, source.identity, self.grain, index)
        if limit < self.grain:
            key = (*key, limit)  # the last one is another one when the source has grown
        check = partial(_check_part, source, offset, limit, size is not None)
        return key, _checked(partial(source.fetch_range, offset, limit), check, source.is_async("range"))

    def _learn(self, index: int, value: Any) -> bool:
        if self._source.is_sized:
            return True
        if len(value) < self.grain:
            end = index + bool(len(value))
            self._end = end if self._end is None else min(self._end, end)
        return bool(len(value))

    def _nbytes(self) -> int | None:
        return self.grain if self._source.unit == "bytes" else None

    def __repr__(self) -> str:
        return f"<Chunks of {self.grain} {self._source.unit} of {self._source!r}>"


class ByKeys(_Addressed):
    """Values of keys that are known beforehand, in their order, each loaded and cached by itself.

    Parameters:
        source: one that can "keys", or a function of a key.
        tiers: where they are kept.
        keys: all of them.
        prefetch: how many of the next are loaded in the background while they are read in order; "auto" as for
            :class:`Chunks`; 0: none, and no thread.
        ttl: seconds a value stays fresh.

    A key that is in it twice is loaded once. Otherwise as :class:`Chunks`.
    """

    def __init__(
        self, source: Any, tiers: Tiers, keys: Iterable[Hashable], *, prefetch: int | str = "auto", ttl: Any = UNSET
    ) -> None:
        is_function = callable(source) and not isinstance(source, Source)
        found = Source.from_keys(source) if is_function else as_source(source)
        found.require("keys")
        self.keys = tuple(keys)
        super().__init__(found, tiers, prefetch, ttl)

    @property
    def total(self) -> int:
        return len(self.keys)

    def part(self, index: int) -> tuple[Hashable, Callable[[], Any]]:
        if not 0 <= index < len(self.keys):
            raise self._none(index)
        key = self.keys[index]
        return (Kind.CHUNK, self._source.identity, key), self._source.load_of_key(key)

    def __repr__(self) -> str:
        return f"<{len(self.keys)} values by key of {self._source!r}>"


class ChunkPass:
    """Chunks of a source that is read in one pass: for ``for`` and ``async for``; each begins a new pass.

    Parameters:
        source: one that can "stream". An iterator can do so once.
        tiers: whose bridge is used; nothing is cached.
        chunker: where the cuts are.

    Memory: one chunk. Threads: a pass belongs to one at a time. Fork, pickling: as the source.
    """

    def __init__(self, source: Source, tiers: Tiers, chunker: DataChunker) -> None:
        source.require("stream")
        self._source = source
        self._bridge = tiers.bridge
        self._chunker = chunker

    def __iter__(self) -> Iterator[Any]:
        return sync_pieces(self._bridge.iterate(self._source.open()), self._chunker)

    def __aiter__(self) -> AsyncIterator[Any]:
        return async_pieces(self._source, self._bridge, self._chunker)

    def __getitem__(self, index: Any) -> NoReturn:
        raise UnsupportedError(
            f"{self!r} is cut as it passes, and has no chunk {index!r} to go to: iterate;"
            " or cut by size a source that can be read by position (a sequence, bytes, a URL, from_range)"
        )

    def __repr__(self) -> str:
        return f"<ChunkPass over {self._source!r}>"


# -- loads ------------------------------------------------------------------------------


def _checked(fetch: Callable[[], Any], check: Callable[[Any], Any], is_coroutine: bool) -> Callable[[], Any]:
    """A load that checks what it gives; a coroutine function where the source's is one, so that loops await it."""

    async def awaited(coming: Any) -> Any:
        return check(await coming)

    async def aload() -> Any:
        return check(await fetch())

    def load() -> Any:
        value = fetch()
        return awaited(value) if is_awaitable(value) else check(value)

    return aload if is_coroutine else load


def _check_part(source: Source, offset: int, limit: int, exact: bool, value: Any) -> Any:
    """The value, if it is as long as it must be: shorter would be a hole in the data, longer an overlap."""
    try:
        length = memoryview(value).nbytes if source.unit == "bytes" else len(value)
    except TypeError:
        raise LoadError(f"{source!r} gave a {type(value).__name__} for {limit} {source.unit} from {offset}") from None
    if length > limit or (exact and length < limit):
        raise LoadError(f"{source!r} gave {length} {source.unit} from {offset} on where {limit} were asked for")
    return value


def _grain(unit: str, chunk: int | str | None, items: int | None) -> int:
    if unit == "bytes":
        return MIB if chunk is None else parse_bytes(chunk, name="chunk")
    if items is None:
        return ITEMS
    return whole("items", items)


def _prefetch(given: int | str) -> int | None:
    """Chunks to read ahead; None: as many as it takes."""
    if given == "auto":
        return None
    return whole("prefetch", given, least=0, hint="or 'auto'")
