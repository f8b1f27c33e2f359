"""The second tier: what a :class:`DiskTier` holds, for keys and values instead of names and bytes.

Files, their cap and their checksums are ``disk.py``'s, the form of a value ``packing.py``'s, when something goes to
disk ``miss.py``'s and ``memory_tier.py``'s. What has no form on disk lives in memory only, and is counted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from lazystore._core.cache_map import FOREVER
from lazystore.cache.clock import Clock
from lazystore.cache.disk import DiskTier
from lazystore.cache.keys import canonical, prefixes
from lazystore.cache.packing import Unpackable
from lazystore.errors import ConfigError, FormatError, UnhashableKeyError

if TYPE_CHECKING:
    from lazystore.cache.ledger import Ledger
    from lazystore.cache.tier_counters import TierCounters

__all__ = ["DiskShelf"]


class DiskShelf:
    """Values by key in a folder.

    Parameters:
        tier: the folder; shared with others that have another namespace, and not closed here.
        namespace: what the names of this one's keys begin with.
        clock: what ``expires`` is told by.
        counts: where events are counted; under the lock of ``ledger``.

    Threads: any; calls block while the system reads or writes. Fork: as the tier's. Pickle: refused with its owner.
    """

    def __init__(self, tier: DiskTier, namespace: str, *, clock: Clock, counts: TierCounters, ledger: Ledger) -> None:
        self.tier = tier
        self.spills = tier.mode == "spill"
        # A tuple's bytes begin with its first element's, so all of a namespace have one beginning.
        self._space = canonical(namespace)
        self._clock = clock
        self._counts = counts
        self._ledger = ledger

    def get(self, key: Hashable) -> tuple[Any, int] | None:
        """The value of a key and the nanoseconds it stays fresh, 0 for ever; None when it is not here."""
        name = self._name(key)
        if name is None:
            return None
        now = self._clock.time()
        stored = self.tier.get(name, now=now)
        found: tuple[Any, int] | None = None
        if stored is not None:
            # At least a nanosecond: 0 would be for ever.
            fresh = max(1, round((stored.expires - now) * 1e9)) if stored.expires else 0
            try:
                found = self.tier.unpack(stored), fresh
            except FormatError:  # as good as not there; the tier counts those it finds damaged itself
                self.tier.delete(name)
        with self._ledger.lock:
            if found is None:
                self._counts.disk_misses += 1
            else:
                self._counts.disk_hits += 1
        return found

    def loaded(self, key: Hashable, value: Any, fresh: int, in_memory: bool) -> None:
        """A new value of a key: written at once, or with ``mode="spill"`` when it leaves memory, if it is there at all.

        Parameters:
            fresh: nanoseconds; 0 for ever.
        """
        if self.spills and in_memory:
            if key in self:
                self.delete(key)  # what is here is older
        else:
            self._put(key, value, fresh)

    def spill(self, key: Hashable, value: Any, fresh_left: int) -> int:
        """Write a value that left memory, unless it came from here; the bytes written."""
        name = self._name(key)
        if name is None or name in self.tier:
            return 0
        written = self._put(key, value, 0 if fresh_left == FOREVER else fresh_left)
        with self._ledger.lock:
            self._counts.spills += written > 0
        return written

    def delete(self, key: Hashable) -> bool:
        """Remove a key; whether it was here."""
        name = self._name(key, count=False)
        return name is not None and self.tier.delete(name)

    @property
    def index_bytes(self) -> int:
        """Bytes of memory that finding things on disk takes."""
        return int(self.tier.counters()["index_bytes"])

    def clear(self, prefix: str | None) -> int:
        """Remove all keys of the namespace, or those that begin with ``prefix``; how many."""
        if prefix is None:
            return self.tier.clear(self._space)
        return sum(self.tier.clear(self._space + beginning) for beginning in prefixes(prefix))

    def __contains__(self, key: Hashable) -> bool:
        name = self._name(key, count=False)
        return name is not None and name in self.tier

    def _put(self, key: Hashable, value: Any, fresh: int) -> int:
        """Write a value; the bytes written. One that cannot be is removed: what is here is older."""
        name = self._name(key)
        if name is None:
            return 0
        try:
            kind, buffers = self.tier.pack(value)
        except Unpackable:
            with self._ledger.lock:
                self._counts.disk_unpackable += 1
            self.tier.delete(name)
            return 0
        now = self._clock.time()
        if not self.tier.put(name, kind, buffers, created=now, expires=now + fresh / 1e9 if fresh else 0.0):
            self.tier.delete(name)
            return 0
        return sum(memoryview(part).nbytes for part in buffers)

    def _name(self, key: Hashable, *, count: bool = True) -> bytes | None:
        """What a key is called on disk; None when it has no form there."""
        try:
            return self._space + canonical(key)
        except UnhashableKeyError:
            raise
        except ConfigError:
            if count:
                with self._ledger.lock:
                    self._counts.disk_unkeyable += 1
            return None
