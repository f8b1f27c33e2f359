"""Inputs are cut into contiguous tasks that cover them once, in sizes that suit chunks, workers and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.parallel.writing.crew import parcel, weighed
from lazystore.parallel.writing.cutting import (
    FIRST_TASK,
    MAX_BYTES,
    MAX_INPUTS,
    Cutter,
    digest,
    known_tasks,
    task_size,
)


def digest_of(value: object) -> bytes:
    data = bytearray()
    digest(value, data.extend)
    return bytes(data)


@given(
    count=st.integers(0, 2000),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=8),
    kind=st.sampled_from("ltrg"),
)
def test_every_input_is_taken_once_and_in_order(count: int, sizes: list[int], kind: str) -> None:
    values = range(count)
    inputs = {"l": list(values), "t": tuple(values), "r": values, "g": (v for v in values)}[kind]
    cutter = Cutter(inputs, weighed)
    taken: list[int] = []
    turn = 0
    while parcels := cutter.take(sizes[turn % len(sizes)]):
        found = [value for inside in parcels for value in inside]
        assert len(found) == min(sizes[turn % len(sizes)], count - len(taken))
        taken += found
        turn += 1
        assert cutter.position == len(taken)
    assert taken == list(values)


def test_large_inputs_make_short_tasks() -> None:
    cutter = Cutter((bytes(1 << 20) for _ in range(1000)), parcel)
    parcels = cutter.take(1000)
    assert MAX_BYTES <= sum(len(p.data) for p in parcels) <= 2 * MAX_BYTES
    assert cutter.position < 1000


def test_inputs_are_not_read_before_they_are_asked_for() -> None:
    read: list[int] = []

    def inputs() -> Any:
        for number in range(1000):
            read.append(number)
            yield number

    cutter = Cutter(inputs(), weighed)
    cutter.take(10)
    assert len(read) == 10


@given(
    inputs=st.integers(0, 10**9),
    fill=st.floats(0, 1e6),
    workers=st.integers(1, 512),
    total=st.none() | st.integers(0, 10**12),
)
def test_sizes_are_bounded(inputs: int, fill: float, workers: int, total: int | None) -> None:
    size = task_size(inputs, fill, workers=workers, total=total)
    assert 1 <= size <= MAX_INPUTS
    if total:
        assert size <= -(-total // workers)


def test_the_first_tasks_are_short_and_later_ones_fill_chunks() -> None:
    assert task_size(0, 0.0, workers=4, total=None) == FIRST_TASK
    assert task_size(0, 0.0, workers=4, total=10**6) == FIRST_TASK
    assert task_size(0, 0.0, workers=2, total=10) == 1
    # 1000 inputs a chunk: four chunks a task where there are many,
    assert task_size(64, 0.064, workers=4, total=10**6) == 4000
    # fair shares where there are few,
    assert task_size(64, 0.064, workers=4, total=16_000) == 1000
    # and not below a quarter of a chunk
    assert task_size(64, 0.064, workers=4, total=2000) == 250
    # of an unknown number, no more than were done before
    assert task_size(64, 0.064, workers=4, total=None) == 250
    assert task_size(900, 0.9, workers=4, total=None) == 900
    assert task_size(100_000, 100.0, workers=4, total=None) == 4000


@given(workers=st.integers(1, 64), number=st.integers(0, 10_000))
def test_a_task_waits_only_for_earlier_ones(workers: int, number: int) -> None:
    known = known_tasks(number, workers)
    assert 0 <= known <= number
    # whatever is under way: bounded, and enough for all workers once the first task is done
    assert number - known < 3 * workers
    assert known == 0 or number >= workers


def test_an_input_that_cannot_be_pickled_is_named() -> None:
    inputs: Sequence[Any] = [1, 2, lambda: None]
    with pytest.raises(ConfigError, match=r"input 7, a function, cannot be sent .* executor=ThreadPoolExecutor"):
        parcel(inputs, 5)


def test_skipping_gives_the_digest_that_taking_gave() -> None:
    inputs = [f"input {n}" for n in range(1000)]
    first = Cutter(inputs, weighed, digests=True)
    first.take(600)
    assert first.digest
    second = Cutter(iter(inputs), parcel, digests=True)
    assert second.skip(600) == first.digest
    assert second.position == 600
    changed = Cutter([*inputs[:599], "another"], weighed, digests=True)
    assert changed.skip(600) != first.digest


def test_skipping_beyond_the_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="had at least 10 inputs, now there are 5"):
        Cutter(range(5), weighed, digests=True).skip(10)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@given(one=PLAIN, other=PLAIN)
def test_digests_tell_plain_values_apart(one: object, other: object) -> None:
    # repr tells them apart but for the kinds: 1 and True, which are no one's inputs side by side
    assert (digest_of(one) == digest_of(other)) == (repr(one) == repr(other))


def test_digests_of_objects_do_not_depend_on_addresses(tmp_path: Any) -> None:
    assert digest_of(object()) == digest_of(object())
    assert digest_of(tmp_path) == digest_of(str(tmp_path))
