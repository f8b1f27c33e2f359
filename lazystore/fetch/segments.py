"""A source that answers for objects which are put together from parts of others.

Text files, and shards whose offset table is a file of its own, become chunks in the classic layout this way, without a
byte of them being written anew. How such objects are made up is for the format to say; nothing is decoded here.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lazystore.errors import ClosedError, ConfigError, FetchError, FormatError, LazyStoreError
from lazystore.fetch.flight import Outcome, Wave
from lazystore.fetch.source import Flight, Read, Source

__all__ = ["Segment", "SegmentedSource", "Span"]

ENTRY = 4
MAX_ENTRY = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a stored object.

    Attributes:
        name: the object.
        begin, nbytes: which bytes of it.
        source: who has the object; None: the source that the :class:`SegmentedSource` wraps.
        shift: added to each of the little-endian u32 entries that the span consists of. Needs an ``nbytes`` that is a
            multiple of 4; entries that leave 32 bits are a FormatError.
    """

    name: str
    begin: int
    nbytes: int
    source: Source | None = None
    shift: int = 0


#: One part of an object: bytes that are stored, or bytes that are there.
Segment: TypeAlias = "Span | bytes"


class SegmentedSource:
    """A :class:`~lazystore.fetch.source.Source` with objects that are put together from parts of others.

    Parameters:
        inner: where stored objects are; names that ``objects`` does not know go straight to it.
        objects: parts of each made-up object, in order; a mapping, or a function that gives None for other names. Asked
            at every read, so it had better be quick; must not change its mind.
        others: further sources that spans name (a folder of indexes). Closed together with ``inner``.

    Bytes go straight into the reader's buffers; only a read that begins or ends within a shifted entry is copied. The
    identity of what is stored is pinned by the sources that have it. An object's size is that of its parts, up to the
    first that its stored object is too short for; asking for it asks for the sizes of all stored objects it is made of.

    ``counters`` are those of ``inner``: what came from the storage. Threads, fork and pickling: as ``inner``.
    """

    def __init__(
        self,
        inner: Source,
        objects: Mapping[str, Sequence[Segment]] | Callable[[str], Sequence[Segment] | None],
        others: Sequence[Source] = (),
    ) -> None:
        self.inner = inner
        self.url = inner.url
        self.local = inner.local
        self.counters = inner.counters
        self.memory = inner.memory
        self._objects = objects
        self._others = tuple(others)

    def parts(self, name: str) -> Sequence[Segment] | None:
        """What an object is made of; None: it is stored as it is."""
        return self._objects.get(name) if isinstance(self._objects, Mapping) else self._objects(name)

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        """Fill the reads' buffers and tell sizes; see :class:`~lazystore.fetch.source.Source`."""
        job = _Job(self, reads, stat)
        if len(job.errands) == 1:
            errand = job.errands[0]
            return job.finish([errand.source.run(errand.reads, stat=errand.stat, timeout=timeout)])
        flights: list[Flight | None] = []
        try:
            for errand in job.errands:  # what is far away first, so that it travels while local files are read
                slow = not errand.source.local
                flights.append(
                    errand.source.start(errand.reads, stat=errand.stat, timeout=timeout, urgent=True) if slow else None
                )
            found: list[Mapping[str, int]] = [
                {} if flight else errand.source.run(errand.reads, stat=errand.stat, timeout=timeout)
                for errand, flight in zip(job.errands, flights, strict=True)
            ]
            found = [flight.result() if flight else sizes for sizes, flight in zip(found, flights, strict=True)]
        except BaseException:
            for flight in flights:
                if flight is not None:
                    flight.cancel()
            raise
        return job.finish(found)

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Flight:
        """Begin what :meth:`run` does; see :class:`~lazystore.fetch.source.Source`."""
        stat = tuple(stat)
        try:
            if not self._concerns(reads, stat):
                return self.inner.start(reads, stat=stat, timeout=timeout, urgent=urgent, on_done=on_done)
            job = _Job(self, reads, stat)
        except (ClosedError, ConfigError):
            raise
        except LazyStoreError as error:
            outcome = Outcome(on_done)
            outcome.settle(error=error)
            return Wave(outcome, self.url, timeout)
        outcome = Outcome(on_done)
        flight = _Assembly(outcome, self.url, timeout, job)
        flight.launch(timeout, urgent)
        return flight

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes | bytearray:
        """The whole object, at most ``limit`` bytes."""
        parts = self.parts(name)
        if parts is None:
            return self.inner.read_all(name, limit=limit, timeout=timeout)
        size = sum(map(_length, parts))
        if size > limit:
            path = f"{self.url}/{name}"
            raise FetchError(f"{path} has {size} bytes, at most {limit} are read", url=path)
        data = bytearray(size)
        self.run([Read(name, 0, memoryview(data))], timeout=timeout)
        return data

    def identity(self, name: str, *, timeout: float) -> str:
        """That of a stored object."""
        return self.inner.identity(name, timeout=timeout)

    def close(self) -> None:
        """Close all the sources."""
        for source in (self.inner, *self._others):
            source.close()

    def reset_after_fork(self) -> None:
        """For the child of a fork: what the sources need."""
        for source in (self.inner, *self._others):
            reset = getattr(source, "reset_after_fork", None)
            if reset is not None:
                reset()

    def _concerns(self, reads: Sequence[Read], stat: Iterable[str]) -> bool:
        """Whether anything of it is an object that is put together."""
        names = {read.name for read in reads}
        return any(self.parts(name) is not None for name in names.union(stat))

    def __repr__(self) -> str:
        return f"<SegmentedSource over {self.inner!r}>"


