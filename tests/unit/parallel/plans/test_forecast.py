"""What plans predict: arithmetic, checked against what it stands for."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.parallel.plans.forecast import Bounds, Costs, Work, best_forecast, chunk_for, forecast

AUTO = ("serial", "thread", "process")
FORK = Costs(0.015, 100e-6)
SPAWN = Costs(0.2, 100e-6)
seconds = st.floats(1e-7, 10.0)
works = st.builds(
    Work,
    run_s=seconds,
    first_extra_s=st.floats(0, 1),
    variation=st.floats(0, 5),
    source_s=st.floats(0, 0.1),
    cpu_share=st.floats(0, 8),
    held_share=st.floats(0, 1),
    pack_in_s=st.floats(0, 0.01),
    unpack_in_s=st.floats(0, 0.01),
    pack_out_s=st.floats(0, 0.01),
    unpack_out_s=st.floats(0, 0.01),
    in_bytes=st.floats(0, 1e8),
    out_bytes=st.floats(0, 1e8),
    total=st.none() | st.integers(1, 10**9),
)
bounds = st.builds(
    Bounds,
    cpus=st.integers(1, 64),
    n_jobs=st.none() | st.integers(1, 64),
    chunksize=st.none() | st.integers(1, 1000),
    target_s=st.floats(1e-3, 10),
    ahead=st.none() | st.integers(1, 10_000),
)
costs = st.builds(Costs, start_s=st.floats(1e-4, 1), chunk_s=st.floats(1e-6, 0.01))


@given(works, costs, bounds)
def test_a_plan_always_has_workers_and_chunks_and_never_predicts_wonders(
    work: Work, cost: Costs, limits: Bounds
) -> None:
    found = best_forecast(work, cost, limits, AUTO)
    assert found.n_jobs >= 1 <= found.chunksize
    assert found.n_jobs == (limits.n_jobs or found.n_jobs)
    assert found.chunksize == (limits.chunksize or found.chunksize)
    assert 0 < found.speedup <= found.n_jobs + 1 + 1e-9  # the caller takes the source's time off them
    if limits.n_jobs is None and work.total is not None:
        assert found.n_jobs <= work.total


@given(works, costs, bounds, st.integers(1, 64))
def test_a_chunk_keeps_to_every_limit(work: Work, cost: Costs, limits: Bounds, n_jobs: int) -> None:
    chunk = chunk_for(work, cost, n_jobs, limits)
    if limits.chunksize is not None:
        assert chunk == limits.chunksize
        return
    if chunk == 1:
        return
    assert chunk * work.run_s <= limits.target_s * 1.001
    assert chunk * max(work.in_bytes, work.out_bytes) <= 4 << 20
    assert work.total is None or chunk * 4 * n_jobs <= work.total
    assert limits.ahead is None or chunk * n_jobs <= limits.ahead


@given(st.floats(1e-7, 0.01), st.floats(0, 5), st.integers(1, 16))
def test_handling_an_unlimited_chunk_takes_a_twentieth_of_its_time_at_most(
    run_s: float, cv: float, n_jobs: int
) -> None:
    work = Work(run_s, variation=cv)
    chunk = chunk_for(work, FORK, n_jobs, Bounds(16, target_s=3600))
    assert FORK.chunk_s <= 0.05 * (chunk + 1) * run_s  # + 1: it is rounded down
    assert chunk == 1 or chunk * run_s <= 2 * 40 * n_jobs * FORK.chunk_s, "and it is no longer than it need be"


def test_the_window_holds_a_chunk_for_every_worker() -> None:
    assert chunk_for(Work(1e-5), FORK, 2, Bounds(2)) > 50
    assert chunk_for(Work(1e-5), FORK, 2, Bounds(2, ahead=100)) == 50


def test_unlike_items_shrink_chunks_and_at_most_to_half() -> None:
    sizes = [chunk_for(Work(1e-5, variation=cv), FORK, 2, Bounds(2)) for cv in (0.0, 0.5, 0.6, 1.0, 3.0)]
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3] == sizes[4]
    assert sizes[3] == pytest.approx(sizes[0] / 2, abs=1)


@pytest.mark.parametrize("cost", [FORK, SPAWN], ids=["fork", "spawn"])
def test_many_quick_items_are_worth_workers_though_one_of_them_is_not(cost: Costs) -> None:
    found = best_forecast(Work(0.001, total=10**6), cost, Bounds(2), AUTO)
    assert (found.kind, found.n_jobs) == ("process", 2)
    assert found.speedup > 1.8


def test_few_items_are_spread_over_all_workers() -> None:
    # by duration alone (0.2 s), one worker would get all forty
    found = best_forecast(Work(0.005, total=40), FORK, Bounds(2), AUTO)
    assert found.n_jobs == 2
    assert found.chunksize <= 5


def test_a_last_round_for_one_worker_is_counted() -> None:
    found = forecast(Work(1.0, total=3), FORK, 2, Bounds(2), kind="process")
    assert found.speedup == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize("total", [1, 3, 10])
def test_work_that_is_done_before_workers_are_up_stays_serial(total: int) -> None:
    found = best_forecast(Work(0.001, total=total), SPAWN, Bounds(8), AUTO)
    assert (found.kind, found.n_jobs, found.speedup) == ("serial", 1, 1.0)


def test_items_that_cost_more_to_carry_than_to_do_stay_serial() -> None:
    packing = {"pack_in_s": 0.001, "unpack_in_s": 0.001, "pack_out_s": 0.001, "unpack_out_s": 0.001}
    assert best_forecast(Work(0.002, **packing), FORK, Bounds(8), AUTO).kind == "serial"


def test_the_caller_bounds_the_useful_workers() -> None:
    # 4 ms of work for 1 ms of the caller's: five workers keep it busy, more would wait
    found = best_forecast(Work(0.004, source_s=0.001), FORK, Bounds(64), AUTO)
    assert 4 <= found.n_jobs <= 6
    assert found.bound == "caller" or found.speedup > 4.5


def test_functions_with_threads_of_their_own_get_as_many_workers_as_leave_room_for_those() -> None:
    found = best_forecast(Work(0.05, cpu_share=4.0, total=1000), FORK, Bounds(8), AUTO)
    assert (found.kind, found.n_jobs) == ("process", 2)


def test_work_that_waits_gets_threads_beyond_the_processors() -> None:
    found = best_forecast(Work(0.01, cpu_share=0.01), FORK, Bounds(2), AUTO)
    assert (found.kind, found.n_jobs) == ("thread", 32)
    assert found.speedup == pytest.approx(32, rel=0.1)


def test_work_that_leaves_the_lock_gets_a_thread_a_processor() -> None:
    found = best_forecast(Work(0.01, held_share=0.02, pack_out_s=1e-4), FORK, Bounds(4), AUTO)
    assert (found.kind, found.n_jobs) == ("thread", 4)


def test_a_lone_worker_gets_chunks_too() -> None:
    found = best_forecast(Work(2e-6, total=10_000), FORK, Bounds(2), AUTO)
    assert found.kind == "serial"
    assert found.chunksize > 100, "for a Pool(1) of the caller's own"


def test_what_was_asked_for_stands_though_it_is_slower() -> None:
    found = best_forecast(Work(1e-6, total=100), SPAWN, Bounds(2, n_jobs=4, chunksize=7), ("process",))
    assert (found.kind, found.n_jobs, found.chunksize) == ("process", 4, 7)
    assert found.speedup < 0.1


@given(works, costs, st.integers(1, 64))
def test_the_parts_of_a_known_run_are_those_of_an_item_times_the_items(work: Work, cost: Costs, cpus: int) -> None:
    if work.total is None:
        return
    found = forecast(work, cost, cpus, Bounds(cpus), kind="process")
    assert found.serial_s == pytest.approx((work.run_s + work.source_s) * work.total)
    assert found.chunks_s == pytest.approx(cost.chunk_s * ceil(work.total / found.chunksize))
    assert found.parallel_s is not None and found.parallel_s >= found.start_s
