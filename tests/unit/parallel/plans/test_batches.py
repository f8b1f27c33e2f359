"""Batches: every result, in order, and no item of a batch is taken before the one before is done."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stream_work import always_fails, heavy_result, odd_fails, square

from lazystore.errors import ConfigError
from lazystore.parallel.plans import batches
from lazystore.parallel.plans.batches import process_in_batches


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 8), st.booleans())
def test_results_are_those_of_a_plain_loop(count: int, batch_size: int, sample_size: int, once: bool) -> None:
    data: Any = iter(range(count)) if once else range(count)
    found = process_in_batches(square, data, batch_size, sample_size=sample_size, backend="serial")
    assert found == [x * x for x in range(count)]


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_workers_give_the_same_results(backend: str) -> None:
    assert process_in_batches(square, iter(range(100)), 30, n_jobs=2, backend=backend) == [x * x for x in range(100)]


def test_no_item_is_pulled_before_the_batch_before_it_is_done() -> None:
    pulled: list[int] = []
    done: list[int] = []
    ahead: list[int] = []

    def source() -> Iterator[int]:
        for i in range(60):
            ahead.append(i - len(done))
            pulled.append(i)
            yield i

    def note(x: int) -> int:
        done.append(x)
        return x

    assert process_in_batches(note, source(), 10, backend="thread", n_jobs=2) == list(range(60))
    assert max(ahead) < 10
    assert sorted(done) == pulled


def test_a_batch_is_as_large_as_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(batches, "available_memory", lambda: 100_000_000)
    for share, sizes in ((0.5, [24, 24, 12]), (0.25, [12] * 5)):  # 2 MB and some bytes each
        process_in_batches(heavy_result, range(60), max_memory_percent=share, verbose=True, backend="serial")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch")]
        assert lines == [f"batch {number}: {size} items" for number, size in enumerate(sizes, 1)]


def test_results_that_will_not_fit_are_a_warning() -> None:
    class Gone(Exception):
        pass

    def endless_looking(x: int) -> bytes:
        if x > 5:
            raise Gone
        return heavy_result(x)

    with pytest.warns(ResourceWarning, match="all results together take about"), pytest.raises(Gone):
        process_in_batches(endless_looking, range(10**9), 8)


def test_the_first_error_ends_it() -> None:
    with pytest.raises(ValueError, match="odd: 1"):
        process_in_batches(odd_fails, range(10), 4)
    with pytest.raises(LookupError, match="no 0"):
        process_in_batches(always_fails, itertools.count())

    def source() -> Iterator[int]:
        yield from range(20)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        process_in_batches(square, source(), 6)


def test_an_error_names_the_item_by_its_place_in_the_whole_data() -> None:
    def at_517(x: int) -> int:
        if x == 517:
            raise ValueError("here")
        return x

    with pytest.raises(ValueError, match="here") as caught:
        process_in_batches(at_517, range(500, 530), 5)
    assert any("item 17 " in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("batch_size", value) for value in (0, -1, True, 2.5)],
        *[("max_memory_percent", value) for value in (0, -0.5, 1.5, 50, True, "half", float("nan"))],
        ("sample_size", 0),
        ("n_jobs", 0),
        ("backend", "x"),
        ("func", 3),
        ("data", 3),
    ],
)
def test_an_argument_that_cannot_work_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        process_in_batches(**({"func": square, "data": [1]} | {name: value}))  # type: ignore[arg-type]
