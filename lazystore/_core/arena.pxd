from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from lazystore._core.lru cimport Link, Queue

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    #ifndef CLOCK_MONOTONIC_COARSE
    #define CLOCK_MONOTONIC_COARSE CLOCK_MONOTONIC
    #endif
    #define LAZYSTORE_NO_KEY UINT64_MAX
    /* A hint for the cache lines of bytes that are read soon; the hardware follows long runs by itself. */
    static inline void lazystore_prefetch(const unsigned char *p, uint64_t n) {
    #if defined(__GNUC__)
        const unsigned char *end = p + n;
        for (; p < end; p += 64)
            __builtin_prefetch(p);
    #else
        (void)p; (void)n;
    #endif
    }
    static inline uint32_t lazystore_millis(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
        return (uint32_t)((uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u);
    }
    """
    uint32_t millis "lazystore_millis" () noexcept
    void prefetch "lazystore_prefetch" (const uint8_t* p, uint64_t n) noexcept nogil
    const uint64_t NO_KEY "LAZYSTORE_NO_KEY"

cdef enum:
    PIECE_HEADER = 16   # u64 key | u32 length | u32 zero

cdef enum:
    FREE = 0
    FILLING = 1      # reserved for a part, bytes on their way
    READY = 2        # all bytes of the part are there
    PIECES = 3       # a log of small pieces instead of one part

cdef enum:
    Q_FREE = 0
    Q_COLD = 1       # passed by a scan: evicted first, newest first
    Q_SMALL = 2      # S3-FIFO's probation queue
    Q_MAIN = 3
    N_QUEUES = 4

cdef enum:
    ITEM_PIECE = 2
    TABLE_PIECE = 3

cdef struct Frame:
    uint64_t key     # chunk << 32 | part; NO_KEY when no part is here
    uint64_t landed  # bit b: block b (1/64 of a frame) has arrived
    uint32_t used    # bytes of content; the last part of a chunk is shorter than a frame
    int32_t pins     # leases, fills and running decodes
    uint32_t hits
    uint32_t seen    # milliseconds since the store was made, wraps after 49 days
    uint8_t state
    uint8_t freq     # S3-FIFO's two-bit counter
    uint8_t scan     # brought in by a scan and not asked for otherwise since
    uint8_t fill     # a Fill object holds one of the pins
    uint32_t epoch   # tells a Fill whose frame was abandoned that it is over

cdef class Arena:
    cdef uint8_t* arena
    cdef Frame* frames
    cdef Link* links
    cdef Queue queues[4]
    cdef int32_t* slots          # open addressing: hash(key) -> frame + 1
    cdef uint32_t slot_mask
    cdef uint64_t* ghosts        # S3-FIFO: keys evicted from probation, direct mapped
    cdef uint64_t* pieces        # open addressing: tag << 40 | location + 1
    cdef uint64_t piece_mask
    cdef uint64_t n_pieces
    cdef int32_t piece_frame     # the log being written, or -1
    cdef int64_t live            # pins of all frames together
    cdef int policy
    cdef bint closed
    cdef public str name         # what ClosedError calls it
    cdef readonly int shift      # log2 of frame_bytes
    cdef readonly int64_t frame_bytes
    cdef readonly int32_t n_frames
    cdef readonly int64_t max_bytes
    cdef readonly int64_t table_bytes
    cdef int64_t evicted_capacity, evicted_scan, evicted_pieces, wasted, in_use, peak

    cdef int32_t find(self, uint64_t key) noexcept
    cdef int32_t find_part(self, uint64_t chunk, uint64_t part) noexcept
    cdef void touch(self, int32_t f) noexcept
    cdef void hit(self, int32_t f) noexcept
    cdef void passed(self, int32_t f, uint64_t key) noexcept
    cdef bint covers(self, int32_t f, uint64_t begin, uint64_t end) noexcept
    cdef const uint8_t* find_piece(
        self, int kind, uint64_t chunk, uint64_t number, uint32_t* length, int32_t* frame
    ) noexcept
    cdef int32_t take(self, uint64_t key, uint32_t used, bint scan) noexcept
    cdef int32_t victim(self) noexcept
    cdef int32_t victim_s3fifo(self) noexcept
    cdef void discard(self, int32_t f, bint evicted) noexcept
    cdef void settle(self, int32_t f) noexcept
    cdef void slot_insert(self, int32_t f) noexcept
    cdef void slot_remove(self, uint64_t key) noexcept
    cdef void pieces_forget(self, int32_t f) noexcept
    cdef bint piece_insert(self, uint64_t key, uint64_t location) noexcept
    cdef void piece_remove(self, uint64_t key, uint64_t location) noexcept
    cdef int _close_log(self) except -1
    cdef bint shed_log(self) noexcept
    cdef void give_up(self, int32_t f) noexcept
    cdef void release(self) noexcept
    cdef int require_open(self) except -1

cdef inline void pin(Arena store, int32_t f) noexcept:
    store.frames[f].pins += 1
    store.live += 1

cdef inline void unpin(Arena store, int32_t f) noexcept:
    # With the last pin of a closed store its memory goes; nobody can pin it again.
    store.frames[f].pins -= 1
    store.live -= 1
    if not store.frames[f].pins and store.frames[f].state == FILLING:
        store.discard(f, False)   # its fill is gone, and now the last one who looked at what had landed
    if store.closed and store.live == 0:
        store.release()

cdef inline uint64_t mix(uint64_t key) noexcept:
    # Fibonacci hashing, the high half folded down (Knuth, TAOCP 3, 6.4).
    key *= <uint64_t>0x9E3779B97F4A7C15ULL
    return key ^ (key >> 32)

cdef inline uint64_t piece_key(int kind, uint64_t chunk, uint64_t number) noexcept:
    return (<uint64_t>kind << 62) | (chunk << 32) | number

cdef inline uint64_t padded(uint64_t n) noexcept:
    return (n + 15) // 16 * 16

cdef inline uint64_t part_key(uint64_t chunk, uint64_t part) noexcept:
    return chunk << 32 | part
