"""Loading slabs: the offsets and bytes of a run of items, brought into frames without waiting.

A load is a small program that pauses wherever bytes or frames are wanting; whoever drives it
(:meth:`SlabLoad.pump`) decides when it may take frames. Runs that are a whole chunk lie in the chunk's own
parts, which anybody can read and a later pass finds again; other runs are packed into frames of
their own, offsets first, so that nothing is fetched that is not wanted.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from lazystore._core.frames import Fill
from lazystore._core.slab import Slab
from lazystore.cache.door import HEAD_BYTES, Door, head_of
from lazystore.cache.flight import Deadline
from lazystore.cache.sparse import GUESS_VARIATION
from lazystore.cache.wave import Wave
from lazystore.errors import ArenaFullError, FetchError, FormatError, LazyStoreError
from lazystore.fetch.source import Read
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT

if TYPE_CHECKING:
    from lazystore.cache.memory import ChunkMemory, Opener
    from lazystore.fetch.source import Flight

__all__ = ["PACKED", "SlabLoad", "SlabLoader"]

MIB = 1 << 20
#: The chunk number under which packed frames are kept; no chunk has it.
PACKED = (1 << 31) - 1
#: Bytes of one request for a chunk's own parts.
GROUP_BYTES = MIB

#: A guess of where items lie is made when so many times its uncertainty is a small part of what is wanted, and the
#: arena is not tiny.
GUESS_SIGMAS, GUESS_WASTE, GUESS_FRAMES = 3, 8, 64

Steps = Generator[None, None, Slab]
Pause = Generator[None, None, None]


class TableShelf:
    """Whole offset tables of the chunks whose runs are being loaded, least recently used ones dropped.

    Parameters:
        room: bytes they may take together.
        tables: bytes of all tables of the dataset.
    """

    def __init__(self, room: int, tables: int) -> None:
        self.room = room
        #: Fetching tables whole spares a request a run; tables that push each other out would be fetched again.
        self.all_fit = tables <= room
        #: Chunks whose table is on its way, so that it is fetched once.
        self.coming: set[int] = set()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def find(self, chunk: int) -> bytes:
        """The table from its first offset on; b"" when it is not here."""
        table = self._kept.get(chunk, b"")
        if table:
            self._kept.move_to_end(chunk)
        return table

    def keep(self, chunk: int, table: bytes) -> None:
        """Remember a table."""
        if chunk not in self._kept:
            self._kept[chunk] = table
            self._size += len(table)
            while self._size > self.room and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])


class SlabLoader:
    """Makes slabs of runs of items.

    Parameters:
        memory: whose frames, source and reader are used.
        door, opener: the rest of the memory.
        stride: bytes an item when all have one length, else 0.
        opaque: chunks are inflated from their start, or made.
        tables_room: bytes of offset tables that may be kept outside of the frames.

    Memory: the frames, and the tables.
    Threads: any number of loads, each driven by one thread. Fork: loads are dead in the child. Pickling: none.
    """

    def __init__(
        self,
        memory: ChunkMemory,
        door: Door,
        opener: Opener,
        *,
        stride: int,
        opaque: bool,
        tables_room: int,
    ) -> None:
        self.memory = memory
        self.store = memory.store
        self.reader = memory.reader
        self.door = door
        self.opener = opener
        self.stride = stride
        self.opaque = opaque
        self.shelf = TableShelf(tables_room, OFFSET_WIDTH * (memory.reader.n_items + 2 * memory.reader.n_chunks))
        self.numbers = itertools.count()

    def load(self, chunk: int, first: int, last: int, nbytes: int, *, shared: bool) -> SlabLoad:
        """Begin to load items ``first .. last - 1`` of a chunk; nothing is sent before the first pump.

        Parameters:
            nbytes: what they are expected to take, for planning.
            shared: keep them in the chunk's own parts even if they are not the whole chunk.
        """
        return SlabLoad(self, chunk, first, last, nbytes, shared=shared)


class SlabLoad:
    """One run of items on its way into memory.

    Attributes:
        frames: frames it holds, or is expected to need.
        granted: it may take its frames, or has them.
        wanted: somebody waits for it.
        stuck: it was granted frames and found none.
        slab: the result, once :meth:`pump` has said True.
        sent_at: when its bytes were sent for, by the monotonic clock; 0.0 before.
        error, retried: notes of whoever drives it.
    """

    def __init__(self, loader: SlabLoader, chunk: int, first: int, last: int, nbytes: int, *, shared: bool) -> None:
        self._loader = loader
        self.chunk, self.first, self.last = chunk, first, last
        self._whole = first == 0 and last == loader.reader.chunk_items(chunk)
        self._table_bytes = 0 if loader.stride else OFFSET_WIDTH * (last - first + 1)
        self.frames = 1 + -(-(nbytes + self._table_bytes) // loader.store.frame_bytes)
        self.granted = self.wanted = self.stuck = self.retried = False
        self.sent_at = 0.0
        self.slab: Slab | None = None
        self.error: LazyStoreError | None = None
        self._over = False
        self._guess: list[Read] = []
        self._fills: list[Fill] = []
        self._waves: list[Wave] = []
        self._flight: Flight | None = None
        self._steps = self._share() if self._whole or shared or loader.opaque else self._pack()

    def pump(self) -> bool:
        """Go on as far as possible without waiting; True once the slab is there.

        Raises:
            FetchError, FormatError ...: the load has failed; it is over, a new one may try again.
        """
        while self.slab is None:
            if self._over:
                raise FetchError(f"loading {self._loader.door.place(self.chunk, self.first)} was interrupted")
            if self._flight is not None and not self._flight.done():
                return False
            self.stuck = False
            try:
                next(self._steps)
            except StopIteration as end:
                self.slab = end.value
                self._let_go()
            except BaseException:
                self._over = True
                self._let_go()
                raise
            else:
                if self._flight is None:
                    return False  # it wants frames, or parts that are on their way
        return True

    def close(self) -> None:
        """Cancel what is under way; release the slab. Twice is fine."""
        self._over = True
        try:
            self._steps.close()
        except ValueError:
            return  # another thread is in the middle of it, and sees that it is over
        if self._flight is not None:
            self._flight.cancel()
            self._flight = None
        self._let_go()
        if self.slab is not None:
            self.slab.release()

    def _let_go(self) -> None:
        for fill in self._fills:
            fill.release()
        for wave in self._waves:
            wave.drop()
        self._fills.clear()
        self._waves.clear()

    def _run(self, reads: Sequence[Read], stat: Sequence[str] = ()) -> Generator[None, None, dict[str, int]]:
        """Fetch, pausing until it is there."""
        memory = self._loader.memory
        self._flight = memory.source.start(
            list(reads), stat=stat, timeout=memory.timeout, urgent=self.wanted, on_done=memory.arrivals.announce
        )
        yield
        flight, self._flight = self._flight, None
        return flight.result()

    # -- offsets ------------------------------------------------------------------------

    def _open(self, *reads: Read) -> Pause:
        """Other reads of the chunk; along with them it is admitted, if that has not happened."""
        loader, chunk = self._loader, self.chunk
        name = loader.door.layout.names[chunk]
        if loader.reader.chunk_length(chunk):
            if reads:
                yield from self._run(reads)
            return
        head = next((read for read in reads if not read.begin), None)
        if head is None:
            head = Read(name, 0, memoryview(bytearray(min(HEAD_BYTES, loader.door.layout.table_end(chunk)))))
            reads = (head, *reads)
        sizes = yield from self._run(reads, [name])
        loader.door.admit(chunk, sizes[name], head_of(head))
        if any(read.got != len(read.view) for read in reads if read not in self._guess):
            raise FormatError(f"{loader.door.chunk_place(chunk)} ends inside its offset table; it is truncated")

    def _offsets(self) -> Generator[None, None, bytes]:
        """The offsets of the run's items and the end of the last, checked."""
        loader, chunk = self._loader, self.chunk
        table_end = loader.door.layout.table_end(chunk)
        begin, end = OFFSETS_AT + OFFSET_WIDTH * self.first, OFFSETS_AT + OFFSET_WIDTH * (self.last + 1)
        shelf = loader.shelf
        while shelf.all_fit and not shelf.find(chunk) and chunk in shelf.coming:
            yield
        table = shelf.find(chunk)
        if not table:
            at, stop = (0, table_end) if shelf.all_fit else (begin, end)
            data = memoryview(bytearray(stop - at))
            shelf.coming.add(chunk)
            try:
                yield from self._open(Read(loader.door.layout.names[chunk], at, data), *self._guessed(table_end))
            finally:
                shelf.coming.discard(chunk)
            loader.door.check_table(chunk, data, at)
            if not shelf.all_fit:
                return bytes(data)
            table = bytes(data[OFFSETS_AT:])
            shelf.keep(chunk, table)
        return table[begin - OFFSETS_AT : end - OFFSETS_AT]

    def _guessed(self, table_end: int) -> list[Read]:
        """Where the items probably lie, if somebody waits for them and that can be told well: a round trip less."""
        loader, chunk = self._loader, self.chunk
        length = loader.reader.chunk_length(chunk) or loader.door.layout.hints[chunk]
        mean = max(0, length - table_end) / max(1, loader.reader.chunk_items(chunk))
        begin, end = table_end + self.first * mean, table_end + self.last * mean
        margin = GUESS_SIGMAS * GUESS_VARIATION * mean * math.sqrt(self.last)
        if not self.wanted or loader.store.n_frames < GUESS_FRAMES or not 0 < margin * GUESS_WASTE < end - begin:
            return []
        first, last = max(table_end, int(begin - margin)), min(length, int(end + margin))
        if first >= last:
            return []
        self._guess = [Read(loader.door.layout.names[chunk], first, memoryview(bytearray(last - first)))]
        return self._guess

    # -- packed -------------------------------------------------------------------------

    def _pack(self) -> Steps:
        """Offsets, then bytes, side by side in frames of their own."""
        loader = self._loader
        frame = loader.store.frame_bytes
        if loader.stride:
            yield from self._open()
            offsets = b""
            begin = loader.door.layout.table_end(self.chunk) + self.first * loader.stride
            end = begin + (self.last - self.first) * loader.stride
        else:
            offsets = yield from self._offsets()
            begin, end = (int.from_bytes(offsets[at : at + OFFSET_WIDTH], "little") for at in (0, len(offsets) - 4))
        body_at = len(offsets)
        total = body_at + end - begin
        self.frames = max(1, -(-total // frame))
        while not self._take(self.frames):
            yield
        row = [memoryview(fill) for fill in self._fills]
        reads = self._body_reads(row, begin, body_at, total)
        try:
            _copy_into(row, offsets)
            guess, self._guess = self._guess, []
            if guess and guess[0].begin <= begin and end <= guess[0].begin + guess[0].got:
                known = guess[0].view[begin - guess[0].begin :]
                for read in reads:
                    read.view[:] = known[read.begin - begin : read.end - begin]
            elif reads:
                yield from self._run(reads)
        finally:
            # Not left to reference counts: the traceback of an error that somebody keeps would keep the frames.
            for view in (*(read.view for read in reads), *row):
                view.release()
        for fill in self._fills:
            fill.commit()
        loader.memory.refetched.note(self.chunk, begin, end)
        where = (PACKED, self._number, self.frames)
        return Slab(
            loader.store, self.chunk, self.first, self.last, table=where, table_at=0, body=where, body_at=body_at,
            begin=begin, end=end, stride=loader.stride,
        )  # fmt: skip

    def _body_reads(self, row: Sequence[memoryview], begin: int, body_at: int, total: int) -> list[Read]:
        """One read a frame: consecutive ranges, so that one request serves them."""
        frame, name = self._loader.store.frame_bytes, self._loader.door.layout.names[self.chunk]
        reads = []
        for k, view in enumerate(row):
            at, stop = max(body_at, k * frame), min((k + 1) * frame, total)
            if at < stop:
                reads.append(Read(name, begin + at - body_at, view[at - k * frame : stop - k * frame]))
        return reads

    def _take(self, parts: int) -> bool:
        """All frames of a packed slab, or none."""
        if not self.granted:
            return False
        store, numbers = self._loader.store, self._loader.numbers
        row = array("Q", (next(numbers) & 0xFFFFFFFF for _ in range(parts)))
        if row[-1] < row[0]:
            return self._take(parts)  # the numbers wrapped: a run of consecutive ones is needed
        self._number = row[0]
        try:
            for number in row:
                fill = store.begin(PACKED, number, store.frame_bytes, True)
                assert fill is not None, "packed frames have numbers of their own"
                self._fills.append(fill)
        except ArenaFullError:
            self._let_go()
            self.stuck = True
            return False
        self.sent_at = time.monotonic()
        return True

    # -- in the chunk's own parts -------------------------------------------------------

    def _share(self) -> Steps:
        """The parts that hold the offsets, then those of the bytes; all at once for a whole chunk."""
        loader, chunk = self._loader, self.chunk
        shift = loader.store.shift
        table_end = loader.door.layout.table_end(chunk)
        if not loader.reader.chunk_length(chunk):
            if loader.opaque:
                yield from self._inflate(())
            elif not self._whole:
                yield from self._open()
        entry = OFFSETS_AT + OFFSET_WIDTH * self.first
        table = _parts(entry, entry + self._table_bytes, shift)
        if self._whole and not loader.reader.chunk_length(chunk):
            yield from self._bring(_parts(0, max(loader.door.layout.hints[chunk], table_end), shift))
        while True:
            if loader.stride:
                begin = table_end + self.first * loader.stride
                end = begin + (self.last - self.first) * loader.stride
            elif self._whole:
                begin, end = table_end, loader.reader.chunk_length(chunk)
            else:
                yield from self._bring(table)
                begin = loader.reader.resident_span(chunk, self.first)[0]
                end = loader.reader.resident_span(chunk, self.last - 1)[1]
            body = _parts(begin, end, shift)
            self.frames = len(table) + len(body)
            yield from self._bring(range(min(table.start, body.start), body.stop) if self._whole else body)
            try:
                return Slab(
                    loader.store, chunk, self.first, self.last,
                    table=(chunk, table.start, len(table)), table_at=entry - (table.start << shift),
                    body=(chunk, body.start, len(body)), body_at=begin - (body.start << shift),
                    begin=begin, end=end, stride=loader.stride,
                )  # fmt: skip
            except KeyError:
                continue  # a part that was resident was evicted meanwhile

    def _bring(self, parts: Sequence[int]) -> Pause:
        """Parts of the chunk, resident; those that had to be fetched are held."""
        loader, memory = self._loader, self._loader.memory
        if loader.opaque:
            yield from self._inflate(parts)
            return
        group = max(1, GROUP_BYTES // loader.store.frame_bytes)
        while True:
            memory.settle()
            states = [loader.store.state(self.chunk, part) for part in parts]
            if "filling" not in states and "absent" not in states:
                return
            for wave in self._waves:
                if wave.error is not None:
                    raise copy.copy(wave.error)  # a traceback on the one that is kept would keep this frame
            absent = [part for part, state in zip(parts, states, strict=True) if state == "absent"]
            while absent and self.granted:
                some = [part for part in absent[:group] if part - absent[0] < group]
                wave_sent, sent = memory.send([(self.chunk, part) for part in some], urgent=self.wanted, hold=True)
                if wave_sent is not None:
                    self._waves.append(wave_sent)
                    self.sent_at = time.monotonic()
                if sent < len(some):
                    self.stuck = True
                    break
                absent = absent[len(some) :]
            yield

    def _inflate(self, parts: Sequence[int]) -> Pause:
        """Parts of an opaque chunk, in order; this waits, so only when somebody wants them."""
        loader = self._loader
        while not self.wanted:
            yield
        deadline = Deadline(loader.memory.timeout)
        if not loader.reader.chunk_length(self.chunk):
            loader.opener.admit(self.chunk, deadline)
        for part in parts:
            while True:
                try:
                    self._fills += loader.opener.fill(self.chunk, part, True, deadline)
                    break
                except FormatError as error:
                    raise loader.door.placed(self.chunk, error) from None
                except ArenaFullError:
                    self.stuck = True
                    yield

    def __repr__(self) -> str:
        return f"<SlabLoad of items {self.first}..{self.last} of chunk {self.chunk}, {self.frames} frames>"


def _parts(begin: int, end: int, shift: int) -> range:
    """Parts that hold bytes ``begin .. end - 1`` of a chunk."""
    return range(begin >> shift, ((end - 1) >> shift) + 1) if end > begin else range(begin >> shift, begin >> shift)


def _copy_into(row: Sequence[memoryview], data: bytes) -> None:
    """Write ``data`` over the beginning of a row of views."""
    at = 0
    for view in row:
        n = min(len(view), len(data) - at)
        view[:n] = data[at : at + n]
        at += n
