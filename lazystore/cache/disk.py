"""The disk tier: values that outlive the process, in a folder that never holds more than so many bytes.

Records are appended to segment files; to make room, whole segments go, the oldest first. Every tier (each process,
each object) writes segments of its own, which it reserves in full when it opens them, under a lock of the folder; in
between, writing needs no lock but the tier's own. Values travel packed (``packing.py``); files and records are
``_core/record_log``'s, the folder ``disk_folder.py``'s. When the tier is asked is for ``tiers.py`` to say.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from lazystore._core.record_log import RecordLog, Stored
from lazystore._core.segment_file import MAX_KEY_BYTES, RECORD_OVERHEAD, SEGMENT_OVERHEAD, SegmentFile
from lazystore.cache.disk_folder import DiskFolder, hold, release
from lazystore.cache.packing import BYTES, SHAPE_BITS, Codec, is_pickle, saved_bytes, unpack
from lazystore.cache.packing import pack as pack_value
from lazystore.config import parse_bytes
from lazystore.errors import ClosedError, ConfigError, DiskTierError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DiskHealth", "DiskTier", "Stored"]

MIB = 1 << 20
MIN_BYTES = 64 << 10
#: Segments a full folder has; small folders have fewer and larger ones.
SEGMENTS, MIN_SEGMENTS = 32, 8
#: What is moved on instead of being dropped takes one in so many bytes of a segment.
RESCUED = 2
#: Seconds between two looks at what other processes did.
LOOK_S = 0.1
#: Seconds that writing stays off after the system refused it.
RETRY_S = 60.0
#: Seconds to wait for other processes that open or drop a segment.
LOCK_S = 1.0


class DiskHealth(NamedTuple):
    """What :meth:`DiskTier.health` tells.

    Attributes:
        ok: values are being stored.
        reason: why they are not; empty when ``ok``.
        retry_s: seconds until storing is tried again; 0 when ``ok``.
    """

    ok: bool
    reason: str = ""
    retry_s: float = 0.0


class DiskTier:
    """A cache in a folder: bounded, checksummed, shared by processes, never unpickling unless asked to.

    Parameters:
        path: the folder, for disk tiers only; made (mode 0700) if it is not there. ``~`` is the home folder.
        max_bytes: all files of the tier together never have more, whoever writes them; at least 64 KiB. A value
            has at most an eighth of it.
        mode: ``"spill"``: values come here when they leave memory; ``"through"``: as soon as they are loaded.
        codec: how values are compressed: ``"auto"`` (zstd, else zlib), ``"zstd"``, ``"zstd:N"``, ``"zlib"``,
            ``"none"``. What does not get 10 % smaller is stored as it is.
        allow_pickle: store values that only pickle can carry, and read such values. Reading a pickle runs what it
            says: only for folders that nobody else can write to.
        fsync: wait for the disk after each value. Off: a value survives the process, but perhaps not the machine;
            checksums find those that did not.

    Raises:
        ConfigError: an argument that cannot work.
        DiskTierError: the folder cannot be used; the message names the remedy.
        MissingExtraError: ``codec="zstd"`` without a zstd package.

    Cost: opening reads a list of the records in each full segment, and all of those that have none (not full, or
    full of short values): see ``open_s`` in :meth:`counters`. The index takes 32 to 48 bytes of memory a record.
    ``get`` and ``put`` are one system call each; a put now and then drops a segment and begins one, and moves what
    was read in the one that goes next (at most half a segment). Linux: blocks are reserved up to 1 MiB ahead of what
    is written, and given back by who closes the tier; after ``kill -9``, by the next one.

    Errors of the disk never reach the caller: reading, they are misses; writing, they turn the tier off for a
    minute (:meth:`health`). Threads: any may call. Processes: what another one stored or deleted is seen 0.1 s later
    at most; it may be read already while it is not. Fork: the child opens the folder anew when it first uses the
    tier. Pickles as its arguments. Interpreter exit: nothing to do; ``kill -9`` costs the value being written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int | str = "1GB",
        *,
        mode: str = "spill",
        codec: str = "auto",
        allow_pickle: bool = False,
        fsync: bool = False,
    ) -> None:
        if not os.fspath(path):
            raise ConfigError("path is empty (an unset variable?): a disk tier needs a folder of its own")
        self.path = os.path.abspath(os.path.expanduser(os.fspath(path)))
        self.max_bytes = parse_bytes(max_bytes, name="max_bytes")
        if self.max_bytes < MIN_BYTES:
            raise ConfigError(f"max_bytes={self.max_bytes} is too few for a disk tier; give {MIN_BYTES} or more")
        if mode not in ("spill", "through"):
            raise ConfigError(f"{mode=} is not one of 'spill', 'through'")
        self.mode = mode
        self.codec = Codec(codec)
        self.allow_pickle = bool(allow_pickle)
        self.fsync = bool(fsync)
        self.segment_bytes = max(self.max_bytes // SEGMENTS, min(MIB, self.max_bytes // MIN_SEGMENTS))
        self._lock = threading.Lock()
        self._closed = False
        self._log: RecordLog | None = None
        self._counts = dict.fromkeys(COUNTS, 0)
        self._past = dict.fromkeys(LOG_COUNTS, 0)
        self._off_until = 0.0
        self._reason = ""
        with self._lock:
            self._open()
        TIERS.add(self)

    def _open(self) -> RecordLog:
        """The folder and its records; under the lock."""
        began = time.monotonic()
        self._current: SegmentFile | None = None
        self._folder = DiskFolder(self.path)
        self._log = log = RecordLog()
        try:
            self._look(log)
            with self._folder.locked(LOCK_S) as held:
                if held:
                    self._look(log)  # quick after the first; nobody makes a segment meanwhile
                    self._make_room(log, 0)
        except OSError as error:
            raise DiskTierError(f"the disk tier in {self.path} cannot be opened: {error}") from error
        self._open_s = time.monotonic() - began
        return log

    def _opened(self) -> RecordLog:
        """The log; opened anew in a forked child."""
        log = self._log
        if log is None:
            with self._lock:
                if self._closed:
                    raise ClosedError(f"the disk tier in {self.path} is closed")
                log = self._log
                if log is None:
                    try:
                        log = self._open()
                    except DiskTierError as error:  # in a child whose parent's folder is gone: all are misses
                        log = self._log = RecordLog()
                        self._next_look = 0.0
                        self._turn_off(error)
        return log

    # --- one key ---

    def get(self, key: bytes, default: Any = None, *, now: float | None = None) -> Any:
        """What is stored under ``key`` as a :class:`Stored` (kind, payload, created, expires), else ``default``.

        Parameters:
            now: wall-clock seconds that expiry is measured against; None: the system's.

        Never raises for what is on the disk: a damaged, expired or unreadable record is a miss.
        """
        log = self._log
        if log is None:
            log = self._opened()
        if monotonic() >= self._next_look:
            self._look_around(log)
        found = log.get(key) if now is None else log.get(key, now)
        if found is None:
            return default
        if not self.allow_pickle and is_pickle(found.kind):
            self._counts["pickles_refused"] += 1
            return default
        return found

    def put(self, key: bytes, kind: int, buffers: Sequence[Buffer], *, created: float, expires: float = 0.0) -> bool:
        """Store a packed value; whether it was.

        Parameters:
            key: 65535 bytes at most.
            kind, buffers: as :meth:`pack` gives them.
            created, expires: wall-clock seconds; ``expires`` 0: never.

        Never raises for the disk's sake: what cannot be stored is counted, see :meth:`counters` and :meth:`health`.
        """
        log = self._log
        if log is None:
            log = self._opened()
        if self._off_until and time.monotonic() < self._off_until:
            self._counts["declined_off"] += 1
            return False
        if len(key) > MAX_KEY_BYTES:
            self._counts["declined_size"] += 1
            return False
        with self._lock:
            try:
                if self._off_until:
                    log = self._recovered(log)
                segment = self._current
                stored = segment is not None and log.put(segment, key, kind, buffers, created, expires, time.time_ns())
                if not stored:
                    stored = self._put_anew(log, key, kind, buffers, created, expires)
                if stored and self.fsync:
                    os.fsync(self._current.fd)  # type: ignore[union-attr]
            except OSError as error:
                self._turn_off(error)
                return False
        if stored:
            self._counts["stores"] += 1
            if kind > SHAPE_BITS:
                self._counts["compression_savings"] += saved_bytes(kind, buffers)
        return stored

    def _put_anew(
        self, log: RecordLog, key: bytes, kind: int, buffers: Sequence[Buffer], created: float, expires: float
    ) -> bool:
        """The same into another segment: the one that is being written has no room for it."""
        payload = sum(memoryview(buffer).nbytes for buffer in buffers)
        need = RECORD_OVERHEAD + len(key) + payload + 8
        for adopt in (True, False):  # one that was adopted may lack room for the list of its records
            segment, is_full = self._rotate(log, need, adopt)
            if segment is not None and log.put(segment, key, kind, buffers, created, expires, time.time_ns()):
                if is_full:
                    self._rescue(log, segment)
                return True
            if segment is None:
                break
        return False

    def delete(self, key: bytes) -> bool:
        """Remove a key for good, also for other processes and later openings; whether it was there."""
        log = self._opened()
        with self._lock:
            self._glance(log)
            return log.delete(key)

    def clear(self, prefix: bytes = b"") -> int:
        """Remove all keys that begin with ``prefix``; how many. Cost: with a prefix, a read of each record's head."""
        log = self._opened()
        with self._lock:
            self._glance(log)
            if prefix:
                return log.clear(prefix)
            before = len(log)
            try:
                with self._folder.locked(LOCK_S) as held:
                    if held:
                        self._seal()
                        for segment in filter(lambda one: hold(one.fd), log.segments()):
                            self._folder.remove(segment)
                            log.drop(segment)
            except OSError as error:
                self._turn_off(error)
            log.clear(prefix)  # what is in segments that other processes are writing to
            return before

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a fresh value; it may prove damaged when it is read."""
        return self._opened().holds(key, time.time())

    def __len__(self) -> int:
        """Values this process knows of; expired ones, and some that were deleted before it began, count until met."""
        return len(self._opened())

    # --- values ---

    def pack(self, value: object) -> tuple[int, list[Buffer]]:
        """What :meth:`put` stores of a value: kind and buffers, compressed by the tier's codec.

        Raises:
            Unpackable: nothing that ``packing.py`` can carry, nor may pickle.
        """
        return pack_value(value, self.codec, self.allow_pickle)

    def unpack(self, stored: Stored) -> Any:
        """The value that was packed.

        Raises:
            FormatError: it cannot be unpacked.
        """
        if stored.kind == BYTES:
            return stored.payload
        return unpack(stored.kind, stored.payload, allow_pickle=self.allow_pickle)

    # --- segments; all under the lock ---

    def _look_around(self, log: RecordLog) -> None:
        """See what other processes did, unless another thread is at it or writing; that one, or the next, will."""
        if self._lock.acquire(blocking=False):
            try:
                self._glance(log)
            finally:
                self._lock.release()

    def _glance(self, log: RecordLog) -> None:
        """Look; when the system does not let us, what is known stays known."""
        try:
            self._look(log)
        except OSError:
            self._counts["read_errors"] += 1
            self._next_look = time.monotonic() + LOOK_S

    def _look(self, log: RecordLog) -> None:
        names = self._folder.names()
        known = {segment.name: segment for segment in log.segments()}
        for name in known.keys() - set(names):
            log.drop(known[name])
            if known[name] is self._current:
                self._current = None
        for name in names:
            segment = known.get(name)
            if segment is None:
                segment = self._folder.open(name)
                if segment is None:
                    continue
                log.add(segment)
            if segment is not self._current:
                log.scan(segment)
        self._next_look = time.monotonic() + LOOK_S

    def _rotate(self, log: RecordLog, need: int, adopt: bool) -> tuple[SegmentFile | None, bool]:
        """Seal the current segment and begin one with room for ``need`` bytes; None when there is no room at all.

        Parameters:
            adopt: take one that another left half empty, if there is one.

        Returns also whether the folder is full with it, so that the next one will cost an old one.
        """
        if need > self.max_bytes // MIN_SEGMENTS - SEGMENT_OVERHEAD:
            self._counts["declined_size"] += 1
            return None, False
        with self._folder.locked(LOCK_S) as held:
            if not held:
                raise TimeoutError(f"another process has held the folder's lock for {LOCK_S:g} s; is it stopped?")
            self._seal()
            self._look(log)
            adopted = self._adopt(log, need) if adopt else None
            if adopted is not None:
                return adopted, False
            wanted = max(self.segment_bytes, need + SEGMENT_OVERHEAD)
            room = self._make_room(log, wanted)
            if room < max(need + SEGMENT_OVERHEAD, min(wanted, self.segment_bytes) // MIN_SEGMENTS):
                self._counts["declined_room"] += 1
                return None, False
            self._current = self._folder.create(min(wanted, room), self._folder.names())
            log.add(self._current)
            return self._current, room - self._current.capacity < self.segment_bytes

    def _rescue(self, log: RecordLog, target: SegmentFile) -> None:
        """In a full folder: what was read of the segment that goes next moves on, beside what the new one is for."""
        for segment in sorted(log.segments(), key=lambda one: (one.live > 0, one.number)):
            if segment is not target and hold(segment.fd):  # else somebody writes to it: it stays
                try:
                    self._counts["rescues"] += log.rescue(segment, target, target.capacity // RESCUED)
                finally:
                    release(segment.fd)
                return

    def _adopt(self, log: RecordLog, need: int) -> SegmentFile | None:
        """Go on writing a segment that its owner left half empty: many short processes would leave many files."""
        for segment in sorted(log.segments(), key=lambda one: -one.number):
            spare = segment.capacity - segment.size
            if spare < max(need, segment.capacity // 2) or segment.file_size() != segment.size:
                continue
            if not hold(segment.fd):
                continue
            log.scan(segment)  # what its owner wrote between our last look and its end
            if segment.capacity - segment.size >= need and self._make_room(log, spare, segment) >= spare:
                self._current = segment
                return segment
            release(segment.fd)
        return None

    def _make_room(self, log: RecordLog, wanted: int, keep: SegmentFile | None = None) -> int:
        """Drop segments until ``wanted`` bytes more may be written; the bytes that may. Under the folder's lock.

        Segments that are written to count in full and stay; those without live records go first, then the oldest.
        """
        total = 0
        idle: list[SegmentFile] = []
        for name in set(self._folder.names()) - {segment.name for segment in log.segments()}:
            self._folder.sweep(name)
        for segment in log.segments():
            if segment is keep:
                total += segment.file_size()
            elif segment is not self._current and hold(segment.fd):
                segment.trim()
                total += segment.file_size()
                idle.append(segment)
            else:
                total += segment.capacity
        try:
            idle.sort(key=lambda one: (one.live > 0, one.number), reverse=True)
            while total + wanted > self.max_bytes and idle:
                victim = idle[-1]
                total -= victim.file_size()
                self._counts["evicted_segments"] += 1
                self._counts["evictions"] += victim.records
                self._folder.remove(victim)
                log.drop(victim)
                idle.pop()
        finally:
            for segment in idle:
                release(segment.fd)
        return max(0, self.max_bytes - total)

    def _seal(self) -> None:
        """Let go of the segment that is being written; one without records goes."""
        segment, self._current = self._current, None
        if segment is None:
            return
        if segment.size <= SEGMENT_OVERHEAD:
            self._folder.remove(segment)
        elif segment.capacity - segment.size < segment.capacity // 2:  # else it will be adopted
            segment.seal()
        segment.trim()
        release(segment.fd)

    # --- off and on again ---

    def _turn_off(self, error: OSError) -> None:
        what = errno.errorcode.get(error.errno or 0, type(error).__name__)
        self._reason = f"{self.path} cannot be written to: {what} ({error.strerror or error})"
        self._off_until = time.monotonic() + RETRY_S
        self._counts["write_errors"] += 1

    def _recovered(self, log: RecordLog) -> RecordLog:
        """After a pause: open the folder anew if somebody deleted it, and try again."""
        if self._folder.removed():
            DiskFolder(self.path).close()  # raises when there is nothing to go on with
            self._leave(log)
            log = self._open()
        self._off_until, self._reason = 0.0, ""
        return log

    def health(self) -> DiskHealth:
        """Whether values are stored; reads may work although they are not. Costs nothing."""
        if self._closed:
            return DiskHealth(False, "closed")
        left = self._off_until - time.monotonic()
        return DiskHealth(False, self._reason, max(0.0, left)) if self._off_until else DiskHealth(True)

    def counters(self) -> dict[str, float]:
        """Numbers since the tier was made; sizes in bytes.

        hits; misses (expired, corrupt, read_errors and pickles_refused among them); stores, declined_size (larger
        than an eighth), declined_room (others reserve everything), declined_off, write_errors; evictions (records),
        evicted_segments, rescues (records moved on); compression_savings (bytes not stored thanks to the codec);
        records, nbytes, segments, index_bytes (memory), open_s (seconds it took to open).
        """
        log = self._log
        counts: dict[str, float] = dict(self._counts)
        now = dict.fromkeys(LOG_COUNTS, 0) if log is None else {name: getattr(log, name) for name in LOG_COUNTS}
        for name, past in self._past.items():
            counts[name] = past + now[name]
        refused = self._counts["pickles_refused"]
        counts["hits"] -= refused
        counts["misses"] += refused
        counts["read_errors"] += counts.pop("failed")
        counts["records"] = 0 if log is None else len(log)
        counts["nbytes"] = self.nbytes
        counts["segments"] = 0 if log is None else len(log.segments())
        counts["index_bytes"] = 0 if log is None else log.index_bytes
        counts["open_s"] = self._open_s
        return counts

    @property
    def nbytes(self) -> int:
        """Bytes of all segment files that this process knows of."""
        return sum(segment.file_size() for segment in self._log.segments()) if self._log is not None else 0

    # --- ends ---

    def close(self) -> None:
        """Leave the folder; what is stored stays. Idempotent."""
        with self._lock:
            self._closed = True
            log, self._log = self._log, None
            if log is not None:
                self._seal()
                self._leave(log)

    def _leave(self, log: RecordLog) -> None:
        """Keep the counters of a log that goes."""
        for name in LOG_COUNTS:
            self._past[name] += getattr(log, name)
        self._log = self._current = None
        self._folder.close()

    def _forked(self) -> None:
        """In the child: its parent's files are not its own, nor is a lock that another thread held."""
        self._lock = threading.Lock()
        log = self._log
        if log is not None:
            self._leave(log)
            for segment in log.segments():
                segment.close()

    def __enter__(self) -> DiskTier:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        named = {"mode": self.mode, "codec": self.codec.name, "allow_pickle": self.allow_pickle, "fsync": self.fsync}
        return _made, (self.path, self.max_bytes, named)

    def __repr__(self) -> str:
        return f"<DiskTier {self.path}: {self.nbytes} of {self.max_bytes} bytes{', closed' if self._closed else ''}>"


#: Counted here, and by the log.
COUNTS = (
    "stores",
    "evictions",
    "evicted_segments",
    "rescues",
    "declined_size",
    "declined_room",
    "declined_off",
    "write_errors",
    "read_errors",
    "pickles_refused",
    "compression_savings",
)
LOG_COUNTS = ("hits", "misses", "expired", "corrupt", "failed")
#: Those of this process, for its children.
TIERS: WeakSet[DiskTier] = WeakSet()


def _made(path: str, max_bytes: int, named: dict[str, Any]) -> DiskTier:
    return DiskTier(path, max_bytes, **named)


def _after_fork_in_child() -> None:
    for tier in list(TIERS):
        tier._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
