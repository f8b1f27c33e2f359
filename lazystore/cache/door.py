"""Where bytes from outside are checked, once, before anything is read through them.

A chunk is admitted when its size and header agree with the index; table bytes when their
offsets go forward inside the chunk. Messages name the chunk and the remedy.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from lazystore._core.offsets import check_offsets
from lazystore._core.reader import Reader
from lazystore.errors import FormatError, LazyStoreError, UnsupportedError, with_place
from lazystore.fetch.source import Read, Source
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT
from lazystore.formats.litdata import FRAMED_MAGIC, ROWS_MAGIC

__all__ = ["HEAD_BYTES", "ChunkLayout", "Door", "head_of"]

#: Bytes of a chunk's head that show its count and its magic.
HEAD_BYTES = 8
ROWS_TRAILER = 12


class ChunkLayout(Protocol):
    """What a format's index says about its chunks; already checked against itself."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def stored_counts(self) -> array[int]: ...
    @property
    def hints(self) -> array[int]: ...
    @property
    def exact(self) -> bool:
        """A chunk of another size than its hint is damaged."""

    @property
    def tables_near(self) -> bool:
        """Looking up an offset table costs no round trip."""

    def table_end(self, chunk: int) -> int: ...


def head_of(read: Read) -> bytes:
    """The chunk's head out of a read that begins with the chunk, as far as it came."""
    return bytes(read.view[: min(HEAD_BYTES, read.got)])


class Door:
    """Admits chunks and offset tables.

    Parameters:
        layout: what the index says.
        source: for the few bytes a diagnosis needs.
        opaque: stored bytes are not the chunk's own, so its last ones cannot be looked at.
    """

    def __init__(self, layout: ChunkLayout, source: Source, *, opaque: bool = False) -> None:
        self._opaque = opaque
        self.layout = layout
        self.source = source
        self.reader: Reader | None = None

    def place(self, chunk: int, item: int) -> str:
        """Where an item is, for messages."""
        return f"{self.chunk_place(chunk)}, item {item}"

    def chunk_place(self, chunk: int) -> str:
        """Where a chunk is, for messages."""
        return f"{self.source.url}/{self.layout.names[chunk]} (chunk {chunk})"

    def placed(self, chunk: int, error: LazyStoreError) -> LazyStoreError:
        """The same error with the chunk in front of it, unless it is there already."""
        place = self.chunk_place(chunk)
        return error if str(error).startswith(place) else with_place(error, place)

    def admit(self, chunk: int, size: int, head: bytes) -> None:
        """Open a chunk: its inflated ``size`` and first bytes fit the index.

        Raises:
            FormatError: empty, truncated, or another count than the index.
            UnsupportedError: a chunk body this version does not read.
        """
        assert self.reader is not None
        count, table_end = self.layout.stored_counts[chunk], self.layout.table_end(chunk)
        if head[:8] == FRAMED_MAGIC:
            raise UnsupportedError(
                f"{self.chunk_place(chunk)} is framed zstd (compression_level batch), which this version does not read"
            )
        if size < OFFSETS_AT or len(head) < OFFSETS_AT:
            raise FormatError(f"{self.chunk_place(chunk)} has {size} bytes: empty or truncated; copy or write it again")
        if self.layout.exact and size != self.layout.hints[chunk]:
            raise FormatError(
                f"{self.chunk_place(chunk)} has {size} bytes, the index says {self.layout.hints[chunk]}; "
                "it is truncated, damaged, or of another version"
            )
        stored = int.from_bytes(head[:OFFSETS_AT], "little")
        if stored != count:
            raise FormatError(
                f"{self.chunk_place(chunk)} holds {stored} items, the index says {count}; "
                "index and chunks are of different versions, or the chunk is damaged"
            )
        if size < table_end:
            raise FormatError(
                f"{self.chunk_place(chunk)} has {size} bytes, its offset table alone needs {table_end}; it is truncated"
            )
        self.reader.open_chunk(chunk, size, table_end)

    def check_table(self, chunk: int, data: memoryview, position: int) -> None:
        """Check the offset-table entries among chunk bytes ``[position, position + len(data))``.

        Raises:
            FormatError: an offset goes backwards or outside the chunk.
        """
        assert self.reader is not None
        table_end, size = self.layout.table_end(chunk), self.reader.chunk_length(chunk)
        begin = max(OFFSETS_AT, position)
        begin += -(begin - OFFSETS_AT) % OFFSET_WIDTH
        end = min(table_end, position + len(data))
        end -= (end - OFFSETS_AT) % OFFSET_WIDTH
        if begin >= end:
            return
        first = (begin - OFFSETS_AT) // OFFSET_WIDTH
        # Released by hand: the traceback of an error that somebody keeps would keep the frame.
        with data[begin - position : end - position] as entries:
            try:
                check_offsets(entries, lowest=table_end, highest=size, first=first)
            except FormatError as error:
                raise FormatError(f"{self.chunk_place(chunk)}: {error}; it is damaged or truncated") from None
            end_of_items = int.from_bytes(entries[-OFFSET_WIDTH:], "little")
            if self.layout.exact and end == table_end and end_of_items != size:
                raise FormatError(
                    f"{self.chunk_place(chunk)}: its last item ends at {end_of_items}, the chunk at {size}; "
                    "it is damaged"
                )
            rows = first == 0 and len(entries) >= 2 * OFFSET_WIDTH and bytes(entries[:4]) == bytes(entries[4:8])
        if rows:
            self._refuse_rows(chunk, size)

    def _refuse_rows(self, chunk: int, size: int) -> None:
        """Arrow-row chunks have a classic table of empty items; their last bytes tell."""
        if self._opaque or size < self.layout.table_end(chunk) + ROWS_TRAILER:
            return
        tail = memoryview(bytearray(ROWS_TRAILER))
        self.source.run([Read(self.layout.names[chunk], size - ROWS_TRAILER, tail)], timeout=30.0)
        if tail[4:] == ROWS_MAGIC:
            raise UnsupportedError(
                f"{self.chunk_place(chunk)} holds Arrow rows (LitData 0.2.74 and later), but the dataset was opened "
                'as one without; pass format_options={"sniff": "all"}, which looks at every chunk'
            )
