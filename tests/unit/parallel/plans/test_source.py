"""Whatever the data is, items taken from it as samples stay part of it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import datasets
from support.stream_work import square

from lazystore import StreamingDataset
from lazystore.errors import ConfigError
from lazystore.parallel.plans.sampling import Samples, take_samples
from lazystore.parallel.plans.source import Source

BIG = 1 << 40


class Restartable:
    """Iterable again and again, of unknown length, not by number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        yield from range(self.count)


class Bar:
    """A progress bar around an iterator: it has a length, and can in truth be iterated once."""

    def __init__(self, count: int) -> None:
        self.inner = iter(range(count))
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        for item in self.inner:  # noqa: UP028 (as progress bars do)
            yield item


class SizedIterator:
    """An iterator that says how long it is."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.count = count

    def __len__(self) -> int:
        return self.left

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.count - self.left - 1


class Numbered:
    """The old protocol: items by number until IndexError."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, index: int) -> int:
        if index >= self.count:
            raise IndexError(index)
        return index


KINDS: dict[str, Callable[[int], Any]] = {
    "list": lambda n: list(range(n)),
    "tuple": lambda n: tuple(range(n)),
    "range": range,
    "array": np.arange,
    "set": lambda n: set(range(n)),
    "dict": lambda n: dict.fromkeys(range(n)),
    "values": lambda n: {i: i for i in range(n)}.values(),
    "deque": lambda n: collections.deque(range(n)),
    "by number": Numbered,
    "restartable": Restartable,
    "generator": lambda n: (i for i in range(n)),
    "iterator": lambda n: iter(range(n)),
    "map": lambda n: map(int, range(n)),
    "sized iterator": SizedIterator,
    "bar": Bar,
}
ONCE = {"generator", "iterator", "map", "sized iterator"}
AS_IT_IS = {"list", "tuple", "range", "array", "set", "dict", "values", "deque", "by number"}


def sampled(data: Any, count: int = 5) -> tuple[Source, Samples]:
    source = Source(data)
    return source, take_samples(source, square, count, most_bytes=BIG)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 12), st.integers(1, 8))
def test_no_item_is_lost_and_none_doubled(kind: str, count: int, size: int) -> None:
    source, samples = sampled(KINDS[kind](count), size)
    assert len(samples.trials) == min(count, size)
    assert list(source.data) == list(range(count))


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 12), st.integers(1, 8))
def test_who_goes_on_from_the_samples_gets_exactly_the_rest(kind: str, count: int, size: int) -> None:
    source, samples = sampled(KINDS[kind](count), size)
    assert source.claim("a run")
    tried = [trial.result for trial in samples.trials]
    assert tried + [square(item) for item in source.rest()] == [square(item) for item in range(count)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_data_that_can_be_iterated_again_still_can_and_other_data_says_so(kind: str) -> None:
    data = KINDS[kind](9)
    source, _ = sampled(data)
    assert (source.data is data) == (kind in AS_IT_IS)
    assert source.claim("first")
    if kind in ONCE:
        with pytest.raises(ConfigError, match="can be iterated only once, and first has begun"):
            source.claim("second")
        with pytest.raises(ConfigError, match=r"result\.data: the data is a .* first has begun"):
            next(source.data)
        return
    assert not source.claim("second")
    if kind != "bar":
        assert list(source.anew()) == list(range(9))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"bar"} - ONCE))
def test_data_handed_back_can_be_iterated_twice(kind: str) -> None:
    source, _ = sampled(KINDS[kind](9))
    assert [list(source.data), list(source.data)] == [list(range(9))] * 2


@pytest.mark.parametrize("kind", ["list", "array", "sized iterator", "bar", "deque"])
def test_data_handed_back_is_as_long_as_it_was(kind: str) -> None:
    source, _ = sampled(KINDS[kind](9))
    assert len(source.data) == 9 == source.total


def test_an_iterator_handed_back_is_an_iterator_whose_length_shrinks() -> None:
    source, _ = sampled(SizedIterator(9), 4)
    assert [next(source.data), next(source.data), len(source.data)] == [0, 1, 7]
    assert list(source.data) == list(range(2, 9))
    with pytest.raises(StopIteration):
        next(source.data)


def test_the_length_is_known_where_sampling_saw_the_end() -> None:
    assert sampled(i for i in range(2))[0].total == 2
    assert sampled(i for i in range(9))[0].total is None


def test_a_length_that_cannot_be_had_is_no_error() -> None:
    class Odd:
        def __iter__(self) -> Iterator[int]:
            return iter(range(7))

        def __len__(self) -> int:
            raise RuntimeError("not today")

    source, _ = sampled(Odd())
    assert (source.total, list(source.data)) == (None, list(range(7)))


def raising(after: int) -> Iterator[int]:
    yield from range(after)
    raise OSError(f"gone after {after}")


@pytest.mark.parametrize("after", [0, 3, 5, 8])
def test_what_the_source_raises_comes_in_its_place(after: int) -> None:
    source, samples = sampled(raising(after))
    assert len(samples.trials) == min(after, 5)
    seen = []
    with pytest.raises(OSError, match=f"gone after {after}"):
        for item in source.data:
            seen.append(item)
    assert seen == list(range(after))
    assert next(source.data, "over") == "over"


@pytest.mark.parametrize("data", [None, 7, square, object()])
def test_what_cannot_be_iterated_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"^data="):
        Source(data)


def test_a_dataset_is_handed_back_and_its_pass_goes_on_from_the_samples(tmp_path: Path) -> None:
    place = datasets.write(tmp_path / "data", 40, size=100, chunk_size=7)
    with StreamingDataset(place) as dataset:
        source = Source(dataset)
        assert source.dataset is not None
        for _ in range(5):
            assert source.pull()
        assert (source.total, source.data) == (40, dataset)
        assert source.claim("a run")
        datasets.check([*source.items, *source.rest()], list(range(40)), 100)
