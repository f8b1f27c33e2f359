"""A channel: messages between the caller and one worker process, over two pipes and, for large ones, a file in memory.

Knows bytes and file descriptors; what a value looks like as bytes is ``packing``'s business, what is said that of
``worker_main``.

Large messages (over ``INLINE`` bytes) lie in slots of a file made by ``memfd_create`` (Linux), which both sides write
and read: nothing is mapped, nothing has a name. A slot is used again only after the other side said, in a message's
head, that it took what lay there; so no number of messages in flight is unsafe, and with one or two in flight each side
uses one or two slots, whose pages stay warm. All other bytes go through the pipes. Two messages of each side fit into a
pipe of the usual 64 KiB, so that a worker with two chunks never waits for the caller to read.

Without such a file (macOS, or it cannot be made) ``Channel.bulk`` is False and large messages go through the pipes. A
worker then waits while the caller does not read. The caller does while a worker that is given a large message is at
work; it takes in what the worker says meanwhile, so that neither waits for ever. To lose no time: while ``bulk`` is
False, give a worker a chunk only when it has nothing else to do. ``bulk`` also becomes False when the file can take no
more (ENOSPC, ENOMEM, a limit on file sizes); such messages are counted in ``through_pipe``.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from lazystore.parallel.workers.packing import Buffer, Packed, Part, empty, load, parts_of_memory, parts_of_store

__all__ = ["INLINE", "Channel", "Kind", "Message", "open_channel"]

#: bytes of a value that go through the pipe at most, where there is a file
INLINE = 24 << 10
#: read from a pipe at once
_GULP = 64 << 10
#: the system takes so many pieces at once
_IOV_MAX = 1024
#: slots are this far apart in the file; the first stretch is for what is under way
_SLOT = 1 << 40
_MOST_SLOTS = 64
#: the file's first page is for notes, which no message has to wait for: which item is under way, which chunk was begun
#: last, and which ones were withdrawn, each in a place that others so many numbers further on have as well
_NOTES = 4096
_BEGUN_AT = 16
_WITHDRAWN_AT = 64
_WITHDRAWN = 64

_MAGIC = 0x5A4C
_HEAD = struct.Struct("<HB?HhqQQ")
_PROGRESS = struct.Struct("<qd")
_NUMBER = struct.Struct("<q")

#: what the system says when a file in memory can take no more
_FULL = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT, errno.EPERM})


class Kind(enum.IntEnum):
    """What a message is about; ``worker_main`` says what comes with each."""

    HELLO = 1
    REFUSED = 2
    REPORT = 3
    AGAIN = 4
    JOB = 5
    CHUNK = 6
    END = 7
    PROGRESS = 8  # the channel keeps it to itself
    SKIPPED = 9


_KINDS = {int(kind): kind for kind in Kind}


class Message:
    """What came. Its value is taken apart when it is asked for.

    A large value lies in a slot until :meth:`drop` or until nobody holds the message.

    Attributes:
        kind, number, meta: as sent.
        nbytes: what its value takes; 0 without one.
    """

    __slots__ = ("_dropped", "_parts", "kind", "meta", "nbytes", "number")

    def __init__(
        self,
        kind: Kind,
        number: int,
        meta: bytes = b"",
        nbytes: int = 0,
        parts: Callable[[], Iterator[Part]] | None = None,
        dropped: Callable[[], object] | None = None,
    ) -> None:
        self.kind = kind
        self.number = number
        self.meta = meta
        self.nbytes = nbytes
        self._parts = parts
        self._dropped = dropped

    def parts(self) -> Iterator[Part]:
        """Its value's parts, for ``packing.load``; may be asked for again before it is dropped.

        Raises:
            EOFError: there is none any more, or bytes are missing.
        """
        if self._parts is None:
            raise EOFError(f"the message {self.kind.name} {self.number} has no value")
        return self._parts()

    def unpack(self) -> Any:
        """The value, when it is one part.

        Raises:
            EOFError: there is none any more, or bytes are missing.
            Exception: whatever unpickling it raises.
        """
        return load(next(self.parts()))

    def drop(self) -> None:
        """The value's bytes are not needed any more. May be called twice."""
        self._parts = None
        dropped, self._dropped = self._dropped, None
        if dropped is not None:
            dropped()

    def __del__(self) -> None:
        self.drop()


