"""Whether the workers of an `imap` pay: what they got done, against what the caller would have done alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from lazystore.parallel.scheduling.tuner import WORTH, Flow
from lazystore.parallel.workers.work_clock import run_delay

if TYPE_CHECKING:
    from lazystore.parallel.scheduling.fleet import Fleet

__all__ = ["Review"]

#: seconds of looking before a verdict, and looks in a row that show workers to be slower than the caller
LOOK_S: Final = 0.25
TWICE: Final = 2


class Review:
    """Looks at one set of workers.

    Parameters:
        now: when they began.
        flow: as the caller measured it working alone.
    """

    def __init__(self, now: float, flow: Flow) -> None:
        #: seconds the consumer took since
        self.away_s = 0.0
        self._alone_s = flow.run_s
        self._began = now
        self._items = 0
        self._done_s = 0.0
        self._source_s = -1.0
        self._delay_s = run_delay()
        self._hopeless_s = 0.0
        self._slow = 0
        #: seconds an item at the last look, the consumer's and the source's left out
        self.item_s = 0.0

    def hopeless(self, flow: Flow) -> bool:
        """Whether workers were found not to pay for items like these."""
        return 0.25 * self._hopeless_s < flow.run_s < 4.0 * self._hopeless_s

    def look(self, now: float, fleet: Fleet, flow: Flow, source_s: float) -> Literal["serial", "process", ""]:
        """What would be better than the present workers; "" when nothing is."""
        if self._source_s < 0:
            self._source_s = source_s
        elapsed_s = now - self._began
        items = fleet.done_items - self._items
        if elapsed_s < LOOK_S or items < 4 * fleet.backend.workers:
            return ""
        elsewhere_s = self.away_s + source_s - self._source_s
        item_s = self.item_s = max(elapsed_s - elsewhere_s, 0.0) / items
        run_s = (fleet.done_s - self._done_s) / items
        bound = elsewhere_s > 0.7 * elapsed_s
        delay_s, self._delay_s = run_delay() - self._delay_s, run_delay()
        self._began, self._items, self._done_s = now, fleet.done_items, fleet.done_s
        self._source_s, self.away_s = source_s, 0.0
        if bound or delay_s > 0.1 * elapsed_s:
            # by the consumer or the source: nothing the workers could do about it; or by a machine too busy to tell
            return ""
        if fleet.backend.kind == "thread" and flow.cpu_share > 0.5 and self._alone_s < WORTH * item_s:
            return "process"
        if fleet.backend.kind != "process" or item_s < WORTH * run_s:
            self._slow = 0
            return ""
        self._slow += 1
        if self._slow < TWICE:
            return ""  # what others do on this machine for a moment is no reason to give up
        self._hopeless_s = run_s
        return "serial"
