"""Local files: ``preadv`` straight into frames, through a bounded cache of descriptors.

fsspec is not involved and nothing is mapped. A file is the one that was opened first:
its size and modification time are pinned and compared after every read. The thread that reads ahead
lives in ``readahead.py``.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from lazystore.errors import ClosedError, DatasetNotFoundError, FetchError, LazyStoreError, SourceChangedError
from lazystore.fetch.flight import Outcome, Wave
from lazystore.fetch.readahead import Errand, ErrandFlight, ReadAhead
from lazystore.fetch.source import FetchCounters, Read

__all__ = ["LocalSource"]

MAX_OPEN_FILES = 64
MAX_IDENTITIES = 16384  # pinned (size, mtime) of closed files; beyond, the oldest are forgotten
AT_ONCE = 256 << 10  # bytes that are read in the caller's thread whether cached or not
MAX_BUFFERS = 512  # buffers in one preadv, below every system's IOV_MAX (POSIX: at least 16, Linux: 1024)
#: The flag of a read that takes only what is in the page cache; 0 where the system has none.
NOWAIT = int(getattr(os, "RWF_NOWAIT", 0))


class _File:
    __slots__ = ("fd", "identity", "users")

    def __init__(self, fd: int, identity: tuple[int, int]) -> None:
        self.fd = fd
        self.identity = identity
        self.users = 0


class LocalSource:
    """Byte ranges of the files below one directory.

    Parameters:
        root: the directory.

    Cost: one ``preadv`` and one ``fstat`` for each run of adjacent reads; at most 64 open files.
    Threads: any number may call; one of its own reads ahead once :meth:`start` meets bytes that are not in
    the page cache. Fork: descriptors are shared with the child, which is harmless: ``preadv``
    has no file position. Pickling: by its root.
    """

    local = True
    memory = 0

    def __init__(self, root: str) -> None:
        self.url = os.path.abspath(root)
        self.counters = FetchCounters()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._identities: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._ahead = ReadAhead()
        # A source that is dropped without close() gives its descriptors back; nothing is left to do at exit.
        self._finalizer = weakref.finalize(self, _let_go, self._files, self._ahead)
        self._finalizer.atexit = False

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        """Fill the reads one after another; see :class:`~lazystore.fetch.source.Source`.

        ``timeout`` is not used: a local read cannot be interrupted.
        """
        sizes = self._sizes(stat)
        self._read_runs(_adjacent(reads), sizes)
        return sizes

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Wave:
        """Read what is small or in the page cache at once, and have the rest read by another thread.

        See :class:`~lazystore.fetch.source.Source`.
        """
        if self._closed:
            raise self._refusal()
        outcome = Outcome(on_done)
        try:
            sizes = self._sizes(stat)
            runs = list(_adjacent(reads))
            if sum(run[-1].end - run[0].begin for run in runs) > AT_ONCE:
                runs = [run for run in runs if not self._read_cached(run, sizes)]
            else:
                self._read_runs(runs, sizes)
                runs = []
        except LazyStoreError as error:
            outcome.settle(error=error)
            return Wave(outcome, self.url, timeout)
        if not runs:
            outcome.settle(sizes)
            return Wave(outcome, self.url, timeout)
        errand = Errand(outcome, lambda pread: self._finish(runs, sizes, pread))
        flight = ErrandFlight(outcome, self.url, timeout, errand)
        self._ahead.put(errand, urgent=urgent)
        if self._closed:
            errand.abandon(self._refusal())
        return flight

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes | bytearray:
        """The whole file, at most ``limit`` bytes."""
        with self._opened(name) as file:
            size = file.identity[0]
            if size > limit:
                raise FetchError(f"{self._path(name)} has {size} bytes, at most {limit} are read", url=self._path(name))
            data = bytearray(size)
            if size:
                self._read_run(file, [Read(name, 0, memoryview(data))], size)
            return data

    def identity(self, name: str, *, timeout: float) -> str:
        """Size and time of modification; see :class:`~lazystore.fetch.source.Source`."""
        with self._opened(name) as file:
            self._check_unchanged(file, name)
            return "{}-{}".format(*file.identity)

    def forget(self, name: str) -> None:
        """Unpin a file and open it anew at the next read; see :class:`~lazystore.fetch.source.StorageSource`."""
        with self._lock:
            self._identities.pop(name, None)
            file = self._files.pop(name, None)
            if file is not None and not file.users:
                os.close(file.fd)

    def close(self) -> None:
        """Close every descriptor; reads that run in other threads finish first on their own copies."""
        with self._lock:
            self._closed = True
            _close_files(self._files)
        self._ahead.close()

    def reset_after_fork(self) -> None:
        """A lock held by a thread that does not exist in the child must not block it."""
        self._lock = threading.Lock()
        for file in self._files.values():
            file.users = 0

    def _refusal(self) -> ClosedError:
        return ClosedError(f"the source {self.url} is closed")

    def _path(self, name: str) -> str:
        return os.path.join(self.url, name)

    def _sizes(self, names: Iterable[str]) -> dict[str, int]:
        sizes = {}
        for name in names:
            with self._opened(name) as file:
                sizes[name] = file.identity[0]
        return sizes

    def _read_runs(
        self, runs: Iterable[list[Read]], sizes: dict[str, int], pread: Callable[..., int] | None = None
    ) -> None:
        for run in runs:
            with self._opened(run[0].name) as file:
                self._read_run(file, run, sizes.get(run[0].name), pread)

    def _finish(self, runs: list[list[Read]], sizes: dict[str, int], pread: Callable[..., int]) -> dict[str, int]:
        """What an errand does in its thread."""
        self._read_runs(runs, sizes, pread)
        return sizes

    def _read_cached(self, run: list[Read], sizes: dict[str, int]) -> bool:
        """Read a run if no disk is needed for it; else tell the system that it will be."""
        name, begin, wanted = run[0].name, run[0].begin, run[-1].end
        with self._opened(name) as file:
            there = max(begin, min(wanted, file.identity[0]))
            if there == wanted or name in sizes:
                try:
                    got = os.preadv(file.fd, [read.view for read in run], begin, NOWAIT) if NOWAIT else -1
                except OSError:  # not cached, or not a filesystem that can tell: the errand meets real errors again
                    got = -1
                if got == there - begin:
                    self.counters.requests += 1
                    self._landed(file, run, begin + got, sizes.get(name))
                    return True
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fd, begin, wanted - begin, os.POSIX_FADV_WILLNEED)
        return False

    def _read_run(
        self, file: _File, run: list[Read], size: int | None, pread: Callable[..., int] | None = None
    ) -> None:
        begin, position, wanted = run[0].begin, run[0].begin, run[-1].end
        views = [read.view for read in run]
        self.counters.requests += 1
        while position < wanted:
            try:
                got = (pread or os.preadv)(file.fd, _skip(views, position - begin), position)
            except OSError as error:
                if isinstance(error, LazyStoreError):
                    raise  # the errand was called off
                path = self._path(run[0].name)
                raise FetchError(
                    f"{path}, bytes {begin}..{wanted}: the read failed at {position}: {error.strerror}",
                    url=path, begin=begin, end=wanted, attempts=1,
                ) from error  # fmt: skip
            if got == 0:
                break
            position += got
        self._landed(file, run, position, size)

    def _landed(self, file: _File, run: list[Read], position: int, size: int | None) -> None:
        """Check and tell what arrived: the bytes of a run up to ``position``."""
        begin, wanted = run[0].begin, run[-1].end
        self.counters.bytes_fetched += position - begin
        self._check_unchanged(file, run[0].name)
        for read in run:
            read.got = max(0, min(position, read.end) - read.begin)
        if position < wanted and size is None:
            path = self._path(run[0].name)
            raise FetchError(
                f"{path} ends at byte {position}, bytes {begin}..{wanted} were expected; it is truncated",
                url=path,
                begin=begin,
                end=wanted,
                attempts=1,
            )

    def _check_unchanged(self, file: _File, name: str) -> None:
        status = os.fstat(file.fd)
        if (status.st_size, status.st_mtime_ns) != file.identity:
            raise self._changed(name)

    def _changed(self, name: str) -> SourceChangedError:
        path = self._path(name)
        return SourceChangedError(
            f"{path} was changed while it was being read (size or modification time differ); open the dataset anew",
            url=path,
        )

    @contextmanager
    def _opened(self, name: str) -> Iterator[_File]:
        """A descriptor that stays open for the length of the ``with`` block."""
        with self._lock:
            if self._closed:
                raise self._refusal()
            file = self._files.get(name) or self._open(name)
            self._files.move_to_end(name)
            file.users += 1
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1
                if not file.users and self._files.get(name) is not file:
                    os.close(file.fd)

    def _open(self, name: str) -> _File:
        """Open, pin the identity, and close the least recently used file beyond the bound. Under the lock."""
        path = self._path(name)
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise DatasetNotFoundError(f"{path!r} is no name a file can have; the index is damaged") from None
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetNotFoundError(
                f"{path} does not exist; the dataset is incomplete or the path is wrong"
            ) from None
        except OSError as error:
            raise FetchError(f"{path} cannot be opened: {error.strerror}", url=path) from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise FetchError(f"{path} is not a regular file; give the directory of a dataset", url=path)
        identity = (status.st_size, status.st_mtime_ns)
        if self._identities.setdefault(name, identity) != identity:
            os.close(fd)
            raise self._changed(name)
        if len(self._identities) > MAX_IDENTITIES:
            self._identities.popitem(last=False)
        file = self._files[name] = _File(fd, identity)
        if len(self._files) > MAX_OPEN_FILES:
            _, oldest = self._files.popitem(last=False)
            if not oldest.users:
                os.close(oldest.fd)
        return file

    def __reduce__(self) -> tuple[type[LocalSource], tuple[str]]:
        return LocalSource, (self.url,)

    def __repr__(self) -> str:
        return f"<LocalSource {self.url}, {len(self._files)} files open>"


def _let_go(files: OrderedDict[str, _File], ahead: ReadAhead) -> None:
    _close_files(files)
    ahead.close(join=False)


def _close_files(files: OrderedDict[str, _File]) -> None:
    """Close what nobody reads; the last reader closes the rest."""
    for file in files.values():
        if not file.users:
            os.close(file.fd)
    files.clear()


def _adjacent(reads: Sequence[Read]) -> Iterator[list[Read]]:
    """Group reads that continue each other in one file, so that one preadv serves them."""
    run: list[Read] = []
    for read in reads:
        if run and (run[-1].name != read.name or run[-1].end != read.begin or len(run) == MAX_BUFFERS):
            yield run
            run = []
        if len(read.view):
            run.append(read)
    if run:
        yield run


def _skip(views: list[memoryview], done: int) -> list[memoryview]:
    """The buffers that remain after ``done`` bytes."""
    if not done:
        return views
    rest = []
    for view in views:
        if done < len(view):
            rest.append(view[done:])
        done = max(0, done - len(view))
    return rest
