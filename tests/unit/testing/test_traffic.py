from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from lazystore.testing.traffic import BURST_S, Pacer, Traffic, dependent_waves

sizes = st.integers(1, 1 << 20)


@given(st.integers(1000, 10**9), st.lists(st.tuples(sizes, st.floats(0, 0.1)), min_size=1, max_size=60))
def test_the_limit_is_never_exceeded(rate, asked):
    pacer, now = Pacer(rate), 100.0
    granted = []
    for size, pause in asked:
        now += pause
        granted.append((now + pacer.reserve(size, now), size))
    for i, (start, _) in enumerate(granted):
        for j in range(i, len(granted)):
            # All but the last piece must have had their time on the wire before the last one starts.
            moved = sum(size for _, size in granted[i:j])
            assert moved <= rate * (granted[j][0] - start + BURST_S) * (1 + 1e-6) + 1


@given(st.integers(1000, 10**9), st.lists(sizes, min_size=1, max_size=60))
def test_the_limit_is_fully_used_while_there_is_work(rate, pieces):
    pacer = Pacer(rate)
    last = max(5.0 + pacer.reserve(size, 5.0) for size in pieces)
    assert last <= 5.0 + sum(pieces[:-1]) / rate + 1e-6


@given(st.lists(sizes))
def test_without_a_limit_nothing_waits(pieces):
    pacer = Pacer(None)
    assert all(pacer.reserve(size, 1.0) == 0.0 for size in pieces)


def entry(received, finished):
    return {"received": received, "finished": finished}


def test_parallel_requests_are_one_wave_and_a_chain_is_many():
    assert dependent_waves([]) == 0
    assert dependent_waves([entry(0.0, 1.0), entry(0.1, 1.2), entry(0.2, 1.1)]) == 1
    assert dependent_waves([entry(i, i + 0.9) for i in range(5)]) == 5
    assert dependent_waves([entry(0.0, 1.0), entry(0.5, None), entry(1.5, None)]) == 2


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 3)), max_size=12))
def test_waves_are_the_longest_chain(spans):
    log = [entry(start, start + length) for start, length in spans]
    longest: dict[int, int] = {}
    for i in sorted(range(len(log)), key=lambda i: log[i]["received"]):
        before = [longest[j] for j in longest if log[j]["finished"] <= log[i]["received"]]
        longest[i] = 1 + max(before, default=0)
    assert dependent_waves(log) == max(longest.values(), default=0)


def test_traffic_counts_and_forgets():
    traffic = Traffic(log=2, now=10.0)
    first = traffic.begin("GET", "/b/1", 11.0)
    second = traffic.begin("HEAD", "/b/2", 11.5)
    traffic.status(first, 206)
    traffic.sent(first, 100)
    traffic.fault(first, "cut")
    traffic.finish(first, 12.0)
    traffic.finish(first, 13.0)  # a second end of the same request changes nothing
    traffic.begin("GET", "/b/3", 12.5)
    seen = json.loads(json.dumps(traffic.snapshot()))
    assert seen["requests"] == {"GET": 2, "HEAD": 1}
    assert (seen["gets"], seen["bytes_sent"], seen["faults"]) == (2, 100, {"cut": 1})
    assert (seen["in_flight"], seen["peak_concurrent"]) == (2, 2)
    assert [e["path"] for e in seen["log"]] == ["/b/2", "/b/3"]
    assert seen["log_dropped"] == 1
    traffic.reset(20.0)
    traffic.finish(second, 21.0)
    after = traffic.snapshot()
    assert (after["gets"], after["log"], after["in_flight"], after["bytes_sent"]) == (0, [], 1, 0)
