"""What happened in a store: operations by strategy, loads by kind, slow ones. Counting and logging, no policy."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Hashable
from typing import Any

from lazystore.cache.keys import Kind
from lazystore.cache.locks import forkable_lock
from lazystore.lazy.strategy import Strategy

__all__ = ["Events", "kind_of"]

log = logging.getLogger("lazystore")

#: Seconds between two records about slow loads: a slow source must not flood the log.
LOG_EVERY = 1.0


def kind_of(key: Hashable) -> str:
    """ "page", "chunk", ... of a cache key; "value" of what ``get`` loads."""
    if isinstance(key, tuple) and key and isinstance(key[0], Kind):
        return key[0].name.lower()
    return "value"


class Events:
    """Counters of one store. Threads: any; each event is counted under one lock. Fork: copied. Pickling: none.

    Parameters:
        name: of the store, for messages.
        slow_after: seconds from which on a load is logged as slow.
    """

    def __init__(self, name: str, slow_after: float) -> None:
        self.name = name
        self.slow_after = slow_after
        self._lock = forkable_lock()
        self.operations: Counter[Strategy] = Counter()
        self.loads: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.slow = 0
        self.fallbacks = 0
        self.choices: Counter[str] = Counter()
        self._logged = float("-inf")

    def operation(self, strategy: Strategy) -> None:
        """A verb was called."""
        with self._lock:
            self.operations[strategy] += 1

    def chose(self, strategy: Strategy, reason: str) -> None:
        """AUTO took a strategy."""
        with self._lock:
            self.choices[f"{strategy.name}: {reason}"] += 1

    def fell_back(self) -> None:
        """A fallback was given in place of a value that could not be loaded."""
        with self._lock:
            self.fallbacks += 1

    def loaded(self, key: Hashable, seconds: float, nbytes: int, error: BaseException | None) -> None:
        """A loader ended, well or not."""
        kind = kind_of(key)
        with self._lock:
            self.loads[kind] += 1
            self.seconds[kind] += seconds  # type: ignore[assignment]
            if error is not None:
                self.errors[kind] += 1
            is_slow = seconds > self.slow_after
            self.slow += is_slow
            now = time.monotonic()
            tell = is_slow and now - self._logged >= LOG_EVERY
            if tell:
                self._logged = now
        if tell:
            what = "failed" if error is not None else f"{nbytes} bytes"
            log.warning(
                "%s: slow load of %.200r: %.2f s, %s (%d slow so far)", self.name, key, seconds, what, self.slow
            )

    def snapshot(self) -> dict[str, Any]:
        """The counters as plain values, taken at one moment."""
        with self._lock:
            return {
                "operations": {strategy.value: self.operations[strategy] for strategy in Strategy},
                "loads_by_kind": dict(self.loads),
                "load_seconds_by_kind": dict(self.seconds),
                "errors_by_kind": dict(self.errors),
                "slow_loads": self.slow,
                "fallbacks": self.fallbacks,
                "auto_choices": dict(self.choices),
            }
