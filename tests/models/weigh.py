"""The weight of nested builtin containers by ``sys.getsizeof``: the oracle of ``weigh``."""

from __future__ import annotations

import gc
import sys
from typing import Any


def weigh_model(obj: Any) -> int:
    """Every object once; None and booleans are everybody's."""
    seen: set[int] = set()
    total = 0
    waiting = [obj]
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, bool) or id(item) in seen:
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting += gc.get_referents(item)
    return total
