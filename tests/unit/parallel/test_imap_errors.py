"""An item that fails or is late in ``imap`` costs no other item, and says where and why."""

from __future__ import annotations

import functools
import gc
import threading
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import imap_ways
from support import map_funcs as funcs

from lazystore import imap, imap_unordered
from lazystore.errors import ItemTimeoutError, WorkerError


@pytest.fixture
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    with imap_ways.chosen(request.param) as found:
        yield found


@imap_ways.everywhere
@pytest.mark.parametrize("chunksize", [None, 1, 8])
def test_an_error_is_raised_where_its_result_would_stand(options: dict[str, Any], chunksize: int | None) -> None:
    results = imap(funcs.picky, range(20), chunksize=chunksize, **options)
    assert [next(results) for _ in range(3)] == [0, -1, -2]
    with pytest.raises(ValueError, match="will not do 3") as caught:
        next(results)
    assert "3" in imap_ways.notes(caught.value)
    text = "".join(traceback.format_exception(caught.value))
    assert "in picky" in text and "map_funcs.py" in text  # where in the function it was
    assert next(results) == -4
    results.close()


@imap_ways.everywhere
@pytest.mark.parametrize("chunksize", [None, 1, 8])
def test_an_error_costs_no_neighbour(options: dict[str, Any], chunksize: int | None) -> None:
    found, errors = imap_ways.drained(iter(imap(funcs.picky, range(100), chunksize=chunksize, **options)))
    assert found == [-k for k in range(100) if k % 10 != 3]
    assert [str(error) for error in errors] == [f"will not do {k}" for k in range(3, 100, 10)]
    for k, error in zip(range(3, 100, 10), errors, strict=True):
        assert str(k) in imap_ways.notes(error)


@imap_ways.everywhere
def test_unordered_errors_cost_no_neighbour(options: dict[str, Any]) -> None:
    found, errors = imap_ways.drained(iter(imap_unordered(funcs.picky, range(100), **options)))
    assert sorted(found) == sorted(-k for k in range(100) if k % 10 != 3)
    assert sorted(str(error) for error in errors) == sorted(f"will not do {k}" for k in range(3, 100, 10))


@imap_ways.everywhere
def test_skip_leaves_failed_items_out_and_counts_them(options: dict[str, Any]) -> None:
    results = imap(funcs.picky, range(100), on_error="skip", **options)
    assert list(results) == [-k for k in range(100) if k % 10 != 3]


@imap_ways.everywhere
def test_yield_puts_a_failure_where_the_result_would_stand(options: dict[str, Any]) -> None:
    found = list(imap(funcs.picky, range(30), on_error="yield", **options))
    assert len(found) == 30
    for k, value in enumerate(found):
        if k % 10 != 3:
            assert value == -k
        else:
            assert value.index == k
            assert isinstance(value.error, ValueError) and str(value.error) == f"will not do {k}"
            assert f"will not do {k}" in repr(value)


@imap_ways.everywhere
def test_a_callable_hears_of_each_failure_in_the_callers_thread(options: dict[str, Any]) -> None:
    heard: list[tuple[int, str, int]] = []

    def listener(failure: Any) -> Any:
        heard.append((failure.index, str(failure.error), threading.get_ident()))
        return None

    found = list(imap(funcs.picky, range(60), on_error=listener, **options))
    assert [entry[:2] for entry in heard] == [(k, f"will not do {k}") for k in range(3, 60, 10)]
    assert {entry[2] for entry in heard} == {threading.get_ident()}
    assert [value for value in found if value is not None] == [-k for k in range(60) if k % 10 != 3]


@imap_ways.everywhere
def test_a_callable_that_raises_ends_no_more_than_its_own_item(options: dict[str, Any]) -> None:
    def listener(failure: Any) -> Any:
        raise RuntimeError(f"no remedy for {failure.index}") from failure.error

    found, errors = imap_ways.drained(iter(imap(funcs.picky, range(40), on_error=listener, **options)))
    assert found == [-k for k in range(40) if k % 10 != 3]
    assert [str(error) for error in errors] == [f"no remedy for {k}" for k in range(3, 40, 10)]


@imap_ways.everywhere
def test_every_item_may_fail(options: dict[str, Any]) -> None:
    found, errors = imap_ways.drained(iter(imap(funcs.always_fails, range(60), **options)))
    assert found == [] and len(errors) == 60
    assert list(imap(funcs.always_fails, range(60), on_error="skip", **options)) == []
    found = list(imap(funcs.always_fails, range(60), on_error="yield", **options))
    assert [value.index for value in found] == list(range(60))


@imap_ways.everywhere
def test_stop_iteration_in_the_function_does_not_pass_for_the_end(options: dict[str, Any]) -> None:
    results = imap(funcs.stops, range(10), **options)
    found, errors = imap_ways.drained(iter(results))
    assert found == [k for k in range(10) if k != 5]
    assert [type(error) for error in errors] == [RuntimeError]
    assert "StopIteration" in str(errors[0]) and "5" in imap_ways.notes(errors[0])


@imap_ways.everywhere
def test_stop_iteration_is_skipped_like_any_other_error(options: dict[str, Any]) -> None:
    assert list(imap(funcs.stops, range(10), on_error="skip", **options)) == [k for k in range(10) if k != 5]


# Retries and timeouts


@imap_ways.everywhere
def test_what_fails_is_tried_again_as_often_as_allowed(options: dict[str, Any], tmp_path: Path) -> None:
    assert list(imap(funcs.flaky(tmp_path, 2), range(30), retries=2, **options)) == list(range(30))
    assert funcs.marks(tmp_path) == {k: 1 if k % 3 else 3 for k in range(30)}


