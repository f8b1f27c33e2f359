"""`Window` and `Feed`: the pieces of a stream that are held between who makes them and who reads them.

Here: which pieces are held, within how many bytes, and who waits for whom. Nothing is read or started here; that is
``stream`` and ``producer``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lazystore.cache.locks import forkable_rlock
from lazystore.errors import ClosedError, ItemIndexError

if TYPE_CHECKING:
    import asyncio

    from lazystore.cache.ledger import Reservation

__all__ = ["END", "WAIT", "Feed", "Window"]

#: Bytes that holding a piece takes besides the piece.
ENTRY = 72
#: What :meth:`Feed.poll` gives when there is no piece: none will come, or one must be waited for.
END, WAIT = object(), object()


class Window:
    """The latest pieces of a stream: the unread ones, and as many of the read ones as fit.

    Parameters:
        limit: bytes of pieces that are held. One unread piece is held whatever it weighs.

    Attributes:
        first, produced: numbers of the first piece held, and of the next to come.
        position: number of the next to be read.
        nbytes, unread_bytes: what is held; what of it is unread.
        dropped: pieces that left; to be cleared where no lock is held, since destructors may do anything.

    Not locked: :class:`Feed` is.
    """

    __slots__ = ("_pieces", "dropped", "first", "limit", "nbytes", "position", "unread_bytes")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.first = self.position = 0
        self.nbytes = self.unread_bytes = 0
        self.dropped: list[Any] = []
        self._pieces: deque[tuple[Any, int]] = deque()

    @property
    def produced(self) -> int:
        return self.first + len(self._pieces)

    @property
    def unread(self) -> int:
        """Pieces that are not read yet."""
        return self.first + len(self._pieces) - self.position

    def has_room(self, weight: int) -> bool:
        """Whether a piece fits besides the unread ones."""
        return not self.unread or self.unread_bytes + weight + ENTRY <= self.limit

    def put(self, piece: Any, weight: int) -> None:
        """Add the next piece; the oldest read ones make room."""
        self._pieces.append((piece, weight + ENTRY))
        self.nbytes += weight + ENTRY
        self.unread_bytes += weight + ENTRY
        self._trim()

    def take(self) -> tuple[int, Any]:
        """The next unread piece and its number; it is read now."""
        piece, weight = self._pieces[self.position - self.first]
        self.position += 1
        self.unread_bytes -= weight
        self._trim()
        return self.position - 1, piece

    def at(self, index: int) -> Any:
        """A piece that is held, by number.

        Raises:
            ItemIndexError: it is not held.
        """
        if not self.first <= index < self.produced:
            raise ItemIndexError(self._not_held(index))
        return self._pieces[index - self.first][0]

    def seek(self, index: int) -> None:
        """Read on from piece ``index``: one that is held, or the next to come.

        Raises:
            ItemIndexError: it is neither.
        """
        if not self.first <= index <= self.produced:
            raise ItemIndexError(self._not_held(index))
        self.position = index
        self.unread_bytes = sum(weight for _, weight in list(self._pieces)[index - self.first :])
        self._trim()

    def clear(self) -> None:
        """Hold nothing any more."""
        self.first = self.position = self.produced
        self.nbytes = self.unread_bytes = 0
        self.dropped.extend(self._pieces)
        self._pieces.clear()

    def _trim(self) -> None:
        while self.nbytes > self.limit and self.first < self.position:
            entry = self._pieces.popleft()
            self.first += 1
            self.nbytes -= entry[1]
            self.dropped.append(entry)

    def _not_held(self, index: int) -> str:
        held = f"{self.first}..{self.produced - 1}" if self._pieces else "no piece"
        return (
            f"piece {index} is not in the window of {self.limit} bytes, which holds {held}: a stream is read once,"
            " in order; give it a larger window, or use chunks(), which can be addressed"
        )


class Feed:
    """A window between one producer and any number of readers, in threads or in event loops.

    Everything but the constants is read and changed under ``turn``. It never refers to the stream, so that a stream
    that is forgotten can end what feeds it.
    """

    def __init__(self, limit: int, idle_timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        # Re-entrant: a finalizer may close a feed in the very thread that holds it.
        self.turn = threading.Condition(forkable_rlock())
        self.window = Window(limit)
        self.reservation: Reservation | None = None
        self.begun = self.ended = False
        self.error: BaseException | None = None
        self.asking = 0
        self.closed = ""  # why
        self._trace: TracebackType | None = None
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._idle_timeout = idle_timeout
        self._clock = clock
        self._touched = clock()

    # -- readers ------------------------------------------------------------------------

    def poll(self) -> Any:
        """The next piece and its number; END, or WAIT. Raises what the source raised there, or ClosedError."""
        with self.turn:
            self.check()
            self._touched = self._clock()
            if self.window.unread:
                found = self.window.take()
                self.tell()
                return found
            if self.error is not None:
                raise self.error.with_traceback(self._trace)  # the same each time: no growing trace
            return END if self.ended else WAIT

    @property
    def moves(self) -> bool:
        """Whether a reader need not wait."""
        return bool(self.window.unread or self.ended or self.closed)

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Somebody waits for a piece meanwhile: however long it takes, the stream is not idle."""
        with self.turn:
            self.asking += 1
        try:
            yield
        finally:
            with self.turn:
                self.asking -= 1
                self._touched = self._clock()

    def wait(self) -> None:
        """Wait in this thread until a reader need not."""
        with self.turn, self.reader():
            while not self.moves:
                self.turn.wait()

    async def await_move(self) -> None:
        """The same in this event loop; the producer is told that a piece is wanted."""
        with self.reader():
            self.tell()
            while not self.moves:
                await self.wait_async(lambda: self.moves)

    def check(self) -> None:
        """Raise if it is closed, also by nobody having read it for too long."""
        self.expire()
        if self.closed:
            raise ClosedError(f"the stream is closed: {self.closed}")

    def forget_dropped(self) -> None:
        """Let go of pieces that left the window; with no lock held."""
        self.window.dropped.clear()

    # -- the producer -------------------------------------------------------------------

    def put(self, piece: Any, weight: int) -> None:
        """The next piece is there."""
        with self.turn:
            if not self.closed:
                self.window.put(piece, weight)
            self.tell()

    def end(self, error: BaseException | None = None) -> None:
        """No more pieces will come."""
        with self.turn:
            if not self.ended:
                self.ended = True
                self.error = error
                trace = error.__traceback__ if error is not None else None
                self._trace = trace.tb_next if trace is not None else None  # without the frame that caught it
            self.tell()

    def wants(self, ahead: bool, weight: int) -> bool:
        """Whether a piece of about this weight should be made now."""
        if ahead:
            return self.window.has_room(weight)
        return bool(self.asking) and not self.window.unread

    def idle_left(self) -> float | None:
        """Seconds until it closes itself if nobody reads; None: it will not."""
        if self._idle_timeout is None or self.asking:
            return None
        return min(max(0.0, self._touched + self._idle_timeout - self._clock()), threading.TIMEOUT_MAX)

    def expire(self) -> None:
        """Close it if nobody has read it for too long."""
        with self.turn:
            left = self.idle_left()
            if left is not None and left <= 0 and not self.closed:
                self.close(f"nobody read it for {self._idle_timeout} s (idle_timeout)")

    # -- both ---------------------------------------------------------------------------

    def begin(self, reservation: Reservation | None) -> None:
        """It is read from now on, within what was reserved for it; of one that was closed meanwhile it is given back.

        Raises:
            ClosedError: it was.
        """
        with self.turn:
            self.begun = not self.closed
            if self.begun:
                self.reservation = reservation
        if not self.begun and reservation is not None:
            reservation.release()
        self.check()

    def close(self, why: str) -> bool:
        """No more pieces are taken or given. Whether it was open."""
        with self.turn:
            if self.closed:
                return False
            self.closed = why
            self.window.clear()
            reservation, self.reservation = self.reservation, None
            self.tell()
        if reservation is not None:
            reservation.release()
        return True

    def tell(self) -> None:
        """Something changed: all who wait look again."""
        with self.turn:
            self.turn.notify_all()
            waiting, self._waiting = self._waiting, []
            for loop, future in waiting:
                try:
                    loop.call_soon_threadsafe(_wake, future)
                except RuntimeError:
                    continue  # its loop is closed: nobody waits there

    async def wait_async(self, unless: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait in this event loop until something changes; not at all if ``unless()``. Returns at the timeout too."""
        import asyncio

        loop = asyncio.get_running_loop()
        with self.turn:
            if unless():
                return
            future: asyncio.Future[None] = loop.create_future()
            entry = (loop, future)
            self._waiting.append(entry)
        try:
            await asyncio.wait((future,), timeout=timeout)
        finally:
            with self.turn:
                if entry in self._waiting:
                    self._waiting.remove(entry)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
