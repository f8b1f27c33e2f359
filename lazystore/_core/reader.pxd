from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from lazystore._core.decode cimport DecodePlan
from lazystore._core.frames cimport FrameStore, Lease

cdef enum Found:
    FOUND        # contiguous, in frame f (or in no frame when empty)
    STRADDLES    # resident, across frames
    MISSING
    CORRUPT

cdef class Reader:
    cdef FrameStore store
    cdef DecodePlan plan
    cdef object loader
    cdef object transform
    cdef uint64_t* starts        # first item number of each chunk, and the total
    cdef uint64_t* lengths       # bytes of each chunk; 0: not opened yet
    cdef uint64_t* bases         # first byte an item of the chunk may have
    cdef readonly int64_t n_chunks
    cdef int64_t stride
    cdef int64_t last_chunk
    cdef int table_at
    cdef int width
    cdef readonly int64_t hits
    cdef readonly int64_t misses

    cdef int _number(self, const uint64_t[::1] counts) except -1
    cdef int _check_chunk(self, int64_t chunk) except -1
    cdef int64_t chunk_of(self, uint64_t index) noexcept
    cdef uint64_t normal(self, object index) except? 0xFFFFFFFFFFFFFFFF
    cdef const uint8_t* table_entry(self, int64_t chunk, uint64_t k, int32_t* frame) noexcept
    cdef Found span(self, int64_t chunk, uint64_t i, uint64_t* begin, uint64_t* end, int32_t* table) noexcept
    cdef Found locate(
        self, int64_t chunk, uint64_t i, bint scan,
        uint64_t* begin, uint64_t* end, const uint8_t** p, int32_t* frame,
    ) noexcept
    cdef void note(self, int32_t frame, bint scan) noexcept
    cdef bint has(self, int64_t chunk, uint64_t i) noexcept
    cdef bint resident(self, int64_t chunk, uint64_t begin, uint64_t end) noexcept
    cdef bytes gather(self, int64_t chunk, uint64_t begin, uint64_t end, bint scan)
    cdef object decode_at(self, const uint8_t* p, uint64_t n, int32_t frame)
    cdef object decode_buffer(self, object buffer)
    cdef object decode_across(self, int64_t chunk, uint64_t begin, uint64_t end, bint scan)
    cdef int fail(self, int64_t chunk, uint64_t i, object error) except -1
    cdef object corrupt(self, int64_t chunk, uint64_t i, uint64_t begin, uint64_t end)
    cdef object read(self, int64_t chunk, uint64_t i, bint scan)
    cdef object decode_fetched(self, int64_t chunk, uint64_t i, object buffer)
    cdef int read_spots(
        self, list wanted, Py_ssize_t first, Py_ssize_t last, list found, list missing, list places
    ) except -1
    cdef Lease lease(self, int64_t chunk, uint64_t i, bint scan)
