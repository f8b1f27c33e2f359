"""What becomes of an item that failed."""

from __future__ import annotations

from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.parallel.failures import Failed, Failure
from lazystore.parallel.scheduling.policy import Policy


def failed(error: BaseException | None = None) -> Failed:
    return Failed(error or ValueError("bad"), 7, "item")


def test_raise_raises_the_items_own_error() -> None:
    error = ValueError("bad")
    with pytest.raises(ValueError, match="bad") as raised:
        Policy("raise").apply(failed(error), "item")
    assert raised.value is error


def test_yield_gives_a_failure_with_the_item_and_its_number() -> None:
    error = ValueError("bad")
    assert Policy("yield").apply(failed(error), "item") == (Failure(7, "item", error),)


def test_skip_leaves_it_out_and_counts_it() -> None:
    policy = Policy("skip")
    assert [policy.apply(failed(), "item") for _ in range(3)] == [(), (), ()]
    assert policy.skipped == 3


@pytest.mark.parametrize("instead", [None, 0, (), "value"])
def test_a_function_gives_what_stands_for_the_result(instead: Any) -> None:
    seen: list[Failure] = []

    def ask(failure: Failure) -> Any:
        seen.append(failure)
        return instead

    error = ValueError("bad")
    assert Policy(ask).apply(failed(error), "item") == (instead,)
    assert seen == [Failure(7, "item", error)]


def test_what_the_function_raises_comes_out() -> None:
    def ask(failure: Failure) -> Any:
        raise LookupError(failure.index)

    with pytest.raises(LookupError, match="7"):
        Policy(ask).apply(failed(), "item")


@pytest.mark.parametrize("on_error", ["raise", "yield", "skip", lambda failure: failure])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_is_not_an_exception_is_always_raised(on_error: Any, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        Policy(on_error).apply(failed(error), "item")
    assert raised.value is error


def test_only_policies_that_run_or_raise_something_need_the_results_before_it_first() -> None:
    assert [Policy(on_error).may_raise for on_error in ("raise", "yield", "skip", str)] == [True, False, False, True]  # type: ignore[arg-type]


@pytest.mark.parametrize("on_error", ["ignore", "", None, 3])
def test_another_policy_is_refused(on_error: Any) -> None:
    with pytest.raises(ConfigError, match="on_error"):
        Policy(on_error)
