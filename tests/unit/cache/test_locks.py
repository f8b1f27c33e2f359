"""A lock that is held while the process forks is open in the child."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lazystore.cache.locks import forkable_lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_lock_held_by_another_thread_is_open_in_the_child() -> None:
    lock = forkable_lock()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if lock.acquire(timeout=10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock.locked(), "the parent's is as it was"
    done.set()
    thread.join()
    with lock:
        pass
