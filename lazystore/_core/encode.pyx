"""Writing in C: flat dicts to item bytes, and the items of the chunk that is being filled.

An item is ``u32 size[n] | leaf 0 | leaf 1 | ...``. Whatever is not plain (a key that is not there, a value of
another type, an item that is large) is left to the caller's own way, which encodes it or says what is wrong.

Which encodings there are is decided in ``lazystore.formats.leaf_encodings``, what becomes of a full chunk in
``lazystore.formats.packing``.
"""

from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8String
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from lazystore.errors import ConfigError, ItemIndexError

cdef extern from "Python.h":
    int PyBuffer_FillInfo(Py_buffer* view, object exporter, void* p, Py_ssize_t n, int readonly, int flags) except -1
    PyObject* PyDict_GetItemWithError(object mapping, object key) except? NULL
    bint PyLong_CheckExact(object value)
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    bint PyUnicode_CheckExact(object value)
    bint PyUnicode_IS_COMPACT_ASCII(object value)
    void* PyUnicode_DATA(object value)
    Py_ssize_t PyUnicode_GET_LENGTH(object value)

cdef enum:
    ROOM = 65536     # longest item made here; larger ones gain nothing
    MAX_LEAVES = 1024

cdef enum Kind:
    KIND_STR
    KIND_BYTES
    KIND_INT
    KIND_FLOAT
    KIND_BOOL
    KIND_CALL

_KINDS = {"str": KIND_STR, "bytes": KIND_BYTES, "int": KIND_INT, "float": KIND_FLOAT, "bool": KIND_BOOL}


cdef inline void store_u32(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>value
    p[1] = <uint8_t>(value >> 8)
    p[2] = <uint8_t>(value >> 16)
    p[3] = <uint8_t>(value >> 24)


cdef inline void store_u64(uint8_t* p, uint64_t value) noexcept nogil:
    store_u32(p, <uint32_t>value)
    store_u32(p + 4, <uint32_t>(value >> 32))


cdef class FlatEncoder:
    """Item bytes of flat dicts with known keys.

    Parameters:
        keys: one a leaf, in stored order.
        kinds: for each "str", "bytes", "int" (i64), "float" (f64), "bool", or a function of the value that gives
            the leaf's bytes (what it raises passes through).

    Raises:
        ConfigError: not one kind a key, or more than 1024 of them, or none.

    Threads: one at a time (a function may let others run). Fork: copied. Pickling: refused; it is made anew.
    """

    cdef tuple keys
    cdef tuple functions
    cdef int n
    cdef int kinds[MAX_LEAVES]
    cdef uint8_t buffer[ROOM]
    cdef bint busy

    def __cinit__(self, keys, kinds):
        cdef list functions = []
        cdef int k
        self.keys = tuple(keys)
        found = tuple(kinds)
        if len(self.keys) != len(found) or not 0 < len(found) <= MAX_LEAVES:
            raise ConfigError(f"{len(self.keys)} keys with {len(found)} kinds; there must be one each, and 1 to 1024")
        self.n = len(found)
        for k in range(self.n):
            kind = found[k]
            if not callable(kind) and kind not in _KINDS:
                raise ConfigError(f"kind {kind!r} is neither a function nor one of {', '.join(_KINDS)}")
            self.kinds[k] = KIND_CALL if callable(kind) else _KINDS[kind]
            functions.append(kind if callable(kind) else None)
        self.functions = tuple(functions)

    def __call__(self, sample):
        """The item's bytes; None where the sample is not a plain one, or its item longer than 64 KiB.

        Cost: one lookup and one copy a leaf, one more copy of the item.
        """
        cdef Py_ssize_t size = self.encode(sample)
        return None if size < 0 else PyBytes_FromStringAndSize(<const char*>self.buffer, size)

    cdef Py_ssize_t encode(self, object sample) except -2:
        """The item's bytes in ``buffer``; their number, or -1 where the sample is not a plain one."""
        if not PyDict_CheckExact(sample) or PyDict_Size(sample) != self.n or self.busy:
            return -1
        self.busy = True
        try:
            return self.put_all(<dict>sample)
        finally:
            self.busy = False

    cdef Py_ssize_t put_all(self, dict sample) except -2:
        cdef Py_ssize_t at = 4 * self.n, size
        cdef PyObject* found
        cdef int k
        for k in range(self.n):
            found = PyDict_GetItemWithError(sample, self.keys[k])
            if found == NULL:
                return -1
            size = self.put(k, <object>found, at)
            if size < 0:
                return -1
            store_u32(self.buffer + 4 * k, <uint32_t>size)
            at += size
        return at

    cdef Py_ssize_t put(self, int k, object value, Py_ssize_t at) except -2:
        """Copy one leaf to ``buffer[at:]`` and return its length; -1 where it is not plain or has no room."""
        cdef int kind = self.kinds[k], overflow = 0
        cdef long long integer
        cdef double real
        cdef object data = value
        if kind == KIND_STR:
            if not PyUnicode_CheckExact(value):
                return -1
            if PyUnicode_IS_COMPACT_ASCII(value):
                return self.copy(<const uint8_t*>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value), at)
            try:
                data = PyUnicode_AsUTF8String(value)
            except UnicodeEncodeError:
                return -1
        elif kind == KIND_CALL:
            data = self.functions[k](value)
        elif kind != KIND_BYTES:
            if at + 8 > ROOM:
                return -1
            if kind == KIND_INT:
                if not PyLong_CheckExact(value):
                    return -1
                integer = PyLong_AsLongLongAndOverflow(value, &overflow)
                if overflow:
                    return -1
                store_u64(self.buffer + at, <uint64_t>integer)
                return 8
            if kind == KIND_FLOAT:
                if not PyFloat_CheckExact(value):
                    return -1
                real = PyFloat_AS_DOUBLE(value)
                memcpy(&integer, &real, 8)
                store_u64(self.buffer + at, <uint64_t>integer)
                return 8
            if not PyBool_Check(value):
                return -1
            self.buffer[at] = 1 if value is True else 0
            return 1
        if not PyBytes_CheckExact(data):
            return -1
        return self.copy(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), at)

    cdef inline Py_ssize_t copy(self, const uint8_t* p, Py_ssize_t size, Py_ssize_t at) noexcept:
        if size > ROOM - at:
            return -1
        memcpy(self.buffer + at, p, size)
        return size

    def __reduce__(self):
        raise TypeError("a FlatEncoder cannot be pickled; make it anew from keys and kinds")

    def __repr__(self):
        return f"<FlatEncoder of {self.n} leaves>"


