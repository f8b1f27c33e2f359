"""The first tier: values in memory, inside the budget, and what becomes of those that leave it.

Who is asked when a value is not here, and what an error means, is not decided here. The map (in C) evicts; this
keeps its entries' weights in the ledger's room, tells who left and why, hands them to the disk, and keeps out what
was invalidated while it was on its way.
"""

from __future__ import annotations

import functools
import logging
import operator
import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from lazystore._core.cache_map import FOREVER, CacheMap
from lazystore._core.weigh import weigh as weigh_object
from lazystore.cache.clock import Clock
from lazystore.cache.entries import MISSING, STALE_NS, Claim, Claims, Failed, Unused
from lazystore.cache.keys import begins_with
from lazystore.cache.ledger import Ledger
from lazystore.cache.tier_counters import TierCounters
from lazystore.errors import ClosedError, ConfigError

__all__ = ["Look", "MemoryTier"]

log = logging.getLogger("lazystore.cache")

MIB = 1 << 20
#: A value may take this share of the budget, or SMALL_BUDGET bytes if that is more: below 8 MiB all of it, above 64
#: MiB an eighth. One value must not push out everything else, yet the smallest cache must be able to hold one.
LARGEST_SHARE = 8
SMALL_BUDGET = 8 * MIB
#: Bytes of values that leave memory at once which are written to disk by the thread that made them leave.
SPILL_MOST = 32 * MIB
#: Every how many values that are stored dead ones are looked for.
SWEEP = 32


class Look(NamedTuple):
    """An entry as it is found: fresh, stale, loaded ahead, or a remembered error.

    Attributes:
        fresh_left: nanoseconds; FOREVER, or not above 0 when it is stale.
    """

    value: Any
    fresh_left: int
    unused: bool
    error: Exception | None


class Left(NamedTuple):
    """An entry that left."""

    key: Hashable
    value: Any
    cause: str
    fresh_left: int
    claim: Claim | None


