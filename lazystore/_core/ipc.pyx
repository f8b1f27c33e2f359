"""Arrow's IPC messages in C: a message's header taken apart, and a record batch laid over its body.

A message is ``FFFFFFFF | i32 length | flatbuffer | body`` (before 2019 without the first word). Every position is
checked to lie in the bytes before anything is read there. Columns' types are ``row_shape``'s, schemas pyarrow's
business. Source of the layout: the Arrow columnar format, version 5 of the metadata.
"""

from array import array

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from lazystore._core.row_shape cimport K_ARRAY, K_BYTES, K_NULL, K_RAW, K_STR, K_STRUCT, K_UINT, Kind, RowShape
from lazystore._core.rows cimport RowBatch
from lazystore.errors import ConfigError, FormatError, UnsupportedError

cdef enum:
    KIND_SCHEMA = 1
    KIND_DICTIONARY = 2
    KIND_BATCH = 3
    MAX_HEADER = 1 << 28
    ALIGNED = 64  # bytes: how buffers lie in a body, and in a part of it

cdef int64_t MAX_BODY = <int64_t>1 << 46
_CODECS = {0: "lz4", 1: "zstd"}


@cython.final
cdef class _Bytes:
    """Bytes and the checked loads from them."""

    cdef Py_buffer buffer
    cdef const uint8_t* p
    cdef int64_t n

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.buffer, PyBUF_SIMPLE)
        self.p = <const uint8_t*>self.buffer.buf
        self.n = self.buffer.len

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    cdef int need(self, int64_t at, int64_t n) except -1:
        if at < 0 or n < 0 or at > self.n or n > self.n - at:
            raise FormatError("an Arrow header points outside of itself")
        return 0

    cdef uint32_t u32(self, int64_t at) except? 0xFFFFFFFF:
        cdef uint32_t value
        self.need(at, 4)
        memcpy(&value, self.p + at, 4)
        return value

    cdef int64_t i64(self, int64_t at) except? -1:
        cdef int64_t value
        self.need(at, 8)
        memcpy(&value, self.p + at, 8)
        return value

    cdef int64_t small(self, int64_t at, int width) except? -1:
        """A signed integer of 1 or 2 bytes."""
        cdef int16_t two
        self.need(at, width)
        if width == 1:
            return <int8_t>self.p[at]
        memcpy(&two, self.p + at, 2)
        return two

    cdef int64_t slot(self, int64_t table, int field) except? -1:
        """Where a table's field is, 0 if it was left out."""
        cdef int64_t fields = table - <int32_t>self.u32(table)
        cdef uint16_t offset
        self.need(fields, 4)
        memcpy(&offset, self.p + fields, 2)
        if 4 + 2 * field + 2 > offset:
            return 0
        self.need(fields, offset)
        memcpy(&offset, self.p + fields + 4 + 2 * field, 2)
        return table + offset if offset else 0

    cdef int64_t child(self, int64_t table, int field) except? -1:
        """Where the table in a field is, 0 if it was left out."""
        cdef int64_t at = self.slot(table, field)
        return at + self.u32(at) if at else 0

    cdef int64_t vector(self, int64_t table, int field, int64_t nbytes, int64_t* count) except? -1:
        """Where a vector of structs begins, and how many there are."""
        cdef int64_t at = self.child(table, field)
        count[0] = 0
        if not at:
            return 0
        count[0] = self.u32(at)
        self.need(at + 4, count[0] * nbytes)
        return at + 4


def header_length(data):
    """Bytes of a message's header, out of its first 8; 0 at the end of a stream.

    Raises:
        FormatError: no message begins here.
    """
    cdef _Bytes found = _Bytes(data)
    cdef int64_t begin = 4
    cdef uint32_t length = found.u32(0)
    if length == 0xFFFFFFFF:
        begin = 8
        length = found.u32(4)
    if length > MAX_HEADER:
        raise FormatError(f"an Arrow message says its header has {length} bytes")
    return begin + length if length else 0


