"""Types of columns that are to become rows, compiled: a list of nodes in depth-first order.

Nothing of a dataset's bytes is seen here; :mod:`lazystore._core.rows` lays these nodes over buffers.
"""

cimport cython
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free

from lazystore.errors import ConfigError

cdef enum:
    MAX_DEPTH = 64

_KINDS = {
    "null": K_NULL, "bool": K_BOOL, "int": K_INT, "uint": K_UINT, "float": K_FLOAT, "str": K_STR,
    "bytes": K_BYTES, "raw": K_RAW, "list": K_LIST, "array": K_ARRAY, "struct": K_STRUCT, "dict": K_DICT,
}
# What a column may become, by the kind its cells have in the end (behind dictionaries).
_FORMS = {
    "int": (K_INT, K_UINT), "float": (K_FLOAT,), "bool": (K_BOOL,), "str": (K_STR,), "bytes": (K_BYTES, K_RAW),
    "none": (K_NULL,),
    "value": (K_NULL, K_BOOL, K_INT, K_UINT, K_FLOAT, K_STR, K_BYTES, K_RAW, K_LIST, K_ARRAY, K_STRUCT),
}

cdef check_type(name, str kind, width, Py_ssize_t n_children, Py_ssize_t n_keys):
    """The widths and children that C relies on."""
    widths = {
        "int": (1, 2, 4, 8), "uint": (1, 2, 4, 8), "float": (2, 4, 8), "str": (4, 8), "bytes": (4, 8),
        "list": (4, 8), "dict": (1, 2, 4, 8, -1, -2, -4, -8),
    }.get(kind)
    children = {"list": 1, "array": 1, "dict": 1, "struct": n_keys}.get(kind, 0)
    if (widths is not None and width not in widths) or not -8 <= width < 1 << 31 or (width < 0 and kind != "dict"):
        raise ConfigError(f"{name!r}: {kind} of width {width}")
    if n_children != children or (kind != "struct" and n_keys):
        raise ConfigError(f"{name!r}: {kind} with {n_children} children and {n_keys} keys")


cdef leaf_kind(list found, int k):
    """The kind of a column's cells behind its dictionaries."""
    while found[k][0] == K_DICT:
        k += 1
    return found[k][0]


@cython.final
cdef class RowShape:
    """Columns, compiled.

    Parameters:
        columns: one ``(name, form, type)`` a column, in order. ``form`` is what its cells become: int (i64), float
            (f64), bool, str, bytes, none, or value (self-describing). ``type`` is ``(kind, width, children, keys)``:
            null, bool, int, uint, float, str and bytes (width: of the offsets), raw (cells of ``width``
            bytes), list (width: of the offsets), array (``width`` elements), struct (keys: names of the children),
            and dict (width: of the indices, negative for signed ones; the child holds the values).
        loose: rows name their columns themselves; forms are not looked at.

    Raises:
        ConfigError: a form that the type cannot take, or a type deeper than 64.

    Threads: immutable, shared freely. Pickling: refused.
    """

    def __cinit__(self, columns, *, bint loose=False):
        cdef list found = []
        cdef int k
        self.loose = loose
        self.keep = []
        for name, form, type_ in columns:
            k = len(found)
            self.add(found, name, type_, 0)
            if form not in _FORMS or (not loose and leaf_kind(found, k) not in _FORMS[form]):
                raise ConfigError(f"column {name!r} cannot be written as {form!r}")
            found[k] = (*found[k], form == "value")
        self.names = tuple(name for name, _, _ in columns)
        self.n_columns = len(self.names)
        self.n_nodes = len(found)
        self.nodes = <Node*>calloc(max(self.n_nodes, 1), sizeof(Node))
        self.columns = <int*>calloc(max(self.n_columns, 1), sizeof(int))
        self.values = <uint8_t*>calloc(max(self.n_columns, 1), 1)
        if self.nodes == NULL or self.columns == NULL or self.values == NULL:
            raise MemoryError("no memory for a row shape")
        self.fill(found)

    def __dealloc__(self):
        free(self.nodes)
        free(self.columns)
        free(self.values)

    cdef add(self, list found, name, type_, int depth):
        """A type and what is below it, in depth-first order: ``(kind, width, behind, key)`` each."""
        kind, width, children, keys = type_
        if depth >= MAX_DEPTH:
            raise ConfigError(f"{name!r} has types nested deeper than {MAX_DEPTH}")
        if kind not in _KINDS:
            raise ConfigError(f"{name!r}: type kind {kind!r} is not one of {', '.join(_KINDS)}")
        check_type(name, kind, width, len(children), len(keys))
        text = name.encode("utf-8", "surrogatepass")
        k = len(found)
        found.append(None)
        for child, key in zip(children, keys or ("item",) * len(children)):
            self.add(found, key, child, depth + 1)
        found[k] = (_KINDS[kind], width, len(found), len(text).to_bytes(4, "little") + text)

    cdef fill(self, list found):
        cdef int k = 0, column
        cdef bytes key
        for column in range(self.n_columns):
            self.columns[column] = k
            self.values[column] = found[k][4]
            k = found[k][2]
        for k in range(self.n_nodes):
            kind, width, behind, key = found[k][:4]
            self.keep.append(key)
            self.nodes[k].kind = kind
            self.nodes[k].signed = width < 0
            self.nodes[k].width = abs(width)
            self.nodes[k].behind = behind
            self.nodes[k].key = <const uint8_t*>key
            self.nodes[k].key_bytes = len(key)

    def __reduce__(self):
        raise TypeError("a RowShape is compiled from a schema and cannot be pickled")

    def __repr__(self):
        return f"<RowShape {', '.join(map(str, self.names))}{' (loose)' if self.loose else ''}>"
