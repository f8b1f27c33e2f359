"""One key that is not fresh in memory, on its way: memory once more, disk, the loader, and what becomes of the answer.

Who runs this, and who waits for it, is ``loads.py``'s business: of all misses of a key at one time one runs. The
loader may be a function, a coroutine function, or a function that returns an awaitable.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Hashable
from inspect import CO_COROUTINE
from types import FunctionType
from typing import TYPE_CHECKING, Any

from lazystore.cache.bridge import deadline_left, is_async, is_awaitable
from lazystore.cache.entries import MISSING, Claim
from lazystore.cache.retries import Retries
from lazystore.errors import ClosedError, LoadError

if TYPE_CHECKING:
    from lazystore.cache.tiers import Tiers

__all__ = ["Miss", "Purpose"]


class Purpose(enum.Enum):
    """Why a value is loaded."""

    DEMAND = "demand"  #: somebody waits for it
    AHEAD = "ahead"  #: somebody may
    REFRESH = "refresh"  #: a stale one was served


class Miss:
    """A request that memory could not answer at once. Made by :class:`Tiers`; used once.

    Attributes:
        failed: its load did, whether or not a stale value stood in.
        asked: of one that is loaded ahead: somebody asked for the value meanwhile.
    """

    __slots__ = (
        "_claim", "_counted", "_tiers", "_wrote", "asked", "failed", "keep", "key", "load", "purpose", "retries", "ttl",
        "weigh",
    )  # fmt: skip

    def __init__(
        self,
        tiers: Tiers,
        key: Hashable,
        load: Callable[[], Any],
        *,
        ttl: float | None,
        weigh: Callable[[Any], int] | None,
        keep: bool,
        retries: Retries,
        purpose: Purpose,
    ) -> None:
        self._tiers = tiers
        self.key = key
        self.load = load
        self.ttl = ttl
        self.weigh = weigh
        self.keep = keep
        self.retries = retries
        self.purpose = purpose
        self.asked = False
        self.failed = False
        self._claim: Claim | None = None
        self._counted = purpose is not Purpose.DEMAND
        self._wrote = False

    @property
    def call(self) -> Callable[[], Any]:
        """What :class:`Loads` is to run: a coroutine function for a coroutine function."""
        load = self.load
        if type(load) is FunctionType:
            awaits = bool(load.__code__.co_flags & CO_COROUTINE)
        else:
            awaits = is_async(load)
        return self.arun if awaits else self.run

    def run(self) -> Any:
        """The value, or an awaitable of it where the loader returns one. Blocks while it reads and loads."""
        value = self._begin()
        if value is not MISSING:
            return value
        handed = False
        try:
            value = self._from_disk()
            if value is MISSING:
                value = self._loaded()
                handed = is_awaitable(value)
            return value
        finally:
            if not handed:
                self._end()

    async def arun(self) -> Any:
        """The value; awaits the loader in this loop, and leaves the disk to a worker."""
        value = self._begin()
        if value is not MISSING:
            return value
        try:
            if self._tiers.shelf is not None:
                value = await self._tiers.bridge.acall(self._from_disk)
            if value is MISSING:
                value = await self._awaited(None, 1)
            return value
        finally:
            self._end()

    def joined(self) -> None:
        """The request is over: unless this one ran for it, it waited for another's load."""
        counts = self._tiers.counts
        if not self._counted:
            with self._tiers.lock:
                if not self._counted:
                    self._counted = True
                    counts.requests += 1
                    counts.joins += 1

    # -- the steps ----------------------------------------------------------------------

    def _begin(self) -> Any:
        """Memory once more: another's load may have landed. MISSING when it is this one's turn to go for the value."""
        tiers = self._tiers
        look = tiers.memory.look(self.key)
        if look is not None and look.fresh_left > 0:
            if self.purpose is Purpose.DEMAND:
                with tiers.lock:
                    if not self._counted:
                        self._counted = True
                        tiers.counts.requests += 1
                        tiers.counts.hits += 1
                if look.unused:
                    tiers.memory.use(self.key)
            return look.value
        counts = tiers.counts
        with tiers.lock:
            if not self._counted:
                self._counted = True
                counts.requests += 1
                counts.misses += 1
            counts.prefetch_issued += self.purpose is Purpose.AHEAD
            self._claim = tiers.memory.claims.enter(self.key)
        return MISSING

    def _from_disk(self) -> Any:
        """The value, with what is left of its freshness, kept in memory from now on; or MISSING."""
        tiers = self._tiers
        if tiers.shelf is None:
            return MISSING
        found = tiers.shelf.get(self.key)
        if found is None:
            return MISSING
        value, fresh = found
        if self.keep:
            self._store(value, tiers.life_left(fresh))
        return value

    def _loaded(self) -> Any:
        """What the loader gives, kept; or a coroutine that does so with the awaitable it gave."""
        clock = self._tiers.clock
        attempt = 1
        while True:
            begun = clock.monotonic_ns()
            try:
                value = self.load()
            except Exception as error:
                wait = self._wait(attempt, error)
                if wait < 0:
                    value = self._failed(error, clock.monotonic_ns() - begun)
                    if value is MISSING:
                        raise
                    return value
            else:
                if is_awaitable(value):
                    return self._later(value, attempt)
                self._keep(value, clock.monotonic_ns() - begun)
                return value
            clock.sleep(wait)
            attempt += 1

    async def _later(self, first: Awaitable[Any], attempt: int) -> Any:
        try:
            return await self._awaited(first, attempt)
        finally:
            self._end()

    async def _awaited(self, first: Awaitable[Any] | None, attempt: int) -> Any:
        """What the loader's awaitable gives, kept. ``first`` is one it gave already."""
        tiers = self._tiers
        while True:
            begun = tiers.clock.monotonic_ns()
            try:
                value = await (self.load() if first is None else first)
            except Exception as error:
                wait = self._wait(attempt, error)
                if wait < 0:
                    value = self._failed(error, tiers.clock.monotonic_ns() - begun)
                    if value is MISSING:
                        raise
                    return value
            else:
                taken = tiers.clock.monotonic_ns() - begun
                if tiers.shelf is None:
                    self._keep(value, taken)
                else:
                    await tiers.bridge.acall(self._keep, value, taken)
                return value
            first = None
            await tiers.clock.asleep(wait)
            attempt += 1

    def _wait(self, attempt: int, error: Exception) -> float:
        """Seconds until the next attempt; below 0 when there is none."""
        wait = self.retries.delay(attempt, error, deadline_left())
        if wait is None:
            return -1.0
        with self._tiers.lock:
            self._tiers.counts.retries += 1
        return wait

    def _keep(self, value: Any, taken: int) -> None:
        """Put what was loaded where it belongs."""
        tiers = self._tiers
        with tiers.lock:
            tiers.counts.times.add(taken / 1e9)
        tiers.look_at_pressure()
        if self.keep:
            self._put_away(value)
        if tiers.on_load is not None:
            weight = tiers.memory.weight_of(self.key, value, self.weigh)
            tiers.memory.call_back(tiers.on_load, self.key, taken / 1e9, weight, None)

    def _put_away(self, value: Any) -> None:
        tiers = self._tiers
        life = tiers.life(self.ttl)
        kept = self._store(value, life)
        shelf = tiers.shelf
        if shelf is not None and self._claim is not None and not self._claim.doomed:
            self._wrote = True
            shelf.loaded(self.key, value, life[0], kept)

    def _store(self, value: Any, life: tuple[int, int]) -> bool:
        tiers = self._tiers
        weight = tiers.memory.weight_of(self.key, value, self.weigh)
        ahead = self.purpose is Purpose.AHEAD
        kept = tiers.memory.store(
            self.key, value, weight, life, claim=self._claim, unused=self._arrived if ahead else None
        )
        if ahead:
            with tiers.lock:
                tiers.counts.prefetch_bytes += weight
                if not kept and self._arrived():
                    tiers.counts.prefetch_wasted += 1
                    tiers.counts.prefetch_wasted_bytes += weight
        return kept

    def _arrived(self) -> bool:
        """What was loaded ahead is there; whether nobody has asked for it. With the lock held."""
        if self._tiers.ahead.get(self.key) is self:
            del self._tiers.ahead[self.key]
        self._tiers.counts.prefetch_used += self.asked
        self._tiers.counts.prefetch_late += self.asked
        return not self.asked

    def _failed(self, error: Exception, taken: int) -> Any:
        """A stale value that may stand in, or MISSING: the error is to be raised, and perhaps remembered."""
        tiers = self._tiers
        self.failed = True
        with tiers.lock:
            tiers.counts.failed(error)
            tiers.counts.prefetch_errors += self.purpose is Purpose.AHEAD
        if tiers.on_load is not None:
            tiers.memory.call_back(tiers.on_load, self.key, taken / 1e9, 0, error)
        look = tiers.memory.look(self.key)
        if look is not None and look.error is None and tiers.may_stand_in(look):
            if self.purpose is Purpose.DEMAND:
                with tiers.lock:
                    tiers.counts.stale_on_error += 1
            return look.value
        lasts = tiers.negative_ns and not isinstance(error, (ClosedError, LoadError))
        if look is None and lasts and self._claim is not None:
            tiers.memory.remember(self.key, error, tiers.negative_ns, self._claim)
        return MISSING

    def _end(self) -> None:
        """Nothing will be stored any more; what was written while it was invalidated is taken back."""
        tiers, claim = self._tiers, self._claim
        if claim is None:
            return
        with tiers.lock:
            self._claim = None
            tiers.memory.claims.leave(self.key, claim)
            if tiers.ahead.get(self.key) is self:
                del tiers.ahead[self.key]
        if claim.doomed and self._wrote and tiers.shelf is not None:
            tiers.shelf.delete(self.key)
