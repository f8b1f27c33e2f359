"""Where the records of some segment files are: an index from keys to places, rebuilt by reading the files' heads.

The index keeps 24 bytes a slot (open addressing, at most 3/4 full) and no keys: a key is compared in the record that
was read. How a record looks is ``segment_file``'s; what files there are, who may write them and which one goes is for
``cache/disk.py``.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from time import time

from lazystore._core.segment_file cimport (
    BROKEN,
    FOREIGN,
    GOOD,
    MAX_KEY,
    UNREAD,
    Head,
    SegmentFile,
    Vector,
    Verdict,
    is_live,
    listed,
    padded,
    set_live,
)

cdef enum:
    SEGMENT_HEAD = 32
    INLINE = 464                # key bytes that are read onto the stack
    BLOCK = 1 << 18             # bytes read at a time in a scan
    SKIM = 4096                 # the same where the records before were large
    LARGE = 1 << 15
    SMALL = 1 << 15             # bytes of a payload that are read without letting go of the GIL, if that needs no disk

cdef struct Entry:
    uint64_t hash
    uint32_t offset     # in units of 8 bytes
    uint32_t length     # of the record without its padding
    uint32_t slot       # of the segment, from 1; 0: free
    uint32_t visited


cdef class Stored:
    """A record as it was read: what :meth:`RecordLog.get` gives."""

    cdef readonly int kind
    cdef readonly bytes payload
    cdef readonly double created
    cdef readonly double expires

    def __repr__(self):
        return f"<Stored kind {self.kind}, {len(self.payload)} bytes>"


cdef class RecordLog:
    """Index of the records of some segments.

    Threads: :meth:`get`, :meth:`holds` and :meth:`delete` any time; whatever takes a segment, and :meth:`clear`, one
    at a time (the caller's lock). Files are read and written without the GIL. Memory: :attr:`index_bytes`.
    Fork: the child closes the segments. Not picklable.
    """

    cdef Entry* entries
    cdef uint64_t room          # entries there is memory for
    cdef readonly uint64_t count
    cdef list slots
    cdef readonly uint64_t newest      # the greatest stamp seen
    cdef readonly uint64_t hits, misses, expired, corrupt, failed, foreign

    def __cinit__(self):
        self.slots = []
        self.entries = <Entry*>calloc(64, sizeof(Entry))
        if self.entries == NULL:
            raise MemoryError()
        self.room = 64

    def __dealloc__(self):
        free(self.entries)

    # --- the table: no Python code runs in here ---

    cdef inline uint64_t home(self, uint64_t hashed) noexcept:
        return ((hashed >> 32) * self.room) >> 32

    cdef int64_t find(self, uint64_t hashed) noexcept:
        cdef uint64_t i = self.home(hashed)
        while self.entries[i].slot:
            if self.entries[i].hash == hashed:
                return <int64_t>i
            i += 1
            if i == self.room:
                i = 0
        return -1

    cdef void insert(self, Entry entry) noexcept:
        cdef uint64_t i = self.home(entry.hash)
        while self.entries[i].slot:
            i += 1
            if i == self.room:
                i = 0
        self.entries[i] = entry
        self.count += 1

    cdef void erase(self, uint64_t i) noexcept:
        """Free a place, and close the gap: entries behind it move up unless that is before their home."""
        cdef uint64_t j = i, home, gap, far
        self.count -= 1
        while True:
            j += 1
            if j == self.room:
                j = 0
            if not self.entries[j].slot:
                break
            home = self.home(self.entries[j].hash)
            gap = j - i if j >= i else j + self.room - i
            far = j - home if j >= home else j + self.room - home
            if far >= gap:
                self.entries[i] = self.entries[j]
                i = j
        self.entries[i].slot = 0

    cdef int make_room(self) except -1:
        """Memory for one entry more."""
        cdef Entry* old = self.entries
        cdef uint64_t old_room = self.room, i
        if (self.count + 1) * 4 <= self.room * 3:
            return 0
        cdef uint64_t room = self.room + self.room // 2
        if room >= 1 << 32:
            raise MemoryError("the index of a disk tier has too many records")
        cdef Entry* grown = <Entry*>calloc(room, sizeof(Entry))
        if grown == NULL:
            raise MemoryError()
        self.entries = grown
        self.room = room
        self.count = 0
        for i in range(old_room):
            if old[i].slot:
                self.insert(old[i])
        free(old)
        return 0

    cdef void account(self, Entry entry, int sign) noexcept:
        cdef SegmentFile segment = <SegmentFile>self.slots[entry.slot - 1]
        segment.live += sign * <int64_t>padded(entry.length)
        segment.records += sign

    cdef void forget(self, Entry entry) noexcept:
        """Take an entry out, if it still points there."""
        cdef int64_t i = self.find(entry.hash)
        if i >= 0 and self.entries[i].slot == entry.slot and self.entries[i].offset == entry.offset:
            self.account(entry, -1)
            self.erase(<uint64_t>i)

    cdef SegmentFile segment_of(self, Entry entry):
        return <SegmentFile>self.slots[entry.slot - 1]

    # --- one key ---

    def get(self, bytes key not None, double now=-1):
        """The record of ``key`` as a :class:`Stored`; None when there is none, or it is expired or damaged.

        Parameters:
            now: wall-clock seconds; negative: the system's.
        """
        cdef uint64_t hashed = <uint64_t>hash(key)
        cdef int64_t i = self.find(hashed)
        if i < 0:
            self.misses += 1
            return None
        cdef Entry entry = self.entries[i]
        cdef SegmentFile segment = self.segment_of(entry)
        cdef Head head
        cdef Verdict verdict = FOREIGN
        self.entries[i].visited = 1
        payload = self.load(entry, segment, key, &head, &verdict)
        if verdict == GOOD and (head.expires == 0 or head.expires > (now if now >= 0 else time())):
            self.hits += 1
            return stored(head, payload)
        self.misses += 1
        if verdict == GOOD:
            self.expired += 1
            self.forget(entry)
        else:
            self.explain(entry, segment, verdict)
        return None

    cdef bytes load(self, Entry entry, SegmentFile segment, bytes key, Head* head, Verdict* verdict):
        """Head and payload of a record, if it is ``key``'s."""
        cdef Py_ssize_t key_bytes = PyBytes_GET_SIZE(key)
        cdef Py_ssize_t payload_bytes = <Py_ssize_t>entry.length - <Py_ssize_t>sizeof(Head) - key_bytes
        cdef uint8_t inline_key[INLINE]
        cdef uint8_t* scratch = inline_key
        cdef const uint8_t* wanted = <const uint8_t*>PyBytes_AS_STRING(key)
        cdef uint8_t* target
        cdef uint64_t at = <uint64_t>entry.offset * 8
        cdef bytes payload
        if payload_bytes < 0 or key_bytes > MAX_KEY:
            verdict[0] = FOREIGN
            return None
        verdict[0] = UNREAD
        payload = PyBytes_FromStringAndSize(NULL, payload_bytes)
        target = <uint8_t*>PyBytes_AS_STRING(payload)
        if key_bytes > INLINE:
            scratch = <uint8_t*>malloc(key_bytes)
            if scratch == NULL:
                raise MemoryError()
        if payload_bytes <= SMALL:  # copied in less time than letting go of the GIL and getting it back may take
            verdict[0] = segment.read_record(
                at, wanted, <uint32_t>key_bytes, target, <uint32_t>payload_bytes, head, scratch, True
            )
        if verdict[0] == UNREAD:
            with nogil:
                verdict[0] = segment.read_record(
                    at, wanted, <uint32_t>key_bytes, target, <uint32_t>payload_bytes, head, scratch, False
                )
        if scratch != inline_key:
            free(scratch)
        return payload

    cdef int explain(self, Entry entry, SegmentFile segment, Verdict verdict) except -1:
        """Why a record could not be had, into the counters; it leaves the index unless it is another key's."""
        cdef Head head
        cdef uint8_t* key
        if verdict == FOREIGN:
            key = <uint8_t*>malloc(MAX_KEY)
            if key == NULL:
                raise MemoryError()
            with nogil:
                verdict = segment.read_key(<uint64_t>entry.offset * 8, entry.length, &head, key)
            free(key)
            if verdict == GOOD:
                self.foreign += 1
                return 0
        if verdict == UNREAD:
            self.failed += 1
        elif verdict == BROKEN and not segment.gone():
            self.corrupt += 1   # else: evicted by another process, which emptied the file
        self.forget(entry)
        return 0

    def put(
        self, SegmentFile segment not None, bytes key not None, int kind, buffers, double created, double expires,
        uint64_t stamp,
    ):
        """Append a record and kill the one that had the key; False (and nothing written) when the segment is full.

        Parameters:
            segment: one of this log, which no other process writes to.
            key: at most 65535 bytes.
            kind: 0 to 65535; the caller's.
            buffers: a sequence of contiguous buffers; their bytes one after the other are the payload.
            created, expires: wall-clock seconds; ``expires`` 0 never does.
            stamp: the time in ns; the record gets a greater one if one seen before was not smaller.

        Raises:
            OSError: it could not be written; the segment is as it was.
        """
        if stamp <= self.newest:
            stamp = self.newest + 1
        return self.write(segment, key, kind, buffers, created, expires, stamp)

    cdef bint write(
        self, SegmentFile segment, bytes key, int kind, object buffers, double created, double expires, uint64_t stamp
    ) except -1:
        cdef int n = 0, count = len(buffers)
        cdef Py_buffer* views = <Py_buffer*>malloc((count + 1) * sizeof(Py_buffer))
        cdef Vector* vectors = <Vector*>malloc((count + 3) * sizeof(Vector))
        cdef uint64_t length = sizeof(Head) + PyBytes_GET_SIZE(key)
        cdef Head head
        cdef Entry entry
        try:
            if views == NULL or vectors == NULL:
                raise MemoryError()
            for buffer in buffers:
                PyObject_GetBuffer(buffer, &views[n], PyBUF_SIMPLE)
                vectors[2 + n].base = views[n].buf
                vectors[2 + n].nbytes = <size_t>views[n].len
                n += 1
                length += <uint64_t>views[n - 1].len
            if PyBytes_GET_SIZE(key) > MAX_KEY or not 0 <= kind <= 0xFFFF or length > 0xFFFFFFF0:
                raise OverflowError("a record's key, kind or payload is too large")
            if not segment.fits(length, <uint32_t>PyBytes_GET_SIZE(key)):
                return False
            self.make_room()
            set_live(&head)
            head.key_bytes = <uint32_t>PyBytes_GET_SIZE(key)
            head.payload_bytes = <uint32_t>(length - sizeof(Head) - head.key_bytes)
            head.kind = <uint16_t>kind
            head.zero = 0
            head.created = created
            head.expires = expires
            head.stamp = stamp
            vectors[1].base = PyBytes_AS_STRING(key)
            vectors[1].nbytes = head.key_bytes
            entry.offset = <uint32_t>(segment.size // 8)
            segment.append(&head, vectors, n, length)
        finally:
            while n:
                n -= 1
                PyBuffer_Release(&views[n])
            free(views)
            free(vectors)
        entry.hash = <uint64_t>hash(key)
        entry.length = <uint32_t>length
        entry.slot = segment.slot
        entry.visited = 0
        self.newest = max(self.newest, stamp)
        self.replace(entry)
        return True

    cdef int replace(self, Entry entry) except -1:
        """Point the key to its newest record; the one before is marked dead.

        Without a look at its key: another key with the same 64-bit hash, which is another one in every process,
        would lose its value.
        """
        cdef int64_t i = self.find(entry.hash)
        cdef Entry old
        self.account(entry, 1)
        if i < 0:
            self.insert(entry)
            return 0
        old = self.entries[i]
        self.account(old, -1)
        self.entries[i] = entry
        return self.bury(old, self.segment_of(old))

    cdef int bury(self, Entry entry, SegmentFile segment) except -1:
        cdef Verdict verdict
        with nogil:
            verdict = segment.bury(<uint64_t>entry.offset * 8)
        self.failed += verdict != GOOD
        return verdict == GOOD

    cdef Verdict kill(self, Entry entry, SegmentFile segment, bytes key) except *:
        cdef const uint8_t* wanted = <const uint8_t*>PyBytes_AS_STRING(key)
        cdef uint32_t key_bytes = <uint32_t>PyBytes_GET_SIZE(key)
        cdef Verdict verdict = segment.kill(<uint64_t>entry.offset * 8, entry.length, wanted, key_bytes)
        if verdict == UNREAD:
            self.failed += 1
        return verdict

    def delete(self, bytes key not None):
        """Forget a key for good: its record is marked dead where it lies. True if there was one."""
        cdef int64_t i = self.find(<uint64_t>hash(key))
        if i < 0:
            return False
        cdef Entry entry = self.entries[i]
        cdef Verdict verdict = self.kill(entry, self.segment_of(entry), key)
        if verdict != FOREIGN:
            self.forget(entry)
        return verdict == GOOD

    def holds(self, bytes key not None, double now):
        """Whether there is a fresh record of ``key``; reads its head, not its payload, and counts nothing."""
        cdef int64_t i = self.find(<uint64_t>hash(key))
        if i < 0:
            return False
        cdef Entry entry = self.entries[i]
        found = self.key_of(entry)
        return found is not None and found[0] == key and (found[1] == 0 or found[1] > now)

    cdef tuple key_of(self, Entry entry):
        """(key, expires, stamp) of a live record; None for one that is dead or damaged."""
        cdef SegmentFile segment = self.segment_of(entry)
        cdef Head head
        cdef Verdict verdict
        cdef uint8_t* key = <uint8_t*>malloc(MAX_KEY)
        if key == NULL:
            raise MemoryError()
        try:
            with nogil:
                verdict = segment.read_key(<uint64_t>entry.offset * 8, entry.length, &head, key)
            if verdict != GOOD:
                return None
            return PyBytes_FromStringAndSize(<char*>key, head.key_bytes), head.expires, head.stamp
        finally:
            free(key)

    # --- whole segments ---

    def add(self, SegmentFile segment not None):
        """Take a segment in; :meth:`scan` finds its records."""
        for i in range(len(self.slots)):
            if self.slots[i] is None:
                self.slots[i] = segment
                segment.slot = <uint32_t>i + 1
                return
        self.slots.append(segment)
        segment.slot = <uint32_t>len(self.slots)

    def segments(self):
        """The segments taken in; a list."""
        return [segment for segment in self.slots if segment is not None]

    def drop(self, SegmentFile segment not None):
        """Forget a segment and its records; how many these were. Cost: one look at every entry of the index."""
        cdef uint64_t i = 0, before = self.count
        cdef uint32_t slot = segment.slot
        if not slot or self.slots[slot - 1] is not segment:
            return 0
        while i < self.room:
            if self.entries[i].slot == slot:
                self.erase(i)
            else:
                i += 1
        self.slots[slot - 1] = None
        segment.slot = 0
        segment.live = 0
        segment.records = 0
        return before - self.count

    def scan(self, SegmentFile segment not None):
        """Index the records that were appended since the last scan; how many.

        It ends at the first bytes that are no whole record: the end, one that is just being written, the torn last
        one of a process that died, or damage (then what follows is lost). Reads the list of the records where there
        is one (records deleted since are in it, and in the index until they are asked for), else 256 KiB at a time,
        and no payloads longer than that.
        """
        if segment.size == SEGMENT_HEAD:
            contents = segment.read_contents()
            if contents is not None:
                return self.take_list(segment, contents)
        cdef uint64_t at = segment.size, total
        cdef uint64_t end = segment.file_size()
        cdef Py_ssize_t have = 0, begin = 0, want = BLOCK
        cdef Head head
        cdef uint8_t* block
        cdef bytes key
        if at + sizeof(Head) > end:
            return 0
        found = 0
        block = <uint8_t*>malloc(BLOCK)
        if block == NULL:
            raise MemoryError()
        try:
            while at + sizeof(Head) <= end:
                if have - begin < <Py_ssize_t>sizeof(Head):
                    begin = 0
                    have = segment.read_block(block, want, at)
                    if have < <Py_ssize_t>sizeof(Head):
                        break
                memcpy(&head, block + begin, sizeof(Head))
                total = padded(sizeof(Head) + <uint64_t>head.key_bytes + head.payload_bytes)
                if head.key_bytes > MAX_KEY or at + total > end:
                    break
                if have - begin < <Py_ssize_t>(sizeof(Head) + head.key_bytes):
                    begin = 0
                    have = segment.read_block(block, BLOCK, at)
                    if have < <Py_ssize_t>(sizeof(Head) + head.key_bytes):
                        break
                if not segment.whole_head(&head, block + begin + sizeof(Head)):
                    break
                self.newest = max(self.newest, head.stamp)
                if is_live(&head):
                    key = PyBytes_FromStringAndSize(<char*>block + begin + sizeof(Head), head.key_bytes)
                    self.found(segment, at, head, key)
                    found += 1
                at += total
                segment.size = at
                want = SKIM if total > LARGE else BLOCK
                begin = begin + <Py_ssize_t>total if <uint64_t>(have - begin) >= total else have
        finally:
            free(block)
        return found

    cdef int64_t take_list(self, SegmentFile segment, bytes contents) except -1:
        """Index the records of a list, which is whole: its checksum was right."""
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(contents)
        cdef const uint8_t* end = p + PyBytes_GET_SIZE(contents)
        cdef uint64_t at
        cdef int64_t count = 0
        cdef Head head
        while <size_t>(end - p) >= 8 + sizeof(Head):
            memcpy(&at, p, 8)
            memcpy(&head, p + 8, sizeof(Head))
            if head.key_bytes > MAX_KEY or listed(&head) > <uint64_t>(end - p):
                break
            self.newest = max(self.newest, head.stamp)
            self.found(segment, at, head, PyBytes_FromStringAndSize(<char*>p + 8 + sizeof(Head), head.key_bytes))
            p += listed(&head)
            count += 1
        return count

    cdef int found(self, SegmentFile segment, uint64_t at, Head head, bytes key) except -1:
        """A record that a scan came by: the newer of two of one key stays, the other is killed."""
        cdef Entry entry
        cdef int64_t i
        self.make_room()
        entry.hash = <uint64_t>hash(key)
        entry.offset = <uint32_t>(at // 8)
        entry.length = <uint32_t>(sizeof(Head) + head.key_bytes + head.payload_bytes)
        entry.slot = segment.slot
        entry.visited = 0
        i = self.find(entry.hash)
        if i >= 0:
            other = self.key_of(self.entries[i])
            if other is not None and other[0] == key and other[2] > head.stamp:
                self.bury(entry, segment)
                return 0
        self.replace(entry)
        return 0

    def rescue(self, SegmentFile segment not None, SegmentFile target not None, uint64_t limit):
        """Copy what was read since it was written out of a segment that goes next; how many records.

        Parameters:
            limit: bytes of ``target`` that it may take.

        Cost: a look at every entry of the index, and reading and writing what is copied. FIFO with reinsertion: a
        record that nobody reads again goes the next time.
        """
        cdef uint64_t i, n = 0, begin = target.size
        cdef Entry* taken = <Entry*>malloc((segment.records + 1) * sizeof(Entry))
        cdef Head head
        cdef Verdict verdict = FOREIGN
        if taken == NULL:
            raise MemoryError()
        for i in range(self.room):
            if self.entries[i].slot == segment.slot and self.entries[i].visited and n < <uint64_t>segment.records:
                taken[n] = self.entries[i]
                n += 1
        copied = 0
        try:
            for i in range(n):
                found = self.key_of(taken[i])
                if found is None or target.size - begin + padded(taken[i].length) > limit:
                    continue
                payload = self.load(taken[i], segment, found[0], &head, &verdict)
                if verdict != GOOD:
                    continue
                copied += self.write(
                    target, found[0], head.kind, (payload,), head.created, head.expires, head.stamp
                )
        finally:
            free(taken)
        return copied

    def clear(self, bytes prefix not None):
        """Kill the records whose key begins with ``prefix``; how many. Cost: a read and a write of each one's head."""
        cdef uint64_t i, n = 0, count = self.count
        cdef Entry* taken = <Entry*>malloc((count + 1) * sizeof(Entry))
        if taken == NULL:
            raise MemoryError()
        for i in range(self.room):
            if self.entries[i].slot:
                taken[n] = self.entries[i]
                n += 1
        killed = 0
        try:
            for i in range(n):
                found = self.key_of(taken[i])
                if found is not None and found[0].startswith(prefix):
                    killed += self.bury(taken[i], self.segment_of(taken[i]))
                    self.forget(taken[i])
        finally:
            free(taken)
        return killed

    @property
    def index_bytes(self):
        """Memory of the index."""
        return self.room * sizeof(Entry)

    def __len__(self):
        return self.count

    def __reduce__(self):
        raise TypeError("RecordLog holds open files and cannot be pickled")

    def __repr__(self):
        return f"<RecordLog {self.count} records>"


cdef Stored stored(Head head, bytes payload):
    cdef Stored made = Stored.__new__(Stored)
    made.kind = head.kind
    made.payload = payload
    made.created = head.created
    made.expires = head.expires
    return made
