from libc.stdint cimport uint8_t

# What items are poured into, one at a time. Subclasses live in collate.pyx; who pours sees this only.
cdef class Sink:
    cdef readonly Py_ssize_t count     # items of the batch so far
    cdef bint busy                     # a call is under way

    # One item's stored bytes. They must stay where they are during the call (it may run Python code); none are kept.
    # When it raises, the batch is as it was.
    cdef int add(self, const uint8_t* p, Py_ssize_t n) except -1
    # The batch of the `count` (> 0) items; the next one starts empty.
    cdef object take(self)

    cdef int enter(self) except -1
    cdef int require_items(self) except -1
