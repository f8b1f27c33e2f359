"""Self-describing values: nested lists and dicts that no schema's tree describes, decoded in C.

A value is a tag byte and what it says: 0 None, 1 False, 2 True, 3 i64, 4 f64, 5 str (``u32 n | UTF-8[n]``),
6 bytes (``u32 n | bytes[n]``), 7 list (``u32 n`` and n values), 8 dict (``u32 n`` and n times ``u32 m | key[m]``
and a value), 9 u64. Little-endian. The encoding is lazystore's own: images of rows are made with it, no file holds it.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_New, PyDict_SetItem
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_Append
from cpython.long cimport PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from lazystore._core.offsets cimport load_u32
from lazystore._core.text cimport text
from lazystore.errors import FormatError

cdef enum:
    MAX_DEPTH = 64    # containers inside each other

cdef enum Tag:
    TAG_NONE
    TAG_FALSE
    TAG_TRUE
    TAG_INT
    TAG_FLOAT
    TAG_STR
    TAG_BYTES
    TAG_LIST
    TAG_DICT
    TAG_UINT

cdef struct Cursor:
    const uint8_t* p     # next byte
    const uint8_t* end
    int depth            # containers around it


cdef inline const uint8_t* take(Cursor* at, Py_ssize_t n) except NULL:
    """The next ``n`` bytes, which are passed."""
    cdef const uint8_t* p = at.p
    if n > at.end - p:
        raise FormatError(f"a value wants {n} bytes where {at.end - p} are left")
    at.p = p + n
    return p


cdef inline const uint8_t* take_sized(Cursor* at, Py_ssize_t* n) except NULL:
    """The bytes after their own u32 length."""
    n[0] = load_u32(take(at, 4))
    return take(at, n[0])


cdef object read_next(Cursor* at):
    cdef uint8_t tag = take(at, 1)[0]
    cdef int64_t integer
    cdef uint64_t natural
    cdef double real
    cdef Py_ssize_t n = 0
    cdef const uint8_t* p
    if tag == TAG_STR:
        p = take_sized(at, &n)
        return text(p, n)
    if tag == TAG_INT:
        memcpy(&integer, take(at, 8), 8)
        return PyLong_FromLongLong(integer)
    if tag == TAG_FLOAT:
        memcpy(&real, take(at, 8), 8)
        return PyFloat_FromDouble(real)
    if tag == TAG_LIST or tag == TAG_DICT:
        return read_container(at, tag)
    if tag == TAG_BYTES:
        p = take_sized(at, &n)
        return PyBytes_FromStringAndSize(<const char*>p, n)
    if tag == TAG_NONE:
        return None
    if tag == TAG_TRUE:
        return True
    if tag == TAG_FALSE:
        return False
    if tag == TAG_UINT:
        memcpy(&natural, take(at, 8), 8)
        return PyLong_FromUnsignedLongLong(natural)
    raise FormatError(f"a value has the tag {tag}, which says nothing")


cdef object read_container(Cursor* at, uint8_t tag):
    """Containers grow as their values come: what a forged count says is never allocated."""
    cdef Py_ssize_t count = load_u32(take(at, 4)), n = 0
    cdef Py_ssize_t least = 1 if tag == TAG_LIST else 5
    cdef const uint8_t* p
    cdef list values
    cdef dict mapping
    if count > (at.end - at.p) // least:
        raise FormatError(f"a value says it holds {count} others, where {at.end - at.p} bytes are left")
    if at.depth == MAX_DEPTH:
        raise FormatError(f"a value lies deeper than {MAX_DEPTH} containers")
    at.depth += 1
    if tag == TAG_LIST:
        values = []
        while count:
            PyList_Append(values, read_next(at))
            count -= 1
        at.depth -= 1
        return values
    mapping = PyDict_New()
    while count:
        p = take_sized(at, &n)
        key = text(p, n)
        PyDict_SetItem(mapping, key, read_next(at))
        count -= 1
    at.depth -= 1
    return mapping


cdef object read_value(const uint8_t* p, Py_ssize_t n):
    """The value that ``n`` bytes are."""
    cdef Cursor at
    at.p = p
    at.end = p + n
    at.depth = 0
    found = read_next(&at)
    if at.p != at.end:
        raise FormatError(f"a value of {n} bytes ends {at.end - at.p} bytes early")
    return found


def decode_value(const unsigned char[::1] data not None):
    """One value from a buffer. Plans use the C entry instead.

    Raises:
        FormatError: not one value, or deeper than 64 containers.
        UnicodeDecodeError: a text is not UTF-8.
    """
    cdef const uint8_t* p = <const uint8_t*>&data[0] if data.shape[0] else <const uint8_t*>b""
    return read_value(p, data.shape[0])
