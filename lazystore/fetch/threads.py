"""The threads that fetching may use: one event loop, and a few workers for blocking filesystems.

All are daemons, start with the first read and are joined by ``close()``. What a forked child
must do with its parent's loop is here as well.
"""

from __future__ import annotations

import asyncio
import queue
import selectors
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["DaemonPool", "LoopThread", "defuse_loop"]

#: Seconds to wait for a thread at closing; one that is stuck in a blocking call is left to itself.
JOIN_S = 2.0


class LoopThread:
    """One daemon thread that runs one event loop, from construction until :meth:`stop`.

    Threads: ``loop`` is entered from others by ``call_soon_threadsafe`` and its kin only. Fork: dead
    in the child; call :func:`defuse_loop` there. Not picklable.
    """

    def __init__(self, name: str) -> None:
        # Not the policy's: defuse_loop() knows this kind, and nobody else's loop is needed here.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while True:
                try:
                    self.loop.run_forever()
                except (KeyboardInterrupt, SystemExit):  # a task's, told to whoever awaits it: no signal comes here
                    continue
                return
        finally:
            self.loop.close()

    def stop(self) -> None:
        """Stop the loop and join the thread, unless this is that thread. Stopping twice is harmless."""
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            return  # closed already
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)


class DaemonPool:
    """At most ``size`` daemon threads that run blocking calls for an event loop.

    Not the loop's default executor: its threads are not daemons, so a call that hangs would keep the
    interpreter from ending. Threads start one by one as calls need them. A call whose waiter is gone
    runs to its end; its result is dropped.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function(*args, **kwargs)`` on one of the threads; raises what it raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            if self._idle <= 0 and len(self._threads) < self._size:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            else:
                self._idle -= 1
        self._calls.put((loop, future, function, args, kwargs))
        return await future

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            loop, future, function, args, kwargs = call
            result: Any = None
            error: BaseException | None = None
            try:
                result = function(*args, **kwargs)
            except BaseException as caught:  # noqa: BLE001 - raised where the result is awaited
                error = caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            with self._lock:
                self._idle += 1
            del call, future, function, args, kwargs, result, error  # an idle thread holds no data

    def close(self) -> None:
        """Let the threads end after their current call and join them."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)
        self._threads.clear()


_Call = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:  # would end the loop, or could not be raised from a coroutine
        future.set_exception(RuntimeError(f"the filesystem raised {error!r}"))


def defuse_loop(loop: asyncio.AbstractEventLoop) -> None:
    """In a forked child, cut the inherited loop off from its parent's.

    The epoll set behind the selector is shared with the parent: if the child's garbage collector closed
    a connection, the parent's loop would no longer hear of it. With an empty selector in its place,
    closing finds nothing to unregister.
    """
    if hasattr(loop, "_selector"):
        loop._selector = selectors.SelectSelector()
    loop.set_exception_handler(_ignore)


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The child reports nothing about sessions that are its parent's to close."""
