"""The workers' half of `imap`: chunks cut, sent, collected, and run again when a worker is lost.

Which backend, and whether there are workers at all, is the engine's business.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

from lazystore.errors import ItemTimeoutError, TransportError, WorkerDiedError
from lazystore.parallel.chunk import Backend, Chunk, Job, Lost, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.map_stats import MapStats
from lazystore.parallel.scheduling.arrivals import Arrivals, Part
from lazystore.parallel.scheduling.caller import warn
from lazystore.parallel.scheduling.supply import Supply
from lazystore.parallel.scheduling.tuner import MOST_ITEMS, Flow, Limits, chunk_items, window_items
from lazystore.parallel.workers.chunk_run import weigh

__all__ = ["Fleet"]

#: seconds that a chunk may wait for a slow source to fill it
LINGER_S: Final = 0.005
#: seconds an item of the source from which results that are there go first
SLOW_SOURCE_S: Final = 0.0005
#: chunk time from which a worker needs no second chunk waiting behind the first
LONG_S: Final = 0.02
#: seconds of work that wait in a process behind the chunk it is at: with all processors taken by workers, the system
#: lets the caller wait for some milliseconds until it may send more
AHEAD_S: Final = 0.01
#: seconds of the longest item of late from which a chunk that waits behind another is worth moving
STEAL_S: Final = 0.001
#: bytes an item from which results that are there do not wait until more is packed
HEAVY: Final = 1 << 18
#: pieces of a chunk that a worker died of, or that cannot travel
PIECES: Final = 16
#: workers that one item, running alone, may lose: to signals that others send as well, and to anything else
KILLS: Final = 8
CRASHES: Final = 2
_FOREIGN: Final = (-int(signal.SIGKILL), -int(signal.SIGTERM))


class Fleet:
    """Workers of one backend, and what they are given.

    Holds at most ``limits.bytes`` of items under way and results that wait, as far as their weights are known from
    those before them, but always lets the item run whose turn it is.

    Parameters:
        job: what is done.
        backend: carries chunks; this closes it.
        supply: new items.
        arrivals: where results go.
        limits: of the run.
        flow: what is known of the stream; kept up to date.
        stats: kept up to date.
        total: items in all, where known.
    """

    def __init__(
        self,
        job: Job,
        backend: Backend,
        *,
        supply: Supply,
        arrivals: Arrivals,
        limits: Limits,
        flow: Flow,
        stats: MapStats,
        total: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.job = job
        self.backend = backend
        self.backlog: deque[Chunk] = deque()
        #: called with a chunk whose items cannot travel; gives its report
        self.run_here: Callable[[Chunk], Report] | None = None
        self._supply = supply
        self._arrivals = arrivals
        self._limits = limits
        self._flow = flow
        self._stats = stats
        self._total = total
        self._clock = clock
        self._sent: dict[int, Chunk] = {}
        self._items_out = 0
        self._number = 0
        self._chunk = 0
        #: items of a chunk that came back whole
        self._proved = 0
        self._told = False
        self._growing = False
        self._handling_s = 0.0
        self._handled = 0
        #: items, seconds of work, and those of them that were computing, reported since the fleet began
        self.done_items = 0
        self.done_s = self.computed_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether chunks are under way."""
        return bool(self._sent)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or waits to be sent, and nothing more will come."""
        return not self._sent and not self.backlog and self._supply.ended

    def collect(self, timeout: float | None) -> bool:
        """Take what workers have finished; whether there was anything.

        Raises:
            TransportError, WorkerError: the backend cannot go on; what is under way stays known.
        """
        began = self._clock()
        events = self.backend.wait(timeout)
        if timeout != 0.0:
            waited = self._clock() - began
            self._stats.waiting_s += waited
            began += waited
        for event in events:
            chunk = self._sent.pop(event.chunk.number)
            self._items_out -= len(chunk.items)
            if isinstance(event, Report):
                self._take(event)
            else:
                self._lost(event)
        if events:
            self._handling_s += self._clock() - began
            self._stats.held(self._arrivals.items, int(self._arrivals.bytes))
        return bool(events)

    def feed(self, *, new: bool = True) -> bool:
        """Give workers what they have room for; whether there may be more to give at once.

        Of a slow source only one chunk is pulled, and what workers are about to finish is awaited first: results that
        are there should not wait for items that are not.

        Parameters:
            new: also items from the supply.
        """
        room = self.backend.room(self._depth())
        while room > 0:
            slow = self._supply.item_s > SLOW_SOURCE_S and not self.backlog
            if slow and self._sent:
                self.collect(0.05 * self._supply.item_s)
                if self._arrivals.ready:
                    return False
            chunk = self._next() if new or self.backlog else None
            if chunk is None:
                return new and self._steal()
            began = self._clock()
            self._send(chunk)
            self._handling_s += self._clock() - began
            self._handled += 1
            room -= 1
            if self._growing:  # what has come back meanwhile may allow a larger one
                self.collect(0.0)
            if slow or (self._arrivals.ready and self._flow.in_bytes > HEAVY):
                return room > 0
        return False

    def _steal(self) -> bool:
        """Take chunks that wait behind others back for workers that have nothing to do; whether there were any."""
        idle = self.backend.room(1)
        waiting = len(self._sent) - (self.backend.workers - idle)
        if idle <= 0 or waiting <= 0 or self.backend.kind == "thread" or self._flow.longest_s < STEAL_S:
            return False  # threads take their chunks from one queue
        stolen = self.backend.take_waiting(min(idle, waiting))
        for chunk in stolen:
            del self._sent[chunk.number]
            self._items_out -= len(chunk.items)
            self.backlog.append(self._cut(chunk.items, chunk.first, chunk.deaths))
        return bool(stolen)

    def add(self, items: Sequence[Any], first: int) -> None:
        """Items to be run before all that come from the supply."""
        if items:
            self.backlog.append(self._cut(items, first))

    def recall(self) -> list[Chunk]:
        """Chunks that no worker has begun, for somebody else."""
        for chunk in self.backend.take_waiting(len(self._sent)):
            del self._sent[chunk.number]
            self._items_out -= len(chunk.items)
            self.backlog.append(chunk)
        return self.unsent()

    def unsent(self) -> list[Chunk]:
        """Chunks that no worker has, for somebody else."""
        chunks = list(self.backlog)
        self.backlog.clear()
        return chunks

    def take_back(self) -> list[Chunk]:
        """All chunks that are not done, for another backend; the order of the data."""
        chunks = sorted([*self._sent.values(), *self.backlog], key=lambda chunk: chunk.first)
        self._sent.clear()
        self.backlog.clear()
        self._items_out = 0
        return chunks

    def close(self) -> None:
        """Give the workers up."""
        self.backend.close()

    # -- sending --------------------------------------------------------------------------------------------------

    def _depth(self) -> int:
        """Chunks a worker may have: one to run, and another unless the gap between two does not matter."""
        if self.backend.kind != "process":
            return 2
        chunk_s = self._flow.run_s * max(1, self._chunk)
        serving_s = self.backend.workers * self._handling_s / max(self._handled, 1)
        absent_s = self._flow.consumer_s + self._flow.source_s + serving_s
        return 1 if chunk_s > LONG_S and absent_s < 0.03 * chunk_s else 2

    def _next(self) -> Chunk | None:
        """The chunk to send now; None when there is none, or no room to hold its results."""
        if self.backlog:
            head = min(self.backlog, key=lambda chunk: chunk.first)
            # what a worker handed back is for all of them
            count = max(1, min(len(head.items), self._fitting(), self._size()))
            if count > self._fitting() and not self._is_due(head.first):
                return None
            self.backlog.remove(head)
            if count < len(head.items):
                self.backlog.append(self._cut(head.items[count:], head.first + count))
            return self._cut(head.items[:count], head.first, head.deaths)
        if self._supply.ended:
            return None
        count = min(self._size(), self.space())
        if count < 1:
            if self._items_out + self._arrivals.items:
                self._stats.window_stalls += 1
                return None
            count = 1  # nothing else is ahead: it goes whatever it weighs
        items = self._supply.take(count, LINGER_S)
        return self._cut(items, self._supply.index - len(items)) if items else None

    def _is_due(self, first: int) -> bool:
        return self._arrivals.is_due(first) or (not self._sent and not self._arrivals.ready)

    def space(self, *, starting: bool = False) -> int:
        """Items that may be pulled now beyond those that are under way or wait for the consumer.

        Parameters:
            starting: workers have not shown yet how quick they are.
        """
        if starting:
            window = self._limits.ahead or MOST_ITEMS
        else:
            # the slowest item of late may be one that is not done yet
            age_s = self._clock() - next(iter(self._sent.values())).sent_at if self._sent else 0.0
            window = window_items(self._flow, self._limits, self.backend.workers, self._chunk, self._depth(), age_s)
        return min(window - self._items_out - self._arrivals.items, self._fitting())

    def _fitting(self) -> int:
        """Items whose results there is room for."""
        each = self._flow.in_bytes + self._flow.out_bytes
        if each < 1:
            return MOST_ITEMS
        return int((self._limits.bytes - self._arrivals.bytes) / each) - self._items_out

    def _size(self) -> int:
        """Items of the next chunk; at most twice as many as came back whole since it last had to shrink."""
        waiting = sum(len(chunk.items) for chunk in self.backlog)
        remaining: int | None = None
        if self._supply.ended:
            remaining = max(1, waiting)
        elif self._total is not None:
            remaining = max(1, self._total - self._supply.index + waiting)
        overhead_s = self._handling_s / self._handled if self._handled > 8 else 0.0
        ideal = chunk_items(
            self._flow,
            self._limits,
            self.backend.workers,
            kind="thread" if self.backend.kind == "thread" else "process",
            overhead_s=overhead_s,
            remaining=remaining,
            ahead_s=self._ahead_s(),
        )
        if not self._chunk:
            self._chunk = ideal if self._flow.run_s else self._limits.chunk or 1
        elif ideal <= self._chunk:
            self._chunk = ideal
            self._proved = min(self._proved, ideal)
        else:
            self._chunk = min(ideal, max(self._chunk, 2 * self._proved))
        self._growing = self._chunk < ideal
        return self._chunk

    def _ahead_s(self) -> float:
        """Seconds of work to have ready for a process while the caller waits for its turn on a processor."""
        source_bound = self.backend.workers * self._supply.item_s > self._flow.run_s
        return 0.0 if self.backend.kind != "process" or not self.done_items or source_bound else AHEAD_S

    def _cut(self, items: Sequence[Any], first: int, deaths: int = 0) -> Chunk:
        self._number += 1
        limit_s, limit_bytes = inf, 1 << 62
        if not self._limits.chunk:
            limit_s = max(0.005, 2.0 * self._flow.run_s * len(items))
            limit_bytes = max(1 << 16, self._limits.bytes // (4 * max(1, self.backend.workers)))
        return Chunk(self._number, first, items, limit_s, limit_bytes, deaths)

    def _send(self, chunk: Chunk) -> None:
        chunk.sent_at = self._clock()
        # known before anything can go wrong
        self._sent[chunk.number] = chunk
        self._items_out += len(chunk.items)
        try:
            self.backend.submit(chunk)
        except TransportError as error:
            del self._sent[chunk.number]
            self._items_out -= len(chunk.items)
            self._cannot_travel(chunk, error)

    def _cannot_travel(self, chunk: Chunk, error: TransportError) -> None:
        """An item does not pickle: only that one is run in the caller, or fails."""
        if len(chunk.items) > 1:
            self._in_pieces(chunk)
        elif self.run_here is not None:
            if not self._told:
                self._told = True
                warn(f"item {chunk.first} cannot be sent to a worker process and runs here, as all like it will")
            self._take(self.run_here(chunk))
        else:
            self._failed(chunk, 0, error)

    def _in_pieces(self, chunk: Chunk) -> None:
        """Have a chunk that cannot go as it is go in smaller ones; again and again, down to single items."""
        step = -(-len(chunk.items) // PIECES)
        for k in range(0, len(chunk.items), step):
            self.backlog.append(self._cut(chunk.items[k : k + step], chunk.first + k))

    # -- collecting -----------------------------------------------------------------------------------------------

    def _take(self, report: Report) -> None:
        chunk, count = report.chunk, len(report.results)
        if count < len(chunk.items):
            self.backlog.append(self._cut(chunk.items[count:], chunk.first + count))
            self._chunk = self._proved = max(1, min(self._chunk, count))
        elif self._proved < count:
            self._proved = min(count, self._chunk)
        flow = self._flow
        run_s = report.run_s / count
        flow.run_s = run_s if run_s > 2 * flow.run_s or not self.done_items else flow.run_s + 0.3 * (run_s - flow.run_s)
        flow.longest_s = max(report.longest_s, 0.95 * flow.longest_s)
        computed_s = min(report.computed_s, report.run_s)
        if self.backend.kind == "process" and report.run_s > 0:  # of threads' waiting much is for each other
            share = computed_s / report.run_s
            flow.cpu_share += (0.3 if self.done_items else 1.0) * (share - flow.cpu_share)
        if report.out_bytes or report.in_bytes:
            item_bytes = report.out_bytes / count
            flow.in_bytes += 0.3 * (report.in_bytes / count - flow.in_bytes)
            flow.pickle_s += 0.3 * (report.transport_s / count - flow.pickle_s)
        else:
            item_bytes = weigh(report.results[0])
            flow.in_bytes = weigh(chunk.items[0])
        # a sudden weight counts at once
        flow.out_bytes = max(item_bytes, flow.out_bytes + 0.3 * (item_bytes - flow.out_bytes))
        self.done_items += count
        self.done_s += report.run_s
        self.computed_s += computed_s
        self._stats.report(report, self._clock())
        items = chunk.items if count == len(chunk.items) else chunk.items[:count]
        self._arrivals.put(Part(chunk.first, report.results, items, report.failures, item_bytes))

    def _lost(self, lost: Lost) -> None:
        chunk = lost.chunk
        if lost.began and lost.exit_code:
            self._stats.died(len(chunk.items))
        if lost.late_at >= 0:
            self._late(chunk, lost.late_at - chunk.first)
        elif not lost.began:
            self.backlog.append(self._cut(chunk.items, chunk.first, chunk.deaths))
        elif len(chunk.items) > 1:
            # so that an item that kills is found and takes no other with it
            self._in_pieces(chunk)
        else:
            deaths = chunk.deaths + 1
            most = (KILLS if lost.exit_code in _FOREIGN else CRASHES) + self.job.retries
            if deaths < most:
                self.backlog.append(self._cut(chunk.items, chunk.first, deaths))
            else:
                self._failed(chunk, 0, _died(chunk.first, lost.exit_code, deaths))

    def _late(self, chunk: Chunk, at: int) -> None:
        """An item took too long: those around it run again, it fails unless it may be retried."""
        self.add(chunk.items[:at], chunk.first)
        self.add(chunk.items[at + 1 :], chunk.first + at + 1)
        if chunk.deaths < self.job.retries:
            self._stats.retried += 1
            self.backlog.append(self._cut([chunk.items[at]], chunk.first + at, chunk.deaths + 1))
            return
        index = chunk.first + at
        message = f"item {index} took longer than timeout={self.job.timeout} s; give it more time, or on_error="
        self._failed(chunk, at, ItemTimeoutError(message + '"skip"', index=index))

    def _failed(self, chunk: Chunk, at: int, error: Exception) -> None:
        index, item = chunk.first + at, chunk.items[at]
        self._stats.failed += 1
        self._stats.done += 1
        self._arrivals.put(Part(index, [Failed(error, index, item)], [item], 1))


def _died(index: int, exit_code: int, deaths: int) -> WorkerDiedError:
    if exit_code == -int(signal.SIGKILL):
        how = "SIGKILL: the system may have run out of memory"
    elif exit_code < 0:
        how = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    else:
        how = f"exit status {exit_code}"
    return WorkerDiedError(
        f"item {index} ended {deaths} worker processes, the last one by {how}; try func on it alone, or leave it out",
        index=index,
        exit_code=exit_code,
    )
