"""One segment file of a disk tier: checksummed records, appended whole, read by one system call each.

A segment is 32 bytes of head (``magic[8] | u64 capacity | u64 number | u32 salt | u32 crc``) and records. A record is

    u32 mark | u32 crc of what follows to the key's end, begun with the salt | u32 crc of the payload | u32 key bytes
    u32 payload bytes | u16 kind | u16 0 | f64 created | f64 expires | u64 stamp | key | payload | zeros to 8 bytes

in the machine's byte order, written by one ``pwritev``. The salt keeps what an old file left in blocks of the disk
from passing for a record. Records never move; a deleted or replaced one gets another mark in its place, so that it
stays deleted whoever opens the folder later. Stamps tell which of two records of one key is the newer. Which record is
where is for ``record_log``.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

import os

from lazystore._core.checksum cimport crc32c_update
from lazystore.errors import FormatError

cdef extern from *:
    """
    #include <errno.h>
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
    static int64_t lz_file_size(int fd) { struct stat s; return fstat(fd, &s) ? -1 : (int64_t)s.st_size; }
    static int lz_file_gone(int fd) { struct stat s; return fstat(fd, &s) != 0 || s.st_nlink == 0; }
    """
    Py_ssize_t lz_transfer(int fd, void* v, int n, long long at, int write) noexcept nogil
    long long lz_file_size(int fd) noexcept nogil
    bint lz_file_gone(int fd) noexcept nogil
    int ftruncate(int fd, long long size) noexcept nogil
    int close(int fd) noexcept nogil

cdef enum:
    SEGMENT_HEAD = 32

cdef uint32_t LIVE = 0x31525A4C  # "LZR1"
cdef uint32_t DEAD = 0x78525A4C  # "LZRx"
cdef bytes MAGIC = b"LZSEG\x01\r\n"

SEGMENT_OVERHEAD = SEGMENT_HEAD
RECORD_OVERHEAD = sizeof(Head)
MAX_KEY_BYTES = MAX_KEY


cdef uint64_t padded(uint64_t length) noexcept nogil:
    """Bytes that a record takes in the file."""
    return (length + 7) & ~<uint64_t>7


cdef bint is_live(const Head* head) noexcept nogil:
    """Whether the record is neither deleted nor replaced."""
    return head.mark == LIVE


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
        cdef Vector vector
        cdef Py_ssize_t got
        vector.base = head
        vector.nbytes = sizeof(Head)
        got = lz_transfer(self.fd, &vector, 1, <long long>offset, 0)
        if got < 0:
            return UNREAD
        if got < <Py_ssize_t>sizeof(Head) or head.key_bytes > MAX_KEY:
            return BROKEN
        if <uint64_t>head.key_bytes + head.payload_bytes + sizeof(Head) != length:
            return BROKEN
        vector.base = key
        vector.nbytes = head.key_bytes
        got = lz_transfer(self.fd, &vector, 1, <long long>(offset + sizeof(Head)), 0)
        if got < 0:
            return UNREAD
        if got < <Py_ssize_t>head.key_bytes or not self.whole_head(head, key):
            return BROKEN
        return GOOD if head.mark == LIVE else KILLED if head.mark == DEAD else BROKEN

    cdef bint whole_head(self, const Head* head, const uint8_t* key) noexcept nogil:
        """Whether head and key are what was written; the mark is not looked at."""
        return head_crc(self.salt, head, key) == head.crc

    cdef Verdict read_record(
        self, uint64_t offset, const uint8_t* key, uint32_t key_bytes, uint8_t* payload, uint32_t payload_bytes,
        Head* head, uint8_t* scratch,
    ) noexcept nogil:
        """A whole record of ``key``, its payload right into its place, everything checked.

        FOREIGN only says that it is not whole or not this key's: :meth:`read_key` knows which.
        """
        cdef Vector vectors[3]
        cdef Py_ssize_t got
        vectors[0].base = head
        vectors[0].nbytes = sizeof(Head)
        vectors[1].base = scratch
        vectors[1].nbytes = key_bytes
        vectors[2].base = payload
        vectors[2].nbytes = payload_bytes
        got = lz_transfer(self.fd, vectors, 3, <long long>offset, 0)
        if got < 0:
            return UNREAD
        if got != <Py_ssize_t>(sizeof(Head) + key_bytes + payload_bytes):
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
        cdef Vector vector
        cdef Verdict verdict
        cdef uint8_t* found = <uint8_t*>malloc(MAX_KEY)
        if found == NULL:
            raise MemoryError()
        with nogil:
            verdict = self.read_key(offset, length, &head, found)
            if verdict == GOOD and (head.key_bytes != key_bytes or memcmp(found, key, key_bytes)):
                verdict = FOREIGN
            if verdict == GOOD:
                vector.base = &DEAD
                vector.nbytes = sizeof(DEAD)
                if lz_transfer(self.fd, &vector, 1, <long long>offset, 1) < 0:
                    verdict = UNREAD
        free(found)
        return verdict

    cdef int append(self, Head* head, Vector* vectors, int parts, uint64_t length) except -1:
        """Write a record behind the last: ``vectors`` are one for the head, the key, the parts, one for padding.

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
            head.mark = LIVE
            head.payload_crc = crc
            head.crc = head_crc(self.salt, head, <const uint8_t*>vectors[1].base)
            if lz_transfer(self.fd, vectors, parts + 3, <long long>self.size, 1) < 0:
                problem = errno
                ftruncate(self.fd, <long long>self.size)
        if problem:
            raise OSError(problem, os.strerror(problem), self.name)
        self.size += padded(length)
        return 0

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
        if self.fd >= 0:
            close(self.fd)

    def __reduce__(self):
        raise TypeError("SegmentFile holds an open file and cannot be pickled")

    def __repr__(self):
        return f"<SegmentFile {self.name}: {self.size} of {self.capacity} bytes, {self.records} records>"
