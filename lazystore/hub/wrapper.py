"""`StreamingDatasetWrapper`: any source of samples, streamed, cached and read ahead inside a bound.

Here: arguments, whose part is read, states and the public surface. Sources are ``sources``' and ``hub_name``'s, what is
kept ``batches``', a pass ``passes``', failures ``recovery``'s.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from lazystore.cache.locks import forkable_rlock
from lazystore.cache.retries import Retries
from lazystore.config import default_memory, parse_bytes, seconds, whole
from lazystore.errors import ClosedError, ConfigError
from lazystore.hub.by_number import ByNumber
from lazystore.hub.entry import BEGINNING, Entry, parse, to_json_dict
from lazystore.hub.feed import Feed
from lazystore.hub.passes import Course, Pass, Progress
from lazystore.hub.reader import Reader
from lazystore.hub.recovery import OnError, Recovery, transient
from lazystore.hub.sources import feed_of
from lazystore.streaming.topology import worker
from lazystore.streaming.torch_kind import TorchKind

__all__ = ["StreamingDatasetWrapper"]

#: Before try n + 1 a random time below ``RETRY_S * 2**(n-1)`` seconds is waited, at most ``RETRY_CAP_S``.
RETRY_S, RETRY_CAP_S = 0.25, 5.0
#: What a forked child finds of its parent's: never closed there, for the connections are the parent's.
_inherited: list[object] = []


class StreamingDatasetWrapper(TorchKind, ByNumber):
    """Samples of any source, streamed: cached, read ahead, retried and resumable.

    Parameters:
        source: a hub name (``"org/name"``), a ``datasets.IterableDataset`` or ``Dataset``, a
            :class:`~lazystore.StreamingDataset`, a :class:`~lazystore.LazyStore`, a sequence, any iterable, or a
            function that makes one of these.
        cache_size: samples of a stream that are kept at most, at least 1; as many are read ahead by a pass at most.
        memory: bytes (``"64MB"``, or an int) for what is kept (half of it) and read ahead (the other half); of a hub
            name that is read directly: the budget of its reader. Default: 256 MiB, or a quarter of the memory limit.
        prefetch: ``"auto"``: a thread of the pass reads ahead, further each time the reader had to wait; a number of
            samples; 0, False or None: samples are read where they are asked for.
        on_error: what happens when reading fails in the end: ``"raise"``; ``"fallback"``: a hub name goes on, from the
            same sample, through ``datasets`` streaming, then by download; or a function of the error and the position,
            which gives an iterable of the samples that go on there, or raises. Whatever took over stays until another
            epoch is set or a state loaded, and is counted in :meth:`stats`.
        transform: applied to every sample when it is handed out, in the thread that gets it; what is cached is what
            the source gave.
        config, split, columns, revision, token, via, streaming: of hub names; see
            :func:`lazystore.hub.sources.feed_of`.
        timeout: seconds for one read with all its retries, and for a wait that sees nothing come; what takes over by
            ``on_error`` may take longer.
        retries: of a read that fails with what may pass (connections, timeouts, overload), before it has failed.

    What keeps its samples by itself (``StreamingDataset``, ``LazyStore``, ``Dataset``, sequences, hub names that are
    read directly) is handed through: no cache, no thread. Everything else is read in batches, each once for all who
    want it, and samples of it are the caller's to change: dicts, lists, arrays, tensors and images are copies. Of what
    is handed through they are what the source gives: those of a list are the list's own.

    Raises:
        ConfigError: an argument that cannot work; what opening the source raises.

    Threads: any. One pass may be shared by threads: each sample goes to one; every ``iter()`` is a pass of its own with
    all samples. Fork: a child begins with nothing open, and a pass it finds goes on where it was. Spawn, pickling: by
    source and arguments (of a hub name, the commit too), epoch and loaded state. Torch: an ``IterableDataset`` whose
    workers and ranks share the samples, or map-style with a sampler. Interpreter exit: threads end, at most seconds are
    waited for them. Memory: ``memory``, one batch being read, and the samples handed out; samples are weighed, not
    measured.
    """

    def __init__(
        self,
        source: Any,
        *,
        cache_size: int = 1000,
        memory: int | str | None = None,
        prefetch: int | str | bool | None = "auto",
        on_error: OnError = "raise",
        transform: Callable[[Any], Any] | None = None,
        config: str | None = None,
        split: str = "train",
        columns: Sequence[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        via: str = "auto",
        streaming: bool = True,
        timeout: float = 60.0,
        retries: int = 3,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "source")}
        self._recipe = (source, arguments)
        self._cache_size = whole("cache_size", cache_size, hint="samples to keep; 1 keeps next to nothing")
        self._memory = default_memory() if memory is None else parse_bytes(memory)
        self._ahead = _ahead_of(prefetch, self._cache_size)
        if not callable(on_error) and on_error not in ("raise", "fallback"):
            raise ConfigError(f"on_error={on_error!r} is not 'raise', 'fallback' or a function of error and position")
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform={transform!r} is not a function of a sample")
        self._transform, self._on_error = transform, on_error
        self._timeout = seconds("timeout", timeout)
        self._attempts = 1 + whole("retries", retries, least=0)
        self._feed = source if isinstance(source, Feed) else feed_of(
            source, config=config, split=split, columns=columns, revision=revision, token=token, via=via,
            streaming=streaming, memory=self._memory, timeout=self._timeout, retries=retries,
        )  # fmt: skip
        self._lock = forkable_rlock()
        self._warned = False
        self._closed = False
        self._epoch = self._feed_epoch = self._feed.epoch
        self._entry = BEGINNING
        self._latest: tuple[Progress, Reader, tuple[int, int]] | None = None
        self._past: Counter[str] = Counter()  # of readers that are no more
        self._fallbacks: list[dict[str, Any]] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._readers: dict[tuple[int, int], Reader] = {}
        self._retired: list[Reader] = []  # whose followers are to be closed at the end
        self._passes: weakref.WeakSet[Pass] = weakref.WeakSet()
        # Not at exit: there is nothing to give back then.
        weakref.finalize(self, _shut, self._stop, self._readers, self._retired, self._feed, self._pid).atexit = False

    def _here(self) -> None:
        """In a forked child: begin with nothing open."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    _inherited.append((self._readers, self._retired, self._stop))
                    self._begin()
        if self._closed:
            raise ClosedError(f"{self._feed.name}: this wrapper is closed; make a new one")

    # -- readers ------------------------------------------------------------------------

    def _reader(self, part: tuple[int, int] = (0, 1)) -> Reader:
        """Who reads the samples for one of so many readers."""
        self._here()
        with self._lock:
            found = self._readers.get(part)
            if found is None:
                feed = self._feed if part[1] == 1 else self._feed.share(*part)
                if feed is None:
                    found = self._reader()
                else:
                    shared = max(1, worker()[1])
                    found = Reader(
                        self._recovery(feed), whole=part[1] == 1, cache_size=max(1, self._cache_size // shared),
                        memory=max(1, self._memory // shared // 2), timeout=self._timeout,
                    )  # fmt: skip
                self._readers[part] = found
            return found

    def _recovery(self, feed: Feed) -> Recovery:
        retries = Retries(self._attempts, base_s=RETRY_S, cap_s=RETRY_CAP_S, retryable=transient)
        stop, name = self._stop, feed.name

        def pause(delay: float) -> None:
            if stop.wait(delay):
                raise ClosedError(f"{name}: closed while it was read")

        return Recovery(feed, retries=retries, timeout=self._timeout, on_error=self._on_error, pause=pause)

    def part(self) -> tuple[int, int]:
        """This process among all that share the samples, ranks and workers of each: its number, and how many."""
        rank, world = self._feed.ranks()
        number, workers = worker()
        workers = max(1, workers)
        return rank * workers + number, world * workers

    def part_read(self) -> tuple[int, int]:
        """The same of what it reads, not of what it hands out: (0, 1) where no part can be read without the others."""
        part = self.part()
        return (0, 1) if self._reader(part).whole else part

    def __iter__(self) -> Pass:
        """A pass over this reader's part of the samples: all of them, but for ranks and DataLoader workers.

        It begins at a loaded state's position until a pass has come to its end, or another epoch is set.
        """
        part = self.part()
        reader = self._reader(part)
        with self._lock:
            entry = self._present()
            if entry.position and entry.part != part and not (entry.part[1] == 1 and reader.whole):
                raise ConfigError(
                    f"the state that was loaded is that of reader {entry.part[0]} of {entry.part[1]}, and this is "
                    f"reader {part[0]} of {part[1]} (ranks and workers): load it where it was taken"
                )
            if entry.mark is not None:
                reader.enter_at(entry.mark)
            progress = Progress(entry.position, self.epoch, entry.mark)
            offset, step = part if part[1] > 1 and reader.whole else (0, 1)
            ahead, adaptive = self._ahead
            course = Course(
                reader.supply(entry.position), progress, step=step, offset=offset, ahead=ahead, adaptive=adaptive,
                room=self._room, timeout=self._timeout, name=reader.feed.name,
            )  # fmt: skip
            found = Pass(self, course, self._transform)
            self._latest = (progress, reader, part)
            self._passes.add(found)
            return found

    @property
    def _room(self) -> Callable[[], int]:
        memory = max(1, self._memory // max(1, worker()[1])) // 2
        passes = self._passes
        return lambda: memory // max(1, len(passes))

    def _adopt(self, course: Course) -> None:
        """A pass of the parent goes on in this child."""
        reader = self._reader(self.part())
        with self._lock:
            if course.foreign:  # of threads that share it the first one does it
                course.after_fork(reader.supply(course.progress.stop))

    # -- epochs and states --------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the source's order that the next pass has."""
        return self._epoch + self._feed.epoch - self._feed_epoch

    def set_epoch(self, epoch: int) -> None:
        """Passes begun from now on have this epoch's order; to the present one changes nothing.

        Raises:
            ConfigError: not a number of an epoch.
        """
        epoch = whole("epoch", epoch, least=0)
        with self._lock:
            if epoch != self.epoch:
                self._change_epoch(epoch)
                self._entry, self._latest = BEGINNING, None

    def _change_epoch(self, epoch: int) -> None:
        changed = self._feed.set_epoch(epoch)
        self._epoch, self._feed_epoch = epoch, self._feed.epoch
        for part, reader in list(self._readers.items()):
            if not (changed or reader.recovery.first is not self._feed or reader.recovery.fallbacks):
                continue
            del self._readers[part]
            if part[1] > 1 and reader.whole:
                continue  # it is there under its own name too
            reader.retire()
            self._past.update(reader.counters())
            if reader.recovery.fallbacks:
                self._fallbacks += reader.recovery.fallbacks
                self._retired.append(reader)

    def _present(self) -> Entry:
        """Where the next pass begins: a pass that came to its end begins anew."""
        if self._latest is not None and self._latest[0].finished:
            self._latest = None
            self._entry = BEGINNING
        return self._entry

    def state_dict(self) -> dict[str, Any]:
        """Where the latest pass is, as plain JSON: exact for the samples handed out. Cost: microseconds.

        A pass that came to its end: the beginning of the next one.
        """
        with self._lock:
            entry, epoch = self._present(), self.epoch
            if self._latest is not None:
                progress, reader, part = self._latest
                mark = progress.mark
                if reader.feed is not reader.recovery.first:
                    mark = None  # of another source
                entry, epoch = Entry(progress.position, part, mark), progress.epoch
            return to_json_dict(self._feed.identity, epoch, entry)

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        """The next pass begins where a state was taken.

        Parameters:
            force: accept the state of another source, and take its epoch and position only.

        Raises:
            FormatError: it is no state. UnsupportedError: of a later version.
            ConfigError: it is that of another source.
        """
        identity, epoch, entry = parse(state)
        if identity != self._feed.identity:
            if not force:
                raise ConfigError(
                    f"this state is of another source: identity {identity!r} there, {self._feed.identity!r} here "
                    f"({self._feed.name}). Open what it was taken from, or pass force=True to take only its epoch and "
                    "position"
                )
            entry = entry._replace(mark=None)
        with self._lock:
            self._change_epoch(epoch)
            self._entry, self._latest = entry, None

    @property
    def commit(self) -> dict[str, Any]:
        """``revision=`` of the commit that a hub name is read at; empty for other sources.

        Copies are to read the same samples, whatever is pushed meanwhile.
        """
        origin = self._feed.origin
        return {} if origin is None or not origin.hub.revision else {"revision": origin.hub.revision}

    def __reduce__(self) -> tuple[Any, ...]:
        source, arguments = self._recipe
        with self._lock:
            entry = self._present()
            return _rebuild, (type(self), source, {**arguments, **self.commit}, self.epoch, entry)

    # -- what it is doing ---------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters, all since the wrapper was made, and what is held now (``cached_*``).

        ``samples``: handed on to passes and asked for by number; ``hits``: those that were here; ``misses``: that had
        to be read or waited for; ``reread_samples``: read before already; ``retries``: reads tried again;
        ``fallbacks``: who took over, where and why; ``source``: what the source counts itself.
        """
        readers = {id(reader): reader for reader in list(self._readers.values())}.values()
        streams = [reader.batches for reader in readers if reader.batches is not None]
        done = Counter({"samples": 0, "hits": 0, "misses": 0, "reread_samples": 0, "retries": 0, **self._past})
        for reader in readers:
            done.update(reader.counters())
        found: dict[str, Any] = {
            **done,
            "fallbacks": self._fallbacks + [row for reader in readers for row in reader.recovery.fallbacks],
            "cached_samples": sum(each.samples_held for each in streams),
            "cached_bytes": sum(each.nbytes for each in streams),
            "peak_bytes": max((each.peak for each in streams), default=0),
            "memory": self._memory,
            "passes": len(self._passes),
        }
        for reader in readers:
            found.update(reader.recovery.feed.counters())
        return found

    def close(self) -> None:
        """Give everything back: passes end with a ClosedError, threads are waited for; a given source stays open."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stop.set()  # nobody waits for another try
        why, passes = f"{self._feed.name}: its wrapper is closed", list(self._passes)
        for wait in (False, True):
            for each in passes:
                each.end(why, wait=wait)
        _shut(self._stop, self._readers, self._retired, self._feed, self._pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        length = self.length
        samples = "a stream" if length is None else f"{length} samples"
        closed = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self._feed.name}: {samples}, {self._memory / 1e6:.0f} MB{closed}>"


def _ahead_of(prefetch: Any, cache_size: int) -> tuple[int, bool]:
    """How many samples are read ahead at most, and whether that many only when the reader has to wait."""
    if prefetch is None or prefetch is False:
        return 0, False
    if prefetch is True or prefetch == "auto":
        return cache_size, True
    if isinstance(prefetch, str):
        raise ConfigError(f"prefetch={prefetch!r} is not 'auto', a number of samples, 0, False or None")
    return whole("prefetch", prefetch, least=0, hint="samples to read ahead, 'auto', or None"), False


def _rebuild(
    cls: type[StreamingDatasetWrapper], source: Any, arguments: dict[str, Any], epoch: int, entry: Entry
) -> StreamingDatasetWrapper:
    """In another process: the same wrapper, with nothing open."""
    found = cls(source, **arguments)
    if epoch != found.epoch:
        found.set_epoch(epoch)
    found._entry = entry
    return found


def _shut(
    stop: threading.Event, readers: dict[tuple[int, int], Reader], retired: list[Reader], feed: Feed, pid: int
) -> None:
    if pid != os.getpid():
        return  # what a fork's parent has open is the parent's to close
    stop.set()
    for reader in [*readers.values(), *retired]:
        reader.close(f"{feed.name}: its wrapper is closed")
    feed.close()
