"""Compressed text as blocks of items: inflated from the beginning of its file, which is a run."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Sequence
from itertools import accumulate
from typing import Any

from lazystore.errors import FormatError
from lazystore.formats.format import Image, Step, Want
from lazystore.formats.text_index import TextIndex
from lazystore.formats.text_inflate import PIECE_BYTES, open_stream
from lazystore.formats.text_scan import Cutter, TextRules

__all__ = ["TextImages"]

#: Stored bytes asked for at a time.
LOCAL_PIECE, REMOTE_PIECE = 128 << 10, 1 << 20


class TextImages:
    """The :class:`~lazystore.formats.format.Images` of gzip and zstd texts; a block has about 256 KiB of text.

    Parameters:
        files: names, what is known of each, and its rules.
        local: whether bytes come from a local disk.

    A block in the middle costs inflating everything before it, unless a run is there already. What a run makes is
    compared with the index: a file of another content is an error, not other items.

    Nothing is kept across runs. Threads, fork: as for Images.
    """

    def __init__(self, files: Sequence[tuple[str, TextIndex, TextRules]], *, local: bool) -> None:
        self._files = files
        self._piece = LOCAL_PIECE if local else REMOTE_PIECE
        #: First block of each file, and the number of blocks.
        self.runs = array("Q", accumulate((len(index.counts) for _, index, _ in files), initial=0))

    def scratch(self, run: int) -> int:
        """Stored bytes, the inflating stream, a piece of its text, and the block under way."""
        _, index, _ = self._files[run]
        longest = max(map(self._image_bytes, index.sizes, index.counts), default=0)
        return min(self._piece, index.stored) + index.memory + PIECE_BYTES + longest

    @staticmethod
    def _image_bytes(size: int, count: int) -> int:
        return size + 4 * (count + 2)

    def hints(self) -> array[int]:
        """Bytes of each image."""
        return array("Q", (n for _, index, _ in self._files for n in map(self._image_bytes, index.sizes, index.counts)))

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """Inflate a file, and cut it; see :class:`~lazystore.formats.format.Images`."""
        name, index, rules = self._files[run]
        begin = self.runs[run]
        blocks = self._blocks(name, index, rules)
        answer = None
        at = 0  # blocks made so far
        while True:
            try:
                step = blocks.send(answer)
            except StopIteration:
                break
            except FormatError as error:
                raise FormatError(f"{name}: {error}") from error
            answer = None
            if isinstance(step, Want):
                answer = (yield [step])[0]
                continue
            table, start, data = step
            if at >= len(index.counts) or (start, len(data)) != (index.begins[at], index.sizes[at]):
                raise FormatError(f"{name} is not the text its index was made from, or is damaged")
            if begin + at >= first:
                yield Image(begin + at, table + data, opened=len(data))
            at += 1
        if at != len(index.counts):
            raise FormatError(f"{name} is not the text its index was made from, or is damaged")

    def _blocks(
        self, name: str, index: TextIndex, rules: TextRules
    ) -> Generator[Want | tuple[bytes, int, bytes], memoryview | None, None]:
        stream = open_stream(rules.codec, index.memory)
        cutter = Cutter(rules, max(index.sizes, default=0) + PIECE_BYTES + sum(index.begins[:1]))
        for at in range(0, index.stored, self._piece):
            stored = yield Want(name, at, min(self._piece, index.stored - at))
            assert stored is not None
            for piece in stream.feed(stored):
                yield from cutter.feed(piece)
        stream.end()
        yield from cutter.finish()
