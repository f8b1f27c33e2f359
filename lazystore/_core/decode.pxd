from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t

from lazystore._core.offsets cimport load_u32

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
    OP_VALUE
    OP_PACKED_ARRAY

ctypedef object (*make_1d_t)(const uint8_t* p, Py_ssize_t nbytes, int index)
ctypedef object (*make_packed_t)(
    const uint8_t* p, Py_ssize_t nbytes, int index, int ndim, const int64_t* shape, Py_ssize_t exact,
)
ctypedef object (*make_nd_t)(const uint8_t* p, Py_ssize_t nbytes)

cdef struct Leaf:
    LeafOp op
    bint nullable
    Py_ssize_t fixed     # bytes of a leaf whose size is not stored, else -1
    int index            # OP_ARRAY, OP_PACKED_ARRAY: numpy dtype index, -1: stored
    int ndim             # OP_PACKED_ARRAY: dimensions, -1: stored
    const int64_t* dims  # in DecodePlan.held
    Py_ssize_t exact     # OP_PACKED_ARRAY: bytes, if dtype and shape are known, else -1
    PyObject* call       # borrowed from DecodePlan.held
    PyObject* key        # borrowed from DecodePlan.keys

cdef enum:
    NULL_SIZE = 0xFFFFFFFF     # the size of a leaf that is None
    LOOSE_MARK = 0xFFFFFFFE    # in place of the first size: the rest of the item is one self-describing value

cdef inline Py_ssize_t next_size(const Leaf* leaf, const uint8_t** sizes) noexcept nogil:
    """Bytes of the next leaf, -1 for None; the sizes that are stored are passed one by one."""
    cdef uint32_t size
    if leaf.fixed >= 0:
        return leaf.fixed
    size = load_u32(sizes[0])
    sizes[0] += 4
    return -1 if size == <uint32_t>NULL_SIZE and leaf.nullable else <Py_ssize_t>size

cdef class DecodePlan:
    cdef Leaf* leaves
    cdef readonly Py_ssize_t head    # bytes of the stored sizes
    cdef readonly int n_leaves
    cdef readonly bint headless
    cdef bint flat_dict
    cdef readonly bint loose         # items may be self-describing instead
    cdef bint direct                 # a flat dict, nothing to open, and never loose
    cdef bint bare_leaf
    cdef make_1d_t make_1d
    cdef make_nd_t make_nd
    cdef make_packed_t make_packed
    cdef object opener
    cdef list held                   # what leaves point to
    cdef tuple keys
    cdef list tree
    cdef readonly tuple names

    cdef _load_leaf(self, int k, spec)
    cdef _load_flags(self, int k, dict flags)
    cdef _load_packed(self, int k, argument)
    cdef _load_arrays(self)
    cdef _check_tree(self)
    cdef object leaf(self, Leaf* leaf, const uint8_t* p, Py_ssize_t n)
    cdef object decode(self, const uint8_t* p, Py_ssize_t n)
    cdef bytes open_item(self, bytes stored)
    cdef object decode_opened(self, bytes opened)
    cdef bint is_loose(self, const uint8_t* p, Py_ssize_t n) noexcept nogil
    cdef object decode_item(self, const uint8_t* p, Py_ssize_t n)
    cdef object decode_flat(self, const uint8_t* p, Py_ssize_t n)
    cdef object decode_tree(self, const uint8_t* p, Py_ssize_t n)
    cdef object build(self, list values)
    cdef object assemble(self, list values)
