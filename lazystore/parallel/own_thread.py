"""An `imap` in a thread of its own, for an event loop: batches of results come out, items of async data go in.

Here is all that crosses between the loop and the thread. What is run where is ``imap``'s business.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Any, Final

from lazystore.errors import ConfigError
from lazystore.parallel.mapper import Imap, imap

__all__ = ["OwnThread"]

#: seconds after which the thread looks whether it should end, when no result comes and nobody asks
POLL_S: Final = 0.25
#: items of async data that wait for the thread at most
ITEMS_AHEAD: Final = 32


class OwnThread:
    """Runs an `imap` for an event loop; see :class:`~lazystore.parallel.async_mapper.Runner`.

    The thread takes a batch when it is told to, which it is once more when a batch is taken from it: so it is at most
    one ahead. It knows nothing of this object, so that dropping this ends it.

    Parameters:
        func, data: of `imap`; data may be an async iterable.
        arguments: of `imap`.

    Raises:
        ConfigError: arguments that `imap` does not take.
    """

    def __init__(self, func: Callable[[Any], Any], data: Iterable[Any] | AsyncIterable[Any], **arguments: Any) -> None:
        self._bridge: _Bridge | None = None
        if isinstance(data, AsyncIterable):
            data = self._bridge = _Bridge(data)
        self._imap: Imap = imap(func, data, **arguments)
        self._hand = _Hand()
        self._thread: threading.Thread | None = None
        self._checked = False
        self.stats = self._imap.stats

    async def take(self) -> list[Any]:
        """See :class:`~lazystore.parallel.async_mapper.Runner`."""
        if self._thread is None:
            self._start()
        results, error = await self._hand.receive()
        if error is not None:
            try:
                raise error
            finally:
                del error  # the traceback holds this frame
        if results and not self._checked:
            self._checked = True
            self._refuse_coroutines(results)
        return results

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._hand.begin(loop)
        if self._bridge is not None:
            self._bridge.begin(loop)
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(_work, self._imap, self._hand), name="lazystore-aimap", daemon=True
        )
        weakref.finalize(self, self._hand.stop).atexit = False
        self._thread.start()

    def _refuse_coroutines(self, results: list[Any]) -> None:
        if inspect.iscoroutine(results[0]):
            for result in results:
                result.close()
            raise ConfigError("func returns coroutines without being async itself: give aimap an async def function")

    async def close(self) -> None:
        """See :class:`~lazystore.parallel.async_mapper.Runner`."""
        self._hand.stop()
        if self._bridge is not None:
            await self._bridge.close()
        if self._thread is None:
            self._imap.close()
            return
        await self._hand.gone()
        self._thread.join()


def _work(source: Imap, hand: _Hand) -> None:
    """The thread: batch after batch, until the end or until it is told to stop."""
    try:
        while hand.wanted():
            results: list[Any] = []
            while not results and not hand.stopping:
                try:
                    results = source.take_ready(POLL_S)
                except StopIteration:
                    return
                except _Ended:
                    return
                except BaseException as error:  # noqa: BLE001 (raised in the loop, where somebody waits for it)
                    hand.give([], error)
                    break
            if results:
                hand.give(results, None)
    finally:
        try:
            source.close()
        finally:
            hand.leave()


class _Hand:
    """What the thread holds out to the loop: one batch, or an error."""

    def __init__(self) -> None:
        self.stopping = False
        self._wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._held: tuple[list[Any], BaseException | None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left: asyncio.Future[None] | None = None

    # -- in the loop ----------------------------------------------------------------------

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = loop.create_future()
        self._wishes.put(True)

    async def receive(self) -> tuple[list[Any], BaseException | None]:
        """What the thread holds out, as soon as there is something; nothing once it has left."""
        assert self._loop is not None
        assert self._left is not None
        while self._held is None:
            if self._left.done():
                return [], None
            self._waiting = self._loop.create_future()
            await self._waiting
        held, self._held = self._held, None
        self._wishes.put(True)
        return held

    def stop(self) -> None:
        """Tell the thread to end, from any thread. Twice is fine."""
        self.stopping = True
        self._wishes.put(False)

    async def gone(self) -> None:
        """Return when the thread has nothing more to do."""
        assert self._left is not None
        await asyncio.shield(self._left)

    # -- in the thread --------------------------------------------------------------------

    def wanted(self) -> bool:
        """Wait until a batch is wanted; False: it is time to end."""
        while not self.stopping:
            try:
                return self._wishes.get(timeout=4 * POLL_S)
            except queue.Empty:
                if self._loop is not None and self._loop.is_closed():
                    return False
        return False

    def give(self, results: list[Any], error: BaseException | None) -> None:
        """Hold out a batch, or an error."""
        self._held = results, error
        self._call(self._wake)

    def leave(self) -> None:
        """The last act of the thread."""
        self._call(self._note_left)

    def _call(self, act: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.stopping = True

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _note_left(self) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(None)
        self._wake()


class _Ended(Exception):
    """Raised in the thread where it waits for items that nobody will bring any more."""


class _Bridge:
    """The items of an async iterable, for a thread: read in the loop, a bounded number ahead.

    Parameters:
        data: iterated once, by one task of the loop.
    """

    def __init__(self, data: AsyncIterable[Any]) -> None:
        self._data = data
        self._items: deque[Any] = deque()
        self._over = False
        self._closed = False
        self._error: BaseException | None = None
        self._news = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room: asyncio.Event | None = None
        self._pump: asyncio.Task[None] | None = None

    # -- in the loop ----------------------------------------------------------------------

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = asyncio.Event()
        self._pump = loop.create_task(self._bring(self._room), name="lazystore-aimap-data")

    async def _bring(self, room: asyncio.Event) -> None:
        try:
            async for item in self._data:
                self._items.append(item)
                with self._news:
                    self._news.notify()
                while len(self._items) >= ITEMS_AHEAD:
                    room.clear()
                    await room.wait()
        except BaseException as error:
            self._error = error  # raised where its turn comes
            if not isinstance(error, Exception):
                raise
        finally:
            with self._news:
                self._over = True
                self._news.notify()

    async def close(self) -> None:
        """Stop reading; whoever waits for items is told."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    # -- in the thread --------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._items:
            self._wait()
        item = self._items.popleft()
        if len(self._items) == ITEMS_AHEAD // 2:
            self._ask()
        return item

    def _wait(self) -> None:
        """Return when there is an item."""
        self._ask()
        with self._news:
            while not self._items:
                if self._closed:
                    raise _Ended
                if self._over:
                    error, self._error = self._error, None
                    if error is None:
                        raise StopIteration
                    raise error
                self._news.wait(4 * POLL_S)
                if self._loop is not None and self._loop.is_closed():
                    raise _Ended

    def _ask(self) -> None:
        assert self._loop is not None
        assert self._room is not None
        try:
            self._loop.call_soon_threadsafe(self._room.set)
        except RuntimeError:  # the loop is closed
            self._closed = True
