"""The arena with Python lists and dicts: the oracle of ``FrameStore``.

Exact for LRU and FIFO: what is evicted, in which order, and every counter. For S3-FIFO the model
knows who *may* be evicted; the test tells it who was (:meth:`FrameStoreModel.forget`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lazystore.errors import ArenaFullError, ConfigError, FormatError

BLOCKS = 64
PIECE_HEADER = 16
Key = tuple[int, int]
PieceKey = tuple[int, int, int]


@dataclass(eq=False)
class PartFrame:
    """One frame that holds, or is being filled with, a part."""

    key: Key | None
    used: int
    scan: bool
    ready: bool = False
    fill: bool = True
    pins: int = 1
    hits: int = 0
    landed: set[int] = field(default_factory=set)


@dataclass(eq=False)
class LogFrame:
    """One frame that holds small pieces."""

    pieces: dict[PieceKey, bytes] = field(default_factory=dict)
    used: int = 0
    pins: int = 1
    hits: int = 0


Frame = PartFrame | LogFrame


class FrameStoreModel:
    """Queues are lists, the first entry is the most recent; ``cold`` is what scans have passed."""

    def __init__(self, n_frames: int, frame_bytes: int, policy: str, max_pieces: int) -> None:
        self.n_frames = n_frames
        self.frame_bytes = frame_bytes
        self.block = frame_bytes // BLOCKS
        self.policy = policy
        self.max_pieces = max_pieces
        self.frames: list[Frame] = []
        self.table: dict[Key, PartFrame] = {}
        self.cold: list[Frame] = []
        self.main: list[Frame] = []
        self.log: LogFrame | None = None
        self.evicted = {"capacity": 0, "scan": 0, "pieces": 0}
        self.wasted = 0
        self.peak = 0

    # -- eviction -----------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        return self.policy != "s3fifo"

    def victim(self) -> Frame | None:
        order = [*self.cold, *reversed(self.main)]
        return next((frame for frame in order if not frame.pins), None)

    def discard(self, frame: Frame, *, evicted: bool) -> None:
        if evicted:
            if isinstance(frame, LogFrame):
                self.evicted["pieces"] += 1
            else:
                self.evicted["scan" if frame in self.cold else "capacity"] += 1
            self.wasted += 0 if frame.hits else frame.used
        for queue in (self.cold, self.main):
            if frame in queue:
                queue.remove(frame)
        if isinstance(frame, PartFrame) and frame.key is not None:
            del self.table[frame.key]
        self.frames.remove(frame)

    def take(self, frame: Frame) -> bool:
        """Room for one more frame; False when all are pinned."""
        if len(self.frames) == self.n_frames:
            victim = self.victim()
            if victim is None:
                return False
            if self.exact:
                self.discard(victim, evicted=True)
        self.frames.append(frame)
        self.peak = max(self.peak, len(self.frames))
        return True

    def forget(self, frame: Frame) -> None:
        """The real store evicted this one (S3-FIFO)."""
        assert not frame.pins
        assert frame in self.cold or frame in self.main
        self.discard(frame, evicted=True)

    def unpin(self, frame: Frame) -> None:
        frame.pins -= 1
        if isinstance(frame, PartFrame) and not frame.pins and not frame.ready:
            self.discard(frame, evicted=False)

    def touch(self, frame: Frame, *, scan: bool = False) -> None:
        frame.hits += 1
        if scan:
            return
        if isinstance(frame, PartFrame):
            frame.scan = False
        if frame in self.cold:
            self.cold.remove(frame)
            self.main.insert(0, frame)
        elif self.policy == "lru" and frame in self.main:
            self.main.remove(frame)
            self.main.insert(0, frame)

    # -- parts --------------------------------------------------------------------------

    def begin(self, key: Key, nbytes: int, *, scan: bool) -> PartFrame | None:
        if key in self.table:
            return None
        part = PartFrame(key, nbytes, scan)
        if not self.take(part):
            raise ArenaFullError
        self.table[key] = part
        return part

    def landed(self, part: PartFrame, begin: int, end: int) -> None:
        last = -(-part.used // self.block) if end == part.used else end // self.block
        part.landed.update(range(-(-begin // self.block), last))

    def shrink(self, part: PartFrame, nbytes: int) -> None:
        part.used = nbytes
        part.landed = {block for block in part.landed if block * self.block < nbytes}

    def commit(self, part: PartFrame, *, everything: bool) -> None:
        blocks = set(range(-(-part.used // self.block)))
        if not everything and not blocks <= part.landed:
            raise FormatError("blocks are missing")
        part.landed = blocks
        part.ready = True
        self.main.insert(0, part)

    def give_up(self, part: PartFrame) -> None:
        """Nothing once the part is committed."""
        if not part.ready and part.key is not None:
            del self.table[part.key]
            part.key = None

    def drop_fill(self, part: PartFrame) -> None:
        """The last reference to a fill or to a writable view of it is gone."""
        if part.fill:
            self.give_up(part)
            part.fill = False
            self.unpin(part)

    def abandon_fills(self) -> int:
        held = [frame for frame in self.frames if isinstance(frame, PartFrame) and frame.fill]
        filling = sum(not part.ready for part in held)
        for part in held:
            self.drop_fill(part)
        return filling

    def covers(self, part: PartFrame, begin: int, end: int) -> bool:
        if end > part.used:
            return False
        return part.ready or set(range(begin // self.block, (end - 1) // self.block + 1)) <= part.landed

    def lease(self, chunk: int, begin: int, end: int, *, scan: bool) -> PartFrame | None:
        """The frame that is pinned from now on; None for an empty stretch."""
        if begin >= end:
            return None
        number = begin // self.frame_bytes
        if number != (end - 1) // self.frame_bytes:
            raise ConfigError("straddles")
        part = self.table.get((chunk, number))
        base = number * self.frame_bytes
        if part is None or not self.covers(part, begin - base, end - base):
            raise KeyError
        self.touch(part, scan=scan)
        part.pins += 1
        return part

    def available(self, chunk: int, begin: int, end: int) -> bool:
        while begin < end:
            number = begin // self.frame_bytes
            base = number * self.frame_bytes
            part = self.table.get((chunk, number))
            if part is None or not self.covers(part, begin - base, min(end - base, self.frame_bytes)):
                return False
            begin = base + self.frame_bytes
        return True

    def drop(self, key: Key) -> bool:
        part = self.table.get(key)
        if part is None or part.pins or not part.ready:
            return False
        self.discard(part, evicted=False)
        return True

    def mark_passed(self, key: Key) -> None:
        part = self.table.get(key)
        if part is not None and part.ready and part.scan:
            queue = self.cold if part in self.cold else self.main
            queue.remove(part)
            self.cold.insert(0, part)

    # -- pieces -------------------------------------------------------------------------

    def logs(self) -> list[LogFrame]:
        return [frame for frame in self.frames if isinstance(frame, LogFrame)]

    def log_of(self, key: PieceKey) -> LogFrame | None:
        return next((log for log in self.logs() if key in log.pieces), None)

    def n_pieces(self) -> int:
        return sum(len(log.pieces) for log in self.logs())

    def shed_log(self) -> bool:
        """Evict the oldest closed log that is not pinned; which one that is, S3-FIFO's store has to tell."""
        for frame in reversed(self.main):
            if isinstance(frame, LogFrame) and not frame.pins:
                if self.exact:
                    self.discard(frame, evicted=True)
                return True
        return False

    def close_log(self) -> None:
        assert self.log is not None
        self.log.pins -= 1
        self.main.insert(0, self.log)
        self.log = None

    def put_piece(self, key: PieceKey, data: bytes) -> bool:
        need = PIECE_HEADER + -(-len(data) // 16) * 16
        if need > self.frame_bytes:
            return False
        if self.log_of(key) is not None:
            return True
        if self.n_pieces() >= self.max_pieces and not self.shed_log():
            if self.log is None:
                return False
            self.close_log()
            if not self.shed_log():
                return False
        if self.log is not None and self.log.used + need > self.frame_bytes:
            self.close_log()
        if self.log is None:
            log = LogFrame()
            if not self.take(log):
                return False
            self.log = log
        self.log.pieces[key] = data
        self.log.used += need
        return True

    def piece(self, key: PieceKey) -> LogFrame:
        log = self.log_of(key)
        if log is None:
            raise KeyError(key)
        self.touch(log)
        log.pins += 1
        return log

    # -- looking ------------------------------------------------------------------------

    def arrived(self, part: PartFrame) -> int:
        if part.ready:
            return part.used
        return sum(min(self.block, part.used - block * self.block) for block in part.landed)

    def contents(self) -> dict[Key, tuple[int, int, int, str]]:
        """Bytes arrived, hits, pins and state of each part that can be found."""
        return {
            key: (self.arrived(part), part.hits, part.pins, "ready" if part.ready else "filling")
            for key, part in self.table.items()
        }

    def eviction_order(self) -> list[Key]:
        order = [*self.cold, *reversed(self.main)]
        return [frame.key for frame in order if isinstance(frame, PartFrame) and frame.key is not None]

    def pins(self) -> int:
        """Pins of leases and fills; the log being written has one of its own."""
        return sum(frame.pins for frame in self.frames) - (self.log is not None)
