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
from typing import Any

from lazystore._core.parquet_scan import scan_footer
from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError
from lazystore.formats.arrow_blocks import Ask, Blocks
from lazystore.formats.arrow_rows import RowsSchema, require_pyarrow, row_type_of
from lazystore.formats.format import Image, Step, Want
from lazystore.formats.parquet_pages import LOOK_BYTES, ChunkFile, Column, ColumnChunk

__all__ = ["WHOLE_BYTES", "ParquetFooter", "ParquetImages", "read_parquet_footer"]

MAGIC = b"PAR1"
REPEATED = 2
TEXTS = ("string", "large_string", "binary", "large_binary")
MAX_DEPTH = 100
TAIL_BYTES = 64 << 10
#: Remote files of at most so many bytes may be fetched whole instead of their tails, and kept.
WHOLE_BYTES = 256 << 10
#: Column chunks of a row group that together have no more are fetched whole; of others, so much at a time. Less
#: where the budget is small.
WINDOWS_BYTES = 8 << 20
LEAST_WINDOW = 64 << 10
#: pyarrow reads through a buffer of so many bytes.
STREAM_BYTES = 16 << 10
#: Words of a dictionary that make at most this share of an image's bytes of the rows of a block leave it.
WORDS_SHARE = 16
#: Parsed footers that are kept, and how long the longest of them is.
KEPT_FOOTERS = 8
KEPT_BYTES = 1 << 20


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


