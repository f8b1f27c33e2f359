"""Reading ahead of one reader of an object: as far as it reads in order, and as far as it pays.

The window opens when a read goes on where the one before it ended, and comes to a page that this reader has not
touched. It begins with two pages and doubles whenever the reader comes to a page that is still on its way: it ends up
as long as the reader's speed times the storage's latency (Little's law), however fast either is, without measuring
them. A jump ends it. Fetching itself is ``paged.py``'s.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazystore.cache.page_waves import PageWave
    from lazystore.cache.paged import PagedObject

__all__ = ["PagesAhead"]

#: Pages of the first window.
FIRST = 2
#: Share of a page that a reader in order may leave out between two reads.
GAP_SHARE = 4
#: Bytes of the longest window, and the share of the budget it may be.
LONGEST = 16 << 20
SHARE = 4


class PagesAhead:
    """The window of one reader. Not for several threads: each reader has its own. Nothing is fetched at creation."""

    def __init__(self, paged: PagedObject) -> None:
        self._paged = paged
        self._end: int | None = None  # of the latest read
        self._last = -1  # page of the latest read's last byte
        self._begun = 0  # pages up to here were sent for
        self._window = 0
        self._most = max(1, min(LONGEST, paged.budget // SHARE) // paged.page_bytes)
        self._waves: deque[PageWave] = deque()

    def reads(self, begin: int, end: int) -> None:
        """The reader is about to read these bytes."""
        paged = self._paged
        if paged.direct or end <= begin:
            return
        in_order = self._end is not None and 0 <= begin - self._end <= paged.page_bytes // GAP_SHARE
        last, before = (end - 1) // paged.page_bytes, self._last
        self._end, self._last = end, last
        if not in_order:
            if self._waves or self._window:
                self.end()
            self._begun = last + 1
        elif last > before:
            self._advance(before + 1, last)

    def _advance(self, fresh: int, last: int) -> None:
        """The reader goes on in order, to pages it has not read: ``fresh`` to ``last``."""
        paged = self._paged
        if not self._window:
            self._window = min(FIRST, self._most)
        elif paged.under_way(fresh):
            self._window = min(2 * self._window, self._most)
        if last - fresh < paged.batch:
            paged.bring(range(fresh, last + 1))  # before what nobody waits for
        self._begun = max(self._begun, last + 1)
        if not paged.may_speculate:
            return
        goal = min(last + 1 + self._window, paged.pages)
        step = max(1, self._window // 2)
        while self._begun < goal and (goal - self._begun >= step or goal == paged.pages):
            upto = min(self._begun + step, goal)
            missing = paged.missing(range(self._begun, upto))
            wave = paged.bring(missing, ahead=True)
            if missing and wave is None:
                break  # no room now
            if wave is not None:
                self._waves.append(wave)
            self._begun = upto
        while self._waves and self._waves[0].empty:
            self._waves.popleft()

    def end(self) -> None:
        """Stop: what has landed goes to the cache, what has not is called off."""
        self._window = 0
        while self._waves:
            self._waves.popleft().hand_over(self._paged.keep)
