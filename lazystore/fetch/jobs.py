"""What one call of a source consists of: a batch of jobs, each cured of its failures on its own.

A job knows what is still wanted and takes the bytes of each attempt (it is the attempt's Landing).
When and how often attempts are made is decided in ``engine.py``.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lazystore.errors import ConfigError
from lazystore.fetch.flow import Gate, Watch
from lazystore.fetch.plan import split
from lazystore.fetch.retry import SLOWEST_RATE, Deadline, Verdict, WireError
from lazystore.fetch.source import FetchCounters, Read
from lazystore.fetch.wire import UNKNOWN, Identity, Landing, Wire, range_ignored

__all__ = ["Batch", "HeadJob", "Job", "PartJob", "Pins", "WholeJob", "parts_of"]


class Pins:
    """The identity each object had when it was first seen.

    About 250 bytes an object. Belongs to one event loop; a copy of it may be read elsewhere.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}

    def get(self, name: str) -> Identity | None:
        return self._known.get(name)

    def size(self, name: str) -> int:
        """Bytes of the object, or UNKNOWN."""
        known = self._known.get(name)
        return UNKNOWN if known is None else known.size

    def forget(self, name: str) -> None:
        """Take whatever is seen next for the object. Any thread."""
        self._known.pop(name, None)

    def pin(self, name: str, seen: Identity) -> None:
        """Remember ``seen``, or compare it with what is remembered.

        Raises:
            WireError: it is another object by now.
        """
        known = self._known.get(name)
        if known is None:
            self._known[name] = seen
            return
        if known is seen or known == seen:
            return
        difference = known.difference(seen)
        if difference:
            raise WireError(Verdict.CHANGED, difference)
        if known.size == UNKNOWN and seen.size != UNKNOWN:
            self._known[name] = Identity(seen.size, known.etag or seen.etag, known.mtime or seen.mtime)


class Batch:
    """One call: its reads, its deadline, and whether its caller still waits.

    ``lock`` makes landing bytes and giving up exclusive: once :meth:`abandon` returns, no byte is
    written into the caller's buffers any more.
    """

    __slots__ = ("deadline", "heads", "live", "lock", "open_ended", "task", "under_way", "urgent")

    def __init__(self, deadline: Deadline, open_ended: Iterable[str] = (), *, urgent: bool = False) -> None:
        self.deadline = deadline
        self.open_ended = frozenset(open_ended)
        self.heads: dict[str, asyncio.Task[None]] = {}
        self.under_way: set[Job] = set()
        self.lock = threading.RLock()  # a finalizer may cancel in the very thread that is landing bytes
        self.live = True
        self.urgent = urgent
        self.task: asyncio.Task[None] | None = None

    def abandon(self) -> None:
        """Take the buffers away from whatever may still be under way. Any thread."""
        self.live = False
        with self.lock:
            pass  # what was being written is complete

    def halt(self) -> None:
        """Cancel its requests. On the loop, after its task was made."""
        if self.task is not None:
            self.task.cancel()


class Job:
    """One thing to fetch, and how its attempts fared.

    Attributes:
        attempts: requests sent.
        streak: the failed ones among them since the last that got some bytes for good; waits and patience
            grow with it.
        error: how the latest attempt failed.
        rival: the second request that may take the place of the one under way, if there is one.
        beaten: whether it did.
        gate, eased: who let the request under way in, and how much of its weight it has got back since.
    """

    __slots__ = (
        *("attempts", "beaten", "begin", "counters", "eased", "end", "error", "gate", "name", "pins", "rival"),
        *("streak", "watch", "weight"),
    )

    def __init__(self, name: str, begin: int, end: int, weight: int, pins: Pins, counters: FetchCounters) -> None:
        self.name = name
        self.begin = begin
        self.end = end
        self.weight = weight
        self.pins = pins
        self.counters = counters
        self.attempts = 0
        self.streak = 0
        self.error: BaseException | None = None
        self.watch: Watch | None = None
        self.rival: Any = None
        self.beaten = False
        self.gate: Gate | None = None
        self.eased = 0

    def alone(self) -> None:
        """The attempt is over: nothing of a second request is wanted any more."""
        if self.rival is not None:
            self.rival.lose()
            self.rival = None
        self.beaten = False

    def wanted(self) -> bool:
        """Whether another attempt is needed.

        Raises:
            WireError: what is wanted cannot exist.
        """
        raise NotImplementedError

    async def attempt(self, wire: Wire) -> None:
        """One request; raises what went wrong."""
        raise NotImplementedError

    def rewind(self, wire: Wire) -> None:
        """Prepare for the attempt after a failed one."""
        self.streak += 1

    def silent_bytes(self, wire: Wire) -> int:
        """Bytes of the next attempt that travel without a sign of progress."""
        return 0

    def deliver(self) -> None:
        """The call succeeded: tell its reads."""

    def answered(self, begin: int, end: int, identity: Identity | None) -> None:
        raise NotImplementedError

    def expect(self, length: int) -> None:
        if self.watch is not None:
            self.watch.feed(length / SLOWEST_RATE)

    def write(self, data: Any) -> None:
        raise NotImplementedError

    def _arrived(self, length: int) -> None:
        self.counters.bytes_fetched += length
        if self.watch is not None:
            self.watch.feed()


