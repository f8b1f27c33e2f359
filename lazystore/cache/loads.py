"""Single flight, and who runs it: the caller's own thread, a worker, or an event loop.

What is loaded, kept and tried again is :mod:`lazystore.cache.tiers`' business; here a load is a function without
arguments that returns its value or an awaitable, and is called once for everybody who wants it now.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from lazystore.cache.bridge import Bridge, close_unawaited, is_async, is_awaitable
from lazystore.cache.flight import Deadline
from lazystore.cache.legs import Given, Leg, LoopWatch
from lazystore.cache.runs import Run, called, for_others, given_up_error
from lazystore.cache.single_flight import CURRENT, Flight, SingleFlight, current_load, running_loop
from lazystore.cache.slots import Owner, Slots
from lazystore.errors import ClosedError, LoadError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Loads"]

#: What a load of this thread gave goes on somewhere else.
_ELSEWHERE = object()


class Loads:
    """One load a key at a time, at most ``concurrency`` at once, for threads, tasks and the background together.

    A load that another load's loader asks for runs on its parent's slot. ``call`` should look once more whether the
    value has landed meanwhile: between a caller's miss and its joining, a load can begin and end.
    Loads that wait for each other are told apart from slow ones by what their loaders ask for, in threads and tasks
    that inherit the loader's context (tasks do; threads started by a loader do not).

    Args:
        bridge: between threads and loops; its workers run what may not run in the caller.
        concurrency: loads that run at once.

    Threads and loops: any number. A waiter that leaves (cancelled, interrupted, at its deadline) cancels a load only
    if it was the last and the load is a coroutine or has not begun. A leader that is interrupted, or whose loop is
    closed, leaves the lead to another waiter. Fork: loads under way are the parent's; the child loads anew.
    Interpreter exit: nothing is waited for. Not picklable.

    Raises:
        ConfigError: concurrency below one.
    """

    def __init__(self, bridge: Bridge, *, concurrency: int = 10) -> None:
        self.bridge = bridge
        self.flights = SingleFlight()
        self.slots = Slots(concurrency)
        self.closed = False
        self._watch = LoopWatch()
        _live.add(self)

    # -- asking -----------------------------------------------------------------------------

    def load(self, key: Hashable, call: Callable[[], Any], *, deadline: Deadline | None = None) -> Any:
        """The value of ``key``, loaded by ``call()`` unless a load of it is under way.

        Without a deadline ``call`` runs in this thread (what it returns, if awaitable, on the bridge's loop); with one
        in a worker, so that this thread can leave. Cost beyond the call: about 3 us.

        Raises:
            LoadTimeoutError: the deadline passed; what has begun goes on.
            ReentrantLoadError: the loader of ``key`` asks for ``key``, perhaps through others.
            LoadError: the load needs the event loop that this thread runs.
            LoadCancelledError: the store was closed under the load.
            ClosedError: it was closed before.
        """
        parent = current_load()
        given_up: Flight | None = None
        while True:
            flight = led = Flight(self.flights, key, _sooner(deadline, parent), parent)
            try:  # entered inside: an interrupt at any point gives the lead to somebody else
                self._check_open()
                found = self.flights.enter(flight, given_up)
                if deadline is None and (found is flight or self._taken_over(found)):
                    led = found
                    value = self._run_here(found, call, parent)
                    if value is not _ELSEWHERE:
                        return value
                elif found is flight:
                    self._dispatch(flight, call, None)
                else:
                    self._demand(found, parent)
            except Exception as error:
                led.fail(error)
                raise
            except BaseException:
                led.abandon()
                raise
            if not found.done:
                with self.bridge.blocked():
                    found.wait_end(deadline)
            if not found.abandoned:
                try:
                    return found.result()
                finally:
                    del (
                        flight,
                        led,
                        found,
                        given_up,
                    )  # an error's traceback must not keep the flight, which keeps the error
            given_up = found

    async def aload(self, key: Hashable, call: Callable[[], Any], *, deadline: Deadline | None = None) -> Any:
        """As :meth:`load`, for tasks: coroutine functions run as a task of this loop, others in a worker.

        Raises:
            LoadTimeoutError, ReentrantLoadError, LoadCancelledError, ClosedError: as :meth:`load`.
        """
        loop = running_loop()
        parent = current_load()
        given_up: Flight | None = None
        while True:
            flight = Flight(self.flights, key, _sooner(deadline, parent), parent)
            try:
                self._check_open()
                found = self.flights.enter(flight, given_up)
                if found is flight:
                    self._dispatch(flight, call, loop)
                else:
                    self._demand(found, parent)
            except Exception as error:
                flight.fail(error)
                raise
            except BaseException:
                flight.abandon()
                raise
            if not found.done:
                with self.bridge.blocked():
                    await found.wait_end_async(deadline)
            if not found.abandoned:
                try:
                    return found.result()
                finally:
                    del flight, found, given_up
            given_up = found

    def start(
        self,
        key: Hashable,
        call: Callable[[], Any],
        *,
        priority: float = 0.0,
        on_done: Callable[[Flight], None] | None = None,
    ) -> Flight:
        """Load in the background, unless a load is under way; the flight tells when it ends, as ``on_done`` does.

        Who demands the key meanwhile has it hurried. An awaitable runs on the loop this is called in, else on the
        bridge's. It goes on when those who wait for it leave.

        Raises:
            ClosedError: the store is closed.
        """
        self._check_open()
        flight = Flight(self.flights, key)
        flight.kept = True
        home = running_loop()
        context = copy_context()
        found = self.flights.enter(flight)

        def queue() -> None:
            loop = None if home is None or home.is_closed() else home
            run = found.run = Run(found, call, loop, context)
            found.loop = found.call_off = None  # of whoever led before
            self._submit(run, demand=False, priority=priority)

        if found is flight:
            found.heirs.append(queue)
            try:
                queue()
            except BaseException as error:
                found.heirs.clear()
                found.fail(error)
                raise
        else:
            found.kept = True
            found.deadline = None
            if not found.heirs:
                found.heirs.append(queue)
        if on_done is not None:
            found.on_done(on_done)
        return found

    def forget(self, key: Hashable) -> None:
        """Who asks for this key from now on loads it anew; who waits already gets what is being loaded."""
        self.flights.forget(key)

    # -- running ----------------------------------------------------------------------------

    def _run_here(self, flight: Flight, call: Callable[[], Any], parent: Flight | None) -> Any:
        """In the caller's thread; what is awaitable goes to the bridge's loop, with the slot."""
        flight.parent = parent
        if parent is not None:
            flight.lead_for(parent)
        token = CURRENT.set(flight)
        stays = True
        try:
            if parent is None or not self._among(parent):
                self._take_slot(flight, flight, demand=True)
                if flight.done:
                    return _ELSEWHERE  # the store was closed meanwhile
            try:
                value = call()
            except Exception as error:
                if flight.fail(error):
                    return _ELSEWHERE  # and is raised from there
                raise
            if not is_awaitable(value):
                flight.settle(value)
                return value
            leg = self._leg(flight, flight, Given(value), self._own_loop(flight, value), copy_context())
            stays = not leg.begin()
            return _ELSEWHERE
        finally:
            CURRENT.reset(token)
            if parent is not None:
                flight.led_for(parent)
            if stays:
                self.slots.give(flight)
            del flight, parent  # the traceback of the loader's error leads here, and the flight has the error

    def _own_loop(self, flight: Flight, value: Any) -> asyncio.AbstractEventLoop:
        """The bridge's loop, to wait for an awaitable here."""
        try:
            if running_loop() is None:
                return self.bridge.loop
            flight.abandon()  # others who wait may well be able to
            raise LoadError(
                f"the loader of {flight.key!r} is asynchronous, and this thread runs an event loop that waiting here "
                "would stop: await aget() instead of get()"
            )
        except BaseException:
            close_unawaited(value)
            raise

    def _take_slot(self, owner: Owner, flight: Flight, *, demand: bool) -> None:
        """Have the thread wait for it."""
        gate = threading.Lock()
        gate.acquire()

        def go() -> bool:
            gate.release()
            return True

        if self.slots.take(owner, go, demand=demand):
            return
        loop = running_loop()
        if loop is not None and any(holder.flight.needs(loop) for holder in self.slots.holders()):
            flight.abandon()  # others who wait may well be able to
            raise LoadError(
                "all loads that may run at once are running, some on the event loop of this thread, which waiting "
                "here would stop: await aget() instead of get(), or allow a higher concurrency"
            )
        with self.bridge.blocked():
            gate.acquire()

    def _dispatch(self, flight: Flight, call: Callable[[], Any], loop: asyncio.AbstractEventLoop | None) -> None:
        """Run it elsewhere, as soon as there is a slot: nothing waits here."""
        run = flight.run = Run(flight, call, loop, copy_context())
        run.demanded = True
        if loop is not None and is_async(call):
            go = self._leg(flight, run, call, loop, run.context).begin
        else:
            flight.call_off = lambda: self._call_off(run)
            go = self._goer(run)
        if (self._nested(flight) or self.slots.take(run, go)) and not go():
            self.slots.give(run)

    def _goer(self, run: Run) -> Callable[[], bool]:
        """To be called once the run has its slot."""

        def go() -> bool:
            run.ready = True
            try:
                self._submit(run, demand=True)
            except (ClosedError, RuntimeError):
                run.flight.fail(given_up_error(run.flight))
                return False
            return True

        return go

    def _leg(
        self,
        flight: Flight,
        owner: Owner,
        call: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> Leg:
        freed = partial(self.slots.give, owner)
        return Leg(flight, call, loop, context, self._watch, freed, interruptible=not self.bridge.owns(loop))

    def _submit(self, run: Run, *, demand: bool, priority: float = 0.0) -> None:
        run.job = self.bridge.workers.submit(
            partial(self._work, run), priority=priority, demand=demand, dropped=partial(self._dropped, run)
        )

    def _work(self, run: Run) -> None:
        """In a worker."""
        flight = run.flight
        stays = True
        try:
            if not run.ready and not flight.done:
                if run.demanded:
                    go = self._goer(run)
                    if not self.slots.take(run, go):
                        stays = False  # comes back when it has its slot; the thread can do something else
                        return
                else:
                    self._take_slot(run, flight, demand=False)
                run.ready = True
            if flight.done or flight.run is not run:  # an heir's
                return
            value = run.context.run(called, flight, run.call)
            if is_awaitable(value):
                leg = self._leg(flight, run, Given(value), run.loop or self._own_loop(flight, value), run.context)
                stays = not leg.begin()
            else:
                flight.settle(value)
        except BaseException as error:  # noqa: BLE001 - raised at everybody who waits
            flight.fail(for_others(error, flight))
        finally:
            if stays:
                self.slots.give(run)
            del run, flight  # the traceback of the loader's error leads here, and the flight has the error

    def _dropped(self, run: Run) -> None:
        """The workers will never run it: they were closed, unless it is taken out right here."""
        if threading.get_ident() not in run.taken_by:
            run.flight.heirs.clear()
            run.flight.fail(given_up_error(run.flight))
            self.slots.give(run)

    # -- hurrying and calling off -----------------------------------------------------------

    def _demand(self, flight: Flight, parent: Flight | None) -> None:
        """Somebody waits for a flight that may still stand in a queue."""
        run = flight.run
        if parent is not None and self._among(parent):
            flight.excused = True  # the parent's slot is idle meanwhile
            self.slots.excuse(flight if run is None else run)
        if run is not None and not run.demanded:
            run.demanded = True
            if run.job is not None:
                run.job.promote(demand=True)
            self.slots.urge(run)

    def _taken_over(self, flight: Flight) -> bool:
        """Whether it stood in the workers' queue, for later, and is this thread's to lead from now on."""
        run = flight.run
        if run is None or run.ready or not self._withdraw(run):
            return False
        flight.run = None
        return True

    def _withdraw(self, run: Run) -> bool:
        """Take it out of the workers' queue, if it stands there."""
        if run.job is None:
            return False
        me = threading.get_ident()
        run.taken_by.add(me)  # before: cancelling tells _dropped at once, in this thread
        if run.job.cancel():
            return True
        run.taken_by.discard(me)
        return False

    def _call_off(self, run: Run) -> None:
        """The last waiter left: what has not begun does not begin."""
        if run.job is None or self._withdraw(run):
            run.flight.abandon()
            self.slots.give(run)

    def _nested(self, flight: Flight) -> bool:
        return flight.parent is not None and self._among(flight.parent)

    def _among(self, flight: Flight) -> bool:
        """Whether it, or a load that asked for it, has one of these slots."""
        above: Flight | None = flight
        while above is not None:
            if above.registry is self.flights:
                return True
            above = above.parent
        return False

    # -- closing ----------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the store is closed: open another one to load more")

    def close(self, grace: float = 5.0) -> None:
        """Begin no more loads, wait at most ``grace`` seconds for those that run, and give up the rest.

        Whoever still waits then gets a LoadCancelledError; what is queued in the background is dropped at once.
        Called on an event loop, or by a loader, it does not wait for what cannot end before it returns.
        Twice is harmless.
        """
        deadline = Deadline(grace)
        here = running_loop()
        ended = threading.Event()
        for flight in self._closing():
            if here is None or not flight.needs(here):
                ended.clear()
                flight.on_done(lambda _: ended.set())
                while not flight.done and ended.wait(deadline.left()):
                    ended.clear()  # that was another one, which took longer than its turn
        self._give_up()

    async def aclose(self, grace: float = 5.0) -> None:
        """As :meth:`close`, without stopping the loop meanwhile."""
        import asyncio

        deadline = Deadline(grace)
        loop = asyncio.get_running_loop()
        ends = []
        for flight in self._closing():
            end = loop.create_future()
            flight.on_done(partial(_tell, loop, end))
            ends.append(end)
        if ends:
            await asyncio.wait(ends, timeout=deadline.left())
        self._give_up()

    def _closing(self) -> list[Flight]:
        """No more loads; those that are worth waiting for."""
        self.closed = True
        flights = self.flights.under_way()
        for flight in flights:
            run = flight.run
            if run is not None and not run.ready and self._withdraw(run):
                flight.heirs.clear()
                flight.fail(given_up_error(flight))
        above = current_load()
        while above is not None:
            if above in flights:
                flights.remove(above)
            above = above.parent
        return flights

    def _give_up(self) -> None:
        ended: list[tuple[Flight, Owner, Callable[[], None] | None]] = []
        for flight in self.flights.under_way():
            call_off, owner = flight.call_off, flight.run or flight
            flight.heirs.clear()
            if flight.fail(given_up_error(flight)):
                ended.append((flight, owner, call_off))
        for flight, owner, call_off in ended:  # now: a slot that is freed here must not begin another of them
            if call_off is not None:
                call_off()
            flight.excused = True
            self.slots.excuse(owner)  # a thread that waits for its turn finds that it is over

    def after_fork(self) -> None:
        """In the child: what was under way is the parent's."""
        self.slots.reset()
        self._watch.reset()


def _sooner(deadline: Deadline | None, parent: Flight | None) -> Deadline | None:
    """What a nested load has left: no more than the load that asks for it."""
    above = None if parent is None else parent.deadline
    if deadline is None or above is None:
        return deadline or above
    return deadline if deadline.left() < above.left() else above


def _tell(loop: asyncio.AbstractEventLoop, end: asyncio.Future[None], _: Flight) -> None:
    with suppress(RuntimeError):  # closed: nobody waits
        loop.call_soon_threadsafe(_end, end)


def _end(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)


# -- fork -----------------------------------------------------------------------------------

_live: weakref.WeakSet[Loads] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for loads in list(_live):
        loads.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
