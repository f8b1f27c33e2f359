"""Codecs of whole chunks: zstd, gzip, bzip2 and Brotli as forward streams, Snappy and decryption in one piece.

Every stream is checked to its very end: what ends early, goes on too long or is followed by other bytes is a
FormatError. Which dataset is encoded how, and what memory there is for it, is decided elsewhere.
"""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

from lazystore.errors import BudgetTooSmallError, FormatError, MissingExtraError, UnsupportedError
from lazystore.formats.codecs import Codec, Inflater
from lazystore.formats.compression import READ_BYTES, ZSTD_HEAD, ZSTD_MAGIC, ByteStream, read_header, require_zstandard

__all__ = ["BrotliCodec", "Bz2Codec", "GzipCodec", "SnappyCodec", "ZstdCodec", "codec_for"]

KIB = 1024
#: Stored bytes given to a decoder at a time that copies what it did not use yet, and bytes taken out at a time.
FEED_BYTES, STEP_BYTES = 64 * KIB, 256 * KIB
#: What decoders keep besides their history: zstd and Brotli their tables and some blocks; zlib all of it.
ZSTD_CONTEXT, ZSTD_BLOCK = 160 * KIB, 128 * KIB
BROTLI_CONTEXT, BROTLI_WINDOW = 512 * KIB, 4096 * KIB
GZIP_MEMORY = 48 * KIB + FEED_BYTES + STEP_BYTES
#: bzip2's largest blocks: a later stream of a file may have larger ones than the first.
BZ2_MEMORY = 4 * 900_000 + 100 * KIB + FEED_BYTES + STEP_BYTES
UNKNOWN = -1

_NAME = re.compile(r"(zstd|gz|bz2|br|snappy)(?::([0-9]{1,2}))?")
_LEVELS = {"zstd": range(1, 23), "gz": range(10), "bz2": range(1, 10), "br": range(12), "snappy": range(0)}


def codec_for(name: str, *, largest: int = 0) -> Codec:
    """The codec of an index's ``compression``.

    Parameters:
        name: ``zstd[:1..22]``, ``gz[:0..9]``, ``bz2[:1..9]``, ``br[:0..11]`` or ``snappy``.
        largest: bytes of the largest chunk, 0: unknown; what is inflated in one piece needs memory for that.

    Raises:
        UnsupportedError: another one.
        MissingExtraError: its package is not installed.
    """
    match = _NAME.fullmatch(name)
    if match is None or (match[2] is not None and int(match[2]) not in _LEVELS[match[1]]):
        raise UnsupportedError(
            f"compression {name!r} is not one lazystore reads (zstd[:1..22], gz[:0..9], bz2[:1..9], br[:0..11], snappy)"
        )
    return SnappyCodec(name, largest) if match[1] == "snappy" else _CODECS[match[1]](name)


class _Forward(ABC):
    """What the forward streams have in common: where they are, and how they have to end.

    Parameters:
        what: the encoding, for messages.
        size: bytes it must give, -1 when it ends where it ends.
        memory: see :class:`~lazystore.formats.codecs.Inflater`.

    Threads: one at a time. Not picklable.
    """

    def __init__(self, what: str, size: int, memory: int) -> None:
        self._what = what
        self.content_size = size
        self.memory = memory
        self.position = 0
        self._checked = False

    @abstractmethod
    def _produce(self, view: memoryview) -> int:
        """At least one of the next bytes, at most ``len(view)`` (> 0); 0 at the end, which was proper."""

    def readinto(self, view: memoryview) -> int:
        """See :class:`~lazystore.formats.codecs.Inflater`."""
        done = 0
        room = len(view) if self.content_size < 0 else min(len(view), self.content_size - self.position)
        while done < room:
            got = self._produce(view[done:room])
            if not got:
                break
            done += got
        self.position += done
        if self.position == self.content_size:
            self._check_end()
        elif done < room and self.content_size >= 0:
            raise FormatError(
                f"its {self._what} stream ends after {self.position} of {self.content_size} bytes; "
                "the file is truncated or not the one that was indexed"
            )
        return done

    def _check_end(self) -> None:
        if not self._checked and self._produce(memoryview(bytearray(1))):
            raise FormatError(
                f"its {self._what} stream goes on after {self.content_size} bytes; "
                "the file is damaged or not the one that was indexed"
            )
        self._checked = True

    def _damaged(self, error: Exception) -> FormatError:
        return FormatError(
            f"the {self._what} stream cannot be inflated after {self.position} bytes ({error}); it is damaged"
        )

    def _cut(self) -> FormatError:
        return FormatError(f"its {self._what} stream ends in the middle, near byte {self.position}; it is truncated")


