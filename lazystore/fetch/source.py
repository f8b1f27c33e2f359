"""The one interface between lazystore and storage: two verbs over named objects.

A :class:`Source` stands for one directory (local or remote). It is asked for
sizes and for byte ranges that land in caller-owned buffers, many at once, and
answers when all of them are done. Who decides *which* ranges, and where the
buffers live, is above; how bytes travel is below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["FetchCounters", "Flight", "Read", "Source", "StorageSource"]


@dataclass(slots=True, eq=False)
class Read:
    """One byte range of one object, and the buffer it lands in.

    Attributes:
        name: object name relative to the source's root (already checked for traversal).
        begin: first byte.
        view: writable, contiguous, byte-shaped buffer; ``len(view)`` bytes are wanted.
        got: bytes that landed. Equal to ``len(view)`` after :meth:`Source.run`, unless
            the object ends earlier *and* its name was in ``stat``: then what there was.
    """

    name: str
    begin: int
    view: memoryview
    got: int = 0

    @property
    def end(self) -> int:
        return self.begin + len(self.view)


@dataclass(slots=True)
class FetchCounters:
    """What a source did so far; plain ints, read by ``stats()``.

    Attributes:
        requests: data requests sent, retries and hedges included.
        retries: requests repeated after a retryable failure.
        bytes_fetched: payload bytes received, those of failed attempts included when known.
        in_flight_bytes: payload bytes asked for and not yet landed.
        in_flight_peak: high-water mark of the former.
        waves: calls of ``run`` and ``start`` that sent at least one request.
    """

    requests: int = 0
    retries: int = 0
    bytes_fetched: int = 0
    in_flight_bytes: int = 0
    in_flight_peak: int = 0
    waves: int = 0
    extra: dict[str, int] = field(default_factory=dict)


class Flight(Protocol):
    """One wave under way: the reads and sizes of one :meth:`Source.start`.

    Hold on to it: a flight that is forgotten unfinished is cancelled, so that nothing is written into
    buffers that nobody owns any more. Threads: any may call. Fork: dead in the child (:meth:`done` is True,
    :meth:`result` raises FetchError). Not picklable.
    """

    def done(self) -> bool:
        """Whether it ended, well or not; never waits."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds; True once it ended. Never raises the flight's error."""
        ...

    def result(self) -> dict[str, int]:
        """The sizes (bytes) of ``stat``; raises what :meth:`Source.run` would. Waits for the end, at most
        until the deadline, so ask when it is done.
        """
        ...

    def cancel(self) -> None:
        """End it now, without waiting for the storage. After it returns no byte is written into the buffers.

        Cancelling twice, or after the end, is harmless.
        """
        ...


class Source(Protocol):
    """Byte ranges of the objects below one root.

    Implementations are safe to call from many threads at once, start no thread
    before the first read, and are rebuilt (not shared) in a forked child.
    """

    url: str
    #: True when bytes come from a local disk (no in-flight copies, cheap small reads).
    local: bool
    counters: FetchCounters
    #: Bytes it holds besides those in flight.
    memory: int

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        """Fill every read's ``view``; return the sizes (bytes) of the objects in ``stat``.

        Sizes and ranges travel at the same time: one wave of requests. The first size
        asked of an object pins its identity (etag, mtime, size).

        Raises:
            DatasetNotFoundError: an object does not exist.
            FetchTimeoutError: ``timeout`` seconds passed, retries included.
            SourceChangedError: an object is no longer the one whose size was given.
            FetchError: anything else that retries did not cure, a range that ends
                beyond the object among them.
        """
        ...

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Flight:
        """Begin what :meth:`run` does, and let the caller go on.

        Args:
            urgent: its requests pass those of other calls that wait for their turn.
            on_done: called once, from whichever thread ends the flight (also when it failed or was
                cancelled); must be quick and must not raise. May be called before ``start`` returns.

        Raises:
            ClosedError, ConfigError: at once; everything else is raised by :meth:`Flight.result`.
        """
        ...

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes | bytearray:
        """The whole object, in one request where the storage allows it; held once, however long.

        Raises as :meth:`run` does, and FetchError when it is longer than ``limit`` bytes.
        """
        ...

    def identity(self, name: str, *, timeout: float) -> str:
        """Which object it is, pinned as by a size that is asked for: the same text means the same bytes.

        ``size-tag`` or ``size-time of modification``; ends in "-" where the storage tells nothing but the size,
        which is no identity to rely on. For remembering between processes what was found out about an object.

        Raises as :meth:`run` does.
        """
        ...

    def close(self) -> None:
        """Release descriptors and sessions; later calls raise ClosedError."""
        ...


class StorageSource(Source, Protocol):
    """A source that talks to the storage itself, not one put together over others."""

    def forget(self, name: str) -> None:
        """Unpin an object: its size and identity are asked for anew, and whatever it is by then is taken.

        For opening an object again that may have changed. Reads of it that are under way may then land bytes of
        either version: who began them compares :meth:`identity` afterwards with the one it had.
        """
        ...
