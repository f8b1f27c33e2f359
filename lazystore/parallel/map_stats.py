"""`MapStats`: what a run of `imap` did and where its time went, counted as it goes and drawn when printed.

Counters only: who runs what is ``engine``'s business, and nothing here decides anything. Plain counts are public
attributes that the engine adds to; what takes more than an addition is a method, called once a chunk, not once an item.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappush, heapreplace
from math import log2
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError

if TYPE_CHECKING:
    from lazystore.parallel.chunk import Report
    from lazystore.progress import Progress

__all__ = ["MapStats", "progress_of"]

#: points of the chunk sizes' curve that are kept; when there are more, every second one goes
MOST_POINTS = 256
#: slowest items that are remembered
MOST_SLOW = 5
#: decisions that are kept: the first ones, and the last
MOST_DECISIONS = 64
#: columns of what is drawn
WIDTH = 48
_STEPS = "▁▂▃▄▅▆▇█"
_SHADES = "█▓▒░+"
_REST = "·"


class MapStats:
    """Counters of one run.

    Attributes:
        done: items whose outcome is known: a result, or a failure for good.
        failed: those of them whose ``func`` raised, timed out or died for good.
        skipped: failures that ``on_error`` left out of the results.
        retried: calls of ``func`` beyond an item's first, because it raised.
        run_again: items that ran, or may have run, again because their worker died.
        deaths: worker processes that died.
        in_caller: items that ran in the caller's own thread.
        handed_out: results the consumer was given.
        executing_s: seconds in ``func``, in all workers and the caller together.
        caller_s: those of them in the caller.
        waiting_s: seconds the caller was blocked until a result came.
        source_s: seconds the data took to give its items.
        consumer_s: seconds between a result and the question for the next one.
        transport_s: seconds of packing and unpacking, in workers and the caller.
        packing_s: those of them in the caller; known when the run has ended.
        in_bytes, out_bytes: what travelled to workers and back; 0 in threads.
        through_pipe: large messages that took the pipe because shared memory was not to be had.
        window_stalls: times that no item could be sent because too much was ahead of the consumer.
        peak_items, peak_bytes: most that was ahead of the consumer.
        backend: "serial", "process", "thread", "executor" or "tasks": what ran the items last.
        workers: how many of those there are, or were at the end; 0: the caller alone.
        items_from: "caller": items are taken from the data here; "workers": they read a dataset themselves.

    Threads: written by the thread that iterates; reading from another gives numbers of about the same moment.
    Pickling: as it stands. Cost: a microsecond or two a chunk.

    Parameters:
        progress: told of every batch of results, and closed at the end.
        clock: seconds; for tests.
    """

    def __init__(self, progress: Progress | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._progress = progress
        self._clock = clock
        self._begun = clock()
        self._ended: float | None = None
        self.done = self.failed = self.skipped = self.retried = self.run_again = self.deaths = 0
        self.in_caller = self.handed_out = 0
        self.executing_s = self.caller_s = self.waiting_s = self.source_s = self.consumer_s = 0.0
        self.transport_s = self.packing_s = 0.0
        self.in_bytes = self.out_bytes = self.through_pipe = 0
        self.window_stalls = self.peak_items = self.peak_bytes = 0
        self.backend = "serial"
        self.workers = 0
        self.items_from = "caller"
        self._worker_s = 0.0  # seconds that workers were there, all together, until the last change of their number
        self._changed = self._begun
        self._points: list[tuple[float, int, float]] = []
        self._stride = 1
        self._chunks = 0
        self._slowest: list[tuple[float, int]] = []
        self._decisions: list[tuple[float, str]] = []
        self._unkept = 0

    # -- what the engine tells ------------------------------------------------------------

    def report(self, report: Report, now: float | None = None) -> None:
        """A worker's chunk came back."""
        count = len(report.results)
        self.done += count
        self.failed += report.failures
        self.retried += report.retried
        self.executing_s += report.run_s
        self.transport_s += report.transport_s
        self.in_bytes += report.in_bytes
        self.out_bytes += report.out_bytes
        if self._chunks % self._stride == 0:
            self._point(self._clock() if now is None else now, len(report.chunk.items), report.run_s)
        self._chunks += 1
        self._slow(report.longest_s, report.longest_at)

    def ran_here(self, count: int, served: tuple[int, float, float, float, int]) -> None:
        """The caller ran ``count`` items itself.

        Parameters:
            served: of how many of them the time was taken, their seconds, those of the processor, the seconds and the
                index of the slowest.
        """
        timed, seconds, _, longest_s, longest_at = served
        self.done += count
        self.in_caller += count
        if timed:
            seconds *= count / timed
            self.executing_s += seconds
            self.caller_s += seconds
            self._slow(longest_s, longest_at)

    def delivered(self, count: int) -> None:
        """The consumer gets so many results."""
        self.handed_out += count
        if self._progress is not None:
            self._progress.update(count)

    def ran(self, index: int, seconds: float) -> None:
        """One item ran by itself, beside others."""
        self.done += 1
        self.executing_s += seconds
        self._slow(seconds, index)

    def died(self, items: int) -> None:
        """A worker died; so many items run again, or fail."""
        self.deaths += 1
        self.run_again += items

    def packed(self, seconds: float) -> None:
        """The caller spent this on packing or unpacking."""
        self.packing_s += seconds
        self.transport_s += seconds

    def held(self, items: int, nbytes: float) -> None:
        """So much is ahead of the consumer now."""
        if items > self.peak_items:
            self.peak_items = items
        if nbytes > self.peak_bytes:
            self.peak_bytes = int(nbytes)

    def decided(self, now: float, text: str, backend: str, workers: int) -> None:
        """From ``now`` on so many workers of this kind run items, and why."""
        self._worker_s += self.workers * (now - self._changed)
        self._changed = now
        self.backend, self.workers = backend, workers
        if len(self._decisions) == MOST_DECISIONS:
            del self._decisions[MOST_DECISIONS // 2]
            self._unkept += 1
        self._decisions.append((now - self._begun, text))

    def ended(self, now: float) -> None:
        """The run is over. Twice is fine."""
        if self._ended is None:
            self._ended = now
            if self._progress is not None:
                self._progress.close()

    def _point(self, now: float, size: int, seconds: float) -> None:
        if len(self._points) == MOST_POINTS:
            del self._points[1::2]
            self._stride *= 2
            if self._chunks % self._stride:
                return
        self._points.append((now - self._begun, size, seconds))

    def _slow(self, seconds: float, index: int) -> None:
        if index < 0:
            return
        if len(self._slowest) < MOST_SLOW:
            heappush(self._slowest, (seconds, index))
        elif seconds > self._slowest[0][0]:
            heapreplace(self._slowest, (seconds, index))

    # -- what there is to see -------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the run is over."""
        return self._ended is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, until its end."""
        return (self._clock() if self._ended is None else self._ended) - self._begun

    @property
    def chunks(self) -> int:
        """Chunks that came back from workers."""
        return self._chunks

    @property
    def chunk_sizes(self) -> list[tuple[float, int, float]]:
        """(seconds since the beginning, items of a chunk, seconds it took) over time: at most 256, thinned evenly."""
        return list(self._points)

    @property
    def slowest(self) -> list[tuple[float, int]]:
        """(seconds, index) of the slowest items that were timed by themselves, at most five, slowest first."""
        return sorted(self._slowest, reverse=True)

    @property
    def decisions(self) -> list[tuple[float, str]]:
        """(seconds since the beginning, what was decided and why)."""
        return list(self._decisions)

    @property
    def worker_s(self) -> float:
        """Seconds that workers were there, all together, at work or not."""
        return self._worker_s + self.workers * (self._begun + self.elapsed_s - self._changed)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {
            **plain,
            "over": self.over,
            "elapsed_s": self.elapsed_s,
            "worker_s": self.worker_s,
            "chunks": self.chunks,
            "chunk_sizes": [list(point) for point in self._points],
            "slowest": [list(item) for item in self.slowest],
            "decisions": [list(decision) for decision in self._decisions],
        }

    def __getstate__(self) -> dict[str, Any]:
        # A clock of another process counts from elsewhere: the copy stands still.
        ended = self._begun + self.elapsed_s
        return {
            **vars(self),
            "_clock": time.perf_counter, "_progress": None,
            "_ended": ended, "_changed": ended, "_worker_s": self.worker_s,
        }  # fmt: skip

    def __repr__(self) -> str:
        crew = f"{self.backend}" + (f" x {self.workers}" if self.workers else "")
        failed = f", {self.failed} failed" if self.failed else ""
        return f"<MapStats: {self.done} items in {_seconds(self.elapsed_s)}{failed}, {crew}>"

    def __str__(self) -> str:
        """The run drawn: where the caller's and the workers' time went, chunk sizes over time, what was decided."""
        elapsed = self.elapsed_s
        rate = self.done / elapsed if elapsed else 0.0
        crew = f"{self.backend}" + (f" x {self.workers}" if self.workers else "")
        lines = [f"imap: {self.done:,} items in {_seconds(elapsed)}, {rate:,.0f} a second; {crew}"]
        lines.append(_bar("caller", self._of_caller(elapsed), elapsed))
        if self.worker_s:
            func = self.executing_s - self.caller_s
            travel = self.transport_s - self.packing_s
            lines.append(_bar("workers", [("func", func), ("transport", travel)], self.worker_s, rest="idle"))
        if self._points:
            sizes = [size for _, size, _ in self._points]
            span = f"{min(sizes)}..{max(sizes)} items, last {sizes[-1]} in {_seconds(self._points[-1][2])}"
            lines.append(f"  chunks   {_curve(self._points)} {span}")
        lines += self._notes()
        lines += [f"  {_seconds(at):>8}  {text}" for at, text in self._decisions]
        if self._unkept:
            lines.append(f"            ({self._unkept} decisions between were not kept)")
        return "\n".join(lines)

    def _of_caller(self, elapsed: float) -> list[tuple[str, float]]:
        return [
            ("func", self.caller_s),
            ("waiting", self.waiting_s),
            ("consumer", self.consumer_s),
            ("source", self.source_s),
            ("transport", self.packing_s),
        ]

    def _notes(self) -> list[str]:
        lines = []
        if self._slowest:
            found = ", ".join(f"item {index} {_seconds(seconds)}" for seconds, index in self.slowest)
            lines.append(f"  slowest  {found}")
        if self.in_bytes or self.out_bytes:
            piped = f"; {self.through_pipe} large messages through pipes" if self.through_pipe else ""
            lines.append(f"  bytes    {_bytes(self.in_bytes)} to workers, {_bytes(self.out_bytes)} back{piped}")
        counts = {
            "failed": self.failed,
            "skipped": self.skipped,
            "retried": self.retried,
            "run again": self.run_again,
            "worker deaths": self.deaths,
            "window stalls": self.window_stalls,
        }
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        if told:
            lines.append(f"  counts   {told}")
        return lines


def progress_of(progress: bool | str | None, func: Callable[..., Any], total: int | None) -> Progress | None:
    """The progress bar that ``progress=`` of `imap` asks for.

    Parameters:
        progress: True, or what to write in front of it; None, False: none.
        func: its name is written in front otherwise.
        total: how many items there will be, where that is known.

    Raises:
        ConfigError: it is something else.
    """
    if progress is None or progress is False:
        return None
    if not isinstance(progress, (bool, str)):
        raise ConfigError(f"progress={progress!r} is neither True nor a label")
    from lazystore.progress import Progress

    label = progress if isinstance(progress, str) else getattr(func, "__name__", type(func).__name__)
    return Progress(total, label)


# -- drawing --------------------------------------------------------------------------------


def _bar(name: str, parts: list[tuple[str, float]], whole: float, rest: str = "scheduling") -> str:
    """A bar whose stretches are shares of ``whole``, and their names; what the parts leave is ``rest``."""
    parts = [(part, max(0.0, seconds)) for part, seconds in parts]
    whole = max(whole, sum(seconds for _, seconds in parts), 1e-12)
    parts = [*parts, (rest, whole - sum(seconds for _, seconds in parts))]
    shades = _SHADES[: len(parts) - 1] + _REST
    shown = [(part, seconds / whole, shade) for (part, seconds), shade in zip(parts, shades, strict=True)]
    bar, reached = "", 0.0
    for _, share, shade in shown:
        reached += share
        bar += shade * (round(reached * WIDTH) - len(bar))
    told = ", ".join(f"{shade}{part} {share:.0%}" for part, share, shade in shown if share >= 0.005)
    return f"  {name:<8} {bar} {told}"


def _curve(points: list[tuple[float, int, float]]) -> str:
    """Chunk sizes over time, on a logarithmic scale."""
    first, last = points[0][0], points[-1][0]
    columns: list[list[int]] = [[] for _ in range(min(WIDTH, len(points)))]
    for at, size, _ in points:
        place = int((at - first) / (last - first) * len(columns)) if last > first else 0
        columns[min(place, len(columns) - 1)].append(size)
    top = log2(max(size for _, size, _ in points))
    drawn, level = "", 0
    for sizes in columns:
        if sizes:
            level = round(sum(map(log2, sizes)) / len(sizes) / top * (len(_STEPS) - 1)) if top else 0
        drawn += _STEPS[level]
    return drawn


def _seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError  # the last unit takes everything


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 (the unit it stopped at is what is shown)
        if size < 1000:
            break
        size /= 1000
    return f"{size:.3g} {unit}"
