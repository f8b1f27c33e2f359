"""`Pass`: one pass over samples, shared by any number of threads; and the thread that reads ahead of it.

Here: who gets which sample, where the pass stands, and what it holds ahead. Where samples come from is a *supply*:
``batches`` for streams, :class:`Direct` for what keeps its samples itself.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self

from lazystore._core.weigh import weigh
from lazystore.errors import ClosedError, LoadTimeoutError
from lazystore.hub.batches import LOOK_S
from lazystore.hub.feed import Mark
from lazystore.hub.fresh import SHARED, copied
from lazystore.hub.parts import END, Part
from lazystore.hub.recovery import Line, Recovery, close_lines

__all__ = ["Course", "Direct", "Pass", "Progress", "Supply"]

#: Samples, and bytes of them, that are taken together from what keeps its samples itself.
BLOCK, BLOCK_BYTES = 256, 1 << 20
#: Seconds that closing waits for a read of the thread ahead.
FAREWELL_S = 2.0


#: Why a pass is closed that was closed by its reader.
DONE = "done"
#: Passes whose threads read ahead.
_reading: weakref.WeakSet[Course] = weakref.WeakSet()


@atexit.register
def _end_reading() -> None:
    """Libraries do not like their threads to be stopped in the middle of a read by an interpreter that exits."""
    courses = [course for course in _reading if not course.foreign]
    for wait in (False, True):
        for course in courses:
            course.halt(wait)
    close_lines()


class Supply(Protocol):
    """Where a pass gets samples."""

    @property
    def changing(self) -> bool:
        """Whether something else takes the place of what failed, at this moment: that takes as long as it takes."""

    @property
    def moves(self) -> int:
        """Another number than before: samples before the wanted ones are read over, which takes as long as it takes."""

    def ready(self, position: int, *, asked: bool = False) -> Part | None:
        """Those from a position on that are here, if any are; ``END`` where it is known that there are none.

        Parameters:
            asked: they were asked for by :meth:`part` too.
        """

    def part(self, position: int, owner: object) -> Part | None:
        """The next ones, waited for; None at the end."""

    def release(self, owner: object) -> None:
        """This pass wants no more."""


class Counter(Protocol):
    """Of samples that were read without being kept."""

    recovery: Recovery
    direct_samples: int


class Direct:
    """The supply of one pass over a feed that keeps its samples itself: in blocks, read in the caller.

    Threads: one at a time, as a pass asks.
    """

    changing, moves = False, 0  # only those who wait for others need to know

    def __init__(self, reader: Counter, position: int) -> None:
        self._reader = reader
        self._line = Line(reader.recovery, position)

    def ready(self, position: int, *, asked: bool = False) -> Part | None:
        return self.part(position, None) or END

    def part(self, position: int, owner: object) -> Part | None:
        self._line.busy = True
        try:
            samples = self._line.take(BLOCK, BLOCK_BYTES)
        finally:
            self._line.busy = False
        if not samples:
            self._line.close()
            return None
        self._line.weighed(weigh(samples[0]), 1)
        self._reader.direct_samples += len(samples)
        return Part(position, samples, SHARED, 0, None)

    def release(self, owner: object) -> None:
        self._line.close()


class Progress:
    """How far a pass is: exact for what it has handed out, whoever took it.

    Attributes:
        epoch: of the pass; finished: it came to its end.
    """

    __slots__ = ("_at", "epoch", "finished", "mark")

    def __init__(self, position: int, epoch: int, mark: Mark | None) -> None:
        self.epoch = epoch
        self.finished = False
        self.mark = mark
        # Where a part begins and stops, number of its first sample and step to the next, how many, and their iterator.
        self._at: tuple[int, int, int, int, int, Any] = (position, position, position, 1, 0, iter(()))

    def enter(self, part: Part, samples: list[Any], first: int, step: int) -> Iterator[Any]:
        """Go through samples of a part; returns the iterator that counts."""
        inner = iter(samples)
        self._at = (part.first, part.stop, first, step, len(samples), inner)
        if part.mark is not None:
            self.mark = part.mark
        return inner

    @property
    def position(self) -> int:
        """The number of the next sample."""
        start, stop, first, step, count, inner = self._at
        taken = count - inner.__length_hint__()
        if taken == count:
            return stop
        return first + (taken - 1) * step + 1 if taken else start

    @property
    def stop(self) -> int:
        """Where the present part stops."""
        return self._at[1]

    @property
    def left(self) -> int:
        """Samples of the present part that are not taken."""
        hint: int = self._at[5].__length_hint__()
        return hint

    def freeze(self) -> None:
        """Keep the position without the samples."""
        position = self.position
        self._at = (position, position, position, 1, 0, iter(()))


class Course:
    """The half of a pass that its thread ahead knows too: which samples come next, and those that are held ahead.

    Parameters:
        supply: where they come from.
        progress: where it begins.
        step, offset: of ``step`` readers the ``offset``-th: every ``step``-th sample is its.
        ahead: samples that are held ahead at most; 0: none, and no thread.
        adaptive: begin with few of them, and hold more each time the reader had to wait.
        room: gives the bytes that may be held ahead.
        timeout: seconds that a reader waits for the thread.
        name: of the thread.
    """

    def __init__(
        self,
        supply: Supply,
        progress: Progress,
        *,
        step: int,
        offset: int,
        ahead: int,
        adaptive: bool,
        room: Callable[[], int],
        timeout: float,
        name: str,
    ) -> None:
        self.progress = progress
        self.closed = ""
        self._supply = supply
        self._step, self._offset = step, offset
        self._most = ahead
        self._window = min(ahead, 16) if adaptive else ahead
        self._room = room
        self._timeout = timeout
        self._name = name
        self._at = progress.position
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._refilling = False
        self._over = False
        self._held: deque[Part] = deque()
        self._samples = self._nbytes = 0
        self._ended: list[BaseException | None] = []
        self._thread: threading.Thread | None = None
        self._halted = False

    def after_fork(self, supply: Supply) -> None:
        """In a child: go on from what was handed out before, with nothing of the parent's."""
        self._supply = supply
        self._at = self.progress.stop
        self._begin()

    @property
    def foreign(self) -> bool:
        """Whether it was begun in the parent of this process."""
        return self._pid != os.getpid()

    # -- the reader's side --------------------------------------------------------------

    def refill(self, current: Callable[[], object], spent: object) -> Iterator[Any] | None:
        """The samples after those that are spent; None: another thread has got them, look again.

        Raises:
            StopIteration: there are no more.
        """
        with self._turn:
            while self._refilling and current() is spent:
                self._turn.wait(self._timeout)
            if current() is not spent:
                return None
            if self.progress.finished or self.closed == DONE or (self._over and not self.closed):
                raise StopIteration
            if self.closed:
                raise ClosedError(self.closed)
            self._refilling = True
        try:
            return self._following()
        except BaseException:
            self.refilled()
            raise

    def refilled(self) -> None:
        """The samples are in place for other threads."""
        with self._turn:
            self._refilling = False
            self._turn.notify_all()

    def _following(self) -> Iterator[Any]:
        while True:
            try:
                part = self._take()
            except LoadTimeoutError:
                raise  # it may still come
            except Exception:
                self._over = True
                self._end()
                raise
            if part is None:
                self._over = True
                self.progress.finished = not self.closed
                self._end()
                raise StopIteration
            skip = (self._offset - part.first) % self._step
            samples = part.samples if self._step == 1 else part.samples[skip :: self._step]
            if samples:
                return copied(self.progress.enter(part, samples, part.first + skip, self._step), part.depth)

    def _take(self) -> Part | None:
        """The next part, if there is one."""
        if self._thread is None:
            part = self._supply.ready(self._at)
            if part is None and self._most:
                self._start()
                part = self._wait()
            elif part is None:
                part = self._supply.part(self._at, self)
        else:
            part = self._wait()
        if part is None or not part.samples:
            return None
        self._at = part.stop
        return part

    def _wait(self) -> Part | None:
        """The next part that the thread has; or what came of the one that it is reading."""
        until, moves = 0.0, 0
        while True:
            with self._turn:
                while self._held:
                    part = self._held.popleft()
                    self._samples -= len(part.samples)
                    self._nbytes -= part.nbytes
                    self._turn.notify_all()
                    if part.stop > self._at:
                        return part.after(self._at)
                if self.closed == DONE:
                    return None
                if self.closed:
                    raise ClosedError(self.closed)
                if self._ended:
                    error = self._ended[0]
                    if error is None:
                        return None
                    if isinstance(error, LoadTimeoutError):  # it may still come: the next call has it tried again
                        self._ended.clear()
                        self._thread = None
                    raise error
                if not until:
                    self._window = min(self._most, 2 * self._window)
                    until, moves = time.monotonic() + self._timeout, self._supply.moves
                    self._turn.notify_all()
                elif self._supply.changing or moves != self._supply.moves:
                    until, moves = time.monotonic() + self._timeout, self._supply.moves
                elif time.monotonic() >= until:
                    raise LoadTimeoutError(
                        f"{self._name}: sample {self._at} has not come for {self._timeout} s; the source hangs, or is "
                        "slower than timeout= allows"
                    )
                if self._turn.wait(min(LOOK_S, max(0.0, until - time.monotonic()))):
                    continue
            ready = self._supply.ready(self._at, asked=True)
            if ready is not None and ready.samples:
                return ready

    # -- the thread's side --------------------------------------------------------------

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"lazystore-ahead-{self._name}"[:64], daemon=True)
        with self._turn:
            if self.closed:
                return
            self._thread = thread
        _reading.add(self)
        try:
            thread.start()
        except RuntimeError:  # no more threads: the next call tries again
            self._thread = None
            raise

    def _run(self) -> None:
        error: BaseException | None = None
        position = self._at
        try:
            while self._has_room():
                part = self._supply.part(position, self)
                if part is None:
                    break
                position = part.stop
                with self._turn:
                    self._held.append(part)
                    self._samples += len(part.samples)
                    self._nbytes += part.nbytes
                    self._turn.notify_all()
        except BaseException as failure:  # noqa: BLE001 - it is the reader's, who raises it
            error = failure
        with self._turn:
            if not self._halted:
                self._ended.append(error)
            self._turn.notify_all()

    def _has_room(self) -> bool:
        """Wait until another part may be held; False when the pass is closed."""
        with self._turn:
            while not self.closed and not self._halted:
                if not self._held or (self._samples < self._window and self._nbytes < self._room()):
                    return True
                self._turn.wait()
            return False

    # -- life ---------------------------------------------------------------------------

    def close(self, why: str = DONE, wait: bool = False) -> None:
        """No more samples come, nothing is held. ``wait``: for the thread, for a moment."""
        if self.foreign:
            return
        with self._turn:
            if not self.closed:
                self.closed = why
            thread = self._thread
            self._held.clear()
            self._samples = self._nbytes = 0
            self._turn.notify_all()
        self.progress.freeze()
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(FAREWELL_S)
        self._end()

    def halt(self, wait: bool) -> None:
        """The interpreter exits: the thread reads no more; readers that are left are threads that will be stopped."""
        with self._turn:
            self._halted = True
            thread = self._thread
            self._turn.notify_all()
        if wait and thread is not None:
            thread.join(FAREWELL_S)

    def _end(self) -> None:
        self._supply.release(self)


