"""How a memory budget is divided: frames, requests in flight, decoding, offset tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazystore._core.arena import MIN_BYTES
from lazystore.cache.inflate import WINDOW_SHARE
from lazystore.errors import BudgetTooSmallError

if TYPE_CHECKING:
    from lazystore.formats.format import Opened

__all__ = ["Division", "disk_room", "divide", "in_flight_bytes", "smallest_budget"]

MIB = 1 << 20
#: Share of the budget for payload in flight on remote storage, and its bounds.
IN_FLIGHT_SHARE, MAX_IN_FLIGHT, MIN_IN_FLIGHT = 8, 16 * MIB, 128 * 1024
#: Share of the budget for what is fetched only to be stored on disk, and its bounds.
DISK_SHARE, MAX_DISK_ROOM, MIN_DISK_ROOM = 16, 8 * MIB, 128 * 1024
#: A storage client holds a body in pieces and then joined: for a moment twice.
BODY_COPIES = 2
#: Share of the budget for offset tables that shuffles keep beside the frames.
TABLES_SHARE = 32
#: So many runs, spread over all, are asked how much they need; the others will not need much more.
RUNS_LOOKED_AT = 1024
#: Frames a made block takes: what the last one wastes is a small part of it then. And the fewest of an arena.
FRAMES_A_BLOCK, FRAMES_AT_LEAST, MIN_FRAME = 4, 128, 4096
#: The history window of a compressed stream: a share of the budget, and what zstd's ordinary levels need
#: if that is less than half of it.
MIN_WINDOW, MAX_WINDOW = 2 * MIB + 64 * 1024, 128 * MIB


@dataclass(frozen=True, slots=True)
class Division:
    """Bytes of a budget, by what they are for.

    Attributes:
        budget: all of them.
        arena: frames and their tables.
        in_flight: bodies on their way over a network, each of which exists twice for a moment.
        tables: offset tables that shuffles keep beside the frames.
        scratch: decoding: histories, runs that are open, encoded bytes that wait.
        frame_bytes: of a frame; 0: what suits the arena.
        held: what the source and the format keep for themselves: pieces that are hashed, keys.
    """

    budget: int
    arena: int
    in_flight: int
    tables: int
    scratch: int
    frame_bytes: int
    held: int = 0


def in_flight_bytes(budget: int) -> int:
    """Payload bytes that may be under way at once inside a budget."""
    return min(max(budget // IN_FLIGHT_SHARE, MIN_IN_FLIGHT), MAX_IN_FLIGHT)


def disk_room(budget: int) -> int:
    """Bytes that a disk tier may have fetched along, to fill its blocks, inside a budget."""
    return min(max(budget // DISK_SHARE, MIN_DISK_ROOM), MAX_DISK_ROOM)


def smallest_budget(opened: Opened) -> int:
    """The least budget a dataset can be opened with."""
    local = opened.source.local
    held = opened.source.memory + opened.reserved
    least = MIN_BYTES + (0 if local else BODY_COPIES * MIN_IN_FLIGHT)
    if not opened.opaque:
        return held + least
    needed = held + _least_scratch(opened)
    # Over a network requests in flight take a quarter of the budget, and decoding half of what is not needed anyway.
    return max(needed + 2 * least, 0 if local else 2 * (needed + 2 * MIN_BYTES))


def divide(opened: Opened, budget: int) -> Division:
    """Divide a budget for reading a dataset.

    Raises:
        BudgetTooSmallError: it is not enough; says what is.
    """
    local = opened.source.local
    held = opened.source.memory + opened.reserved
    in_flight = 0 if local else BODY_COPIES * in_flight_bytes(budget)
    free = budget - held - (_least_scratch(opened) if opened.opaque else 0)
    tables = free // TABLES_SHARE if free >= MIB else 0
    scratch = _scratch(opened, budget - held, budget - held - tables - in_flight - MIN_BYTES) if opened.opaque else 0
    arena = budget - held - in_flight - tables - scratch
    least = smallest_budget(opened)
    if budget < least or arena < MIN_BYTES:
        raise BudgetTooSmallError(
            f"a memory budget of {budget} bytes is too small for {opened.source.url}: give at least {least} bytes "
            f"({scratch} are for decoding, {in_flight + tables} for requests in flight and offset tables, {held} for "
            "checking and looking up)"
        )
    return Division(budget, arena, in_flight, tables, scratch, _frame_bytes(opened, arena), held)


def _scratch(opened: Opened, budget: int, spare: int) -> int:
    """Bytes for decoding: what the format is known to need, a share of the rest, and over a network some of what is
    spare then, for encoded bytes that wait their turn.
    """
    needed = _least_scratch(opened)
    free = budget - needed
    room = needed + min(max(free // WINDOW_SHARE, min(MIN_WINDOW, free // 2)), MAX_WINDOW)
    if not opened.source.local:
        room += max(0, min(in_flight_bytes(budget), (spare - room) // 4))
    return room


def _least_scratch(opened: Opened) -> int:
    """Bytes without which nothing can be decoded, as far as is known beforehand."""
    if opened.codec is not None:
        return opened.codec.memory
    if opened.images is None:
        return 0
    runs = range(len(opened.images.runs) - 1)
    return max(map(opened.images.scratch, runs[:: len(runs) // RUNS_LOOKED_AT + 1]), default=0)


def _frame_bytes(opened: Opened, arena: int) -> int:
    """Blocks that are made are short, and share no frame with others: short frames, so that little is wasted."""
    if opened.images is None:
        return 0
    mean = sum(opened.hints) // max(1, len(opened.hints)) or 1
    frame = MIN_FRAME
    while frame * 2 * FRAMES_A_BLOCK <= mean and frame * 2 <= arena // FRAMES_AT_LEAST:
        frame *= 2
    return frame
