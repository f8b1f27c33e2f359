"""Parquet row groups as blocks of rows.

A row group is a run: pyarrow decodes its column chunks batch by batch, from bytes that were fetched before it asks
for them. Page headers are read here first, so it is known how far into each column chunk the next rows
reach, and what the pages inflate to.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lazystore._core.parquet_scan import scan_footer
from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError
from lazystore.formats.arrow_blocks import Ask, Blocks
from lazystore.formats.arrow_rows import RowsSchema, require_pyarrow, row_type_of
from lazystore.formats.format import Ahead, Arrival, Image, Pause, Step, Want
from lazystore.formats.parquet_pages import LOOK_BYTES, ChunkFile, Column, ColumnChunk

__all__ = ["TAIL_BYTES", "KeptFooters", "ParquetFooter", "ParquetImages", "read_parquet_footer"]

MAGIC = b"PAR1"
REPEATED = 2
TEXTS = ("string", "large_string", "binary", "large_binary")
MAX_DEPTH = 100
#: Bytes of a file's end that are fetched first, at most and at least; in between this share of it.
TAIL_BYTES = 64 << 10
LEAST_TAIL = 16 << 10
TAIL_SHARE = 16
#: Column chunks of a row group that together have no more are fetched whole; of others, so much at a time. Less
#: where the budget is small: a little less than what may be on its way at once.
WINDOWS_BYTES, WINDOWS_SHARE = 8 << 20, 7 / 16
LEAST_WINDOW = 64 << 10
#: Column chunks of so many bytes are fetched whole where there is room.
SHORT_CHUNK = 256 << 10
#: Shares of a window that are tried where pages turn out so large that whole ones do not fit.
WINDOW_SHARES = (1.0, 0.25, 0.0)
#: pyarrow reads through a buffer of so many bytes.
STREAM_BYTES = 16 << 10
#: Words of a dictionary that make at most this share of an image's bytes of the rows of a block leave it.
WORDS_SHARE = 16
#: Parsed footers that are kept, and how long the longest of them is.
KEPT_FOOTERS = 8
KEPT_BYTES = 1 << 20


#: A column chunk, and begin and bytes of what is fetched of it.
_Asked: TypeAlias = tuple[ColumnChunk, int, int]


@dataclass(slots=True)
class ParquetFooter:
    """What a file says about itself.

    Attributes:
        name, nbytes: of the file.
        begin, length: where its footer is.
        digest: of the footer.
        schema: a ``pyarrow.Schema``.
        rows: of each row group.
        sizes: bytes of its values, decoded, estimated.
        columns: those that are wanted: leaves of the schema.
        chunks: begin and end of each wanted column chunk, its codec, and whether all its values are in a dictionary;
            row group by row group, flat.
        whole: all of the file, if it was fetched with its footer; None: not.
        stored: the footer as it is stored, if it is kept; None: it is not.
    """

    name: str
    nbytes: int
    begin: int
    length: int
    digest: bytes
    schema: Any
    rows: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    columns: list[Column] = field(default_factory=list)
    chunks: array[int] = field(default_factory=lambda: array("q"))
    whole: memoryview | None = None
    stored: memoryview | None = None

    def lengths(self, group: int) -> Sequence[int]:
        """Bytes of the wanted column chunks of a row group."""
        first, last = 4 * len(self.columns) * group, 4 * len(self.columns) * (group + 1)
        begins, ends = self.chunks[first:last:4], self.chunks[first + 1 : last : 4]
        return [end - begin for begin, end in zip(begins, ends, strict=True)]

    def column_chunks(self, group: int, room: int) -> list[ColumnChunk]:
        """The wanted column chunks of a row group, whose pages may take ``room`` bytes each, decoded."""
        at = 4 * len(self.columns) * group
        return [
            ColumnChunk(
                column, self.chunks[k], self.chunks[k + 1],
                codec=self.chunks[k + 2], words=column.text and bool(self.chunks[k + 3]), room=room,
            )
            for k, column in enumerate(self.columns)
            for k in [at + 4 * k]
        ]  # fmt: skip


class KeptFooters:
    """Bytes of footers that need not be fetched again.

    Parameters:
        room: bytes that may be kept.

    Attributes:
        taken: bytes that are.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self.taken = 0

    def keep(self, stored: memoryview) -> memoryview | None:
        """A copy, None where there is no room for it."""
        if self.taken + len(stored) > self._room:
            return None
        self.taken += len(stored)
        return memoryview(bytes(stored))


