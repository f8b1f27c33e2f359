"""Loading ahead of use: what was asked to be prefetched, what is known to come next, what is guessed to.

Here: the queue, admission by the byte budget, and watching which keys are used. Guesses are made in ``predict.py``;
loads run in the tiers' worker threads (``cache.tiers``, ``cache.workers``), and land in the cache on probation.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lazystore.cache.entries import MISSING
from lazystore.cache.job_queue import Job, JobQueue
from lazystore.cache.tiers import Tiers
from lazystore.errors import ClosedError, ConfigError, UnhashableKeyError
from lazystore.lazy.handle import Handle
from lazystore.lazy.predict import Gate, Guess, Markov, Predictor, Stride, behaviour, remember

if TYPE_CHECKING:
    from lazystore.cache.single_flight import Flight

__all__ = ["Background"]

#: Keys of a known order that may be loaded and not yet used; bytes usually end it sooner.
AHEAD = 64
#: The part of the budget that unused values may take of a full cache: as much as S3-FIFO's probation holds.
SHARE = 10
#: Requests after which unused values that were thrown out are forgotten.
PARDON = 64

_GUESSED = object()
_HINTED = object()


class Background:
    """Prefetches through the tiers, as far as there is room for what nobody waits for.

    A load begins when fewer than ``slots`` are under way and what is loaded but unused leaves room: free room, or a
    tenth of a full cache. Under memory pressure nothing begins, and guesses are dropped. A key that is asked for while
    it is queued is loaded at once, by whoever asks; its place in the queue is free then.

    Which keys come next is known (:meth:`hint`) or guessed, from the keys shown to :meth:`observe`; a known order goes
    before guesses.

    Threads: any. Fork: the child's is empty. Pickling: none. Starts no thread of its own; those of the tiers' workers
    start with the first load. A forgotten one is freed.

    Parameters:
        tiers: the cache to load through.
        load_of: ``load_of(key)`` gives the load of a key: a function without arguments. Needed for what is named by
            keys only.
        key_of: makes the cache key of a key. None: it is the key.
        predictors: asked in this order; the first that says anything is followed. Empty: no guesses. None: strides,
            then successors.
        slots: background loads under way at once.
        timeout: of the handles.
    """

    def __init__(
        self,
        tiers: Tiers,
        load_of: Callable[[Any], Callable[[], Any]] | None = None,
        *,
        key_of: Callable[[Any], Hashable] | None = None,
        predictors: Sequence[Predictor] | None = None,
        slots: int = 3,
        timeout: float | None = None,
    ) -> None:
        self._tiers = tiers
        self._load_of = load_of
        self._key_of = key_of
        self._slots = slots
        self._timeout = timeout
        self._gates = [Gate(predictor) for predictor in ((Stride(), Markov()) if predictors is None else predictors)]
        self._fresh: deque[Hashable] = deque(maxlen=256)  # keys shown and not yet looked at
        self._history = remember()
        self._marks: set[Hashable] = set()  # guessed keys whose use asks for more guesses
        self._hint: Iterator[Hashable] | None = None
        self._ahead: OrderedDict[Hashable, None] = OrderedDict()  # keys of the known order, loaded and not yet used
        self._counts = {"queued": 0, "refused": 0, "cancelled": 0, "taken": 0}
        self._closed = False
        self._seen_used = self._seen_requests = self._pardoned = 0
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._queue = JobQueue()
        self._under_way = 0
        self._pumping = False
        self._again = False

    # -- asking for loads ---------------------------------------------------------------

    def prefetch(
        self, keys: Iterable[Any], *, priority: float = 0.0, group: Hashable | None = None
    ) -> list[Handle[Any]]:
        """Queue the loads of ``keys``; a handle for each, in their order.

        Parameters:
            keys: a finite number of them (:meth:`hint` takes any number).
            priority: higher runs sooner; five seconds of waiting count like one step.
            group: a name to :meth:`cancel` them by: of a pass that may be given up.

        Raises:
            ClosedError: after :meth:`close`. UnhashableKeyError: a key that is no key.
        """
        handles = [self._add(self._cache_key(key), self._loader(key), priority, group) for key in keys]
        self._pump()
        return handles

    def submit(
        self,
        key: Hashable,
        load: Callable[[], Any],
        *,
        priority: float = 0.0,
        group: Hashable | None = None,
        **options: Any,
    ) -> Handle[Any]:
        """Queue one load, by its cache key; the handle of it, or of the queued load of the same key.

        ``options`` are those of ``Tiers.get`` (``ttl``, ``weigh``). Raises as :meth:`prefetch`.
        """
        handle = self._add(key, load, priority, group, options)
        self._pump()
        return handle

    def hint(self, keys: Iterable[Any]) -> None:
        """The order in which keys will be asked for, from now on: read lazily, as far ahead as there is room.

        Replaces the order given before; an empty one brings guessing back.
        """
        self.cancel(group=_HINTED)
        with self._lock:
            self._ahead.clear()
            self._hint = iter(keys)
        self._pump()

    def predict_and_prefetch(self, user_behavior: Mapping[Any, Any] | Iterable[Hashable]) -> list[Handle[Any]]:
        """Learn from what somebody did, and prefetch what is likely next.

        Parameters:
            user_behavior: keys, oldest first; or a mapping of keys to scores; or one with any of ``"history"`` (keys),
                ``"scores"`` (a mapping) and ``"hint"`` (keys in the order they will be asked for). What it says counts
                as happened now: give what is new since the last call.

        Returns: handles of what is prefetched, likeliest first. Scores become priorities.

        Raises:
            ConfigError: none of these. Otherwise as :meth:`prefetch`.
        """
        history, scores, hint = behaviour(user_behavior)
        with self._looking:
            for key in history:
                self._learn(key)
            guesses = scores or self._guesses()
        handles = [self._add(self._cache_key(key), self._loader(key), score, _GUESSED) for key, score in guesses]
        if hint:
            self.hint(hint)
        self._pump()
        return handles

    def cancel(self, key: Hashable = MISSING, *, group: Hashable = MISSING) -> int:
        """Give up what is queued: of one cache key, of one group, or everything. What runs goes on.

        Returns: how many loads were given up. Their handles are cancelled.
        """
        with self._lock:
            if group is _HINTED or (key is MISSING and group is MISSING):
                self._hint = None
            found = self._out_of_queue(
                lambda job: (key is MISSING or job.key == key) and (group is MISSING or job.group == group)
            )
            self._counts["cancelled"] += len(found)
        for job in found:
            job.handle._dropped()
        return len(found)

    # -- watching -----------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether keys are worth showing: something is guessed, hinted, or waits for room."""
        return bool(self._gates) or self._hint is not None or len(self._queue) > 0

    def observe(self, key: Hashable, missed: bool = False) -> None:
        """A key was asked for. What is likely next is prefetched, at a miss or when an earlier guess comes true.

        Parameters:
            key: as users name it, not the cache key.
            missed: it was not in memory.

        Cost: a fraction of a microsecond; tens of them when something is to be done.
        """
        self._fresh.append(key)
        if missed or key in self._marks or key in self._ahead or len(self._queue):
            self._look()

    def _look(self) -> None:
        if not self._looking.acquire(blocking=False):
            return  # another thread looks, or a key's own __eq__ in this one asks for keys
        guesses: list[Guess] = []
        try:
            if self._shown() and self._hint is None and self._tiers.may_speculate:
                guesses = self._guesses()
        finally:
            self._looking.release()
        for key, score in guesses:
            self._guess(key, score)
        self._pump()

    def _shown(self) -> bool:
        """Learn the keys that were shown since the last look. Whether there were any."""
        some = False
        while self._fresh:
            try:
                key = self._fresh.popleft()
            except IndexError:
                break
            some = True
            if self._ahead:
                self._pass(key)
            self._learn(key)
        return some

    def _pass(self, key: Hashable) -> None:
        """A key was used: if it is of the known order, it and those that were to come before it are behind.

        So are all that were to come soon if it is another one, and none of them was used: hits are not always shown.
        """
        with self._lock:
            if key not in self._ahead and len(self._ahead) < AHEAD:
                return
            while self._ahead:
                first, _ = self._ahead.popitem(last=False)
                if first == key:
                    break

    def _learn(self, key: Hashable) -> None:
        self._marks.discard(key)
        self._history.append(key)
        for gate in self._gates:
            gate.asked(key)

    def _guesses(self) -> list[Guess]:
        """What the first predictor that knows anything says; marks when to ask again."""
        for gate in self._gates:
            guesses = [(key, score) for key, score in gate.guess(self._history) if gate.issue(key)]
            if guesses:
                if len(self._marks) > 1024:
                    self._marks.clear()  # guesses that never came true
                self._marks.add(guesses[(len(guesses) - 1) // 2][0])
                return guesses
        return []

    def _guess(self, key: Hashable, score: float) -> None:
        if self._load_of is None or not self._room():
            self._counts["refused"] += 1
        elif self._tiers.peek(cache_key := self._cache_key(key), MISSING) is MISSING:
            self._add(cache_key, self._loader(key), score, _GUESSED)

    # -- the queue ----------------------------------------------------------------------

    def _cache_key(self, key: Any) -> Hashable:
        found = key if self._key_of is None else self._key_of(key)
        try:
            hash(found)
        except TypeError:
            raise UnhashableKeyError(f"{found!r:.200} cannot be a key: it is not hashable; give key=") from None
        return found

    def _loader(self, key: Any) -> Callable[[], Any]:
        if self._load_of is None:
            raise ConfigError("there is no source to load keys from: give each load by submit()")
        return self._load_of(key)

    def _add(
        self,
        key: Hashable,
        load: Callable[[], Any],
        priority: float,
        group: Hashable | None,
        options: Mapping[str, Any] | None = None,
    ) -> Handle[Any]:
        handle: Handle[Any] = Handle(self._tiers, key, load, timeout=self._timeout, **(options or {}))
        job = _Queued(handle, key, priority, group)
        handle._queue(lambda: self._taken(job))  # before the lock: handles have one of their own
        with self._lock:
            if self._closed:
                raise ClosedError(f"{key!r} cannot be prefetched: the store is closed")
            queued = self._queue.find(key)
            if queued is not None:
                self._queue.promote(queued, priority, False)
                return queued.handle  # type: ignore[attr-defined,no-any-return]
            self._queue.push(job)
            self._counts["queued"] += 1
        return handle

    def _taken(self, job: _Queued) -> bool:
        """Somebody asks for a queued load: it leaves the queue. False: it has left it already."""
        with self._lock:
            if self._queue.find(job.key) is not job:
                return False
            self._queue.drop(job)
            self._counts["taken"] += 1
            return True

    def _pump(self) -> None:
        """Begin what there is room for. Never nested: a load may end while it is being started."""
        with self._lock:
            if self._pumping:
                self._again = True
                return
            self._pumping = True
        try:
            while True:
                self._again = False
                while (job := self._next()) is not None:
                    self._start(job)
                with self._lock:
                    if not self._again:
                        self._pumping = False
                        return
        except BaseException:
            self._pumping = False
            raise

    def _next(self) -> _Queued | None:
        """The next load that may begin now."""
        while True:
            refused: list[_Queued] = []
            with self._lock:
                if self._closed or self._under_way >= self._slots:
                    return None
                may = self._tiers.may_speculate
                if not may:
                    refused = self._out_of_queue(lambda job: job.group is _GUESSED)
                    self._counts["refused"] += len(refused)
                elif len(self._queue) and self._room():
                    self._under_way += 1
                    return self._queue.pop()  # type: ignore[return-value]
                hint = self._hint if may and not len(self._queue) else None
            for job in refused:
                job.handle._unqueued()
            if hint is None or len(self._ahead) >= AHEAD or not self._room():
                return None
            self._pull(hint)

    def _pull(self, hint: Iterator[Hashable]) -> None:
        """Queue the next key of the known order."""
        try:
            key = next(hint)
        except BaseException as error:
            with self._lock:
                if self._hint is hint:
                    self._hint = None
            if isinstance(error, StopIteration):
                return
            raise
        cache_key = self._cache_key(key)
        with self._lock:
            if self._hint is not hint:
                return
            self._ahead[key] = None
        if self._tiers.peek(cache_key, MISSING) is MISSING:
            self._add(cache_key, self._loader(key), 0.0, _HINTED)

    def _room(self) -> bool:
        """Whether another load has room: among what is free, or in the part of a full cache that is for unused values.

        Sizes are not known before: it is taken to weigh what the others weighed. What was thrown out unused counts as
        if it were there until something is used, or much else is asked for; else a long queue would be loaded only to
        be thrown out. One may always be there.
        """
        counts = self._tiers.counts
        if counts.prefetch_used != self._seen_used or counts.requests - self._seen_requests >= PARDON:
            self._seen_used, self._seen_requests = counts.prefetch_used, counts.requests
            self._pardoned = counts.prefetch_wasted
        loaded = counts.prefetch_issued - counts.prefetch_errors - self._under_way
        unused = max(0, loaded - counts.prefetch_used - self._pardoned)
        if not unused and not self._under_way:
            return True
        ledger = self._tiers.ledger
        average = counts.prefetch_bytes / loaded if loaded > 0 else 0.0
        coming = (self._under_way + 1) * average
        return coming <= ledger.room - ledger.used or unused * average + coming <= ledger.room / SHARE

    def _start(self, job: _Queued) -> None:
        handle, flight = job.handle, None
        try:
            flight = handle._start(job.priority)
        except ClosedError as error:
            handle._failed(error)
            self.close()
        finally:
            if flight is None:
                self._ended()
        if flight is not None:
            flight.on_done(lambda flight: self._land(handle, flight))

    def _land(self, handle: Handle[Any], flight: Flight) -> None:
        handle._ended(flight)
        self._ended()
        self._pump()

    def _ended(self) -> None:
        with self._lock:
            self._under_way = max(0, self._under_way - 1)

    def _out_of_queue(self, which: Callable[[_Queued], bool]) -> list[_Queued]:
        """Take some jobs out; their handles are to be told when the lock is free."""
        found = [job for job in self._queue.jobs() if which(job)]  # type: ignore[arg-type]
        for job in found:
            self._queue.drop(job)
        return found  # type: ignore[return-value]

    # -- what became of it, and the end --------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """``waiting`` and ``under_way`` now; how many loads were ``queued``, ``taken`` (asked for before their turn),
        ``cancelled``, ``refused`` (guesses there was no room for), ``issued``, ``used``, ``late``, ``wasted``,
        ``issued_bytes``, ``wasted_bytes``; ``predictors``, by name."""
        counts = self._tiers.counters()
        told: dict[str, Any] = {"waiting": len(self._queue), "under_way": self._under_way, **self._counts}
        for name in ("issued", "used", "late", "wasted", "wasted_bytes"):
            told[name] = counts[f"prefetch_{name}"]
        told["issued_bytes"] = counts["prefetch_bytes"]
        told["predictors"] = {_name(gate.predictor): gate.stats() for gate in self._gates}
        return told

    def close(self) -> None:
        """Give up what is queued. Loads that run are the tiers' to end. Closing twice is harmless."""
        self._closed = True
        self.cancel()

    def __repr__(self) -> str:
        return f"<Background loads: {self._under_way} under way, {len(self._queue)} queued>"


class _Queued(Job):
    """A load's place in the queue."""

    __slots__ = ("group", "handle")

    def __init__(self, handle: Handle[Any], key: Hashable, priority: float, group: Hashable | None) -> None:
        super().__init__(None, _nothing, key=key, priority=priority)
        self.handle = handle
        self.group = group


def _nothing() -> None:
    """A place in the queue is no function: the pump starts what it stands for."""


def _name(predictor: Predictor) -> str:
    return getattr(predictor, "__name__", None) or type(predictor).__name__


_ALL: weakref.WeakSet[Background] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for background in list(_ALL):
        background._begin()


os.register_at_fork(after_in_child=_after_fork_in_child)
