"""What is stored where, as the commands look at it: one view of an opened dataset.

Only reads; asking costs no I/O, except :func:`largest_item`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lazystore.errors import FormatError
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore import StreamingDataset
    from lazystore.formats.format import Opened

__all__ = ["Layout", "largest_item", "layout_of"]

#: Bytes and number of offset tables that are read to know the largest item.
CHEAP_TABLES, CHEAP_BYTES = 16, 4 << 20
OFFSET_WIDTH = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """An opened dataset.

    Attributes:
        opened: as its format opened it.
        budget: bytes it may use.
        stored: bytes of the dataset's own files, 0 where nobody knows.
        chunks: number of the dataset's own chunks.
        checksums: the algorithms of its checksums, "" if it has none or its format does not tell.
        schema: what an item holds: names, and kinds where they are known.
    """

    opened: Opened
    budget: int
    stored: int
    chunks: int
    checksums: str
    schema: dict[str, Any]

    @property
    def items(self) -> int:
        """Items of all chunks."""
        return sum(self.opened.counts)

    @property
    def tables(self) -> int:
        """Bytes of all offset tables."""
        return 0 if self.opened.stride else OFFSET_WIDTH * (self.items + 2 * len(self.opened.counts))

    def locate(self, item: int, starts: Sequence[int]) -> int:
        """The chunk of an item; ``starts`` as :meth:`starts` gives them."""
        return bisect_right(starts, item) - 1

    def starts(self) -> list[int]:
        """Number of the first item of each chunk, and of all items."""
        return list(accumulate(self.opened.counts, initial=0))


def layout_of(dataset: StreamingDataset) -> Layout:
    """The layout of an open dataset; text that has no index yet is read through for it."""
    opened = dataset.opened
    about = opened.about
    chunks = opened if opened.files is None else opened.files
    # Hints of encoded chunks are of what they become, those of made ones of their images.
    plain = opened.codec is None and (opened.images is None or opened.files is not None)
    schema = about.get("schema") or about.get("columns") or opened.plan.names
    return Layout(
        opened=opened,
        budget=dataset._budget,
        stored=int(about.get("stored_bytes") or (sum(chunks.hints) if plain else 0)),
        chunks=len(chunks.names),
        checksums=_listed(about.get("checksums") or about.get("hashes")),
        schema=dict(schema) if isinstance(schema, Mapping) else dict.fromkeys(map(str, schema)),
    )


def _listed(value: object) -> str:
    """Algorithms in words; "" for none."""
    if not value:
        return ""
    if value is True:
        return "recorded"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def largest_item(layout: Layout, timeout: float = 30.0) -> int | None:
    """Bytes of the largest stored item; None where finding out would cost much.

    Raises:
        FetchError, FormatError: the tables cannot be had.
    """
    opened = layout.opened
    if opened.stride:
        return opened.stride
    if opened.opaque or len(opened.counts) > CHEAP_TABLES or layout.tables > CHEAP_BYTES:
        return None
    reads = [
        Read(name, OFFSET_WIDTH, memoryview(bytearray(OFFSET_WIDTH * (count + 1))))
        for name, count in zip(opened.names, opened.counts, strict=True)
        if count
    ]
    opened.source.run(reads, timeout=timeout)
    return max((_largest(read) for read in reads), default=0)


def _largest(read: Read) -> int:
    import numpy

    sizes = numpy.diff(numpy.frombuffer(read.view, "<u4").astype(numpy.int64))
    if sizes.size and sizes.min() < 0:
        raise FormatError(f"{read.name}: its offset table does not ascend; the chunk is damaged")
    return int(sizes.max(initial=0))
