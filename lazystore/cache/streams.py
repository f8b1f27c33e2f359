"""Stored objects as forward streams of bytes: pieces on their way while earlier ones are used, across objects too.

What the bytes are is not known here, nor who reads them; only that streams are read forward, and in which
order. Nothing runs by itself: more is sent for whenever a piece is taken.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lazystore.cache.flight import Deadline
from lazystore.errors import DatasetNotFoundError, FetchError, FetchTimeoutError, LazyStoreError, SourceChangedError
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore.fetch.source import Flight, Source

__all__ = ["ForwardStreams", "ObjectStream"]

UNKNOWN = -1
#: Bytes of the first request of an object somebody waits for: little, so that they come at once.
URGENT_HEAD = 256 * 1024
#: The least bytes of a first request: one is enough for small objects.
MIN_HEAD = 64 * 1024
#: An object's size as a share of its hint, before one was seen; and what later ones may have more than the last.
FIRST_SHARE, MARGIN = 0.25, 1.02


class ObjectStream:
    """One object as a forward stream.

    Parameters:
        source, name: the object.
        head: bytes of the first request; the object's size comes with its answer.
        piece: bytes of the others.
        expected: bytes the object probably has; until its size is known, no more than that is asked for.
        taken: called when a piece was taken into use: the time to send for more.

    Attributes:
        size: bytes of the object; -1 until its first piece is there.
        held: bytes of the pieces on their way, waiting or in use.
        deadline: when a read must be done.

    Threads: one at a time. Fork: dead in the child. Pickling: none.
    """

    def __init__(
        self, source: Source, name: str, *, head: int, piece: int, expected: int, taken: Callable[[], None]
    ) -> None:
        self._source = source
        self._name = name
        self._head = head
        self._piece = piece
        self._expected = max(expected, head)
        self._taken = taken
        self._coming: deque[tuple[Read, Flight, bool]] = deque()
        self._asked = 0
        self.size = UNKNOWN
        self._buffer = memoryview(b"")
        self._in_use = 0
        self.held = 0
        self.deadline = Deadline(0)

    def peek(self, n: int) -> bytes:
        """At most ``n`` of the next bytes without taking them; fewer only where a piece or the object ends."""
        self._refill()
        return bytes(self._buffer[:n])

    def read(self, n: int = -1) -> bytes:
        """At most ``n`` bytes (all that is at hand for -1); b"" at the end of the object.

        Raises:
            FetchError: the bytes cannot be had before the deadline.
        """
        self._refill()
        taken = self._buffer[: n if n >= 0 else None]
        self._buffer = self._buffer[len(taken) :]
        return bytes(taken)

    def wanted(self) -> int:
        """Bytes the next request would ask for; 0 while that is not known, and when everything was asked for."""
        if self.size == UNKNOWN and self._coming and self._coming[0][1].done():
            try:
                self.size = self._coming[0][1].result()[self._name]
            except LazyStoreError:
                return 0  # met, or cured, by whoever reads
        end = self._expected if self.size == UNKNOWN else self.size
        return max(0, min(self._piece if self._asked else self._head, end - self._asked))

    def send(self, timeout: float, *, urgent: bool = False) -> None:
        """Ask for what is :meth:`wanted`; ``timeout`` seconds, retries included."""
        read = Read(self._name, self._asked, memoryview(bytearray(self.wanted())))
        flight = self._source.start([read], stat=self._stat(), timeout=timeout, urgent=urgent)
        self._coming.append((read, flight, urgent))
        self._asked += len(read.view)
        self.held += len(read.view)

    def _stat(self) -> tuple[str, ...]:
        """What is asked for while the size is unknown may lie beyond the end; that is no error then."""
        return (self._name,) if self.size == UNKNOWN else ()

    def close(self) -> None:
        """Cancel what is on its way."""
        while self._coming:
            self._coming.popleft()[1].cancel()
        self._buffer = memoryview(b"")
        self.size = self._asked = self._in_use = self.held = 0

    def _refill(self) -> None:
        if len(self._buffer):
            return
        self._buffer = memoryview(b"")  # the piece goes before another comes
        self.held -= self._in_use
        self._in_use = 0
        if not self._coming:
            if not self.wanted():
                return
            self.send(self.deadline.left(), urgent=True)
        read = self._arrived()
        self._coming.popleft()
        self._in_use = len(read.view)
        self._buffer = read.view[: read.got]
        self._taken()

    def _arrived(self) -> Read:
        """The next piece, once it is there. What failed while nobody waited for it is tried once more."""
        read, flight, urgent = self._coming[0]
        if not flight.wait(self.deadline.left()):
            flight.cancel()
            raise FetchTimeoutError(
                f"{self._source.url}/{self._name}, bytes {read.begin}..{read.end} did not come within "
                f"{self.deadline.timeout:g} s",
                url=f"{self._source.url}/{self._name}", begin=read.begin, end=read.end, elapsed=self.deadline.timeout,
            )  # fmt: skip
        try:
            sizes = flight.result()
        except (DatasetNotFoundError, SourceChangedError):
            raise
        except FetchError:
            if urgent:
                raise
            sizes = self._source.run([read], stat=(self._name,), timeout=self.deadline.left())
        self.size = sizes.get(self._name, self.size)
        return read


class ForwardStreams:
    """The streams of chunks that are read one after another: what comes next is sent for before it is opened.

    Parameters:
        source: where the objects are.
        names: of the chunks' objects.
        sizes: an upper bound of each object's bytes, as a hint; 0 where there is none.

    Attributes:
        piece: bytes a request.
        room: bytes all pieces may take together, at least one piece.
        following: chunks to be read after the present one, the next one first.

    Threads: one at a time. Fork: :meth:`forget`. Pickling: none.
    """

    def __init__(self, source: Source, names: Sequence[str], sizes: Sequence[int], *, piece: int) -> None:
        self._source = source
        self._names = names
        self._sizes = sizes
        self.piece = piece
        self._present: ObjectStream | None = None
        self._chunk = -1
        self._begun: OrderedDict[int, ObjectStream] = OrderedDict()
        self._share = FIRST_SHARE
        self.room = 0
        self.following: Sequence[int] = ()

    def open(self, chunk: int, deadline: Deadline) -> ObjectStream:
        """The stream of a chunk from its first byte; the one open before is closed."""
        if self._present is not None:
            self._present.close()
        stream: ObjectStream | None = None
        while self._begun and stream is None:
            number, stream = self._begun.popitem(last=False)
            if number != chunk:
                stream.close()  # passed over; all of them, where the reader went elsewhere
                stream = None
        if chunk in self.following:
            self.following = self.following[self.following.index(chunk) + 1 :]
        self._present = present = stream or self._begin(chunk, URGENT_HEAD)
        self._chunk = chunk
        present.deadline = deadline
        if stream is None:
            present.send(deadline.left(), urgent=True)
        self.top_up()
        return present

    def top_up(self) -> None:
        """Send for what comes next, as far as there is room."""
        stream = self._present
        if stream is None:
            return
        if stream.size > 0 and self._sizes[self._chunk]:
            self._share = MARGIN * stream.size / self._sizes[self._chunk]
        timeout = stream.deadline.timeout
        room = self.room - stream.held - sum(other.held for other in self._begun.values())
        room = _send(stream, room, timeout)
        for chunk in self.following:
            if room <= 0:
                return
            if chunk not in self._begun:
                self._begun[chunk] = self._begin(chunk, self.piece)
            room = _send(self._begun[chunk], room, timeout)

    def close(self) -> None:
        """Cancel what is on its way, give the buffers back."""
        for stream in (*self._begun.values(), *([self._present] if self._present is not None else ())):
            stream.close()
        self.forget()

    def forget(self) -> None:
        """Drop everything: in a forked child nothing of it is alive."""
        self._begun.clear()
        self._present = None

    def _begin(self, chunk: int, head: int) -> ObjectStream:
        expected = int(self._sizes[chunk] * self._share)
        return ObjectStream(
            self._source, self._names[chunk],
            head=min(head, self.piece, max(expected, MIN_HEAD)), piece=self.piece, expected=expected,
            taken=self.top_up,
        )  # fmt: skip


def _send(stream: ObjectStream, room: int, timeout: float) -> int:
    """Send for a stream's next pieces; returns the room that is left, 0 when there was not enough."""
    while wanted := stream.wanted():
        if wanted > room:
            return 0
        stream.send(timeout)
        room -= wanted
    return room
