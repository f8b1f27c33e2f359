# Little-endian loads and offset-table checks shared by the core. Loads go through memcpy:
# table bytes may start at any address.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef inline uint32_t load_u32(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value

cdef inline uint64_t load_u64(const uint8_t* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value

cdef inline uint64_t load_offset(const uint8_t* p, int width) noexcept nogil:
    return load_u32(p) if width == 4 else load_u64(p)

cdef inline Py_ssize_t first_bad_offset(
    const uint8_t* p, Py_ssize_t count, int width, uint64_t lowest, uint64_t highest
) noexcept nogil:
    """Index of the first entry below its predecessor (``lowest`` for the first) or above ``highest``; -1 if none."""
    cdef Py_ssize_t i
    cdef uint64_t value
    for i in range(count):
        value = load_offset(p + i * width, width)
        if value < lowest or value > highest:
            return i
        lowest = value
    return -1
