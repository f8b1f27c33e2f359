"""What happened in the tiers of a store, counted where it happens. Ratios and rates are made by who shows them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

__all__ = ["CAUSES", "LoadTimes", "TierCounters"]

#: Why an entry left memory: for room, because others reserved room or the machine was short of memory, by a newer
#: value, by invalidate(), by clear(), because it was out of date.
CAUSES = ("size", "room", "replaced", "invalidated", "cleared", "expired")

#: Load times are told apart by a factor of 2 ** (1 / STEPS), from SHORTEST seconds on.
STEPS = 4
SHORTEST = 1e-6
BUCKETS = 34 * STEPS


class LoadTimes:
    """A histogram of durations in logarithmic buckets: quantiles within 10 percent, in constant memory.

    Threads: under the caller's lock.
    """

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Note one duration."""
        step = int(math.log2(seconds / SHORTEST) * STEPS) if seconds > SHORTEST else 0
        self._buckets[min(step, BUCKETS - 1)] += 1
        self.count += 1  # last: whoever is interrupted in between leaves no count that is in no bucket
        self.total += seconds

    def quantile(self, share: float) -> float:
        """Seconds that this share of the durations does not pass; 0.0 when there are none."""
        if not self.count:
            return 0.0
        wanted = math.ceil(share * self.count) or 1
        step = -1
        while wanted > 0:
            step += 1
            wanted -= self._buckets[step]
        return float(SHORTEST * 2.0 ** ((step + 0.5) / STEPS))


@dataclass(slots=True)
class TierCounters:
    """Numbers of events since the store was made; bytes where the name says so.

    ``requests`` and ``hits`` are here only as far as the map in C has not counted them.
    Threads: under the caller's lock.
    """

    requests: int = 0  #: get and aget
    hits: int = 0  #: answered from memory, stale values and remembered errors included
    misses: int = 0  #: led to a look at the disk and a load
    joins: int = 0  #: waited for the load of another request
    negative_hits: int = 0  #: hits that were remembered errors
    stale_served: int = 0  #: hits that were stale, within stale_while_revalidate
    stale_on_error: int = 0  #: failed loads that a stale value stood in for
    refreshes: int = 0  #: loads begun in the background because a stale value was served
    load_errors: int = 0  #: loads that failed for good
    retries: int = 0  #: attempts after the first ones
    disk_hits: int = 0
    disk_misses: int = 0
    disk_unkeyable: int = 0  #: looks that were not taken: the key has no form on disk
    disk_unpackable: int = 0  #: values not stored: they have no form on disk
    spills: int = 0  #: values written to disk because they left memory
    spill_dropped: int = 0  #: values that left memory in a crowd too large to be written at once
    too_large: int = 0  #: values not kept in memory for their size
    uncacheable: int = 0  #: values not kept because they were invalidated while they were loaded
    callback_errors: int = 0  #: exceptions of on_evict
    prefetch_issued: int = 0  #: loads begun by start()
    prefetch_bytes: int = 0  #: weight of what they brought
    prefetch_used: int = 0  #: of these, values that were asked for
    prefetch_late: int = 0  #: of these, asked for before they were there
    prefetch_wasted: int = 0  #: values that left memory, or could not be kept, before anybody asked for them
    prefetch_wasted_bytes: int = 0
    prefetch_errors: int = 0  #: loads begun by start() that failed
    last_error: str = ""
    by_cause: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    times: LoadTimes = field(default_factory=LoadTimes)

    def failed(self, error: BaseException) -> None:
        """A load failed for good."""
        self.load_errors += 1
        self.last_error = f"{type(error).__name__}: {error}"

    def snapshot(self, map_hits: int) -> dict[str, int | float | str]:
        """All of them as plain values, the hits counted in C included."""
        names = [counter.name for counter in dataclasses.fields(self) if counter.name not in ("by_cause", "times")]
        told: dict[str, int | float | str] = {name: getattr(self, name) for name in names}
        told["requests"], told["hits"] = self.requests + map_hits, self.hits + map_hits
        told["loads"] = self.times.count + self.load_errors  # that ended, each with all its attempts
        told.update({f"evicted_{cause}": count for cause, count in self.by_cause.items()})
        told["evictions"] = self.by_cause["size"] + self.by_cause["room"]
        told["load_seconds"] = self.times.total
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            told[f"load_seconds_{name}"] = self.times.quantile(share)
        return told
