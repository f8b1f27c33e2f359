"""A text file as chunks that exist in no file: offset tables from its sidecar, items from the file itself."""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

from lazystore.errors import FormatError
from lazystore.fetch.local import LocalSource
from lazystore.fetch.segments import Segment, Span
from lazystore.fetch.source import Read
from lazystore.formats.text_index import TextIndex, damaged

__all__ = ["ChunkNames", "TextChunks"]

#: Bytes of a table checked at a time.
CHECK_BYTES = 64 << 10
#: Chunks whose parts are remembered, 500 bytes each.
RECENT = 1024


class ChunkNames(Sequence[str]):
    """Names of chunks, ``FILE[FIRST:END]`` by the numbers of their items in the file; made when they are asked for."""

    def __init__(self, files: Sequence[tuple[str, TextIndex]]) -> None:
        self.files = [name for name, _ in files]
        #: First chunk of each file, and the number of all.
        self.chunks = array("Q", accumulate((len(index.counts) for _, index in files), initial=0))
        self.firsts = [array("Q", accumulate(index.counts, initial=0)) for _, index in files]

    def __len__(self) -> int:
        return self.chunks[-1]

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self._name(k) for k in range(len(self))[at]]
        return self._name(range(len(self))[at])

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(len(self)))

    def file_of(self, chunk: int) -> int:
        """Number of the file that a chunk is of."""
        return bisect_right(self.chunks, chunk) - 1

    def _name(self, chunk: int) -> str:
        file = self.file_of(chunk)
        firsts, k = self.firsts[file], chunk - self.chunks[file]
        return f"{self.files[file]}[{firsts[k]}:{firsts[k + 1]}]"


class TextChunks:
    """Says what each chunk is made of; what a :class:`~lazystore.fetch.segments.SegmentedSource` asks.

    Parameters:
        files: names of texts and what is known of each.

    A table is compared with its checksum when its chunk is first asked for.

    Attributes:
        sidecars: the sources that read the sidecars.

    Threads: any. Fork: as its sources. Pickling: none.
    """

    def __init__(self, files: Sequence[tuple[str, TextIndex]]) -> None:
        self.names = ChunkNames(files)
        self._files = {name: (k, index) for k, (name, index) in enumerate(files)}
        self._checked = bytearray(len(self.names))
        self._recent: dict[str, Sequence[Segment]] = {}
        folders = {str(Path(index.path).parent) for _, index in files}
        self._sources = {folder: LocalSource(folder) for folder in folders}
        self.sidecars = tuple(self._sources.values())

    def __call__(self, name: str) -> Sequence[Segment] | None:
        known = self._recent.get(name)
        if known is not None:
            return known
        parts = self._parts(name)
        if parts is not None:
            if len(self._recent) >= RECENT:
                self._recent.clear()
            self._recent[name] = parts
        return parts

    def _parts(self, name: str) -> Sequence[Segment] | None:
        file, bracket, span = name.rpartition("[")
        if not bracket or file not in self._files:
            return None
        k, index = self._files[file]
        firsts = self.names.firsts[k]
        number = span.partition(":")[0]
        chunk = bisect_right(firsts, int(number)) - 1 if number.isdecimal() else len(index.counts)
        if chunk >= len(index.counts) or span != f"{firsts[chunk]}:{firsts[chunk + 1]}]":
            return None
        path = Path(index.path)
        table = Span(path.name, index.tables[chunk], 4 * (index.counts[chunk] + 2), self._sources[str(path.parent)])
        if not self._checked[self.names.chunks[k] + chunk]:
            self._check(index, chunk, table)
            self._checked[self.names.chunks[k] + chunk] = 1
        return table, Span(file, index.begins[chunk], index.sizes[chunk])

    def _check(self, index: TextIndex, chunk: int, table: Span) -> None:
        """Compare a table with its checksum.

        Raises:
            FormatError: they do not fit; the sidecar is removed.
        """
        buffer = memoryview(bytearray(min(CHECK_BYTES, table.nbytes)))
        found, at, end = 0, table.begin, table.begin + table.nbytes
        assert table.source is not None
        while at < end:
            view = buffer[: min(len(buffer), end - at)]
            table.source.run([Read(table.name, at, view)], timeout=0)
            found = zlib.crc32(view, found)
            at += len(view)
        if found != index.sums[chunk]:
            damaged(index.path)
            raise FormatError(f"the index {index.path} is damaged and was removed: open the dataset again")
