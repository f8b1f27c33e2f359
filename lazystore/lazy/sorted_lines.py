"""Rows behind a position in a file of sorted lines, found by bisecting its bytes: no index, no pass over the file.

Bytes come from a file or from any source of bytes; orders are ``keysets``'s, pages are made elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from lazystore.lazy.keysets import Seek
    from lazystore.lazy.source import Source

__all__ = ["SortedLines"]

#: Bytes of one read; a line that is longer makes it grow.
BLOCK = 4096
MAX_LINE = 16 << 20


class SortedLines:
    """A text file whose lines (JSON objects, unless ``parse`` says otherwise) are sorted in an order.

    ``Source.from_cursor(SortedLines("posts.jsonl").rows)`` is a source of pages for a :class:`Pager` with that order.

    Parameters:
        data: a path, or a source of bytes whose functions are not async.
        parse: makes a row of a line's bytes.

    Cost: log2(file size / 4 KiB) reads of 4 KiB to find a position, then the bytes of the page.
    Threads: any (positional reads only). Fork, pickle: copies open the path again; nothing is kept open.
    """

    def __init__(self, data: str | os.PathLike[str] | Source, *, parse: Callable[[bytes], Any] = json.loads) -> None:
        self._parse = parse
        self._path = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
        self._source = None if isinstance(data, (str, os.PathLike)) else data
        if self._source is not None and ("bytes" not in self._source.can or self._source.size is None):
            raise ConfigError(f"{self._source!r} is no source of bytes of known size")

    def rows(self, seek: Seek, limit: int) -> list[Any]:
        """At most ``limit`` rows as ``seek`` asks for them: of a backward one the nearest, in reversed order.

        Raises:
            FormatError: a line is longer than 16 MiB.
            LoadError: a row has no such column.
            What ``parse`` and the source raise.
        """
        if self._path is None:
            assert self._source is not None
            lines = _Lines(self._source.fetch_range, self._source.size or 0)
            return self._found(lines, seek, limit)
        with open(self._path, "rb", buffering=0) as file:
            number = file.fileno()
            lines = _Lines(lambda offset, length: os.pread(number, length, offset), os.fstat(number).st_size)
            return self._found(lines, seek, limit)

    def _found(self, lines: _Lines, seek: Seek, limit: int) -> list[Any]:
        at = self._bisect(lines, seek)
        step = lines.before if seek.backward else lines.after
        found: list[Any] = []
        while len(found) < limit:
            begin, end, line = step(at)
            if begin == end:
                break
            at = begin if seek.backward else end
            if line.strip():
                found.append(self._parse(line))
        return found

    def _bisect(self, lines: _Lines, seek: Seek) -> int:
        """Where the first line begins that comes behind the position (of a backward seek: at or behind it)."""
        if seek.values is None:
            return lines.size if seek.backward else 0
        # Always: ``low`` begins a line, those before it are wanted no more; those from ``high`` on come behind.
        low, high = 0, lines.size
        while low < high:
            begin, end, line = lines.after(lines.start((low + high) // 2))
            while begin < end and not line.strip():
                begin, end, line = lines.after(end)
            if begin >= high:
                high = (low + high) // 2
                continue
            order = seek.keyset.compare(seek.keyset.position(self._parse(line)), seek.values)
            if order < 0 or (order == 0 and not seek.backward):
                low = end
            else:
                high = (low + high) // 2
        return low


class _Lines:
    """Lines of bytes that are read a block at a time; the latest block is kept."""

    def __init__(self, read: Callable[[int, int], Any], size: int) -> None:
        self._read = read
        self.size = size
        self._begin = 0
        self._block = b""

    def _filled(self, begin: int, end: int) -> bytes:
        """A block that holds bytes ``begin`` to ``end``; ``self._begin`` says where it begins."""
        if begin < self._begin or end > self._begin + len(self._block):
            if end - begin > MAX_LINE:
                raise FormatError(f"bytes {begin}..{end} hold no end of a line; lines may have {MAX_LINE} bytes")
            self._block, self._begin = bytes(self._read(begin, end - begin)), begin
            if len(self._block) != end - begin:
                raise FormatError(f"the file became shorter while it was read: no bytes {begin}..{end}")
        return self._block

    def start(self, offset: int) -> int:
        """Where the first line begins at or behind ``offset``; the size if none does."""
        return 0 if offset == 0 else self._after_newline(offset - 1)

    def _after_newline(self, offset: int) -> int:
        """Behind the first newline from ``offset`` on, or the size."""
        room = BLOCK
        while offset < self.size:
            # what is there is looked at first: the next line is mostly in the same block
            end = self._begin + len(self._block)
            if not self._begin <= offset < end:
                end = min(offset + room, self.size)
            block = self._filled(offset, end)
            found = block.find(b"\n", offset - self._begin)
            if found >= 0:
                return self._begin + found + 1
            if end == self.size:
                break
            room *= 2
            self._filled(offset, min(offset + room, self.size))
        return self.size

    def after(self, begin: int) -> tuple[int, int, bytes]:
        """The line that begins at ``begin``: its bounds and bytes; no bytes at the end."""
        end = self._after_newline(begin)
        block = self._filled(begin, end) if end > begin else b""
        return begin, end, block[begin - self._begin : end - self._begin]

    def before(self, end: int) -> tuple[int, int, bytes]:
        """The line that ends at ``end`` (its newline included)."""
        room = BLOCK
        while end > 0:
            begin = self._begin if self._begin < end <= self._begin + len(self._block) else max(0, end - room)
            block = self._filled(begin, end)
            found = block.rfind(b"\n", 0, end - 1 - self._begin)
            if found >= 0 or self._begin == 0:
                begin = self._begin + found + 1
                return begin, end, block[begin - self._begin : end - self._begin]
            room *= 2
            self._filled(max(0, end - room), end)
        return 0, 0, b""
