"""The first items of some data, tried once each in the caller: what they take, and what travelling would cost.

No decisions: what was measured is turned into numbers here (:meth:`Samples.work`) and into a plan in ``planning``.
"""

from __future__ import annotations

import pickle
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lazystore.parallel.plans.forecast import Work
from lazystore.parallel.plans.source import Source
from lazystore.parallel.scheduling.evidence import CallClock, CallTimes, GilSampler, GilShare
from lazystore.parallel.workers.inner_threads import has_inner_threads, native_threads

__all__ = ["Samples", "Trial", "call", "take_samples"]

#: seconds spent on waiting for the source, and seconds in ``func``, after which no further sample is begun
WAIT_S: Final = 1.0
RUN_S: Final = 1.0
#: seconds after which no further result is pickled to see what that costs
PACK_S: Final = 0.05
#: the first call stands out, and counts as warm-up, when it took so many times as long as any other
WARM_UP: Final = 3.0
#: a call from which on it is worth to watch who holds the interpreter's lock, and looks that say something
WATCH_S: Final = 0.001
ENOUGH_LOOKS: Final = 4
#: share of the time watched that must have been the call itself
MOSTLY: Final = 0.75
#: samples before that
UNWATCHED: Final = 2
#: calls shorter than this compute, for all that clocks can tell
FINE_S: Final = 20e-6


@dataclass(slots=True)
class Trial:
    """One item and what became of it; times in seconds.

    Parameters:
        result: what ``func`` returned.
        error: what it raised instead.
        run_s, times: in ``func``, by the clock; and all clocks.
        never_waited: the thread did not once give up its processor, so all of ``run_s`` was computing, or being
            kept from it by others.
        lock: who held the interpreter's lock meanwhile, where that was watched.
        source_s: until the source gave the item.
        pack_in_s, unpack_in_s, in_bytes: of the item's pickle; None where it was not, or could not be, pickled.
        pack_out_s, unpack_out_s, out_bytes: of the result's.
        stays: why the item or the result cannot travel to another process; "": it can.
    """

    result: Any = None
    error: Exception | None = None
    run_s: float = 0.0
    times: CallTimes = field(default_factory=CallTimes)
    never_waited: bool = False
    lock: GilShare | None = None
    source_s: float = 0.0
    pack_in_s: float | None = None
    unpack_in_s: float | None = None
    in_bytes: int | None = None
    pack_out_s: float | None = None
    unpack_out_s: float | None = None
    out_bytes: int | None = None
    stays: str = ""

    @property
    def work_s(self) -> float:
        """What the item takes where nobody else is at the processor: the CPU time of a call that never waited."""
        return self.times.thread_s if self.never_waited and self.run_s > FINE_S else self.run_s


