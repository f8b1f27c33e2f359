from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.testing import FaultPlan, Faults, FileFaults, faults

RATES = {"error_503": 0.3, "cut": 0.2, "stall": 0.1}


@given(st.integers(), st.permutations([(f"b/k{i}", n) for i in range(6) for n in range(3)]))
def test_decisions_do_not_depend_on_the_order_of_arrival(seed, arrivals):
    def decide(order):
        plan = FaultPlan(RATES, seed=seed)
        found = {}
        for name, _ in order:
            found.setdefault(name, []).append(plan.draw(name, "GET"))
        return found

    assert decide(arrivals) == decide(sorted(arrivals))


def test_another_seed_is_another_run_of_luck():
    runs = {seed: [FaultPlan(RATES, seed=seed).draw(f"b/{i}").kind for i in range(50)] for seed in range(3)}
    assert runs[0] != runs[1] != runs[2] != runs[0]


def test_rates_are_met():
    plan = FaultPlan(RATES, seed=7)
    counts = Counter(plan.draw(f"b/{i}").kind for i in range(20_000))
    for kind, rate in RATES.items():
        assert counts[kind] == pytest.approx(20_000 * rate, rel=0.06)
    assert counts[""] == pytest.approx(20_000 * 0.4, rel=0.06)


def test_repetitions_of_one_request_have_their_own_luck():
    plan = FaultPlan({"cut": 0.5}, seed=1)
    kinds = [plan.draw("b/k", "GET").kind for _ in range(400)]
    assert 150 < kinds.count("cut") < 250


@given(st.integers(), st.text(), st.integers(0, 100))
def test_fractions_lie_in_the_unit_interval_and_certain_faults_always_come(seed, name, begin):
    decision = FaultPlan({"a": 0.25, "b": 0.75}, seed=seed).draw(name, begin)
    assert decision.kind in ("a", "b")
    assert 0.0 <= decision.fraction < 1.0


def test_first_faults_befall_every_request_and_then_stop():
    plan = FaultPlan({"cut": 0.0, "error_503": 0.0}, first=("error_503", "", "cut"))
    for name in ("b/1", "b/2", "b/3"):
        assert [plan.draw(name).kind for _ in range(5)] == ["error_503", "", "cut", "", ""]


def test_only_matching_requests_go_wrong():
    plan = FaultPlan({"cut": 1.0}, only="*.bin")
    assert plan.draw("b/chunk.bin").kind == "cut"
    assert plan.draw("b/index.json").kind == ""


def test_counts_of_repetitions_are_bounded(monkeypatch):
    monkeypatch.setattr(faults, "MAX_COUNTED", 10)
    plan = FaultPlan({"cut": 0.5})
    for i in range(1000):
        plan.draw(i)
    assert len(plan._asked) <= 10


def test_a_plan_goes_on_where_it_was_pickled():
    plan = FaultPlan(RATES, seed=3)
    for _ in range(5):
        plan.draw("b/k")
    copy = pickle.loads(pickle.dumps(plan))
    assert [copy.draw("b/k") for _ in range(20)] == [plan.draw("b/k") for _ in range(20)]


@pytest.mark.parametrize(
    "values",
    [
        {"cut": -0.1},
        {"cut": 1.1},
        {"cut": float("nan")},
        {"cut": "often"},
        {"cut": True},
        {"cut": 0.6, "stall": 0.5},
        {"first": ("nonsense",)},
    ],
)
def test_rates_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError):
        Faults(**values)


def test_file_faults_need_something_to_raise():
    with pytest.raises(ConfigError, match="errors"):
        FileFaults(error=0.1, errors=())


def test_faults_survive_json():
    chosen = Faults(error_503=0.1, cut=0.2, stall=0.3, seed=9, first=("cut",), only="*.bin")
    assert Faults.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="error_500"):
        Faults.from_dict({"error_500": 0.1})
