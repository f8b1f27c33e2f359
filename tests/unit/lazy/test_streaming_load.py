from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.lazy.decorators import lazy_load, streaming_load
from lazystore.lazy.store import LazyStore
from lazystore.lazy.strategy import Strategy


@pytest.fixture
def store() -> Iterator[LazyStore]:
    with LazyStore(memory="8MB", name="decorated") as store:
        yield store


def test_items_come_as_they_are_or_in_chunks(store: LazyStore) -> None:
    def numbers(count: int) -> Iterator[int]:
        yield from range(count)

    async def anumbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def collect(items: Any) -> list[Any]:
        return [item async for item in items]

    for size, expected in ((None, list(range(7))), (3, [[0, 1, 2], [3, 4, 5], [6]]), (7, [list(range(7))])):
        decorate = streaming_load(size, store=store)
        assert list(decorate(numbers)(7)) == expected
        assert asyncio.run(collect(decorate(anumbers)(7))) == expected
    assert list(streaming_load(numbers)(0)) == [] == list(streaming_load(5)(numbers)(0))
    assert list(streaming_load(lambda: [1, 2])()) == [1, 2]
    assert list(lazy_load(Strategy.STREAMING)(numbers)(2)) == [0, 1]


def test_an_async_function_may_give_any_iterable(store: LazyStore) -> None:
    @streaming_load(2, store=store)
    async def listed() -> list[int]:
        return [1, 2, 3]

    async def main() -> list[Any]:
        return [chunk async for chunk in listed()]

    assert asyncio.run(main()) == [[1, 2], [3]]


def test_bytes_are_cut_by_bytes(store: LazyStore) -> None:
    @streaming_load(chunk="1KiB", store=store)
    def blocks() -> Iterator[bytes]:
        for _ in range(5):
            yield bytes(700)

    assert [chunk.size for chunk in blocks()] == [1024, 1024, 1024, 428]

    @streaming_load(chunk=1024, store=store)
    async def ablocks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(700)

    async def main() -> list[int]:
        return [chunk.size async for chunk in ablocks()]

    assert asyncio.run(main()) == [1024, 1024, 1024, 428]


def test_an_endless_stream_is_read_only_as_far_as_it_is_used(store: LazyStore) -> None:
    made, closed = [], []

    @streaming_load(4, store=store)
    def endless() -> Iterator[int]:
        try:
            for number in iter(int, 1):
                made.append(number)
                yield number
        finally:
            closed.append(1)

    pass_ = endless()
    assert next(pass_) == [0] * 4 and len(made) == 4
    pass_.close()
    assert closed == [1]

    @streaming_load(store=store)
    async def aendless() -> AsyncIterator[int]:
        try:
            while True:
                made.append(1)
                yield 1
        finally:
            closed.append(2)

    async def main() -> None:
        apass = aendless()
        assert await anext(apass) == 1
        await apass.aclose()

    asyncio.run(main())
    assert closed == [1, 2]


def test_what_a_generator_raises_comes_after_what_it_gave(store: LazyStore) -> None:
    @streaming_load(store=store)
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("torn")

    pass_ = broken()
    assert next(pass_) == 1
    with pytest.raises(LookupError, match="torn"):
        next(pass_)


def test_streams_have_the_same_attributes(store: LazyStore) -> None:
    stream = streaming_load(store=store)(lambda: iter(()))
    assert stream.store is store and stream.invalidate() is False and "requests" in stream.stats()
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ConfigError, match="chunk_size"):
            streaming_load(wrong)
    with pytest.raises(ConfigError, match="one of them"):
        streaming_load(3, chunk="1KiB")
