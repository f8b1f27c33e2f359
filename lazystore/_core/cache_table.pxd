# What the cache table is made of, inline: comparing keys, a queue of entries in an array, ghosts
# (what is remembered of entries that left), pairs on their way out; and the table's own face.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    /* 1: equal, 0: not, -1: only the keys' own code can tell. Runs no Python code. */
    static inline int lazystore_same_key(PyObject *a, PyObject *b) {
        if (a == b)
            return 1;
        if (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b)) {
    #if PY_VERSION_HEX < 0x030C0000
            if (!PyUnicode_IS_READY(a) || !PyUnicode_IS_READY(b))
                return -1;
    #endif
            /* A str has the narrowest kind that holds it, so equal ones have the same. */
            return PyUnicode_GET_LENGTH(a) == PyUnicode_GET_LENGTH(b) && PyUnicode_KIND(a) == PyUnicode_KIND(b)
                && memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b),
                          (size_t)PyUnicode_GET_LENGTH(a) * (size_t)PyUnicode_KIND(a)) == 0;
        }
        if (PyLong_CheckExact(a) && PyLong_CheckExact(b)) {
    #if PY_VERSION_HEX < 0x030C0000
            Py_ssize_t digits = Py_SIZE(a);
            return digits == Py_SIZE(b)
                && memcmp(((PyLongObject *)a)->ob_digit, ((PyLongObject *)b)->ob_digit,
                          sizeof(digit) * (size_t)(digits < 0 ? -digits : digits)) == 0;
    #else
            if (PyUnstable_Long_IsCompact((PyLongObject *)a) && PyUnstable_Long_IsCompact((PyLongObject *)b))
                return PyUnstable_Long_CompactValue((PyLongObject *)a)
                    == PyUnstable_Long_CompactValue((PyLongObject *)b);
    #endif
        }
        return -1;
    }
    """
    int same_key "lazystore_same_key"(PyObject* a, PyObject* b) noexcept

cdef enum:
    NOWHERE = -1
    FIRST = 48         # entries of the first array
    MAIN = 0           # the queues
    SMALL = 1
    FREE = 2           # no queue: free entries are chained by ``next`` alone
    PERIODS = 16       # ghosts older than so many periods are forgotten
    #: Pairs that leave without a call of malloc.
    FEW = 8
    #: Ghosts are looked for in one line of the processor's cache.
    BUCKET = 8

# -- queues -------------------------------------------------------------------------------------

cdef extern from *:
    """
    typedef struct {
        PyObject *key;
        PyObject *value;
        int64_t weight : 56;
        uint64_t queue : 2;
        uint64_t freq : 2;
        uint64_t expires : 1;
        uint32_t tag;
        uint32_t seen;
        int32_t prev;
        int32_t next;
    } lazystore_entry;
    """
    ctypedef struct Entry "lazystore_entry":
        PyObject* key
        PyObject* value
        int64_t weight
        uint8_t queue
        uint8_t freq         # how often it was asked for since it last was at the head of a queue, 0..3
        uint8_t expires
        uint32_t tag         # the upper half of the mixed hash
        uint32_t seen        # number of the request that asked for it last
        int32_t prev
        int32_t next

cdef struct Times:       # in nanoseconds of the map's clock
    int64_t stored
    int64_t fresh_until
    int64_t keep_until

cdef struct Slot:        # of the hash table
    uint32_t tag
    int32_t entry        # number + 1; 0: empty

cdef struct Queue:
    int32_t head
    int32_t tail
    int64_t count
    int64_t weight

cdef inline void queue_clear(Queue* queue) noexcept nogil:
    queue.head = NOWHERE
    queue.tail = NOWHERE
    queue.count = 0
    queue.weight = 0

cdef inline void queue_remove(Entry* entries, Queue* queues, int32_t i) noexcept nogil:
    cdef Entry* entry = &entries[i]
    cdef Queue* queue = &queues[entry.queue]
    if entry.prev == NOWHERE:
        queue.head = entry.next
    else:
        entries[entry.prev].next = entry.next
    if entry.next == NOWHERE:
        queue.tail = entry.prev
    else:
        entries[entry.next].prev = entry.prev
    queue.count -= 1
    queue.weight -= entry.weight

cdef inline void queue_push(Entry* entries, Queue* queues, uint8_t q, int32_t i) noexcept nogil:
    """Put an entry that is in no queue at the head of one."""
    cdef Entry* entry = &entries[i]
    cdef Queue* queue = &queues[q]
    entry.queue = q
    entry.prev = NOWHERE
    entry.next = queue.head
    if queue.head == NOWHERE:
        queue.tail = i
    else:
        entries[queue.head].prev = i
    queue.head = i
    queue.count += 1
    queue.weight += entry.weight

# -- ghosts -------------------------------------------------------------------------------------

cdef struct Ghost:
    uint16_t tag         # the upper bits, odd; 0: none
    uint16_t left        # the period in which the entry left
    uint32_t seen        # as the entry's, when it left

cdef inline Ghost* ghost_bucket(Ghost* ghosts, uint32_t mask, uint32_t tag) noexcept nogil:
    return &ghosts[tag & mask & ~<uint32_t>(BUCKET - 1)]

cdef inline Ghost* ghost_find(Ghost* bucket, uint32_t tag) noexcept nogil:
    cdef int i
    for i in range(BUCKET):
        if bucket[i].tag == <uint16_t>(tag >> 16 | 1):
            return &bucket[i]
    return NULL

cdef inline void ghost_add(Ghost* bucket, uint32_t tag, uint32_t seen, uint16_t period) noexcept nogil:
    """Remember a tag, in the place of the oldest of its bucket."""
    cdef Ghost* place = ghost_find(bucket, tag)
    cdef int i
    if place == NULL:
        place = bucket
        for i in range(BUCKET):
            if bucket[i].tag == 0:
                place = &bucket[i]
                break
            if <uint16_t>(period - bucket[i].left) > <uint16_t>(period - place.left):
                place = &bucket[i]
    place.tag = <uint16_t>(tag >> 16 | 1)
    place.left = period
    place.seen = seen

# -- pairs that left ----------------------------------------------------------------------------

cdef struct Pairs:       # owns its references
    PyObject** items     # key, value, key, value ...; NULL: in few
    Py_ssize_t count     # of pairs
    Py_ssize_t room
    PyObject* few[16]    # 2 * FEW

cdef inline void pairs_init(Pairs* pairs) noexcept nogil:
    pairs.items = NULL
    pairs.count = 0
    pairs.room = FEW

cdef inline PyObject** pairs_at(Pairs* pairs, Py_ssize_t i) noexcept nogil:
    return &pairs.few[2 * i] if pairs.items == NULL else &pairs.items[2 * i]

cdef inline bint pairs_reserve(Pairs* pairs, Py_ssize_t more) noexcept nogil:
    """Room for some more pairs; False when there is no memory."""
    cdef PyObject** items
    cdef Py_ssize_t room = pairs.room
    if pairs.count + more <= room:
        return True
    while room < pairs.count + more:
        room *= 2
    items = <PyObject**>PyMem_RawRealloc(pairs.items, 2 * room * sizeof(PyObject*))
    if items == NULL:
        return False
    if pairs.items == NULL:
        memcpy(items, &pairs.few[0], sizeof(PyObject*) * 2 * pairs.count)
    pairs.items = items
    pairs.room = room
    return True

cdef inline void pairs_push(Pairs* pairs, PyObject* key, PyObject* value) noexcept nogil:
    cdef PyObject** at = pairs_at(pairs, pairs.count)
    at[0] = key
    at[1] = value
    pairs.count += 1

cdef inline void pairs_drop(Pairs* pairs) noexcept:
    """Let go of them: their finalizers may run, and call the map."""
    cdef PyObject** items = pairs_at(pairs, 0)
    cdef Py_ssize_t i
    for i in range(2 * pairs.count):
        Py_XDECREF(items[i])
    PyMem_RawFree(pairs.items)

# -- the table ----------------------------------------------------------------------------------

cdef class CacheTable:
    cdef Entry* entries
    cdef Times* times            # beside entries, once one of them expires
    cdef Slot* table             # open addressing; a power of two, at least 5/4 of capacity
    cdef Ghost* ghosts
    cdef Queue queues[2]
    cdef int32_t free            # first of the free entries
    cdef int32_t capacity
    cdef int32_t used            # entries of the array that were ever in use
    cdef int32_t hand            # where expire() goes on
    cdef int32_t shift           # 32 - log2(slots)
    cdef uint32_t mask           # slots - 1, of the table and of the ghosts
    cdef uint16_t period         # of ghosts: a sixteenth of the entries left in each
    cdef int64_t departures      # in this period
    cdef int64_t small_limit     # weight of the probation queue beyond which it is evicted from
    cdef int64_t main_hits       # weight of hits in the main queue since the limit was last looked at
    cdef bint lru
    cdef int64_t expiring        # entries that expire
    cdef uint64_t version        # of the table: a lookup that let others run compares it
    cdef object clock
    cdef readonly int64_t max_weight
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef readonly int64_t evictions
    cdef readonly int64_t expirations

    cdef void forget(self) noexcept
    cdef void wipe(self) noexcept
    cdef int32_t find(self, key, uint32_t tag) except -2
    cdef int ask(self, known, key) except -1
    cdef void table_insert(self, int32_t i) noexcept nogil
    cdef void table_remove(self, int32_t i) noexcept nogil
    cdef int set_capacity(self, int32_t capacity) except -1
    cdef int set_slots(self, int64_t slots) except -1
    cdef int shrink(self) except -1
    cdef int32_t entry_alloc(self) noexcept nogil
    cdef void take(self, int32_t i, Pairs* out) noexcept nogil
    cdef void touch(self, int32_t i) noexcept nogil
    cdef uint8_t place(self, uint32_t tag, int64_t weight) noexcept nogil
    cdef void second_chance(self, int32_t i) noexcept nogil
    cdef int32_t victim(self, int64_t coming) noexcept nogil
    cdef bint make_room(self, int64_t weight, uint8_t queue, Pairs* out) noexcept nogil
