"""The items of a chunk as a list, and the rule by which it closes: the oracle of the core's ItemBuffer."""

from __future__ import annotations

import struct


class ItemBufferModel:
    def __init__(self, max_bytes: int, max_count: int, max_packed: int) -> None:
        self.limits = (max_bytes, max_count, max_packed)
        self.clear()

    def clear(self) -> None:
        self.items: list[bytes] = []
        self.counts: list[int] = []
        self.packed: list[int] = []

    def add(self, item: bytes, count: int, packed: int) -> bool:
        sums = (
            sum(map(len, self.items)) + len(item),
            sum(self.counts) + count,
            8 + sum(self.packed) + packed,
        )
        if self.items and any(value > limit for value, limit in zip(sums, self.limits, strict=True)):
            return False
        self.items.append(item)
        self.counts.append(count)
        self.packed.append(packed)
        return True

    def offsets(self, first: int) -> bytes:
        ends = [first + sum(map(len, self.items[:k])) for k in range(len(self.items) + 1)]
        return struct.pack(f"<{len(ends)}I", *ends)
