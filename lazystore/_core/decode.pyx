"""The decode plan: a dataset's schema compiled once, then one C call an item.

An item is ``u32 size[n] | leaf 0 | leaf 1 | ...`` (or one bare leaf, *headless*); leaves of a fixed
length have no size. Leaves become Python objects here; those that need Python code (media, user serializers,
pickles) are called back with their bytes. The tree of containers is a small postfix program;
the commonest one, a flat dict, has its own loop.

What the tags of a format mean is decided in ``lazystore.formats.leaves``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_New, PyDict_SetItem
from cpython.float cimport PyFloat_FromDouble
from cpython.long cimport PyLong_FromLongLong
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

import operator
import struct
import sys
from math import prod

from lazystore._core.text cimport text
from lazystore._core.values cimport read_value
from lazystore.errors import ConfigError, FormatError

_OPS = {
    "str": OP_STR,
    "bytes": OP_BYTES,
    "int": OP_INT,
    "float": OP_FLOAT,
    "bool": OP_BOOL,
    "none_or_call": OP_NONE_OR_CALL,
    "array": OP_ARRAY,
    "ndarray": OP_NDARRAY,
    "call": OP_CALL,
    "value": OP_VALUE,
    "packed_array": OP_PACKED_ARRAY,
}
# Index into LitData's numpy table, and bytes an element, of the dtypes that packed arrays have.
_PACKED_DTYPES = {
    "": (-1, 0), "uint8": (4, 1), "int8": (0, 1), "uint16": (5, 2), "int16": (1, 2), "float16": (8, 2),
    "uint32": (6, 4), "int32": (2, 4), "float32": (9, 4), "uint64": (7, 8), "int64": (3, 8), "float64": (10, 8),
}
_FLAGS = {"fixed", "nullable"}
_STEP_LENGTHS = {"dict": 2, "list": 2, "tuple": 2, "call": 3}


cdef class DecodePlan:
    """A compiled schema.

    Parameters:
        leaves: one ``(op, argument)`` or ``(op, argument, flags)`` a leaf, in stored order. ``op`` is one of

            - str, bytes, int (i64), float (f64), bool;
            - array (argument: dtype index of LitData's numpy table, 1-D), ndarray (self-describing);
            - packed_array (argument: ``(dtype, shape)``; MosaicML's arrays ``[u8 dtype] | [shape header] | data``.
              The dtype is a name such as "float32", or "" if its byte is stored; the shape a tuple, or None if its
              header is stored. Shape ``()`` gives numpy scalars);
            - value (self-describing, see ``values``);
            - call (argument: function of the leaf's bytes) and none_or_call (the same, but None's pickle is None).

            ``flags`` is a dict: ``{"fixed": nbytes}`` for a leaf that always has that many bytes and whose size is
            not stored, ``{"nullable": True}`` for one that is None, and no bytes, where its size is 0xFFFFFFFF.
        tree: postfix program over the leaves: ``("leaf",)``, ``("dict", keys)``, ``("list", n)``, ``("tuple", n)``,
            ``("call", n, function of the list of n children)``.
        names: one name a leaf, for messages.
        headless: items are one bare leaf without a size (and without flags).
        opener: function of an item's stored bytes that gives the bytes to decode (inflates or decrypts them).
        loose: an item (opened, if there is an opener) may be ``u32 0xFFFFFFFE`` and one self-describing value instead:
            rows that the tree does not fit.

    Raises:
        ConfigError: the program does not leave exactly one value, or a leaf is none of these.

    Threads: immutable, shared freely. Fork: copied. Pickling: refused; it is compiled anew from the index.
    """

    def __cinit__(self, leaves, tree, *, names, bint headless=False, opener=None, bint loose=False):
        cdef list specs = list(leaves)
        cdef int k
        self.n_leaves = len(specs)
        self.headless = headless
        self.loose = loose
        self.held = []
        self.names = tuple(names)
        self.tree = list(tree)
        if headless and loose:
            raise ConfigError("a headless item begins with its leaf: there is no place for a loose one's mark")
        if headless and self.n_leaves != 1:
            raise ConfigError(f"a headless item has one leaf, not {self.n_leaves}")
        if len(self.names) != self.n_leaves:
            raise ConfigError(f"{self.n_leaves} leaves have {len(self.names)} names")
        self.leaves = <Leaf*>calloc(max(self.n_leaves, 1), sizeof(Leaf))
        if self.leaves == NULL:
            raise MemoryError("no memory for a decode plan")
        if opener is not None and not callable(opener):
            raise ConfigError(f"an opener is a function of an item's bytes, not {opener!r}")
        self.opener = opener
        for k in range(self.n_leaves):
            self._load_leaf(k, specs[k])
        self._check_tree()

    def __dealloc__(self):
        free(self.leaves)

    cdef _load_leaf(self, int k, spec):
        cdef Leaf* leaf = &self.leaves[k]
        op, argument = spec[:2]
        if op not in _OPS:
            raise ConfigError(f"leaf operation {op!r} is not one of {', '.join(_OPS)}")
        leaf.op = _OPS[op]
        self._load_flags(k, spec[2] if len(spec) > 2 else {})
        if leaf.op in (OP_ARRAY, OP_NDARRAY, OP_PACKED_ARRAY) and self.make_1d == NULL:
            self._load_arrays()
        if leaf.op == OP_ARRAY:
            if not 0 <= argument < 14:
                raise ConfigError(f"array dtype index {argument} is not in 0..13")
            leaf.index = argument
        elif leaf.op == OP_PACKED_ARRAY:
            self._load_packed(k, argument)
        elif leaf.op in (OP_CALL, OP_NONE_OR_CALL):
            if not callable(argument):
                raise ConfigError(f"leaf {self.names[k]!r} needs a function, not {argument!r}")
            self.held.append(argument)
            leaf.call = <PyObject*>argument

    cdef _load_flags(self, int k, dict flags):
        cdef Leaf* leaf = &self.leaves[k]
        leaf.fixed = -1
        if not flags.keys() <= _FLAGS or len(flags) > 1 or (flags and self.headless):
            raise ConfigError(f"leaf {self.names[k]!r} cannot have the flags {flags!r}")
        leaf.nullable = bool(flags.get("nullable"))
        if "fixed" in flags:
            leaf.fixed = operator.index(flags["fixed"])
            if leaf.fixed < 0:
                raise ConfigError(f"leaf {self.names[k]!r} cannot have {leaf.fixed} bytes")
        elif not self.headless:
            self.head += 4

    cdef _load_packed(self, int k, argument):
        cdef Leaf* leaf = &self.leaves[k]
        dtype, shape = argument
        if dtype not in _PACKED_DTYPES:
            raise ConfigError(f"packed arrays of dtype {dtype!r} do not exist; there are {', '.join(_PACKED_DTYPES)}")
        leaf.index, nbytes = _PACKED_DTYPES[dtype]
        leaf.ndim = -1
        leaf.exact = -1
        if shape is None:
            return
        # What numpy counts in bytes must not overflow; a dimension of 0 hides nothing.
        if len(shape) > 32 or not all([dim >= 0 for dim in shape]) or prod([max(dim, 1) for dim in shape]) > 1 << 48:
            raise ConfigError(f"an array of shape {shape!r} cannot be")
        leaf.ndim = <int>len(shape)
        dims = struct.pack(f"={leaf.ndim}q", *shape)
        self.held.append(dims)
        if dtype:
            leaf.exact = prod(shape) * nbytes
        leaf.dims = <const int64_t*>PyBytes_AS_STRING(dims)

    cdef _load_arrays(self):
        from lazystore._core.arrays import capsules

        one, many, packed = capsules()
        self.make_1d = <make_1d_t>PyCapsule_GetPointer(one, "lazystore.make_1d")
        self.make_nd = <make_nd_t>PyCapsule_GetPointer(many, "lazystore.make_nd")
        self.make_packed = <make_packed_t>PyCapsule_GetPointer(packed, "lazystore.make_packed")

    cdef _check_tree(self):
        """Run the program on counts alone, intern dict keys, and spot the flat dict."""
        cdef int depth = 0, used = 0, k
        cdef list program = []
        for step in self.tree:
            if step[0] == "leaf":
                used += 1
                depth += 1
            else:
                # assemble() indexes the steps unchecked: their shape is settled here.
                if _STEP_LENGTHS.get(step[0]) != len(step) or (step[0] == "call" and not callable(step[2])):
                    raise ConfigError(f"tree step {step!r} is not one that a decode plan knows")
                count = len(step[1]) if step[0] == "dict" else operator.index(step[1])
                if not 0 <= count <= depth:
                    raise ConfigError(f"tree step {step!r} does not fit the {depth} values before it")
                depth += 1 - count
            if step[0] == "dict":
                step = ("dict", tuple(sys.intern(key) if type(key) is str else key for key in step[1]))
            program.append(tuple(step))
        if depth != 1 or used != self.n_leaves:
            raise ConfigError(f"the tree uses {used} of {self.n_leaves} leaves and leaves {depth} values")
        self.tree = program
        self.bare_leaf = program == [("leaf",)]
        last = program[len(program) - 1]
        self.flat_dict = (
            not self.headless and last[0] == "dict" and len(program) == self.n_leaves + 1
            and len(last[1]) == self.n_leaves
        )
        if self.flat_dict:
            self.keys = last[1]
            for k in range(self.n_leaves):
                self.leaves[k].key = <PyObject*>self.keys[k]
        self.direct = self.flat_dict and self.opener is None and not self.loose

    cdef inline object leaf(self, Leaf* leaf, const uint8_t* p, Py_ssize_t n):
        cdef int64_t integer
        cdef double real
        if leaf.op == OP_STR:
            return text(p, n)
        if leaf.op == OP_INT:
            if n != 8:
                raise FormatError(f"an int leaf has {n} bytes instead of 8")
            memcpy(&integer, p, 8)
            return PyLong_FromLongLong(integer)
        if leaf.op == OP_ARRAY:
            return self.make_1d(p, n, leaf.index)
        if leaf.op == OP_PACKED_ARRAY:
            return self.make_packed(p, n, leaf.index, leaf.ndim, leaf.dims, leaf.exact)
        if leaf.op == OP_BYTES:
            return PyBytes_FromStringAndSize(<const char*>p, n)
        if leaf.op == OP_FLOAT:
            if n != 8:
                raise FormatError(f"a float leaf has {n} bytes instead of 8")
            memcpy(&real, p, 8)
            return PyFloat_FromDouble(real)
        if leaf.op == OP_BOOL:
            if n != 1:
                raise FormatError(f"a bool leaf has {n} bytes instead of 1")
            return p[0] != 0
        if leaf.op == OP_NDARRAY:
            return self.make_nd(p, n)
        if leaf.op == OP_VALUE:
            return read_value(p, n)
        if leaf.op == OP_NONE_OR_CALL and n == 4 and memcmp(p, b"\x80\x04N.", 4) == 0:
            return None
        return (<object>leaf.call)(PyBytes_FromStringAndSize(<const char*>p, n))

    cdef object decode(self, const uint8_t* p, Py_ssize_t n):
        """One item from ``n`` contiguous stored bytes. The caller keeps them from moving."""
        if self.direct:
            return self.decode_flat(p, n)
        if self.opener is not None:
            return self.decode_opened(self.open_item(PyBytes_FromStringAndSize(<const char*>p, n)))
        return self.decode_item(p, n)

    cdef bytes open_item(self, bytes stored):
        """What the opener makes of an item's stored bytes."""
        opened = self.opener(stored)
        if type(opened) is not bytes:
            raise TypeError(f"an opener must return bytes, not {type(opened).__name__}")
        return opened

    cdef object decode_opened(self, bytes opened):
        return self.decode_item(<const uint8_t*>PyBytes_AS_STRING(opened), PyBytes_GET_SIZE(opened))

    cdef bint is_loose(self, const uint8_t* p, Py_ssize_t n) noexcept nogil:
        return self.loose and n >= 4 and load_u32(p) == <uint32_t>LOOSE_MARK

    cdef object decode_item(self, const uint8_t* p, Py_ssize_t n):
        """An item of bytes that need no opening any more."""
        if self.is_loose(p, n):
            return read_value(p + 4, n - 4)
        return self.decode_flat(p, n) if self.flat_dict else self.decode_tree(p, n)

    cdef inline object decode_flat(self, const uint8_t* p, Py_ssize_t n):
        cdef Py_ssize_t at = self.head, size
        cdef const uint8_t* sizes = p
        cdef Leaf* leaf = self.leaves
        cdef Leaf* end = leaf + self.n_leaves
        cdef dict item
        if n < at:
            raise self.size_error(n)
        item = PyDict_New()
        while leaf < end:
            size = next_size(leaf, &sizes)
            if size < 0:
                PyDict_SetItem(item, <object>leaf.key, None)
            else:
                if size > n - at:
                    raise self.size_error(n)
                PyDict_SetItem(item, <object>leaf.key, self.leaf(leaf, p + at, size))
                at += size
            leaf += 1
        if at != n:
            raise self.size_error(n)
        return item

    cdef object decode_tree(self, const uint8_t* p, Py_ssize_t n):
        cdef Py_ssize_t at = self.head, size
        cdef const uint8_t* sizes = p
        cdef int k
        cdef list values = []
        if n < at:
            raise self.size_error(n)
        for k in range(self.n_leaves):
            size = n if self.headless else next_size(&self.leaves[k], &sizes)
            if size < 0:
                values.append(None)
                continue
            if size > n - at:
                raise self.size_error(n)
            values.append(self.leaf(&self.leaves[k], p + at, size))
            at += size
        if at != n:
            raise self.size_error(n)
        return self.build(values)

    cdef object build(self, list values):
        """The item out of its decoded leaves."""
        cdef dict item
        cdef int k
        if self.bare_leaf:
            return values[0]
        if not self.flat_dict:
            return self.assemble(values)
        item = PyDict_New()
        for k in range(self.n_leaves):
            PyDict_SetItem(item, <object>self.leaves[k].key, values[k])
        return item

    cdef object assemble(self, list values):
        """Run the tree program: leaves are pushed, containers take their children off the stack."""
        cdef list stack = [], children
        cdef tuple step
        cdef Py_ssize_t used = 0, base, k
        cdef dict mapping
        for step in self.tree:
            kind = step[0]
            if kind == "leaf":
                stack.append(values[used])
                used += 1
                continue
            base = len(stack) - (len(<tuple>step[1]) if kind == "dict" else <Py_ssize_t>step[1])
            children = stack[base:]
            del stack[base:]
            if kind == "dict":
                mapping = {}
                for k in range(len(children)):
                    mapping[(<tuple>step[1])[k]] = children[k]
                stack.append(mapping)
            elif kind == "list":
                stack.append(children)
            elif kind == "tuple":
                stack.append(tuple(children))
            else:
                stack.append(step[2](children))
        return stack[0]

    def size_error(self, Py_ssize_t n):
        """The error for an item whose leaf sizes do not add up to its ``n`` bytes."""
        if n == 0:
            return FormatError(f"the item is empty, the schema has {self.n_leaves} leaves")
        return FormatError(f"the leaf sizes do not add up to the item's {n} bytes ({self.n_leaves} leaves)")

    def __call__(self, const unsigned char[::1] item not None):
        """Decode one item from a buffer. The reader uses the C entry instead."""
        cdef const uint8_t* p = <const uint8_t*>&item[0] if item.shape[0] else <const uint8_t*>b""
        return self.decode(p, item.shape[0])

    def __reduce__(self):
        raise TypeError("a DecodePlan is compiled from the index and cannot be pickled")

    def __repr__(self):
        return f"<DecodePlan {self.n_leaves} leaves: {', '.join(map(str, self.names))}>"
