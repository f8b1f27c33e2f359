"""Items of a chunk are run here, one after the other, wherever that is: worker process, thread, executor, caller.

Decides when a chunk is stopped early and what becomes of an item that fails; how a chunk came and how its results
travel is not known here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lazystore.parallel.chunk import Job
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers.work_clock import run_delay

__all__ = ["Ran", "run_chunk", "weigh"]

#: quick items are run in stretches of about this many seconds; the clock is looked at between them
STRETCH_S = 0.0005
#: items in a stretch at most
STRETCH = 256
#: values of these types weigh next to nothing; to know that saves the look
_LIGHT = frozenset({int, float, bool, complex, type(None)})

#: what threads of this process are at
_runners: set[_Runner] = set()


@dataclass(slots=True)
class Ran:
    """What became of a chunk's first items. Pickles if the results do.

    Parameters:
        results: one an item, at least one; ``Failed`` where an item failed.
        failures: how many of them are ``Failed``.
        retried: tries beyond the first of each item.
        run_s: seconds in ``func`` and ``reader``, without those in which the thread was kept from a processor.
        computed_s: of ``run_s`` those of a processor; the rest was waiting, for others or for the interpreter's lock.
    longest_s: of the slowest item (of quick ones: the mean of their stretch), as if all of those were in it.
        longest_at: index of that item in the data.
        nbytes: what the results weigh, about.
    """

    results: list[Any] = field(default_factory=list)
    failures: int = 0
    retried: int = 0
    run_s: float = 0.0
    computed_s: float = 0.0
    longest_s: float = 0.0
    longest_at: int = -1
    nbytes: float = 0.0


def run_chunk(
    job: Job,
    items: Sequence[Any],
    first: int,
    limit_s: float = float("inf"),
    limit_bytes: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    note: Callable[[int], object] | None = None,
    catch: type[BaseException] = BaseException,
    delay: Callable[[], float] = run_delay,
    computed: Callable[[], float] = time.thread_time,
) -> Ran:
    """Run ``job.func`` with items until they are through or a limit is reached; at least with one.

    Looking at the clock costs under 1 % of items of 2 us. An item that raises an ``Exception`` is tried again
    ``job.retries`` times; then, as for what is not an ``Exception``, a :class:`Failed` stands for its result. The
    latter also ends the chunk. ``StopIteration`` out of ``func`` becomes a ``RuntimeError``, as out of a generator.

    A process that ``func`` forks and that comes back out of it is ended: it would do its parent's work again.

    Parameters:
        items: what ``func`` is called with, or keys for ``job.reader``.
        first: index of the first item in the data.
        limit_s: stop after the item (or stretch of quick ones) in which so many seconds have passed.
        limit_bytes: stop likewise when the results weigh so much.
        note: called with an item's index before each try of it; costs time on quick items.
        catch: what counts as an item's failure; anything else is raised and what was done is lost. In the caller's own
            thread: ``Exception``, so that Ctrl-C is not taken for an item's.
        delay: tells seconds as well: those so far in which this thread had no processor.
        computed: tells the seconds of a processor so far.
    """
    watch = _Stopwatch(clock, delay, computed)
    if job.reader is not None:
        job, items = _read(job, job.reader, items)
    runner = _Runner(job, list(items), first, catch)
    del items
    _runners.add(runner)
    try:
        runner.run(watch, limit_s, limit_bytes, note)
        return runner.ran
    finally:
        _runners.discard(runner)
        runner.let_go()


class _Stopwatch:
    """How long a chunk takes, and for how much of that its thread had no processor, which is nobody's fault here."""

    def __init__(self, clock: Callable[[], float], delay: Callable[[], float], computed: Callable[[], float]) -> None:
        self.clock = clock
        self._delay = delay
        self._computed = computed
        self._computed_before = computed()
        self._before = delay()
        self.begin = clock()

    def delayed(self, now: float) -> float:
        return min(max(0.0, self._delay() - self._before), now - self.begin)

    def computed(self) -> float:
        return self._computed() - self._computed_before


