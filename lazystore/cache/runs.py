"""Attempts at loads outside their callers' threads: what stands in the workers' queue, or waits for its slot.

What is done with them is :mod:`lazystore.cache.loads`' business.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from lazystore.cache.single_flight import CURRENT, Flight
from lazystore.cache.workers import Job
from lazystore.errors import LoadCancelledError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Run", "called", "for_others", "given_up_error"]


class Run:
    """One attempt at a load outside its caller's thread."""

    __slots__ = ("__weakref__", "call", "context", "demanded", "flight", "job", "loop", "ready", "taken_by")

    def __init__(
        self, flight: Flight, call: Callable[[], Any], loop: asyncio.AbstractEventLoop | None, context: Context
    ) -> None:
        self.flight = flight
        self.call = call
        #: where awaitables are awaited; None: on the bridge's
        self.loop = loop
        self.context = context
        self.job: Job | None = None
        #: somebody waits for it
        self.demanded = False
        #: has its slot, or needs none
        self.ready = False
        #: threads that try to take it out of the workers' queue; one of them does
        self.taken_by: set[int] = set()

    @property
    def excused(self) -> bool:
        return self.flight.excused


def called(flight: Flight, call: Callable[[], Any]) -> Any:
    """What it gives, called as the flight's loader; for a context of its own."""
    CURRENT.set(flight)
    del flight
    return call()


def for_others(error: BaseException, flight: Flight) -> BaseException:
    """An error to raise elsewhere: a cancellation there would look like the waiters' own."""
    import asyncio

    if isinstance(error, asyncio.CancelledError):
        return LoadCancelledError(f"the loader of {flight.key!r} was cancelled from inside")
    return error


def given_up_error(flight: Flight) -> LoadCancelledError:
    """For those who wait for a flight of a closed store."""
    return LoadCancelledError(f"the load of {flight.key!r} was given up: its store was closed")
