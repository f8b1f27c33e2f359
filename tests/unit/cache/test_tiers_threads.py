"""The cache under many threads and loops at once: sums stay exact, answers right, and memory bounded."""

from __future__ import annotations

import asyncio
import functools
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lazystore.cache.disk import DiskTier
from lazystore.cache.retries import Retries
from lazystore.cache.tiers import Tiers

THREADS = 16


def storm(work: Any, count: int = THREADS) -> list[Any]:
    """Run ``work(number)`` in so many threads at once; what they return."""
    gate = threading.Barrier(count)
    results: list[Any] = []

    def run(number: int) -> None:
        gate.wait(60)
        try:
            results.append(work(number))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return results


@pytest.mark.parametrize("mode", ["memory", "through", "spill"])
def test_sums_are_exact_after_a_storm(tmp_path: Path, mode: str) -> None:
    disk = DiskTier(tmp_path / "disk", "8MB", mode=mode, codec="none") if mode != "memory" else None
    left: Counter[str] = Counter()
    guard = threading.Lock()

    def on_evict(key: Any, value: Any, cause: str) -> None:
        with guard:
            left[cause] += 1

    tiers = Tiers(memory=60_000, disk=disk, on_evict=on_evict, retries=Retries(attempts=1), ttl=0.02)
    asked: list[int] = []
    loads: list[int] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        count = 0
        for _ in range(250):
            key = chance.randrange(60)
            what = chance.random()
            if what < 0.85:
                count += 1
                loader = functools.partial(load, key, what)
                try:
                    value = tiers.get(key, loader) if what < 0.75 else asyncio.run(tiers.aget(key, loader))
                except LookupError:  # its own load failed, or the one it joined
                    continue
                assert value == bytes([key]) * 1000
            elif what < 0.9:
                tiers.start(key, functools.partial(load, key, 0.5))
            elif what < 0.95:
                tiers.invalidate(key)
            elif what < 0.99:
                tiers.put(key, bytes([key]) * 1000)
            else:
                with tiers.ledger.reserve(10_000, what="window"):
                    pass
        with guard:
            asked.append(count)

    def load(key: int, what: float) -> bytes:
        with guard:
            loads.append(key)
        if 0.74 < what < 0.76:
            raise LookupError(key)
        return bytes([key]) * 1000

    try:
        assert storm(work) == [None] * THREADS
        for flight in tiers.loads.flights.under_way():
            flight.wait_end()
        told: dict[str, Any] = tiers.counters()
        assert told["hits"] + told["misses"] + told["joins"] == told["requests"] == sum(asked)
        entries = [tiers.memory.map.entry(key) for key in tiers.memory.map.keys()]  # noqa: SIM118
        assert tiers.ledger.used == sum(entry[1] for entry in entries if entry)
        assert told["peak"] <= 60_000
        assert told["reserved"] == 0
        assert {cause: told[f"evicted_{cause}"] for cause in left} == dict(left)
        assert told["loads"] == len(loads)
        assert not tiers.ahead
        assert not len(tiers.memory.claims)
    finally:
        tiers.close()
        if disk is not None:
            disk.close()


def test_one_load_for_threads_and_tasks_on_a_cold_key() -> None:
    tiers = Tiers(memory=1 << 20)
    go = threading.Event()
    calls: list[int] = []

    def load() -> int:
        calls.append(1)
        go.wait(60)
        return 5

    def work(number: int) -> Any:
        if number % 2:
            return tiers.get("k", load)

        async def many() -> list[int]:
            return await asyncio.gather(*(tiers.aget("k", load) for _ in range(20)))

        return set(asyncio.run(many()))

    timer = threading.Timer(0.1, go.set)
    timer.start()
    results = storm(work)
    assert all(result in (5, {5}) for result in results)
    assert len(calls) == 1
    told = tiers.counters()
    assert told["hits"] + told["misses"] + told["joins"] == told["requests"] == 8 + 8 * 20
    assert told["misses"] == 1
    tiers.close()


def test_counters_add_up_at_any_moment() -> None:
    tiers = Tiers(memory=1 << 20)
    over = threading.Event()
    wrong: list[Any] = []

    def watch() -> None:
        while not over.is_set():
            told: Any = tiers.counters()
            if told["hits"] + told["misses"] + told["joins"] != told["requests"]:
                wrong.append(told)

    thread = threading.Thread(target=watch)
    thread.start()
    storm(lambda number: [tiers.get((number % 4, key), lambda: 1) for key in range(100)], 8)
    over.set()
    thread.join(60)
    assert not wrong
    assert tiers.counters()["requests"] == 800
    tiers.close()


PROGRAM = """
import resource, sys
from lazystore.cache.tiers import Tiers
tiers = Tiers(memory=32 << 20)
tiers.get("first", lambda: bytes(1000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(200):
    tiers.get(number, lambda: bytes([number]) * (1 << 20))
scale = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale, tiers.counters()["peak"])
tiers.close()
"""


def test_200_mb_through_32_mb_stay_within_32_mb_more() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    grown, peak = map(int, done.stdout.split())
    assert peak <= 32 << 20
    assert grown <= (32 << 20) + (32 << 20)