@dataclass(slots=True)
class Samples:
    """What sampling found.

    Parameters:
        trials: in the order of the data.
        asked: samples that were wanted.
        stopped: why there are fewer; "" otherwise.
        threads_started: threads the process has more than before.
        func_stays: why ``func`` itself cannot be pickled; "": it can.
    """

    trials: list[Trial] = field(default_factory=list)
    asked: int = 0
    stopped: str = ""
    func_stays: str = ""
    threads_started: int = 0

    @property
    def good(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.error is None]

    @property
    def stays(self) -> str:
        """Why processes are out of the question; "" where they are not."""
        return self.func_stays or next((trial.stays for trial in self.trials if trial.stays), "")

    @property
    def warm_up_s(self) -> float:
        """What the first call took more than the others, where it stands out; else 0."""
        times = [trial.work_s for trial in self.good]
        if len(times) < 3 or self.trials[0].error is not None or times[0] <= WARM_UP * max(times[1:]):
            return 0.0
        return times[0] - statistics.fmean(times[1:])

    @property
    def times(self) -> CallTimes:
        """Of all calls together."""
        each = [trial.times for trial in self.trials]
        return CallTimes(
            len(each),
            sum(times.wall_s for times in each),
            sum(times.thread_s for times in each),
            sum(times.process_s for times in each),
        )

    @property
    def held(self) -> float | None:
        """How much of the time in ``func`` the interpreter's lock was held; None where that is not known."""
        # A call that was kept from its processor by other programs may have been kept from the lock as well.
        own = MOSTLY * self._computing
        watched = [
            (trial.run_s, trial.lock)
            for trial in self.trials
            if trial.lock is not None and trial.times.thread_s > own * trial.run_s
        ]
        if any(lock.free_threaded for _, lock in watched):
            return 0.0
        if sum(lock.samples for _, lock in watched) < ENOUGH_LOOKS:
            return None
        return sum(run_s * lock.held for run_s, lock in watched if lock.samples) / sum(
            run_s for run_s, lock in watched if lock.samples
        )

    @property
    def threaded(self) -> bool:
        """Whether ``func`` computes in threads of its own."""
        return has_inner_threads(self.times, started=self.threads_started)

    @property
    def cpu_share(self) -> float:
        """Processors kept busy while ``func`` runs: up to 1, more where it has threads of its own.

        On a crowded machine CPU time over elapsed time would make any function look as if it waited. So a thread
        that never gave up its processor counts as computing all the time. It does give it up to whoever watches the
        lock, so that is left to the later samples, and this is judged by the first.
        """
        times = self.times
        if not times.wall_s or times.wall_s < FINE_S * times.count:
            return 1.0
        share = min(1.0, max(self._computing, self.held or 0.0))
        return max(share, times.process_s / times.wall_s) if self.threaded else share

    @property
    def _computing(self) -> float:
        """Share of the time the thread was computing, or ready to, in samples where nobody watched the lock."""
        alone = self.trials[:UNWATCHED]
        computing = sum(each.run_s if each.never_waited else each.times.thread_s for each in alone)
        return min(1.0, computing / max(sum(each.run_s for each in alone), 1e-9))

    def work(self, total: int | None) -> Work:
        """The numbers, means over the samples that worked; there must be one."""
        good = self.good[1:] if self.warm_up_s else self.good
        run_s = statistics.fmean(trial.work_s for trial in good)
        return Work(
            run_s=run_s,
            first_extra_s=self.warm_up_s,
            variation=statistics.pstdev(trial.work_s for trial in good) / run_s if run_s > 0 else 0.0,
            source_s=statistics.median(trial.source_s for trial in self.trials),
            cpu_share=self.cpu_share,
            held_share=1.0 if self.held is None else min(1.0, self.held / max(self.cpu_share, 0.01)),
            pack_in_s=_median([trial.pack_in_s for trial in good]),
            unpack_in_s=_median([trial.unpack_in_s for trial in good]),
            pack_out_s=_median([trial.pack_out_s for trial in good]),
            unpack_out_s=_median([trial.unpack_out_s for trial in good]),
            in_bytes=_mean([trial.in_bytes for trial in good]),
            out_bytes=_mean([trial.out_bytes for trial in good]),
            total=total,
        )


def take_samples(
    source: Source, func: Callable[[Any], Any], count: int, *, most_bytes: int, in_place: bool = False
) -> Samples:
    """Call ``func`` once with each of the first ``count`` items.

    Stops early after a second of waiting for the source, a second in ``func`` (two samples at least), or when what
    is kept would weigh more than ``most_bytes``: results are kept to be delivered, and so wait until then.

    Parameters:
        in_place: give ``func`` the items themselves, for workers that share the caller's memory. Otherwise it gets
            copies through pickle, as in another process: an item it changes is whole when it is run again.
    """
    samples = Samples(asked=count, func_stays=_unpicklable("func", func))
    threads = native_threads()
    held = 0
    while len(samples.trials) < count and not samples.stopped:
        began = time.perf_counter()
        if not source.pull():
            samples.stopped = "the source raised an error" if source.error is not None else "the data ended"
            break
        trial = Trial(source_s=time.perf_counter() - began)
        item = source.items[-1] if in_place else _copy(source.items[-1], trial)
        watch = len(samples.trials) >= UNWATCHED and samples.trials[-1].run_s > WATCH_S
        (_watched_call if watch else call)(func, item, trial)
        samples.trials.append(trial)
        held += _weight(trial.result) + (_weight(item, trial.in_bytes) if source.keeps_items else 0)
        samples.stopped = _enough(samples, held, most_bytes)
    samples.threads_started = max(0, native_threads() - threads)
    _weigh_results(samples)
    return samples


