from cpython.object cimport PyObject
from libc.stdint cimport uint8_t

cdef enum LeafOp:
    OP_STR
    OP_BYTES
    OP_INT
    OP_FLOAT
    OP_BOOL
    OP_NONE_OR_CALL   # the 4-byte pickle of None, or a call
    OP_ARRAY
    OP_NDARRAY
    OP_CALL

ctypedef object (*make_1d_t)(const uint8_t* p, Py_ssize_t nbytes, int index)
ctypedef object (*make_nd_t)(const uint8_t* p, Py_ssize_t nbytes)

cdef struct Leaf:
    LeafOp op
    int index            # OP_ARRAY: numpy dtype index of the format
    PyObject* call       # borrowed from DecodePlan.calls
    PyObject* key        # borrowed from DecodePlan.keys

cdef class DecodePlan:
    cdef Leaf* leaves
    cdef readonly int n_leaves
    cdef readonly bint headless
    cdef bint flat_dict
    cdef bint bare_leaf
    cdef make_1d_t make_1d
    cdef make_nd_t make_nd
    cdef list calls
    cdef tuple keys
    cdef list tree
    cdef readonly tuple names

    cdef _load_arrays(self)
    cdef _check_tree(self)
    cdef object leaf(self, Leaf* leaf, const uint8_t* p, Py_ssize_t n)
    cdef object decode(self, const uint8_t* p, Py_ssize_t n)
    cdef object decode_tree(self, const uint8_t* p, Py_ssize_t n)
    cdef object build(self, list values)
    cdef object assemble(self, list values)
