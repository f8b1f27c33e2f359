"""Parquet's own metadata, as far as it says where things are: footers and page headers, in Thrift's compact protocol.

What pages hold is pyarrow's business. Its view of a footer is not used for this: damaged ones can end the process
there. Every count and length is checked against the bytes before it is believed. Source of the layout: the
Parquet format's ``FileMetaData`` and ``PageHeader``, the Thrift compact protocol.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint64_t

from array import array

from lazystore.errors import FormatError

cdef enum:
    MAX_DEPTH = 16
    T_TRUE = 1
    T_FALSE = 2
    T_BYTE = 3
    T_I32 = 5
    T_I64 = 6
    T_DOUBLE = 7
    T_BINARY = 8
    T_LIST = 9
    T_SET = 10
    T_MAP = 11
    T_STRUCT = 12

# Fields of a footer, a row group, a column chunk, its metadata, and a schema element.
cdef enum:
    FOOTER_SCHEMA = 2
    FOOTER_GROUPS = 4
    GROUP_COLUMNS = 1
    GROUP_ROWS = 3
    CHUNK_FILE = 1
    CHUNK_META = 3
    META_ENCODINGS = 2
    META_CODEC = 4
    META_VALUES = 5
    META_INFLATED = 6
    META_STORED = 7
    META_DATA_AT = 9
    META_DICTIONARY_AT = 11
    META_PAGES = 13
    META_SIZES = 16
    ELEMENT_TYPE = 1
    ELEMENT_WIDTH = 2
    ELEMENT_REPETITION = 3
    ELEMENT_NAME = 4
    ELEMENT_CHILDREN = 5

# Encodings that say which word of the dictionary a value is.
cdef enum:
    PLAIN_DICTIONARY = 2
    RLE_DICTIONARY = 8

cdef enum:
    RLE = 3            # of levels, in lists of encodings
    BIT_PACKED = 4
    TYPE_BYTE_ARRAY = 6
    TYPE_FIXED = 7
    MAX_COUNT = 1 << 30

cdef enum:
    PAGE_DATA = 0
    PAGE_DICTIONARY = 2
    PAGE_DATA_V2 = 3


@cython.final
cdef class _Compact:
    """A cursor over Thrift's compact protocol. Running past the end raises EOFError."""

    cdef Py_buffer buffer
    cdef const uint8_t* p
    cdef int64_t n
    cdef int64_t at
    cdef int64_t key       # of the field that :meth:`field` came to

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.buffer, PyBUF_SIMPLE)
        self.p = <const uint8_t*>self.buffer.buf
        self.n = self.buffer.len

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    cdef int byte(self) except -1:
        if self.at >= self.n:
            raise EOFError
        self.at += 1
        return self.p[self.at - 1]

    cdef int64_t unsigned(self) except -1:
        cdef uint64_t value = 0
        cdef int shift = 0, byte
        while True:
            byte = self.byte()
            value |= <uint64_t>(byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                raise FormatError("Parquet metadata holds a number of more than 64 bits")
        if value >> 62:
            raise FormatError(f"Parquet metadata holds a count of {value}")
        return <int64_t>value

    cdef int64_t signed(self) except? -1:
        cdef uint64_t value = 0
        cdef int shift = 0, byte
        while True:
            byte = self.byte()
            value |= <uint64_t>(byte & 127) << shift
            if byte < 128:
                return <int64_t>(value >> 1) ^ -<int64_t>(value & 1)
            shift += 7
            if shift > 63:
                raise FormatError("Parquet metadata holds a number of more than 64 bits")

    cdef int field(self) except -1:
        """Go to the next field of a struct: its type, 0 at the end. ``key`` must be 0 before the first."""
        cdef int byte = self.byte()
        if byte == 0:
            return 0
        self.key = self.key + (byte >> 4) if byte >> 4 else self.signed()
        if byte & 15 == 0:
            raise FormatError("Parquet metadata holds a field without a type")
        return byte & 15

    cdef int64_t number(self, int kind) except? -1:
        if kind < T_BYTE or kind > T_I64:
            raise FormatError(f"Parquet metadata has a field of type {kind} where a number should be")
        return self.byte() if kind == T_BYTE else self.signed()

    cdef int64_t items(self, int kind, int of) except -1:
        """Go into a list: how many items it has. Each takes a byte at least, so that is bounded by the bytes."""
        cdef int byte
        cdef int64_t count
        if kind != T_LIST:
            raise FormatError(f"Parquet metadata has a field of type {kind} where a list should be")
        byte = self.byte()
        count = byte >> 4 if byte >> 4 < 15 else self.unsigned()
        if count > self.n - self.at:
            raise EOFError
        if count and byte & 15 != of:
            raise FormatError(f"Parquet metadata has a list of type {byte & 15} where {of} should be")
        return count

    cdef int skip_bytes(self, int64_t n) except -1:
        if n > self.n - self.at:
            raise EOFError
        self.at += n
        return 0

    cdef int skip(self, int kind, int depth, bint inside) except -1:
        """Pass over a value; ``inside`` a list, a boolean has a byte of its own."""
        cdef int64_t count, key
        cdef int byte, of
        if depth > MAX_DEPTH:
            raise FormatError("Parquet metadata is nested too deeply")
        if kind == T_TRUE or kind == T_FALSE:
            if inside:
                self.byte()
        elif kind == T_BYTE:
            self.byte()
        elif kind < T_DOUBLE:
            self.signed()
        elif kind == T_DOUBLE:
            self.skip_bytes(8)
        elif kind == T_BINARY:
            self.skip_bytes(self.unsigned())
        elif kind == T_LIST or kind == T_SET:
            byte = self.byte()
            count = byte >> 4 if byte >> 4 < 15 else self.unsigned()
            for _ in range(count):
                self.skip(byte & 15, depth + 1, True)
        elif kind == T_STRUCT:
            key = self.key
            self.key = 0
            while True:
                of = self.field()
                if of == 0:
                    break
                self.skip(of, depth + 1, False)
            self.key = key
        else:
            raise FormatError(f"Parquet metadata has a field of type {kind}")
        return 0


def scan_footer(footer, *, int64_t end):
    """Where a Parquet file's column chunks are.

    Parameters:
        footer: its ``FileMetaData``.
        end: where the footer begins in the file; column chunks lie before it.

    Returns:
        (schema, rows, chunks, hints): ``(name, repetition, children, width)`` of each element of the schema in
        depth-first order (width: bytes of a value, -1: any number); rows of each row group; begin, stored and inflated
        bytes of each column chunk, group by group, flat; values, bytes of its texts (-1: not said), number of the
        codec, and whether all values are words of a dictionary, in the same way. Hints are believed nowhere.

    Raises:
        FormatError: damaged, or a column chunk that does not lie in the file.

    Cost: ~0.5 us a column chunk. Memory: what is returned.
    """
    cdef _Compact at = _Compact(footer)
    cdef list schema = []
    cdef object rows = array("q"), chunks = array("q"), hints = array("q")
    cdef int kind
    try:
        while True:
            kind = at.field()
            if kind == 0:
                break
            if at.key == FOOTER_SCHEMA:
                for _ in range(at.items(kind, T_STRUCT)):
                    schema.append(element(at))
            elif at.key == FOOTER_GROUPS:
                for _ in range(at.items(kind, T_STRUCT)):
                    group(at, rows, chunks, hints, end)
            else:
                at.skip(kind, 0, False)
    except EOFError:
        raise FormatError("its metadata ends early") from None
    return schema, rows, chunks, hints


cdef tuple element(_Compact at):
    cdef int64_t key = at.key, repetition = 0, children = 0, physical = 0, width = 0, n
    cdef bytes name = b""
    cdef int kind
    at.key = 0
    while True:
        kind = at.field()
        if kind == 0:
            break
        if at.key == ELEMENT_TYPE:
            physical = at.number(kind)
        elif at.key == ELEMENT_WIDTH:
            width = at.number(kind)
        elif at.key == ELEMENT_REPETITION:
            repetition = at.number(kind)
        elif at.key == ELEMENT_CHILDREN:
            children = at.number(kind)
        elif at.key == ELEMENT_NAME and kind == T_BINARY:
            n = at.unsigned()
            at.skip_bytes(n)
            name = (<const char*>at.p)[at.at - n:at.at]
        else:
            at.skip(kind, 1, False)
    at.key = key
    if physical == TYPE_BYTE_ARRAY:
        width = -1
    elif physical != TYPE_FIXED:
        width = 8
    return name.decode("utf-8", "replace"), repetition, children, min(max(width, -1), <int64_t>MAX_COUNT)


cdef int group(_Compact at, rows, chunks, hints, int64_t end) except -1:
    cdef int64_t key = at.key, n = 0
    cdef Py_ssize_t first = len(chunks)
    cdef int kind
    at.key = 0
    while True:
        kind = at.field()
        if kind == 0:
            break
        if at.key == GROUP_COLUMNS:
            for _ in range(at.items(kind, T_STRUCT)):
                chunk(at, chunks, hints)
        elif at.key == GROUP_ROWS:
            n = at.number(kind)
        else:
            at.skip(kind, 1, False)
    if n < 0:
        raise FormatError(f"a row group says it has {n} rows")
    rows.append(n)
    while first < len(chunks):
        if not n:
            chunks[first] = chunks[first + 1] = 0  # where nothing is may be anywhere
        elif chunks[first] < 4 or not 0 <= chunks[first + 1] <= end - chunks[first]:
            raise FormatError(
                f"a column chunk of {chunks[first + 1]} bytes at {chunks[first]} does not lie in the file"
            )
        first += 3
    at.key = key
    return 0


cdef int chunk(_Compact at, chunks, hints) except -1:
    cdef int64_t key = at.key, begin = -1, dictionary = 0, stored = -1, inflated = 0, inner
    cdef int64_t values = 0, texts = -1, codec = 0
    cdef int kind, words = -1, listed = 0
    at.key = 0
    while True:
        kind = at.field()
        if kind == 0:
            break
        if at.key == CHUNK_FILE:
            raise FormatError("a column chunk is said to lie in another file")
        if at.key != CHUNK_META or kind != T_STRUCT:
            at.skip(kind, 1, False)
            continue
        inner = at.key
        at.key = 0
        while True:
            kind = at.field()
            if kind == 0:
                break
            if at.key == META_STORED:
                stored = at.number(kind)
            elif at.key == META_INFLATED:
                inflated = at.number(kind)
            elif at.key == META_DATA_AT:
                begin = at.number(kind)
            elif at.key == META_DICTIONARY_AT:
                dictionary = at.number(kind)
            elif at.key == META_CODEC:
                codec = at.number(kind)
            elif at.key == META_VALUES:
                values = at.number(kind)
            elif at.key == META_ENCODINGS:
                listed = only_words(at, kind)
            elif at.key == META_PAGES:
                words = pages_of_words(at, kind)
            elif at.key == META_SIZES and kind == T_STRUCT:
                texts = first_number(at)
            else:
                at.skip(kind, 2, False)
        at.key = inner
    if 0 < dictionary < begin:
        begin = dictionary
    chunks.extend((begin, stored, min(max(inflated, 0), <int64_t>1 << 50)))
    hints.extend((
        min(max(values, 0), <int64_t>1 << 50), min(max(texts, -1), <int64_t>1 << 50), codec,
        words if words >= 0 else listed,
    ))
    at.key = key
    return 0


cdef int only_words(_Compact at, int kind) except -1:
    """Whether a list of encodings leaves only words of a dictionary for values."""
    cdef int64_t encoding
    cdef int found = 0
    for _ in range(at.items(kind, T_I32)):
        encoding = at.signed()
        if encoding == PLAIN_DICTIONARY and found >= 0:
            found = 1
        elif encoding != RLE and encoding != BIT_PACKED:
            found = -1
    return found > 0


cdef int pages_of_words(_Compact at, int kind) except -1:
    """Whether all data pages hold words of a dictionary, by a list of how many pages have which encoding."""
    cdef int64_t key = at.key, page, encoding
    cdef int found = 0
    for _ in range(at.items(kind, T_STRUCT)):
        page = encoding = -1
        at.key = 0
        while True:
            kind = at.field()
            if kind == 0:
                break
            if at.key == 1:
                page = at.number(kind)
            elif at.key == 2:
                encoding = at.number(kind)
            else:
                at.skip(kind, 3, False)
        if page == PAGE_DATA or page == PAGE_DATA_V2:
            found = 1 if found >= 0 and (encoding == PLAIN_DICTIONARY or encoding == RLE_DICTIONARY) else -1
    at.key = key
    return found > 0


cdef int64_t first_number(_Compact at) except? -1:
    """The first field of a struct, -1 if it has none."""
    cdef int64_t key = at.key, found = -1
    cdef int kind
    at.key = 0
    while True:
        kind = at.field()
        if kind == 0:
            break
        if at.key == 1:
            found = at.number(kind)
        else:
            at.skip(kind, 3, False)
    at.key = key
    return found


def longest_word(data):
    """Bytes of the longest of the values ``u32 length | bytes`` that a dictionary of texts is made of.

    Raises:
        FormatError: a value runs past the end.

    Cost: ~2 ns a value.
    """
    cdef const uint8_t[::1] view = data
    cdef int64_t at = 0, n = view.shape[0], size, longest = 0
    while at + 4 <= n:
        size = view[at] | view[at + 1] << 8 | view[at + 2] << 16 | <int64_t>view[at + 3] << 24
        at += 4 + size
        longest = max(longest, size)
    if at > n:
        raise FormatError("a value of a Parquet dictionary runs past its end")
    return longest


def scan_page(data):
    """The page whose header ``data`` begins with.

    Returns:
        (bytes of the header, stored bytes, inflated bytes, whether it is a dictionary, values, rows, whether values are
        words of a dictionary): rows are -1 where a data page does not say; dictionaries and index pages have 0 values
        and rows. None if ``data`` ends before the header does.

    Raises:
        FormatError: no page header.
    """
    cdef _Compact at = _Compact(data)
    cdef int64_t page = -1, stored = -1, inflated = -1, values = -1, rows = -1, encoding = -1
    cdef int kind
    try:
        while True:
            kind = at.field()
            if kind == 0:
                break
            if at.key == 1:
                page = at.number(kind)
            elif at.key == 2:
                inflated = at.number(kind)
            elif at.key == 3:
                stored = at.number(kind)
            elif (at.key == 5 or at.key == 8) and kind == T_STRUCT:
                values, rows, encoding = counts(at, at.key == 8)
            else:
                at.skip(kind, 0, False)
    except EOFError:
        return None
    if page < 0 or not 0 <= stored < 1 << 31 or not 0 <= inflated < 1 << 31:
        raise FormatError(f"a Parquet page of kind {page} says it has {stored} bytes, {inflated} inflated")
    if page != PAGE_DATA and page != PAGE_DATA_V2:
        return at.at, stored, inflated, page == PAGE_DICTIONARY, 0, 0, False
    if values < 0 or (page == PAGE_DATA_V2 and rows < 0):
        raise FormatError("a Parquet data page does not say how many values it has")
    return at.at, stored, inflated, False, values, rows, encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY)


cdef tuple counts(_Compact at, bint second):
    """Values, rows and encoding that a data page's header says it has."""
    cdef int64_t key = at.key, values = -1, rows = -1, encoding = -1
    cdef int kind
    at.key = 0
    while True:
        kind = at.field()
        if kind == 0:
            break
        if at.key == 1:
            values = at.number(kind)
        elif at.key == 3 and second:
            rows = at.number(kind)
        elif at.key == (4 if second else 2):
            encoding = at.number(kind)
        else:
            at.skip(kind, 1, False)
    at.key = key
    return values, rows, encoding
