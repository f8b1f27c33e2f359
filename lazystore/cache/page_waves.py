"""Pages on their way: who fetches which, so that each is fetched once however many files and threads want it.

Which pages are wanted is decided in ``paged.py`` and ``page_ahead.py``; where pages stay is the tiers' business.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

from lazystore.cache.ledger import Reservation
from lazystore.cache.locks import forkable_lock
from lazystore.errors import FetchError, LazyStoreError

if TYPE_CHECKING:
    from lazystore.cache.tiers import Tiers
    from lazystore.fetch.source import Flight

__all__ = ["CalledOff", "PageBoard", "PageWave", "board_of"]


class CalledOff(FetchError):
    """Pages that were on their way do not come, though nothing is wrong with them: fetch them again."""


class PageWave:
    """Some pages that travel together, from the moment they are claimed until each is taken over.

    Args:
        board: on which they are claimed.
        ahead: nobody has asked for them yet.

    Threads: any may wait and take.
    """

    __slots__ = ("_begun", "_board", "_check", "_flight", "_lock", "_off", "_pages", "_room", "ahead")

    def __init__(self, board: PageBoard, *, ahead: bool) -> None:
        self.ahead = ahead
        self._board = board
        self._pages: dict[Hashable, bytearray] = {}
        self._flight: Flight | None = None
        self._check: Callable[[], None] | None = None
        self._room: Reservation | None = None
        self._begun = threading.Event()
        self._off = False
        # Re-entrant: giving room back may end files that are garbage, and with them what they read ahead.
        self._lock = threading.RLock()

    def begin(
        self, pages: dict[Hashable, bytearray], flight: Flight, room: Reservation, check: Callable[[], None]
    ) -> None:
        """They are under way.

        Args:
            pages: the buffers they land in, by key.
            room: the buffers' bytes in the budget; given back as pages are taken over.
            check: raises if what landed is not what was asked for; called once they have landed.
        """
        self._pages, self._flight, self._room, self._check = pages, flight, room, check
        self._begun.set()

    def call_off(self, keys: Iterable[Hashable]) -> None:
        """They were claimed, but are not sent for."""
        self._off = True
        for key in keys:
            self._board.unclaim(key, self)
        self._begun.set()

    @property
    def ended(self) -> bool:
        """Whether they have landed, or will not come."""
        return self._off or (self._flight is not None and self._flight.done())

    @property
    def empty(self) -> bool:
        """Whether all of its pages were taken over, or given up."""
        return self._begun.is_set() and not self._pages

    def wait(self, timeout: float) -> None:
        """Return when they have landed, or will not come, or after ``timeout`` seconds; raises nothing of theirs."""
        self._begun.wait()
        if not self._off and self._flight is not None:
            self._flight.wait(timeout)

    def page(self, key: Hashable) -> memoryview:
        """One of the pages, read-only; waits until it has landed.

        Raises:
            CalledOff: it was given up by who had asked for it.
            LazyStoreError: what kept it from landing. The whole wave is given up then, so that the next to ask begins
                another. No error is kept here: its traceback would hold on to the buffers of who waited.
        """
        self._begun.wait()
        if not self._off:
            assert self._flight is not None
            try:
                self._flight.result()
                if self._check is not None:
                    self._check()
                    self._check = None
            except Exception:
                if not self._off:
                    self.give_up()
                    raise
        page = None if self._off else self._pages.get(key)
        if page is None:
            raise CalledOff("these pages were called off, or taken over already")
        return memoryview(page).toreadonly()

    def taken(self, key: Hashable) -> None:
        """A page is in the cache now (or has been found to have no place in it): the wave keeps it no longer."""
        self._board.unclaim(key, self)
        with self._lock:
            page = self._pages.pop(key, None)
            if page is not None and self._room is not None:
                self._room.resize(self._room.nbytes - len(page))

    def hand_over(self, keep: Callable[[Hashable, memoryview], None]) -> None:
        """Let go of all pages that nobody took: to the cache if they have landed, else they are called off."""
        try:
            if self.ended and not self._off:
                for key in list(self._pages):
                    keep(key, self.page(key))
                    self.taken(key)
        except LazyStoreError:
            return  # who wants these pages next asks for them anew, and meets what is wrong
        finally:
            self.give_up()

    def give_up(self) -> None:
        """End it: what is not taken is not wanted any more."""
        self._off = True
        if self._flight is not None:
            self._flight.cancel()
        with self._lock:
            pages, self._pages = self._pages, {}
            room, self._room = self._room, None
        for key in pages:
            self._board.unclaim(key, self)
        if room is not None:
            room.release()


class PageBoard:
    """Which pages are on their way, for all objects whose pages are in the same tiers.

    Threads: any; a claim is one operation of a dict. Fork: the child begins with none.
    """

    def __init__(self) -> None:
        self._claims: dict[Hashable, PageWave] = {}
        self._pid = os.getpid()

    def claim(self, key: Hashable, wave: PageWave) -> bool:
        """Whether this wave brings the page: nobody else had claimed it."""
        return self._current().setdefault(key, wave) is wave

    def wave(self, key: Hashable) -> PageWave | None:
        """Who brings the page, if it is on its way."""
        return self._current().get(key)

    def unclaim(self, key: Hashable, wave: PageWave) -> None:
        claims = self._current()
        if claims.get(key) is wave:
            claims.pop(key, None)

    def waves(self) -> list[PageWave]:
        return list(dict.fromkeys(self._current().values()))

    def __len__(self) -> int:
        return len(self._current())

    def _current(self) -> dict[Hashable, PageWave]:
        if self._pid != os.getpid():
            lost, self._claims, self._pid = self._claims, {}, os.getpid()
            for wave in set(lost.values()):
                wave.give_up()
        return self._claims


_boards: weakref.WeakKeyDictionary[Any, PageBoard] = weakref.WeakKeyDictionary()
_making = forkable_lock()


def board_of(tiers: Tiers) -> PageBoard:
    """The one board of these tiers."""
    with _making:
        board = _boards.get(tiers)
        if board is None:
            board = _boards[tiers] = PageBoard()
        return board
