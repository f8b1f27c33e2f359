"""A connected wire, and how it ends: by close(), by garbage collection, at exit, or in a forked child.

What travels over it is not decided here (``engine.py``).
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import sys
import weakref
from typing import Any

from lazystore.fetch.flow import Gate
from lazystore.fetch.retry import Pace
from lazystore.fetch.source import FetchCounters
from lazystore.fetch.throttle import HedgeAllowance, Throttle
from lazystore.fetch.wire import Wire

__all__ = ["CANCEL_S", "LIVE", "Link", "let_go", "orphan", "shut"]

#: Seconds that cancelled requests get to let go.
CANCEL_S = 1.0
#: Seconds that closing may take.
CLOSE_S = 5.0


class Link:
    """A wire and everything that lives on its loop with it; dead in a forked child (``pid``).

    Usable once :meth:`open` was called.
    """

    __slots__ = ("_counters", "_room", "calls", "gate", "hedges", "lock", "pace", "pid", "prepared", "slots", "wire")

    def __init__(self, wire: Wire, slots: int, room: int, counters: FetchCounters) -> None:
        self.wire = wire
        self.slots = slots
        self.pace = Pace()
        self.hedges = HedgeAllowance()
        self.calls: set[asyncio.Task[Any]] = set()
        self.lock = asyncio.Lock()
        self.prepared = False
        self.pid = os.getpid()
        self._room = room
        self._counters = counters

    def open(self) -> None:
        """The wire is prepared and knows how many connections it has: no more requests are let in,
        for one that waits for a connection would look as if the server were silent.
        """
        self.slots = min(self.slots, self.wire.connections or self.slots)
        throttle = Throttle(self.slots, self.wire.loop.time)
        self.gate = Gate(self.slots, self._room, self._counters, throttle)
        self._counters.extra["concurrency"] = throttle.limit
        self.prepared = True


#: Sources that may hold a link, for the hooks below (``close`` and ``after_fork`` are called).
LIVE: weakref.WeakSet[Any] = weakref.WeakSet()
#: Links inherited by a fork. Kept for ever: dropping a TLS session would say goodbye on the parent's
#: connection.
_ORPHANS: list[Link] = []
#: Closings under way; an event loop itself holds its tasks only weakly.
_ENDING: set[asyncio.Task[None]] = set()


async def _wind_down(link: Link) -> None:
    """Cancel every call and close the sessions."""
    calls = list(link.calls)
    for call in calls:
        call.cancel()
    if calls:
        await asyncio.wait(calls, timeout=CANCEL_S)
    await link.wire.aclose()


def shut(link: Link) -> None:
    """Close a link and wait for it; a loop that does not react is left behind."""
    winding = _wind_down(link)
    try:
        future = asyncio.run_coroutine_threadsafe(winding, link.wire.loop)
    except RuntimeError:
        winding.close()
        return  # the loop is closed, and the sessions with it
    try:
        future.result(CLOSE_S)
    except (TimeoutError, concurrent.futures.CancelledError):
        future.cancel()
    finally:
        link.wire.release()


def let_go(link: Link) -> None:
    """The owner was garbage-collected unclosed: close its link without waiting.

    May run in any thread at any moment, so it only leaves a note for the loop.
    """
    if link.pid != os.getpid() or sys.is_finalizing() or link.wire.loop.is_closed():
        return

    def begin() -> None:
        task = link.wire.loop.create_task(_wind_down(link))
        _ENDING.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        _ENDING.discard(task)
        link.wire.release()

    try:
        link.wire.loop.call_soon_threadsafe(begin)
    except RuntimeError:
        return  # closed in between


def orphan(link: Link) -> None:
    """In a forked child: keep the parent's link from doing anything, and from ever being dropped."""
    link.wire.defuse()
    _ORPHANS.append(link)


def _after_fork_in_child() -> None:
    for owner in list(LIVE):
        owner.after_fork()
    asyn = sys.modules.get("fsspec.asyn")
    if asyn is not None:
        asyn.reset_lock()  # fsspec's own hook misses the lock a parent's thread may have held


def _at_exit() -> None:
    for owner in list(LIVE):
        owner.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
