"""How a LitData dataset's items are numbered: as they were written, or token datasets in blocks."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from lazystore.errors import FormatError, UnsupportedError
from lazystore.fetch.source import Read
from lazystore.formats.leaves import NUMPY_ITEM_BYTES, TORCH_DTYPES, TORCH_ITEM_BYTES
from lazystore.formats.litdata import OFFSET_WIDTH, OFFSETS_AT

if TYPE_CHECKING:
    from lazystore.fetch.source import Source
    from lazystore.formats.litdata import LitDataIndex

__all__ = ["number_items"]


def number_items(index: LitDataIndex, block_size: int, source: Source, timeout: float) -> tuple[array[int], int]:
    """Items of each chunk, and the stride: what was written, or blocks of tokens.

    Parameters:
        index: the dataset's index.
        block_size: tokens of a block; 0 for items as they were written.
        source: asked for the token counts that the index does not have.
        timeout: seconds that may take.

    Returns:
        (items of each chunk, bytes an item or 0 when items have offsets).

    Raises:
        FormatError: the tokens' dtype has no known size.
        UnsupportedError: a compressed token dataset whose index does not count tokens.
    """
    if not block_size:
        return index.counts, 0
    itemsize = _token_bytes(index.tags[0])
    dims = index.dims[:]
    unknown = [chunk for chunk, dim in enumerate(dims) if dim < 0 and index.counts[chunk]]
    for chunk, tokens in zip(unknown, _count_tokens(index, unknown, itemsize, source, timeout), strict=True):
        dims[chunk] = tokens
    return array("Q", (max(dim, 0) // block_size for dim in dims)), block_size * itemsize


def _is_index(detail: str, count: int) -> bool:
    return detail.isascii() and detail.isdigit() and len(detail) <= 3 and int(detail) < count


def _token_bytes(tag: str) -> int:
    """Bytes a token from the array's dtype."""
    name, _, detail = tag.partition(":")
    if name == "no_header_numpy" and _is_index(detail, len(NUMPY_ITEM_BYTES)):
        return NUMPY_ITEM_BYTES[int(detail)]
    if name == "no_header_tensor" and _is_index(detail, len(TORCH_DTYPES)):
        return TORCH_ITEM_BYTES[TORCH_DTYPES[int(detail)]]
    raise FormatError(f"tokens of encoding {tag!r} have no known size")


def _count_tokens(index: LitDataIndex, chunks: list[int], itemsize: int, source: Source, timeout: float) -> list[int]:
    """Tokens of chunks whose index entry has no dim: from their first and last offsets, in one wave."""
    firsts: list[Read] = []
    lasts: list[Read] = []
    for chunk in chunks:
        last = OFFSETS_AT + OFFSET_WIDTH * index.counts[chunk]
        firsts.append(Read(index.names[chunk], OFFSETS_AT, memoryview(bytearray(OFFSET_WIDTH))))
        lasts.append(Read(index.names[chunk], last, memoryview(bytearray(OFFSET_WIDTH))))
    if index.compression and chunks:
        raise UnsupportedError("a compressed token dataset whose index has no dim cannot be read in blocks")
    if chunks:
        source.run(firsts + lasts, timeout=timeout)
    tokens = []
    for first, last_read in zip(firsts, lasts, strict=True):
        begin, end = (int.from_bytes(read.view, "little") for read in (first, last_read))
        tokens.append(max(0, end - begin) // itemsize)
    return tokens
