"""Arrow IPC files (Arrow, Feather version 2) and streams as blocks of rows.

A file's directory (where its record batches are, and how many rows each has) is read when the dataset is opened:
a file's from its footer and the batches' headers, a stream's by walking from message to message. Small batches
share a block; a large one is a run of several. Where only some columns are wanted, their parts of the batches are
fetched: the directory remembers where those are.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lazystore._core.ipc import IpcMessage
from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError
from lazystore.formats.arrow_blocks import Ask, Blocks
from lazystore.formats.arrow_ipc import (
    BATCH,
    DICTIONARY,
    MAGIC,
    IpcRows,
    parse_footer,
    parse_message,
    prefix_length,
)
from lazystore.formats.format import Image, Step, Want

__all__ = ["IpcDirectory", "IpcImages", "read_ipc_directory"]

HEAD_BYTES = 4 << 10
TAIL_BYTES = 16 << 10
WALK_BYTES = 64 << 10  # read at a time where a stream's messages are walked
HEADERS_AT_ONCE = 256
MAX_HEADER = 64 << 20
#: Parts of a body that are wanted are fetched together where less lies between them.
GAP = 32 << 10
#: Runs of which it is remembered how much they hold: asked for again and again while they are open.
KEPT_SUMS = 256
#: What a compressed body is taken to inflate to before it was looked at.
INFLATES = 4


@dataclass(slots=True)
class IpcDirectory:
    """Where things are in one file.

    Attributes:
        name, nbytes: of the file.
        schema: its first message, header and all.
        dictionaries, batches: position, bytes of the header and bytes of the body of each message, flat.
        rows: of each batch.
        sizes: bytes that the wanted columns take in each batch, inflated (estimated where they are compressed).
        spans: position in the body and bytes of what is wanted of it, batch by batch, flat; nothing of batches that
            are fetched whole. Two for each 32 KiB of the file at most.
        ends: number of spans, times two, up to and with each batch.
        codec: of the bodies, "" for none.
        stream: only dictionaries that come before a batch belong to it.
    """

    name: str
    nbytes: int
    schema: bytes
    stream: bool
    dictionaries: array[int] = field(default_factory=lambda: array("q"))
    batches: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    spans: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    codec: str = ""

    def note(self, message: IpcMessage, header: int, rows: IpcRows) -> None:
        """Remember a batch's rows, size, and what to fetch of its body."""
        self.codec = self.codec or message.codec
        self.rows.append(message.rows)
        self.sizes.append(rows.wanted_bytes(message) * (INFLATES if message.codec else 1))
        spans = rows.spans(message, GAP)
        if spans is not None and message.header == header:
            self.spans.extend(spans)
        self.ends.append(len(self.spans))

    def parts(self, batch: int) -> array[int]:
        """The spans of a batch; none: it is fetched whole."""
        return self.spans[self.ends[batch - 1] if batch else 0 : self.ends[batch]]


def read_ipc_directory(name: str, nbytes: int, columns: Sequence[str] | None) -> Generator[Ask, Any, IpcDirectory]:
    """Find out where the batches of one file are; a task for :func:`lazystore.formats.arrow_blocks.together`.

    Raises:
        FormatError: it is no Arrow file or stream, or a damaged one.
        UnsupportedError: a Feather file of version 1; big-endian data.

    Cost: two or three waves for a file; for a stream, a request each 64 KiB or message, whichever is longer.
    """
    if nbytes < 16:
        raise FormatError(f"{name} has {nbytes} bytes, too few for Arrow data")
    head, tail = yield [(0, min(nbytes, HEAD_BYTES)), (max(0, nbytes - TAIL_BYTES), min(nbytes, TAIL_BYTES))]
    if bytes(head[:4]) == b"FEA1":
        raise UnsupportedError(f"{name} is a Feather file of version 1; write it again with pyarrow.feather")
    first = 8 if bytes(head[:6]) == MAGIC else 0
    length = prefix_length(head[first : first + 8], name)
    if not 8 < length <= nbytes - first:
        raise FormatError(f"{name} does not begin with an Arrow schema; it is no Arrow file, or a damaged one")
    if length > HEAD_BYTES - first:
        (head,) = yield [(first, length)]
    else:
        head = head[first : first + length]
    directory = IpcDirectory(name, nbytes, bytes(head), not first)
    rows = IpcRows.own(directory.schema, name, columns)
    if first:
        yield from _read_file(directory, rows, tail)
    else:
        yield from _walk_stream(directory, rows, length)
    return directory


