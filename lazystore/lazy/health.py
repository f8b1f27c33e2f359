"""Is a store well? Judged from counters over a sliding window; no I/O, nothing is asked of the source."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from lazystore.cache.locks import forkable_lock
from lazystore.errors import ConfigError

__all__ = ["THRESHOLDS", "HealthWindow", "hit_ratio"]

#: Seconds that a judgement looks back.
WINDOW_S = 60.0
#: Fewer requests or loads in the window than this say nothing about ratios.
ENOUGH = 20

THRESHOLDS: dict[str, float] = {
    "error_rate_degraded": 0.1,  # share of loads that failed
    "error_rate_failing": 0.5,
    "average_load_seconds": 1.0,
    "hit_ratio": 0.0,  # below it is degraded; 0 turns the rule off: not every workload repeats itself
    "memory_share": 1.0,  # a full cache is a good cache: only beyond the budget
}
_WATCHED = ("requests", "hits", "joins", "misses", "disk_hits", "loads", "load_errors", "load_seconds")


def hit_ratio(counters: Mapping[str, float]) -> float:
    """The share of requests that no load of their own was needed for; 0.0 where there were none."""
    # Loads ahead hit the disk too: what they found there served nobody yet.
    served = counters["hits"] + counters["joins"] + min(counters["disk_hits"], counters["misses"])
    return served / counters["requests"] if counters["requests"] else 0.0


class HealthWindow:
    """Judges a store by what happened in the last minute (since the last look, if that is longer ago).

    Threads: any. Fork: copied. Pickling: none.
    """

    def __init__(self) -> None:
        self._lock = forkable_lock()
        self._seen: deque[tuple[float, dict[str, float]]] = deque(maxlen=64)

    def judge(self, counters: Mapping[str, Any], thresholds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """``{"status": "ok" | "degraded" | "failing", "reasons": [...], "window": {...}, "timestamp": ...}``.

        Parameters:
            counters: of the store, as ``stats()`` gives them.
            thresholds: in place of those of :data:`THRESHOLDS`.

        Raises:
            ConfigError: an unknown threshold.
        """
        limits = {**THRESHOLDS, **(thresholds or {})}
        if unknown := sorted(set(limits) - set(THRESHOLDS)):
            raise ConfigError(f"thresholds has no {', '.join(unknown)}; known: {', '.join(THRESHOLDS)}")
        window = self._window({name: float(counters.get(name, 0)) for name in _WATCHED})
        failing = _faults(counters)
        degraded: list[str] = []
        _judge_loads(window, limits, failing, degraded)
        if window["requests"] >= ENOUGH and window["hit_ratio"] < limits["hit_ratio"]:
            degraded.append(f"hit ratio {window['hit_ratio']:.2f} is below {limits['hit_ratio']:.2f}")
        budget = counters.get("memory_limit", 0)
        if budget and counters.get("memory_used", 0) > limits["memory_share"] * budget:
            over = f"{counters['memory_used']} bytes in memory, {limits['memory_share']:.0%} of {budget} are allowed"
            (failing if counters["memory_used"] > budget else degraded).append(over)
        if counters.get("disk_health", "ok") != "ok":
            degraded.append(f"disk tier: {counters['disk_health']}")
        status = "failing" if failing else "degraded" if degraded else "ok"
        return {"status": status, "reasons": failing + degraded, "window": window, "timestamp": time.time()}

    def _window(self, now: dict[str, float]) -> dict[str, float]:
        """What was counted since the oldest look that is not older than the window."""
        at = time.monotonic()
        with self._lock:
            while len(self._seen) > 1 and self._seen[1][0] <= at - WINDOW_S:
                self._seen.popleft()
            began, before = self._seen[0] if self._seen else (at, dict.fromkeys(now, 0.0))
            if not self._seen or at - self._seen[-1][0] >= 1.0:
                self._seen.append((at, now))
        found = {name: max(0.0, now[name] - before[name]) for name in now}
        found["hit_ratio"] = hit_ratio(found)
        found["seconds"] = at - began
        return found


def _faults(counters: Mapping[str, Any]) -> list[str]:
    return ["the store is closed"] if counters.get("closed") else []


def _judge_loads(
    window: Mapping[str, float], limits: Mapping[str, float], failing: list[str], degraded: list[str]
) -> None:
    if not window["loads"]:
        return
    rate, average = window["load_errors"] / window["loads"], window["load_seconds"] / window["loads"]
    if window["loads"] >= ENOUGH or window["load_errors"] == window["loads"]:
        if rate > limits["error_rate_failing"]:
            failing.append(f"{rate:.0%} of {window['loads']:.0f} loads failed")
        elif rate > limits["error_rate_degraded"]:
            degraded.append(f"{rate:.0%} of {window['loads']:.0f} loads failed")
    if average > limits["average_load_seconds"]:
        degraded.append(f"a load takes {average:.2f} s on average")
