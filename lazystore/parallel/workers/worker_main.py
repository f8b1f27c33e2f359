"""A worker process's life: it takes a job and chunks of items, runs them, and reports.

What travels, by kind of message (``transport.Kind``; the number is that of the job or of the chunk, counted from 1
over the worker's life):

to the worker:
    JOB      {"job": number, "surroundings": the caller's, "work": pickle of a ``Job``, "by_value": results that
             pickle refuses go through cloudpickle}
    CHUNK    (first, items, limit_s, limit_bytes), or that with None for the items and then each item as a part of its
             own
    AGAIN    the report of this chunk could not be unpacked: send it again, each result as a part of its own
    END      end
from the worker:
    HELLO    it is up
    REFUSED  (what failed: "load" or "initializer", text): it cannot do the job; chunks of it are not answered
    REPORT   results as one part, or each as one; see :func:`unpack_report`
    AGAIN    this chunk could not be unpacked: send it again, each item as a part of its own
    SKIPPED  this chunk was withdrawn before it was begun

Beside messages, in the file that both share (``Channel.begin``): which chunk was begun last, and which were withdrawn.
How workers start, and that they die with the caller, is the business of ``launch``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, TypeVar

from lazystore.errors import TransportError
from lazystore.parallel.chunk import Chunk, Job, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers.chunk_run import Ran, run_chunk
from lazystore.parallel.workers.packing import Packed, joined, load, pack, packed_pickle
from lazystore.parallel.workers.transport import Channel, Kind, Message

__all__ = ["IDLE_EXIT", "UNGUARDED_EXIT", "importing_main", "leave_unguarded", "main", "serving", "unpack_report"]

#: exit status of a worker that had nothing to do
IDLE_EXIT = 75
#: exit status of a worker whose caller's script calls imap when it is imported
UNGUARDED_EXIT = 79
#: seconds a worker waits for something to do
IDLE_S = 60.0
#: seconds for what threads and exit handlers of the functions' do when the worker ends
LEAVE_S = 10.0
#: results of this many bytes on average travel each by itself
APART = 16 << 10

#: of a report: whether each result is a part of its own, and ``Report``'s fields from ``failures`` to ``in_bytes``
_COUNTERS = struct.Struct("<?qqdddqdq")

T = TypeVar("T")
_serving = False


def unpack_report(message: Message, chunk: Chunk, worker: int = 0) -> Report | None:
    """The report that a REPORT message tells, in the caller.

    A result that cannot be unpacked becomes a :class:`Failed` with a :class:`TransportError`. Where results came as one
    part, None: send AGAIN with the message's number, and go on as if it had not come; the report will come again.

    Raises:
        EOFError: bytes are missing: the worker is of no more use.
    """
    apart, failures, *counters = _COUNTERS.unpack(message.meta)
    if apart:
        results = []
        for place, part in enumerate(message.parts()):
            try:
                results.append(load(part))
            except Exception as error:  # noqa: BLE001 (a user's class may raise anything)
                what = "its result cannot be unpickled"
                results.append(_untransported(what, error, chunk.first + place, chunk.items[place]))
                failures += 1
    else:
        try:
            results = message.unpack()
        except Exception:  # noqa: BLE001 (told when it came again, with the item that it belongs to)
            return None
    out_bytes = message.nbytes
    message.drop()
    retried, run_s, computed_s, longest_s, longest_at, transport_s, in_bytes = counters
    times = (run_s, computed_s, longest_s, longest_at, transport_s)
    return Report(chunk, results, failures, retried, *times, in_bytes, out_bytes, worker)


def main(channel: Channel, number: int, idle_s: float = IDLE_S) -> None:
    """Be a worker until the caller is gone, says END, or has had nothing to do for so long.

    Parameters:
        channel: to the caller; closed in the end.
        number: the worker's, for messages.
        idle_s: seconds to wait for something to do.

    Raises:
        SystemExit: with ``IDLE_EXIT`` after ``idle_s``.
    """
    global _serving
    _serving = True
    here = os.getpid()
    if getattr(sys.modules["__main__"], "__spec__", None) is None:
        # or Python 3.11 warns on stderr where an error names the module: no function of the caller's is there
        sys.modules["__main__"].__loader__ = None
    os.register_at_fork(after_in_child=channel.close)  # what functions fork does not keep the way to the caller open
    try:
        _Worker(channel, number).serve(idle_s)
    except (EOFError, BrokenPipeError):
        return  # the caller is gone
    finally:
        if os.getpid() == here:
            channel.close()  # at once: the interpreter's end may take its time
            last = threading.Timer(LEAVE_S, os._exit, (0,))
            last.daemon = True
            last.start()


def serving() -> bool:
    """Whether this process is a worker."""
    return _serving


def importing_main() -> bool:
    """Whether this is a worker that imports the caller's main module at this moment."""
    return _importing