def _read_file(directory: IpcDirectory, rows: IpcRows, tail: memoryview) -> Generator[Ask, Any, None]:
    name, nbytes = directory.name, directory.nbytes
    footer = parse_footer(tail, nbytes, name)
    if isinstance(footer, int):
        (tail,) = yield [(nbytes - footer, footer)]
        footer = parse_footer(tail, nbytes, name)
        assert not isinstance(footer, int)
    directory.dictionaries, directory.batches = footer.dictionaries, footer.batches
    places = list(zip(footer.batches[::3], footer.batches[1::3], footer.batches[2::3], strict=True))
    for k in range(0, len(places), HEADERS_AT_ONCE):
        some = places[k : k + HEADERS_AT_ONCE]
        if sum(header for _, header, _ in some) > MAX_HEADER:
            raise FormatError(f"{name} has record batches with headers of more than {MAX_HEADER} bytes")
        headers = yield [(at, header) for at, header, _ in some]
        for stored, (_, header, body) in zip(headers, some, strict=True):
            message = parse_message(stored, name)
            if message.kind != BATCH or message.body_bytes > body:
                raise FormatError(f"{name} has something else where its footer says a record batch is")
            directory.note(message, header, rows)


def _walk_stream(directory: IpcDirectory, rows: IpcRows, at: int) -> Generator[Ask, Any, None]:
    name, nbytes = directory.name, directory.nbytes
    window, begin = memoryview(b""), at
    while at + 8 <= nbytes:
        if at + 8 > begin + len(window):
            begin = at
            (window,) = yield [(at, min(WALK_BYTES, nbytes - at))]
        length = prefix_length(window[at - begin : at - begin + 8], name)
        if not length:
            return
        if at + length > begin + len(window):
            if length > nbytes - at:
                raise FormatError(f"{name} ends in the middle of a message; it is truncated")
            begin = at
            (window,) = yield [(at, max(length, min(WALK_BYTES, nbytes - at)))]
        message = parse_message(window[at - begin : at - begin + length], name)
        if message.body_bytes > nbytes - at - length:
            raise FormatError(f"{name} ends in the middle of a record batch; it is truncated")
        if message.kind == BATCH:
            directory.batches.extend((at, length, message.body_bytes))
            directory.note(message, length, rows)
        elif message.kind == DICTIONARY:
            directory.dictionaries.extend((at, length, message.body_bytes))
        at += length + message.body_bytes


