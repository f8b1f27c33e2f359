"""Workers of `imap` in virtual time: an engine can be driven through any number of workers, deaths and hand-backs.

Nothing sleeps and nothing runs beside the test: time passes only where something is said to take it. The items'
function is really called, when its chunk is scheduled; what it takes comes from a `Script`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, count
from math import inf
from typing import Any
from unittest import mock

from lazystore._core.delivery import Delivery
from lazystore.errors import TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.map_stats import MapStats
from lazystore.parallel.scheduling import caller as caller_module
from lazystore.parallel.scheduling import engine as engine_module
from lazystore.parallel.scheduling import probe as probe_module
from lazystore.parallel.scheduling import review as review_module
from lazystore.parallel.scheduling.engine import Engine
from lazystore.parallel.scheduling.policy import OnError, Policy
from lazystore.parallel.scheduling.supply import Supply
from lazystore.parallel.scheduling.tuner import Limits
from lazystore.parallel.workers.chunk_run import Ran, run_chunk

__all__ = ["Costs", "Script", "SimulatedBackend", "Simulation", "Spinning", "VirtualClock"]

#: looks at the clock without any time passing after which nothing will happen any more
SPIN = 2_000
#: workers in a row that end before they are up, after which a backend gives up
STILLBORN = 3


class Spinning(AssertionError):
    """The engine asks and asks, and no time passes: with a real clock it would use up a processor, or hang."""


class VirtualClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looks = 0

    def __call__(self) -> float:
        self._looks += 1
        if self._looks > SPIN:
            raise Spinning(f"{SPIN} looks at the clock at {self.now} s")
        return self.now

    def fresh(self) -> None:
        """Something happened, though it took no time."""
        self._looks = 0

    def advance(self, seconds: float) -> None:
        if seconds > 0:
            self.now += seconds
            self._looks = 0


@dataclass
class Costs:
    """Seconds that the machinery takes: those measured on two processors, 60 us a chunk here and 40 us there.

    Parameters:
        submit_s, take_s: the caller's, to send a chunk and to take its report.
        worker_s: a worker's, a chunk.
        item_s: an item, in each of the two.
        byte_s: a byte, in each of the two.
        start_s: until the first worker is up.
        birth_s: more for each worker behind it.
    """

    submit_s: float = 30e-6
    take_s: float = 30e-6
    worker_s: float = 40e-6
    item_s: float = 0.0
    byte_s: float = 1 / 2.5e9
    start_s: float = 0.06
    birth_s: float = 0.008


class Script:
    """What items do, by their index.

    Parameters:
        seconds: that an item takes.
        item_bytes, result_bytes: what an item weighs, and its result.
        kills: times that an item ends the worker that runs it, with ``exit_code``.
        stuck: items that cannot travel.
    """

    def __init__(
        self,
        seconds: list[float],
        *,
        item_bytes: int = 0,
        result_bytes: Sequence[int] | int = 0,
        kills: dict[int, int] | None = None,
        exit_code: int = -9,
        stuck: Iterable[int] = (),
    ) -> None:
        self.seconds = seconds
        self.item_bytes = item_bytes
        weights = [result_bytes] * len(seconds) if isinstance(result_bytes, int) else result_bytes
        self.until_s = list(accumulate(seconds, initial=0.0))
        self.until_bytes = list(accumulate(weights, initial=0))
        self.kills = dict(kills or {})
        self.exit_code = exit_code
        self.stuck = frozenset(stuck)

    def fits(self, chunk: Chunk) -> int:
        """Items of a chunk that are begun before one of its limits is reached."""
        first, most = chunk.first, len(chunk.items)
        by_time = bisect_left(self.until_s, self.until_s[first] + chunk.limit_s, first + 1, first + most)
        by_bytes = bisect_left(self.until_bytes, self.until_bytes[first] + chunk.limit_bytes, first + 1, first + most)
        return min(by_time, by_bytes) - first


@dataclass
class _Task:
    chunk: Chunk
    end: float
    report: Report | None
    gone: bool = False


@dataclass
class _Worker:
    number: int
    up_at: float
    stillborn: bool
    free_at: float
    tasks: deque[_Task] = field(default_factory=deque)
    dead: bool = False


class SimulatedBackend:
    """`Backend` in virtual time.

    Parameters:
        clock: advanced while the engine waits, and by what sending and taking costs.
        job: really run, when a chunk is given to a worker.
        script: what items take, and which of them kill.
        costs: of the machinery.
        deaths: (second, which worker) ended from outside.
        stillborn: workers that end before they are up, the first ones.
        breaks_at: second from which nothing goes any more.
        kind: "process", "thread" or "executor".
        refuses: `start` raises WorkerError.
        cpu_share: of the function's time that it computes.
    """

    def __init__(
        self,
        clock: VirtualClock,
        job: Job,
        script: Script,
        costs: Costs,
        *,
        deaths: Iterable[tuple[float, int]] = (),
        stillborn: int = 0,
        breaks_at: float = inf,
        kind: str = "process",
        refuses: bool = False,
        cpu_share: float = 1.0,
    ) -> None:
        self.kind = kind
        self._cpu_share = cpu_share
        self.closed = False
        #: reports handed to the engine, by index of the item
        self.reported: Counter[int] = Counter()
        self.chunks = 0
        self.busy_s = 0.0
        self._clock = clock
        self._job = job
        self._script = script
        self._costs = costs
        self._stillborn = stillborn
        self._in_a_row = 0
        self._breaks_at = breaks_at
        self._refuses = refuses
        self._order = count()
        self._heap: list[tuple[float, int, _Worker | int, _Task | None]] = []
        self._crew: list[_Worker] = []
        self._numbers = count()
        self._events: list[Report | Lost] = []
        self._target = 0
        self._broken: WorkerError | None = None
        for at, which in deaths:
            self._later(at, which)

    @property
    def workers(self) -> int:
        return len(self._crew)

    @property
    def out(self) -> int:
        """Chunks that workers have."""
        return sum(len(worker.tasks) for worker in self._crew)

    def start(self, workers: int) -> None:
        if self._refuses:
            raise WorkerError("no processes here")
        self._target = max(self._target, workers)
        self._fill(self._costs.start_s)

    def ready(self) -> int:
        self._settle()
        return sum(worker.up_at <= self._clock.now for worker in self._crew)

    def room(self, depth: int) -> int:
        return sum(max(0, depth - len(worker.tasks)) for worker in self._crew)

    def submit(self, chunk: Chunk) -> None:
        assert not self.closed, "a chunk for a closed backend"
        assert chunk.items, "an empty chunk"
        indices = range(chunk.first, chunk.first + len(chunk.items))
        if self.kind == "process" and not self._script.stuck.isdisjoint(indices):
            raise TransportError("it does not pickle")
        nbytes = self._script.item_bytes * len(chunk.items)
        self._clock.advance(
            self._costs.submit_s + nbytes * self._costs.byte_s + len(chunk.items) * self._costs.item_s / 2
        )
        self._settle()
        self._check()
        worker = min(self._crew, key=lambda each: (len(each.tasks), each.up_at > self._clock.now))
        assert len(worker.tasks) < 2, "a worker is given a third chunk"
        self._schedule(worker, chunk)
        self.chunks += 1

    def take_waiting(self, most: int) -> list[Chunk]:
        self._settle()
        taken: list[Chunk] = []
        for worker in self._crew:
            if len(taken) < most and len(worker.tasks) == 2:
                task = worker.tasks.pop()
                task.gone = True
                worker.free_at = inf if worker.tasks[0].report is None else worker.tasks[0].end
                taken.append(task.chunk)
        return taken

    def wait(self, timeout: float | None) -> list[Report | Lost]:
        assert not self.closed, "somebody waits for a closed backend"
        deadline = inf if timeout is None else self._clock.now + timeout
        while True:
            self._settle()
            if self._events or self._broken is not None or not self.out or self._clock.now >= deadline:
                break
            self._clock.advance(min(self._next(), deadline) - self._clock.now)
        if not self._events:
            self._check()
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Report):
                items_s = len(event.results) * self._costs.item_s / 2
                self._clock.advance(self._costs.take_s + event.out_bytes * self._costs.byte_s + items_s)
                self.reported.update(range(event.chunk.first, event.chunk.first + len(event.results)))
        return events

    def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _later(self, at: float, who: _Worker | int, task: _Task | None = None) -> None:
        heapq.heappush(self._heap, (at, next(self._order), who, task))

    def _next(self) -> float:
        assert self._heap, "waits for ever"
        return max(self._heap[0][0], self._clock.now)

    def _fill(self, start_s: float) -> None:
        for k in range(self._target - len(self._crew)):
            up_at = self._clock.now + start_s + k * self._costs.birth_s
            worker = _Worker(next(self._numbers), up_at, self._stillborn > 0, up_at)
            self._stillborn -= worker.stillborn
            self._crew.append(worker)
            if worker.stillborn:
                self._later(up_at, worker)

    def _settle(self) -> None:
        """All that has happened by now."""
        while self._heap and self._heap[0][0] <= self._clock.now:
            _, _, who, task = heapq.heappop(self._heap)
            if task is not None and not task.gone and task.report is not None:
                assert isinstance(who, _Worker)
                assert who.tasks.popleft() is task
                self._events.append(task.report)
                self._in_a_row = 0
            elif isinstance(who, int):
                if self._crew:
                    self._die(self._crew[who % len(self._crew)], -9)
            elif (task is None or not task.gone) and not who.dead:
                late_at = -1 if task is None else self._late(task.chunk)
                code = -9 if late_at >= 0 else 1 if who.stillborn else self._script.exit_code
                self._die(who, code, late_at, by_item=task is not None)
        if self._clock.now >= self._breaks_at:
            self._broken = WorkerError("the workers broke")

    def _late(self, chunk: Chunk) -> int:
        """Index of the item of a chunk that ends its worker by taking too long; -1: another one does."""
        index = self._fatal(chunk, len(chunk.items))
        return index if self._script.kills.get(index, 0) == 0 else -1

    def _die(self, worker: _Worker, code: int, late_at: int = -1, *, by_item: bool = False) -> None:
        worker.dead = True
        self._crew.remove(worker)
        up = worker.up_at <= self._clock.now and not worker.stillborn
        for k, task in enumerate(worker.tasks):
            task.gone = True
            began = up and not k
            if began and by_item and late_at < 0:
                self._script.kills[self._fatal(task.chunk, len(task.chunk.items))] -= 1
            self._events.append(Lost(task.chunk, began, code, late_at if began else -1))
        self._in_a_row += worker.stillborn
        if self._in_a_row >= STILLBORN:
            self._broken = WorkerError("workers end before they are up")
        else:
            self._fill(self._costs.birth_s)

    def _fatal(self, chunk: Chunk, most: int) -> int:
        """Index of the first of a chunk's first items that ends its worker; -1: none does."""
        kills, limit = self._script.kills, self._job.timeout
        if self.kind != "process" or (not kills and limit is None):
            return -1
        for index in range(chunk.first, chunk.first + most):
            if kills.get(index, 0) or (limit is not None and self._script.seconds[index] > limit):
                return index
        return -1

    def _schedule(self, worker: _Worker, chunk: Chunk) -> None:
        script, costs = self._script, self._costs
        fits = script.fits(chunk)
        in_bytes = script.item_bytes * len(chunk.items)
        begin = max(worker.free_at, self._clock.now) + costs.worker_s / 2 + in_bytes * costs.byte_s
        fatal = self._fatal(chunk, fits)
        if fatal >= 0:
            own_s = script.seconds[fatal] / 2 if script.kills.get(fatal, 0) else self._job.timeout or 0.0
            task = _Task(chunk, begin + script.until_s[fatal] - script.until_s[chunk.first] + own_s, None)
            worker.free_at = inf
        else:
            report = self._report(chunk, fits, worker.number)
            run_s = report.run_s
            report.in_bytes = in_bytes
            report.out_bytes = script.until_bytes[chunk.first + len(report.results)] - script.until_bytes[chunk.first]
            moved_s = (in_bytes + report.out_bytes) * costs.byte_s + len(report.results) * costs.item_s
            report.transport_s = costs.worker_s / 2 + moved_s
            end = (
                begin
                + run_s
                + costs.worker_s / 2
                + report.out_bytes * costs.byte_s
                + len(report.results) * costs.item_s
            )
            task = _Task(chunk, end, report)
            self.busy_s += run_s
            worker.free_at = end
        worker.tasks.append(task)
        if task.end < inf:
            self._later(task.end, worker, task)

    def _report(self, chunk: Chunk, fits: int, worker: int) -> Report:
        ran = run_chunk(self._job, chunk.items[:fits], chunk.first, clock=float)
        results = ran.results
        seconds = self._script.seconds[chunk.first : chunk.first + len(results)]
        run_s = self._script.until_s[chunk.first + len(results)] - self._script.until_s[chunk.first]
        # as run_chunk tells it: of quick items only the mean of a stretch is known
        slowest = max(seconds)
        longest_s = slowest if slowest > 250e-6 else run_s / len(seconds)
        longest_at = chunk.first + seconds.index(slowest)
        computed_s = run_s * self._cpu_share
        return Report(
            chunk, results, ran.failures, ran.retried, run_s, computed_s, longest_s, longest_at, worker=worker
        )