class _Runner:
    """Runs one chunk.

    An error keeps the frames alive that it came through, and those they were called from; so what weighs something is
    an attribute here, which is let go in the end, and never a local variable.
    """

    __slots__ = ("_catch", "_error", "_first", "_items", "_job", "_left", "ran")

    def __init__(self, job: Job, items: list[Any], first: int, catch: type[BaseException]) -> None:
        self.ran = Ran()
        self._job = job
        self._items = items
        self._left = iter(items)
        self._first = first
        self._catch = catch
        self._error: BaseException | None = None

    def run(self, watch: _Stopwatch, limit_s: float, limit_bytes: float, note: Callable[[int], object] | None) -> None:
        results, count = self.ran.results, len(self._items)
        clock, begin, until = watch.clock, watch.begin, watch.begin + limit_s
        done, size, now = 0, 1, begin
        nbytes, longest_s, longest_at = 0.0, 0.0, -1
        while done < count:
            if note is not None:
                note(self._first + done)
            fatal = not self._stretch(self._left, min(size, count - done)) and self._failed(note)
            now, before = clock(), now
            made = len(results) - done
            mean = (now - before) / made
            if mean > longest_s:
                longest_s, longest_at = mean, self._first + done
            # of many results two are weighed
            nbytes += weigh(results[done]) if made == 1 else 0.5 * made * (weigh(results[done]) + weigh(results[-1]))
            done += made
            if fatal or nbytes >= limit_bytes:
                break
            if now >= until:
                delayed = watch.delayed(now)
                if now - begin - delayed >= limit_s:
                    break
                until = begin + limit_s + delayed
            if note is None:
                size = min(STRETCH, 4 * size, int(STRETCH_S / mean) or 1) if mean > 0 else STRETCH
        del results
        delayed = watch.delayed(now)
        run_s = now - begin - delayed
        self.ran.run_s, self.ran.nbytes = run_s, nbytes
        self.ran.computed_s = min(watch.computed(), run_s)
        self.ran.longest_s, self.ran.longest_at = max(longest_s - delayed, run_s / max(1, done)), longest_at

    def let_go(self) -> None:
        self.ran = Ran()
        self.stop()

    def stop(self) -> None:
        """Nothing more is run."""
        self._items.clear()

    def _stretch(self, items: Iterator[Any], count: int) -> bool:
        """Run some items; False, and :attr:`_error` set, when one failed: the results of those before it are there."""
        wanted, here = len(self.ran.results) + count, os.getpid()
        self._error = None
        try:
            self.ran.results.extend(map(self._job.func, islice(items, count)))
        except self._catch as caught:
            self._error = _outside(caught)
        if os.getpid() != here:
            os._exit(_code(self._error))
        if self._error is None and len(self.ran.results) < wanted:  # map takes a StopIteration for the end of its input
            self._error = RuntimeError("the function raised StopIteration")
        return self._error is None

    def _failed(self, note: Callable[[int], object] | None) -> bool:
        """Try an item again, or have its error stand for its result; whether nothing should be run after it."""
        place = len(self.ran.results)
        for _ in range(self._job.retries):
            if not isinstance(self._error, Exception):
                break
            self.ran.retried += 1
            if note is not None:
                note(self._first + place)  # each try has the whole time
            if self._stretch(iter(self._items[place : place + 1]), 1):
                return False
        assert self._error is not None
        self.ran.results.append(Failed(self._error, self._first + place, self._items[place]))
        self.ran.failures += 1
        fatal, self._error = not isinstance(self._error, Exception), None
        return fatal


def _run_nothing_more() -> None:
    """In a process that a function forked: its parent runs the rest."""
    for runner in _runners:
        runner.stop()


os.register_at_fork(after_in_child=_run_nothing_more)


def _outside(error: BaseException) -> BaseException:
    """The error without the frame of this module, which would keep the whole chunk alive as long as the error."""
    trace = error.__traceback__
    return error.with_traceback(None if trace is None else trace.tb_next)


def _code(error: BaseException | None) -> int:
    """Exit code of a process that ``func`` forked and that came out of it this way."""
    if not isinstance(error, SystemExit):
        return 0 if error is None else 1
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _read(job: Job, reader: Callable[[Sequence[Any]], Sequence[Any]], keys: Sequence[Any]) -> tuple[Job, Sequence[Any]]:
    """The items of some keys; where they cannot be read together, each is read when it is its turn."""
    try:
        items = reader(keys)
    except Exception:  # noqa: BLE001 (raised again for the keys that it belongs to)
        items = ()
    if len(items) == len(keys):
        return job, items

    def read_and_run(key: Any) -> Any:
        (item,) = reader([key])
        return job.func(item)

    return replace(job, func=read_and_run, reader=None), keys


def weigh(value: Any, depth: int = 2) -> float:
    """Bytes of a value, about: of containers a few members are looked at, of views what they show."""
    if type(value) in _LIGHT:
        return 32.0
    try:
        nbytes = float(sys.getsizeof(value))
        if hasattr(type(value), "nbytes"):
            return max(nbytes, float(value.nbytes))
    except Exception:  # noqa: BLE001 (the value's own methods; nobody but the estimate asked for them)
        return 64.0
    if not depth or type(value) not in (list, tuple, dict):
        return nbytes
    members = value.values() if isinstance(value, dict) else value
    few = list(islice(members, 16))
    return nbytes + (sum(weigh(member, depth - 1) for member in few) * len(members) / len(few) if few else 0.0)
