"""What a LitData chunk's bytes are, found out by looking at them: classic, framed zstd, or Arrow rows.

Each form knows how to make the image of some of its items. Everything here is generators of steps (see
:mod:`lazystore.formats.format`) that end with a value; between the steps they yield plain ints: the bytes they hold
from then on. Which files, which items, and what memory there is for it, is decided in ``litdata_images``.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.compression import ZSTD_MAGIC, inflate_frame
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT, Size, Step, Want
from lazystore.formats.litdata import FRAME_ROWS, FRAMED_MAGIC, ROWS_MAGIC

if TYPE_CHECKING:
    from lazystore.formats.arrow_ipc import IpcRows
    from lazystore.formats.arrow_rows import RowsSchema

__all__ = ["Form", "Steps", "answered", "sniff"]

#: Steps, and bytes held, that lead to a value.
Steps: TypeAlias = Generator["Step | int", Any, Any]

KIB = 1024
#: Read from a file's end to find out what it is (holds the footer of 150 record batches), and after its offset table
#: (holds the schema of most Arrow rows).
TAIL_BYTES, MIDDLE_BYTES = 4 * KIB, 1 * KIB
#: A table of frames up to this size stays in memory; of a longer one, the lines that are needed are read.
TABLE_BYTES = 64 * KIB
#: Messages of an Arrow stream are found by reading so much at a time, or counted so many at a time.
WALK_BYTES, WALK_MESSAGES = 64 * KIB, 64
#: A message's header, and what comes before its length is known; before the first message of an Arrow file.
MESSAGE_BYTES, PREFIX_BYTES, FILE_HEAD = 1024 * KIB, 8, 8
HEADER = struct.Struct("<8sHHIII")
ENTRY = struct.Struct("<IIQII")
TRAILER = struct.Struct("<I8s")
#: A chunk of one item without bytes.
SHORTEST = OFFSETS_AT + 2 * OFFSET_WIDTH
MAX_IMAGE = (1 << 32) - 1
#: An image of Arrow rows may have so many times the bytes that a record batch may.
IMAGE_SHARE = 4


class Form(Protocol):
    """A file whose form is known.

    Attributes:
        nbytes: memory that knowing it takes.
    """

    nbytes: int

    def image(self, first: int, n: int) -> Steps:
        """Make the image of items ``first`` to ``first + n - 1``; ends with (image, bytes inflated)."""
        ...


@dataclass(slots=True)
class _Sniffed:
    """What was read of a file to find out its form.

    Attributes:
        name, count, size: the file; items and bytes it has.
        head: its first 24 bytes.
        middle: what follows the next-to-last entry of a classic offset table.
        tail_at, tail: its last bytes, and where they begin.
    """

    name: str
    count: int
    size: int
    head: memoryview
    middle: memoryview
    tail_at: int
    tail: memoryview

    @property
    def table_end(self) -> int:
        return OFFSETS_AT + OFFSET_WIDTH * (self.count + 1)

    def after_table(self, at: int, nbytes: int) -> memoryview | None:
        """Bytes behind the offset table, if they were read already."""
        skip = at - self.table_end + OFFSET_WIDTH
        found = self.middle[skip : skip + nbytes] if skip >= 0 else memoryview(b"")
        return found if len(found) == nbytes else None


def sniff(name: str, count: int, hint: int, rows: RowsSchema, *, room: int) -> Steps:
    """Find out a file's form; ends with a :class:`Form`.

    Parameters:
        name: the file.
        count: items it has by the index; another number in the file is an error.
        hint: bytes it has by the index. One wave of requests if it is right, two if not, one more for frames.
        rows: how Arrow rows are written.
        room: bytes that a record batch may have, inflated.

    Raises:
        FormatError: it is none of the forms, or damaged.
    """
    file = yield from _look(name, count, hint)
    if bytes(file.head[:8]) == FRAMED_MAGIC:
        return (yield from _open_framed(name, count, file.size, file.head))
    n = int.from_bytes(file.head[:4], "little")
    if n != count:
        whole = bytes(file.head[:4]) == ZSTD_MAGIC
        what = "is zstd-compressed as a whole, against its name" if whole else f"says it has {n} items"
        raise FormatError(f"it {what}; the index has {count} items there")
    items_end = int.from_bytes(file.middle[:OFFSET_WIDTH], "little")
    nbytes, magic = TRAILER.unpack_from(file.tail, len(file.tail) - TRAILER.size)
    end = file.size - TRAILER.size
    # A classic chunk may end with these very bytes: then its items end with the file.
    if magic == ROWS_MAGIC and nbytes and max(items_end, file.table_end) <= end - nbytes:
        return (yield from _open_rows(file, end - nbytes, end, rows, room))
    if items_end != file.size:
        raise FormatError(f"its items end at {items_end}, but it has {file.size} bytes")
    return Classic(name, count, file.size)


def _look(name: str, count: int, hint: int) -> Generator[Step | int, Any, _Sniffed]:
    """Read what tells a file's form. Ranges may end beyond it where its size is asked for with them."""
    size = max(hint, HEADER.size)
    while True:
        tail_at = max(0, size - TAIL_BYTES)
        yield HEADER.size + MIDDLE_BYTES + TAIL_BYTES
        found, head, middle, tail = yield [
            Size(name),
            Want(name, 0, HEADER.size),
            Want(name, OFFSETS_AT + OFFSET_WIDTH * count, MIDDLE_BYTES),
            Want(name, tail_at, size - tail_at),
        ]
        if found < SHORTEST:
            raise FormatError(f"it has {found} bytes, which is no chunk")
        if found == size:
            return _Sniffed(name, count, size, head, middle, tail_at, tail)
        size = found


