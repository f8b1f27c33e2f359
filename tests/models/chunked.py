"""Chunks in memory and a loader over them: what stands behind a ``Reader`` in tests of the reader alone.

No I/O, no waiting: the loader fills whole frames, or keeps single pieces, or keeps nothing, as told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from lazystore._core.frames import Fill, FrameStore, Lease
from lazystore._core.reader import TABLE_BLOCK, Reader
from lazystore.errors import ArenaFullError

TABLE_AT = 4
ITEM_PIECE, TABLE_PIECE = 2, 3


def chunk_bytes(items: Sequence[bytes], *, width: int = 4) -> bytes:
    """``u32 n | offset[n + 1] | items``."""
    form = "I" if width == 4 else "Q"
    offsets = [TABLE_AT + width * (len(items) + 1)]
    for item in items:
        offsets.append(offsets[-1] + len(item))
    return struct.pack(f"<I{len(offsets)}{form}", len(items), *offsets) + b"".join(items)


class ChunkedItems:
    """Items by chunk, as stored bytes."""

    def __init__(self, items: Sequence[Sequence[bytes]], *, width: int = 4) -> None:
        self.width = width
        self.items = [list(chunk) for chunk in items]
        self.chunks = [chunk_bytes(chunk, width=width) for chunk in items]
        self.flat = [item for chunk in self.items for item in chunk]

    @property
    def counts(self) -> list[int]:
        return [len(chunk) for chunk in self.items]

    def base(self, chunk: int) -> int:
        return TABLE_AT + self.width * (len(self.items[chunk]) + 1)

    def span(self, chunk: int, i: int) -> tuple[int, int]:
        begin = self.base(chunk) + sum(map(len, self.items[chunk][:i]))
        return begin, begin + len(self.items[chunk][i])

    def entries(self, i: int) -> tuple[int, int]:
        """Where the offsets of item ``i`` of a chunk lie."""
        begin = TABLE_AT + self.width * i
        return begin, begin + 2 * self.width


class Loader:
    """Parameters: ``mode`` is ``"frames"``, ``"pieces"`` or ``"nothing"``; it may change at any time.

    Fallback: an item that the arena has no room for is handed out from the chunk itself.
    """

    reader: Reader

    def __init__(self, store: FrameStore, data: ChunkedItems, mode: str = "frames") -> None:
        self.store = store
        self.data = data
        self.mode = mode
        self.asked: list[tuple[int, int, bool]] = []

    def place(self, chunk: int, i: int) -> str:
        return f"memory/{chunk}.bin (chunk {chunk}), item {i}"

    def open(self, chunk: int) -> None:
        if not self.reader.chunk_length(chunk):
            self.reader.open_chunk(chunk, len(self.data.chunks[chunk]), self.data.base(chunk))

    def fill(self, chunk: int, part: int, *, scan: bool = False) -> Fill | None:
        """A part made resident; the fill pins it. None when it is there or on its way."""
        size = self.store.frame_bytes
        content = self.data.chunks[chunk][part * size : (part + 1) * size]
        fill = self.store.begin(chunk, part, len(content), scan)
        if fill is not None:
            memoryview(fill)[:] = content
            fill.commit()
        return fill

    def fill_all(self, *, scan: bool = False) -> None:
        for chunk, content in enumerate(self.data.chunks):
            self.open(chunk)
            for part in range(-(-len(content) // self.store.frame_bytes)):
                self.fill(chunk, part, scan=scan)

    def item(self, chunk: int, i: int, scan: bool) -> Lease | bytes:
        self.asked.append((chunk, i, scan))
        self.open(chunk)
        begin, end = self.data.span(chunk, i)
        content = self.data.chunks[chunk][begin:end]
        if self.mode == "pieces":
            self.keep(chunk, i, content)
        elif self.mode == "frames":
            size = self.store.frame_bytes
            held = []
            stretches = [self.data.entries(i), (begin, max(end, begin + 1))]
            try:
                for first, last in stretches:
                    for part in range(first // size, (last - 1) // size + 1):
                        if part * size < len(self.data.chunks[chunk]):
                            held.append(self.fill(chunk, part, scan=scan))
                if begin // size == (end - 1) // size:
                    return self.store.lease(chunk, begin, end, scan)
            except (ArenaFullError, KeyError):
                return content
        return content

    def keep(self, chunk: int, i: int, content: bytes) -> None:
        width = self.data.width
        first = i // TABLE_BLOCK * TABLE_BLOCK
        last = min(first + TABLE_BLOCK, len(self.data.items[chunk]))
        block = self.data.chunks[chunk][TABLE_AT + width * first : TABLE_AT + width * (last + 1)]
        self.store.put_piece(TABLE_PIECE, chunk, i // TABLE_BLOCK, block)
        self.store.put_piece(ITEM_PIECE, chunk, i, content)

    def items(self, wanted: list[tuple[int, int]]) -> Iterator[tuple[int, Lease | bytes]]:
        """Backwards: the reader must put them in order."""
        for position in reversed(range(len(wanted))):
            yield position, self.item(*wanted[position], False)
