"""Compressed chunks: one open stream, inflated forward part by part.

A compressed chunk has no random access; a part behind the stream's position means
starting over. The stream's history window is reserved from the budget by whoever makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazystore.cache.flight import Deadline
from lazystore.cache.streams import ObjectStream
from lazystore.errors import BudgetTooSmallError, FormatError

if TYPE_CHECKING:
    from lazystore.formats.codecs import Codec

__all__ = ["ChunkInflater"]

#: A compressed dataset's budget is at least this many windows.
WINDOW_SHARE = 4
#: Inflated at first, and twice as much every time up to what is allowed ahead.
FIRST_STEP = 64 * 1024


class ChunkInflater:
    """Inflates one chunk forward, a part at a time.

    Parameters:
        stream: the compressed bytes, from the first.
        codec: what they are.
        limit: bytes the codec may hold.
        stored, size: bytes of the object and of the chunk, 0 where nobody knows.
        ahead: bytes inflated at a time even if less is wanted. Each time the GIL is let go of and has to be had
            again, for which other threads may make one wait for milliseconds.

    Raises:
        BudgetTooSmallError: decoding needs more memory; the message says how much.

    Threads: one at a time (the memory holds a lock). Fork: dropped in the child. Pickling: none.
    """

    def __init__(
        self, stream: ObjectStream, codec: Codec, *, limit: int, ahead: int, stored: int = 0, size: int = 0
    ) -> None:
        self._stream = stream
        try:
            self._inflater = codec.open(stream, limit=limit, stored=stored, size=size)
        except BudgetTooSmallError as error:
            raise BudgetTooSmallError(f"{error}; give memory={WINDOW_SHARE * error.needed} bytes or more") from None
        self.content_size = self._inflater.content_size
        self.memory = self._inflater.memory
        self._taken = 0
        self._scratch = memoryview(bytearray(ahead))
        self._step = min(FIRST_STEP, ahead)
        self._ready = self._scratch[:0]

    @property
    def position(self) -> int:
        """Inflated bytes handed out so far."""
        return self._taken - len(self._ready)

    def peek(self, n: int, deadline: Deadline) -> bytes:
        """At most ``n`` of the next bytes, which stay to be read; fewer where what is ready, or all there is, ends."""
        if not len(self._ready):
            self._inflate_ahead(deadline)
        return bytes(self._ready[:n])

    def readinto(self, view: memoryview, deadline: Deadline) -> None:
        """Produce exactly the next ``len(view)`` inflated bytes.

        Raises:
            FormatError: the stream ends early or is damaged.
        """
        done = 0
        while done < len(view):
            if not len(self._ready):
                self._inflate_ahead(deadline)
            taken = self._ready[: len(view) - done]
            if not len(taken):
                raise FormatError(f"its compressed stream ends after {self.position} bytes; the file is truncated")
            view[done : done + len(taken)] = taken
            self._ready = self._ready[len(taken) :]
            done += len(taken)

    def skip(self, nbytes: int, deadline: Deadline) -> None:
        """Produce and throw away."""
        scratch = memoryview(bytearray(min(nbytes, FIRST_STEP)))
        while nbytes:
            step = min(nbytes, len(scratch))
            self.readinto(scratch[:step], deadline)
            nbytes -= step

    def _inflate_ahead(self, deadline: Deadline) -> None:
        self._stream.deadline = deadline
        step = self._scratch[: self._step]
        self._ready = step[: self._inflater.readinto(step)]
        self._taken += len(self._ready)
        self._step = min(2 * self._step, len(self._scratch))