def leave_unguarded() -> None:
    """End a worker whose caller's main module calls `imap` when it is imported; the caller learns why."""
    os._exit(UNGUARDED_EXIT)


class _Worker:
    """What a worker knows.

    It keeps the results of its last two reports, if they travelled as one part: until it gets another chunk after them,
    the caller may find that it cannot unpack them. Such results are small.
    """

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._job: Job | None = None
        self._main = ("", "")
        self._by_value = False
        self._kept: deque[tuple[int, Ran, int, Sequence[Any]]] = deque(maxlen=2)
        self._mean = 0.0  # bytes of a result, as it was packed last
        self._signals = _Signals()

    def serve(self, idle_s: float) -> None:
        _listen_to_signals()
        self._signals = _Signals()
        self._channel.send(Kind.HELLO, self._number)
        while (message := self._channel.receive(idle_s)) is not None:
            if message.kind == Kind.JOB:
                self._take_job(message)
            elif message.kind == Kind.CHUNK:
                if self._job is not None:
                    self._take_chunk(self._job, message)
            elif message.kind == Kind.AGAIN:
                self._report_again(message.number)
            elif message.kind == Kind.END:
                return
            del message  # nothing is held on to while it waits
        sys.exit(IDLE_EXIT)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def _take_job(self, message: Message) -> None:
        self._signals.restore()
        self._job = None
        self._kept.clear()
        self._mean = 0.0
        during = "load"
        try:
            told: dict[str, Any] = message.unpack()
            message.drop()
            told["surroundings"].apply()
            self._main = told["surroundings"].main
            self._by_value = told["by_value"]
            job: Job = self._load(lambda: pickle.loads(told["work"]))
            _limit_threads(job)
            during = "initializer"
            if job.initializer is not None:
                job.initializer()
                self._signals = _Signals()  # what it set stays: it is not run again for the next job that has it
        except (Exception, SystemExit) as error:  # noqa: BLE001 (it is the user's code; the caller raises)
            self._channel.send(Kind.REFUSED, message.number, pack((during, f"{type(error).__name__}: {error}")))
        else:
            self._job = job

    def _load(self, unpickle: Callable[[], T]) -> T:
        """Unpickle; where that fails for want of a name, the caller's main module is imported, which may define it."""
        try:
            return unpickle()
        except (AttributeError, ImportError):
            if not _import_main(*self._main):
                raise
        return unpickle()

    # -- chunks -------------------------------------------------------------------------------------------------------

    def _take_chunk(self, job: Job, message: Message) -> None:
        if not self._channel.begin(message.number):
            message.drop()
            self._channel.send(Kind.SKIPPED, message.number)
            return
        begin = time.thread_time()
        try:
            first, items, limit_s, limit_bytes, whole = self._load(lambda: _unpack_chunk(message))
        except Exception:  # noqa: BLE001 (the items come again, one by one, and fail one by one)
            self._channel.send(Kind.AGAIN, message.number)
            return
        unpack_s = time.thread_time() - begin
        in_bytes = message.nbytes
        message.drop()  # its slot is free
        if not whole:
            job = replace(job, func=_Checked(job.func))
        _limit_threads(job)
        note = None if job.timeout is None else self._channel.note_progress
        # what threads of the function's own compute, it does not wait for
        ran = run_chunk(job, items, first, limit_s, limit_bytes, note=note, computed=time.process_time)
        if note is not None:
            note(-1)
        _flush()
        self._report(message.number, ran, first, items, unpack_s, in_bytes)
        _listen_to_signals()

    def _report(self, number: int, ran: Ran, first: int, items: Sequence[Any], unpack_s: float, in_bytes: int) -> None:
        apart = len(ran.results) == 1 or max(self._mean, ran.nbytes / len(ran.results)) >= APART
        begin = time.thread_time()
        packed = None
        if not apart:
            # one of them does not pickle: the others must not suffer
            with contextlib.suppress(Exception):
                packed = self._pack(ran.results)
        if packed is not None and packed.nbytes >= APART * len(ran.results):
            packed = None  # larger than they looked
        if packed is not None:
            self._kept.append((number, ran, first, items))
        if packed is None:
            apart, packed = True, self._packed_apart(ran, first, items)
        self._mean = packed.nbytes / len(ran.results)
        transport_s = unpack_s + time.thread_time() - begin
        self._channel.send(Kind.REPORT, number, packed, _meta(apart, ran, transport_s, in_bytes))

    def _report_again(self, number: int) -> None:
        for kept, ran, first, items in self._kept:
            if kept == number:
                packed = self._packed_apart(ran, first, items)
                self._channel.send(Kind.REPORT, number, packed, _meta(True, ran, 0.0, 0))

    def _packed_apart(self, ran: Ran, first: int, items: Sequence[Any]) -> Packed:
        """Results ready to be sent; one that does not pickle becomes a failure."""
        several = []
        for place, result in enumerate(ran.results):
            try:
                several.append(self._pack(result))
            except Exception as error:  # noqa: BLE001 (a user's class may raise anything)
                several.append(pack(_untransported("its result cannot be pickled", error, first + place, items[place])))
                ran.failures += 1
        return joined(several)

    def _pack(self, value: object) -> Packed:
        try:
            return pack(value)
        except Exception:
            if not self._by_value:
                raise
            import cloudpickle

            return packed_pickle(cloudpickle.dumps(value, 5))


