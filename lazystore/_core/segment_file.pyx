"""One segment file of a disk tier: checksummed records, appended whole, read by one system call each.

A segment is 32 bytes of head (``magic[8] | u64 capacity | u64 number | u32 salt | u32 crc``) and records. A record is

    u32 mark | u32 crc of what follows to the key's end, begun with the salt | u32 crc of the payload | u32 key bytes
    u32 payload bytes | u16 kind | u16 0 | f64 created | f64 expires | u64 stamp | key | payload | zeros to 8 bytes

in the machine's byte order, written by one ``pwritev``. The salt keeps what an old file left in blocks of the disk
from passing for a record. Records never move; a deleted or replaced one gets another mark in its place, so that it
stays deleted whoever opens the folder later. Stamps tell which of two records of one key is the newer.

A segment that is full may end in a list of its records, so that opening it need not read all of it: a record with a
mark of its own, without a key, whose payload is ``u64 offset | head | key | zeros to 8 bytes`` for each, and at last
``u64 offset of this record | magic[8]``. Which record of a key counts is for ``record_log``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

import os

from lazystore._core.checksum cimport crc32c_update
from lazystore.errors import FormatError

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/types.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #define LZ_VECTORS 64     /* macOS had no preadv and pwritev before 11: one call a vector there */
    /* Reads or writes all of the vectors (which it changes); fewer bytes only at the end of a file that is read. */
    static ssize_t lz_transfer(int fd, void *vectors, int n, off_t at, int write) {
        struct iovec *v = (struct iovec *)vectors;
        ssize_t total = 0, done;
        for (;;) {
            for (; n > 0 && v->iov_len == 0; v++, n--) {}
            if (n == 0)
                return total;
            do {
    #if defined(__APPLE__)
                done = write ? pwrite(fd, v->iov_base, v->iov_len, at) : pread(fd, v->iov_base, v->iov_len, at);
    #else
                int part = n < LZ_VECTORS ? n : LZ_VECTORS;
                done = write ? pwritev(fd, v, part, at) : preadv(fd, v, part, at);
    #endif
            } while (done < 0 && errno == EINTR);
            if (done == 0 && write) {
                errno = ENOSPC;
                done = -1;
            }
            if (done <= 0)
                return done < 0 ? -1 : total;
            total += done;
            at += done;
            for (; n > 0 && (size_t)done >= v->iov_len; v++, n--)
                done -= v->iov_len;
            if (n > 0) {
                v->iov_base = (char *)v->iov_base + done;
                v->iov_len -= done;
            }
        }
    }
    /* Reads all of the vectors at once if the page cache has them; else -1, and nothing is known of them. */
    static ssize_t lz_cached(int fd, const void *vectors, int n, off_t at) {
    #ifdef RWF_NOWAIT
        static int refused;   /* by the system, or by a file system */
        ssize_t got;
        if (refused)
            return -1;
        got = preadv2(fd, (const struct iovec *)vectors, n, at, RWF_NOWAIT);
        if (got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
            refused = 1;
        return got;
    #else
        return -1;
    #endif
    }
    /* Blocks for bytes to come, in one go, which makes writing them cheaper; the file's size stays. False: refused. */
    static int lz_reserve(int fd, off_t at, off_t bytes) {
    #if defined(__linux__) && defined(FALLOC_FL_KEEP_SIZE)
        return fallocate(fd, FALLOC_FL_KEEP_SIZE, at, bytes) == 0;
    #else
        return 0;
    #endif
    }
    static int64_t lz_file_size(int fd) { struct stat s; return fstat(fd, &s) ? -1 : (int64_t)s.st_size; }
    static int lz_file_gone(int fd) { struct stat s; return fstat(fd, &s) != 0 || s.st_nlink == 0; }
    """
    Py_ssize_t lz_transfer(int fd, void* v, int n, long long at, int write) noexcept nogil
    Py_ssize_t lz_cached(int fd, const void* v, int n, long long at) noexcept nogil
    bint lz_reserve(int fd, long long at, long long n) noexcept nogil
    long long lz_file_size(int fd) noexcept nogil
    bint lz_file_gone(int fd) noexcept nogil
    int ftruncate(int fd, long long size) noexcept nogil
    int close(int fd) noexcept nogil

