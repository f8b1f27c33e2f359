"""The one interface between lazystore and storage: two verbs over named objects.

A :class:`Source` stands for one directory (local or remote). It is asked for
sizes and for byte ranges that land in caller-owned buffers, many at once, and
answers when all of them are done. Who decides *which* ranges, and where the
buffers live, is above; how bytes travel is below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["FetchCounters", "Read", "Source"]


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
        waves: calls of ``run`` that sent at least one request.
    """

    requests: int = 0
    retries: int = 0
    bytes_fetched: int = 0
    in_flight_bytes: int = 0
    in_flight_peak: int = 0
    waves: int = 0
    extra: dict[str, int] = field(default_factory=dict)


class Source(Protocol):
    """Byte ranges of the objects below one root.

    Implementations are safe to call from many threads at once, start no thread
    before the first read, and are rebuilt (not shared) in a forked child.
    """

    url: str
    #: True when bytes come from a local disk (no in-flight copies, cheap small reads).
    local: bool
    counters: FetchCounters

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

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes:
        """The whole object, in one request where the storage allows it.

        Raises as :meth:`run` does, and FetchError when it is longer than ``limit`` bytes.
        """
        ...

    def close(self) -> None:
        """Release descriptors and sessions; later calls raise ClosedError."""
        ...
