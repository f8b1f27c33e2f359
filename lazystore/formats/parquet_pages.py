"""Column chunks of a Parquet row group as far as they were fetched: where their pages are, what those come to decoded.

Page headers are read before pyarrow sees them, so that a page is refused, or fewer rows are decoded at a time, before
it grows. What the pages hold is pyarrow's business. Nothing is fetched here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lazystore._core.parquet_scan import longest_word, scan_page
from lazystore.errors import BudgetTooSmallError, FormatError
from lazystore.formats.arrow_rows import require_pyarrow

__all__ = ["LOOK_BYTES", "ChunkFile", "Column", "ColumnChunk"]

MAX_HEADER = 1 << 20
#: pyarrow looks so far ahead for a page's header.
LOOK_BYTES = 64 << 10
#: Bytes of a value in a list besides its own: its levels, or where it begins.
LEVELS = 4
#: Dictionaries of at most so many bytes are inflated to see how long their words are, if values may stay in them.
LOOKED_INTO = 64 << 10
#: Bytes of a number that stands for a word of a dictionary.
INDEX = 4
CODECS = {0: "", 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}

#: Bytes of the header, stored bytes, inflated bytes, whether it is a dictionary, values, rows, whether it
#: holds words of the dictionary: see scan_page.
Page: TypeAlias = tuple[int, int, int, bool, int, int, bool]


@dataclass(frozen=True, slots=True)
class Column:
    """One leaf of the schema.

    Attributes:
        path: its names, joined by dots.
        repeated: there may be several values a row.
        width: bytes of a value, -1: any number.
        text: pyarrow can leave its values in their dictionary.
    """

    path: str
    repeated: bool
    width: int
    text: bool


class ColumnChunk:
    """One column chunk, of which some bytes are there: from ``begin`` on, without gaps.

    Parameters:
        begin, end: of the chunk in the file.
        words: its values stay in their dictionary; its footer says that all have one.
        codec: number of the pages' codec.
        room: bytes that a page may take, decoded.

    Attributes:
        begin, end, column, words: as given.
        word_bytes: the longest text of its dictionary, where values may be decoded out of it.
        held: bytes that are there.
        inflated: bytes that its dictionary and its longest page inflate to.
        passed: bytes inflated since it was asked.
    """

    def __init__(self, column: Column, begin: int, end: int, *, words: bool, codec: int, room: int) -> None:
        self.column = column
        self.begin, self.end = begin, end
        self.words = words
        self._codec = codec
        self._room = room
        self._whole: list[tuple[int, int, int]] = []  # rows before and after each page passed, what it decodes to
        self._parts: list[tuple[int, memoryview]] = []
        self._page = begin  # where the next page's header is
        self._there = begin  # up to where bytes are there
        self._rows = 0
        self._dictionary = self._longest = self.word_bytes = 0
        self._pages = 0
        self.passed = 0

    @property
    def held(self) -> int:
        return sum(len(data) for _, data in self._parts)

    @property
    def left(self) -> int:
        """Bytes that were not fetched."""
        return self.end - self._there

    @property
    def inflated(self) -> int:
        return 2 * self._dictionary + self._longest

    def missing(self, rows: int, window: int) -> tuple[int, int] | None:
        """What is to be fetched for the pages of rows up to ``rows``: begin and bytes, None for nothing."""
        while self._rows < rows and self._page < self.end:
            page = self._peek()
            if page is None:
                if self._there >= self.end:
                    self._page = self.end  # what some writers leave behind the last page
                    break
                return self._ask(self._there + 1, window)
            end = self._page + page[0] + page[1]
            if end > self.end:
                raise FormatError(f"a page of {page[1]} bytes at {self._page} reaches beyond its column chunk")
            if end > self._there:
                return self._ask(end, window)
            self._pass(page, end)
        ahead = min(self.end, self._page + LOOK_BYTES)
        return self._ask(ahead, window) if ahead > self._there else None

    def further(self, window: int) -> tuple[int, int] | None:
        """What is to be fetched if something is anyway: where less than half a window is ahead; None for nothing."""
        if self._there >= self.end or 2 * (self._there - self._page) >= window:
            return None
        return self._ask(self._there + 1, window)

    def _ask(self, end: int, window: int) -> tuple[int, int]:
        end = min(self.end, max(end + LOOK_BYTES, self._there + window))
        return self._there, end - self._there

    def _pass(self, page: Page, end: int) -> None:
        _, _, inflated, dictionary, values, rows, words = page
        if dictionary:
            self._pass_dictionary(page)
        else:
            self._longest = max(self._longest, inflated)
            if values and self.words and not words:
                raise FormatError("a Parquet page has values of its own, its footer says that all are in a dictionary")
            size = max(inflated, self._listed(values, words))
            first, self._rows = self._rows, self._rows + (rows if rows >= 0 else 0 if self.column.repeated else values)
            self._whole.append((first, self._rows, size))
        self._pages += 1
        self.passed += inflated
        self._page = end

    def _listed(self, values: int, words: bool) -> int:
        """Bytes that a page of lists may decode to, if all of it belongs to one row.

        Raises:
            BudgetTooSmallError: more than there is room for.
        """
        if not self.column.repeated:
            return 0
        width = self.word_bytes if words and not self.words else INDEX if self.words else max(self.column.width, 0)
        size = values * (LEVELS + width)
        if size > self._room:
            raise BudgetTooSmallError(
                f"column {self.column.path!r} has a page of {values} values in lists, which may take {size} bytes, "
                f"{self._room} may be used: give at least {2 * size} bytes, unless the file is damaged",
                needed=size,
            )  # fmt: skip
        return size

    def _pass_dictionary(self, page: Page) -> None:
        header, stored, inflated = page[:3]
        if self._pages:
            raise FormatError("a Parquet column chunk has a dictionary behind other pages")
        if 2 * inflated > self._room:
            raise BudgetTooSmallError(
                f"column {self.column.path!r} has a dictionary of {inflated} bytes, {self._room} may be used: "
                f"give at least {4 * inflated} bytes, unless the file is damaged",
                needed=inflated,
            )  # fmt: skip
        self._dictionary = inflated
        if self.words and inflated > LOOKED_INTO:
            self.word_bytes = inflated  # no word is longer; that will do for values that stay where they are
        elif self.column.width < 0 and not (self.words and self.column.repeated):
            data = self.read(self._page + header, stored)
            self.word_bytes = longest_word(data) if not self._codec else self._longest_inside(data, inflated)

    def _longest_inside(self, data: bytes | memoryview, size: int) -> int:
        pa = require_pyarrow()
        name = CODECS.get(self._codec, "")
        if not name:
            return size  # as good as can be said
        try:
            return longest_word(memoryview(pa.Codec(name).decompress(data, decompressed_size=size)).cast("B"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FormatError(f"a Parquet dictionary cannot be inflated: {error}") from None

    def decoded(self, first: int, end: int) -> int:
        """Bytes that the pages which lie between two rows decode to; what is before ``first`` is forgotten."""
        self._whole = [page for page in self._whole if page[1] > first or page[0] == page[1]]
        return sum(size for begin, behind, size in self._whole if begin >= first and begin < behind <= end)

    def _peek(self) -> Page | None:
        """The next page, None if its header is not there as a whole."""
        if self._page >= self._there:
            return None
        begin, data = next((at, data) for at, data in self._parts if at <= self._page < at + len(data))
        page = scan_page(data[self._page - begin :])
        if page is None and begin + len(data) < self._there:
            page = scan_page(self.read(self._page, min(self._there - self._page, MAX_HEADER)))
        if page is None and self._there - self._page >= MAX_HEADER:
            raise FormatError(f"a Parquet page has a header of more than {MAX_HEADER} bytes")
        return page

    def feed(self, begin: int, data: memoryview) -> None:
        """Bytes that were asked for."""
        self._parts.append((begin, data))
        self._there = begin + len(data)

    def read(self, begin: int, n: int) -> bytes | memoryview:
        """Bytes that are there."""
        found = []
        end = min(begin + n, self.end)
        for at, data in self._parts:
            if at < end and begin < at + len(data):
                found.append(data[max(0, begin - at) : end - at])
        if sum(map(len, found)) != end - begin:
            raise FormatError(f"a column chunk is read at {begin}, where it has no page; the file is damaged")
        return found[0] if len(found) == 1 else b"".join(found)

    def drop(self, before: int) -> None:
        """Let go of what was read."""
        keep = min(before, self._page)
        self._parts = [(at, data) for at, data in self._parts if at + len(data) > keep]


class ChunkFile(io.RawIOBase):
    """What pyarrow takes for the file: only what the chunks hold can be read."""

    def __init__(self, chunks: Sequence[ColumnChunk], nbytes: int) -> None:
        super().__init__()
        self._chunks = chunks
        self._nbytes = nbytes
        self._at = 0
        self._read = {id(chunk): chunk.begin for chunk in chunks}

    def position(self, chunk: ColumnChunk) -> int:
        """Up to where a chunk was read."""
        return self._read[id(chunk)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._nbytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n: int = -1) -> bytes:
        for chunk in self._chunks:
            if chunk.begin <= self._at < chunk.end:
                data = chunk.read(self._at, n)
                self._at += len(data)
                self._read[id(chunk)] = max(self._read[id(chunk)], self._at)
                return bytes(data)
        raise FormatError(f"byte {self._at} is in no column chunk that was asked for; the file is damaged")
