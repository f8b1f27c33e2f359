"""Figures shown to people."""

from __future__ import annotations

import pickle

import pytest

from lazystore.parallel.plans.profile import DiagnosticProfile


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (0, "0 ns"), (3e-8, "30 ns"), (2.5e-6, "2.50 us"), (0.0015, "1.50 ms"), (90, "90.00 s")],
)
def test_a_time_is_shown_in_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert DiagnosticProfile.format_time(seconds) == DiagnosticProfile().format_time(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.50 kB"),
        (2e6, "2.00 MB"),
        (5e10, "50.00 GB"),
        (3e12, "3.00 TB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_fits(size: float | None, text: str) -> None:
    assert DiagnosticProfile.format_bytes(size) == text


def test_overhead_is_broken_down_in_percent() -> None:
    profile = DiagnosticProfile(overhead_spawn=0.1, overhead_ipc=0.3, overhead_chunking=0.6)
    assert profile.get_overhead_breakdown() == pytest.approx({"spawn": 10.0, "ipc": 30.0, "chunking": 60.0})
    assert set(DiagnosticProfile().get_overhead_breakdown().values()) == {0.0}


def test_an_explanation_shows_what_is_known_and_claims_nothing_else() -> None:
    assert "no item was tried" in DiagnosticProfile().explain_decision()
    assert "none of them worked" in DiagnosticProfile(sample_count=3).explain_decision()
    text = DiagnosticProfile(sample_count=3, avg_execution_time=0.002, spawn_cost=0.05).explain_decision()
    assert "2.00 ms each" in text
    assert "50.00 ms (assumed)" in text
    assert not {"cpu-bound", "an item:", "a result:", "None"} & {*text.split("\n"), *text.split()}
    measured = DiagnosticProfile(sample_count=3, avg_execution_time=0.002, spawn_cost=0.05, spawn_cost_measured=True)
    assert "50.00 ms (measured)" in measured.explain_decision()


def test_a_profile_is_a_value() -> None:
    profile = DiagnosticProfile(sample_count=2, constraints=["one"])
    assert pickle.loads(pickle.dumps(profile)) == profile
