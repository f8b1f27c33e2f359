from __future__ import annotations

import pytest

from lazystore.errors import ConfigError
from lazystore.testing import Faults
from lazystore.testing.buckets import Buckets
from lazystore.testing.service import Service, Settings


def test_settings_change_one_by_one():
    base = Settings.from_dict({"latency_ms": 20, "bandwidth": "200MB", "faults": {"cut": 0.1}})
    assert base == Settings(20, 0.0, 200_000_000, Faults(cut=0.1))
    assert Settings.from_dict({"bandwidth": None}, base) == Settings(20, 0.0, None, Faults(cut=0.1))
    assert Settings.from_dict({"faults": None}, base) == Settings(20, 0.0, 200_000_000, None)


@pytest.mark.parametrize(
    "values",
    [
        {"latency": 1},
        {"latency_ms": -1},
        {"latency_ms": "20"},
        {"latency_ms": float("nan")},
        {"latency_ms": True},
        {"jitter": 99},
        {"bandwidth": "fast"},
        {"bandwidth": 0},
        {"faults": 0.1},
        {"faults": {"cut": 2}},
    ],
)
def test_settings_that_cannot_work_are_refused(values):
    with pytest.raises(ConfigError):
        Settings.from_dict(values)


def test_a_negative_log_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        Service(Buckets(str(tmp_path), {}), Settings(), log=-1)
