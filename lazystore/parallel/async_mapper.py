"""`aimap`: `imap` for event loops, for ordinary functions and for ``async def`` ones.

Here: the iterator that callers hold. Ordinary functions run in an `imap` that lives in a thread of its own
(``own_thread``), async ones as tasks of the loop (``task_window``).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from lazystore.parallel.map_stats import MapStats
    from lazystore.parallel.scheduling.policy import OnError

__all__ = ["AsyncImap", "aimap"]

#: seconds for which results that are there are handed out before the loop gets its turn
SLICE_S: Final = 0.005


class Runner(Protocol):
    """Runs items in the background of a loop; used by one task at a time."""

    stats: MapStats

    async def take(self) -> list[Any]:
        """Results, at least one unless there are no more; cancelled, it loses none.

        Raises:
            BaseException: the error of the item, or of the data, whose turn it is.
        """
        ...

    async def close(self) -> None:
        """Stop, and wait until nothing runs any more. Twice is fine."""
        ...


class AsyncImap:
    """The results of :func:`aimap`: an async iterator, and an async context manager that stops it.

    Leaving the context, :meth:`aclose`, the end of the loop (``asyncio.run``) and dropping the iterator all stop what
    runs and end its thread and workers. A task that is cancelled while it waits for a result loses none: iterating may
    go on. Several tasks of the loop may take from one iterator; each result goes to one of them.

    Attributes:
        stats: a :class:`~lazystore.parallel.map_stats.MapStats`, kept up to date.

    Threads: used in the event loop in which it was first iterated. Fork, pickling: none.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._ready: deque[Any] = deque()
        self._until = 0.0
        self._turn = asyncio.Lock()
        self._guard: AsyncGenerator[None, None] | None = None
        self._closed = False
        self.stats = runner.stats

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._ready and time.monotonic() < self._until:
            return self._ready.popleft()
        if self._ready:
            await asyncio.sleep(0)
        while not self._ready:
            async with self._turn:
                await self._fill()
        self._until = time.monotonic() + SLICE_S
        return self._ready.popleft()

    async def _fill(self) -> None:
        if self._ready:  # by whose turn it was before
            return
        if self._closed:
            raise StopAsyncIteration
        if self._guard is None:
            self._guard = _guarded(self._runner)
            await anext(self._guard)
        try:
            results = await self._runner.take()
        except (StopIteration, StopAsyncIteration) as error:  # an item's, not ours
            raise RuntimeError(f"func or data raised {type(error).__name__}") from error
        if not results:
            await self.aclose()
            raise StopAsyncIteration
        self._ready.extend(results)

    async def aclose(self) -> None:
        """Stop: nothing more is taken from the data, what runs is cancelled or, in threads, waited for; the thread and
        idle workers end. Results not yet taken are dropped. Twice is fine.
        """
        self._closed = True
        self._ready.clear()
        await self._runner.close()
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncImap{', closed' if self._closed else ''}: {self.stats!r}>"


async def _guarded(runner: Runner) -> AsyncGenerator[None, None]:
    """Closes the runner when the loop ends, or when the iterator that holds this is dropped.

    Loops see to both, but only for async generators.
    """
    try:
        yield
    finally:
        await runner.close()


def aimap(
    func: Callable[[Any], Any],
    data: Iterable[Any] | AsyncIterable[Any],
    *,
    ordered: bool = True,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    backend: str | Executor = "auto",
    max_buffer_bytes: int | str | None = None,
    on_error: OnError = "raise",
    retries: int = 0,
    timeout: float | None = None,
    initializer: Callable[[], object] | None = None,
    progress: bool | str | None = None,
    total: int | None = None,
) -> AsyncImap:
    """:func:`lazystore.imap` for event loops: ``async for result in aimap(func, data)``.

    An ordinary function runs as `imap` runs it, in this process, threads or worker processes, whatever pays; all that
    blocks happens in one thread made for it, never in the loop. At most one batch of results is made ahead of the
    consumer, beyond `imap`'s own window. ``data`` that is an async iterable is read in the loop, some 32 items ahead;
    other data are read in that thread.

    An ``async def`` function runs as tasks of the loop, ``n_jobs`` (default 32) at once; at most twice as many items
    have been taken from ``data`` and not been handed out. New tasks begin only while the consumer waits for a result.

    Parameters:
        func: called with each item.
        data: items; iterated once, any iterable or async iterable. If ``func`` is async it is iterated in the loop: an
            iterable that blocks (a remote dataset, say) then blocks the loop.
        ordered: results in the order of the items, else as they come.
        n_jobs: workers, or tasks at once; None: as many as pay, or 32 tasks.
        chunksize, backend: as in :func:`lazystore.imap`; not for async functions.
        max_buffer_bytes: what items and results ahead of the consumer may weigh; for async functions: finished results.
        on_error: "raise", "yield", "skip" or a function; see :func:`lazystore.imap`.
        retries: times an item whose ``func`` raised is tried again.
        timeout: seconds one call may take.
        initializer: called before a worker's first item; for async functions once, and awaited if it is async.
        progress: True, or a label: show a progress bar.
        total: number of items, where ``data`` does not tell.

    Raises:
        ConfigError: an argument that cannot work.
        What ``func`` or ``data`` raise, with a note that names the item: in its turn, while iterating.

    Cost: some 0.5 us a result that is there already, 100 us for a batch to come over from the thread; 5 us a task.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("func", "data")}
    if _is_async(func):
        from lazystore.parallel.task_window import TaskWindow

        return AsyncImap(TaskWindow(func, data, **arguments))
    from lazystore.parallel.own_thread import OwnThread

    return AsyncImap(OwnThread(func, data, **arguments))


def _is_async(func: Callable[[Any], Any] | Callable[[Any], Awaitable[Any]]) -> bool:
    """Whether calling it gives something to be awaited, as far as it says so."""
    called = getattr(type(func), "__call__", None)  # noqa: B004 (looked at, not asked for)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(called)
