"""The first document's chunker: sizes from a configuration, settings of a call, and three ways to take the chunks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.lazy import chunker
from lazystore.lazy.documents.chunker import DataChunker
from lazystore.lazy.documents.configs import LazyLoadingConfig
from lazystore.lazy.strategy import ChunkStrategy

DATA = bytes(range(256)) * 40  # 10,240


def sizes(cuts: Any) -> list[int]:
    return [chunk.size for chunk in cuts]


@pytest.mark.parametrize(
    ("config", "size"),
    [(LazyLoadingConfig(chunk_size=4096), 4096), (SimpleNamespace(chunk_size=2048), 2048), (1024, 1024), ("1kB", 1000)],
)
def test_the_size_comes_from_a_configuration_or_is_given(config: Any, size: int) -> None:
    assert sizes(DataChunker(config).chunk_data(DATA))[0] == size
    assert DataChunker().config.chunk_size == LazyLoadingConfig().chunk_size


def test_settings_of_a_call_stand_in_for_the_chunkers() -> None:
    cutter = DataChunker(4096)
    assert sizes(cutter.chunk_data(DATA)) == [4096, 4096, 2048]
    assert sizes(cutter.chunk_data(DATA, chunk_size=5120)) == [5120, 5120]
    assert sizes(cutter.chunk_data(list(range(10)), items=4)) == [4, 4, 2]
    assert sizes(cutter.chunk_data(DATA, "fixed_size")) == [4096, 4096, 2048]
    assert sizes(cutter.chunk_data(DATA)) == [4096, 4096, 2048], "they were of that call"


def test_other_settings_of_the_chunker_stay_in_a_call() -> None:
    cutter = DataChunker(4096, strategy=ChunkStrategy.CONTENT_BASED)
    assert sizes(cutter.chunk_data(DATA, chunk_size=8192)) == sizes(
        chunker.DataChunker(8192, strategy=ChunkStrategy.CONTENT_BASED).chunk(DATA)
    )


def test_chunks_can_be_looped_over_looped_over_in_a_loop_or_awaited() -> None:
    cuts = DataChunker(4096).chunk_data(DATA)

    async def main() -> tuple[list[bytes], list[bytes]]:
        return [bytes(chunk.data) async for chunk in cuts], [bytes(chunk.data) for chunk in await cuts]

    looped, awaited = asyncio.run(main())
    assert looped == awaited == [bytes(chunk.data) for chunk in cuts] == [DATA[:4096], DATA[4096:8192], DATA[8192:]]


def test_what_can_be_read_once_gives_its_chunks_once() -> None:
    cuts = DataChunker(items=2).chunk_data(iter(range(5)))
    assert sizes(cuts) == [2, 2, 1] and sizes(cuts) == []


@pytest.mark.parametrize(
    "wrong", [{"chunk_size": 0}, {"chunk_size": "much"}, {"items": 0}, {"strategy": "quick"}, {"items": True}]
)
def test_a_call_that_cannot_work_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DataChunker(4096).chunk_data(DATA, **wrong)


def test_cuts_tell_what_they_cut() -> None:
    assert "bytes" in repr(DataChunker(4096).chunk_data(DATA))
