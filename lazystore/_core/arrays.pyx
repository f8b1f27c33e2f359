"""Leaf bytes to numpy arrays, through numpy's C API.

Imported (and with it numpy) only when a dataset has array leaves; ``decode`` gets the
functions as capsules. Arrays are writable copies that own their memory.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lazystore._core.offsets cimport load_u32
from lazystore.errors import FormatError

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void* data, cnp.dtype descr, object base)
    unsigned int PyArray_GetNDArrayCFeatureVersion()

cdef enum:
    N_DTYPES = 14        # indexes 0..13 of LitData's numpy table; 14.. are object, S, U, void
    MAX_DIMS = 32
    MAX_PACKED = 63      # what a packed shape header can say

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

# MosaicML's dtype byte to the indexes above, -1 for none.
cdef int packed_index[256]
packed_index[:] = [-1] * 256
for _code, _index in (
    (8, 4), (9, 0), (16, 5), (17, 1), (18, 8), (32, 6), (33, 2), (34, 9), (64, 7), (65, 3), (66, 10)
):
    packed_index[_code] = _index
# numpy 1 counts to 32 dimensions.
cdef int max_packed = MAX_PACKED if PyArray_GetNDArrayCFeatureVersion() >= 0x12 else MAX_DIMS


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
    if nbytes < 8:
        raise FormatError(f"an array leaf of {nbytes} bytes has no header")
    index = load_u32(p)
    ndim = load_u32(p + 4)
    if index >= N_DTYPES:
        raise FormatError(f"array dtype {index} is not one that can be read without unpickling")
    if ndim > MAX_DIMS or nbytes < 8 + 4 * <Py_ssize_t>ndim:
        raise FormatError(f"an array leaf of {nbytes} bytes says it has {ndim} dimensions")
    for k in range(ndim):
        dims[k] = load_u32(p + 8 + 4 * k)
    return shaped(p + 8 + 4 * ndim, nbytes - 8 - 4 * <Py_ssize_t>ndim, index, <int>ndim, dims)


cdef object make_packed(
    const uint8_t* p, Py_ssize_t nbytes, int index, int ndim, const int64_t* shape, Py_ssize_t exact,
):
    """An array from ``[u8 dtype] | [shape header] | C-order data``; what the schema says is not stored.

    Parameters:
        index: numpy dtype as in :func:`make_1d`; -1 if its byte leads.
        ndim, shape: dimensions (checked by the plan); ndim -1 if a header has them. None: a numpy scalar.
        exact: bytes of such an array; -1 where dtype or shape are stored.
    """
    cdef object array
    if exact != nbytes or ndim == 0:
        return unpacked(p, nbytes, index, ndim, shape)
    array = cnp.PyArray_EMPTY(ndim, <cnp.npy_intp*>shape, type_nums[index], 0)
    memcpy(cnp.PyArray_DATA(<cnp.ndarray>array), p, nbytes)
    return array


cdef object unpacked(const uint8_t* p, Py_ssize_t nbytes, int index, int ndim, const int64_t* shape):
    """The same, whatever of it is stored."""
    cdef cnp.npy_intp dims[MAX_PACKED]
    cdef const uint8_t* end = p + nbytes
    cdef int k
    if index < 0:
        if p == end:
            raise FormatError("an array leaf is empty, it has not even a dtype")
        index = packed_index[p[0]]
        if index < 0:
            raise FormatError(f"array dtype code {p[0]} is not one of MosaicML's")
        p += 1
    if ndim == 0:
        return scalar(p, end - p, index)
    if ndim > 0:
        for k in range(ndim):
            dims[k] = shape[k]
    else:
        ndim = packed_shape(p, end - p, dims)
        p += 1 + (ndim << (p[0] & 3))
    return shaped(p, end - p, index, ndim, dims)


cdef int packed_shape(const uint8_t* p, Py_ssize_t nbytes, cnp.npy_intp* dims) except -1:
    """Read a shape header, ``u8 ndim << 2 | k`` and ndim dimensions of 2**k bytes; returns ndim."""
    cdef int ndim, width, k
    cdef uint64_t dim
    if nbytes < 1:
        raise FormatError("an array leaf has no shape")
    ndim = p[0] >> 2
    width = 1 << (p[0] & 3)
    if not 0 < ndim <= max_packed or nbytes - 1 < ndim * width:
        raise FormatError(f"an array leaf says it has {ndim} dimensions (of 1..{max_packed}) in {nbytes} bytes")
    for k in range(ndim):
        dim = 0
        memcpy(&dim, p + 1 + k * width, width)
        if dim > <uint64_t>MAX_EMPTY:
            raise FormatError(f"an array leaf says dimension {k} is {dim} long, in {nbytes} bytes")
        dims[k] = dim
    return ndim


cdef object scalar(const uint8_t* p, Py_ssize_t nbytes, int index):
    """A numpy scalar."""
    cdef uint64_t aligned[2]
    if nbytes != item_sizes[index]:
        raise FormatError(f"a number has {nbytes} bytes instead of {item_sizes[index]}")
    memcpy(aligned, p, nbytes)
    return PyArray_Scalar(aligned, cnp.PyArray_DescrFromType(type_nums[index]), None)


cdef object shaped(const uint8_t* p, Py_ssize_t nbytes, int index, int ndim, cnp.npy_intp* dims):
    """An array of these dimensions (each below 2**63) over a copy of the bytes, which it must fill exactly."""
    # Divide what is there by each dimension instead of multiplying: nothing can overflow.
    cdef unsigned long long left = nbytes // item_sizes[index], total = 1
    cdef bint empty = False
    cdef int k
    for k in range(ndim):
        empty = empty or dims[k] == 0
    if empty:
        left = MAX_EMPTY   # numpy multiplies the other dimensions and refuses what overflows
    for k in range(ndim):
        if not dims[k]:
            continue
        if <unsigned long long>dims[k] > left // total:
            raise FormatError(f"an array's {nbytes} bytes are too short for its dimensions")
        total *= <unsigned long long>dims[k]
    if empty:
        total = 0
    if total * item_sizes[index] != <unsigned long long>nbytes:
        raise FormatError(f"an array's {nbytes} bytes are not the size of its dimensions")
    cdef object array = cnp.PyArray_EMPTY(ndim, dims, type_nums[index], 0)
    if total:
        memcpy(cnp.PyArray_DATA(<cnp.ndarray>array), p, nbytes)
    return array


def capsules():
    """The C functions for ``decode``: (make_1d, make_nd, make_packed)."""
    return (
        PyCapsule_New(<void*>make_1d, "lazystore.make_1d", NULL),
        PyCapsule_New(<void*>make_nd, "lazystore.make_nd", NULL),
        PyCapsule_New(<void*>make_packed, "lazystore.make_packed", NULL),
    )
