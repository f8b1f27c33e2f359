from libc.stdint cimport uint8_t

# The value that the `n` bytes at `p` are, exactly.
cdef object read_value(const uint8_t* p, Py_ssize_t n)
