"""Compressed chunks: one open stream, inflated forward part by part.

A compressed chunk has no random access; a part behind the stream's position means
starting over. The stream's history window is reserved from the budget by whoever makes it.
"""

from __future__ import annotations

from lazystore.cache.flight import Deadline
from lazystore.errors import BudgetTooSmallError, FormatError
from lazystore.fetch.source import Read, Source
from lazystore.formats.compression import ZstdInflater, read_header

__all__ = ["ChunkInflater", "ObjectStream"]

LOCAL_PIECE = 256 * 1024
#: A compressed dataset's budget is at least this many windows.
WINDOW_SHARE = 4
HEAD = 18  # bytes a zstd frame header may have
REMOTE_PIECE = 4 * 1024 * 1024


class ObjectStream:
    """One stored object as a forward stream of bytes; what :class:`ZstdInflater` reads from.

    Parameters:
        source, name: the object.
        size: its length in bytes.
        piece: bytes a request.
    """

    def __init__(self, source: Source, name: str, size: int, *, piece: int) -> None:
        self._source = source
        self._name = name
        self._size = size
        self._piece = piece
        self._position = 0
        self._buffer = memoryview(b"")
        self.deadline = Deadline(0)

    def peek(self) -> bytes:
        """The next bytes without taking them: at least a zstd header's worth, unless the object ends."""
        self._refill()
        return bytes(self._buffer[:HEAD])

    def read(self, n: int = -1) -> bytes:
        """At most ``n`` bytes (all that is buffered for -1); b"" at the end of the object."""
        self._refill()
        taken = self._buffer[: n if n >= 0 else None]
        self._buffer = self._buffer[len(taken) :]
        return bytes(taken)

    def _refill(self) -> None:
        if not len(self._buffer) and self._position < self._size:
            piece = memoryview(bytearray(min(self._piece, self._size - self._position)))
            read = Read(self._name, self._position, piece)
            self._source.run([read], timeout=self.deadline.left())
            self._position += len(piece)
            self._buffer = piece


class ChunkInflater:
    """Inflates one chunk forward, a part at a time.

    Parameters:
        source, name: the compressed object.
        size: its length in bytes.
        max_window: bytes of history allowed.
        deadline: when opening must be done.

    Raises:
        BudgetTooSmallError: the stream needs more history; the message says what memory would do.

    Threads: one at a time (the memory holds a lock). Fork: dropped in the child. Pickling: none.
    """

    def __init__(self, source: Source, name: str, size: int, *, max_window: int, deadline: Deadline) -> None:
        self._stream = ObjectStream(source, name, size, piece=LOCAL_PIECE if source.local else min(REMOTE_PIECE, size))
        self._stream.deadline = deadline
        self.header = read_header(self._stream.peek())
        if self.header.window > max_window:
            raise BudgetTooSmallError(
                f"its zstd stream needs {self.header.window} bytes of history, {max_window} are reserved; "
                f"give memory={WINDOW_SHARE * self.header.window} bytes or more"
            )
        self._inflater = ZstdInflater(self._stream, max_window=max_window)

    @property
    def position(self) -> int:
        """Inflated bytes produced so far."""
        return self._inflater.position

    def read_some(self, view: memoryview, deadline: Deadline) -> int:
        """Fill ``view`` as far as the stream goes; returns the bytes produced."""
        self._stream.deadline = deadline
        return self._inflater.readinto(view)

    def readinto(self, view: memoryview, deadline: Deadline) -> None:
        """Produce exactly the next ``len(view)`` inflated bytes.

        Raises:
            FormatError: the stream ends early or is damaged.
        """
        got = self.read_some(view, deadline)
        if got != len(view):
            raise FormatError(f"its compressed stream ends after {self.position} bytes; the file is truncated")

    def skip(self, nbytes: int, deadline: Deadline) -> None:
        """Produce and throw away."""
        scratch = memoryview(bytearray(min(nbytes, LOCAL_PIECE)))
        while nbytes:
            step = min(nbytes, len(scratch))
            self.readinto(scratch[:step], deadline)
            nbytes -= step
