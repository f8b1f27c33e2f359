"""Sources: what each kind of thing can do, what tells it from others, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from lazystore.errors import ConfigError, ItemIndexError, UnsupportedError
from lazystore.lazy.source import Source, as_source, function_key, is_stable


def by_key(key: Any) -> Any:
    return key


def by_range(offset: int, limit: int) -> list[int]:
    return list(range(offset, offset + limit))


@pytest.mark.parametrize(
    ("given", "can"),
    [
        ([1, 2], {"keys", "range", "stream"}),
        ((1, 2), {"keys", "range", "stream"}),
        (range(5), {"keys", "range", "stream"}),
        (np.arange(4), {"keys", "range", "stream"}),
        ({"a": 1}, {"keys"}),
        (b"abc", {"range", "stream", "bytes"}),
        (memoryview(b"abc"), {"range", "stream", "bytes"}),
        (iter([1]), {"stream"}),
        (Source.from_keys(by_key), {"keys"}),
        (Source.from_range(by_range), {"range", "stream"}),
        (Source.from_cursor(by_range), {"cursor", "stream"}),
        (Source.from_stream(lambda: iter([1])), {"stream"}),
    ],
)
def test_what_a_thing_can_do(given: Any, can: set[str]) -> None:
    assert as_source(given).can == can


def test_a_sequence_is_read_where_it_is() -> None:
    rows = [{"id": n} for n in range(10)]
    source = as_source(rows)
    assert source.size == 10
    assert source.fetch_key(-1) is rows[9]
    assert source.fetch_range(7, 5) == rows[7:]
    assert source.fetch_range(12, 5) == []
    assert source.cached and source.instant and source.unit == "items"
    with pytest.raises(ItemIndexError, match=r"item 10 is not in 0\.\.9"):
        source.fetch_key(10)


def test_bytes_are_given_as_views() -> None:
    source = as_source(bytearray(b"abcdef"))
    part = source.fetch_range(2, 3)
    assert isinstance(part, memoryview) and part.readonly and bytes(part) == b"cde"
    assert source.unit == "bytes" and source.size == 6


@pytest.mark.parametrize("given", [by_key, len, partial(by_key, 1), 7, None])
def test_what_is_no_source_is_refused_with_the_remedy(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"from_keys|no URL"):
        as_source(given)


@pytest.mark.parametrize("constructor", ["from_keys", "from_range", "from_cursor"])
def test_a_constructor_takes_functions_only(constructor: str) -> None:
    with pytest.raises(ConfigError, match=constructor):
        getattr(Source, constructor)(["no function"])


def test_what_a_source_cannot_do_names_how_to_make_one_that_can() -> None:
    source = Source.from_keys(by_key)
    for call, remedy in (
        (lambda: source.fetch_range(0, 1), "from_range"),
        (lambda: source.fetch_after(None, 1), "from_cursor"),
        (lambda: source.open(), "from_stream"),
        (lambda: source.require("range", "cursor"), "from_range"),
    ):
        with pytest.raises(UnsupportedError, match=remedy):
            call()


@pytest.mark.parametrize("size", [-1, 1.5, True, "3"])
def test_a_size_is_a_number_of_items(size: Any) -> None:
    with pytest.raises(ConfigError, match="size="):
        Source.from_range(by_range, size=size)


def test_functions_of_modules_are_named_and_others_are_not() -> None:
    def local(key: Any) -> Any:
        return key

    assert is_stable(Source.from_keys(by_key).identity)
    for function in (local, lambda key: key, partial(by_key)):
        assert not is_stable(Source.from_keys(function).identity)


def test_functions_made_anew_are_the_same_if_what_they_capture_is() -> None:
    def made(number: int) -> Any:
        return lambda: number

    assert function_key(made(1)) == function_key(made(1))
    assert function_key(made(1)) != function_key(made(2))
    assert function_key(partial(by_key, 1)) == function_key(partial(by_key, 1))
    assert function_key(partial(by_key, 1)) != function_key(partial(by_key, 2))
    assert function_key(lambda: 1) != function_key(lambda: 2)
    assert function_key(lambda x=1: x) != function_key(lambda x=2: x)


def test_methods_of_several_objects_are_several_functions() -> None:
    class Table:
        def rows(self, offset: int, limit: int) -> list[int]:
            return []

    one, two = Table(), Table()
    assert function_key(one.rows) == function_key(one.rows)
    assert function_key(one.rows) != function_key(two.rows)


def test_functions_that_capture_what_cannot_be_compared_are_never_the_same() -> None:
    def made(values: list[int]) -> Any:
        return lambda: values

    values = [1]
    assert function_key(made(values)) != function_key(made(values))


def test_filters_are_handed_on() -> None:
    source = Source.from_range(lambda offset, limit, user=None: [user])
    assert source.fetch_range(0, 1, user=7) == [7]
