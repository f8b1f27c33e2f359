"""gzip and zstd streams that are pushed: stored bytes in, pieces of text out, each of bounded length.

For readers that cannot wait for their next bytes (runs of :class:`~lazystore.formats.format.Images`). Streams that are
pulled, and belong to chunks of known length, are in ``stream_codecs.py``.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError
from lazystore.formats.compression import read_header, require_zstandard

__all__ = ["CODECS", "GzipStream", "TextStream", "ZstdStream", "open_stream"]

KIB = 1024
#: Bytes of text in a piece at most: those of a zstd block (RFC 8878, 3.1.1.2.4).
PIECE_BYTES = 128 * KIB
#: Stored bytes inflated at a time: zlib copies what it did not come to.
FEED_BYTES = 64 * KIB
#: What zlib holds, and what zstd does besides its window.
GZIP_MEMORY, ZSTD_CONTEXT = 64 * KIB, 512 * KIB
ZSTD_MAGIC, SKIPPABLE_MAGIC, SKIPPABLE_MASK = 0xFD2FB528, 0x184D2A50, 0xFFFFFFF0
#: Block types (RFC 8878, 3.1.1.2.2).
RLE, RESERVED = 1, 3


class TextStream(ABC):
    """A compressed text, from its first byte to its last.

    Attributes:
        memory: bytes it holds, or held at most so far, besides what it was given and what it gives.

    Threads: one at a time. Not picklable.
    """

    memory = 0

    @abstractmethod
    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The text that the next stored bytes give, in pieces of at most 128 KiB.

        Raises:
            FormatError: the stream is damaged.
            BudgetTooSmallError: it needs more memory than it may have.
        """

    @abstractmethod
    def end(self) -> None:
        """There are no more stored bytes.

        Raises:
            FormatError: there should be.
        """


class GzipStream(TextStream):
    """A gzip file: members one after another, zero padding after the last (RFC 1952)."""

    memory = GZIP_MEMORY

    def __init__(self, limit: int = 0) -> None:
        self._member: Any = None
        self._begun = False
        self._padded = False

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        view = memoryview(data)
        for begin in range(0, len(view), FEED_BYTES):
            yield from self._slice(bytes(view[begin : begin + FEED_BYTES]))

    def _slice(self, data: bytes) -> Iterator[bytes]:
        full = False  # as much came out as was asked for: there may be more without another byte going in
        while data or full:
            if self._member is None:
                if self._begun and data[:1] == b"\0":
                    self._padded = True
                if self._padded:
                    data = data.lstrip(b"\0")
                    if data:
                        raise FormatError("the gzip stream is followed by bytes that are none of it")
                    return
                self._member = zlib.decompressobj(wbits=31)
                self._begun = True
            try:
                piece = self._member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise FormatError(f"the gzip stream cannot be inflated ({error}); it is damaged") from None
            full = len(piece) == PIECE_BYTES
            data = self._member.unconsumed_tail
            if self._member.eof:
                data, full = self._member.unused_data, False
                self._member = None
            if piece:
                yield piece

    def end(self) -> None:
        if self._member is not None:
            raise FormatError("the gzip stream ends early; the file is truncated")


class ZstdStream(TextStream):
    """A zstd file: frames one after another, skippable ones passed by (RFC 8878).

    Parameters:
        limit: bytes it may hold, the window included.

    Blocks are told apart here and given to zstd one by one, which bounds what comes out of a step, and shows where the
    stream ends.
    """

    def __init__(self, limit: int) -> None:
        self._zstd = require_zstandard()
        self._limit = limit
        self._pending = bytearray()
        self._frame: Any = None
        self._checksum = False
        self._skip = 0
        self._closing = 0  # bytes of the checksum that are due, after the last block
        self.memory = ZSTD_CONTEXT

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        view = memoryview(data)
        for begin in range(0, len(view), FEED_BYTES):
            self._pending += view[begin : begin + FEED_BYTES]
            while unit := self._unit():
                if self._frame is None:
                    continue  # a skippable frame's
                yield from self._inflate(unit)

    def end(self) -> None:
        if self._frame is not None or self._pending or self._skip:
            raise FormatError("the zstd stream ends early; the file is truncated")

    def _inflate(self, unit: bytes) -> Iterator[bytes]:
        try:
            piece = self._frame.decompress(unit)
        except self._zstd.ZstdError as error:
            raise FormatError(f"the zstd stream cannot be inflated ({error}); it is damaged") from None
        if self._closing < 0:
            if not self._frame.eof:
                raise FormatError("a zstd frame has more to it than its blocks; it is damaged")
            self._frame = None
            self._closing = 0
        if piece:
            yield piece

    def _unit(self) -> bytes:
        """The next header, block or checksum; b"" until it is complete."""
        if self._skip:
            return self._take(min(self._skip, len(self._pending)), skipped=True)
        if self._frame is None:
            return self._frame_header()
        if self._closing:
            unit = self._take(self._closing)
            if unit:
                self._closing = -1
            return unit
        return self._block()

    def _take(self, n: int, *, skipped: bool = False) -> bytes:
        if not n or len(self._pending) < n:
            return b""
        if skipped:
            self._skip -= n
        unit = bytes(memoryview(self._pending)[:n])
        del self._pending[:n]
        return unit

    def _block(self) -> bytes:
        if len(self._pending) < 3:
            return b""
        header = int.from_bytes(self._pending[:3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        stored = 1 if kind == RLE else size
        if kind == RESERVED or size > PIECE_BYTES:
            raise FormatError("the zstd stream has a block that no encoder writes; it is damaged")
        unit = self._take(3 + stored)
        if unit and last:
            self._closing = 4 if self._checksum else -1
        return unit

    def _frame_header(self) -> bytes:
        if len(self._pending) < 5:
            return b""
        magic, descriptor = int.from_bytes(self._pending[:4], "little"), self._pending[4]
        if magic & SKIPPABLE_MASK == SKIPPABLE_MAGIC:
            if len(self._pending) < 8:
                return b""
            self._skip = int.from_bytes(self._pending[4:8], "little")
            return self._take(8)
        if magic != ZSTD_MAGIC:
            raise FormatError("it is not a zstd stream, or is followed by other bytes")
        single = descriptor >> 5 & 1
        size = 6 - single + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
        if len(self._pending) < size:
            return b""
        if descriptor & 3 and any(self._pending[6 - single : 6 - single + (0, 1, 2, 4)[descriptor & 3]]):
            raise UnsupportedError("it is zstd with a dictionary, which lazystore has not")
        header = self._take(size)
        # What is announced as one piece needs no window beyond its own length.
        window = read_header(header + bytes(18 - len(header))).window
        if window + ZSTD_CONTEXT > self._limit:
            raise BudgetTooSmallError(
                f"inflating it needs a zstd window of {window} bytes, there are {self._limit}: give a larger memory="
            )
        self.memory = max(self.memory, window + ZSTD_CONTEXT)
        self._checksum = bool(descriptor >> 2 & 1)
        self._frame = self._zstd.ZstdDecompressor(max_window_size=max(window, KIB)).decompressobj()
        return header


#: Ends of file names, and what they are compressed with.
CODECS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}


def open_stream(codec: str, limit: int) -> TextStream:
    """A new stream.

    Parameters:
        codec: "gzip" or "zstd".
        limit: bytes it may hold.

    Raises:
        MissingExtraError: its package is not installed.
    """
    return GzipStream(limit) if codec == "gzip" else ZstdStream(limit)
