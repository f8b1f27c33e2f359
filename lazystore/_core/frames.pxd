from libc.stdint cimport int32_t, int64_t, uint8_t

from lazystore._core.arena cimport Arena

cdef class FrameStore(Arena):
    cdef int64_t _arrived(self, int32_t f) noexcept

cdef class Lease:
    cdef FrameStore store
    cdef int32_t frame           # -1 when the bytes are owned, not leased
    cdef const uint8_t* ptr
    cdef Py_ssize_t length
    cdef bytes owner
    cdef int exports
    cdef bint released

    cdef void _drop(self) noexcept

cdef Lease lease_frame(FrameStore store, int32_t f, const uint8_t* ptr, Py_ssize_t length)
cdef Lease lease_bytes(bytes owner)
