"""What a store tells about itself: counters as plain values, and health. Nothing is counted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lazystore.cache.tiers import Tiers
from lazystore.lazy.events import Events, kind_of
from lazystore.lazy.health import HealthWindow, hit_ratio

if TYPE_CHECKING:
    from threading import Lock
    from weakref import WeakSet

    from lazystore.lazy.background import Background
    from lazystore.lazy.stream import Stream

__all__ = ["Looking"]


class Looking:
    """The verbs that tell. Mixed into :class:`~lazystore.LazyStore`, which owns all the parts."""

    _tiers: Tiers
    _events: Events
    _health: HealthWindow
    _open_streams: WeakSet[Stream]
    _lock: Lock
    _closed: bool

    if TYPE_CHECKING:

        @property
        def background(self) -> Background: ...

    def stats(self) -> dict[str, Any]:
        """What the store holds and what happened in it since it was made, as plain values.

        ``hits + misses + joins == requests`` of the tiers (``operations`` counts calls of verbs instead), and
        ``memory_used`` is the sum of what the entries weigh. Cost: O(entries), to count chunks and pages.
        """
        keys = self._tiers.memory.map.keys()
        with self._lock:
            streams = list(self._open_streams)
        background = self.background.stats() if "background" in self.__dict__ else {}
        return {
            "name": self._events.name,
            **self._counters(),
            **self._events.snapshot(),
            "entries_by_kind": dict(Counter(map(kind_of, keys))),
            "active_streams": sum(not (stream.closed or stream.info().done) for stream in streams),
            "background": background,
            "background_tasks": background.get("waiting", 0) + background.get("under_way", 0),
        }

    def _counters(self) -> dict[str, Any]:
        """The tiers' counters, and the disk tier's under names of their own."""
        found: dict[str, Any] = dict(self._tiers.counters())
        found["hit_ratio"] = hit_ratio(found)
        found["memory_used"], found["memory_limit"] = found.pop("bytes"), found.pop("limit")
        shelf = self._tiers.shelf
        disk = shelf.tier.counters() if shelf is not None else {}
        found["disk"] = disk
        found["disk_bytes"] = disk.get("nbytes", 0)
        found["compression_savings"] = disk.get("compression_savings", 0)
        health = shelf.tier.health() if shelf is not None else None
        found["disk_health"] = "ok" if health is None or health.ok else health.reason
        found["closed"] = self._closed
        return found

    def health(self, thresholds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """``{"status": "ok" | "degraded" | "failing", "reasons": [...], ...}`` over the last minute; asks nobody.

        Parameters:
            thresholds: limits in place of those in :data:`lazystore.lazy.health.THRESHOLDS`.
        """
        return self._health.judge(self._counters(), thresholds)