@imap_ways.everywhere
def test_what_fails_once_too_often_is_raised(options: dict[str, Any], tmp_path: Path) -> None:
    found, errors = imap_ways.drained(iter(imap(funcs.flaky(tmp_path, 2), range(12), retries=1, **options)))
    assert found == [k for k in range(12) if k % 3]
    assert [str(error) for error in errors] == [f"{k} is not there yet" for k in range(0, 12, 3)]
    assert funcs.marks(tmp_path) == {k: 1 if k % 3 else 2 for k in range(12)}


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_an_item_that_takes_too_long_is_stopped_and_costs_no_neighbour(chunksize: int | None, tmp_path: Path) -> None:
    late = funcs.gated(tmp_path / "never", 5)
    results = imap(late, range(20), backend="process", n_jobs=2, chunksize=chunksize, timeout=0.6)
    found, errors = imap_ways.drained(iter(results))
    assert found == [k for k in range(20) if k != 5]
    assert [type(error) for error in errors] == [ItemTimeoutError]
    assert isinstance(errors[0], TimeoutError) and errors[0].index == 5  # type: ignore[attr-defined]


def test_late_items_are_skipped_or_yielded_like_other_failures(tmp_path: Path) -> None:
    options: dict[str, Any] = {"backend": "process", "n_jobs": 2, "timeout": 0.3, "chunksize": 2}
    late = funcs.gated(tmp_path / "never", 2)
    assert list(imap(late, range(6), on_error="skip", **options)) == [0, 1, 3, 4, 5]
    found = list(imap(late, range(6), on_error="yield", **options))
    assert [value for value in found if isinstance(value, int)] == [0, 1, 3, 4, 5]
    assert found[2].index == 2 and isinstance(found[2].error, ItemTimeoutError)


def test_a_timeout_nobody_reaches_changes_nothing() -> None:
    assert list(imap(funcs.square, range(500), backend="process", n_jobs=2, timeout=60)) == [k * k for k in range(500)]


# Errors of all kinds


@imap_ways.everywhere
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("chained", "gone"),
        ("group", "one"),
        ("rich", "of the function"),
        ("os", "/gone"),
        ("unicode", "\U0001f600"),
        ("large", "xxx"),
        ("wordless", "WordlessError"),
        ("disguised", "DisguisedError"),
    ],
)
def test_an_error_of_any_kind_is_told_and_costs_no_neighbour(options: dict[str, Any], kind: str, words: str) -> None:
    func = functools.partial(funcs.raises_of_kind, kind)
    found, errors = imap_ways.drained(imap(func, range(12), chunksize=4, **options))
    assert found == [k for k in range(12) if k != 7]
    assert len(errors) == 1
    text = "".join(traceback.format_exception(errors[0]))
    assert words in text and "7" in imap_ways.notes(errors[0])


@imap_ways.everywhere
def test_an_error_keeps_its_type_its_attributes_and_its_notes(options: dict[str, Any]) -> None:
    found, errors = imap_ways.drained(imap(functools.partial(funcs.raises_of_kind, "rich"), range(12), **options))
    error = errors[0]
    assert isinstance(error, funcs.RichError)
    assert (error.args, error.code, error.later) == (("rich", 42), 42, {"a": 1})
    assert "of the function" in imap_ways.notes(error)
    found, errors = imap_ways.drained(imap(functools.partial(funcs.raises_of_kind, "os"), range(12), **options))
    missing = errors[0]
    assert isinstance(missing, FileNotFoundError) and (missing.errno, missing.filename) == (2, "/gone")
    found, errors = imap_ways.drained(imap(functools.partial(funcs.raises_of_kind, "group"), range(12), **options))
    assert isinstance(errors[0], ExceptionGroup) and [str(one) for one in errors[0].exceptions] == ["one", "two"]
    assert found == [k for k in range(12) if k != 7]


@imap_ways.everywhere
def test_items_whose_repr_raises_or_is_endless_do_not_spoil_the_message(options: dict[str, Any]) -> None:
    items = [funcs.Shy(), list(range(100_000)), "x" * 1_000_000]
    _, errors = imap_ways.drained(imap(funcs.fails_shyly, items, **options))
    assert [str(error) for error in errors] == ["shy item"] * 3
    assert all(str(k) in imap_ways.notes(error) for k, error in enumerate(errors))
    assert all(len(imap_ways.notes(error)) < 2000 for error in errors)


@imap_ways.everywhere
def test_failures_as_results_are_results(options: dict[str, Any]) -> None:
    found = list(imap(funcs.gives_failures, range(0, 20, 2), **options))
    for number, (one, other) in zip(range(0, 20, 2), found, strict=True):
        assert one == -number
        if number % 10 == 2:
            assert other.index == 1 and str(other.error) == f"will not do {number + 1}"
        else:
            assert other == -number - 1


@imap_ways.everywhere
def test_an_error_of_a_run_is_freed_with_it(options: dict[str, Any]) -> None:
    """The error's traceback must not hold the run, nor the run the error."""
    results = imap(funcs.always_fails, range(20), **options)
    with pytest.raises(LookupError):
        next(results)
    gone = weakref.ref(results)
    del results
    gc.collect()
    assert gone() is None


# Errors of the run itself


def test_a_run_whose_executor_breaks_says_so_and_ends() -> None:
    """An error that ends the run is not raised for ever."""
    executor = ThreadPoolExecutor(2)
    results = imap(funcs.slow, range(100), backend=executor)
    assert next(results) == 0
    executor.shutdown(wait=False, cancel_futures=True)
    _, errors = imap_ways.drained(results)
    assert isinstance(errors[0], WorkerError) and len(errors) <= 2
