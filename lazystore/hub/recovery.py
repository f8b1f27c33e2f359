"""Reading a feed through failures: what is tried again and for how long, and who goes on when that does not help.

A :class:`Line` reads on where it was, whatever happens to its reading. Which samples are wanted, and who keeps them, is
not here.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from lazystore.cache.locks import forkable_lock
from lazystore.cache.retries import Retries, may_pass
from lazystore.errors import FetchError, FetchTimeoutError, LazyStoreError, UnsupportedError
from lazystore.fetch.options import redacted
from lazystore.fetch.retry import Verdict, verdict_of_status
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.readings import IteratorReading
from lazystore.hub.sources import fallback_of

__all__ = ["Line", "Marks", "OnError", "Recovery", "close_lines", "transient"]

OnError = str | Callable[[BaseException, int], Iterable[Any]]

#: Packages whose connection errors are recognised by name, without importing them.
_CLIENTS = frozenset({"aiohttp", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3"})
_PASSING = frozenset(
    {"ChunkedEncodingError", "ConnectionError", "NetworkError", "ProtocolError", "Timeout", "TimeoutException"}
)
#: Seconds after which samples that came are handed on, though more are wanted.
POUR_S = 0.005
#: Marks that are remembered, evenly spread.
MARKS = 256


def transient(error: BaseException) -> bool:
    """Whether an error of reading may pass by itself, as ``datasets`` and its clients tell it."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False  # somebody set HF_HUB_OFFLINE: waiting does not change that
    if may_pass(error):
        return True
    if isinstance(error, LazyStoreError):
        return False
    link: BaseException | None = error
    for _ in range(4):
        if link is None:
            break
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return verdict_of_status(status) is Verdict.RETRY
        kinds = [kind for kind in type(link).__mro__ if kind.__module__.partition(".")[0] in _CLIENTS]
        if any(kind.__name__ in _PASSING for kind in kinds):
            return True
        link = link.__cause__
    return False


