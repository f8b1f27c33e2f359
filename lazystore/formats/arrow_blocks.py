"""How files of record batches or row groups are cut into blocks, and how the directories of many are read at once.

Cutting depends on what the files say about themselves alone, never on the budget: resuming relies on it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lazystore.errors import FormatError
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore.fetch.source import Source

__all__ = ["Ask", "Blocks", "together"]

#: Ranges of a file, (first byte, bytes), that are wanted in one wave.
Ask: TypeAlias = list[tuple[int, int]]
T = TypeVar("T")

BLOCK_BYTES = 256 << 10
MAX_BLOCKS = 1 << 17
MAX_ROWS = 1 << 48
FILES_AT_ONCE = 64


class Blocks:
    """Rows of units (record batches, row groups) cut into blocks of about 256 KiB of image.

    Parameters:
        units: for each file, the rows of each of its units, and the bytes of their image as far as is known.
        share: small units of one file may share a block.

    Attributes:
        counts, hints: rows and image bytes of each block.
        runs: first block of each run, and the number of blocks. A block is a run of its own, but for units that
            are cut into several.
        files: number of the first block of each file, and the number of all blocks.

    Memory: ~60 bytes a block, of which there are at most 131,072 more than units. Threads: immutable.
    """

    def __init__(self, units: Iterable[tuple[Sequence[int], Sequence[int]]], *, share: bool) -> None:
        units = list(units)
        if sum(sum(rows) for rows, _ in units) > MAX_ROWS:
            raise FormatError(f"the files say they have more than {MAX_ROWS} rows")
        total = sum(sum(sizes) for _, sizes in units)
        self._target = BLOCK_BYTES
        while total > self._target * MAX_BLOCKS:
            self._target *= 2
        self.counts, self.hints = array("Q"), array("Q")
        self.runs, self.files = array("q"), array("Q")
        self._first, self._last, self._skip = array("q"), array("q"), array("q")
        for rows, sizes in units:
            self.files.append(len(self.counts))
            self._cut(rows, sizes, share)
        self.files.append(len(self.counts))
        self.runs.append(len(self.counts))

    def place(self, block: int) -> tuple[int, range, int]:
        """File, units, and rows to skip in the first unit."""
        file = bisect_right(self.files, block) - 1
        return file, range(self._first[block], self._last[block]), self._skip[block]

    def _cut(self, rows: Sequence[int], sizes: Sequence[int], share: bool) -> None:
        begin, n, nbytes = 0, 0, 0  # of the units that wait to share a block
        for k in range(len(rows)):
            large = 2 * sizes[k] > 3 * self._target
            if n and (large or not share or nbytes + sizes[k] > self._target):
                self._add(begin, k, 0, n, nbytes, run=True)
                n = 0
            if large:
                self._cut_unit(k, rows[k], sizes[k])
            elif rows[k]:
                begin, nbytes = (begin, nbytes) if n else (k, 0)
                n += rows[k]
                nbytes += sizes[k]
        if n:
            self._add(begin, len(rows), 0, n, nbytes, run=True)

    def _cut_unit(self, k: int, rows: int, size: int) -> None:
        step = -(-rows // -(-size // self._target))
        for skip in range(0, rows, step or 1):
            n = min(step, rows - skip)
            self._add(k, k + 1, skip, n, size * n // rows, run=not skip)

    def _add(self, first: int, last: int, skip: int, n: int, nbytes: int, *, run: bool) -> None:
        if run:
            self.runs.append(len(self.counts))
        self.counts.append(n)
        self.hints.append(nbytes)
        self._first.append(first)
        self._last.append(last)
        self._skip.append(skip)


def together(
    source: Source, tasks: Sequence[tuple[str, Generator[Ask, Any, T]]], *, timeout: float, limit: int
) -> list[T]:
    """Run tasks that each read one file, 64 at a time, so that their requests travel in common waves.

    Parameters:
        tasks: file name, and a generator that yields the ranges it wants, is sent their bytes, and returns.
        timeout: seconds a wave may take.
        limit: bytes that one task may ask for in one wave.

    Raises:
        FormatError: a task asks for more than ``limit``; whatever tasks raise, and reading does.
    """
    results: list[Any] = [None] * len(tasks)
    waiting = list(range(len(tasks)))[::-1]
    going: dict[int, list[memoryview] | None] = {}
    while waiting or going:
        while waiting and len(going) < FILES_AT_ONCE:
            going[waiting.pop()] = None
        wave: dict[int, list[Read]] = {}
        for k, answer in list(going.items()):
            name, task = tasks[k]
            try:
                asked = task.send(answer)  # the first one is None
            except StopIteration as end:
                results[k] = end.value
                del going[k]
                continue
            if sum(nbytes for _, nbytes in asked) > limit:
                raise FormatError(f"{name} has a directory of more than {limit} bytes; give it more memory")
            wave[k] = [Read(name, begin, memoryview(bytearray(nbytes))) for begin, nbytes in asked]
        source.run([read for reads in wave.values() for read in reads], timeout=timeout)
        going = {k: [read.view for read in reads] for k, reads in wave.items()}
    return results
