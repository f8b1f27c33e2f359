"""Frames of whole-chunk-compressed datasets: produced in order by one open stream.

A part behind the stream's position means inflating the chunk from its start; a forward
reader never pays that. Parts passed on the way are kept while there is room. Compressed bytes
come ahead of the reader, those of the chunks to come too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lazystore._core.frames import Fill, FrameStore, Lease
from lazystore._core.reader import Reader
from lazystore.cache.door import HEAD_BYTES, Door
from lazystore.cache.flight import Arrivals, Deadline
from lazystore.cache.foresight import Foresight
from lazystore.cache.inflate import ChunkInflater
from lazystore.cache.streams import ForwardStreams
from lazystore.errors import ArenaFullError, BudgetTooSmallError, FormatError
from lazystore.fetch.source import Source
from lazystore.formats.format import OFFSET_WIDTH

if TYPE_CHECKING:
    from lazystore.formats.codecs import Codec

__all__ = ["InflatedChunks"]


KIB = 1024
LOCAL_PIECE = 256 * KIB
#: Bytes of one request to a storage far away: long enough to carry, short enough that many are under way.
MIN_PIECE, MAX_PIECE = 64 * KIB, 1024 * KIB
#: Pieces that fit in what is left of the reservation, if they can have a useful length.
PIECES = 10
#: Bytes ahead that are allowed even when the history leaves nothing; less in the smallest budgets.
LEAST_AHEAD, LEAST_SHARE = 512 * KIB, 4
#: Pieces a reader begins with, twice as many with every part it asks for, and at most.
FIRST_PIECES, MOST_PIECES = 2, 16


class InflatedChunks:
    """Fills frames of compressed chunks.

    Parameters:
        codec: of the chunks; None: nothing is ever asked for.
        max_window: bytes reserved from the budget by the caller: for the history that the stream keeps, and what
            that leaves for compressed bytes fetched ahead (512 KiB or a quarter of it in any case).

    Memory: ``max_window``. Threads: one inflates at a time, the others wait; none is started here.
    Fork: :meth:`reset`. Pickling: none.
    """

    def __init__(
        self,
        store: FrameStore,
        reader: Reader,
        door: Door,
        source: Source,
        arrivals: Arrivals,
        codec: Codec | None,
        *,
        max_window: int,
    ) -> None:
        self._store = store
        self._reader = reader
        self._door = door
        self._source = source
        self._arrivals = arrivals
        self._codec = codec
        self._max_window = max_window
        #: Bytes that were inflated or decrypted.
        self.opened_bytes = 0
        piece = LOCAL_PIECE if source.local else _piece(max_window)
        self._streams = ForwardStreams(source, door.layout.names, door.layout.hints, piece=piece)
        self._lock = threading.Lock()
        self._open: tuple[int, ChunkInflater] | None = None
        self._foresight = Foresight(store, reader)
        self._depth = 0
        self._tables: list[Lease] = []

    def expect(self, chunks: Sequence[int] | None) -> None:
        """Say which chunks will be read from now on; see :class:`Foresight`."""
        with self._lock:
            self._foresight.expect(chunks)

    def close(self) -> None:
        """Cancel what is on its way. After the source was closed, so that nobody holds the lock for long."""
        with self._lock:
            self._drop()

    def reset(self) -> None:
        """In a forked child: the parent's threads, and what they held, do not exist."""
        self._lock = threading.Lock()
        self._open = None
        self._tables.clear()
        self._streams.forget()

    def admit(self, chunk: int, deadline: Deadline) -> None:
        """Learn a chunk's inflated length and check its header."""
        with self._lock:
            if not self._reader.chunk_length(chunk):
                self._admit(chunk, deadline)

    def fill(self, chunk: int, last: int, scan: bool, deadline: Deadline) -> list[Fill]:
        """Inflate until part ``last`` is in the arena; returns the fills, which pin their frames.

        Raises:
            FormatError: the stream is damaged or ends early.
            ArenaFullError: no frame can be had.
        """
        with self._lock:
            if self._store.state(chunk, last) == "ready":
                return []
            try:
                return self._fill(chunk, last, scan, deadline)
            except ArenaFullError:
                raise  # no frame now; the stream stands before a part
            except BaseException:
                self._drop()  # it is somewhere inside a part
                raise

    def _fill(self, chunk: int, last: int, scan: bool, deadline: Deadline) -> list[Fill]:
        frame, length = self._store.frame_bytes, self._reader.chunk_length(chunk)
        inflater = self._stream_at(chunk, last * frame, deadline)
        self._look_ahead(chunk, inflater, scan)
        # Parts on the way are worth keeping if that does not evict what was kept a moment ago.
        keep_all = scan or length <= self._store.n_frames * frame // 2
        fills: list[Fill] = []
        while inflater.position <= last * frame:
            part = inflater.position // frame
            nbytes = min(frame, length - part * frame)
            fill = self._begin(chunk, part, nbytes, scan, part == last) if keep_all or part == last else None
            if fill is None:
                inflater.skip(nbytes, deadline)
                self.opened_bytes += nbytes
                continue
            try:
                with memoryview(fill) as view:
                    inflater.readinto(view, deadline)
                    self.opened_bytes += nbytes
                    self._door.check_table(chunk, view, part * frame)
                fill.commit()
                if part == last:
                    fills.append(fill)
                if scan:
                    self._keep_table(chunk, part * frame, nbytes)
            finally:
                if fill not in fills:
                    fill.release()
                self._arrivals.announce()
        if inflater.position >= length:
            self._let_tables_go()
        return fills

    def _begin(self, chunk: int, part: int, nbytes: int, scan: bool, wanted: bool) -> Fill | None:
        """A frame for a part; None if it has one, or if there is none for a part that is only passed on the way."""
        try:
            return self._store.begin(chunk, part, nbytes, scan)
        except ArenaFullError:
            if not wanted:
                return None
            if not self._tables:
                raise
        self._let_tables_go()
        return self._store.begin(chunk, part, nbytes, scan)

    def _keep_table(self, chunk: int, begin: int, nbytes: int) -> None:
        """Keep a part of a chunk's table resident while the chunk is inflated: to have it again would take a new start.

        Tables of more than a quarter of the arena take their chance.
        """
        end = min(self._door.layout.table_end(chunk), begin + nbytes)
        if begin < end and len(self._tables) < self._store.n_frames // 4:
            self._tables.append(self._store.lease(chunk, begin, end, True))

    def _let_tables_go(self) -> None:
        while self._tables:
            self._tables.pop().release()

    def _look_ahead(self, chunk: int, inflater: ChunkInflater, scan: bool) -> None:
        """Set how much may come ahead: ever more the longer one reads on, and of other chunks only for a scan."""
        if self._source.local:
            return  # the page cache is as near as a buffer of ours would be
        spare = self._max_window - inflater.memory
        self._streams.piece = piece = _piece(spare)
        # A piece of inflated bytes, and a copy of one that zstd reads from, come out of it too.
        room = max(spare - 2 * piece, min(LEAST_AHEAD, self._max_window // LEAST_SHARE))
        self._depth = min(max(2 * self._depth, 2 * FIRST_PIECES), MOST_PIECES)
        self._streams.room = min(self._depth * piece, room)
        self._streams.following = self._foresight.following(chunk) if scan else ()
        self._streams.top_up()

    def _stream_at(self, chunk: int, position: int, deadline: Deadline) -> ChunkInflater:
        """The open stream if it is on this chunk and not past ``position``, else a new one from the start."""
        if self._open is not None:
            opened, inflater = self._open
            if opened == chunk and inflater.position <= position:
                return inflater
            if opened != chunk:
                self._foresight.passed(opened)
            self._open = None
        self._let_tables_go()
        if chunk not in self._streams.following:
            self._depth = 0
            self._streams.room = 0 if self._source.local else FIRST_PIECES * self._streams.piece
        assert self._codec is not None, "chunks that are not encoded are read, not inflated"
        inflater = ChunkInflater(
            self._streams.open(chunk, deadline), self._codec,
            limit=self._max_window, ahead=self._streams.piece, size=self._size(chunk),
        )  # fmt: skip
        self._open = (chunk, inflater)
        return inflater

    def _drop(self) -> None:
        self._open = None
        self._let_tables_go()
        self._streams.close()

    def _admit(self, chunk: int, deadline: Deadline) -> None:
        try:
            inflater = self._stream_at(chunk, 0, deadline)
            head = inflater.peek(HEAD_BYTES, deadline)
            self._door.admit(chunk, self._length(chunk, inflater, head, deadline), head)
            if inflater.position:
                self._open = None  # its length was found far inside; parts begin at the start
        except BaseException as error:
            self._drop()
            if isinstance(error, (FormatError, BudgetTooSmallError)):
                raise self._door.placed(chunk, error) from None
            raise

    def _size(self, chunk: int) -> int:
        """Bytes of the chunk where they are known for certain, else 0."""
        layout = self._door.layout
        return self._reader.chunk_length(chunk) or (layout.hints[chunk] if layout.exact else 0)

    def _length(self, chunk: int, inflater: ChunkInflater, head: bytes, deadline: Deadline) -> int:
        """Inflated bytes of the chunk: from the zstd frame's header, or from the last offset of its table."""
        if inflater.content_size >= 0:
            return inflater.content_size
        if len(head) < HEAD_BYTES or int.from_bytes(head[:4], "little") != self._door.layout.stored_counts[chunk]:
            return len(head)  # the door says what is wrong
        inflater.skip(self._door.layout.table_end(chunk) - OFFSET_WIDTH, deadline)
        last = memoryview(bytearray(OFFSET_WIDTH))
        inflater.readinto(last, deadline)
        return int.from_bytes(last, "little")


def _piece(room: int) -> int:
    """Bytes a request, where there is room for that many bytes."""
    return min(max(room // PIECES, MIN_PIECE), MAX_PIECE)
