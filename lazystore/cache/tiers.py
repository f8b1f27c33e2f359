"""Memory, then disk, then the loader, as one short walk: the cache under everything in ``lazystore.lazy``.

Values are kept by key inside one budget; of all who ask for a key at one time one loads it. Sources, pages and
chunks are made of this elsewhere. What happens on a miss is in ``miss.py``, what is kept in ``memory_tier.py``.

``stale-while-revalidate`` and ``stale-if-error`` are RFC 5861's.
"""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final

from lazystore.cache.bridge import Bridge
from lazystore.cache.clock import Clock
from lazystore.cache.disk_shelf import DiskShelf
from lazystore.cache.entries import MISSING, same_again
from lazystore.cache.flight import Deadline
from lazystore.cache.ledger import Ledger
from lazystore.cache.loads import Loads
from lazystore.cache.memory_tier import Look, MemoryTier
from lazystore.cache.miss import Miss, Purpose
from lazystore.cache.pressure import Pressure
from lazystore.cache.refreshes import Refreshes
from lazystore.cache.retries import Retries
from lazystore.cache.single_flight import Flight
from lazystore.cache.tier_counters import TierCounters
from lazystore.cache.workers import Workers
from lazystore.config import seconds
from lazystore.errors import ClosedError, ConfigError, UnhashableKeyError

if TYPE_CHECKING:
    from lazystore.cache.disk import DiskTier

__all__ = ["UNSET", "Tiers", "check_ttl"]


