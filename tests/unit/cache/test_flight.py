"""Waiting for what somebody else fetches: deadlines that end, and news that wakes."""

from __future__ import annotations

import threading

from lazystore.cache.flight import Arrivals, Deadline


def test_a_deadline_counts_down_and_never_below_zero() -> None:
    deadline = Deadline(60)
    first = deadline.left()
    assert 0 < first <= 60
    assert deadline.left() <= first
    assert not deadline.passed()
    gone = Deadline(0)
    assert gone.passed()
    assert gone.left() == 0.0
    assert Deadline(-5).left() == 0.0
    assert gone.timeout == 0


def test_a_wait_ends_at_the_deadline() -> None:
    deadline = Deadline(0.05)
    arrivals = Arrivals()
    while not deadline.passed():
        arrivals.wait(deadline)
    arrivals.wait(deadline)  # and at once when it is over


def test_news_wakes_every_waiter() -> None:
    arrivals, deadline = Arrivals(), Deadline(30)
    done = threading.Event()
    woken = []

    def wait(name: int) -> None:
        while not done.is_set():
            arrivals.wait(deadline)
        woken.append(name)

    threads = [threading.Thread(target=wait, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    done.set()
    arrivals.announce()
    for thread in threads:
        thread.join(30)
    assert sorted(woken) == list(range(5))


def test_after_a_reset_a_held_lock_is_nobodys() -> None:
    arrivals = Arrivals()
    arrivals._condition.acquire()  # as a thread of the parent left it
    arrivals.reset()
    other = threading.Thread(target=arrivals.announce)
    other.start()
    other.join(30)
    assert not other.is_alive()
