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

__all__ = ["Ran", "run_chunk"]

#: quick items are run in stretches of about this many seconds; the clock is looked at between them
STRETCH_S = 0.00025
#: items in a stretch at most
STRETCH = 256
#: results of a longer stretch are weighed by so many of them
SAMPLES = 4


@dataclass(slots=True)
class Ran:
    """What became of a chunk's first items. Pickles if the results do.

    Parameters:
        results: one an item, at least one; ``Failed`` where an item failed.
        failures: how many of them are ``Failed``.
        retried: tries beyond the first of each item.
        run_s: seconds in ``func`` and ``reader``.
        longest_s: of the slowest item (of quick ones: the mean of their stretch).
        longest_at: index of that item in the data.
        nbytes: what the results weigh, about.
    """

    results: list[Any] = field(default_factory=list)
    failures: int = 0
    retried: int = 0
    run_s: float = 0.0
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
        note: called with each item's index before it is begun; costs time on quick items.
        catch: what counts as an item's failure; anything else is raised and what was done is lost. In the caller's own
            thread: ``Exception``, so that Ctrl-C is not taken for an item's.
    """
    ran = Ran()
    begin = clock()
    if job.reader is not None:
        job, items = _read(job, job.reader, items)
    results, func = ran.results, job.func
    count, here = len(items), os.getpid()
    left = iter(items)
    size, now = 1, begin
    while (done := len(results)) < count:
        if note is not None:
            note(first + done)
        error = _stretch(results, func, left, min(size, count - done), catch)
        if os.getpid() != here:
            os._exit(_code(error))
        fatal = error is not None and _fail(ran, job, items[len(results)], first + len(results), error, catch)
        now, before = clock(), now
        made = len(results) - done
        mean = (now - before) / made
        if mean > ran.longest_s:
            ran.longest_s, ran.longest_at = mean, first + done
        ran.nbytes += _weight(results, done, made)
        if fatal or now - begin >= limit_s or ran.nbytes >= limit_bytes:
            break
        if note is None:
            size = max(1, min(STRETCH, 4 * size, int(STRETCH_S / max(mean, 1e-9))))
    ran.run_s = now - begin
    return ran


def _stretch(
    results: list[Any], func: Callable[[Any], Any], left: Iterator[Any], count: int, catch: type[BaseException]
) -> BaseException | None:
    """Run some items; the error of the first one that fails, whose predecessors' results are kept."""
    wanted = len(results) + count
    try:
        results.extend(map(func, islice(left, count)))
    except catch as error:
        return _outside(error)
    if len(results) < wanted:  # map takes a StopIteration for the end of its input
        return RuntimeError("the function raised StopIteration")
    return None


def _fail(ran: Ran, job: Job, item: Any, index: int, error: BaseException, catch: type[BaseException]) -> bool:
    """Try an item again, or have its error stand for its result; whether nothing should be run after it."""
    for _ in range(job.retries):
        if not isinstance(error, Exception):
            break
        ran.retried += 1
        again = _stretch(ran.results, job.func, iter((item,)), 1, catch)
        if again is None:
            return False
        error = again
    failed = Failed(error, index, item)
    ran.failures += 1
    ran.results.append(failed)
    return failed.fatal


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


def _weight(results: list[Any], begin: int, count: int) -> float:
    """What some results weigh; of many, a few are weighed."""
    if count <= SAMPLES:
        return float(sum(weigh(result) for result in results[begin : begin + count]))
    step = count / SAMPLES
    return step * sum(weigh(results[begin + int((sample + 0.5) * step)]) for sample in range(SAMPLES))


def weigh(value: Any, depth: int = 2) -> float:
    """Bytes of a value, about: of containers a few members are looked at, of views what they show."""
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
