"""What is counted in a store, under which kind, and what is said of slow loads."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from lazystore.cache.keys import Kind
from lazystore.lazy import events as module
from lazystore.lazy.events import Events, kind_of
from lazystore.lazy.strategy import Strategy


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ((Kind.PAGE, 1), "page"), ((Kind.CHUNK, "x"), "chunk"), ((Kind.LOAD, "x", "y"), "load"),
        ((), "value"), ("page", "value"), (("page", 1), "value"), (Kind.PAGE, "value"), (7, "value"), (None, "value"),
    ],
)  # fmt: skip
def test_only_our_own_keys_have_kinds(key: object, kind: str) -> None:
    assert kind_of(key) == kind


def test_every_strategy_is_told_of_and_no_alias_twice() -> None:
    events = Events("store", 1.0)
    assert events.snapshot()["operations"] == dict.fromkeys([each.value for each in Strategy], 0)
    events.operation(Strategy.IMMEDIATE)
    events.operation(Strategy.EAGER)
    assert events.snapshot()["operations"]["eager"] == 2
    assert len(events.snapshot()["operations"]) == len(Strategy)


def test_loads_seconds_and_errors_are_kept_by_kind() -> None:
    events = Events("store", 10.0)
    events.loaded((Kind.PAGE, 1), 0.25, 10, None)
    events.loaded((Kind.PAGE, 2), 0.5, 0, OSError("down"))
    events.loaded("key", 0.125, 10, None)
    found = events.snapshot()
    assert found["loads_by_kind"] == {"page": 2, "value": 1}
    assert found["load_seconds_by_kind"] == {"page": 0.75, "value": 0.125}
    assert found["errors_by_kind"] == {"page": 1}
    assert found["slow_loads"] == 0


def test_a_snapshot_stays_as_it_was_taken() -> None:
    events = Events("store", 1.0)
    before = events.snapshot()
    events.loaded("key", 0.1, 1, None)
    events.chose(Strategy.EAGER, "small")
    events.fell_back()
    assert before["loads_by_kind"] == {} and before["auto_choices"] == {} and before["fallbacks"] == 0
    assert events.snapshot()["auto_choices"] == {"EAGER: small": 1}
    assert events.snapshot()["fallbacks"] == 1


def test_slow_loads_are_all_counted_and_told_of_once_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    events = Events("shop", 0.5)
    with caplog.at_level(logging.WARNING, logger="lazystore"):
        events.loaded("quick", 0.5, 3, None)
        assert caplog.messages == []
        events.loaded("turtle", 0.75, 3, None)
        events.loaded("snail", 2.0, 3, None)
        now[0] += module.LOG_EVERY
        events.loaded("sloth" * 1000, 3.0, 0, OSError("down"))
    first, second = caplog.messages
    assert "shop" in first and "turtle" in first and "0.75 s" in first and "3 bytes" in first
    assert "failed" in second and "3 slow" in second and len(second) < 400, "a key does not flood the log"
    assert events.snapshot()["slow_loads"] == 3


def test_nothing_is_slow_where_slow_is_endless(caplog: pytest.LogCaptureFixture) -> None:
    events = Events("store", float("inf"))
    with caplog.at_level(logging.WARNING, logger="lazystore"):
        events.loaded("key", 1e9, 1, None)
    assert caplog.messages == [] and events.snapshot()["slow_loads"] == 0


def test_threads_lose_no_count() -> None:
    events = Events("store", 1.0)

    def work() -> None:
        for _ in range(2000):
            events.operation(Strategy.LAZY)
            events.loaded("key", 0.5, 1, None)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    found = events.snapshot()
    assert found["operations"]["lazy"] == found["loads_by_kind"]["value"] == 8000
    assert found["load_seconds_by_kind"]["value"] == 4000.0