def read_parquet_footer(
    name: str, nbytes: int, columns: Sequence[str] | None, *, whole: bool = False
) -> Generator[Ask, Any, ParquetFooter]:
    """Read one file's footer; a task for :func:`lazystore.formats.arrow_blocks.together`.

    Parameters:
        whole: fetch all of the file with it, and keep that.

    Raises:
        FormatError: it is no Parquet file, or a damaged one.
        UnsupportedError: its footer is encrypted.

    Cost: one wave, two for footers beyond 64 KiB.
    """
    if nbytes < 12:
        raise FormatError(f"{name} has {nbytes} bytes, too few for a Parquet file")
    first = nbytes if whole else min(nbytes, TAIL_BYTES)
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
    footer.whole = tail if whole else None
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

    A run holds its column chunks as stored if these are together at most 8 MiB (half of ``limit``, if that is less);
    else of each the pages that the next rows are in, and a little ahead; besides, a page and the dictionary of each
    column inflated, and two images' worth of rows. Texts stay in their dictionary, or so few rows are decoded at a time
    that its words fit. What pages inflate to shows when their headers are there, so
    ``scratch`` may grow while a run is open. Column chunks of nested types in pages of the first version are
    held as a whole. Kept across runs: at most 8 parsed footers of at most 1 MiB, and files that came with theirs.
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
        self._windows = min(WINDOWS_BYTES, limit // 2)
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
        lengths = [chunk.end - chunk.begin for chunk in footer.column_chunks(groups[0], 2 * self._limit)]
        window = _window(lengths, self._windows)
        held = sum(min(length, 2 * window + LOOK_BYTES) for length in lengths)
        return footer.length + held + 2 * self._blocks.hints[block]

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """Make the images of a run from block ``first`` on."""
        file, groups, skip = self._blocks.place(first)
        footer = self._footers[file]
        chunks = footer.column_chunks(groups[0], 2 * self._limit)
        window = _window([chunk.end - chunk.begin for chunk in chunks], self._windows)
        try:
            group = _Group(chunks, footer, groups[0], self._columns, self._blocks.counts[self.runs[run]])
            group.metadata = self._kept(file)
            yield from self._fetch(run, group, window, 1)
            self._keep(file, group.metadata)
            group.bound(self._limit)
            writer = None
            held: list[Any] = []  # batches; ``skip`` rows of the first are done with
            for block in range(first, self.runs[run + 1]):
                n = self._blocks.counts[block]
                while sum(batch.num_rows for batch in held) < skip + n:
                    while held and skip >= held[0].num_rows:
                        skip -= held.pop(0).num_rows
                    yield from self._fetch(run, group, window, group.rows_made + group.step)
                    held.append(group.next_batch(held, skip + n, 2 * self._limit))
                if writer is None:
                    writer = self._rows.writer(held[0].schema, self._columns)
                image = writer.image(held, skip, n, limit=self._limit)
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

    def _fetch(self, run: int, group: _Group, window: int, rows: int) -> Generator[Step, Any, None]:
        """Have the pages there that hold rows up to ``rows``, and with the first of them the parsed footer."""
        footer = group.footer
        while True:
            asks = [(chunk, ask) for chunk in group.chunks if (ask := chunk.missing(rows, window))]
            held = group.footer.length + sum(chunk.held for chunk in group.chunks) + sum(n for _, (_, n) in asks)
            inflated = sum(chunk.inflated for chunk in group.chunks)
            if held + inflated > 2 * self._limit:
                raise BudgetTooSmallError(
                    f"{group.footer.name} has pages that take {held} bytes and inflate to {inflated}, "
                    f"{2 * self._limit} may be used: give at least {2 * (held + inflated)} bytes, unless the file is "
                    "damaged", needed=held + inflated
                )  # fmt: skip
            needed = held + inflated + 2 * self._blocks.hints[self.runs[run]]
            self._grown[run] = max(self._grown.get(run, 0), needed, self._expected(run))
            wants = [Want(footer.name, begin, n) for _, (begin, n) in asks]
            if group.metadata is None:
                wants.append(Want(footer.name, footer.begin, footer.length))
            if not wants:
                return
            if footer.whole is not None:
                stored_parts = [footer.whole[want.begin : want.begin + want.nbytes] for want in wants]
            else:
                stored_parts = yield [*wants]
            if group.metadata is None:
                group.metadata = _parse_again(stored_parts.pop(), footer)
            for (chunk, (begin, _)), data in zip(asks, stored_parts, strict=True):
                chunk.feed(begin, data)


def _parse_again(stored: memoryview, footer: ParquetFooter) -> Any:
    """The parsed footer of a file that was opened before."""
    if hashlib.blake2b(stored, digest_size=16).digest() != footer.digest:
        raise FormatError(f"{footer.name} has another footer than when it was opened; open the dataset anew")
    return _parse(stored, footer.name)


def _window(lengths: Sequence[int], total: int) -> int:
    """Bytes of each column chunk that are fetched at a time, ``total`` together."""
    return total if sum(lengths) <= total else max(LEAST_WINDOW, total // len(lengths))


class _Group:
    """A row group that pyarrow reads out of chunks.

    Attributes:
        rows_made: rows that came out so far.
        step: rows of a batch.
        metadata: the file's parsed footer, before the first batch.
    """

    def __init__(
        self, chunks: list[ColumnChunk], footer: ParquetFooter, number: int, columns: Sequence[str] | None, step: int
    ) -> None:
        self.chunks = chunks
        self.footer = footer
        self.step = step
        self.rows_made = 0
        self._file = ChunkFile(chunks, footer.nbytes)
        self.metadata: Any = None
        self._open = (number, columns)
        self._batches: Iterator[Any] | None = None
        self._grown: list[str] = []  # columns whose words make them longer than their pages are

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
            from pyarrow import parquet

            number, columns = self._open
            file = parquet.ParquetFile(
                pa.PythonFile(self._file, mode="r"), metadata=self.metadata, pre_buffer=False, buffer_size=STREAM_BYTES,
                read_dictionary=[chunk.column.path for chunk in self.chunks if chunk.words],
            )  # fmt: skip
            self._batches = file.iter_batches(
                self.step, row_groups=[number], columns=None if columns is None else list(columns), use_threads=False
            )
        return self._batches

    def take_inflated(self) -> int:
        """Bytes inflated since the last call."""
        total = sum(chunk.passed for chunk in self.chunks)
        for chunk in self.chunks:
            chunk.passed = 0
        return total
