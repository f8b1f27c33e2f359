"""The first items of an `imap`, which run in the caller: what they tell about the stream, and when to start workers.

Every item is run once and its result is delivered; nothing is run for the sake of measuring.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from lazystore.parallel.scheduling.evidence import GilSampler, travel_cost, wait_counter
from lazystore.parallel.scheduling.tuner import MOST_THREADS, WORTH, Estimate, Flow, Kind, Limits, estimate
from lazystore.parallel.workers.work_clock import run_delay

__all__ = ["START_COLD_S", "START_WARM_S", "Probe"]

#: seconds until workers are at work: processes that have to be started, processes kept warm, threads
START_COLD_S: Final = 0.06
START_WARM_S: Final = 0.002
START_THREAD_S: Final = 0.001
#: item time below which neither the lock nor the processor's share is looked into: threads do not pay there
FINE_S: Final = 20e-6
#: seconds of serial work before the sampler of the lock is started
SAMPLE_AFTER_S: Final = 0.002
#: seconds of serial work that a decision rests on at least
ENOUGH_S: Final = 0.001
#: late wake-ups that settle the question, and wake-ups that always do
SETTLED: Final = 3
ENOUGH: Final = 10
#: share of the time the lock is held below which threads run side by side
FREE_SHARE: Final = 0.4

#: gain over processes at work from which threads take their place
CLEARLY: Final = 1.3
#: share of their time that threads compute, waiting for each other included, from which the function does not wait
SURELY: Final = 0.6
#: bytes an item and its result from which threads, which copy nothing, are worth waiting for
COPIED: Final = 1 << 16
#: item time from which the first item is worth watching
LONG_S: Final = 0.002

#: what earlier runs found out about functions: the share of its time that one holds the lock, and its item time
_held: weakref.WeakKeyDictionary[Callable[..., Any], float] = weakref.WeakKeyDictionary()
_took: weakref.WeakKeyDictionary[Callable[..., Any], float] = weakref.WeakKeyDictionary()


class Probe:
    """Measures blocks of items run by the caller.

    Parameters:
        func: the caller's function, for what earlier runs know of it, and to see whether it travels.
        limits: of the run.
        kinds: backends that may be chosen.
    """

    def __init__(self, func: Callable[[Any], Any], limits: Limits, kinds: tuple[str, ...]) -> None:
        self.flow = Flow()
        self.kinds = kinds
        #: seconds of work done in the caller
        self.spent_s = 0.0
        self.items = 0
        #: why results or items cannot travel; "" if they can
        self.stuck = ""
        self._func = func
        self._limits = limits
        self._sampler: GilSampler | None = None
        self._weighed = False
        self._one_brief = False  # one item is all that is known, and that was quick
        self._looked_s = -1.0
        self._held_known = False
        self._count_waits = wait_counter()
        self._waits = self._count_waits()
        self._delayed = run_delay()
        # when the sampler was started, and seconds in the function since
        self._sampled_from = self._sampled_run_s = 0.0
        try:
            self.flow.held_share = _held[func]
            self._held_known = True
        except (KeyError, TypeError):
            pass

    def account(self, items: int, wall_s: float, served: tuple[int, float, float, float, int]) -> None:
        """A block of items was run: how many, how long that took with the consumer, and what was timed of it."""
        timed, timed_s, cpu_s, longest_s, _ = served
        waits, delayed = self._count_waits() - self._waits, run_delay() - self._delayed
        self.begin()
        if not timed:
            return
        # what a busy machine added is not the function's
        own = max(0.05, 1.0 - delayed / wall_s) if wall_s > 0 else 1.0
        timed_s, longest_s, wall_s = timed_s * own, longest_s * own, wall_s * own
        if waits < items:
            cpu_s = timed_s  # it never waited
        run_s = timed_s / timed
        flow = self.flow
        fresh = 1.0 if not self.items else min(1.0, 0.3 + 0.7 * (run_s > 2 * flow.run_s or run_s < 0.5 * flow.run_s))
        flow.run_s += fresh * (run_s - flow.run_s)
        consumer_s = max(0.0, wall_s / items - run_s)
        flow.consumer_s += (fresh if self.items else 1.0) * (consumer_s - flow.consumer_s)
        flow.longest_s = max(longest_s, 0.9 * flow.longest_s)
        if cpu_s and timed_s:
            flow.cpu_share += fresh * (min(1.0, cpu_s / timed_s) - flow.cpu_share)
        self.items += items
        self._one_brief = False
        self.spent_s += run_s * items
        self._sampled_run_s += run_s * items

    def begin(self) -> None:
        """A block of items begins."""
        self._waits, self._delayed = self._count_waits(), run_delay()

    def remembers(self) -> bool:
        """Whether an earlier run of this function tells enough to do without looking at the first item alone."""
        try:
            return _took[self._func] < LONG_S
        except (KeyError, TypeError):
            return False

    def first(self, run_s: float, cpu_share: float) -> None:
        """What is known of the first item while it runs."""
        self.flow.run_s = self.flow.longest_s = run_s
        self.flow.cpu_share = max(cpu_share, self.flow.held_share) if self._held_known else cpu_share
        self._sampled_run_s += run_s - self.spent_s
        self.spent_s = run_s
        if self._sampler is None and self._lock_in_question() and cpu_share > 0.3:
            self._start_sampler()

    def first_ended(self, run_s: float, cpu_share: float, *, long: bool) -> None:
        """The same when it has ended; one that was not ``long`` is no proof of waiting: it may do so only once."""
        self.first(run_s, cpu_share)
        self.items += long
        self._one_brief = not long

    @property
    def wants_cpu(self) -> bool:
        """Whether calls should be timed for computing as well."""
        return not self.items or self.flow.run_s > FINE_S

    def look(self, start_s: float, remaining: int | None) -> Estimate | None:
        """The kind of workers to start now; None: go on as it is.

        Costs some 20 us, so it thinks only when a quarter more was spent than last time.
        """
        if self.spent_s < ENOUGH_S or (self._looked_s >= 0 and self.spent_s < 1.25 * self._looked_s):
            return None
        self._looked_s = max(self.spent_s, 1e-6)
        if remaining is not None and self._saving(remaining, self._most_gain()) < 1.5 * START_THREAD_S:
            return None  # whatever the answers are
        self._sample()
        best: Estimate | None = None
        kinds: tuple[Kind, ...] = ("thread", "process")
        for kind in kinds:
            if kind not in self.kinds or (kind == "thread" and not self._threads_possible()):
                continue
            found = estimate(self.flow, self._limits, kind)
            # threads copy nothing and start at once: they win unless processes are clearly faster
            if best is None or found.gain > 1.1 * best.gain:
                best = found
        if best is None or best.gain < WORTH or (best.kind == "thread" and self._one_brief):
            return None
        if best.kind == "process" and self._worth_asking():
            return None  # a few ms more and the sampler knows
        return best if self._due(best, start_s, remaining) else None

    def _due(self, best: Estimate, start_s: float, remaining: int | None) -> bool:
        """The ski-rental rule, or better where the end is known."""
        cost = START_THREAD_S if best.kind == "thread" else start_s
        if remaining is None:
            return self.spent_s >= cost
        return self._saving(remaining, best.gain) > 1.5 * cost

    def _saving(self, remaining: int, gain: float) -> float:
        """Seconds that such a gain would save on what is left."""
        return remaining * (self.flow.run_s + self.flow.source_s + self.flow.consumer_s) * (1.0 - 1.0 / gain)

    def _most_gain(self) -> float:
        """What nothing gains more than."""
        return MOST_THREADS if self.flow.cpu_share < 0.5 else max(self._limits.cpus, self._limits.workers, 1)

    def weigh(self, item: Any, result: Any) -> None:
        """What an item and its result weigh and cost to pack; once, when it begins to matter."""
        self._weighed = True
        travel = travel_cost(item, result)
        self.stuck = travel.item.error or travel.result.error
        self.flow.pickle_s = travel.seconds
        self.flow.in_bytes, self.flow.out_bytes = travel.in_bytes, travel.out_bytes

    @property
    def weighable(self) -> bool:
        """Whether enough was done that weighing an item costs next to nothing."""
        return not self._weighed and len(self.kinds) > 1 and (self.spent_s > 0.001 or self.flow.run_s > 0.0005)

    def _threads_possible(self) -> bool:
        # whoever holds the lock computes; where that is not known yet, half-way figures are no proof of waiting
        share = max(self.flow.cpu_share, self.flow.held_share) if self._held_known else 2.0 * self.flow.cpu_share
        waits = share < 0.5 and self.flow.run_s > FINE_S
        return waits or (self._held_known and self.flow.held_share < FREE_SHARE and self.flow.run_s > FINE_S)

    def _worth_asking(self) -> bool:
        """Whether threads may turn out to be better than processes, so that starting those should wait for an answer.

        Where little is copied the answer may come while they start.
        """
        if not self._lock_in_question() or self.flow.run_s > 0.005:
            return False
        if self.flow.in_bytes + self.flow.out_bytes > COPIED:
            return True
        share = None if self._sampler is None else self._sampler.share()
        return share is not None and share.samples > 0 and share.held < 0.5

    def _lock_in_question(self) -> bool:
        return not self._held_known and "thread" in self.kinds and self.flow.run_s > 2 * FINE_S

    def _sample(self) -> None:
        """Start, read or end the sampler of the interpreter's lock."""
        if self._sampler is None:
            if self._lock_in_question() and self.spent_s > SAMPLE_AFTER_S and self.flow.cpu_share > 0.3:
                self._start_sampler()
            return
        share = self._sampler.share()
        late = round(share.held * share.samples)
        if share.samples >= ENOUGH or (late >= SETTLED and late == share.samples):
            self.settle()

    def _start_sampler(self) -> None:
        self._sampler = GilSampler()
        self._sampler.start()
        self._sampled_from, self._sampled_run_s = time.perf_counter(), 0.0

    def settle(self) -> None:
        """End the sampler and believe what it has seen."""
        if self._sampler is None:
            return
        share = self._sampler.stop()
        self._sampler = None
        # the rest was the source's or the consumer's, or the caller waited: then nobody held the lock
        in_func = self._sampled_run_s / max(time.perf_counter() - self._sampled_from, 1e-9)
        if share.samples < 2 or in_func < 0.3:
            return  # it looked at the source or the consumer rather than the function
        self._held_known = True
        self.flow.held_share = min(1.0, share.held / min(1.0, in_func))
        with contextlib.suppress(TypeError):  # builtins and some callables cannot be remembered
            _held[self._func] = self.flow.held_share

    def lock_is_free(self) -> bool:
        """Whether it turned out that threads run side by side."""
        self._sample()
        return self._threads_possible() and self.flow.held_share < FREE_SHARE

    def waits_after_all(self) -> bool:
        """Whether threads would clearly be quicker than processes, by what is known now."""
        if "thread" not in self.kinds or not self._threads_possible():
            return False
        threads, processes = (estimate(self.flow, self._limits, kind) for kind in ("thread", "process"))
        return threads.gain > CLEARLY * processes.gain

    def computes_after_all(self, cpu_share: float) -> bool:
        """Whether processes would clearly be quicker than threads, who were seen to compute for this share."""
        if "serial" not in self.kinds or self.flow.cpu_share > 0.5 or cpu_share < SURELY or self.stuck:
            return False
        flow = replace(self.flow, cpu_share=cpu_share)
        threads, processes = (estimate(flow, self._limits, kind) for kind in ("thread", "process"))
        if processes.gain < CLEARLY * threads.gain:
            return False
        self.flow.cpu_share = cpu_share
        return True

    def close(self) -> None:
        """End what was started."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
        if self.items:
            with contextlib.suppress(TypeError):
                _took[self._func] = self.flow.run_s
