"""Which requests to send for the bytes that are wanted: pure arithmetic on half-open ranges.

Nearby ranges become one request (``coalesce``), long ones several parallel requests
(``split``). Nothing here knows about storage, buffers or time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from lazystore.errors import ConfigError

__all__ = [
    "LOCAL_MAX_GAP",
    "MAX_MERGED_BYTES",
    "PART_BYTES",
    "REMOTE_MAX_GAP",
    "Run",
    "coalesce",
    "split",
]

KIB = 1 << 10
MIB = 1 << 20

#: Bytes between two wanted ranges that are cheaper to read along than a second request: at 20 ms and
#: 50 MB/s for one connection, one round trip is worth 1 MB.
REMOTE_MAX_GAP = 1 * MIB
#: The same for a local disk, where a second pread costs some ten microseconds.
LOCAL_MAX_GAP = 64 * KIB
#: Bytes a merged range may span. Longer ones would only be split again.
MAX_MERGED_BYTES = 16 * MIB
#: Bytes of one request; longer ranges travel as several parallel requests. Object stores answer
#: 8 to 16 MB ranges best, and one connection seldom carries more than 100 MB/s.
PART_BYTES = 8 * MIB


class Run(NamedTuple):
    """One range to request, and the wanted ranges that lie inside it.

    Attributes:
        begin, end: bytes to request, half open.
        members: positions in the sequence given to :func:`coalesce`, by ascending begin.
    """

    begin: int
    end: int
    members: tuple[int, ...]


def coalesce(
    spans: Sequence[tuple[int, int]],
    *,
    max_gap: int = REMOTE_MAX_GAP,
    max_bytes: int = MAX_MERGED_BYTES,
    max_waste: int | None = None,
) -> list[Run]:
    """Merge wanted ``(begin, end)`` ranges of one object into fewer, disjoint runs.

    Args:
        spans: wanted ranges, half open, in any order; they may touch, overlap or repeat. Empty ones
            are in no run.
        max_gap: bytes of unwanted data between two ranges that may be read along.
        max_bytes: bytes one run may span. Overlapping ranges share a run even beyond this, so no
            byte is requested twice.
        max_waste: unwanted bytes all merges together may add; the smallest gaps are closed first.
            None: no limit but ``max_gap``.

    Returns:
        Runs by ascending begin. Every non-empty span lies inside exactly one.

    Raises:
        ConfigError: a range that ends before it begins, or begins below zero.

    Cost: O(n log n).
    """
    order = sorted((i for i in range(len(spans)) if _checked(spans[i])), key=lambda i: spans[i])
    islands = _islands(spans, order)
    if len(islands) < 2:
        return islands
    gaps = [after.begin - before.end for before, after in itertools.pairwise(islands)]
    closable = _within_waste(gaps, max_gap, max_waste)
    runs: list[Run] = []
    # Members are gathered in lists and frozen once: adding tuples would be quadratic.
    begin, end, members = islands[0].begin, islands[0].end, list(islands[0].members)
    for gap_index, island in enumerate(islands[1:]):
        if closable[gap_index] and island.end - begin <= max_bytes:
            end = island.end
            members += island.members
        else:
            runs.append(Run(begin, end, tuple(members)))
            begin, end, members = island.begin, island.end, list(island.members)
    runs.append(Run(begin, end, tuple(members)))
    return runs


def _checked(span: tuple[int, int]) -> bool:
    begin, end = span
    if begin < 0 or end < begin:
        raise ConfigError(f"({begin}, {end}) is not a byte range; give 0 <= begin <= end")
    return end > begin


def _islands(spans: Sequence[tuple[int, int]], order: list[int]) -> list[Run]:
    """Ranges that overlap, as one run each; ranges that only touch stay apart."""
    islands: list[Run] = []
    members: list[int] = []
    begin = end = 0
    for i in order:
        if members and spans[i][0] < end:
            members.append(i)
            end = max(end, spans[i][1])
            continue
        if members:
            islands.append(Run(begin, end, tuple(members)))
        begin, end = spans[i]
        members = [i]
    if members:
        islands.append(Run(begin, end, tuple(members)))
    return islands


def _within_waste(gaps: list[int], max_gap: int, max_waste: int | None) -> list[bool]:
    """For each gap whether it may be closed: the smallest first, as long as the waste allows."""
    closable = [gap <= max_gap for gap in gaps]
    if max_waste is None:
        return closable
    left = max_waste
    for i in sorted(range(len(gaps)), key=gaps.__getitem__):
        if closable[i] and gaps[i] <= left:
            left -= gaps[i]
        else:
            closable[i] = False
    return closable


def split(begin: int, end: int, *, max_bytes: int = PART_BYTES, align: int = 1) -> list[tuple[int, int]]:
    """Cut one range into near-equal consecutive parts of at most ``max_bytes``.

    Args:
        begin, end: the range, half open.
        max_bytes: bytes of the largest part.
        align: parts begin at multiples of this many bytes from ``begin`` (not above ``max_bytes``).

    Returns:
        Parts in order; none for an empty range.

    Raises:
        ConfigError: sizes that cannot work.
    """
    if not 0 < align <= max_bytes:
        raise ConfigError(f"align={align} must be above 0 and not above max_bytes={max_bytes}")
    if not _checked((begin, end)):
        return []
    length = end - begin
    if length <= max_bytes:
        return [(begin, end)]
    largest = max_bytes // align * align
    count = -(-length // largest)
    step = -(-length // count)
    step = min(largest, -(-step // align) * align)
    return [(at, min(at + step, end)) for at in range(begin, end, step)]
