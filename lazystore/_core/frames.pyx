"""Frames from Python: filling them, leasing their bytes, keeping pieces, looking inside.

Bytes of a part arrive in any order through a :class:`Fill`; :class:`Lease` hands bytes out
without copying and pins the frame for as long as anybody looks at them. The tables and the
eviction policy are ``arena``'s; who reads what, and I/O, live elsewhere. The GIL makes each method
atomic; no method releases it or runs Python code half-way.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from lazystore._core.arena cimport (
    FILLING,
    FREE,
    ITEM_PIECE,
    N_QUEUES,
    NO_KEY,
    PIECE_HEADER,
    PIECES,
    Q_COLD,
    Q_FREE,
    Q_MAIN,
    Q_SMALL,
    READY,
    TABLE_PIECE,
    Arena,
    Frame,
    millis,
    padded,
    part_key,
    piece_key,
    pin,
    unpin,
)
from lazystore._core.lru cimport NOWHERE
from lazystore.errors import ArenaFullError, ClosedError, ConfigError, FormatError


cdef class FrameStore(Arena):
    """One arena of frames inside a hard byte budget.

    Parameters:
        max_bytes: the budget, the arena and its tables together.
        frame_bytes: bytes a frame, a power of two from 4 KiB; 0 chooses by the budget.
        policy: ``"lru"``, ``"fifo"`` or ``"s3fifo"``.

    Raises:
        BudgetTooSmallError: fewer than 8 frames would fit.

    Memory: reserved at once, touched as it is filled, returned when the store is closed and
    the last lease is gone. Threads: every method is atomic under the GIL. Fork: the child gets a
    copy of what was resident; :meth:`abandon_fills` frees what dead threads were filling.
    Pickling: refused.
    """

    # -- pieces -------------------------------------------------------------------------

    def put_piece(self, int kind, uint64_t chunk, uint64_t number, const unsigned char[::1] data not None):
        """Keep a copy of a piece; False when it cannot be kept (too large, all pinned, table full).

        Parameters:
            kind: 2 for an item, 3 for a block of offsets.
            chunk, number: what it is; a piece already kept stays as it is.
        """
        self.require_open()
        cdef uint32_t length
        cdef int32_t f
        cdef uint64_t key = piece_key(kind, chunk, number)
        cdef int64_t need = PIECE_HEADER + <int64_t>padded(data.shape[0])
        cdef uint8_t* p
        if kind not in (ITEM_PIECE, TABLE_PIECE) or chunk >> 30 or number >> 32:
            raise ConfigError(f"piece ({kind}, {chunk}, {number}) is outside the key space")
        if need > self.frame_bytes:
            return False
        if self.find_piece(kind, chunk, number, &length, &f) != NULL:
            return True
        if self.n_pieces * 4 >= (self.piece_mask + 1) * 3 and not self.shed_log():
            if self.piece_frame == NOWHERE:
                return False
            self._close_log()
            if not self.shed_log():
                return False
        if self.piece_frame != NOWHERE and self.frames[self.piece_frame].used + need > self.frame_bytes:
            self._close_log()
        if self.piece_frame == NOWHERE:
            f = self.take(NO_KEY, 0, False)
            if f == NOWHERE:
                return False
            self.frames[f].state = PIECES
            self.piece_frame = f
        f = self.piece_frame
        cdef uint64_t at = (<uint64_t>f << self.shift) + self.frames[f].used
        p = self.arena + at
        length = <uint32_t>data.shape[0]
        memcpy(p, &key, 8)
        memcpy(p + 8, &length, 4)
        memset(p + 12, 0, 4)
        if length:
            memcpy(p + PIECE_HEADER, &data[0], length)
        if not self.piece_insert(key, at >> 4):
            self._close_log()
            return False
        self.frames[f].used += <uint32_t>need
        return True

    def piece(self, int kind, uint64_t chunk, uint64_t number):
        """A lease on a piece.

        Raises:
            KeyError: it is not kept.
        """
        self.require_open()
        cdef uint32_t length
        cdef int32_t f
        cdef const uint8_t* p = NULL
        if kind in (ITEM_PIECE, TABLE_PIECE) and not chunk >> 30 and not number >> 32:
            p = self.find_piece(kind, chunk, number, &length, &f)
        if p == NULL:
            raise KeyError((kind, chunk, number))
        self.touch(f)
        return lease_frame(self, f, p, length)

    # -- parts, from Python -------------------------------------------------------------

    def begin(self, uint64_t chunk, uint64_t part, uint32_t nbytes, bint scan=False):
        """Reserve a frame for a part and return its :class:`Fill`; None when somebody holds or fills it.

        Parameters:
            nbytes: content of the part in bytes, at most a frame.
            scan: brought in by a scan: it will leave early once the scan has passed.

        Raises:
            ArenaFullError: every frame is pinned or being filled.
        """
        self.require_open()
        if not 0 < nbytes <= self.frame_bytes:
            raise ConfigError(f"a part of {nbytes} bytes does not fit a frame of {self.frame_bytes}")
        if chunk >> 31 or part >> 32:
            raise ConfigError(f"part ({chunk}, {part}) is outside the key space")
        cdef uint64_t key = part_key(chunk, part)
        if self.find(key) >= 0:
            return None
        cdef int32_t f = self.take(key, nbytes, scan)
        if f == NOWHERE:
            raise ArenaFullError(self.full_message())
        cdef Fill fill = Fill.__new__(Fill)
        fill.store = self
        fill.frame = f
        fill.key = key
        fill.epoch = self.frames[f].epoch
        fill.done = False
        self.frames[f].fill = 1
        return fill

    def full_message(self):
        """What stands in an ArenaFullError: who holds the frames, and the remedy."""
        cdef int32_t f, pinned = 0, filling = 0
        if not self.closed:
            for f in range(self.n_frames):
                filling += self.frames[f].state == FILLING
                pinned += self.frames[f].state != FILLING and self.frames[f].pins > 0
        return (
            f"all {self.n_frames} frames of {self.frame_bytes} bytes are held: {pinned} by leases or running reads, "
            f"{filling} being filled; release views (use `with ds.view(i)`), or give a larger memory budget"
        )

    def state(self, uint64_t chunk, uint64_t part):
        """``"absent"``, ``"filling"`` or ``"ready"``."""
        self.require_open()
        cdef int32_t f = self.find_part(chunk, part)
        if f < 0:
            return "absent"
        return "ready" if self.frames[f].state == READY else "filling"

    def lease(self, uint64_t chunk, uint64_t begin, uint64_t end, bint scan=False):
        """A lease on bytes [begin, end) of a chunk that lie in one frame.

        Parameters:
            scan: this is a scan's access: counted, but the frame may still leave once the scan has passed.

        Raises:
            KeyError: they have not arrived, or are not resident any more.
            ConfigError: they straddle frames.
        """
        self.require_open()
        if begin >= end:
            return lease_bytes(b"")
        if begin >> self.shift != (end - 1) >> self.shift:
            raise ConfigError(f"bytes {begin}..{end} straddle frames of {self.frame_bytes}")
        cdef uint64_t base = begin >> self.shift << self.shift
        cdef int32_t f = self.find_part(chunk, begin >> self.shift)
        if f < 0 or not self.covers(f, begin - base, end - base):
            raise KeyError((chunk, begin, end))
        if scan:
            self.hit(f)
        else:
            self.touch(f)
        return lease_frame(self, f, self.arena + (<uint64_t>f << self.shift) + (begin - base), end - begin)

    def available(self, uint64_t chunk, uint64_t begin, uint64_t end):
        """Whether all bytes [begin, end) of a chunk have arrived and are resident. Counts as no access."""
        self.require_open()
        cdef uint64_t part, base
        cdef int32_t f
        while begin < end:
            part = begin >> self.shift
            base = part << self.shift
            f = self.find_part(chunk, part)
            if f < 0 or not self.covers(f, begin - base, min(end - base, <uint64_t>self.frame_bytes)):
                return False
            begin = base + self.frame_bytes
        return True

    def drop(self, uint64_t chunk, uint64_t part):
        """Forget a part; False when it is absent, pinned or being filled."""
        self.require_open()
        cdef int32_t f = self.find_part(chunk, part)
        if f < 0 or self.frames[f].pins or self.frames[f].state != READY:
            return False
        self.discard(f, False)
        return True

    def mark_passed(self, uint64_t chunk, uint64_t part):
        """A scan is done with this part."""
        self.require_open()
        cdef int32_t f = self.find_part(chunk, part)
        if f >= 0:
            self.passed(f, part_key(chunk, part))

    def abandon_fills(self):
        """Give up the parts whose fillers died, in a forked child; returns how many.

        Call only where no other thread can be filling. Fills that are still referenced are over: they have
        no pin any more and change nothing. Leases on what had landed stay valid and free the frame at last.
        """
        self.require_open()
        cdef int32_t f, given_up = 0
        for f in range(self.n_frames):
            if self.frames[f].fill:
                given_up += self.frames[f].state == FILLING
                self.give_up(f)
                self.frames[f].fill = 0
                self.frames[f].epoch += 1
                unpin(self, f)
        return given_up

    # -- looking ------------------------------------------------------------------------

    @property
    def is_closed(self):
        return self.closed

    @property
    def filling(self):
        """Frames being filled right now. Cost: O(frames)."""
        cdef int32_t f, count = 0
        if not self.closed:
            for f in range(self.n_frames):
                count += self.frames[f].state == FILLING
        return count

    def counters(self):
        """Counts since the store was made, and current use; bytes where the name says so."""
        return {
            "evictions_capacity": self.evicted_capacity,
            "evictions_scan": self.evicted_scan,
            "evictions_pieces": self.evicted_pieces,
            "bytes_wasted": self.wasted,
            "frames_in_use": self.in_use,
            "pieces": self.n_pieces,
            "used_bytes": 0 if self.arena == NULL else self.in_use * self.frame_bytes + self.table_bytes,
            "peak_bytes": self.peak,
            "pins": self.live - (self.piece_frame != NOWHERE),
        }

    def contents(self):
        """One tuple a resident part: (chunk, part, bytes arrived, hits, milliseconds ago, pins, state)."""
        self.require_open()
        cdef list found = []
        cdef int32_t f
        cdef Frame* frame
        cdef uint32_t now = millis()
        # Making a tuple may run the garbage collector, and with it anything: the memory must not go meanwhile.
        self.live += 1
        try:
            for f in range(self.n_frames):
                frame = &self.frames[f]
                if frame.state in (FILLING, READY) and frame.key != NO_KEY:
                    found.append((
                        frame.key >> 32, frame.key & 0xFFFFFFFF, self._arrived(f), frame.hits,
                        <uint32_t>(now - frame.seen), frame.pins, "ready" if frame.state == READY else "filling",
                    ))
        finally:
            self.live -= 1
            if self.closed and self.live == 0:
                self.release()
        return found

    cdef int64_t _arrived(self, int32_t f) noexcept:
        cdef int64_t total = 0, block = self.frame_bytes >> 6
        cdef int b
        cdef Frame* frame = &self.frames[f]
        if frame.state == READY:
            return frame.used
        for b in range(64):
            if frame.landed >> b & 1:
                total += min(block, <int64_t>frame.used - b * block)
        return total

    def eviction_order(self):
        """Frames in the order the policy would evict them if nothing were touched, as (chunk, part); for tests.

        S3-FIFO's second chances are not simulated.
        """
        self.require_open()
        cdef list keys = []   # ints first: making tuples may run the garbage collector, and with it anything
        cdef int32_t f = self.queues[Q_COLD].head
        cdef int q
        while f != NOWHERE:
            keys.append(self.frames[f].key)
            f = self.links[f].next
        for q in (Q_SMALL, Q_MAIN):
            f = self.queues[q].tail
            while f != NOWHERE:
                if self.frames[f].state == READY:
                    keys.append(self.frames[f].key)
                f = self.links[f].prev
        return [(key >> 32, key & 0xFFFFFFFF) for key in keys]

    def check(self):
        """Audit every invariant; raises AssertionError naming the first that does not hold. Cost: O(frames)."""
        self.require_open()
        cdef int32_t f, used = 0, pins = 0, queued = 0
        cdef int q
        for f in range(self.n_frames):
            used += self.frames[f].state != FREE
            pins += self.frames[f].pins
            if self.frames[f].pins < 0:
                raise AssertionError(f"frame {f} has {self.frames[f].pins} pins")
            if self.frames[f].state == FREE and (self.links[f].queue != Q_FREE or self.frames[f].pins):
                raise AssertionError(f"free frame {f} is in queue {self.links[f].queue}, pins {self.frames[f].pins}")
            if self.frames[f].state == READY and self.find(self.frames[f].key) != f:
                raise AssertionError(f"frame {f} is not found under its key")
            if self.frames[f].state == READY and self.links[f].queue < Q_COLD:
                raise AssertionError(f"ready frame {f} is in no eviction queue")
        for q in range(N_QUEUES):
            queued += self.queues[q].count
        if used != self.in_use or pins != self.live:
            raise AssertionError(f"{used} frames in use, {self.in_use} counted; {pins} pins, {self.live} counted")
        if used * self.frame_bytes + self.table_bytes > self.max_bytes:
            raise AssertionError("the arena and its tables are over the budget")
        return queued

    def __reduce__(self):
        raise TypeError("FrameStore holds memory and cannot be pickled")

    def __repr__(self):
        return (
            f"<FrameStore {self.in_use}/{self.n_frames} frames of {self.frame_bytes} bytes"
            f"{', closed' if self.closed else ''}>"
        )


# no_gc: a fill or lease refers to the store only, and the store to no Python object, so no cycle can pass
# through them; the collector must not clear that reference before __dealloc__ has taken the pin off.
@cython.final
@cython.no_gc
cdef class Fill:
    """The right to write one frame: a writable buffer of the part's bytes.

    Bytes land in any order; :meth:`landed` makes whole blocks (1/64 of a frame) readable at once,
    :meth:`commit` the part. A fill that is dropped uncommitted gives its frame back; while a
    memoryview of it lives, the frame is not reused, so a late writer can hurt nobody.
    """

    cdef FrameStore store
    cdef int32_t frame
    cdef uint64_t key
    cdef uint32_t epoch
    cdef int exports
    cdef bint done
    cdef bint released

    def __cinit__(self):
        self.frame = NOWHERE
        self.done = True      # until begin() gives it a frame

    def __init__(self):
        raise TypeError("a Fill comes from FrameStore.begin()")

    cdef bint over(self) noexcept:
        """Committed, aborted or abandoned. While it is none of these, its pin keeps the arena alive."""
        return self.done or self.store.frames == NULL or self.store.frames[self.frame].epoch != self.epoch

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.over():
            raise BufferError("this fill is over")
        PyBuffer_FillInfo(
            view, self, self.store.arena + (<uint64_t>self.frame << self.store.shift),
            self.store.frames[self.frame].used, 0, flags,
        )
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1
        if self.released and self.exports == 0:
            self._drop()

    def __len__(self):
        return 0 if self.over() else self.store.frames[self.frame].used

    def landed(self, uint64_t begin, uint64_t end):
        """Bytes [begin, end) of the part are written; blocks they cover whole become readable."""
        cdef Frame* frame
        cdef uint64_t block, first, last, mask
        if self.over():
            raise ClosedError("this fill is over")
        frame = &self.store.frames[self.frame]
        if begin > end or end > frame.used:
            raise ConfigError(f"bytes {begin}..{end} are not inside a part of {frame.used}")
        block = <uint64_t>self.store.frame_bytes >> 6
        first = (begin + block - 1) // block
        last = (frame.used + block - 1) // block if end == frame.used else end // block
        if first < last:
            mask = NO_KEY if last == 64 else ((<uint64_t>1 << last) - 1)
            frame.landed |= mask & (NO_KEY << first)

    def shrink(self, uint32_t nbytes):
        """The part turned out to be shorter: the chunk ends inside it."""
        if self.over():
            raise ClosedError("this fill is over")
        if not 0 < nbytes <= self.store.frames[self.frame].used:
            raise ConfigError(f"a part of {self.store.frames[self.frame].used} bytes cannot shrink to {nbytes}")
        cdef Frame* frame = &self.store.frames[self.frame]
        cdef uint64_t block = <uint64_t>self.store.frame_bytes >> 6
        cdef uint64_t blocks = (nbytes + block - 1) // block
        frame.used = nbytes
        if blocks < 64:
            frame.landed &= (<uint64_t>1 << blocks) - 1

    def commit(self, bint everything=True):
        """The part is complete and readable; the fill keeps the frame pinned until it is dropped.

        Parameters:
            everything: all bytes are written. With False the blocks marked by ``landed`` must cover the part.

        Raises:
            FormatError: blocks are missing.
        """
        cdef Frame* frame
        cdef uint64_t blocks, mask, block
        if self.over():
            raise ClosedError("this fill is over")
        if self.store.closed:
            raise ClosedError("the frame store was closed while it was filled")
        frame = &self.store.frames[self.frame]
        block = <uint64_t>self.store.frame_bytes >> 6
        blocks = (frame.used + block - 1) // block
        mask = NO_KEY if blocks == 64 else ((<uint64_t>1 << blocks) - 1)
        if not everything and (frame.landed & mask) != mask:
            raise FormatError("a part was committed before all of its blocks landed")
        frame.landed = mask
        frame.state = READY
        self.store.settle(self.frame)
        self.done = True

    def abort(self):
        """Give the part up: others may fetch it anew at once. Nothing after :meth:`commit`."""
        if not self.over():
            self.store.give_up(self.frame)
        self.done = True

    def release(self):
        """Take the pin off now, or with the last memoryview: a part not committed is given up. Twice is fine.

        Dropping the fill does the same; this does not wait for whoever still refers to it, a traceback, say.
        """
        self.abort()
        self.released = True
        if self.exports == 0:
            self._drop()

    cdef void _drop(self) noexcept:
        # Leases may still look at what had landed: the frame is free again with the last of them.
        cdef FrameStore store = self.store
        cdef int32_t frame = self.frame
        self.frame = NOWHERE
        self.done = True
        if frame == NOWHERE or store is None or store.frames == NULL or store.frames[frame].epoch != self.epoch:
            return
        store.give_up(frame)
        store.frames[frame].fill = 0
        unpin(store, frame)

    def __dealloc__(self):
        # Buffers hold a reference to the fill, so nobody can write any more.
        self._drop()

    def __repr__(self):
        return f"<Fill of chunk {self.key >> 32}, part {self.key & 0xFFFFFFFF}>"


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Lease:
    """Read-only bytes of the store, pinned as long as the lease or any view of it lives.

    Supports the buffer protocol (``memoryview(lease)``, ``numpy.frombuffer(lease, ...)``), ``len`` and
    ``bytes(lease)``. :meth:`release`, or leaving its ``with`` block, refuses further views; the pin goes
    with the last view. Bytes never change under a view.

    Threads: may be used and dropped in any thread. Fork: the child's copy is its own. Pickling: refused
    (take ``bytes(lease)``).
    """

    def __cinit__(self):
        self.frame = NOWHERE

    def __init__(self):
        raise TypeError("a Lease comes from StreamingDataset.view() or FrameStore.lease()")

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.released:
            raise ClosedError("this lease was released; take a new one with view(i)")
        PyBuffer_FillInfo(view, self, <void*>self.ptr, self.length, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1
        if self.released and self.exports == 0:
            self._drop()

    def __len__(self):
        return self.length

    def __bytes__(self):
        if self.released:
            raise ClosedError("this lease was released; take a new one with view(i)")
        return PyBytes_FromStringAndSize(<const char*>self.ptr, self.length)

    @property
    def copied(self):
        """True when the bytes are a private copy (they straddled frames, or memory could not hold them)."""
        return self.frame == NOWHERE

    def release(self):
        """Refuse new views, and unpin once the existing ones are gone. Twice is fine."""
        if not self.released:
            self.released = True
            if self.exports == 0:
                self._drop()

    cdef void _drop(self) noexcept:
        if self.frame != NOWHERE:
            unpin(self.store, self.frame)
            self.frame = NOWHERE
        self.ptr = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def __dealloc__(self):
        # store is still referenced here (tp_dealloc runs this first); a pin is one decrement.
        if self.frame != NOWHERE and self.store is not None:
            unpin(self.store, self.frame)

    def __reduce__(self):
        raise TypeError("a Lease points into the store and cannot be pickled; pickle bytes(lease)")

    def __repr__(self):
        return f"<Lease of {self.length} bytes{', released' if self.released else ''}>"


cdef Lease lease_frame(FrameStore store, int32_t f, const uint8_t* ptr, Py_ssize_t length):
    cdef Lease lease = Lease.__new__(Lease)
    lease.frame = f
    lease.store = store
    lease.ptr = ptr
    lease.length = length
    pin(store, f)
    return lease


cdef Lease lease_bytes(bytes owner):
    cdef Lease lease = Lease.__new__(Lease)
    lease.frame = NOWHERE
    lease.owner = owner
    lease.ptr = <const uint8_t*>PyBytes_AS_STRING(owner)
    lease.length = PyBytes_GET_SIZE(owner)
    return lease