def _meta(apart: bool, ran: Ran, transport_s: float, in_bytes: int) -> bytes:
    return _COUNTERS.pack(
        apart,
        ran.failures,
        ran.retried,
        ran.run_s,
        ran.computed_s,
        ran.longest_s,
        ran.longest_at,
        transport_s,
        in_bytes,
    )


class _Unpackable:
    """Stands for an item that cannot be unpacked."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Checked:
    """A function that is not called with items that could not be unpacked."""

    def __init__(self, func: Callable[[Any], Any]) -> None:
        self._func = func

    def __call__(self, item: Any) -> Any:
        if isinstance(item, _Unpackable):
            raise _transport_error("the item cannot be unpickled in a worker process", item.error)
        return self._func(item)


def _unpack_chunk(message: Message) -> tuple[int, Sequence[Any], float, int, bool]:
    """First index, items, limits, and whether all items could be unpacked."""
    parts = message.parts()
    first, items, limit_s, limit_bytes = load(next(parts))
    if items is not None:
        return first, items, limit_s, limit_bytes, True
    items = []
    for part in parts:
        try:
            items.append(load(part))
        except Exception as error:  # noqa: BLE001 (a user's class may raise anything)
            items.append(_Unpackable(error))
    return first, items, limit_s, limit_bytes, False


def _untransported(what: str, error: Exception, index: int, item: object) -> Failed:
    return Failed(_transport_error(what, error), index, item)


def _transport_error(what: str, error: Exception) -> TransportError:
    return TransportError(f"{what}: {type(error).__name__}: {error}; or use backend='thread'")


# -- the process ------------------------------------------------------------------------------------------------------

_importing = False
_imported: set[tuple[str, str]] = set()


def _import_main(how: str, where: str) -> bool:
    """Import the caller's main module under another name, as multiprocessing's spawn does; False: nothing was done."""
    global _importing
    if not how or (how, where) in _imported:
        return False
    from multiprocessing import process, spawn

    _imported.add((how, where))
    here: Any = process.current_process()
    before = getattr(here, "_inheriting", None)
    _importing = here._inheriting = True  # processes that it starts now are refused, with advice
    try:
        if how == "name":
            spawn._fixup_main_from_name(where)  # type: ignore[attr-defined]
        else:
            spawn._fixup_main_from_path(where)  # type: ignore[attr-defined]
    finally:
        _importing = False
        if before is None:
            del here._inheriting
        else:
            here._inheriting = before
    return True


def _limit_threads(job: Job) -> None:
    """Limit what libraries may use; cheap when nothing changed."""
    from lazystore.parallel.workers.inner_threads import limit_inner_threads

    limit_inner_threads(job.inner_threads)


def _heed_not(number: int, frame: FrameType | None) -> None:
    """Ctrl-C is the caller's business. A handler, for programs that functions start would inherit SIG_IGN."""


class _Signals:
    """What this process does about signals, to be had again after functions changed it; 50 us."""

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore(self) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0.0)  # one that still ran would end the worker
        for number, handler in self._handlers.items():
            # None: somebody's who is not Python
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)


def _listen_to_signals() -> None:
    """Have the signal handlers that every worker needs after each chunk, whatever a function set."""
    if signal.getsignal(signal.SIGINT) is not _heed_not:
        signal.signal(signal.SIGINT, _heed_not)
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flush() -> None:
    """Have what was printed shown: the worker may live long, and may be ended any time."""
    # a function may have closed them, or put something else there; then there is nothing to show
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
