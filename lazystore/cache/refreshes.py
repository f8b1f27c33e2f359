"""Stale values that are loaded anew in the background, because they were served: one load a key, and not at once again
when that failed. What may be served stale is said in ``tiers.py``.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING

from lazystore.cache.miss import Miss

if TYPE_CHECKING:
    from lazystore.cache.tiers import Tiers

__all__ = ["Refreshes"]

#: How urgent they are, among what is loaded in the background.
PRIORITY = 1.0
#: Nanoseconds in which a value whose refresh failed is not refreshed again.
REST_NS = 1_000_000_000


class Refreshes:
    """The refreshes of a cache under way, and the keys that rest after one failed.

    Threads: any. Fork: :meth:`clear` in the child. Pickle: none.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = weakref.ref(tiers)
        self._going: set[Hashable] = set()
        self._resting: dict[Hashable, int] = {}

    def begin(self, miss: Miss) -> None:
        """Load a key anew, unless that is being done, or failed just now."""
        tiers = self._tiers()
        assert tiers is not None, "its owner calls"
        key = miss.key
        with tiers.lock:
            if key in self._going or self._resting.get(key, 0) > tiers.clock.monotonic_ns():
                return
            self._going.add(key)
            tiers.counts.refreshes += 1
        try:
            tiers.loads.start(key, miss.call, priority=PRIORITY, on_done=lambda _: self._over(key, failed=miss.failed))
        except BaseException:
            self._over(key, failed=False)
            raise

    def _over(self, key: Hashable, *, failed: bool) -> None:
        tiers = self._tiers()
        if tiers is None:
            return
        now = tiers.clock.monotonic_ns()
        with tiers.lock:
            self._going.discard(key)
            if failed:
                for rested in [each for each, until in self._resting.items() if until <= now]:
                    del self._resting[rested]
                self._resting[key] = now + max(tiers.negative_ns, REST_NS)

    def clear(self) -> None:
        """Forget what threads of the parent were about to do."""
        self._going.clear()
        self._resting.clear()