cdef enum:
    SEGMENT_HEAD = 32
    FIRST_READ = 464        # bytes behind a record's head that are read with it: most keys
    LIST_TAIL = 16
    WORTH_LISTING = 1 << 18     # shorter segments are read in one go
    AHEAD = 1 << 20             # bytes that blocks are reserved for at most
    LIST_SHARE = 8              # of a segment: where records are short, the list is not worth its room

cdef uint32_t LIVE = 0x31525A4C  # "LZR1"
cdef uint32_t DEAD = 0x78525A4C  # "LZRx"
cdef uint32_t LIST = 0x69525A4C  # "LZRi"
cdef bytes MAGIC = b"LZSEG\x01\r\n"
cdef bytes LIST_MAGIC = b"LZLIST\r\n"

SEGMENT_OVERHEAD = SEGMENT_HEAD
RECORD_OVERHEAD = sizeof(Head)
MAX_KEY_BYTES = MAX_KEY


cdef uint64_t padded(uint64_t length) noexcept nogil:
    """Bytes that a record takes in the file."""
    return (length + 7) & ~<uint64_t>7


cdef uint64_t listed(const Head* head) noexcept nogil:
    """Bytes that a record takes in the list."""
    return padded(8 + sizeof(Head) + head.key_bytes)


cdef bint is_live(const Head* head) noexcept nogil:
    """Whether the record is neither deleted nor replaced, and no list."""
    return head.mark == LIVE


cdef void set_live(Head* head) noexcept nogil:
    """The mark of a new record."""
    head.mark = LIVE


cdef uint32_t head_crc(uint32_t salt, const Head* head, const uint8_t* key) noexcept nogil:
    cdef uint32_t crc = crc32c_update(salt, <const uint8_t*>head + 8, sizeof(Head) - 8)
    return crc32c_update(crc, key, head.key_bytes)