class MemoryTier:
    """Values by key, in a budget of bytes.

    Parameters:
        budget: bytes; 0 keeps nothing.
        policy: of the map: ``"s3fifo"`` or ``"lru"``.
        clock: for what expires.
        counts: where events are counted.
        weigh: bytes of a value; by default what it holds, see :mod:`lazystore._core.weigh`.
        on_evict: told ``(key, value, cause)`` of each value that left, outside any lock, in the thread that made it
            leave. What it raises is logged once and counted.

    Threads: any. Fork: copied, see :meth:`reset_after_fork`. Pickle: refused.
    """

    def __init__(
        self,
        budget: int,
        *,
        policy: str = "s3fifo",
        clock: Clock,
        counts: TierCounters,
        weigh: Callable[[Any], int] | None = None,
        on_evict: Callable[[Hashable, Any, str], object] | None = None,
    ) -> None:
        self.map = CacheMap(max(1, budget), policy=policy, clock=None if clock.real else clock.monotonic_ns)
        held, this = (
            self.map,
            weakref.ref(self),
        )  # not self: a forgotten cache is to go at once, not with the next cycles
        self.ledger = Ledger(budget, make_room=lambda room: _resized(this, room), used=lambda: held.weight)
        #: The heaviest entry that is kept.
        self.largest = min(budget, max(budget // LARGEST_SHARE, SMALL_BUDGET))
        self.claims = Claims()
        #: Writes a value to disk and returns the bytes written; set by who has a disk that wants what leaves memory.
        self.spill: Callable[[Hashable, Any, int], int] | None = None
        #: Takes back what :attr:`spill` wrote.
        self.unspill: Callable[[Hashable], object] | None = None
        self._clock = clock
        self._counts = counts
        self._weigh = weigh or weigh_object
        self._on_evict = on_evict
        self._stores = 0
        self._ends: dict[Hashable, int] = {}  # of what spills: when it stops to be fresh, which the map does not tell

    # -- looking ------------------------------------------------------------------------

    def look(self, key: Hashable) -> Look | None:
        """What there is of a key, stale or not; nothing is counted."""
        entry = self.map.entry(key)
        if entry is None:
            self._ends.pop(key, None)
            return None
        value, _, _, fresh_left, _ = entry
        if type(value) is Unused:
            now = self._clock.monotonic_ns()
            if value.keep_left(now) <= 0:  # the map does not know: it would drop it and tell nobody that it was wasted
                self._gone(self._popped(key, "expired"))
                return None
            return Look(value.value, value.fresh_left(now), True, None)
        if type(value) is Failed:
            return Look(None, 0, False, value.error)
        return Look(value, fresh_left, False, None)

    def peek(self, key: Hashable) -> Any:
        """The value of a key if it is fresh, else MISSING; nothing is counted."""
        value = self.map.peek(key, MISSING)
        if value is MISSING:
            look = self.look(key)
            if look is not None and look.fresh_left > 0:
                return look.value
        return value

    def use(self, key: Hashable) -> Any:
        """The value of a key that was loaded ahead, from now on one like any other; MISSING when it is gone."""
        now = self._clock.monotonic_ns()
        with self.ledger.lock:
            entry = self.map.entry(key)
            unused = entry[0] if entry is not None else None
            if type(unused) is not Unused or unused.keep_left(now) <= 0:
                return MISSING
            self._counts.prefetch_used += not unused.asked
            if unused.fresh_left(now) <= 0:
                unused.asked = True  # stays what it is: put anew, it would be stale from now on
                return unused.value
            fresh, keep = (0 if left == FOREVER else left for left in (unused.fresh_left(now), unused.keep_left(now)))
            pairs = self.map.put(key, unused.value, entry[1], fresh_ns=fresh, keep_ns=keep)
            left = self._leaving(pairs[1:], "size")
        self._gone(left)
        return unused.value

    # -- storing ------------------------------------------------------------------------

    def weight_of(self, key: Hashable, value: Any, weigh: Callable[[Any], int] | None = None) -> int:
        """Bytes an entry counts for: its value, its key and the map's own.

        Raises:
            ConfigError: ``weigh`` gave no size.
        """
        weight = (weigh or self._weigh)(value)
        if type(weight) is not int:
            try:
                weight = operator.index(weight)
            except TypeError:
                raise ConfigError(f"weigh() must return bytes as an int, not {weight!r}") from None
        if weight < 0:
            raise ConfigError(f"weigh() returned {weight} bytes for the value of {key!r}")
        light = type(key) is str or type(key) is int or type(key) is bytes
        return weight + (sys.getsizeof(key) if light else weigh_object(key)) + self.map.entry_overhead

    def store(
        self,
        key: Hashable,
        value: Any,
        weight: int,
        life: tuple[int, int],
        *,
        claim: Claim | None = None,
        unused: Callable[[], bool] | None = None,
    ) -> bool:
        """Keep a value; False when it is not kept: it is too large, or was invalidated on its way.

        Parameters:
            life: nanoseconds it is fresh, and kept; 0 for ever.
            claim: made when the value set out.
            unused: asked, with the lock held, whether nobody has asked for the value yet.
        """
        with self.ledger.lock:
            if claim is not None and claim.doomed:
                self._counts.uncacheable += 1
                return False
            fresh, keep = life
            if weight > self.largest or weight > self.map.max_weight:
                self._counts.too_large += 1
                left = self._popped(key, "replaced")
                kept = False
            else:
                wrapped = unused is not None and unused()
                if wrapped:
                    now = self._clock.monotonic_ns()
                    value = Unused(value, now + fresh if fresh else 0, now + keep if keep else 0, weight)
                    fresh, keep = STALE_NS, 0
                pairs = self.map.put(key, value, weight, fresh_ns=fresh, keep_ns=keep)
                self.ledger.note(self.map.weight)
                left = self._leaving(pairs, "size", key)
                if self.spill is not None and life[0]:
                    self._ends[key] = self._clock.monotonic_ns() + life[0]
                kept = True
            self._stores += 1
            if not self._stores % SWEEP:
                left += self._leaving(self.map.expire(), "expired")
        if left:
            self._gone(left)
        return kept

    def remember(self, key: Hashable, error: Exception, keep_ns: int, claim: Claim) -> None:
        """Keep an error for a while."""
        failed = Failed(error)
        weight = failed.WEIGHT + sys.getsizeof(key) + self.map.entry_overhead
        with self.ledger.lock:
            if claim.doomed or weight > self.largest or weight > self.map.max_weight:
                return
            left = self._leaving(self.map.put(key, failed, weight, fresh_ns=STALE_NS, keep_ns=keep_ns), "size", key)
            self.ledger.note(self.map.weight)
        self._gone(left)

    def drop(self, key: Hashable, cause: str = "invalidated") -> tuple[bool, bool]:
        """Forget a key, and keep out what is on its way for it; whether it was here, and whether anything was."""
        with self.ledger.lock:
            coming = self.claims.doom(key)
            left = self._popped(key, cause)
        self._gone(left)
        return bool(left), coming

    def clear(self, prefix: str | None, *, memory: bool = True) -> tuple[int, list[Hashable]]:
        """Forget all keys, or those that begin with ``prefix``; how many were here, and those on their way.

        Parameters:
            memory: whether what is here is to go, too, not only what is on its way.
        """
        with self.ledger.lock:
            coming = [key for key in self.claims.keys() if prefix is None or begins_with(key, prefix)]  # noqa: SIM118
            for key in coming:
                self.claims.doom(key)
            if not memory:
                return 0, coming
            pairs = self.map.items()
            if prefix is None:
                self.map.clear()
            else:
                pairs = [pair for pair in pairs if begins_with(pair[0], prefix)]
                for key, _ in pairs:
                    self.map.pop(key)
            left = self._leaving(pairs, "cleared")
        self._gone(left)
        return len(left), coming

    # -- leaving ------------------------------------------------------------------------

    def _popped(self, key: Hashable, cause: str) -> list[Left]:
        with self.ledger.lock:
            value = self.map.pop(key, MISSING)
            return [] if value is MISSING else self._leaving([(key, value)], cause)

    def resize(self, room: int) -> Callable[[], None]:
        """The ledger has so much room for the cache; with its lock held. What to call without."""
        left = self._leaving(self.map.resize(max(1, room)), "room")
        return functools.partial(self._gone, left)

    def _leaving(self, pairs: Sequence[tuple[Any, Any]], cause: str, put: Hashable = MISSING) -> list[Left]:
        """Count what left the map; claim what is to go to disk. With the lock held; ``_gone`` does the rest without.

        Parameters:
            put: the key whose putting made them leave: its own former value is the first of them.
        """
        left: list[Left] = []
        if not pairs:
            return left
        now = self._clock.monotonic_ns() if self._ends else 0
        for key, value in pairs:
            why = "replaced" if put is not MISSING and not left and (key is put or key == put) else cause
            end = self._ends.pop(key, 0) if self._ends else 0
            fresh_left = end - now if end else FOREVER
            if type(value) is Failed:
                continue
            if type(value) is Unused:
                self._counts.prefetch_wasted += not value.asked
                self._counts.prefetch_wasted_bytes += 0 if value.asked else value.weight
                value = value.value
            self._counts.by_cause[why] += 1
            spills = self.spill is not None and why in ("size", "room") and fresh_left > 0
            claim = self.claims.enter(key) if spills else None
            left.append(Left(key, value, why, fresh_left, claim))
        return left

    def _gone(self, left: list[Left]) -> None:
        """Write to disk what goes there, and tell. With no lock held."""
        room = SPILL_MOST
        for gone in left:
            if gone.claim is not None:
                room = self._spilled(gone, room)
            if self._on_evict is not None:
                self.call_back(self._on_evict, gone.key, gone.value, gone.cause)

    def call_back(self, callback: Callable[..., object], *args: Any) -> None:
        """Call a function of the user's, which may break nothing: what it raises is logged once and counted."""
        try:
            callback(*args)
        except Exception:
            with self.ledger.lock:
                self._counts.callback_errors += 1
                first = self._counts.callback_errors == 1
            if first:
                log.exception("a callback failed for %r; further failures are counted and not logged", args[0])

    def _spilled(self, gone: Left, room: int) -> int:
        """Write one value; the bytes that may still be written."""
        assert gone.claim is not None and self.spill is not None and self.unspill is not None
        try:
            if room <= 0:
                with self.ledger.lock:
                    self._counts.spill_dropped += 1
            elif not gone.claim.doomed:
                room -= self.spill(gone.key, gone.value, gone.fresh_left)
        finally:
            with self.ledger.lock:
                self.claims.leave(gone.key, gone.claim)
            if gone.claim.doomed:
                self.unspill(gone.key)
        return room

    def flush(self, most: int) -> None:
        """Write fresh values that are only in memory to disk, those that would leave last first, ``most`` bytes in all.

        What was loaded ahead and not asked for stays out, as remembered errors do.
        """
        if self.spill is None:
            return
        now = self._clock.monotonic_ns()
        for key, _ in self.map.items():
            value = self.map.peek(key, MISSING)
            if value is MISSING or most <= 0:
                continue
            end = self._ends.get(key, 0)
            try:
                most -= self.spill(key, value, end - now if end else FOREVER)
            except ClosedError:  # the tier went first: then nothing can be kept
                return

    def close(self) -> None:
        """Let go of everything, and tell nobody."""
        self.spill, self._on_evict = None, None
        with self.ledger.lock:
            pairs = self.map.items()  # destructors run when the lock is free again
            self.map.clear()
            self._ends.clear()
        pairs.clear()

    def reset_after_fork(self) -> None:
        """In a forked child: forget what threads of the parent were about to store."""
        self.ledger.reset_after_fork()
        self.claims = Claims()

    def __reduce__(self) -> str:
        raise TypeError("a MemoryTier holds live values and cannot be pickled")

    def __repr__(self) -> str:
        return f"<MemoryTier {len(self.map)} values, {self.ledger!r}>"


def _resized(memory: weakref.ref[MemoryTier], room: int) -> Callable[[], None]:
    there = memory()
    return there.resize(room) if there is not None else _nothing


def _nothing() -> None:
    pass
