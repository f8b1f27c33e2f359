"""A value that is loaded later: when it is asked for (LAZY), or meanwhile (BACKGROUND).

How the load runs, is joined and is cached is the tiers' business (``cache.tiers``); when a background one begins is
``background.py``'s. A handle is no stand-in for its value: it has to be asked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Generator, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from lazystore.cache.entries import MISSING
from lazystore.cache.flight import Deadline
from lazystore.cache.tiers import Tiers
from lazystore.errors import LoadCancelledError, LoadTimeoutError

if TYPE_CHECKING:
    from lazystore.cache.single_flight import Flight

__all__ = ["Handle"]

T = TypeVar("T")

#: What a handle can be, in the words of its repr.
ASLEEP, QUEUED, LOADING, DONE, FAILED, CANCELLED = "not asked yet", "queued", "loading", "done", "failed", "cancelled"


class Handle(Generic[T]):
    """One load: of a value, or of an error, for good. Made by ``LazyStore.load`` and ``LazyStore.prefetch``.

    ``await handle`` and ``handle.get()`` give the value, from the cache if it is there, else by the load, which runs
    once however many ask. A handle that was not queued does nothing until then. One that is queued in the
    background, and is asked for before its turn, is loaded at once.

    Threads, tasks: any number may ask. Fork: in the child it loads by itself if it was not done. Memory: it keeps its
    value (or error) as long as it lives. Pickling: refused. Interpreter exit: nothing to wait for.

    Parameters:
        tiers: the cache to load through.
        key: the cache key.
        load: called without arguments; gives the value, or an awaitable of it.
        timeout: seconds that :meth:`get` and ``await`` wait if they are not told. None: as long as it takes.
        options: of ``Tiers.get``: ``ttl``, ``weigh``, ``keep``.
    """

    __slots__ = (
        "__weakref__", "_async", "_error", "_load", "_loaded", "_options", "_state", "_take", "_tiers", "_timeout",
        "_trace", "_value", "key",
    )  # fmt: skip

    def __init__(
        self, tiers: Tiers, key: Hashable, load: Callable[[], Any], *, timeout: float | None = None, **options: Any
    ) -> None:
        self.key = key
        self._tiers = tiers
        self._load = load
        self._async = tiers.bridge.is_async(load)
        self._timeout = timeout
        self._options = options
        self._state = ASLEEP
        self._take: Callable[[], bool] | None = None  # takes it out of the queue it is in; False: it has left it
        self._value: Any = MISSING
        self._loaded = False
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None

    # -- asking -------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> T:
        """The value; loads it if it is not there, and waits for it. Raises what the loader raised.

        Parameters:
            timeout: seconds to wait. None: what the handle was made with.

        Raises:
            LoadTimeoutError: it takes longer; the load goes on, and may be asked for again.
            LoadCancelledError: :meth:`cancel` came first, or the store was closed.
        """
        if self._begin():
            return self._outcome()
        deadline = self._deadline(timeout)
        try:
            value = self._tiers.get(self.key, self._call, deadline=deadline, **self._options)
        except Exception as error:
            self._failed(error, deadline)
            raise
        return self._settle(value)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._aget().__await__()

    async def _aget(self) -> T:
        if self._begin():
            return self._outcome()
        deadline = self._deadline(None)
        try:
            value = await self._tiers.aget(self.key, self._call, deadline=deadline, **self._options)
        except Exception as error:
            self._failed(error, deadline)
            raise
        return self._settle(value)

    def peek(self, default: Any = None) -> T | Any:
        """The value if it is there, in the handle or fresh in memory, else ``default``. Neither loads nor waits."""
        if self._value is not MISSING:
            return self._value
        return default if self.done else self._tiers.peek(self.key, default)

    @property
    def done(self) -> bool:
        """It has its value, or its error, or was cancelled."""
        return self._state in (DONE, FAILED, CANCELLED)

    @property
    def error(self) -> BaseException | None:
        """What the load raised (:class:`LoadCancelledError` of a cancelled one), else None. Does not wait."""
        return self._error

    def cancel(self) -> bool:
        """Give it up if it has not begun; asking raises :class:`LoadCancelledError` then. A load is not interrupted.

        Returns: whether it is cancelled.
        """
        take = self._take
        if take is not None and not take():
            return self._state == CANCELLED
        with _changing:
            if self._state in (ASLEEP, QUEUED):
                self._cancelled("before it began")
            return self._state == CANCELLED

    # -- the load -----------------------------------------------------------------------

    def _begin(self) -> bool:
        """It is asked for. Whether it is done."""
        if self._state == LOADING:
            return False
        with _changing:
            if self.done:
                return True
            take, self._take, self._state = self._take, None, LOADING
        if take is not None:
            take()  # without the lock: the queue has one of its own
        return False

    @property
    def _call(self) -> Callable[[], Any]:
        """The load as the tiers get it. It keeps the value before any waiter hears of it: who asks too late to join
        that load finds it, also where nothing is cached."""
        return self._run_async if self._async else self._run

    def _run(self) -> Any:
        if self._loaded:
            return self._value
        found = self._load()
        if isinstance(found, Awaitable):
            return self._run_rest(found)
        return self._settle(found, loaded=True)

    async def _run_async(self) -> Any:
        return self._value if self._loaded else await self._run_rest(self._load())

    async def _run_rest(self, found: Awaitable[Any]) -> Any:
        return self._settle(await found, loaded=True)

    def _deadline(self, timeout: float | None) -> Deadline | None:
        timeout = self._timeout if timeout is None else timeout
        return None if timeout is None else Deadline(timeout)

    # -- how it ends --------------------------------------------------------------------

    def _settle(self, value: T, *, loaded: bool = False) -> T:
        with _changing:
            if not self.done:
                self._value, self._state, self._take = value, DONE, None
                self._loaded = loaded  # not of a stale value, whose refreshing load is still to come
        return value

    def _failed(self, error: BaseException, deadline: Deadline | None = None) -> None:
        """The load raised; a wait that ended before the load did says nothing about it."""
        if isinstance(error, LoadCancelledError) or (isinstance(error, LoadTimeoutError) and deadline is not None):
            return
        with _changing:
            if not self.done:
                self._error, self._trace, self._state, self._take = error, error.__traceback__, FAILED, None

    def _cancelled(self, when: str) -> None:
        self._state, self._take = CANCELLED, None
        self._error = LoadCancelledError(f"the load of {self.key!r} was cancelled {when}: make another handle")

    def _outcome(self) -> T:
        error = self._error
        if error is None:
            found: T = self._value
            return found
        try:
            raise error.with_traceback(self._trace)
        finally:
            del self, error  # the traceback must not keep the handle, which keeps the error

    # -- for background.py --------------------------------------------------------------

    def _queue(self, take: Callable[[], bool]) -> bool:
        """It waits in a queue now, which ``take`` takes it from. False: it has begun already, or ended."""
        with _changing:
            if self._state != ASLEEP:
                return False
            self._state, self._take = QUEUED, take
            return True

    def _start(self, priority: float) -> Flight | None:
        """Its turn has come: the load under way. None: somebody asked for it meanwhile, or it was cancelled."""
        with _changing:
            if self._state != QUEUED:
                return None
            self._state, self._take = LOADING, None
        return self._tiers.start(self.key, self._call, priority=priority, **self._options)

    def _ended(self, flight: Flight) -> None:
        """The background load ended; one that was given up may be asked for again."""
        if flight.error is not None:
            self._failed(flight.error)
        else:
            self._settle(flight.result())

    def _dropped(self) -> None:
        """Its queue was closed, or emptied, before its turn."""
        with _changing:
            if self._state == QUEUED:
                self._cancelled("before its turn came")

    def _unqueued(self) -> None:
        """There was no room for it: asked for, it loads."""
        with _changing:
            if self._state == QUEUED:
                self._state, self._take = ASLEEP, None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to a live store and cannot be pickled: pickle its value, or the store")

    def __repr__(self) -> str:
        state = f"{self._state}: {self._error!r}" if self._state == FAILED else self._state
        return f"<Handle of {self.key!r}, {state}>"


#: Guards the states of all handles; held for a few instructions. One for all, so that a fork can make it anew.
_changing = threading.RLock()


def _after_fork_in_child() -> None:
    global _changing
    _changing = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
