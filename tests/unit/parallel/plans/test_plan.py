"""Plans for streams: whatever the work, a plan that can be run, says why, and runs each item once."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from support import datasets
from support.stream_work import (
    Logged,
    always_fails,
    append,
    compute,
    digest,
    heavy_result,
    lock_result,
    odd_fails,
    plan_here,
    square,
    text_of,
    unlike,
    wait,
)

from lazystore import StreamingDataset
from lazystore.errors import ConfigError
from lazystore.parallel.mapper import imap
from lazystore.parallel.plans import sampling
from lazystore.parallel.plans.forecast import Costs
from lazystore.parallel.plans.plan import StreamingOptimizationResult, optimize_streaming
from lazystore.parallel.plans.profile import DiagnosticProfile
from lazystore.parallel.scheduling.evidence import CallClock, CallTimes
from lazystore.parallel.workers.inner_threads import VARIABLES, has_inner_threads


@pytest.fixture(autouse=True)
def _no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of other tests that are still winding up would pass for threads of the functions here."""
    monkeypatch.setattr(sampling, "has_inner_threads", lambda *_, **__: False)


def plan(func: Callable[[Any], Any], data: Any, **options: Any) -> StreamingOptimizationResult:
    """A plan without trying a worker, which some tests here need not."""
    return optimize_streaming(func, data, use_spawn_benchmark=False, use_chunking_benchmark=False, **options)


class Calls:
    """Counts calls of a function in this process."""

    def __init__(self, func: Callable[[Any], Any] = square) -> None:
        self.func = func
        self.seen: list[Any] = []

    def __call__(self, item: Any) -> Any:
        self.seen.append(item)
        return self.func(item)

    def __reduce__(self) -> Any:
        raise TypeError("it counts in this process only")


# -- what a plan is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("func", [square, compute, digest, unlike, wait, odd_fails, always_fails, lock_result])
@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_every_plan_can_be_given_to_a_pool(func: Callable[[Any], Any], count: int) -> None:
    found = plan(func, range(count))
    assert isinstance(found.n_jobs, int) and found.n_jobs >= 1
    assert isinstance(found.chunksize, int) and found.chunksize >= 1
    assert found.use_ordered is True
    assert found.estimated_speedup > 0
    assert found.buffer_size >= found.n_jobs
    assert found.backend in {"process", "thread", "serial"}
    assert found.reason.endswith(".")
    assert isinstance(found.warnings, list)
    assert found.profile is None
    assert found.data == range(count)


def test_what_was_asked_for_is_what_the_plan_says() -> None:
    found = plan(square, range(1000), n_jobs=3, chunksize=11, backend="process", prefer_ordered=False, buffer_size=77)
    assert (found.n_jobs, found.chunksize, found.backend, found.use_ordered, found.buffer_size) == (
        3,
        11,
        "process",
        False,
        77,
    )
    assert any("predicted to take" in warning and "plain loop" in warning for warning in found.warnings)
    assert plan(compute, range(1000), backend="serial").n_jobs == 1
    assert plan(compute, range(1000), backend="thread", n_jobs=4).backend == "thread"


def test_order_is_kept_unless_it_is_refused() -> None:
    assert [plan(square, range(9), prefer_ordered=wish).use_ordered for wish in (None, True, False)] == [
        True,
        True,
        False,
    ]


def test_quick_functions_over_few_items_stay_serial_and_the_reason_says_so() -> None:
    found = plan(square, range(100))
    assert (found.n_jobs, found.backend, found.estimated_speedup) == (1, "serial", 1.0)
    assert "insufficient speedup" in found.reason


def test_work_that_waits_is_planned_with_threads_and_a_word_about_pools() -> None:
    found = plan(wait, itertools.count(), sample_size=3)
    assert found.backend == "thread"
    assert found.n_jobs > 4
    assert any("ThreadPool" in warning for warning in found.warnings)


