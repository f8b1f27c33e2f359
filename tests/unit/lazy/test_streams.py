"""Streams by name: opened, read piece by piece, closed, and told apart by their whole names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.cache.bridge import Bridge
from lazystore.cache.workers import Workers
from lazystore.errors import ClosedError, ConfigError, ItemIndexError, KeyNotFoundError
from lazystore.lazy.chunker import DataChunker
from lazystore.lazy.stream import Stream
from lazystore.lazy.streams import Streams

NOW = [0.0]


@pytest.fixture
def streams() -> Iterator[Streams]:
    workers = Workers(2, "test")
    bridge = Bridge(workers)

    def open_stream(source: Any, *, name: str, chunk: Any) -> Stream:
        chunker = None if chunk is None else DataChunker(chunk)
        return Stream(source, bridge=bridge, name=name, chunker=chunker, idle_timeout=10, clock=lambda: NOW[0])

    registry = Streams(open_stream)
    yield registry
    registry.close()
    bridge.close()
    workers.close()


def test_chunks_come_by_number_and_in_order(streams: Streams) -> None:
    streams.create_stream("s1", b"abcdefgh", 3)
    chunk = streams.get_stream_chunk("s1")
    assert (chunk.data, chunk.index, chunk.size) == (b"abc", 0, 3)
    assert streams.get_stream_chunk("s1", 1).data == b"def"
    assert streams.get_stream_chunk("s1", 0).data == b"abc"
    assert [(rest.index, bytes(rest.data)) for rest in streams.get_stream_chunks("s1")] == [(2, b"gh")]
    for index in (None, 3, 30):
        with pytest.raises(ItemIndexError, match="3 pieces"):
            streams.get_stream_chunk("s1", index)
    info = streams.get_stream_info("s1")
    assert (info.name, info.produced, info.consumed, info.done) == ("s1", 3, 3, True)


def test_the_same_in_an_event_loop(streams: Streams) -> None:
    async def numbers() -> Any:
        for n in range(5):
            yield [n]

    async def main() -> None:
        streams.create_stream("n", numbers())
        assert (await streams.aget_stream_chunk("n", 1)).data == [1]
        assert (await streams.aget_stream_chunk("n", 0)).data == [0]
        assert [(chunk.index, chunk.size) async for chunk in streams.aget_stream_chunks("n")] == [
            (2, 1),
            (3, 1),
            (4, 1),
        ]
        with pytest.raises(ItemIndexError):
            await streams.aget_stream_chunk("n")
        assert await streams.aclose_stream("n")
        assert not await streams.aclose_stream("n")
        await streams.aclose()

    asyncio.run(main())


def test_closing_one_touches_no_other(streams: Streams) -> None:
    for name in ("s1", "s1_x", "s"):
        streams.create_stream(name, [1, 2])
    assert streams.close_stream("s1")
    assert not streams.close_stream("s1")
    assert sorted(streams) == ["s", "s1_x"]
    assert "s1" not in streams
    assert streams.get_stream_chunk("s1_x").data == 1
    streams.close()
    assert len(streams) == 0


def test_unknown_and_taken_names_are_refused(streams: Streams) -> None:
    with pytest.raises(KeyNotFoundError, match="create_stream"):
        streams.get_stream_chunk("nobody")
    with pytest.raises(KeyNotFoundError):
        streams.get_stream_chunks("nobody")
    with pytest.raises(KeyNotFoundError):
        streams.get_stream_info("nobody")
    first = streams.create_stream("s", [1])
    with pytest.raises(ConfigError, match="close_stream"):
        streams.create_stream("s", [2])
    first.close()
    assert streams.create_stream("s", [2]) is streams.get("s")


def test_a_stream_that_cannot_be_opened_takes_no_name(streams: Streams) -> None:
    with pytest.raises(ConfigError):
        streams.create_stream("s", [1], 0)
    assert "s" not in streams


def test_idle_streams_are_closed_when_any_is_used(streams: Streams) -> None:
    streams.create_stream("old", iter([1, 2, 3]))
    streams.get_stream_chunk("old")
    NOW[0] += 11
    streams.create_stream("new", [1])
    with pytest.raises(ClosedError, match="idle_timeout"):
        streams.get_stream_chunk("old")
    assert streams.get_stream_chunk("new").data == 1