@cython.final
cdef class IpcMessage:
    """One message's header.

    Parameters:
        data: the header, or the whole message.

    Attributes:
        kind: 1 schema, 2 dictionary, 3 record batch.
        header: bytes of the header, with its prefix.
        body_bytes: bytes that follow.
        rows: of a batch or dictionary.
        codec: of the buffers, "" for none.
        big_endian: of a schema.

    Raises:
        FormatError: it is damaged; buffers that do not lie in the body are.
        UnsupportedError: a compression nobody knows.

    Cost: ~1 us. Threads: immutable. Pickling: refused.
    """

    cdef readonly int kind
    cdef readonly int64_t header, body_bytes, rows
    cdef readonly str codec
    cdef readonly bint big_endian
    cdef int64_t* nodes        # length and number of nulls of each array, in depth-first order
    cdef int64_t* buffer_at     # position in the body and bytes of each buffer
    cdef int64_t n_nodes, n_buffers
    cdef int64_t said_body, said_buffers    # where in the header the body's bytes and the buffers are written

    def __cinit__(self, data):
        cdef _Bytes found = _Bytes(data)
        cdef int64_t begin, root, table
        self.codec = ""
        self.header = header_length(data)
        begin = 4 if found.u32(0) != 0xFFFFFFFF else 8
        if self.header <= begin or self.header > found.n:
            raise FormatError(f"an Arrow message has a header of {self.header} bytes in {found.n}")
        found.p += begin
        found.n = self.header - begin
        root = found.u32(0)
        table = found.slot(root, 1)
        self.kind = found.small(table, 1) if table else 0
        table = found.slot(root, 3)
        self.body_bytes = found.i64(table) if table else 0
        self.said_body = begin + table
        table = found.child(root, 2)
        if self.body_bytes < 0 or self.body_bytes > MAX_BODY or not table:
            raise FormatError(f"an Arrow message of kind {self.kind} says its body has {self.body_bytes} bytes")
        if self.kind == KIND_DICTIONARY:
            table = found.child(table, 1)
        if self.kind == KIND_SCHEMA:
            root = found.slot(table, 0)
            self.big_endian = root != 0 and found.small(root, 2) != 0
        elif self.kind in (KIND_DICTIONARY, KIND_BATCH) and table:
            self.fill(found, table)
            self.said_buffers += begin

    def __dealloc__(self):
        free(self.nodes)
        free(self.buffer_at)

    cdef fill(self, _Bytes found, int64_t table):
        cdef int64_t at = found.slot(table, 0), k
        self.rows = found.i64(at) if at else 0
        if self.rows < 0 or self.rows > MAX_BODY:
            raise FormatError(f"an Arrow message says it has {self.rows} rows")
        at = found.vector(table, 1, 16, &self.n_nodes)
        self.nodes = self.copy(found, at, self.n_nodes)
        at = self.said_buffers = found.vector(table, 2, 16, &self.n_buffers)
        self.buffer_at = self.copy(found, at, self.n_buffers)
        for k in range(self.n_buffers):
            if (
                self.buffer_at[2 * k] < 0 or self.buffer_at[2 * k + 1] < 0 or self.buffer_at[2 * k] > self.body_bytes
                or self.buffer_at[2 * k + 1] > self.body_bytes - self.buffer_at[2 * k]
            ):
                raise FormatError(
                    f"an Arrow buffer of {self.buffer_at[2 * k + 1]} bytes at {self.buffer_at[2 * k]} does not lie in "
                    f"a body of {self.body_bytes}"
                )
        table = found.child(table, 3)
        if table:
            at = found.slot(table, 0)
            codec = found.small(at, 1) if at else 0
            at = found.slot(table, 1)
            if codec not in _CODECS or (at and found.small(at, 1)):
                raise UnsupportedError(f"Arrow buffers are compressed by method {codec}, which lazystore does not know")
            self.codec = _CODECS[codec]

    cdef int64_t* copy(self, _Bytes found, int64_t at, int64_t count) except? NULL:
        cdef int64_t* entries = <int64_t*>calloc(max(count, 1), 16)
        if entries == NULL:
            raise MemoryError("no memory for an Arrow header")
        if count:
            memcpy(entries, found.p + at, 16 * count)
        return entries

    @property
    def buffers(self):
        """Position in the body and bytes of each buffer, flat."""
        return [self.buffer_at[k] for k in range(2 * self.n_buffers)]

    def inflated(self, data):
        """Bytes that the buffers of the message ``data`` (header and body) say they inflate to, 0 if none does."""
        cdef _Bytes found
        cdef int64_t total = 0, k, size
        if not self.codec:
            return 0
        found = _Bytes(data)
        for k in range(self.n_buffers):
            if self.buffer_at[2 * k + 1]:
                size = found.i64(self.header + self.buffer_at[2 * k])
                # Sums of what is said stay far from 2**63.
                total = min(total + min(max(size, 0), MAX_BODY), MAX_BODY)
        return total

    def excerpt(self, data, spans):
        """The header of a message that has only parts of this one's body, one behind the other.

        Parameters:
            data: this one's header, or more.
            spans: position in the body and bytes of each part, flat, ascending (``array('q')``). Buffers that do not
                lie in one of them are empty in the new message.

        Returns:
            The header, a bytearray of as many bytes.
        """
        cdef const int64_t[::1] parts = spans
        cdef int64_t n_parts = len(parts) // 2, k, low, high, middle
        cdef int64_t[::1] moved = array("q", bytes(8 * (n_parts + 1)))  # where each part begins now
        cdef bytearray made = bytearray(memoryview(data)[:self.header])
        cdef uint8_t* p = made
        cdef int64_t entry[2]
        if len(made) != self.header or self.kind != KIND_BATCH:
            raise FormatError(f"{len(made)} bytes are not the header of this Arrow message of kind {self.kind}")
        for k in range(n_parts):
            if (
                parts[2 * k] < (parts[2 * k - 2] + parts[2 * k - 1] if k else 0) or parts[2 * k + 1] < 0
                or parts[2 * k] > self.body_bytes - parts[2 * k + 1]
            ):
                raise FormatError(f"part {k} of an Arrow body of {self.body_bytes} bytes does not lie in it")
            moved[k + 1] = moved[k] + parts[2 * k + 1]
        for k in range(self.n_buffers):
            low, high = 0, n_parts  # the last part that does not begin behind the buffer is low - 1
            while low < high:
                middle = (low + high) // 2
                if parts[2 * middle] <= self.buffer_at[2 * k]:
                    low = middle + 1
                else:
                    high = middle
            entry[0] = entry[1] = 0
            if low:
                entry[0] = self.buffer_at[2 * k] - parts[2 * low - 2]
                entry[1] = self.buffer_at[2 * k + 1]
                if entry[0] > parts[2 * low - 1] or entry[1] > parts[2 * low - 1] - entry[0]:
                    entry[0] = entry[1] = 0
                else:
                    entry[0] += moved[low - 1]
            memcpy(p + self.said_buffers + 16 * k, entry, 16)
        if self.body_bytes:
            memcpy(p + self.said_body, &moved[n_parts], 8)
        return made

    def __reduce__(self):
        raise TypeError("an IpcMessage is a header taken apart and cannot be pickled")

    def __repr__(self):
        return f"<IpcMessage of kind {self.kind}, {self.rows} rows, {self.body_bytes} bytes>"


