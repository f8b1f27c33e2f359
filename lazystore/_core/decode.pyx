"""The decode plan: a dataset's schema compiled once, then one C call an item.

An item is ``u32 size[n] | leaf 0 | leaf 1 | ...`` (or one bare leaf, *headless*). Leaves
become Python objects here; those that need Python code (media, user serializers,
pickles) are called back with their bytes. The tree of containers is a small postfix program;
the commonest one, a flat dict, has its own loop.

What the tags of a format mean is decided in ``lazystore.formats.leaves``.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_New, PyDict_SetItem
from cpython.float cimport PyFloat_FromDouble
from cpython.long cimport PyLong_FromLongLong
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

import operator
import sys

from lazystore._core.offsets cimport load_u32
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
}
_STEP_LENGTHS = {"dict": 2, "list": 2, "tuple": 2, "call": 3}


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


cdef class DecodePlan:
    """A compiled schema.

    Parameters:
        leaves: one ``(op, argument)`` a leaf, in stored order. ``op`` is one of str, bytes, int (i64), float
            (f64), bool, array (argument: dtype index of LitData's numpy table, 1-D), ndarray (self-describing),
            call (argument: function of the leaf's bytes) and none_or_call (the same, but None's pickle is None).
        tree: postfix program over the leaves: ``("leaf",)``, ``("dict", keys)``, ``("list", n)``, ``("tuple", n)``,
            ``("call", n, function of the list of n children)``.
        names: one name a leaf, for messages.
        headless: items are one bare leaf without a size.

    Raises:
        ConfigError: the program does not leave exactly one value.

    Threads: immutable, shared freely. Fork: copied. Pickling: refused; it is compiled anew from the index.
    """

    def __cinit__(self, leaves, tree, *, names, bint headless=False):
        cdef list specs = list(leaves)
        cdef int k
        self.n_leaves = len(specs)
        self.headless = headless
        self.calls = []
        self.names = tuple(names)
        self.tree = list(tree)
        if headless and self.n_leaves != 1:
            raise ConfigError(f"a headless item has one leaf, not {self.n_leaves}")
        if len(self.names) != self.n_leaves:
            raise ConfigError(f"{self.n_leaves} leaves have {len(self.names)} names")
        self.leaves = <Leaf*>calloc(max(self.n_leaves, 1), sizeof(Leaf))
        if self.leaves == NULL:
            raise MemoryError("no memory for a decode plan")
        for k in range(self.n_leaves):
            op, argument = specs[k]
            if op not in _OPS:
                raise ConfigError(f"leaf operation {op!r} is not one of {', '.join(_OPS)}")
            self.leaves[k].op = _OPS[op]
            if self.leaves[k].op == OP_ARRAY:
                if not 0 <= argument < 14:
                    raise ConfigError(f"array dtype index {argument} is not in 0..13")
                self.leaves[k].index = argument
            if self.leaves[k].op in (OP_ARRAY, OP_NDARRAY) and self.make_1d == NULL:
                self._load_arrays()
            if self.leaves[k].op in (OP_CALL, OP_NONE_OR_CALL):
                if not callable(argument):
                    raise ConfigError(f"leaf {self.names[k]!r} needs a function, not {argument!r}")
                self.calls.append(argument)
                self.leaves[k].call = <PyObject*>argument
        self._check_tree()

    def __dealloc__(self):
        free(self.leaves)

    cdef _load_arrays(self):
        from lazystore._core.arrays import capsules

        one, many = capsules()
        self.make_1d = <make_1d_t>PyCapsule_GetPointer(one, "lazystore.make_1d")
        self.make_nd = <make_nd_t>PyCapsule_GetPointer(many, "lazystore.make_nd")

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
        if leaf.op == OP_NONE_OR_CALL and n == 4 and memcmp(p, b"\x80\x04N.", 4) == 0:
            return None
        return (<object>leaf.call)(PyBytes_FromStringAndSize(<const char*>p, n))

    cdef object decode(self, const uint8_t* p, Py_ssize_t n):
        """One item from ``n`` contiguous bytes. The caller keeps them from moving."""
        cdef Py_ssize_t at = 4 * <Py_ssize_t>self.n_leaves
        cdef Py_ssize_t size
        cdef int k
        cdef Leaf* leaf = self.leaves
        cdef dict item
        if not self.flat_dict:
            return self.decode_tree(p, n)
        if n < at:
            raise self.size_error(n)
        item = PyDict_New()
        for k in range(self.n_leaves):
            size = load_u32(p + 4 * k)
            if size > n - at:
                raise self.size_error(n)
            PyDict_SetItem(item, <object>leaf.key, self.leaf(leaf, p + at, size))
            at += size
            leaf += 1
        if at != n:
            raise self.size_error(n)
        return item

    cdef object decode_tree(self, const uint8_t* p, Py_ssize_t n):
        cdef Py_ssize_t at = 0 if self.headless else 4 * <Py_ssize_t>self.n_leaves
        cdef Py_ssize_t size
        cdef int k
        cdef list values = []
        if n < at:
            raise self.size_error(n)
        for k in range(self.n_leaves):
            size = n if self.headless else load_u32(p + 4 * k)
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
