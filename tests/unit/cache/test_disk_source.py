"""Blocks of a remote source on disk: what is fetched once is read from there, and nothing else changes."""

from __future__ import annotations

import gc
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paging import VersionedSource
from support.sources import Postman

from lazystore.cache.disk import DiskTier
from lazystore.cache.disk_source import BLOCK, DiskSource
from lazystore.errors import ClosedError, ConfigError, DatasetNotFoundError, FetchError, SourceChangedError
from lazystore.fetch.source import Read

SIZE = 5 * BLOCK + 1234
DATA = random.Random(5).randbytes(SIZE)


def tier(path: Path) -> DiskTier:
    return DiskTier(path / "tier", max_bytes="16MB", codec="none")


@pytest.fixture
def far() -> VersionedSource:
    return VersionedSource({"a": DATA, "b": DATA[::-1], "empty": b""})


@pytest.fixture
def near(far: VersionedSource, tmp_path: Path):
    source = DiskSource(far, tier(tmp_path))
    yield source
    source.close()


def ranges(source: DiskSource, wanted: list[tuple[str, int, int]], *, start: bool = False) -> list[bytes]:
    buffers = [bytearray(end - begin) for _, begin, end in wanted]
    reads = [Read(name, begin, memoryview(b)) for (name, begin, _), b in zip(wanted, buffers, strict=True)]
    if start:
        source.start(reads, timeout=30).result()
    else:
        source.run(reads, timeout=30)
    assert [read.got for read in reads] == [len(buffer) for buffer in buffers]
    return [bytes(buffer) for buffer in buffers]


@pytest.mark.parametrize("start", [False, True])
def test_what_was_fetched_once_is_not_fetched_again(far: VersionedSource, near: DiskSource, start: bool) -> None:
    assert ranges(near, [("a", 0, SIZE)], start=start) == [DATA]
    far.waves.clear()
    assert ranges(near, [("a", 100, SIZE - 7)], start=start) == [DATA[100:-7]]
    assert not far.waves
    assert near.counters.extra["disk_hits"] == near.counters.extra["disk_stores"] == 6


def test_another_process_finds_the_blocks(far: VersionedSource, near: DiskSource, tmp_path: Path) -> None:
    ranges(near, [("a", 0, SIZE)])
    again = VersionedSource(far.objects)
    other = DiskSource(again, tier(tmp_path))
    assert ranges(other, [("a", BLOCK - 1, BLOCK + 1)]) == [DATA[BLOCK - 1 : BLOCK + 1]]
    assert again.nbytes() == 0
    other.close()


def test_blocks_are_fetched_whole_in_one_wave_and_once(far: VersionedSource, near: DiskSource) -> None:
    assert ranges(near, [("a", BLOCK + 10, 2 * BLOCK + 10)]) == [DATA[BLOCK + 10 : 2 * BLOCK + 10]]
    assert [wave for wave in far.waves if wave] == [
        [
            ("a", BLOCK, BLOCK + 10),
            ("a", BLOCK + 10, 2 * BLOCK),
            ("a", 2 * BLOCK, 2 * BLOCK + 10),
            ("a", 2 * BLOCK + 10, 3 * BLOCK),
        ]
    ]
    ranges(near, [("a", BLOCK, 3 * BLOCK)])
    assert set(far.asked().values()) == {1}


def test_without_room_just_what_is_wanted_is_fetched(far: VersionedSource, tmp_path: Path) -> None:
    near = DiskSource(far, tier(tmp_path), room=0)
    assert ranges(near, [("a", 10, 2 * BLOCK + 1)]) == [DATA[10 : 2 * BLOCK + 1]]
    assert far.nbytes() == 2 * BLOCK - 9
    assert near.counters.extra["disk_stores"] == 1
    near.close()


def test_room_is_given_back(far: VersionedSource, tmp_path: Path) -> None:
    near = DiskSource(far, tier(tmp_path), room=BLOCK)
    far.before = lambda reads: (_ for _ in ()).throw(FetchError("no")) if reads else None
    for _ in range(3):
        with pytest.raises(FetchError, match="no"):
            ranges(near, [("a", 0, 1)])
    far.before = lambda reads: None
    gc.collect()
    for at in range(5):
        ranges(near, [("a", at * BLOCK, at * BLOCK + 1)])
    assert near.counters.extra["disk_stores"] == 5
    near.close()


spans = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, SIZE), st.integers(0, 2 * BLOCK)), min_size=1, max_size=6
)


@settings(max_examples=25)
@given(
    calls=st.lists(st.tuples(spans, st.booleans()), min_size=1, max_size=4), room=st.sampled_from([0, BLOCK, 1 << 20])
)
def test_any_reads_however_they_overlap_give_the_bytes_of_the_object(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[list[tuple[str, int, int]], bool]], room: int
) -> None:
    far = VersionedSource({"a": DATA, "b": DATA[::-1]})
    near = DiskSource(far, tier(tmp_path_factory.mktemp("blocks")), room=room)
    for wanted, start in calls:
        cut = [(name, begin, min(begin + length, SIZE)) for name, begin, length in wanted]
        assert ranges(near, cut, start=start) == [far.objects[name][begin:end] for name, begin, end in cut]
    if room == 1 << 20:
        assert not far.asked() or max(far.asked().values()) == 1
    near.close()