def _size(size: int, declared: int, what: str) -> int:
    """Bytes a stream must give, out of what the index says (0: nothing) and what it says itself (-1: nothing)."""
    if size and declared > size:
        raise FormatError(
            f"its {what} stream declares {declared} bytes, the index says {size}; "
            "the file is damaged or not the one that was indexed"
        )
    return size or declared


def _within(limit: int, need: int, what: str) -> None:
    if need > limit:
        raise BudgetTooSmallError(
            f"its {what} stream needs {need} bytes of memory to be decoded, {limit} are reserved for that",
            needed=need,
        )


# -- zstd -----------------------------------------------------------------------------------


class _Frames:
    """zstd frames on their way to the decoder, followed from header to header: where they end is known here.

    Format: RFC 8878, 3.1. Memory: a header. Cost: some 100 ns a block of up to 128 KiB.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._walk = self._follow()
        self._held = b""
        self._wanted = next(self._walk)
        self.position = 0
        self.between = True

    def read(self, n: int = -1, /) -> bytes:
        data = self._stream.read(n)
        at, end = 0, len(data)
        while at < end:
            if self._wanted < 0:  # a body
                step = min(-self._wanted, end - at)
                self._wanted += step
            else:  # a header, perhaps in pieces
                step = min(self._wanted - len(self._held), end - at)
                self._held += data[at : at + step]
            at += step
            self.position += step
            if self._wanted == len(self._held):
                header, self._held = self._held, b""
                self._wanted = self._walk.send(header)
        return data

    def _follow(self) -> Generator[int, bytes, None]:
        """Yields how long the next header is, or minus the length of a body to pass; is sent the header."""
        while True:
            self.between = True
            magic = yield 4
            self.between = False
            if magic == ZSTD_MAGIC:
                yield from self._frame()
            elif magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:  # skippable
                length = int.from_bytes((yield 4), "little")
                if length:
                    yield -length
            else:
                raise FormatError(
                    f"at byte {self.position - 4} of its stored bytes stands no zstd frame; it is damaged"
                )

    def _frame(self) -> Generator[int, bytes, None]:
        descriptor = (yield 1)[0]
        single = descriptor >> 5 & 1
        fields = (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
        if fields:
            yield -fields
        last = 0
        while not last:
            block = int.from_bytes((yield 3), "little")
            last, kind, length = block & 1, block >> 1 & 3, block >> 3
            if kind == 1:
                length = 1  # one byte, repeated
            if length:
                yield -length
        if descriptor & 4:
            yield -4


class _Zstd(_Forward):
    def __init__(self, stream: ByteStream, size: int, window: int, limit: int, what: str) -> None:
        zstandard = require_zstandard()
        super().__init__(what, size, window + ZSTD_CONTEXT + 2 * min(window, ZSTD_BLOCK))
        self._frames = _Frames(stream)
        self._error = zstandard.ZstdError
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(limit, 1 << 10))
        self._reader = decompressor.stream_reader(self._frames, read_size=READ_BYTES, read_across_frames=True)

    def _produce(self, view: memoryview) -> int:
        try:
            got = int(self._reader.readinto(view))
        except self._error as error:
            raise self._damaged(error) from error
        if not got and not self._frames.between:
            raise self._cut()
        return got


class ZstdCodec:
    """Zstandard, one frame or several (RFC 8878).

    Memory: the window a frame asks for, at most ``limit``, and 416 KiB; ``Inflater.memory`` goes by the first frame.
    """

    memory = 0

    def __init__(self, name: str) -> None:
        require_zstandard()
        self.name = name

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        header = read_header(stream.peek(ZSTD_HEAD))
        _within(limit, header.window, self.name)
        return _Zstd(stream, _size(size, header.content_size, self.name), header.window, limit, self.name)


# -- gzip and bzip2 -------------------------------------------------------------------------


class _Members(_Forward):
    """Streams of the standard library's decoders, one after another until the stored bytes end."""

    _errors: tuple[type[Exception], ...]

    def __init__(self, stream: ByteStream, size: int, what: str, memory: int, decoder: Callable[[], Any]) -> None:
        super().__init__(what, size, memory)
        self._stream = stream
        self._new = decoder
        self._decoder = decoder()
        self._fed = self._next()

    def _produce(self, view: memoryview) -> int:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._fed or self._next()
                if not rest:
                    return 0
                self._decoder, self._fed = self._new(), rest
            data = self._inflate(min(len(view), STEP_BYTES))
            if data:
                view[: len(data)] = data
                return len(data)

    @abstractmethod
    def _inflate(self, room: int) -> bytes:
        """At most ``room`` bytes; b"" when the decoder came to its end, or wants another turn."""

    def _next(self) -> bytes:
        return self._stream.read(FEED_BYTES)

    def _decompress(self, fed: bytes, room: int) -> bytes:
        try:
            return bytes(self._decoder.decompress(fed, room))
        except self._errors as error:
            raise self._damaged(error) from error


