"""``FrameStore`` against its model: fills, leases, pieces, eviction and closing in any order.

After each step the store audits itself, and every leased byte is what was written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models.frame_store import FrameStoreModel, LogFrame, PartFrame

from lazystore._core.frames import Fill, FrameStore, Lease
from lazystore.errors import ArenaFullError, ClosedError, ConfigError, FormatError

FRAME = 8192
BUDGET = 72 * 1024  # eight frames
PIECE_SLOTS = 128  # of this budget
PART = FRAME // 64

chunks = st.integers(0, 2)
parts = st.integers(0, 5)
picks = st.integers(0, 1 << 16)
positions = st.one_of(st.integers(0, FRAME), st.integers(0, 64).map(lambda block: block * PART))
sizes = st.one_of(st.just(FRAME), st.integers(1, FRAME))


@dataclass
class Filling:
    """A fill we hold, or only a writable view of it, or a committed one that still pins."""

    fill: Fill | None
    part: PartFrame
    content: bytes
    writers: list[memoryview] = field(default_factory=list)
    over: bool = False
    released: bool = False


@dataclass
class Leased:
    lease: Lease | None
    frame: PartFrame | LogFrame | None
    expected: bytes
    views: list[memoryview] = field(default_factory=list)


class FrameStoreMachine(RuleBasedStateMachine):
    policy: ClassVar[str] = "lru"

    @initialize()
    def open(self) -> None:
        self.store = FrameStore(BUDGET, frame_bytes=FRAME, policy=self.policy)
        assert self.store.n_frames == 8
        self.model = FrameStoreModel(self.store.n_frames, FRAME, self.policy, PIECE_SLOTS * 3 // 4)
        self.fills: list[Filling] = []
        self.leases: list[Leased] = []
        self.contents: dict[tuple[int, int], bytes] = {}
        self.begun = 0
        self.closed = False

    def begin(self, chunk: int, part: int, nbytes: int, scan: bool) -> Filling | None:
        """Begin in both; an arena that is full or a part that is there must be so in both."""
        try:
            expected = self.model.begin((chunk, part), nbytes, scan=scan)
        except ArenaFullError:
            with pytest.raises(ArenaFullError, match="release views"):
                self.store.begin(chunk, part, nbytes, scan)
            return None
        fill = self.store.begin(chunk, part, nbytes, scan)
        assert (fill is None) == (expected is None)
        if fill is None or expected is None:
            return None
        self.follow_evictions()
        self.begun += 1
        content = (self.begun.to_bytes(4, "big") * (FRAME // 4))[:nbytes]
        return Filling(fill, expected, content)

    def follow_evictions(self) -> None:
        """S3-FIFO: take over from the store whom it evicted; each must have been evictable."""
        if self.model.exact or self.closed:
            return
        resident = {row[:2] for row in self.store.contents()}
        for key, frame in list(self.model.table.items()):
            if key not in resident:
                self.model.forget(frame)
        if self.store.counters()["evictions_pieces"] == self.model.evicted["pieces"]:
            return
        for log in self.model.logs():
            if log is not self.model.log and not self.has_piece(next(iter(log.pieces))):
                self.model.forget(log)

    def has_piece(self, key: tuple[int, int, int]) -> bool:
        try:
            self.store.piece(*key)
        except KeyError:
            return False
        return True

    # -- filling ------------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(chunk=chunks, part=parts, nbytes=sizes, scan=st.booleans())
    def start_filling(self, chunk: int, part: int, nbytes: int, scan: bool) -> None:
        filling = self.begin(chunk, part, nbytes, scan)
        if filling is not None:
            self.fills.append(filling)

    @precondition(lambda self: not self.closed)
    @rule(chunk=chunks, first=parts, count=st.integers(1, 5), scan=st.booleans())
    def fill_whole(self, chunk: int, first: int, count: int, scan: bool) -> None:
        for part in range(first, first + count):
            filling = self.begin(chunk, part, FRAME, scan)
            if filling is None or filling.fill is None:
                continue
            memoryview(filling.fill)[:] = filling.content
            filling.fill.commit()
            self.model.commit(filling.part, everything=True)
            self.contents[chunk, part] = filling.content
            filling.fill = None
            self.model.drop_fill(filling.part)

    @precondition(lambda self: self.fills)
    @rule(pick=picks, a=positions, b=positions)
    def land(self, pick: int, a: int, b: int) -> None:
        filling = self.fills[pick % len(self.fills)]
        if filling.fill is None:
            return
        begin, end = sorted((min(a, filling.part.used), min(b, filling.part.used)))
        if filling.over:
            with pytest.raises(ClosedError):
                filling.fill.landed(begin, end)
            return
        memoryview(filling.fill)[begin:end] = filling.content[begin:end]
        filling.fill.landed(begin, end)
        self.model.landed(filling.part, begin, end)
        assert len(filling.fill) == filling.part.used

    @precondition(lambda self: self.fills)
    @rule(pick=picks, nbytes=sizes)
    def shrink(self, pick: int, nbytes: int) -> None:
        filling = self.fills[pick % len(self.fills)]
        if filling.fill is None:
            return
        if filling.over:
            with pytest.raises(ClosedError):
                filling.fill.shrink(nbytes)
        elif nbytes > filling.part.used:
            with pytest.raises(ConfigError):
                filling.fill.shrink(nbytes)
        else:
            filling.fill.shrink(nbytes)
            self.model.shrink(filling.part, nbytes)

    @precondition(lambda self: self.fills)
    @rule(pick=picks, everything=st.booleans())
    def commit(self, pick: int, everything: bool) -> None:
        filling = self.fills[pick % len(self.fills)]
        if filling.fill is None:
            return
        if filling.over or self.closed:
            with pytest.raises(ClosedError):
                filling.fill.commit(everything)
            return
        if everything:
            memoryview(filling.fill)[:] = filling.content[: filling.part.used]
        try:
            self.model.commit(filling.part, everything=everything)
        except FormatError:
            with pytest.raises(FormatError):
                filling.fill.commit(everything)
            return
        filling.fill.commit(everything)
        filling.over = True
        assert filling.part.key is not None
        self.contents[filling.part.key] = filling.content[: filling.part.used]

    @precondition(lambda self: self.fills)
    @rule(pick=picks)
    def abort(self, pick: int) -> None:
        filling = self.fills[pick % len(self.fills)]
        if filling.fill is None:
            return
        filling.fill.abort()
        if not filling.over:
            self.model.give_up(filling.part)
        filling.over = True
        assert len(filling.fill) == 0
        with pytest.raises(BufferError):
            memoryview(filling.fill)

    @precondition(lambda self: self.fills)
    @rule(pick=picks)
    def release_fill(self, pick: int) -> None:
        """The pin goes at once, whoever still refers to the fill; but not before the last writer."""
        filling = self.fills[pick % len(self.fills)]
        if filling.fill is None:
            return
        filling.fill.release()
        if not filling.over:
            self.model.give_up(filling.part)
        filling.over = filling.released = True
        self.forget_if_over(filling)

    @precondition(lambda self: self.fills)
    @rule(pick=picks)
    def keep_a_writer(self, pick: int) -> None:
        filling = self.fills[pick % len(self.fills)]
        if filling.fill is not None and not filling.over:
            filling.writers.append(memoryview(filling.fill))

    @precondition(lambda self: self.fills)
    @rule(pick=picks)
    def drop_fill(self, pick: int) -> None:
        filling = self.fills[pick % len(self.fills)]
        filling.fill = None
        self.forget_if_over(filling)

    @precondition(lambda self: self.fills)
    @rule(pick=picks, write=st.booleans())
    def drop_a_writer(self, pick: int, write: bool) -> None:
        """A writer of a part that was given up may still write; only frames nobody else has can change."""
        filling = self.fills[pick % len(self.fills)]
        if not filling.writers:
            return
        view = filling.writers.pop()
        looked_at = any(leased.frame is filling.part for leased in self.leases)
        # Writing into a committed part, or under a reader of what had landed, is the caller's fault.
        if write and filling.part.fill and not filling.part.ready and not looked_at:
            view[:] = b"\xee" * len(view)
            filling.content = b"\xee" * len(filling.content)
        view.release()
        self.forget_if_over(filling)

    def forget_if_over(self, filling: Filling) -> None:
        if filling.writers or not (filling.released or filling.fill is None):
            return
        self.model.drop_fill(filling.part)
        if filling.fill is None:
            self.fills = [other for other in self.fills if other is not filling]

    @precondition(lambda self: not self.closed and not any(filling.writers for filling in self.fills))
    @rule()
    def abandon_fills(self) -> None:
        assert self.store.abandon_fills() == self.model.abandon_fills()
        for filling in self.fills:
            filling.over = True

    # -- leases -------------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(chunk=chunks, part=parts, a=positions, b=positions, across=st.booleans(), scan=st.booleans())
    def lease(self, chunk: int, part: int, a: int, b: int, across: bool, scan: bool) -> None:
        begin, end = sorted((part * FRAME + a, part * FRAME + b + across * FRAME))
        try:
            frame = self.model.lease(chunk, begin, end, scan=scan)
        except (KeyError, ConfigError) as error:
            with pytest.raises(type(error)):
                self.store.lease(chunk, begin, end, scan)
            return
        lease = self.store.lease(chunk, begin, end, scan)
        expected = b"" if frame is None else self.bytes_of(frame)[begin % FRAME : begin % FRAME + end - begin]
        assert len(lease) == len(expected)
        assert lease.copied == (frame is None)
        self.leases.append(Leased(lease, frame, expected))

    def bytes_of(self, frame: PartFrame) -> bytes:
        if frame.ready and frame.key is not None:
            return self.contents[frame.key]
        return next(filling.content for filling in self.fills if filling.part is frame)

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def look(self, pick: int) -> None:
        leased = self.leases[pick % len(self.leases)]
        if leased.lease is not None:
            leased.views.append(memoryview(leased.lease))

    @precondition(lambda self: self.leases)
    @rule(pick=picks, how=st.sampled_from(["release", "drop", "view"]))
    def let_go(self, pick: int, how: str) -> None:
        leased = self.leases[pick % len(self.leases)]
        if how == "view" and leased.views:
            leased.views.pop().release()
        elif leased.lease is not None:
            if how == "release":
                leased.lease.release()
                with pytest.raises(ClosedError):
                    memoryview(leased.lease)
            leased.lease = None
        if leased.lease is None and not leased.views:
            self.leases = [other for other in self.leases if other is not leased]
            if leased.frame is not None:
                self.model.unpin(leased.frame)

    # -- pieces -------------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(
        kind=st.sampled_from([2, 3]),
        chunk=chunks,
        first=st.integers(0, 60),
        count=st.integers(1, 40),
        size=st.one_of(st.integers(0, 40), st.integers(0, FRAME + 1)),
    )
    def put_pieces(self, kind: int, chunk: int, first: int, count: int, size: int) -> None:
        for number in range(first, first + count):
            data = bytes([kind, chunk, number]) * (size // 3) + b"." * (size % 3)
            kept = self.model.put_piece((kind, chunk, number), data)
            assert self.store.put_piece(kind, chunk, number, data) == kept
            self.follow_evictions()

    @precondition(lambda self: not self.closed)
    @rule(kind=st.sampled_from([2, 3]), chunk=chunks, number=st.integers(0, 110))
    def lease_piece(self, kind: int, chunk: int, number: int) -> None:
        key = (kind, chunk, number)
        try:
            log = self.model.piece(key)
        except KeyError:
            with pytest.raises(KeyError):
                self.store.piece(*key)
            return
        self.leases.append(Leased(self.store.piece(*key), log, log.pieces[key]))

    # -- the rest -----------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(chunk=chunks, part=parts)
    def drop_part(self, chunk: int, part: int) -> None:
        assert self.store.drop(chunk, part) == self.model.drop((chunk, part))

    @precondition(lambda self: not self.closed)
    @rule(chunk=chunks, part=parts)
    def mark_passed(self, chunk: int, part: int) -> None:
        self.store.mark_passed(chunk, part)
        self.model.mark_passed((chunk, part))

    @precondition(lambda self: not self.closed)
    @rule(chunk=chunks, a=st.integers(0, 7 * FRAME), b=st.integers(0, 7 * FRAME))
    def ask(self, chunk: int, a: int, b: int) -> None:
        begin, end = sorted((a, b))
        assert self.store.available(chunk, begin, end) == self.model.available(chunk, begin, end)

    @precondition(lambda self: self.begun > 12)
    @rule()
    def close(self) -> None:
        self.store.close()
        self.closed = True
        for refused in (self.store.contents, self.store.check, self.store.eviction_order, self.store.abandon_fills):
            with pytest.raises(ClosedError):
                refused()
        with pytest.raises(ClosedError):
            self.store.begin(0, 0, 1)

    # -- what always holds --------------------------------------------------------------

    @invariant()
    def leased_bytes_never_change(self) -> None:
        for leased in self.leases:
            if leased.lease is not None:
                assert bytes(leased.lease) == leased.expected
            for view in leased.views:
                assert view == leased.expected

    @invariant()
    def agrees_with_the_model(self) -> None:
        if self.closed:
            return
        counters = self.store.counters()
        assert self.store.check() == self.store.n_frames - self.held()
        assert counters["used_bytes"] <= counters["peak_bytes"] <= BUDGET
        assert counters["frames_in_use"] == len(self.model.frames)
        assert counters["pins"] == self.model.pins()
        assert counters["pieces"] == self.model.n_pieces()
        rows: dict[tuple[int, int], Any] = {(c, p): rest for c, p, *rest in self.store.contents()}
        found = {key: (rest[0], rest[1], rest[3], rest[4]) for key, rest in rows.items()}
        assert found == self.model.contents()
        for chunk, part in found:
            assert self.store.state(chunk, part) == found[chunk, part][3]
        if self.model.exact:
            assert self.store.eviction_order() == self.model.eviction_order()
            for cause, count in self.model.evicted.items():
                assert counters[f"evictions_{cause}"] == count
            assert counters["bytes_wasted"] == self.model.wasted
            assert counters["peak_bytes"] == self.store.table_bytes + self.model.peak * FRAME

    def held(self) -> int:
        """Frames in no queue: being filled, given up but looked at, or the open log."""
        return sum(frame not in self.model.cold and frame not in self.model.main for frame in self.model.frames)

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.fills.clear()
        self.leases.clear()
        if not self.closed:
            self.store.check()
            self.store.close()


class FifoMachine(FrameStoreMachine):
    policy = "fifo"


class S3FifoMachine(FrameStoreMachine):
    policy = "s3fifo"


machine_settings = settings(stateful_step_count=40)
TestLru = FrameStoreMachine.TestCase
TestLru.settings = machine_settings
TestFifo = FifoMachine.TestCase
TestFifo.settings = machine_settings
TestS3Fifo = S3FifoMachine.TestCase
TestS3Fifo.settings = machine_settings