def answered(steps: Steps, data: memoryview) -> Any:
    """Run steps to their end against a file that is in memory."""
    answer: list[Any] | None = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = None if isinstance(step, int) else [_taken(data, want) for want in step]  # type: ignore[union-attr]


def _taken(data: memoryview, want: Want | Size) -> Any:
    if isinstance(want, Size):
        return len(data)
    taken = data[want.begin : want.begin + want.nbytes]
    return taken if len(taken) == want.nbytes else memoryview(bytes(taken).ljust(want.nbytes, b"\0"))


def _begin_image(offsets: Any) -> tuple[bytearray, int]:
    """An image with its table written and room for the items, and where they begin.

    Parameters:
        offsets: where the items begin and end, ``n + 1`` of them; int64.
    """
    import numpy as np

    if (offsets[1:] < offsets[:-1]).any():
        raise FormatError("its offset table is damaged: offsets go backwards")
    n = len(offsets) - 1
    base = OFFSETS_AT + OFFSET_WIDTH * (n + 1)
    total = int(offsets[-1] - offsets[0])
    if base + total > MAX_IMAGE:
        raise FormatError(f"{n} items have {total} bytes together, more than 4 GiB")
    image = bytearray(base + total)
    image[:OFFSETS_AT] = n.to_bytes(OFFSETS_AT, "little")
    table = np.frombuffer(image, "<u4", n + 1, OFFSETS_AT)
    table[:] = offsets - offsets[0] + base
    return image, base


def _numbers(table: memoryview) -> Any:
    import numpy as np

    return np.frombuffer(table, "<u4").astype(np.int64)


# -- classic --------------------------------------------------------------------------------


class Classic:
    """``u32 n | u32 offset[n+1] | items``: a part of it is cut out."""

    def __init__(self, name: str, count: int, size: int) -> None:
        self._name, self._count, self._size = name, count, size
        self.nbytes = 100

    def image(self, first: int, n: int) -> Steps:
        nbytes = OFFSET_WIDTH * (n + 1)
        yield nbytes
        (table,) = yield [Want(self._name, OFFSETS_AT + OFFSET_WIDTH * first, nbytes)]
        offsets = _numbers(table)
        begin, end = int(offsets[0]), int(offsets[-1])
        if not OFFSETS_AT + OFFSET_WIDTH * (self._count + 1) <= begin <= end <= self._size:
            raise FormatError(f"items {first} to {first + n - 1} lie at {begin} to {end}, outside of the chunk")
        yield nbytes + end - begin
        image, base = _begin_image(offsets)
        if end > begin:
            (items,) = yield [Want(self._name, begin, end - begin)]
            image[base:] = items
        return image, 0