class _Gzip(_Members):
    _errors = (zlib.error,)

    def _inflate(self, room: int) -> bytes:
        if not self._fed:
            self._fed = self._next()
            if not self._fed:
                raise self._cut()
        data = self._decompress(self._fed, room)
        self._fed = self._decoder.unconsumed_tail
        return data


class _Bz2(_Members):
    _errors = (OSError, ValueError, EOFError)

    def _inflate(self, room: int) -> bytes:
        if self._decoder.needs_input and not self._fed:
            self._fed = self._next()
            if not self._fed:
                raise self._cut()
        fed, self._fed = self._fed, b""
        return self._decompress(fed, room)


class GzipCodec:
    """gzip, one member or several (RFC 1952). Memory: 368 KiB."""

    memory = GZIP_MEMORY

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        if stream.peek(2) != b"\x1f\x8b":
            raise FormatError("it does not begin with a gzip member; it is damaged or another file")
        _within(limit, GZIP_MEMORY, self.name)
        return _Gzip(stream, size or UNKNOWN, self.name, GZIP_MEMORY, lambda: zlib.decompressobj(wbits=31))


class Bz2Codec:
    """bzip2, one stream or several. Memory: 3.9 MiB."""

    memory = BZ2_MEMORY

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        import bz2  # not every Python is built with it

        head = stream.peek(4)
        if head[:3] != b"BZh" or head[3:] not in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"):
            raise FormatError("it does not begin with a bzip2 stream; it is damaged or another file")
        _within(limit, BZ2_MEMORY, self.name)
        return _Bz2(stream, size or UNKNOWN, self.name, BZ2_MEMORY, bz2.BZ2Decompressor)


# -- Brotli ---------------------------------------------------------------------------------


def brotli_window(first: int) -> int:
    """Bytes of history of a Brotli stream by its first byte (RFC 7932, 9.1); 0 for what no stream begins with."""
    if not first & 1:
        bits = 16
    elif first >> 1 & 7:
        bits = 17 + (first >> 1 & 7)
    else:
        low = first >> 4 & 7
        bits = 17 if low == 0 else 0 if low == 1 else 8 + low
    return 1 << bits if bits else 0


