from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t

cdef enum:
    MAX_KEY = 65535

cdef enum Verdict:
    GOOD
    KILLED      # deleted or replaced, here or by another process
    FOREIGN     # a whole record of another key: two keys with one hash
    BROKEN      # not what was written
    UNREAD      # the system gave an error

cdef struct Vector:     # struct iovec
    void* base
    size_t nbytes

cdef struct Head:
    uint32_t mark
    uint32_t crc
    uint32_t payload_crc
    uint32_t key_bytes
    uint32_t payload_bytes
    uint16_t kind
    uint16_t zero
    double created
    double expires
    uint64_t stamp

cdef class SegmentFile:
    cdef readonly int fd
    cdef readonly str name
    cdef readonly uint64_t capacity     # bytes it may grow to
    cdef readonly uint64_t number
    cdef readonly uint64_t size         # bytes of whole records known, head included
    cdef readonly int64_t live          # bytes of the records that the index points to
    cdef readonly int64_t records       # how many these are
    cdef uint32_t salt
    cdef uint32_t slot                  # in the index, from 1
    cdef uint8_t* contents              # places, heads and keys of the records, while it is written by this object
    cdef size_t contents_bytes, contents_room
    cdef bint collecting
    cdef uint64_t reserved              # where the blocks end that the file has
    cdef bint trimmed                   # it has no more of them than bytes

    cdef Verdict read_key(self, uint64_t offset, uint32_t length, Head* head, uint8_t* key) noexcept nogil
    cdef Verdict read_record(
        self, uint64_t offset, const uint8_t* key, uint32_t key_bytes, uint8_t* payload, uint32_t payload_bytes,
        Head* head, uint8_t* scratch, bint at_once,
    ) noexcept nogil
    cdef Verdict kill(self, uint64_t offset, uint32_t length, const uint8_t* key, uint32_t key_bytes) except *
    cdef Verdict bury(self, uint64_t offset) noexcept nogil
    cdef Py_ssize_t read_block(self, uint8_t* block, Py_ssize_t want, uint64_t offset) noexcept
    cdef int append(self, Head* head, Vector* vectors, int parts, uint64_t length) except -1
    cdef int collect(self, const Head* head, const uint8_t* key) except -1
    cdef void reserve(self, uint64_t length) noexcept nogil
    cdef bint fits(self, uint64_t length, uint32_t key_bytes) noexcept
    cdef bytes read_contents(self)
    cdef bint whole_head(self, const Head* head, const uint8_t* key) noexcept nogil
    cdef bint gone(self) noexcept

cdef bint is_live(const Head* head) noexcept nogil
cdef void set_live(Head* head) noexcept nogil
cdef uint64_t padded(uint64_t length) noexcept nogil
cdef uint64_t listed(const Head* head) noexcept nogil