def _enough(samples: Samples, held: int, most_bytes: int) -> str:
    """Why no further sample should be taken, though more were asked for; "" otherwise."""
    if len(samples.trials) >= samples.asked:
        return ""
    waited = sum(trial.source_s for trial in samples.trials)
    ran = sum(trial.run_s for trial in samples.trials)
    if waited + samples.trials[-1].source_s > WAIT_S:
        return f"the source took {waited:.2g} s"
    if ran > RUN_S and len(samples.good) > 1:
        return f"they took {ran:.2g} s"
    if held + held / len(samples.trials) > most_bytes:
        return f"they weigh {held / 1e6:.3g} MB"
    return ""


def _copy(item: Any, trial: Trial) -> Any:
    """The item as another process would get it; itself where it cannot travel."""
    try:
        began = time.perf_counter()
        packed = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
        between = time.perf_counter()
        copied = pickle.loads(packed)
        ended = time.perf_counter()
    except Exception as error:  # noqa: BLE001 (a class may raise anything from its pickling)
        trial.stays = f"an item ({type(item).__name__}) does not pickle: {error}"
        return item
    trial.pack_in_s, trial.unpack_in_s, trial.in_bytes = between - began, ended - between, len(packed)
    return copied


def call(func: Callable[[Any], Any], item: Any, trial: Trial) -> None:
    """``func(item)``, timed; what it returned or raised is in ``trial``."""
    clock = CallClock()
    waits = _waits()
    try:
        trial.result = clock.call(func, item)
    except StopIteration as error:  # raised out of an iterator's next() it would end that silently
        trial.error = RuntimeError("the function raised StopIteration")
        trial.error.__cause__ = error
    except Exception as error:  # noqa: BLE001 (reported in the item's place, by who runs the plan)
        trial.error = error
    trial.times = clock.times
    trial.run_s = trial.times.wall_s
    trial.never_waited = waits is not None and waits == _waits()


def _watched_call(func: Callable[[Any], Any], item: Any, trial: Trial) -> None:
    """:func:`call`, with an eye on the interpreter's lock."""
    sampler = GilSampler()
    began = time.perf_counter()
    sampler.start()
    try:
        call(func, item, trial)
    finally:
        took = time.perf_counter() - began
        lock = sampler.stop()
    if trial.run_s > MOSTLY * took:  # else looks may have been taken while something else ran
        trial.lock = lock


def _waits() -> int | None:
    """How often this thread has given up its processor to wait; None where the system does not say."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return None
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _weigh_results(samples: Samples) -> None:
    """Pickle results to see what that costs, until it has cost enough; one at least."""
    spent = 0.0
    for trial in samples.good:
        if spent > PACK_S:
            return
        try:
            began = time.perf_counter()
            packed = pickle.dumps(trial.result, protocol=pickle.HIGHEST_PROTOCOL)
            between = time.perf_counter()
            pickle.loads(packed)
            ended = time.perf_counter()
        except Exception as error:  # noqa: BLE001 (as above)
            trial.stays = trial.stays or f"a result ({type(trial.result).__name__}) does not pickle: {error}"
            continue
        trial.pack_out_s, trial.unpack_out_s, trial.out_bytes = between - began, ended - between, len(packed)
        spent += ended - began


def _unpicklable(name: str, value: Any) -> str:
    try:
        pickle.loads(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
    except Exception as error:  # noqa: BLE001 (as above)
        return f"{name} does not pickle: {error}"
    return ""


def _weight(value: Any, packed: int | None = None) -> int:
    if packed is not None:
        return packed
    size = getattr(value, "nbytes", None)  # arrays and tensors; anything else by what Python says of its shell
    return size if isinstance(size, int) else sys.getsizeof(value, 0)


def _median(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else 0.0


def _mean(values: list[int | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0
