"""What the first items tell about a function: its share of CPU time and of the interpreter's lock, and travel costs.

Measuring only; what follows from the figures is decided in ``tuner``.
"""

from __future__ import annotations

import _thread
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

try:
    import resource
except ImportError:  # not Unix
    resource = None  # type: ignore[assignment]

__all__ = ["CallClock", "CallTimes", "GilSampler", "GilShare", "Travel", "TravelCost", "travel_cost", "wait_counter"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class CallTimes:
    """Times of a number of calls, added up.

    Parameters:
        count: calls.
        wall_s: seconds that passed.
        thread_s: CPU seconds of the calling thread.
        process_s: CPU seconds of the process, all its threads together.
    """

    count: int = 0
    wall_s: float = 0.0
    thread_s: float = 0.0
    process_s: float = 0.0

    @property
    def cpu_share(self) -> float:
        """CPU time of the calling thread over time passed, 0 to 1: near 0 it waited, for others or for a CPU."""
        return min(1.0, self.thread_s / self.wall_s) if self.wall_s > 0 else 0.0

    @property
    def others_s(self) -> float:
        """CPU seconds of the process's other threads while the calls ran."""
        return max(0.0, self.process_s - self.thread_s)


class CallClock:
    """Adds up what calls take. One thread uses it.

    Cost: 1-2 us a stretch of calls: for functions that take less than some 20 us, time many calls as one stretch.
    """

    def __init__(self) -> None:
        self._count = 0
        self._wall = self._thread = self._process = 0.0
        self._began = (0.0, 0.0, 0.0)

    def begin(self) -> None:
        """A stretch of calls begins, in this thread."""
        self._began = (time.process_time(), time.thread_time(), time.perf_counter())

    def end(self, count: int = 1) -> None:
        """It has ended, after ``count`` calls, in the same thread."""
        wall, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
        process_0, thread_0, wall_0 = self._began
        self._wall += wall - wall_0
        self._thread += thread - thread_0
        self._process += process - process_0
        self._count += count

    def call(self, func: Callable[[Any], R], item: Any) -> R:
        """``func(item)``, timed; also when it raises."""
        self.begin()
        try:
            return func(item)
        finally:
            self.end()

    @property
    def times(self) -> CallTimes:
        """What there is so far."""
        return CallTimes(self._count, self._wall, self._thread, self._process)


@dataclass(frozen=True, slots=True)
class GilShare:
    """How much of the time the interpreter's lock was held by other threads than the sampler.

    Parameters:
        held: share of the time, 0 to 1.
        samples: looks it rests on; below 3 it says nothing.
        free_threaded: this interpreter runs without the lock; ``held`` is 0 then.
    """

    held: float
    samples: int
    free_threaded: bool = False


class GilSampler:
    """Finds out for how much of the time some thread holds the interpreter's lock (GIL).

    A daemon thread sleeps 0.3 to 1 ms at a time and notes whether it had to wait for the lock when it woke. The system
    counts how often a thread gives up its CPU to wait: once for the sleep, again for a lock that is taken. So a
    machine that is busy, where threads are late for other reasons, is not taken for a lock that is held. Where the
    system does not count per thread (macOS), being late by more than 0.2 ms counts instead. Each look stands for the
    time since the one before.

    A thread that holds the lock is asked for it by Python after 5 ms (``sys.setswitchinterval``), so a look takes as
    long then. Looks become rarer with time, at once when the lock turns out to be held.

    Used by one thread: ``start()`` once, ``share()``, ``stop()``. After a fork the child's copy has no thread;
    ``stop()`` there gives what was sampled before.
    """

    def __init__(self) -> None:
        self._stopping = threading.Lock()  # free when the thread shall end
        self._ended = threading.Lock()  # free when it has
        self._running = False
        self._pid = os.getpid()
        self._seen = (0.0, 0.0, 0)  # seconds the lock was held, seconds passed, looks: replaced as one
        self._free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()

    def start(self) -> None:
        """Begin to look; below 0.1 ms."""
        if not self._free_threaded:
            self._running = True
            self._stopping.acquire()
            self._ended.acquire()
            # threading.Thread would wait until the thread runs, and that is long on a busy machine
            _thread.start_new_thread(self._watch, ())

    def share(self) -> GilShare:
        """What was found so far."""
        held, passed, samples = self._seen
        return GilShare(held / passed if passed else 0.0, samples, self._free_threaded)

    def stop(self) -> GilShare:
        """End it and tell the share; waits for the thread, below a millisecond."""
        if self._running:
            self._running = False
            self._stopping.release()
            if os.getpid() == self._pid:
                self._ended.acquire()
        return self.share()

    def _watch(self) -> None:
        try:
            self._look()
        finally:
            self._ended.release()

    def _look(self) -> None:
        waits = wait_counter()
        clock = time.perf_counter
        chance = random.Random()  # not the program's own, whose numbers may have been seeded
        longest = 1e-3
        before, waited = clock(), waits()
        for _ in range(MOST_LOOKS):
            asleep = chance.uniform(0.3 * longest, longest)
            if self._stopping.acquire(timeout=asleep):
                return
            now, waited_now = clock(), waits()
            late = now - before - asleep
            held = waited_now - waited > 1 if waited_now > waited else late > LATE_S
            held_s, passed_s, samples = self._seen
            self._seen = (held_s + held * (now - before), passed_s + now - before, samples + 1)
            longest = min(longest * (2.0 if held else 1.1), LONGEST_S)
            before, waited = clock(), waits()


LATE_S = 0.2e-3  # beyond the slack of the kernel's timers (0.05 ms) and a thread's start on an idle CPU
LONGEST_S = 20e-3
MOST_LOOKS = 2000  # some 20 s: more tells nothing new


def wait_counter() -> Callable[[], int]:
    """What tells how often the calling thread has given up its CPU to wait; always 0 where the system does not tell."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return int
    usage, who = resource.getrusage, resource.RUSAGE_THREAD
    return lambda: usage(who).ru_nvcsw


@dataclass(frozen=True, slots=True)
class Travel:
    """What it costs to pickle something.

    Parameters:
        seconds: that pickling takes, when it is one of many; 0 where it cannot be pickled.
        nbytes: of the pickle and of the buffers beside it (protocol 5), which need no pickling.
        error: why it cannot be pickled; empty where it can.
    """

    seconds: float
    nbytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class TravelCost:
    """What it costs to send an item to another process and a result back, and the function once."""

    item: Travel
    result: Travel
    func: Travel

    @property
    def seconds(self) -> float:
        """To pickle an item and its result."""
        return self.item.seconds + self.result.seconds

    @property
    def in_bytes(self) -> int:
        """Of an item."""
        return self.item.nbytes

    @property
    def out_bytes(self) -> int:
        """Of a result."""
        return self.result.nbytes

    @property
    def error(self) -> str:
        """Why one of them cannot be pickled; empty where all can."""
        return self.func.error or self.item.error or self.result.error


def travel_cost(item: object, result: object, func: object = None) -> TravelCost:
    """Pickle an item, a result and the function, and throw the pickles away; the function is not called.

    Cost: what pickling costs; buffers of arrays and large byte strings are counted, not copied. Whether they can be
    unpickled elsewhere is not tried. Never raises because of them.
    """
    return TravelCost(_travel(item), _travel(result), _travel(func))


class _Count:
    """A file that only counts."""

    def __init__(self) -> None:
        self.nbytes = 0

    def write(self, data: Any) -> int:
        size = len(data)
        self.nbytes += size
        return size

    def buffer(self, buffer: pickle.PickleBuffer) -> None:
        with memoryview(buffer) as view:
            self.nbytes += view.nbytes


#: what took less is tried twice: the first time code and data are not at hand yet
QUICK_S = 1e-3


def _travel(value: object) -> Travel:
    """Of one value among others in a chunk: without what a pickler takes to begin and to end."""
    try:
        seconds, nbytes = _pickle(value)
        if seconds < QUICK_S:
            seconds = min(seconds, _pickle(value)[0])
    except Exception as error:  # noqa: BLE001 (classes may raise anything from here; the question is whether they do)
        return Travel(0.0, 0, f"{type(error).__name__}: {error}")
    if seconds < QUICK_S:
        seconds = max(0.0, seconds - min(_pickle(None)[0] for _ in range(3)))
    return Travel(seconds, nbytes)


def _pickle(value: object) -> tuple[float, int]:
    """Seconds that pickling takes, and bytes."""
    count = _Count()
    began = time.perf_counter()
    pickle.Pickler(count, protocol=5, buffer_callback=count.buffer).dump(value)
    return time.perf_counter() - began, count.nbytes
