from libc.stdint cimport uint32_t, uint8_t

cdef uint32_t crc32c_update(uint32_t value, const uint8_t* data, size_t n) noexcept nogil
