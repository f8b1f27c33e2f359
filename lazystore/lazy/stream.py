"""`Stream`: one ordered pass over a source, in a window of bytes; and `Streams`, several of them by name.

Here: opening and closing, and the two ways of reading. What is held, and who waits for whom, is in ``window``; who
reads ahead in ``producer``; cutting in ``chunker``.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lazystore.cache.ledger import Ledger
from lazystore.cache.locks import forkable_lock
from lazystore.config import parse_bytes, seconds
from lazystore.errors import (
    BudgetTooSmallError,
    ClosedError,
    ConfigError,
    ItemIndexError,
    LoadCancelledError,
    ReentrantLoadError,
)
from lazystore.lazy.passes import async_pieces, sync_pieces
from lazystore.lazy.producer import TaskProducer, ThreadProducer
from lazystore.lazy.source import as_source
from lazystore.lazy.window import END, WAIT, Feed

if TYPE_CHECKING:
    import asyncio

    from lazystore.cache.bridge import Bridge
    from lazystore.lazy.chunker import DataChunker

__all__ = ["Stream", "StreamInfo"]

SYNC, ASYNC = "for", "async for"


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """How far a stream is.

    Attributes:
        name: of the stream.
        created: seconds since the epoch.
        produced, consumed: pieces that came from the source, and that were read.
        buffered_bytes: held now, read or not; window_bytes: held at most.
        done: everything was read.
        error: what the source raised, if it did.
        closed: why it is closed; empty: it is open.
    """

    name: str
    created: float
    produced: int
    consumed: int
    buffered_bytes: int
    window_bytes: int
    done: bool
    error: BaseException | None
    closed: str


class Stream:
    """One ordered pass over a source: for ``for``, or for ``async for``; whichever begins, reads on.

    Parameters:
        source: a :class:`Source` that can "stream", or what one can be made from.
        bridge: between threads and loops.
        ledger: the budget that the window is reserved from while the stream is read; None: none.
        window: bytes of pieces that are held: unread ones, and read ones for :meth:`__getitem__` and :meth:`seek`.
        ahead: read ahead as far as the window goes, in a thread (``for``) or a task (``async for``), which waits where
            it ends. False: a piece is read from the source when it is asked for, and no thread is started.
        idle_timeout: seconds after which a stream that nobody reads closes itself and its source. Where there is
            neither thread nor task (``for`` without ``ahead``) this is noticed when the stream is used next.
        name: in messages and :meth:`info`.
        weigh: bytes of a piece; None: :func:`lazystore._core.weigh.weigh`.
        chunker: cuts what the source gives; None: pieces are the source's own items or blocks.
        clock: seconds, monotonic.

    A piece that is larger than the window is handed out and not held. What the source raises, raises where its next
    piece would be. Pieces that are views of a buffer which the source fills anew change under the window: give copies.

    Raises:
        ConfigError, BudgetTooSmallError: the window is no size, or more than half of the ledger's limit.
        UnsupportedError: the source cannot be read in one pass.

    Memory: the window and one piece. Cost of a piece (processor time, measured on a loaded machine): ``for`` 5 us, of
    an async source 30 us; ``async for`` 45 us, a few ahead, and over 100 us of a sync source, which takes a hop between
    threads: there let a chunker gather small items. Threads: any number may read, each piece goes to one
    of them. Close it, or use ``with``: one that is forgotten half-way closes its source and warns (ResourceWarning).
    Fork: belongs to the parent. Pickling: refused. Interpreter exit: nothing is waited for.
    """

    def __init__(
        self,
        source: Any,
        *,
        bridge: Bridge,
        ledger: Ledger | None = None,
        window: int | str = "8MiB",
        ahead: bool = False,
        idle_timeout: float | None = None,
        name: str = "",
        weigh: Callable[[Any], int] | None = None,
        chunker: DataChunker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = as_source(source)
        self._source.require("stream")
        if idle_timeout is not None:
            idle_timeout = seconds("idle_timeout", idle_timeout)
        if weigh is None:
            from lazystore._core.weigh import weigh as bytes_of

            weigh = bytes_of
        self._feed = Feed(parse_bytes(window, name="window"), idle_timeout, clock)
        self._bridge = bridge
        self._ledger = ledger if ledger is not None and ledger.limit else None
        self._check_window()
        self._weigh: Callable[[Any], int] = weigh
        self._chunker = chunker
        self._ahead = ahead
        self.name = name
        self._created = time.time()
        self._pid = os.getpid()
        self._face = ""
        self._beginning = forkable_lock()
        self._abeginning: asyncio.Lock | None = None
        self._pulling = forkable_lock()
        self._puller = 0
        self._stop: Callable[[], None] | None = None
        self._pieces: Generator[Any, None, None] | None = None
        self._producer: ThreadProducer | TaskProducer | None = None
        self._finalizer = weakref.finalize(self, _forgotten, self._feed, name)
        self._finalizer.atexit = False

    def _check_window(self) -> None:
        limit = self._feed.window.limit
        if self._ledger is not None and limit > self._ledger.reservable:
            raise BudgetTooSmallError(
                f"window={limit} is more than half of the budget of {self._ledger.limit} bytes:"
                " give a smaller window, or the store more memory",
                needed=2 * limit,
            )

    # -- reading, in threads ------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next piece.

        Raises:
            StopIteration: there is none. ClosedError: the stream is closed. What the source raises.
        """
        return self.read()[1]

    def read(self) -> tuple[int, Any]:
        """The next piece and its number; raises as ``next()`` does."""
        if self._face != SYNC:
            self._begin()
        feed = self._feed
        try:
            while True:
                found = self._poll()
                if found is END:
                    raise StopIteration
                if found is not WAIT:
                    return found  # type: ignore[no-any-return]
                if self._producer is None:
                    self._pull()
                else:
                    with self._bridge.blocked():
                        feed.wait()
        finally:
            feed.forget_dropped()

    def _poll(self) -> Any:
        if self._pid != os.getpid():
            raise LoadCancelledError(f"{self} began before the process was forked: open another one here")
        try:
            return self._feed.poll()
        except ClosedError:
            self._let_go()
            raise

    def _begin(self) -> None:
        """Take the window and open the source, once."""
        self._refuse_itself()
        with self._beginning:
            if self._face == SYNC:
                return
            self._puller = threading.get_ident()
            try:
                self._open()
            finally:
                self._puller = 0

    def _refuse_itself(self) -> None:
        if self._puller == threading.get_ident():
            raise ReentrantLoadError(f"the source of {self} reads the stream that it feeds: it would wait for itself")

    def _open(self) -> None:
        self._feed.check()
        if self._face:
            raise ConfigError(f"{self} is read by `async for`: read on in that way, or open another one")
        reservation = None
        if self._ledger is not None:
            reservation = self._ledger.reserve(self._feed.window.limit, what="streams")
        try:
            opened = self._source.open()
            steps = self._bridge.iterate(opened)
        except BaseException:
            if reservation is not None:
                reservation.release()
            raise
        pieces = sync_pieces(steps, self._chunker)
        try:
            self._feed.begin(reservation)
        except ClosedError:
            steps.close()  # type: ignore[attr-defined]
            raise
        if not hasattr(type(opened), "__iter__"):
            self._stop = getattr(steps, "close", None)  # it waits for an event loop, which can be called off
        if self._ahead:
            self._producer = ThreadProducer(self._feed, pieces, self._weigh, self._stop, self.name)
        else:
            self._pieces = pieces
        self._face = SYNC

    def _pull(self) -> None:
        """Make one piece in this thread, unless another thread has."""
        self._refuse_itself()
        feed = self._feed
        with feed.reader(), self._pulling:
            if feed.moves or self._pieces is None:
                return
            self._puller = threading.get_ident()
            try:
                piece = next(self._pieces, END)
                if piece is END:
                    feed.end()
                else:
                    feed.put(piece, self._weigh(piece))
            except Exception as error:  # noqa: BLE001 - raised at this position, now and when it is read again
                feed.end(error)
            except BaseException:
                feed.end(LoadCancelledError(f"reading {self} was interrupted, and its source cannot go on"))
                raise
            finally:
                self._puller = 0
                if feed.closed or feed.ended:
                    self._pieces.close()

    # -- reading, in event loops ----------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        """The next piece; raises StopAsyncIteration, else as ``next()`` does. Being cancelled loses no piece."""
        return (await self.aread())[1]

    async def aread(self) -> tuple[int, Any]:
        """The next piece and its number; raises as ``anext()`` does."""
        if self._face != ASYNC:
            await self._abegin()
        feed = self._feed
        try:
            while True:
                found = self._poll()
                if found is END:
                    raise StopAsyncIteration
                if found is not WAIT:
                    return found  # type: ignore[no-any-return]
                await feed.await_move()
        finally:
            feed.forget_dropped()

    async def _abegin(self) -> None:
        import asyncio

        with self._beginning:
            if self._abeginning is None:
                self._abeginning = asyncio.Lock()
        async with self._abeginning:
            if self._face == ASYNC:
                return
            self._feed.check()
            if self._face:
                raise ConfigError(f"{self} is read by `for`: read on in that way, or open another one")
            reservation = None
            if self._ledger is not None:
                reservation = await self._ledger.areserve(self._feed.window.limit, what="streams")
            self._feed.begin(reservation)
            pieces = async_pieces(self._source, self._bridge, self._chunker)
            self._producer = TaskProducer(self._feed, pieces, self._weigh, self._ahead, self.name)
            self._face = ASYNC

    # -- by number ----------------------------------------------------------------------

    def __getitem__(self, index: int) -> Any:
        """A piece that the window still holds, by its number; the position stays.

        Raises:
            ItemIndexError: it does not (a LookupError). ClosedError: the stream is closed.
        """
        with self._feed.turn:
            self._feed.check()
            return self._feed.window.at(index)

    def seek(self, index: int) -> None:
        """Read on from piece ``index``, which the window still holds, or which is the next to come.

        Raises:
            ItemIndexError: it is neither. ClosedError: the stream is closed.
        """
        with self._feed.turn:
            self._feed.check()
            self._feed.window.seek(index)
            self._feed.tell()

    def get(self, index: int | None = None) -> Any:
        """Piece ``index``: from the window if it was read, else by reading on until it is there. None: the next.

        Raises:
            ItemIndexError: the window does not hold it any more, or the stream ends before it. As ``next()`` does.
        """
        return self.numbered(index)[1]

    async def aget(self, index: int | None = None) -> Any:
        """:meth:`get` for event loops."""
        return (await self.anumbered(index))[1]

    def numbered(self, index: int | None = None) -> tuple[int, Any]:
        """The number and the piece that :meth:`get` gives."""
        while not self._has_read(index):
            try:
                found = self.read()
            except StopIteration:
                raise self._ended_before(index) from None
            if index is None or found[0] == index:
                return found
        assert index is not None
        return index, self[index]

    async def anumbered(self, index: int | None = None) -> tuple[int, Any]:
        """:meth:`numbered` for event loops."""
        while not self._has_read(index):
            try:
                found = await self.aread()
            except StopAsyncIteration:
                raise self._ended_before(index) from None
            if index is None or found[0] == index:
                return found
        assert index is not None
        return index, self[index]

    def _has_read(self, index: int | None) -> bool:
        return index is not None and index < self._feed.window.position

    def _ended_before(self, index: int | None) -> ItemIndexError:
        which = "the next piece" if index is None else f"piece {index}"
        return ItemIndexError(f"{self} has {self._feed.window.produced} pieces, and ended before {which}")

    # -- the end ------------------------------------------------------------------------

    def close(self) -> None:
        """End it: stops reading ahead, closes the source (a generator's ``finally`` runs), gives the window back.

        Twice is harmless. A step that is under way in another thread ends first, and closes the source then.
        """
        self._feed.close("close() was called")
        self._let_go()

    def _let_go(self) -> None:
        """Of everything that a closed stream still has."""
        self._finalizer.detach()
        self._feed.forget_dropped()
        if self._pid != os.getpid():
            return
        if isinstance(self._producer, ThreadProducer):
            self._producer.close()
        elif self._producer is not None:
            self._producer.cancel()
        elif self._pieces is not None:
            if self._stop is not None:
                self._stop()
            if self._pulling.acquire(blocking=False):
                try:
                    self._pieces.close()
                finally:
                    self._pulling.release()

    async def aclose(self) -> None:
        """:meth:`close` for event loops: waits for the source's own closing without blocking the loop."""
        if isinstance(self._producer, TaskProducer):
            self._feed.close("aclose() was called")
            self._finalizer.detach()
            self._feed.forget_dropped()
            await self._producer.aclose()
        elif self._feed.begun and not self._bridge.workers.closed:
            await self._bridge.acall(self.close)
        else:
            self.close()

    def expire(self) -> None:
        """Close it now if nobody has read it for longer than its idle timeout."""
        self._feed.expire()
        if self._feed.closed:
            self._let_go()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by whomever."""
        return bool(self._feed.closed)

    def info(self) -> StreamInfo:
        """How far it is, at one moment."""
        feed = self._feed
        with feed.turn:
            window = feed.window
            return StreamInfo(
                self.name, self._created, window.produced, window.position, window.nbytes, window.limit,
                feed.ended and not window.unread and feed.error is None, feed.error, feed.closed,
            )  # fmt: skip

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> str:
        raise TypeError(
            "a Stream is a pass that is under way and cannot be pickled: send its source, and open one there"
        )

    def __repr__(self) -> str:
        return f"<Stream {self.name or self._source!r}, {self._feed.window.position} pieces read>"


def _forgotten(feed: Feed, name: str) -> None:
    half_way = feed.begun and not feed.ended
    if feed.close("it was forgotten") and half_way:
        warnings.warn(
            f"stream {name!r} was forgotten half-way: close() it, or use `with`", ResourceWarning, stacklevel=2
        )
    feed.forget_dropped()
