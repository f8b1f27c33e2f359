"""Following a reader along the legs of its order, and counting what each makes the machinery fetch.

The counterpart, in numbers only, of ``cache.ahead`` (scans; the real one is run), ``cache.slabs`` (shuffling windows)
and ``cache.sparse`` (single items), with their constants. Items are taken to be of their chunk's mean size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from lazystore._core.arena import frame_size_for
from lazystore._core.reader import TABLE_BLOCK
from lazystore.cache.ahead import ReadAhead
from lazystore.cache.slabs import GROUP_BYTES, GUESS_FRAMES, GUESS_SIGMAS, GUESS_WASTE
from lazystore.cache.sparse import BATCH_BYTES, GUESS_VARIATION, REMOTE_BLOCKS, REMOTE_GAP
from lazystore.fetch.plan import PART_BYTES, coalesce
from lazystore.streaming.dataset import FITS_SHARE
from lazystore.streaming.division import Division, in_flight_bytes
from lazystore.streaming.order import ListLeg, RangeLeg, Shape, Span, WindowLeg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazystore.streaming.order import Leg

    Numbers = NDArray[np.int64]

__all__ = ["Footsteps", "Tally", "frames_of"]

OFFSETS_AT, OFFSET_WIDTH, HEAD_BYTES = 4, 4, 8
#: What the arena keeps for each frame, and how it sizes its table of pieces: as in ``_core.arena``.
FRAME_TABLES, BYTES_A_PIECE_SLOT = 120, 512
#: Parts of chunks that a walk goes over at most.
MOST_PARTS = 30_000
#: Items fetched one by one that it goes over at most, after the first leg of them.
MOST_LISTED = 20_000


@dataclass(slots=True)
class Tally:
    """Requests for data, and their bytes."""

    requests: int = 0
    nbytes: int = 0

    def add(self, other: Tally, factor: float) -> None:
        """``factor`` times another."""
        self.requests += round(other.requests * factor)
        self.nbytes += round(other.nbytes * factor)


def frames_of(division: Division) -> tuple[int, int]:
    """Bytes of a frame of the arena, and how many there are."""
    frame = division.frame_bytes or frame_size_for(division.arena)
    slots = 1 << (max(division.arena // BYTES_A_PIECE_SLOT, 64) // 2).bit_length()
    return frame, (division.arena - 8 * slots - 4096) // (frame + FRAME_TABLES)


class Footsteps:
    """One reader.

    Parameters:
        division: of its budget.
        shape: of the dataset.
        stride: bytes an item where no offsets are stored, else 0.

    Attributes:
        tally: what it fetches for the items.
        once: what it fetches when it first comes to a chunk.
        items: how many it went over.
        entered: items of all that was fetched for them: in a shuffle's window some wait for their turn.
        first_trips: round trips one after the other until its first item.
        total: items of the dataset.
        frame, frames: bytes of a frame of the arena, and their number.
        distance, steps: of items that follow each other, summed; and how often that was.
    """

    def __init__(self, division: Division, shape: Shape, stride: int) -> None:
        self.tally, self.once = Tally(), Tally()
        self.items = self.entered = self.first_trips = self.steps = 0
        self.distance = 0.0
        self._shape = shape
        self._stride = stride
        self._starts = list(accumulate(shape.counts, initial=0))
        self.total = shape.total
        self.frame, self.frames = frames_of(division)
        arena = self.frame * self.frames
        self._in_flight = in_flight_bytes(division.budget)
        self._request = min(PART_BYTES, self._in_flight)
        self._batch = min(BATCH_BYTES, arena // 4)
        self._fits = sum(shape.nbytes) <= arena * FITS_SHARE
        self._tables_fit = OFFSET_WIDTH * (shape.total + 2 * len(shape.counts)) <= division.tables
        self._opened: set[int] = set()
        self._tables: set[tuple[int, int]] = set()
        self._parts: set[tuple[int, int]] = set()
        self._last: int | None = None

    def follow(self, legs: Iterable[Leg], most: int) -> None:
        """Walk until the legs end, or ``most`` items are behind, or as much as that many parts of chunks hold."""
        most = max(1, min(most, MOST_PARTS * self.frame // self._shape.item_bytes))
        scan: RangeLeg | None = None  # legs that continue each other are one scan
        for leg in legs:
            if isinstance(leg, RangeLeg):
                leg = RangeLeg(leg.first, min(leg.last, leg.first + most - self.items))
                follows = scan is not None and scan.last == leg.first
                self._range(None if follows else scan)
                scan = RangeLeg(scan.first, leg.last) if scan is not None and follows else leg
            elif isinstance(leg, ListLeg):
                self._list(leg)
                most = min(most, MOST_LISTED)
            else:
                self._window(leg)
            self._look_at(leg)
            self.items += len(leg)
            self.entered += 0 if isinstance(leg, WindowLeg) else len(leg)
            if self.items >= most:
                break
        self._range(scan)

    @property
    def opened(self) -> int:
        """Chunks it came to."""
        return len(self._opened)

    def _ask(self, nbytes: int, *, once: bool = False) -> None:
        """Bytes of one stretch of an object."""
        if nbytes > 0:
            tally = self.once if once else self.tally
            tally.requests += -(-nbytes // self._request)
            tally.nbytes += nbytes

    def _open(self, chunk: int, *, head: bool) -> bool:
        """Whether this opens the chunk; ``head``: its first bytes must be fetched for that."""
        if chunk in self._opened:
            return False
        self._opened.add(chunk)
        if head:
            self._ask(HEAD_BYTES, once=True)
        return True

    def _mean(self, chunk: int) -> float:
        """Bytes of an item."""
        count = self._shape.counts[chunk]
        return max(0, self._shape.nbytes[chunk] - self._table_end(chunk)) / max(1, count)

    def _table_end(self, chunk: int) -> int:
        return OFFSETS_AT + OFFSET_WIDTH * (self._shape.counts[chunk] + 1)

    # -- scans --------------------------------------------------------------------------

    def _range(self, leg: RangeLeg | None) -> None:
        """A scan: what really reads ahead of one is run, on numbers."""
        if leg is not None:
            self.first_trips = self.first_trips or 1
            _Scan(self, leg.first, leg.last)

    def part_of(self, item: int) -> tuple[int, int]:
        """The part of a chunk that an item begins in."""
        chunk = bisect_right(self._starts, item) - 1
        begin = self._table_end(chunk) + int((item - self._starts[chunk]) * self._mean(chunk))
        return chunk, begin // self.frame

    def entry_of(self, item: int) -> tuple[int, int]:
        """The part of a chunk that an item's offset lies in."""
        chunk = bisect_right(self._starts, item) - 1
        return chunk, (OFFSETS_AT + OFFSET_WIDTH * (item - self._starts[chunk])) // self.frame

    def next_part(self, part: tuple[int, int]) -> tuple[int, int]:
        """The part after this one; (-1, -1) after the last."""
        chunk, number = part
        if (number + 1) * self.frame < self._shape.nbytes[chunk]:
            return chunk, number + 1
        chunk += 1
        while chunk < len(self._shape.counts) and not self._shape.counts[chunk]:
            chunk += 1
        return (chunk, 0) if chunk < len(self._shape.counts) else (-1, -1)

    def fetch_parts(self, chunk: int, first: int, count: int) -> None:
        """Parts next to each other, sent for together."""
        self._open(chunk, head=False)
        self._ask_parts(chunk, first, count)

    # -- shuffling windows --------------------------------------------------------------

    def _window(self, leg: WindowLeg) -> None:
        if not self.first_trips:
            self.first_trips = max((self._trips(span) for span in leg.enter), default=1)
        for span in leg.enter:
            self.entered += span.last - span.first
            whole = span.last - span.first == self._shape.counts[span.chunk]
            if whole or self._fits:
                self._shared(span, whole)
            else:
                self._packed(span)

    def _trips(self, span: Span) -> int:
        """Round trips until a span is there whose bytes somebody waits for."""
        items = span.last - span.first
        if items == self._shape.counts[span.chunk]:
            return 1
        if self._fits:
            return 3
        margin = GUESS_SIGMAS * GUESS_VARIATION * span.last**0.5
        return 1 if self.frames >= GUESS_FRAMES and 0 < margin * GUESS_WASTE < items else 2

    def _packed(self, span: Span) -> None:
        chunk, items = span.chunk, span.last - span.first
        if self._stride:
            self._open(chunk, head=True)
        elif not self._tables_fit:
            self._open(chunk, head=True)
            self._ask(OFFSET_WIDTH * (items + 1))
        elif self._open(chunk, head=False):
            self._ask(self._table_end(chunk), once=True)
        self._ask(int(items * self._mean(chunk)))

    def _shared(self, span: Span, whole: bool) -> None:
        """In the chunk's own parts, which stay where everything fits."""
        chunk = span.chunk
        end = self._table_end(chunk)
        if whole:
            self._open(chunk, head=False)
            self._bring(chunk, 0, max(end, self._shape.nbytes[chunk]))
            return
        mean = self._mean(chunk)
        self._ask(HEAD_BYTES)  # runs of a chunk set out together, before any of them has opened it
        self._bring(chunk, OFFSETS_AT + OFFSET_WIDTH * span.first, OFFSETS_AT + OFFSET_WIDTH * (span.last + 1))
        self._bring(chunk, end + int(span.first * mean), end + int(span.last * mean))

    def _bring(self, chunk: int, begin: int, end: int) -> None:
        """Parts of a chunk that are not there yet, in requests of some of them."""
        group = max(1, GROUP_BYTES // self.frame)
        run = 0
        for part in range(begin // self.frame, -(-end // self.frame)):
            if (chunk, part) in self._parts:
                self._ask_parts(chunk, part - run, run)
                run = 0
                continue
            if self._fits:
                self._parts.add((chunk, part))
            run += 1
            if run == group:
                self._ask_parts(chunk, part + 1 - run, run)
                run = 0
        self._ask_parts(chunk, -(-end // self.frame) - run, run)

    def _ask_parts(self, chunk: int, first: int, count: int) -> None:
        length = max(self._shape.nbytes[chunk], self._table_end(chunk))
        self._ask(min((first + count) * self.frame, length) - first * self.frame if count else 0)

    # -- single items -------------------------------------------------------------------

    def _list(self, leg: ListLeg) -> None:
        asked: list[int] = []
        by_chunk: dict[int, list[int]] = {}
        for item in leg.items:
            chunk = bisect_right(self._starts, item) - 1
            by_chunk.setdefault(chunk, []).append(item - self._starts[chunk])
        room = self._batch
        for chunk in sorted(by_chunk):
            numbers = sorted(by_chunk[chunk])
            self._look_up(chunk, numbers)
            mean, end = self._mean(chunk), self._table_end(chunk)
            at = 0
            while at < len(numbers):
                take = max(1, int(room // max(1.0, mean)))
                some = numbers[at : at + take]
                spans = [(end + int(n * mean), end + int((n + 1) * mean)) for n in some]
                for run in coalesce(spans, max_gap=REMOTE_GAP):
                    self._ask(run.end - run.begin)
                    asked.append(run.end - run.begin)
                at += len(some)
                room -= int(len(some) * mean)
                room = self._batch if room < mean else room
        if not self.first_trips:  # the leg comes as a whole, as much at once as may be under way
            self.first_trips = (0 if self._stride else 1) + self._rounds(asked)

    def _rounds(self, asked: Sequence[int]) -> int:
        """Round trips that requests of so many bytes take, in their order."""
        rounds, room = 1, self._in_flight
        for nbytes in asked:
            if nbytes > room and room < self._in_flight:
                rounds, room = rounds + 1, self._in_flight
            rounds += max(0, -(-nbytes // self._in_flight) - 1)  # longer ones are cut
            room = max(0, room - nbytes)
        return rounds

    def _look_up(self, chunk: int, numbers: list[int]) -> None:
        """The offsets of items, in groups of blocks."""
        if self._stride:
            self._open(chunk, head=True)
            return
        size = TABLE_BLOCK * REMOTE_BLOCKS
        count = self._shape.counts[chunk]
        run: list[int] = []
        for group in sorted({number // size for number in numbers}):
            if (chunk, group) in self._tables:
                continue
            self._tables.add((chunk, group))
            if run and run[1] == group:
                run[1] += 1
                continue
            self._ask_offsets(run, size, count)
            run = [group, group + 1]
        self._open(chunk, head=not run or run[0] > 0)
        self._ask_offsets(run, size, count)

    def _ask_offsets(self, run: list[int], size: int, count: int) -> None:
        if run:
            begin = OFFSETS_AT + OFFSET_WIDTH * run[0] * size if run[0] else 0
            self._ask(OFFSETS_AT + OFFSET_WIDTH * (min(run[1] * size, count) + 1) - begin, once=True)

    # -- how well it shuffles -----------------------------------------------------------

    def _look_at(self, leg: Leg) -> None:
        """Add the distances of the leg's items."""
        import numpy as np

        if not len(leg):
            return
        if isinstance(leg, RangeLeg):
            first, last, inside = leg.first, leg.last - 1, float(len(leg) - 1)
        else:
            row = self._row(leg)
            first, last, inside = int(row[0]), int(row[-1]), float(np.abs(np.diff(row)).sum())
        if self._last is not None:
            inside += abs(first - self._last)
            self.steps += 1
        self._last = last
        self.distance += inside
        self.steps += len(leg) - 1

    def _row(self, leg: WindowLeg | ListLeg) -> Numbers:
        """The numbers of a leg's items, in the order they come."""
        import numpy as np

        if isinstance(leg, ListLeg):
            return np.frombuffer(leg.items, np.int64)
        starts = self._starts
        groups = [starts[span.chunk] + np.frombuffer(row, np.uint32).astype(np.int64) for span, row in leg.groups]
        row = np.empty(len(leg.places), np.int64)
        row[np.frombuffer(leg.places, np.uint32)] = np.concatenate(groups)
        return row[leg.skip :]


class _Frames(NamedTuple):
    """As much of the arena as reading ahead looks at."""

    frame_bytes: int
    n_frames: int


class _Scan:
    """The memory as reading ahead sees it: nothing is resident, everything that is sent for counts."""

    def __init__(self, steps: Footsteps, first: int, last: int) -> None:
        self._steps = steps
        self._sent: set[tuple[int, int]] = set()
        self.store = _Frames(steps.frame, steps.frames)
        memory: Any = self
        chunk, body = at = steps.part_of(first)
        end = steps.part_of(last - 1)
        if last == steps.total:
            end = end[0], 1 << 31
        ahead = ReadAhead(memory, end)
        entry = steps.entry_of(first)[1]
        ahead.begin([(chunk, part) for part in dict.fromkeys((0, entry, max(entry, body)))])
        while at[0] >= 0 and at <= end:
            ahead.at(*at)
            at = steps.next_part(at)

    def settle(self) -> None:
        """Nothing arrives."""

    def next_part(self, part: tuple[int, int]) -> tuple[int, int]:
        """The part after this one."""
        return self._steps.next_part(part)

    def send(self, parts: Sequence[tuple[int, int]]) -> tuple[None, int]:
        """Send for parts of a chunk, which follow each other."""
        absent = [part for part in parts if part not in self._sent]
        self._sent.update(absent)
        if absent:
            self._steps.fetch_parts(absent[0][0], absent[0][1], len(absent))
        return None, len(parts)
