"""How chunks, windows and kinds of workers follow from what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.parallel.scheduling.tuner import (
    CHUNK_BYTES,
    LATENCY_S,
    MOST_AHEAD,
    MOST_ITEMS,
    MOST_THREADS,
    WORTH,
    Flow,
    Kind,
    Limits,
    chunk_items,
    estimate,
    serial_block,
    threads_for,
    window_items,
)

LIMITS = Limits(cpus=8)
seconds = st.floats(0.0, 100.0)
weights = st.floats(0.0, 1e12)
flows = st.builds(
    Flow,
    run_s=seconds,
    longest_s=seconds,
    source_s=seconds,
    consumer_s=seconds,
    cpu_share=st.floats(0.0, 1.0),
    held_share=st.floats(0.0, 1.0),
    pickle_s=seconds,
    in_bytes=weights,
    out_bytes=weights,
)
limits = st.builds(
    Limits,
    cpus=st.integers(1, 512),
    workers=st.integers(0, 512),
    chunk=st.just(0),
    bytes=st.integers(0, 1 << 40),
    ahead=st.integers(0, 1000),
)
kinds = st.sampled_from(["process", "thread"])


# -- chunks -----------------------------------------------------------------------------------------------------------


@given(flows, limits, st.integers(1, 512), kinds, st.floats(0.0, 10.0), st.one_of(st.none(), st.integers(0, 1 << 40)))
def test_a_chunk_has_at_least_one_item_and_keeps_within_every_cap(
    flow: Flow, limit: Limits, workers: int, kind: Kind, overhead_s: float, remaining: int | None
) -> None:
    items = chunk_items(flow, limit, workers, kind=kind, overhead_s=overhead_s, remaining=remaining)
    assert 1 <= items <= MOST_ITEMS
    if items > 1:
        assert items * flow.run_s <= LATENCY_S * (1 + 1e-9)
        assert items * max(flow.in_bytes, flow.out_bytes) <= CHUNK_BYTES
        assert (
            items * max(flow.in_bytes, flow.out_bytes) * workers * 4 <= limit.bytes
            or not flow.in_bytes + flow.out_bytes
        )
        assert remaining is None or items <= remaining


@given(flows, st.integers(1, 10_000), st.integers(1, 512), st.integers(0, 10_000))
def test_a_chunk_size_that_was_given_is_used(flow: Flow, given_items: int, workers: int, remaining: int) -> None:
    assert chunk_items(flow, Limits(4, chunk=given_items), workers, remaining=remaining) == given_items


def test_handling_a_chunk_is_a_small_share_of_its_work() -> None:
    for run_s in (2e-6, 1e-5, 1e-4, 1e-3):
        for workers in (1, 2, 8, 64):
            for overhead_s in (0.0, 50e-6, 300e-6):
                items = chunk_items(Flow(run_s), LIMITS, workers, overhead_s=overhead_s)
                work_s, handling_s = items * run_s, max(overhead_s, 100e-6)
                if items < MOST_ITEMS and work_s < 0.99 * LATENCY_S:
                    assert handling_s < 0.05 * work_s + run_s, (run_s, workers, overhead_s)
                    # the caller serves all of them in the time one chunk takes
                    assert workers * handling_s < 0.55 * work_s + run_s, (run_s, workers, overhead_s)


def test_as_much_work_waits_behind_a_chunk_as_was_asked_for_and_no_more_than_is_fair() -> None:
    for run_s in (2e-6, 1e-4, 2e-3):
        items = chunk_items(Flow(run_s), LIMITS, 2, ahead_s=0.01)
        assert min(0.01, MOST_ITEMS * run_s) * 0.99 <= items * run_s <= 0.011
    assert chunk_items(Flow(2e-3), LIMITS, 2, ahead_s=0.01, remaining=4) == 1
    assert chunk_items(Flow(0.02), LIMITS, 2, ahead_s=0.01) == 1


def test_long_items_travel_alone() -> None:
    for run_s in (LATENCY_S, 1.0, 1000.0):
        assert chunk_items(Flow(run_s), LIMITS, 8) == 1


def test_threads_get_smaller_chunks_than_processes() -> None:
    flow = Flow(run_s=50e-6)
    assert chunk_items(flow, LIMITS, 2, kind="thread") < chunk_items(flow, LIMITS, 2)


def test_items_of_unknown_duration_are_not_sent_in_a_chunk_without_end() -> None:
    assert chunk_items(Flow(), LIMITS, 2) == MOST_ITEMS


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("run_s", [2e-6, 1e-4, 1e-3, 0.02])
def test_the_last_chunks_leave_no_worker_behind(workers: int, run_s: float) -> None:
    left, sizes = 20_000, []
    while left:
        sizes.append(chunk_items(Flow(run_s), LIMITS, workers, remaining=left))
        left -= sizes[-1]
    shares = 20_000 * run_s / workers
    handling_s = 100e-6
    # the last round is short against the whole, or against what handing it out takes
    assert sizes[-1] * run_s <= max(0.25 * shares, 2 * workers * handling_s, run_s)
    # and small chunks at the end do not take more than the work itself
    assert len(sizes) * 60e-6 <= max(1.5 * shares, 2 * (20_000 * run_s * 60e-6) ** 0.5 + 0.002)


# -- windows ----------------------------------------------------------------------------------------------------------


@given(flows, limits, st.integers(1, 512), st.integers(0, MOST_ITEMS), st.integers(1, 2))
def test_a_window_has_an_item_for_each_worker_and_an_end(
    flow: Flow, limit: Limits, workers: int, chunk: int, depth: int
) -> None:
    items = window_items(flow, limit, workers, chunk, depth)
    if limit.ahead:
        assert items == limit.ahead
    else:
        assert workers <= items <= max(workers, MOST_AHEAD)
        weight = flow.in_bytes + flow.out_bytes
        assert not weight or items == workers or items * weight <= limit.bytes


def test_a_window_holds_what_workers_do_during_the_slowest_item() -> None:
    even = window_items(Flow(run_s=0.001, longest_s=0.001), LIMITS, 8, 1, 2)
    uneven = window_items(Flow(run_s=0.001, longest_s=0.5), LIMITS, 8, 1, 2)
    assert even >= 8 * 2
    assert uneven - even >= 0.5 / 0.001 * 8 * 0.9


def test_a_window_holds_what_workers_do_during_an_item_that_is_not_done_yet() -> None:
    flow = Flow(run_s=0.001, longest_s=0.001)
    assert window_items(flow, LIMITS, 8, 1, 2, 0.5) == window_items(replace(flow, longest_s=0.5), LIMITS, 8, 1, 2)
    chosen = replace(LIMITS, chunk=1)
    assert window_items(flow, chosen, 8, 1, 2, 0.5) == window_items(flow, chosen, 8, 1, 2)


def test_a_window_of_a_given_size_is_kept() -> None:
    assert window_items(Flow(run_s=0.001, longest_s=5.0), Limits(8, ahead=3), 8, 100, 2) == 3


# -- the caller -------------------------------------------------------------------------------------------------------


@given(flows, limits)
def test_the_caller_takes_a_few_milliseconds_of_work_in_one_go(flow: Flow, limit: Limits) -> None:
    items = serial_block(flow, limit)
    assert 1 <= items <= 512
    if items > 1:
        assert items * (flow.run_s + flow.source_s) <= 0.002 * (1 + 1e-9)
        assert not limit.ahead or items <= limit.ahead
        assert items * flow.in_bytes <= limit.bytes


# -- which kind -------------------------------------------------------------------------------------------------------


def best(flow: Flow, limit: Limits = LIMITS) -> tuple[str, int]:
    found = [estimate(flow, limit, kind) for kind in ("serial", "thread", "process")]
    gain = max(each.gain for each in found)
    chosen = next(each for each in found if each.gain >= gain / 1.1)  # as the probe does: the simpler one of equals
    return (chosen.kind, chosen.workers) if chosen.gain >= WORTH else ("serial", 1)


COMPUTING = Flow(run_s=0.005, longest_s=0.005)


@pytest.mark.parametrize(
    ("flow", "kind"),
    [
        (COMPUTING, "process"),
        (replace(COMPUTING, run_s=20e-6), "process"),
        (replace(COMPUTING, cpu_share=0.02), "thread"),
        (replace(COMPUTING, held_share=0.02), "thread"),
        (replace(COMPUTING, run_s=1e-7), "serial"),
        (replace(COMPUTING, consumer_s=0.5), "serial"),
        (replace(COMPUTING, source_s=0.5), "serial"),
        (replace(COMPUTING, out_bytes=50e6), "serial"),
        (replace(COMPUTING, pickle_s=0.01), "serial"),
        (replace(COMPUTING, out_bytes=50e6, held_share=0.02), "thread"),
        (replace(COMPUTING, pickle_s=0.01, cpu_share=0.02), "thread"),
    ],
)
def test_clear_cases_are_decided_right(flow: Flow, kind: str) -> None:
    assert best(flow)[0] == kind


def test_on_one_processor_only_waiting_pays() -> None:
    one = Limits(cpus=1)
    assert best(COMPUTING, one)[0] == "serial"
    assert best(replace(COMPUTING, cpu_share=0.02), one)[0] == "thread"


@given(flows, limits, st.sampled_from(["serial", "process", "thread"]))
def test_no_kind_promises_more_than_its_workers_and_the_callers_own_part_allow(
    flow: Flow, limit: Limits, kind: Kind
) -> None:
    found = estimate(flow, limit, kind)
    assert found.kind == kind
    assert found.workers >= 1
    outside = flow.source_s + flow.consumer_s
    assert found.item_s >= outside
    assert found.item_s >= (flow.run_s / found.workers) * (1 - 1e-9)
    assert found.item_s >= flow.run_s * flow.cpu_share / max(limit.cpus, 1) * (1 - 1e-9) or kind == "serial"
    total = flow.run_s + outside
    assert found.gain == pytest.approx(total / found.item_s) if total else found.gain == 1.0


@given(flows, limits)
def test_threads_are_as_many_as_were_given_or_as_keep_the_processors_busy(flow: Flow, limit: Limits) -> None:
    threads = threads_for(flow, limit)
    if limit.workers:
        assert threads == limit.workers
    else:
        assert 1 <= threads <= MOST_THREADS
        assert threads <= max(2 * limit.cpus, 2) or flow.cpu_share <= 0.5 or threads == 1


def test_work_that_only_waits_gets_all_threads_and_work_that_computes_one_a_processor() -> None:
    assert threads_for(replace(COMPUTING, cpu_share=0.01), LIMITS) == MOST_THREADS
    assert threads_for(replace(COMPUTING, cpu_share=1.0, held_share=0.01), LIMITS) == 8


def test_a_slow_consumer_needs_no_workers() -> None:
    assert estimate(Flow(run_s=1e-3, consumer_s=1.0), LIMITS, "process").gain < WORTH
