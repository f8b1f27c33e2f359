"""One load a key: whoever comes first leads, everybody else waits for the outcome, in threads and event loops alike.

Who runs a load, and where, is :mod:`lazystore.cache.loads`; nothing here calls a loader or starts a thread.
No lock is held while Python code of others can run: the registry is one dict, changed by single atomic operations,
and a flight ends by whoever takes its claim first.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lazystore.cache.flight import Deadline
from lazystore.errors import ClosedError, LoadCancelledError, LoadError, LoadTimeoutError, ReentrantLoadError

if TYPE_CHECKING:
    import asyncio

__all__ = ["CURRENT", "Flight", "SingleFlight", "current_load", "deadline_left", "running_loop"]

#: The load whose loader runs in this context. Tasks that a loader starts inherit it.
CURRENT: ContextVar[Flight | None] = ContextVar("lazystore_load", default=None)

#: Guards the edges "this load waits for that one", of all registries: cycles may lead through several stores.
#: Re-entrant: a finalizer may run in the middle and load something.
_edges = threading.RLock()


class Flight:
    """One load under way, and what became of it.

    It ends once, by the first of :meth:`settle`, :meth:`fail` and :meth:`abandon`; later ones return False. Made by
    :meth:`SingleFlight.join`. Threads and loops: any number wait. Fork: in the child it ends as abandoned.
    Not picklable.

    Attributes:
        key: what is loaded.
        done: whether it ended.
        abandoned: whether it ended without an outcome: ask again.
        error: what the loader raised, or None.
        deadline: the latest of those who wait; None if one of them has none.
        parent: the load whose loader asked for this one.
        loop: the event loop that it needs to get on, if any.
        kept: somebody wants it who does not wait: it goes on when the last waiter leaves.
        call_off: called when the last waiter left a flight that is not kept.
        heirs: one is called instead of ending when whoever leads gives up, and sees to it that the flight goes on.
        run: what stands in a queue, or runs elsewhere, for it.
        registry: the table it is in.
        place: not empty while it may be in its registry; taken by who takes it out there.
        successors: by None, the flight that those who waited for this one wait for after it was abandoned.
        excused: it needs no slot of its own, because who holds one waits for it.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_claim",
        "_trace",
        "_value",
        "_waiters",
        "_waits",
        "abandoned",
        "call_off",
        "deadline",
        "done",
        "error",
        "excused",
        "heirs",
        "kept",
        "key",
        "loop",
        "parent",
        "place",
        "registry",
        "run",
        "successors",
    )

    def __init__(
        self,
        registry: SingleFlight | None,
        key: Hashable,
        deadline: Deadline | None = None,
        parent: Flight | None = None,
    ) -> None:
        self.key = key
        self.deadline = deadline
        self.parent = parent
        self.done = False
        self.abandoned = False
        self.kept = False
        self.error: BaseException | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.call_off: Callable[[], None] | None = None
        self.heirs: list[Callable[[], None]] = []
        self.run: Any = None
        self.excused = False
        self.place = [None]
        self.successors: dict[None, Flight] = {}
        self.registry = registry
        self._claim = threading.Lock()
        self._value: Any = None
        self._trace: TracebackType | None = None
        # A waiting thread's locked lock -> None, a waiting task's future -> its loop. Entered, then looked whether
        # the flight ended meanwhile; taken out by popitem: nobody is forgotten, nobody is woken twice.
        self._waiters: dict[Any, asyncio.AbstractEventLoop | None] = {}
        self._callbacks: list[Callable[[Flight], None]] = []
        self._waits: dict[object, Flight] = {}

    @classmethod
    def of(cls, key: Hashable, value: Any) -> Flight:
        """One that has ended well already."""
        flight = cls(None, key)
        flight.settle(value)
        return flight

    @property
    def flight(self) -> Flight:
        """Itself: one that is led by its caller's thread owns its slot itself."""
        return self

    # -- how it ends ------------------------------------------------------------------------

    def settle(self, value: Any) -> bool:
        """It succeeded: everybody gets ``value``. Returns whether this call ended it."""
        if not self._claim.acquire(False):
            return False
        self._value = value
        self._end()
        return True

    def fail(self, error: BaseException) -> bool:
        """It failed: ``error`` itself is raised at everybody. Returns whether this call ended it."""
        if not self._claim.acquire(False):
            return False
        self._trace = _loaders_part(error.__traceback__)
        self.error = error
        self._end()
        return True

    def abandon(self) -> bool:
        """Whoever led was interrupted: an heir goes on with it, else all who wait ask again and one of them leads."""
        while self.heirs and not self.done:
            with suppress(IndexError, ClosedError, RuntimeError):  # another took it; no worker will ever run it
                self.heirs.pop()()
                return False
        if not self._claim.acquire(False):
            return False
        self.abandoned = True
        self.error = LoadCancelledError(f"the load of {self.key!r} was given up before it ended: ask again")
        self._end()
        return True

    def _end(self) -> None:
        try:
            if self.registry is not None:
                self.registry.take_out(self)
        finally:
            self.done = True
            if self.registry is not None:
                self.registry.ended(self)
            self.call_off = self.run = None
            self.heirs.clear()
            if self._waiters:
                self._wake()
            if self._callbacks:
                self._call_back()

    def _wake(self) -> None:
        tasks: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        while True:
            try:
                waiter, loop = self._waiters.popitem()
            except KeyError:
                break
            if loop is None:
                waiter.release()
            else:
                tasks.setdefault(loop, []).append(waiter)
        for loop, futures in tasks.items():
            try:
                loop.call_soon_threadsafe(_set_all, futures)
            except RuntimeError:
                continue  # closed: its tasks do not wait any more

    def _call_back(self) -> None:
        while True:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - it must not end whoever settles the flight
                sys.excepthook(*sys.exc_info())

    # -- waiting ----------------------------------------------------------------------------

    def wait(self, deadline: Deadline | None = None) -> Any:
        """The value, or the loader's error; the thread sleeps until then. None: no deadline.

        Raises:
            LoadTimeoutError: the deadline passed; the load goes on if anybody else wants it.
            LoadCancelledError: it was abandoned, or its store was closed.
            ReentrantLoadError: it waits, perhaps through others, for the load that asks here.
            LoadError: it runs on the event loop that this thread is to run.
        """
        self.wait_end(deadline)
        try:
            return self.result()
        finally:
            del self  # see result()

    async def wait_async(self, deadline: Deadline | None = None) -> Any:
        """As :meth:`wait`, for tasks. Being cancelled cancels the load only if nobody else wants it."""
        await self.wait_end_async(deadline)
        try:
            return self.result()
        finally:
            del self  # see result()

    def wait_end(self, deadline: Deadline | None = None) -> None:
        """Return when it ended, however it did; raises as :meth:`wait` does, but nothing of the load's own."""
        if self.done:
            return
        loop = running_loop()
        if loop is not None and self.needs(loop):
            raise LoadError(
                f"{self.key!r} is being loaded on the event loop of this thread, which waiting here would stop: "
                "await aget() instead of get()"
            )
        gate = threading.Lock()
        gate.acquire()
        with self._awaited(gate):
            try:
                self._waiters[gate] = None
                if not self.done:
                    left = -1.0 if deadline is None else min(deadline.left(), threading.TIMEOUT_MAX)
                    gate.acquire(timeout=left)
                self._raise_if_late(deadline)
            finally:
                self._leave(gate)

    async def wait_end_async(self, deadline: Deadline | None = None) -> None:
        """As :meth:`wait_end`, for tasks."""
        if self.done:
            return
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._awaited(future):
            timer = None if deadline is None else loop.call_later(deadline.left(), _set_all, (future,))
            try:
                self._waiters[future] = loop
                if not self.done:
                    await future
                self._raise_if_late(deadline)
            finally:
                if timer is not None:
                    timer.cancel()
                self._leave(future)

    def result(self) -> Any:
        """The value of a flight that ended, or its error raised; waits for nothing."""
        error = self.error
        if error is None:
            return self._value
        try:
            # The traceback is the loader's each time: it does not grow with every waiter.
            raise error.with_traceback(self._trace)
        finally:
            del self, error  # the traceback must not keep the flight, which keeps the error

    def on_done(self, callback: Callable[[Flight], None]) -> None:
        """Call ``callback(flight)`` once it ended: by whoever ends it, or here and now if it did already."""
        self._callbacks.append(callback)
        if self.done:
            self._call_back()

    def widen(self, deadline: Deadline | None) -> None:
        """Somebody else waits for it, until ``deadline``: the loader has at least that long."""
        mine = self.deadline
        if mine is not None and (deadline is None or deadline.left() > mine.left()):
            self.deadline = deadline

    def _leave(self, waiter: object) -> None:
        self._waiters.pop(waiter, None)
        if not self.done and not self.kept and not self._waiters:
            call_off = self.call_off
            if call_off is not None:
                call_off()

    def _raise_if_late(self, deadline: Deadline | None) -> None:
        """Nothing but the end or the deadline wakes. Before leaving, which may end the flight."""
        if not self.done and deadline is not None:
            raise LoadTimeoutError(
                f"loading {self.key!r} took longer than {deadline.timeout:g} s: give it a longer timeout, or a fallback"
            )

    # -- who waits for whom -----------------------------------------------------------------

    @contextmanager
    def _awaited(self, waiter: object) -> Iterator[None]:
        """While inside, the load of this context waits for this flight; refuse if that closes a circle."""
        load = current_load()
        if load is None:
            yield
            return
        with _edges:
            circle = self._path_to(load)
            if circle is not None:
                raise _circular([load, *circle])
            load._waits[waiter] = self
        try:
            yield
        finally:
            load._waits.pop(waiter, None)

    def lead_for(self, parent: Flight) -> None:
        """The load ``parent`` runs this one, in its own thread."""
        parent._waits[self] = self

    def led_for(self, parent: Flight) -> None:
        """The end of :meth:`lead_for`."""
        parent._waits.pop(self, None)

    def _path_to(self, goal: Flight) -> list[Flight] | None:
        """The flights from this one to ``goal`` along "waits for", both included; None: there is no such way."""
        paths = [[self]]
        seen = {self}
        while paths:
            path = paths.pop()
            if path[-1] is goal:
                return path
            for after in tuple(path[-1]._waits.values()):
                if after not in seen and not after.done:
                    seen.add(after)
                    paths.append([*path, after])
        return None

    def needs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this flight, or one it waits for, cannot end unless ``loop`` runs."""
        seen, todo = {self}, [self]
        while todo:
            flight = todo.pop()
            if flight.loop is loop and not flight.done:
                return True
            fresh = [after for after in tuple(flight._waits.values()) if after not in seen]
            seen.update(fresh)
            todo += fresh
        return False


class SingleFlight:
    """The loads under way, one a key.

    Keys may have any ``__eq__`` and ``__hash__``. Threads and loops: all of a process share one registry.
    Fork: empty in the child, where every flight of the parent's ends as abandoned. Not picklable.

    Attributes:
        leads: flights begun.
        joins: requests that found one under way.
    """

    def __init__(self) -> None:
        self.leads = 0
        self.joins = 0
        self._flights: dict[Hashable, Flight] = {}
        self._forgotten: dict[Flight, None] = {}
        self._counting = threading.RLock()
        _live.add(self)

    def join(self, key: Hashable, deadline: Deadline | None = None) -> tuple[Flight, bool]:
        """The flight of this key, and whether the caller leads it: who does must end it. Cost: about a microsecond."""
        flight = Flight(self, key, deadline)
        found = self.enter(flight)
        return found, found is flight

    def enter(self, flight: Flight, after: Flight | None = None) -> Flight:
        """The flight under way for the same key; if there is none, this one is from now on.

        For leaders that can be interrupted at any point: made first, entered inside their ``try``.

        Args:
            after: the abandoned flight the caller waited for. All who did get the same one next, even if it ends
                before the last of them comes here.
        """
        found = self._flights.setdefault(flight.key, flight)
        if after is not None:
            chosen = after.successors.setdefault(None, found)
            if chosen is not found:
                if found is flight:
                    flight.abandon()
                return chosen
        if found is flight:
            with self._counting:
                self.leads += 1
        else:
            with self._counting:
                self.joins += 1
            found.widen(flight.deadline)
        return found

    def forget(self, key: Hashable) -> None:
        """Who asks for this key from now on loads it anew; those who wait get what is being loaded for them."""
        flight = self._flights.get(key)
        if flight is not None:
            self._forgotten[flight] = None
            self._drop(flight)
            if flight.done:  # meanwhile, so that it may not have found itself here
                self._forgotten.pop(flight, None)

    def take_out(self, flight: Flight) -> None:
        """This very flight is about to end: who comes from now on leads another one."""
        self._drop(flight)

    def ended(self, flight: Flight) -> None:
        """It is done."""
        self._forgotten.pop(flight, None)

    def _drop(self, flight: Flight) -> None:
        # Whoever has its place takes it out, nobody else: so it is the same one that was looked at.
        if flight.place and self._flights.get(flight.key) is flight:
            with suppress(IndexError):
                flight.place.pop()
                self._flights.pop(flight.key, None)

    def under_way(self) -> list[Flight]:
        """All flights that have not ended, forgotten ones included."""
        return [*self._flights.values(), *self._forgotten]

    def __len__(self) -> int:
        return len(self._flights)

    def after_fork(self) -> None:
        """In the child: nobody is left who could end the parent's flights."""
        flights = self.under_way()
        self._flights, self._forgotten = {}, {}
        self._counting = threading.RLock()
        for flight in flights:
            flight._claim = threading.Lock()
            flight._waiters.clear()  # threads and loops of the parent's
            flight._callbacks.clear()
            flight.heirs.clear()
            flight.abandon()


