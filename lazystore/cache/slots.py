"""How many loads may run at once: one hard limit for those somebody waits for and those in the background.

Only counting and queueing; what runs is its owner's business (:mod:`lazystore.cache.loads`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from lazystore.cache.single_flight import Flight
from lazystore.errors import ConfigError

__all__ = ["Owner", "Slots"]


class Owner(Protocol):
    """Who holds a slot or waits for one; told apart by identity."""

    @property
    def flight(self) -> Flight:
        """What is loaded with it."""

    @property
    def excused(self) -> bool:
        """It needs none: who waits for it holds one. Set before :meth:`Slots.excuse` is called."""


class Slots:
    """At most ``limit`` holders; demanded ones are served before background ones, each kind in order.

    Giving back is harmless when nothing is held: an interrupted owner gives back in its ``finally``, however far it
    came. Threads: safe. Fork: :meth:`reset`. Not picklable.

    Raises:
        ConfigError: a limit below one.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"concurrency is {limit}: at least one load must be able to run")
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Nobody holds or waits."""
        self._lock = threading.RLock()  # re-entrant: a signal handler or finalizer may load something
        self._holders: dict[Owner, None] = {}
        self._demanded: dict[Owner, Callable[[], bool]] = {}
        self._background: dict[Owner, Callable[[], bool]] = {}

    @property
    def held(self) -> int:
        """How many hold one now."""
        return len(self._holders)

    def holders(self) -> list[Owner]:
        """Who holds one now."""
        return list(self._holders)

    def take(self, owner: Owner, go: Callable[[], bool], *, demand: bool = True) -> bool:
        """True: ``owner`` holds a slot now. False: it waits, and ``go()`` is called once when it holds one.

        ``go`` is called by whoever gives a slot back, so it must be quick and raise nothing; when it returns False
        the slot goes on to the next.
        """
        with self._lock:
            if owner.excused:
                return True
            if len(self._holders) < self.limit:
                self._holders[owner] = None
                return True
            (self._demanded if demand else self._background)[owner] = go
            return False

    def give(self, owner: Owner) -> None:
        """Give back, or stop waiting; the next one goes."""
        while True:
            with self._lock:
                self._leave(owner)
                self._holders.pop(owner, None)
                following = self._next()
            if following is None:
                return
            owner, go = following
            if go():
                return

    def urge(self, owner: Owner) -> None:
        """A waiting background owner is demanded from now on."""
        with self._lock:
            go = self._background.pop(owner, None)
            if go is not None:
                self._demanded[owner] = go

    def excuse(self, owner: Owner) -> None:
        """An owner that is excused since just now goes on without a slot, if it waits for one."""
        with self._lock:
            go = self._leave(owner)
        if go is not None:
            go()

    def _leave(self, owner: Owner) -> Callable[[], bool] | None:
        return self._demanded.pop(owner, None) or self._background.pop(owner, None)

    def _next(self) -> tuple[Owner, Callable[[], bool]] | None:
        queue = self._demanded or self._background
        if not queue or len(self._holders) >= self.limit:
            return None
        owner = next(iter(queue))
        go = queue.pop(owner)
        self._holders[owner] = None
        return owner, go
