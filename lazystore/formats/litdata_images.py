"""LitData chunks that cannot be read where they lie: blocks of them as images in the classic layout.

Framed zstd, Arrow rows, whatever is encrypted or compressed as a whole, and classic chunks beside them: LitData's
index does not say which chunk is which, so every file is looked at when it is first touched. What the forms are
like is in ``litdata_chunks``; whether a dataset has to go this way at all is decided in ``litdata_format``.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from lazystore.errors import BudgetTooSmallError
from lazystore.formats.compression import ZSTD_HEAD, ZSTD_MAGIC, inflate_frame, read_header
from lazystore.formats.encryption import open_token
from lazystore.formats.format import BlockNames, Files, Image, Size, Step, Wait, Want
from lazystore.formats.litdata import FRAME_ROWS
from lazystore.formats.litdata_chunks import Form, Steps, answered, sniff

if TYPE_CHECKING:
    from lazystore.formats.arrow_rows import RowsSchema
    from lazystore.formats.encryption import Encryption
    from lazystore.formats.litdata import LitDataIndex

__all__ = ["LitDataImages", "divide"]

KIB = 1024
#: What blocks should have, and how many there may be before they get longer.
BLOCK_BYTES, MAX_BLOCKS = 256 * KIB, 1 << 17
#: Items of a block of compressed record batches, whose length nobody knows, at most.
MOST_INFLATED = 1024
#: Typical ratios, for planning only: zstd to what was compressed; a token and what decrypting it holds at a time.
INFLATED, SEALED = 4, 4
#: A run may hold so much of the budget, and the directories of files so much.
RUN_SHARE, DIRECTORIES_SHARE = 4, 64
SMALLEST_RUN, SMALLEST_DIRECTORIES = 64 * KIB, 64 * KIB
#: What finding out a file's form takes.
SNIFF_BYTES = 8 * KIB


def divide(index: LitDataIndex) -> tuple[Files, int]:
    """Divide a dataset's chunks into blocks, by nothing but the index.

    Returns:
        (its files with the first block of each, items a block).
    """
    items, stored = sum(index.counts), sum(index.hints)
    unit = index.frame_rows if index.compression_level == "batch" else FRAME_ROWS
    rows = unit
    if index.compression_level != "batch":
        mean = max(1, stored * (INFLATED if index.ipc_compression else 1) // max(items, 1))
        most = MOST_INFLATED if index.ipc_compression else items
        while rows * 4 * mean <= 3 * BLOCK_BYTES and rows < most:  # doubled, it comes nearer
            rows *= 2
    while sum(-(-count // rows) for count in index.counts) > max(MAX_BLOCKS, len(index.counts)) and rows < items:
        rows *= 2
    blocks = array("Q", chain((0,), accumulate(-(-count // rows) for count in index.counts)))
    return Files(index.names, index.counts, index.hints, blocks), rows


class LitDataImages:
    """Blocks of a LitData dataset; see :class:`~lazystore.formats.format.Images`.

    Parameters:
        index: the dataset's index.
        rows: how rows of Arrow chunks are written.
        encryption: opens chunks that are encrypted as a whole.
        budget: bytes the dataset may use.

    Attributes:
        runs: see the protocol. A file that is compressed or encrypted as a whole is one run; elsewhere every block is.
        files: the dataset's chunks.
        counts, hints: items and estimated bytes of each block.

    Memory: what runs report, at most a quarter of the budget each; besides that the directories of the files used
    last (the positions of their frames and record batches), 1/64 of the budget.
    Threads: one step at a time. Fork: runs are dropped, directories stay. Pickling: none.
    """

    def __init__(self, index: LitDataIndex, *, rows: RowsSchema, encryption: Encryption | None, budget: int) -> None:
        self.files, self._rows = divide(index)
        self._rows_schema = rows
        self._encryption = encryption
        self._suffix = f".{index.compression}.bin" if index.compression else ""
        self._compressed = bool(index.compression_level == "batch" or index.ipc_compression)
        self.runs = array("Q", self._run_starts())
        self.counts = array("Q")
        self.hints = array("Q")
        self._measure()
        self._limit = max(budget // RUN_SHARE, SMALLEST_RUN)
        self._held: dict[int, int] = {}
        self._forms: OrderedDict[int, Form] = OrderedDict()
        self._forms_bytes = 0
        self._forms_room = max(budget // DIRECTORIES_SHARE, SMALLEST_DIRECTORIES)
        self._looking: set[int] = set()

    @property
    def names(self) -> BlockNames:
        """The file of each block."""
        return BlockNames(self.files)

    def scratch(self, run: int) -> int:
        """Bytes a run holds if it is open: that may grow while the file turns out to need more; else an estimate."""
        held = self._held.get(run)
        if held is not None:
            return held
        file = self._file(self.runs[run])
        hint, count = self.files.hints[file], self.files.counts[file]
        if self._is_sealed(file):
            return SNIFF_BYTES + (SEALED if self._encryption is not None else 2) * hint
        part = min(hint or BLOCK_BYTES, max(2 * hint * min(self._rows, count) // max(count, 1), BLOCK_BYTES))
        return min(self._limit, SNIFF_BYTES + part * (INFLATED if self._compressed else 1))

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """See the protocol.

        Raises:
            FormatError: the file is none of LitData's forms, or damaged; DecryptionError.
            BudgetTooSmallError: a block takes more than a quarter of the budget to make.
            MissingExtraError: zstandard or pyarrow is not installed.
        """
        self._held[run] = self.scratch(run)
        try:
            file = self._file(first)
            if self._is_sealed(file):
                yield from self._open_sealed(run, first, file)
            else:
                form = yield from self._form(run, file)
                data, opened = yield from self._metered(run, form.image(*self._items(first, file)))
                yield Image(first, data, opened)
        finally:
            self._held.pop(run, None)

    # -- files --------------------------------------------------------------------------

    def _run_starts(self) -> Sequence[int]:
        if not self._suffix and self._encryption is None:
            return range(self.files.blocks[-1] + 1)
        starts: list[int] = []
        for file in range(len(self.files.counts)):
            begin, end = self.files.blocks[file], self.files.blocks[file + 1]
            starts.extend((begin,) if self._is_sealed(file) and begin < end else range(begin, end))
        return [*starts, self.files.blocks[-1]]

    def _is_sealed(self, file: int) -> bool:
        """Whether the file can only be opened as a whole."""
        return self._encryption is not None or bool(self._suffix and self.files.names[file].endswith(self._suffix))

    def _file(self, block: int) -> int:
        return bisect_right(self.files.blocks, block) - 1

    def _items(self, block: int, file: int) -> tuple[int, int]:
        """The first item of a block in its file, and how many there are."""
        first = (block - self.files.blocks[file]) * self._rows
        return first, min(self._rows, self.files.counts[file] - first)

    def _measure(self) -> None:
        factor = INFLATED if self._compressed else 1
        for file, (count, hint) in enumerate(zip(self.files.counts, self.files.hints, strict=True)):
            for block in range(self.files.blocks[file], self.files.blocks[file + 1]):
                n = self._items(block, file)[1]
                self.counts.append(n)
                self.hints.append(factor * hint * n // count)

    def _form(self, run: int, file: int) -> Generator[Step, Any, Form]:
        """What form the file has; it is looked at once, whoever asks first."""
        while file in self._looking:
            yield Wait()
        form = self._forms.get(file)
        if form is None:
            self._looking.add(file)
            try:
                form = yield from self._metered(run, self._sniff(file, self.files.hints[file]))
            finally:
                self._looking.discard(file)
            self._remember(file, form)
        self._forms.move_to_end(file)
        return form

    def _sniff(self, file: int, nbytes: int) -> Steps:
        return sniff(self.files.names[file], self.files.counts[file], nbytes, self._rows_schema, room=self._limit)

    def _remember(self, file: int, form: Form) -> None:
        self._forms[file] = form
        self._forms_bytes += form.nbytes
        while self._forms_bytes > self._forms_room and len(self._forms) > 1:
            self._forms_bytes -= self._forms.popitem(last=False)[1].nbytes

    # -- runs ---------------------------------------------------------------------------

    def _metered(self, run: int, steps: Steps) -> Generator[Step, Any, Any]:
        """Pass steps on, and keep account of what they hold."""
        answer: Any = None
        try:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as end:
                    return end.value
                answer = None
                if isinstance(step, int):
                    self._hold(run, step)
                else:
                    answer = yield step
        finally:
            steps.close()

    def _hold(self, run: int, nbytes: int) -> None:
        if nbytes > self._limit:
            raise BudgetTooSmallError(
                f"making a block of {self.files.names[self._file(self.runs[run])]} takes {nbytes} bytes besides the "
                f"result, {self._limit} are allowed; give memory={RUN_SHARE * nbytes} bytes or more"
            )
        self._held[run] = max(self._held[run], nbytes)

    def _open_sealed(self, run: int, first: int, file: int) -> Generator[Step, Any, None]:
        """Open a file as a whole, then make its blocks in order."""
        name = self.files.names[file]
        (size,) = yield [Size(name)]
        self._hold(run, size)
        (stored,) = yield [Want(name, 0, size)]
        data = self._unsealed(run, stored)
        opened = len(data)
        del stored
        form = answered(self._sniff(file, len(data)), data)
        for block in range(first, self.files.blocks[file + 1]):
            image, more = answered(form.image(*self._items(block, file)), data)
            yield Image(block, image, opened + more)
            opened = 0
            del image

    def _unsealed(self, run: int, data: memoryview) -> memoryview:
        """What is in the file; compressed is what was encrypted."""
        if self._suffix and bytes(data[:4]) == ZSTD_MAGIC:
            declared = read_header(bytes(data[:ZSTD_HEAD])).content_size
            self._hold(run, len(data) + (declared if declared >= 0 else self._limit - len(data)))
            data = memoryview(inflate_frame(data, limit=self._limit))
        if self._encryption is not None:
            self._hold(run, SEALED * len(data))
            data = memoryview(open_token(self._encryption, bytes(data)))
        return data
