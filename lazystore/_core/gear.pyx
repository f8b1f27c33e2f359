"""Cut points that the content itself decides (FastCDC), so that an insertion moves only the cuts around it.

Here are the gear hash and the search for the next cut, over blocks as they come. What is done with the
pieces (views, joining, ids) is the chunker's business.

The rule, the same for ever, because stored ids depend on it:

- ``GEAR[b]`` for a byte ``b`` is word ``b`` of the SplitMix64 stream (Steele, Lea, Flood 2014) seeded with 0;
- the hash of a position is ``sum(GEAR[byte j places back] << j)`` modulo 2**64, so of the last 64 bytes;
- a chunk ends behind the first byte where its size is at least ``min`` and the hash is below a bound, and at
  ``max`` in any case. The bound is ``2**64 // (4 * average)`` while the size is below ``average`` and
  ``2**64 // average * 4`` from there on: sizes gather around the average (normalized chunking, level 2).

After Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems" (IEEE
TPDS 31(9), 2020). Bytes that cannot be a cut are passed by unread, as there. In place of its masks a bound: the high
bits of the hash see all of the last 64 bytes, any average will do, and one compare decides. Hashing begins 64
bytes before the least size, so that no cut depends on where its chunk began.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from lazystore.errors import ConfigError

cdef enum:
    WINDOW = 64             # bytes that the hash depends on

cdef int64_t MAX_BYTES = 1 << 40
cdef uint64_t[256] GEAR


cdef struct Search:
    int64_t skip            # bytes at the front of a chunk that no cut depends on
    int64_t least
    int64_t average
    int64_t most
    uint64_t strict
    uint64_t loose
    int64_t size            # of the chunk so far
    uint64_t hash


cdef void fill_gear() noexcept nogil:
    cdef uint64_t state = 0, word
    cdef int k
    for k in range(256):
        state += <uint64_t>0x9E3779B97F4A7C15
        word = (state ^ (state >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        word = (word ^ (word >> 27)) * <uint64_t>0x94D049BB133111EB
        GEAR[k] = word ^ (word >> 31)


fill_gear()


cdef inline int64_t seek(
    const uint8_t* at, int64_t i, int64_t stop, uint64_t* hash, uint64_t bound,
) noexcept nogil:
    """Hash from ``i`` until a hash is below the bound: the position behind that byte, or -1 (all is hashed)."""
    cdef uint64_t h = hash[0]
    # Two bytes a turn, as in the paper: half as many looks at the loop's end.
    while i + 2 <= stop:
        h = (h << 1) + GEAR[at[i]]
        if h < bound:
            return i + 1
        h = (h << 1) + GEAR[at[i + 1]]
        if h < bound:
            return i + 2
        i += 2
    if i < stop:
        h = (h << 1) + GEAR[at[i]]
        if h < bound:
            return i + 1
    hash[0] = h
    return -1


cdef int64_t find(Search* s, const uint8_t* at, int64_t n) noexcept nogil:
    """Where in these ``n`` bytes the chunk ends (behind its last byte), or -1: it goes on."""
    cdef int64_t i = max(0, min(n, s.skip - s.size)), stop, end
    stop = min(n, s.least - 1 - s.size)
    if i < stop:
        seek(at, i, stop, &s.hash, 0)       # nothing is below 0: this only fills the window
        i = stop
    stop = min(n, s.average - 1 - s.size)
    if i < stop:
        end = seek(at, i, stop, &s.hash, s.strict)
        if end >= 0:
            return end
        i = stop
    stop = min(n, s.most - 1 - s.size)
    if i < stop:
        end = seek(at, i, stop, &s.hash, s.loose)
        if end >= 0:
            return end
        i = stop
    return i + 1 if i < n else -1


cdef class GearCutter:
    """Finds where chunks end in bytes that come in blocks of any sizes; the cuts do not depend on the blocks.

    Parameters:
        average: bytes that chunks have about on average.
        least: no chunk but the last is smaller; 64 at least. Default: a quarter of the average.
        most: no chunk is larger. Default: four times the average.

    Raises:
        ConfigError: not ``64 <= least <= average <= most``.

    Cost: a fraction of a nanosecond a byte; the first ``least - 64`` bytes of a chunk are not looked at. Source: see
    the module. Threads: the search runs without the GIL; one cutter belongs to one thread at a time. Fork: copied.
    Pickling: refused.
    """

    cdef Search search
    cdef bint running

    def __cinit__(self, int64_t average, *, least=None, most=None):
        cdef int64_t low, high
        if not WINDOW <= average <= MAX_BYTES:
            raise ConfigError(f"content-defined chunks have {WINDOW} to {MAX_BYTES} bytes on average, not {average}")
        low = max(average // 4, WINDOW) if least is None else least
        high = min(average * 4, MAX_BYTES) if most is None else most
        if not WINDOW <= low <= average <= high <= MAX_BYTES:
            raise ConfigError(
                f"content-defined cuts need {WINDOW} <= least <= average <= most <= {MAX_BYTES} bytes,"
                f" got {low}, {average}, {high}"
            )
        self.search.least = low
        self.search.average = average
        self.search.most = high
        self.search.skip = low - WINDOW
        self.search.strict = <uint64_t>((1 << 64) // (4 * average))
        self.search.loose = <uint64_t>((1 << 64) // average * 4)
        self.reset()

    def cut(self, const uint8_t[::1] block not None, int64_t start=0):
        """Where the current chunk ends in ``block[start:]``: a position in ``block`` behind its last byte, or -1.

        -1: the chunk goes on in the next block; all of this one has been taken in. After a cut the next chunk begins.

        Raises:
            ConfigError: ``start`` is not in the block.
            ValueError: another thread is in the middle of a call.
        """
        cdef int64_t n = block.shape[0], end
        if not 0 <= start <= n:
            raise ConfigError(f"start={start} is not in a block of {n} bytes")
        if self.running:
            raise ValueError("this cutter is already running: one thread at a time")
        if start == n:
            return -1
        self.running = True
        with nogil:
            end = find(&self.search, &block[start], n - start)
        self.running = False
        if end < 0:
            self.search.size += n - start
            return -1
        self.reset()
        return start + end

    cpdef void reset(self) noexcept:
        """Begin a new chunk with the next byte."""
        self.search.size = 0
        self.search.hash = 0

    @property
    def pending(self):
        """Bytes of the current chunk that were taken in so far."""
        return self.search.size

    @property
    def least(self):
        return self.search.least

    @property
    def average(self):
        return self.search.average

    @property
    def most(self):
        return self.search.most

    def __reduce__(self):
        raise TypeError("a GearCutter cannot be pickled; make another one from its sizes")
