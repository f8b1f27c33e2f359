"""A store is judged by what happened in the last minute, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.lazy import health as module
from lazystore.lazy.health import ENOUGH, THRESHOLDS, WINDOW_S, HealthWindow


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: found[0])
    return found


def counted(**given: Any) -> dict[str, Any]:
    return {"memory_limit": 1000, "memory_used": 1000, "disk_health": "ok", "closed": False, **given}


def judged(thresholds: dict[str, float] | None = None, **given: Any) -> tuple[str, list[str]]:
    found = HealthWindow().judge(counted(**given), thresholds)
    return found["status"], found["reasons"]


def test_nothing_that_happened_is_no_reason() -> None:
    assert judged() == ("ok", [])
    found = HealthWindow().judge({})
    assert found["status"] == "ok" and found["window"]["hit_ratio"] == 0.0 and found["timestamp"] > 0


@pytest.mark.parametrize(
    ("errors", "status"), [(0, "ok"), (10, "ok"), (11, "degraded"), (50, "degraded"), (51, "failing"), (100, "failing")]
)
def test_the_share_of_loads_that_failed(errors: int, status: str) -> None:
    assert judged(loads=100, load_errors=errors)[0] == status


def test_a_few_loads_say_something_only_if_all_of_them_failed() -> None:
    assert judged(loads=ENOUGH - 1, load_errors=ENOUGH - 2) == ("ok", [])
    assert judged(loads=1, load_errors=1) == ("failing", ["100% of 1 loads failed"])


def test_slow_loads_degrade() -> None:
    status, reasons = judged(loads=4, load_seconds=10.0)
    assert status == "degraded" and reasons == ["a load takes 2.50 s on average"]


def test_the_hit_ratio_counts_only_if_asked_for_and_once_there_is_enough() -> None:
    assert judged(requests=100, misses=100)[0] == "ok"
    assert judged({"hit_ratio": 0.5}, requests=ENOUGH - 1, misses=ENOUGH - 1)[0] == "ok"
    assert judged({"hit_ratio": 0.5}, requests=100, hits=49, misses=51)[0] == "degraded"
    assert judged({"hit_ratio": 0.5}, requests=100, hits=20, joins=20, misses=60, disk_hits=10)[0] == "ok"


def test_disk_hits_of_loads_ahead_serve_no_request() -> None:
    found = HealthWindow().judge(counted(requests=100, hits=90, misses=10, disk_hits=500))
    assert found["window"]["hit_ratio"] == 1.0


def test_a_full_cache_is_well_and_one_beyond_its_budget_is_not() -> None:
    assert judged(memory_used=1000)[0] == "ok"
    assert judged(memory_used=1001)[0] == "failing"
    status, reasons = judged({"memory_share": 0.5}, memory_used=501)
    assert status == "degraded" and "501 bytes" in reasons[0] and "50%" in reasons[0]


def test_a_disk_tier_that_is_off_and_a_closed_store() -> None:
    assert judged(disk_health="no space left") == ("degraded", ["disk tier: no space left"])
    assert judged(closed=True, disk_health="gone") == ("failing", ["the store is closed", "disk tier: gone"])


def test_an_unknown_threshold_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"no hit_rate, speed; known: .*hit_ratio"):
        judged({"speed": 1, "hit_rate": 1})
    assert judged(dict(THRESHOLDS))[0] == "ok"


def test_what_is_longer_ago_than_the_window_is_forgotten(now: list[float]) -> None:
    window = HealthWindow()
    assert window.judge(counted(loads=100, load_errors=100))["status"] == "failing"
    now[0] += 2
    found = window.judge(counted(loads=100, load_errors=100))
    assert found["status"] == "ok" and found["window"]["seconds"] == 2.0
    for _ in range(200):
        now[0] += 1.0
        found = window.judge(counted(loads=100, load_errors=100))
        assert found["window"]["seconds"] <= WINDOW_S + 1.0
    now[0] += 1.0
    again = window.judge(counted(loads=130, load_errors=130))
    assert again["status"] == "failing" and again["window"]["loads"] == 30


def test_a_look_after_a_long_time_goes_back_to_the_last_one(now: list[float]) -> None:
    window = HealthWindow()
    window.judge(counted(loads=10))
    now[0] += 3600
    found = window.judge(counted(loads=50, load_errors=40))
    assert found["window"]["loads"] == 40 and found["window"]["seconds"] == 3600
    assert found["status"] == "failing"


def test_looks_in_quick_succession_cost_no_memory_of_the_past(now: list[float]) -> None:
    window = HealthWindow()
    window.judge(counted(loads=0))
    for _ in range(1000):
        now[0] += 0.01
        found = window.judge(counted(loads=100, load_errors=100))
    assert found["status"] == "failing" and found["window"]["loads"] == 100


def test_counters_that_were_taken_back_are_no_negative_numbers(now: list[float]) -> None:
    window = HealthWindow()
    window.judge(counted(requests=50, hits=50))
    now[0] += 5
    assert window.judge(counted(requests=10, hits=10))["window"]["requests"] == 0
