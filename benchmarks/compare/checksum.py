"""A checksum over a multiset of samples: equal when the same samples came, in whatever order.

One hash a sample, added up; so a sample lost, doubled or changed shows, and a shuffle does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samples import digest, samples

__all__ = ["checksum", "expected"]

MODULUS = 1 << 64


def checksum(items: Iterable[Any]) -> tuple[int, str]:
    """(number of samples, sum of their hashes in hex)."""
    count = total = 0
    for item in items:
        count += 1
        total += int(digest(((0, item),)), 16)
    return count, f"{total % MODULUS:016x}"


def expected(kind: str, count: int, cache: Path) -> str:
    """The checksum of the samples as they were made, kept in the file ``cache``; minutes at most, once."""
    known: dict[str, str] = json.loads(cache.read_text()) if cache.exists() else {}
    name = f"{kind}-{count}"
    if name not in known:
        known[name] = checksum(samples(kind, count))[1]
        cache.write_text(json.dumps(known))
    return known[name]