def open_channel() -> tuple[Channel, tuple[int, ...]]:
    """The caller's channel, and the file descriptors (two or three) for the worker's: :meth:`Channel.in_worker`.

    The caller closes those as soon as the worker was started: else it never sees the worker's end. None of them is
    that of a standard stream; all close on exec.

    Raises:
        OSError: no more file descriptors.
    """
    with contextlib.ExitStack() as undo:

        def own(fd: int) -> int:
            if 0 <= fd <= 2:
                import fcntl

                low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
                os.close(low)
            undo.callback(os.close, fd)
            return fd

        from_caller, to_worker = map(own, os.pipe())
        from_worker, to_caller = map(own, os.pipe())
        store = _new_store()
        if store >= 0:
            store = own(store)
            shared = (own(os.dup(store)),)
        channel = Channel(from_worker, to_worker, store, drains=True)
        undo.pop_all()
    return channel, (from_caller, to_caller, *(shared if store >= 0 else ()))


def _new_store() -> int:
    """A file in memory without a name; -1 where there is none."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        store = os.memfd_create("lazystore", os.MFD_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return -1  # forbidden, or not in this kernel
    try:
        os.pwrite(store, bytes(_NOTES), 0)  # so that there is memory for notes whatever comes
    except OSError:
        os.close(store)
        return -1
    return store


class Channel:
    """One side of a connection between two processes.

    Threads: one at a time. Fork: a child of either side must :meth:`close` its copy before it does anything
    else. Interrupted (Ctrl-C) in the middle of a call it is of no more use. Does not pickle.

    Parameters:
        reading, writing: pipe ends; owned, like ``store``.
        store: the file that both sides share; -1: none.
        drains: this is the caller's side: while a message cannot be written, it reads what the other side says.

    Attributes:
        reading: what to wait for until it can be read; -1 when closed.
        ended: the other side is gone; it said nothing behind what :meth:`messages` gave.
        through_pipe: large messages that went through the pipe.
    """

    def __init__(self, reading: int, writing: int, store: int = -1, *, drains: bool = False) -> None:
        self.reading = reading
        self.ended = False
        self.through_pipe = 0
        self._writing = writing
        self._store = store
        self._drains = drains
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._inbox: deque[Message] = deque()
        self._poll = select.poll()
        self._poll.register(reading, select.POLLIN)
        self._buffer = b""  # what was read
        self._at = 0  # how far it was looked at
        self._dry = False  # nothing more was there
        self._reader = self._read()
        self._lent: dict[int, int] = {}  # slot -> number of the large message that lies there
        self._staged = 0  # large messages so far
        self._arrived = 0  # of the other side
        self._open: set[int] = set()  # those of them that still lie in their slots
        self._room = float("inf")  # larger ones do not fit into the file
        self._progress = (-1, 0.0)

    @classmethod
    def in_worker(cls, fds: Sequence[int]) -> Channel:
        """The worker's side, of what :func:`open_channel` gave."""
        return cls(*fds)

    @property
    def bulk(self) -> bool:
        """Whether large messages go through the file, so that sending them never waits for the other side."""
        return self._store >= 0 and self._room == float("inf")

    @property
    def pending(self) -> bool:
        """Whether :meth:`messages` has something although the pipe may be empty: what came while something was sent."""
        return bool(self._inbox)

    def send(self, kind: Kind, number: int = 0, packed: Packed | None = None, meta: bytes = b"") -> None:
        """Send a message.

        Parameters:
            meta: a few bytes that are there even if the value cannot be unpacked.

        Raises:
            BrokenPipeError: the other side is gone.
        """
        if packed is None:
            self._put([_HEAD.pack(_MAGIC, kind, True, len(meta), -1, number, 0, self._taken()) + meta])
            return
        plain = packed.plain
        pieces = packed.pieces if plain else [packed.head(), *packed.pieces]
        nbytes = packed.nbytes if plain else len(pieces[0]) + packed.nbytes
        slot = self._stage(pieces, nbytes) if nbytes > INLINE else -1
        head = _HEAD.pack(_MAGIC, kind, plain, len(meta), slot, number, nbytes, self._taken()) + meta
        if slot >= 0:
            self._put([head])
        elif nbytes <= INLINE:
            self._put([b"".join((head, *pieces))])
        else:
            self.through_pipe += 1
            self._put([head, *pieces])

    def messages(self) -> list[Message]:
        """All messages that came whole, without waiting."""
        self._listen()
        found = list(self._inbox)
        self._inbox.clear()
        return found

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if none came within so many seconds (None: no limit).

        Raises:
            EOFError: the other side is gone.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._inbox:
            if self.ended:
                raise EOFError("the other side is gone")
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            if not self._poll.poll(left):
                return None
            self._listen()
        return self._inbox.popleft()

    def note_progress(self, index: int) -> None:
        """Say which item is begun; -1: none is under way."""
        now = time.monotonic()
        if self._store >= 0:
            os.pwrite(self._store, _PROGRESS.pack(index, now), 0)
        else:
            self.send(Kind.PROGRESS, meta=_PROGRESS.pack(index, now))

    def progress(self) -> tuple[int, float]:
        """The item that the other side said it is at, and since when (``time.monotonic``); -1: none.

        Workers say so only while a job has a timeout. Without the file, what :meth:`messages` has come across.
        """
        if self._store < 0:
            return self._progress
        data = os.pread(self._store, _PROGRESS.size, 0)
        while data != (again := os.pread(self._store, _PROGRESS.size, 0)):  # it might be half written
            data = again
        index, since = _PROGRESS.unpack(data)
        return (index, since) if since else (-1, 0.0)  # zeros: nothing was noted

    # Worker: notes that a chunk is begun, then looks whether it was withdrawn. Caller: notes that it is withdrawn, then
    # looks whether it was begun. Whoever is second sees what the first one noted, so they never both have it.

    def begin(self, number: int) -> bool:
        """Say that a chunk is begun; False: the caller has withdrawn it. Without the file it cannot.

        Parameters:
            number: larger than those before, above 0.
        """
        if self._store < 0:
            return True
        os.pwrite(self._store, _NUMBER.pack(number), _BEGUN_AT)
        return self._noted(_WITHDRAWN_AT + number % _WITHDRAWN * _NUMBER.size) != number

    def withdraw(self, number: int) -> bool:
        """Take a chunk back that was sent; False: it was begun, or (the other side will say so) skipped just now."""
        if self._store < 0:
            return False
        os.pwrite(self._store, _NUMBER.pack(number), _WITHDRAWN_AT + number % _WITHDRAWN * _NUMBER.size)
        return self.begun() < number

    def begun(self) -> int:
        """The chunk that was begun last; 0: none was; -1: it is not known, for want of the file."""
        return self._noted(_BEGUN_AT) if self._store >= 0 else -1

    def _noted(self, at: int) -> int:
        number: int = _NUMBER.unpack(os.pread(self._store, _NUMBER.size, at))[0]
        return number

    def trim(self) -> None:
        """Give the file's memory back. Only between runs, when nothing is on its way."""
        self._room = float("inf")
        if self._store >= 0:
            os.ftruncate(self._store, _NOTES)
            os.pwrite(self._store, bytes(_PROGRESS.size), 0)

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        fds = (self.reading, self._writing, self._store)
        self.reading = self._writing = self._store = -1
        self.ended = True
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _stage(self, pieces: Sequence[Buffer], nbytes: int) -> int:
        """Write a large message into a slot; -1 if that cannot be."""
        # the caller has the even ones, the worker the odd ones
        slot = next((slot for slot in range(not self._drains, _MOST_SLOTS, 2) if slot not in self._lent), -1)
        if slot < 0 or self._store < 0 or nbytes >= self._room:
            return -1
        begin = _SLOT * (slot + 1)
        try:
            _write_all(pieces, lambda views, done: os.pwritev(self._store, views, begin + done))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._room = nbytes
            return -1
        self._lent[slot] = self._staged
        self._staged += 1
        return slot

    def _put(self, pieces: Sequence[Buffer]) -> None:
        """Write into the pipe; what comes meanwhile is read where the other side may be waiting for that."""

        def write(views: Sequence[Buffer], done: int) -> int:
            while True:
                try:
                    return os.writev(self._writing, views)
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._writing, select.POLLOUT)
                    if self._drains and not self.ended:
                        poll.register(self.reading, select.POLLIN)
                    if any(fd == self.reading for fd, _ in poll.poll()):
                        self._listen()

        _write_all(pieces, write)

    def _taken(self) -> int:
        """Large messages of the other side whose slots are free again, counted from the first one."""
        return min(self._open, default=self._arrived)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Read what is there; whole messages go into the inbox."""
        if not self.ended:
            self.ended = next(self._reader, True)

    def _read(self) -> Generator[bool, None, None]:
        """Reads messages; yields (False) where it has to wait. Its end is that of the channel."""
        with contextlib.suppress(EOFError):
            while True:
                yield from self._have(_HEAD.size)
                magic, kind, plain, aside, slot, number, nbytes, taken = _HEAD.unpack_from(self._buffer, self._at)
                if magic != _MAGIC or kind not in _KINDS or slot >= _MOST_SLOTS or nbytes > _SLOT:
                    return  # something else wrote to the pipe: nothing that follows can be trusted
                here = nbytes if slot < 0 and nbytes <= INLINE else 0
                yield from self._have(_HEAD.size + aside + here)
                begin = self._at + _HEAD.size + aside
                meta = self._buffer[begin - aside : begin]
                self._at = begin + here
                if self._lent:
                    self._lent = {slot: staged for slot, staged in self._lent.items() if staged >= taken}
                parts = dropped = None
                if slot >= 0:
                    parts, dropped = self._in_slot(slot, nbytes, plain)
                elif here:
                    parts = partial(parts_of_memory, memoryview(self._buffer)[begin : begin + here], plain)
                elif nbytes:
                    data = empty(nbytes)
                    yield from self._fill(data)
                    parts = partial(parts_of_memory, data, plain)
                message = Message(_KINDS[kind], number, meta, nbytes, parts, dropped)
                if kind == Kind.PROGRESS:
                    self._progress = _PROGRESS.unpack(meta)
                else:
                    self._inbox.append(message)
                del message, parts, dropped  # while it waits, nothing is held

    def _have(self, count: int) -> Generator[bool, None, None]:
        """Read until the buffer holds so many bytes that were not looked at."""
        while len(self._buffer) - self._at < count:
            yield from self._gulp()

    def _fill(self, view: memoryview) -> Generator[bool, None, None]:
        """Read until the view is full.

        Raises:
            EOFError: the other side is gone.
        """
        while view:
            if self._at == len(self._buffer):
                yield from self._gulp()
            some = memoryview(self._buffer)[self._at : self._at + len(view)]
            view[: len(some)] = some
            view = view[len(some) :]
            self._at += len(some)

    def _gulp(self) -> Generator[bool, None, None]:
        """Read some more of what is in the pipe.

        Raises:
            EOFError: the other side is gone.
        """
        while True:
            if self._dry:
                self._dry = False
                yield False
            try:
                data = os.read(self.reading, _GULP)
            except BlockingIOError:
                self._dry = True
                continue
            if not data:
                raise EOFError("the other side is gone")
            self._dry = len(data) < _GULP  # there was no more: saves the question
            self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
            self._at = 0
            return

    def _in_slot(
        self, slot: int, nbytes: int, plain: bool
    ) -> tuple[Callable[[], Iterator[Part]], Callable[[], object]]:
        """How to read, and how to give back, what lies in the file."""
        place, begin = self._arrived, _SLOT * (slot + 1)
        self._arrived += 1
        self._open.add(place)
        return lambda: parts_of_store(self._store, begin, nbytes, plain), lambda: self._open.discard(place)


def _write_all(pieces: Sequence[Buffer], write: Callable[[Sequence[Buffer], int], int]) -> None:
    """Write pieces, as many at once as the system takes.

    Parameters:
        write: writes a start of some views, from so many bytes on; returns how many it wrote.
    """
    done = 0
    if len(pieces) == 1:  # mostly
        done = write(pieces, 0)
        if done == len(pieces[0]):
            return
        pieces = [memoryview(pieces[0])[done:]]
    views = deque(memoryview(piece).cast("B") for piece in pieces if len(piece))
    while views:
        count = write(list(islice(views, _IOV_MAX)), done)
        done += count
        while views and count >= len(views[0]):
            count -= len(views.popleft())
        if count:
            views[0] = views[0][count:]
