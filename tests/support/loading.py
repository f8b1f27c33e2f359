"""Loads with all they need, checked to leave nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lazystore.cache.bridge import Bridge
from lazystore.cache.loads import Loads
from lazystore.cache.workers import Workers

NAME = "lazystore-test-loads"


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for what other threads do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def joined(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "still waiting"


def outcome(work: Callable[[], Any]) -> Any:
    """What it returns, or the exception it raises."""
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - compared by the test
        return error


@contextmanager
def opened(workers: int = 4, concurrency: int = 10, grace: float = 10) -> Iterator[Loads]:
    """Loads; at the end nothing may be under way, hold a slot, or run."""
    pool = Workers(workers, NAME)
    bridge = Bridge(pool)
    loads = Loads(bridge, concurrency=concurrency)
    try:
        yield loads
    finally:
        loads.close(grace)
        ended = pool.close(grace)
        bridge.close()
    until(lambda: loads.slots.held == 0)
    assert not loads.flights.under_way() and ended
    assert not [t.name for t in threading.enumerate() if t.name.startswith((NAME, "lazystore-bridge"))]
