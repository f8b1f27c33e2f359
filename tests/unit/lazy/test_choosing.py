"""AUTO chooses from what is known before anything is loaded, and calls nothing to find out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.lazy.choosing import choose, strategy_of
from lazystore.lazy.source import Source, as_source
from lazystore.lazy.strategy import ChunkStrategy, Strategy

MIB = 1 << 20


def never(*_: Any) -> Any:
    raise AssertionError("called to find out")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (Strategy.LAZY, Strategy.LAZY), ("lazy", Strategy.LAZY), ("LAZY", Strategy.LAZY), ("Lazy", Strategy.LAZY),
        ("on_demand", Strategy.LAZY), ("IMMEDIATE", Strategy.EAGER), ("hybrid", Strategy.AUTO),
    ],
)  # fmt: skip
def test_a_strategy_goes_by_member_name_value_and_alias(given: Any, found: Strategy) -> None:
    assert strategy_of(given) is found


@pytest.mark.parametrize("wrong", ["", "quick", 0, None, ChunkStrategy.FIXED_SIZE, Strategy])
def test_another_word_is_refused_with_the_known_ones(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"strategy=.*EAGER.*BACKGROUND"):
        strategy_of(wrong)


@pytest.mark.parametrize(
    ("nbytes", "found"),
    [
        (0, Strategy.EAGER), (MIB - 1, Strategy.EAGER), (MIB, Strategy.LAZY), (10 * MIB, Strategy.CHUNKED),
        (100 * MIB, Strategy.STREAMING),
    ],
)  # fmt: skip
def test_a_size_that_is_given_decides_whatever_is_loaded(nbytes: int, found: Strategy) -> None:
    for what in (never, Source.from_range(never, size=7)):
        strategy, reason = choose(what, nbytes)
        assert strategy is found and "size given" in reason


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "much"])
def test_a_size_is_bytes(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="nbytes"):
        choose(never, wrong)


def numbers(first: int = 0) -> Iterator[int]:
    yield never()


async def later() -> AsyncIterator[int]:
    yield never()


class Numbers:
    def read(self) -> Iterator[int]:
        yield never()

    def __call__(self) -> Iterator[int]:
        yield never()


@pytest.mark.parametrize(
    "what", [numbers, later, partial(numbers, 3), partial(partial(numbers), 3), Numbers().read, Numbers()]
)
def test_generators_are_read_in_one_pass(what: Any) -> None:
    assert choose(what, None)[0] is Strategy.STREAMING


def test_a_function_gives_its_value_at_once() -> None:
    for what in (never, partial(never, 1), Numbers):
        assert choose(what, None)[0] is Strategy.EAGER


@pytest.mark.parametrize(
    ("source", "found", "reason"),
    [
        (as_source(b"x" * 100), Strategy.EAGER, "SMALL: 100 bytes"),
        (as_source(bytes(2 * MIB)), Strategy.LAZY, "MEDIUM"),
        (as_source([]), Strategy.EAGER, "empty"),
        (as_source([b"x" * 1000] * 10), Strategy.EAGER, "10 items like the first"),
        (as_source([b"x" * 1000] * 50_000), Strategy.CHUNKED, "50000 items like the first"),
        (as_source(iter([1])), Strategy.STREAMING, "unknown size"),
        (Source.from_range(never), Strategy.STREAMING, "unknown size"),
        (Source.from_range(never, size=9), Strategy.CHUNKED, "9 items of unknown size"),
    ],
)
def test_sources_are_chosen_for_by_what_they_know(source: Source, found: Strategy, reason: str) -> None:
    strategy, why = choose(source, None)
    assert strategy is found and reason in why
