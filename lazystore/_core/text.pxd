# UTF-8 bytes to str, inlined where items are decoded.

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)

cdef inline bint is_ascii(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Whether no byte of ``n`` (at least 8) has its high bit set: four words a step, the rest by overlapping ones."""
    cdef uint64_t seen = 0
    cdef uint64_t w[4]
    cdef Py_ssize_t i = 0
    while i + 32 <= n:
        memcpy(w, p + i, 32)
        seen |= w[0] | w[1] | w[2] | w[3]
        i += 32
    while i + 8 <= n:
        memcpy(w, p + i, 8)
        seen |= w[0]
        i += 8
    memcpy(w, p + n - 8, 8)
    return ((seen | w[0]) & <uint64_t>0x8080808080808080) == 0


cdef inline object text(const uint8_t* p, Py_ssize_t n):
    """UTF-8 to str. Most text is ASCII, and then one look and one copy are faster than the decoder."""
    if n < 8 or not is_ascii(p, n):
        return PyUnicode_DecodeUTF8(<const char*>p, n, NULL)
    cdef object found = PyUnicode_New(n, 127)
    memcpy(PyUnicode_DATA(found), p, n)
    return found
