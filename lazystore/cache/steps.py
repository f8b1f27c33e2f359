"""Iterating over iterables of either kind from either side: ``for`` over async generators, ``async for`` over others.

One step across the border takes a hop between threads (tens of microseconds), so a hop may take several items where
the caller allows it. Every iterator here owns what it iterates over, and closes it at the end, at an error, when it
is closed itself, and when it is dropped.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from lazystore.cache.single_flight import running_loop
from lazystore.errors import ClosedError, ConfigError, LoadCancelledError, LoadError

if TYPE_CHECKING:
    import asyncio

    from lazystore.cache.bridge import Bridge

__all__ = ["aiterate", "iterate"]

#: Seconds after which a hop that may take several items takes no more.
HOP_S = 0.01
#: Seconds that closing waits for a source's own closing.
CLOSE_S = 5.0

_END = object()


def iterate(bridge: Bridge, source: Any, batch: int = 1) -> Iterator[Any]:
    """An iterator for ``for`` over any iterable, async iterable, or awaitable of one.

    An async source runs in one task of the bridge's loop, one item at a time as they are asked for; with ``batch`` up
    to that many a hop, so that at most ``batch - 1`` items are made before they are asked for.

    Raises:
        LoadError: an async source where this thread runs an event loop.
        ConfigError: a batch below one.
    """
    _check(batch)
    if not _is_async(source):
        return _Walk(iter(source))
    if running_loop() is not None:
        if inspect.iscoroutine(source):
            source.close()
        raise LoadError(
            "this thread runs an event loop that waiting here would stop: use `async for` in place of `for`"
        )
    return _Driven(bridge, source, batch)


def aiterate(bridge: Bridge, source: Any, batch: int = 1) -> AsyncIterator[Any]:
    """An iterator for ``async for`` over any iterable, async iterable, or awaitable of one.

    A sync source is stepped in worker threads (not always the same one), in one context, never on the loop; ``batch``
    as for :func:`iterate`. A cancelled step loses no item.

    Raises:
        ConfigError: a batch below one.
    """
    _check(batch)
    return _AsyncWalk(source) if _is_async(source) else _Stepped(bridge, source, batch)


def _check(batch: int) -> None:
    if batch < 1:
        raise ConfigError(f"batch is {batch}: a step takes at least one item")


def _is_async(source: Any) -> bool:
    return hasattr(type(source), "__aiter__") or hasattr(type(source), "__await__")


# -- the same kind on both sides --------------------------------------------------------------


class _Walk:
    """A sync iterator that closes its source."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator: Iterator[Any] | None = iterator

    def __iter__(self) -> _Walk:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        _close(iterator)

    def __del__(self) -> None:
        self.close()


class _AsyncWalk:
    """An async iterator that closes its source."""

    __slots__ = ("_iterator", "_loop", "_source")

    def __init__(self, source: Any) -> None:
        self._source = source
        self._iterator: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> _AsyncWalk:
        return self

    async def __anext__(self) -> Any:
        if self._source is not None:
            source, self._source = self._source, None
            if not hasattr(type(source), "__aiter__"):
                source = await source
            self._loop = running_loop()
            self._iterator = aiter(source) if hasattr(type(source), "__aiter__") else _Instant(iter(source))
        if self._iterator is None:
            raise StopAsyncIteration
        try:
            return await anext(self._iterator)
        except Exception:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        source, self._source = self._source, None
        if inspect.iscoroutine(source):
            source.close()
        iterator, self._iterator = self._iterator, None
        await _aclose(iterator if iterator is not None else source)

    def __del__(self) -> None:
        source, iterator, loop = self._source, self._iterator, self._loop
        if inspect.iscoroutine(source):
            source.close()
        # An async generator tells its loop itself when it is dropped.
        if iterator is None or loop is None or inspect.isasyncgen(iterator) or not hasattr(iterator, "aclose"):
            return
        try:
            loop.call_soon_threadsafe(_close_soon, loop, iterator)
        except RuntimeError:
            return  # the loop is closed


