"""Streaming optimization as its guide shows it: each of its code blocks has a test here that makes the same calls,
with the same names and arguments, on work made on the spot.
"""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterator
from multiprocessing import Pool
from typing import Any

import pytest
from support.stream_work import compute as expensive_function
from support.stream_work import digest, heavy_result, numpy_heavy_function, unlike
from support.stream_work import square as process_item

from lazystore import StreamingOptimizationResult, optimize_streaming
from lazystore.parallel import DiagnosticProfile, OptimizationResult, optimize, process_in_batches

# Python 3.12 and 3.13 fork, and warn where any thread was left by another test.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FIELDS = ("n_jobs", "chunksize", "use_ordered", "reason", "estimated_speedup", "warnings", "data", "profile")


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of two: what is shown does not depend on how many there are."""
    monkeypatch.setenv("LAZYSTORE_MAX_CPUS", "2")


# -- when to use which ----------------------------------------------------------------------


def test_the_three_approaches_give_the_same_results() -> None:
    data = range(60)
    expected = [digest(x) for x in data]

    plan = optimize(digest, data)
    with Pool(plan.n_jobs) as pool:
        assert pool.map(digest, plan.data, chunksize=plan.chunksize) == expected
    assert process_in_batches(digest, data, batch_size=25, max_memory_percent=0.5) == expected
    assert list(optimize_streaming(digest, data).imap()) == expected


# -- basic usage ----------------------------------------------------------------------------


def test_basic_usage_a_plan_for_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    data = range(120)
    result = optimize_streaming(expensive_function, data, verbose=True)
    assert "items" in capsys.readouterr().out

    processed = []
    with Pool(result.n_jobs) as pool:
        if result.use_ordered:
            iterator = pool.imap(expensive_function, result.data, chunksize=result.chunksize)
        else:
            iterator = pool.imap_unordered(expensive_function, result.data, chunksize=result.chunksize)
        for item in iterator:
            processed.append(item)
    assert processed == [expensive_function(x) for x in data]


# -- API reference --------------------------------------------------------------------------


def test_reference_the_arguments_have_their_names_order_and_defaults() -> None:
    parameters = inspect.signature(optimize_streaming).parameters
    documented = {
        "func": inspect.Parameter.empty,
        "data": inspect.Parameter.empty,
        "sample_size": 5,
        "target_chunk_duration": 0.2,
        "prefer_ordered": None,
        "buffer_size": None,
        "verbose": False,
        "use_spawn_benchmark": True,
        "use_chunking_benchmark": True,
        "profile": False,
    }
    assert dict(itertools.islice(((name, each.default) for name, each in parameters.items()), 10)) == documented
    assert list(parameters)[:10] == list(documented)

    result = optimize_streaming(
        digest,
        range(100),
        sample_size=5,
        target_chunk_duration=0.2,
        prefer_ordered=None,
        buffer_size=None,
        verbose=False,
        use_spawn_benchmark=True,
        use_chunking_benchmark=True,
        profile=False,
    )
    assert isinstance(result, StreamingOptimizationResult)
    for name in FIELDS:
        assert hasattr(result, name)
    assert (result.data, result.profile) == (range(100), None)


def test_differences_optimize_considers_the_memory_of_results_and_streaming_does_not() -> None:
    everything = optimize(heavy_result, range(10**8), n_jobs=2)
    one_by_one = optimize_streaming(heavy_result, range(10**8), n_jobs=2)
    assert isinstance(everything, OptimizationResult)
    assert any("available" in warning for warning in everything.warnings)
    assert not any("available" in warning for warning in one_by_one.warnings)
    assert hasattr(one_by_one, "use_ordered") and not hasattr(everything, "use_ordered")


# -- examples -------------------------------------------------------------------------------


def test_example_1_basic_streaming() -> None:
    data = range(1000)
    result = optimize_streaming(process_item, data, verbose=True)
    saved = []
    with Pool(result.n_jobs) as pool:
        if result.use_ordered:
            iterator = pool.imap(process_item, result.data, chunksize=result.chunksize)
        else:
            iterator = pool.imap_unordered(process_item, result.data, chunksize=result.chunksize)
        for item in iterator:
            saved.append(item)
    assert saved == [x * x for x in data]


def test_example_2_an_endless_stream() -> None:
    fetched = itertools.count()

    def data_generator() -> Iterator[int]:
        while next(fetched) < 3000:  # a Pool pulls as far as it can: an endless one would fill the memory
            yield next(fetched) // 2

    result = optimize_streaming(process_item, data_generator(), sample_size=10)
    handled = []
    with Pool(result.n_jobs) as pool:
        iterator = pool.imap_unordered(process_item, result.data, chunksize=result.chunksize)
        for item in iterator:
            handled.append(item)
    assert sorted(handled) == [x * x for x in range(1500)]


def test_example_2_an_endless_stream_that_is_pulled_only_as_far_as_it_is_used() -> None:
    pulled = itertools.count()
    result = optimize_streaming(process_item, pulled, sample_size=10, buffer_size=100)
    with result.imap() as iterator:
        assert list(itertools.islice(iterator, 500)) == [x * x for x in range(500)]
    assert next(pulled) < 2000


def test_example_3_ordered_or_not() -> None:
    data = range(300)
    result_ordered = optimize_streaming(process_item, data, prefer_ordered=True)
    result_unordered = optimize_streaming(process_item, data, prefer_ordered=False)
    result_auto = optimize_streaming(process_item, data, prefer_ordered=None)
    assert (result_ordered.use_ordered, result_unordered.use_ordered, result_auto.use_ordered) == (True, False, True)
    expected = [x * x for x in data]
    assert list(result_ordered.imap()) == list(result_auto.imap()) == expected
    assert sorted(result_unordered.imap()) == expected


def test_example_4_progress() -> None:
    data = list(range(1000))
    total = len(data)
    result = optimize_streaming(process_item, data)
    lines = []
    with Pool(result.n_jobs) as pool:
        iterator = pool.imap_unordered(process_item, data, chunksize=result.chunksize)
        processed = 0
        for _item in iterator:
            processed += 1  # noqa: SIM113
            if processed % 100 == 0:
                lines.append(f"Progress: {processed}/{total} ({processed / total * 100:.0f}%)")
    assert lines[-1] == "Progress: 1000/1000 (100%)"
    assert len(lines) == 10


def test_example_5_a_diagnostic_profile(capsys: pytest.CaptureFixture[str]) -> None:
    result = optimize_streaming(expensive_function, range(500), sample_size=10, profile=True, verbose=True)
    print(result.explain())
    assert result.reason in capsys.readouterr().out
    assert isinstance(result.profile, DiagnosticProfile)
    assert float(f"{result.profile.avg_execution_time:.3f}") > 0
    assert f"Physical cores: {result.profile.physical_cores}"
    assert f"{result.profile.estimated_speedup:.2f}" == f"{result.estimated_speedup:.2f}"
    assert result.profile.sample_count == 10


# -- memory ---------------------------------------------------------------------------------


def test_memory_large_results_one_at_a_time() -> None:
    image_paths = range(12)
    result = optimize_streaming(heavy_result, image_paths)
    saved = 0
    with Pool(result.n_jobs) as pool:
        for processed_img in pool.imap_unordered(heavy_result, result.data, result.chunksize):
            saved += len(processed_img)
    assert saved == sum(2_000_000 + x for x in image_paths)
    assert sum(len(image) for image in result.imap()) == saved


# -- together with ... ----------------------------------------------------------------------


def test_nested_parallelism_loading_a_library_costs_no_workers() -> None:
    pytest.importorskip("numpy")
    result = optimize_streaming(numpy_heavy_function, [64] * 200, verbose=True, n_jobs=None)
    assert [round(value) for value in itertools.islice(result.imap(), 20)] == [64**3] * 20
    # small products use one thread: nothing is said about threads that are not there
    assert not any("nested parallelism" in warning for warning in result.warnings)


def test_heterogeneous_items_shrink_chunks() -> None:
    result = optimize_streaming(unlike, range(150), sample_size=10, profile=True)
    assert result.profile is not None
    assert result.profile.coefficient_of_variation is not None
    assert result.profile.coefficient_of_variation > 0.5
    assert result.profile.is_heterogeneous
    assert list(result.imap()) == [unlike(x) for x in range(150)]


def test_generators_are_preserved() -> None:
    def data_generator() -> Iterator[int]:
        yield from range(2000)

    result = optimize_streaming(process_item, data_generator())
    handled = []
    with Pool(result.n_jobs) as pool:
        for item in pool.imap(process_item, result.data, result.chunksize):
            handled.append(item)
    assert handled == [x * x for x in range(2000)]


# -- troubleshooting ------------------------------------------------------------------------


def test_insufficient_speedup_means_serial() -> None:
    result = optimize_streaming(process_item, range(50))
    assert (result.n_jobs, result.backend) == (1, "serial")
    assert "insufficient speedup" in result.reason


def test_inner_threads_are_limited_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    monkeypatch.setitem(os.environ, "MKL_NUM_THREADS", "1")
    result = optimize_streaming(expensive_function, range(200))
    assert result.warnings == [] or not any("nested" in warning for warning in result.warnings)


def test_items_processed_at_once_are_not_kept() -> None:
    kept: list[Any] = []
    result = optimize_streaming(heavy_result, range(30), backend="thread", n_jobs=2, max_buffer_bytes="8MB")
    for item in result.imap():
        kept[:] = [len(item)]
    assert kept == [2_000_000 + 29]
