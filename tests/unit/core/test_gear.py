"""Content-defined cuts: as the plain model has them, the same for ever, and local to what changes."""

from __future__ import annotations

import array
import itertools
import pickle
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import gear as model

from lazystore._core.gear import GearCutter
from lazystore.errors import ConfigError

AVERAGES = st.integers(64, 400)


def all_cuts(data: bytes, cutter: GearCutter) -> list[int]:
    """Ends of all chunks that a cut ends."""
    found = [0]
    while (end := cutter.cut(data, found[-1])) >= 0:
        found.append(end)
    return found[1:]


def pieces(data: bytes, average: int) -> list[bytes]:
    ends = [0, *all_cuts(data, GearCutter(average)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends) if b > a]


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


# -- the rule ---------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99), size=st.integers(0, 4000), average=AVERAGES,
    few=st.booleans(), most=st.integers(0, 500), least=st.integers(64, 400),
)  # fmt: skip
def test_cuts_are_the_models(seed: int, size: int, average: int, few: bool, most: int, least: int) -> None:
    data = noise(seed, size)
    if few:  # few values, so long runs that never meet a bound
        data = bytes(byte & 1 for byte in data)
    least, most = min(least, average), average + most
    assert all_cuts(data, GearCutter(average, least=least, most=most)) == model.cuts(data, average, least, most)


@given(seed=st.integers(0, 99), average=AVERAGES, steps=st.lists(st.integers(0, 700), max_size=20))
def test_cuts_do_not_depend_on_the_blocks_the_bytes_come_in(seed: int, average: int, steps: list[int]) -> None:
    data, cutter = noise(seed, sum(steps)), GearCutter(average)
    found, at = [], 0
    for step in steps:
        block, start = data[at : at + step], 0
        while (end := cutter.cut(block, start)) >= 0:
            assert cutter.pending == 0
            found.append(at + end)
            start = end
        at += step
        assert cutter.pending == at - (found[-1] if found else 0)
    assert found == all_cuts(data, GearCutter(average))


def test_cuts_are_the_same_for_ever() -> None:
    data = noise(1, 20_000)
    assert model.GEAR[:2] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # the published words of SplitMix64
    assert all_cuts(data, GearCutter(1024)) == GOLDEN


GOLDEN = [1568, 2921, 4017, 5316, 6331, 7673, 8880, 9605, 11169, 12895, 13970, 15288, 15893, 16535, 17443, 18580, 19821]


def test_sizes_are_within_their_bounds_and_near_the_average() -> None:
    sizes = [len(piece) for piece in pieces(noise(2, 4 << 20), 4096)]
    assert min(sizes[:-1]) >= 1024
    assert max(sizes) <= 4 * 4096
    assert 0.9 < sum(sizes) / len(sizes) / 4096 < 1.4


def test_bytes_all_alike_are_cut_at_the_most() -> None:
    assert all_cuts(bytes(10_000), GearCutter(1000)) == [4000, 8000]
    assert all_cuts(b"\xff" * 10_000, GearCutter(1000)) == [4000, 8000]


def test_one_size_for_all_is_a_fixed_size() -> None:
    assert all_cuts(noise(3, 1000), GearCutter(100, least=100, most=100)) == list(range(100, 1001, 100))


# -- what it is for ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 77_777, 500_000])
def test_an_insertion_changes_only_the_chunks_around_it(at: int) -> None:
    data = noise(4, 1 << 20)
    before = set(pieces(data, 4096))
    after = pieces(data[:at] + b"inserted" + data[at:], 4096)
    new = [piece for piece in after if piece not in before]
    assert b"".join(after) == data[:at] + b"inserted" + data[at:]
    assert len(new) <= 4
    assert len(before) > 200


def test_a_cut_does_not_depend_on_where_its_chunk_began() -> None:
    data = noise(5, 200_000)
    whole = set(all_cuts(data, GearCutter(2048)))
    shifted = {end + 700 for end in all_cuts(data[700:], GearCutter(2048))}
    assert len(whole & shifted) > 0.9 * len(whole)


# -- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("average", "sizes"),
    [(0, {}), (-5, {}), (63, {}), (100, {"least": 63}), (100, {"least": 101}), (100, {"most": 99}), (1 << 41, {})],
)
def test_sizes_that_cannot_work_are_refused(average: int, sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="64"):
        GearCutter(average, **sizes)


def test_the_least_and_the_most_follow_from_the_average() -> None:
    cutter = GearCutter(1 << 20)
    assert (cutter.least, cutter.average, cutter.most) == (1 << 18, 1 << 20, 1 << 22)
    assert GearCutter(64).least == 64
    assert GearCutter(1 << 40).most == 1 << 40


def test_a_start_outside_of_the_block_is_refused() -> None:
    cutter = GearCutter(64)
    for start in (-1, 11):
        with pytest.raises(ConfigError, match="10 bytes"):
            cutter.cut(bytes(10), start)
    assert cutter.cut(bytes(10), 10) == -1
    assert cutter.pending == 0


def test_what_is_no_run_of_bytes_is_refused() -> None:
    cutter = GearCutter(64)
    for block in ("text", None, [1, 2], memoryview(bytes(100))[::2], array.array("i", [1])):
        with pytest.raises((TypeError, ValueError, BufferError)):
            cutter.cut(block)  # type: ignore[arg-type]
    assert cutter.cut(b"") == -1
    assert cutter.cut(bytearray(10)) == -1


def test_reset_begins_anew() -> None:
    data, cutter = noise(6, 5000), GearCutter(512)
    cutter.cut(noise(7, 100))
    cutter.reset()
    assert all_cuts(data, cutter) == all_cuts(data, GearCutter(512))


def test_a_cutter_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="make another"):
        pickle.dumps(GearCutter(64))


def test_other_threads_run_while_it_searches_and_are_refused_the_same_cutter() -> None:
    data, done = bytes(32 << 20), threading.Event()
    cutter = GearCutter(1 << 30, least=64, most=1 << 40)

    def search() -> None:
        while not done.is_set():
            cutter.cut(data)

    thread = threading.Thread(target=search)
    thread.start()
    refused, deadline = 0, time.monotonic() + 60
    while not refused and time.monotonic() < deadline:
        try:
            GearCutter(64).cut(b"x")
            cutter.cut(b"")
            cutter.cut(b"x")
        except ValueError:
            refused += 1
    done.set()
    thread.join()
    assert refused