def test_unlike_items_get_smaller_chunks_than_items_that_are_alike() -> None:
    found = plan(unlike, range(10**6), sample_size=9, profile=True, n_jobs=2, backend="process")
    assert found.profile is not None
    assert found.profile.is_heterogeneous
    assert found.profile.coefficient_of_variation is not None and found.profile.coefficient_of_variation > 0.5


def test_a_window_smaller_than_the_workers_need_is_a_warning() -> None:
    found = plan(compute, range(1000), n_jobs=4, backend="process", buffer_size=2)
    assert any("buffer_size=2" in warning for warning in found.warnings)


def test_results_that_wait_fit_the_bytes_given() -> None:
    found = plan(heavy_result, range(1000), n_jobs=2, backend="process", max_buffer_bytes="10MB")
    assert found.buffer_size == 5 - 1  # 2 MB and a few bytes each


def test_an_executor_is_planned_with_its_own_workers() -> None:
    with ThreadPoolExecutor(3) as executor:
        found = plan(wait, range(20), backend=executor)
        assert found.backend is executor
        assert found.n_jobs == 3
        assert "ThreadPoolExecutor" in repr(found)
        assert list(found.imap()) == list(range(20))


# -- what it says -------------------------------------------------------------------------------------------------


def test_a_plan_shows_itself_in_one_line_and_explains_itself_in_many() -> None:
    found = plan(compute, range(1000), n_jobs=2)
    assert repr(found).startswith("StreamingOptimizationResult(n_jobs=2, chunksize=")
    assert "\n" not in repr(found)
    assert f"chunksize={found.chunksize}" in str(found)
    text = found.explain()
    assert found.reason in text
    assert "5 items tried" in text
    assert "(assumed)" in text and "(measured)" not in text
    assert "calls func again for the 5 items that were tried" in text
    assert ".imap() calls func once with each item" in text


def test_a_profile_holds_what_was_measured_and_none_for_what_was_not() -> None:
    found = plan(compute, range(1000), profile=True, n_jobs=2, backend="process").profile
    assert isinstance(found, DiagnosticProfile)
    assert found.sample_count == 5
    assert found.avg_execution_time is not None and found.avg_execution_time > 0.0005
    assert found.workload_type == "cpu-bound"
    assert found.total_items == 1000
    assert found.data_size_bytes is not None and found.return_size_bytes is not None
    assert found.estimated_result_memory == found.return_size_bytes * 1000
    assert found.peak_memory_bytes is None
    assert found.is_picklable is True
    assert found.overhead_spawn is not None and found.overhead_spawn > 0
    assert sum(found.get_overhead_breakdown().values()) == pytest.approx(100.0)
    endless = plan(compute, itertools.count(), profile=True).profile
    assert endless is not None
    assert endless.total_items is endless.estimated_serial_time is endless.estimated_result_memory is None


