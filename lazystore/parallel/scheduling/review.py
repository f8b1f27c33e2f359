"""Whether the workers of an `imap` pay: what they got done, against what the caller would have done alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from lazystore.parallel.scheduling.tuner import MOST_THREADS, WORTH, Flow, Limits, threads_for
from lazystore.parallel.workers.work_clock import run_delay

if TYPE_CHECKING:
    from lazystore.parallel.scheduling.fleet import Fleet
    from lazystore.parallel.scheduling.probe import Probe

__all__ = ["Review"]

#: seconds of looking before a verdict, and looks in a row that show workers to be slower than the caller
LOOK_S: Final = 0.25
TWICE: Final = 2
#: items after which it is believed that they wait more than they compute
FEW: Final = 3
#: times as many threads that are worth a change
MORE: Final = 1.2


class Review:
    """Looks at one set of workers.

    Parameters:
        now: when they began.
        flow: as the caller measured it working alone.
        tried: seconds an item that backends took, of those that were found wanting earlier in the run.
    """

    def __init__(self, now: float, flow: Flow, tried: dict[str, float] | None = None) -> None:
        self.tried = {} if tried is None else tried
        #: seconds the consumer took since
        self.away_s = 0.0
        self._more_at = 0
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

    def verdict(self, now: float, fleet: Fleet, probe: Probe, source_s: float) -> tuple[str, str]:
        """What is to take the place of the present workers, and why; twice "" when nothing is."""
        why = self.waits(fleet, probe)
        if why:
            return "thread", why
        if self._computes(fleet, probe):
            return "process", "items compute rather than wait"
        kind = self.look(now, fleet, probe.flow, source_s)
        if kind not in probe.kinds:
            return "", ""
        self.tried[fleet.backend.kind] = self.item_s
        if self.tried.get(kind, 0.0) > self.item_s:
            return "", ""  # it was tried, and was slower
        return kind, "faster, as measured"

    def waits(self, fleet: Fleet, probe: Probe) -> str:
        """Why threads are to do what processes were given: items wait rather than compute. "" otherwise; once a run."""
        if fleet.backend.kind != "process" or "serial" not in probe.kinds or "process" in self.tried:
            return ""
        if fleet.done_items + probe.items < FEW or not probe.waits_after_all():
            return ""
        self.tried["process"] = probe.flow.run_s / fleet.backend.workers
        return f"items compute for {probe.flow.cpu_share:.0%} of their time"

    def _computes(self, fleet: Fleet, probe: Probe) -> bool:
        """Whether processes are to do what threads were given because it seemed to wait; once a run.

        Threads that wait for each other compute for less of their time than one alone, never for more.
        """
        if fleet.backend.kind != "thread" or "process" not in probe.kinds or "thread" in self.tried:
            return False
        if fleet.done_items < FEW or not fleet.done_s or not probe.computes_after_all(fleet.computed_s / fleet.done_s):
            return False
        self.tried["thread"] = probe.flow.run_s
        return True

    def more_threads(self, fleet: Fleet, flow: Flow, limits: Limits) -> int:
        """Threads worth having, where that is more than there are, by what these computed so far; 0 otherwise.

        What an item computes is known from threads, which may wait for each other; how long it takes, from the caller.
        """
        threads = fleet.backend.workers
        if fleet.backend.kind != "thread" or limits.workers or not threads < MOST_THREADS:
            return 0
        if fleet.done_items < max(threads, self._more_at) or flow.cpu_share > 0.5:
            return 0
        self._more_at = 2 * fleet.done_items
        share = fleet.computed_s / fleet.done_items / max(self._alone_s, 1e-9)
        wanted = threads_for(replace(flow, cpu_share=min(share, flow.cpu_share)), limits)
        if wanted < MORE * threads:
            return 0
        flow.cpu_share = share
        return wanted

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
