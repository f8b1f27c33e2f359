"""Runs of ``imap`` that are closed, dropped, shared, nested and many at once."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
from support import imap_ways
from support import map_funcs as funcs

from lazystore import imap
from lazystore.errors import ConfigError, UnsupportedError


@pytest.fixture
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    with imap_ways.chosen(request.param) as found:
        yield found


@imap_ways.everywhere
def test_a_closed_run_gives_nothing_more(options: dict[str, Any]) -> None:
    results = imap(funcs.square, itertools.count(), **options)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    results.close()
    results.close()
    with pytest.raises(StopIteration):
        next(results)


@imap_ways.everywhere
def test_closing_before_the_first_result_takes_nothing(options: dict[str, Any]) -> None:
    source = funcs.Counted(itertools.count())
    imap(funcs.square, source, **options).close()
    assert source.taken == 0


@imap_ways.everywhere
def test_a_with_block_closes_it(options: dict[str, Any]) -> None:
    with pytest.raises(KeyError), imap(funcs.square, itertools.count(), **options) as results:
        assert next(results) == 0
        raise KeyError("mine")
    assert list(results) == []


@imap_ways.everywhere
def test_an_exhausted_run_stays_exhausted(options: dict[str, Any]) -> None:
    results = imap(funcs.square, range(4), **options)
    assert iter(results) is results
    assert list(results) == [0, 1, 4, 9]
    assert list(results) == [] and next(results, "end") == "end"


@imap_ways.everywhere
def test_a_dropped_run_is_freed_with_what_it_held(options: dict[str, Any]) -> None:
    source = funcs.Counted(itertools.count())
    gone = weakref.ref(source)
    results = imap(funcs.square, source, **options)
    assert next(results) == 0
    del results, source
    gc.collect()
    assert gone() is None


@imap_ways.by_workers
def test_results_that_were_delivered_are_not_kept(options: dict[str, Any]) -> None:
    np = pytest.importorskip("numpy")
    results = imap(funcs.array, [1000] * 30, **options)
    first = next(results)
    assert isinstance(first, np.ndarray)
    gone = weakref.ref(first)
    del first
    for _ in range(10):
        next(results)
    gc.collect()
    assert gone() is None
    results.close()


@pytest.mark.parametrize("one", ["auto", "thread", "process"])
@pytest.mark.parametrize("other", ["serial", "thread", "process"])
def test_two_runs_at_once_do_not_disturb_each_other(one: str, other: str) -> None:
    pairs = zip(
        imap(funcs.late_first, range(60), backend=one), imap(funcs.square, range(60), backend=other), strict=True
    )  # fmt: skip
    assert list(pairs) == [(k, k * k) for k in range(60)]


@imap_ways.by_workers
def test_runs_in_many_threads_at_once(options: dict[str, Any]) -> None:
    found: dict[int, list[int]] = {}

    def work(name: int) -> None:
        found[name] = list(imap(funcs.square, range(name, name + 100), **options))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {name: [k * k for k in range(name, name + 100)] for name in range(4)}


@imap_ways.everywhere
def test_a_map_feeds_a_map(options: dict[str, Any]) -> None:
    inner = imap(funcs.square, itertools.count(), **options)
    outer = imap(funcs.picky, inner, on_error="skip", **options)
    assert list(itertools.islice(outer, 12)) == [-(k * k) for k in range(12)]
    outer.close()
    inner.close()


@imap_ways.everywhere
def test_a_map_inside_the_function_of_a_map(options: dict[str, Any]) -> None:
    assert list(imap(funcs.nested, range(20), **options)) == [sum(j * j for j in range(k)) for k in range(20)]


def test_a_map_by_processes_inside_the_function_of_a_map_by_processes() -> None:
    found = list(imap(funcs.nested_processes, range(3), backend="process", n_jobs=2))
    assert found == [sum(j * j for j in range(k)) for k in range(3)]


def test_a_map_with_a_timeout_takes_threads_inside_a_worker() -> None:
    found = list(imap(funcs.nested_with_a_timeout, [3, 4], backend="process", n_jobs=2))
    assert found == [([0, 1, 4], "thread"), ([0, 1, 4, 9], "thread")]


def test_the_stats_tell_what_packing_took_in_the_caller() -> None:
    with imap(funcs.square, range(2000), backend="process", n_jobs=1, chunksize=50) as results:
        assert len(list(results)) == 2000
    assert 0 < results.stats.packing_s <= results.stats.transport_s
    with imap(funcs.square, range(2000), backend="serial") as results:
        assert len(list(results)) == 2000
    assert results.stats.packing_s == 0


@pytest.mark.parametrize("options", ["auto", "serial"], indirect=True)
def test_a_function_that_asks_its_own_run_for_more_is_refused(options: dict[str, Any]) -> None:
    def greedy(number: int) -> int:
        return number + next(results) if number == 2 else number

    results = imap(greedy, range(5), **options)
    found, errors = imap_ways.drained(iter(results))
    assert found == [0, 1, 3, 4]
    assert [type(error) for error in errors] == [ValueError]


@imap_ways.everywhere
def test_a_source_that_asks_its_own_run_for_more_is_refused(options: dict[str, Any]) -> None:
    def source() -> Iterator[int]:
        yield 0
        yield next(results)

    results = imap(funcs.square, source(), **options)
    found, errors = imap_ways.drained(iter(results))
    assert found == [0]
    assert [type(error) for error in errors] == [ValueError]


@imap_ways.everywhere
def test_threads_that_share_a_run_get_each_result_once_or_a_clear_refusal(options: dict[str, Any]) -> None:
    results = imap(funcs.slow, range(25), **options)
    found: list[int] = []
    wrong: list[BaseException] = []

    def work() -> None:
        while True:
            try:
                found.append(next(results))
            except StopIteration:
                return
            except ValueError:  # somebody else is at it, as a generator says
                time.sleep(0.002)
            except BaseException as error:  # noqa: BLE001 (told by the assertion below)
                wrong.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert sorted(found) == list(range(25))


@imap_ways.everywhere
def test_a_run_is_neither_pickled_nor_copied(options: dict[str, Any]) -> None:
    results = imap(funcs.square, range(5), **options)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UnsupportedError, match="an imap cannot be"):
            attempt(results)
    assert list(results) == [0, 1, 4, 9, 16]


@imap_ways.everywhere
def test_repr_and_stats_tell_how_far_it_is(options: dict[str, Any]) -> None:
    results = imap(funcs.picky, range(50), on_error="skip", **options)
    assert "picky" in repr(results)
    assert len([next(results) for _ in range(10)]) == 10
    results.stats  # noqa: B018 (in the middle too)
    list(results)
    assert "picky" in repr(results)
    text = repr(results.stats)
    assert "45" in text or "50" in text, text


def test_the_documented_names_are_refused_in_no_order() -> None:
    """Options go by name."""
    with pytest.raises(TypeError):
        imap(funcs.square, range(3), True)  # type: ignore[misc]


def test_an_unfinished_run_holds_no_thread_of_the_caller() -> None:
    before = threading.active_count()
    results = imap(funcs.slow, itertools.count(), backend="process", n_jobs=2)
    assert next(results) == 0
    assert threading.active_count() == before
    results.close()


def test_thread_workers_end_with_their_run() -> None:
    before = set(threading.enumerate())
    results = imap(funcs.slow, itertools.count(), backend="thread", n_jobs=3)
    assert next(results) == 0
    results.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert set(threading.enumerate()) <= before


def test_executor_subclasses_that_hand_results_over_late_are_waited_for() -> None:
    class Late(Executor):
        """Runs what it is given one behind: a future ends when the next is submitted, or on shutdown."""

        def __init__(self) -> None:
            self.inner = ThreadPoolExecutor(1)

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return self.inner.submit(fn, *args, **kwargs)

    late = Late()
    assert list(imap(funcs.square, range(50), backend=late)) == [k * k for k in range(50)]
    late.inner.shutdown()


def test_unknown_options_are_refused() -> None:
    with pytest.raises((TypeError, ConfigError)):
        imap(funcs.square, range(3), chunk_size=3)  # type: ignore[call-arg]
