"""Plans for `Pool.map`: as plans for streams, and all results must fit."""

from __future__ import annotations

import itertools
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from support.stream_work import compute, heavy_result, odd_fails, square, wait

from lazystore.errors import ConfigError
from lazystore.parallel.plans import pool_map
from lazystore.parallel.plans.pool_map import OptimizationResult, optimize
from lazystore.parallel.plans.profile import DiagnosticProfile


def plan(func: Any, data: Any, **options: Any) -> OptimizationResult:
    return optimize(func, data, use_spawn_benchmark=False, use_chunking_benchmark=False, **options)


def test_a_plan_for_map_has_its_fields_and_runs() -> None:
    found = plan(square, range(300), n_jobs=2, backend="thread", profile=True)
    assert (found.n_jobs, found.executor_type, found.data) == (2, "thread", range(300))
    assert found.chunksize >= 1
    assert isinstance(found.profile, DiagnosticProfile)
    assert found.map() == [x * x for x in range(300)]
    with ThreadPool(found.n_jobs) as pool:
        assert pool.map(square, found.data, chunksize=found.chunksize) == [x * x for x in range(300)]


def test_each_worker_gets_several_chunks_and_there_are_no_more_workers_than_items() -> None:
    found = plan(compute, range(100), n_jobs=2, backend="process")
    assert found.chunksize <= 100 / (4 * 2)
    assert plan(wait, range(3)).n_jobs <= 3


def test_results_that_will_not_fit_are_a_warning() -> None:
    found = plan(heavy_result, range(10**9), profile=True)
    assert found.profile is not None
    assert found.profile.estimated_result_memory == pytest.approx(2e15, rel=0.01)
    assert any("about 2000.0" in warning and "optimize_streaming" in warning for warning in found.warnings)
    assert not any("all results" in warning for warning in plan(heavy_result, range(20)).warnings)


@pytest.mark.parametrize(("results", "available", "warned"), [(51, 100, True), (50, 100, False), (None, 100, False)])
def test_more_than_half_of_the_memory_is_much(results: int | None, available: int, warned: bool) -> None:
    profile = DiagnosticProfile(total_items=9, estimated_result_memory=results, available_memory=available)
    assert bool(pool_map.memory_warnings(profile)) == warned


def test_data_of_unknown_length_is_a_warning() -> None:
    found = plan(square, itertools.count())
    assert any("nothing tells how many items there are" in warning for warning in found.warnings)


def test_an_iterator_is_mapped_whole_and_once() -> None:
    found = plan(square, iter(range(40)))
    assert found.map() == [x * x for x in range(40)]
    with pytest.raises(ConfigError, match="only once"):
        found.map()
    assert sum(plan(square, iter(range(40))).data) == sum(range(40))


def test_an_item_that_failed_ends_the_map() -> None:
    with pytest.raises(ValueError, match="odd: 1"):
        plan(odd_fails, range(10)).map()
    assert plan(odd_fails, range(10)).map(on_error="skip") == [0, 2, 4, 6, 8]


def test_a_plan_for_map_shows_and_explains_itself() -> None:
    found = plan(compute, range(1000), n_jobs=2)
    assert repr(found).startswith("OptimizationResult(n_jobs=2, chunksize=")
    text = found.explain()
    assert found.reason in text
    assert f"pool.map(func, result.data, chunksize={found.chunksize})" in text
    assert "all results together" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("sample_size", 0), ("n_jobs", -1), ("chunksize", 0), ("backend", "x"), ("func", None), ("data", None)],
)
def test_an_argument_that_cannot_work_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        optimize(**({"func": square, "data": [1]} | {name: value}))  # type: ignore[arg-type]
