"""Reading the next page before it is asked for: when two were asked for in a row, as long as that is of use.

Which page is the next one, and how it is read, is the pager's business (``pages``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from lazystore.cache.locks import forkable_rlock
from lazystore.cache.tiers import Tiers

__all__ = ["NextPages"]

#: Walks that are followed at one time, and pages read ahead that are remembered.
WALKS = 64
#: Pages in a row that were read ahead for nothing, until no more are.
PATIENCE = 3


class NextPages:
    """Follows walks by the keys of their pages, and starts loading what comes next.

    A function that fails in other threads than its user's (a connection that belongs to one), or pages that are too
    large to be kept, show as pages read ahead for nothing: after three in a row it is off for good.

    Threads: any. Fork: what was started is the parent's; the child loads it itself.
    """

    def __init__(self, tiers: Tiers, enabled: bool) -> None:
        self._tiers = tiers
        self._expected: dict[Hashable, None] = {}
        self._started: dict[Hashable, None] = {}
        self._in_vain = 0
        self._lock = forkable_rlock()  # keys hold filters, whose comparison may ask for a page
        self.enabled = enabled
        _live.add(self)

    def follows(self, key: Hashable, following: Hashable | None) -> bool:
        """Note that a page was asked for, and what comes after it; whether it came after another one itself."""
        with self._lock:
            came = self._expected.pop(key, _ABSENT) is None
            if following is not None:
                _remember(self._expected, following)
        return came

    def start(self, key: Hashable, call: Callable[[], Any], ttl: Any) -> None:
        """Load a page in the background."""
        if not self._tiers.may_speculate:
            return
        with self._lock:
            _remember(self._started, key)
        self._tiers.start(key, call, ttl=ttl)

    def asked(self, key: Hashable, *, useful: bool) -> bool:
        """Note that a page is asked for; whether it was read ahead. ``useful``: so that it need not be loaded."""
        if not self._started:
            return False
        with self._lock:
            if self._started.pop(key, _ABSENT) is not None:
                return False
            self._in_vain = 0 if useful else self._in_vain + 1
            self.enabled = self.enabled and self._in_vain < PATIENCE
        return True

    def after_fork(self) -> None:
        """In a child what was started does not go on."""
        self._started.clear()


def _remember(keys: dict[Hashable, None], key: Hashable) -> None:
    keys[key] = None
    if len(keys) > WALKS:
        del keys[next(iter(keys))]


def _after_fork_in_child() -> None:
    for pages in list(_live):
        pages.after_fork()


_ABSENT = object()
_live: weakref.WeakSet[NextPages] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork_in_child)
