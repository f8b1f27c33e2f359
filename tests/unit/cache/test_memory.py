"""``ChunkMemory``: what is fetched, how often, by whom, and what trouble costs."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import datasets
from support.benches import Bench
from support.sources import DiarySource

from lazystore import EvictionPolicy, StreamingDataset
from lazystore.errors import (
    ClosedError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    FormatError,
    SourceChangedError,
)
from lazystore.fetch.source import Read

COUNT, PER_CHUNK = 3000, 1000
SIZE = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of ~300 kB."""
    return datasets.write(tmp_path_factory.mktemp("memory") / "dataset", COUNT, size=SIZE, chunk_size=PER_CHUNK)


@pytest.fixture
def far(folder: Path) -> Iterator[Bench]:
    bench = Bench(DiarySource.of(folder))
    yield bench
    if not bench.store.is_closed:
        bench.check()


@pytest.fixture
def near(folder: Path) -> Iterator[Bench]:
    bench = Bench(DiarySource.of(folder, local=True))
    yield bench
    bench.check()


# -- how much is asked for ------------------------------------------------------------------


def test_a_cold_item_far_away_takes_one_wave_or_two_and_little_more_than_its_bytes(folder: Path) -> None:
    single = 0
    for i in range(0, COUNT, 97):
        bench = Bench(DiarySource.of(folder))
        datasets.check([bench.reader.get(i)], [i], SIZE)
        assert len(bench.source.waves) <= 2
        single += len(bench.source.waves) == 1
        assert bench.source.counters.bytes_fetched < 40_000  # of a chunk of 300 000
    assert single > COUNT // 97 // 2


def test_a_second_item_of_a_known_table_takes_one_wave_of_its_own_bytes(far: Bench) -> None:
    far.reader.get(0)
    far.source.waves.clear()
    datasets.check([far.reader.get(700)], [700], SIZE)
    ((_, begin, end),) = far.source.waves[0]
    assert len(far.source.waves) == 1
    assert end - begin == len(far.reader.get_bytes(700))


def test_an_item_read_once_is_read_again_without_asking(far: Bench) -> None:
    far.reader.get(1234)
    far.source.waves.clear()
    for _ in range(3):
        datasets.check([far.reader.get(1234)], [1234], SIZE)
    assert far.source.waves == []


@pytest.mark.parametrize("known", [False, True])
def test_a_batch_from_far_away_takes_at_most_three_waves(far: Bench, known: bool) -> None:
    wanted = random.Random(4).sample(range(COUNT), 256)
    if known:
        far.reader.get_many([0, PER_CHUNK, 2 * PER_CHUNK])
        far.source.waves.clear()
    datasets.check(far.reader.get_many(wanted), wanted, SIZE)
    assert len(far.source.waves) <= (1 if known else 3)


def test_a_batch_asks_for_no_byte_twice(far: Bench) -> None:
    wanted = random.Random(5).choices(range(COUNT), k=400)
    datasets.check(far.reader.get_many(wanted), wanted, SIZE)
    asked = sorted(span for wave in far.source.waves for span in wave)
    for (name, _, end), (other, begin, _) in itertools.pairwise(asked):
        assert name != other or begin >= end


@pytest.mark.parametrize("local", [True, False])
def test_a_batch_over_more_tables_than_memory_holds(tmp_path: Path, local: bool) -> None:
    """Fetching the tables that are missing may push out the ones that were there."""
    chunks = [[datasets.item_bytes([(300 * c + i).to_bytes(8, "little")]) for i in range(300)] for c in range(100)]
    folder = datasets.craft(tmp_path / "d", chunks, ["int"])
    bench = Bench(DiarySource.of(folder, local=local), 65536)
    wanted = [300 * c + 7 for c in range(100)]
    for known in (0, 50, 99):
        assert bench.reader.get(300 * known + 150) == 300 * known + 150
        assert bench.reader.get_many(wanted) == wanted
        assert bench.reader.get_many(wanted[::-1]) == wanted[::-1]
    bench.check()


