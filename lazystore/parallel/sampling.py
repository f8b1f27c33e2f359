"""The first items of any data, tried once each in the caller, with nothing lost for whoever goes on from there.

No decisions: what was measured is turned into numbers here (:meth:`Samples.work`) and into a plan in ``planning``.
"""

from __future__ import annotations

import operator
import pickle
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Set, ValuesView
from dataclasses import dataclass, field
from typing import Any, Final

from lazystore.errors import ConfigError
from lazystore.parallel.evidence import CallClock, CallTimes, GilSampler, GilShare
from lazystore.parallel.forecast import Work
from lazystore.parallel.inner_threads import has_inner_threads, native_threads

__all__ = ["Samples", "Source", "Trial", "call", "take_samples"]

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
#: samples before that
UNWATCHED: Final = 2
#: calls shorter than this compute, for all that clocks can tell
FINE_S: Final = 20e-6


class Source:
    """Data of any kind, of which the first items are taken and stay part of it.

    Iterated exactly once for the samples. Who comes first, ``.imap()`` or the caller's own loop over ``data``, goes
    on with that same iterator; who comes later begins anew where the data can be begun anew.

    Parameters:
        given: what the caller handed over.

    Raises:
        ConfigError: it cannot be iterated.
    """

    def __init__(self, given: Any) -> None:
        try:
            self._iterator: Iterator[Any] = iter(given)
        except TypeError as error:
            raise ConfigError(
                f"data={_brief(given)} cannot be iterated; give a list, a generator, a dataset"
            ) from error
        self._given = given
        self._by = ""
        self._once = self._iterator is given
        self.items: list[Any] = []
        self.error: Exception | None = None
        self.ended = False
        self._total = _length(given)
        # What can surely be begun anew is handed back as it is. Of anything else that is iterable (a progress bar
        # around a generator, say) only the first pass is certain, so that one pass goes on from the samples.
        anew = not self._once and (hasattr(given, "__getitem__") or isinstance(given, (Set, ValuesView)))
        self.keeps_items = not anew
        self.data: Any = given if anew else _whole(self, self._once, self._total)

    @property
    def total(self) -> int | None:
        """Items in all, as far as the data says or sampling has seen the end."""
        return len(self.items) if self.ended else self._total

    def pull(self) -> bool:
        """Take one more item to ``items``; False at the end, or where the source raised (kept in ``error``)."""
        try:
            self.items.append(next(self._iterator))
        except StopIteration:
            self.ended = True
        except Exception as error:  # noqa: BLE001 (whatever it is, it is raised in its place by who goes on)
            self.error, self.ended = error, True
        else:
            return True
        return False

    def claim(self, who: str) -> bool:
        """Whether ``who`` goes on from the samples; False: they are gone, and the data is begun anew.

        Raises:
            ConfigError: the data can be iterated only once, and another has begun.
        """
        if not self._by:
            self._by = who
            return True
        if self._once:
            raise ConfigError(
                f"{who}: the data is a {type(self._given).__name__}, which can be iterated only once, and "
                f"{self._by} has begun to; make a new one and a new plan"
            )
        return False

    def rest(self) -> Iterator[Any]:
        """What comes behind the samples; raises what the source raised, in its place."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if not self.ended:
            yield from self._iterator

    def anew(self) -> Iterator[Any]:
        return iter(self._given)


class _Whole:
    """Items taken as samples, then the rest; begun anew at every further ``iter``."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        if not self._source.claim("result.data"):
            return self._source.anew()
        return _all_items(self._source)


class _SizedWhole(_Whole):
    def __init__(self, source: Source, total: int) -> None:
        super().__init__(source)
        self._total = total

    def __len__(self) -> int:
        return self._total


class _Remainder:
    """An iterator over the items taken as samples and then over the rest of an iterator."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._items: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._items is None:
            self._source.claim("result.data")
            self._items = _all_items(self._source)
        return next(self._items)


class _SizedRemainder(_Remainder):
    def __init__(self, source: Source, total: int) -> None:
        super().__init__(source)
        self._left = total

    def __next__(self) -> Any:
        item = super().__next__()
        self._left = max(0, self._left - 1)
        return item

    def __len__(self) -> int:
        return self._left


def _whole(source: Source, once: bool, total: int | None) -> Any:
    if once:
        return _Remainder(source) if total is None else _SizedRemainder(source, total)
    return _Whole(source) if total is None else _SizedWhole(source, total)


def _all_items(source: Source) -> Iterator[Any]:
    taken = source.items
    while taken:
        yield taken.pop(0)  # not kept: it may be large
    yield from source.rest()


def _length(given: Any) -> int | None:
    """Items the data says it has; a hint, never relied upon."""
    try:
        found = operator.length_hint(given, -1)
    except Exception:  # noqa: BLE001 (a length that cannot be had is no reason not to run)
        return None
    return found if found >= 0 else None


@dataclass(slots=True)
class Trial:
    """One item and what became of it; times in seconds.

    Parameters:
        result: what ``func`` returned.
        error: what it raised instead.
        run_s, times: in ``func``, by the clock; and all clocks.
        never_waited: the thread did not once give up its processor, so all of ``run_s`` was computing, or being
            kept from it by others.
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
        lock: how much of the time the interpreter's lock was held; None where it was too short to tell.
        threads_started: threads the process has more than before.
        func_stays: why ``func`` itself cannot be pickled; "": it can.
    """

    trials: list[Trial] = field(default_factory=list)
    asked: int = 0
    stopped: str = ""
    func_stays: str = ""
    lock: GilShare | None = None
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
        if self.lock is None or (self.lock.samples < ENOUGH_LOOKS and not self.lock.free_threaded):
            return None
        return self.lock.held

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
        alone = self.trials[:UNWATCHED]
        computing = sum(each.run_s if each.never_waited else each.times.thread_s for each in alone)
        share = min(1.0, max(computing / sum(each.run_s for each in alone), self.held or 0.0))
        return max(share, times.process_s / times.wall_s) if self.threaded else share

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
    sampler: GilSampler | None = None
    held = 0
    try:
        while len(samples.trials) < count and not samples.stopped:
            began = time.perf_counter()
            if not source.pull():
                samples.stopped = "the source raised an error" if source.error is not None else "the data ended"
                break
            trial = Trial(source_s=time.perf_counter() - began)
            item = source.items[-1] if in_place else _copy(source.items[-1], trial)
            if sampler is None and len(samples.trials) >= UNWATCHED and samples.trials[-1].run_s > WATCH_S:
                sampler = GilSampler()
                sampler.start()
            call(func, item, trial)
            samples.trials.append(trial)
            held += _weight(trial.result) + (_weight(item, trial.in_bytes) if source.keeps_items else 0)
            samples.stopped = _enough(samples, held, most_bytes)
    finally:
        if sampler is not None:
            samples.lock = sampler.stop()
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


def _brief(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
