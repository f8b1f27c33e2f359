"""Items to the bytes of a chunk file: LitData's classic layout, framed zstd, zstd by sample, whole-file zstd.

Pure: no files, and no decision which items go together (that is ``shard_writer``'s). Classic:
``u32 n | u32 offset[n+1] (absolute) | items``. Framed (LitData 0.2.74 and later): a directory, then one zstd
frame for each ``compression_batch_size`` items. The order of steps is the format's: items, chunk, encryption, file.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from array import array
from collections.abc import Generator, Iterator
from itertools import accumulate
from typing import Any, TypeAlias

from lazystore._core.encode import ItemBuffer
from lazystore.errors import FormatError, MissingExtraError
from lazystore.formats.write_settings import Encrypting, WriteSettings, zstd_level

__all__ = ["MAX_CHUNK_BYTES", "PACKED_EMPTY", "PACKED_ITEM", "Packer", "Piece"]

#: Offsets inside a chunk are u32.
MAX_CHUNK_BYTES = (1 << 32) - 1
#: Bytes of a classic chunk: of one without items, and what each item adds to its own bytes.
PACKED_EMPTY = 8
PACKED_ITEM = 4
FRAMED_MAGIC = b"LDFZ01\0\0"
_FRAMED_HEAD = struct.Struct("<8sHHIII")
_FRAME = struct.Struct("<IIQII")
#: Bytes handed on at a time.
PIECE_BYTES = 1 << 20

Piece: TypeAlias = "bytes | memoryview"


class Packer:
    """Chunks of one dataset.

    Parameters:
        settings: compression and encryption.

    Raises:
        MissingExtraError: compression without the ``zstd`` extra.

    Deterministic for one release of the zstd library. Threads: one at a time. Pickling: none.
    """

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._zstd: Any = None
        if settings.compression is not None:
            self._zstd = _compressor(settings.compression)

    @property
    def suffix(self) -> str:
        """The end of a chunk's file name."""
        settings = self._settings
        whole = settings.compression is not None and not settings.in_file
        return f".{settings.compression}.bin" if whole else ".bin"

    def worst(self, nbytes: int) -> int:
        """The most bytes an item of ``nbytes`` takes in a chunk: incompressible ones grow a little."""
        if self._settings.in_file and self._settings.compression_level == "sample":
            return nbytes + (nbytes >> 7) + 64
        return nbytes

    def seal(self, item: bytes, number: int) -> bytes:
        """An item's bytes as they are packed: encrypted, where that is asked for by sample.

        Raises:
            FormatError: the encryption cannot take it; names the sample.
        """
        encryption = self._settings.encryption
        if encryption is None or encryption.level != "sample":
            return item
        return _encrypted(encryption, item, f"sample {number}: its")

    @contextlib.contextmanager
    def packed(self, items: ItemBuffer) -> Iterator[tuple[int, Iterator[Piece]]]:
        """A chunk's length as the index has it (before whole-file compression), and its file in pieces.

        Holds, besides the items, their compressed or encrypted form; plain chunks are not copied. A piece may be a
        view of the items: it is good until the next one is asked for, and none outlives the ``with`` block.

        Raises:
            FormatError: the chunk cannot be encrypted.
        """
        settings = self._settings
        with memoryview(items) as body, contextlib.ExitStack() as stack:
            parts = self._parts(items, body)
            if settings.encryption is not None and settings.encryption.level == "chunk":
                parts = [_encrypted(settings.encryption, b"".join(parts), "a chunk of")]
            size = sum(map(len, parts))
            plain = stack.enter_context(contextlib.closing(_pieces(parts)))
            if settings.compression is not None and not settings.in_file:
                yield size, stack.enter_context(contextlib.closing(self._deflated(plain, size)))
            else:
                yield size, plain

    def _parts(self, items: ItemBuffer, body: memoryview) -> list[Piece]:
        settings = self._settings
        if not settings.in_file:
            return [_head(len(items)), items.offsets(PACKED_EMPTY + PACKED_ITEM * len(items)), body]
        return self._framed(items, body) if settings.compression_level == "batch" else self._sampled(items, body)

    def _deflated(self, pieces: Iterator[Piece], size: int) -> Generator[Piece, None, None]:
        """One frame; it states its content size, which LitData's decompressor wants."""
        frame = self._zstd.compressobj(size=size)
        for piece in pieces:
            yield frame.compress(piece)
        yield frame.flush()

    def _framed(self, items: ItemBuffer, body: memoryview) -> list[Piece]:
        count, step = len(items), self._settings.compression_batch_size
        firsts = range(0, count, step)
        at = _FRAMED_HEAD.size + 4 * (count + 1) + _FRAME.size * len(firsts)
        directory: list[Piece] = []
        frames: list[Piece] = []
        for first in firsts:
            begin, end = items.span(first, min(first + step, count))
            frame = self._zstd.compress(body[begin:end])
            directory.append(_FRAME.pack(first, min(step, count - first), at, len(frame), end - begin))
            frames.append(frame)
            at += len(frame)
        head = _FRAMED_HEAD.pack(FRAMED_MAGIC, 1, 0, count, step, len(firsts))
        return [head, items.offsets(), *directory, *frames]

    def _sampled(self, items: ItemBuffer, body: memoryview) -> list[Piece]:
        count = len(items)
        frames: list[Piece] = []
        for i in range(count):
            begin, end = items.span(i, i + 1)
            frames.append(self._zstd.compress(body[begin:end]))
        ends = array("I", accumulate(map(len, frames), initial=PACKED_EMPTY + PACKED_ITEM * count))
        if sys.byteorder == "big":
            ends.byteswap()
        return [_head(count), ends.tobytes(), *frames]


def _head(count: int) -> bytes:
    return struct.pack("<I", count)


def _encrypted(encryption: Encrypting, data: bytes, what: str) -> bytes:
    try:
        return bytes(encryption.encrypt(data))
    except ValueError as error:
        reason = f"{what} {len(data)} bytes cannot be encrypted with {encryption.algorithm}: {error}"
        raise FormatError(reason) from error


def _pieces(parts: list[Piece]) -> Generator[Piece, None, None]:
    """Pieces large enough to be worth a call each, and small enough to stay in the cache from digest to disk."""
    small: list[Piece] = []
    nbytes = 0
    for part in parts:
        if nbytes + len(part) <= PIECE_BYTES:
            small.append(part)
            nbytes += len(part)
            continue
        yield b"".join(small)
        small, nbytes = [], 0
        with memoryview(part) as whole:
            for begin in range(0, len(whole), PIECE_BYTES):
                with whole[begin : begin + PIECE_BYTES] as piece:
                    yield piece
    yield b"".join(small)


def _compressor(compression: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError(f"{compression=} needs the zstandard package: pip install lazystore[zstd]") from None
    return zstandard.ZstdCompressor(level=zstd_level(compression), write_content_size=True)