class _Instant:
    """What an awaitable gave turned out to be a sync iterable: stepped as it is."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    async def __anext__(self) -> Any:
        item = next(self._iterator, _END)
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        _close(self._iterator)


# -- for, over an async source ----------------------------------------------------------------


class _Driven:
    """The sync face of an async source: asks its pump, item by item."""

    __slots__ = ("__weakref__", "_bridge", "_pump")

    def __init__(self, bridge: Bridge, source: Any, batch: int) -> None:
        self._bridge = bridge
        self._pump = _Pump(bridge.loop, source, batch)
        weakref.finalize(self, self._pump.stop).atexit = False

    def __iter__(self) -> _Driven:
        return self

    def __next__(self) -> Any:
        pump = self._pump
        if not pump.items and not pump.ended:
            with self._bridge.blocked():
                pump.ask()
        if pump.items:
            return pump.items.popleft()
        error, pump.error = pump.error, None
        if error is None:
            raise StopIteration
        try:
            raise error
        finally:
            del error, pump

    def close(self) -> None:
        """End the source, its ``finally`` included; waits for that a few seconds at most."""
        self._pump.stop()
        if running_loop() is not self._pump.loop:
            self._pump.over.wait(CLOSE_S)


class _Pump:
    """One task that owns an async iterator: all its steps and its closing happen there, in one context."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: Any, batch: int) -> None:
        self.loop = loop
        self.items: deque[Any] = deque()
        self.error: BaseException | None = None
        self.ended = False
        self.over = threading.Event()
        self._source = source
        self._batch = batch
        self._pid = os.getpid()
        self._gate = threading.Semaphore(0)
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._asked: asyncio.Event | None = None
        self._context = copy_context()

    def ask(self) -> None:
        """Have it make the next items, and wait for them."""
        if self._pid != os.getpid():
            raise LoadCancelledError("this iteration began before the process was forked: begin another one here")
        try:
            self.loop.call_soon_threadsafe(self._ask)
        except RuntimeError:
            raise ClosedError("the store was closed while it was iterated over") from None
        try:
            self._gate.acquire()
        except BaseException:
            self.stop()
            raise

    def _ask(self) -> None:
        import asyncio

        if self._asked is None:
            self._asked = asyncio.Event()
            self._task = self.loop.create_task(self._drive(self._asked), context=self._context)
        self._asked.set()

    def stop(self) -> None:
        """Any thread, any moment; waits for nothing."""
        self._stopped = True
        if self._pid != os.getpid():
            return
        try:
            self.loop.call_soon_threadsafe(self._stop)
        except RuntimeError:
            self.over.set()  # the loop is closed, and cancelled its tasks before

    def _stop(self) -> None:
        if self._task is None:
            source, self._source = self._source, None
            if inspect.iscoroutine(source):
                source.close()
            self._finish(None)
        elif not self.over.is_set():
            self._task.cancel()

    def _finish(self, error: BaseException | None) -> None:
        self.error = error
        self.ended = True
        self.over.set()
        self._gate.release()

    async def _drive(self, asked: asyncio.Event) -> None:
        import asyncio

        iterator: Any = None
        error: BaseException | None = None
        try:
            source, self._source = self._source, None
            if not hasattr(type(source), "__aiter__"):
                source = await source
            iterator = aiter(source) if hasattr(type(source), "__aiter__") else _Instant(iter(source))
            del source
            while await asked.wait():
                asked.clear()
                end = self.loop.time() + HOP_S
                for _ in range(self._batch):
                    self.items.append(await anext(iterator))
                    if self.loop.time() >= end:
                        break
                self._gate.release()
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if not self._stopped:
                error = LoadCancelledError("the store was closed while it was iterated over")
        except Exception as caught:  # noqa: BLE001 - raised where the item was asked for
            error = caught
        try:
            await _aclose(iterator)
        except Exception as caught:  # noqa: BLE001 - raised where the item was asked for
            error = error or caught
        finally:
            del iterator
            self._finish(error)


