"""Checksums of stored objects: nothing of an object is handed out before all of it was hashed.

Which objects have which checksum is for the format to say. Hashing is done by threads of its own, so that a read that
was started does not keep its caller.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import ref

from lazystore.errors import (
    ChecksumError,
    ClosedError,
    FetchError,
    FetchTimeoutError,
    FormatError,
    MissingExtraError,
    UnsupportedError,
)
from lazystore.fetch.flight import Outcome, Wave, finish
from lazystore.fetch.source import Flight, Read, Source

__all__ = ["VerifyingSource", "hasher"]

KIB = 1024
MIN_MEMORY, MAX_MEMORY = 256 * KIB, 4096 * KIB
#: Objects hashed at once, and pieces each is fetched in ahead of its hash: near, and far away.
LOCAL_THREADS, REMOTE_THREADS, PIECES = 1, 2, 2
#: Objects known to be good: the last ones, and fewer of them than identities that a source keeps pinned.
MAX_VERIFIED = 8192
#: An object with another checksum is fetched so many times in all.
ATTEMPTS = 2
#: Seconds to wait for a thread at closing.
JOIN_S = 2.0


def hasher(algorithm: str, digest: str) -> Callable[[], Any]:
    """What makes a new hash: an object with ``update(bytes)`` and ``hexdigest()``.

    Parameters:
        algorithm: of ``hashlib`` (but those of variable length) or of the package ``xxhash``.
        digest: the hex digest that will be compared; BLAKE2 hashes are as long as it.

    Raises:
        FormatError: ``digest`` is none.
        MissingExtraError: ``xxhash`` is not installed.
        UnsupportedError: an unknown algorithm.
    """
    try:
        length = len(bytes.fromhex(digest))
    except ValueError:
        raise FormatError(f"{digest!r} is no hex digest ({algorithm})") from None
    if algorithm.startswith("xxh"):
        try:
            import xxhash
        except ImportError:
            raise MissingExtraError(
                f"checking {algorithm} hashes needs the package xxhash; pip install lazystore[mds]"
            ) from None
        if algorithm in xxhash.algorithms_available:
            make: Callable[[], Any] = getattr(xxhash, algorithm)
            return make
    elif algorithm in ("blake2b", "blake2s"):
        if 1 <= length <= (64 if algorithm == "blake2b" else 32):
            return lambda: getattr(hashlib, algorithm)(digest_size=length)
        raise FormatError(f"a {algorithm} digest of {length} bytes does not exist")
    elif algorithm in hashlib.algorithms_available and not algorithm.startswith("shake"):
        return lambda: hashlib.new(algorithm, usedforsecurity=False)
    raise UnsupportedError(f"hash algorithm {algorithm!r} is not one that can be computed here (hashlib's, xxhash's)")


class VerifyingSource:
    """A :class:`~lazystore.fetch.source.Source` that hands out nothing but what has its checksum.

    Parameters:
        inner: where the objects are.
        digests: algorithm and hex digest of each object that is checked; others are passed on as they are.
        timeout: seconds that fetching one piece of an object for its hash may take.
        memory: bytes that may be used for such pieces in all threads together (kept between 256 KiB and 4 MiB).

    An object's first read has all of it fetched and hashed once, in pieces; other reads of it wait for that, within
    their own timeouts, and it goes on where they give up. Another checksum: the object is fetched once more, and then
    ChecksumError is raised; the next read tries anew. What is read later is what was hashed: the size that is asked
    for with the first piece pins the object's identity in ``inner``. The last 8192 objects are remembered.

    Counted in ``counters.extra``: ``verified`` and ``checksum_mismatches``.

    Threads: any may call; one or two of its own hash, while there is something to. Fork: what was verified stays so;
    :meth:`reset_after_fork`. Pickling: by its parameters.
    """

    def __init__(
        self, inner: Source, digests: Mapping[str, tuple[str, str]], *, timeout: float, memory: int = MAX_MEMORY
    ) -> None:
        self.inner = inner
        self.url = inner.url
        self.local = inner.local
        self.counters = inner.counters
        self.digests = digests
        self._timeout = timeout
        self._threads = LOCAL_THREADS if inner.local else REMOTE_THREADS
        self.memory = min(max(memory, MIN_MEMORY), MAX_MEMORY)
        self._piece = self.memory // (self._threads * PIECES)
        self._verified: dict[str, None] = {}
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._lock = threading.RLock()
        self._checks: dict[str, _Check] = {}
        self._queue: deque[_Check] = deque()
        self._working: list[threading.Thread] = []
        self._closed = False

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        """Fill the reads' buffers and tell sizes; see :class:`~lazystore.fetch.source.Source`.

        Raises:
            ChecksumError: an object is not what its checksum says.
        """
        if not self._unknown(reads):
            return self.inner.run(reads, stat=stat, timeout=timeout)
        return finish(self._delayed(reads, stat, timeout, urgent=True, on_done=None))

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Flight:
        """Begin what :meth:`run` does; see :class:`~lazystore.fetch.source.Source`."""
        if not self._unknown(reads):
            return self.inner.start(reads, stat=stat, timeout=timeout, urgent=urgent, on_done=on_done)
        return self._delayed(reads, stat, timeout, urgent=urgent, on_done=on_done)

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes | bytearray:
        """The whole object, hashed as it is; see :class:`~lazystore.fetch.source.Source`."""
        if name not in self.digests:
            return self.inner.read_all(name, limit=limit, timeout=timeout)
        algorithm, expected = self.digests[name]
        got = ""
        for _ in range(ATTEMPTS):
            data = self.inner.read_all(name, limit=limit, timeout=timeout)
            digest = hasher(algorithm, expected)()
            digest.update(data)
            got = digest.hexdigest()
            if got == expected.lower():
                self._count("verified")
                return data
            self._count("checksum_mismatches")
        raise self._mismatch(name, got)

    def identity(self, name: str, *, timeout: float) -> str:
        """That of the stored object; see :class:`~lazystore.fetch.source.Source`."""
        return self.inner.identity(name, timeout=timeout)

    def close(self) -> None:
        """Close the inner source; hashing ends with the piece that is on its way."""
        with self._lock:
            self._closed = True
            threads = list(self._working)
            left = list(self._queue)
            self._queue.clear()
        self.inner.close()
        for check in left:
            self._settle(check, ClosedError(f"the source {self.url} is closed"))
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    def reset_after_fork(self) -> None:
        """In the child: the threads, and what they were hashing, stayed with the parent."""
        closed = self._closed
        self._begin_anew()
        self._closed = closed
        reset = getattr(self.inner, "reset_after_fork", None)
        if reset is not None:
            reset()

    # -- who waits for what ------------------------------------------------------------------

    def _unknown(self, reads: Sequence[Read]) -> list[str]:
        """Objects among these that have to be hashed first."""
        names = dict.fromkeys(read.name for read in reads)
        unknown = []
        with self._lock:
            for name in names:
                if name in self.digests and name not in self._verified:
                    unknown.append(name)
        return unknown

    def _delayed(
        self,
        reads: Sequence[Read],
        stat: Iterable[str],
        timeout: float,
        *,
        urgent: bool,
        on_done: Callable[[], None] | None,
    ) -> _Delayed:
        flight = _Delayed(self.inner, reads, tuple(stat), timeout, urgent, on_done)
        landing = flight.landing
        with self._lock:
            if self._closed:
                raise ClosedError(f"the source {self.url} is closed")
            for name in self._unknown(reads):
                check = self._checks.get(name)
                if check is None:
                    check = self._checks[name] = _Check(name)
                    (self._queue.appendleft if urgent else self._queue.append)(check)
                landing.pending += 1
                check.landings.append(landing)
            if self._queue and len(self._working) < self._threads:
                thread = threading.Thread(target=self._work, name="lazystore-verify", daemon=True)
                self._working.append(thread)
                thread.start()
        landing.one_done(None)
        return flight

    def _work(self) -> None:
        """What a thread does: hash one object after another, and end when there are no more."""
        while True:
            with self._lock:
                if not self._queue:
                    self._working.remove(threading.current_thread())
                    return
                check = self._queue.popleft()
            error: Exception | None = None
            try:
                self._verify(check.name)
            except Exception as caught:  # noqa: BLE001 - raised where the bytes are asked for
                error = caught
            self._settle(check, error)
            del check, error

    def _settle(self, check: _Check, error: Exception | None) -> None:
        with self._lock:
            if error is None:
                self._verified[check.name] = None
                while len(self._verified) > MAX_VERIFIED:
                    del self._verified[next(iter(self._verified))]
            self._checks.pop(check.name, None)
            landings = list(check.landings)
        for landing in landings:
            landing.one_done(error)

    # -- hashing -----------------------------------------------------------------------------

    def _verify(self, name: str) -> None:
        algorithm, expected = self.digests[name]
        got = ""
        for _ in range(ATTEMPTS):
            got = self._hash(name, hasher(algorithm, expected)())
            if got == expected.lower():
                self._count("verified")
                return
            self._count("checksum_mismatches")
        raise self._mismatch(name, got)

    def _hash(self, name: str, digest: Any) -> str:
        """Hex digest of the whole object, the next piece of which travels while one is hashed."""
        piece = Read(name, 0, memoryview(bytearray(self._piece)))
        size = self.inner.run([piece], stat=(name,), timeout=self._timeout)[name]
        spare = memoryview(bytearray(self._piece if size > piece.end else 0))
        while True:
            begin = piece.begin + piece.got
            if not piece.got and begin < size:
                raise FetchError(f"{self.url}/{name} ends at byte {begin} of {size}", url=f"{self.url}/{name}")
            following = Read(name, begin, spare[: size - begin]) if begin < size else None
            flight = self.inner.start([following], timeout=self._timeout) if following is not None else None
            digest.update(piece.view[: piece.got])
            if following is None or flight is None:
                return str(digest.hexdigest())
            if not flight.wait(self._timeout):
                flight.cancel()
                raise FetchTimeoutError(
                    f"{self.url}/{name}, bytes {begin}..{following.end} did not come within {self._timeout:g} s",
                    url=f"{self.url}/{name}", begin=begin, end=following.end, elapsed=self._timeout,
                )  # fmt: skip
            flight.result()
            spare, piece = memoryview(piece.view.obj), following

    def _mismatch(self, name: str, got: str) -> ChecksumError:
        algorithm, expected = self.digests[name]
        return ChecksumError(
            f"{self.url}/{name} has the {algorithm} checksum {got}, its index says {expected}, also when fetched once "
            "more: it is damaged, or not the file that was indexed"
        )

    def _count(self, what: str) -> None:
        extra = self.counters.extra
        with self._lock:
            extra[what] = extra.get(what, 0) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.inner, self.digests, self._timeout, self.memory)

    def __repr__(self) -> str:
        return f"<VerifyingSource over {self.inner!r}, {len(self._verified)} objects verified>"


def _rebuilt(inner: Source, digests: Mapping[str, tuple[str, str]], timeout: float, memory: int) -> VerifyingSource:
    return VerifyingSource(inner, digests, timeout=timeout, memory=memory)


class _Check:
    """An object being hashed, or about to be, and who waits for it."""

    __slots__ = ("landings", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.landings: list[_Landing] = []


class _Delayed(Wave):
    """Reads that are started once their objects were hashed. Forgotten, it forgets their flight, which cancels that."""

    __slots__ = ("_inner", "_live", "_lock", "_reads", "_source", "_stat", "_urgent", "landing")

    def __init__(
        self,
        source: Source,
        reads: Sequence[Read],
        stat: tuple[str, ...],
        timeout: float,
        urgent: bool,
        on_done: Callable[[], None] | None,
    ) -> None:
        super().__init__(Outcome(on_done), source.url, timeout)
        self._source = source
        self._reads = reads
        self._stat = stat
        self._urgent = urgent
        self._inner: Flight | None = None
        self._live = True
        self._lock = threading.RLock()  # a finalizer may cancel in the very thread that launches
        self.landing = _Landing(self)

    def launch(self, landed: Callable[[Exception | None], None]) -> None:
        """Start the reads; ``landed`` is called twice: when they were, and when they are done."""
        with self._lock:
            if not self._live:
                return
            timeout = max(0.001, self._started + self._timeout - time.monotonic())
            self._inner = self._source.start(
                self._reads, stat=self._stat, timeout=timeout, urgent=self._urgent, on_done=lambda: landed(None)
            )
        landed(None)

    def inner_result(self) -> dict[str, int]:
        assert self._inner is not None
        return self._inner.result()

    def _take_back(self) -> None:
        with self._lock:
            self._live = False
            if self._inner is not None:
                self._inner.cancel()

    def _stuck(self) -> FetchTimeoutError:
        names = ", ".join(sorted({read.name for read in self._reads})[:3])
        return FetchTimeoutError(
            f"{self._url}/{names} could not be verified and read within {self._timeout:g} s; whole objects are fetched "
            "for that: give a larger timeout=",
            url=f"{self._url}/{names}", elapsed=self._timeout,
        )  # fmt: skip


class _Landing:
    """Counts what a delayed flight waits for, without keeping it or its buffers."""

    __slots__ = ("_flight", "_lock", "_outcome", "_started", "pending")

    def __init__(self, flight: _Delayed) -> None:
        self._flight = ref(flight)
        self._outcome = flight.outcome
        self._lock = threading.Lock()
        self._started = False
        self.pending = 1

    def one_done(self, error: Exception | None) -> None:
        """One thing less to wait for. After the last object the reads are started, after those it is done."""
        if error is not None:
            self._outcome.settle(error=error)
            return
        with self._lock:
            self.pending -= 1
            if self.pending:
                return
            started, self._started = self._started, True
            self.pending = 2
        flight = self._flight()
        if flight is None or self._outcome.settled:
            self._outcome.settle(error=FetchError("a read that nobody waited for was cancelled"))
            return
        try:
            if started:
                self._outcome.settle(flight.inner_result())
            else:
                flight.launch(self.one_done)
        except Exception as caught:  # noqa: BLE001 - raised where the flight's result is asked for
            self._outcome.settle(error=caught)
