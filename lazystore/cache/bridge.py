"""Calls across the border between threads and event loops: either kind of function from either kind of caller.

Coroutines of synchronous callers run on one loop of the bridge's own, blocking functions of asynchronous callers in
worker threads. Which loads run at all is :mod:`lazystore.cache.loads`; iterators are :mod:`lazystore.cache.steps`.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from lazystore.cache.single_flight import deadline_left, running_loop
from lazystore.cache.workers import Workers
from lazystore.errors import ClosedError, LoadCancelledError, LoadError

if TYPE_CHECKING:
    import asyncio

    from lazystore.fetch.threads import LoopThread

__all__ = ["Bridge", "deadline_left", "is_async", "is_awaitable"]

#: Seconds that tasks of the own loop have to end when they are cancelled at closing.
CLOSE_S = 2.0


class Bridge:
    """Runs functions of either kind for callers of either kind.

    Args:
        workers: threads for blocking functions of asynchronous callers.

    Threads and loops: any number call. The own loop is a daemon thread, started when a synchronous caller first has
    a coroutine, ended by :meth:`close` or when the bridge is dropped. Fork: the child starts one of its own.
    Interpreter exit: does not wait for what hangs. Not picklable.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        #: around waiting for a load: in a worker, another thread may take its place meanwhile
        self.blocked: Callable[[], AbstractContextManager[None]] = getattr(workers, "blocked", nullcontext)
        self.closed = False
        self._own = _Own()
        self._ending = weakref.finalize(self, _Own.halt, self._own)
        _live.add(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop for coroutines of synchronous callers; its thread starts when it is first asked for."""
        loop = None if self.closed else self._own.started().loop
        if loop is None or self.closed:  # perhaps just now, before it was started
            self._own.halt()
            raise ClosedError("the store is closed: its event loop has ended")
        return loop

    def owns(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is the own loop."""
        return self._own.runs(loop)

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """What ``func(*args)`` returns; an awaitable is awaited on the own loop while this thread waits.

        Raises:
            LoadError: an awaitable where this thread runs an event loop: waiting would stop it.
        """
        result = func(*args)
        if not is_awaitable(result):
            return result
        refuse_inside_loop(result, name_of(func))
        return self.run(result)

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await it on the own loop; an interrupted wait cancels it."""
        import asyncio

        try:
            loop = self.loop
        except ClosedError:
            close_unawaited(awaitable)
            raise
        future = asyncio.run_coroutine_threadsafe(_awaited(awaitable), loop)
        try:
            with self.blocked():
                return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future

    async def acall(self, func: Callable[..., Any], *args: Any) -> Any:
        """What ``func(*args)`` returns: coroutine functions are awaited here, others run in a worker thread, with a
        copy of the context; if those return an awaitable, it is awaited here. Being cancelled drops the result."""
        if is_async(func):
            return await func(*args)
        result = await self._in_worker(functools.partial(func, *args))
        if is_awaitable(result):
            return await result
        return result

    async def _in_worker(self, func: Callable[[], Any]) -> Any:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        context = copy_context()

        def job() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(func)
            except BaseException as caught:  # noqa: BLE001 - raised where it is awaited
                error = caught
            try:
                loop.call_soon_threadsafe(_hand_over, future, result, error)
            except RuntimeError:
                close_unawaited(result)  # the loop is closed: nobody waits

        task = self.workers.submit(job, demand=True)
        try:
            with self.blocked():
                result, error = await future
        except BaseException:
            task.cancel()
            raise
        if error is None:
            return result
        try:
            raise error
        finally:
            del error

    def iterate(self, source: Any, *, batch: int = 1) -> Iterator[Any]:
        """An iterator for ``for`` over an iterable of either kind; see :func:`lazystore.cache.steps.iterate`."""
        from lazystore.cache import steps

        return steps.iterate(self, source, batch)

    def aiterate(self, source: Any, *, batch: int = 1) -> AsyncIterator[Any]:
        """An iterator for ``async for`` over an iterable of either kind; see :func:`lazystore.cache.steps.aiterate`."""
        from lazystore.cache import steps

        return steps.aiterate(self, source, batch)

    @staticmethod
    def is_async(func: Callable[..., Any]) -> bool:
        """Whether calling it gives a coroutine for certain; see :func:`is_async`."""
        return is_async(func)

    def close(self) -> None:
        """End the own loop: what still runs there is cancelled and has ``CLOSE_S`` to end. Twice is harmless."""
        self.closed = True
        self._own.stop()

    def after_fork(self) -> None:
        """In the child: the loop's thread has stayed with the parent."""
        self._own.forget()


class _Own:
    """The bridge's loop thread, held apart so that it can be ended when the bridge itself is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._orphans: list[LoopThread] = []

    def started(self) -> LoopThread:
        thread = self._thread
        if thread is not None:
            return thread
        from lazystore.fetch.threads import LoopThread

        with self._lock:
            if self._thread is None:
                # in no load's context: its own handles would keep that for ever
                self._thread = Context().run(LoopThread, "lazystore-bridge")
            return self._thread

    def runs(self, loop: asyncio.AbstractEventLoop) -> bool:
        thread = self._thread
        return thread is not None and thread.loop is loop

    def halt(self) -> None:
        """End it without waiting: any thread, any moment."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.loop.call_soon_threadsafe(_wind_down, thread.loop)
            except RuntimeError:
                return  # closed already

    def stop(self) -> None:
        thread = self._thread
        self.halt()
        if thread is not None and threading.current_thread() is not thread._thread:
            thread._thread.join(CLOSE_S)

    def forget(self) -> None:
        self._lock = threading.Lock()
        thread, self._thread = self._thread, None
        if thread is not None:
            from lazystore.fetch.threads import defuse_loop

            defuse_loop(thread.loop)
            self._orphans.append(thread)  # never collected: its tasks are the parent's


def _wind_down(loop: asyncio.AbstractEventLoop) -> None:
    """On the loop: cancel everything, let it end, close what generators hold, stop."""
    import asyncio

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        await loop.shutdown_asyncgens()

    ending = loop.create_task(end())
    ending.add_done_callback(lambda _: loop.stop())


def is_async(func: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine for certain: coroutine functions, partials and methods of them, objects
    whose ``__call__`` is one. Others may still return an awaitable. Cost: half a microsecond."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004


def is_awaitable(value: Any) -> bool:
    """Whether ``await value`` works. Cost: 50 ns."""
    return hasattr(type(value), "__await__")


def close_unawaited(value: Any) -> None:
    """A coroutine that nobody will await is closed, so that it does not warn; and those it was given to await."""
    if not inspect.iscoroutine(value):
        return
    frame = value.cr_frame if inspect.getcoroutinestate(value) == inspect.CORO_CREATED else None
    given = list(frame.f_locals.values()) if frame is not None else []
    value.close()
    for inner in given:
        close_unawaited(inner)


def refuse_inside_loop(awaitable: Any, what: str) -> None:
    """Raise, and close the coroutine, where this thread runs an event loop."""
    if running_loop() is not None:
        close_unawaited(awaitable)
        raise LoadError(
            f"{what} is asynchronous, and this thread runs an event loop that waiting here would stop: "
            "await the asynchronous verb (aget() for get())"
        )


def name_of(func: Callable[..., Any]) -> str:
    """What to call it in a message."""
    return getattr(func, "__qualname__", None) or repr(func)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    import asyncio

    try:
        return await awaitable
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise LoadCancelledError("the store was closed, or the caller interrupted, while a coroutine ran") from None
        raise LoadCancelledError("a coroutine was cancelled from inside") from None


def _hand_over(
    future: asyncio.Future[tuple[Any, BaseException | None]], result: Any, error: BaseException | None
) -> None:
    if future.done():
        close_unawaited(result)
    else:
        future.set_result((result, error))


# -- fork -----------------------------------------------------------------------------------

_live: weakref.WeakSet[Bridge] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for bridge in list(_live):
        bridge.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