class Unset:
    """The type of UNSET: None is a TTL like any other, for ever."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNSET"


#: As the store has it.
UNSET: Final = Unset()
#: Some ninety years: what is longer is for ever to all who could notice.
LONGEST_NS = 3e18

_ONCE = Retries(attempts=1)


class Tiers:
    """A cache of two tiers, and the loads under it.

    Parameters:
        memory: bytes in all, of cached values with their keys and bookkeeping, and of what is reserved in
            :attr:`ledger`; 0: nothing is cached in memory.
        disk: the second tier.
        namespace: what this cache's keys begin with in the disk tier: two caches of one name share what is there.
        policy: who leaves memory first: ``"s3fifo"`` or ``"lru"``.
        ttl: seconds a value is fresh; None for ever.
        ttl_jitter: share of the TTL by which each value's differs at most, so that what was loaded together does not
            expire together.
        negative_ttl: seconds in which an error of the loader is raised again without a load; 0: never.
        stale_while_revalidate: seconds after a value's freshness in which it is still served, at once, while one
            load in the background refreshes it.
        stale_if_error: seconds after a value's freshness in which it is served if its load fails.
        weigh: bytes of a value; by default what it holds, walked through.
        concurrency: loads at one time, those in the background included.
        workers: threads for the background and for sync loaders of async callers; by default its own, which start
            when they are first needed.
        retries: how often a loader that fails is called again.
        pressure: looks whether the machine is short of memory; by default at this process's control groups.
        clock: tells the time.
        rng: uniform in [0, 1), for the jitter; by default the operating system's.
        on_evict: told ``(key, value, cause)`` of each value that left memory, see ``tier_counters.CAUSES``; outside any
            lock, in the thread that made it leave. What it raises is logged once and counted.
        on_load: told ``(key, seconds, bytes, error or None)`` of each load that ended, of its last attempt; likewise.

    A value weighing more than an eighth of the budget, or more than 8 MiB where that is more, is handed out and not
    kept in memory. A hit is one call of C inside one of Python; :attr:`hit` is the call in C alone.

    Threads and event loops: any number at once. Fork: the child has its parent's values, and loads, threads and loops
    of its own. Pickle: refused. Interpreter exit: waits for nothing.

    Raises:
        ConfigError: an argument that cannot work.
    """

    def __init__(
        self,
        *,
        memory: int,
        disk: DiskTier | None = None,
        namespace: str = "",
        policy: str = "s3fifo",
        ttl: float | None = None,
        ttl_jitter: float = 0.1,
        negative_ttl: float = 0.0,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        weigh: Callable[[Any], int] | None = None,
        concurrency: int = 10,
        workers: Workers | None = None,
        retries: Retries | None = None,
        pressure: Pressure | None = None,
        clock: Clock | None = None,
        rng: Callable[[], float] | None = None,
        on_evict: Callable[[Hashable, Any, str], object] | None = None,
        on_load: Callable[[Hashable, float, int, BaseException | None], object] | None = None,
    ) -> None:
        _check_times(negative_ttl, stale_while_revalidate, stale_if_error)
        if not 0 <= ttl_jitter < 1:
            raise ConfigError(f"ttl_jitter={ttl_jitter!r} must be at least 0 and below 1")
        self.clock = clock or Clock()
        self.counts = TierCounters()
        self.memory = MemoryTier(
            memory, policy=policy, clock=self.clock, counts=self.counts, weigh=weigh, on_evict=on_evict
        )
        self.on_load = on_load
        self.shelf: DiskShelf | None = None
        if disk is not None:
            self.shelf = DiskShelf(disk, namespace, clock=self.clock, counts=self.counts, ledger=self.ledger)
            if self.shelf.spills:
                self.memory.spill, self.memory.unspill = self.shelf.spill, self.shelf.delete
            self.ledger.charge(self.shelf.index_bytes)
        #: A fresh value, counted, or a default: the map's own method, for callers that cannot afford another call.
        #: What was loaded ahead, and stale values, only :meth:`get` finds.
        self.hit = self.memory.map.get
        self.ttl = ttl
        self.negative_ns = _ns(negative_ttl)
        self.pressure = pressure or Pressure(clock=self.clock)
        #: Misses under way that nobody asked for, by key. Under the lock.
        self.ahead: dict[Hashable, Miss] = {}
        # Two at least: one that waits for its turn must not keep the other from having it.
        self.workers = workers or Workers(max(2, concurrency), "lazystore-load")
        self.bridge = Bridge(self.workers)
        self.loads = Loads(self.bridge, concurrency=concurrency)
        self._own_workers = workers is None
        self._jitter = ttl_jitter
        self._rng = rng or random.SystemRandom().random
        self._while_ns, self._error_ns = _ns(stale_while_revalidate), _ns(stale_if_error)
        self._retries = retries or Retries()
        self._closed = False
        self._refreshes = Refreshes(self)
        self.life(ttl)  # says at once what is wrong with it
        _ALL.add(self)

    # -- asking -------------------------------------------------------------------------

    def get(
        self,
        key: Hashable,
        load: Callable[[], Any],
        *,
        ttl: float | Unset | None = UNSET,
        deadline: Deadline | None = None,
        weigh: Callable[[Any], int] | None = None,
        keep: bool = True,
        retry: bool = True,
    ) -> Any:
        """The value of a key, loaded if it is not there.

        Parameters:
            key: any hashable.
            load: called without arguments when the value is in no tier; what it raises reaches the caller.
            ttl: seconds the value is fresh if it is loaded now; None for ever.
            deadline: when to give up waiting; the load goes on.
            weigh: bytes of this value.
            keep: whether what is loaded is kept.
            retry: whether a loader that fails is called again, as the store has it.

        Raises:
            UnhashableKeyError: the key.
            LoadTimeoutError: the deadline passed.
            ReentrantLoadError: called by the loader of the same key.
            ClosedError: after :meth:`close`.
            Exception: whatever ``load`` raises.

        Cost: a hit well under a microsecond.
        """
        try:
            value = self.hit(key, MISSING)
        except TypeError as error:
            raise _unhashable(key, error) from None
        if value is not MISSING:
            return value
        value = self._served(key, load, ttl, weigh, retry)
        if value is not MISSING:
            return value
        miss = self._miss(key, load, ttl, weigh, keep, retry, Purpose.DEMAND)
        try:
            return self.loads.load(key, miss.call, deadline=deadline)
        finally:
            miss.joined()

    async def aget(
        self,
        key: Hashable,
        load: Callable[[], Any],
        *,
        ttl: float | Unset | None = UNSET,
        deadline: Deadline | None = None,
        weigh: Callable[[Any], int] | None = None,
        keep: bool = True,
        retry: bool = True,
    ) -> Any:
        """:meth:`get` for a task: a coroutine function is awaited in its loop, any other runs in a worker thread."""
        try:
            value = self.hit(key, MISSING)
        except TypeError as error:
            raise _unhashable(key, error) from None
        if value is not MISSING:
            return value
        value = self._served(key, load, ttl, weigh, retry)
        if value is not MISSING:
            return value
        miss = self._miss(key, load, ttl, weigh, keep, retry, Purpose.DEMAND)
        try:
            return await self.loads.aload(key, miss.call, deadline=deadline)
        finally:
            miss.joined()

    def start(
        self,
        key: Hashable,
        load: Callable[[], Any],
        *,
        ttl: float | Unset | None = UNSET,
        priority: float = 0.0,
        weigh: Callable[[Any], int] | None = None,
        retry: bool = True,
    ) -> Flight:
        """Load a value in the background, unless it is there or on its way; returns the load, which can be waited for.

        What nobody asks for before it leaves memory is counted as wasted. Predictors ask :attr:`may_speculate` first.

        Parameters:
            priority: higher runs sooner.

        Raises:
            UnhashableKeyError, ClosedError: as :meth:`get` does.
        """
        self._check_open()
        try:
            hash(key)
        except TypeError as error:
            raise _unhashable(key, error) from None
        look = self.memory.look(key)
        if look is not None and look.fresh_left > 0:
            return Flight.of(key, look.value)
        miss = self._miss(key, load, ttl, weigh, True, retry, Purpose.AHEAD)
        with self.lock:
            first = self.ahead.setdefault(key, miss) is miss
        try:
            return self.loads.start(
                key, miss.call, priority=priority, on_done=(lambda _: self._over(miss)) if first else None
            )
        except BaseException:
            self._over(miss)
            raise

    def peek(self, key: Hashable, default: Any = None) -> Any:
        """The value of a key if it is fresh in memory; nothing is counted, loaded or made recent."""
        try:
            value = self.memory.peek(key)
        except TypeError as error:
            raise _unhashable(key, error) from None
        return default if value is MISSING else value

    def holds(self, key: Hashable) -> bool:
        """Whether a value is fresh in memory or on disk; nothing is counted, read or made recent."""
        if self.peek(key, MISSING) is not MISSING:
            return True
        return self.shelf is not None and key in self.shelf

    # -- telling ------------------------------------------------------------------------

    def put(
        self,
        key: Hashable,
        value: Any,
        *,
        ttl: float | Unset | None = UNSET,
        weigh: Callable[[Any], int] | None = None,
    ) -> None:
        """Keep a value without a load; one that is being loaded now is overruled by it."""
        self._check_open()
        life = self.life(self.ttl if isinstance(ttl, Unset) else ttl)
        try:
            weight = self.memory.weight_of(key, value, weigh)
            self.memory.drop(key, "replaced")
        except TypeError as error:
            raise _unhashable(key, error) from None
        self.loads.forget(key)
        kept = self.memory.store(key, value, weight, life)
        if self.shelf is not None:
            self.shelf.loaded(key, value, life[0], kept)

    def invalidate(self, key: Hashable) -> bool:
        """Forget a key in every tier, and keep out what is being loaded for it; whether there was anything.

        A request that comes after this never gets what was loaded before it.
        """
        try:
            here, coming = self.memory.drop(key)
        except TypeError as error:
            raise _unhashable(key, error) from None
        if coming:
            self.loads.forget(key)
        stored = self.shelf is not None and self.shelf.delete(key)
        return here or stored or coming

    def clear(self, *, memory: bool = True, disk: bool = False, prefix: str | None = None) -> int:
        """Forget everything, or all keys that begin with ``prefix``: strings, bytes, and tuples led by such a string.

        Parameters:
            memory, disk: in which tiers. What is being loaded meanwhile is kept out of both.

        Returns: how many values were there, each tier by itself.
        """
        count, coming = self.memory.clear(prefix, memory=memory)
        for key in coming:
            self.loads.forget(key)
        return count + (self.shelf.clear(prefix) if disk and self.shelf is not None else 0)

    def counters(self) -> dict[str, int | float | str]:
        """What happened so far, and what is held. ``hits + misses + joins == requests``, at any moment."""
        with self.lock:
            told = self.counts.snapshot(self.memory.map.hits)
        ledger = self.memory.ledger
        told.update(
            expirations=self.memory.map.expirations, entries=len(self.memory.map), bytes=ledger.used,
            reserved=ledger.reserved, peak=ledger.peak, limit=ledger.limit, target=ledger.target,
            pressure=self.pressure.reason,
        )  # fmt: skip
        return told

    @property
    def ledger(self) -> Ledger:
        """The budget: what a stream or a window needs is reserved here, and the cache gives way."""
        return self.memory.ledger

    @property
    def budget(self) -> int:
        """Bytes in all."""
        return self.memory.ledger.limit

    @property
    def lock(self) -> threading.RLock:
        """Guards counters, claims and the map's bookkeeping; never held while anything of a user's runs."""
        return self.memory.ledger.lock

    @property
    def may_speculate(self) -> bool:
        """Whether there is memory for loads that nobody asked for."""
        self.look_at_pressure()
        return not self.pressure.severe

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, grace: float = 2.0) -> None:
        """Let what is being loaded end, or give it up after ``grace`` seconds; forget all values; end the threads.

        With a disk tier that spills, what is fresh and only in memory is written first. The tier stays open: it is
        its maker's. Twice is harmless.
        """
        if not self._closed:
            self._closed = True
            self.loads.close(grace)
            self._flush()
            self._end(grace)

    async def aclose(self, grace: float = 2.0) -> None:
        """:meth:`close` for a task: its loop goes on while loads end."""
        if not self._closed:
            self._closed = True
            await self.loads.aclose(grace)
            if self.shelf is not None:
                await self.bridge.acall(self._flush)
            self._end(grace)

    def _flush(self) -> None:
        if self.shelf is not None:
            self.memory.flush(self.shelf.tier.max_bytes)

    def _end(self, grace: float) -> None:
        if self._own_workers:
            self.workers.close(grace)
        self.bridge.close()
        self.memory.close()

    # -- for misses ---------------------------------------------------------------------

    def life(self, ttl: float | None) -> tuple[int, int]:
        """Nanoseconds a value loaded now is fresh, and kept; 0 for ever."""
        if ttl is None:
            return 0, 0
        check_ttl(ttl)
        fresh = max(1, _ns(ttl * (1.0 + self._jitter * (2.0 * self._rng() - 1.0))))
        return fresh, fresh + max(self._while_ns, self._error_ns)

    def life_left(self, fresh: int) -> tuple[int, int]:
        """The same of a value that is fresh for some nanoseconds more; 0 for ever."""
        return (fresh, fresh + max(self._while_ns, self._error_ns)) if fresh else (0, 0)

    def may_stand_in(self, look: Look) -> bool:
        """Whether a stale value may be served in place of an error."""
        return look.fresh_left > -self._error_ns if self._error_ns else False

    def look_at_pressure(self) -> None:
        """Lower or raise the cache's target if it is time to look; and count the disk's index, which grows."""
        if self.pressure.due():
            share = self.pressure.look()
            if share != self.ledger.share:
                self.ledger.retarget(share)
            if self.shelf is not None:
                self.ledger.charge(self.shelf.index_bytes)

    # -- inside -------------------------------------------------------------------------

    def _served(
        self,
        key: Hashable,
        load: Callable[[], Any],
        ttl: float | Unset | None,
        weigh: Callable[[Any], int] | None,
        retry: bool,
    ) -> Any:
        """What is served without waiting although the map had no hit, refreshed if it is stale; or MISSING."""
        look = self._second_look(key)
        if look is None:
            return MISSING
        if look.fresh_left <= 0:
            self._refreshes.begin(self._miss(key, load, ttl, weigh, True, retry, Purpose.REFRESH))
        return look.value

    def _second_look(self, key: Hashable) -> Look | None:
        """What may be served without a load although it was no hit in the map; counted. Raises a remembered error."""
        self._check_open()
        memory, counts = self.memory, self.counts
        look = memory.look(key)
        if look is None:
            late = self.ahead.get(key) if self.ahead else None
            if late is not None:
                self._note_late(key)
            return None
        if look.error is not None:
            with self.lock:
                counts.requests += 1
                counts.hits += 1
                counts.negative_hits += 1
            raise same_again(look.error)
        if look.fresh_left <= -self._while_ns:
            return None
        if look.unused:
            memory.use(key)
        with self.lock:
            counts.requests += 1
            counts.hits += 1
            counts.stale_served += look.fresh_left <= 0
        return look

    def _note_late(self, key: Hashable) -> None:
        """Somebody asks for what is being loaded ahead."""
        with self.lock:
            late = self.ahead.get(key)
            if late is not None:
                late.asked = True

    def _miss(
        self,
        key: Hashable,
        load: Callable[[], Any],
        ttl: float | Unset | None,
        weigh: Callable[[Any], int] | None,
        keep: bool,
        retry: bool,
        purpose: Purpose,
    ) -> Miss:
        check_ttl(ttl)
        return Miss(
            self, key, load, ttl=self.ttl if isinstance(ttl, Unset) else ttl, weigh=weigh, keep=keep,
            retries=self._retries if retry else _ONCE, purpose=purpose,
        )  # fmt: skip

    def _over(self, miss: Miss) -> None:
        """A load ahead has ended, or will never run."""
        with self.lock:
            if self.ahead.get(miss.key) is miss:
                del self.ahead[miss.key]

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the store is closed")

    def reset_after_fork(self) -> None:
        """In a forked child: values stay, loads and locks of the parent's threads do not."""
        self.memory.reset_after_fork()
        self.pressure.reset_after_fork()
        self.ahead.clear()
        self._refreshes.clear()

    def __reduce__(self) -> str:
        raise TypeError("Tiers hold live values and cannot be pickled; a LazyStore pickles as its arguments")

    def __repr__(self) -> str:
        return f"<Tiers {self.memory!r}>"


def _ns(seconds: float) -> int:
    """Nanoseconds, at most LONGEST_NS: infinity is a time like any other."""
    return round(min(seconds * 1e9, LONGEST_NS))


def check_ttl(ttl: object) -> None:
    """Refuse what is no time to live, before anything is loaded for it.

    Raises:
        ConfigError: neither seconds above zero nor None.
    """
    if ttl is not None and not isinstance(ttl, Unset):
        seconds("ttl", ttl, hint="or None for ever")


def _check_times(*seconds: float) -> None:
    if any(not each >= 0 for each in seconds):
        raise ConfigError("negative_ttl, stale_while_revalidate and stale_if_error are seconds, at least 0")


def _unhashable(key: object, error: TypeError) -> Exception:
    """What to raise for a TypeError met while a key was looked up: it may be of the key's own comparison."""
    try:
        hash(key)
    except TypeError:
        return UnhashableKeyError(f"a key of type {type(key).__name__} cannot be found again: {error}")
    return error


_ALL: weakref.WeakSet[Tiers] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for tiers in list(_ALL):
        tiers.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
