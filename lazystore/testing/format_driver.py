"""Reading an opened dataset without the machinery: chunks as they are stored, inflated or made, one after the other.

Slow and plain on purpose: it holds one chunk at a time and checks what a format promises about each
(:mod:`lazystore.formats.format`). What is done with the items is ``format_exam``'s business.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from lazystore.fetch.source import Read, Source
from lazystore.formats.driving import answers
from lazystore.formats.format import Ahead, Arrival, Image, Images, Opened, Pause, Size, Wait, Want

__all__ = ["chunk_bytes", "interleaved", "made_blocks", "split_items"]

TIMEOUT = 30.0
#: Steps in a row that only wait, with nobody to wait for.
MOST_WAITS = 3
#: Bytes an inflater may hold.
INFLATER_LIMIT = 256 << 20
PIECE = 64 << 10
_END = object()


def split_items(data: bytes | bytearray | memoryview, count: int) -> list[bytes]:
    """The stored items of a chunk in the classic layout.

    Raises:
        AssertionError: it is not in that layout, or has not ``count`` items.
    """
    data = bytes(data)
    assert len(data) >= 8, f"{len(data)} bytes are no chunk: not even a count and an offset"
    (found,) = struct.unpack_from("<I", data)
    assert found == count, f"it has {found} items, counts says {count}"
    assert len(data) >= 4 * (found + 2), f"its table of {found} items does not fit in {len(data)} bytes"
    offsets = struct.unpack_from(f"<{found + 1}I", data, 4)
    assert list(offsets) == sorted(offsets), "its offsets do not ascend"
    assert offsets[0] >= 4 * (found + 2), f"its first item begins at byte {offsets[0]}, inside the table"
    assert offsets[-1] == len(data), f"its last offset is {offsets[-1]}, its length {len(data)}"
    return [data[begin:end] for begin, end in pairwise(offsets)]


def chunk_bytes(opened: Opened, chunk: int) -> bytes:
    """A chunk that is stored, or encoded as a whole."""
    name = opened.names[chunk]
    size = opened.source.run([], stat=[name], timeout=TIMEOUT)[name]
    if opened.codec is None:
        return _read(opened.source, Want(name, 0, size)).tobytes()
    stream = _Stream(opened.source, name, size)
    hint = opened.hints[chunk]
    inflater = opened.codec.open(stream, limit=INFLATER_LIMIT, stored=size, size=hint)
    found = bytearray()
    while True:
        piece = bytearray(PIECE)
        got = inflater.readinto(memoryview(piece))
        assert 0 <= got <= PIECE, f"readinto of {PIECE} bytes says it read {got}"
        found += piece[:got]
        if got < PIECE:
            return bytes(found)


def made_blocks(opened: Opened, first: int, *, steps: int = -1) -> Iterator[Image]:
    """The images of block ``first`` and those after it in its run, each checked for what the contract says.

    Parameters:
        steps: close the run after so many steps; -1: go to its end.

    Raises:
        AssertionError: the contract is broken; says how.
    """
    yield from interleaved(opened, [first], steps=steps)


def interleaved(opened: Opened, firsts: Sequence[int], *, steps: int = -1) -> Iterator[Image]:
    """The same for several runs, a step of each in turn."""
    images = opened.images
    assert images is not None
    runs = {first: bisect_right(images.runs, first) - 1 for first in firsts}
    making = {first: _steps(images, opened.source, run, first, steps) for first, run in runs.items()}
    due = {first: first for first in firsts}
    waits = 0
    while making:
        for first, going in list(making.items()):
            run = runs[first]
            step = next(going, _END)
            if step is _END:
                del making[first]
                last = images.runs[run + 1]
                assert steps >= 0 or due[first] == last, f"run {run} ended before block {due[first]} of {last}"
                continue
            waits = waits + 1 if isinstance(step, Wait) else 0
            assert waits <= MOST_WAITS * len(making), f"run {run} waits for another run, and none goes on"
            if isinstance(step, Image):
                assert step.block == due[first], f"run {run} made block {step.block} where {due[first]} is next"
                due[first] += 1
                yield step


def _steps(images: Images, source: Source, run: int, first: int, steps: int) -> Iterator[Any]:
    """The steps of a run, wants answered."""
    making = images.open(run, first)
    answer: Any = None
    ahead: Any = None
    try:
        while steps:
            steps -= 1
            try:
                step = making.send(answer)
            except StopIteration:
                return
            if isinstance(step, Ahead):
                assert ahead is None, f"run {run} sends ahead twice"
                ahead, answer = _answers(source, step.wants, run, images.scratch(run)), True
            elif isinstance(step, Arrival):
                assert ahead is not None, f"run {run} waits for what it never sent for"
                ahead, answer = None, ahead
            else:
                quiet = isinstance(step, (Image, Wait, Pause))
                answer = None if quiet else _answers(source, step, run, images.scratch(run))
            yield step
    finally:
        try:
            making.close()
        except RuntimeError as error:
            raise AssertionError(f"run {run} does not let itself be closed: {error}") from error


def _answers(source: Source, step: Any, run: int, scratch: int) -> list[Any]:
    assert isinstance(step, list) and step, f"run {run} yielded {step!r}: no wants and no other step"
    wanted = 0
    for want in step:
        assert isinstance(want, (Want, Size)), f"run {run} wants {want!r}: neither a Want nor a Size"
        if isinstance(want, Want):
            assert want.begin >= 0 and want.nbytes > 0, f"run {run} wants {want.nbytes} bytes from {want.begin} on"
            wanted += want.nbytes
    assert wanted <= scratch, f"run {run} wants {wanted} bytes together; its scratch is {scratch}"
    return answers(source, step, TIMEOUT)


def _read(source: Source, want: Want) -> memoryview:
    view = memoryview(bytearray(want.nbytes))
    if want.nbytes:
        source.run([Read(want.name, want.begin, view)], timeout=TIMEOUT)
    return view


class _Stream:
    """A stored object as the forward stream that codecs read."""

    def __init__(self, source: Source, name: str, size: int) -> None:
        self._source, self._name, self._size = source, name, size
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; fewer only at the end."""
        data = self.peek(size if size >= 0 else self._size)
        self._at += len(data)
        return data

    def peek(self, size: int, /) -> bytes:
        """The next bytes without passing them."""
        return _read(self._source, Want(self._name, self._at, max(0, min(size, self._size - self._at)))).tobytes()
