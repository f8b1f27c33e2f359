"""Compressed texts as blocks: any block from the index alone, in bounded memory, and none that is not the text's."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import image, images_from, items_of
from support.texts import indexed, place_of, stored, unindexed, values, write

from lazystore.errors import BudgetTooSmallError, FormatError, LazyStoreError
from lazystore.fetch.local import LocalSource
from lazystore.formats.format import Image, Opened, Options, Want
from lazystore.formats.text import JsonlFormat, LinesFormat
from lazystore.formats.text_images import LOCAL_PIECE

zstandard = pytest.importorskip("zstandard")

NOISE = random.Random(3)
ROWS = [{"id": i, "text": NOISE.randbytes(NOISE.randrange(60)).hex()} for i in range(20_000)]
DATA = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
NAMES = ["a.jsonl.gz", "a.jsonl.zst"]
JSONL = JsonlFormat()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def opened(folder: Path, name: str, data: bytes = DATA) -> Opened:
    write(folder, {name: data})
    return unindexed(JSONL, place_of(folder, [name])).build()


@pytest.mark.parametrize("name", NAMES)
def test_each_block_is_the_same_from_the_beginning_and_by_itself(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, name)
    assert found.images is not None and len(found.counts) > 4
    through = [bytes(one.data) for one in images_from(found.images, found.source, 0)]
    for block in random.Random(0).sample(range(len(found.counts)), 4):
        one = image(found, block)
        assert bytes(one.data) == through[block]
        assert one.opened == sum(map(len, items_of(one.data)))
    assert values(found) == ROWS
    assert all(256 << 10 <= size < 280 << 10 for size in list(found.hints)[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_holds_no_more_than_it_says(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, name)
    assert found.images is not None
    limit = found.images.scratch(0)
    data = (tmp_path / name).read_bytes()
    steps = found.images.open(0, 0)
    tracemalloc.start()
    try:
        answer, held = None, 0
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                break
            answer = None
            if isinstance(step, Image):
                held = max(held, tracemalloc.get_traced_memory()[0] - len(step.data))
                continue
            (want,) = step
            assert isinstance(want, Want) and want.nbytes <= LOCAL_PIECE
            held = max(held, tracemalloc.get_traced_memory()[0])
            answer = [memoryview(data)[want.begin : want.begin + want.nbytes]]
            del step
    finally:
        tracemalloc.stop()
    assert held <= limit


def test_several_files_are_runs_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl.gz": DATA, "b.jsonl.gz": b"", "c.jsonl.gz": DATA[: DATA.find(b"\n", 300_000) + 1]})
    found = unindexed(JSONL, place_of(tmp_path, ["a.jsonl.gz", "b.jsonl.gz", "c.jsonl.gz"])).build()
    assert found.images is not None and found.files is not None
    runs = list(found.images.runs)
    assert len(runs) == 4 and runs[1] == runs[2] < runs[3] == len(found.counts)
    assert list(found.files.counts)[:2] == [20_000, 0] and found.files.blocks == found.images.runs
    assert found.names[0] == "a.jsonl.gz" and found.names[runs[3] - 1] == "c.jsonl.gz"
    assert values(found)[:20_000] == ROWS


@pytest.mark.parametrize("name", NAMES)
def test_another_text_under_the_same_identity_is_an_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(tmp_path, name)
    lines = DATA.splitlines(keepends=True)
    for other in (DATA[:-500], lines[0][:-2] + b"\n" + DATA[len(lines[0]) :], DATA + b"1\n"):
        write(tmp_path, {name: other})
        found.source = LocalSource(str(tmp_path))
        with pytest.raises(LazyStoreError):
            stored(found)


@pytest.mark.parametrize("name", NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(at=st.integers(0, 1 << 30), by=st.integers(1, 255), cut=st.booleans())
def test_damaged_streams_give_errors_or_the_right_rows(
    name: str, at: int, by: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    small = DATA[: DATA.find(b"\n", 20_000) + 1]
    if name.endswith("zst"):
        good = zstandard.ZstdCompressor(write_checksum=True).compress(small)
    else:
        good = gzip.compress(small)
    at %= len(good)
    data = good[:at] if cut else good[:at] + bytes([good[at] ^ by]) + good[at + 1 :]
    (folder / name).write_bytes(data)
    try:
        first = unindexed(JSONL, place_of(folder, [name]))
        rows = [first.plan(item) for item in first.stream()]
    except (LazyStoreError, UnicodeDecodeError):
        return
    assert rows == ROWS[: len(rows)] and (len(rows) == small.count(b"\n") or (cut and at == 0))


def test_a_bomb_is_met_by_the_budget(tmp_path: Path) -> None:
    """A line of a gigabyte, in a megabyte of gzip."""
    packed = gzip.compress(bytes(64 << 20), 9)
    (tmp_path / "bomb.txt.gz").write_bytes(packed * 16)
    first = unindexed(LinesFormat(), place_of(tmp_path, ["bomb.txt.gz"], budget=16 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(BudgetTooSmallError, match=r"bomb.txt.gz: the item after byte 0"):
            next(first.stream())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_stream_needs_the_memory_its_index_says(tmp_path: Path) -> None:
    found = opened(tmp_path, "a.jsonl.zst")
    maker = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=24))
    stream = maker.compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(stream.compress(DATA) + stream.flush())
    found.source = LocalSource(str(tmp_path))
    with pytest.raises(LazyStoreError):
        stored(found)
    again = unindexed(JSONL, place_of(tmp_path, ["a.jsonl.zst"])).build()
    assert again.images is not None and again.images.scratch(0) > 1 << 24
    assert values(indexed(JSONL, place_of(tmp_path, ["a.jsonl.zst"]))) == ROWS


def test_a_window_beyond_the_budget_is_told_at_once(tmp_path: Path) -> None:
    maker = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=24))
    stream = maker.compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(stream.compress(DATA) + stream.flush())
    place = place_of(tmp_path, ["a.jsonl.zst"], budget=16 << 20)
    first = JSONL.open(place, Options())
    assert not isinstance(first, Opened)
    with pytest.raises(BudgetTooSmallError, match=r"a.jsonl.zst: .* zstd window of 16777216 bytes"):
        first.build()
    with pytest.raises(FormatError):
        (tmp_path / "a.jsonl.zst").write_bytes(b"x" * 100)
        unindexed(JSONL, place_of(tmp_path, ["a.jsonl.zst"])).build()
