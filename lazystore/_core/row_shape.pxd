from libc.stdint cimport int64_t, uint8_t

cdef enum Kind:
    K_NULL
    K_BOOL       # a bitmap
    K_INT
    K_UINT
    K_FLOAT
    K_STR        # offsets and UTF-8
    K_BYTES      # offsets and bytes
    K_RAW        # cells of a fixed number of bytes
    K_LIST       # offsets into the child
    K_ARRAY      # a fixed number of the child's elements
    K_STRUCT     # one child a member
    K_DICT       # indices into the child

cdef struct Node:
    Kind kind
    int64_t width        # bytes of a number, cell, offset or index; elements of a K_ARRAY
    int behind           # number of the first node after this one's subtree
    bint signed          # indices of a K_DICT
    const uint8_t* key   # a member's or column's name as ``u32 length | UTF-8``
    int64_t key_bytes

cdef class RowShape:
    cdef Node* nodes
    cdef int* columns          # node of each column
    cdef uint8_t* values       # whether its form is "value"
    cdef int n_nodes, n_columns
    cdef list keep             # the bytes of all keys
    cdef readonly bint loose
    cdef readonly tuple names

    cdef add(self, list found, name, type_, int depth)
    cdef fill(self, list found)
