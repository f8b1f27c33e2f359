"""``imap`` beside a plain loop: whatever takes how long, fails or is skipped, both give the same."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore import imap

#: an item: what comes of it, how long it takes (in 0.2 ms), and how often it fails first
Item = tuple[int, int, int]

ITEMS = st.lists(
    st.tuples(st.integers(0, 1000), st.sampled_from([0, 0, 0, 0, 1, 3, 10]), st.sampled_from([0, 0, 0, 0, 1, 2, 99])),
    max_size=40,
)


class Failing:
    """Counts the calls of each item by its place."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    def __call__(self, item: tuple[int, Item]) -> int:
        place, (value, units, failures) = item
        if units:
            time.sleep(units * 0.0002)
        self.calls[place] += 1
        if self.calls[place] <= failures:
            raise LookupError(place)
        return value


def told(failure: Any) -> Any:
    """A remedy: the number of the item that failed."""
    return ("failed", failure.index)


def model(items: list[Item], on_error: Any, retries: int) -> list[Any]:
    """What a plain loop gives; an error is written down as its place."""
    found: list[Any] = []
    for place, (value, _, failures) in enumerate(items):
        if failures <= retries:
            found.append(value)
        elif on_error == "raise":
            found.append(("raised", place))
        elif on_error == "yield":
            found.append(("yielded", place))
        elif on_error != "skip":
            found.append(("failed", place))
    return found


def seen(results: Iterator[Any]) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            value = next(results)
        except StopIteration:
            return found
        except LookupError as error:
            found.append(("raised", error.args[0]))
        else:
            if hasattr(value, "error"):
                value = ("yielded", value.index)
            found.append(value)


def source(items: list[Item], end: int | None) -> Iterator[tuple[int, Item]]:
    for place, item in enumerate(items):
        if place == end:
            raise LookupError(-1)
        yield place, item


# workers cannot import a test module: "auto" says so, and goes on with threads
@pytest.mark.filterwarnings("ignore:.*imap goes on with threads:RuntimeWarning")
@settings(max_examples=60)
@given(
    items=ITEMS,
    backend=st.sampled_from(["serial", "thread", "thread", "auto"]),
    ordered=st.booleans(),
    n_jobs=st.integers(1, 4),
    chunksize=st.sampled_from([None, None, 1, 2, 5, 100]),
    on_error=st.sampled_from(["raise", "yield", "skip", told]),
    retries=st.integers(0, 2),
    end=st.none() | st.integers(0, 39),
    max_buffer_bytes=st.sampled_from([None, None, 1, 100_000]),
)
def test_as_a_plain_loop_does(
    items: list[Item],
    backend: str,
    ordered: bool,
    n_jobs: int,
    chunksize: int | None,
    on_error: str | Callable[[Any], Any],
    retries: int,
    end: int | None,
    max_buffer_bytes: int | None,
) -> None:
    func = Failing()
    given_items = items if end is None else items[:end]
    expected = model(given_items, on_error, retries)
    if end is not None and end < len(items):
        expected.append(("raised", -1))
    results = imap(
        func,
        source(items, end),
        ordered=ordered,
        n_jobs=None if backend == "serial" else n_jobs,
        chunksize=chunksize,
        backend=backend,
        on_error=on_error,  # type: ignore[arg-type]
        retries=retries,
        max_buffer_bytes=max_buffer_bytes,
    )
    found = seen(results)
    if ordered:
        assert found == expected
    else:
        assert Counter(found) == Counter(expected)
    assert func.calls == {
        place: min(failures, retries) + 1 for place, (_, _, failures) in enumerate(given_items)
    }  # fmt: skip


@settings(max_examples=40)
@given(
    data=st.lists(st.integers(), max_size=60),
    backends=st.lists(st.sampled_from(["serial", "thread", "auto"]), min_size=1, max_size=3),
    stops=st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_maps_of_maps_taken_in_pieces(data: list[int], backends: list[str], stops: list[int]) -> None:
    """Composed, read a few at a time, closed or dropped in the middle."""
    stream: Iterator[int] = iter(data)
    for depth, backend in enumerate(backends):
        stream = imap(functools.partial(int.__add__, depth + 1), stream, backend=backend)
    added = sum(range(1, len(backends) + 1))
    found: list[int] = []
    for stop in stops:
        for _ in range(stop):
            try:
                found.append(next(stream))
            except StopIteration:
                break
    assert found == [value + added for value in data[: sum(stops)]]
    if hasattr(stream, "close"):
        stream.close()
