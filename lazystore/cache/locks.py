"""Locks that a forked child finds open, whoever held them in the parent."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["forkable_lock", "forkable_rlock"]

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def forkable_lock() -> threading.Lock:
    """A lock that is open in a forked child, whoever held it in the parent.

    For what stays sound when it was half changed: counters, and tables that are looked at again.
    """
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def forkable_rlock() -> threading.RLock:
    """The same of a lock that its holder may take again."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _open_all() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # as the standard library does with its own


os.register_at_fork(after_in_child=_open_all)
