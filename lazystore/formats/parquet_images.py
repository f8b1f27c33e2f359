"""Parquet row groups as blocks of rows.

A row group is a run: pyarrow decodes its column chunks batch by batch, from bytes that were fetched before it asks
for them. Page headers are read here first, so it is known how far into each column chunk the next rows
reach, and what the pages inflate to.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lazystore._core.parquet_scan import scan_footer, scan_page
from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError
from lazystore.formats.arrow_blocks import Ask, Blocks
from lazystore.formats.arrow_rows import RowsSchema, require_pyarrow
from lazystore.formats.format import Image, Step, Want

__all__ = ["ParquetFooter", "ParquetImages", "read_parquet_footer"]

MAGIC = b"PAR1"
REPEATED = 2
MAX_DEPTH = 100
MAX_HEADER = 1 << 20
TAIL_BYTES = 64 << 10
#: Column chunks of a row group that together have no more are fetched whole; of others, so much at a time. Less
#: where the budget is small.
WINDOWS_BYTES = 8 << 20
LEAST_WINDOW = 64 << 10
#: pyarrow reads through a buffer of so many bytes, and looks so far ahead for a page's header.
STREAM_BYTES = 16 << 10
LOOK_BYTES = 64 << 10
#: Parsed footers that are kept, and how long the longest of them is.
KEPT_FOOTERS = 8
KEPT_BYTES = 1 << 20


#: Bytes of the header, stored bytes, inflated bytes, whether it is a dictionary, values, rows: see scan_page.
Page: TypeAlias = tuple[int, int, int, bool, int, int]


@dataclass(slots=True)
class ParquetFooter:
    """What a file says about itself.

    Attributes:
        name, nbytes: of the file.
        begin, length: where its footer is.
        digest: of the footer.
        schema: a ``pyarrow.Schema``.
        rows: of each row group.
        sizes: bytes of its rows' image, estimated.
        chunks: begin and end of each wanted column chunk, row group by row group, flat.
        repeated: whether each wanted column chunk may have several values a row.
    """

    name: str
    nbytes: int
    begin: int
    length: int
    digest: bytes
    schema: Any
    rows: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    chunks: array[int] = field(default_factory=lambda: array("q"))
    repeated: list[bool] = field(default_factory=list)

    def columns(self, group: int) -> Iterator[tuple[int, int, bool]]:
        """Begin and end of each wanted column chunk of a row group, and whether it is repeated."""
        n = len(self.repeated)
        for k in range(n):
            at = 2 * (n * group + k)
            yield self.chunks[at], self.chunks[at + 1], self.repeated[k]


def read_parquet_footer(name: str, nbytes: int, columns: Sequence[str] | None) -> Generator[Ask, Any, ParquetFooter]:
    """Read one file's footer; a task for :func:`lazystore.formats.arrow_blocks.together`.

    Raises:
        FormatError: it is no Parquet file, or a damaged one.
        UnsupportedError: its footer is encrypted.

    Cost: one wave, two for footers beyond 64 KiB.
    """
    if nbytes < 12:
        raise FormatError(f"{name} has {nbytes} bytes, too few for a Parquet file")
    (tail,) = yield [(max(0, nbytes - TAIL_BYTES), min(nbytes, TAIL_BYTES))]
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
        elements, footer.rows, chunks = scan_footer(stored, end=footer.begin)
        leaves = _leaves(elements)
    except FormatError as error:
        raise FormatError(f"{footer.name} has a damaged Parquet footer: {error}") from None
    if len(chunks) != 3 * len(leaves) * len(footer.rows):
        raise FormatError(f"{footer.name} has row groups with other columns than its schema")
    chosen = [k for k, (path, _) in enumerate(leaves) if _is_wanted(path, columns)]
    footer.repeated = [leaves[k][1] for k in chosen]
    n_fields = len(columns if columns is not None else footer.schema.names)
    for group, rows in enumerate(footer.rows):
        size = 4 * (n_fields + 1) * rows
        for k in chosen:
            at = 3 * (len(leaves) * group + k)
            footer.chunks.extend((chunks[at], chunks[at] + chunks[at + 1]))
            size += max(chunks[at + 2], 8 * rows)
        footer.sizes.append(min(size, 1 << 62))


def _leaves(elements: Sequence[tuple[str, int, int]]) -> list[tuple[str, bool]]:
    """Path of each column and whether it may have several values a row, out of a schema in depth-first order."""
    found: list[tuple[str, bool]] = []
    above: list[tuple[str, bool, int]] = []  # path, repeated, children still to come
    for number, (name, repetition, children) in enumerate(elements):
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
            found.append((path, repeated))
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
    column inflated, and two images' worth of rows. What pages inflate to shows when their headers are there, so
    ``scratch`` may grow while a run is open. Column chunks of nested types in pages of the first version are
    held as a whole. Kept across runs: at most 8 parsed footers of at most 1 MiB.
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
        columns = list(footer.columns(groups[0]))
        window = _window([end - begin for begin, end, _ in columns], self._windows)
        held = sum(min(end - begin, 2 * window + LOOK_BYTES) for begin, end, _ in columns)
        return footer.length + held + 2 * self._blocks.hints[block]

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """Make the images of a run from block ``first`` on."""
        file, groups, skip = self._blocks.place(first)
        footer = self._footers[file]
        chunks = [_Chunk(begin, end, repeated) for begin, end, repeated in footer.columns(groups[0])]
        window = _window([chunk.end - chunk.begin for chunk in chunks], self._windows)
        try:
            metadata = yield from self._metadata(file)
            group = _Group(chunks, footer, metadata, groups[0], self._columns, self._blocks.counts[self.runs[run]])
            yield from self._fetch(run, group, window, 1)
            writer = None
            held: list[Any] = []  # batches; ``skip`` rows of the first are done with
            for block in range(first, self.runs[run + 1]):
                n = self._blocks.counts[block]
                while sum(batch.num_rows for batch in held) < skip + n:
                    while held and skip >= held[0].num_rows:
                        skip -= held.pop(0).num_rows
                    yield from self._fetch(run, group, window, group.rows_made + group.step)
                    held.append(group.next_batch())
                if writer is None:
                    writer = self._rows.writer(held[0].schema, self._columns)
                image = writer.image(held, skip, n, limit=self._limit)
                yield Image(block, image, group.take_inflated())
                skip += n
        finally:
            self._grown.pop(run, None)

    def _metadata(self, file: int) -> Generator[Step, Any, Any]:
        """A file's parsed footer, kept or read again."""
        metadata = self._parsed.get(file)
        if metadata is None:
            footer = self._footers[file]
            (stored,) = yield [Want(footer.name, footer.begin, footer.length)]
            if hashlib.blake2b(stored, digest_size=16).digest() != footer.digest:
                raise FormatError(f"{footer.name} has another footer than when it was opened; open the dataset anew")
            metadata = _parse(stored, footer.name)
            if footer.length <= KEPT_BYTES:
                self._parsed[file] = metadata
                while len(self._parsed) > KEPT_FOOTERS:
                    self._parsed.popitem(last=False)
        else:
            self._parsed.move_to_end(file)
        return metadata

    def _fetch(self, run: int, group: _Group, window: int, rows: int) -> Generator[Step, Any, None]:
        """Have the pages there that hold rows up to ``rows``."""
        while True:
            asks = [(chunk, ask) for chunk in group.chunks if (ask := chunk.missing(rows, window))]
            held = group.footer.length + sum(chunk.held for chunk in group.chunks) + sum(n for _, (_, n) in asks)
            inflated = sum(chunk.inflated for chunk in group.chunks)
            if held + inflated > 2 * self._limit:
                raise BudgetTooSmallError(
                    f"{group.footer.name} has pages that take {held} bytes and inflate to {inflated}, "
                    f"{2 * self._limit} may be used: give it more memory, unless the file is damaged"
                )
            needed = held + inflated + 2 * self._blocks.hints[self.runs[run]]
            self._grown[run] = max(self._grown.get(run, 0), needed, self._expected(run))
            if not asks:
                return
            stored_parts = yield [Want(group.footer.name, begin, n) for _, (begin, n) in asks]
            for (chunk, (begin, _)), data in zip(asks, stored_parts, strict=True):
                chunk.feed(begin, data)


