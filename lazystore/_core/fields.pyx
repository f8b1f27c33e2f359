"""What an item of a text holds: its line without the terminator, and the fields of a record (RFC 4180).

Items are as :class:`~lazystore._core.lines.LineScanner` finds them: terminator and blank lines included. An item that
is not exactly one line, or one record, does not come from this text: the index is not the text's.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_SetItem
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcpy

from lazystore.errors import ConfigError, FormatError

cdef enum:
    LONG_NUMBER = 19  # digits from which on an integer may not fit 64 bits


def line_bytes(bytes item not None):
    """A line without its terminator (a line feed, and a carriage return before it).

    Raises:
        FormatError: there is more than one line, unless the others are blank.
    """
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(item)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(item), end = line_end(p, n)
    return item if end == n else PyBytes_FromStringAndSize(<const char*>p, end)


def line_text(bytes item not None):
    """The same as a str.

    Raises:
        FormatError: as :func:`line_bytes`. UnicodeDecodeError: it is not UTF-8.
    """
    cdef const char* p = PyBytes_AS_STRING(item)
    return PyUnicode_DecodeUTF8(p, line_end(<const uint8_t*>p, PyBytes_GET_SIZE(item)), NULL)


def record_bytes(bytes item not None):
    """A record without its terminator and the empty lines after it."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(item)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(item), end = n
    while end and p[end - 1] == c"\n":
        end -= 2 if end > 1 and p[end - 2] == c"\r" else 1
    return item if end == n else PyBytes_FromStringAndSize(<const char*>p, end)


def has_long_number(bytes item not None):
    """Whether 19 digits or more stand side by side. Looks at every 19th byte, at more only around digits."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(item)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(item), at = LONG_NUMBER - 1, begin, end
    while at < n:
        if is_digit(p[at]):
            begin = at
            while begin and is_digit(p[begin - 1]) and at - begin < LONG_NUMBER:
                begin -= 1
            end = at + 1
            while end < n and is_digit(p[end]) and end - begin < LONG_NUMBER:
                end += 1
            if end - begin >= LONG_NUMBER:
                return True
        at += LONG_NUMBER
    return False


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return c"0" <= c <= c"9"


cdef Py_ssize_t line_end(const uint8_t* p, Py_ssize_t n) except -1:
    cdef const uint8_t* newline = <const uint8_t*>memchr(p, c"\n", n)
    cdef Py_ssize_t end, k
    if newline == NULL:
        return n
    end = newline - p
    for k in range(end + 1, n):
        if p[k] != c" " and p[k] != c"\t" and p[k] != c"\r" and p[k] != c"\n":
            raise FormatError("the item has more than one line: the index is not this file's, or damaged")
    return end - 1 if end and p[end - 1] == c"\r" else end


cdef class RecordReader:
    """Records of fields as dicts of str.

    Parameters:
        names: the keys, one a field; () for a reader of :meth:`fields` only.
        delimiter, quote: one byte each; quote=b"" for texts without quoting.

    Quoted fields may hold delimiters, line breaks and doubled quotes; a quote within an unquoted field, and what
    follows a closing quote, stand for themselves (as for Python's ``csv`` module).

    Threads, fork: immutable. Pickling: refused.
    """

    cdef tuple names
    cdef int delimiter, quote

    def __cinit__(self, names, *, bytes delimiter=b",", bytes quote=b'"'):
        if len(delimiter) != 1 or len(quote) > 1:
            raise ConfigError(f"delimiter={delimiter!r}, quote={quote!r} are not one byte each")
        self.names = tuple(names)
        self.delimiter = delimiter[0]
        self.quote = quote[0] if quote else -1

    def __reduce__(self):
        raise TypeError("a RecordReader is made from the text's header and cannot be pickled")

    def __call__(self, bytes item not None):
        """One record as a dict.

        Raises:
            FormatError: another number of fields than names, or not one record. UnicodeDecodeError: not UTF-8.
        """
        cdef list values = self.fields(item)
        cdef dict row = {}
        cdef Py_ssize_t k
        if len(values) != len(self.names):
            raise FormatError(f"the record has {len(values)} fields, the header {len(self.names)}")
        for k in range(len(values)):
            PyDict_SetItem(row, self.names[k], values[k])
        return row

    def fields(self, bytes item not None):
        """One record's fields, a list of str.

        Raises:
            FormatError: not one record. UnicodeDecodeError: not UTF-8.
        """
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(item)
        cdef const uint8_t* end = p + PyBytes_GET_SIZE(item)
        cdef list values = []
        while True:
            if p < end and p[0] == self.quote:
                p = self.quoted(p + 1, end, values)
            else:
                p = self.plain(p, end, values)
            if p == end or p[0] != self.delimiter:
                break
            p += 1
        while p < end:
            if p[0] != c"\n" and p[0] != c"\r":
                raise FormatError("the item has more than one record: the index is not this file's, or damaged")
            p += 1
        return values

    cdef const uint8_t* plain(self, const uint8_t* p, const uint8_t* end, list values) except NULL:
        """A field without quotes; returns where it ends."""
        cdef const uint8_t* q = self.field_end(p, end)
        values.append(PyUnicode_DecodeUTF8(<const char*>p, q - p, NULL))
        return q

    cdef const uint8_t* quoted(self, const uint8_t* p, const uint8_t* end, list values) except NULL:
        """A field within quotes, from behind the first of them; returns where it ends."""
        cdef const uint8_t* q = self.closing(p, end)
        cdef const uint8_t* after = self.field_end(q + 1, end)
        cdef uint8_t* out
        cdef uint8_t* to
        if after == q + 1 and memchr(p, self.quote, q - p) == NULL:
            values.append(PyUnicode_DecodeUTF8(<const char*>p, q - p, NULL))
            return after
        out = to = <uint8_t*>PyMem_Malloc(after - p + 1)
        if out == NULL:
            raise MemoryError(f"no memory for a field of {after - p} bytes")
        try:
            while p < q:
                to[0] = p[0]
                p += 2 if p[0] == self.quote else 1
                to += 1
            memcpy(to, q + 1, after - q - 1)
            to += after - q - 1
            values.append(PyUnicode_DecodeUTF8(<const char*>out, to - out, NULL))
        finally:
            PyMem_Free(out)
        return after

    cdef const uint8_t* closing(self, const uint8_t* p, const uint8_t* end) except NULL:
        """The quote that closes the field."""
        while True:
            p = <const uint8_t*>memchr(p, self.quote, end - p)
            if p == NULL:
                raise FormatError("a quoted field is never closed: the index is not this file's, or damaged")
            if p + 1 == end or p[1] != self.quote:
                return p
            p += 2

    cdef inline const uint8_t* field_end(self, const uint8_t* p, const uint8_t* end) noexcept nogil:
        """The next delimiter or end of the record."""
        while p < end and p[0] != self.delimiter and p[0] != c"\n":
            if p[0] == c"\r" and (p + 1 == end or p[1] == c"\n"):
                break
            p += 1
        return p