class Marks:
    """Places where a feed can be entered: the nearest before a position, of at most 256 that are spread over all.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: list[Mark] = []
        self._gap = 1

    def add(self, mark: Mark) -> None:
        with self._lock:
            self._insert(mark)

    def _insert(self, mark: Mark) -> None:
        marks = self._marks
        at = bisect.bisect_left(marks, mark.position, key=_position)
        if at and mark.position - marks[at - 1].position < self._gap:
            return
        if at < len(marks) and marks[at].position - mark.position < self._gap:
            return
        marks.insert(at, mark)
        if len(marks) > MARKS:
            self._gap = max(2 * self._gap, 2 * (marks[-1].position - marks[0].position) // MARKS)
            self._marks = []
            for each in marks:
                self._insert(each)

    def nearest(self, position: int) -> Mark | None:
        """The last one at or before a position."""
        with self._lock:
            at = bisect.bisect_right(self._marks, position, key=_position)
            return self._marks[at - 1] if at else None

    def clear(self) -> None:
        with self._lock:
            self._marks.clear()
            self._gap = 1


def _position(mark: Mark) -> int:
    return mark.position


class Recovery:
    """What the lines of one feed share: the feed that is read at present, its marks, and what is done about errors.

    Parameters:
        feed: read first.
        retries: how often and how fast a failed read is tried again without a sample having come.
        timeout: seconds for all tries of one read.
        on_error: what then: ``"raise"``; ``"fallback"``: a hub name's next way of reading; or a function of the error
            and the position that gives the samples from there on.
        pause: waits so many seconds; raises when nobody is interested any more.

    Attributes:
        stale: the order of the feed is another one by now: it cannot be opened for this order any more.
        retried: reads that were tried again.
        fallbacks: who took over: where, and why.
        changing: somebody is being asked to take over.

    Threads: any. Fork: make a new one.
    """

    def __init__(
        self, feed: Feed, *, retries: Retries, timeout: float, on_error: OnError, pause: Callable[[float], None]
    ) -> None:
        self.feed = feed
        self.first = feed
        self.marks = Marks()
        self.stale = False
        self.opened = False
        self.changing = False
        self.retried = 0
        self.fallbacks: list[dict[str, Any]] = []
        self.timeout = timeout
        self._retries = retries
        self._on_error = on_error
        self._pause = pause
        self._followers: list[Feed] = []
        self._lock = forkable_lock()

    def open(self, position: int, near: Mark | None) -> tuple[Feed, Reading]:
        """A reading at a position, of the feed that is read at present; ``near``: a mark that may not be remembered."""
        feed = self.feed
        if self.stale:
            raise UnsupportedError(
                f"{feed.name}: this pass is of an earlier epoch, and its source was moved on: begin a new one"
            )
        if not feed.again and self.opened:
            raise UnsupportedError(
                f"{feed.name}: sample {position} was read before and is not held any more, and this source can be read "
                "once only; give a function that makes it, or a larger cache_size"
            )
        self.opened = True
        mark = self.marks.nearest(position)
        if near is not None and (mark is None or mark.position < near.position):
            mark = near
        return feed, feed.open(position, mark)

    def after(
        self, error: Exception, feed: Feed, position: int, attempt: int, started: float, took: float = 0.0
    ) -> None:
        """Return when a failed read is to be tried again; else raise.

        Parameters:
            feed: that failed, at sample ``position``, for the ``attempt``-th time since ``started`` (monotonic).
            took: seconds, this time: who was silent for so long would be so again, which has to fit in, too.
        """
        if feed is not self.feed:
            return  # another has taken over meanwhile
        elapsed = time.monotonic() - started
        left = self.timeout - elapsed - (took if isinstance(error, TimeoutError) else 0.0)
        wait = self._retries.delay(attempt, error, left) if feed.again and not self.stale else None
        if wait is not None:
            self.retried += 1
            self._pause(wait)
            return
        final = self._final(error, position, attempt, elapsed)
        if not self.take_over(final, feed, position):
            if final is error:
                raise error
            raise final from error

    def _final(self, error: Exception, position: int, attempts: int, elapsed: float) -> Exception:
        if not transient(error) or not self.first.again:
            return error
        last = redacted(f"{type(error).__name__}: {error}")
        late = isinstance(error, TimeoutError) or elapsed + 0.01 >= self.timeout or attempts < self._retries.attempts
        return (FetchTimeoutError if late else FetchError)(
            f"{self.feed.name}: sample {position} could not be read in {attempts} attempts within {elapsed:.1f} s; the "
            f"last one: {last}. Raise timeout= or retries=, or say with on_error= what goes on in its place",
            attempts=attempts,
            elapsed=elapsed,
        )

    def close(self) -> None:
        """Close the feeds that took over."""
        for feed in self._followers:
            feed.close()

    def take_over(self, error: Exception, feed: Feed, position: int) -> bool:
        """Whether another feed goes on at ``position``, where this one failed for good."""
        if self._on_error == "raise" or self.stale:
            return False
        with self._lock:
            if feed is not self.feed:
                return True
            self.changing = True
            try:
                follower = self._follower(error, feed, position)
            finally:
                self.changing = False
            if follower is None:
                return False
            self.fallbacks.append(
                {
                    "position": position,
                    "from": feed.name,
                    "to": follower.name,
                    "cause": redacted(f"{type(error).__name__}: {error}"),
                }
            )
            self.feed = follower
            self._followers.append(follower)
            self.marks.clear()
            self.opened = False
            return True

    def _follower(self, error: Exception, feed: Feed, position: int) -> Feed | None:
        """What goes on from there; None: nothing does."""
        if not callable(self._on_error):
            return fallback_of(feed)
        if isinstance(feed, _Takeover) and feed.begin == position:
            return None  # it has been asked, and what it gave failed at once
        return _Takeover(feed, position, self._on_error, error, self._on_error(error, position))


class _Takeover(Feed):
    """A feed until it failed, and from there on what a function gives in its place."""

    def __init__(
        self,
        before: Feed,
        begin: int,
        function: Callable[[BaseException, int], Iterable[Any]],
        error: Exception,
        samples: Iterable[Any],
    ) -> None:
        self.name = f"on_error of {before.name}"
        self.begin = begin
        self._before, self._function, self._error = before, function, error
        self._first: Iterable[Any] | None = samples

    @property
    def identity(self) -> str:
        return self._before.identity

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        return IteratorReading(lambda: self._samples(position), position)

    def _samples(self, position: int) -> Iterator[Any]:
        if position < self.begin:
            with closing(self._before.open(position)) as reading:
                yield from islice(reading, self.begin - position)
        samples, self._first = self._first, None
        if samples is None:
            samples = self._function(self._error, self.begin)
        yield from islice(samples, max(0, position - self.begin), None)

    def close(self) -> None:
        """Nothing: the feed before is closed by whoever made it."""


#: All there are, for the interpreter's exit.
_lines: weakref.WeakSet[Line] = weakref.WeakSet()


def close_lines() -> None:
    """At the interpreter's exit: generators that are closed later find the modules they use gone."""
    for line in list(_lines):
        if not line.taken:
            line.close()


