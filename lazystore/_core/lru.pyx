"""Recency bookkeeping without a Python object per entry.

:class:`RecencyLists` is the bare structure (queues over small ints in C arrays), the
same inline code that the frame arena uses. The map from keys to values is ``cache_map``. No I/O and no
locking: the GIL makes every call atomic as seen from other threads.
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, malloc

from lazystore.errors import ConfigError


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
