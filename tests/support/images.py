"""Drives a format's :class:`~lazystore.formats.format.Images` without the machinery: one run at a time, waiting."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

from lazystore.fetch.source import Read, Source
from lazystore.formats.format import Ahead, Arrival, Image, Images, Opened, Pause, Wait, Want


def images_from(images: Images, source: Source, block: int) -> Iterator[Image]:
    """Images of ``block`` and those after it in its run; every second request to send ahead is refused."""
    run = bisect_right(images.runs, block) - 1
    steps = images.open(run, block)
    answer = None
    ahead: list[Want] = []
    refused = False
    try:
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Image):
                yield step
            elif isinstance(step, Ahead):
                assert not ahead and step.wants
                ahead, refused = ([] if refused else step.wants), not refused
                answer = bool(ahead)
            elif isinstance(step, Arrival):
                assert ahead
                answer, ahead = _answers(source, ahead), []
            elif not isinstance(step, (Wait, Pause)):
                answer = _answers(source, step)
    finally:
        steps.close()


def image(opened: Opened, block: int) -> Image:
    """One block's image."""
    assert opened.images is not None
    found = next(images_from(opened.images, opened.source, block))
    assert found.block == block
    return found


def items_of(data: bytes | bytearray | memoryview) -> list[bytes]:
    """The stored items of a chunk in the classic layout, checked."""
    data = bytes(data)
    (n,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{n + 1}I", data, 4)
    assert offsets[-1] == len(data) and offsets[0] >= 4 * (n + 2) and list(offsets) == sorted(offsets)
    return [data[offsets[i] : offsets[i + 1]] for i in range(n)]


def _answers(source: Source, wants: list) -> list:
    reads = {
        i: Read(w.name, w.begin, memoryview(bytearray(w.nbytes))) for i, w in enumerate(wants) if isinstance(w, Want)
    }
    sizes = source.run(list(reads.values()), stat=[w.name for w in wants if not isinstance(w, Want)], timeout=30.0)
    return [reads[i].view if i in reads else sizes[w.name] for i, w in enumerate(wants)]
