"""Whole-object encodings: what a chunk's stored bytes have to go through before they are the chunk.

A codec opens a forward stream of stored bytes as a forward stream of the chunk's bytes, in bounded memory.
"""

from __future__ import annotations

from typing import Protocol

from lazystore.formats.compression import ByteStream

__all__ = ["Codec", "Inflater"]


class Inflater(Protocol):
    """An opened stream.

    Attributes:
        content_size: bytes it will give, -1 when nobody knows before the end.
        memory: bytes it holds while open (history, tables, buffers), at most.
    """

    content_size: int
    memory: int

    def readinto(self, view: memoryview) -> int:
        """Fill ``view`` as far as the stream goes; less than its length only at the end.

        Raises:
            FormatError: the stream is damaged, or ends early.
        """
        ...


class Codec(Protocol):
    """One encoding.

    Attributes:
        name: as an index calls it ("zstd:4", "gz", "fernet").
        memory: bytes an inflater of it usually holds, where that does not depend on the stream; 0: it does.
    """

    name: str
    memory: int

    def open(self, stream: ByteStream, *, limit: int, stored: int, size: int) -> Inflater:
        """Begin to decode.

        Parameters:
            stream: the stored bytes, from the first; may be peeked at as well (``stream.peek(n)``).
            limit: bytes the inflater may hold.
            stored, size: bytes of the stored object and of the chunk, as the index has them; 0: unknown. More than
                ``size`` bytes, where it is known, are refused: that bounds what a forged stream can do.

        Raises:
            BudgetTooSmallError: it needs more memory than ``limit``; says how much.
            FormatError: not this encoding.
            MissingExtraError: its package is not installed.
        """
        ...