def test_verbose_prints_as_it_goes_and_silence_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(odd_fails, range(100))
    assert capsys.readouterr().out == ""
    plan(odd_fails, range(100), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tried 5 of 5 items"
    assert any(line.startswith("an item takes ") for line in lines)
    assert f"warning: {found.warnings[0]}" in lines


def test_items_that_fail_are_counted_and_the_first_is_named() -> None:
    found = plan(odd_fails, range(10))
    assert any("2 of 5 items that were tried raised an error (item 1: ValueError: odd: 1)" in w for w in found.warnings)
    found = plan(always_fails, range(10))
    assert "none of the items that were tried worked" in found.reason
    assert "none of them worked" in found.explain()


def test_what_cannot_travel_is_not_planned_for_processes() -> None:
    found = plan(lock_result, range(10**6))
    assert found.backend != "process"
    assert any("a multiprocessing.Pool cannot run this (a result (lock) does not pickle" in w for w in found.warnings)


def test_threads_inside_the_function_are_measured_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lazystore.parallel.plans import planning

    monkeypatch.setattr(sampling, "has_inner_threads", has_inner_threads)

    class FourThreads(CallClock):
        """Clocks of a function that has three busy threads beside its own."""

        @property
        def times(self) -> CallTimes:
            wall_s = super().times.wall_s
            return CallTimes(1, wall_s, wall_s, 4 * wall_s)

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(planning, "usable_cpus", lambda: 8)
    monkeypatch.setattr(sampling, "CallClock", FourThreads)
    found = plan(compute, range(10_000), sample_size=8)
    assert (found.backend, found.n_jobs) == ("process", 2)
    (warning,) = found.warnings
    assert "nested parallelism" in warning and "4.0 processors busy" in warning and "n_jobs is 2 for 8" in warning
    assert "os.environ['OMP_NUM_THREADS'] = '1'" in warning
    for name in VARIABLES:
        monkeypatch.setenv(name, "4")
    (warning,) = plan(compute, range(10_000), sample_size=8).warnings
    assert "os.environ" not in warning, "whoever set them knows them"


# -- running it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "serial", "thread"])
@pytest.mark.parametrize("make", [list, iter, lambda data: (x for x in data)], ids=["list", "iterator", "generator"])
def test_each_item_is_run_once_over_plan_and_run(make: Callable[[Any], Any], backend: str) -> None:
    func = Calls()
    found = plan(func, make(range(50)), backend=backend)
    assert func.seen == [0, 1, 2, 3, 4]
    assert list(found.imap()) == [x * x for x in range(50)]
    assert sorted(func.seen) == list(range(50))


def test_each_item_is_run_once_by_processes_too(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    found = plan(Logged(log), iter(range(40)), backend="process", n_jobs=2)
    assert list(found.imap()) == list(range(40))
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(item) for item, _ in lines) == list(range(40))
    assert {pid for item, pid in lines if int(item) < 5} == {str(os.getpid())}


def test_an_unordered_plan_runs_unordered_and_loses_nothing() -> None:
    found = plan(square, iter(range(200)), prefer_ordered=False, backend="thread", n_jobs=4)
    assert sorted(found.imap()) == sorted(x * x for x in range(200))


def test_a_second_run_is_another_run_where_the_data_allows_it() -> None:
    found = plan(square, range(30))
    assert [list(found.imap()), list(found.imap())] == [[x * x for x in range(30)]] * 2
    once = plan(square, iter(range(30)))
    assert len(list(once.imap())) == 30
    with pytest.raises(ConfigError, match=r"\.imap\(\): the data is a range_iterator, .*\.imap\(\) has begun"):
        once.imap()


def test_data_begun_by_the_caller_cannot_be_run_as_well() -> None:
    found = plan(square, iter(range(30)))
    assert next(found.data) == 0
    with pytest.raises(ConfigError, match=r"result\.data has begun"):
        found.imap()


def test_an_item_that_failed_when_it_was_tried_fails_in_its_place() -> None:
    run = plan(odd_fails, range(6)).imap()
    assert next(run) == 0
    with pytest.raises(ValueError, match="odd: 1") as caught:
        next(run)
    assert any("1" in note for note in caught.value.__notes__)
    assert list(plan(odd_fails, range(10)).imap(on_error="skip")) == [0, 2, 4, 6, 8]
    failures = list(plan(odd_fails, range(4)).imap(on_error="yield"))
    assert [failures[0], failures[2]] == [0, 2]
    assert (failures[1].index, failures[1].item) == (1, 1)


def test_an_item_that_failed_when_it_was_tried_is_tried_again_where_retries_are_wanted() -> None:
    calls: list[int] = []

    def second_time(x: int) -> int:
        calls.append(x)
        if calls.count(x) < 2:
            raise OSError("not yet")
        return x

    assert list(plan(second_time, range(8)).imap(retries=1)) == list(range(8))
    assert sorted(calls) == sorted([*range(8)] * 2)


def test_what_the_source_raised_while_it_was_tried_comes_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("gone")

    found = plan(square, source())
    assert any("the source raised OSError: gone" in warning for warning in found.warnings)
    run = found.imap()
    assert [next(run), next(run), next(run)] == [0, 1, 4]
    with pytest.raises(OSError, match="gone"):
        next(run)
    assert next(run, "over") == "over"


def test_an_endless_stream_is_run_as_far_as_it_is_asked_for() -> None:
    pulled = itertools.count()
    run = plan(square, pulled, buffer_size=20, backend="thread", n_jobs=2).imap()
    assert list(itertools.islice(run, 100)) == [x * x for x in range(100)]
    run.close()
    assert next(pulled) < 100 + 20 + 10


def test_settings_of_the_run_win_over_the_plan() -> None:
    func = Calls()
    found = plan(func, range(40), backend="thread", n_jobs=4)
    run = found.imap(backend="serial")
    assert list(run) == [x * x for x in range(40)]
    assert func.seen == list(range(40)), "in this thread, one after the other"


@pytest.mark.parametrize(
    "wrong", [{"n_jobs": 0}, {"on_error": "x"}, {"retries": -1}, {"retries": "x"}, {"backend": 3}, {"timeout": 0}]
)
def test_a_run_that_was_refused_costs_nothing(wrong: dict[str, Any]) -> None:
    found = plan(square, iter(range(30)))
    with pytest.raises(ConfigError):
        found.imap(**wrong)
    with pytest.raises(TypeError, match="no_such_argument"):
        found.imap(no_such_argument=1)
    assert list(found.imap()) == [x * x for x in range(30)]


def test_what_was_delivered_is_not_kept_by_the_plan() -> None:
    found = plan(heavy_result, iter(range(8)))
    kept = found._plan
    assert len(list(found.imap())) == 8
    assert kept.source.items == []
    assert [trial.result for trial in kept.samples.trials] == [None] * 5


def test_workers_that_share_memory_are_planned_with_the_items_themselves() -> None:
    data: list[list[int]] = [[] for _ in range(8)]
    found = plan(append, data, backend="serial")
    assert data[:5] == [[0]] * 5
    assert len(list(found.imap())) == 8
    assert data == [[0]] * 8


def test_items_the_function_changes_are_not_changed_by_planning() -> None:
    data: list[list[int]] = [[] for _ in range(8)]
    found = plan(append, data)
    assert data == [[]] * 8
    with ThreadPool(2) as pool:
        assert pool.map(append, found.data) == [[0]] * 8


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_is_run_whole_by_workers_that_read_it(tmp_path: Path, backend: str, shuffle: bool) -> None:
    place = datasets.write(tmp_path / "data", 60, size=5000, chunk_size=7)
    with StreamingDataset(place, shuffle=shuffle, seed=3) as dataset:
        found = plan(text_of, dataset, backend=backend, n_jobs=1 if backend == "serial" else 2)
        assert found.data is dataset
        run = found.imap()
        texts = list(run)
        assert run.stats.in_bytes < 60 * 1000, "their numbers were sent, not the items"
        assert len(list(found.imap())) == 60
    with StreamingDataset(place, shuffle=shuffle, seed=3) as again:
        assert texts == [text_of(sample) for sample in again]


def test_a_dataset_that_sampling_saw_the_end_of_is_whole(tmp_path: Path) -> None:
    with StreamingDataset(datasets.write(tmp_path / "data", 6, size=100, chunk_size=4)) as dataset:
        found = plan(text_of, dataset, sample_size=10)
        expected = [text_of(dataset[i]) for i in range(6)]
        assert list(found.imap()) == list(found.imap()) == expected


def test_empty_data_is_a_plan_that_yields_nothing() -> None:
    for data in ([], iter([]), range(0)):
        found = plan(square, data)
        assert (found.n_jobs, found.chunksize, found.warnings, found.reason) == (1, 1, [], "The data is empty.")
        assert list(found.imap()) == []


# -- trying a worker ----------------------------------------------------------------------------------------------


def test_a_worker_is_tried_where_its_cost_matters_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from lazystore.parallel.plans import planning

    tried: list[dict[str, bool]] = []

    def measured(make: object, **wanted: bool) -> Costs:
        tried.append(wanted)
        return Costs(0.003, 50e-6, True, True)

    monkeypatch.setattr(planning, "measured_costs", measured)
    monkeypatch.setattr(planning, "usable_cpus", lambda: 2)
    optimize_streaming(square, range(20))
    optimize_streaming(wait, range(2000), sample_size=2)
    optimize_streaming(compute, range(20000), n_jobs=2, backend="thread")
    assert tried == []
    found = optimize_streaming(compute, range(20000), use_chunking_benchmark=False, profile=True)
    assert tried == [{"start": True, "chunks": False}]
    assert found.profile is not None and found.profile.spawn_cost == 0.003
    assert "3.00 ms (measured)" in found.explain()


def test_planning_with_a_worker_takes_little_more_than_the_items() -> None:
    began = time.perf_counter()
    found = optimize_streaming(compute, range(100_000), profile=True)
    took = time.perf_counter() - began
    assert found.profile is not None and found.profile.spawn_cost is not None
    assert took < 5, "a bound against hangs; the document promises 0.2 s"
    assert list(itertools.islice(found.imap(), 20)) == [compute(x) for x in range(20)]


def plan_in_a_daemon(answers: Any) -> None:
    found = optimize_streaming(compute, range(5000))
    answers.put((found.backend, found.warnings))


def test_inside_a_worker_no_further_processes_are_planned() -> None:
    assert list(imap(plan_here, range(2), backend="process", n_jobs=1)) == [("serial", 1)] * 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_where_processes_may_not_be_started_none_are_planned() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=plan_in_a_daemon, args=(answers,), daemon=True)
    child.start()
    backend, warnings = answers.get()
    child.join()
    assert backend != "process"
    assert any("worker processes cannot be started here" in warning for warning in warnings)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("sample_size", value) for value in (0, -1, True, 2.5, "5", None, 10_001)],
        *[("target_chunk_duration", value) for value in (0, -1.0, float("nan"), float("inf"), "1", None, True, 3601)],
        *[("prefer_ordered", value) for value in ("yes", 2, [])],
        *[(name, value) for name in ("buffer_size", "n_jobs", "chunksize") for value in (0, -2, True, 1.5, "4")],
        *[("max_buffer_bytes", value) for value in (0, -1, "lots", 1.5)],
        *[("backend", value) for value in ("fork", None, 3, "")],
        *[("data", value) for value in (None, 7, square)],
        *[("func", value) for value in (None, 7, "square")],
    ],
)
def test_an_argument_that_cannot_work_is_named(name: str, value: object) -> None:
    arguments: dict[str, Any] = {"func": square, "data": range(10), name: value}
    with pytest.raises(ConfigError, match=name):
        optimize_streaming(**arguments)


def test_serial_and_several_workers_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"n_jobs=2 and backend=\"serial\""):
        plan(square, range(9), n_jobs=2, backend="serial")


def test_numbers_of_other_kinds_are_numbers_too() -> None:
    numpy = pytest.importorskip("numpy")
    found = plan(square, range(100), n_jobs=numpy.int64(2), target_chunk_duration=numpy.float32(0.5), backend="process")
    assert type(found.n_jobs) is int


def test_nothing_is_called_when_an_argument_is_refused() -> None:
    func = Calls()
    with pytest.raises(ConfigError):
        plan(func, range(9), n_jobs=0)
    assert func.seen == []


def test_a_function_that_only_lives_here_is_planned_and_run_here() -> None:
    func = Calls(compute)
    found = plan(func, range(60), n_jobs=2)
    assert found.backend == "thread"
    assert any("func does not pickle" in warning for warning in found.warnings)
    assert len(list(found.imap())) == 60, "and no process is tried, with a warning, on the way"
    assert sorted(func.seen) == list(range(60))
