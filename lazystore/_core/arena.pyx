"""The arena: one allocation cut into equal frames, the tables that find them, and who leaves first.

A *part* is the frame-sized stretch ``[part * frame_bytes, ...)`` of a chunk. A frame holds one
part, or a log of small *pieces* (single items and offset blocks that were fetched alone).

Which frame leaves when the arena is full: first what a scan has passed (newest first: of
all resident parts a cyclic scan needs it last, Belady 1966), then by policy: LRU, FIFO, or
S3-FIFO (Yang et al., SOSP 2023). Pinned frames are passed by.

Only C functions here; ``frames`` gives them their Python face, fills and leases.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from lazystore._core.lru cimport (
    NOWHERE,
    Link,
    queue_push_back,
    queue_push_front,
    queue_remove,
    queues_clear,
)
from lazystore._core.offsets cimport load_u32, load_u64
from lazystore.errors import BudgetTooSmallError, ClosedError, ConfigError

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    /* Anonymous memory on a huge-page boundary: a first pass over 256 MiB then costs 128 page
       faults instead of 65536. madvise is a hint for our own allocation; no file is mapped. */
    static inline void *lazystore_arena(size_t bytes) {
        void *arena = NULL;
        size_t huge = (size_t)2 << 20;
        if (posix_memalign(&arena, bytes >= huge ? huge : 4096, bytes) != 0)
            return NULL;
    #if defined(MADV_HUGEPAGE)
        if (bytes >= huge)
            (void)madvise(arena, bytes & ~(huge - 1), MADV_HUGEPAGE);
    #endif
        return arena;
    }
    """
    void* lazystore_arena(size_t bytes) noexcept

cdef uint64_t LOCATION = <uint64_t>0xFFFFFFFFFFULL   # low 40 bits of a piece slot
cdef int POLICY_LRU = 0
cdef int POLICY_FIFO = 1
cdef int POLICY_S3FIFO = 2
cdef int64_t BYTES_PER_PIECE_SLOT = 512
cdef int64_t MIN_FRAME = 4096
cdef int64_t MAX_FRAME = 1 << 20
cdef int64_t MIN_FRAMES = 8
MIN_BYTES = 64 * 1024

_POLICIES = {"lru": 0, "fifo": 1, "s3fifo": 2}


cdef uint64_t power_of_two(uint64_t n) noexcept:
    cdef uint64_t p = 1
    while p < n:
        p <<= 1
    return p


