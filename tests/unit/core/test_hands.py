"""Dealing blocks: every item once, evenly, in the rounds the window allows."""

from __future__ import annotations

import pickle
from array import array

import pytest

from lazystore._core.hands import Hand, deal
from lazystore.errors import ConfigError

Dealt = tuple[tuple[int, int, int], "array[int]"]


def group(span: tuple[int, int, int], numbers: array[int]) -> Dealt:
    return span, numbers


def dealt(counts: list[int], window: int, turn: int = 0) -> list[list[Dealt]]:
    """All rounds of blocks that enter one a round."""
    hands: list[Hand] = []
    rounds = []
    for number in range(len(counts) + window - 1):
        if number < len(counts):
            hands.append(Hand((number, 100, 100 + counts[number]), number, turn * number, number))
        rounds.append(deal(hands, number, window, len(counts), group)[0])
    assert hands == []
    return rounds


@pytest.mark.parametrize("turn", [0, 1, 2**63 // 20])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 20])
def test_every_item_is_dealt_once_while_its_block_is_in_the_window(window: int, turn: int) -> None:
    counts = [5, 1, 40, 7, 0, 13, 20, 21, 3, 1, 1, 6]
    rounds = dealt(counts, window, turn)
    for chunk, count in enumerate(counts):
        mine = [(n, k) for n, row in enumerate(rounds) for (c, _, _), numbers in row if c == chunk for k in numbers]
        assert sorted(k for _, k in mine) == list(range(100, 100 + count))
        assert all(chunk <= n and (n < chunk + window or n >= len(counts)) for n, _ in mine)


def test_a_block_is_dealt_evenly_and_what_is_left_at_the_end_as_well() -> None:
    rounds = dealt([1000] * 20, 8)
    for number, row in enumerate(rounds[:20]):
        assert [len(numbers) for _, numbers in row] == [125] * min(number + 1, 8)
    # seven blocks have 1 .. 7 eighths left, and seven rounds
    for row in rounds[20:]:
        assert [round(len(numbers) * 8 * 7 / 1000) for _, numbers in row] == [1, 2, 3, 4, 5, 6, 7]


def test_a_finished_block_is_told_once_and_forgotten() -> None:
    hands = [Hand((0, 0, 2), 1, 0, 0), Hand((1, 0, 1), 1, 0, 0)]
    finished = [deal(hands, number, 4, 10, group)[1] for number in range(4)]
    assert sorted(span for spans in finished for span in spans) == [(0, 0, 2), (1, 0, 1)]
    assert hands == []


@pytest.mark.parametrize(("number", "window"), [(13, 4), (10, 1), (0, 0)])
def test_rounds_that_are_not_there_are_refused(number: int, window: int) -> None:
    with pytest.raises(ConfigError, match="round"):
        deal([], number, window, 10, group)


def test_a_block_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match="begin at 5"):
        Hand((0, 5, 4), 0, 0, 0)


def test_a_half_dealt_block_does_not_pickle() -> None:
    with pytest.raises(TypeError, match="pickle the route"):
        pickle.dumps(Hand((0, 0, 1), 0, 0, 0))
