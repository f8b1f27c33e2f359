"""Recency bookkeeping without a Python object per entry.

:class:`RecencyLists` is the bare structure (queues over small ints in C arrays), the
same inline code that the frame arena uses. :class:`LruMap` maps any hashable key to a
value with a weight and evicts by recency; a hit is one call. Neither does any I/O or locking: the GIL
makes every call atomic as seen from other threads.
"""

from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport Py_EQ, PyObject_RichCompareBool
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc

from lazystore.errors import ConfigError

cdef enum:
    USED_SLOTS = 0
    FREE_SLOTS = 1


cdef class RecencyLists:
    """``n_queues`` doubly linked queues over the entries ``0 .. n_entries - 1``.

    An entry is in at most one queue; the front is the most recent end. 16 bytes an
    entry, every operation O(1) except :meth:`order` and :meth:`candidate`.

    Threads: calls are atomic under the GIL. Fork: copied. Pickling: refused.
    """

    cdef Link* links
    cdef Queue* queues
    cdef readonly int32_t n_entries
    cdef readonly int32_t n_queues

    def __cinit__(self, int32_t n_entries, int32_t n_queues=1):
        if n_entries < 0 or n_queues < 1:
            raise ConfigError(f"RecencyLists needs n_entries >= 0 and n_queues >= 1, got {n_entries}, {n_queues}")
        self.links = <Link*>malloc(sizeof(Link) * max(n_entries, 1))
        self.queues = <Queue*>malloc(sizeof(Queue) * n_queues)
        if self.links == NULL or self.queues == NULL:
            raise MemoryError(f"no memory for {n_entries} list entries")
        self.n_entries = n_entries
        self.n_queues = n_queues
        queues_clear(self.links, n_entries, self.queues, n_queues)

    def __dealloc__(self):
        free(self.links)
        free(self.queues)

    cdef int _check(self, int32_t entry, int32_t queue) except -1:
        if not 0 <= entry < self.n_entries:
            raise IndexError(f"entry {entry} is not in 0..{self.n_entries - 1}")
        if not 0 <= queue < self.n_queues:
            raise IndexError(f"queue {queue} is not in 0..{self.n_queues - 1}")
        return 0

    def push_front(self, int32_t entry, int32_t queue=0, uint32_t weight=1):
        """Put ``entry`` at the recent end of ``queue``, out of wherever it was."""
        self._check(entry, queue)
        queue_remove(self.links, self.queues, entry)
        self.links[entry].weight = weight
        queue_push_front(self.links, self.queues, queue, entry)

    def push_back(self, int32_t entry, int32_t queue=0, uint32_t weight=1):
        """Put ``entry`` at the end that is evicted first."""
        self._check(entry, queue)
        queue_remove(self.links, self.queues, entry)
        self.links[entry].weight = weight
        queue_push_back(self.links, self.queues, queue, entry)

    def touch(self, int32_t entry):
        """Move ``entry`` to the front of the queue it is in; nothing if it is in none."""
        self._check(entry, 0)
        cdef int32_t queue = self.links[entry].queue
        if queue != NOWHERE:
            queue_push_front(self.links, self.queues, queue, entry)

    def remove(self, int32_t entry):
        """Take ``entry`` out of its queue; nothing if it is in none."""
        self._check(entry, 0)
        queue_remove(self.links, self.queues, entry)

    def queue_of(self, int32_t entry):
        """The queue ``entry`` is in, or -1."""
        self._check(entry, 0)
        return self.links[entry].queue

    def candidate(self, int32_t queue, const unsigned char[::1] pinned not None):
        """The entry nearest the old end of ``queue`` whose ``pinned`` byte is zero, or -1.

        Cost: O(pinned entries passed by).
        """
        self._check(0, queue)
        if pinned.shape[0] < self.n_entries:
            raise ConfigError(f"pinned has {pinned.shape[0]} bytes, {self.n_entries} are needed")
        cdef int32_t entry = self.queues[queue].tail
        while entry != NOWHERE and pinned[entry]:
            entry = self.links[entry].prev
        return entry

    def order(self, int32_t queue=0):
        """Entries of ``queue`` from the most recent to the oldest."""
        self._check(0, queue)
        cdef list found = []
        cdef int32_t entry = self.queues[queue].head
        while entry != NOWHERE:
            found.append(entry)
            entry = self.links[entry].next
        return found

    def count(self, int32_t queue=0):
        """Number of entries in ``queue``."""
        self._check(0, queue)
        return self.queues[queue].count

    def weight(self, int32_t queue=0):
        """Sum of the weights in ``queue``."""
        self._check(0, queue)
        return self.queues[queue].weight

    def __reduce__(self):
        raise TypeError("RecencyLists holds C memory and cannot be pickled")

    def __repr__(self):
        return f"<RecencyLists {self.n_entries} entries, {self.n_queues} queues>"


