"""Time: the machine's, and one set by hand."""

from __future__ import annotations

import asyncio
import pickle
import time

import pytest

from lazystore.cache.clock import Clock
from lazystore.errors import ConfigError
from lazystore.testing import FakeClock


def test_the_clock_shows_the_machines_time() -> None:
    clock = Clock()
    assert abs(clock.monotonic() - time.monotonic()) < 5
    assert abs(clock.time() - time.time()) < 5
    before = clock.monotonic_ns()
    clock.sleep(0.001)
    asyncio.run(clock.asleep(0.001))
    assert clock.monotonic_ns() - before >= 2_000_000


def test_a_fake_clock_stands_still_until_told() -> None:
    clock = FakeClock(10.0, wall=100.0)
    assert (clock.monotonic(), clock.monotonic_ns(), clock.time()) == (10.0, 10_000_000_000, 100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (12.5, 102.5)


def test_sleeping_on_a_fake_clock_takes_no_time_and_moves_it_on() -> None:
    clock = FakeClock(0.0, wall=0.0)
    began = time.monotonic()
    clock.sleep(3600)
    asyncio.run(clock.asleep(3600))
    assert time.monotonic() - began < 60
    assert clock.monotonic() == clock.time() == 7200


def test_only_the_wall_clock_of_a_fake_one_can_be_set_back() -> None:
    clock = FakeClock(5.0, wall=100.0)
    clock.set_wall(50.0)
    assert (clock.monotonic(), clock.time()) == (5.0, 50.0)
    with pytest.raises(ConfigError, match="set_wall"):
        clock.advance(-1)


def test_a_fake_clock_pickles_with_its_time() -> None:
    clock = FakeClock(1.0, wall=2.0)
    clock.advance(1.0)
    copy = pickle.loads(pickle.dumps(clock))
    assert (copy.monotonic(), copy.time()) == (2.0, 3.0)
