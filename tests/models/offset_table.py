"""Offset tables as lists of ints: the oracle of ``OffsetTable``, ``check_offsets`` and ``leaf_sizes``."""

from __future__ import annotations

import struct

FORMATS = {4: "I", 8: "Q"}


def pack(entries: list[int], width: int) -> bytes:
    return struct.pack(f"<{len(entries)}{FORMATS[width]}", *entries)


def unpack(data: bytes, width: int) -> list[int]:
    return list(struct.unpack(f"<{len(data) // width}{FORMATS[width]}", data))


def first_bad(entries: list[int], lowest: int, highest: int) -> int | None:
    """Number of the first entry that goes backwards or past ``highest``; None when all are good."""
    for number, entry in enumerate(entries):
        if not lowest <= entry <= highest:
            return number
        lowest = entry
    return None


def leaf_sizes(item: bytes, n_leaves: int) -> tuple[int, ...] | None:
    """The sizes before the leaves; None when they do not add up to the item."""
    if len(item) < 4 * n_leaves:
        return None
    sizes = struct.unpack_from(f"<{n_leaves}I", item)
    return sizes if 4 * n_leaves + sum(sizes) == len(item) else None


class OffsetTableModel:
    """Item i is ``[entries[i], entries[i + 1])``."""

    def __init__(self, entries: list[int]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries) - 1

    def span(self, item: int) -> tuple[int, int]:
        return self.entries[item], self.entries[item + 1]

    def find(self, byte: int) -> int | None:
        """By looking at every item; empty ones hold no byte."""
        return next((i for i in range(len(self)) if self.entries[i] <= byte < self.entries[i + 1]), None)
