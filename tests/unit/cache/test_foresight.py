"""What follows a chunk: as told, or as a scan goes on; by chunks, or by runs of them."""

from __future__ import annotations

from typing import Any

import pytest

from lazystore.cache.foresight import FOLLOWING, LOOKED_AT, Foresight


class Memory:
    """A reader of chunks of one item and a store of frames: which chunks are here."""

    shift = 20

    def __init__(self, n_chunks: int, here: set[int], empty: frozenset[int] = frozenset()) -> None:
        self.n_chunks, self.here, self.empty = n_chunks, here, empty

    def chunk_items(self, chunk: int) -> int:
        return int(chunk not in self.empty)

    def chunk_length(self, chunk: int) -> int:
        return 100

    def state(self, chunk: int, part: int) -> str:
        assert part == 0
        return "ready" if chunk in self.here else "absent"


def foresight(n_chunks: int = 100, here: set[int] | None = None, empty: frozenset[int] = frozenset()) -> Foresight:
    memory: Any = Memory(n_chunks, here or set(), empty)
    return Foresight(memory, memory)


def test_a_scan_is_expected_to_go_on() -> None:
    seen = foresight(50, here={2, 3}, empty=frozenset({5}))
    assert seen.following(0) == [1, 4, *range(6, 33)]
    assert seen.following(7) == []  # nobody came from 6
    seen.passed(6)
    assert seen.following(7) == list(range(8, 8 + FOLLOWING))
    seen.passed(47)
    assert seen.following(48) == [49]


def test_what_was_told_goes_before() -> None:
    seen = foresight(here={30})
    seen.expect([5, 20, 30, 10])
    assert seen.following(5) == [20, 10]
    assert seen.following(99) == [5, 20, 10]
    seen.expect(None)
    assert seen.following(99) == []


def test_of_runs_the_first_missing_chunk_is_told() -> None:
    runs = [0, 50, 60, 61, 99, 100]
    assert list(foresight().runs(0, runs)) == [(1, 50), (2, 60), (3, 61), (4, 99)]
    assert list(foresight(here={50, 51, 60}).runs(0, runs)) == [(1, 52), (3, 61), (4, 99)]
    assert list(foresight(here={*range(61, 99)}).runs(10, runs)) == []  # nobody came from 9
    seen = foresight(here={*range(61, 99)})
    seen.passed(9)
    assert list(seen.runs(10, runs)) == [(1, 50), (2, 60), (4, 99)]
    seen.passed(98)
    assert list(seen.runs(99, runs)) == []


def test_of_runs_that_were_told_each_comes_once() -> None:
    seen = foresight(here={61})
    seen.expect([5, 99, 62, 61, 63, 50])
    assert list(seen.runs(5, [0, 50, 60, 61, 99, 100])) == [(4, 99), (3, 62), (1, 50)]


@pytest.mark.parametrize("n", [3, 1000])
def test_so_many_chunks_at_most(n: int) -> None:
    assert foresight(n).following(0) == list(range(1, min(n, FOLLOWING + 1)))
    found = list(foresight(n).runs(0, range(n + 1)))
    assert found == [(k, k) for k in range(1, len(found) + 1)]
    assert min(n - 1, FOLLOWING) <= len(found) <= LOOKED_AT
