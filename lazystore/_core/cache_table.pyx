"""The table under the cache map: entries in C arrays, how keys are found, and who leaves first.

The policy is S3-FIFO (Yang et al., SOSP 2023): new keys on probation in a small queue, those asked for again in
the main one, ghosts of keys that left the first. Three things are added, each for traces on which it would be no
better than LRU, or worse:

- A ghost that returns replaces the next victim of the main queue only if that was not asked for in three times as
  long as the ghost was (LIRS, Jiang & Zhang 2002, asks for once). So a loop larger than the map keeps a part of it.
- Until the map is full, new keys go into the main queue, for the same reason.
- Ghosts that return so soon that recency alone would have kept them widen the probation queue from its tenth, and
  hits of the main queue narrow it again (as in ARC, Megiddo & Modha 2003).

Only C functions here; ``cache_map`` gives them their Python face, and the clock. Those without the GIL spell out
``self.x = self.x + 1``: with the checks of a debug build Cython refuses ``self.x += 1`` there.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef int32_t MOST_ENTRIES = 0x40000000
#: Epochs in random order keep more of their items the higher it is, and shifts of popularity are followed later.
cdef uint64_t STRICTNESS = 3


cdef class CacheTable:
    """Entries, the hash table that finds them, and the eviction policy; the base of
    :class:`~lazystore._core.cache_map.CacheMap`."""

    def __cinit__(self):
        self.forget()

    def __dealloc__(self):
        self.wipe()

    cdef void forget(self) noexcept:
        """The state of a map that holds nothing and has no memory."""
        self.entries = NULL
        self.times = NULL
        self.table = NULL
        self.ghosts = NULL
        self.capacity = 0
        self.used = 0
        self.hand = 0
        self.free = NOWHERE
        self.expiring = 0
        self.departures = 0
        self.small_limit = 0
        self.main_hits = 0
        self.version += 1
        queue_clear(&self.queues[MAIN])
        queue_clear(&self.queues[SMALL])

    cdef void wipe(self) noexcept:
        """Forget everything; finalizers find the map empty and whole."""
        cdef Entry* entries = self.entries
        cdef int32_t used = self.used, i
        PyMem_RawFree(self.times)
        PyMem_RawFree(self.table)
        PyMem_RawFree(self.ghosts)
        self.forget()
        for i in range(used):
            if entries[i].queue != FREE:
                Py_XDECREF(entries[i].key)
                Py_XDECREF(entries[i].value)
        PyMem_RawFree(entries)

    # -- the table: nothing here but find() runs Python code ------------------------------------

    cdef int32_t find(self, key, uint32_t tag) except -2:
        """The number of a key's entry, or NOWHERE. A comparison that changes the table makes it start over."""
        cdef uint32_t s
        cdef Slot slot
        cdef uint64_t version
        cdef int same
        cdef PyObject* known
        while self.table != NULL:
            version = self.version
            s = tag >> self.shift
            while True:
                slot = self.table[s]
                if not slot.entry:
                    return NOWHERE
                if slot.tag == tag:
                    known = self.entries[slot.entry - 1].key
                    same = same_key(known, <PyObject*>key)
                    if same < 0:
                        same = self.ask(<object>known, key)
                        if version != self.version:
                            break
                    if same:
                        return slot.entry - 1
                s = (s + 1) & self.mask
        return NOWHERE

    cdef int ask(self, known, key) except -1:
        """Compare by the keys' own code. ``known`` is held here: dropping it may run something, too."""
        return PyObject_RichCompareBool(known, key, Py_EQ)

    cdef void table_insert(self, int32_t i) noexcept nogil:
        cdef uint32_t tag = self.entries[i].tag
        cdef uint32_t s = tag >> self.shift
        while self.table[s].entry:
            s = (s + 1) & self.mask
        self.table[s] = Slot(tag=tag, entry=i + 1)
        self.version = self.version + 1

    cdef void table_remove(self, int32_t i) noexcept nogil:
        """Backward-shift deletion, by number: no key is compared, no tombstone stays."""
        cdef uint32_t s = self.entries[i].tag >> self.shift
        cdef uint32_t hole
        while self.table[s].entry != i + 1:
            s = (s + 1) & self.mask
        hole = s
        while True:
            s = (s + 1) & self.mask
            if not self.table[s].entry:
                break
            if ((s - (self.table[s].tag >> self.shift)) & self.mask) >= ((s - hole) & self.mask):
                self.table[hole] = self.table[s]
                hole = s
        self.table[hole].entry = 0
        self.version = self.version + 1

    cdef int set_capacity(self, int32_t capacity) except -1:
        """Make room for so many entries, numbered as before; the table is as long as they need. No Python code runs."""
        cdef int64_t slots = 64
        cdef Entry* entries
        cdef Times* times
        if capacity > MOST_ENTRIES:
            raise MemoryError(f"a map holds at most {MOST_ENTRIES} entries")
        while 4 * slots < 5 * <int64_t>capacity:
            slots *= 2
        if self.table == NULL or slots > <int64_t>self.mask + 1:
            self.set_slots(slots)
        # A large array is moved by the system, not copied.
        entries = <Entry*>PyMem_RawRealloc(self.entries, sizeof(Entry) * <size_t>capacity)
        if entries == NULL:
            raise MemoryError(f"no memory for {capacity} map entries")
        self.entries = entries
        if self.times != NULL:
            times = <Times*>PyMem_RawRealloc(self.times, sizeof(Times) * <size_t>capacity)
            if times == NULL:
                raise MemoryError(f"no memory for {capacity} map entries")
            self.times = times
        self.capacity = capacity
        if slots < <int64_t>self.mask + 1:
            self.set_slots(slots)
        return 0

    cdef int set_slots(self, int64_t slots) except -1:
        """A table of another length, and as many ghosts."""
        cdef Slot* table = <Slot*>PyMem_RawCalloc(slots, sizeof(Slot))
        cdef Ghost* ghosts = <Ghost*>PyMem_RawCalloc(slots, sizeof(Ghost))
        cdef int64_t before = <int64_t>self.mask + 1
        cdef int32_t q, i
        if table == NULL or ghosts == NULL:
            PyMem_RawFree(table)
            PyMem_RawFree(ghosts)
            raise MemoryError(f"no memory for a table of {slots} slots")
        if self.ghosts != NULL and slots > before:
            for i in range(slots // before):      # which of the buckets each belongs in is not known any more
                memcpy(&ghosts[i * before], self.ghosts, before * sizeof(Ghost))
        PyMem_RawFree(self.table)
        PyMem_RawFree(self.ghosts)
        self.table = table
        self.ghosts = ghosts
        self.mask = <uint32_t>(slots - 1)
        self.shift = 32
        while slots > 1:
            self.shift -= 1
            slots >>= 1
        for q in range(2):
            i = self.queues[q].head
            while i != NOWHERE:
                self.table_insert(i)
                i = self.entries[i].next
        self.version += 1
        return 0

    cdef int shrink(self) except -1:
        """Give memory back when three quarters of the entries are free: the last ones move into the free places."""
        cdef int64_t count = self.queues[MAIN].count + self.queues[SMALL].count
        cdef int32_t hole = 0, i
        cdef uint32_t s
        cdef Entry* entry
        cdef Queue* queue
        if 4 * count > self.capacity or self.capacity <= FIRST:
            return 0
        for i in range(<int32_t>count, self.used):
            entry = &self.entries[i]
            if entry.queue == FREE:
                continue
            while self.entries[hole].queue != FREE:
                hole += 1
            queue = &self.queues[entry.queue]
            if entry.prev == NOWHERE:
                queue.head = hole
            else:
                self.entries[entry.prev].next = hole
            if entry.next == NOWHERE:
                queue.tail = hole
            else:
                self.entries[entry.next].prev = hole
            s = entry.tag >> self.shift
            while self.table[s].entry != i + 1:
                s = (s + 1) & self.mask
            self.table[s].entry = hole + 1
            self.entries[hole] = entry[0]
            if self.times != NULL:
                self.times[hole] = self.times[i]
        self.used = <int32_t>count
        self.free = NOWHERE
        self.version += 1
        self.set_capacity(max(<int32_t>count, FIRST))
        return 0

    cdef int32_t entry_alloc(self) noexcept nogil:
        """A free entry; there must be one."""
        cdef int32_t i = self.free
        if i == NOWHERE:
            i = self.used
            self.used = self.used + 1
        else:
            self.free = self.entries[i].next
        return i

    cdef void take(self, int32_t i, Pairs* out) noexcept nogil:
        """Move an entry out of the map; ``out`` has room, and keeps it alive until the map is whole."""
        cdef Entry* entry = &self.entries[i]
        self.table_remove(i)
        queue_remove(self.entries, self.queues, i)
        self.expiring = self.expiring - entry.expires
        pairs_push(out, entry.key, entry.value)
        entry.queue = FREE
        entry.next = self.free
        self.free = i

    # -- who leaves -----------------------------------------------------------------------------

    cdef void touch(self, int32_t i) noexcept nogil:
        cdef Entry* entry = &self.entries[i]
        entry.seen = <uint32_t>(self.hits + self.misses)
        if self.lru:
            if self.queues[MAIN].head != i:
                queue_remove(self.entries, self.queues, i)
                queue_push(self.entries, self.queues, MAIN, i)
            return
        if entry.freq < 3:
            entry.freq += 1
        if entry.queue == MAIN:
            self.main_hits = self.main_hits + entry.weight

    cdef uint8_t place(self, uint32_t tag, int64_t weight) noexcept nogil:
        """The queue of a key that is not there."""
        cdef Queue* main = &self.queues[MAIN]
        cdef int64_t held = main.weight + self.queues[SMALL].weight
        cdef uint32_t now = <uint32_t>(self.hits + self.misses), absent
        cdef bint main_full
        cdef Ghost* ghost
        cdef int32_t tail, _
        if self.lru:
            return MAIN
        self.small_limit = max(self.small_limit - self.main_hits // 4, self.max_weight // 10)
        self.main_hits = self.main_hits % 4
        main_full = main.weight + weight > self.max_weight - self.small_limit
        ghost = ghost_find(ghost_bucket(self.ghosts, self.mask, tag), tag)
        if ghost == NULL or <uint16_t>(self.period - ghost.left) > PERIODS:
            return SMALL if main_full or held + weight > self.max_weight else MAIN
        ghost.tag = 0
        absent = now - ghost.seen
        if absent <= main.count + self.queues[SMALL].count:
            self.small_limit = min(self.small_limit + weight, self.max_weight - self.max_weight // 10)
        if not main_full or not main.count:
            return MAIN
        for _ in range(2):
            tail = main.tail
            if not self.entries[tail].freq:
                return MAIN if now - self.entries[tail].seen > STRICTNESS * <uint64_t>absent else SMALL
            self.second_chance(tail)
        return SMALL

    cdef void second_chance(self, int32_t i) noexcept nogil:
        self.entries[i].freq = self.entries[i].freq - 1
        queue_remove(self.entries, self.queues, i)
        queue_push(self.entries, self.queues, MAIN, i)

    cdef int32_t victim(self, int64_t coming) noexcept nogil:
        """The entry to evict next, of which there must be one, for so much that is coming on probation."""
        cdef Queue* small = &self.queues[SMALL]
        cdef int32_t i
        while True:
            if small.count and (small.weight + coming > self.small_limit or not self.queues[MAIN].count):
                i = small.tail
                if self.entries[i].freq <= 1:
                    return i
                self.entries[i].freq = 1
            else:
                i = self.queues[MAIN].tail
                if self.lru or not self.entries[i].freq:
                    return i
            # Terminates: freq is at most 3 and only falls here.
            self.second_chance(i)

    cdef bint make_room(self, int64_t weight, uint8_t queue, Pairs* out) noexcept nogil:
        """Evict until so much fits into a queue; False when there is no memory to note who left."""
        cdef Entry* entry
        cdef int32_t i
        while self.queues[MAIN].weight + self.queues[SMALL].weight + weight > self.max_weight:
            if not pairs_reserve(out, 1):
                return False
            i = self.victim(weight if queue == SMALL else 0)
            entry = &self.entries[i]
            if entry.queue == SMALL:
                ghost_add(ghost_bucket(self.ghosts, self.mask, entry.tag), entry.tag, entry.seen, self.period)
                self.departures = self.departures + 1
                if self.departures * PERIODS >= self.queues[MAIN].count + self.queues[SMALL].count:
                    self.departures = 0
                    self.period = self.period + 1
            self.take(i, out)
            self.evictions = self.evictions + 1
        return True


# Cython visits attributes only; the collector has to see what lies in the array as well.

cdef extern from "Python.h":
    ctypedef int (*Visit "visitproc")(PyObject*, void*) noexcept
    ctypedef int (*Traverse "traverseproc")(PyObject*, Visit, void*) noexcept
    ctypedef int (*Clear "inquiry")(PyObject*) noexcept
    ctypedef struct Type "PyTypeObject":
        Traverse tp_traverse
        Clear tp_clear

cdef Traverse visit_attributes
cdef Clear clear_attributes


cdef int map_traverse(PyObject* self, Visit visit, void* arg) noexcept:
    cdef CacheTable found = <CacheTable>self
    cdef int32_t i
    cdef int stop
    for i in range(found.used):
        if found.entries[i].queue != FREE:
            stop = visit(found.entries[i].key, arg)
            if not stop:
                stop = visit(found.entries[i].value, arg)
            if stop:
                return stop
    return visit_attributes(self, visit, arg)


cdef int map_clear(PyObject* self) noexcept:
    (<CacheTable>self).wipe()
    return clear_attributes(self)


visit_attributes = (<Type*>CacheTable).tp_traverse
clear_attributes = (<Type*>CacheTable).tp_clear
(<Type*>CacheTable).tp_traverse = map_traverse
(<Type*>CacheTable).tp_clear = map_clear