class HeadJob(Job):
    """Size and identity of one object; pins it, or compares with what was pinned."""

    __slots__ = ("_done",)

    def __init__(self, name: str, pins: Pins, counters: FetchCounters) -> None:
        super().__init__(name, -1, -1, 0, pins, counters)
        self._done = False

    def wanted(self) -> bool:
        return not self._done

    async def attempt(self, wire: Wire) -> None:
        seen = await wire.head(self.name)
        if seen.size == UNKNOWN:
            raise WireError(Verdict.FATAL, "the storage does not tell the object's size")
        self.pins.pin(self.name, seen)
        self._done = True


class Piece(NamedTuple):
    """Where a stretch of a job's bytes lands.

    Attributes:
        at: first byte, counted from the job's begin.
        view: the buffer, or the slice of it; the next piece begins where it ends.
    """

    at: int
    view: memoryview
    read: Read


class PartJob(Job):
    """A range of at most one request's size, landing in (slices of) the buffers of one or more reads.

    ``landed`` bytes from the front are good. What is wanted shrinks when the object's size becomes
    known and the read may end early (``open_ended``). An answer that stops early is taken as progress;
    :meth:`wanted` says whether that was the object's end.
    """

    __slots__ = ("_batch", "_kept", "_limit", "_pieces", "landed", "open_ended")

    def __init__(self, batch: Batch, pieces: Sequence[Piece], begin: int, pins: Pins, counters: FetchCounters) -> None:
        length = pieces[-1].at + len(pieces[-1].view)
        name = pieces[0].read.name
        super().__init__(name, begin, begin + length, length, pins, counters)
        self.open_ended = name in batch.open_ended
        self.landed = 0
        self._kept = 0
        self._batch = batch
        self._pieces = pieces
        self._limit = length

    def stop(self) -> int:
        """Where the wanted bytes end, as far as is known by now."""
        size = self.pins.size(self.name)
        if size == UNKNOWN or self.end <= size:
            return self.end
        if not self.open_ended:
            raise WireError(Verdict.BEYOND, f"the object ends at byte {size}")
        return max(size, self.begin)

    def wanted(self) -> bool:
        at, stop = self.begin + self.landed, self.stop()
        if at > stop:
            raise range_ignored(UNKNOWN)
        return at < stop

    def deliver(self) -> None:
        for piece in self._pieces:
            piece.read.got += max(0, min(self.landed - piece.at, len(piece.view)))

    def silent_bytes(self, wire: Wire) -> int:
        return 0 if wire.streams else self.weight - self.landed

    async def attempt(self, wire: Wire, landing: Landing | None = None) -> None:
        stop = self.stop()
        self._limit = stop - self.begin
        await wire.get(self.name, self.begin + self.landed, stop, self.pins.get(self.name), landing or self)

    def rewind(self, wire: Wire) -> None:
        # Half an answer may only be continued when the next one is sure to be of the same object.
        known = self.pins.get(self.name)
        if not wire.tells or known is None or not known.etag:
            self.landed = 0
        self.streak = 1 if self.landed > self._kept else self.streak + 1
        self._kept = self.landed

    def answered(self, begin: int, end: int, identity: Identity | None) -> None:
        self._still_first()
        self.accept(begin, end, identity)
        if self.rival is not None:
            self.rival.lose()

    def write(self, data: Any) -> None:
        self._still_first()
        if self.rival is not None:
            self.rival.lose()
        self.land(data)

    def yield_to(self, begun: float) -> None:
        """The rival, sent at ``begun``, has answered: nothing of the request under way lands any more."""
        self.beaten = True
        if self.watch is not None:
            self.watch.overtake(begun)

    def _still_first(self) -> None:
        if self.beaten:
            raise WireError(Verdict.RETRY, "another request for the same bytes was faster")

    def accept(self, begin: int, end: int, identity: Identity | None) -> None:
        """Check what an answer claims."""
        at = self.begin + self.landed
        if begin != at:
            raise WireError(Verdict.FATAL, f"asked for bytes from {at}, the server answers from {begin}")
        if end > self.begin + self._limit:
            raise range_ignored(end - begin)
        if identity is not None:
            self.pins.pin(self.name, identity)
        if self.watch is not None:
            self.watch.feed()

    def land(self, data: Any) -> None:
        """Put the next bytes where they belong."""
        length = len(data)
        at = self.landed
        if at + length > self._limit:
            raise range_ignored(UNKNOWN)
        with self._batch.lock:
            if not self._batch.live:
                raise WireError(Verdict.FATAL, "the caller has given up")
            if len(self._pieces) == 1:
                self._pieces[0].view[at : at + length] = data
            else:
                self._scatter(at, memoryview(data))
        self.landed = at + length
        if self.gate is not None:
            step = min(length, self.weight - self.eased)
            self.eased += step
            self.gate.ease(step)
        self._arrived(length)

    def _scatter(self, at: int, data: memoryview) -> None:
        done = 0
        first = bisect.bisect_right(self._pieces, at, key=_piece_begin) - 1
        for piece in itertools.islice(self._pieces, first, None):
            here = at + done - piece.at
            some = data[done : done + len(piece.view) - here]
            piece.view[here : here + len(some)] = some
            done += len(some)
            if done == len(data):
                return


