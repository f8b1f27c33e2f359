"""Content-defined cuts in plain integers: the oracle of ``_core.gear``."""

from __future__ import annotations

MASK = 2**64 - 1
WINDOW = 64


def gear_table() -> list[int]:
    """The first 256 words of SplitMix64, seeded with 0."""
    words, state = [], 0
    for _ in range(256):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        word = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
        words.append(word ^ (word >> 31))
    return words


GEAR = gear_table()


def window_hash(data: bytes, end: int) -> int:
    """The hash of the position behind byte ``end - 1``: of the 64 bytes before it."""
    window = data[max(0, end - WINDOW) : end]
    return sum(GEAR[byte] << back for back, byte in enumerate(reversed(window))) & MASK


def cuts(data: bytes, average: int, least: int, most: int) -> list[int]:
    """Ends of all chunks of ``data`` that a cut ends; the rest behind the last is not in it."""
    found, start = [], 0
    for end in range(1, len(data) + 1):
        size = end - start
        if size < least:
            continue
        bound = 2**64 // (4 * average) if size < average else 2**64 // average * 4
        if size == most or window_hash(data, end) < bound:
            found.append(end)
            start = end
    return found
