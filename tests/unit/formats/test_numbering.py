"""How items are numbered: as written, or token datasets in blocks, with as little I/O as that takes."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from support.sources import DiarySource

from lazystore.errors import FetchError, FormatError, UnsupportedError
from lazystore.formats.litdata import LitDataIndex, parse_index
from lazystore.formats.numbering import number_items


def index_of(tag: str, counts: list[int], dims: list[int | None], **config: Any) -> LitDataIndex:
    chunks = [
        {"filename": f"c{k}.bin", "chunk_size": count, "dim": dim, "chunk_bytes": 0}
        for k, (count, dim) in enumerate(zip(counts, dims, strict=True))
    ]
    settings = {"data_format": [tag], "data_spec": None, "item_loader": "TokensLoader", **config}
    return parse_index(json.dumps({"chunks": chunks, "config": settings}).encode(), place="index.json")


def tokens_chunk(count: int, nbytes: int) -> bytes:
    """A chunk whose documents have ``nbytes`` together."""
    begin = 4 + 4 * (count + 1)
    offsets = [begin + nbytes * k // count for k in range(count + 1)]
    return struct.pack(f"<{count + 2}I", count, *offsets) + bytes(nbytes)


NOTHING = DiarySource({})


def test_items_are_numbered_as_they_were_written() -> None:
    index = index_of("no_header_numpy:5", [3, 0, 7], [30, 0, 70])
    counts, stride = number_items(index, 0, NOTHING, 5)
    assert (list(counts), stride) == ([3, 0, 7], 0)


@pytest.mark.parametrize(
    "tag, itemsize",
    [
        ("no_header_numpy:0", 1), ("no_header_numpy:5", 2), ("no_header_numpy:12", 16), ("no_header_numpy:13", 1),
        ("no_header_tensor:16", 4), ("no_header_tensor:18", 8), ("no_header_tensor:10", 2), ("no_header_tensor:0", 4),
    ],
)  # fmt: skip
def test_blocks_have_the_size_of_their_dtype_and_chunks_lose_their_rest(tag: str, itemsize: int) -> None:
    index = index_of(tag, [3, 1, 1], [100, 7, 31])
    counts, stride = number_items(index, 8, NOTHING, 5)
    assert (list(counts), stride) == ([12, 0, 3], 8 * itemsize)
    assert NOTHING.waves == []


def test_token_counts_that_the_index_lacks_come_from_the_tables_in_one_wave() -> None:
    source = DiarySource({f"c{k}.bin": tokens_chunk(k + 1, 2 * (50 + k)) for k in range(4)})
    index = index_of("no_header_numpy:5", [1, 2, 3, 4], [None, 99, None, None])
    counts, stride = number_items(index, 10, source, 5)
    assert (list(counts), stride) == ([5, 9, 5, 5], 20)
    assert len(source.waves) == 1
    assert {name for name, _, _ in source.waves[0]} == {"c0.bin", "c2.bin", "c3.bin"}
    assert sum(end - begin for _, begin, end in source.waves[0]) == 3 * 8


def test_an_empty_chunk_without_a_count_is_not_asked() -> None:
    index = index_of("no_header_numpy:5", [0, 1], [None, 20])
    counts, _ = number_items(index, 10, NOTHING, 5)
    assert list(counts) == [0, 2]


def test_a_table_that_goes_backwards_counts_nothing() -> None:
    source = DiarySource({"c0.bin": struct.pack("<3I", 1, 500, 12) + bytes(100)})
    index = index_of("no_header_numpy:5", [1], [None])
    counts, _ = number_items(index, 10, source, 5)
    assert list(counts) == [0]


def test_a_chunk_too_short_for_its_table_is_an_error() -> None:
    index = index_of("no_header_numpy:5", [1000], [None])
    with pytest.raises(FetchError, match=r"c0\.bin"):
        number_items(index, 10, DiarySource({"c0.bin": bytes(20)}), 5)


def test_compressed_tokens_without_a_count_are_refused() -> None:
    pytest.importorskip("zstandard")
    index = index_of("no_header_numpy:5", [1], [None], compression="zstd")
    with pytest.raises(UnsupportedError, match="dim"):
        number_items(index, 10, NOTHING, 5)


@pytest.mark.parametrize("tag", ["no_header_numpy:14", "no_header_numpy:99", "no_header_numpy", "no_header_tensor:21"])
def test_tokens_of_unknown_size_are_refused(tag: str) -> None:
    with pytest.raises(FormatError, match=tag):
        number_items(index_of(tag, [1], [10]), 10, NOTHING, 5)


@pytest.mark.parametrize("block", [2**40, 2**62, 10**30])
def test_blocks_beyond_any_chunk_are_none(block: int) -> None:
    counts, _ = number_items(index_of("no_header_numpy:5", [1], [10]), block, NOTHING, 5)
    assert list(counts) == [0]
