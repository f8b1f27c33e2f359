"""Cutting bytes, text and objects: nothing lost, nothing copied, cuts where they were asked for."""

from __future__ import annotations

import array
import asyncio
import io
import itertools
import pickle
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazystore.errors import ConfigError, FormatError
from lazystore.lazy.chunk import DataChunk, content_id
from lazystore.lazy.chunker import DataChunker
from lazystore.lazy.strategy import ChunkStrategy

FIXED, DYNAMIC = ChunkStrategy.FIXED_SIZE, ChunkStrategy.DYNAMIC_SIZE
CONTENT, TIMED = ChunkStrategy.CONTENT_BASED, ChunkStrategy.TIME_BASED

TEXTS = st.text(st.characters(max_codepoint=0x1F9FF) | st.sampled_from("ab\n,é€🦊\ud800"), max_size=300)
DELIMITERS = st.sampled_from([None, "\n", ",", "\r\n", "aba"])


def cut_at_random(data: Any, seed: int) -> Iterator[Any]:
    """The same in blocks of all sizes, empty ones too."""
    rng, at = random.Random(seed), 0
    while at < len(data):
        step = rng.choice([0, 1, 2, 3, 7, 50, 200])
        yield data[at : at + step]
        at += step


async def later(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


def gathered(chunker: DataChunker, data: Any) -> list[Any]:
    async def all_of_it() -> list[Any]:
        return [piece async for piece in chunker.apieces(data)]

    return asyncio.run(all_of_it())


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -- nothing lost -----------------------------------------------------------------------


@given(
    data=st.binary(max_size=2000) | st.binary(max_size=300).map(lambda b: b.replace(b"\0", b"aba\r\n,")),
    chunk=st.integers(1, 300), strategy=st.sampled_from(ChunkStrategy), delimiter=DELIMITERS, seed=st.integers(0, 9),
)  # fmt: skip
def test_pieces_of_bytes_are_the_bytes(
    data: bytes, chunk: int, strategy: ChunkStrategy, delimiter: str | None, seed: int
) -> None:
    chunk += 64 if strategy is CONTENT else 0
    chunker = DataChunker(chunk, strategy=strategy, delimiter=delimiter)
    whole = list(chunker.pieces(data))
    assert b"".join(whole) == data
    assert all(whole)
    if strategy is not DYNAMIC:  # which goes by the clock
        for way in (chunker.pieces(cut_at_random(data, seed)), gathered(chunker, later(cut_at_random(data, seed)))):
            assert list(way) == whole
    if strategy is FIXED and delimiter is None:
        assert [len(piece) for piece in whole[:-1]] == [chunk] * (len(whole) - 1)
    if delimiter is not None:
        end = delimiter.encode()
        assert all(bytes(piece).endswith(end) for piece in whole[:-1])
    if delimiter is not None and strategy is FIXED:
        for piece in whole:  # whole records that fit, or a longer one by itself
            assert len(piece) <= chunk or bytes(piece).find(end, max(0, chunk - len(end) + 1)) in (
                -1,
                len(piece) - len(end),
            )


@given(
    text=TEXTS, chunk=st.integers(1, 100), strategy=st.sampled_from(ChunkStrategy), delimiter=DELIMITERS,
    seed=st.integers(0, 9),
)  # fmt: skip
@example(text="🦊" * 10, chunk=3, strategy=FIXED, delimiter=None, seed=0)
def test_pieces_of_text_are_the_text_and_no_code_point_is_cut(
    text: str, chunk: int, strategy: ChunkStrategy, delimiter: str | None, seed: int
) -> None:
    chunk += 64 if strategy is CONTENT else 0
    chunker = DataChunker(chunk, strategy=strategy, delimiter=delimiter)
    whole = list(chunker.pieces(text))
    assert "".join(whole) == text
    assert all(whole)
    if strategy is not DYNAMIC:
        assert list(chunker.pieces(cut_at_random(text, seed))) == whole
        assert gathered(chunker, later(cut_at_random(text, seed))) == whole
    if strategy is FIXED and delimiter is None:
        for piece, following in itertools.pairwise(whole):
            size = len(piece.encode("utf-8", "surrogatepass"))
            assert size <= chunk or len(piece) == 1  # a code point that is larger than the chunk
            assert size + len(following[0].encode("utf-8", "surrogatepass")) > chunk
    ends = delimiter or ("\n" if strategy is CONTENT else None)
    if ends is not None:
        assert all(piece.endswith(ends) for piece in whole[:-1])


@given(
    items=st.lists(st.integers(0, 50), max_size=100), n=st.integers(1, 20),
    strategy=st.sampled_from([FIXED, DYNAMIC, TIMED]), by_weight=st.booleans(),
)  # fmt: skip
def test_lists_of_objects_are_the_objects(items: list[int], n: int, strategy: ChunkStrategy, by_weight: bool) -> None:
    chunker = DataChunker(n, weigh=int, strategy=strategy) if by_weight else DataChunker(items=n, strategy=strategy)
    whole = list(chunker.pieces(iter(items)))
    assert [item for piece in whole for item in piece] == items
    assert all(whole)
    if strategy is not DYNAMIC:
        assert gathered(chunker, later(items)) == whole
    if strategy is FIXED:
        for piece in whole:
            weight = sum(piece) if by_weight else len(piece)
            assert weight <= n or len([item for item in piece if item]) == 1


@given(items=st.lists(st.integers(0, 5), max_size=60), least=st.integers(1, 5), more=st.integers(0, 20))
def test_a_boundary_cuts_between_objects_that_differ(items: list[int], least: int, more: int) -> None:
    chunker = DataChunker(items=4, boundary=lambda a, b: a != b, min=least, max=least + more)
    whole = list(chunker.pieces(items))
    assert [item for piece in whole for item in piece] == items
    for piece, following in itertools.pairwise(whole):
        assert len(piece) == least + more or (piece[-1] != following[0] and least <= len(piece) <= least + more)
        assert not any(a != b for a, b in zip(piece[least - 1 :], piece[least:], strict=False))


@given(data=st.binary(max_size=3000), chunk=st.integers(64, 200), seed=st.integers(0, 9))
def test_content_defined_sizes_stay_within_min_and_max(data: bytes, chunk: int, seed: int) -> None:
    whole = list(DataChunker(chunk, strategy=CONTENT, min=64, max=300).pieces(cut_at_random(data, seed)))
    assert b"".join(whole) == data
    assert all(64 <= len(piece) <= 300 for piece in whole[:-1])


# -- no copies --------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ChunkStrategy)
def test_pieces_of_bytes_in_memory_are_views_of_them(strategy: ChunkStrategy) -> None:
    data = bytearray(random.Random(1).randbytes(100_000))
    pieces = list(DataChunker(4096, strategy=strategy, delimiter=b"\n").pieces(data))
    assert all(isinstance(piece, memoryview) and piece.readonly and piece.obj is data for piece in pieces)
    data[:] = bytes(len(data))
    assert not any(b"".join(pieces))


def test_only_what_lies_across_blocks_is_copied() -> None:
    blocks = [bytes([n]) * 1000 for n in range(4)]
    pieces = list(DataChunker(400).pieces(blocks))
    assert [len(piece) for piece in pieces] == [400] * 10
    assert sum(any(piece.obj is block for block in blocks) for piece in pieces) == 8


def test_any_buffer_is_cut_as_its_bytes() -> None:
    numbers = array.array("i", range(100))
    assert b"".join(DataChunker(64).pieces(numbers)) == numbers.tobytes()
    assert list(DataChunker(64).pieces(array.array("i"))) == []
    assert list(DataChunker(items=40).pieces(numbers))[2] == list(range(80, 100))


def test_a_source_may_fill_the_same_buffer_again_and_again() -> None:
    def blocks() -> Iterator[bytearray]:
        buffer = bytearray(10)
        for n in range(9):
            buffer[:] = bytes([n]) * 10
            yield buffer

    found = b"".join(bytes(piece) for piece in DataChunker(25).pieces(blocks()))
    assert found == b"".join(bytes([n]) * 10 for n in range(9))


# -- where the cuts are -----------------------------------------------------------------


def test_a_chunk_knows_its_place_and_its_size() -> None:
    chunks = list(DataChunker(4).chunk("aé🦊bc"))
    assert [(c.index, c.offset, c.size, c.data) for c in chunks] == [(0, 0, 3, "aé"), (1, 3, 4, "🦊"), (2, 7, 2, "bc")]
    assert [(c.index, c.offset, len(c)) for c in DataChunker(items=2).chunk(["a", "c"] * 2)] == [
        (0, 0, 2),
        (1, 2, 2),
    ]
    assert [c.offset for c in DataChunker(3).chunk(bytes(7))] == [0, 3, 6]


def test_chunks_come_from_async_sources_as_from_others() -> None:
    async def all_of_it() -> list[DataChunk]:
        return [chunk async for chunk in DataChunker(4).achunk(later([b"abc", b"defgh", b"i"]))]

    assert asyncio.run(all_of_it()) == list(DataChunker(4).chunk(b"abcdefghi"))


def test_records_longer_than_max_are_refused() -> None:
    chunker = DataChunker(10, delimiter=b"\n", max=20)
    assert [bytes(piece) for piece in chunker.pieces(b"a" * 19 + b"\nb\n")] == [b"a" * 19 + b"\n", b"b\n"]
    for data in (b"a" * 20 + b"\n", b"a" * 21):
        for way in (data, cut_at_random(data, 1)):
            with pytest.raises(FormatError, match="max=20"):
                list(chunker.pieces(way))


def test_a_long_record_is_copied_about_once_not_again_for_each_block() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        pieces = list(DataChunker(1000, delimiter=b"\n").pieces(bytes(1000) for _ in range(4000)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(piece) for piece in pieces] == [4_000_000]
    assert peak < 14_000_000


def test_equal_content_gives_equal_ids_wherever_it_stands() -> None:
    data = random.Random(2).randbytes(200_000)
    chunker = DataChunker("4KiB", strategy=CONTENT)
    before = {chunk.id for chunk in chunker.chunk(data)}
    after = [chunk.id for chunk in chunker.chunk(data[:50_000] + b"!" + data[50_000:])]
    assert sum(name not in before for name in after) <= 4
    lines = "".join(f"line {n}\n" for n in random.Random(3).choices(range(10**6), k=10_000))
    text = DataChunker("1KiB", strategy=CONTENT)
    before = {chunk.id for chunk in text.chunk(lines)}
    after = [chunk.id for chunk in text.chunk("new line\n" + lines)]
    assert len(before) > 50
    assert sum(name not in before for name in after) <= 4


# -- time -------------------------------------------------------------------------------


def test_dynamic_sizes_shrink_at_once_and_grow_at_most_twofold() -> None:
    clock, sizes = Clock(), []
    rates = [100_000] * 20 + [1000] * 3 + [100_000] * 20  # bytes that the consumer does in a second
    chunker = DataChunker(1000, target_seconds=0.1, min=50, max=8000, clock=clock)
    for rate, piece in zip(rates, chunker.pieces(bytes(10**6)), strict=False):
        sizes.append(len(piece))
        clock.now += len(piece) / rate
    assert sizes[0] == 1000
    assert sizes[1] == 2000
    assert sizes[19] == 8000  # of the 10,000 that would take as long
    assert sizes[21] == sizes[22] == 100
    assert all(b <= 2 * a for a, b in itertools.pairwise(sizes))
    assert sizes[-1] == 8000


def test_a_slow_consumer_gets_the_least() -> None:
    clock, sizes = Clock(), []
    for piece in DataChunker(items=100, strategy=DYNAMIC, min=7, clock=clock).pieces(range(300)):
        sizes.append(len(piece))
        clock.now += 60
    assert sizes == [100, *[7] * 28, 4]


def test_what_waited_long_enough_goes_when_the_next_comes() -> None:
    clock = Clock()

    def readings() -> Iterator[int]:
        for n in range(7):
            clock.now += 0.4
            yield n

    assert list(DataChunker(items=100, max_wait=1, clock=clock).pieces(readings())) == [[0, 1, 2, 3], [4, 5, 6]]
    clock.now = 0.0
    parts = (bytes([n]) for n in readings())
    assert list(DataChunker(100, max_wait=1, clock=clock).pieces(parts)) == [b"\0\1\2\3", b"\4\5\6"]
    clock.now = 0.0
    records = (b"ab\nc" for _ in readings())
    found = [bytes(piece) for piece in DataChunker(100, max_wait=1, clock=clock, delimiter="\n").pieces(records)]
    assert found == [b"ab\ncab\ncab\ncab\n", b"cab\ncab\ncab\n", b"c"]


def test_an_async_source_that_says_nothing_does_not_keep_what_came() -> None:
    async def main() -> list[Any]:
        quiet = asyncio.Event()

        async def readings() -> AsyncIterator[int]:
            yield 1
            yield 2
            await quiet.wait()
            yield 3

        found = []
        async for piece in DataChunker(items=100, max_wait=0.01).apieces(readings()):
            found.append(piece)
            quiet.set()
        return found

    assert asyncio.run(main()) == [[1, 2], [3]]


def test_leaving_a_timed_source_leaves_no_task() -> None:
    async def main() -> None:
        async def readings() -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(3600)

        source = readings()
        pieces = DataChunker(items=100, max_wait=0.01).apieces(source)
        assert await anext(pieces) == [1]
        await pieces.aclose()
        await source.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


# -- sources ----------------------------------------------------------------------------


def test_files_are_read_in_blocks() -> None:
    data = random.Random(3).randbytes(300_000)
    assert b"".join(DataChunker("64KiB").pieces(io.BytesIO(data))) == data
    assert "".join(DataChunker(10).pieces(io.StringIO("a\nbé" * 30))) == "a\nbé" * 30
    assert list(DataChunker(items=2).pieces(io.BytesIO(b"a\nb\nc"))) == [[b"a\n", b"b\n"], [b"c"]]


def test_a_file_that_has_nothing_to_read_just_now_is_not_at_its_end() -> None:
    class Dry(io.RawIOBase):
        def read(self, size: int = -1) -> None:  # type: ignore[override]
            return None

    with pytest.raises(BlockingIOError):
        list(DataChunker(10).pieces(Dry()))


@pytest.mark.parametrize("nothing", [b"", "", [], iter([]), io.BytesIO()])
def test_nothing_has_no_chunks(nothing: Any) -> None:
    assert list(DataChunker().chunk(nothing)) == []


def test_no_async_items_no_chunks() -> None:
    assert gathered(DataChunker(), later([])) == []
    assert gathered(DataChunker(3), b"abcd") == [b"abc", b"d"]


def test_what_a_source_raises_comes_where_it_was_raised() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"abcde"
        raise OSError("gone")

    pieces = DataChunker(2).pieces(blocks())
    assert [bytes(next(pieces)), bytes(next(pieces))] == [b"ab", b"cd"]
    with pytest.raises(OSError, match="gone"):
        next(pieces)


def test_a_chunker_may_cut_several_things_at_once() -> None:
    chunker = DataChunker(100, strategy=CONTENT)
    data = random.Random(4).randbytes(5000)
    alone = list(chunker.pieces(data))
    assert list(zip(chunker.pieces(data), chunker.pieces(data), strict=True)) == list(zip(alone, alone, strict=True))


def test_objects_weigh_what_they_hold() -> None:
    sizes = [len(piece) for piece in DataChunker("10kB").pieces([{"text": f"{n:1000}"} for n in range(30)])]
    assert sum(sizes) == 30
    assert 5 <= sizes[0] <= 9


def test_a_subclass_makes_chunks_of_its_own() -> None:
    class Paragraphs(DataChunker):
        def chunks(self, lines: list[str]) -> list[DataChunk]:
            return [self._create_chunk([line], n, language="none") for n, line in enumerate(lines)]

    chunks = Paragraphs().chunks(["a", "b"])
    assert [(c.data, c.index, c.size, c.offset, c.metadata["language"]) for c in chunks][1] == (
        ["b"],
        1,
        1,
        None,
        "none",
    )


# -- ids --------------------------------------------------------------------------------


def test_ids_tell_content_apart_and_nothing_else() -> None:
    assert content_id(b"abc") == content_id("abc") == content_id(memoryview(b"abc")) == content_id(bytearray(b"abc"))
    assert content_id(b"abc") == "cf4ab791c62b8d2b2109c90275287816"  # BLAKE2b-128 of RFC 7693
    word, other = "".join(["w", "ord"]), "".join(["wo", "rd"])
    assert content_id([word, word]) == content_id([word, other])  # not which objects they are
    assert content_id([{"a": 1, "b": [None, 2.5, (True,)]}]) == content_id([{"a": 1, "b": [None, 2.5, (True,)]}])
    different = [[1], [1.0], [True], ["1"], [b"1"], [[1]], [(1,)], [1, 1], []]
    assert len({content_id(items) for items in different}) == len(different)
    assert content_id([io.StringIO]) == content_id([io.StringIO])


def test_chunks_are_values() -> None:
    chunk = DataChunk(memoryview(b"abc"), 1, 3, 10, {"a": 1})
    copy = pickle.loads(pickle.dumps(chunk))
    assert copy == chunk
    assert (copy.id, copy.metadata) == (chunk.id, chunk.metadata)
    assert "abc" not in repr(DataChunk("abc", 0, 3))
    with pytest.raises(AttributeError):
        chunk.index = 2  # type: ignore[misc]


# -- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"chunk": 0}, "chunk"),
        ({"chunk": -1}, "chunk"),
        ({"chunk": "many"}, "chunk"),
        ({"chunk": True}, "chunk"),
        ({"items": 0}, "items"),
        ({"items": 1.5}, "items"),
        ({"items": "5"}, "items"),
        ({"items": True}, "items"),
        ({"chunk": 5, "items": 5}, "one of them"),
        ({"items": 5, "weigh": len}, "one of them"),
        ({"strategy": "sometimes"}, "FIXED_SIZE"),
        ({"delimiter": b""}, "delimiter"),
        ({"delimiter": 10}, "delimiter"),
        ({"delimiter": "\n", "items": 5}, "delimiter"),
        ({"delimiter": "\n", "boundary": max}, "delimiter"),
        ({"boundary": max, "strategy": FIXED}, "boundary"),
        ({"target_seconds": 0}, "target_seconds"),
        ({"target_seconds": 1, "strategy": TIMED}, "target_seconds"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_wait": 1, "strategy": FIXED}, "max_wait"),
        ({"min": 5}, "min="),
        ({"max": 5}, "max="),
        ({"min": 9, "max": 8, "target_seconds": 1}, "min=9"),
        ({"chunk": 63, "strategy": CONTENT}, "64"),
        ({"chunk": 100, "min": 10, "strategy": CONTENT}, "64"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DataChunker(**arguments)


def test_data_that_cannot_be_cut_this_way_is_refused() -> None:
    for chunker, data in (
        (DataChunker(items=5), b"bytes"),
        (DataChunker(items=5), "text"),
        (DataChunker(), 5),
        (DataChunker(), None),
        (DataChunker(), later([])),
        (DataChunker(), [b"bytes", "text"]),
        (DataChunker(), ["text", b"bytes"]),
        (DataChunker(delimiter="\n"), [1, 2]),
        (DataChunker(strategy=CONTENT), [1, 2]),
        (DataChunker(5, weigh=lambda item: -1), [1]),
        (DataChunker(5, weigh=lambda item: "heavy"), [1]),  # type: ignore[arg-type, return-value]
    ):
        with pytest.raises(ConfigError):
            list(chunker.pieces(data))
