from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from lazystore._core.frames cimport FrameStore

cdef class Slab:
    cdef FrameStore store
    cdef int32_t* frames         # those of the table, then those of the body
    cdef Py_ssize_t n_table
    cdef Py_ssize_t n_frames     # pinned so far
    cdef uint64_t table_at       # of the first item's entry, in the table's row of frames
    cdef uint64_t body_at        # of the chunk's byte `begin`, in the body's row of frames
    cdef uint64_t begin          # bytes of the chunk that the items lie in
    cdef uint64_t end
    cdef uint64_t stride
    cdef readonly int64_t chunk
    cdef readonly int64_t first
    cdef readonly int64_t last
    cdef readonly bint released

    cdef int hold(self, uint64_t key_chunk, uint64_t part, Py_ssize_t n) except -1
    cdef void let_go(self, bint passed) noexcept
    # Position of item i's first byte in the body's row, and its length; 0 when the table says nonsense.
    cdef bint find(self, uint64_t i, uint64_t* at, uint64_t* n) noexcept
    # Ask for the memory that holds item i's offset.
    cdef void expect(self, uint64_t i) noexcept
    # The bytes when they are contiguous in memory, else NULL.
    cdef const uint8_t* pointer(self, uint64_t at, uint64_t n) noexcept
    cdef const int32_t* body(self) noexcept
