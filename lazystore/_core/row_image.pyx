"""Rows of record batches put together as a chunk in the classic layout: ``u32 n | u32 offset[n+1] | rows``.

A row is ``u32 size[columns] | cells``, size 0xFFFFFFFF for null. Rows whose columns are not those of the dataset's
plan are written *loose*: ``u32 0xFFFFFFFE`` and one self-describing dict. Cells are ``rows``' business.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lazystore._core.row_shape cimport RowShape
from lazystore._core.rows cimport W_BIG, W_INDEX, W_OFFSETS, RowBatch
from lazystore.errors import BudgetTooSmallError, ConfigError, FormatError

cdef enum:
    LOOSE_SIZE = 0xFFFFFFFE
    MAX_CHUNK = 0xFFFFFFFD
    LOOSE_HEAD = 9     # u32 mark | u8 tag of a dict | u32 entries
    TAG_DICT = 8


def row_image(RowShape shape not None, parts, *, int64_t limit=MAX_CHUNK):
    """The chunk of some rows.

    Parameters:
        shape: the columns.
        parts: ``(batch, first row, rows)`` each, in order.
        limit: bytes the image may have.

    Raises:
        FormatError: an offset or index in the buffers leads astray; the message names the column and the row, counted
            from the first of ``parts``.
        BudgetTooSmallError: the image would be larger than ``limit``, which is taken for a quarter of the budget.

    Cost: ~25 ns a row of an int and 250 bytes of text, one copy of them included; the GIL is released.
    """
    cdef RowImage image = RowImage(shape, parts, min(limit, <int64_t>MAX_CHUNK))
    return image.run()


cdef inline void store_u32(uint8_t* p, uint32_t value) noexcept nogil:
    memcpy(p, &value, 4)


@cython.final
cdef class RowImage:
    """One image being made: measured, then written."""

    cdef RowShape shape
    cdef list batches
    cdef int64_t* spans      # first row and rows of each part
    cdef int64_t* ends       # of each row: bytes so far, then where its next cell goes
    cdef int64_t rows, limit

    def __cinit__(self, RowShape shape, parts, int64_t limit):
        cdef int64_t first, count
        cdef Py_ssize_t n_parts = 0
        cdef RowBatch batch
        self.shape = shape
        self.limit = limit
        self.batches = []
        parts = list(parts)
        self.spans = <int64_t*>malloc(16 * max(len(parts), 1))
        if self.spans == NULL:
            raise MemoryError("no memory for a row image")
        for batch, first, count in parts:
            if batch is None or batch.shape is not shape:
                raise ConfigError("the batch belongs to another shape")
            if first < 0 or count < 0 or first > batch.rows or count > batch.rows - first:
                raise FormatError(f"rows {first}..{first + count} are not in a batch of {batch.rows}")
            self.spans[2 * n_parts] = first
            self.spans[2 * n_parts + 1] = count
            self.batches.append(batch)
            n_parts += 1
            self.rows += count
        # Before anything is allocated by their number.
        if self.rows > (limit - 8) // 4:
            raise FormatError(f"{self.rows} rows do not fit an image of {limit} bytes")
        self.ends = <int64_t*>calloc(max(self.rows, 1), 8)
        if self.ends == NULL:
            raise MemoryError("no memory for a row image")

    def __dealloc__(self):
        free(self.spans)
        free(self.ends)

    cdef run(self):
        cdef int64_t total = 0, r, head = 4 * (self.rows + 2), size
        cdef int64_t base = LOOSE_HEAD if self.shape.loose else 4 * <int64_t>self.shape.n_columns
        cdef uint8_t* p
        self.measure()
        total = head
        for r in range(self.rows):
            total += self.ends[r] + base
        if total > self.limit:
            raise BudgetTooSmallError(
                f"{self.rows} rows take {total} bytes, an image may have {self.limit}: "
                f"give at least {4 * total} bytes of memory, unless the file is damaged", needed=total
            )
        image = PyByteArray_FromStringAndSize(NULL, total)
        p = <uint8_t*>PyByteArray_AS_STRING(image)
        with nogil:
            store_u32(p, <uint32_t>self.rows)
            for r in range(self.rows):
                size = self.ends[r] + base
                store_u32(p + 4 + 4 * r, <uint32_t>head)
                self.ends[r] = head + base
                head += size
            store_u32(p + 4 + 4 * self.rows, <uint32_t>head)
        self.write(p)
        return image

    cdef measure(self):
        """Sum the cells of each row into ``ends``."""
        cdef int64_t row = 0, room = self.limit, wrong = 0, bad = 0
        cdef Py_ssize_t part
        cdef int column
        cdef int64_t* span
        cdef RowBatch batch
        for part in range(len(self.batches)):
            batch = self.batches[part]
            span = self.spans + 2 * part
            with nogil:
                for column in range(self.shape.n_columns):
                    wrong = batch.measure(column, span[0], span[1], self.ends + row, self.limit, &room, &bad)
                    if wrong:
                        break
            if wrong:
                raise self.error(wrong, column, row + bad)
            row += span[1]

    cdef write(self, uint8_t* p):
        cdef int64_t row = 0
        cdef Py_ssize_t part
        cdef int column
        cdef int64_t* span
        cdef RowBatch batch
        for part in range(len(self.batches)):
            batch = self.batches[part]
            span = self.spans + 2 * part
            with nogil:
                if self.shape.loose:
                    self.write_marks(p, row, span[1])
                for column in range(self.shape.n_columns):
                    batch.write(column, span[0], span[1], self.ends + row, p, p + 4 + 4 * row)
            row += span[1]

    cdef void write_marks(self, uint8_t* p, int64_t row, int64_t count) noexcept nogil:
        cdef int64_t r
        for r in range(row, row + count):
            store_u32(p + self.ends[r] - LOOSE_HEAD, LOOSE_SIZE)
            p[self.ends[r] - 5] = TAG_DICT
            store_u32(p + self.ends[r] - 4, self.shape.n_columns)

    cdef error(self, int64_t wrong, int column, int64_t row):
        place = f"column {self.shape.names[column]!r}, row {row}"
        if wrong == W_OFFSETS:
            return FormatError(f"{place}: its offsets go backwards or past the end of the data")
        if wrong == W_INDEX:
            return FormatError(f"{place}: its index points past the end of the dictionary")
        if wrong == W_BIG:
            return FormatError(f"{place}: an integer beyond 64 signed bits")
        return BudgetTooSmallError(
            f"{place}: the rows take more than {self.limit} bytes, all that an image may have: "
            f"give more than {4 * self.limit} bytes of memory, unless the file is damaged", needed=self.limit
        )
