"""Recency bookkeeping without a Python object per entry.

:class:`RecencyLists` is the bare structure (queues over small ints in C arrays), the
same inline code that the frame arena uses. :class:`LruMap` maps any hashable key to a
value with a weight and evicts by recency; a hit is one call. Neither does any I/O or locking: the GIL
makes every call atomic as seen from other threads.
"""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport PyObject
from cpython.long cimport PyLong_AsLong
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc

from lazystore.errors import ConfigError

cdef extern from "Python.h":
    long PyLong_AsLong(object) except? -1


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

    def candidate(self, int32_t queue, const unsigned char[::1] pinned):
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

    A hit costs one call: a dict probe and two link updates. :meth:`put` hands evicted
    pairs back instead of calling anybody, so a callback can never run inside.

    Threads: each call is atomic under the GIL as far as the keys' ``__hash__`` and
    ``__eq__`` are plain C code; keys with Python-level ones are allowed, and the map stays
    consistent if they re-enter it. Fork: copied. Pickling: refused.
    """

    cdef dict slots            # key -> slot number
    cdef list keys_            # slot -> key
    cdef list values_          # slot -> value
    cdef list unused           # slots free for use
    cdef Link* links
    cdef Queue queue
    cdef int32_t capacity
    cdef readonly int64_t max_weight
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef readonly int64_t evictions

    def __cinit__(self, int64_t max_weight):
        if max_weight < 1:
            raise ConfigError(f"max_weight={max_weight} must be at least 1")
        self.max_weight = max_weight
        self.capacity = 0
        self.links = NULL
        self.slots = {}
        self.keys_ = []
        self.values_ = []
        self.unused = []
        queues_clear(NULL, 0, &self.queue, 1)

    def __dealloc__(self):
        free(self.links)

    cdef int _grow(self) except -1:
        """Double the slots; links move, numbers do not."""
        cdef int32_t capacity = 64 if self.capacity == 0 else self.capacity * 2
        cdef int32_t slot
        cdef Link* links = <Link*>realloc(self.links, sizeof(Link) * capacity)
        if links == NULL:
            raise MemoryError(f"no memory for {capacity} map entries")
        self.links = links
        for slot in range(capacity - 1, self.capacity - 1, -1):
            links[slot].queue = NOWHERE
            links[slot].prev = NOWHERE
            links[slot].next = NOWHERE
            links[slot].weight = 0
            self.unused.append(slot)
        self.keys_.extend([None] * (capacity - self.capacity))
        self.values_.extend([None] * (capacity - self.capacity))
        self.capacity = capacity
        return 0

    def get(self, key, default=None):
        """The value of ``key``, made most recent; ``default`` when it is not there."""
        cdef PyObject* found = PyDict_GetItemWithError(self.slots, key)
        if found == NULL:
            self.misses += 1
            return default
        cdef int32_t slot = <int32_t>PyLong_AsLong(<object>found)
        self.hits += 1
        queue_push_front(self.links, &self.queue, 0, slot)
        return <object>PyList_GET_ITEM(self.values_, slot)

    def put(self, key, value, int64_t weight=1):
        """Store ``value``; returns the evicted ``(key, value)`` pairs, oldest first.

        An entry heavier than ``max_weight`` is not stored: it comes back as the only pair.

        Raises:
            ConfigError: ``weight`` is negative or above 2**32 - 1.
        """
        if not 0 <= weight <= 0xFFFFFFFF:
            raise ConfigError(f"weight={weight} must be in 0..2**32-1")
        cdef list evicted = []
        if key in self.slots:
            self.pop(key)
        if weight > self.max_weight:
            return [(key, value)]
        while self.queue.weight + weight > self.max_weight and self.queue.tail != NOWHERE:
            evicted.append(self._evict(self.queue.tail))
        if not self.unused:
            self._grow()
        cdef int32_t slot = self.unused.pop()
        self.slots[key] = slot
        self.keys_[slot] = key
        self.values_[slot] = value
        self.links[slot].weight = <uint32_t>weight
        queue_push_front(self.links, &self.queue, 0, slot)
        return evicted

    cdef tuple _evict(self, int32_t slot):
        self.evictions += 1
        return self._take(slot)

    cdef tuple _take(self, int32_t slot):
        """Unlink a slot first, so that a re-entrant call meets a consistent map."""
        cdef tuple pair = (self.keys_[slot], self.values_[slot])
        queue_remove(self.links, &self.queue, slot)
        self.keys_[slot] = None
        self.values_[slot] = None
        self.slots.pop(pair[0])
        self.unused.append(slot)
        return pair

    def pop(self, key):
        """Remove ``key`` and return its value.

        Raises:
            KeyError: it is not there.
        """
        return self._take(self.slots[key])[1]

    def clear(self):
        """Forget everything; counters stay."""
        self.slots = {}
        self.keys_ = []
        self.values_ = []
        self.unused = []
        self.capacity = 0
        free(self.links)
        self.links = NULL
        queues_clear(NULL, 0, &self.queue, 1)

    def keys(self):
        """Keys from the most to the least recently used; a list, cost O(n)."""
        cdef list found = []
        cdef int32_t slot = self.queue.head
        while slot != NOWHERE:
            found.append(self.keys_[slot])
            slot = self.links[slot].next
        return found

    @property
    def weight(self):
        """Sum of the weights held."""
        return self.queue.weight

    def __contains__(self, key):
        return key in self.slots

    def __len__(self):
        return len(self.slots)

    def __reduce__(self):
        raise TypeError("LruMap holds live entries and cannot be pickled")

    def __repr__(self):
        return f"<LruMap {len(self.slots)} keys, weight {self.queue.weight} of {self.max_weight}>"