cdef class ItemBuffer:
    """The items of a chunk end to end, until the limits of a chunk are reached.

    Its bytes are those of the items: read them through the buffer protocol (read-only; while a view is held, items
    can neither be added nor cleared away).

    Parameters:
        max_bytes: bytes of the items.
        max_count: what is counted: items, or tokens.
        max_packed: bytes of the chunk made of them, at most 2**32 - 1. Each item brings its own number, 8 are there
            from the start.

    The limits close a chunk *before* the item that would pass them; a single item may be larger than the first two.

    Attributes:
        nbytes: bytes of the items.
        counted: items, or tokens.

    Memory: the items and 4 bytes each; kept for the next chunk, up to twice ``max_bytes``. Threads: one at a time.
    Fork: copied. Pickling: refused.
    """

    cdef uint8_t* bytes
    cdef uint32_t* ends
    cdef Py_ssize_t room, room_ends, n, exports
    cdef readonly uint64_t nbytes
    cdef readonly uint64_t counted
    cdef uint64_t packed
    cdef uint64_t max_bytes, max_count, max_packed

    def __cinit__(self, *, uint64_t max_bytes, uint64_t max_count, uint64_t max_packed):
        if max_packed > 0xFFFFFFFF:
            raise ConfigError(f"max_packed={max_packed} is beyond the 4 GiB that offsets reach")
        self.max_bytes = max_bytes
        self.max_count = max_count
        self.max_packed = max_packed
        self.packed = 8

    def __dealloc__(self):
        free(self.bytes)
        free(self.ends)

    def __len__(self):
        return self.n

    def add(self, const unsigned char[::1] item not None, *, uint64_t count=1, uint64_t packed=0):
        """Append an item; False where it does not fit any more and there are others.

        Parameters:
            count: what it counts for.
            packed: bytes it takes in a chunk, its offset included; 0: its own and 4.

        Raises:
            ConfigError: it does not fit in a chunk at all.
        """
        cdef uint64_t size = item.shape[0]
        return self.append(&item[0] if size else NULL, size, count, packed if packed else size + 4)

    def add_flat(self, FlatEncoder encoder not None, sample):
        """Encode and append a flat dict: 1; 0 where it does not fit any more; -1 where it is not a plain one."""
        cdef Py_ssize_t size = encoder.encode(sample)
        if size < 0:
            return -1
        return 1 if self.append(encoder.buffer, size, 1, <uint64_t>size + 4) else 0

    cdef bint append(self, const uint8_t* p, uint64_t size, uint64_t count, uint64_t packed) except -1:
        if packed < size or packed > self.max_packed - 8:
            raise ConfigError(f"an item of {size} bytes that takes {packed} in a chunk of {self.max_packed}")
        if self.n and (
            self.nbytes + size > self.max_bytes
            or self.counted + count > self.max_count
            or self.packed + packed > self.max_packed
        ):
            return False
        if self.exports:
            raise BufferError("the items are being read; release the views first")
        self.reserve(self.nbytes + size)
        if size:
            memcpy(self.bytes + self.nbytes, p, size)
        self.nbytes += size
        self.counted += count
        self.packed += packed
        self.ends[self.n] = <uint32_t>self.nbytes
        self.n += 1
        return True

    cdef int reserve(self, uint64_t needed) except -1:
        """Room for that many bytes and one more item."""
        cdef Py_ssize_t room
        cdef void* found
        if needed > <uint64_t>self.room:
            room = max(<Py_ssize_t>needed, self.room + self.room // 2, ROOM)
            found = realloc(self.bytes, room)
            if found == NULL:
                raise MemoryError(f"no memory for the {room} bytes of a chunk's items")
            self.bytes = <uint8_t*>found
            self.room = room
        if self.n == self.room_ends:
            room = max(self.room_ends + self.room_ends // 2, 1024)
            found = realloc(self.ends, room * sizeof(uint32_t))
            if found == NULL:
                raise MemoryError(f"no memory for the offsets of {room} items")
            self.ends = <uint32_t*>found
            self.room_ends = room
        return 0

    def offsets(self, uint64_t first=0):
        """Where each item begins, and the last one ends, as u32 (little-endian), the first one at ``first``.

        Raises:
            ConfigError: offsets beyond 4 GiB.
        """
        cdef Py_ssize_t k
        if self.nbytes + first > 0xFFFFFFFF:
            raise ConfigError(f"offsets up to {self.nbytes + first} do not fit in 32 bits")
        cdef bytes table = PyBytes_FromStringAndSize(NULL, 4 * (self.n + 1))
        cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(table)
        store_u32(p, <uint32_t>first)
        for k in range(self.n):
            store_u32(p + 4 * (k + 1), <uint32_t>(self.ends[k] + first))
        return table

    def span(self, Py_ssize_t first, Py_ssize_t last):
        """``(begin, end)`` in bytes of items ``first .. last - 1``.

        Raises:
            ItemIndexError: there are no such items.
        """
        if not 0 <= first <= last <= self.n:
            raise ItemIndexError(f"items {first} to {last} are not in 0..{self.n}")
        return (self.ends[first - 1] if first else 0), (self.ends[last - 1] if last else 0)

    def clear(self):
        """Forget the items, for the next chunk's."""
        if self.exports:
            raise BufferError("the items are being read; release the views first")
        self.n = 0
        self.nbytes = self.counted = 0
        self.packed = 8
        if <uint64_t>self.room > 2 * self.max_bytes and self.room > 4 * ROOM:
            free(self.bytes)  # an item beyond all measure was here
            self.bytes = NULL
            self.room = 0

    def __getbuffer__(self, Py_buffer* view, int flags):
        # a place even when there is none, as views of nothing have one
        PyBuffer_FillInfo(view, self, self.bytes if self.bytes != NULL else <uint8_t*>&self.n, self.nbytes, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    def __reduce__(self):
        raise TypeError("an ItemBuffer cannot be pickled")

    def __repr__(self):
        return f"<ItemBuffer of {self.n} items, {self.nbytes} bytes>"
