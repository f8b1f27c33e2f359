"""Recency lists: promises the model does not cover."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from lazystore._core.lru import RecencyLists
from lazystore.errors import ConfigError


@pytest.mark.parametrize("arguments", [(-1, 1), (1, 0), (1, -3)])
def test_impossible_sizes_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        RecencyLists(*arguments)


def test_entries_and_queues_outside_are_index_errors() -> None:
    lists = RecencyLists(3, 2)
    for entry, queue in [(-1, 0), (3, 0), (0, -1), (0, 2)]:
        with pytest.raises(IndexError):
            lists.push_front(entry, queue)
        with pytest.raises(IndexError):
            lists.push_back(entry, queue)
    of_entries: list[Callable[[int], object]] = [lists.touch, lists.remove, lists.queue_of]
    of_queues: list[Callable[[int], object]] = [lists.order, lists.count, lists.weight]
    for refused in of_entries:
        with pytest.raises(IndexError):
            refused(3)
    for refused in of_queues:
        with pytest.raises(IndexError):
            refused(2)
    with pytest.raises(IndexError):
        RecencyLists(0).touch(0)


def test_candidate_needs_a_byte_for_every_entry() -> None:
    lists = RecencyLists(4)
    lists.push_front(3)
    with pytest.raises(ConfigError, match="4 are needed"):
        lists.candidate(0, b"\0" * 3)
    with pytest.raises(TypeError):
        lists.candidate(0, None)  # type: ignore[arg-type]
    assert lists.candidate(0, b"\0" * 4) == 3


@pytest.mark.parametrize("weight", [-1, 2**32])
def test_weights_beyond_32_bits_are_refused(weight: int) -> None:
    with pytest.raises(OverflowError):
        RecencyLists(1).push_front(0, 0, weight)


@pytest.mark.parametrize("thing", [RecencyLists(2)])
def test_pickling_and_copying_are_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(thing)
    with pytest.raises(TypeError):
        copy.copy(thing)


def test_repr_says_what_it_is() -> None:
    assert repr(RecencyLists(4, 2)) == "<RecencyLists 4 entries, 2 queues>"
