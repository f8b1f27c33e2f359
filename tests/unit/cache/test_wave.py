"""A wave: it lands once, whoever gives it up gets every frame back, and its failure is a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import datasets
from support.benches import Bench
from support.sources import DiarySource, Postman

from lazystore.errors import ClosedError, FetchError

ITEMS = 600


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One chunk of some 60 kB in parts of 8 kB."""
    return Bench(DiarySource.of(datasets.one_leaf(tmp_path / "set", "bytes", [b"%096d" % i for i in range(ITEMS)])))


def parts(*numbers: int) -> list[tuple[int, int]]:
    return [(0, number) for number in numbers]


def states(bench: Bench, *numbers: int) -> list[str]:
    return [bench.store.state(0, number) for number in numbers]


def test_what_arrived_is_readable_once_somebody_looks(bench: Bench) -> None:
    wave, sent = bench.memory.send(parts(0, 1, 2))
    assert wave is not None and sent == 3
    assert states(bench, 0, 1, 2) == ["filling"] * 3  # it has arrived, but nobody has looked
    bench.memory.settle()
    assert states(bench, 0, 1, 2) == ["ready"] * 3
    assert wave.error is None
    assert bench.reader.get(0) == b"%096d" % 0
    wave.drop()
    bench.check()


@pytest.mark.parametrize("hold", [False, True])
def test_it_keeps_its_frames_until_they_landed_or_if_told_until_it_is_dropped(bench: Bench, hold: bool) -> None:
    wave, _ = bench.memory.send(parts(0, 1, 2), hold=hold)
    assert wave is not None
    assert bench.store.counters()["pins"] == 3
    bench.memory.settle()
    assert bench.store.counters()["pins"] == (3 if hold else 0)
    wave.drop()
    wave.drop()
    bench.check()
    assert states(bench, 0, 1, 2) == ["ready"] * 3


def test_dropped_under_way_it_gives_its_frames_back_at_once(bench: Bench) -> None:
    with Postman(bench.source, patience=10):
        wave, _ = bench.memory.send(parts(0, 1))
        assert wave is not None
        wave.drop()
        assert states(bench, 0, 1) == ["absent"] * 2
        bench.check()
    assert bench.source.counters.bytes_fetched == 0
    bench.memory.settle()
    bench.check()


def test_a_failure_is_noted_and_its_parts_are_free_again(bench: Bench) -> None:
    def fail(reads: Any) -> None:
        raise FetchError("far away")

    bench.source.before = fail
    wave, _ = bench.memory.send(parts(0, 1))
    assert wave is not None
    bench.memory.settle()
    assert "far away" in str(wave.error)
    assert states(bench, 0, 1) == ["absent"] * 2
    wave.drop()
    bench.check()
    bench.source.before = lambda reads: None
    again, _ = bench.memory.send(parts(0, 1))
    assert again is not None
    bench.memory.settle()
    assert states(bench, 0, 1) == ["ready"] * 2
    again.drop()
    bench.check()


def test_a_source_that_is_closed_leaves_nothing_half_filled(bench: Bench) -> None:
    bench.source.close()
    with pytest.raises(ClosedError):
        bench.memory.send(parts(0, 1))
    bench.check()
    assert states(bench, 0, 1) == ["absent"] * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_a_source_that_cannot_start_leaves_nothing_half_filled(bench: Bench, error: type[BaseException]) -> None:
    def start(*args: Any, **kwargs: Any) -> Any:
        raise error("now")

    bench.source.start = start  # type: ignore[method-assign]
    with pytest.raises(error):
        bench.memory.send(parts(0, 1))
    bench.check()
    assert states(bench, 0, 1) == ["absent"] * 2


def test_parts_that_are_there_or_on_their_way_are_not_sent_for(bench: Bench) -> None:
    first, _ = bench.memory.send(parts(0, 1))
    again, sent = bench.memory.send(parts(1, 0))
    assert first is not None and again is None and sent == 2
    bench.memory.settle()
    assert bench.memory.send(parts(0, 1)) == (None, 2)
    more, _ = bench.memory.send(parts(0, 1, 2))
    assert more is not None and list(more.fills) == parts(2)
    for wave in (first, more):
        wave.drop()
    bench.memory.settle()
    bench.check()


def test_a_full_arena_sends_for_as_many_as_there_is_room_for(bench: Bench) -> None:
    held = [bench.store.begin(5, k, 100) for k in range(bench.store.n_frames - 2)]
    wave, sent = bench.memory.send(parts(0, 1, 2, 3))
    assert wave is not None and sent == 2
    assert bench.memory.send(parts(4)) == (None, 0)
    wave.drop()
    for fill in held:
        assert fill is not None
        fill.release()
    bench.memory.settle()
    bench.check()


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_parts_that_come_before_their_chunks_head_are_not_fetched_twice(bench: Bench, seed: int | None) -> None:
    with Postman(bench.source, seed):
        waves = [wave for number in range(6) for wave in [bench.memory.send(parts(number))[0]] if wave is not None]
        while "filling" in states(bench, *range(6)):
            bench.memory.settle()
    assert states(bench, *range(6)) == ["ready"] * 6
    assert bench.source.nbytes() == 6 * bench.store.frame_bytes
    for wave in waves:
        wave.drop()
    bench.check()
