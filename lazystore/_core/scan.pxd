from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from lazystore._core.collate cimport Sink
from lazystore._core.reader cimport Reader

cdef class ItemIterator:
    cdef Reader reader
    cdef readonly object ahead   # told of every part the scan enters, or None
    cdef Sink sink               # takes the items' bytes instead of their being decoded, or None
    cdef int64_t index           # next item
    cdef int64_t stop
    cdef int64_t chunk           # chunk of `index` while primed
    cdef int64_t chunk_start
    cdef int64_t chunk_stop
    cdef uint64_t begin          # first byte of the next item while primed
    cdef int32_t body            # frame of that byte, and the key it must still have
    cdef uint64_t body_key
    cdef uint64_t told           # the part `ahead` was last told of
    cdef uint64_t body_base
    cdef uint64_t body_end
    cdef int32_t table           # frame of the next table entry, likewise
    cdef uint64_t table_key
    cdef bint primed
    cdef bint running

    cdef object advance(self)
    cdef object emit(self, const uint8_t* p, uint64_t n, int32_t frame)
    cdef object read(self, int64_t chunk, uint64_t i)
    cdef object slow(self)
    cdef void prime(self) noexcept
    cdef void pass_item(self, int64_t chunk, uint64_t begin, uint64_t end) noexcept
    cdef void pass_body(self, uint64_t new_key) noexcept
    cdef bint still_table(self, uint64_t key) noexcept
    cdef void pass_table(self) noexcept
    cdef finish(self)
