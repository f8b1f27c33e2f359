"""`imap`'s scheduling: what is run here, what is sent to workers, and what is handed on, whenever the consumer asks.

All of it happens in the caller's thread, inside ``__next__``. The caller works by itself (stage "serial") until what
``probe`` measures says that workers pay; it goes on while they start ("starting"); then it only serves them
("parallel", see ``fleet``), and comes back to serial where they turn out not to pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Final, Literal

from lazystore._core.delivery import Delivery
from lazystore.errors import ClosedError, TransportError, WorkerError
from lazystore.parallel.chunk import Backend, Chunk, Job
from lazystore.parallel.dataset_items import DatasetItems
from lazystore.parallel.map_stats import MapStats
from lazystore.parallel.scheduling.arrivals import Arrivals, Part
from lazystore.parallel.scheduling.caller import Caller, warn
from lazystore.parallel.scheduling.first_call import FirstCall
from lazystore.parallel.scheduling.fleet import Fleet
from lazystore.parallel.scheduling.handover import Handover
from lazystore.parallel.scheduling.policy import Policy
from lazystore.parallel.scheduling.probe import START_COLD_S, START_WARM_S, Probe
from lazystore.parallel.scheduling.review import Review
from lazystore.parallel.scheduling.supply import Supply
from lazystore.parallel.scheduling.tuner import MOST_ITEMS, Estimate, Limits, serial_block, threads_for
from lazystore.parallel.workers.chunk_run import weigh

__all__ = ["Engine"]

#: seconds of work the caller takes from the source in one go, while workers may come in and when they will not
BLOCK_S: Final = 0.002
ALONE_S: Final = 0.008
#: seconds the first item is waited for before it is looked at
FIRST_S: Final = 0.002
#: seconds of the consumer's that results handed out in one go may take while workers wait for the caller
SLICE_S: Final = 0.001
#: seconds from which a block of the caller's is left when it takes much longer than planned
BUDGET_S: Final = 0.005
#: item time from which every call is timed
TIMED_S: Final = 20e-6


class Engine:
    """One run of a function over a stream.

    Parameters:
        job: what is done.
        supply: where items come from.
        policy: what becomes of items that fail.
        limits: what was given by the user, and the machine.
        backends: makes the backend of a kind, for a job and so many workers.
        kinds: what may be chosen; without "serial" workers run all items.
        warm: tells how many processes are ready to work.
        ordered: results in the order of the data.
        total: items in all, where known.
        stats: kept up to date.
        done: results of items before the supply's first.
        watch_first: run the first item in a thread, so that a long one can be seen while it runs.
        dataset: the supply is the items of this pass; workers read them themselves.
    """

    def __init__(
        self,
        job: Job,
        supply: Supply,
        *,
        policy: Policy,
        limits: Limits,
        backends: Callable[[str, Job, int], Backend],
        kinds: tuple[str, ...],
        warm: Callable[[], int],
        ordered: bool,
        total: int | None,
        stats: MapStats,
        done: Part | None = None,
        dataset: DatasetItems | None = None,
        watch_first: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._caller = Caller(job, policy, stats)
        self._supply = supply
        self._policy = policy
        self._limits = limits
        self._backends = backends
        self._kinds = kinds
        self._warm = warm
        self._total = total
        self._stats = stats
        self._dataset = dataset
        #: seconds after which :meth:`more` gives up waiting and returns True with nothing; None: it waits
        self.patience_s: float | None = None
        self._clock = clock
        self._arrivals = Arrivals(ordered=ordered, first=done.first if done else supply.index)
        if done is not None:
            self._arrivals.put(done)
        self._handover = Handover(self._arrivals, policy, self._settled)
        self._probe = Probe(job.func, limits, kinds)
        self._flow = self._probe.flow
        self._fleet: Fleet | None = None
        self._stage: Literal["first", "serial", "starting", "parallel"] = "serial" if "serial" in kinds else "parallel"
        if watch_first and not self._probe.remembers():
            self._stage = "first"
        self._first_call: FirstCall | None = None
        self._more_to_give = False
        self._own: list[Any] = []
        self._own_first = self._block_first = 0
        self._left_at = 0.0
        self._given = 0
        self._serving = False
        self._retiring: list[Fleet] = []
        self._leftover: list[Chunk] = []
        self._review = Review(clock(), self._flow)
        self._closed = False
        self._torn = False

    # -- what the iterator asks for -------------------------------------------------------------------------------

    def more(self, delivery: Delivery) -> bool:
        """Give the iterator results, or items to run; False at the end.

        Raises:
            BaseException: the error of the item or of the source whose turn it is.
            ClosedError: an earlier call was interrupted in the middle.
        """
        if self._torn:
            self._torn = False  # said once more than the error itself, not for ever
            raise ClosedError(
                "this imap was interrupted, or its workers were lost, while it moved items; start a new one"
            )
        if self._closed:
            return False
        self._account(delivery)
        try:
            while True:
                more = self._step(delivery)
                if more is not None:
                    return more
        except Exception:
            raise  # an item's or the source's, with everything in its place
        except BaseException:
            # Ctrl-C between two steps that belong together: going on might leave items out without a word
            self._torn = True
            self.close()
            raise
        finally:
            self._left_at = self._clock()

    def _step(self, delivery: Delivery) -> bool | None:
        if self._stage == "parallel":
            return self._parallel(delivery)
        return self._first() if self._stage == "first" else self._serial(delivery)

    def caught(self, error: Exception, index: int, item: Any) -> tuple[Any, ...]:
        """What stands for an item that raised in the caller."""
        return self._caller.caught(error, index, item)

    def close(self) -> None:
        """Stop: workers are given up, nothing more is pulled. Twice is fine, also where Ctrl-C ended the first call."""
        if not self._closed:
            self._closed = True
            self._stats.skipped = self._policy.skipped
            for fleet in self._fleets:
                self._stats.through_pipe += getattr(fleet.backend, "through_pipe", 0)
                self._stats.packed(getattr(fleet.backend, "packing_s", 0.0))
            if self._serving and self._given:  # of the block under way, what was timed is all that is known
                self._stats.ran_here(self._given, (0, 0.0, 0.0, 0.0, -1))
        for fleet in self._fleets:
            fleet.close()
        self._probe.close()
        self._stats.ended(self._clock())

    @property
    def _fleets(self) -> list[Fleet]:
        first = [] if self._first_call is None else [self._first_call.fleet]
        return [*([] if self._fleet is None else [self._fleet]), *self._retiring, *first]

    @property
    def _busy(self) -> bool:
        return any(fleet.busy for fleet in self._fleets)

    def _account(self, delivery: Delivery) -> None:
        """What the time since the last call was spent on."""
        if not self._given:
            return
        wall_s = self._clock() - self._left_at
        if self._serving:
            served = delivery.served()
            rest = delivery.untouched()
            if rest:
                # they turned out slower than planned for: first see who should do them
                self._given -= len(rest)
                self._arrivals.passed(-len(rest))
                self._own_first = self._block_first + self._given
                self._own[:0] = rest
            if self._dataset is None:
                self._settled(self._given)
            self._probe.account(self._given, wall_s, served)
            self._flow.source_s = self._supply.item_s
            self._stats.ran_here(self._given, served)
            self._stats.consumer_s += max(0.0, wall_s - self._flow.run_s * self._given)
        else:
            self._flow.consumer_s += 0.3 * (wall_s / self._given - self._flow.consumer_s)
            self._stats.consumer_s += wall_s
        self._stats.source_s = self._supply.seconds
        self._review.away_s += wall_s
        self._given = 0

    def _settled(self, count: int) -> None:
        """So many items are done with: the consumer gets their results, or they were left out."""
        self._stats.delivered(count)
        if self._dataset is not None:
            self._dataset.handed_out(count)  # which knows that the last ones may not be consumed yet

    # -- handing on -----------------------------------------------------------------------------------------------

    def _hand_on(self, delivery: Delivery) -> bool:
        """Give the iterator results whose turn it is; False when there are none."""
        # while workers are busy somebody must look after them now and then
        results = self._handover.take(self._slice() if self._busy else MOST_ITEMS)
        if not results:
            return False
        self._given = len(results)
        self._serving = False
        delivery.deliver(results)
        return True

    def _slice(self) -> int:
        return max(1, int(SLICE_S / max(self._flow.consumer_s, 1e-7)))

    def _end(self) -> bool:
        error = self._supply.error
        if error is not None:
            self._supply.error = None
            raise error
        if self._dataset is not None:
            self._dataset.finish()
        self.close()
        return False

    # -- the first item -------------------------------------------------------------------------------------------

    def _first(self) -> bool | None:
        """Watch the first item; start workers when it turns out to be long. None when there is something new."""
        call = self._first_call
        if call is None:
            items = self._supply.take(1, 0.0)
            if not items:
                self._stage = "serial"
                return None
            self._flow.in_bytes = weigh(items[0])
            fleet = self._manned("thread", 1, keyed=False)
            call = self._first_call = FirstCall(fleet, items, self._supply.index - 1)
        if call.over(FIRST_S if self._fleet is None else 0.001):
            self._after_first(call)
            return None
        run_s, cpu_share = call.look()
        self._probe.first(run_s, cpu_share)
        if self._fleet is None and call.sure and not self._supply.ended:
            self._consider()
        if self._fleet is not None and self._fleet.backend.kind == "process" and self._probe.lock_is_free():
            self._change("thread", "the function lets other threads run")
        if self._fleet is not None and (self._stage == "parallel" or self._ready()):
            self._retiring.append(call.fleet)
            self._first_call = None
            self._go_parallel()
        elif self._fleet is not None or self._stage == "serial":
            self._stage = "first"  # its workers are starting
        return True if self.patience_s is not None else None

    def _after_first(self, call: FirstCall) -> None:
        """The first item is done: the caller goes on, with what workers have not got yet."""
        self._first_call = None
        self._stage = "serial" if self._fleet is None else "starting"
        self._probe.first_ended(*call.taken(), long=call.seen)
        call.fleet.close()

    def _ready(self) -> bool:
        return self._fleet is not None and self._tend(self._fleet, 0.0) and self._fleet.done_items > 0

    # -- the caller works -----------------------------------------------------------------------------------------

    def _serial(self, delivery: Delivery) -> bool | None:
        """One block for the iterator to run; None when it is the workers' turn."""
        if self._arrivals.ready and self._hand_on(delivery):
            return True
        if self._stage == "starting":
            self._while_starting()
        elif len(self._kinds) > 1:
            self._consider()
        if self._stage == "starting" and not self._own:
            return self._help()
        if self._stage == "parallel":
            return None
        items, first = self._block()
        if not items:
            if self._fleet is None or self._fleet.idle:
                return self._end()
            self._go_parallel()
            return None
        if not self._probe.items or self._probe.weighable:
            self._run_all(items, first)  # so that a result can be weighed as well
            return None
        read = self._read(items, first)
        if not read:
            return None
        self._arrivals.passed(len(items))
        every = 1 if self._flow.run_s > TIMED_S else 16
        # a dataset's items cannot be given to workers, who read them by their keys
        budget_s = 0.0 if self._dataset is not None else max(BUDGET_S, 3.0 * self._flow.run_s * len(items))
        self._block_first = first
        delivery.serve(self._caller.job.func, read, first, every, self._probe.wants_cpu, budget_s)
        self._probe.begin()
        self._given = len(items)
        self._serving = True
        if self._dataset is not None:
            self._settled(self._given)
        return True

    def _block(self) -> tuple[list[Any], int]:
        count = 1 if not self._probe.items or self._probe.weighable else self._block_items()
        if self._own:
            items, first = self._own[:count], self._own_first
            del self._own[:count]
            self._own_first += len(items)
            return items, first
        items = self._supply.take(count, 0.002)
        return items, self._supply.index - len(items)

    def _block_items(self) -> int:
        alone = len(self._kinds) == 1 or self._review.hopeless(self._flow)
        return serial_block(self._flow, self._limits, ALONE_S if alone else BLOCK_S)

    def _read(self, keys: list[Any], first: int) -> list[Any]:
        """What the iterator is to run; nothing where keys cannot be read together, and are run one by one here."""
        if self._caller.job.reader is None:
            return keys
        try:
            return list(self._caller.job.reader(keys))
        except Exception:  # noqa: BLE001 (comes again for the keys it belongs to)
            ran, part = self._caller.run(keys, first)
        self._stats.ran_here(len(keys), (1, ran.run_s / len(keys), 0.0, ran.longest_s, ran.longest_at))
        self._arrivals.put(part)
        return []

    def _run_all(self, items: list[Any], first: int, limit_s: float = inf) -> int:
        """Run items here, one after the other, and have their results wait for their turn; how many were run."""
        try:
            self._caller.initialize()
        except WorkerError:
            self.close()
            raise
        self._probe.begin()
        cpu_s = time.thread_time()
        ran, part = self._caller.run(items, first, limit_s)
        cpu_s = time.thread_time() - cpu_s
        count = len(ran.results)
        served = (count, ran.run_s, min(cpu_s, ran.run_s), ran.longest_s, ran.longest_at)
        self._probe.account(count, ran.run_s + count * self._flow.consumer_s, served)
        self._flow.source_s = self._supply.item_s
        self._stats.ran_here(count, served)
        if not ran.failures and self._probe.weighable:
            self._probe.weigh(items[0], ran.results[0])
        self._arrivals.put(part)
        return count

    # -- when workers come in -------------------------------------------------------------------------------------

    @property
    def _remaining(self) -> int | None:
        return None if self._total is None else max(0, self._total - self._supply.index) + len(self._own)

    def _consider(self) -> None:
        """Start workers if they would pay now."""
        if (self._supply.ended and not self._own) or self._review.hopeless(self._flow):
            return
        start_s = START_WARM_S if self._warm() else START_COLD_S
        choice = self._probe.look(start_s, self._remaining)
        if choice is None:
            return
        if choice.kind == "process" and self._probe.stuck:
            warn(f"{self._probe.stuck}; imap goes on with threads")
            choice = Estimate("thread", self._limits.workers or self._limits.cpus)
        self._begin(choice.kind, choice.workers)
        if self._stage == "parallel" and self._fleet is not None:
            self._hand_over(self._fleet)
        if self._stage == "starting" and self._fleet is not None:
            if self._first_call is None:
                self._keep(start_s)
            self._tend(self._fleet, 0.0)

    def _keep(self, start_s: float) -> None:
        """Of the next items, have the caller keep what it can do until workers come up, who get those behind."""
        assert self._fleet is not None
        keep = max(1, min(MOST_ITEMS, self._fleet.space(), int(start_s / max(self._flow.run_s, 1e-6))))
        if self._own:
            self._fleet.add(self._own[keep:], self._own_first + keep)
            del self._own[keep:]
        else:
            self._own = self._supply.take(keep, 0.002)
            self._own_first = self._supply.index - len(self._own)

    def _begin(self, kind: str, workers: int) -> None:
        """Have workers of this kind, or of another where that cannot be."""
        fleet = self._manned(kind, workers)
        try:
            fleet.backend.start(workers)
        except (TransportError, WorkerError) as error:
            fleet.close()
            self._fall_back(error, [])
            return
        self._fleet = fleet
        self._stats.decided(self._clock(), f"{workers} {kind} workers: {self._flow}", kind, workers)
        self._stage = "starting" if kind == "process" and "serial" in self._kinds else "parallel"
        self._review = Review(self._clock(), self._flow, self._review.tried)

    def _manned(self, kind: str, workers: int, *, keyed: bool = True) -> Fleet:
        caller, dataset = self._caller, self._dataset
        if dataset is not None and dataset.reader is not None and caller.job.reader is None and keyed:
            # from here on workers are sent keys, and read for themselves
            self._supply.replace(dataset.keys(self._supply.index))
            dataset.reader.workers = workers
            caller.job = replace(caller.job, reader=dataset.reader)
            self._stats.items_from = "workers"
        fleet = Fleet(
            caller.job,
            self._backends(kind, caller.job, workers),
            supply=self._supply,
            arrivals=self._arrivals,
            limits=self._limits,
            flow=self._flow,
            stats=self._stats,
            total=self._total,
            clock=self._clock,
        )
        if "serial" in self._kinds:
            fleet.run_here = caller.in_place_of_a_worker
        return fleet

    def _while_starting(self) -> None:
        assert self._fleet is not None
        if not self._tend(self._fleet, 0.0, feed=False):
            return
        if self._fleet.backend.kind == "process" and self._probe.lock_is_free():
            self._change("thread", "the function lets other threads run")
        elif why := self._review.waits(self._fleet, self._probe):
            self._change("thread", why)
        elif self._fleet.done_items or self._fleet.idle:
            # they have shown that they work: being up is not enough, they have modules to import
            self._go_parallel()

    def _help(self) -> bool | None:
        """Run some items behind those that workers were given, who are not at work yet."""
        fleet = self._fleet
        assert fleet is not None
        count = min(self._block_items(), fleet.space(starting=True))
        items = self._supply.take(count, 0.002) if count > 0 else []
        if not items:
            self._tend(fleet, 0.002)
            return True if self.patience_s is not None else None
        first = self._supply.index - len(items)
        done = self._run_all(items, first, BUDGET_S)
        fleet.add(items[done:], first + done)  # they turned out slower than planned for
        return None

    def _go_parallel(self) -> None:
        assert self._fleet is not None
        self._probe.settle()
        self._stage = "parallel"
        self._review = Review(self._clock(), self._flow, self._review.tried)
        self._hand_over(self._fleet)

    def _hand_over(self, fleet: Fleet, waiting: Sequence[Chunk] = ()) -> None:
        """Give workers what the caller had kept for itself, and what others have not begun."""
        fleet.add(self._own, self._own_first)
        fleet.backlog.extend(waiting)
        fleet.backlog.extend(self._leftover)
        self._own, self._leftover = [], []

    def _change(self, kind: str, why: str) -> None:
        """Other workers, or none: the present ones finish what they are at, and get nothing new."""
        fleet, self._fleet = self._fleet, None
        waiting = [] if fleet is None else fleet.recall()
        if fleet is not None:
            self._retiring.append(fleet)
        self._stats.decided(self._clock(), f"{kind}: {why}", kind, 0)
        self._stage = "parallel"
        if kind == "serial":
            # the caller takes over when all of it has come back
            self._leftover += waiting
            return
        threads = threads_for(self._flow, self._limits)
        self._begin(kind, threads if kind == "thread" else self._limits.workers or self._limits.cpus)
        if self._fleet is not None:
            self._stage = "parallel"
            self._hand_over(self._fleet, waiting)

    def _fall_back(self, error: TransportError | WorkerError, waiting: list[Chunk]) -> None:
        """Processes cannot be had: go on with threads where that was left open, else say so."""
        if "thread" not in self._kinds or "process" not in self._kinds:
            self._torn = True
            self.close()
            raise error
        warn(f"{error}; imap goes on with threads")
        self._kinds = self._probe.kinds = tuple(kind for kind in self._kinds if kind != "process")
        if self._fleet is None:
            self._begin("thread", self._limits.workers or self._limits.cpus)
        assert self._fleet is not None
        self._hand_over(self._fleet, waiting)

    # -- the workers work -----------------------------------------------------------------------------------------

    def _parallel(self, delivery: Delivery) -> bool | None:
        """Results for the iterator; None when there is something new to look at."""
        if self._fleet is None and not self._retiring:
            if "serial" in self._kinds:
                self._stage = "serial"
            else:
                self._begin(self._kinds[0], self._limits.workers)
            return None
        for fleet in self._fleets:
            if not self._tend(fleet, 0.0):
                return None
        if self._reviewed():  # also where the caller never waits: then it is what they cost it
            return None
        if self._hand_on(delivery):
            return True
        if self._more_to_give:
            return None
        working = [fleet for fleet in self._fleets if fleet.busy]
        if working:
            self._tend(working[0], 0.002 if len(working) > 1 else self.patience_s, feed=False)
            if self.patience_s is not None and not self._arrivals.ready:
                return True
            return None
        if self._fleet is not None and self._fleet.idle:
            return self._end()
        return None

    def _tend(self, fleet: Fleet, timeout: float | None, *, feed: bool = True) -> bool:
        """Collect from workers and feed them; False when they are others now."""
        try:
            if fleet.busy or timeout == 0.0:
                fleet.collect(timeout)
            if feed and fleet is self._fleet:
                self._more_to_give = fleet.feed()
        except (TransportError, WorkerError) as error:
            waiting = fleet.take_back()
            fleet.close()
            if fleet is self._fleet:
                self._fleet = None
            else:
                self._retiring.remove(fleet)
            self._fall_back(error, waiting)
            return False
        if fleet is not self._fleet and not fleet.busy:
            self._retire(fleet)
            return False
        return True

    def _retire(self, fleet: Fleet) -> None:
        """The last results of workers that were given up are here."""
        self._retiring.remove(fleet)
        handed_back = fleet.unsent()
        fleet.close()
        if self._fleet is not None:
            self._fleet.backlog.extend(handed_back)
        else:
            self._leftover.extend(handed_back)
            for chunk in sorted(self._leftover, key=lambda chunk: chunk.first):
                report = self._caller.in_place_of_a_worker(chunk)
                self._stats.report(report)
                self._arrivals.put(Part(chunk.first, report.results, chunk.items, report.failures))
            self._leftover = []

    def _reviewed(self) -> bool:
        """Whether the workers are others now because they did not pay."""
        fleet = self._fleet
        if fleet is None or len(self._kinds) == 1:
            return False
        more = self._review.more_threads(fleet, self._flow, self._limits)
        if more:
            fleet.backend.start(more)
            self._stats.decided(self._clock(), f"{more} thread workers: {self._flow}", "thread", more)
        kind, why = self._review.verdict(self._clock(), fleet, self._probe, self._supply.seconds)
        if kind:
            self._change(kind, why)
        return bool(kind)
