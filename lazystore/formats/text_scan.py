"""Reading a text from its beginning: its pieces in order, and the items cut out of them, in bounded memory.

What items are is :class:`TextRules`; where they begin is found by :class:`~lazystore._core.lines.LineScanner`. What is
remembered about a text is in ``text_index.py``.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from lazystore._core.fields import RecordReader
from lazystore._core.lines import LineScanner
from lazystore.errors import BudgetTooSmallError, FormatError
from lazystore.fetch.source import Flight, Read, Source
from lazystore.formats.text_inflate import open_stream

__all__ = ["BLOCK_BYTES", "BLOCK_ITEMS", "MAX_HEAD", "Cutter", "TextReader", "TextRules", "header_names", "read_pieces"]

#: A text cut in passing, and a compressed one, has blocks of about so many bytes, and at most so many items.
BLOCK_BYTES, BLOCK_ITEMS = 256 << 10, 1 << 16
#: Bytes read at a time, and how many such reads are under way where that is far.
PIECE_BYTES, FLIGHTS = 1 << 20, 8
#: A header line has at most so many bytes.
MAX_HEAD = 1 << 20
BOM = b"\xef\xbb\xbf"
OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class TextRules:
    """What the items of a text are.

    Attributes:
        kind, delimiter, quote: as :class:`~lazystore._core.lines.LineScanner` takes them.
        header: the first record names the fields.
        codec: what the file is compressed with ("gzip", "zstd"), or "".
    """

    kind: str
    delimiter: bytes = b","
    quote: bytes = b'"'
    header: bool = False
    codec: str = ""

    def scanner(self, target: int, limit: int) -> LineScanner:
        """A scanner for one text."""
        return LineScanner(
            self.kind, target=target, limit=limit, skip=int(self.header), delimiter=self.delimiter, quote=self.quote
        )

    @property
    def signature(self) -> str:
        """Two texts with the same signature and bytes have the same items."""
        return f"{self.kind} {self.delimiter.hex()} {self.quote.hex()} {self.header:d} {self.codec}"


def header_names(head: bytes, rules: TextRules) -> tuple[str, ...]:
    """The fields' names, from the bytes before the first item.

    Raises:
        FormatError: a name occurs twice, or it is no header.
    """
    record = head.removeprefix(BOM).lstrip(b"\r\n")
    if not record:
        return ()
    try:
        names = tuple(RecordReader((), delimiter=rules.delimiter, quote=rules.quote).fields(record))
    except UnicodeDecodeError as error:
        raise FormatError(f"the header is not UTF-8 ({error}); convert the file") from None
    if b"\r" in record.rstrip(b"\r\n") and not (rules.quote and rules.quote in record):
        raise FormatError(
            "the header has carriage returns that end no line: convert the file's line ends to LF or CRLF"
        )
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise FormatError(f"the header has the name {sorted(double)[0]!r} more than once; pass header=[names]")
    return names


def read_pieces(source: Source, name: str, *, timeout: float, room: int) -> Generator[memoryview, None, None]:
    """A stored object's bytes in order; each piece is good until the next is asked for.

    Parameters:
        room: bytes that may be held.
    """
    size = source.run([], stat=[name], timeout=timeout)[name]
    piece = max(1, min(PIECE_BYTES, room, size))
    if source.local:
        buffer = memoryview(bytearray(piece))
        for begin in range(0, size, piece):
            view = buffer[: min(piece, size - begin)]
            source.run([Read(name, begin, view)], timeout=timeout)
            yield view
        return
    begins = iter(range(0, size, piece))
    under_way: deque[tuple[Flight, Read]] = deque()
    try:
        while True:
            while len(under_way) < max(1, min(FLIGHTS, room // piece)) and (begin := next(begins, -1)) >= 0:
                read = Read(name, begin, memoryview(bytearray(min(piece, size - begin))))
                under_way.append((source.start([read], timeout=timeout), read))
            if not under_way:
                return
            flight, read = under_way.popleft()
            try:
                flight.result()
            except BaseException:
                flight.cancel()
                raise
            yield read.view
    finally:
        for flight, _ in under_way:
            flight.cancel()


class TextReader:
    """A text from its beginning, inflated.

    Parameters:
        room: bytes it may hold: a quarter for what is read, the rest for inflating.

    Attributes:
        stored: stored bytes read so far.
        memory: bytes that inflating takes, at most so far; 0 for a plain text.

    Threads: one. Not picklable.
    """

    def __init__(self, source: Source, name: str, rules: TextRules, *, timeout: float, room: int) -> None:
        self._pieces = read_pieces(source, name, timeout=timeout, room=room // 4)
        self._stream = open_stream(rules.codec, room - room // 4) if rules.codec else None
        self._first = b""
        self.stored = 0

    @property
    def memory(self) -> int:
        return 0 if self._stream is None else self._stream.memory

    def pieces(self) -> Generator[bytes | memoryview, None, None]:
        """The text's bytes; each piece is good until the next is asked for.

        Raises:
            FormatError: a damaged stream; or UTF-16, which is refused.
        """
        with contextlib.closing(self._pieces):
            for stored in self._pieces:
                self.stored += len(stored)
                if self._stream is None:
                    self._look(stored)
                    yield stored
                    continue
                for piece in self._stream.feed(stored):
                    self._look(piece)
                    yield piece
        if self._stream is not None:
            self._stream.end()

    def _look(self, piece: bytes | memoryview) -> None:
        if len(self._first) < 2:
            self._first += bytes(piece[:2])
            if self._first[:2] in OTHER_MARKS:
                raise FormatError("the text is UTF-16; convert it to UTF-8")


class Cutter:
    """Cuts a text that is fed to it into blocks of items, each with its offset table.

    Parameters:
        rules: what an item is.
        room: bytes it may hold; an item must fit.

    Attributes:
        head: the bytes before the first item, once they are known: byte order mark, header.

    Memory: the block under way and the last piece. Threads: one. Not picklable.
    """

    def __init__(self, rules: TextRules, room: int) -> None:
        self._scanner = rules.scanner(BLOCK_BYTES, BLOCK_ITEMS)
        self._room = room
        self._held = bytearray()
        self._begin = 0  # where in the text the held bytes begin
        self.head: bytes | None = None

    def feed(self, piece: bytes | memoryview) -> Iterator[tuple[bytes, int, bytes]]:
        """``(table, begin, bytes)`` of the blocks that are complete: where in the text each begins.

        Raises:
            FormatError: a header beyond 1 MiB.
            BudgetTooSmallError: an item that is larger than the room.
        """
        view = memoryview(piece)
        while len(view):
            n = self._scanner.scan(view)
            self._held += view[:n]
            view = view[n:]
            self._see_head()
            if self._scanner.ready:
                yield self._block()
        if len(self._held) > self._room:
            raise BudgetTooSmallError(
                f"the item after byte {self._begin} of the text has more than {self._room} bytes: give a larger memory="
            )

    def finish(self) -> Iterator[tuple[bytes, int, bytes]]:
        """The last block, if there is one."""
        self._scanner.finish()
        self._see_head()
        if self._scanner.ready:
            yield self._block()

    def _see_head(self) -> None:
        if self.head is None:
            if self._scanner.lead >= 0:
                self.head = bytes(self._held[: self._scanner.lead])
                self._drop(self._scanner.lead)
            elif len(self._held) > MAX_HEAD:
                raise FormatError(f"there is no item in the first {MAX_HEAD} bytes, only blank lines or a header")

    def _block(self) -> tuple[bytes, int, bytes]:
        table, begin, nbytes, _ = self._scanner.take()
        at = begin - self._begin
        data = bytes(memoryview(self._held)[at : at + nbytes])
        self._drop(at + nbytes)
        return table, begin, data

    def _drop(self, n: int) -> None:
        del self._held[:n]
        self._begin += n