class WholeJob(Job):
    """A whole object as one value of at most ``limit`` bytes.

    Its length shows with the answer, so the gate cannot wait for room: it only counts what is in flight.
    """

    __slots__ = ("_body", "_due", "_seen", "landed", "limit")

    def __init__(self, name: str, limit: int, pins: Pins, counters: FetchCounters) -> None:
        super().__init__(name, 0, -1, 0, pins, counters)
        self.limit = limit
        self.landed = 0
        self._body = bytearray()
        self._due = UNKNOWN
        self._seen = False

    def result(self) -> bytearray:
        """The object's bytes, once nothing is wanted any more."""
        return self._body

    def wanted(self) -> bool:
        return not self._seen

    def silent_bytes(self, wire: Wire) -> int:
        return 0 if wire.streams else self.limit

    async def attempt(self, wire: Wire) -> None:
        counters = self.counters
        try:
            await wire.whole(self.name, self.limit, self)
        finally:
            if self._due != UNKNOWN:
                counters.in_flight_bytes -= self._due
        if self._due not in (UNKNOWN, self.landed):
            raise WireError(Verdict.RETRY, f"the answer was cut after {self.landed} of {self._due} bytes")
        self._seen = True

    def rewind(self, wire: Wire) -> None:
        super().rewind(wire)
        self._body = bytearray()
        self.landed = 0
        self._due = UNKNOWN

    def answered(self, begin: int, end: int, identity: Identity | None) -> None:
        if end > self.limit:
            raise self._too_long(end)
        if identity is not None:
            self.pins.pin(self.name, identity)
        self._due = end
        self._body = bytearray(end)
        counters = self.counters
        counters.in_flight_bytes += end
        counters.in_flight_peak = max(counters.in_flight_peak, counters.in_flight_bytes)

    def write(self, data: Any) -> None:
        length = len(data)
        if self.landed + length > self.limit:
            raise self._too_long(self.landed + length)
        self._body[self.landed : self.landed + length] = data  # grows where no length was told
        self.landed += length
        self._arrived(length)

    def _too_long(self, length: int) -> WireError:
        return WireError(Verdict.FATAL, f"it is longer than {self.limit} bytes (at least {length})")


def parts_of(
    batch: Batch, reads: Sequence[Read], pins: Pins, counters: FetchCounters, part_bytes: int
) -> list[PartJob]:
    """Turn reads into jobs of at most ``part_bytes``; checks the buffers.

    Reads that continue each other (next to each other in the sequence and in the object) share a job.

    Raises:
        ConfigError: a buffer that cannot be written, or a negative begin.
    """
    jobs: list[PartJob] = []
    run: list[Piece] = []
    begin = end = 0
    for read in reads:
        view = _landing_view(read)
        if not len(view):
            continue
        if run and (read.begin != end or read.name != run[0].read.name):
            jobs += _jobs_of(batch, run, begin, end, pins, counters, part_bytes)
            run = []
        if not run:
            begin = read.begin
        run.append(Piece(read.begin - begin, view, read))
        end = read.begin + len(view)
    if run:
        jobs += _jobs_of(batch, run, begin, end, pins, counters, part_bytes)
    return jobs


def _landing_view(read: Read) -> memoryview:
    """The read's buffer as bytes."""
    read.got = 0
    view = read.view
    if view.readonly or not view.c_contiguous:
        raise ConfigError(f"the buffer for {read.name!r} must be writable and contiguous")
    if read.begin < 0:
        raise ConfigError(f"a read of {read.name!r} begins at {read.begin}, below zero")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _jobs_of(
    batch: Batch, run: list[Piece], begin: int, end: int, pins: Pins, counters: FetchCounters, part_bytes: int
) -> Iterator[PartJob]:
    """The requests for one stretch of an object, and where each one's bytes land."""
    if end - begin <= part_bytes:
        yield PartJob(batch, run, begin, pins, counters)
        return
    at = 0
    for first, last in split(0, end - begin, max_bytes=part_bytes):
        pieces = []
        while at < len(run) and run[at].at < last:
            whole = run[at]
            low, high = max(first, whole.at), min(last, whole.at + len(whole.view))
            pieces.append(Piece(low - first, whole.view[low - whole.at : high - whole.at], whole.read))
            if high == last:
                if high == whole.at + len(whole.view):
                    at += 1
                break
            at += 1
        yield PartJob(batch, pieces, begin + first, pins, counters)


def _piece_begin(piece: Piece) -> int:
    return piece.at
