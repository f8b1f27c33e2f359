"""An async function over a stream, as tasks of the event loop: a window of them, begun while a result is waited for.

The loop's counterpart of ``engine``: no threads, no workers, and no clock but for statistics.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Final

from lazystore.errors import ConfigError, ItemTimeoutError, WorkerError
from lazystore.parallel.arguments import Given, length_of
from lazystore.parallel.failures import Failed
from lazystore.parallel.map_stats import MapStats, progress_of
from lazystore.parallel.scheduling.policy import OnError, Policy
from lazystore.parallel.workers.chunk_run import weigh

__all__ = ["TaskWindow"]

#: tasks at once, where nothing is said
TASKS: Final = 32
#: items taken from the data and not handed out, for each task that may run
AHEAD: Final = 2
_NONE: Any = object()


class TaskWindow:
    """Runs an async function for an event loop; see :class:`~lazystore.parallel.async_mapper.Runner`.

    A task takes one item from the data and runs it. They take in turn, so that items are numbered as they come.

    Parameters:
        func: an async function.
        data: an iterable or async iterable.
        others: see :func:`~lazystore.parallel.async_mapper.aimap`.

    Raises:
        ConfigError: an argument that cannot work, or has no meaning for async functions.
    """

    def __init__(
        self,
        func: Callable[[Any], Awaitable[Any]],
        data: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        n_jobs: int | None,
        chunksize: int | None,
        backend: object,
        max_buffer_bytes: int | str | None,
        on_error: OnError,
        retries: int,
        timeout: float | None,
        initializer: Callable[[], object] | None,
        progress: bool | str | None,
        total: int | None,
    ) -> None:
        if backend != "auto" or chunksize is not None:
            wrong = f"backend={backend!r}" if backend != "auto" else f"chunksize={chunksize!r}"
            raise ConfigError(f"{wrong} has no meaning for an async function, which runs as tasks of the event loop")
        given = Given(n_jobs, None, max_buffer_bytes, retries, timeout, total)
        self._func = func
        self._ordered = ordered
        self._most = given.workers or TASKS
        self._room = None if max_buffer_bytes is None else given.bytes
        self._policy = Policy(on_error)
        self._retries = given.retries
        self._timeout = timeout
        self._initializer = initializer
        if isinstance(data, AsyncIterable):
            self._source: Any = aiter(data)
            self._pull: Callable[[], Awaitable[Any]] = self._await_item
        else:
            self._source = iter(data)
            self._pull = self._take_item
        self._turn = asyncio.Lock()
        if given.total is None and isinstance(data, Iterable):
            given.total = length_of(data, 0)
        self.stats = MapStats(progress_of(progress, func, given.total))
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Future[None] | None = None
        self._begun = False
        self._over = False
        self._closed = False
        self._error: BaseException | None = None  # of the data
        self._ahead = 0  # items begun and not handed out
        self._held_bytes = 0.0
        self._pulled = 0  # items taken from the data
        self._due = 0  # index of the next result, in order
        self._arrived: dict[int, Any] = {}
        self._order: deque[int] = deque()  # as they arrived

    # -- results --------------------------------------------------------------------------

    async def take(self) -> list[Any]:
        """See :class:`~lazystore.parallel.async_mapper.Runner`."""
        if not self._begun:
            await self._begin()
        while True:
            self._begin_tasks()
            results = self._handed_out()
            if results:
                self.stats.delivered(len(results))
                return results
            if not self._running:
                if self._error is None:
                    return []
                error, self._error = self._error, None
                raise error
            await self._wait()

    async def _begin(self) -> None:
        self._begun = True
        self.stats.decided(time.perf_counter(), f"async function: {self._most} tasks at once", "tasks", self._most)
        if self._initializer is not None:
            made = self._initializer()
            if inspect.isawaitable(made):
                await made

    def _handed_out(self) -> list[Any]:
        """Results whose turn it is, failures judged; an error is raised when it comes first."""
        results: list[Any] = []
        while True:
            index = self._due if self._ordered else self._order[0] if self._order else -1
            result = self._arrived.get(index, _NONE)
            if result is _NONE:
                return results
            failed = isinstance(result, _Failure)
            if failed and results and (self._policy.may_raise or not isinstance(result.failed.error, Exception)):
                return results
            self._forget(index, result)
            if failed:
                results += self._policy.apply(result.failed, result.item)
                self.stats.skipped = self._policy.skipped
            else:
                results.append(result)

    def _forget(self, index: int, result: Any) -> None:
        del self._arrived[index]
        self._ahead -= 1
        if self._room is not None:
            self._held_bytes -= weigh(result)
        if self._ordered:
            self._due += 1
        else:
            self._order.popleft()

    async def _wait(self) -> None:
        """Return when a task has ended."""
        began = time.perf_counter()
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None
            self.stats.waiting_s += time.perf_counter() - began

    # -- tasks ----------------------------------------------------------------------------

    def _begin_tasks(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._over and len(self._running) < self._most:
            full = self._room is not None and self._held_bytes >= self._room
            if self._ahead >= AHEAD * self._most or (full and self._ahead):
                self.stats.window_stalls += 1
                break
            self._ahead += 1
            task = loop.create_task(self._one())
            self._running.add(task)
            task.add_done_callback(self._ended)
        self.stats.held(self._ahead, self._held_bytes)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _one(self) -> None:
        """Take an item and run it."""
        item = await self._pull()
        if item is _NONE:
            self._ahead -= 1
            return
        index = self._pulled - 1
        began = time.perf_counter()
        result = await self._run(item, index)
        self.stats.ran(index, time.perf_counter() - began)
        self._arrived[index] = result
        if self._room is not None:
            self._held_bytes += weigh(result)
        if not self._ordered:
            self._order.append(index)

    async def _run(self, item: Any, index: int) -> Any:
        for left in range(self._retries, -1, -1):
            try:
                if self._timeout is None:
                    return await self._func(item)
                return await self._in_time(item, index, self._timeout)
            except Exception as error:  # noqa: BLE001 (the caller's function; raised or judged in its turn)
                failure: Exception = error
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if self._closed or (task is not None and task.cancelling()):
                    raise
                failure = WorkerError("func was cancelled by something that it waited for")
                failure.__cause__ = error
            if left:
                self.stats.retried += 1
        self.stats.failed += 1
        return _Failure(Failed(failure, index, item), item)

    async def _in_time(self, item: Any, index: int, seconds: float) -> Any:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._func(item)
        except TimeoutError:
            if not limit.expired():
                raise
        message = f"item {index} took longer than timeout={seconds} s; give it more time, or on_error="
        raise ItemTimeoutError(f'{message}"skip"', index=index)

    # -- data -----------------------------------------------------------------------------

    async def _take_item(self) -> Any:
        return _NONE if self._over else self._next(next, _NONE)

    def _next(self, step: Callable[..., Any], *end: Any) -> Any:
        try:
            item = step(self._source, *end)
        except Exception as error:  # noqa: BLE001 (the data's own; raised when what came before was handed out)
            self._error = error
            item = _NONE
        return self._numbered(item)

    def _numbered(self, item: Any) -> Any:
        if item is _NONE:
            self._over = True
        else:
            self._pulled += 1
        return item

    async def _await_item(self) -> Any:
        async with self._turn:
            if self._over:
                return _NONE
            try:
                item = await anext(self._source, _NONE)
            except Exception as error:  # noqa: BLE001 (as above)
                self._error = error
                item = _NONE
            return self._numbered(item)

    # -- end ------------------------------------------------------------------------------

    async def close(self) -> None:
        """See :class:`~lazystore.parallel.async_mapper.Runner`."""
        self._closed = self._over = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self._arrived.clear()
        self._order.clear()
        self.stats.ended(time.perf_counter())


class _Failure:
    """An item that failed, and how."""

    __slots__ = ("failed", "item")

    def __init__(self, failed: Failed, item: Any) -> None:
        self.failed = failed
        self.item = item
