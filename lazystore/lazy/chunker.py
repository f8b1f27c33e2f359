"""`DataChunker`: cuts bytes, text and objects, from memory or as they come, into chunks.

Here: what was asked for, what kind of thing is cut, and who drives the cutting, sync or async. Where the cuts are is
in ``cutting``; storing and addressing chunks is ``chunks``' business.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from lazystore._core.gear import GearCutter
from lazystore.config import parse_bytes, seconds, whole
from lazystore.errors import ConfigError
from lazystore.lazy.chunk import DataChunk, size_of
from lazystore.lazy.cutting import BytesCutter, ContentRule, Cutter, ObjectsCutter, Pace, RecordRule, Rule, SizeRule
from lazystore.lazy.strategy import ChunkStrategy

__all__ = ["DataChunker"]

MIB = 1 << 20
#: Seconds: of DYNAMIC_SIZE a chunk, of TIME_BASED until what there is goes, where nothing is said.
TARGET_SECONDS = 0.1
MAX_WAIT = 1.0
#: DYNAMIC_SIZE stays within the chunk's size divided and multiplied by this.
REACH = 16
#: CONTENT_BASED chunks have at most so many times the chunk's size.
MOST_TIMES = 4
#: Bytes that are read from a file at once: the chunk's size, within these.
LEAST_READ, MOST_READ = 1 << 16, 8 << 20
_END = object()
_BLOCKS = (bytes, bytearray, memoryview, str)


class DataChunker:
    """Cuts data into chunks, without copying bytes.

    What is cut, and into what:

    - bytes, or anything with a buffer (bytearray, mmap, ndarray): read-only memoryviews of it;
    - text: str, measured in UTF-8, no code point cut;
    - an iterable of blocks of bytes or of text (also sockets, generators), or a file: the same, as if the blocks were
      one. Only what lies across blocks is copied;
    - any other iterable: lists of its objects.

    Each also from an async iterable (:meth:`achunk`).

    Parameters:
        chunk: bytes a chunk (``"1MiB"``); of objects, bytes by ``weigh``.
        items: objects a chunk, in place of ``chunk``.
        strategy: where the cuts are. FIXED_SIZE: ``chunk`` bytes, the last fewer. DYNAMIC_SIZE: so large that the
            consumer takes ``target_seconds`` between two chunks. CONTENT_BASED: bytes by FastCDC
            (:class:`~lazystore._core.gear.GearCutter`), so that equal content gives equal chunks (and
            :attr:`DataChunk.id`) wherever it stands; text likewise, behind a ``delimiter`` (newline if none is given);
            objects where ``boundary`` says so. TIME_BASED: when a chunk is full, or ``max_wait`` after its first
            byte or object came. None: what the other arguments ask for, else FIXED_SIZE.
        delimiter: of records in bytes or text: chunks end behind one. A longer record is a chunk of its own.
        boundary: ``boundary(previous, item)``: whether a chunk ends between two objects.
        weigh: bytes of an object; None: :func:`lazystore._core.weigh.weigh`.
        target_seconds: of DYNAMIC_SIZE, 0.1.
        min, max: what sizes stay within, in the unit of ``chunk`` or ``items``. CONTENT_BASED: a quarter of the chunk
            (objects: 0) and four times it; objects are cut at ``max`` also without a boundary. DYNAMIC_SIZE: 1/16 and
            16 times. With a delimiter ``max`` is the longest record. Else neither may be given.
        max_wait: of TIME_BASED, 1 second. An async source is timed while it is waited for; a sync one is looked at when
            its next block or object comes, no sooner.
        clock: seconds, monotonic.

    Raises:
        ConfigError: arguments that cannot work, or not together.

    Cost: of views of bytes in memory about 1 us a chunk; FastCDC about half a nanosecond a byte. Memory: one chunk, for
    sources that come in blocks. Threads: one chunker may cut any number of things at once, each in one thread.
    Sources are not closed. Fork, pickling: nothing to say, it only holds what it was given.
    """

    def __init__(
        self,
        chunk: int | str | None = None,
        *,
        items: int | None = None,
        strategy: ChunkStrategy | str | None = None,
        delimiter: bytes | str | None = None,
        boundary: Callable[[Any, Any], Any] | None = None,
        weigh: Callable[[Any], int] | None = None,
        target_seconds: float | None = None,
        min: int | str | None = None,
        max: int | str | None = None,
        max_wait: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if chunk is not None and items is not None:
            raise ConfigError(f"chunk={chunk!r} counts bytes and items={items!r} objects; give one of them")
        if items is not None and weigh is not None:
            raise ConfigError("items= counts objects and weigh= weighs them; give one of them")
        self._in_items = items is not None
        self._size = self._amount("items", items) if self._in_items else self._amount("chunk", chunk, MIB)
        self._min = None if min is None else self._amount("min", min)
        self._max = None if max is None else self._amount("max", max)
        self._boundary, self._weigh = boundary, weigh
        self._delimiter = _delimiter(delimiter)
        self._target_seconds = None if target_seconds is None else seconds("target_seconds", target_seconds)
        self._max_wait = None if max_wait is None else seconds("max_wait", max_wait)
        self._clock = clock
        self.strategy = self._chosen(strategy)
        self._check()

    # -- arguments ----------------------------------------------------------------------

    def _amount(self, name: str, value: Any, default: int = 0) -> int:
        if value is None:
            return default
        if not self._in_items:
            return parse_bytes(value, name=name)
        return whole(name, value, hint="it counts items")

    def _chosen(self, strategy: ChunkStrategy | str | None) -> ChunkStrategy:
        if strategy is not None:
            try:
                return ChunkStrategy(strategy)
            except ValueError:
                known = ", ".join(member.name for member in ChunkStrategy)
                raise ConfigError(f"strategy={strategy!r} is not one of ChunkStrategy's {known}") from None
        if self._boundary is not None:
            return ChunkStrategy.CONTENT_BASED
        if self._target_seconds is not None:
            return ChunkStrategy.DYNAMIC_SIZE
        return ChunkStrategy.FIXED_SIZE if self._max_wait is None else ChunkStrategy.TIME_BASED

    def _check(self) -> None:
        strategy = self.strategy
        only = {
            "boundary": (self._boundary, ChunkStrategy.CONTENT_BASED),
            "target_seconds": (self._target_seconds, ChunkStrategy.DYNAMIC_SIZE),
            "max_wait": (self._max_wait, ChunkStrategy.TIME_BASED),
        }
        for name, (value, needed) in only.items():
            if value is not None and strategy is not needed:
                raise ConfigError(f"{name}= means something with {needed.name} only, not with {strategy.name}")
        is_plain = strategy in (ChunkStrategy.FIXED_SIZE, ChunkStrategy.TIME_BASED)
        if is_plain and (self._min is not None or (self._max is not None and self._delimiter is None)):
            raise ConfigError(f"with {strategy.name} sizes are not steered: min= and max= mean nothing")
        if self._delimiter is not None and self._cuts_objects:
            raise ConfigError("delimiter= is of bytes and text; items=, weigh= and boundary= are of objects")
        if self._min is not None and self._max is not None and self._min > self._max:
            raise ConfigError(f"min={self._min} is more than max={self._max}")
        if self._delimiter is not None and self._max is not None and self._max < self._size:
            raise ConfigError(f"max={self._max}, the longest record, is less than chunk={self._size}: chunks hold some")
        if strategy is ChunkStrategy.CONTENT_BASED and not self._cuts_objects:
            self._gear()

    @property
    def _cuts_objects(self) -> bool:
        return self._in_items or self._weigh is not None or self._boundary is not None

    def _gear(self) -> GearCutter:
        return GearCutter(self._size, least=self._min, most=self._max)

    def _pace(self) -> Pace:
        if self.strategy is not ChunkStrategy.DYNAMIC_SIZE:
            return Pace(self._size, 1, self._size)
        low = self._min or max(1, self._size // REACH)
        high = self._max if self._max is not None and self._delimiter is None else self._size * REACH
        wanted = TARGET_SECONDS if self._target_seconds is None else self._target_seconds
        return Pace(min(max(self._size, low), high), low, max(low, high), wanted)

    # -- cutting ------------------------------------------------------------------------

    def chunk(self, data: Any) -> Iterator[DataChunk]:
        """The chunks of ``data``, in order, as they are asked for.

        Raises:
            ConfigError: ``data`` cannot be cut this way. FormatError: a record longer than ``max``. What iterating
            over ``data`` raises.
        """
        offset = 0
        for index, piece in enumerate(self.pieces(data)):
            chunk = self._create_chunk(piece, index, offset)
            offset += chunk.size
            yield chunk

    async def achunk(self, data: Any) -> AsyncGenerator[DataChunk, None]:
        """The same of an async iterable. Others are iterated over as they are, in the event loop."""
        offset = index = 0
        async with contextlib.aclosing(self.apieces(data)) as pieces:
            async for piece in pieces:
                chunk = self._create_chunk(piece, index, offset)
                offset += chunk.size
                index += 1
                yield chunk

    def _create_chunk(self, items: Any, index: int, offset: int | None = None, **metadata: Any) -> DataChunk:
        """A chunk of what a subclass has cut by itself."""
        return DataChunk(items, index, size_of(items), offset, metadata)

    def pieces(self, data: Any) -> Iterator[Any]:
        """What is in the chunks, without their numbers: memoryviews, str, or lists."""
        if self._is_whole(data):
            cutter: Cutter = self._bytes_cutter(text=isinstance(data, str))
            yield from cutter.feed(data if isinstance(data, str) else memoryview(data).toreadonly())
        elif self._counts_only:
            source = iter(self._blocks(data))
            while items := list(itertools.islice(source, self._size)):
                yield items
            return
        else:
            source = iter(self._blocks(data))
            first = next(source, _END)
            if first is _END:
                return
            cutter = self._cutter_of(first)
            for item in itertools.chain((first,), source):
                yield from cutter.feed(item)
        yield from cutter.finish()

    async def apieces(self, data: Any) -> AsyncGenerator[Any, None]:
        """The same of an async iterable."""
        if not isinstance(data, AsyncIterable):
            for piece in self.pieces(data):
                yield piece
            return
        source = aiter(data)
        first = await anext(source, _END)
        if first is _END:
            return
        cutter = self._cutter_of(first)
        for piece in cutter.feed(first):
            yield piece
        if self.strategy is ChunkStrategy.TIME_BASED:
            async with contextlib.aclosing(_timed(source, cutter)) as pieces:
                async for piece in pieces:
                    yield piece
        else:
            async for item in source:
                for piece in cutter.feed(item):
                    yield piece
        for piece in cutter.finish():
            yield piece

    @property
    def _counts_only(self) -> bool:
        return self._in_items and self.strategy is ChunkStrategy.FIXED_SIZE

    def _is_whole(self, data: Any) -> bool:
        """Whether ``data`` is the bytes or the text themselves, not something that gives them."""
        if self._cuts_objects:
            if isinstance(data, _BLOCKS):
                kind = type(data).__name__
                raise ConfigError(
                    f"items=, weigh= and boundary= are of objects; {kind} is cut by chunk= and delimiter="
                )
            return False  # of an array its rows
        if isinstance(data, str):
            return True
        try:
            memoryview(data)
        except TypeError:
            return False
        return True

    def _blocks(self, data: Any) -> Iterable[Any]:
        if isinstance(data, AsyncIterable):
            raise ConfigError(f"a {type(data).__name__} is async: use achunk() and `async for`")
        if hasattr(data, "read") and not self._cuts_objects:
            return _read(data.read, min(max(self._size, LEAST_READ), MOST_READ))
        if not isinstance(data, Iterable):
            raise ConfigError(f"a {type(data).__name__} has no buffer and is not iterable: it cannot be cut")
        return data

    def _cutter_of(self, first: Any) -> Cutter:
        """What cuts things like this one."""
        if not self._cuts_objects and isinstance(first, _BLOCKS):
            return self._bytes_cutter(text=isinstance(first, str))
        if self._delimiter is not None:
            raise ConfigError(f"delimiter= is of bytes and text; a {type(first).__name__} has none: use boundary=")
        return self._objects_cutter()

    def _wait(self) -> float | None:
        if self.strategy is not ChunkStrategy.TIME_BASED:
            return None
        return MAX_WAIT if self._max_wait is None else self._max_wait

    def _bytes_cutter(self, *, text: bool) -> BytesCutter:
        pace = self._pace()
        rule: Rule
        if self.strategy is ChunkStrategy.CONTENT_BASED:
            rule = ContentRule(self._gear(), b"\n" if text and self._delimiter is None else self._delimiter)
        elif self._delimiter is not None:
            rule = RecordRule(pace, self._delimiter, self._max)
        else:
            rule = SizeRule(pace, text)
        return BytesCutter(rule, pace, text=text, max_wait=self._wait(), clock=self._clock)

    def _objects_cutter(self) -> ObjectsCutter:
        pace, least = self._pace(), 0
        if self.strategy is ChunkStrategy.CONTENT_BASED:
            if self._boundary is None:
                raise ConfigError("CONTENT_BASED chunks of objects need boundary=, a function of two neighbours")
            pace, least = Pace(self._max or MOST_TIMES * self._size, 1, 1), self._min or 0
        weigh = self._weigh
        if weigh is None and not self._in_items:
            from lazystore._core.weigh import weigh as bytes_of

            weigh = bytes_of
        return ObjectsCutter(
            pace, weigh=weigh, boundary=self._boundary, least=least, max_wait=self._wait(), clock=self._clock
        )


async def _timed(source: AsyncIterator[Any], cutter: Cutter) -> AsyncGenerator[Any, None]:
    """The pieces of what is still to come, no later than the cutter wants to give them."""
    import asyncio

    coming: asyncio.Future[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(_step(source))
            await asyncio.wait((coming,), timeout=cutter.left())
            if not coming.done():
                for piece in cutter.flush():
                    yield piece
                continue
            item, coming = coming.result(), None
            if item is _END:
                return
            for piece in cutter.feed(item):
                yield piece
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait((coming,))


async def _step(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)  # StopAsyncIteration could not leave a task


def _read(read: Callable[[int], Any], size: int) -> Iterator[Any]:
    while True:
        block = read(size)
        if block is None:
            raise BlockingIOError("the file does not block and had nothing to read: cut it when it is ready")
        if not block:
            return
        yield block


def _delimiter(given: bytes | str | None) -> bytes | None:
    if given is None:
        return None
    if not isinstance(given, (bytes, str)) or not given:
        raise ConfigError(f"delimiter={given!r} must be bytes or text, at least one byte of it")
    return given.encode() if isinstance(given, str) else given
