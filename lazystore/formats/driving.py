"""Making blocks of :class:`~lazystore.formats.format.Images` one after the other, in the caller's thread.

For formats that look something up in a file of another format, and for tests. What readers of a dataset use, with
memory that is divided and many runs under way, is the cache's engine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from lazystore.fetch.source import Read, Source
from lazystore.formats.format import Ahead, Arrival, Image, Images, Pause, Size, Wait, Want

__all__ = ["answers", "image_of", "images_of"]


def image_of(images: Images, source: Source, block: int, timeout: float) -> Image:
    """The image of one block; raises as :func:`images_of`."""
    with closing(images_of(images, source, block, timeout)) as made:
        return next(made)


def images_of(
    images: Images, source: Source, first: int, timeout: float, allow: Callable[[int], None] | None = None
) -> Generator[Image, None, None]:
    """The images of block ``first`` and of those after it in its run, in order. Close it, if not at its end.

    Parameters:
        timeout: seconds each read may take.
        allow: called before each step with the bytes that the run may hold then; raises where these are too many.

    Raises:
        whatever the run, the source and ``allow`` do.
    """
    run = bisect_right(images.runs, first) - 1
    answer: Any = None
    with closing(images.open(run, first)) as steps:
        while True:
            if allow is not None:
                allow(images.scratch(run))
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Image):
                yield step
            elif isinstance(step, Wait):
                raise RuntimeError(f"run {run} waits for another run, and there is none")
            elif isinstance(step, (Ahead, Arrival)):
                if isinstance(step, Arrival):
                    raise RuntimeError(f"run {run} waits for what was not sent for")
                answer = False  # nothing comes while something else is done here
            elif not isinstance(step, Pause):
                if allow is not None:
                    allow(images.scratch(run))
                answer = answers(source, step, timeout)


def answers(source: Source, step: Sequence[Want | Size], timeout: float) -> list[memoryview | int]:
    """What a step asks for, read in one wave into memory of its own."""
    reads = [Read(want.name, want.begin, memoryview(bytearray(want.nbytes))) for want in step if isinstance(want, Want)]
    found = source.run(reads, stat=[want.name for want in step if isinstance(want, Size)], timeout=timeout)
    parts = iter(reads)
    return [_landed(next(parts)) if isinstance(want, Want) else found[want.name] for want in step]


def _landed(read: Read) -> memoryview:
    return read.view[: read.got] if read.got < len(read.view) else read.view
