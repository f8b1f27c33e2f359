"""Who makes a stream's pieces ahead of its reader: a thread for `for`, a task for `async for`.

Both stop where the window ends (backpressure), when the feed is closed, and when nobody reads for too long. They know
the feed only, never the stream.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from lazystore.errors import LoadCancelledError

if TYPE_CHECKING:
    from lazystore.lazy.window import Feed

__all__ = ["TaskProducer", "ThreadProducer"]

#: Seconds that closing waits for the source's own closing.
CLOSE_S = 5.0


class ThreadProducer:
    """Makes pieces in a daemon thread of its own, as far ahead as the window goes.

    Parameters:
        pieces: to be read and closed, both in the thread.
        stop: makes a step that waits for an event loop return; None: steps cannot be called off.
    """

    def __init__(
        self, feed: Feed, pieces: Generator[Any, None, None], weigh: Callable[[Any], int], stop: Any, name: str
    ) -> None:
        self._feed = feed
        self._pieces = pieces
        self._weigh = weigh
        self._stop = stop
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"lazystore-stream-{name}", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        feed, error, weight = self._feed, None, 0
        try:
            while self._room(weight):
                piece = next(self._pieces, self)
                if piece is self:
                    break
                weight = self._weigh(piece)
                if self._room(weight):
                    feed.put(piece, weight)
                del piece  # a producer that waits holds nothing
                feed.forget_dropped()
        except BaseException as caught:  # noqa: BLE001 - raised at the reader, at this position
            error = caught
        try:
            self._pieces.close()
        except BaseException as caught:  # noqa: BLE001 - as above
            error = error or caught
        feed.end(error)

    def _room(self, weight: int) -> bool:
        """Wait until a piece of this weight fits; False: the feed is closed."""
        feed = self._feed
        with feed.turn:
            while not feed.closed and not feed.wants(True, weight):
                feed.turn.wait(feed.idle_left())
                feed.expire()
            return not feed.closed

    def close(self) -> None:
        """Wait until the source is closed, a few seconds at most; the feed has been closed."""
        if self._stop is not None:
            self._stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_S)


class TaskProducer:
    """Makes pieces in one task of the running loop, which opens, steps and closes the source, all in one context.

    Parameters:
        pieces: to be read and closed.
        ahead: as far as the window goes; else one at a time, when it is asked for. A reader that is cancelled loses
            nothing: what it asked for is there for the next.
    """

    def __init__(
        self, feed: Feed, pieces: AsyncGenerator[Any, None], weigh: Callable[[Any], int], ahead: bool, name: str
    ) -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()
        self._task = self.loop.create_task(_produce(feed, pieces, weigh, ahead), name=f"lazystore-stream-{name}")

    def cancel(self) -> None:
        """Have it end; any thread, any moment, waits for nothing."""
        try:
            self.loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            return  # its loop is closed, and has cancelled it

    async def aclose(self) -> None:
        """Have it end, and wait for the source's closing, a few seconds at most."""
        import asyncio

        if asyncio.get_running_loop() is not self.loop:
            self.cancel()
        elif asyncio.current_task() is not self._task:
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=CLOSE_S)


async def _produce(feed: Feed, pieces: AsyncGenerator[Any, None], weigh: Callable[[Any], int], ahead: bool) -> None:
    import asyncio

    error: BaseException | None = LoadCancelledError("the stream's event loop ended before it did")
    try:
        try:
            await _fill(feed, pieces, weigh, ahead)
        finally:
            await pieces.aclose()
        error = None
    except asyncio.CancelledError:
        if not feed.closed:
            raise
    except Exception as caught:  # noqa: BLE001 - raised at the reader, at this position
        error = caught
    finally:
        feed.end(error)
        del error


async def _fill(feed: Feed, pieces: AsyncGenerator[Any, None], weigh: Callable[[Any], int], ahead: bool) -> None:
    weight = 0
    while await _wanted(feed, ahead, weight):
        piece = await anext(pieces, feed)
        if piece is feed:
            return
        weight = weigh(piece)
        if not ahead or await _wanted(feed, ahead, weight):
            feed.put(piece, weight)
        del piece  # a producer that waits holds nothing
        feed.forget_dropped()


async def _wanted(feed: Feed, ahead: bool, weight: int) -> bool:
    """Wait until a piece is wanted; False: the feed is closed."""
    while not feed.closed and not feed.wants(ahead, weight):
        left = feed.idle_left()
        await feed.wait_async(lambda: bool(feed.closed) or feed.wants(ahead, weight), left)
        feed.expire()
    return not feed.closed
