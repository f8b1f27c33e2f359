"""`LazyFile`: one stored object as a file to read, and what wraps it into the kinds of files that ``open`` gives.

Bytes and pages are the business of ``cache.paged``; here are a position, and the manners of the io module.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

from lazystore.cache.page_ahead import PagesAhead
from lazystore.cache.paged import PagedObject
from lazystore.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["BufferedLazyFile", "LazyFile", "check_mode", "open_paged"]

#: Bytes that a buffered file asks for at once: small, for a page is a look-up away.
BUFFER = 64 << 10


class LazyFile(io.RawIOBase):
    """A read-only binary file over a :class:`~lazystore.cache.paged.PagedObject`.

    Args:
        paged: the object.
        reopen: makes an equal file in another process, for pickling: a picklable callable without arguments; None
            makes the file unpicklable.
        on_close: called once when it is closed.

    Works with whatever reads files: zipfile, tarfile, gzip, csv, numpy, pandas, pyarrow, pillow. A file that is read
    in order is read ahead; one that jumps fetches what it touches. Closing leaves pages in the cache.

    Threads: :meth:`read_at` may be called by any number; the rest has one position, so one thread at a time. Fork: the
    child's copy has a position of its own and fetches anew. Pickle: by how it was opened, with its position. A file
    that is forgotten closes itself; at interpreter exit there is nothing to wait for.
    """

    def __init__(
        self,
        paged: PagedObject,
        *,
        reopen: Callable[[], LazyFile] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._paged = paged
        self._ahead = PagesAhead(paged)
        self._at = 0
        self._reopen = reopen
        self._on_close = on_close
        self.name = paged.url
        self.mode = "rb"

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._paged.size

    @property
    def identity(self) -> str:
        """Which version of the object this is; see :class:`~lazystore.cache.paged.PagedObject`."""
        return self._paged.identity

    def readable(self) -> bool:
        """True: it is there to be read."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """True: any position is as near as any other."""
        self._check_open()
        return True

    def tell(self) -> int:
        """The position: bytes before the next one read."""
        self._check_open()
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, also beyond the end; returns it.

        Raises:
            ValueError: before the beginning, or an unknown ``whence``.
        """
        self._check_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"whence={whence} is none of 0, 1 and 2")
        position = offset + (0 if whence == os.SEEK_SET else self._at if whence == os.SEEK_CUR else self.size)
        if position < 0:
            raise ValueError(f"position {position} lies before the beginning of the file")
        self._at = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, all that is left if negative; fewer only at the end of the file."""
        self._check_open()
        left = max(0, self.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        self._ahead.reads(self._at, self._at + length)
        data = self._paged.read(self._at, length)
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; returns the bytes read, fewer than it holds only at the end of the file."""
        self._check_open()
        with memoryview(buffer).cast("B") as view:
            self._ahead.reads(self._at, min(self._at + len(view), self.size))
            got = self._paged.readinto(self._at, view)
        self._at += got
        return got

    def read_at(self, offset: int, size: int = -1) -> bytes:
        """Bytes from any position, leaving the file's own alone; any number of threads at once."""
        self._check_open()
        return self._paged.read(offset, size)

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Several ``(begin, end)`` ranges; what is not cached travels together. Any number of threads at once."""
        self._check_open()
        return self._paged.read_ranges(ranges)

    def close(self) -> None:
        """Stop reading ahead; what was read stays in the cache. Closing twice is harmless."""
        if self.closed:
            return
        try:
            # A file whose construction failed has nothing to end.
            if (ahead := self.__dict__.get("_ahead")) is not None:
                ahead.end()
            on_close, self._on_close = self.__dict__.get("_on_close"), None
            if on_close is not None:
                on_close()
        finally:
            super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"read of the closed file {self.name}")

    def __enter__(self) -> LazyFile:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        self._check_open()
        if self._reopen is None:
            raise TypeError(f"{self!r} cannot be pickled: it was not opened by a store that can be found again")
        return _opened_again, (self._reopen, self._at)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._at} of {self.size}"
        return f"<LazyFile {self.name} {state}>"


class BufferedLazyFile(io.BufferedReader):
    """A buffered :class:`LazyFile`: what ``rb`` gives. Lines and small reads are served from 64 KiB of its own.

    Threads: a lock of its own makes every method safe; they share one position. Fork, pickle: as LazyFile.
    """

    raw: LazyFile

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.raw.size

    @property
    def identity(self) -> str:
        """Which version of the object this is."""
        return self.raw.identity

    def read_at(self, offset: int, size: int = -1) -> bytes:
        """Bytes from any position, leaving the file's own alone."""
        return self.raw.read_at(offset, size)

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Several ``(begin, end)`` ranges; what is not cached travels together."""
        return self.raw.read_ranges(ranges)

    def __reduce__(self) -> Any:
        return _buffered_again, (self.raw, self.tell())


def _buffered_again(raw: LazyFile, position: int) -> BufferedLazyFile:
    file = BufferedLazyFile(raw, BUFFER)
    file.seek(position)
    return file


def _opened_again(reopen: Callable[[], LazyFile], position: int) -> LazyFile:
    file = reopen()
    file.seek(position)
    return file


def check_mode(mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
    """Refuse what :func:`open` would refuse, and writing.

    Raises:
        UnsupportedError: a mode that writes.
        ConfigError: no mode at all, or text settings for a binary file.
    """
    if set(mode) & set("wax+"):
        raise UnsupportedError(
            f"mode={mode!r}: a store only reads; write with fsspec.open or the storage's own client, then open it here"
        )
    if sorted(mode) not in (["r"], ["b", "r"], ["r", "t"]):
        raise ConfigError(f"mode={mode!r} is none of 'r', 'rt' and 'rb'")
    if "b" in mode and (encoding, errors, newline) != (None, None, None):
        raise ConfigError(f"mode={mode!r} gives bytes: encoding, errors and newline are for text")
    if buffering == 0 and "b" not in mode:
        raise ConfigError("buffering=0 is for binary files: text is decoded from a buffer")


def open_paged(
    raw: LazyFile,
    mode: str = "rb",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> IO[Any]:
    """The kind of file that :func:`open` would give for these arguments, over ``raw``.

    ``rb``: a :class:`BufferedLazyFile`, with ``buffering=0`` ``raw`` itself; ``r`` and ``rt``: a TextIOWrapper, of
    UTF-8 if no ``encoding`` is given.

    Raises as :func:`check_mode` does.
    """
    check_mode(mode, buffering, encoding, errors, newline)
    if buffering == 0:
        return cast("IO[bytes]", raw)
    buffered = BufferedLazyFile(raw, BUFFER if buffering < 2 else buffering)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