cdef class SegmentFile:
    """An open segment file; it owns its descriptor and closes it with its last user.

    Parameters:
        fd: opened for reading and writing; it belongs to the object from here on.
        name: how it is called.
        capacity: bytes it may grow to: a new, empty file begins with them. 0: it has its head already.
        number: its place in the order of eviction, if it is new.

    Raises:
        FormatError: the file has no head of a segment; the descriptor is closed.
        OSError: it cannot be read or written; the descriptor is closed.
    """

    def __cinit__(self, int fd, str name not None, uint64_t capacity=0, uint64_t number=0):
        cdef uint8_t head[SEGMENT_HEAD]
        cdef Vector vector
        cdef Py_ssize_t got
        cdef uint32_t crc
        self.fd = fd
        self.name = name
        vector.base = head
        vector.nbytes = SEGMENT_HEAD
        if capacity:
            salt = os.urandom(4)
            memcpy(head, PyBytes_AS_STRING(MAGIC), 8)
            memcpy(head + 8, &capacity, 8)
            memcpy(head + 16, &number, 8)
            memcpy(head + 24, PyBytes_AS_STRING(salt), 4)
            crc = crc32c_update(0, head, 28)
            memcpy(head + 28, &crc, 4)
            self.collecting = True
        with nogil:
            got = lz_transfer(fd, &vector, 1, 0, capacity != 0)
        if got < 0:
            raise OSError(errno, os.strerror(errno), name)
        memcpy(&crc, head + 28, 4)
        if got < SEGMENT_HEAD or memcmp(head, PyBytes_AS_STRING(MAGIC), 8) or crc32c_update(0, head, 28) != crc:
            raise FormatError(f"{name} is no segment of a disk tier")
        memcpy(&self.capacity, head + 8, 8)
        memcpy(&self.number, head + 16, 8)
        memcpy(&self.salt, head + 24, 4)
        self.size = SEGMENT_HEAD

    cdef Verdict read_key(self, uint64_t offset, uint32_t length, Head* head, uint8_t* key) noexcept nogil:
        """A record's head, and its key into ``key``, which has MAX_KEY bytes of room; checked but for the payload."""
        cdef Vector vectors[2]
        cdef Py_ssize_t got, part
        if length < sizeof(Head):
            return BROKEN
        part = length - <Py_ssize_t>sizeof(Head)
        if part > FIRST_READ:
            part = FIRST_READ
        vectors[0].base = head
        vectors[0].nbytes = sizeof(Head)
        vectors[1].base = key
        vectors[1].nbytes = <size_t>part
        got = lz_transfer(self.fd, vectors, 2, <long long>offset, 0)
        if got < 0:
            return UNREAD
        if got < <Py_ssize_t>sizeof(Head) + part or head.key_bytes > MAX_KEY:
            return BROKEN
        if <uint64_t>head.key_bytes + head.payload_bytes + sizeof(Head) != length:
            return BROKEN
        got = part
        if <Py_ssize_t>head.key_bytes > part:
            vectors[0].base = key + part
            vectors[0].nbytes = <size_t>(<Py_ssize_t>head.key_bytes - part)
            got = lz_transfer(self.fd, vectors, 1, <long long>(offset + sizeof(Head)) + part, 0)
            if got < 0:
                return UNREAD
            got += part
        if got < <Py_ssize_t>head.key_bytes or not self.whole_head(head, key):
            return BROKEN
        return GOOD if head.mark == LIVE else KILLED if head.mark == DEAD else BROKEN

    cdef bint whole_head(self, const Head* head, const uint8_t* key) noexcept nogil:
        """Whether head and key are what was written; the mark is not looked at."""
        return head_crc(self.salt, head, key) == head.crc

    cdef Verdict read_record(
        self, uint64_t offset, const uint8_t* key, uint32_t key_bytes, uint8_t* payload, uint32_t payload_bytes,
        Head* head, uint8_t* scratch, bint at_once,
    ) noexcept nogil:
        """A whole record of ``key``, its payload right into its place, everything checked.

        FOREIGN only says that it is not whole or not this key's: :meth:`read_key` knows which. ``at_once``: only if
        that needs no disk, else UNREAD.
        """
        cdef Vector vectors[3]
        cdef Py_ssize_t got
        vectors[0].base = head
        vectors[0].nbytes = sizeof(Head)
        vectors[1].base = scratch
        vectors[1].nbytes = key_bytes
        vectors[2].base = payload
        vectors[2].nbytes = payload_bytes
        cdef Py_ssize_t want = <Py_ssize_t>(sizeof(Head) + key_bytes + payload_bytes)
        if at_once:
            got = lz_cached(self.fd, vectors, 3, <long long>offset)
        else:
            got = lz_transfer(self.fd, vectors, 3, <long long>offset, 0)
        if got < 0 or (at_once and got < want):
            return UNREAD
        if got != want:
            return BROKEN
        if head.key_bytes != key_bytes or head.payload_bytes != payload_bytes or memcmp(scratch, key, key_bytes):
            return FOREIGN
        if not self.whole_head(head, scratch):
            return BROKEN
        if head.mark != LIVE:
            return KILLED if head.mark == DEAD else BROKEN
        return GOOD if crc32c_update(0, payload, payload_bytes) == head.payload_crc else BROKEN

    cdef Verdict kill(self, uint64_t offset, uint32_t length, const uint8_t* key, uint32_t key_bytes) except *:
        """Mark a record dead where it lies, if it is whole and the key's: then GOOD."""
        cdef Head head
        cdef Verdict verdict
        cdef uint8_t* found = <uint8_t*>malloc(MAX_KEY)
        if found == NULL:
            raise MemoryError()
        with nogil:
            verdict = self.read_key(offset, length, &head, found)
            if verdict == GOOD and (head.key_bytes != key_bytes or memcmp(found, key, key_bytes)):
                verdict = FOREIGN
            if verdict == GOOD:
                verdict = self.bury(offset)
        free(found)
        return verdict

    cdef Verdict bury(self, uint64_t offset) noexcept nogil:
        """Mark the record there dead, whatever it is: GOOD, or UNREAD when it cannot be written."""
        cdef Vector vector
        vector.base = &DEAD
        vector.nbytes = sizeof(DEAD)
        return GOOD if lz_transfer(self.fd, &vector, 1, <long long>offset, 1) > 0 else UNREAD

    cdef int append(self, Head* head, Vector* vectors, int parts, uint64_t length) except -1:
        """Write a record behind the last: ``vectors`` are one for the head, the key, the parts, one for padding.

        The head's mark is set by the caller.

        Raises:
            OSError: it could not be written; the file is as it was.
        """
        cdef uint32_t crc = 0
        cdef uint64_t zeros = 0
        cdef int i, problem = 0
        vectors[0].base = head
        vectors[0].nbytes = sizeof(Head)
        vectors[2 + parts].base = &zeros
        vectors[2 + parts].nbytes = padded(length) - length
        with nogil:
            for i in range(parts):
                crc = crc32c_update(crc, <const uint8_t*>vectors[2 + i].base, vectors[2 + i].nbytes)
            head.payload_crc = crc
            head.crc = head_crc(self.salt, head, <const uint8_t*>vectors[1].base)
            if self.size + length > self.reserved:
                self.reserve(length)
            if lz_transfer(self.fd, vectors, parts + 3, <long long>self.size, 1) < 0:
                problem = errno
                ftruncate(self.fd, <long long>self.size)
        if problem:
            raise OSError(problem, os.strerror(problem), self.name)
        if self.collecting and head.mark == LIVE:
            self.collect(head, <const uint8_t*>vectors[1].base)
        self.size += padded(length)
        return 0

    cdef void reserve(self, uint64_t length) noexcept nogil:
        """Blocks for a record, and for as much again as the file has."""
        cdef uint64_t end = min(self.size + max(length, min(self.size, <uint64_t>AHEAD)), self.capacity)
        if lz_reserve(self.fd, <long long>self.size, <long long>(end - self.size)):
            self.reserved = end
            self.trimmed = False
        else:
            ftruncate(self.fd, <long long>self.size)  # what the system gave before it refused
            self.reserved = self.capacity

    def trim(self):
        """Give back blocks that were reserved and not written to. Only who may write to the file may do so."""
        cdef long long size = lz_file_size(self.fd)
        if not self.trimmed and size >= 0:
            ftruncate(self.fd, size)
            self.trimmed = True
            self.reserved = 0

    cdef bint fits(self, uint64_t length, uint32_t key_bytes) noexcept:
        """Whether a record and the list of all fit; the first record does without a list if it must."""
        cdef uint64_t tail = sizeof(Head) + self.contents_bytes + padded(8 + sizeof(Head) + key_bytes) + LIST_TAIL
        if self.size + padded(length) + (tail if self.collecting else 0) <= self.capacity:
            return True
        if self.size > SEGMENT_HEAD or self.size + padded(length) > self.capacity:
            return False
        self.collecting = False
        return True

    cdef int collect(self, const Head* head, const uint8_t* key) except -1:
        """A record into the list."""
        cdef uint64_t one = listed(head)
        cdef uint8_t* grown
        cdef uint8_t* at
        if self.size > WORTH_LISTING and (self.contents_bytes + one) * LIST_SHARE > self.size:
            self.collecting = False
            free(self.contents)
            self.contents = NULL
            self.contents_bytes = self.contents_room = 0
            return 0
        if self.contents_bytes + one > self.contents_room:
            grown = <uint8_t*>realloc(self.contents, 2 * self.contents_room + one)
            if grown == NULL:
                raise MemoryError()
            self.contents = grown
            self.contents_room = 2 * self.contents_room + one
        at = self.contents + self.contents_bytes
        memset(at, 0, one)
        memcpy(at, &self.size, 8)
        memcpy(at + 8, head, sizeof(Head))
        memcpy(at + 8 + sizeof(Head), key, head.key_bytes)
        self.contents_bytes += one
        return 0

    def seal(self):
        """Write the list of the records, if there is one; no more records by this object. False: it could not be."""
        cdef Head head
        cdef Vector vectors[5]
        cdef uint8_t tail[LIST_TAIL]
        cdef uint64_t payload = self.contents_bytes + LIST_TAIL
        wanted, self.collecting = self.collecting, False
        if not wanted or self.size < WORTH_LISTING or self.size + sizeof(Head) + payload > self.capacity:
            return False
        memset(&head, 0, sizeof(Head))
        head.mark = LIST
        head.payload_bytes = <uint32_t>payload
        memcpy(tail, &self.size, 8)
        memcpy(tail + 8, PyBytes_AS_STRING(LIST_MAGIC), 8)
        vectors[1].base = tail
        vectors[1].nbytes = 0
        vectors[2].base = self.contents
        vectors[2].nbytes = self.contents_bytes
        vectors[3].base = tail
        vectors[3].nbytes = LIST_TAIL
        try:
            self.append(&head, vectors, 2, sizeof(Head) + payload)
        except OSError:
            return False  # it only makes opening faster
        finally:
            free(self.contents)
            self.contents = NULL
            self.contents_bytes = self.contents_room = 0
        return True

    cdef bytes read_contents(self):
        """The list at the file's end, without its tail; None when there is none that is whole."""
        cdef uint64_t end = self.file_size(), begin = 0
        cdef uint8_t tail[LIST_TAIL]
        cdef Head head
        cdef bytes payload
        cdef uint8_t* data
        if end < SEGMENT_HEAD + sizeof(Head) + LIST_TAIL:
            return None
        if self.read_block(tail, LIST_TAIL, end - LIST_TAIL) < LIST_TAIL:
            return None
        memcpy(&begin, tail, 8)
        if memcmp(tail + 8, PyBytes_AS_STRING(LIST_MAGIC), 8) or begin < SEGMENT_HEAD or begin % 8:
            return None
        if begin > end - sizeof(Head) - LIST_TAIL or end - begin > self.capacity // 2:
            return None
        if self.read_block(<uint8_t*>&head, sizeof(Head), begin) < <Py_ssize_t>sizeof(Head):
            return None
        if head.mark != LIST or head.key_bytes or head.payload_bytes != end - begin - sizeof(Head):
            return None
        payload = PyBytes_FromStringAndSize(NULL, head.payload_bytes)
        data = <uint8_t*>PyBytes_AS_STRING(payload)
        if self.read_block(data, head.payload_bytes, begin + sizeof(Head)) < <Py_ssize_t>head.payload_bytes:
            return None
        if not self.whole_head(&head, tail) or crc32c_update(0, data, head.payload_bytes) != head.payload_crc:
            return None
        self.size = end
        return payload[: head.payload_bytes - LIST_TAIL]

    cdef Py_ssize_t read_block(self, uint8_t* block, Py_ssize_t want, uint64_t offset) noexcept:
        cdef Vector vector
        cdef Py_ssize_t got
        vector.base = block
        vector.nbytes = want
        with nogil:
            got = lz_transfer(self.fd, &vector, 1, <long long>offset, 0)
        return got

    cdef bint gone(self) noexcept:
        """Whether the file was deleted: who deletes one empties it too."""
        return lz_file_gone(self.fd)

    def file_size(self):
        """Bytes of the file; 0 when it cannot be told."""
        cdef long long size = lz_file_size(self.fd)
        return size if size > 0 else 0

    def close(self):
        """Close the descriptor now, users or not: for a forked child, which must not keep its parent's files."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        free(self.contents)
        if self.fd >= 0:
            close(self.fd)

    def __reduce__(self):
        raise TypeError("SegmentFile holds an open file and cannot be pickled")

    def __repr__(self):
        return f"<SegmentFile {self.name}: {self.size} of {self.capacity} bytes, {self.records} records>"