def _window(lengths: Sequence[int], total: int) -> int:
    """Bytes of each column chunk that are fetched at a time, ``total`` together."""
    return total if sum(lengths) <= total else max(LEAST_WINDOW, total // len(lengths))


class _Chunk:
    """One column chunk, of which some bytes are there: from ``begin`` on, without gaps.

    Attributes:
        begin, end: of the chunk in the file.
        held: bytes that are there.
        inflated: bytes that its dictionary and its longest page inflate to.
        passed: bytes inflated since it was asked.
    """

    def __init__(self, begin: int, end: int, repeated: bool) -> None:
        self.begin, self.end = begin, end
        self._repeated = repeated
        self._parts: list[tuple[int, memoryview]] = []
        self._page = begin  # where the next page's header is
        self._there = begin  # up to where bytes are there
        self._rows = 0
        self._dictionary = self._longest = 0
        self.passed = 0

    @property
    def held(self) -> int:
        return sum(len(data) for _, data in self._parts)

    @property
    def inflated(self) -> int:
        return 2 * self._dictionary + self._longest

    def missing(self, rows: int, window: int) -> tuple[int, int] | None:
        """What is to be fetched for the pages of rows up to ``rows``: begin and bytes, None for nothing."""
        while self._rows < rows and self._page < self.end:
            page = self._peek()
            if page is None:
                if self._there >= self.end:
                    self._page = self.end  # what some writers leave behind the last page
                    break
                return self._ask(self._there + 1, window)
            end = self._page + page[0] + page[1]
            if end > self.end:
                raise FormatError(f"a page of {page[1]} bytes at {self._page} reaches beyond its column chunk")
            if end > self._there:
                return self._ask(end, window)
            self._pass(page, end)
        ahead = min(self.end, self._page + LOOK_BYTES)
        return self._ask(ahead, window) if ahead > self._there else None

    def _ask(self, end: int, window: int) -> tuple[int, int]:
        end = min(self.end, max(end + LOOK_BYTES, self._there + window))
        return self._there, end - self._there

    def _pass(self, page: Page, end: int) -> None:
        _, _, inflated, dictionary, values, rows = page
        if dictionary:
            self._dictionary = max(self._dictionary, inflated)
        else:
            self._longest = max(self._longest, inflated)
            self._rows += rows if rows >= 0 else 0 if self._repeated else values
        self.passed += inflated
        self._page = end

    def _peek(self) -> Page | None:
        """The next page, None if its header is not there as a whole."""
        if self._page >= self._there:
            return None
        begin, data = next((at, data) for at, data in self._parts if at <= self._page < at + len(data))
        page = scan_page(data[self._page - begin :])
        if page is None and begin + len(data) < self._there:
            page = scan_page(self.read(self._page, min(self._there - self._page, MAX_HEADER)))
        if page is None and self._there - self._page >= MAX_HEADER:
            raise FormatError(f"a Parquet page has a header of more than {MAX_HEADER} bytes")
        return page

    def feed(self, begin: int, data: memoryview) -> None:
        """Bytes that were asked for."""
        self._parts.append((begin, data))
        self._there = begin + len(data)

    def read(self, begin: int, n: int) -> bytes | memoryview:
        """Bytes that are there."""
        found = []
        end = min(begin + n, self.end)
        for at, data in self._parts:
            if at < end and begin < at + len(data):
                found.append(data[max(0, begin - at) : end - at])
        if sum(map(len, found)) != end - begin:
            raise FormatError(f"a column chunk is read at {begin}, where it has no page; the file is damaged")
        return found[0] if len(found) == 1 else b"".join(found)

    def drop(self, before: int) -> None:
        """Let go of what was read."""
        keep = min(before, self._page)
        self._parts = [(at, data) for at, data in self._parts if at + len(data) > keep]


class _Group:
    """A row group that pyarrow reads out of chunks.

    Attributes:
        rows_made: rows that came out so far.
        step: rows of a batch.
    """

    def __init__(
        self, chunks: list[_Chunk], footer: ParquetFooter, metadata: Any, number: int,
        columns: Sequence[str] | None, step: int,
    ) -> None:  # fmt: skip
        self.chunks = chunks
        self.footer = footer
        self.step = step
        self.rows_made = 0
        self._file = _ChunkFile(chunks, footer.nbytes)
        self._open = (metadata, number, columns)
        self._batches: Iterator[Any] | None = None

    def next_batch(self) -> Any:
        """The next rows, of which the pages are there.

        Raises:
            FormatError: the pages are damaged, or have fewer rows than the row group.
        """
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

            metadata, number, columns = self._open
            file = parquet.ParquetFile(
                pa.PythonFile(self._file, mode="r"), metadata=metadata, pre_buffer=False, buffer_size=STREAM_BYTES
            )
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


class _ChunkFile(io.RawIOBase):
    """What pyarrow takes for the file: only what the chunks hold can be read."""

    def __init__(self, chunks: Sequence[_Chunk], nbytes: int) -> None:
        super().__init__()
        self._chunks = chunks
        self._nbytes = nbytes
        self._at = 0
        self._read = {id(chunk): chunk.begin for chunk in chunks}

    def position(self, chunk: _Chunk) -> int:
        """Up to where a chunk was read."""
        return self._read[id(chunk)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._nbytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n: int = -1) -> bytes:
        for chunk in self._chunks:
            if chunk.begin <= self._at < chunk.end:
                data = chunk.read(self._at, n)
                self._at += len(data)
                self._read[id(chunk)] = max(self._read[id(chunk)], self._at)
                return bytes(data)
        raise FormatError(f"byte {self._at} is in no column chunk that was asked for; the file is damaged")
