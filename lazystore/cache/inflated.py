"""Frames of whole-chunk-compressed datasets: produced in order by one open stream.

A part behind the stream's position means inflating the chunk from its start; a forward
reader never pays that. Parts passed on the way are kept while there is room.
"""

from __future__ import annotations

import threading

from lazystore._core.frames import Fill, FrameStore
from lazystore._core.reader import Reader
from lazystore.cache.door import HEAD_BYTES, Door
from lazystore.cache.flight import Arrivals, Deadline
from lazystore.cache.inflate import ChunkInflater
from lazystore.errors import BudgetTooSmallError, FormatError
from lazystore.fetch.source import Source
from lazystore.formats.litdata import OFFSET_WIDTH

__all__ = ["InflatedChunks"]


class InflatedChunks:
    """Fills frames of compressed chunks.

    Parameters:
        max_window: bytes of history one stream may keep, reserved from the budget by the caller.

    Memory: one stream's window, one piece of compressed input.
    Threads: one inflates at a time, the others wait. Fork: :meth:`reset`. Pickling: none.
    """

    def __init__(
        self, store: FrameStore, reader: Reader, door: Door, source: Source, arrivals: Arrivals, *, max_window: int
    ) -> None:
        self._store = store
        self._reader = reader
        self._door = door
        self._source = source
        self._arrivals = arrivals
        self._max_window = max_window
        self._lock = threading.Lock()
        self._open: tuple[int, ChunkInflater] | None = None

    def reset(self) -> None:
        """In a forked child: the parent's threads, and what they held, do not exist."""
        self._lock = threading.Lock()
        self._open = None

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
            except BaseException:
                self._open = None  # it is somewhere inside a part
                raise

    def _fill(self, chunk: int, last: int, scan: bool, deadline: Deadline) -> list[Fill]:
        frame, length = self._store.frame_bytes, self._reader.chunk_length(chunk)
        inflater = self._stream_at(chunk, last * frame, deadline)
        # Parts on the way are worth keeping if that does not evict what was kept a moment ago.
        keep_all = scan or length <= self._store.n_frames * frame // 2
        fills: list[Fill] = []
        while inflater.position <= last * frame:
            part = inflater.position // frame
            nbytes = min(frame, length - part * frame)
            fill = self._store.begin(chunk, part, nbytes, scan) if keep_all or part == last else None
            if fill is None:
                inflater.skip(nbytes, deadline)
                continue
            try:
                with memoryview(fill) as view:
                    inflater.readinto(view, deadline)
                    self._door.check_table(chunk, view, part * frame)
                fill.commit()
                if part == last:
                    fills.append(fill)
            finally:
                if fill not in fills:
                    fill.release()
                self._arrivals.announce()
        return fills

    def _stream_at(self, chunk: int, position: int, deadline: Deadline) -> ChunkInflater:
        """The open stream if it is on this chunk and not past ``position``, else a new one from the start."""
        if self._open is not None and self._open[0] == chunk and self._open[1].position <= position:
            return self._open[1]
        name = self._door.layout.names[chunk]
        size = self._source.run([], stat=[name], timeout=deadline.left())[name]
        inflater = ChunkInflater(self._source, name, size, max_window=self._max_window, deadline=deadline)
        self._open = (chunk, inflater)
        return inflater

    def _admit(self, chunk: int, deadline: Deadline) -> None:
        self._open = None
        try:
            inflater = self._stream_at(chunk, 0, deadline)
            head = memoryview(bytearray(HEAD_BYTES))
            got = inflater.read_some(head, deadline)
            length = self._length(chunk, inflater, bytes(head[:got]), deadline)
            self._door.admit(chunk, length, bytes(head[:got]))
        except (FormatError, BudgetTooSmallError) as error:
            raise self._door.placed(chunk, error) from None
        finally:
            self._open = None

    def _length(self, chunk: int, inflater: ChunkInflater, head: bytes, deadline: Deadline) -> int:
        """Inflated bytes of the chunk: from the zstd frame's header, or from the last offset of its table."""
        if inflater.header.content_size >= 0:
            return inflater.header.content_size
        table_end = self._door.layout.table_end(chunk)
        if len(head) < HEAD_BYTES or int.from_bytes(head[:4], "little") != self._door.layout.counts[chunk]:
            return len(head)  # the door says what is wrong
        inflater.skip(table_end - OFFSET_WIDTH - len(head), deadline)
        last = memoryview(bytearray(OFFSET_WIDTH))
        inflater.readinto(last, deadline)
        return int.from_bytes(last, "little")
