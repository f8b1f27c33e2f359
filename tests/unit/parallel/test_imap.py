"""``imap`` gives each result once and in order, whoever runs the function and whatever the data is."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import elsewhere, imap_ways
from support import map_funcs as funcs

from lazystore import imap, imap_unordered


@pytest.fixture
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    with imap_ways.chosen(request.param) as found:
        yield found


# Results


@imap_ways.everywhere
def test_results_come_in_the_order_of_the_items(options: dict[str, Any]) -> None:
    assert list(imap(funcs.late_first, range(60), **options)) == list(range(60))


@imap_ways.everywhere
@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_a_fixed_chunk_size_changes_no_result(options: dict[str, Any], chunksize: int) -> None:
    assert list(imap(funcs.square, range(300), chunksize=chunksize, **options)) == [k * k for k in range(300)]


@imap_ways.everywhere
def test_unordered_gives_each_result_once(options: dict[str, Any]) -> None:
    found = list(imap_unordered(funcs.late_first, range(200), **options))
    assert Counter(found) == Counter(range(200))
    assert Counter(imap(funcs.square, range(500), ordered=False, **options)) == Counter(k * k for k in range(500))


@imap_ways.everywhere
def test_each_item_is_run_once(options: dict[str, Any], tmp_path: Path) -> None:
    assert list(imap(funcs.marking(tmp_path), range(150), **options)) == list(range(150))
    assert funcs.marks(tmp_path) == dict.fromkeys(range(150), 1)


@imap_ways.by_workers
def test_unordered_does_not_wait_for_a_slow_item(options: dict[str, Any], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = imap(funcs.gated(gate, 3), range(12), ordered=False, chunksize=1, **options)
    others = [next(results) for _ in range(10)]  # all but it, and one that may have been put behind it
    assert 3 not in others and len(set(others)) == 10
    gate.touch()
    assert sorted([*others, *results]) == list(range(12))


@imap_ways.by_workers
def test_what_follows_a_slow_item_is_worked_on_meanwhile(options: dict[str, Any], tmp_path: Path) -> None:
    """Item 0 ends only after some of those behind it, which is up to the other worker."""
    results = imap(functools.partial(elsewhere.waits_for_others, tmp_path), range(12), chunksize=1, **options)
    assert list(results) == list(range(12))


@imap_ways.everywhere
@pytest.mark.parametrize(
    "data",
    [[], (), range(0), "", b"", {}, iter([]), (k for k in ())],
    ids=["list", "tuple", "range", "str", "bytes", "dict", "iterator", "generator"],
)
def test_of_nothing_comes_nothing(options: dict[str, Any], data: Any) -> None:
    assert list(imap(funcs.same, data, **options)) == []


@imap_ways.everywhere
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_a_few_items_are_enough(options: dict[str, Any], count: int) -> None:
    assert list(imap(funcs.square, range(count), **options)) == [k * k for k in range(count)]


@pytest.mark.parametrize("options", ["auto", "thread", "process"], indirect=True)
@pytest.mark.parametrize(
    ("data", "items"),
    [
        ("text", list("text")),
        (b"abc", [97, 98, 99]),
        ({"a": 1, "b": 2}, ["a", "b"]),
        ({3}, [3]),
        ([None, 0, "", ()], [None, 0, "", ()]),
        ([NotImplemented, Ellipsis], [NotImplemented, Ellipsis]),
        ([StopIteration, KeyError], [StopIteration, KeyError]),
    ],
    ids=["str", "bytes", "dict", "set", "falsy", "singletons", "classes"],
)
def test_any_iterable_and_any_value_will_do(options: dict[str, Any], data: Any, items: list[Any]) -> None:
    assert list(imap(funcs.same, data, **options)) == items


@imap_ways.everywhere
def test_errors_that_are_returned_are_results(options: dict[str, Any]) -> None:
    found = list(imap(funcs.gives_errors, range(20), **options))
    assert [type(error) for error in found] == [ValueError] * 20
    assert [error.args for error in found] == [(k,) for k in range(20)]


@imap_ways.everywhere
def test_none_is_a_result(options: dict[str, Any]) -> None:
    assert list(imap(funcs.nothing, range(50), **options)) == [None] * 50


@pytest.mark.parametrize(
    "func",
    [funcs.Method(3).times, funcs.Method(3), functools.partial(int.__mul__, 3), (3).__mul__],
    ids=["method", "callable", "partial", "builtin"],
)
@pytest.mark.parametrize("options", ["auto", "process"], indirect=True)
def test_whatever_can_be_called_is_called(options: dict[str, Any], func: Any) -> None:
    assert list(imap(func, range(40), **options)) == [3 * k for k in range(40)]


@pytest.mark.parametrize("options", ["serial", "thread", "executor"], indirect=True)
def test_lambdas_and_closures_run_in_threads(options: dict[str, Any]) -> None:
    seen: list[int] = []
    assert list(imap(lambda k: seen.append(k) or k + 1, range(50), **options)) == list(range(1, 51))
    assert sorted(seen) == list(range(50))


# Data


@imap_ways.everywhere
@pytest.mark.parametrize("length", [0, 3, 50, 1000])
def test_what_a_source_says_of_its_length_loses_and_doubles_nothing(options: dict[str, Any], length: int) -> None:
    assert list(imap(funcs.square, funcs.Sized(range(50), length), **options)) == [k * k for k in range(50)]


@imap_ways.everywhere
def test_a_source_that_will_not_be_asked_for_its_length_is_read(options: dict[str, Any]) -> None:
    assert list(imap(funcs.square, funcs.Hint(range(50)), **options)) == [k * k for k in range(50)]


@imap_ways.everywhere
def test_what_can_be_iterated_again_is_iterated_once(options: dict[str, Any]) -> None:
    again = funcs.Again(range(50))
    assert list(imap(funcs.square, again, **options)) == [k * k for k in range(50)]
    assert again.begun == 1
    assert list(imap(funcs.square, again, **options)) == [k * k for k in range(50)]


@imap_ways.everywhere
def test_the_source_is_read_by_the_callers_thread_only(options: dict[str, Any]) -> None:
    source = funcs.Counted(range(300))
    assert list(imap(funcs.late_first, source, **options)) == list(range(300))
    assert source.threads == {threading.get_ident()}


@imap_ways.everywhere
def test_nothing_is_taken_before_the_first_result_is_asked_for(options: dict[str, Any]) -> None:
    source = funcs.Counted(itertools.count())
    results = imap(funcs.square, source, **options)
    assert source.taken == 0
    assert next(results) == 0
    results.close()


@imap_ways.everywhere
def test_an_endless_source_is_read_as_far_as_is_needed(options: dict[str, Any]) -> None:
    source = funcs.Counted(itertools.count())
    results = imap(funcs.slow, source, **options)
    assert list(itertools.islice(results, 30)) == list(range(30))
    results.close()
    assert source.taken < 30 + 500  # a window, not the pipe's worth of thousands


@imap_ways.by_workers
def test_with_a_fixed_chunk_size_the_window_is_a_few_chunks(options: dict[str, Any], tmp_path: Path) -> None:
    """However long the consumer thinks, and also while an early item is late."""
    source = funcs.Counted(itertools.count())
    gate = tmp_path / "gate"
    gate.touch()
    with imap(funcs.gated(gate, 20), source, chunksize=1, **options) as results:
        for k in range(20):
            assert next(results) == k
            assert source.taken <= k + 200
        gate.unlink(missing_ok=True)
        opener = threading.Timer(0.3, gate.touch)
        opener.start()
        assert next(results) == 20
        assert source.taken <= 20 + 500
        opener.join()


@imap_ways.everywhere
def test_a_break_leaves_the_rest_of_the_source_alone(options: dict[str, Any]) -> None:
    source = funcs.Counted(itertools.count())
    for result in imap(funcs.square, source, **options):
        if result >= 100:
            break
    gc.collect()
    taken = source.taken
    assert next(source) == taken  # still the caller's, and nobody reads it any more


@imap_ways.everywhere
def test_an_error_of_the_source_comes_after_what_it_gave(options: dict[str, Any]) -> None:
    def source() -> Iterator[int]:
        yield from range(37)
        raise OSError("the tape is torn")

    results = imap(funcs.square, source(), **options)
    found = []
    with pytest.raises(OSError, match="the tape is torn"):
        for result in results:
            found.append(result)
    assert found == [k * k for k in range(37)]
    assert list(results) == []


@imap_ways.everywhere
def test_arrays_are_mapped_row_by_row(options: dict[str, Any]) -> None:
    np = pytest.importorskip("numpy")
    rows = np.arange(600, dtype=np.float32).reshape(60, 10)
    found = np.stack(list(imap(funcs.doubled, rows, **options)))
    assert (found == rows * 2).all()


@imap_ways.everywhere
@pytest.mark.parametrize("size", [0, 1, 4000, 300_000])
def test_large_arrays_come_back_writable(options: dict[str, Any], size: int) -> None:
    np = pytest.importorskip("numpy")
    for result in imap(funcs.array, [size] * 8, **options):
        assert result.flags.writeable and result.shape == (size,)
        result += 1
        assert (result == np.arange(1, size + 1)).all()


@imap_ways.everywhere
def test_large_items_and_results_of_all_sizes_arrive_whole(options: dict[str, Any]) -> None:
    sizes = [0, 1, 100, 70_000, 3, 2_000_000, 5, 1_000_000, 32_768, 9_000_000, 2]
    blocks = [funcs.block(size) for size in sizes]
    assert list(imap(funcs.block, sizes, **options)) == blocks
    assert list(imap(len, blocks, **options)) == sizes
    assert list(imap(funcs.same, map(bytearray, blocks), **options)) == blocks


@imap_ways.everywhere
def test_results_kept_by_the_caller_are_not_overwritten_by_later_ones(options: dict[str, Any]) -> None:
    np = pytest.importorskip("numpy")
    sizes = [50_000 + k for k in range(40)]
    kept = list(imap(funcs.array, sizes, **options))
    assert all((found == np.arange(size)).all() for found, size in zip(kept, sizes, strict=True))


# Workers


@imap_ways.by_workers
def test_each_worker_is_set_up_once_before_its_first_item(options: dict[str, Any], tmp_path: Path) -> None:
    found = list(imap(funcs.was_set_up, range(80), initializer=funcs.set_up(tmp_path), chunksize=4, **options))
    assert found == [True] * 80
    calls = [path.stat().st_size for path in tmp_path.iterdir()]
    assert calls and set(calls) == {1} and len(calls) <= 2


@pytest.mark.parametrize("options", ["auto", "serial"], indirect=True)
def test_the_caller_is_set_up_too_where_it_runs_items(options: dict[str, Any], tmp_path: Path) -> None:
    assert all(imap(funcs.was_set_up, range(50), initializer=funcs.set_up(tmp_path), **options))


@imap_ways.everywhere
def test_an_initializer_that_fails_is_told_and_nothing_runs_without_it(options: dict[str, Any]) -> None:
    found, errors = imap_ways.drained(imap(funcs.square, range(50), initializer=funcs.bad_set_up, **options))
    assert found == []
    assert "no such model" in str(errors[0])


def test_the_backend_asked_for_is_the_one_that_works() -> None:
    me = os.getpid()
    assert me not in set(imap(funcs.pid, range(40), backend="process", n_jobs=2))
    places = set(imap(funcs.where, range(40), backend="thread", n_jobs=2))
    assert {place[0] for place in places} == {me} and (me, threading.get_ident()) not in places
    assert set(imap(funcs.where, range(40), backend="serial")) == {(me, threading.get_ident())}


@pytest.mark.parametrize("backend", ["process", "thread"])
@pytest.mark.parametrize("n_jobs", [1, 2, 4])
def test_no_more_workers_than_asked_for(backend: str, n_jobs: int) -> None:
    places = set(imap(funcs.where, range(100), backend=backend, n_jobs=n_jobs, chunksize=1))
    assert 1 <= len(places) <= n_jobs


def test_workers_are_used_again_by_the_next_run() -> None:
    first = set(imap(funcs.pid, range(20), backend="process", n_jobs=2, chunksize=1))
    second = set(imap(funcs.pid, range(20), backend="process", n_jobs=2, chunksize=1))
    assert first & second


def test_one_worker_runs_a_chunk_of_the_size_asked_for() -> None:
    found = list(imap(funcs.where, range(60), backend="process", n_jobs=2, chunksize=10))
    assert all(len(set(found[k : k + 10])) == 1 for k in range(0, 60, 10))


def test_an_executor_of_the_caller_stays_open_and_does_all_the_work() -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as executor:
        names = set(imap(_thread_name, range(50), backend=executor))
        assert all(name.startswith("mine") for name in names)
        assert executor.submit(abs, -1).result() == 1


def _thread_name(_: int) -> str:
    return threading.current_thread().name


@imap_ways.by_workers
def test_of_a_slow_source_no_more_is_asked_than_it_takes_to_keep_going(options: dict[str, Any]) -> None:
    """What is done is handed on before the source is asked for many more items."""

    def slow() -> Iterator[int]:
        for k in range(14):
            time.sleep(0.05)
            yield k

    source = funcs.Counted(slow())
    ahead = [source.taken - k - 1 for k in imap(funcs.same, source, **options)]
    assert sorted(ahead)[len(ahead) // 2] <= 1, ahead


@imap_ways.everywhere
def test_results_of_every_size_around_the_places_where_transport_changes(options: dict[str, Any]) -> None:
    sizes = [base + more for base in (0, 4096, 32_768, 65_536, 262_144, 1 << 20) for more in (-65, -1, 0, 1, 64)]
    sizes = [size for size in sizes if size >= 0]
    assert [len(found) for found in imap(funcs.sized, sizes, **options)] == sizes
    assert [len(found) for found in imap(funcs.same, [b"y" * size for size in sizes], **options)] == sizes


@pytest.mark.parametrize("options", ["process"], indirect=True)
def test_arrays_of_all_shapes_arrive_equal(options: dict[str, Any]) -> None:
    np = pytest.importorskip("numpy")
    right = funcs.odd_arrays(0)
    for found in imap(funcs.odd_arrays, range(3), **options):
        for one, other in zip(found, right, strict=True):
            assert type(one) is type(other) and np.array_equal(one, other)
            assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
    for found in imap(funcs.same, [right] * 3, **options):
        assert all(np.array_equal(one, other) for one, other in zip(found, right, strict=True))
    for found in imap(funcs.many_arrays, [0, 1, 3000], **options):
        assert all((value == k).all() and len(value) == 100 + k for k, value in found.items())
