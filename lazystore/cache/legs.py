"""Coroutines of loads on event loops: begun there from any thread, and given up when the loop is closed under them."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any

from lazystore.cache.bridge import close_unawaited, is_awaitable
from lazystore.cache.single_flight import CURRENT, Flight, running_loop
from lazystore.errors import LoadCancelledError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Leg", "LoopWatch"]

#: Seconds until a timer that is never meant to fire.
FAR = 1e8


class Leg:
    """A load's coroutine as a task of one loop; the task ends the flight.

    The task is detached from whoever asked, so that their being cancelled does not concern it.

    Args:
        flight: whose outcome it is.
        call: gives the value or an awaitable; called on the loop.
        loop: where it runs.
        context: what it runs in.
        watch: tells when the loop is closed under it.
        freed: called once when nothing of it runs any more, or ever will.
        interruptible: what interrupts or ends the interpreter may be the loop's own business, not the loader's.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_context",
        "_freed",
        "_interruptible",
        "_told",
        "_watch",
        "flight",
        "loop",
        "task",
    )

    def __init__(
        self,
        flight: Flight,
        call: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        context: Context,
        watch: LoopWatch,
        freed: Callable[[], None],
        *,
        interruptible: bool = True,
    ) -> None:
        self.flight = flight
        self.loop = loop
        self.task: asyncio.Task[None] | None = None
        self._call: Callable[[], Any] | None = call
        self._context = context
        self._watch = watch
        self._freed: Callable[[], None] | None = freed
        self._interruptible = interruptible
        self._told = False  # the flight is not its any more
        flight.loop = loop
        flight.call_off = self.cancel

    def begin(self) -> bool:
        """Start it: here if this thread runs the loop, else as soon as the loop gets to it.

        False: the loop is closed, the flight is abandoned; ``freed`` is not called then.
        """
        try:
            if running_loop() is self.loop:
                self._land()
                return True
            landing = _Landing(self)
            self.loop.call_soon_threadsafe(landing)
            # Closed in between it keeps for ever what it was given, unseen.
            if not self.loop.is_closed() or not landing.take_back():
                return True
        except RuntimeError:
            pass
        self._freed = None
        self.lost()
        return False

    def _land(self) -> None:
        if self.flight.done or self._told:
            self.lost()  # called off on its way here
            return
        self._watch.add(self)
        self.task = self.loop.create_task(self._fly(), context=self._context)
        self.task.add_done_callback(self._landed)

    async def _fly(self) -> None:
        import asyncio

        flight, call = self.flight, self._call
        self._call = None
        CURRENT.set(flight)
        try:
            assert call is not None
            value = call()
            del call
            if is_awaitable(value):
                value = await value
        except asyncio.CancelledError:
            if self.task is not None and self.task.cancelling():
                raise  # and _landed gives it up
            self._tell(flight.fail, LoadCancelledError(f"the loader of {flight.key!r} was cancelled from inside"))
        except Exception as error:  # noqa: BLE001 - raised at everybody who waits
            self._tell(flight.fail, error)
        except BaseException as error:
            ends_loop = self._interruptible and isinstance(error, (KeyboardInterrupt, SystemExit))
            if ends_loop or self.task is None:  # None: it is being closed
                raise  # and is given up
            self._tell(flight.fail, error)
        else:
            self._tell(flight.settle, value)

    def _tell(self, end: Callable[[Any], bool], outcome: Any) -> None:
        """End the flight, if it is still this leg's to end."""
        if not self._told:
            self._told = True
            end(outcome)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._watch.discard(self)
        if not task.cancelled():
            task.exception()  # if there is one the loop has raised it already
        self._end()

    def cancel(self) -> None:
        """Nobody wants it any more: it is cancelled, and who asks from now on loads anew. Any thread."""
        self._give_up()
        try:
            self.loop.call_soon_threadsafe(self._cancel_task)
        except RuntimeError:
            self.lost()

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()
        else:
            self._end()  # it waits for its turn

    def lost(self) -> None:
        """The loop was closed under it, or it never began: the flight is given up, the coroutine is closed."""
        task, self.task = self.task, None
        self._end()
        if task is not None and not task.done():
            quiet(task)
            coroutine: Any = task.get_coro()
            with suppress(RuntimeError):  # it awaits while it closes
                coroutine.close()

    def _end(self) -> None:
        """Nothing of it runs any more. The slot first: who goes on with an abandoned flight needs one."""
        freed, self._freed = self._freed, None
        if freed is not None:
            freed()
        self._give_up()
        call, self._call = self._call, None
        if isinstance(call, Given):
            close_unawaited(call.value)

    def _give_up(self) -> None:
        """Once: an heir may go on with the flight, which is the heir's from then on."""
        if not self._told:
            self._told = True
            self.flight.abandon()


class Given:
    """A call that was made elsewhere: gives what it gave."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


class _Landing:
    """Entered into a loop's queue; dropped with it unseen if the loop is closed first."""

    __slots__ = ("_legs",)

    def __init__(self, leg: Leg) -> None:
        self._legs = [leg]  # taken by pop: by the loop, by who entered it, or when it is dropped

    def __call__(self) -> None:
        for leg in self._taken():
            leg._land()

    def take_back(self) -> bool:
        """Whether the loop has not come to it, and never will."""
        return bool(self._taken())

    def _taken(self) -> list[Leg]:
        try:
            return [self._legs.pop()]
        except IndexError:
            return []

    def __del__(self) -> None:
        for leg in self._taken():
            leg.lost()


class LoopWatch:
    """Tells legs that their loop was closed.

    asyncio tells nobody. But a loop drops its timers when it is closed: one far timer a loop holds the only
    reference to what tells.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._legs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, set[Leg]] = weakref.WeakKeyDictionary()

    def add(self, leg: Leg) -> None:
        """From the loop's own thread."""
        with self._lock:
            legs = self._legs.get(leg.loop)
            if legs is None:
                legs = self._legs[leg.loop] = set()
                leg.loop.call_later(FAR, _Canary(legs), context=Context())
        legs.add(leg)

    def discard(self, leg: Leg) -> None:
        legs = self._legs.get(leg.loop)
        if legs is not None:
            legs.discard(leg)

    def reset(self) -> None:
        """In a forked child: nothing that ran before runs here, and nothing of it is ended here."""
        self._lock = threading.RLock()
        for legs in list(self._legs.values()):
            for leg in legs:
                if leg.task is not None:
                    quiet(leg.task)
            legs.clear()


class _Canary:
    __slots__ = ("_legs",)

    def __init__(self, legs: set[Leg]) -> None:
        self._legs = legs

    def __call__(self) -> None:
        """Three years have passed."""

    def __del__(self) -> None:
        while self._legs:
            try:
                self._legs.pop().lost()
            except Exception:  # noqa: BLE001 - a coroutine's own while it closes: the others are told all the same
                sys.excepthook(*sys.exc_info())


def quiet(task: asyncio.Task[Any]) -> None:
    """Its loop is gone: that it never ends is told to whoever waited, not to the log."""
    if hasattr(task, "_log_destroy_pending"):
        task._log_destroy_pending = False
