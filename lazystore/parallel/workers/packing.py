"""Values as bytes: a pickle, large buffers beside it, nothing large copied on the way.

``pack`` makes a :class:`Packed`, which is written piece by piece; ``load`` is the other end. How the bytes travel is
``transport``'s business.

The pickler writes into a list: bytes and bytearrays of 64 KiB and more are handed to a pickler's file as they are,
at any depth of the value, and read back by the unpickler straight to where they stay. Buffers of arrays travel beside
the pickle (protocol 5, PEP 574); arrays that could be written to can be written to on the other side.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Buffer", "Packed", "Part", "joined", "load", "pack", "packed_pickle"]

Buffer: TypeAlias = bytes | bytearray | memoryview

#: bytes of each part's pickle, and of the buffers beside it
Shape: TypeAlias = list[tuple[int, Sequence[int]]]

#: a buffer of this many bytes travels beside the pickle; smaller ones cost less inside it
BESIDE = 32 << 10
#: a pickle of up to so many bytes is read whole before it is taken apart
WHOLE = 256 << 10

_COUNT = struct.Struct("<Q")


class Packed(NamedTuple):
    """Values ready to be written; may be sent several times, to several receivers.

    Attributes:
        pieces: what is written, in this order.
        shape: how the pieces are cut into parts: for each the bytes of its pickle, how many buffers are beside it, and
            the bytes of each of those.
        nbytes: of all pieces.
    """

    pieces: list[Buffer]
    shape: list[int]
    nbytes: int

    @property
    def plain(self) -> bool:
        """Whether it is one pickle and nothing else."""
        return len(self.shape) == 2

    def head(self) -> bytes:
        """What is written before the pieces of one that is not plain."""
        return struct.pack(f"<{len(self.shape) + 1}Q", len(self.shape), *self.shape)


class _Pieces:
    """The file that a pickler writes to."""

    __slots__ = ("nbytes", "pieces")

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.nbytes = 0

    def write(self, piece: Buffer) -> None:
        if not isinstance(piece, (bytes, bytearray)):
            piece = bytes(piece)  # a view of memory that is the pickler's
        self.pieces.append(piece)
        self.nbytes += len(piece)


def pack(value: object) -> Packed:
    """A value as one part. Takes 2 us more than ``pickle.dumps`` for a small one.

    What is large is not copied: until it is sent, the value must stay as it is.

    Raises:
        Exception: whatever pickling it raises: ``pickle.PicklingError``, ``TypeError``, ``AttributeError``, ...
    """
    file = _Pieces()
    beside: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BESIDE:
            return True
        beside.append(raw)
        return False

    pickle.Pickler(file, 5, buffer_callback=in_band).dump(value)
    if not beside:
        return Packed(file.pieces, [file.nbytes, 0], file.nbytes)
    sizes = [raw.nbytes for raw in beside]
    return Packed([*file.pieces, *beside], [file.nbytes, len(sizes), *sizes], file.nbytes + sum(sizes))


def packed_pickle(data: bytes) -> Packed:
    """What another pickler made (cloudpickle), as one part."""
    return Packed([data], [len(data), 0], len(data))


def joined(several: Iterable[Packed]) -> Packed:
    """All their parts, one after the other: one of them that cannot be unpacked does not hurt the others."""
    pieces: list[Buffer] = []
    shape: list[int] = []
    nbytes = 0
    for packed in several:
        pieces += packed.pieces
        shape += packed.shape
        nbytes += packed.nbytes
    return Packed(pieces, shape, nbytes)


class Part(NamedTuple):
    """A pickle, or where to read it from, and the buffers beside it."""

    body: Buffer | Stretch
    buffers: list[memoryview]


def load(part: Part) -> Any:
    """The value that was packed.

    Raises:
        Exception: whatever unpickling it raises.
    """
    if isinstance(part.body, Stretch):
        return pickle.Unpickler(part.body, buffers=part.buffers).load()
    return pickle.loads(part.body, buffers=part.buffers)


class Stretch(io.RawIOBase):
    """A stretch of a file, for an unpickler: large strings of bytes are read straight to where they stay."""

    def __init__(self, fd: int, begin: int, count: int) -> None:
        super().__init__()
        self._fd = fd
        self._at = begin
        self._end = begin + count

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1, /) -> bytes:
        left = self._end - self._at
        data = read_at(self._fd, left if count < 0 else min(count, left), self._at)
        self._at += len(data)
        return data

    def readinto(self, into: Any, /) -> int:
        view = memoryview(into).cast("B")[: self._end - self._at]
        fill_at(self._fd, view, self._at)
        self._at += len(view)
        return len(view)


#: the largest block that glibc's malloc takes for a reason to keep more
_MOST_FREED = 32 << 20
_freed = 0


def keep_freed(nbytes: int) -> None:
    """Have the C library keep the memory of values that are dropped for those that come next.

    glibc's malloc gives it back to the system as soon as twice the largest block ever freed lies free, and has to get
    it again page by page: with results of megabytes, of which now two and now five are there, that takes half of the
    caller's time. So a block of four times their size, which was never touched, is freed once: up to eight of them,
    64 MiB at most, stay. 20 us at each doubling of the largest size.
    """
    global _freed
    wanted = min(1 << (4 * nbytes).bit_length(), _MOST_FREED - (64 << 10))
    if wanted > _freed:
        _freed = wanted
        bytes(wanted)


def empty(count: int) -> memoryview:
    """Memory for a buffer; not zeroed where numpy can give such."""
    make = getattr(sys.modules.get("numpy"), "empty", None)  # None as well while another thread imports it
    return memoryview(bytearray(count) if make is None else make(count, "u1"))


def fill_at(fd: int, view: memoryview, offset: int) -> None:
    """Read until the view is full.

    Raises:
        EOFError: the file ends before.
    """
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise EOFError(f"{len(view) - done} bytes of {len(view)} are missing")
        done += count


def read_at(fd: int, count: int, offset: int) -> bytes:
    """Exactly so many bytes.

    Raises:
        EOFError: the file ends before.
    """
    data = os.pread(fd, count, offset)
    if len(data) == count:
        return data
    whole = bytearray(count)  # the system gives at most 2 GiB at once
    fill_at(fd, memoryview(whole), offset)
    return bytes(whole)


def parts_of_memory(data: memoryview, plain: bool) -> Iterator[Part]:
    """Parts of what was read whole.

    Raises:
        EOFError: it is cut short, or damaged.
    """
    if plain:
        yield Part(data, [])
        return
    shape, at = _shape(lambda count, at: data[at : at + count], len(data))
    for body, sizes in shape:
        pickled = data[at : at + body]
        at += body
        buffers: list[memoryview] = []
        for size in sizes:
            buffers.append(into := empty(size))
            into[:] = data[at : at + size]
            at += size
        yield Part(pickled, buffers)


def parts_of_store(fd: int, offset: int, nbytes: int, plain: bool) -> Iterator[Part]:
    """Parts of what lies in a file, read as they are asked for.

    Raises:
        EOFError: it is cut short, or damaged.
    """
    if nbytes > WHOLE:
        keep_freed(nbytes)
    if plain:
        at = 0
        shape: Shape = [(nbytes, ())]
    else:
        shape, at = _shape(lambda count, at: read_at(fd, count, offset + at), nbytes)
    at += offset
    for body, sizes in shape:
        pickled = Stretch(fd, at, body) if body > WHOLE else read_at(fd, body, at)
        at += body
        buffers: list[memoryview] = []
        for size in sizes:
            buffers.append(into := empty(size))
            fill_at(fd, into, at)
            at += size
        yield Part(pickled, buffers)


def _shape(read: Callable[[int, int], Buffer], nbytes: int) -> tuple[Shape, int]:
    """Bytes of each part's pickle and of the buffers beside it, and where the first part begins."""
    word = _COUNT.size
    if nbytes < word:
        raise EOFError(f"a message of {nbytes} bytes has no parts")
    (count,) = _COUNT.unpack(read(word, 0))
    begin = word * (1 + count)
    if begin > nbytes:
        raise EOFError(f"a message of {nbytes} bytes is too short for what it says of itself")
    numbers = struct.unpack(f"<{count}Q", read(word * count, word))
    shape: Shape = []
    at, total = 0, begin
    while at + 2 <= count:
        body, beside = numbers[at : at + 2]
        sizes = numbers[at + 2 : at + 2 + beside]
        shape.append((body, sizes))
        total += body + sum(sizes)
        at += 2 + beside
    if at != count or total != nbytes:
        raise EOFError(f"a message's parts do not add up: {total} bytes of {nbytes}")
    return shape, begin