def read_parquet_footer(
    name: str, nbytes: int, columns: Sequence[str] | None, *, whole: bool = False, kept: KeptFooters | None = None
) -> Generator[Ask, Any, ParquetFooter]:
    """Read one file's footer; a task for :func:`lazystore.formats.arrow_blocks.together`.

    Parameters:
        whole: fetch all of the file with it, and keep that.
        kept: where footers are kept.

    Raises:
        FormatError: it is no Parquet file, or a damaged one.
        UnsupportedError: its footer is encrypted.

    Cost: one wave, two for footers beyond 64 KiB, or a sixteenth of a small file.
    """
    if nbytes < 12:
        raise FormatError(f"{name} has {nbytes} bytes, too few for a Parquet file")
    first = nbytes if whole else min(nbytes, max(LEAST_TAIL, min(nbytes // TAIL_SHARE, TAIL_BYTES)))
    (tail,) = yield [(nbytes - first, first)]
    if bytes(tail[-4:]) == b"PARE":
        raise UnsupportedError(f"{name} is a Parquet file with an encrypted footer, which lazystore does not read")
    if bytes(tail[-4:]) != MAGIC:
        raise FormatError(f"{name} does not end like a Parquet file; it is another file, or a truncated one")
    length = int.from_bytes(tail[-8:-4], "little")
    if not 0 < length <= nbytes - 12:
        raise FormatError(f"{name} says its Parquet footer has {length} bytes, the file has {nbytes}")
    if length + 8 > len(tail):
        (tail,) = yield [(nbytes - length - 8, length + 8)]
    stored = tail[len(tail) - length - 8 : len(tail) - 8]
    metadata = _parse(stored, name)
    footer = ParquetFooter(
        name, nbytes, nbytes - length - 8, length, hashlib.blake2b(stored, digest_size=16).digest(),
        _arrow_schema(metadata, name),
    )  # fmt: skip
    _note_groups(footer, stored, columns)
    if whole:
        footer.whole, footer.stored = tail, stored
    elif kept is not None:
        footer.stored = kept.keep(stored)
    return footer


def _parse(footer: memoryview, name: str) -> Any:
    """A ``pyarrow.parquet.FileMetaData`` of a file's footer."""
    pa = require_pyarrow()
    from pyarrow import parquet

    data = b"".join([MAGIC, footer, len(footer).to_bytes(4, "little"), MAGIC])
    try:
        return parquet.read_metadata(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{name} has a damaged Parquet footer: {error}") from None


def _arrow_schema(metadata: Any, name: str) -> Any:
    pa = require_pyarrow()
    try:
        return metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"{name} has a Parquet schema that cannot be read: {error}") from None


def _note_groups(footer: ParquetFooter, stored: memoryview, columns: Sequence[str] | None) -> None:
    """Where the wanted column chunks are, by the footer itself: pyarrow's view of damaged ones can end the process."""
    try:
        elements, footer.rows, chunks, hints = scan_footer(stored, end=footer.begin)
        leaves = _leaves(elements)
    except FormatError as error:
        raise FormatError(f"{footer.name} has a damaged Parquet footer: {error}") from None
    if len(chunks) != 3 * len(leaves) * len(footer.rows):
        raise FormatError(f"{footer.name} has row groups with other columns than its schema")
    texts = _texts(footer.schema)
    chosen = [k for k, (path, _, _) in enumerate(leaves) if _is_wanted(path, columns)]
    footer.columns = [Column(*leaves[k], len(texts) == len(leaves) and texts[k]) for k in chosen]
    for group, rows in enumerate(footer.rows):
        size = 0
        for k, column in zip(chosen, footer.columns, strict=True):
            at = len(leaves) * group + k
            begin, nbytes, inflated = chunks[3 * at : 3 * at + 3]
            values, text_bytes, codec, words = hints[4 * at : 4 * at + 4]
            footer.chunks.extend((begin, begin + nbytes, codec, words))
            size += max(inflated, text_bytes, 8 * rows, values * column.width)
        footer.sizes.append(min(size, 1 << 62))


def _texts(schema: Any) -> list[bool]:
    """Whether pyarrow may leave the values of each leaf in their dictionary: where rows come out the same."""
    types = require_pyarrow().types
    found: list[bool] = []

    def add(type_: Any, known: bool) -> None:
        if types.is_struct(type_) or types.is_map(type_):
            for k in range(type_.num_fields):
                add(type_.field(k).type if types.is_struct(type_) else (type_.key_type, type_.item_type)[k], known)
        elif types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
            add(type_.value_type, known)
        else:
            found.append(known and any(getattr(types, f"is_{name}")(type_) for name in TEXTS))

    for field_ in schema:
        add(field_.type, row_type_of(field_.type) is not None)
    return found


def _leaves(elements: Sequence[tuple[str, int, int, int]]) -> list[tuple[str, bool, int]]:
    """Path of each column, whether it may have several values a row, and bytes of a value; out of a schema in
    depth-first order."""
    found: list[tuple[str, bool, int]] = []
    above: list[tuple[str, bool, int]] = []  # path, repeated, children still to come
    for number, (name, repetition, children, width) in enumerate(elements):
        if number == 0:
            above.append(("", False, children))
            continue
        while above and not above[-1][2]:
            above.pop()
        if not above or children < 0 or len(above) > MAX_DEPTH:
            raise FormatError("its schema is no tree")
        path, repeated, left = above.pop()
        above.append((path, repeated, left - 1))
        path, repeated = f"{path}.{name}" if path else name, repeated or repetition == REPEATED
        if children:
            above.append((path, repeated, children))
        else:
            found.append((path, repeated, width))
    return found


def _is_wanted(path: str, columns: Sequence[str] | None) -> bool:
    return columns is None or any(path == name or path.startswith(name + ".") for name in columns)


class ParquetImages:
    """Blocks of rows out of Parquet files; see :class:`lazystore.formats.format.Images`.

    Parameters:
        footers: of the files.
        rows: of the dataset.
        blocks: how row groups are cut into blocks.
        columns: those that are wanted; None: all.
        limit: bytes that an image may have; a run may hold twice as many.

    A run holds its column chunks as stored if these are together at most 8 MiB (less than half of ``limit``, if that is
    less); else of each the pages that the next rows are in, and as much again that is sent for meanwhile; besides, a
    page and the dictionary of each column inflated, and two images' worth of rows. Texts stay in their dictionary, or
    so few rows are decoded at a time that its words fit. What pages inflate to shows when their headers are there, so
    ``scratch`` may grow while a run is open; it shrinks towards the run's end. Column chunks of nested types in pages
    of the first version are held as a whole. Kept across runs: at most 8 parsed footers of at most 1 MiB, and of
    ``footers`` what came with them.
    """

    def __init__(
        self,
        footers: Sequence[ParquetFooter],
        rows: RowsSchema,
        blocks: Blocks,
        *,
        columns: Sequence[str] | None,
        limit: int,
    ) -> None:
        self._footers = footers
        self._rows = rows
        self._blocks = blocks
        self._columns = columns
        self._limit = limit
        self._windows = min(WINDOWS_BYTES, int(limit * WINDOWS_SHARE))
        self._grown: dict[int, int] = {}
        self._parsed: OrderedDict[int, Any] = OrderedDict()
        self.runs = blocks.runs
        # Raises for columns that could not be written.
        writers = [rows.writer(schema, columns) for schema in {footer.schema for footer in footers}]
        #: Some rows have other columns than the plan.
        self.loose = any(writer.loose for writer in writers)

    def scratch(self, run: int) -> int:
        """Bytes the run may hold while it is open."""
        return self._grown.get(run, 0) or self._expected(run)

    def _expected(self, run: int) -> int:
        block = self.runs[run]
        file, groups, _ = self._blocks.place(block)
        footer = self._footers[file]
        lengths = footer.lengths(groups[0])
        windows = _windows(lengths, self._windows)
        held = sum(min(n, _most(window)) for n, window in zip(lengths, windows, strict=True))
        return footer.length + held + 2 * self._blocks.hints[block]

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """Make the images of a run from block ``first`` on."""
        file, groups, skip = self._blocks.place(first)
        footer = self._footers[file]
        windows = _windows(footer.lengths(groups[0]), self._windows)
        chunks = footer.column_chunks(groups[0], 2 * self._limit)
        try:
            group = _Group(chunks, windows, footer, groups[0], self._columns, self._blocks.counts[self.runs[run]])
            group.metadata = self._kept(file)
            yield from self._fetch(run, group, 1)
            self._keep(file, group.metadata)
            yield Pause(group.inflated)
            group.inflates = True
            self._reckon(run, group)
            group.bound(self._limit)
            writer = None
            held: list[Any] = []  # batches; ``skip`` rows of the first are done with
            for block in range(first, self.runs[run + 1]):
                n = self._blocks.counts[block]
                while sum(batch.num_rows for batch in held) < skip + n:
                    while held and skip >= held[0].num_rows:
                        skip -= held.pop(0).num_rows
                    yield from self._fetch(run, group, group.rows_made + group.step)
                    yield from self._send_ahead(run, group)
                    held.append(group.next_batch(held, skip + n, 2 * self._limit))
                if writer is None:
                    writer = self._rows.writer(held[0].schema, self._columns)
                image = writer.image(held, skip, n, limit=self._limit)
                self._reckon(run, group)
                yield Image(block, image, group.take_inflated())
                skip += n
        finally:
            self._grown.pop(run, None)

    def _kept(self, file: int) -> Any:
        """A file's parsed footer, if it was kept."""
        if file in self._parsed:
            self._parsed.move_to_end(file)
        return self._parsed.get(file)

    def _keep(self, file: int, metadata: Any) -> None:
        if self._footers[file].length <= KEPT_BYTES:
            self._parsed[file] = metadata
            while len(self._parsed) > KEPT_FOOTERS:
                self._parsed.popitem(last=False)

    def _fetch(self, run: int, group: _Group, rows: int) -> Generator[Step, Any, None]:
        """Have the pages there that hold rows up to ``rows``, and with the first of them the parsed footer."""
        footer = group.footer
        if group.metadata is None and footer.stored is not None:
            group.metadata = _parse(footer.stored, footer.name)
        while True:
            for share in WINDOW_SHARES:
                asks = group.missing(rows, share)
                inflated, held = group.inflated, footer.length + group.held + sum(n for _, _, n in asks)
                if held + inflated <= 1.5 * self._limit:
                    break
            if asks and group.coming:
                group.feed(group.coming, (yield Arrival()))
                group.coming = []
                continue
            if held + inflated > 2 * self._limit:
                raise BudgetTooSmallError(
                    f"{footer.name} has pages that take {held} bytes and inflate to {inflated}, "
                    f"{2 * self._limit} may be used: give at least {2 * (held + inflated)} bytes, unless the file is "
                    "damaged", needed=held + inflated
                )  # fmt: skip
            self._reckon(run, group, asks)
            wants = [Want(footer.name, begin, n) for _, begin, n in asks]
            if group.metadata is None:
                wants.append(Want(footer.name, footer.begin, footer.length))
            if not wants:
                return
            if footer.whole is not None:
                stored = [footer.whole[want.begin : want.begin + want.nbytes] for want in wants]
            else:
                stored = yield [*wants]
            if group.metadata is None:
                group.metadata = _parse_again(stored.pop(), footer)
            group.feed(asks, stored)

    def _send_ahead(self, run: int, group: _Group) -> Generator[Step, Any, None]:
        """Send for what follows what is there, where that is not on its way yet."""
        asks = [] if group.coming or group.footer.whole is not None else group.following()
        if not asks:
            return
        held = group.footer.length + group.held + sum(n for _, _, n in asks)
        if held + group.inflated <= 1.5 * self._limit:
            self._reckon(run, group, asks)
            if (yield Ahead([Want(group.footer.name, begin, n) for _, begin, n in asks])):
                group.coming = asks
            else:
                self._reckon(run, group)

    def _reckon(self, run: int, group: _Group, asks: Sequence[_Asked] = ()) -> None:
        """Note what a run may hold from now on: what it has and asks for, or what it will ask for if that is more."""
        asked = sum(n for _, _, n in (*asks, *group.coming))
        held = max(group.held + asked + (group.inflated if group.inflates else 0), group.rest)
        self._grown[run] = group.footer.length + held + 2 * self._blocks.hints[self.runs[run]]


def _parse_again(stored: memoryview, footer: ParquetFooter) -> Any:
    """The parsed footer of a file that was opened before."""
    if hashlib.blake2b(stored, digest_size=16).digest() != footer.digest:
        raise FormatError(f"{footer.name} has another footer than when it was opened; open the dataset anew")
    return _parse(stored, footer.name)


def _windows(lengths: Sequence[int], total: int) -> Sequence[int]:
    """Bytes of each column chunk that are fetched at a time, ``total`` together: they last for as many rows each."""
    times = -(-sum(lengths) // total)
    # Pages of short ones are not shorter: they would cost a wave of their own.
    least = max(LEAST_WINDOW, min(SHORT_CHUNK, total // (2 * len(lengths) or 1)))
    return lengths if times <= 1 else [max(least, -(-n // times)) for n in lengths]


def _most(window: int) -> int:
    """Bytes of a column chunk that are held at once, where its pages are shorter than that."""
    return 2 * window + LOOK_BYTES


class _Group:
    """A row group that pyarrow reads out of chunks.

    Parameters:
        windows: bytes of each chunk that are fetched at a time.

    Attributes:
        rows_made: rows that came out so far.
        step: rows of a batch.
        metadata: the file's parsed footer, before the first batch.
        coming: what was sent for ahead.
        inflates: rows are made; before, bytes were only fetched.
    """

    def __init__(
        self,
        chunks: list[ColumnChunk],
        windows: Sequence[int],
        footer: ParquetFooter,
        number: int,
        columns: Sequence[str] | None,
        step: int,
    ) -> None:
        self.chunks = chunks
        self.footer = footer
        self.step = step
        self.rows_made = 0
        self.coming: list[_Asked] = []
        self.inflates = False
        self.metadata: Any = None
        self._windows = windows
        self._file = ChunkFile(chunks, footer.nbytes)
        self._open = (number, columns)
        self._batches: Iterator[Any] | None = None
        self._grown: list[str] = []  # columns whose words make them longer than their pages are

    @property
    def held(self) -> int:
        """Stored bytes that are there."""
        return sum(chunk.held for chunk in self.chunks)

    @property
    def inflated(self) -> int:
        """Bytes that dictionaries and pages inflate to."""
        return sum(chunk.inflated for chunk in self.chunks)

    @property
    def rest(self) -> int:
        """Stored bytes that may be there at once from now on."""
        return sum(min(c.held + c.left, _most(window)) for c, window in zip(self.chunks, self._windows, strict=True))

    def missing(self, rows: int, share: float) -> list[_Asked]:
        """What is to be fetched for the pages of rows up to ``rows``; with it what will be short soon, because a round
        trip of its own costs more."""
        chunks = [(chunk, int(window * share)) for chunk, window in zip(self.chunks, self._windows, strict=True)]
        asks = [chunk.missing(rows, window) for chunk, window in chunks]
        if not any(asks):
            return []
        asks = [ask or chunk.further(window) for ask, (chunk, window) in zip(asks, chunks, strict=True)]
        return [(chunk, *ask) for ask, (chunk, _) in zip(asks, chunks, strict=True) if ask is not None]

    def following(self) -> list[_Asked]:
        """What comes after what is there, of the chunks that have no more than a window to be read."""
        found = []
        for chunk, window in zip(self.chunks, self._windows, strict=True):
            there = chunk.end - chunk.left
            if chunk.left and there - self._file.position(chunk) <= window:
                found.append((chunk, there, min(window, chunk.left)))
        return found

    def feed(self, asks: Sequence[_Asked], stored: Sequence[memoryview]) -> None:
        """The bytes that were asked for."""
        for (chunk, begin, _), data in zip(asks, stored, strict=True):
            chunk.feed(begin, data)

    def bound(self, limit: int) -> None:
        """Once the first pages are there: so few rows at a time that a dictionary's words do not make more bytes of
        them than ``limit``."""
        flat = [chunk for chunk in self.chunks if not chunk.column.repeated]
        for chunk in flat:
            # Short words are written to rows faster once they are out of their dictionary.
            if WORDS_SHARE * chunk.word_bytes * self.step <= limit:
                chunk.words = False
        row_bytes = sum(chunk.word_bytes for chunk in flat if not chunk.words)
        if row_bytes * self.step > limit:
            self.step = max(1, limit // row_bytes)
            self._grown = [chunk.column.path.partition(".")[0] for chunk in flat if not chunk.words]

    def next_batch(self, held: Sequence[Any], rows: int, room: int) -> Any:
        """The next rows, of which the pages are there.

        Parameters:
            held: batches that are needed still.
            rows: that are to be held in the end.
            room: bytes that may be held.

        Raises:
            FormatError: the pages are damaged, or have fewer rows than the row group.
            BudgetTooSmallError: the rows take more than ``room``.
        """
        size = sum(chunk.decoded(self.rows_made, self.rows_made + self.step) for chunk in self.chunks)
        size += sum(batch.column(name).nbytes for batch in held for name in self._grown)
        if size > room:
            # The rows that are to come are taken to be like those that are there.
            needed = max(size, size * rows // (self.step + sum(batch.num_rows for batch in held)))
            raise BudgetTooSmallError(
                f"{self.footer.name} has {rows} rows near row {self.rows_made} of a row group that take {needed} "
                f"bytes, {room} may be used: give at least {4 * needed} bytes, unless the file is damaged",
                needed=needed,
            )  # fmt: skip
        pa = require_pyarrow()
        try:
            batch = next(self._start(pa))
            if batch.num_rows == 0:
                raise FormatError(f"{self.footer.name} has a row group that ends early")
        except StopIteration:
            raise FormatError(f"{self.footer.name} has a row group with fewer rows than its footer says") from None
        except (pa.ArrowException, OSError, ValueError, NotImplementedError, IndexError) as error:
            raise FormatError(f"{self.footer.name} has a damaged row group: {error}") from None
        self.rows_made += batch.num_rows
        for chunk in self.chunks:
            chunk.drop(self._file.position(chunk))
        return batch

    def _start(self, pa: Any) -> Iterator[Any]:
        if self._batches is None:
            # ParquetFile is this with the default pool, which keeps what is freed.
            from pyarrow.parquet import ParquetReader

            number, columns = self._open
            reader = ParquetReader(memory_pool=pa.system_memory_pool())
            reader.open(
                pa.PythonFile(self._file, mode="r"), metadata=self.metadata, pre_buffer=False, buffer_size=STREAM_BYTES,
                read_dictionary=[chunk.column.path for chunk in self.chunks if chunk.words],
            )  # fmt: skip
            leaves = self.metadata.schema
            wanted = [k for k in range(len(leaves)) if _is_wanted(leaves.column(k).path, columns)]
            self._batches = reader.iter_batches(
                self.step, row_groups=[number], column_indices=wanted, use_threads=False
            )
        return self._batches

    def take_inflated(self) -> int:
        """Bytes inflated since the last call."""
        total = sum(chunk.passed for chunk in self.chunks)
        for chunk in self.chunks:
            chunk.passed = 0
        return total