cdef int buffers_of(Kind kind) noexcept:
    if kind == K_NULL:
        return 0
    if kind == K_STRUCT or kind == K_ARRAY:
        return 1
    return 3 if kind == K_STR or kind == K_BYTES else 2


@cython.final
cdef class IpcLayout:
    """Where the wanted columns of a file are in its record batches.

    Parameters:
        file: all columns of the file; of a dictionary's values only the indices, which is all that batches have.
        shape: the wanted ones; for :meth:`batch` as they are, none with a dictionary.
        pick: number in the file of each wanted column.

    Threads: immutable. Pickling: refused.
    """

    cdef RowShape file
    cdef RowShape shape
    cdef int* to               # number in ``shape`` of each type of the file, -1: not wanted

    def __cinit__(self, RowShape file not None, RowShape shape not None, pick):
        cdef int k, column, node, begin, end
        cdef Kind kind
        self.file = file
        self.shape = shape
        self.to = <int*>calloc(max(file.n_nodes, 1), sizeof(int))
        if self.to == NULL:
            raise MemoryError("no memory for an Arrow layout")
        for k in range(file.n_nodes):
            self.to[k] = -1
        if len(pick) != shape.n_columns:
            raise ConfigError(f"{len(pick)} columns are picked for a shape of {shape.n_columns}")
        for column, k in enumerate(pick):
            if not 0 <= k < file.n_columns:
                raise ConfigError(f"column {k} is not in a file of {file.n_columns}")
            begin, end = file.columns[k], file.nodes[file.columns[k]].behind
            if end - begin != shape.nodes[shape.columns[column]].behind - shape.columns[column]:
                raise ConfigError(f"column {k} of the file has another type than column {column} of the rows")
            for node in range(begin, end):
                self.to[node] = shape.columns[column] + node - begin
                kind = shape.nodes[self.to[node]].kind
                # Unsigned numbers beyond i64 are taken as so many bytes.
                if (
                    (file.nodes[node].kind != kind and not (kind == K_RAW and file.nodes[node].kind == K_UINT))
                    or file.nodes[node].width != shape.nodes[self.to[node]].width
                ):
                    raise ConfigError(f"column {column} of the rows has another type than in the file")

    def __dealloc__(self):
        free(self.to)

    def wanted_bytes(self, IpcMessage message not None):
        """Bytes that the wanted columns take in a batch's body, as stored.

        Raises:
            FormatError: the batch has fewer buffers than the file has columns for.
        """
        cdef int k
        cdef int64_t buffer = 0, total = 0
        for k in range(self.file.n_nodes):
            for _ in range(buffers_of(self.file.nodes[k].kind)):
                if buffer >= message.n_buffers:
                    raise FormatError("a record batch has fewer buffers than its schema asks for")
                if self.to[k] >= 0:
                    total += message.buffer_at[2 * buffer + 1]
                buffer += 1
        return total

    def spans(self, IpcMessage message not None, int64_t gap):
        """What the wanted columns take of a batch's body: position and bytes of each part, flat, ascending.

        Parameters:
            gap: parts with no more bytes than that between them are one.

        Returns:
            ``array('q')`` of at least one part, of no bytes if nothing is wanted. Parts begin at multiples of 64.

        Raises:
            FormatError: the batch has fewer buffers than the file has columns for.
        """
        cdef int k
        cdef int64_t buffer = 0, begin, end, last = -1
        cdef list found = []
        for k in range(self.file.n_nodes):
            for _ in range(buffers_of(self.file.nodes[k].kind)):
                if buffer >= message.n_buffers:
                    raise FormatError("a record batch has fewer buffers than its schema asks for")
                if self.to[k] >= 0 and message.buffer_at[2 * buffer + 1]:
                    found.append((message.buffer_at[2 * buffer], message.buffer_at[2 * buffer + 1]))
                buffer += 1
        found.sort()
        spans = array("q")
        for begin, end in found:
            end = min((begin + end + ALIGNED - 1) // ALIGNED * ALIGNED, message.body_bytes)
            begin = begin // ALIGNED * ALIGNED
            if last >= 0 and begin <= last + gap:
                last = max(last, end)
                spans[len(spans) - 1] = last - <int64_t>spans[len(spans) - 2]
            else:
                spans.append(begin)
                spans.append(end - begin)
                last = end
        return spans or array("q", (0, 0))

    def batch(self, IpcMessage message not None, data, inflate):
        """A record batch, checked.

        Parameters:
            data: the message, header and body; held until the batch is dropped, and must not change.
            inflate: function ``(codec, memoryview, bytes) -> buffer``, called for each compressed buffer.

        Raises:
            FormatError: it is damaged, or not of this schema; and what ``inflate`` raises.
        """
        cdef RowBatch batch = RowBatch(self.shape, None, message.rows)
        cdef int64_t buffer = 0, n = 0, nulls
        cdef int k, j, to
        cdef object view = memoryview(data)[message.header:message.header + message.body_bytes]
        cdef list found = [None, None, None]
        cdef const uint8_t* body
        if message.kind != KIND_BATCH or message.n_nodes < self.file.n_nodes or len(view) != message.body_bytes:
            raise FormatError(
                f"an Arrow message of kind {message.kind} with {message.n_nodes} arrays and {len(view)} of "
                f"{message.body_bytes} bytes where a record batch of {self.file.n_nodes} arrays should be"
            )
        body = batch.hold(view, &n)
        for k in range(self.file.n_nodes):
            n = buffers_of(self.file.nodes[k].kind)
            if buffer + n > message.n_buffers:
                raise FormatError("a record batch has fewer buffers than its schema asks for")
            to = self.to[k]
            if to >= 0:
                nulls = message.nodes[2 * k + 1]
                if message.codec:
                    for j in range(3):
                        found[j] = None
                    for j in range(n):
                        # A bitmap of nothing but ones is not looked at.
                        if j or nulls:
                            found[j] = self.opened(message, buffer + j, view, inflate)
                    batch.bind(to, 0, message.nodes[2 * k], found[0], found[1], found[2])
                else:
                    batch.lay(to, message.nodes[2 * k], nulls, message.buffer_at + 2 * buffer, <int>n, body)
                if nulls and batch.views[to].valid == NULL and self.file.nodes[k].kind != K_NULL:
                    raise FormatError(f"{batch.place(to)} has {nulls} nulls and nothing that says which")
            buffer += n
        batch.check()
        return batch

    cdef opened(self, IpcMessage message, int64_t buffer, view, inflate):
        """A compressed buffer's bytes, ``i64 bytes | compressed``; -1 bytes: as they are."""
        cdef int64_t begin = message.buffer_at[2 * buffer], nbytes = message.buffer_at[2 * buffer + 1]
        if not nbytes:
            return None
        if nbytes < 8:
            raise FormatError(f"a compressed Arrow buffer has {nbytes} bytes")
        size = int.from_bytes(view[begin:begin + 8], "little", signed=True)
        if size < -1:
            raise FormatError(f"a compressed Arrow buffer says it inflates to {size} bytes")
        stored = view[begin + 8:begin + nbytes]
        return stored if size == -1 else inflate(message.codec, stored, size)

    def __reduce__(self):
        raise TypeError("an IpcLayout is compiled from a schema and cannot be pickled")