# A child's exit is not to close what its parent reads.
os.register_at_fork(after_in_child=_lines.clear)


class Line:
    """A forward pass over what a :class:`Recovery` reads, which goes on after failures at the very next sample.

    Attributes:
        position: number of the next sample.
        owner, batch, busy, tick: of whoever keeps several.

    Threads: one at a time.
    """

    __slots__ = (
        "__weakref__",
        "_feed",
        "_mark",
        "_pace",
        "_pending",
        "_reading",
        "_recovery",
        "_weight",
        "batch",
        "busy",
        "owner",
        "position",
        "tick",
    )

    def __init__(self, recovery: Recovery, position: int) -> None:
        self._recovery = recovery
        self._feed: Feed = recovery.feed
        self._reading: Reading | None = None
        self._mark: Mark | None = None
        self._pending: Exception | None = None
        self._pace = 1
        self._weight = 0.0
        self.position = position
        self.owner: object = None
        self.batch: Any = None
        self.busy = False
        self.tick = 0
        _lines.add(self)

    @property
    def moves(self) -> int:
        """Another number whenever it has come further, on its way to where it begins too."""
        reading = self._reading
        return self.position + (0 if reading is None else reading.passed)

    @property
    def taken(self) -> bool:
        """Somebody reads by it at this moment."""
        return self.busy or (self.batch is not None and self.batch.busy)

    def take(self, most: int, most_bytes: int) -> list[Any]:
        """The next samples: at least one, as many as come together within milliseconds; none at the end.

        Parameters:
            most: samples; most_bytes: of samples that weigh what the last ones did (:meth:`weighed`).
        """
        count = min(self._count(most, most_bytes), self._pace)
        started = time.monotonic()
        samples: list[Any] = self._retried(lambda reading: reading.take(count))
        self.position += len(samples)
        took = time.monotonic() - started
        if took > 0.01:
            self._pace = max(1, int(len(samples) * 0.01 / took))
        elif took < 0.002 and count == self._pace:
            self._pace = min(2 * self._pace, 256)
        return samples

    def pour(self, samples: list[Any], most: int, most_bytes: int) -> None:
        """The same, each sample added at the moment that it comes: others may look at the list."""
        count, had, base = self._count(most, most_bytes), len(samples), self.position - len(samples)
        until = time.monotonic() + POUR_S

        def add(reading: Reading) -> None:
            try:
                for sample in reading:
                    samples.append(sample)
                    if len(samples) - had >= count or time.monotonic() > until:
                        return
            except Exception as error:
                if len(samples) == had:
                    raise
                self._pending = error  # what came before it comes first
                self.close()
            finally:
                self.position = base + len(samples)

        self._retried(add)

    def _count(self, most: int, most_bytes: int) -> int:
        return min(most, max(1, int(most_bytes / self._weight)) if self._weight else 1)

    def _retried(self, read: Callable[[Reading], Any]) -> Any:
        """What a read of the reading gives, which is opened again while that may help."""
        started = time.monotonic()
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                if self._pending is not None:
                    error, self._pending = self._pending, None
                    raise error
                if self._reading is None:
                    if self._feed is not self._recovery.feed:
                        self._mark = None  # another has taken over, with tries of its own
                        started, attempt = time.monotonic(), 0
                    self._feed, self._reading = self._recovery.open(self.position, self._mark)
                return read(self._reading)
            except Exception as error:  # noqa: BLE001 - raised by `after` unless it passes
                self.close()
                attempt += 1
                took = time.monotonic() - began
                self._recovery.after(error, self._feed, self.position, attempt, started, took)
            except BaseException:
                self.close()  # nobody knows how far it came
                raise

    def weighed(self, nbytes: int, count: int) -> None:
        """What the samples of the last read weigh."""
        if count:
            self._weight = nbytes / count

    def mark(self) -> Mark | None:
        """Where it is, if the feed can be entered there. Remembered."""
        if self._reading is None or self._feed is not self._recovery.feed:
            return None
        mark = self._reading.mark()
        if mark is not None:
            self._recovery.marks.add(mark)
            self._mark = mark
        return mark

    def close(self) -> None:
        """Let go of the reading; a later :meth:`take` opens one at the same place."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
