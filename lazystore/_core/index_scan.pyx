"""The list of chunks in a dataset's index, taken from its JSON bytes without an object a chunk.

:meth:`ChunkTable.scan` reads entries of the ordinary form (ASCII strings without escapes, numbers, words, no nesting)
directly; every other entry goes as text to the caller, who has ``json`` and says what it means. It never decides that
a document is wrong: where the form ends it raises ValueError, and the caller parses the whole.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython cimport array
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

import array

cdef enum:
    MAX_DIGITS = 18   # fits an int64 whatever the digits

cdef int64_t NO_NUMBER = -1   # null, a word, a string, a fraction, below zero: nothing that counts
cdef int64_t NULL_WORD = -2

cdef struct Entry:
    const uint8_t* name
    Py_ssize_t name_length
    int64_t count
    int64_t hint
    int64_t dim


cdef class ChunkTable:
    """Names, counts and sizes of chunks, grown one by one and then given away.

    Parameters:
        max_count, max_dim: largest ``chunk_size`` and ``dim`` that :meth:`scan` takes without asking.

    Memory: 32 bytes and the name a chunk. Threads: one at a time. Pickling: refused.
    """

    cdef bytearray names
    cdef array.array ends
    cdef array.array counts
    cdef array.array hints
    cdef array.array dims
    cdef Py_ssize_t length
    cdef Py_ssize_t used
    cdef Py_ssize_t capacity
    cdef int64_t max_count
    cdef int64_t max_dim

    def __cinit__(self, *, int64_t max_count, int64_t max_dim):
        self.max_count = max_count
        self.max_dim = max_dim
        self.clear()

    cdef int clear(self) except -1:
        self.names = bytearray()
        self.ends = array.array("Q")
        self.counts = array.array("Q")
        self.hints = array.array("Q")
        self.dims = array.array("q")
        self.length = self.used = self.capacity = 0
        return 0

    def __len__(self):
        return self.length

    def __reduce__(self):
        raise TypeError("a ChunkTable cannot be pickled; pickle what it gives")

    def append(self, bytes name not None, uint64_t count, uint64_t hint, int64_t dim):
        """Add a chunk; ``name`` as UTF-8."""
        cdef Entry entry = Entry(<const uint8_t*>name, len(name), count, hint, dim)
        self.add(&entry)

    def take(self):
        """``(names, ends, counts, hints, dims)``: the names' bytes end to end, where each ends among them, and one
        array of each number. The table is empty afterwards."""
        self.reserve(self.length)
        PyByteArray_Resize(self.names, self.used)
        taken = self.names, self.ends, self.counts, self.hints, self.dims
        self.clear()
        return taken

    def scan(self, const unsigned char[::1] data not None, odd):
        """Add the chunks of a JSON object's ``"chunks"`` list.

        Parameters:
            data: the document, UTF-8.
            odd: called with an entry's text where that is not of the ordinary form; returns
                ``(name, count, hint, dim)`` as :meth:`append` takes them.

        Returns:
            (begin, end) of the list in ``data``. The list's own bytes are then known to be JSON as far as ``odd``
            parses what it gets; around it, only where values begin and end was looked at.

        Raises:
            ValueError: the document is of another form, or no JSON.

        Cost: ~800 MB/s; nothing is allocated but the table.
        """
        cdef const uint8_t* start = <const uint8_t*>&data[0] if data.shape[0] else NULL
        cdef const uint8_t* end = start + data.shape[0]
        cdef const uint8_t* p = start
        cdef const uint8_t* key
        cdef const uint8_t* close
        cdef const uint8_t* found = NULL
        cdef const uint8_t* found_end = NULL
        p = expect(start, end, c"{")
        while True:
            p = skip_space(p, end)
            close = plain_string(p, end)
            if close == NULL:
                raise ValueError("a key that is no plain string")
            key = p + 1
            p = expect(skip_space(close + 1, end), end, c":")
            p = skip_space(p, end)
            if is_key(key, close, b"chunks"):
                if found != NULL:
                    raise ValueError('more than one "chunks"')
                found = p
                p = found_end = self.scan_list(p, end, odd)
            else:
                p = value_end(p, end)
            p = skip_space(p, end)
            if p == end or p[0] != c",":
                break
            p += 1
        if p == end or p[0] != c"}" or found == NULL:
            raise ValueError("no object with a list of chunks")
        return found - start, found_end - start

    cdef const uint8_t* scan_list(self, const uint8_t* p, const uint8_t* end, object odd) except NULL:
        """The list that begins at ``p``; returns its end."""
        cdef const uint8_t* after
        cdef Entry entry
        p = skip_space(expect(p, end, c"["), end)
        if p < end and p[0] == c"]":
            return p + 1
        while True:
            p = skip_space(p, end)
            after = plain_entry(p, end, self.max_count, self.max_dim, &entry)
            if after != NULL:
                self.add(&entry)
            else:
                after = value_end(p, end)
                self.append(*odd(PyBytes_FromStringAndSize(<const char*>p, after - p)))
            p = skip_space(after, end)
            if p < end and p[0] == c"]":
                return p + 1
            p = expect(p, end, c",")

    cdef int add(self, const Entry* entry) except -1:
        cdef Py_ssize_t needed = self.used + entry.name_length
        if self.length == self.capacity:
            self.reserve(2 * self.capacity + 64)
        if needed > PyByteArray_GET_SIZE(self.names):
            PyByteArray_Resize(self.names, 2 * needed)
        memcpy(PyByteArray_AS_STRING(self.names) + self.used, entry.name, entry.name_length)
        self.used = needed
        self.ends.data.as_ulonglongs[self.length] = needed
        self.counts.data.as_ulonglongs[self.length] = entry.count
        self.hints.data.as_ulonglongs[self.length] = entry.hint
        self.dims.data.as_longlongs[self.length] = entry.dim
        self.length += 1
        return 0

    cdef int reserve(self, Py_ssize_t capacity) except -1:
        # Large blocks grow by moving pages, not bytes, and pages nobody has written cost no memory.
        array.resize(self.ends, capacity)
        array.resize(self.counts, capacity)
        array.resize(self.hints, capacity)
        array.resize(self.dims, capacity)
        self.capacity = capacity
        return 0


# -- JSON, as much of it as there is here -----------------------------------------------------
# Every function takes p <= end and reads nothing at end or beyond.


cdef inline const uint8_t* skip_space(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end and (p[0] == c" " or p[0] == c"\n" or p[0] == c"\r" or p[0] == c"\t"):
        p += 1
    return p


cdef const uint8_t* expect(const uint8_t* p, const uint8_t* end, uint8_t wanted) except NULL:
    """Past the character, which must be next but for space."""
    p = skip_space(p, end)
    if p == end or p[0] != wanted:
        raise ValueError(f"no {chr(wanted)!r} where one was expected")
    return p + 1


cdef inline const uint8_t* plain_string(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """The closing quote of a string of plain ASCII; NULL if there is none such at p."""
    if p == end or p[0] != c'"':
        return NULL
    p += 1
    while p < end and p[0] != c'"':
        if p[0] < 0x20 or p[0] > 0x7e or p[0] == c"\\":
            return NULL
        p += 1
    return p if p < end else NULL


cdef inline bint is_key(const uint8_t* key, const uint8_t* close, const char* name) noexcept nogil:
    cdef Py_ssize_t n = 0
    while name[n]:
        n += 1
    return close - key == n and memcmp(key, name, n) == 0


cdef inline const uint8_t* digits(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end and c"0" <= p[0] <= c"9":
        p += 1
    return p


cdef const uint8_t* plain_number(const uint8_t* p, const uint8_t* end, int64_t* value) noexcept nogil:
    """Past a number; NULL when there is none, or one of so many digits that only Python can hold it."""
    cdef const uint8_t* first
    cdef const uint8_t* last
    cdef bint counts = p[0] != c"-"
    if not counts:
        p += 1
    first = p
    last = digits(p, end)
    if last == first or last - first > MAX_DIGITS or (first[0] == c"0" and last - first > 1):
        return NULL
    value[0] = 0
    while p < last:
        value[0] = 10 * value[0] + (p[0] - c"0")
        p += 1
    if p < end and p[0] == c".":
        counts = False
        first = p + 1
        p = digits(first, end)
        if p == first:
            return NULL
    if p < end and (p[0] == c"e" or p[0] == c"E"):
        counts = False
        p += 1
        if p < end and (p[0] == c"+" or p[0] == c"-"):
            p += 1
        first = p
        p = digits(first, end)
        if p == first:
            return NULL
    # -0 is a count to Python; so rare that Python may say so.
    if not counts:
        if value[0] == 0:
            return NULL
        value[0] = NO_NUMBER
    return p


cdef const uint8_t* plain_value(const uint8_t* p, const uint8_t* end, int64_t* value) noexcept nogil:
    """Past a value without nesting; NULL when it is of another form."""
    value[0] = NO_NUMBER
    if p == end:
        return NULL
    if p[0] == c'"':
        p = plain_string(p, end)
        return NULL if p == NULL else p + 1
    if p[0] == c"-" or c"0" <= p[0] <= c"9":
        return plain_number(p, end, value)
    if end - p >= 4 and memcmp(p, b"null", 4) == 0:
        value[0] = NULL_WORD
        return p + 4
    if end - p >= 4 and memcmp(p, b"true", 4) == 0:
        return p + 4
    if end - p >= 5 and memcmp(p, b"false", 5) == 0:
        return p + 5
    return NULL


cdef const uint8_t* plain_entry(
    const uint8_t* p, const uint8_t* end, int64_t max_count, int64_t max_dim, Entry* entry
) noexcept nogil:
    """Past an entry that is of the ordinary form and in order; NULL for any other."""
    cdef const uint8_t* key
    cdef const uint8_t* close
    cdef int64_t value
    if p == end or p[0] != c"{":
        return NULL
    entry.name = NULL
    entry.name_length = 0
    entry.count = NO_NUMBER
    entry.hint = NO_NUMBER
    entry.dim = NULL_WORD
    p += 1
    while True:
        p = skip_space(p, end)
        close = plain_string(p, end)
        if close == NULL:
            return NULL
        key = p + 1
        p = skip_space(close + 1, end)
        if p == end or p[0] != c":":
            return NULL
        p = skip_space(p + 1, end)
        if is_key(key, close, b"filename"):
            entry.name = p + 1
            p = plain_string(p, end)
            if p == NULL:
                return NULL
            entry.name_length = p - entry.name
            p += 1
        else:
            p = plain_value(p, end, &value)
            if p == NULL:
                return NULL
            if is_key(key, close, b"chunk_size"):
                entry.count = value
            elif is_key(key, close, b"chunk_bytes"):
                entry.hint = value
            elif is_key(key, close, b"dim"):
                entry.dim = value
        p = skip_space(p, end)
        if p == end:
            return NULL
        if p[0] == c"}":
            break
        if p[0] != c",":
            return NULL
        p += 1
    if not is_plain_name(entry.name, entry.name_length) or not 0 <= entry.count <= max_count:
        return NULL
    if entry.dim != NULL_WORD and not 0 <= entry.dim <= max_dim:
        return NULL
    entry.hint = max(entry.hint, <int64_t>0)
    entry.dim = max(entry.dim, <int64_t>-1)
    return p + 1


cdef bint is_plain_name(const uint8_t* name, Py_ssize_t length) noexcept nogil:
    if name == NULL or length == 0 or memchr(name, c"/", length) != NULL:
        return False
    return not (name[0] == c"." and (length == 1 or (length == 2 and name[1] == c".")))


cdef const uint8_t* value_end(const uint8_t* p, const uint8_t* end) except NULL:
    """Past a value of any form, found by its quotes and brackets alone."""
    cdef Py_ssize_t depth = 0
    while p < end:
        if p[0] == c'"':
            p += 1
            while p < end and p[0] != c'"':
                p += 2 if p[0] == c"\\" else 1
            if p >= end:
                break
        elif p[0] == c"{" or p[0] == c"[":
            depth += 1
        elif p[0] == c"}" or p[0] == c"]":
            if depth == 0:
                return p
            depth -= 1
        elif depth == 0 and p[0] == c",":
            return p
        p += 1
    raise ValueError("a value without an end")
