"""Batches out of items' stored bytes: lists of items, or columns with numpy arrays in them.

A sink takes one item at a time, straight from where its bytes lie; numbers and arrays are
copied into the batch's arrays without becoming Python objects on the way. Who pours, and
what a batch's user asked for, live in ``walk`` and ``lazystore.streaming.batches``.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_Append
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

import operator

from lazystore._core.decode cimport (
    OP_ARRAY,
    OP_BOOL,
    OP_FLOAT,
    OP_INT,
    OP_NDARRAY,
    OP_PACKED_ARRAY,
    DecodePlan,
    next_size,
)
from lazystore.errors import ConfigError

cdef enum:
    FIRST_BYTES = 1 << 26    # an array starts with no more than this (or one row) and doubles from there
    MAX_STACKED = 31         # dimensions of arrays that can be stacked: numpy 1.26 counts to 32

cdef enum Kind:
    OBJECTS      # a list of what the plan decodes
    SCALARS      # an array, a row is one number; a list if one is None
    ARRAYS       # an array as long as all the batch's leaves are alike, else a list of arrays

cdef struct Column:
    Kind kind
    bint truth               # bytes are truth values: anything but 0 is 1
    bint ragged              # SCALARS or ARRAYS that are a list in this batch
    Py_ssize_t rows          # rows allocated; 0: no array
    Py_ssize_t size          # bytes a row
    Py_ssize_t head          # bytes of the leaf before them
    const uint8_t* header    # what they have to be (in ColumnSink.headers)
    uint8_t* data            # the array's memory (in ColumnSink.parts)


cdef class Sink:
    """Where items are poured: they are added one by one, and taken as one batch.

    The base of the sinks in this module; it takes nothing itself.

    Attributes:
        count: items of the batch so far.

    Threads: one sink belongs to one thread; a call that meets another one under way raises. Fork: copied, with
    the batch begun. Pickling: refused.
    """

    cdef int add(self, const uint8_t* p, Py_ssize_t n) except -1:
        raise NotImplementedError(f"{type(self).__name__} takes no items; use ObjectSink or ColumnSink")

    cdef object take(self):
        raise NotImplementedError(f"{type(self).__name__} makes no batches; use ObjectSink or ColumnSink")

    cdef int enter(self) except -1:
        """Nobody else adds or takes until ``busy`` is taken back: leaves may run Python code, and threads switch."""
        if self.busy:
            raise ConfigError("a batch is being filled already; one iterator of batches belongs to one thread")
        self.busy = True
        return 0

    cdef int require_items(self) except -1:
        if self.count == 0:
            raise ConfigError("there is no batch of no items; add some before taking it")
        return 0

    def add_bytes(self, const unsigned char[::1] item not None):
        """Add one item's stored bytes. Walks use the C entry instead.

        Raises:
            FormatError: they do not follow the schema; the batch is as it was.
            ConfigError: the batch is full.
        """
        self.add(<const uint8_t*>&item[0] if item.shape[0] else <const uint8_t*>b"", item.shape[0])

    def take_batch(self):
        """The batch of the items added; the next one starts empty.

        Raises:
            ConfigError: there are none.
        """
        return self.take()

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} holds a batch half-way and cannot be pickled")

    def __repr__(self):
        return f"<{type(self).__name__} of {self.count} items>"


cdef class ObjectSink(Sink):
    """Batches that are lists of decoded items.

    Parameters:
        plan: decodes them.
    """

    cdef DecodePlan plan
    cdef list items

    def __cinit__(self, DecodePlan plan not None):
        self.plan = plan
        self.items = []

    cdef int add(self, const uint8_t* p, Py_ssize_t n) except -1:
        self.enter()
        try:
            self.items.append(self.plan.decode(p, n))
            self.count += 1
        finally:
            self.busy = False
        return 0

    cdef object take(self):
        cdef list items = self.items
        self.require_items()
        self.enter()
        self.items = []
        self.count = 0
        self.busy = False
        return items


cdef class ColumnSink(Sink):
    """Batches with the tree of an item and a column in the place of each leaf.

    int, float and bool leaves become int64, float64 and bool arrays of one dimension; array leaves (and numpy
    scalars) one array with the batch as its first dimension if all of the batch have the same dtype and shape, else
    a list of arrays; everything else (str, bytes, media, tensors, pickles, values) a list of decoded objects. Arrays
    without elements and those of more than 31 dimensions stay lists too. The arrays belong to the batch alone:
    writable, in C order, with one row an item.

    A nullable leaf's column is the same in a batch where nothing is None, else a list (of int, float, bool, arrays
    or objects) with the Nones in it: numbers have no None, and 0 or NaN would be other values.

    Parameters:
        plan: decodes what becomes an object, and builds the tree.
        capacity: items a batch holds at most; arrays are allocated for it (64 MiB each at first, then they grow).
    """

    cdef DecodePlan plan
    cdef readonly Py_ssize_t capacity
    cdef Column* columns
    cdef list parts          # a column's array, or its list
    cdef list headers        # bytes objects that columns point into
    cdef list dtypes         # of SCALARS
    cdef object empty        # numpy.empty

    def __cinit__(self, DecodePlan plan not None, capacity):
        cdef int k
        self.capacity = operator.index(capacity)
        if self.capacity < 1:
            raise ConfigError(f"a batch of {capacity} items cannot be filled; give at least 1")
        self.plan = plan
        self.columns = <Column*>calloc(max(plan.n_leaves, 1), sizeof(Column))
        if self.columns == NULL:
            raise MemoryError("no memory for a batch's columns")
        self.headers = [b""] * plan.n_leaves
        self.dtypes = [None] * plan.n_leaves
        for k in range(plan.n_leaves):
            self._describe(k)
        self._reset()

    def __dealloc__(self):
        free(self.columns)

    cdef _describe(self, int k):
        """What column ``k`` will be, as far as the schema says."""
        cdef Column* column = &self.columns[k]
        op = self.plan.leaves[k].op
        column.kind = OBJECTS
        if op in (OP_INT, OP_FLOAT, OP_BOOL):
            column.kind = SCALARS
            column.truth = op == OP_BOOL
            column.size = 1 if column.truth else 8
            self.dtypes[k] = "int64" if op == OP_INT else "float64" if op == OP_FLOAT else "bool"
        elif op in (OP_ARRAY, OP_NDARRAY, OP_PACKED_ARRAY):
            column.kind = ARRAYS
        if column.kind != OBJECTS and self.empty is None:
            import numpy

            self.empty = numpy.empty

    cdef _reset(self):
        cdef int k
        self.parts = [[] if self.columns[k].kind == OBJECTS else None for k in range(self.plan.n_leaves)]
        for k in range(self.plan.n_leaves):
            self.columns[k].rows = 0
            self.columns[k].ragged = False
        self.count = 0

    # -- adding -------------------------------------------------------------------------

    cdef int add(self, const uint8_t* p, Py_ssize_t n) except -1:
        cdef bint added = False
        cdef bytes opened
        if self.count >= self.capacity:
            raise ConfigError(f"the batch has its {self.capacity} items already; take it first")
        self.enter()
        try:
            if self.plan.opener is None:
                self._add_leaves(p, n)
            else:
                opened = self.plan.open_item(PyBytes_FromStringAndSize(<const char*>p, n))
                self._add_leaves(<const uint8_t*>PyBytes_AS_STRING(opened), PyBytes_GET_SIZE(opened))
            added = True
        finally:
            if added:
                self.count += 1
            else:
                self._undo()
            self.busy = False
        return 0

    cdef int _add_leaves(self, const uint8_t* p, Py_ssize_t n) except -1:
        cdef DecodePlan plan = self.plan
        cdef Py_ssize_t at = plan.head, size
        cdef const uint8_t* sizes = p
        cdef Column* column = self.columns
        cdef int k
        if n < at:
            raise plan.size_error(n)
        for k in range(plan.n_leaves):
            size = n if plan.headless else next_size(&plan.leaves[k], &sizes)
            if size < 0:
                self._unstack(k)
                PyList_Append(<list>self.parts[k], None)
                column += 1
                continue
            if size > n - at:
                raise plan.size_error(n)
            if column.kind == OBJECTS or column.ragged:
                PyList_Append(<list>self.parts[k], plan.leaf(&plan.leaves[k], p + at, size))
            elif column.kind == SCALARS:
                self._add_scalar(k, column, p + at, size)
            else:
                self._add_array(k, column, p + at, size)
            at += size
            column += 1
        if at != n:
            raise plan.size_error(n)
        return 0

    cdef inline int _add_scalar(self, int k, Column* column, const uint8_t* p, Py_ssize_t size) except -1:
        if size != column.size:
            self.plan.leaf(&self.plan.leaves[k], p, size)    # says what is wrong
        if self.count == column.rows:
            self._room(k, self.dtypes[k], ())
        if column.truth:
            column.data[self.count] = p[0] != 0
        else:
            memcpy(column.data + 8 * self.count, p, 8)
        return 0

    cdef inline int _add_array(self, int k, Column* column, const uint8_t* p, Py_ssize_t size) except -1:
        # The header and the length of a leaf that was found good: nothing else to check.
        if (
            column.rows == 0 or size != column.head + column.size
            or (column.head and memcmp(p, column.header, column.head) != 0)
        ):
            return self._add_unlike(k, p, size)
        if self.count == column.rows:
            self._room(k, None, None)
        memcpy(column.data + self.count * column.size, p + column.head, column.size)
        return 0

    cdef int _add_unlike(self, int k, const uint8_t* p, Py_ssize_t size) except -1:
        """An array leaf that is the first of its batch, or not like the ones before."""
        cdef object array = self.plan.leaf(&self.plan.leaves[k], p, size)
        if self.count == 0 and stackable(array):
            self._start(k, p, size, array)
            return 0
        self._unstack(k)
        PyList_Append(<list>self.parts[k], array)
        return 0

    cdef int _unstack(self, int k) except -1:
        """From here on the column is a list in this batch."""
        cdef Column* column = &self.columns[k]
        if column.kind == OBJECTS or column.ragged:
            return 0
        part = self.parts[k]
        if self.count == 0:
            self.parts[k] = []
        elif column.kind == SCALARS:
            self.parts[k] = part[:self.count].tolist()
        elif part.ndim == 1 and self.plan.leaves[k].op == OP_PACKED_ARRAY:
            self.parts[k] = list(part[:self.count])
        else:
            # Copies, so that none of them keeps the whole batch's memory.
            self.parts[k] = [part[row, ...].copy() for row in range(self.count)]
        column.rows = 0
        column.ragged = True
        return 0

    cdef int _start(self, int k, const uint8_t* p, Py_ssize_t size, object array) except -1:
        """The batch's array for leaves like ``array``, which is its first row."""
        cdef Column* column = &self.columns[k]
        column.size = array.nbytes
        column.head = size - column.size
        self.headers[k] = PyBytes_FromStringAndSize(<const char*>p, column.head)
        column.header = <const uint8_t*>PyBytes_AS_STRING(self.headers[k])
        self._room(k, array.dtype, array.shape)
        memcpy(column.data, p + column.head, column.size)
        return 0

    cdef int _room(self, int k, object dtype, object shape) except -1:
        """Allocate a column's array, or make it longer."""
        cdef Column* column = &self.columns[k]
        cdef Py_ssize_t rows
        cdef Py_buffer view
        if column.rows == 0:
            rows = min(self.capacity, max(FIRST_BYTES // column.size, 1))
            array = self.empty((rows, *shape), dtype)
        else:
            rows = min(self.capacity, 2 * column.rows)
            array = self.parts[k]
            array.resize((rows, *array.shape[1:]), refcheck=False)
        PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
        column.data = <uint8_t*>view.buf    # stays: nobody else has the array yet
        PyBuffer_Release(&view)
        self.parts[k] = array
        column.rows = rows
        return 0

    cdef _undo(self):
        """Forget what an item that failed has left in the lists; rows of arrays are written over."""
        cdef list part
        if self.count == 0:
            self._reset()
            return
        for k in range(self.plan.n_leaves):
            if self.columns[k].kind == OBJECTS or self.columns[k].ragged:
                part = self.parts[k]
                del part[self.count:]

    # -- taking -------------------------------------------------------------------------

    cdef object take(self):
        cdef list parts
        self.require_items()
        self.enter()
        try:
            parts = [self._finished(k) for k in range(self.plan.n_leaves)]
            self._reset()
        finally:
            self.busy = False
        return self.plan.build(parts)

    cdef object _finished(self, int k):
        """The column as the user gets it."""
        cdef Column* column = &self.columns[k]
        part = self.parts[k]
        if column.rows and column.rows != self.count:
            part.resize((self.count, *part.shape[1:]), refcheck=False)
            column.rows = self.count
        elif column.ragged and not has_none(<list>part):
            # Where only an item that failed in another leaf was unlike the rest, the column is an array after all.
            import numpy

            if column.kind == SCALARS:
                return numpy.array(part, self.dtypes[k])
            if stackable(part[0]) and alike(<list>part):
                return numpy.stack(part)
        return part


cdef bint stackable(object array) except -1:
    return 0 < array.size and array.ndim <= MAX_STACKED


cdef bint alike(list arrays) except -1:
    first = arrays[0]
    return all([array.shape == first.shape and array.dtype == first.dtype for array in arrays])


cdef bint has_none(list part):
    for value in part:
        if value is None:
            return True
    return False