# -- framed zstd ----------------------------------------------------------------------------


class Framed:
    """``LDFZ01``: a table of offsets as if nothing were compressed, one of frames, then zstd frames of K items each."""

    def __init__(self, name: str, count: int, size: int, rows: int, table: memoryview | None) -> None:
        self._name, self._count, self._size, self._rows = name, count, size, rows
        self._table = table
        self._frames = -(-count // rows)
        self._entries_at = HEADER.size + OFFSET_WIDTH * (count + 1)
        self.nbytes = 100 + (len(table) if table is not None else 0)

    def image(self, first: int, n: int) -> Steps:
        begin_frame, end_frame = first // self._rows, (first + n - 1) // self._rows + 1
        begin, end = begin_frame * self._rows, min(end_frame * self._rows, self._count)
        entries = yield from self._entries(begin_frame, end_frame)
        nbytes = OFFSET_WIDTH * (end - begin + 1)
        yield nbytes + sum(stored + length for _, stored, length in entries)
        table, *frames = yield [
            Want(self._name, HEADER.size + OFFSET_WIDTH * begin, nbytes),
            *(Want(self._name, at, stored) for at, stored, _ in entries),
        ]
        offsets = _numbers(table)
        lengths = [length for _, _, length in entries]
        found = [self._inflated(offsets, k, *pair) for k, pair in enumerate(zip(frames, lengths, strict=True))]
        skip = first - begin
        image, base = _begin_image(offsets[skip : skip + n + 1])
        shift = base - int(offsets[skip])
        for k, items in enumerate(found):
            # Where the frame's items would lie in the image, and what of that is in it.
            at = int(offsets[k * self._rows]) + shift
            low, high = max(at, base), min(at + len(items), len(image))
            if high > low:
                image[low:high] = memoryview(items)[low - at : high - at]
        return image, sum(map(len, found))

    def _inflated(self, offsets: Any, k: int, frame: memoryview, length: int) -> bytes:
        """The items of the ``k``-th of the frames whose items' ``offsets`` these are."""
        begin, end = offsets[k * self._rows], offsets[min((k + 1) * self._rows, len(offsets) - 1)]
        if end - begin != length:
            raise FormatError(f"a frame has {length} bytes, the offsets of its items {end - begin}")
        return inflate_frame(frame, limit=length, size=length)

    def _entries(self, begin: int, end: int) -> Steps:
        """(offset, stored bytes, inflated bytes) of frames ``begin`` to ``end - 1``, checked."""
        at, nbytes = ENTRY.size * begin, ENTRY.size * (end - begin)
        if self._table is not None:
            lines = self._table[at : at + nbytes]
        else:
            yield nbytes
            (lines,) = yield [Want(self._name, self._entries_at + at, nbytes)]
        found = []
        data_at = self._entries_at + ENTRY.size * self._frames
        for j, line in enumerate(ENTRY.iter_unpack(lines), begin):
            first, n, offset, stored, length = line
            if first != j * self._rows or n != min(self._rows, self._count - first):
                raise FormatError(f"frame {j} says it holds items {first} to {first + n - 1}")
            if offset < data_at or not stored or offset + stored > self._size:
                raise FormatError(
                    f"frame {j} of {stored} bytes at {offset} is not inside the file's {self._size} bytes"
                )
            found.append((offset, stored, length))
        return found


def _open_framed(name: str, count: int, size: int, head: memoryview) -> Steps:
    if len(head) < HEADER.size:
        raise FormatError(f"it has {size} bytes, its header alone {HEADER.size}; it is truncated")
    _, version, flags, n, rows, frames = HEADER.unpack(head)
    if version != 1 or flags:
        raise FormatError(f"it is framed zstd of version {version} with flags {flags}; version 1 without is known")
    if n != count or not rows or frames != -(-n // rows):
        raise FormatError(f"it says it has {n} items in {frames} frames of {rows}; the index has {count} items there")
    begin, nbytes = HEADER.size + OFFSET_WIDTH * (n + 1), ENTRY.size * frames
    if begin + nbytes > size:
        raise FormatError(f"it has {size} bytes, its tables alone {begin + nbytes}")
    if nbytes > TABLE_BYTES:
        return Framed(name, count, size, rows, None)
    yield nbytes
    (table,) = yield [Want(name, begin, nbytes)]
    return Framed(name, count, size, rows, table)


# -- Arrow rows -----------------------------------------------------------------------------


class Rows:
    """``LDARW01``: an Arrow IPC blob after the (usually empty) classic body, read record batch by record batch."""

    def __init__(self, name: str, count: int, batches: Batches, ipc: IpcRows, room: int) -> None:
        self._name, self._count, self._batches = name, count, batches
        self._ipc, self._room = ipc, room
        self.nbytes = 4 * KIB + batches.nbytes

    def image(self, first: int, n: int) -> Steps:
        while True:
            found, skip, opened = yield from self._read(first, n)
            if found is not None:
                return self._ipc.writer.image(found, skip, n, limit=min(MAX_IMAGE, IMAGE_SHARE * self._room)), opened
            yield from self.count_rows()

    def _read(self, first: int, n: int) -> Steps:
        """Ends with (record batches, rows to skip, bytes inflated); None for the batches if they have other rows than
        was thought, and are to be counted."""
        from lazystore.formats.arrow_ipc import parse_message

        chosen = self._batches.holding(first, n)
        blocks = [self._batches.block(j) for j in chosen]
        total = sum(header + body for _, header, body in blocks)
        yield total
        stored = yield [Want(self._name, at, header + body) for at, header, body in blocks]
        messages = [parse_message(data, self._name) for data in stored]
        if any(message.rows != self._batches.rows_of(j) for j, message in zip(chosen, messages, strict=True)):
            if self._batches.counted:
                raise FormatError("its record batches have other numbers of rows than when they were counted")
            return None, 0, 0
        pairs = list(zip(stored, messages, strict=True))
        opened = sum(message.inflated(data) for data, message in pairs)
        yield total * (1 if self._ipc.native else 2) + opened
        room = max(0, self._room - total)
        batches = [self._ipc.batch(data, room=room, message=message, place=self._name) for data, message in pairs]
        return batches, first - self._batches.first_of(chosen[0]), opened

    def count_rows(self) -> Steps:
        """Read the headers of all batches, without their bodies, for the rows they have."""
        from lazystore.formats.arrow_ipc import parse_message

        counts = array("Q")
        n = len(self._batches)
        for begin in range(0, n, WALK_MESSAGES):
            blocks = [self._batches.block(j) for j in range(begin, min(begin + WALK_MESSAGES, n))]
            yield sum(header for _, header, _ in blocks)
            stored = yield [Want(self._name, at, header) for at, header, _ in blocks]
            counts.extend(parse_message(data, self._name).rows for data in stored)
        self._batches.count(counts, self._count)


class Batches:
    """Where the record batches of a file lie, and which rows they hold: 256 each, until counted.

    Parameters:
        blocks: position in the file, bytes of the header, bytes of the body of each; flat.
        total: rows in all.
    """

    def __init__(self, blocks: array[int], total: int) -> None:
        self._blocks = blocks
        self._total = total
        self._firsts: array[int] | None = None
        self.nbytes = 32 * len(self)

    def __len__(self) -> int:
        return len(self._blocks) // 3

    @property
    def counted(self) -> bool:
        return self._firsts is not None

    def block(self, j: int) -> tuple[int, int, int]:
        at, header, body = self._blocks[3 * j : 3 * j + 3]
        return at, header, body

    def count(self, counts: array[int], total: int) -> None:
        """Say how many rows each has."""
        if sum(counts) != total:
            raise FormatError(f"its record batches hold {sum(counts)} rows; the index has {total} items there")
        self._firsts = array("Q", [0, *accumulate(counts)])

    def first_of(self, j: int) -> int:
        return self._firsts[j] if self._firsts is not None else j * FRAME_ROWS

    def rows_of(self, j: int) -> int:
        if self._firsts is not None:
            return self._firsts[j + 1] - self._firsts[j]
        return min(FRAME_ROWS, self._total - j * FRAME_ROWS)

    def holding(self, first: int, n: int) -> range:
        """The batches that hold these rows."""
        if self._firsts is None:
            return range(first // FRAME_ROWS, (first + n - 1) // FRAME_ROWS + 1)
        return range(bisect_right(self._firsts, first) - 1, bisect_left(self._firsts, first + n))


def _open_rows(file: _Sniffed, blob: int, end: int, rows: RowsSchema, room: int) -> Steps:
    """The Arrow data at ``blob`` to ``end``: an IPC file, else a stream."""
    from lazystore.formats.arrow_ipc import MAGIC, parse_footer

    last = file.tail[max(0, end - TAIL_BYTES - file.tail_at) : end - file.tail_at]
    if bytes(last[-len(MAGIC) :]) != MAGIC:
        return (yield from _open_stream(file, blob, end, rows, room))
    footer = parse_footer(last, end - blob, file.name)
    if isinstance(footer, int):
        yield footer
        (last,) = yield [Want(file.name, end - footer, footer)]
        footer = parse_footer(last, end - blob, file.name)
        if isinstance(footer, int):
            raise FormatError(f"the footer of its Arrow data has another length than it says, {footer}")
    if footer.dictionaries or not footer.batches:
        raise UnsupportedError("its Arrow rows have dictionaries, or no record batch; LitData writes neither")
    begin, length = blob + FILE_HEAD, footer.batches[0] - FILE_HEAD
    if not 0 < length <= MESSAGE_BYTES:
        raise FormatError(f"its Arrow schema has {length} bytes")
    schema = file.after_table(begin, length)
    if schema is None:
        yield length
        (schema,) = yield [Want(file.name, begin, length)]
    blocks = array("Q", footer.batches)
    for k in range(0, len(blocks), 3):
        blocks[k] += blob
    form = Rows(file.name, file.count, Batches(blocks, file.count), _ipc_rows(rows, schema, file.name), room)
    if len(blocks) // 3 != -(-file.count // FRAME_ROWS):
        yield from form.count_rows()
    return form


def _open_stream(file: _Sniffed, at: int, end: int, rows: RowsSchema, room: int) -> Steps:
    """Find the messages of an Arrow stream, one after the other."""
    from lazystore.formats.arrow_ipc import BATCH, parse_message, prefix_length

    ipc: IpcRows | None = None
    blocks, counts = array("Q"), array("Q")
    window, window_at = memoryview(b""), at
    while at + PREFIX_BYTES <= end:
        for needed in (PREFIX_BYTES, 0):
            needed = needed or prefix_length(window[at - window_at :], file.name)
            if needed > min(end - at, MESSAGE_BYTES):
                raise FormatError(f"a message of its Arrow stream says its header has {needed} bytes")
            if at + needed > window_at + len(window):
                nbytes = min(max(needed, WALK_BYTES), end - at)
                yield nbytes
                (window,) = yield [Want(file.name, at, nbytes)]
                window_at = at
        if not needed:
            break  # the end of the stream
        header = window[at - window_at : at - window_at + needed]
        message = parse_message(header, file.name)
        if message.body_bytes > end - at - needed or len(blocks) > 3 * file.count + 3:
            raise FormatError("a message of its Arrow stream goes beyond the end of it")
        if ipc is None:
            ipc = _ipc_rows(rows, header, file.name)
        elif message.kind == BATCH:
            blocks.extend((at, needed, message.body_bytes))
            counts.append(message.rows)
        else:
            raise UnsupportedError("its Arrow rows have dictionaries; LitData writes none")
        at += needed + message.body_bytes
    if ipc is None:
        raise FormatError("its Arrow data is neither a file nor a stream")
    batches = Batches(blocks, file.count)
    batches.count(counts, file.count)
    return Rows(file.name, file.count, batches, ipc, room)


def _ipc_rows(rows: RowsSchema, schema: memoryview, name: str) -> IpcRows:
    from lazystore.formats.arrow_ipc import IpcRows

    return IpcRows(rows, bytes(schema), name)