class _Brotli(_Forward):
    def __init__(self, stream: ByteStream, size: int, window: int, what: str, brotli: Any) -> None:
        super().__init__(what, size, window + window // 2 + BROTLI_CONTEXT)
        self._stream = stream
        self._decoder = brotli.Decompressor()
        self._error = brotli.error
        self._out = memoryview(b"")
        self._dry = True

    def _produce(self, view: memoryview) -> int:
        while not self._out:
            if self._decoder.is_finished():
                if self._stream.read(1):
                    raise FormatError(f"other bytes follow its {self._what} stream; it is damaged")
                return 0
            # What came last may not be all that the bytes fed so far hold, whether it takes more of them or not.
            fed = self._stream.read(FEED_BYTES) if self._dry and self._decoder.can_accept_more_data() else b""
            if self._dry and not fed and self._decoder.can_accept_more_data():
                raise self._cut()
            try:
                self._out = memoryview(self._decoder.process(fed, output_buffer_limit=min(len(view), STEP_BYTES)))
            except self._error as error:
                raise self._damaged(error) from error
            self._dry = not self._out
        taken = self._out[: len(view)]  # the decoder may give more than was asked for
        view[: len(taken)] = taken
        self._out = self._out[len(taken) :]
        return len(taken)


class BrotliCodec:
    """Brotli (RFC 7932), by the ``brotli`` package.

    Memory: 1.5 windows of the stream (a window is 4 MiB as a rule, and at most 16), and 512 KiB.
    """

    memory = BROTLI_WINDOW + BROTLI_WINDOW // 2 + BROTLI_CONTEXT

    def __init__(self, name: str) -> None:
        self._brotli = _package("brotli", "mds")
        if not hasattr(self._brotli.Decompressor, "can_accept_more_data"):
            raise MissingExtraError(
                "brotli before 1.2 cannot inflate in bounded memory; pip install lazystore[mds] --upgrade"
            )
        self.name = name

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        head = stream.peek(1)
        window = brotli_window(head[0]) if head else 0
        if not window:
            raise FormatError("it does not begin with a Brotli stream; it is damaged or another file")
        _within(limit, window + window // 2 + BROTLI_CONTEXT, self.name)
        return _Brotli(stream, size or UNKNOWN, window, self.name, self._brotli)


# -- in one piece ---------------------------------------------------------------------------


class _Whole(_Forward):
    def __init__(self, data: bytes | bytearray | memoryview, what: str, memory: int) -> None:
        super().__init__(what, len(data), memory)
        self._data = memoryview(data)

    def _produce(self, view: memoryview) -> int:
        part = self._data[self.position : self.position + len(view)]
        view[: len(part)] = part
        return len(part)

    def _check_end(self) -> None:
        """Its end was checked when it was made."""


def _read_whole(stream: ByteStream, most: int) -> bytearray:
    """All stored bytes, or ``most + 1`` of them."""
    data = bytearray()
    while len(data) <= most:
        piece = stream.read(min(most + 1 - len(data), READ_BYTES))
        if not piece:
            break
        data += piece
    return data


class SnappyCodec:
    """One raw Snappy block, as MosaicML writes it (no framing), by the ``cramjam`` package.

    Parameters:
        largest: bytes of the largest chunk, 0: unknown.

    Memory: stored bytes and inflated bytes at once, at most ``limit``, and 512 KiB.
    """

    def __init__(self, name: str, largest: int = 0) -> None:
        self._snappy = _package("cramjam", "mds").snappy
        self.name = name
        self.memory = largest + _snappy_longest(largest) + READ_BYTES

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        length = _size(size, _snappy_length(stream.peek(5)), self.name)
        longest = _snappy_longest(length)
        _within(limit, length + min(stored or longest, longest) + READ_BYTES, self.name)
        data = _read_whole(stream, longest)
        if len(data) > longest or _snappy_length(data[:5]) != length:
            raise FormatError(f"its snappy block is not one of {length} bytes; it is damaged or not the one indexed")
        out = bytearray(length)
        try:
            got = self._snappy.decompress_raw_into(data, memoryview(out)) if length else len(data) - 1
        except Exception as error:
            if type(error).__name__ != "DecompressionError":
                raise
            raise FormatError(f"its snappy block cannot be inflated ({error}); it is damaged") from error
        if got != length:
            raise FormatError(f"its snappy block holds {got} bytes, its head says {length}; it is damaged")
        return _Whole(out, self.name, len(out))


def _snappy_longest(length: int) -> int:
    """Stored bytes that no block of so many bytes exceeds, by the encoder's own bound."""
    return 32 + length + length // 6


def _snappy_length(head: bytes | bytearray) -> int:
    """The number a block begins with: seven bits a byte, the lowest first, at most 32."""
    value = 0
    for i, byte in enumerate(head[:5]):
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            if value >> 32:
                break
            return value
    raise FormatError("it does not begin with a snappy block; it is damaged or another file")


def _package(name: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(
            f"this dataset's compression needs the package {name}; pip install lazystore[{extra}]"
        ) from None


_CODECS: dict[str, Callable[[str], Codec]] = {
    "zstd": ZstdCodec,
    "gz": GzipCodec,
    "bz2": Bz2Codec,
    "br": BrotliCodec,
}