cdef uint64_t piece_slots(int64_t max_bytes) noexcept:
    return power_of_two(<uint64_t>max(max_bytes // BYTES_PER_PIECE_SLOT, 64) // 2 + 1)


cdef int64_t fixed_bytes(int64_t max_bytes) noexcept:
    """Bytes of a budget that go to tables, whatever the frames."""
    return <int64_t>piece_slots(max_bytes) * 8 + 4096


def frame_size_for(int64_t max_bytes):
    """Frame size in bytes for a budget: 1/128 of it or less, a power of two in 4 KiB .. 1 MiB."""
    cdef int64_t size = MIN_FRAME
    # Small enough that the last, partly filled frame of each block in a shuffle window wastes little.
    while size * 2 * 128 <= max_bytes and size < MAX_FRAME:
        size *= 2
    return size


cdef class Arena:
    """Frames, their tables and the eviction policy; the base of :class:`~lazystore._core.frames.FrameStore`."""

    def __cinit__(self, int64_t max_bytes, *, int64_t frame_bytes=0, str policy="lru"):
        if policy not in _POLICIES:
            raise ConfigError(f"policy={policy!r} is not one of {', '.join(_POLICIES)}")
        if frame_bytes == 0:
            frame_bytes = frame_size_for(max_bytes)
        if frame_bytes < MIN_FRAME or frame_bytes & (frame_bytes - 1) or frame_bytes > 1 << 30:
            raise ConfigError(f"frame_bytes={frame_bytes} must be a power of two from {MIN_FRAME} to 2**30")
        cdef uint64_t n_pieces = piece_slots(max_bytes)
        cdef int64_t per_frame = frame_bytes + sizeof(Frame) + sizeof(Link) + 8 * 4 + 8 * 4
        cdef int64_t n = (max_bytes - fixed_bytes(max_bytes)) // per_frame
        cdef int64_t least = MIN_BYTES
        if n < MIN_FRAMES or max_bytes < MIN_BYTES:
            while (least - fixed_bytes(least)) // per_frame < MIN_FRAMES:
                least += per_frame // 8
            raise BudgetTooSmallError(
                f"a budget of {max_bytes} bytes holds {max(n, 0)} frames of {frame_bytes}; give at least {least} bytes"
            )
        cdef uint64_t n_slots = power_of_two(2 * n)
        self.max_bytes = max_bytes
        self.name = ""
        self.frame_bytes = frame_bytes
        self.n_frames = <int32_t>n
        self.policy = _POLICIES[policy]
        while (<int64_t>1 << self.shift) < frame_bytes:
            self.shift += 1
        self.slot_mask = <uint32_t>(n_slots - 1)
        self.piece_mask = n_pieces - 1
        self.piece_frame = NOWHERE
        self.table_bytes = n * (sizeof(Frame) + sizeof(Link)) + n_slots * 12 + n_pieces * 8
        self.arena = <uint8_t*>lazystore_arena(<size_t>(n * frame_bytes))
        self.frames = <Frame*>calloc(n, sizeof(Frame))
        self.links = <Link*>malloc(n * sizeof(Link))
        self.slots = <int32_t*>calloc(n_slots, sizeof(int32_t))
        self.ghosts = <uint64_t*>calloc(n_slots, sizeof(uint64_t))
        self.pieces = <uint64_t*>calloc(n_pieces, sizeof(uint64_t))
        if not (self.arena and self.frames and self.links and self.slots and self.ghosts and self.pieces):
            raise MemoryError(f"the system gives no {max_bytes} bytes for the arena")
        queues_clear(self.links, self.n_frames, self.queues, N_QUEUES)
        memset(self.ghosts, 0xFF, n_slots * sizeof(uint64_t))
        cdef int32_t f
        for f in range(self.n_frames):
            self.frames[f].key = NO_KEY
            queue_push_back(self.links, self.queues, Q_FREE, f)
        self.peak = self.table_bytes

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        free(self.arena)
        free(self.frames)
        free(self.links)
        free(self.slots)
        free(self.ghosts)
        free(self.pieces)
        self.arena = NULL
        self.frames = NULL
        self.links = NULL
        self.slots = NULL
        self.ghosts = NULL
        self.pieces = NULL

    cdef int require_open(self) except -1:
        if self.closed:
            raise ClosedError(f"{self.name or 'the frame store'} is closed; open it again to read on")
        return 0

    # -- part table ---------------------------------------------------------------------

    cdef int32_t find(self, uint64_t key) noexcept:
        """The frame that holds or is being filled with this part, or -1."""
        cdef uint32_t s = <uint32_t>mix(key) & self.slot_mask
        cdef int32_t f
        while True:
            f = self.slots[s] - 1
            if f < 0 or self.frames[f].key == key:
                return f
            s = (s + 1) & self.slot_mask

    cdef int32_t find_part(self, uint64_t chunk, uint64_t part) noexcept:
        """The same for numbers from outside: those beyond the key space are nowhere, not somebody else's."""
        return NOWHERE if chunk >> 31 or part >> 32 else self.find(part_key(chunk, part))

    cdef void slot_insert(self, int32_t f) noexcept:
        cdef uint32_t s = <uint32_t>mix(self.frames[f].key) & self.slot_mask
        while self.slots[s]:
            s = (s + 1) & self.slot_mask
        self.slots[s] = f + 1

    cdef void slot_remove(self, uint64_t key) noexcept:
        """Backward-shift deletion: no tombstones, so probes stay short for ever."""
        cdef uint32_t s = <uint32_t>mix(key) & self.slot_mask
        cdef uint32_t hole, home
        while self.slots[s] and self.frames[self.slots[s] - 1].key != key:
            s = (s + 1) & self.slot_mask
        if not self.slots[s]:
            return
        hole = s
        while True:
            s = (s + 1) & self.slot_mask
            if not self.slots[s]:
                break
            home = <uint32_t>mix(self.frames[self.slots[s] - 1].key) & self.slot_mask
            if ((s - home) & self.slot_mask) >= ((s - hole) & self.slot_mask):
                self.slots[hole] = self.slots[s]
                hole = s
        self.slots[hole] = 0

    # -- recency ------------------------------------------------------------------------

    cdef void touch(self, int32_t f) noexcept:
        """An access outside a scan: the frame is wanted for its own sake."""
        cdef Frame* frame = &self.frames[f]
        frame.hits += 1
        frame.seen = millis()
        frame.scan = 0
        if self.links[f].queue == Q_COLD:
            queue_push_front(self.links, self.queues, Q_MAIN, f)
        elif self.policy == POLICY_LRU:
            if self.queues[Q_MAIN].head != f and self.links[f].queue == Q_MAIN:
                queue_push_front(self.links, self.queues, Q_MAIN, f)
        elif frame.freq < 3:
            frame.freq += 1

    cdef void hit(self, int32_t f) noexcept:
        """A scan enters the frame: counted, recency unchanged."""
        self.frames[f].hits += 1
        self.frames[f].seen = millis()

    cdef void passed(self, int32_t f, uint64_t key) noexcept:
        """A scan is done with this part, if the frame still holds it and only scans wanted it."""
        cdef Frame* frame = &self.frames[f]
        if frame.key == key and frame.state == READY and frame.scan:
            queue_push_front(self.links, self.queues, Q_COLD, f)

    cdef void settle(self, int32_t f) noexcept:
        """Enter a filled frame into the policy's queues."""
        cdef uint64_t g
        self.links[f].weight = self.frames[f].used
        if self.policy == POLICY_S3FIFO and self.frames[f].key != NO_KEY:
            g = mix(self.frames[f].key) & self.slot_mask
            if self.ghosts[g] != self.frames[f].key:
                queue_push_front(self.links, self.queues, Q_SMALL, f)
                return
            self.ghosts[g] = NO_KEY
        queue_push_front(self.links, self.queues, Q_MAIN, f)

    cdef int32_t victim(self) noexcept:
        """The frame to evict next, or -1 when all are pinned or filling."""
        cdef int32_t f = self.queues[Q_COLD].head
        while f != NOWHERE and self.frames[f].pins:
            f = self.links[f].next
        if f != NOWHERE:
            return f
        if self.policy == POLICY_S3FIFO:
            return self.victim_s3fifo()
        f = self.queues[Q_MAIN].tail
        while f != NOWHERE and self.frames[f].pins:
            f = self.links[f].prev
        return f

    cdef int32_t victim_s3fifo(self) noexcept:
        """Probation first while it is over a tenth of the frames; main gives second chances."""
        cdef int32_t f, before
        cdef bint lowered
        if self.queues[Q_SMALL].count * 10 > self.n_frames or not self.queues[Q_MAIN].count:
            f = self.queues[Q_SMALL].tail
            while f != NOWHERE:
                before = self.links[f].prev
                if not self.frames[f].pins:
                    if self.frames[f].freq <= 1:
                        return f
                    self.frames[f].freq = 0
                    queue_push_front(self.links, self.queues, Q_MAIN, f)
                f = before
        while True:
            lowered = False
            f = self.queues[Q_MAIN].tail
            while f != NOWHERE:
                before = self.links[f].prev
                if not self.frames[f].pins:
                    if not self.frames[f].freq:
                        return f
                    # Terminates: freq is at most 3 and only falls here.
                    self.frames[f].freq -= 1
                    lowered = True
                    queue_push_front(self.links, self.queues, Q_MAIN, f)
                f = before
            if not lowered:
                break
        f = self.queues[Q_SMALL].tail
        while f != NOWHERE and self.frames[f].pins:
            f = self.links[f].prev
        return f

    cdef void discard(self, int32_t f, bint evicted) noexcept:
        """Empty an unpinned frame and put it at the end of the ring."""
        cdef Frame* frame = &self.frames[f]
        if evicted:
            if frame.state == PIECES:
                self.evicted_pieces += 1
            elif self.links[f].queue == Q_COLD:
                self.evicted_scan += 1
            else:
                self.evicted_capacity += 1
                if self.links[f].queue == Q_SMALL:
                    self.ghosts[mix(frame.key) & self.slot_mask] = frame.key
            if not frame.hits:
                self.wasted += frame.used
        if frame.state == PIECES:
            self.pieces_forget(f)
        elif frame.key != NO_KEY:
            self.slot_remove(frame.key)
        frame.key = NO_KEY
        frame.state = FREE
        frame.landed = 0
        frame.fill = 0
        self.in_use -= 1
        queue_push_back(self.links, self.queues, Q_FREE, f)

    cdef void give_up(self, int32_t f) noexcept:
        """Others may fetch the part anew at once; a committed one stays."""
        if self.frames[f].state == FILLING and self.frames[f].key != NO_KEY:
            self.slot_remove(self.frames[f].key)
            self.frames[f].key = NO_KEY

    cdef int32_t take(self, uint64_t key, uint32_t used, bint scan) noexcept:
        """A frame for a part (or NO_KEY for a log), out of all queues, pinned; -1 when none can be had."""
        cdef int32_t f = self.queues[Q_FREE].head
        cdef int64_t now
        if f == NOWHERE:
            f = self.victim()
            if f == NOWHERE:
                return NOWHERE
            self.discard(f, True)
        queue_remove(self.links, self.queues, f)
        self.frames[f].key = key
        self.frames[f].landed = 0
        self.frames[f].used = used
        self.frames[f].hits = 0
        self.frames[f].freq = 0
        self.frames[f].scan = scan
        self.frames[f].seen = millis()
        self.frames[f].state = FILLING
        pin(self, f)
        if key != NO_KEY:
            self.slot_insert(f)
        self.in_use += 1
        now = self.in_use * self.frame_bytes + self.table_bytes
        if now > self.peak:
            self.peak = now
        return f

    cdef bint covers(self, int32_t f, uint64_t begin, uint64_t end) noexcept:
        """Whether bytes [begin, end) of the frame have arrived; end <= used."""
        cdef int block = self.shift - 6
        cdef uint64_t first = begin >> block
        cdef uint64_t last = (end - 1) >> block
        cdef uint64_t mask
        if self.frames[f].state == READY:
            return end <= self.frames[f].used
        if self.frames[f].state != FILLING or end > self.frames[f].used or begin >= end:
            return False
        mask = NO_KEY if last == 63 else ((<uint64_t>1 << (last + 1)) - 1)
        mask &= NO_KEY << first
        return (self.frames[f].landed & mask) == mask

    # -- pieces -------------------------------------------------------------------------

    cdef const uint8_t* find_piece(
        self, int kind, uint64_t chunk, uint64_t number, uint32_t* length, int32_t* frame
    ) noexcept:
        """Bytes of a piece, or NULL. The frame is returned so that the caller can pin it."""
        cdef uint64_t key = piece_key(kind, chunk, number)
        cdef uint64_t hashed = mix(key)
        cdef uint64_t tag = hashed >> 40
        cdef uint64_t s = hashed & self.piece_mask
        cdef const uint8_t* p
        if not self.n_pieces:
            return NULL
        while self.pieces[s]:
            if self.pieces[s] >> 40 == tag:
                p = self.arena + ((self.pieces[s] & LOCATION) - 1) * 16
                if load_u64(p) == key:
                    length[0] = load_u32(p + 8)
                    frame[0] = <int32_t>((p - self.arena) >> self.shift)
                    return p + PIECE_HEADER
            s = (s + 1) & self.piece_mask
        return NULL

    cdef bint piece_insert(self, uint64_t key, uint64_t location) noexcept:
        cdef uint64_t hashed = mix(key)
        cdef uint64_t s = hashed & self.piece_mask
        if self.n_pieces * 4 >= (self.piece_mask + 1) * 3:
            return False
        while self.pieces[s]:
            s = (s + 1) & self.piece_mask
        self.pieces[s] = (hashed >> 40) << 40 | (location + 1)
        self.n_pieces += 1
        return True

    cdef void piece_remove(self, uint64_t key, uint64_t location) noexcept:
        cdef uint64_t s = mix(key) & self.piece_mask
        cdef uint64_t hole, home
        while self.pieces[s] and (self.pieces[s] & LOCATION) - 1 != location:
            s = (s + 1) & self.piece_mask
        if not self.pieces[s]:
            return
        self.n_pieces -= 1
        hole = s
        while True:
            s = (s + 1) & self.piece_mask
            if not self.pieces[s]:
                break
            home = mix(load_u64(self.arena + ((self.pieces[s] & LOCATION) - 1) * 16)) & self.piece_mask
            if ((s - home) & self.piece_mask) >= ((s - hole) & self.piece_mask):
                self.pieces[hole] = self.pieces[s]
                hole = s
        self.pieces[hole] = 0

    cdef void pieces_forget(self, int32_t f) noexcept:
        """Take every piece of a log out of the piece table."""
        cdef uint64_t base = <uint64_t>f << self.shift
        cdef uint64_t at = 0
        cdef const uint8_t* p
        while at < self.frames[f].used:
            p = self.arena + base + at
            self.piece_remove(load_u64(p), (base + at) >> 4)
            at += PIECE_HEADER + padded(load_u32(p + 8))

    cdef bint shed_log(self) noexcept:
        """Evict the oldest log that nobody looks at, to make room in the piece table; False if there is none."""
        cdef int32_t f = self.queues[Q_MAIN].tail
        while f != NOWHERE and (self.frames[f].state != PIECES or self.frames[f].pins):
            f = self.links[f].prev
        if f == NOWHERE:
            return False
        self.discard(f, True)
        return True

    cdef int _close_log(self) except -1:
        """The log is full: from now on it is evicted like any other frame."""
        cdef int32_t f = self.piece_frame
        self.piece_frame = NOWHERE
        unpin(self, f)
        self.settle(f)
        return 0

    def close(self):
        """Refuse everything from now on; the memory goes when the last lease does. Twice is fine."""
        if self.closed:
            return
        self.closed = True
        if self.piece_frame != NOWHERE:
            self.piece_frame = NOWHERE
            self.live -= 1
        if self.live == 0:
            self.release()