def test_a_batch_of_resident_items_asks_for_nothing(near: Bench) -> None:
    list(near.scan(0, COUNT))
    near.source.waves.clear()
    wanted = random.Random(6).choices(range(COUNT), k=300)
    datasets.check(near.reader.get_many(wanted), wanted, SIZE)
    assert near.source.waves == []


def test_dense_random_reads_end_up_fetching_whole_frames(near: Bench) -> None:
    for i in random.Random(7).sample(range(PER_CHUNK), PER_CHUNK):
        datasets.check([near.reader.get(i)], [i], SIZE)
    # Far fewer requests than items: after a while a frame brings its neighbours along.
    assert len(near.source.waves) < PER_CHUNK // 2
    frames = -(-len(near.source.objects["chunk-0-0.bin"]) // near.store.frame_bytes)
    assert len(near.store.contents()) >= frames - 1


def test_iterating_reads_each_byte_once_and_ahead(far: Bench) -> None:
    datasets.check(far.scan(0, COUNT), range(COUNT), SIZE)
    stored = sum(len(data) for name, data in far.source.objects.items() if name.endswith(".bin"))
    assert far.source.counters.bytes_fetched == stored
    parts = sum(-(-len(data) // far.store.frame_bytes) for name, data in far.source.objects.items() if ".bin" in name)
    assert len(far.source.waves) < parts / 2


def test_reading_forward_by_index_reads_ahead_like_iterating(far: Bench) -> None:
    datasets.check((far.reader.get(i) for i in range(COUNT)), range(COUNT), SIZE)
    assert len(far.source.waves) < 30


def test_prefetched_items_are_read_without_asking(far: Bench) -> None:
    wanted = [(0, 5), (2, 999), (1, 500)]
    assert far.memory.prefetch(wanted) == 3
    far.source.waves.clear()
    datasets.check(far.reader.get_many([5, 2999, 1500]), [5, 2999, 1500], SIZE)
    assert far.source.waves == []
    assert far.memory.prefetch(wanted) == 0


@pytest.mark.parametrize("local", [True, False])
def test_prefetched_items_longer_than_a_frame_are_there_too(tmp_path: Path, local: bool) -> None:
    values = [bytes([i]) * 40_000 for i in range(20)]
    folder = datasets.one_leaf(tmp_path / "d", "bytes", values)
    bench = Bench(DiarySource.of(folder, local=local), 1 << 20)
    assert bench.store.frame_bytes < 40_000
    bench.memory.prefetch([(0, 3), (0, 11)])
    assert bench.reader.is_resident(3)
    assert bench.reader.is_resident(11)
    bench.source.waves.clear()
    assert bench.reader.get_many([3, 11]) == [values[3], values[11]]
    assert bench.source.waves == []


# -- what stays -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [EvictionPolicy.LRU, EvictionPolicy.S3FIFO])
def test_a_scan_leaves_what_random_readers_keep_hot(folder: Path, policy: EvictionPolicy) -> None:
    hot = range(300)  # ~90 kB of a budget of 400 kB; the scan is 900 kB
    with StreamingDataset(folder, memory=400_000, eviction_policy=policy) as dataset:
        for _ in range(5):
            for i in hot:
                dataset[i]
        assert all(dataset.is_item_available(i) for i in hot)
        for _ in range(2):
            datasets.check(dataset, range(COUNT), SIZE)
        assert sum(dataset.is_item_available(i) for i in hot) >= 0.9 * len(hot)
        assert dataset.stats()["evictions"]["scan"] > 0


def test_a_second_pass_reads_again_only_what_did_not_fit(folder: Path) -> None:
    stored = sum(path.stat().st_size for path in folder.glob("*.bin"))
    budget = stored * 2 // 3
    with StreamingDataset(folder, memory=budget) as dataset:
        list(dataset)
        first = dataset.stats()["bytes_fetched"]
        list(dataset)
        second = dataset.stats()["bytes_fetched"] - first
        assert first >= stored
        # Of a cyclic scan the best any cache can do is to miss what does not fit; allow a quarter more.
        assert second <= (stored - 0.75 * budget) * 1.25


def test_the_arena_never_passes_its_budget(folder: Path) -> None:
    for budget in (65536, 100_000, 250_000, 10**6):
        bench = Bench(DiarySource.of(folder), budget)
        chance = random.Random(budget)
        for _ in range(30):
            match chance.randrange(4):
                case 0:
                    bench.reader.get(chance.randrange(COUNT))
                case 1:
                    bench.reader.get_many(chance.choices(range(COUNT), k=50))
                case 2:
                    start = chance.randrange(COUNT - 200)
                    datasets.check(bench.scan(start, start + 200), range(start, start + 200), SIZE)
                case _:
                    bench.reader.view(chance.randrange(COUNT))
            bench.check()
            assert bench.store.counters()["peak_bytes"] <= budget


# -- one fetch for many ---------------------------------------------------------------------


class Gate:
    """Holds requests until it is opened; counts who waits."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.arrived = threading.Semaphore(0)

    def __call__(self, reads: Sequence[Read]) -> None:
        self.arrived.release()
        assert self.open.wait(30)


def together(count: int, work: Any) -> list[Any]:
    """Run ``work(k)`` in threads; results or exceptions, in order."""
    found: list[Any] = [None] * count

    def call(k: int) -> None:
        try:
            found[k] = work(k)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            found[k] = error

    threads = [threading.Thread(target=call, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found


def test_many_scans_of_the_same_chunk_fetch_it_once(far: Bench) -> None:
    def scan(k: int) -> list[Any]:
        return list(far.scan(0, COUNT))

    for items in together(6, scan):
        datasets.check(items, range(COUNT), SIZE)
    asked = [span for wave in far.source.waves for span in wave]
    assert len(asked) == len(set(asked))


def test_who_comes_while_a_part_is_fetched_waits_for_it(far: Bench) -> None:
    gate = far.source.before = Gate()
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(next(far.scan(0, 1))))
    first.start()
    assert gate.arrived.acquire(timeout=10)
    others = [threading.Thread(target=lambda: found.append(next(far.scan(0, 1)))) for _ in range(4)]
    for thread in others:
        thread.start()
    assert not gate.arrived.acquire(timeout=0.2)  # nobody asks a second time
    gate.open.set()
    for thread in (first, *others):
        thread.join(30)
    datasets.check(found, [0] * 5, SIZE)
    assert len(far.source.waves) == 1


def test_when_a_fetch_fails_those_who_waited_try_for_themselves(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), fallback=False)
    fail = threading.Event()
    fail.set()

    def refuse_once(reads: Sequence[Read]) -> None:
        if fail.is_set():
            fail.clear()
            raise FetchError("the line is cut")

    bench.source.before = refuse_once
    found = together(5, lambda k: next(bench.scan(0, 1)))
    errors = [one for one in found if isinstance(one, Exception)]
    assert [str(error) for error in errors] == ["the line is cut"]
    datasets.check([one for one in found if not isinstance(one, Exception)], [0] * 4, SIZE)
    bench.check()


# -- trouble --------------------------------------------------------------------------------


def test_a_slow_fetch_ends_at_the_deadline_for_those_who_wait(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), timeout=0.3, fallback=False)
    gate = bench.source.before = Gate()
    owner = threading.Thread(target=lambda: next(bench.scan(0, 1)))
    owner.start()
    assert gate.arrived.acquire(timeout=10)
    with pytest.raises(FetchTimeoutError, match=r"chunk-0-0\.bin \(chunk 0\), item 0.*0\.3 s"):
        next(bench.scan(0, 1))
    gate.open.set()
    owner.join(30)
    bench.check()


def test_when_frames_fail_to_stream_the_item_is_read_directly_once_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(DiarySource.of(folder))
    frame = bench.store.frame_bytes

    def no_frames(reads: Sequence[Read]) -> None:
        if any(len(read.view) >= frame for read in reads):
            raise FetchError("large requests fail today")

    bench.source.before = no_frames
    datasets.check(bench.scan(0, 40), range(40), SIZE)
    assert bench.memory.fallbacks == 40
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "Streaming failed" in told[0] and "large requests fail today" in told[0] and "chunk-0-0.bin" in told[0]
    bench.source.before = lambda reads: None
    datasets.check(bench.scan(0, COUNT), range(COUNT), SIZE)
    assert bench.memory.fallbacks == 40
    bench.check()


def test_without_fallback_the_failure_itself_comes_out(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), fallback=False)

    def refuse(reads: Sequence[Read]) -> None:
        raise FetchError("the line is cut", url="diary://objects/x", begin=1, end=2, attempts=7)

    bench.source.before = refuse
    for read in (lambda: next(bench.scan(0, 1)), lambda: bench.reader.get(5), lambda: bench.reader.get_many([1])):
        with pytest.raises(FetchError, match="the line is cut") as raised:
            read()
        assert raised.value.attempts == 7
    assert bench.memory.fallbacks == 0
    bench.check()


@pytest.mark.parametrize("error", [DatasetNotFoundError("gone"), SourceChangedError("changed")])
def test_what_reading_directly_cannot_cure_is_not_tried_directly(folder: Path, error: Exception) -> None:
    bench = Bench(DiarySource.of(folder))

    def refuse(reads: Sequence[Read]) -> None:
        raise error

    bench.source.before = refuse
    with pytest.raises(type(error)):
        next(bench.scan(0, 1))
    assert bench.memory.fallbacks == 0
    bench.check()


@pytest.mark.parametrize("trouble", ["missing", "empty", "other count", "bad table"])
def test_trouble_in_what_is_read_ahead_is_told_when_it_is_asked_for(folder: Path, trouble: str) -> None:
    source = DiarySource.of(folder)
    name = "chunk-0-1.bin"
    data = source.objects[name]
    if trouble == "missing":
        del source.objects[name]
    else:
        source.objects[name] = {
            "empty": b"", "other count": b"\1\0\0\0" + data[4:], "bad table": data[:8] + b"\xff" * 4 + data[12:],
        }[trouble]  # fmt: skip
    bench = Bench(source)
    items = bench.scan(0, COUNT)
    datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK), SIZE)
    assert bench.memory.fallbacks == 0
    with pytest.raises((DatasetNotFoundError, FormatError), match=r"chunk-0-1\.bin"):
        next(items)
    bench.check()
    source.objects[name] = data
    datasets.check(items, range(PER_CHUNK, COUNT), SIZE)
    bench.check()


def test_an_interrupt_in_the_middle_of_a_fetch_leaves_nothing_behind(far: Bench) -> None:
    def interrupt(reads: Sequence[Read]) -> None:
        raise KeyboardInterrupt

    far.source.before = interrupt
    for read in (lambda: next(far.scan(0, 1)), lambda: far.reader.get(7), lambda: far.reader.get_many([7, 8])):
        with pytest.raises(KeyboardInterrupt):
            read()
        far.check()
    far.source.before = lambda reads: None
    datasets.check(far.scan(0, 50), range(50), SIZE)


def test_closing_in_the_middle_of_a_fetch_is_a_closed_error(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder))
    bench.source.before = lambda reads: bench.memory.close()
    with pytest.raises(ClosedError):
        next(bench.scan(0, 1))
    with pytest.raises(ClosedError):
        bench.reader.get(0)
    assert bench.source.closed


# -- hints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0, 0.001, 0.5, 0.99, 1.01, 2, 1000])
@pytest.mark.parametrize("local", [True, False])
def test_wrong_sizes_in_the_index_cost_requests_but_change_nothing(folder: Path, factor: float, local: bool) -> None:
    source = DiarySource.of(folder, local=local)
    index = json.loads(source.objects["index.json"])
    for chunk in index["chunks"]:
        chunk["chunk_bytes"] = int(chunk["chunk_bytes"] * factor)
    source.objects["index.json"] = json.dumps(index).encode()
    chance = random.Random(8)
    order = chance.sample(range(COUNT), 200)
    for budget in (100_000, 10**6):
        bench = Bench(source, budget)
        datasets.check((bench.reader.get(i) for i in order), order, SIZE)
        datasets.check(Bench(source, budget).reader.get_many(order), order, SIZE)
        datasets.check(Bench(source, budget).scan(0, COUNT), range(COUNT), SIZE)
        bench.check()