cdef class LruMap:
    """A mapping with a weight limit that forgets the least recently used key first.

    Parameters:
        max_weight: upper bound of the sum of weights, in the caller's unit (bytes, say).

    A hit costs one call: a probe of a table of C ints and two link updates. :meth:`put` hands
    evicted pairs back instead of calling anybody, so a callback can never run inside.

    Threads: each call is atomic under the GIL as far as the keys' ``__hash__`` and ``__eq__`` are plain
    C code. Python-level ones, and finalizers of keys and values, may call the map again: lookups then start
    over, and every change is made whole before such code can run. Fork: copied. Pickling: refused.
    """

    cdef list keys_            # slot -> key
    cdef list values_          # slot -> value
    cdef Link* links           # slot -> place in the queue of used or of free slots
    cdef Py_hash_t* hashes     # slot -> hash of its key
    cdef int32_t* table        # open addressing: hash -> slot + 1, twice as long as there are slots
    cdef Queue queues[2]
    cdef int32_t capacity      # slots; a power of two, or 0
    cdef uint64_t version      # of the table: a lookup that let others run compares it
    cdef readonly int64_t max_weight
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef readonly int64_t evictions

    def __cinit__(self, int64_t max_weight):
        if max_weight < 1:
            raise ConfigError(f"max_weight={max_weight} must be at least 1")
        self.max_weight = max_weight
        self.keys_ = []
        self.values_ = []
        queues_clear(NULL, 0, self.queues, 2)

    def __dealloc__(self):
        free(self.links)
        free(self.hashes)
        free(self.table)

    # -- the table: nothing here but find() runs Python code ----------------------------

    cdef inline uint32_t home(self, Py_hash_t hashed) noexcept:
        return <uint32_t>((<uint64_t>hashed * <uint64_t>0x9E3779B97F4A7C15ULL) >> 32) & (2 * self.capacity - 1)

    cdef int32_t find(self, key, Py_hash_t hashed) except -2:
        """The slot of a key, or NOWHERE. A comparison may run anything; if it changed the table, start over."""
        cdef uint32_t s
        cdef int32_t slot
        cdef uint64_t version
        while True:
            known = None   # the last key of a lookup that was overtaken: dropping it may run something, too
            version = self.version
            s = self.home(hashed)
            while version == self.version:
                slot = self.table[s] - 1 if self.capacity else NOWHERE
                if slot == NOWHERE:
                    return NOWHERE
                if self.hashes[slot] == hashed:
                    known = <object>PyList_GET_ITEM(self.keys_, slot)
                    if known is key:
                        return slot
                    if PyObject_RichCompareBool(known, key, Py_EQ) and version == self.version:
                        return slot
                s = (s + 1) & (2 * self.capacity - 1)

    cdef void table_insert(self, int32_t slot) noexcept:
        cdef uint32_t s = self.home(self.hashes[slot])
        while self.table[s]:
            s = (s + 1) & (2 * self.capacity - 1)
        self.table[s] = slot + 1
        self.version += 1

    cdef void table_remove(self, int32_t slot) noexcept:
        """Backward-shift deletion, by number: no key is compared."""
        cdef uint32_t mask = 2 * self.capacity - 1
        cdef uint32_t s = self.home(self.hashes[slot])
        cdef uint32_t hole
        while self.table[s] != slot + 1:
            s = (s + 1) & mask
        hole = s
        while True:
            s = (s + 1) & mask
            if not self.table[s]:
                break
            if ((s - self.home(self.hashes[self.table[s] - 1])) & mask) >= ((s - hole) & mask):
                self.table[hole] = self.table[s]
                hole = s
        self.table[hole] = 0
        self.version += 1

    cdef int grow(self) except -1:
        """Double the slots; numbers stay."""
        cdef int32_t before = self.capacity, slot
        cdef int32_t capacity = 64 if before == 0 else before * 2
        cdef list blank = [None] * (capacity - before)
        if self.capacity != before:
            return 0      # making a list may run the garbage collector, and that the map
        cdef int32_t* table = <int32_t*>calloc(2 * <size_t>capacity, sizeof(int32_t))
        cdef Link* links = <Link*>realloc(self.links, sizeof(Link) * capacity)
        if links != NULL:
            self.links = links
        cdef Py_hash_t* hashes = <Py_hash_t*>realloc(self.hashes, sizeof(Py_hash_t) * capacity)
        if hashes != NULL:
            self.hashes = hashes
        if table == NULL or links == NULL or hashes == NULL:
            free(table)
            raise MemoryError(f"no memory for {capacity} map entries")
        self.keys_.extend(blank)
        self.values_.extend(blank)
        free(self.table)
        self.table = table
        self.capacity = capacity
        self.version += 1
        for slot in range(before, capacity):
            links[slot] = Link(prev=NOWHERE, next=NOWHERE, queue=NOWHERE, weight=0)
            queue_push_back(links, self.queues, FREE_SLOTS, slot)
        slot = self.queues[USED_SLOTS].head
        while slot != NOWHERE:
            self.table_insert(slot)
            slot = links[slot].next
        return 0

    cdef int take(self, int32_t slot, list keys, list values) except -1:
        """Move an entry out of the map into the two lists, which keep it alive until the map is whole."""
        keys.append(self.keys_[slot])
        values.append(self.values_[slot])
        self.table_remove(slot)
        queue_remove(self.links, self.queues, slot)
        self.links[slot].weight = 0
        queue_push_front(self.links, self.queues, FREE_SLOTS, slot)
        self.keys_[slot] = None
        self.values_[slot] = None
        return 0

    # -- the mapping --------------------------------------------------------------------

    def get(self, key, default=None):
        """The value of ``key``, made most recent; ``default`` when it is not there."""
        cdef int32_t slot = self.find(key, hash(key))
        if slot == NOWHERE:
            self.misses += 1
            return default
        self.hits += 1
        queue_push_front(self.links, self.queues, USED_SLOTS, slot)
        return <object>PyList_GET_ITEM(self.values_, slot)

    def put(self, key, value, int64_t weight=1):
        """Store ``value``; returns the evicted ``(key, value)`` pairs, oldest first.

        An entry heavier than ``max_weight`` is not stored: it comes back as the only pair.

        Raises:
            ConfigError: ``weight`` is negative or above 2**32 - 1.
        """
        if not 0 <= weight <= 0xFFFFFFFF:
            raise ConfigError(f"weight={weight} must be in 0..2**32-1")
        cdef Py_hash_t hashed = hash(key)
        cdef list keys = [], values = [], old_key = [], old_value = []
        cdef int32_t slot
        while True:
            if not self.queues[FREE_SLOTS].count:
                self.grow()
            slot = self.find(key, hashed)
            if self.queues[FREE_SLOTS].count:
                break
        # From here to the end of the changes no Python code runs.
        if slot != NOWHERE:
            self.take(slot, old_key, old_value)
        if weight > self.max_weight:
            return [(key, value)]
        while self.queues[USED_SLOTS].weight + weight > self.max_weight:
            self.evictions += 1
            self.take(self.queues[USED_SLOTS].tail, keys, values)
        slot = self.queues[FREE_SLOTS].head
        queue_remove(self.links, self.queues, slot)
        self.keys_[slot] = key
        self.values_[slot] = value
        self.hashes[slot] = hashed
        self.links[slot].weight = <uint32_t>weight
        queue_push_front(self.links, self.queues, USED_SLOTS, slot)
        self.table_insert(slot)
        return list(zip(keys, values))

    def pop(self, key):
        """Remove ``key`` and return its value.

        Raises:
            KeyError: it is not there.
        """
        cdef list keys = [], values = []
        cdef int32_t slot = self.find(key, hash(key))
        if slot == NOWHERE:
            raise KeyError(key)
        self.take(slot, keys, values)
        return values[0]

    def clear(self):
        """Forget everything; counters stay."""
        cdef list keys = [], values = []
        # The old lists live until the map is empty and whole: dropping entries may run anything.
        keys, self.keys_ = self.keys_, keys
        values, self.values_ = self.values_, values
        self.capacity = 0
        self.version += 1
        free(self.links)
        free(self.hashes)
        free(self.table)
        self.links = NULL
        self.hashes = NULL
        self.table = NULL
        queues_clear(NULL, 0, self.queues, 2)

    def keys(self):
        """Keys from the most to the least recently used; a list, cost O(n)."""
        cdef list found = []
        cdef int32_t slot = self.queues[USED_SLOTS].head
        while slot != NOWHERE:
            found.append(self.keys_[slot])
            slot = self.links[slot].next
        return found

    @property
    def weight(self):
        """Sum of the weights held."""
        return self.queues[USED_SLOTS].weight

    def __contains__(self, key):
        return self.find(key, hash(key)) != NOWHERE

    def __len__(self):
        return self.queues[USED_SLOTS].count

    def __reduce__(self):
        raise TypeError("LruMap holds live entries and cannot be pickled")

    def __repr__(self):
        return f"<LruMap {len(self)} keys, weight {self.weight} of {self.max_weight}>"
