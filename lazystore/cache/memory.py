"""Where resident bytes come from: the loader behind a dataset's reader.

:class:`ChunkMemory` owns the frame arena and the source. Asked for an item that is not
resident, it reads the item alone or fills whole frames, by the rules in ``admission``, and hands
the item's bytes back. What is resident, in flight or being inflated comes out of one budget.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import Fill, FrameStore, Lease
from lazystore._core.reader import Reader
from lazystore.cache.admission import RentOrBuy, Streams
from lazystore.cache.ahead import ReadAhead
from lazystore.cache.door import ChunkLayout, Door, head_of
from lazystore.cache.flight import Arrivals, Deadline
from lazystore.cache.inflated import InflatedChunks
from lazystore.cache.made import MadeChunks
from lazystore.cache.refetch import Refetched
from lazystore.cache.slabs import SlabLoader
from lazystore.cache.sparse import SparseReads
from lazystore.cache.wave import Wave
from lazystore.errors import (
    ArenaFullError,
    BudgetTooSmallError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    FormatError,
    LazyStoreError,
    SourceChangedError,
)
from lazystore.fetch.source import Read, Source
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT

if TYPE_CHECKING:
    from lazystore.formats.codecs import Codec
    from lazystore.formats.format import Images

__all__ = ["ChunkMemory"]

log = logging.getLogger("lazystore")

MIB = 1 << 20
#: What one request costs in bytes that could have been copied or carried instead: a pread that hits the page
#: cache, ~2 us of copying; a round trip beside many parallel others, ~1 ms of a 200 MB/s link.
LOCAL_REQUEST_BYTES = 16 * 1024
REMOTE_REQUEST_BYTES = 256 * 1024
#: Most bytes a forward reader fetches at once.
LOCAL_WINDOW = 4 * MIB
REMOTE_WINDOW = 16 * MIB
#: Seconds without any arrival after which a reader stops waiting for a frame and reads its item directly.
ROOM_PATIENCE = 0.25
#: Share of the deadline that frames get before the item is read directly.
FRAMES_SHARE = 0.75

Part = tuple[int, int]
Buffer: TypeAlias = Lease | bytes | memoryview


class Opener(Protocol):
    """Fills frames of opaque chunks: :class:`InflatedChunks` or :class:`MadeChunks`; see there."""

    #: Bytes that were inflated, decrypted or made.
    opened_bytes: int

    def expect(self, chunks: Sequence[int] | None) -> None: ...
    def admit(self, chunk: int, deadline: Deadline) -> None: ...
    def fill(self, chunk: int, last: int, scan: bool, deadline: Deadline) -> list[Fill]: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...


class ChunkMemory:
    """The bytes of a chunked dataset, resident as far as the arena goes.

    Parameters:
        source: where the chunks are.
        layout: what the index says about them.
        store: the arena.
        timeout: seconds one read may take, waiting and retries included.
        fallback: read an item directly when frames cannot be had for it (counted), or raise.
        codec: undoes the encoding of chunks that are encoded as a whole.
        images: makes chunks that are not stored as such.
        scratch_room: with a codec or images: bytes reserved for decoding or making.
        tables_room: bytes reserved for offset tables that shuffles keep beside the frames.

    Threads: any number; each part is fetched once, by whoever asks first. Fork: :meth:`reset_after_fork`.
    Pickling: none, the dataset is rebuilt.
    """

    def __init__(
        self,
        source: Source,
        layout: ChunkLayout,
        store: FrameStore,
        *,
        timeout: float,
        fallback: bool,
        codec: Codec | None = None,
        images: Images | None = None,
        scratch_room: int = 0,
        tables_room: int = 0,
    ) -> None:
        self.source = source
        self.store = store
        store.name = f"the dataset {source.url}"
        self.timeout = timeout
        self.fallbacks = 0
        self.fallback = fallback
        self.opaque = codec is not None or images is not None
        self._codec = codec
        self._images = images
        self._scratch_room = scratch_room
        self._tables_room = tables_room
        self._layout = layout
        self._door = Door(layout, source, opaque=self.opaque)
        self.arrivals = Arrivals()
        request = LOCAL_REQUEST_BYTES if source.local else REMOTE_REQUEST_BYTES
        self._rent = RentOrBuy(store.frame_bytes, request)
        window = min(LOCAL_WINDOW if source.local else REMOTE_WINDOW, store.n_frames * store.frame_bytes // 4)
        self._streams = Streams(window // store.frame_bytes)
        self._last: Part = (-1, -1)
        self._arrived: deque[Wave] = deque()
        self.refetched = Refetched(len(layout.names), max(layout.hints, default=0), store.frame_bytes)

    def attach(self, plan: DecodePlan, counts: Sequence[int], stride: int, transform: object) -> Reader:
        """Make the reader this memory loads for.

        Parameters:
            counts: items of each chunk as the reader numbers them.
            stride: bytes an item when all have one length, else 0.
        """
        self.reader = self._door.reader = Reader(
            self.store, plan, self, counts,
            table_at=OFFSETS_AT, width=OFFSET_WIDTH, stride=stride, transform=transform,
        )  # fmt: skip
        self._sparse = SparseReads(self.store, self.reader, self._door, self.source, self._rent, stride=stride)
        self.opener = self._opener()
        self.slabs = SlabLoader(
            self, self._door, self.opener, stride=stride, opaque=self.opaque, tables_room=self._tables_room
        )
        return self.reader

    def _opener(self) -> Opener:
        """What fills the frames of chunks whose bytes cannot simply be read."""
        if self._images is not None:
            return MadeChunks(
                self.store, self.reader, self._door, self.source, self.arrivals, self._images,
                room=self._scratch_room, timeout=self.timeout,
            )  # fmt: skip
        return InflatedChunks(
            self.store, self.reader, self._door, self.source, self.arrivals, self._codec,
            max_window=self._scratch_room,
        )  # fmt: skip

    # -- what the reader asks -----------------------------------------------------------

    def place(self, chunk: int, i: int) -> str:
        """Where an item is, for messages."""
        return self._door.place(chunk, i)

    def item(self, chunk: int, i: int, scan: bool) -> Buffer:
        """The bytes of an item that is not resident."""
        deadline = Deadline(self.timeout)
        forward = scan or self._continues_last(chunk, i)
        self._last = (chunk, i)
        if not forward:
            part = self._expected_part(chunk, i)
            forward = self._is_awaited(part)
            if not (forward or self._wants_frames(part)):
                return self._sparse.item(chunk, i, deadline)
        try:
            frames_deadline = Deadline(self.timeout * (FRAMES_SHARE if self.fallback else 1.0))
            return self._from_frames(chunk, i, forward, frames_deadline)
        except (DatasetNotFoundError, SourceChangedError):
            raise
        except (ArenaFullError, FetchError) as error:
            if not self.fallback or self.opaque or deadline.passed():
                raise
            self.count_fallback(chunk, error)
            return self._sparse.item(chunk, i, deadline, keep=False)

    def items(self, wanted: Sequence[Part]) -> Iterator[tuple[int, Buffer]]:
        """(position, bytes) of many items; what lies densely comes through frames."""
        if self.opaque:
            for k in sorted(range(len(wanted)), key=wanted.__getitem__):
                yield k, self._again(*wanted[k])
            return
        # Over a network neighbours share a request anyway, and frames would cost dependent waves.
        dense = self._dense_parts(wanted) if self.source.local else set()
        sparse = [k for k in range(len(wanted)) if self._expected_part(*wanted[k]) not in dense]
        for position, data in self._sparse.items([wanted[k] for k in sparse], self.timeout) if sparse else ():
            yield sparse[position], data
        through_frames = set(range(len(wanted))).difference(sparse)
        for k in sorted(through_frames, key=wanted.__getitem__):
            yield k, self._again(*wanted[k])

    def expect(self, chunks: Sequence[int]) -> None:
        """Say in which order chunks will be read next: opaque ones are fetched ahead then."""
        if self.opaque:
            self.opener.expect(chunks)

    def buffers(self, wanted: Sequence[Part]) -> Iterator[tuple[int, Buffer]]:
        """(position, bytes) of many items, from memory where they are resident."""
        missing: list[int] = []
        for k, (chunk, i) in enumerate(wanted):
            try:
                yield k, self._take_out(chunk, i, False)
            except KeyError:
                missing.append(k)
        for position, data in self.items([wanted[k] for k in missing]) if missing else ():
            yield missing[position], data

    def read_ahead(self, first: int, last: int) -> ReadAhead | None:
        """Begin to fetch ahead of a scan over items ``first .. last - 1``; None where there is nothing to fetch.

        Opaque chunks are fetched ahead by what opens them.
        """
        if self.opaque or first >= last:
            return None
        chunk, i = self.reader.where(first)
        entry = (OFFSETS_AT + OFFSET_WIDTH * i) >> self.store.shift
        body = self._expected_part(chunk, i)[1]
        ahead = ReadAhead(self, self.last_part(last - 1))
        ahead.begin([(chunk, part) for part in dict.fromkeys((0, entry, max(entry, body)))])
        return ahead

    def last_part(self, item: int) -> Part:
        """The last part a scan up to and with this item may want."""
        chunk, i = self.reader.where(item)
        if i + 1 == self.reader.chunk_items(chunk):
            return chunk, 1 << 31
        # Items vary in length: a part more than expected; the scan asks for what is still missing then.
        return chunk, self._expected_part(chunk, i)[1] + 1

    def _again(self, chunk: int, i: int) -> Buffer:
        """An item of a batch through frames: an earlier one of the batch may have brought it."""
        try:
            return self._take_out(chunk, i, False)
        except KeyError:
            return self.item(chunk, i, True)

    # -- which way ----------------------------------------------------------------------

    def _continues_last(self, chunk: int, i: int) -> bool:
        """Whether this is the item after the last one that missed."""
        return (chunk, i) == (self._last[0], self._last[1] + 1) or (i == 0 and chunk == self._last[0] + 1)

    def _is_awaited(self, part: Part) -> bool:
        """Whether a forward reader was expected to come here next."""
        # An item that straddles the border of what such a reader has is the first of what it wants next.
        return self._streams.follows(part) or self._streams.follows(self.next_part(part))

    def _wants_frames(self, part: Part) -> bool:
        if self.opaque or (self.source.local and self._longer_than_frame(part[0])):
            return True
        return self._rent.should_buy(part)

    def _expected_part(self, chunk: int, i: int) -> Part:
        """The part an item begins in, guessed from the mean item size when its offset is not resident."""
        try:
            begin = self.reader.resident_span(chunk, i)[0]
        except KeyError:
            table_end = self._layout.table_end(chunk)
            body = max(0, self._layout.hints[chunk] - table_end)
            begin = table_end + body * i // max(1, self.reader.chunk_items(chunk))
        return chunk, begin >> self.store.shift

    def _longer_than_frame(self, chunk: int) -> bool:
        """Whether the chunk's items are so long that their frames are no waste."""
        return self._mean_item(chunk) * 2 > self.store.frame_bytes

    def _mean_item(self, chunk: int) -> int:
        """Bytes of an item on average, as far as the index's hint goes."""
        return self._layout.hints[chunk] // max(1, self.reader.chunk_items(chunk))

    def _dense_parts(self, wanted: Sequence[Part]) -> set[Part]:
        """Parts of which a batch wants so much that alone would cost more than the frame."""
        cost: dict[Part, int] = {}
        for chunk, i in wanted:
            part = self._expected_part(chunk, i)
            cost[part] = cost.get(part, 0) + self._mean_item(chunk) + LOCAL_REQUEST_BYTES
        price = self.store.frame_bytes + LOCAL_REQUEST_BYTES
        dense = {part for part, paid in cost.items() if paid >= price}
        # More dense parts than the arena holds would evict each other before they are read.
        return dense if len(dense) <= self.store.n_frames // 2 else set()

    # -- frames -------------------------------------------------------------------------

    def _from_frames(self, chunk: int, i: int, scan: bool, deadline: Deadline) -> Buffer:
        """Bring the frames of an item in and take its bytes out; the fills pin them until then."""
        held: list[Fill] = []
        try:
            return self._brought(chunk, i, scan, deadline, held)
        finally:
            # Not left to reference counts: the traceback of an error that somebody keeps would keep the frames.
            for fill in held:
                fill.release()

    def _brought(self, chunk: int, i: int, scan: bool, deadline: Deadline, held: list[Fill]) -> Buffer:
        full: ArenaFullError | None = None
        patience = Deadline(ROOM_PATIENCE)
        while True:
            seen = self.arrivals.count
            self.settle()
            need = self._parts_needed(chunk, i, deadline)
            if not need:
                try:
                    return self._take_out(chunk, i, scan)
                except KeyError:
                    continue  # evicted by another thread in between; the deadline bounds this
            if len(need) > self.store.n_frames // 2:
                raise ArenaFullError(
                    f"{self.place(chunk, i)} spans {len(need)} frames, the budget holds {self.store.n_frames}"
                )
            if deadline.passed():
                if full is not None:
                    raise full
                raise FetchTimeoutError(
                    f"{self.place(chunk, i)} was not resident after {deadline.timeout:g} s; "
                    "the storage is too slow, or other threads keep every frame busy",
                    url=self.source.url, elapsed=deadline.timeout,
                )  # fmt: skip
            try:
                fills = self._fill(chunk, need, scan, deadline)
                full = None
            except ArenaFullError as error:
                # Frames others are filling come free by themselves, unless those others wait for us;
                # pinned ones are somebody's to release.
                if self.fallback and (patience.passed() or not self.store.filling):
                    raise
                full = error
                fills = []
            held += fills
            if not fills:
                self.arrivals.wait(deadline, seen)
                if self.arrivals.count != seen:
                    patience = Deadline(ROOM_PATIENCE)

    def _parts_needed(self, chunk: int, i: int, deadline: Deadline) -> list[int]:
        """Parts to bring in next for an item: its chunk's first, then its table's, then its own."""
        if not self.reader.chunk_length(chunk):
            if not self.opaque:
                return [0]
            self.opener.admit(chunk, deadline)
        try:
            begin, end = self.reader.resident_span(chunk, i)
        except KeyError:
            begin = OFFSETS_AT + OFFSET_WIDTH * i
            end = begin + 2 * OFFSET_WIDTH
        shift = self.store.shift
        parts = range(begin >> shift, ((end - 1) >> shift) + 1) if end > begin else range(0)
        return [part for part in parts if self.store.state(chunk, part) != "ready"]

    def _take_out(self, chunk: int, i: int, scan: bool) -> Buffer:
        """A lease on a resident item, or a copy when it straddles frames; KeyError when it is not all there."""
        begin, end = self.reader.resident_span(chunk, i)
        frame = self.store.frame_bytes
        if begin == end or begin // frame == (end - 1) // frame:
            return self.store.lease(chunk, begin, end, scan)
        cuts = [begin, *range((begin // frame + 1) * frame, end, frame), end]
        return b"".join([self.store.lease(chunk, a, b, scan) for a, b in itertools.pairwise(cuts)])

    def _fill(self, chunk: int, need: list[int], scan: bool, deadline: Deadline) -> list[Fill]:
        """Bring parts in, and for a forward reader the ones after them; returns fills that pin them."""
        if self.opaque:
            try:
                return self.opener.fill(chunk, need[-1] if scan else need[0], scan, deadline)
            except (FormatError, BudgetTooSmallError) as error:
                raise self._door.placed(chunk, error) from None
        if all(self.store.state(chunk, part) == "filling" for part in need):
            return []
        parts = self._window(chunk, need, scan)
        try:
            return self._wave(parts, len(need), scan, deadline)
        except LazyStoreError:
            if len(parts) == len(need) or deadline.passed():
                raise
            # Trouble may lie in what was read ahead; it is reported when that is asked for.
            return self._wave(parts[: len(need)], len(need), scan, deadline)

    def _wave(self, parts: list[Part], needed: int, scan: bool, deadline: Deadline) -> list[Fill]:
        """One request wave for the parts that nobody holds or fills."""
        fills = self._reserve(parts, needed, scan)
        if not fills:
            return []  # others are filling what is needed
        stat = list({self._layout.names[c]: None for c, _ in fills if not self.reader.chunk_length(c)})
        reads = self._reads(fills)
        landed = False
        try:
            sizes = self.source.run(list(reads.values()), stat=stat, timeout=deadline.left())
            for part, fill in fills.items():
                self._land(part, fill, reads[part], sizes)
            landed = True
        finally:
            for part, fill in fills.items():
                reads[part].view.release()
                fill.abort()  # nothing after commit
                if not landed:
                    fill.release()
            self.arrivals.announce()
        for part in fills:
            self._rent.bought(part)
        return list(fills.values())

    def send(self, parts: Sequence[Part], *, urgent: bool = False, hold: bool = False) -> tuple[Wave | None, int]:
        """Send for parts without waiting.

        Parameters:
            urgent: somebody waits for them already.
            hold: keep them pinned until the wave is dropped.

        Returns:
            The wave, None when all of them are resident or on their way; and how many of the parts, from the
            first on, were seen to: fewer than all when no frame is to be had now.
        """
        fills: dict[Part, Fill] = {}
        sent = 0
        for part in parts:
            try:
                fills.update(self._reserve([part], 1, True))
            except ArenaFullError:
                break
            sent += 1
        if not fills:
            return None, sent
        stat = list({self._layout.names[c]: None for c, _ in fills if not self.reader.chunk_length(c)})
        try:
            wave = Wave(
                self.source, fills, self._reads(fills),
                stat=stat, timeout=self.timeout, urgent=urgent, hold=hold, on_done=self._note_arrival,
            )  # fmt: skip
        except BaseException:
            for fill in fills.values():
                fill.release()
            raise
        return wave, sent

    def _note_arrival(self, wave: Wave) -> None:
        self._arrived.append(wave)
        self.arrivals.announce()

    def settle(self) -> None:
        """Make readable what arrived meanwhile. After close() nothing is."""
        early: list[Wave] = []  # parts that overtook the head of their chunk
        while self._arrived:
            try:
                wave = self._arrived.popleft()
            except IndexError:
                break  # another thread took it
            if wave.is_early(self.reader):
                early.append(wave)
                continue
            wave.land(self._land)
            self.arrivals.announce()
            self._arrived.extend(early)
            early.clear()
        self._arrived.extend(early)

    def _reads(self, fills: dict[Part, Fill]) -> dict[Part, Read]:
        frame = self.store.frame_bytes
        return {
            part: Read(self._layout.names[part[0]], part[1] * frame, memoryview(fill)) for part, fill in fills.items()
        }

    def _window(self, chunk: int, need: list[int], scan: bool) -> list[Part]:
        """The needed parts, and those a forward reader will want next, across chunk borders."""
        parts = [(chunk, part) for part in need]
        if not scan:
            return parts
        window = self._streams.window(parts[0])
        at = parts[-1]
        while len(parts) < window:
            at = self.next_part(at)
            if at[0] < 0:
                break
            parts.append(at)
        following = self.next_part(parts[-1])
        if following[0] >= 0:
            self._streams.expect(following, window)
        return parts

    def next_part(self, part: Part) -> Part:
        """The part after this one in dataset order; (-1, -1) after the last."""
        chunk, number = part
        length = self.reader.chunk_length(chunk) or self._layout.hints[chunk]
        if (number + 1) * self.store.frame_bytes < length:
            return chunk, number + 1
        chunk += 1
        while chunk < self.reader.n_chunks and not self.reader.chunk_items(chunk):
            chunk += 1
        return (chunk, 0) if chunk < self.reader.n_chunks else (-1, -1)

    def _reserve(self, parts: list[Part], needed: int, scan: bool) -> dict[Part, Fill]:
        """Frames for the parts nobody holds or fills; read-ahead takes only what is to be had."""
        fills: dict[Part, Fill] = {}
        frame = self.store.frame_bytes
        for k, (chunk, part) in enumerate(parts):
            # The hint of a chunk not opened yet may be wrong; its table at least must be there.
            length = self.reader.chunk_length(chunk) or max(self._layout.hints[chunk], self._layout.table_end(chunk))
            nbytes = min(frame, length - part * frame)
            try:
                fill = self.store.begin(chunk, part, max(nbytes, 1), scan)
            except ArenaFullError:
                if k < needed and not fills:
                    raise
                break
            if fill is not None:
                fills[chunk, part] = fill
        return fills

    def _land(self, at: Part, fill: Fill, read: Read, sizes: dict[str, int]) -> None:
        """Check what arrived and make it readable."""
        chunk, part = at
        view, begin = read.view, read.begin
        if not self.reader.chunk_length(chunk):
            if part:
                return  # its chunk was not admitted with it: left for later
            self._door.admit(chunk, sizes[read.name], head_of(read))
        expected = min(self.store.frame_bytes, self.reader.chunk_length(chunk) - begin)
        if read.got < expected or expected <= 0:
            return  # the index's size hint was wrong: this part is fetched again with the right one
        if expected < len(view):
            fill.shrink(expected)
        with view[:expected] as seen:  # not left to reference counts, for an error's traceback would keep it
            self._door.check_table(chunk, seen, begin)
        fill.commit()
        self.refetched.note(chunk, begin, begin + self.store.frame_bytes)

    # -- the rest -----------------------------------------------------------------------

    def count_fallback(self, chunk: int, error: Exception) -> None:
        """An item had to be read past the frames: logged once, counted."""
        if not self.fallbacks:
            log.warning(
                "Streaming failed for chunk %s (%s). Falling back to direct file access; "
                "further fallbacks are counted in stats() and not logged",
                self._door.chunk_place(chunk), str(error),  # the exception itself would keep its caller's views alive
            )  # fmt: skip
        self.fallbacks += 1

    def prefetch(self, wanted: Sequence[Part]) -> int:
        """Make items resident; returns how many were not. Waits for their bytes."""
        missing = [at for at in wanted if not self.reader.is_resident(self.reader.first_item(at[0]) + at[1])]
        long: list[Part] = []
        short: list[Part] = []
        for at in missing:
            (long if self._longer_than_frame(at[0]) else short).append(at)
        for _ in self.items(short):
            pass
        for chunk, i in sorted(long):  # too long for pieces: only frames can keep them
            if not self.reader.is_resident(self.reader.first_item(chunk) + i):
                self.item(chunk, i, True)
        return len(missing)

    def reset_after_fork(self) -> None:
        """In a forked child: forget locks and fills of threads that exist only in the parent."""
        self.arrivals.reset()
        self.opener.reset()
        reset = getattr(self.source, "reset_after_fork", None)
        if reset is not None:
            reset()
        if not self.store.is_closed:
            self.store.abandon_fills()

    def close(self) -> None:
        """Refuse everything from now on; leases keep the arena until they are gone."""
        self.store.close()
        self.source.close()
        self.opener.close()

    def __repr__(self) -> str:
        return f"<ChunkMemory of {self.source.url}: {self.store!r}>"
