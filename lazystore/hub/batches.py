"""`Batches`: the samples of a stream in numbered batches, each read once for all who want it, some kept.

Here: which batches are held, who reads the next samples of one, and by which of the open lines. How a read that
failed is repeated is ``recovery``'s, what a pass holds ahead ``passes``'s.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import Any

from lazystore._core.cache_map import CacheMap
from lazystore._core.weigh import weigh
from lazystore.errors import ClosedError, ItemIndexError, LoadTimeoutError
from lazystore.hub.fresh import DEEP, SHARED, depth_of, fresh
from lazystore.hub.parts import END, Batch, Part
from lazystore.hub.recovery import Line, Recovery

__all__ = ["LOOK_S", "Batches"]

#: Samples of a batch, at most.
BATCH = 64
#: Lines that stay open though no pass follows them.
SPARE = 4
#: What the map's limit stands for: all of the memory, or all of ``cache_size``, whichever a batch takes more of.
WHOLE = 1 << 54
#: Seconds after which one who waits looks whether a sample has come while its batch is still being read.
LOOK_S = 0.02
#: A batch takes at most this share of the cache, or it is cut smaller.
SHARE = 8


class Batches:
    """Batches of what a :class:`Recovery` reads.

    A batch is read by whoever wants its next samples first; others wait for those. What is read is kept while there
    is room: then a tenth goes on with what comes, and the rest stays for the next pass (a pass over more than the
    cache holds would otherwise find nothing of it again).

    Parameters:
        recovery: where samples come from.
        cache_size: samples that are kept at most; memory: bytes of them.
        timeout: seconds that somebody waits for samples another one reads.
        origin: where a batch begins: there a resumed pass can enter.

    Threads: any. Fork: make new ones. Memory: what is kept, the batch read last, and those that are being read.
    """

    def __init__(self, recovery: Recovery, *, cache_size: int, memory: int, timeout: float, origin: int = 0) -> None:
        self.recovery = recovery
        self.length = recovery.feed.length
        self.closed = ""
        self.reread = self.hits = self.misses = self.samples_held = 0
        self.nbytes = self.peak = 0
        self._limits = (cache_size, memory)
        self._timeout = timeout
        self._origin = origin
        self._size = max(1, min(BATCH, cache_size // 8))
        self._turn = threading.Condition(threading.Lock())
        self._released: deque[object] = deque()
        self._seeking = threading.Lock()
        self._cache = CacheMap(WHOLE)
        self._open: dict[int, Batch] = {}
        self._last: Batch | None = None
        self._lines: list[Line] = []
        self._spare = SPARE
        self._ticks = 0
        self._reached = 0
        self._end: float = math.inf

    # -- for passes ---------------------------------------------------------------------

    def ready(self, position: int, most: int = BATCH, *, asked: bool = False) -> Part | None:
        """The samples from ``position`` on that are here, if any are, at most so many; ``END`` at the end.

        Parameters:
            asked: they were asked for by :meth:`part` too, which counts them.
        """
        with self._turn:
            self._check()
            batch = self._find((position - self._origin) // self._size)
            if batch is not None and len(batch.samples) > position - batch.first:
                part = batch.part(position, most)
                self.hits += 0 if asked else len(part.samples)
                return part
            return END if self._is_end(position) else None

    def part(self, position: int, owner: object, most: int = BATCH) -> Part | None:
        """The next samples from ``position`` on, read if need be; None at the end.

        Parameters:
            owner: the pass that asks: the line that it follows is left to it.
            most: samples at most.

        Raises:
            LoadTimeoutError: another one reads them, and nothing has come for ``timeout`` seconds.
            What reading raises.
        """
        batch: Batch | None = None
        asked = False
        while True:
            with self._turn:
                self._check()
                if batch is None or not batch.covers(position):
                    batch = self._wanted(position)
                if batch is None:
                    return None
                if len(batch.samples) > position - batch.first:
                    return self._counted(batch.part(position, most), asked)
                if batch.error is not None:
                    raise batch.error
                if batch.done:
                    return None
                asked = True
                if batch.busy:
                    self._await(batch)
                    continue
                batch.busy = True
            try:
                self._advance(batch, owner)
            finally:
                with self._turn:
                    batch.busy = False
                    self._turn.notify_all()

    @property
    def changing(self) -> bool:
        """See :class:`~lazystore.hub.passes.Supply`."""
        return self.recovery.changing

    @property
    def moves(self) -> int:
        """See :class:`~lazystore.hub.passes.Supply`."""
        return sum(line.moves for line in list(self._lines))

    def _counted(self, part: Part, asked: bool) -> Part:
        if asked:
            self.misses += len(part.samples)
        else:
            self.hits += len(part.samples)
        return part

    def _await(self, batch: Batch) -> None:
        """Until the one who reads this batch has more of it."""
        had, moves = len(batch.samples), self.moves
        until = time.monotonic() + self._timeout
        while batch.busy and len(batch.samples) == had and not self.closed:
            self._turn.wait(min(LOOK_S, max(0.0, until - time.monotonic())))
            if self.changing or moves != self.moves:
                until, moves = time.monotonic() + self._timeout, self.moves
            elif time.monotonic() >= until:
                raise LoadTimeoutError(
                    f"{self.recovery.feed.name}: sample {batch.first + had} has not come for "
                    f"{self._timeout} s; raise timeout= if the source is that slow"
                )

    def release(self, owner: object) -> None:
        """This pass wants no more: its line is anybody's. May be called by the garbage collector, anywhere."""
        self._released.append(owner)
        if self._turn.acquire(blocking=False):  # else whoever is next does it
            try:
                spare = self._free()
            finally:
                self._turn.release()
            _close(spare)

    def _free(self) -> list[Line]:
        while self._released:
            owner = self._released.popleft()
            for line in self._lines:
                if line.owner is owner:
                    line.owner = None
        return self._trim()

    # -- by number ----------------------------------------------------------------------

    def get(self, index: int) -> Any:
        """A copy of one sample: from the cache, else read: on from the nearest line before it, or anew.

        Raises:
            ItemIndexError: it is beyond the end.
        """
        part = self.ready(index, 1)
        if part is None:
            if not self._seeking.acquire(timeout=self._timeout):  # or each of many threads would open a line
                raise LoadTimeoutError(f"{self.recovery.feed.name}: others have been reading for {self._timeout} s")
            try:
                part = self.part(index, None, 1)
            finally:
                self._seeking.release()
        if part is None or part is END:
            raise ItemIndexError(f"{self.recovery.feed.name}: sample {index} is beyond the end")
        sample = part.samples[0]
        return sample if part.depth == SHARED else fresh(sample)

    def holds(self, index: int) -> bool:
        """Whether a sample is here."""
        with self._turn:
            batch = self._find((index - self._origin) // self._size, peek=True)
            return batch is not None and len(batch.samples) > index - batch.first

    @property
    def reached(self) -> int:
        """The number of the first sample that was never read."""
        return self._reached

    def align(self, origin: int) -> None:
        """Let a batch begin there, if none has been made yet."""
        with self._turn:
            if not self._reached and not self._open:
                self._origin = origin % self._size

    def retire(self) -> None:
        """Keep nothing of what was read, nor any line that no pass follows: no other will come."""
        with self._turn:
            self._spare = 0
            self._cache.clear()
            self._last = None
            self.samples_held = self.nbytes = 0
            gone = self._free()
        _close(gone)

    # -- what is here -------------------------------------------------------------------

    def _check(self) -> None:
        if self.closed:
            raise ClosedError(self.closed)

    def _find(self, number: int, *, peek: bool = False) -> Batch | None:
        last = self._last
        if last is not None and last.first == max(0, self._origin + number * self._size):
            if not peek:
                self._cache.get(number)  # it counts as asked for
            return last
        found: Batch | None = self._cache.peek(number) if peek else self._cache.get(number)
        return self._open.get(number) if found is None else found

    def _wanted(self, position: int) -> Batch | None:
        """The batch of a position, new if it is not here; None beyond the end."""
        number = (position - self._origin) // self._size
        batch = self._find(number)
        if batch is None:
            first = self._origin + number * self._size
            if self._is_end(position) or max(0, first) >= self._end:
                self._ends(position)
                return None
            batch = self._open[number] = Batch(max(0, first), first + self._size)
        return batch

    def _is_end(self, position: int) -> bool:
        return self.length is not None and position >= self.length

    def _ends(self, position: int) -> None:
        """A line found no sample at this position: it may have been opened far beyond the end."""
        self._end = min(self._end, position)
        if position <= self._reached and self.length is None:
            self.length = position

    def _keep(self, batch: Batch) -> None:
        """A batch is complete: it goes to the cache."""
        number = (batch.first - self._origin) // self._size
        if self._open.get(number) is not batch:
            return  # it was read for another's sake, or the batches have become smaller meanwhile
        del self._open[number]
        if not batch.samples:
            return
        self._last = batch
        size, memory = self._limits
        nbytes = batch.nbytes + weigh(batch.mark)
        # rounded down: what fits exactly is held, and all roundings together are less than a sample or a byte
        weight = max(nbytes * WHOLE // memory, len(batch.samples) * WHOLE // size, 1)
        if weight > WHOLE:
            return
        room = self._cache.weight + weight <= WHOLE
        gone = self._cache.put(number, batch, weight, probation=not room)
        for _, old in gone:
            self.samples_held -= len(old.samples)
            self.nbytes -= old.nbytes
        self.samples_held += len(batch.samples)
        self.nbytes += batch.nbytes
        self.peak = max(self.peak, self.nbytes)

    def _cut_smaller(self, batch: Batch) -> None:
        """Samples are large: batches of fewer from now on, of which the cache holds several."""
        fit = self._limits[1] // SHARE * len(batch.samples) // batch.nbytes
        self._size = max(1, min(fit, self._size // 2))
        self._cache.clear()
        self._open.clear()
        self._last = None
        self.samples_held = self.nbytes = 0
        self._origin = batch.first % self._size
        batch.limit = batch.first + max(self._size, len(batch.samples))

    # -- reading ------------------------------------------------------------------------

    def _advance(self, batch: Batch, owner: object) -> None:
        """Read the next samples of a batch, by the line that is at it or that is sent there."""
        try:
            line = batch.line or self._send_line(batch, owner)
            if line is not None:
                self._read(line, batch)
        except BaseException as error:
            with self._turn:
                batch.error = error if isinstance(error, Exception) else None
                self._forget(batch)
            raise

    def _read(self, line: Line, batch: Batch) -> None:
        """One take of a line into its batch."""
        if not batch.samples:
            batch.mark = line.mark() or self.recovery.marks.nearest(batch.first)
        line.pour(batch.samples, batch.limit - line.position, self._limits[1] // SHARE)
        got = batch.samples[batch.settled :]
        nbytes = weigh(got) if got else 0
        depth = depth_of(got) if got and batch.depth != DEEP else batch.depth
        line.weighed(nbytes, len(got))
        with self._turn:
            if got:
                self._reached = max(self._reached, line.position)
            batch.settled += len(got)
            batch.depth = max(batch.depth, depth)
            batch.nbytes += nbytes
            if not got:
                self._ends(line.position)
            elif batch.nbytes > self._limits[1] // SHARE and self._size > 1:
                self._cut_smaller(batch)
            batch.done = not got or batch.first + len(batch.samples) >= batch.limit
            if batch.done:
                batch.line = line.batch = None
                self._keep(batch)
            over = not got or bool(self.closed)
            if over and line in self._lines:
                self._lines.remove(line)
        if over:
            line.close()

    def _forget(self, batch: Batch) -> None:
        """Reading it failed, or was given up: whoever wants it begins anew."""
        for number in [number for number, each in self._open.items() if each is batch]:
            del self._open[number]
        line, batch.line = batch.line, None
        if line is not None and line in self._lines:
            self._lines.remove(line)
            line.close()

    def _send_line(self, batch: Batch, owner: object) -> Line | None:
        """A line that stands at a batch: one that does, one from before that is moved, or a new one.

        None: the source ends before it.
        """
        start = batch.first + len(batch.samples)
        with self._turn:
            while self._settles(start):
                self._turn.wait(LOOK_S)
            line = self._nearest(start, owner)
            mark = self.recovery.marks.nearest(start)
            base = 0 if mark is None else mark.position
            if line is None or (line.position < base and self.recovery.feed.again):
                line = Line(self.recovery, start)
                self._lines.append(line)
            else:
                base = line.position
            self.reread += max(0, min(start, self._reached) - base)
            self._ticks += 1
            line.owner, line.tick = owner, self._ticks
            unfinished, line.batch, line.busy = line.batch, None, True
            if unfinished is not None and unfinished.limit > start:  # of before the batches became smaller
                unfinished.line = None
                self._forget(unfinished)
                unfinished = None
            if unfinished is not None:
                unfinished.busy = True  # or whoever wants it would read by this line too
            spare = self._free()
        _close(spare)
        there = False
        try:
            there = self._move(line, start, unfinished)
        finally:
            with self._turn:
                line.busy = False
                if there:
                    line.batch, batch.line = batch, line
                elif line in self._lines:
                    self._lines.remove(line)
            if not there:
                line.close()
        if there:
            return line
        with self._turn:
            batch.done = True
            self._keep(batch)
        return None

    def _settles(self, start: int) -> bool:
        """Whether a line has read up to there and will be free in a moment: what it read is being weighed.

        Its samples can be had before that, so others come here early; each would open a line from the beginning.
        """
        batches = [line.batch for line in self._lines if line.batch is not None and line.batch.busy]
        return any(batch.limit == start == batch.first + len(batch.samples) for batch in batches)

    def _nearest(self, start: int, owner: object) -> Line | None:
        """The line at ``start``, else the last before it that no other pass follows."""
        best: Line | None = None
        for line in self._lines:
            if line.position > start or line.taken:
                continue
            if line.position == start and line.batch is None:
                return line
            if line.owner not in (None, owner) and self.recovery.feed.again:
                continue
            if best is None or line.position > best.position:
                best = line
        return best

    def _move(self, line: Line, start: int, unfinished: Batch | None) -> bool:
        """Read on until ``start``; whole batches on the way are kept. Whether there is so much."""
        while line.position < start:
            with self._turn:
                self._check()
                batch = unfinished or self._on_the_way(line.position, start)
                unfinished = None
                batch.busy = True
            try:
                while not batch.done:
                    self._read(line, batch)
            except BaseException:
                with self._turn:
                    self._forget(batch)
                raise
            finally:
                with self._turn:
                    batch.busy = False
                    self._turn.notify_all()
            if len(batch.samples) < batch.limit - batch.first:
                return False
        return True

    def _on_the_way(self, position: int, start: int) -> Batch:
        """The batch at a position; one that nobody will find, where it is here already or is not whole."""
        number = (position - self._origin) // self._size
        limit = self._origin + (number + 1) * self._size
        batch = Batch(position, min(limit, start))
        begins = position == max(0, self._origin + number * self._size)
        if begins and limit <= start and number not in self._cache and number not in self._open:
            self._open[number] = batch
        return batch

    def _trim(self) -> list[Line]:
        """Spare lines beyond the limit; they are out of the table, and to be closed where no lock is held."""
        if not self.recovery.feed.again:
            return []  # there will be no other
        spare = [line for line in self._lines if line.owner is None and not line.taken]
        spare.sort(key=_tick)
        gone = spare[: max(0, len(spare) - self._spare)]
        for line in gone:
            if line.batch is not None:
                self._forget(line.batch)
            if line in self._lines:
                self._lines.remove(line)
        return gone

    # -- life ---------------------------------------------------------------------------

    def close(self, why: str) -> None:
        """Hold nothing any more; what is being read ends with that."""
        with self._turn:
            if self.closed:
                return
            self.closed = why
            idle = [line for line in self._lines if not line.taken]
            self._lines.clear()
            self._cache.clear()
            self._open.clear()
            self._last = None
            self.samples_held = self.nbytes = 0
            self._turn.notify_all()
        _close(idle)


def _tick(line: Line) -> int:
    return line.tick


def _close(lines: list[Line]) -> None:
    for line in lines:
        line.close()