# -- async for, over a sync source ------------------------------------------------------------


class _Stepped:
    """The async face of a sync source: asks for steps in worker threads."""

    __slots__ = ("__weakref__", "_bridge", "_pending", "_steps")

    def __init__(self, bridge: Bridge, source: Any, batch: int) -> None:
        self._bridge = bridge
        self._steps = _Steps(source, batch)
        self._pending: asyncio.Future[None] | None = None

    def __aiter__(self) -> _Stepped:
        return self

    async def __anext__(self) -> Any:
        steps = self._steps
        while not steps.items and not steps.ended:
            await self._hop(steps.step)
        if steps.items:
            return steps.items.popleft()
        error, steps.error = steps.error, None
        if error is None:
            raise StopAsyncIteration
        try:
            raise error
        finally:
            del error, steps

    async def _hop(self, what: Any) -> None:
        """Have a worker do it, or wait for the hop that a cancelled caller left behind."""
        import asyncio

        if self._pending is None:
            loop = asyncio.get_running_loop()
            pending = self._pending = loop.create_future()

            def job() -> None:
                try:
                    what()
                finally:
                    _tell(loop, pending)

            self._bridge.workers.submit(job, demand=True, dropped=lambda: _tell(loop, pending))
        with self._bridge.blocked():
            await asyncio.wait((self._pending,))
        self._pending = None
        if self._bridge.workers.closed and not self._steps.items:
            self._steps.ended = True

    async def aclose(self) -> None:
        """Close the source, its ``finally`` included, after the step that runs."""
        if self._pending is not None:
            self._steps.drop()
            await self._hop(None)
        if not self._steps.closed:
            await self._hop(self._steps.close)

    def __del__(self) -> None:
        steps = self._steps
        if steps.closed or not steps.drop():
            return
        if not steps.begun and not hasattr(steps.source, "close"):
            return
        try:
            self._bridge.workers.submit(steps.close, demand=True)
        except (ClosedError, RuntimeError):
            steps.close()


class _Steps:
    """A sync iterator and what was taken from it; one step at a time, in whatever thread."""

    def __init__(self, source: Any, batch: int) -> None:
        self.source = source
        self.items: deque[Any] = deque()
        self.error: BaseException | None = None
        self.ended = False
        self.closed = False
        self.begun = False
        self._batch = batch
        self._context = copy_context()
        self._lock = threading.RLock()
        self._busy = False
        self._dropped = False

    def step(self) -> None:
        with self._lock:
            if self.closed or self._dropped:
                self.ended = True
                return
            self._busy = True
        try:
            self._context.run(self._take)
        except StopIteration:
            self.ended = True
        except BaseException as error:  # noqa: BLE001 - raised where the item was asked for
            self.error, self.ended = error, True
        with self._lock:
            self._busy = False
            over = self._dropped or self.ended
        if over:
            self.close()

    def _take(self) -> None:
        if not self.begun:
            self.begun = True
            self.source = iter(self.source)
        end = time.monotonic() + HOP_S
        for _ in range(self._batch):
            self.items.append(next(self.source))
            if time.monotonic() >= end:
                return

    def drop(self) -> bool:
        """Nobody will ask again. Whether nothing runs, so that the caller must see to the closing."""
        with self._lock:
            self._dropped = True
            return not self._busy

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = self.ended = True
        source, self.source = self.source, None
        try:
            self._context.run(_close, source)
        except BaseException as error:  # noqa: BLE001 - raised where it is asked for next
            self.error = self.error or error


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


async def _aclose(iterator: Any) -> None:
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
    else:
        _close(iterator)


_closing: set[asyncio.Task[None]] = set()


def _close_soon(loop: asyncio.AbstractEventLoop, iterator: Any) -> None:
    task = loop.create_task(_aclose(iterator))
    _closing.add(task)  # a loop holds its tasks weakly
    task.add_done_callback(_closing.discard)


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_set, future)
    except RuntimeError:
        return  # the loop is closed: nobody waits


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
