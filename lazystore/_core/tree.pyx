"""Plain values to bytes and back: exactly equal, exactly the same types, nothing executed.

A value is a tag byte and what it says: ``N`` None, ``T`` True, ``F`` False, ``i`` i64, ``I`` a longer int (``u32 n``
and n bytes, two's complement), ``f`` f64, ``s`` str (``u32 n`` and UTF-8, lone surrogates too), ``b`` bytes (``u32
n``), ``l`` list, ``t`` tuple, ``d`` dict (``u32 n`` and so many values, or keys and values), ``x`` something that the
caller carries (``u32 n`` and n bytes of its own). Little-endian. Subclasses are not plain: they would not come back.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next, PyDict_SetItem
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsEncodedString, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from lazystore.errors import FormatError

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* n) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

cdef enum:
    MAX_DEPTH = 100         # containers inside each other
    KEYS = 64               # of dicts, remembered while a value is read


cdef class _Writer:
    """Bytes that grow."""

    cdef uint8_t* data
    cdef size_t used, room
    cdef object other

    def __dealloc__(self):
        free(self.data)

    cdef int add(self, const void* data, size_t n) except -1:
        cdef size_t room
        cdef uint8_t* grown
        if self.used + n > self.room:
            room = 2 * self.room + 256
            if room < self.used + n:
                room = self.used + n
            grown = <uint8_t*>realloc(self.data, room)
            if grown == NULL:
                raise MemoryError()
            self.data = grown
            self.room = room
        memcpy(self.data + self.used, data, n)
        self.used += n
        return 0

    cdef int head(self, uint8_t tag, Py_ssize_t n) except -1:
        cdef uint8_t five[5]
        if n > 0xFFFFFFFF:
            raise TypeError(f"{n} bytes or items in one value are too many")
        five[0] = tag
        five[1], five[2], five[3], five[4] = n & 255, (n >> 8) & 255, (n >> 16) & 255, (n >> 24) & 255
        return self.add(five, 5)

    cdef int blob(self, uint8_t tag, bytes data) except -1:
        self.head(tag, PyBytes_GET_SIZE(data))
        return self.add(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))

    cdef int number(self, object value) except -1:
        cdef int overflow = 0
        cdef long long small = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return self.blob(b"I", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        return self.fixed(b"i", &small)

    cdef int fixed(self, uint8_t tag, const void* eight) except -1:
        cdef uint8_t nine[9]
        nine[0] = tag
        memcpy(nine + 1, eight, 8)
        return self.add(nine, 9)

    cdef int text(self, str value) except -1:
        cdef Py_ssize_t n = 0
        cdef const char* ascii
        if not PyUnicode_IS_ASCII(value):  # the other way would leave the str twice as large
            return self.blob(b"s", PyUnicode_AsEncodedString(value, "utf-8", "surrogatepass"))
        ascii = PyUnicode_AsUTF8AndSize(value, &n)
        self.head(b"s", n)
        return self.add(ascii, <size_t>n)

    cdef int put(self, object value, int depth) except -1:
        cdef double real
        cdef Py_ssize_t n, i
        cdef object kind = type(value)
        if kind is str:
            return self.text(value)
        if kind is int:
            return self.number(value)
        if kind is float:
            real = value
            return self.fixed(b"f", &real)
        if value is None:
            return self.add(b"N", 1)
        if kind is bool:
            return self.add(b"T" if value else b"F", 1)
        if kind is bytes:
            return self.blob(b"b", value)
        if kind is not list and kind is not tuple and kind is not dict:
            return self.blob(b"x", self.other(value))
        if depth >= MAX_DEPTH:
            raise TypeError(f"containers more than {MAX_DEPTH} deep, or one inside itself")
        if kind is dict:
            return self.mapping(<dict>value, depth)
        if kind is tuple:
            self.head(b"t", len(<tuple>value))
            for item in <tuple>value:
                self.put(item, depth + 1)
            return 0
        n = len(<list>value)
        self.head(b"l", n)
        for i in range(n):
            if i >= len(<list>value):
                break
            item = (<list>value)[i]
            self.put(item, depth + 1)
        if len(<list>value) != n:  # ``other`` runs anything
            raise TypeError("it holds a list that changed meanwhile")
        return 0

    cdef int mapping(self, dict value, int depth) except -1:
        cdef Py_ssize_t at = 0, n = len(value), left = n
        cdef PyObject *key = NULL
        cdef PyObject *item = NULL
        self.head(b"d", n)
        while PyDict_Next(value, &at, &key, &item) and left:
            left -= 1
            held_key, held = <object>key, <object>item
            self.put(held_key, depth + 1)
            self.put(held, depth + 1)
        if left or len(value) != n:
            raise TypeError("it holds a dict that changed meanwhile")
        return 0


def encode(value, other):
    """The bytes of a value.

    Parameters:
        other: called with each object inside that is not plain; gives bytes, or raises.

    Raises:
        TypeError: containers are nested too deeply, or in a circle.
    """
    cdef _Writer writer = _Writer.__new__(_Writer)
    writer.other = other
    writer.put(value, 0)
    return PyBytes_FromStringAndSize(<char*>writer.data, <Py_ssize_t>writer.used)


cdef class _Reader:
    cdef bytes data
    cdef object other
    cdef list keys
    cdef const uint8_t* at
    cdef const uint8_t* end

    cdef const uint8_t* take(self, size_t n) except NULL:
        cdef const uint8_t* begin = self.at
        if <size_t>(self.end - begin) < n:
            raise FormatError("a stored value ends too early; it is damaged")
        self.at = begin + n
        return begin

    cdef Py_ssize_t count(self) except -1:
        cdef const uint8_t* p = self.take(4)
        cdef Py_ssize_t n = p[0] | <Py_ssize_t>p[1] << 8 | <Py_ssize_t>p[2] << 16 | <Py_ssize_t>p[3] << 24
        if n > self.end - self.at:  # whatever is counted takes a byte or more
            raise FormatError("a stored value says it is longer than it is; it is damaged")
        return n

    cdef bytes blob(self):
        cdef Py_ssize_t n = self.count()
        return PyBytes_FromStringAndSize(<const char*>self.take(<size_t>n), n)

    cdef object key(self, int depth):
        """A key of a dict: rows have the same ones again and again, and share them."""
        cdef const uint8_t* p = self.at
        cdef Py_ssize_t n, length = 0
        cdef const char* old
        cdef uint32_t slot
        if self.end - p < 6 or p[0] != b"s" or p[1] > 32 or p[2] or p[3] or p[4] or self.end - p < 5 + p[1]:
            return self.get(depth)
        n = p[1]
        p += 5
        slot = <uint32_t>(n * 31 + p[0] * 7 + p[n - 1]) & (KEYS - 1) if n else 0
        known = self.keys[slot]
        if known is not None:
            old = PyUnicode_AsUTF8AndSize(known, &length)
            if length == n and not memcmp(old, p, <size_t>n):
                self.at = p + n
                return known
        made = self.get(depth)
        if PyUnicode_IS_ASCII(made):
            self.keys[slot] = made
        return made

    cdef object get(self, int depth):
        cdef int64_t small
        cdef double real
        cdef Py_ssize_t n, _
        cdef uint8_t tag = self.take(1)[0]
        if tag == b"s":
            n = self.count()
            return PyUnicode_DecodeUTF8(<const char*>self.take(<size_t>n), n, "surrogatepass")
        if tag == b"i":
            memcpy(&small, self.take(8), 8)
            return small
        if tag == b"f":
            memcpy(&real, self.take(8), 8)
            return real
        if tag == b"N":
            return None
        if tag == b"T":
            return True
        if tag == b"F":
            return False
        if tag == b"b":
            return self.blob()
        if tag == b"x":
            return self.other(self.blob())
        if tag == b"I":
            return int.from_bytes(self.blob(), "little", signed=True)
        if depth >= MAX_DEPTH:
            raise FormatError("a stored value is nested too deeply; it is damaged")
        if tag == b"d":
            n = self.count()
            found = {}
            for _ in range(n):
                key = self.key(depth + 1)
                PyDict_SetItem(found, key, self.get(depth + 1))
            return found
        if tag != b"l" and tag != b"t":
            raise FormatError(f"a stored value has the unknown tag {tag}; it is damaged, or of a later version")
        n = self.count()
        items = []
        for _ in range(n):
            items.append(self.get(depth + 1))
        return items if tag == b"l" else tuple(items)


def decode(bytes data not None, other):
    """The value of what :func:`encode` made.

    Parameters:
        other: called with the bytes of each object that was not plain.

    Raises:
        FormatError: they are not such bytes.
    """
    cdef _Reader reader = _Reader.__new__(_Reader)
    reader.data = data
    reader.other = other
    reader.keys = [None] * KEYS
    reader.at = <const uint8_t*>PyBytes_AS_STRING(data)
    reader.end = reader.at + PyBytes_GET_SIZE(data)
    try:
        value = reader.get(0)
    except (TypeError, UnicodeDecodeError) as error:
        raise FormatError(f"a stored value cannot be read ({error}); it is damaged") from None
    if reader.at != reader.end:
        raise FormatError("bytes follow a stored value; it is damaged")
    return value
