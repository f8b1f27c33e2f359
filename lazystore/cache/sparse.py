"""Reading single items: the offset pair and the item, not the chunk.

Over a network the pair and a guess of where the item lies travel together, so one round
trip often does; many items take two waves of requests: tables, then items. Small results
are kept as pieces in the arena, where a later read finds them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

from lazystore._core.frames import FrameStore
from lazystore._core.reader import TABLE_BLOCK, Reader
from lazystore.cache.admission import RentOrBuy
from lazystore.cache.door import HEAD_BYTES, ChunkLayout, Door, head_of
from lazystore.cache.flight import Deadline
from lazystore.errors import FormatError
from lazystore.fetch.plan import coalesce
from lazystore.fetch.source import Read, Source
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT

__all__ = ["SparseReads"]

ITEM_PIECE, TABLE_PIECE = 2, 3
KIB = 1024
#: Offset blocks (2 KiB) fetched together: over a network a table of 128 KiB costs less than a second visit.
REMOTE_BLOCKS = 64
LOCAL_BLOCKS = 1
#: A guess longer than this is not worth its bytes; the item then comes in the second round trip.
MAX_GUESS = 128 * KIB
#: Item sizes are assumed to vary by half their mean; the position of item i then by that times sqrt(i).
GUESS_VARIATION = 0.5
#: Items closer than this are fetched in one request.
LOCAL_GAP = 16 * KIB
REMOTE_GAP = 32 * KIB
#: Most bytes of items fetched in one wave by get_many; at most a quarter of the arena besides.
BATCH_BYTES = 16 * KIB * KIB

Wanted = tuple[int, int]
Span = tuple[int, int]
Tables = dict[int, list[Read]]


class SparseReads:
    """Items of plain (uncompressed) chunks, fetched alone.

    Parameters:
        store, reader, door, source: the rest of the memory.
        rent: is told what sparse reads cost.
        stride: bytes an item when all have one length (no table is read then), else 0.

    Memory: the items of one wave (16 MiB, and a quarter of the arena, at most) and 128 KiB of table a chunk, besides
    the pieces in the arena.
    """

    def __init__(
        self, store: FrameStore, reader: Reader, door: Door, source: Source, rent: RentOrBuy, *, stride: int
    ) -> None:
        self._store = store
        self._reader = reader
        self._door = door
        self._layout: ChunkLayout = door.layout
        self._source = source
        self._rent = rent
        self._stride = stride
        self._batch_bytes = min(BATCH_BYTES, store.n_frames * store.frame_bytes // 4)
        self._blocks = LOCAL_BLOCKS if source.local else REMOTE_BLOCKS

    # -- one item -----------------------------------------------------------------------

    def item(self, chunk: int, i: int, deadline: Deadline, *, keep: bool = True) -> bytes | memoryview:
        """The bytes of one item: one wave of requests when the table is known or the guess is right, else two.

        Parameters:
            keep: leave the item in the arena as a piece.
        """
        known = self._known(chunk, i)
        if known is not None:
            return self._exact(chunk, i, known, deadline, keep)
        guess = self._guess(chunk, i)
        tables = self._locate({chunk: [i]}, deadline, [] if guess is None else [guess])
        begin, end = span = self._span(chunk, i, tables)
        if guess is None or begin < guess.begin or end > guess.begin + guess.got:
            return self._exact(chunk, i, span, deadline, keep)
        return self._kept(chunk, i, begin, guess.view[begin - guess.begin : end - guess.begin], keep)

    def _known(self, chunk: int, i: int) -> Span | None:
        """The item's span if it can be had without I/O, None if not; raises if the table says nonsense."""
        try:
            return self._reader.resident_span(chunk, i)
        except KeyError:
            return None

    def _span(self, chunk: int, i: int, tables: Tables) -> Span:
        """The item's span out of what was just fetched: pieces may be gone again, this copy is not."""
        for read in tables.get(chunk, ()):
            at = OFFSETS_AT + OFFSET_WIDTH * i - read.begin
            if 0 <= at <= len(read.view) - 2 * OFFSET_WIDTH:
                first, second = struct.unpack_from("<II", read.view, at)
                return first, second  # in order and inside the chunk: the table was checked whole
        return self._reader.resident_span(chunk, i)

    def _exact(self, chunk: int, i: int, span: Span, deadline: Deadline, keep: bool) -> bytes | memoryview:
        begin, end = span
        if begin == end:
            return b""
        read = Read(self._layout.names[chunk], begin, memoryview(bytearray(end - begin)))
        self._source.run([read], timeout=deadline.left())
        return self._kept(chunk, i, begin, read.view, keep)

    def _kept(self, chunk: int, i: int, begin: int, data: memoryview, keep: bool) -> memoryview:
        self._rent.rent((chunk, begin >> self._store.shift), len(data))
        if keep:
            self._store.put_piece(ITEM_PIECE, chunk, i, data)
        return data

    def _guess(self, chunk: int, i: int) -> Read | None:
        """A range that probably holds the item, from the mean item size; None when it would be long."""
        # Once the chunk is open its length is known; before, the index's word is a hint.
        hint = self._reader.chunk_length(chunk) or self._layout.hints[chunk]
        count = self._layout.stored_counts[chunk]
        table_end = self._layout.table_end(chunk)
        if self._stride:
            return Read(self._layout.names[chunk], table_end + i * self._stride, memoryview(bytearray(self._stride)))
        if self._source.local or self._layout.tables_near or hint <= table_end:
            return None
        mean = (hint - table_end) / count
        margin = mean * (1 + GUESS_VARIATION * math.sqrt(min(i, count - i)))
        begin = max(table_end, int(table_end + i * mean - margin))
        end = min(hint, int(table_end + (i + 1) * mean + margin) + 1)
        if end - begin > MAX_GUESS or end <= begin:
            return None
        return Read(self._layout.names[chunk], begin, memoryview(bytearray(end - begin)))

    # -- tables -------------------------------------------------------------------------

    def _locate(self, wanted: dict[int, list[int]], deadline: Deadline, extra: Sequence[Read] = ()) -> Tables:
        """Open the chunks and fetch the tables of the wanted items; one wave. ``extra`` travels along."""
        stat = [self._layout.names[chunk] for chunk in wanted if not self._reader.chunk_length(chunk)]
        heads: dict[int, Read] = {}
        tables: Tables = {}
        reads: list[Read] = []
        for chunk, items in wanted.items():
            name = self._layout.names[chunk]
            spans = [] if self._stride else self._table_spans(chunk, items)
            tables[chunk] = [Read(name, begin, memoryview(bytearray(end - begin))) for begin, end in spans]
            reads += tables[chunk]
            if self._reader.chunk_length(chunk):
                continue
            if spans and spans[0][0] == 0:  # a table span that begins with the chunk holds the head as well
                heads[chunk] = tables[chunk][0]
            else:
                size = min(HEAD_BYTES, self._layout.table_end(chunk))
                heads[chunk] = Read(name, 0, memoryview(bytearray(size)))
                reads.append(heads[chunk])
        sizes = self._source.run([*reads, *extra], stat=stat, timeout=deadline.left())
        for chunk, head in heads.items():
            self._door.admit(chunk, sizes[head.name], head_of(head))
        for chunk, fetched in tables.items():
            for read in fetched:
                self._keep_table(chunk, read)
        return tables

    def _table_spans(self, chunk: int, items: Sequence[int]) -> list[tuple[int, int]]:
        """Byte ranges of the table to fetch: aligned groups of blocks, the count along with the first."""
        count = self._layout.stored_counts[chunk]
        groups = sorted({i // TABLE_BLOCK // self._blocks for i in items})
        spans: list[tuple[int, int]] = []
        for group in groups:
            first = group * self._blocks * TABLE_BLOCK
            last = min(first + self._blocks * TABLE_BLOCK, count)  # one entry more: the pair of the last item
            begin = OFFSETS_AT + OFFSET_WIDTH * first if group else 0
            end = OFFSETS_AT + OFFSET_WIDTH * (last + 1)
            if spans and begin <= spans[-1][1]:
                begin = spans.pop()[0]
            spans.append((begin, end))
        return spans

    def _keep_table(self, chunk: int, read: Read) -> None:
        """Check fetched table bytes and keep them as blocks of offsets."""
        place = self._door.chunk_place(chunk)
        if read.got != len(read.view):
            raise FormatError(f"{place} ends inside its offset table; it is truncated")
        self._door.check_table(chunk, read.view, read.begin)
        at = max(read.begin, OFFSETS_AT)
        while at + 2 * OFFSET_WIDTH <= read.begin + len(read.view):
            block = (at - OFFSETS_AT) // OFFSET_WIDTH // TABLE_BLOCK
            end = min(at + OFFSET_WIDTH * (TABLE_BLOCK + 1), read.begin + len(read.view))
            self._store.put_piece(TABLE_PIECE, chunk, block, read.view[at - read.begin : end - read.begin])
            at += OFFSET_WIDTH * TABLE_BLOCK

    # -- many items ---------------------------------------------------------------------

    def items(self, wanted: Sequence[Wanted], timeout: float) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yield (position in ``wanted``, bytes) for each; two waves for up to 16 MiB of items.

        Parameters:
            timeout: seconds for each wave: a long slice may take many.
        """
        # What is known now may be evicted by another thread a moment later: spans are noted once.
        known = [self._known(chunk, i) for chunk, i in wanted]
        unknown: dict[int, list[int]] = {}
        for (chunk, i), span in zip(wanted, known, strict=True):
            if span is None:
                unknown.setdefault(chunk, []).append(i)
        tables = self._locate(unknown, Deadline(timeout)) if unknown else {}
        spans = [span or self._span(chunk, i, tables) for (chunk, i), span in zip(wanted, known, strict=True)]
        order = sorted(range(len(wanted)), key=lambda k: (wanted[k][0], spans[k]))
        batch: list[int] = []
        size = 0
        for k in order:
            begin, end = spans[k]
            if batch and size + end - begin > self._batch_bytes:
                yield from self._batch(wanted, spans, batch, Deadline(timeout))
                batch, size = [], 0
            batch.append(k)
            size += end - begin
        yield from self._batch(wanted, spans, batch, Deadline(timeout))

    def _batch(
        self, wanted: Sequence[Wanted], spans: Sequence[tuple[int, int]], batch: Sequence[int], deadline: Deadline
    ) -> Iterator[tuple[int, bytes | memoryview]]:
        """One wave: neighbouring items of a chunk in one request."""
        gap = LOCAL_GAP if self._source.local else REMOTE_GAP
        by_chunk: dict[int, list[int]] = {}
        for k in batch:
            by_chunk.setdefault(wanted[k][0], []).append(k)
        planned: list[tuple[Read, list[int]]] = []
        for chunk, members in by_chunk.items():
            filled = [k for k in members if spans[k][0] < spans[k][1]]
            yield from ((k, b"") for k in members if spans[k][0] == spans[k][1])
            for run in coalesce([spans[k] for k in filled], max_gap=gap):
                view = memoryview(bytearray(run.end - run.begin))
                planned.append((Read(self._layout.names[chunk], run.begin, view), [filled[m] for m in run.members]))
        if planned:
            self._source.run([read for read, _ in planned], timeout=deadline.left())
        for read, members in planned:
            for k in members:
                chunk, i = wanted[k]
                begin, end = spans[k]
                yield k, self._kept(chunk, i, begin, read.view[begin - read.begin : end - read.begin], True)