class Simulation(Delivery):
    """An iterator over what an engine makes of some data with simulated workers.

    Parameters:
        func, data: of the run.
        script: what items take; at least as many as there are items.
        kinds: what the engine may choose; with "serial" use it inside :meth:`serial_time`.
        cpu_share: of the function's time in the caller that it computes.
        consumer_s: seconds a result takes where the iterator is used by :meth:`consumed`.
        options: of `SimulatedBackend`, where it is the first one and of processes.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        data: Iterable[Any],
        script: Script,
        *,
        workers: int = 2,
        kinds: tuple[str, ...] = ("process",),
        limits: Limits | None = None,
        ordered: bool = True,
        total: int | None = None,
        on_error: OnError = "raise",
        retries: int = 0,
        timeout: float | None = None,
        costs: Costs | None = None,
        clock: VirtualClock | None = None,
        cpu_share: float = 1.0,
        consumer_s: float = 0.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.clock = clock or VirtualClock()
        self.script = script
        self.backends: list[SimulatedBackend] = []
        self.policy = Policy(on_error)
        self.stats = MapStats(clock=self.clock)
        self.cpu_share = cpu_share
        self.consumer_s = consumer_s
        self.in_caller = 0
        self._costs = costs or Costs()
        self._options = options or {}
        self._serves = (0, 0.0, 0.0, 0.0, -1)
        self._budget_s = 0.0
        self.supply = Supply(data, clock=self.clock)
        self.engine = Engine(
            Job(func, retries=retries, timeout=timeout),
            self.supply,
            policy=self.policy,
            limits=limits or Limits(cpus=workers, workers=workers),
            backends=self._backend,
            kinds=kinds,
            warm=lambda: 0,
            ordered=ordered,
            total=total,
            stats=self.stats,
            clock=self.clock,
        )

    def _backend(self, kind: str, job: Job, workers: int) -> SimulatedBackend:
        options = self._options if kind == "process" and not self.backends else {}
        options = {**options, "cpu_share": self._options.get("cpu_share", self.cpu_share)}
        backend = SimulatedBackend(self.clock, job, self.script, self._costs, kind=kind, **options)
        self.backends.append(backend)
        return backend

    def more(self) -> bool:
        if self.waiting and not 0.0 < self._budget_s < self._serves[1]:
            return True
        self.clock.fresh()
        return self.engine.more(self)

    def caught(self, error: Exception, index: int, item: Any) -> tuple[Any, ...]:
        return self.engine.caught(error, index, item)

    def consumed(self) -> Iterator[Any]:
        """The results, with the consumer's time passing after each."""
        for result in self:
            yield result
            self.clock.advance(self.consumer_s)

    # -- the caller's own work in virtual time --------------------------------------------------------------------

    def serve(
        self, func: Callable[[Any], Any], items: list[Any], first: int, every: int, cpu: bool, budget_s: float = 0.0
    ) -> None:
        indices = count(first)
        self._serves = (0, 0.0, 0.0, 0.0, -1)

        def called(item: Any) -> Any:
            self._pass(next(indices))
            return func(item)

        self._budget_s = budget_s
        super().serve(called, items, first, 1, cpu, 1e-9)  # used up by any call: `more` looks at the virtual time

    def served(self) -> tuple[int, float, float, float, int]:
        return self._serves

    def _pass(self, index: int) -> None:
        seconds = self.script.seconds[index]
        self.clock.advance(seconds)
        self.in_caller += 1
        timed, run_s, cpu_s, longest_s, longest_at = self._serves
        if seconds > longest_s:
            longest_s, longest_at = seconds, index
        self._serves = timed + 1, run_s + seconds, cpu_s + seconds * self.cpu_share, longest_s, longest_at

    @contextmanager
    def serial_time(self, held_share: float = 1.0) -> Iterator[None]:
        """Within it, what the caller runs by itself takes virtual time as well."""

        def run_here(job: Job, items: Sequence[Any], first: int, limit_s: float = inf, **_: Any) -> Ran:
            until_s = self.script.until_s
            fits = bisect_left(until_s, until_s[first] + limit_s, first + 1, first + len(items)) - first
            ran = run_chunk(job, items[:fits], first)
            self._serves = (0, 0.0, 0.0, 0.0, -1)
            for index in range(first, first + len(ran.results)):
                self._pass(index)
            _, ran.run_s, _, ran.longest_s, ran.longest_at = self._serves
            return ran

        class Time:
            perf_counter = staticmethod(self.clock)

            @staticmethod
            def thread_time() -> float:
                return self.clock.now * self.cpu_share

        held_share = min(held_share, self.cpu_share)  # who waits does not hold the lock
        with (
            mock.patch.object(caller_module, "run_chunk", run_here),
            mock.patch.object(engine_module, "time", Time),
            mock.patch.object(probe_module, "travel_cost", self._travel_cost),
            mock.patch.object(review_module, "run_delay", float),
            mock.patch.object(probe_module, "_held", {self.engine._caller.job.func: held_share}),
        ):
            self.engine._probe.flow.held_share = held_share
            self.engine._probe._held_known = True
            # every call waits, or none does
            waits = 1000 * (self.cpu_share < 1.0)
            self.engine._probe._count_waits = lambda: waits * self.in_caller
            yield

    def _travel_cost(self, item: Any, result: Any) -> Any:
        from lazystore.parallel.scheduling.evidence import Travel, TravelCost

        each_s, in_bytes, out_bytes = self._costs.item_s / 2, self.script.item_bytes, self.script.until_bytes[1]
        return TravelCost(Travel(each_s, in_bytes), Travel(each_s, out_bytes), Travel(0.0, 0))
