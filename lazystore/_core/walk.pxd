from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lazystore._core.collate cimport Sink
from lazystore._core.reader cimport Reader
from lazystore._core.scan cimport ItemIterator

cdef struct Spot:
    uint64_t where       # the address of the item's bytes when they are contiguous, else their place at the owner's
    uint32_t n
    uint32_t number      # of the item in its chunk, for messages
    uint32_t owner       # whose they are, in Walk.held
    uint32_t kind        # of place: see walk.pyx

cdef class Progress:
    cdef public int64_t position
    cdef public bint finished

cdef class Walk:
    cdef Reader reader
    cdef object feed
    cdef readonly Progress progress
    cdef ItemIterator scan
    cdef list held               # slabs, or lists of buffers
    cdef list chunks             # of each of them
    cdef Spot* spots
    cdef Py_ssize_t room
    cdef Py_ssize_t n
    cdef Py_ssize_t k
    cdef bint running
    cdef bint over
    cdef object __weakref__

    cpdef Py_ssize_t pour(self, Sink sink, Py_ssize_t n) except -1
    cdef object advance(self, Sink sink)
    cdef object here(self, Sink sink)
    cdef int turn(self) except -1
    cdef let_go(self)
    cdef int room_for(self, Py_ssize_t n) except -1
    cdef int lay_out(self, list groups, const uint32_t[::1] places, Py_ssize_t skip, Py_ssize_t stop) except -1
    cdef int lay_out_list(self, list items) except -1
