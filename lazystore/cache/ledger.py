"""One budget in bytes for everything a store keeps or has on its way: who may have how much of it.

The cache takes what nobody else asked for; windows, requests in flight and scratch are *reserved*, and the cache
gives way to them before they are granted. What is evicted, and who loads, is not decided here; nothing here looks
at the process's memory.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType

from lazystore.cache.flight import Deadline
from lazystore.errors import BudgetTooSmallError, ConfigError, LoadTimeoutError

__all__ = ["Ledger", "Reservation"]

#: Seconds a reservation waits for others to be given back, unless told otherwise.
PATIENCE = 30.0
#: Seconds between looks of a task that waits without holding its loop up.
LOOK = 0.005


class Ledger:
    """A budget of bytes, shared between a cache and reservations.

    Parameters:
        limit: bytes in all; never exceeded by what is cached and reserved together.
        make_room: called with the bytes that are left to the cache whenever they change, before a reservation is
            granted; under :attr:`lock`. What it returns is called after that, with no lock held.
        used: tells the bytes that are cached.

    At most half of the limit can be reserved, so that a cache stays a cache. Threads: any. Fork: the child keeps
    the sums of its parent; :meth:`reset_after_fork` forgets locks. Pickle: refused.

    Raises:
        ConfigError: ``limit`` is negative.
    """

    def __init__(
        self,
        limit: int,
        *,
        make_room: Callable[[int], Callable[[], None]] | None = None,
        used: Callable[[], int] | None = None,
    ) -> None:
        if limit < 0:
            raise ConfigError(f"limit={limit} must not be negative")
        self.limit = limit
        self._make_room = make_room
        self._used = used
        self.share = 1.0
        self._reserved = 0
        self._charged = 0
        self._tokens = itertools.count()
        self._peak = 0
        self._held: dict[int, tuple[int, str]] = {}
        # Re-entrant: a reservation may be given back by a finalizer, in the very thread that holds the lock.
        #: Guards the cache too: were there two, a finalizer under one could wait for the other the wrong way round.
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)

    # -- what it says -------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes cached now."""
        return self._used() if self._used is not None else 0

    @property
    def reserved(self) -> int:
        """Bytes reserved now."""
        return self._reserved

    @property
    def charged(self) -> int:
        """Bytes that the cache takes beside its entries."""
        return self._charged

    @property
    def reservable(self) -> int:
        """Bytes that can be reserved at most, by all together."""
        return self.limit // 2

    @property
    def target(self) -> int:
        """Bytes to stay within: the limit, or less under memory pressure."""
        return int(self.limit * self.share)

    @property
    def room(self) -> int:
        """Bytes left to the cache."""
        return max(0, self.target - self._reserved - self._charged)

    @property
    def peak(self) -> int:
        """The most bytes that were cached and reserved at once."""
        self.note(self.used)
        return self._peak

    def holders(self) -> dict[str, int]:
        """Bytes reserved, by what for."""
        found: dict[str, int] = {}
        with self._changed:
            for nbytes, what in self._held.values():
                found[what] = found.get(what, 0) + nbytes
        return found

    # -- reserving ----------------------------------------------------------------------

    def reserve(self, nbytes: int, *, what: str, timeout: float = PATIENCE) -> Reservation:
        """Take bytes out of the cache's room, waiting until others give some back if need be.

        Parameters:
            nbytes: how many.
            what: for what, in messages and statistics: ``"stream"``, ``"prefetch"``.
            timeout: seconds to wait at most; 0 not at all.

        Raises:
            BudgetTooSmallError: more than :attr:`reservable`: it can never be had.
            LoadTimeoutError: others did not give enough back in time.
        """
        reservation = Reservation(self, next(self._tokens), what)
        reservation.resize(nbytes, timeout=timeout)
        return reservation

    async def areserve(self, nbytes: int, *, what: str, timeout: float = PATIENCE) -> Reservation:
        """:meth:`reserve` for a task: its loop goes on while it waits."""
        import asyncio

        deadline = Deadline(timeout)
        while True:
            try:
                return self.reserve(nbytes, what=what, timeout=0.0)
            except LoadTimeoutError:
                if deadline.passed():
                    raise
            await asyncio.sleep(LOOK)

    def retarget(self, share: float) -> None:
        """Stay within this share of the limit from now on; reservations that are granted stay."""
        with self._changed:
            self.share = share
            after = self._fit()
        after()

    def note(self, used: int) -> None:
        """So much is cached: perhaps more than ever before."""
        held = used + self._reserved + self._charged
        if held > self._peak:
            self._peak = held

    def charge(self, nbytes: int) -> None:
        """What the cache itself takes beside its entries, such as the index of a disk tier; counted up to a
        quarter of the limit.

        Unlike a reservation it never waits, and is there already.
        """
        nbytes = min(nbytes, self.limit // 4)
        with self._changed:
            if nbytes == self._charged:
                return
            self._charged = nbytes
            after = self._fit()
        after()

    def _set(self, token: int, nbytes: int, what: str, timeout: float) -> None:
        """Let the reservation ``token`` hold ``nbytes``."""
        if nbytes < 0:
            raise ConfigError(f"nbytes={nbytes} must not be negative")
        if nbytes > self.reservable:
            raise BudgetTooSmallError(
                f"{nbytes} bytes for {what} cannot be had: at most half of the budget of {self.limit} bytes can be "
                "reserved; give more memory, or ask for a smaller window",
                needed=2 * nbytes,
            )
        end = time.monotonic() + timeout
        with self._changed:
            before = self._held.get(token, (0, what))[0]
            if nbytes == before:
                return
            while self._reserved - before + nbytes > self.reservable and nbytes > before:
                left = end - time.monotonic()
                if left <= 0:
                    raise self._full(nbytes, what, timeout)
                self._changed.wait(left)
            self._reserved += nbytes - before
            if nbytes:
                self._held[token] = nbytes, what
            else:
                self._held.pop(token, None)
            after = self._fit()
            if nbytes < before:
                self._changed.notify_all()
        after()
        self.note(self.used)

    def _full(self, nbytes: int, what: str, timeout: float) -> LoadTimeoutError:
        held = ", ".join(f"{name} {count}" for name, count in sorted(self.holders().items()))
        return LoadTimeoutError(
            f"{nbytes} bytes for {what} were not to be had within {timeout:g} s: {held} bytes are reserved of "
            f"{self.reservable}; close streams that are not read any more, or give more memory"
        )

    def _fit(self) -> Callable[[], None]:
        """Tell the cache its room; what to call when the lock is free again."""
        return self._make_room(self.room) if self._make_room is not None else _nothing

    def reset_after_fork(self) -> None:
        """In a forked child: forget threads that exist only in the parent."""
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)

    def __reduce__(self) -> str:
        raise TypeError("a Ledger belongs to a live store and cannot be pickled")

    def __repr__(self) -> str:
        return f"<Ledger {self.used} cached + {self.reserved} reserved of {self.limit} bytes>"


class Reservation:
    """Bytes that the cache gave up for something else, until :meth:`release`; a context manager.

    One that is forgotten is given back when it is collected. Threads: one at a time. Pickle: refused.
    """

    def __init__(self, ledger: Ledger, token: int, what: str) -> None:
        self._ledger = ledger
        self._token = token
        self._finalizer = weakref.finalize(self, _give_back, ledger, token, what)
        self._finalizer.atexit = False
        self.what = what
        self.nbytes = 0

    def resize(self, nbytes: int, *, timeout: float = PATIENCE) -> None:
        """Hold more or fewer bytes from now on; raises as :meth:`Ledger.reserve` does, and holds what it held then."""
        self._ledger._set(self._token, nbytes, self.what, timeout)
        self.nbytes = nbytes

    def release(self) -> None:
        """Give the bytes back; a second time does nothing."""
        self.resize(0)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __reduce__(self) -> str:
        raise TypeError("a Reservation holds part of a live store's budget and cannot be pickled")

    def __repr__(self) -> str:
        return f"<Reservation of {self.nbytes} bytes for {self.what}>"


def _give_back(ledger: Ledger, token: int, what: str) -> None:
    ledger._set(token, 0, what, 0.0)


def _nothing() -> None:
    pass