class IpcImages:
    """Blocks of rows out of IPC files; see :class:`lazystore.formats.format.Images`.

    Parameters:
        directories: of the files.
        rows: who makes row batches, for each file (one object for all files of one schema).
        blocks: how batches are cut into blocks.
        limit: bytes that a batch's compressed bodies may inflate to, and an image may have.

    A run holds the stored bytes of the batches of its block, of which parts are wanted those parts twice, and, where
    they are compressed, the wanted columns inflated: what that comes to is known once they are there, so ``scratch``
    may grow while a run is open, up to ``limit`` more. Batches with wanted columns that pyarrow must read are held
    twice. Across runs only a few hundred numbers are kept.
    """

    def __init__(
        self, directories: Sequence[IpcDirectory], rows: Sequence[IpcRows], blocks: Blocks, *, limit: int
    ) -> None:
        self._directories = directories
        self._rows = rows
        self._blocks = blocks
        self._limit = limit
        self._grown: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self.runs = blocks.runs
        #: Some rows have other columns than the plan.
        self.loose = any(one.writer.loose for one in rows)

    def scratch(self, run: int) -> int:
        """Bytes the run may hold while it is open."""
        held = self._held.get(run)
        if held is None:
            file, batches, _ = self._blocks.place(self.runs[run])
            if len(self._held) >= KEPT_SUMS:
                self._held.clear()
            held = self._held[run] = self._fetch(file, batches).held
        return held + self._grown.get(run, 0)

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """Make the images of a run from block ``first`` on."""
        file, numbers, _ = self._blocks.place(first)
        directory, rows = self._directories[file], self._rows[file]
        name = directory.name
        fetch = self._fetch(file, numbers)
        stored = yield [*fetch.wants]
        pieces = [(at, _whole(views, spans, rows, name)) for at, views, spans in fetch.messages(stored)]
        del stored
        messages = [parse_message(data, name) for _, data in pieces]
        n_before = len(pieces) - len(numbers)
        opened = sum(message.inflated(data) for message, (_, data) in zip(messages, pieces, strict=True))
        try:
            self._grow(run, opened, rows.native)
            batches = []
            for message, (at, data) in zip(messages[n_before:], pieces[n_before:], strict=True):
                before = [one for begin, one in pieces[:n_before] if begin < at or not directory.stream]
                batches.append(rows.batch(data, room=self._limit, message=message, before=before, place=name))
            block = first
            while block < self.runs[run + 1]:
                skip = self._blocks.place(block)[2]
                image = rows.writer.image(batches, skip, self._blocks.counts[block], limit=self._limit)
                asked = yield Image(block, image, opened, jumps=True)
                block = block + 1 if asked is None else asked
                opened = 0
        finally:
            self._grown.pop(run, None)

    def _grow(self, run: int, inflated: int, native: bool) -> None:
        if inflated > self._limit:
            raise BudgetTooSmallError(
                f"compressed Arrow data says it inflates to {inflated} bytes, {self._limit} may be used: "
                "give it more memory, unless the file is damaged"
            )
        self._grown[run] = inflated if native else inflated + self.scratch(run)

    def _fetch(self, file: int, numbers: range) -> _Fetch:
        """Some batches, and before them the dictionaries if they are needed; those of a stream only so far."""
        directory = self._directories[file]
        fetch = _Fetch(directory.name)
        found, batches = directory.dictionaries, directory.batches
        last = batches[3 * numbers[-1]]
        for k in range(0, 0 if self._rows[file].native else len(found), 3):
            if found[k] < last or not directory.stream:
                fetch.add(found[k], found[k + 1] + found[k + 2])
        for k in numbers:
            at, header, body = batches[3 * k : 3 * k + 3]
            spans = directory.parts(k)
            if spans:
                fetch.add_parts(at, header, spans)
            else:
                fetch.add(at, header + body)
        return fetch


class _Fetch:
    """Stored bytes of some messages, neighbours in one piece.

    Attributes:
        held: bytes of the pieces, and of the messages that are put together out of several.
    """

    def __init__(self, name: str) -> None:
        self.held = 0
        self._name = name
        self._ranges: list[tuple[int, int]] = []
        self._messages: list[tuple[int, list[tuple[int, int, int]], array[int] | None]] = []

    @property
    def wants(self) -> list[Want]:
        """The pieces."""
        return [Want(self._name, begin, end - begin) for begin, end in self._ranges]

    def add(self, at: int, nbytes: int) -> None:
        """A whole message."""
        self._messages.append((at, [self._piece(at, nbytes)], None))

    def add_parts(self, at: int, header: int, spans: array[int]) -> None:
        """A message's header and spans of its body."""
        pieces = [self._piece(at, header)]
        pieces += [self._piece(at + header + spans[k], spans[k + 1]) for k in range(0, len(spans), 2)]
        self._messages.append((at, pieces, spans))
        self.held += sum(nbytes for _, _, nbytes in pieces)

    def messages(self, stored: Sequence[memoryview]) -> Iterator[tuple[int, list[memoryview], array[int] | None]]:
        """Where in the file each message is, and either all of it, or its header and its spans; and these."""
        for at, pieces, spans in self._messages:
            yield at, [stored[k][begin : begin + nbytes] for k, begin, nbytes in pieces], spans

    def _piece(self, at: int, nbytes: int) -> tuple[int, int, int]:
        """Number of the want that a piece is in, where in it, and its bytes."""
        if self._ranges:
            begin, end = self._ranges[-1]
            if end <= at <= end + GAP:
                self._ranges[-1] = begin, at + nbytes
                self.held += at + nbytes - end
                return len(self._ranges) - 1, at - begin, nbytes
        self._ranges.append((at, at + nbytes))
        self.held += nbytes
        return len(self._ranges) - 1, 0, nbytes


def _whole(views: Sequence[memoryview], spans: array[int] | None, rows: IpcRows, name: str) -> memoryview:
    """A message out of its pieces; where they are parts of its body, one that has no others."""
    if spans is None:
        return views[0]
    message = parse_message(views[0], name)
    if message.header != len(views[0]) or rows.spans(message, GAP) != spans:
        raise FormatError(f"{name} has another record batch than when it was opened; it was overwritten, or is damaged")
    return memoryview(b"".join([message.excerpt(views[0], spans), *views[1:]]))