def current_load() -> Flight | None:
    """The load whose loader runs in this context, if it has not ended."""
    flight = CURRENT.get()
    return None if flight is None or flight.done else flight


def deadline_left() -> float | None:
    """Seconds left for the load whose loader runs here, never below zero; None: no deadline, or no load."""
    flight = current_load()
    deadline = None if flight is None else flight.deadline
    return None if deadline is None else deadline.left()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread runs right now, if any; does not import asyncio."""
    asyncio = sys.modules.get("asyncio.events")
    return None if asyncio is None else asyncio._get_running_loop()


def _set_all(futures: list[asyncio.Future[None]] | tuple[asyncio.Future[None], ...]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


#: Whose frames are no news in a traceback, and would keep the flight in it.
_OURS = {__name__, "lazystore.cache.loads", "lazystore.cache.legs"}


def _loaders_part(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OURS:
        trace = trace.tb_next
    return trace


def _circular(path: list[Flight]) -> ReentrantLoadError:
    way = " -> ".join(repr(flight.key) for flight in path)
    return ReentrantLoadError(
        f"the loader of {path[0].key!r} asked for what waits for it ({way}): it would wait for itself for ever; "
        "let the loader ask for other keys only"
    )


# -- fork -----------------------------------------------------------------------------------

_live: weakref.WeakSet[SingleFlight] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    global _edges
    _edges = threading.RLock()
    for flights in list(_live):
        flights.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
