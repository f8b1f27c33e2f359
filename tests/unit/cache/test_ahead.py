"""Reading ahead of a scan: every part once, in time, within its share of the arena, and given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import datasets
from support.benches import Bench
from support.sources import DiarySource, Postman

from lazystore.cache.ahead import ReadAhead
from lazystore.errors import ArenaFullError, FetchError

CHUNKS, PER_CHUNK, SIZE = 5, 300, 200
TOTAL = CHUNKS * PER_CHUNK


def value(i: int) -> bytes:
    return b"%0*d" % (SIZE + i * 37 % 90, i)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~75 kB a chunk."""
    chunks = [[datasets.item_bytes([value(c * PER_CHUNK + i)]) for i in range(PER_CHUNK)] for c in range(CHUNKS)]
    return datasets.craft(tmp_path_factory.mktemp("ahead") / "set", chunks, ["bytes"])


@pytest.fixture(params=[1 << 17, 1 << 20], ids=["small arena", "roomy arena"])
def bench(folder: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(DiarySource.of(folder), request.param)


def stored(bench: Bench) -> int:
    return sum(len(data) for name, data in bench.source.objects.items() if name != "index.json")


@pytest.mark.parametrize("seed", [None, 1, 2, 3], ids=str)
def test_a_scan_fetches_every_byte_once_whatever_the_order_of_arrival(bench: Bench, seed: int | None) -> None:
    with Postman(bench.source, seed):
        walk = bench.walk(bench.route("sequential"))
        assert list(walk) == [value(i) for i in range(TOTAL)]
    assert bench.source.nbytes() == stored(bench)
    assert set(bench.source.asked().values()) == {1}
    assert bench.memory.fallbacks == 0
    del walk
    bench.check()


@pytest.mark.parametrize("first", [1, 299, 300, 500, TOTAL - 1])
def test_a_scan_that_begins_inside_fetches_no_chunk_before_and_nothing_twice(bench: Bench, first: int) -> None:
    with Postman(bench.source, 5):
        assert list(bench.walk(bench.route("sequential"), first)) == [value(i) for i in range(first, TOTAL)]
    assert set(bench.source.asked().values()) == {1}
    chunks = {int(name.split("-")[2].removesuffix(".bin")) for name, _ in bench.source.asked()}
    assert chunks == set(range(first // PER_CHUNK, CHUNKS))
    bench.check()


def test_a_scan_of_a_stretch_fetches_hardly_more_than_the_stretch(bench: Bench) -> None:
    assert list(bench.walk(bench.route("sequential"), 310, 330)) == [value(i) for i in range(310, 330)]
    frame = bench.store.frame_bytes
    assert bench.source.nbytes() <= 20 * 300 + 4 * frame
    assert {name for name, _ in bench.source.asked()} == {"chunk-0-1.bin"}
    bench.check()


def test_what_is_fetched_ahead_stays_within_half_of_the_arena(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 17)
    walk = bench.walk(bench.route("sequential"))
    most = 0
    for _ in walk:
        most = max(most, bench.store.counters()["pins"])
    assert 1 < most <= bench.store.n_frames // 2


def test_it_is_ahead_of_the_scan(bench: Bench) -> None:
    walk = bench.walk(bench.route("sequential"))
    next(walk)
    waves = len(bench.source.waves)
    assert bench.source.nbytes() > 2 * bench.store.frame_bytes
    for _ in range(5):
        next(walk)
    assert len(bench.source.waves) == waves  # items that are there already cost no request


def test_closed_it_cancels_and_gives_everything_back(bench: Bench) -> None:
    walk = bench.walk(bench.route("sequential"))
    next(walk)
    with Postman(bench.source, patience=10):
        for _ in range(50):
            next(walk)
            if bench.store.filling:
                break
        walk.close()
        walk.close()
    bench.check()


@pytest.mark.parametrize("stop", [1, 40, 299, 300, 900])
def test_a_scan_that_is_forgotten_gives_everything_back(bench: Bench, stop: int) -> None:
    walk = bench.walk(bench.route("sequential"))
    assert [next(walk) for _ in range(stop)] == [value(i) for i in range(stop)]
    bench.feed.close()  # what a dataset does when its iterator goes
    del walk
    bench.check()


def failing(part: Callable[[Any], bool]) -> Callable[[Any], None]:
    def before(reads: Any) -> None:
        if any(part(read) for read in reads):
            raise FetchError("far away")

    return before


def test_trouble_ahead_is_met_only_where_it_lies_and_goes_with_its_cause(bench: Bench) -> None:
    bench.memory._fallback = bench.memory.fallback = False
    bench.source.before = failing(lambda read: read.name == "chunk-0-3.bin")
    walk = bench.walk(bench.route("sequential"))
    found = []
    with pytest.raises(FetchError):
        for item in walk:
            found.append(item)
    assert found == [value(i) for i in range(3 * PER_CHUNK)]
    assert walk.progress.position == len(found)
    with pytest.raises(FetchError):
        next(walk)
    bench.source.before = lambda reads: None
    found += walk
    assert found == [value(i) for i in range(TOTAL)]
    bench.check()


@pytest.mark.parametrize("kind", ["first", "every second", "every third"])
def test_waves_that_fail_now_and_then_cost_no_item(bench: Bench, kind: str) -> None:
    count = 0

    def before(reads: Any) -> None:
        nonlocal count
        count += 1
        if count == 1 if kind == "first" else count % (2 if kind == "every second" else 3) == 0:
            raise FetchError("far away")

    bench.source.before = before
    walk = bench.walk(bench.route("sequential"))
    found, errors = [], 0
    while True:
        try:
            found.append(next(walk))
        except StopIteration:
            break
        except FetchError:
            errors += 1
            assert errors < 200
    assert found == [value(i) for i in range(TOTAL)]
    bench.check()


@pytest.mark.parametrize("hint", [0, 0.3, 1.5, 20], ids=str)
@pytest.mark.parametrize("seed", [None, 4], ids=str)
def test_wrong_size_hints_cost_requests_but_no_item(
    folder: Path, tmp_path: Path, hint: float, seed: int | None
) -> None:
    def change(index: dict[str, Any]) -> None:
        for entry in index["chunks"]:
            entry["chunk_bytes"] = int(entry["chunk_bytes"] * hint)

    edited = datasets.edit_index(datasets.copy(folder, tmp_path / "set"), change)
    bench = Bench(DiarySource.of(edited), 1 << 18)
    with Postman(bench.source, seed):
        assert list(bench.walk(bench.route("sequential"))) == [value(i) for i in range(TOTAL)]
    assert bench.source.counters.bytes_fetched <= 1.5 * stored(bench)
    bench.check()


def test_a_full_arena_stops_it_and_the_scan_goes_on(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 17)
    walk = bench.walk(bench.route("sequential"))
    found = [next(walk)]
    held: list[Any] = []
    with pytest.raises(ArenaFullError):
        while True:
            held.append(bench.store.begin(9, len(held), 100))
            memoryview(held[-1])[:] = bytes(100)
            held[-1].commit()
    while len(found) < 700:
        found.append(next(walk))
    for fill in held:
        fill.release()
    found += walk
    assert found == [value(i) for i in range(TOTAL)]
    bench.check()


def test_nothing_is_not_read_ahead(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder))
    assert bench.memory.read_ahead(5, 5) is None
    assert not bench.source.waves


def test_extended_it_goes_on_and_refetches_nothing(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder), 1 << 20)
    ahead = bench.memory.read_ahead(0, 100)
    assert isinstance(ahead, ReadAhead)
    ahead.extend(bench.memory.last_part(TOTAL - 1))
    ahead.extend((0, 0))  # never back
    frame = bench.store.frame_bytes
    for chunk in range(CHUNKS):
        for part in range(-(-len(bench.source.objects[f"chunk-0-{chunk}.bin"]) // frame)):
            ahead.at(chunk, part)
    assert set(bench.source.asked().values()) == {1}
    assert bench.source.nbytes() == stored(bench)
    ahead.close()
    bench.check()
