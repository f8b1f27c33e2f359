"""Arrow's buffers, checked and read: cells of columns measured and written as a row's bytes.

A :class:`RowBatch` lays the columns' types (``row_shape``) over the buffers of one record batch; every length, offset
and index in them is checked before it is used. Whole chunks are put together in ``row_image``. What Arrow's
types are called is known in ``lazystore.formats.arrow_rows``.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport (
    INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from lazystore._core.row_shape cimport (
    K_ARRAY, K_BOOL, K_BYTES, K_DICT, K_FLOAT, K_INT, K_LIST, K_NULL, K_RAW, K_STR, K_STRUCT, K_UINT, Node, RowShape,
)
from lazystore.errors import ConfigError, FormatError

cdef int64_t MOST = <int64_t>1 << 46   # elements a buffer may claim: sums of positions stay far from 2**63

# Tags of the self-describing value; see DecodePlan.
cdef enum Tag:
    TAG_NONE = 0
    TAG_FALSE = 1
    TAG_INT = 3
    TAG_FLOAT = 4
    TAG_STR = 5
    TAG_BYTES = 6
    TAG_LIST = 7
    TAG_DICT = 8
    TAG_UINT = 9


cdef inline uint64_t load(const uint8_t* p, int64_t width) noexcept nogil:
    cdef uint8_t one
    cdef uint16_t two
    cdef uint32_t four
    cdef uint64_t eight
    if width == 4:
        memcpy(&four, p, 4)
        return four
    if width == 8:
        memcpy(&eight, p, 8)
        return eight
    if width == 2:
        memcpy(&two, p, 2)
        return two
    memcpy(&one, p, 1)
    return one


cdef inline int64_t load_signed(const uint8_t* p, int64_t width) noexcept nogil:
    if width == 8:
        return <int64_t>load(p, 8)
    if width == 4:
        return <int32_t><uint32_t>load(p, 4)
    if width == 2:
        return <int16_t><uint16_t>load(p, 2)
    return <int8_t><uint8_t>load(p, 1)


cdef inline void store_u32(uint8_t* p, uint32_t value) noexcept nogil:
    memcpy(p, &value, 4)


cdef double half(uint16_t bits) noexcept nogil:
    """IEEE binary16 as a double, by moving its bits into a binary64."""
    cdef uint64_t sign = <uint64_t>(bits >> 15) << 63
    cdef int exponent = (bits >> 10) & 31
    cdef uint64_t fraction = bits & 1023
    cdef uint64_t word
    cdef double value
    if exponent == 0:
        value = <double>fraction * 5.9604644775390625e-08   # 2**-24
        return -value if sign else value
    word = sign | fraction << 42 | (<uint64_t>2047 if exponent == 31 else <uint64_t>(exponent + 1008)) << 52
    memcpy(&value, &word, 8)
    return value


cdef inline double load_float(const uint8_t* p, int64_t width) noexcept nogil:
    cdef double eight
    cdef float four
    if width == 8:
        memcpy(&eight, p, 8)
        return eight
    if width == 4:
        memcpy(&four, p, 4)
        return four
    return half(<uint16_t>load(p, 2))


@cython.final
cdef class RowBatch:
    """Buffers of one record batch under a shape. Holds on to them; they must not change meanwhile.

    Parameters:
        shape: the columns.
        views: ``(offset, length, validity, data, text)`` for each type in the shape, in depth-first order: the number
            of elements to skip, the number of elements, and buffers or None. ``data`` are the numbers, offsets, indices
            or bits. A struct's members start where its own elements do.
        rows: length of every column.

    Raises:
        FormatError: a buffer is shorter than the elements it should hold.

    Threads: immutable, shared freely. Pickling: refused.
    """

    def __cinit__(self, RowShape shape not None, views, int64_t rows):
        cdef int k = 0
        self.shape = shape
        self.rows = rows
        self.views = <View*>calloc(max(shape.n_nodes, 1), sizeof(View))
        self.buffers = <Py_buffer*>calloc(3 * shape.n_nodes + 1, sizeof(Py_buffer))
        if self.views == NULL or self.buffers == NULL:
            raise MemoryError("no memory for a row batch")
        if views is None:
            return  # laid by lay_message()
        if len(views) != shape.n_nodes:
            raise ConfigError(f"{len(views)} arrays for {shape.n_nodes} types")
        for offset, length, valid, data, text in views:
            self.bind(k, offset, length, valid, data, text)
            k += 1
        self.check()

    def __dealloc__(self):
        cdef int k
        for k in range(self.n_buffers):
            PyBuffer_Release(&self.buffers[k])
        free(self.buffers)
        free(self.views)

    cdef bind(self, int k, int64_t offset, int64_t length, valid, data, text):
        """Lay a type over buffers that are held from now on."""
        cdef Node* node = &self.shape.nodes[k]
        cdef View* view = &self.views[k]
        cdef int64_t n = 0, end
        if offset < 0 or length < 0 or offset > MOST or length > MOST:
            raise FormatError(f"{self.place(k)}: {length} elements from the {offset}th on")
        end = offset + length
        view.offset = offset
        view.length = length
        if valid is not None and node.kind != K_NULL:
            view.valid = self.hold(valid, &n)
            if n < (end + 7) // 8:
                raise self.short_error(k, "validity bitmap", n, (end + 7) // 8)
        n = 0
        if data is not None:
            view.data = self.hold(data, &n)
        self.check_data(k, n, end)
        if text is not None:
            view.text = self.hold(text, &view.text_bytes)

    cdef lay(self, int k, int64_t length, int64_t nulls, const int64_t* buffers, int n_buffers, const uint8_t* body):
        """Lay a type over buffers, (begin, bytes) each, that were checked to lie in a body that is held."""
        cdef View* view = &self.views[k]
        if length < 0 or length > MOST:
            raise FormatError(f"{self.place(k)}: {length} elements")
        view.length = length
        if nulls and n_buffers and buffers[1]:
            view.valid = body + buffers[0]
            if buffers[1] < (length + 7) // 8:
                raise self.short_error(k, "validity bitmap", buffers[1], (length + 7) // 8)
        if n_buffers > 1:
            view.data = body + buffers[2]
        self.check_data(k, buffers[3] if n_buffers > 1 else 0, length)
        if n_buffers > 2:
            view.text = body + buffers[4]
            view.text_bytes = buffers[5]

    cdef const uint8_t* hold(self, source, int64_t* n) except? NULL:
        cdef Py_buffer* buffer = &self.buffers[self.n_buffers]
        PyObject_GetBuffer(source, buffer, PyBUF_SIMPLE)
        self.n_buffers += 1
        n[0] = buffer.len
        return <const uint8_t*>buffer.buf

    cdef check_data(self, int k, int64_t n, int64_t end):
        """The data buffer of ``n`` bytes holds ``end`` elements."""
        cdef Node* node = &self.shape.nodes[k]
        cdef int64_t need
        if node.kind in (K_NULL, K_STRUCT, K_ARRAY):
            return
        if node.kind == K_BOOL:
            need = (end + 7) // 8
        elif node.kind == K_RAW and node.width and end > INT64_MAX // node.width:
            need = INT64_MAX
        elif node.kind in (K_STR, K_BYTES, K_LIST):
            need = (end + 1) * node.width if self.views[k].length else 0
        else:
            need = end * node.width
        if n < need:
            raise self.short_error(k, "buffer", n, need)

    cdef check(self):
        """Columns have the batch's length, members that of their struct, arrays enough elements."""
        cdef int k, child
        cdef Node* nodes = self.shape.nodes
        for k in range(self.shape.n_columns):
            child = self.shape.columns[k]
            if self.views[child].length != self.rows:
                raise FormatError(
                    f"{self.place(child)} has {self.views[child].length} rows, the batch has {self.rows}"
                )
        for k in range(self.shape.n_nodes):
            child = k + 1
            if nodes[k].kind == K_STRUCT:
                while child < nodes[k].behind:
                    if self.views[child].length < self.views[k].length:
                        raise FormatError(
                            f"{self.place(child)} has {self.views[child].length} elements, "
                            f"its struct {self.views[k].length}"
                        )
                    child = nodes[child].behind
            elif nodes[k].kind == K_ARRAY and nodes[k].width:
                if self.views[child].length // nodes[k].width < self.views[k].offset + self.views[k].length:
                    raise FormatError(
                        f"{self.place(child)} has {self.views[child].length} elements for "
                        f"{self.views[k].length} lists of {nodes[k].width}"
                    )

    cdef str place(self, int k):
        """The column (and what is inside it) of a node, for messages."""
        cdef int column = 0
        while column + 1 < self.shape.n_columns and self.shape.columns[column + 1] <= k:
            column += 1
        inner = ""
        if self.shape.columns[column] != k:
            inner = f", inside it {self.shape.keep[k][4:].decode(errors='replace')!r}"
        return f"column {self.shape.names[column]!r}{inner}"

    cdef short_error(self, int k, str what, int64_t n, int64_t need):
        return FormatError(f"{self.place(k)}: its {what} has {n} bytes, {need} are needed")

    cdef inline bint is_null(self, int k, int64_t i) noexcept nogil:
        cdef View* view = &self.views[k]
        if view.valid == NULL:
            return self.shape.nodes[k].kind == K_NULL
        i += view.offset
        return not (view.valid[i >> 3] >> (i & 7)) & 1

    cdef inline int resolve(self, int* k, int64_t* i) noexcept nogil:
        """Follow dictionaries to where an element really is: 1, 0 if it is null, or what is wrong."""
        cdef Node* node
        cdef View* view
        cdef uint64_t index
        while True:
            if self.is_null(k[0], i[0]):
                return 0
            node = &self.shape.nodes[k[0]]
            if node.kind != K_DICT:
                return 1
            view = &self.views[k[0]]
            if node.signed:
                index = <uint64_t>load_signed(view.data + (view.offset + i[0]) * node.width, node.width)
            else:
                index = load(view.data + (view.offset + i[0]) * node.width, node.width)
            k[0] += 1
            if index >= <uint64_t>self.views[k[0]].length:
                return W_INDEX
            i[0] = <int64_t>index

    cdef inline int64_t stretch(self, int k, int64_t i, int64_t n, int64_t* begin) noexcept nogil:
        """Where element ``i`` of a list or text lies among ``n``: its first, and how many (or what is wrong)."""
        cdef Node* node = &self.shape.nodes[k]
        cdef const uint8_t* p = self.views[k].data + (self.views[k].offset + i) * node.width
        cdef int64_t end
        begin[0] = load_signed(p, node.width)
        end = load_signed(p + node.width, node.width)
        if begin[0] < 0 or end < begin[0] or end > n:
            return W_OFFSETS
        return end - begin[0]

    cdef int64_t children(self, int k, int64_t i, int64_t* begin) noexcept nogil:
        """The elements of a list: first and number, or what is wrong."""
        if self.shape.nodes[k].kind == K_LIST:
            return self.stretch(k, i, self.views[k + 1].length, begin)
        begin[0] = (self.views[k].offset + i) * self.shape.nodes[k].width
        return self.shape.nodes[k].width

    cdef int64_t value_size(self, int k, int64_t i, int64_t* room) noexcept nogil:
        """Bytes of the self-describing value of an element; what is wrong if negative. Counts down ``room``, so that
        neither small nor nested data can ask for more work than the image is allowed bytes."""
        cdef int state = self.resolve(&k, &i)
        cdef Node* node = &self.shape.nodes[k]
        cdef int64_t size = 1, n, begin = 0, j, inner
        cdef int child
        if state < 0:
            return state
        room[0] -= 1
        if room[0] < 0:
            return W_ROOM
        if not state or node.kind == K_BOOL:
            return 1
        if node.kind in (K_INT, K_UINT, K_FLOAT):
            return 9
        if node.kind in (K_STR, K_BYTES, K_RAW):
            n = node.width if node.kind == K_RAW else self.stretch(k, i, self.views[k].text_bytes, &begin)
            if n < 0:
                return n
            room[0] -= n
            return W_ROOM if room[0] < 0 else 5 + n
        size = 5
        if node.kind == K_STRUCT:
            child = k + 1
            while child < node.behind:
                room[0] -= self.shape.nodes[child].key_bytes
                inner = self.value_size(child, i, room)
                if inner < 0:
                    return inner
                size += self.shape.nodes[child].key_bytes + inner
                child = self.shape.nodes[child].behind
            return size
        n = self.children(k, i, &begin)
        if n < 0:
            return n
        for j in range(n):
            inner = self.value_size(k + 1, begin + j, room)
            if inner < 0:
                return inner
            size += inner
        return size

    cdef uint8_t* put_value(self, int k, int64_t i, uint8_t* p) noexcept nogil:
        """Write what :meth:`value_size` measured and checked; the end of it."""
        cdef int state = self.resolve(&k, &i)
        cdef Node* node = &self.shape.nodes[k]
        cdef View* view = &self.views[k]
        cdef int64_t n, begin = 0, j
        cdef uint8_t* count
        cdef int child
        if not state:
            p[0] = TAG_NONE
            return p + 1
        if node.kind == K_BOOL:
            i += view.offset
            p[0] = TAG_FALSE + ((view.data[i >> 3] >> (i & 7)) & 1)
            return p + 1
        if node.kind in (K_INT, K_UINT, K_FLOAT):
            return self.put_number(k, i, p)
        if node.kind in (K_STR, K_BYTES, K_RAW):
            p[0] = TAG_STR if node.kind == K_STR else TAG_BYTES
            n = self.put_text(k, i, p + 5)
            store_u32(p + 1, <uint32_t>n)
            return p + 5 + n
        if node.kind == K_STRUCT:
            p[0] = TAG_DICT
            n = 0
            child = k + 1
            count = p + 1
            p += 5
            while child < node.behind:
                memcpy(p, self.shape.nodes[child].key, self.shape.nodes[child].key_bytes)
                p = self.put_value(child, i, p + self.shape.nodes[child].key_bytes)
                child = self.shape.nodes[child].behind
                n += 1
            store_u32(count, <uint32_t>n)
            return p
        n = self.children(k, i, &begin)
        p[0] = TAG_LIST
        store_u32(p + 1, <uint32_t>n)
        p += 5
        for j in range(n):
            p = self.put_value(k + 1, begin + j, p)
        return p

    cdef inline uint8_t* put_number(self, int k, int64_t i, uint8_t* p) noexcept nogil:
        """A tagged number."""
        cdef View* view = &self.views[k]
        cdef int64_t width = self.shape.nodes[k].width
        cdef const uint8_t* at = view.data + (view.offset + i) * width
        cdef uint64_t word
        cdef double real
        if self.shape.nodes[k].kind == K_FLOAT:
            real = load_float(at, width)
            p[0] = TAG_FLOAT
            memcpy(p + 1, &real, 8)
            return p + 9
        if self.shape.nodes[k].kind == K_INT:
            word = <uint64_t>load_signed(at, width)
            p[0] = TAG_INT
        else:
            word = load(at, width)
            p[0] = TAG_UINT if word >> 63 else TAG_INT
        memcpy(p + 1, &word, 8)
        return p + 9

    cdef inline int64_t put_text(self, int k, int64_t i, uint8_t* p) noexcept nogil:
        """Bytes of a text or of a fixed cell; how many."""
        cdef View* view = &self.views[k]
        cdef int64_t begin = 0, n
        if self.shape.nodes[k].kind == K_RAW:
            n = self.shape.nodes[k].width
            memcpy(p, view.data + (view.offset + i) * n, n)
            return n
        n = self.stretch(k, i, view.text_bytes, &begin)
        memcpy(p, view.text + begin, n)
        return n

    cdef inline int64_t cell_size(self, int k, int64_t i, bint value, int64_t* room) noexcept nogil:
        """Bytes of a column's cell, -1 for null, or what is wrong."""
        cdef int state
        cdef int64_t begin = 0
        cdef Node* node
        if self.shape.nodes[k].kind == K_DICT or self.views[k].valid != NULL or self.shape.nodes[k].kind == K_NULL:
            state = self.resolve(&k, &i)
            if state <= 0:
                return state if state else -1
        node = &self.shape.nodes[k]
        if value:
            return self.value_size(k, i, room)
        if node.kind in (K_STR, K_BYTES):
            return self.stretch(k, i, self.views[k].text_bytes, &begin)
        if node.kind == K_BOOL:
            return 1
        if node.kind == K_RAW:
            return node.width
        if node.kind == K_UINT and node.width == 8:
            if load(self.views[k].data + (self.views[k].offset + i) * 8, 8) >> 63:
                return W_BIG
        return 8

    cdef inline int64_t put_cell(self, int k, int64_t i, bint value, uint8_t* p) noexcept nogil:
        """Write a cell; its bytes, -1 for null."""
        cdef View* view
        cdef Node* node
        cdef const uint8_t* at
        cdef int64_t integer
        cdef double real
        if self.shape.nodes[k].kind == K_DICT or self.views[k].valid != NULL or self.shape.nodes[k].kind == K_NULL:
            if not self.resolve(&k, &i):
                return -1
        if value:
            return self.put_value(k, i, p) - p
        node = &self.shape.nodes[k]
        view = &self.views[k]
        if node.kind in (K_STR, K_BYTES, K_RAW):
            return self.put_text(k, i, p)
        if node.kind == K_BOOL:
            i += view.offset
            p[0] = (view.data[i >> 3] >> (i & 7)) & 1
            return 1
        at = view.data + (view.offset + i) * node.width
        if node.kind == K_FLOAT:
            real = load_float(at, node.width)
            memcpy(p, &real, 8)
        else:
            integer = load_signed(at, node.width) if node.kind == K_INT else <int64_t>load(at, node.width)
            memcpy(p, &integer, 8)
        return 8

    cdef int64_t measure(
        self, int column, int64_t first, int64_t count, int64_t* sizes, int64_t limit, int64_t* room, int64_t* bad
    ) noexcept nogil:
        """Add the cells of a column to the sizes of their rows; 0, or what is wrong and in which row."""
        cdef int k = self.shape.columns[column]
        cdef bint value = self.shape.values[column]
        cdef bint loose = self.shape.loose
        cdef int64_t key = self.shape.nodes[k].key_bytes
        cdef int64_t r, size, begin = 0
        cdef bint plain = not loose and not value and self.views[k].valid == NULL
        if plain and self.shape.nodes[k].kind in (K_INT, K_FLOAT):
            for r in range(count):
                sizes[r] += 8
            return 0
        plain = plain and self.shape.nodes[k].kind in (K_STR, K_BYTES)
        for r in range(count):
            if plain:
                size = self.stretch(k, first + r, self.views[k].text_bytes, &begin)
            elif loose:
                size = self.value_size(k, first + r, room)
            else:
                size = self.cell_size(k, first + r, value, room)
            if size < -1:
                bad[0] = r
                return size
            if loose:
                size += key
            if size > 0:
                sizes[r] += size
                # A dictionary may hold one long text and be pointed at by every row.
                if sizes[r] > limit:
                    bad[0] = r
                    return W_ROOM
        return 0

    cdef void write(
        self, int column, int64_t first, int64_t count, int64_t* ends, uint8_t* p, const uint8_t* table
    ) noexcept nogil:
        """Put the cells of a column where their rows end so far; ``table`` has the rows' offsets."""
        cdef int k = self.shape.columns[column]
        cdef Node* node = &self.shape.nodes[k]
        cdef bint value = self.shape.values[column]
        cdef int64_t r, size
        if self.shape.loose:
            for r in range(count):
                memcpy(p + ends[r], node.key, node.key_bytes)
                ends[r] = self.put_value(k, first + r, p + ends[r] + node.key_bytes) - p
            return
        cdef bint plain = not value and self.views[k].valid == NULL and node.kind in (K_STR, K_BYTES)
        for r in range(count):
            if plain:
                size = self.put_text(k, first + r, p + ends[r])
            else:
                size = self.put_cell(k, first + r, value, p + ends[r])
            store_u32(p + load(table + 4 * r, 4) + 4 * column, <uint32_t>size)
            if size > 0:
                ends[r] += size

    def __reduce__(self):
        raise TypeError("a RowBatch holds buffers and cannot be pickled")