@dataclass(slots=True, eq=False)
class _Errand:
    """What one source has to do of a job."""

    source: Source
    reads: list[Read]
    stat: dict[str, None]


@dataclass(slots=True, eq=False)
class _Part:
    """A read of a stored object that serves a part of a read of an object put together.

    Attributes:
        read: what is asked of the source.
        view: where the bytes are wanted, if not where ``read`` puts them: from byte ``lead`` of it.
    """

    read: Read
    view: memoryview | None = None
    lead: int = 0
    shift: int = 0

    @property
    def nbytes(self) -> int:
        return len(self.read.view if self.view is None else self.view)

    def land(self) -> int:
        """Put right what came; returns how many of the wanted bytes there are."""
        got = self.read.got
        if self.shift:
            _shift(self.read.view[: got // ENTRY * ENTRY], self.shift, self.read.name)
        if self.view is None:
            return got
        got = max(0, min(got - self.lead, len(self.view)))
        self.view[:got] = self.read.view[self.lead : self.lead + got]
        return got


class _Job:
    """One wave: who reads what for it, and what is left to do when they have."""

    __slots__ = ("_by_source", "_joints", "_known", "_owner", "_stat", "errands")

    def __init__(self, owner: SegmentedSource, reads: Sequence[Read], stat: Iterable[str]) -> None:
        self._owner = owner
        self._known: dict[str, Sequence[Segment] | None] = {}
        self._stat = tuple(dict.fromkeys(stat))
        self.errands: list[_Errand] = []
        self._by_source: dict[int, _Errand] = {}
        self._joints: list[tuple[Read, list[_Part]]] = []
        for name in self._stat:
            for source, stored in self._stored(name):
                self._errand(source).stat[stored] = None
        for read in reads:
            parts = self._parts(read.name)
            if parts is None:
                self._errand(owner.inner).reads.append(read)
            else:
                self._joints.append((read, self._split(read, parts)))

    def _parts(self, name: str) -> Sequence[Segment] | None:
        """What the owner says, asked once."""
        try:
            return self._known[name]
        except KeyError:
            parts = self._known[name] = self._owner.parts(name)
            return parts

    def _errand(self, source: Source) -> _Errand:
        errand = self._by_source.get(id(source))
        if errand is None:
            errand = self._by_source[id(source)] = _Errand(source, [], {})
            self.errands.append(errand)
        return errand

    def _stored(self, name: str) -> list[tuple[Source, str]]:
        """The stored objects that one is made of."""
        parts = self._parts(name)
        if parts is None:
            return [(self._owner.inner, name)]
        return [(part.source or self._owner.inner, part.name) for part in parts if isinstance(part, Span)]

    def _split(self, read: Read, segments: Sequence[Segment]) -> list[_Part]:
        parts: list[_Part] = []
        first = 0  # where in the object the segment begins
        for segment in segments:
            length = _length(segment)
            begin, end = max(read.begin, first), min(read.end, first + length)
            if begin < end:
                view = read.view[begin - read.begin : end - read.begin]
                parts.append(self._part(segment, begin - first, view))
            first += length
        if read.end > first and read.name not in self._stat:
            raise self._ends(read, first)
        return parts

    def _part(self, segment: Segment, begin: int, view: memoryview) -> _Part:
        """Bytes ``begin`` and on of a segment into ``view``."""
        if not isinstance(segment, Span):
            view[:] = segment[begin : begin + len(view)]
            return _Part(Read("", begin, view, len(view)))
        lead = begin % ENTRY if segment.shift else 0
        tail = -(begin + len(view)) % ENTRY if segment.shift else 0
        if lead or tail:
            whole = memoryview(bytearray(lead + len(view) + tail))
            part = _Part(Read(segment.name, segment.begin + begin - lead, whole), view, lead, segment.shift)
        else:
            part = _Part(Read(segment.name, segment.begin + begin, view), shift=segment.shift)
        self._errand(segment.source or self._owner.inner).reads.append(part.read)
        return part

    def finish(self, found: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """Settle the reads, once every errand is done; the sizes that were asked for."""
        for read, parts in self._joints:
            read.got = 0
            for part in parts:
                got = part.land()
                read.got += got
                if got < part.nbytes:
                    break
        known = {id(errand.source): sizes for errand, sizes in zip(self.errands, found, strict=True)}
        return {name: self._size(name, known) for name in self._stat}

    def _size(self, name: str, known: Mapping[int, Mapping[str, int]]) -> int:
        parts = self._parts(name)
        if parts is None:
            return known[id(self._owner.inner)][name]
        size = 0
        for part in parts:
            there = length = _length(part)
            if isinstance(part, Span):
                stored = known[id(part.source or self._owner.inner)][part.name]
                there = max(0, min(length, stored - part.begin))
            size += there
            if there < length:
                break
        return size

    def _ends(self, read: Read, size: int) -> FetchError:
        path = f"{self._owner.url}/{read.name}"
        return FetchError(
            f"{path} ends at byte {size}, bytes {read.begin}..{read.end} were expected; it is truncated",
            url=path, begin=read.begin, end=read.end, attempts=1,
        )  # fmt: skip


class _Assembly(Wave):
    """The flights of a job as one. Forgotten, it forgets them, which cancels them."""

    __slots__ = ("_flights", "_landing")

    def __init__(self, outcome: Outcome, url: str, timeout: float, job: _Job) -> None:
        super().__init__(outcome, url, timeout)
        self._flights: list[Flight] = []
        self._landing = _Landing(outcome, job, weakref.ref(self))

    def launch(self, timeout: float, urgent: bool) -> None:
        landing = self._landing
        try:
            for errand in landing.job.errands:
                self._flights.append(
                    errand.source.start(
                        errand.reads, stat=errand.stat, timeout=timeout, urgent=urgent, on_done=landing.one_done
                    )
                )
        except BaseException:
            self.cancel()
            raise
        landing.one_done()

    def results(self) -> list[dict[str, int]]:
        """What all the flights told; they are done."""
        return [flight.result() for flight in self._flights]

    def _take_back(self) -> None:
        self._landing.abandon()
        for flight in self._flights:
            flight.cancel()


class _Landing:
    """Waits for the last flight of an assembly, without keeping the assembly or the flights."""

    __slots__ = ("_assembly", "_live", "_lock", "_outcome", "_pending", "job")

    def __init__(self, outcome: Outcome, job: _Job, assembly: weakref.ref[_Assembly]) -> None:
        self._outcome = outcome
        self.job = job
        self._assembly = assembly
        self._live = True
        self._lock = threading.RLock()  # a finalizer may cancel in the very thread that settles reads
        self._pending = len(job.errands) + 1  # one more for launching them

    def abandon(self) -> None:
        """No byte of the readers' buffers is touched after this."""
        with self._lock:
            self._live = False

    def one_done(self) -> None:
        """One flight less; the last one settles the job. From any thread."""
        with self._lock:
            self._pending -= 1
            if self._pending or not self._live:
                return
            sizes, error = self._settle()
        self._outcome.settle(sizes, error)

    def _settle(self) -> tuple[dict[str, int], BaseException | None]:
        assembly = self._assembly()
        if assembly is None:
            return {}, FetchError("a read that nobody waited for was cancelled")
        try:
            return self.job.finish(assembly.results()), None
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            return {}, error


def _length(segment: Segment) -> int:
    return segment.nbytes if isinstance(segment, Span) else len(segment)


def _shift(view: memoryview, by: int, name: str) -> None:
    """Add to every u32 entry, in place."""
    import numpy as np

    entries = np.frombuffer(view, "<u4")
    if len(entries) and not 0 <= int(entries.min()) + by <= int(entries.max()) + by <= MAX_ENTRY:
        raise FormatError(
            f"{name}: offsets {int(entries.min())}..{int(entries.max())} leave 32 bits when {by} is added: "
            "the table is damaged"
        )
    entries += np.uint32(by & MAX_ENTRY)  # modulo 2**32, which takes a negative shift as well
