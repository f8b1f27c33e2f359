"""An ``OrderedDict`` with weights: the oracle of ``LruMap``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class LruMapModel:
    """Oldest entry first in the dict. Counts hits, misses and evictions as the map does."""

    def __init__(self, max_weight: int) -> None:
        self.max_weight = max_weight
        self.entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self.hits = self.misses = self.evictions = 0

    @property
    def weight(self) -> int:
        return sum(weight for _, weight in self.entries.values())

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self.entries:
            self.misses += 1
            return default
        self.hits += 1
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def put(self, key: Any, value: Any, weight: int) -> list[tuple[Any, Any]]:
        """A replaced entry is no eviction; one that is too heavy comes straight back."""
        self.entries.pop(key, None)
        if weight > self.max_weight:
            return [(key, value)]
        evicted = []
        while self.weight + weight > self.max_weight:
            old, (old_value, _) = self.entries.popitem(last=False)
            evicted.append((old, old_value))
            self.evictions += 1
        self.entries[key] = value, weight
        return evicted

    def pop(self, key: Any) -> Any:
        return self.entries.pop(key)[0]

    def clear(self) -> None:
        self.entries.clear()

    def keys(self) -> list[Any]:
        return list(reversed(self.entries))
