cimport cython
from libc.stdint cimport int64_t, uint8_t

from lazystore._core.row_shape cimport RowShape

cdef enum Wrong:
    W_OFFSETS = -2
    W_INDEX = -3
    W_ROOM = -4
    W_BIG = -5

cdef struct View:
    int64_t offset
    int64_t length
    const uint8_t* valid   # bitmap, NULL: all are
    const uint8_t* data    # numbers, offsets, indices, bits
    const uint8_t* text
    int64_t text_bytes


@cython.final
cdef class RowBatch:
    cdef RowShape shape
    cdef View* views
    cdef Py_buffer* buffers
    cdef int n_buffers
    cdef readonly int64_t rows

    cdef bind(self, int k, int64_t offset, int64_t length, valid, data, text)
    cdef lay(self, int k, int64_t length, int64_t nulls, const int64_t* buffers, int n_buffers, const uint8_t* body)
    cdef const uint8_t* hold(self, source, int64_t* n) except? NULL
    cdef check_data(self, int k, int64_t n, int64_t end)
    cdef check(self)
    cdef str place(self, int k)
    cdef short_error(self, int k, str what, int64_t n, int64_t need)
    cdef bint is_null(self, int k, int64_t i) noexcept nogil
    cdef int resolve(self, int* k, int64_t* i) noexcept nogil
    cdef int64_t stretch(self, int k, int64_t i, int64_t n, int64_t* begin) noexcept nogil
    cdef int64_t children(self, int k, int64_t i, int64_t* begin) noexcept nogil
    cdef int64_t value_size(self, int k, int64_t i, int64_t* room) noexcept nogil
    cdef uint8_t* put_value(self, int k, int64_t i, uint8_t* p) noexcept nogil
    cdef uint8_t* put_number(self, int k, int64_t i, uint8_t* p) noexcept nogil
    cdef int64_t put_text(self, int k, int64_t i, uint8_t* p) noexcept nogil
    cdef int64_t cell_size(self, int k, int64_t i, bint value, int64_t* room) noexcept nogil
    cdef int64_t put_cell(self, int k, int64_t i, bint value, uint8_t* p) noexcept nogil
    cdef int64_t measure(
        self, int column, int64_t first, int64_t count, int64_t* sizes, int64_t limit, int64_t* room, int64_t* bad
    ) noexcept nogil
    cdef void write(
        self, int column, int64_t first, int64_t count, int64_t* ends, uint8_t* p, const uint8_t* table
    ) noexcept nogil
