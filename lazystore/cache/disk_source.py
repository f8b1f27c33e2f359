"""`DiskSource`: a remote source whose bytes stay on a local disk, so that they travel once.

What is fetched is kept in blocks of one size in a :class:`~lazystore.cache.disk.DiskTier`; what is there is read from
there. How bytes travel is the inner source's business, where they lie on the disk the tier's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from lazystore.cache.flight import Deadline
from lazystore.cache.keys import canonical
from lazystore.errors import ConfigError, FetchError, FormatError, MissingExtraError
from lazystore.fetch.flight import Outcome, Wave
from lazystore.fetch.options import redact
from lazystore.fetch.readahead import ReadAhead
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore.cache.disk import DiskTier
    from lazystore.fetch.source import Flight, Source

__all__ = ["BLOCK", "DiskSource"]

#: Bytes of a block: what is stored, and found again, as one record.
BLOCK = 128 << 10
#: Blocks that are held besides: one that is read, and one that is put together and compressed.
HELD = 3


class DiskSource:
    """A :class:`~lazystore.fetch.source.Source` that asks a disk tier first, and stores what it had to fetch.

    Parameters:
        inner: the remote source.
        disk: where blocks stay; not closed with this source. Whatever its ``mode``, blocks are stored as they are
            fetched.
        room: bytes that may be fetched along at once, because the rest of their blocks is wanted.

    Blocks are known by URL, object, its identity (size and etag, or size and time of modification) and number: an
    object that changed is another object. A new process therefore asks once for the identity of each object that it
    reads, and no more if all its bytes are there. Blocks are fetched as a whole; where there is no room for what nobody
    asked for, just what is wanted is fetched, and not stored. A storage that tells nothing but sizes is passed through.

    Counted in ``counters.extra``: ``disk_hits`` and ``disk_stores`` (blocks), ``disk_bytes`` (read from it).

    Threads: any may call; one of its own reads and writes the disk for :meth:`start`, from the first call on. Fork: the
    child's starts anew. Pickling: none; the dataset's recipe makes another.

    Raises:
        ConfigError: the inner source is local.
    """

    local = False

    def __init__(self, inner: Source, disk: DiskTier, *, room: int = 1 << 20) -> None:
        if inner.local:
            raise ConfigError(f"{inner.url} is on this machine: a disk tier would hold a second copy; leave disk out")
        self.inner = inner
        self.url = inner.url
        self.counters = inner.counters
        self.memory = inner.memory + room + HELD * BLOCK
        self._disk = disk
        self._label = redact(inner.url)
        self._known: dict[str, tuple[str, int]] = {}
        self._room = room
        self._lock = threading.RLock()  # re-entrant: a finalizer gives room back
        self._thread = ReadAhead()
        self.counters.extra.update(disk_hits=0, disk_bytes=0, disk_stores=0)

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        """Fill the reads' buffers and tell sizes; see :class:`~lazystore.fetch.source.Source`."""
        names = tuple(stat)
        deadline = Deadline(timeout)
        if unknown := self._unknown(reads, names):
            self.inner.run([], stat=unknown, timeout=timeout)
        plan = self.plan(reads, names, deadline)
        plan.read()
        if plan.pieces:
            self.inner.run(plan.pieces, stat=names, timeout=deadline.left())
        return plan.finish()

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Wave:
        """Begin the same, and let the caller go on; see :class:`~lazystore.fetch.source.Source`."""
        outcome = Outcome(on_done)
        trip = Trip(self, reads, tuple(stat), timeout, urgent, outcome)
        flight = DiskFlight(outcome, self.url, timeout, trip)
        trip.begin(self._unknown(reads, trip.names))
        return flight

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes | bytearray:
        """The whole object, always from the storage; see :class:`~lazystore.fetch.source.Source`."""
        return self.inner.read_all(name, limit=limit, timeout=timeout)

    def identity(self, name: str, *, timeout: float) -> str:
        """That of the stored object; see :class:`~lazystore.fetch.source.Source`."""
        return self.inner.identity(name, timeout=timeout)

    def close(self) -> None:
        """Close the inner source, and end the thread; the disk tier stays as it is."""
        self.inner.close()
        self._thread.close()

    def reset_after_fork(self) -> None:
        """In the child: locks are its parent's."""
        self._lock = threading.RLock()
        reset = getattr(self.inner, "reset_after_fork", None)
        if reset is not None:
            reset()

    # -- for trips ----------------------------------------------------------------------

    def plan(self, reads: Sequence[Read], stat: Sequence[str], deadline: Deadline) -> Plan:
        """How to get these reads, once the identities of all their objects are pinned."""
        for name in dict.fromkeys(chain((read.name for read in reads), stat)):
            if name not in self._known:
                identity = self.inner.identity(name, timeout=deadline.left())
                self._known[name] = identity, int(identity.partition("-")[0])
        return Plan(self, reads, stat)

    def hand(self, trip: Trip) -> None:
        """Have the disk's thread go on with a trip."""
        self._thread.put(trip, urgent=trip.urgent)

    def _unknown(self, reads: Sequence[Read], stat: Sequence[str]) -> list[str]:
        names = dict.fromkeys(chain((read.name for read in reads), stat))
        return [name for name in names if name not in self._known]

    def about(self, name: str) -> tuple[str, int]:
        """Identity and size of an object."""
        return self._known[name]

    def take_room(self, nbytes: int) -> bool:
        """Whether so many bytes may be fetched along now; whoever was told so gives them back (a negative number)."""
        with self._lock:
            if nbytes > self._room:
                return False
            self._room -= nbytes
            return True

    def key(self, name: str, block: int) -> bytes:
        """What a block is stored under."""
        return canonical(("stream", self._label, name, self._known[name][0], BLOCK, block))

    def load(self, name: str, block: int, length: int) -> bytes | None:
        """A block from the disk, if it is there as it should be."""
        stored = self._disk.get(self.key(name, block))
        if stored is None:
            return None
        try:
            data = self._disk.unpack(stored)
        except (FormatError, MissingExtraError):
            return None
        if type(data) is not bytes or len(data) != length:
            return None
        extra = self.counters.extra
        extra["disk_hits"] += 1
        extra["disk_bytes"] += length
        return data

    def store(self, name: str, block: int, parts: Sequence[memoryview]) -> None:
        """Keep a block that was fetched."""
        kind, buffers = self._disk.pack(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._disk.put(self.key(name, block), kind, buffers, created=time.time()):
            self.counters.extra["disk_stores"] += 1


class Plan:
    """Which parts of some reads come from where.

    Attributes:
        pieces: what the inner source has to fetch, after :meth:`read`.
    """

    def __init__(self, source: DiskSource, reads: Sequence[Read], stat: Sequence[str]) -> None:
        self.pieces: list[Read] = []
        self._source = source
        self._reads = reads
        self._stat = stat
        self._along = 0
        self._blocks: list[tuple[str, int, list[memoryview]]] = []
        self._twice: list[tuple[memoryview, memoryview]] = []

    def read(self, hold: Callable[[Callable[[], None]], None] | None = None) -> None:
        """Read what the disk has, and note what it has not.

        Parameters:
            hold: runs each step that writes into the caller's buffers.
        """
        by_name: dict[str, list[Read]] = {}
        for read in self._reads:
            by_name.setdefault(read.name, []).append(read)
        for name, reads in by_name.items():
            identity, size = self._source.about(name)
            if identity.endswith("-") or any(read.end > size and name not in self._stat for read in reads):
                self.pieces += reads  # not to be relied on; or beyond the end, which the inner source says
                continue
            reads.sort(key=lambda read: read.begin)
            self._read_object(name, size, reads, hold or _at_once)

    def _read_object(self, name: str, size: int, reads: list[Read], hold: Callable[[Callable[[], None]], None]) -> None:
        parts: dict[int, list[tuple[int, memoryview]]] = {}
        for read in reads:
            read.got = max(0, min(read.end, size) - read.begin)
            at, stop = read.begin, read.begin + read.got
            while at < stop:
                upto = min(stop, (at // BLOCK + 1) * BLOCK)
                parts.setdefault(at // BLOCK, []).append((at, read.view[at - read.begin : upto - read.begin]))
                at = upto
        for block, wanted in sorted(parts.items()):
            begin, end = block * BLOCK, min((block + 1) * BLOCK, size)
            data = self._source.load(name, block, end - begin)
            if data is not None:
                hold(partial(_fill, memoryview(data), begin, wanted))
            else:
                self._send_for(name, block, begin, end, wanted)

    def _send_for(self, name: str, block: int, begin: int, end: int, wanted: list[tuple[int, memoryview]]) -> None:
        """Note the pieces of a block to fetch: all of it, if there is room for that."""
        parts: list[tuple[int, memoryview]] = []
        at = begin
        for where, view in wanted:
            again = min(len(view), max(0, at - where))
            if again:  # another read wants these bytes too: they are copied when they have landed
                self._copy_later(parts, where, view[:again])
                where, view = where + again, view[again:]
            if len(view):
                parts.append((where, view))
                at = where + len(view)
        along = end - begin - sum(len(view) for _, view in parts)
        if not self._source.take_room(along):
            self.pieces += [Read(name, where, view) for where, view in parts]
            return
        self._along += along
        whole: list[tuple[int, memoryview]] = []
        at = begin
        for where, view in [*parts, (end, memoryview(b""))]:
            if where > at:
                whole.append((at, memoryview(bytearray(where - at))))
            if len(view):
                whole.append((where, view))
            at = where + len(view)
        self.pieces += [Read(name, where, view) for where, view in whole]
        self._blocks.append((name, block, [view for _, view in whole]))

    def _copy_later(self, parts: list[tuple[int, memoryview]], where: int, view: memoryview) -> None:
        for begin, source in parts:
            first, last = max(where, begin), min(where + len(view), begin + len(source))
            if first < last:
                self._twice.append((source[first - begin : last - begin], view[first - where : last - where]))

    def finish(self) -> dict[str, int]:
        """All has landed: store it, and tell the sizes."""
        for source, view in self._twice:
            view[:] = source
        for name, block, parts in self._blocks:
            self._source.store(name, block, parts)
        self.give_back()
        return {name: self._source.about(name)[1] for name in self._stat}

    def give_back(self) -> None:
        """The room for what was fetched along."""
        along, self._along = self._along, 0
        self._blocks.clear()
        self._source.take_room(-along)

    def __del__(self) -> None:
        self.give_back()


class Trip:
    """One call of ``start``: identities, then the disk, then the storage for the rest, then the disk to keep it.

    Each step is one errand of the disk's thread; between them nobody waits. ``lock`` makes writing into the caller's
    buffers and giving up exclusive.
    """

    __slots__ = ("_deadline", "_flight", "_lock", "_outcome", "_plan", "_reads", "_source", "live", "names", "urgent")

    def __init__(
        self,
        source: DiskSource,
        reads: Sequence[Read],
        names: Sequence[str],
        timeout: float,
        urgent: bool,
        outcome: Outcome,
    ) -> None:
        self.live = True
        self.names = names
        self.urgent = urgent
        self._source = source
        self._reads = reads
        self._deadline = Deadline(timeout)
        self._outcome = outcome
        self._plan: Plan | None = None
        self._flight: Flight | None = None
        # Re-entrant: a finalizer may end another trip in the thread that goes on with this one.
        self._lock = threading.RLock()

    def begin(self, unknown: Sequence[str]) -> None:
        """Ask for identities that are not known; the disk is next."""
        if unknown:
            self._send([], unknown)
        else:
            self._next()

    def run(self) -> None:
        """The next step; on the disk's thread."""
        try:
            if not self.live:
                raise _called_off()
            self._step()
        except Exception as error:  # noqa: BLE001 - raised where the flight's result is asked for
            self._outcome.settle(error=error)

    def _step(self) -> None:
        with self._lock:
            flight, self._flight = self._flight, None
        if flight is not None:
            flight.result()
        if self._plan is None:
            self._plan = self._source.plan(self._reads, self.names, self._deadline)
            self._plan.read(self._hold)
            if self._plan.pieces:
                self._send(self._plan.pieces, self.names)
                return
        sizes: dict[str, int] = {}
        self._hold(lambda: sizes.update(self._plan.finish() if self._plan else {}))
        self._outcome.settle(sizes)

    def _send(self, reads: Sequence[Read], stat: Sequence[str]) -> None:
        with self._lock:  # it may be done, or be called off, before it is known here
            if not self.live:
                raise _called_off()
            self._flight = self._source.inner.start(
                reads, stat=stat, timeout=self._deadline.left(), urgent=self.urgent, on_done=self._next
            )

    def _next(self) -> None:
        self._source.hand(self)

    def _hold(self, step: Callable[[], None]) -> None:
        with self._lock:
            if not self.live:
                raise _called_off()
            step()

    def take_back(self) -> None:
        """After this returns no byte is written into its buffers."""
        self.live = False
        with self._lock:  # the block that was being copied is complete
            flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()

    def forget(self) -> None:
        """The same for a caller that is gone, without locks."""
        self.live = False
        self._flight = None  # which cancels it


class DiskFlight(Wave):
    """The caller's end of a trip; forgotten unfinished, it is cancelled."""

    __slots__ = ("_trip",)

    def __init__(self, outcome: Outcome, url: str, timeout: float, trip: Trip) -> None:
        super().__init__(outcome, url, timeout)
        self._trip = trip

    def _take_back(self) -> None:
        self._trip.take_back()

    def __del__(self) -> None:
        # At any moment in any thread.
        self._trip.forget()


def _fill(data: memoryview, begin: int, wanted: Sequence[tuple[int, memoryview]]) -> None:
    for where, view in wanted:
        view[:] = data[where - begin : where - begin + len(view)]


def _at_once(step: Callable[[], None]) -> None:
    step()


def _called_off() -> FetchError:
    return FetchError("the read was cancelled")
