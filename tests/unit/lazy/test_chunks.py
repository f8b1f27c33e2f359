"""Addressed chunks: each loaded once and by itself, right at every edge, read ahead only where that helps."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.cache.tiers import Tiers
from lazystore.errors import ConfigError, ItemIndexError, LoadError, UnsupportedError
from lazystore.lazy.chunk_ahead import ChunkAhead
from lazystore.lazy.chunks import ByKeys, ChunkPass, Chunks, chunks_of
from lazystore.lazy.source import Source

DEADLINE = 30.0


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    before = threading.active_count()
    tiers = Tiers(memory=8 << 20)
    yield tiers
    tiers.close()
    assert threading.active_count() <= before


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


class Rows:
    """A source of the numbers below ``n`` that keeps a list of what was asked of it."""

    def __init__(self, n: int, known: bool = True, slow: float = 0.0) -> None:
        self.asked: list[int] = []
        self._n, self._known, self._slow = n, known, slow

    def rows(self, offset: int, limit: int) -> list[int]:
        self.asked.append(offset)
        time.sleep(self._slow)
        return list(range(self._n))[offset : offset + limit]

    async def arows(self, offset: int, limit: int) -> list[int]:
        await asyncio.sleep(self._slow)
        self.asked.append(offset)
        return list(range(self._n))[offset : offset + limit]

    def source(self, is_async: bool = False) -> Source:
        return Source.from_range(self.arows if is_async else self.rows, size=self._n if self._known else None)


async def alist(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


# -- what comes out ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Tiers]:
    tiers = Tiers(memory=8 << 20)
    yield tiers
    tiers.close()


@given(
    n=st.integers(0, 30),
    items=st.integers(1, 12),
    known=st.booleans(),
    start=st.integers(-4, 5),
    stop=st.integers(-4, 5),
)
def test_chunks_are_the_items_at_every_edge(
    shared: Tiers, n: int, items: int, known: bool, start: int, stop: int
) -> None:
    shared.clear()
    expected = [list(range(n))[at : at + items] for at in range(0, n, items)]

    def fresh() -> Chunks:
        return Chunks(Rows(n, known).source(), shared, items=items, prefetch=0)

    assert list(fresh()) == expected
    assert asyncio.run(alist(fresh())) == expected
    chunks = fresh()
    for index, chunk in enumerate(expected):
        assert chunks[index] == chunk
    for index in (len(expected), len(expected) + 3):
        with pytest.raises(ItemIndexError):
            chunks[index]
    known = known or chunks.total is not None  # reading behind the end has told
    assert known
    assert len(chunks) == len(expected)
    assert chunks[start:stop] == expected[start:stop]
    assert chunks[::-1] == expected[::-1]
    if expected:
        assert chunks[-1] == expected[-1]
        assert asyncio.run(chunks.aget(-1)) == expected[-1]


@given(size=st.integers(0, 300), chunk=st.integers(1, 100))
def test_chunks_of_bytes_in_memory_are_views_and_are_not_cached(shared: Tiers, size: int, chunk: int) -> None:
    data = bytes(range(256)) * 2
    data = data[:size]
    before = shared.counters()["requests"]
    chunks = Chunks(Source.from_bytes(data), shared, chunk=chunk)
    assert b"".join(chunks) == b"".join(asyncio.run(alist(chunks))) == data
    assert all(isinstance(part, memoryview) and part.obj is data for part in chunks)
    assert len(chunks) == -(-size // chunk)
    assert shared.counters()["requests"] == before


def test_each_chunk_is_loaded_once_and_shared_by_equal_chunks(tiers: Tiers) -> None:
    rows = Rows(100)
    source = rows.source()
    for _ in range(2):
        assert [len(chunk) for chunk in Chunks(source, tiers, items=30, prefetch=0)] == [30, 30, 30, 10]
    assert rows.asked == [0, 30, 60, 90]
    assert Chunks(source, tiers, items=25, prefetch=0)[2] == list(range(50, 75))  # another grain, another chunk
    assert rows.asked[4:] == [50]


def test_the_same_from_async_sources_to_any_reader(tiers: Tiers) -> None:
    rows = Rows(10)
    chunks = Chunks(rows.source(True), tiers, items=4, prefetch=0)
    assert chunks[1] == [4, 5, 6, 7]

    async def main() -> None:
        assert await chunks.aget(1) == [4, 5, 6, 7]
        assert await chunks.aget(slice(0, 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert await alist(chunks) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    asyncio.run(main())
    assert sorted(rows.asked) == [0, 4, 8]
    assert list(chunks) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_an_async_source_runs_in_its_readers_loop_without_a_thread(tiers: Tiers) -> None:
    before = threading.active_count()
    assert len(asyncio.run(alist(Chunks(Rows(10).source(True), tiers, items=4, prefetch=0)))) == 3
    assert threading.active_count() == before


def test_reading_without_prefetch_starts_no_thread(tiers: Tiers) -> None:
    before = threading.active_count()
    assert len(list(Chunks(Rows(100).source(), tiers, items=10, prefetch=0))) == 10
    assert len(list(Chunks(Source.from_sequence(range(100)), tiers, items=10))) == 10
    assert threading.active_count() == before


# -- reading ahead ----------------------------------------------------------------------


def test_reading_in_order_is_read_ahead_and_jumping_is_not(tiers: Tiers) -> None:
    rows = Rows(100)
    chunks = Chunks(rows.source(), tiers, items=10)
    chunks[7]
    chunks[3]
    assert rows.asked == [70, 30]
    chunks[4]
    until(lambda: len(rows.asked) == 5)
    assert sorted(rows.asked[2:]) == [40, 50, 60]
    assert (chunks[5], chunks[6]) == (list(range(50, 60)), list(range(60, 70)))
    until(lambda: set(rows.asked) >= {30, 40, 50, 60, 70, 80})  # more, where they came too late
    assert len(rows.asked) == len(set(rows.asked))
    assert not {0, 10, 20} & set(rows.asked)


def test_a_pass_over_slow_chunks_loads_several_at_once_and_each_once(tiers: Tiers) -> None:
    rows = Rows(400, slow=0.01)
    assert [chunk[0] for chunk in Chunks(rows.source(), tiers, items=10)] == list(range(0, 400, 10))
    assert sorted(rows.asked) == list(range(0, 400, 10))


def test_chunks_of_unknown_end_are_read_ahead_too(tiers: Tiers) -> None:
    rows = Rows(95, known=False)
    assert [len(chunk) for chunk in Chunks(rows.source(), tiers, items=10)] == [10] * 9 + [5]


class Flights:
    """Counts what is started; each ends when told to."""

    class Flight:
        done = False
        error: BaseException | None = None

    def __init__(self) -> None:
        self.started: dict[int, Flights.Flight] = {}

    def start(self, index: int) -> Any:
        self.started[index] = flight = self.Flight()
        return flight


class Room:
    budget = 1000
    may_speculate = True


def test_the_window_doubles_while_chunks_come_too_late_and_closes_at_a_jump() -> None:
    flights = Flights()
    ahead = ChunkAhead(flights.start, Room(), None, 1)  # type: ignore[arg-type]
    seen = []
    for index in range(8):
        ahead.touch(index)
        seen.append((ahead.window, max(flights.started, default=0)))
    assert seen == [(0, 0), (2, 3), (4, 6), (8, 11), (8, 12), (8, 13), (8, 14), (8, 15)]
    ahead.touch(50)
    assert ahead.window == 0
    ahead.touch(51)
    assert max(flights.started) == 53
    for flight in flights.started.values():
        flight.done = True
    ahead.touch(52)
    ahead.touch(53)
    assert ahead.window == 2  # in time: no wider


def test_what_is_ahead_stays_within_a_quarter_of_the_budget() -> None:
    for nbytes, most in ((1, 3), (125, 2), (250, 1), (251, 0)):
        flights = Flights()
        ahead = ChunkAhead(flights.start, Room(), 3, nbytes)  # type: ignore[arg-type]
        ahead.touch(0)
        assert len(flights.started) == most
    flights = Flights()
    ahead = ChunkAhead(flights.start, Room(), None, None)  # type: ignore[arg-type]
    for index in range(4):
        ahead.touch(index)
        ahead.saw(b"x" * 1000)  # too large for the budget
    assert not flights.started


def test_nothing_is_read_ahead_under_memory_pressure() -> None:
    class Short(Room):
        may_speculate = False

    flights = Flights()
    ChunkAhead(flights.start, Short(), 3, 1).touch(0)  # type: ignore[arg-type]
    assert not flights.started


# -- by keys ----------------------------------------------------------------------------


def test_values_by_key_come_in_the_order_of_the_keys(tiers: Tiers) -> None:
    asked: list[str] = []

    def load(key: str) -> str:
        asked.append(key)
        return key.upper()

    chunks = ByKeys(load, tiers, ["b", "a", "b", "c"], prefetch=0)
    assert list(chunks) == ["B", "A", "B", "C"]
    assert asked == ["b", "a", "c"]
    assert (len(chunks), chunks[-1], chunks[1:3]) == (4, "C", ["A", "B"])
    with pytest.raises(ItemIndexError):
        chunks[4]
    assert asyncio.run(alist(chunks)) == ["B", "A", "B", "C"]
    assert list(ByKeys({"x": 1, "y": 2}, tiers, "yx")) == [2, 1]
    assert list(ByKeys(load, tiers, [])) == []


def test_the_next_keys_are_loaded_while_one_is_read(tiers: Tiers) -> None:
    asked: list[int] = []

    async def load(key: int) -> int:
        asked.append(key)
        return -key

    chunks = iter(ByKeys(load, tiers, range(10), prefetch=3))
    assert next(chunks) == 0
    until(lambda: len(asked) == 4)
    assert sorted(asked) == [0, 1, 2, 3]
    assert list(chunks) == [-1, -2, -3, -4, -5, -6, -7, -8, -9]
    assert sorted(asked) == list(range(10))


def test_what_a_loader_raises_comes_at_its_chunk(tiers: Tiers) -> None:
    def load(key: int) -> int:
        if key == 2:
            raise ItemIndexError("the loader's own")
        return key

    for prefetch in (0, 3):
        seen = []
        with pytest.raises(ItemIndexError, match="own"):
            for value in ByKeys(load, tiers, range(5), prefetch=prefetch):
                seen.append(value)
        assert seen == [0, 1]
    with pytest.raises(ItemIndexError, match="own"):
        ByKeys(load, tiers, range(5), prefetch=0)[1:4]

    async def main() -> None:
        with pytest.raises(ItemIndexError, match="own"):
            await alist(ByKeys(load, tiers, range(5)))

    asyncio.run(main())


# -- one pass ---------------------------------------------------------------------------


def test_sources_in_one_pass_are_cut_as_they_come(tiers: Tiers) -> None:
    def blocks() -> Iterator[bytes]:
        yield from (b"abc", b"defg", b"h")

    async def ablocks() -> AsyncIterator[bytes]:
        for block in blocks():
            yield block

    for function in (blocks, ablocks):
        chunks = chunks_of(Source.from_stream(function), tiers, chunk=3)
        assert isinstance(chunks, ChunkPass)
        for _ in range(2):  # each is a new pass
            assert list(chunks) == [b"abc", b"def", b"gh"]
            assert asyncio.run(alist(chunks)) == [b"abc", b"def", b"gh"]
        with pytest.raises(UnsupportedError, match="from_range"):
            chunks[0]
        with pytest.raises(TypeError):
            len(chunks)  # type: ignore[arg-type]


def test_leaving_a_pass_closes_its_source(tiers: Tiers) -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    passing = iter(chunks_of(Source.from_stream(endless), tiers, items=2))
    assert next(passing) == [1, 1]
    passing.close()  # type: ignore[attr-defined]
    assert closed.wait(DEADLINE)
    closed.clear()

    async def main() -> None:
        passing = aiter(chunks_of(Source.from_stream(endless), tiers, items=2))
        assert await anext(passing) == [1, 1]
        await passing.aclose()  # type: ignore[attr-defined]
        assert closed.is_set()

    asyncio.run(main())


def test_what_is_asked_for_decides_how_it_is_cut(tiers: Tiers) -> None:
    assert isinstance(chunks_of(b"abc", tiers), Chunks)
    assert isinstance(chunks_of([1, 2], tiers), Chunks)
    assert list(chunks_of([1, 2, 3], tiers, items=2)) == [[1, 2], [3]]
    lines = chunks_of(b"a\nbb\nccc\n", tiers, chunk=5, delimiter="\n")
    assert list(lines) == [b"a\nbb\n", b"ccc\n"]
    by_weight = chunks_of(["a" * 1000] * 10, tiers, chunk="4kB")
    assert isinstance(by_weight, ChunkPass)
    assert 3 <= len(list(by_weight)) <= 5
    assert list(chunks_of(iter([1, 2, 3]), tiers)) == [[1, 2, 3]]


# -- bad input --------------------------------------------------------------------------


def test_unknown_sizes_are_told(tiers: Tiers) -> None:
    chunks = Chunks(Rows(25, known=False).source(), tiers, items=10, prefetch=0)
    with pytest.raises(TypeError, match="does not know its size"):
        len(chunks)
    for index in (-1, slice(None), slice(-2, None), slice(0, 5, -1)):
        with pytest.raises(UnsupportedError, match="from the front"):
            chunks[index]
    assert chunks[0:99:2] == [list(range(10)), list(range(20, 25))]
    assert len(chunks) == 3


def test_a_source_that_gives_more_or_less_than_it_should_is_refused(tiers: Tiers) -> None:
    for give, size in ((lambda o, n: [0] * (n + 1), None), (lambda o, n: [0], 9), (lambda o, n: None, None)):
        with pytest.raises(LoadError):
            Chunks(Source.from_range(give, size=size), tiers, items=3, prefetch=0)[0]


def test_arguments_that_cannot_work_are_refused(tiers: Tiers) -> None:
    for source, arguments in (
        (b"abc", {"items": 5}), ([1], {"items": 0}), ([1], {"items": True}), ([1], {"items": "many"}),
        (b"abc", {"chunk": 0}), ([1], {"prefetch": -1}), ([1], {"prefetch": "much"}), (5, {}),
        ([1], {"chunk": 5, "items": 5}),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            chunks_of(source, tiers, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError):
        chunks_of(Source.from_keys(len), tiers)
    with pytest.raises(UnsupportedError):
        ByKeys(Source.from_range(max), tiers, [1])


def test_indexes_that_are_none_are_refused(tiers: Tiers) -> None:
    chunks = Chunks(Rows(25).source(), tiers, items=10)
    for index in (1.0, "1", None, True):
        with pytest.raises(TypeError, match="whole numbers"):
            chunks[index]  # type: ignore[index]
    with pytest.raises(UnsupportedError):
        [1] in chunks  # noqa: B015
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(chunks)


def test_the_last_chunk_of_a_source_that_grows_is_loaded_anew(tiers: Tiers) -> None:
    rows = list(range(5))
    source = Source.from_range(lambda offset, limit: rows[offset : offset + limit], size=lambda: len(rows))
    chunks = Chunks(source, tiers, items=4)
    assert list(chunks) == [[0, 1, 2, 3], [4]]
    rows += [5, 6]
    assert list(chunks) == [[0, 1, 2, 3], [4, 5, 6]]
    del rows[4:]
    assert list(chunks) == [[0, 1, 2, 3]]
    with pytest.raises(ItemIndexError):
        chunks[1]


@pytest.mark.parametrize("size", [None, -1, 1.5, True, "5"])
def test_a_size_that_is_none_is_named(tiers: Tiers, size: Any) -> None:
    chunks = Chunks(Source.from_range(lambda offset, limit: [], size=lambda: size), tiers, items=4)
    with pytest.raises(LoadError, match="size="):
        list(chunks)


def test_a_source_that_only_its_own_thread_may_read_is_read_there(tiers: Tiers) -> None:
    here = threading.get_ident()

    def rows(offset: int, limit: int) -> list[int]:
        if threading.get_ident() != here:
            time.sleep(0.001)
            raise RuntimeError("made in another thread")
        return list(range(offset, min(offset + limit, 200)))

    chunks = Chunks(Source.from_range(rows, size=200), tiers, items=4)
    assert [item for chunk in chunks for item in chunk] == list(range(200))


def test_after_three_loads_in_vain_nothing_is_read_ahead() -> None:
    flights = Flights()
    ahead = ChunkAhead(flights.start, Room(), 2, 1)  # type: ignore[arg-type]
    for index in range(10):
        ahead.touch(index)
        for flight in flights.started.values():
            flight.done, flight.error = True, OSError()  # type: ignore[misc]
    assert max(flights.started) <= 5


def test_what_fails_by_itself_is_tried_once(tiers: Tiers) -> None:
    asked: list[int] = []

    def rows(offset: int, limit: int) -> list[int]:
        asked.append(offset)
        raise OSError("gone")

    chunks = Chunks(Source.from_range(rows, size=100), tiers, items=10)
    with pytest.raises(OSError, match="gone"):
        chunks[3]
    assert asked == [30]