def _guarded(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As PEP 479 has it: a StopIteration of the transform would pass for the end of a part."""

    def call(sample: Any) -> Any:
        try:
            return transform(sample)
        except StopIteration as error:
            raise RuntimeError("transform raised StopIteration") from error

    return call


class Pass:
    """One pass over the samples: an iterator that any number of threads may share; each sample goes to one of them.

    Made by ``iter(wrapper)``. An error of the source comes where its sample would; the pass is then over. Closing it,
    dropping it or reaching the end lets go of what it held ahead and ends its thread.

    Threads: any. Fork: in a child it goes on where it was when the child was made. Pickling: refused. Interpreter
    exit: its thread is told to end, and waited for a moment.
    """

    __slots__ = ("__weakref__", "_course", "_home", "_items", "_transform")

    def __init__(self, home: Any, course: Course, transform: Callable[[Any], Any] | None) -> None:
        self._items: Iterator[Any] = iter(())
        self._home = home  # whose it is stays open while it is read
        self._course = course
        self._transform = None if transform is None else _guarded(transform)
        weakref.finalize(self, course.close).atexit = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            items = self._items
            for sample in items:
                return sample
            self._more(items)

    def _more(self, spent: Iterator[Any]) -> None:
        """Other items in place of those that are spent; by whichever thread comes first."""
        course = self._course
        if course.foreign:
            self._home._adopt(course)
        found = course.refill(lambda: self._items, spent)
        if found is None:
            return
        self._items = found if self._transform is None else map(self._transform, found)
        course.refilled()

    @property
    def position(self) -> int:
        """The number of the next sample."""
        return self._course.progress.position

    def close(self) -> None:
        """End the pass: the next call of ``next`` raises StopIteration. Waits for its thread, at most two seconds."""
        self.end(DONE)

    def end(self, why: str, *, wait: bool = True) -> None:
        """Close it for another reason than the reader's, who gets a ClosedError that tells it."""
        self._items = iter(())
        self._course.close(why, wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a pass cannot be pickled; pickle the wrapper, or its state_dict()")

    def __repr__(self) -> str:
        return f"<Pass over {self._course._name} at sample {self.position}>"
