"""Where the items of a text begin: one forward scan, buffer by buffer, into ready-made offset tables.

:class:`LineScanner` knows lines, JSON lines and delimited records (RFC 4180). What a record holds is read
elsewhere (``fields.pyx``); where bytes come from and where tables go is the caller's business.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

from lazystore.errors import ConfigError, FormatError

cdef extern from *:
    """
    /* Bit i: byte i of 64 is a newline. Without SSE2, memchr finds them one by one. */
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #define LZ_BLOCK 64
    static inline uint64_t lz_newlines(const uint8_t *p) {
        const __m128i newline = _mm_set1_epi8('\\n');
        uint64_t mask = 0;
        for (int i = 0; i < 4; i++) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(p + 16 * i));
            mask |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, newline)) << (16 * i);
        }
        return mask;
    }
    static inline int lz_lowest(uint64_t mask) { return __builtin_ctzll(mask); }
    #else
    #define LZ_BLOCK 0
    static inline uint64_t lz_newlines(const uint8_t *p) { return 0; }
    static inline int lz_lowest(uint64_t mask) { return 0; }
    #endif
    """
    enum: LZ_BLOCK
    uint64_t lz_newlines(const uint8_t* p) noexcept nogil
    int lz_lowest(uint64_t mask) noexcept nogil

cdef enum Kind:
    LINES, JSONL, FIELDS

cdef enum State:
    MARK     # in what may be a byte order mark
    START    # in a line that was blank so far
    BODY     # in a line or an unquoted field
    FIELD    # where a field begins
    QUOTED   # within quotes
    QUOTE    # after a quote within quotes: its end, or the first of two

_KINDS = {"lines": LINES, "jsonl": JSONL, "fields": FIELDS}
cdef uint8_t[3] BOM = [0xEF, 0xBB, 0xBF]
cdef int64_t NOWHERE = -1
cdef uint64_t LARGEST = 0xFFFFFFFF    # offsets are u32


cdef class LineScanner:
    """Finds items in a text that is fed to it, and gathers them into chunks that end on an item's border.

    Parameters:
        kind: "lines" (every line is an item), "jsonl" (but those of spaces and tabs alone) or "fields" (records of
            fields; empty lines are none, and quotes may enclose newlines).
        target: a chunk is complete when the next item begins this many bytes or more after its own beginning.
        limit: or when it has this many items.
        skip: items before the first that counts (a header line).
        delimiter, quote: for "fields", one byte each; quote=b"" for texts without quoting.

    An item reaches from its line's beginning to the next item's: terminator, and what lines are none, included. Only
    a line feed ends a line. A byte order mark at the beginning belongs to no item, nor does what ``skip`` skips.

    Memory: 4 bytes an item of the chunk under way. The scan holds no GIL. Threads: one at a time. Pickling: refused.
    """

    cdef Kind kind
    cdef State state
    cdef int delimiter, quote
    cdef uint64_t target, limit, skip
    cdef uint64_t position          # of the next byte that will be fed
    cdef uint64_t line              # where the line (record) under way begins
    cdef uint64_t first             # where the chunk under way begins
    cdef int64_t start              # where the first item begins, or NOWHERE so far
    cdef int64_t border             # where the complete chunk ends and the next begins, or NOWHERE
    cdef uint32_t* entries          # items of the chunk, from its beginning
    cdef uint64_t count, capacity
    cdef bint failed

    def __cinit__(
        self, str kind not None, *,
        uint64_t target, uint64_t limit, uint64_t skip=0, bytes delimiter=b",", bytes quote=b'"',
    ):
        if kind not in _KINDS:
            raise ConfigError(f"kind={kind!r} is not one of {', '.join(_KINDS)}")
        if not 1 <= target <= 1 << 30 or not 1 <= limit <= 1 << 28:
            raise ConfigError(f"target={target}, limit={limit} is no size of a chunk")
        if len(delimiter) != 1 or len(quote) > 1 or delimiter == quote or b"\n" in (delimiter, quote):
            raise ConfigError(f"delimiter={delimiter!r}, quote={quote!r} are not two different bytes")
        self.kind = _KINDS[kind]
        self.delimiter = delimiter[0]
        self.quote = quote[0] if quote else -1
        self.target = target
        self.limit = limit
        self.skip = skip
        self.state = MARK
        self.start = self.border = NOWHERE

    def __dealloc__(self):
        free(self.entries)

    def __reduce__(self):
        raise TypeError("a LineScanner cannot be pickled: it is in the middle of a text")

    @property
    def lead(self):
        """Bytes before the first item; -1 while that is not known."""
        return self.start

    @property
    def ready(self):
        """Whether a chunk is complete: :meth:`take` it, then go on."""
        return self.border != NOWHERE

    def scan(self, const unsigned char[::1] data not None):
        """Take the text's next bytes; returns how many: less than all of them when a chunk became complete.

        Raises:
            FormatError: an item that does not fit into a chunk of 4 GiB.
        """
        cdef const uint8_t* begin = <const uint8_t*>&data[0] if data.shape[0] else NULL
        cdef const uint8_t* p
        if self.border != NOWHERE:
            raise ConfigError("a chunk is complete: take it before scanning on")
        with nogil:
            p = self.walk(begin, begin + data.shape[0])
        self.position += p - begin
        if self.failed:
            raise MemoryError(f"no memory for {self.count} offsets")
        self.check_length()
        return p - begin

    def finish(self):
        """The text ends here. Afterwards a last chunk may be ready.

        Raises:
            FormatError: it ends within quotes.
        """
        if self.border != NOWHERE:
            raise ConfigError("a chunk is complete: take it before finishing")
        if self.state == QUOTED:
            raise FormatError(f"the record that begins at byte {self.line} has a quote that is never closed")
        if self.state == MARK and self.position:
            self.emit(0)
        self.state = START
        self.line = self.position
        if self.start == NOWHERE:
            self.start = self.position
        if self.count:
            self.border = self.position

    def take(self):
        """The complete chunk, ``(table, begin, nbytes, count)``: its offset table in the classic layout (as if its
        bytes followed the table), and which bytes of the text it has. The next one is under way then."""
        if self.border == NOWHERE:
            raise ConfigError("no chunk is complete yet")
        cdef uint64_t count = self.count, begin = self.first, nbytes = self.border - self.first, k
        cdef uint32_t head = 4 * (count + 2)
        cdef bytes table = PyBytes_FromStringAndSize(NULL, head)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(table)
        cdef uint32_t n = count, last = head + nbytes
        memcpy(out, &n, 4)
        for k in range(count):
            self.entries[k] += head
        memcpy(out + 4, self.entries, 4 * count)
        memcpy(out + 4 + 4 * count, &last, 4)
        self.count = 0
        if self.state != START:
            self.emit(self.border)  # the item before which scanning stopped is the next one's first
        self.border = NOWHERE
        return table, begin, nbytes, count

    cdef int check_length(self) except -1:
        cdef uint64_t end = self.position if self.border == NOWHERE else self.border
        if self.count and end - self.first > LARGEST - 4 * (self.limit + 2):
            raise FormatError(
                f"the item that begins at byte {self.first + self.entries[self.count - 1]} is longer than "
                "a chunk of 4 GiB can hold"
            )
        return 0

    cdef bint emit(self, uint64_t begin) noexcept nogil:
        """An item begins here; False when the chunk is complete without it (or there is no memory)."""
        if self.skip:
            self.skip = self.skip - 1
            return True
        if self.count == 0:
            self.first = begin
            if self.start == NOWHERE:
                self.start = begin
        elif begin - self.first >= self.target or self.count == self.limit:
            self.border = begin
            return False
        if self.count == self.capacity and not self.grow():
            return False
        self.entries[self.count] = <uint32_t>(begin - self.first)
        self.count = self.count + 1
        return True

    cdef bint grow(self) noexcept nogil:
        cdef uint64_t capacity = min(2 * self.capacity + 1024, self.limit)
        cdef uint32_t* larger = <uint32_t*>realloc(self.entries, 4 * capacity)
        if larger == NULL:
            self.failed = True
            return False
        self.entries = larger
        self.capacity = capacity
        return True

    cdef const uint8_t* walk(self, const uint8_t* p, const uint8_t* end) noexcept nogil:
        """Scan on; stops after the byte before which a chunk became complete."""
        cdef const uint8_t* origin = p - self.position
        while p < end:
            if self.state == MARK:
                p = self.walk_mark(p, end)
            elif self.state == START:
                p = self.walk_blank(p, end, origin)
            elif self.kind == FIELDS:
                p = self.walk_record(p, end, origin)
            else:
                p = self.walk_lines(p, end, origin)
            if self.border != NOWHERE or self.failed:
                break
        return p

    cdef const uint8_t* walk_mark(self, const uint8_t* p, const uint8_t* end) noexcept nogil:
        """The first bytes of all: a byte order mark, or the first item's."""
        cdef uint64_t seen = self.line  # bytes of the mark that were met
        while p < end and seen < 3 and p[0] == BOM[seen]:
            p += 1
            seen += 1
        self.line = seen
        if seen == 3 or (seen == 0 and p < end):
            self.state = START
        elif p < end:
            self.line = 0
            self.emit(0)
            self.state = BODY
        return p

    cdef const uint8_t* walk_blank(self, const uint8_t* p, const uint8_t* end, const uint8_t* origin) noexcept nogil:
        """A line's beginning, as long as it may be a blank line."""
        cdef uint8_t c
        while p < end:
            c = p[0]
            if self.kind == LINES or not self.blank(c, p - origin):
                self.state = FIELD if self.kind == FIELDS and <uint64_t>(p - origin) == self.line else BODY
                self.emit(self.line)
                return p
            p += 1
            if c == c"\n":
                self.line = p - origin
        return p

    cdef inline bint blank(self, uint8_t c, uint64_t at) noexcept nogil:
        """Whether a line may have this byte and still be none."""
        if c == c"\n":
            return True
        if self.kind == FIELDS:
            return c == c"\r" and at == self.line
        return c == c" " or c == c"\t" or c == c"\r"

    cdef const uint8_t* walk_lines(self, const uint8_t* p, const uint8_t* end, const uint8_t* origin) noexcept nogil:
        """The rest of a line, and whole lines after it."""
        cdef uint64_t mask
        cdef const uint8_t* next
        cdef uint8_t least = 0 if self.kind == LINES else 33  # what begins with less may be blank
        while LZ_BLOCK and end - p >= LZ_BLOCK:
            mask = lz_newlines(p)
            while mask:
                next = p + lz_lowest(mask) + 1
                mask &= mask - 1
                if next == end or next[0] < least:
                    self.state = START
                    self.line = next - origin
                    return next
                if not self.emit(next - origin):
                    return next
            p += LZ_BLOCK
        while p < end:
            p = <const uint8_t*>memchr(p, c"\n", end - p)
            if p == NULL:
                return end
            p += 1
            if p == end or p[0] < least:
                self.state = START
                self.line = p - origin
                return p
            if not self.emit(p - origin):
                return p
        return end

    cdef const uint8_t* walk_record(self, const uint8_t* p, const uint8_t* end, const uint8_t* origin) noexcept nogil:
        """The rest of a record of fields, and whole ones after it."""
        cdef const uint8_t* newline
        cdef const uint8_t* quote = NULL    # the next one from p on, once it was looked for; end: there is none
        while p < end:
            if self.state == START:
                # The common case first: a record without quotes or blank lines before it.
                newline = <const uint8_t*>memchr(p, c"\n", end - p)
                if quote < p:
                    quote = find(p, end, self.quote)
                if newline == NULL or newline == p or p[0] == c"\r" or quote < newline:
                    p = self.walk_blank(p, end, origin)
                else:
                    if not self.emit(self.line):
                        self.state = FIELD
                        return p
                    p = newline + 1
                    self.line = p - origin
            else:
                p = self.step_record(p, end, origin)
            if self.border != NOWHERE or self.failed:
                return p
        return p

    cdef const uint8_t* step_record(self, const uint8_t* p, const uint8_t* end, const uint8_t* origin) noexcept nogil:
        """Byte by byte to the end of the record."""
        cdef State state = self.state
        cdef uint8_t c
        while p < end:
            if state == QUOTED:
                p = find(p, end, self.quote)
                if p < end:
                    p += 1
                    state = QUOTE
                continue
            c = p[0]
            p += 1
            if c == c"\n":
                state = START
                self.line = p - origin
                break
            if c == self.quote and state != BODY:
                state = QUOTED
            elif c == self.delimiter:
                state = FIELD
            else:
                state = BODY
        self.state = state
        return p


cdef inline const uint8_t* find(const uint8_t* p, const uint8_t* end, int byte) noexcept nogil:
    """The first such byte, or end."""
    cdef const uint8_t* found = NULL
    if byte >= 0:
        found = <const uint8_t*>memchr(p, byte, end - p)
    return end if found == NULL else found