@pytest.mark.parametrize("start", [False, True])
def test_a_read_beyond_the_end_gets_what_there_is_if_the_size_is_asked_for(near: DiskSource, start: bool) -> None:
    for _ in range(2):
        read = Read("a", SIZE - 5, memoryview(bytearray(100)))
        beyond = Read("empty", 0, memoryview(bytearray(10)))
        if start:
            sizes = near.start([read, beyond], stat=["a", "empty"], timeout=30).result()
        else:
            sizes = near.run([read, beyond], stat=["a", "empty"], timeout=30)
        assert sizes == {"a": SIZE, "empty": 0}
        assert (read.got, beyond.got, bytes(read.view[:5])) == (5, 0, DATA[-5:])
    with pytest.raises(FetchError, match="ends before"):
        near.run([Read("a", SIZE - 5, memoryview(bytearray(100)))], timeout=30)


def test_an_object_that_changed_is_another_object(far: VersionedSource, near: DiskSource, tmp_path: Path) -> None:
    ranges(near, [("a", 0, BLOCK)])
    far.replace("a", DATA[::-1])
    with pytest.raises(SourceChangedError):
        ranges(near, [("a", BLOCK, 2 * BLOCK)])
    newer = VersionedSource(far.objects)
    newer.versions["a"] = 2
    again = DiskSource(newer, tier(tmp_path))
    assert ranges(again, [("a", 0, BLOCK)]) == [DATA[::-1][:BLOCK]]
    again.close()


def test_storage_that_tells_only_sizes_is_passed_through(far: VersionedSource, near: DiskSource) -> None:
    far.told = False
    for _ in range(2):
        assert ranges(near, [("a", 3, 9)]) == [DATA[3:9]]
    assert far.nbytes() == 12
    assert near.counters.extra["disk_stores"] == 0


def test_a_damaged_block_is_fetched_again(far: VersionedSource, near: DiskSource, tmp_path: Path) -> None:
    ranges(near, [("a", 0, SIZE)])
    for path in (tmp_path / "tier").iterdir():
        if path.stat().st_size > BLOCK:
            with path.open("r+b") as file:
                for at in range(BLOCK // 2, path.stat().st_size, BLOCK):
                    file.seek(at)
                    file.write(b"\x55" * 64)
    assert ranges(near, [("a", 0, SIZE)]) == [DATA]


@pytest.mark.parametrize("start", [False, True])
def test_errors_of_the_storage_arrive_as_they_are(far: VersionedSource, near: DiskSource, start: bool) -> None:
    with pytest.raises(DatasetNotFoundError):
        ranges(near, [("none", 0, 1)], start=start)
    far.close()
    with pytest.raises(ClosedError):
        ranges(near, [("b", 0, 1)], start=start)


def test_nothing_is_written_once_a_flight_is_cancelled(far: VersionedSource, near: DiskSource) -> None:
    near.run([], stat=["a"], timeout=30)
    buffer = bytearray(BLOCK)
    ended = threading.Event()
    with Postman(far, patience=10.0):  # it brings what it has when it is sent home, too late
        flight = near.start([Read("a", 0, memoryview(buffer))], timeout=30, on_done=ended.set)
        while not far.waves[-1]:
            time.sleep(0.001)
        flight.cancel()
        assert ended.wait(10)
        assert flight.done()
        with pytest.raises(FetchError, match="cancelled"):
            flight.result()
    assert buffer == bytes(BLOCK)
    assert near.counters.extra["disk_stores"] == 0


def test_a_flight_that_is_forgotten_writes_nothing(far: VersionedSource, near: DiskSource) -> None:
    far.objects["slow"] = DATA
    near.run([], stat=["a", "b", "slow"], timeout=30)
    gate = threading.Event()
    far.before = lambda reads: gate.wait(10)
    buffer = bytearray(2 * BLOCK)
    blocker = near.start([Read("slow", 0, memoryview(bytearray(1)))], timeout=30)
    flight = near.start([Read("a", 0, memoryview(buffer))], timeout=30)
    del flight
    gate.set()
    blocker.result()
    near.start([Read("b", 0, memoryview(bytearray(1)))], timeout=30).result()  # after it, on the same thread
    assert buffer == bytes(2 * BLOCK)


def test_a_local_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave disk out"):
        DiskSource(VersionedSource({}, local=True), tier(tmp_path))


def test_the_disk_stays_within_its_bytes(far: VersionedSource, tmp_path: Path) -> None:
    small = DiskTier(tmp_path / "small", max_bytes=8 * BLOCK, codec="none")
    near = DiskSource(far, small)
    for name in "abab":
        assert ranges(near, [(name, 0, SIZE)]) == [far.objects[name]]
        assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= 8 * BLOCK
    near.close()
