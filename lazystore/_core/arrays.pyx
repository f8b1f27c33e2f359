"""Leaf bytes to numpy arrays, through numpy's C API.

Imported (and with it numpy) only when a dataset has array leaves; ``decode`` gets the
two functions as capsules. Arrays are writable copies that own their memory.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from lazystore._core.offsets cimport load_u32
from lazystore.errors import FormatError

cnp.import_array()

cdef enum:
    N_DTYPES = 14        # indexes 0..13 of LitData's numpy table; 14.. are object, S, U, void
    MAX_DIMS = 32

# Largest product of the other dimensions of an array without elements.
cdef unsigned long long MAX_EMPTY = 1 << 48

cdef int type_nums[14]
type_nums[:] = [
    cnp.NPY_INT8, cnp.NPY_INT16, cnp.NPY_INT32, cnp.NPY_INT64,
    cnp.NPY_UINT8, cnp.NPY_UINT16, cnp.NPY_UINT32, cnp.NPY_UINT64,
    cnp.NPY_FLOAT16, cnp.NPY_FLOAT32, cnp.NPY_FLOAT64,
    cnp.NPY_COMPLEX64, cnp.NPY_COMPLEX128, cnp.NPY_BOOL,
]
cdef int item_sizes[14]
item_sizes[:] = [1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8, 16, 1]


cdef object make_1d(const uint8_t* p, Py_ssize_t nbytes, int index):
    """A 1-D array of LitData's numpy dtype ``index`` (checked by the plan) over a copy of the bytes."""
    cdef cnp.npy_intp n = nbytes // item_sizes[index]
    if n * item_sizes[index] != nbytes:
        raise FormatError(f"{nbytes} bytes are not a whole number of {item_sizes[index]}-byte elements")
    cdef object array = cnp.PyArray_EMPTY(1, &n, type_nums[index], 0)
    memcpy(cnp.PyArray_DATA(<cnp.ndarray>array), p, nbytes)
    return array


cdef object make_nd(const uint8_t* p, Py_ssize_t nbytes):
    """An n-D array from ``u32 dtype | u32 ndim | u32 dims[ndim] | C-order data``."""
    cdef uint32_t index, ndim, k
    cdef cnp.npy_intp dims[MAX_DIMS]
    cdef unsigned long long left
    if nbytes < 8:
        raise FormatError(f"an array leaf of {nbytes} bytes has no header")
    index = load_u32(p)
    ndim = load_u32(p + 4)
    if index >= N_DTYPES:
        raise FormatError(f"array dtype {index} is not one that can be read without unpickling")
    if ndim > MAX_DIMS or nbytes < 8 + 4 * <Py_ssize_t>ndim:
        raise FormatError(f"an array leaf of {nbytes} bytes says it has {ndim} dimensions")
    # Divide what is there by each dimension instead of multiplying: nothing can overflow.
    left = (nbytes - 8 - 4 * <Py_ssize_t>ndim) // item_sizes[index]
    cdef bint empty = False
    for k in range(ndim):
        dims[k] = load_u32(p + 8 + 4 * k)
        empty = empty or dims[k] == 0
    cdef unsigned long long total = 1
    if empty:
        left = MAX_EMPTY   # numpy multiplies the other dimensions and refuses what overflows
    for k in range(ndim):
        if not dims[k]:
            continue
        if <unsigned long long>dims[k] > left // total:
            raise FormatError(f"an array leaf of {nbytes} bytes is too short for its dimensions")
        total *= <unsigned long long>dims[k]
    if empty:
        total = 0
    if total * item_sizes[index] != <unsigned long long>(nbytes - 8 - 4 * <Py_ssize_t>ndim):
        raise FormatError(f"an array leaf of {nbytes} bytes does not have the size of its dimensions")
    cdef object array = cnp.PyArray_EMPTY(<int>ndim, dims, type_nums[index], 0)
    if total:
        memcpy(cnp.PyArray_DATA(<cnp.ndarray>array), p + 8 + 4 * ndim, total * item_sizes[index])
    return array


def capsules():
    """The C functions for ``decode``: (make_1d, make_nd)."""
    return (
        PyCapsule_New(<void*>make_1d, "lazystore.make_1d", NULL),
        PyCapsule_New(<void*>make_nd, "lazystore.make_nd", NULL),
    )
