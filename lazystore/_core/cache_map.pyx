"""The map of a cache in memory: weights in bytes, freshness by entry, eviction by S3-FIFO or recency.

:class:`CacheMap` is a hash table of its own: entries lie in C arrays and are linked by numbers, so a hit is a probe
and one saturating increment, and an entry costs no Python object. Nothing here loads, waits, locks or calls back: the
GIL makes every call atomic as seen from other threads, and what leaves the map is handed to the caller.

The policy is S3-FIFO (Yang et al., SOSP 2023): new keys on probation in a small queue, those asked for again in the main
one, ghosts of keys that left the first. Three things are added, each for traces on which it would be no better than LRU:

- A ghost that returns replaces the next victim of the main queue only if that was not asked for in a longer time than the
  ghost was (as in LIRS, Jiang & Zhang 2002). So a loop larger than the map keeps a part of it, instead of nothing.
- Until the map is full, new keys go into the main queue, for the same reason.
- Ghosts that return so soon that recency alone would have kept them widen the probation queue from its tenth, and hits of the
  main queue narrow it again (as in ARC, Megiddo & Modha 2003).
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from lazystore.errors import ConfigError

#: What is left of a time that never ends, in nanoseconds.
FOREVER = 0x7FFFFFFFFFFFFFFF

cdef int64_t _FOREVER = 0x7FFFFFFFFFFFFFFF
cdef int64_t _UNREAD = -0x7FFFFFFFFFFFFFFF
cdef int32_t MOST_ENTRIES = 0x40000000
#: Entries that :meth:`CacheMap.expire` looks at in one call.
cdef int32_t STEP = 1024

cdef enum:
    FIRST = 48         # entries of the first array
    MAIN = 0
    SMALL = 1
    PERIODS = 16       # ghosts older than so many periods are forgotten
    FREE = 2           # no queue: free entries are chained by ``next`` alone

POLICIES = ("s3fifo", "lru")


cdef int64_t monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef int check_limit(int64_t max_weight) except -1:
    if max_weight < 1:
        raise ConfigError(f"max_weight={max_weight} must be at least 1")
    if max_weight >> 55:
        raise ConfigError(f"max_weight={max_weight} must be below 2**55")
    return 0


cdef inline uint32_t tag_of(Py_hash_t hashed) noexcept nogil:
    """32 bits of a hash, the best mixed ones first (Fibonacci hashing); never 0, which marks an empty ghost."""
    cdef uint32_t tag = <uint32_t>((<uint64_t>hashed * <uint64_t>0x9E3779B97F4A7C15ULL) >> 32)
    return tag if tag else 1


cdef list pairs_list(Pairs* pairs):
    """Hand pairs over. Making a list may run the garbage collector: the map must be whole by now."""
    cdef list found
    cdef PyObject** at
    cdef Py_ssize_t i
    try:
        found = []
        for i in range(pairs.count):
            at = pairs_at(pairs, i)
            found.append((<object>at[0], <object>at[1]))
        return found
    finally:
        pairs_drop(pairs)


cdef class CacheMap:
    """A mapping with a limit of weight, and with entries that age.

    Parameters:
        max_weight: upper bound of the sum of weights, in the caller's unit (bytes).
        policy: who leaves when it is full: ``"s3fifo"`` (a key that is asked for once only does not push out those
            asked for again, so a scan passes by) or ``"lru"`` (the key not asked for longest).
        clock: nanoseconds that never go back; default the system's monotonic clock. Read only when an entry that
            expires is put or met.

    An entry is *fresh* until ``fresh_ns`` after it was put, then *stale* until ``keep_ns``, then *dead*: as good as
    not there, and dropped by whoever meets it.

    Cost: :meth:`get` and :meth:`put` are one call each, O(1) on average (a table that grows is copied now and then);
    an entry takes :attr:`entry_overhead` bytes beside its key and value.

    Threads: each call is atomic under the GIL as far as the keys' ``__hash__`` and ``__eq__`` are plain C code.
    Python-level ones, a ``clock``, and finalizers of keys and values may call the map again: lookups then start over, and
    every change is made whole before such code can run. Fork: copied. Pickling: refused. Interpreter exit: nothing
    is left to do.
    """

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

    def __cinit__(self, int64_t max_weight, *, str policy="s3fifo", clock=None):
        check_limit(max_weight)
        if policy not in POLICIES:
            raise ConfigError(f"policy={policy!r} is not one of {', '.join(POLICIES)}")
        self.max_weight = max_weight
        self.lru = policy == "lru"
        self.clock = clock
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
        """The number of a key's entry, or NOWHERE. A comparison may run anything; if it changed the table, start over."""
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
        self.version += 1

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
        self.version += 1

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
            self.used += 1
        else:
            self.free = self.entries[i].next
        return i

    cdef void take(self, int32_t i, Pairs* out) noexcept nogil:
        """Move an entry out of the map; ``out`` has room, and keeps it alive until the map is whole."""
        cdef Entry* entry = &self.entries[i]
        self.table_remove(i)
        queue_remove(self.entries, self.queues, i)
        self.expiring -= entry.expires
        pairs_push(out, entry.key, entry.value)
        entry.queue = FREE
        entry.next = self.free
        self.free = i

    # -- time -----------------------------------------------------------------------------------

    cdef int64_t read_clock(self) except? -0x7FFFFFFFFFFFFFFF:
        """Nanoseconds; a clock of the caller's may run anything."""
        return monotonic() if self.clock is None else <int64_t>self.clock()

    cdef int64_t before_lookup(self) except? -0x7FFFFFFFFFFFFFFF:
        """The time where it can only be had before an entry is looked up, else _UNREAD: see :meth:`now`."""
        return _UNREAD if self.clock is None or not self.expiring else <int64_t>self.clock()

    cdef inline bint is_fresh(self, int32_t i, int64_t now) noexcept nogil:
        if not self.entries[i].expires:
            return True
        return (monotonic() if now == _UNREAD else now) < self.times[i].fresh_until

    cdef inline bint is_dead(self, int32_t i, int64_t now) noexcept nogil:
        if not self.entries[i].expires:
            return False
        return (monotonic() if now == _UNREAD else now) >= self.times[i].keep_until

    # -- who leaves -----------------------------------------------------------------------------

    cdef inline void touch(self, int32_t i) noexcept nogil:
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
            self.main_hits += entry.weight

    cdef uint8_t place(self, uint32_t tag, int64_t weight) noexcept nogil:
        """The queue of a key that is not there."""
        cdef Queue* main = &self.queues[MAIN]
        cdef int64_t held = main.weight + self.queues[SMALL].weight
        cdef uint32_t now = <uint32_t>(self.hits + self.misses), absent
        cdef bint main_full
        cdef Ghost* ghost
        cdef int32_t i
        if self.lru:
            return MAIN
        self.small_limit = max(self.small_limit - self.main_hits // 4, self.max_weight // 10)
        self.main_hits %= 4
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
        i = main.tail
        if not self.entries[i].freq:
            return MAIN if now - self.entries[i].seen > absent else SMALL
        self.second_chance(i)
        return SMALL

    cdef void second_chance(self, int32_t i) noexcept nogil:
        self.entries[i].freq -= 1
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
                self.departures += 1
                if self.departures * PERIODS >= self.queues[MAIN].count + self.queues[SMALL].count:
                    self.departures = 0
                    self.period += 1
            self.take(i, out)
            self.evictions += 1
        return True

    # -- the mapping ----------------------------------------------------------------------------

    def get(self, key, default=None):
        """The value of ``key`` if it is fresh, counted as a hit; else ``default``, counted as a miss."""
        cdef uint32_t tag = tag_of(hash(key))
        cdef int64_t now = self.before_lookup()
        cdef int32_t i = self.find(key, tag)
        if i != NOWHERE and self.is_fresh(i, now):
            self.hits += 1
            self.touch(i)
            return <object>self.entries[i].value
        self.misses += 1
        return default

    def peek(self, key, default=None):
        """The value of ``key`` if it is fresh, else ``default``; nothing is counted and nothing made recent."""
        cdef uint32_t tag = tag_of(hash(key))
        cdef int64_t now = self.before_lookup()
        cdef int32_t i = self.find(key, tag)
        return <object>self.entries[i].value if i != NOWHERE and self.is_fresh(i, now) else default

    def entry(self, key, default=None):
        """``(value, weight, age_ns, fresh_ns_left, keep_ns_left)`` of a fresh or stale ``key``, else ``default``.

        A stale entry has at most 0 left of its freshness. One that never expires has :data:`FOREVER` left, and 0
        for an age, because no clock was read when it was put. Nothing is counted; a dead entry is dropped.
        """
        cdef uint32_t tag = tag_of(hash(key))
        cdef int64_t now = self.before_lookup()
        cdef int32_t i = self.find(key, tag)
        cdef int64_t weight, age, fresh, keep
        cdef Times* times
        cdef Pairs out
        if i == NOWHERE:
            return default
        value, weight = <object>self.entries[i].value, self.entries[i].weight
        if not self.entries[i].expires:
            return value, weight, 0, _FOREVER, _FOREVER
        if now == _UNREAD:
            now = monotonic()
        if self.is_dead(i, now):
            pairs_init(&out)
            self.take(i, &out)
            self.expirations += 1
            pairs_drop(&out)
            return default
        times = &self.times[i]
        age = max(now - times.stored, 0)
        fresh = _FOREVER if times.fresh_until == _FOREVER else times.fresh_until - now
        keep = _FOREVER if times.keep_until == _FOREVER else times.keep_until - now
        return value, weight, age, fresh, keep

    def put(self, key, value, int64_t weight=1, *, int64_t fresh_ns=0, int64_t keep_ns=0, bint probation=True):
        """Store ``value``; returns the replaced pair and the evicted ones, so that the caller drops them.

        Parameters:
            weight: of the entry, in the unit of ``max_weight``; key and overhead are the caller's to add.
            fresh_ns: nanoseconds until it is stale; 0: never.
            keep_ns: nanoseconds until it is dead, at least ``fresh_ns``; 0: never.
            probation: whether a new key has to be asked for again before it may push out others; False: it is
                known to be wanted.

        Raises:
            ConfigError: a weight that is negative or above ``max_weight``, a time that is negative, or
                ``keep_ns`` below ``fresh_ns``.
        """
        cdef uint32_t tag = tag_of(hash(key))
        cdef int64_t now = 0
        cdef int32_t i
        cdef uint8_t queue, freq = 0
        cdef bint expires = fresh_ns != 0 or keep_ns != 0
        cdef Pairs out
        self.check(weight, fresh_ns, keep_ns)
        if expires:
            now = self.read_clock()
        i = self.find(key, tag)
        # From here to the end of the changes no Python code runs.
        if self.free == NOWHERE and self.used == self.capacity:
            self.set_capacity(self.capacity + self.capacity // 8 if self.capacity else FIRST)
        if expires and self.times == NULL:
            self.times = <Times*>PyMem_RawCalloc(self.capacity, sizeof(Times))
            if self.times == NULL:
                raise MemoryError(f"no memory for the times of {self.capacity} map entries")
        pairs_init(&out)
        if i == NOWHERE:
            queue = self.place(tag, weight)
        else:
            queue = self.entries[i].queue
            freq = min(self.entries[i].freq + 1, 3)
            self.take(i, &out)
        if not probation:
            queue = MAIN
        if not self.make_room(weight, queue, &out):
            pairs_drop(&out)
            raise MemoryError("no memory to note what was evicted")
        i = self.entry_alloc()
        Py_INCREF(key)
        Py_INCREF(value)
        self.entries[i] = Entry(
            key=<PyObject*>key, value=<PyObject*>value, weight=weight, tag=tag,
            seen=<uint32_t>(self.hits + self.misses), prev=NOWHERE, next=NOWHERE, queue=queue, freq=freq, expires=expires,
        )
        if expires:
            self.expiring += 1
            self.times[i].stored = now
            self.times[i].fresh_until = later(now, fresh_ns)
            self.times[i].keep_until = later(now, keep_ns)
        queue_push(self.entries, self.queues, queue, i)
        self.table_insert(i)
        return pairs_list(&out)

    cdef int check(self, int64_t weight, int64_t fresh_ns, int64_t keep_ns) except -1:
        if not 0 <= weight <= self.max_weight:
            raise ConfigError(f"weight={weight} must be in 0..{self.max_weight}, the limit of the map")
        if fresh_ns < 0 or keep_ns < 0:
            raise ConfigError(f"fresh_ns={fresh_ns} and keep_ns={keep_ns} must not be negative")
        if keep_ns and (not fresh_ns or keep_ns < fresh_ns):
            raise ConfigError(f"keep_ns={keep_ns} must be at least fresh_ns={fresh_ns or 'for ever'}, or 0 for ever")
        return 0

    def pop(self, key, default=None):
        """Remove ``key`` and return its value, fresh or stale; ``default`` when it is not there or dead."""
        cdef uint32_t tag = tag_of(hash(key))
        cdef int64_t now = self.before_lookup()
        cdef int32_t i = self.find(key, tag)
        cdef Pairs out
        cdef bint dead
        if i == NOWHERE:
            return default
        dead = self.is_dead(i, now)
        pairs_init(&out)
        self.take(i, &out)
        if dead:
            self.expirations += 1
        found = default if dead else <object>pairs_at(&out, 0)[1]
        pairs_drop(&out)
        return found

    def clear(self):
        """Forget everything; counters stay."""
        self.wipe()

    def resize(self, int64_t max_weight):
        """Set the limit of weight; returns the pairs evicted for it.

        Raises:
            ConfigError: it is below 1, or 2**55 and more.
        """
        cdef Pairs out
        check_limit(max_weight)
        self.max_weight = max_weight
        pairs_init(&out)
        if not self.make_room(0, MAIN, &out):
            pairs_drop(&out)
            raise MemoryError("no memory to note what was evicted")
        self.shrink()
        return pairs_list(&out)

    def expire(self):
        """Drop dead entries among the next 1024, going round; returns their pairs. Nothing when no entry expires."""
        cdef int64_t now
        cdef int32_t i, steps
        cdef Pairs out
        if not self.expiring:
            return []
        now = self.read_clock()
        pairs_init(&out)
        for steps in range(min(self.used, STEP)):
            i = self.hand if self.hand < self.used else 0
            self.hand = i + 1
            if self.entries[i].queue != FREE and self.is_dead(i, now):
                if not pairs_reserve(&out, 1):
                    break
                self.take(i, &out)
                self.expirations += 1
        return pairs_list(&out)

    def keys(self):
        """Keys held, from the one to stay to the one to leave, roughly; a list, cost O(n). Dead ones may be among them."""
        return [key for key, _ in self.items()]

    def items(self):
        """Pairs held, in the order of :meth:`keys`."""
        cdef Pairs out
        cdef int32_t q, i
        pairs_init(&out)
        if not pairs_reserve(&out, self.queues[MAIN].count + self.queues[SMALL].count):
            raise MemoryError("no memory for a list of the entries")
        for q in range(2):
            i = self.queues[q].head
            while i != NOWHERE:
                Py_INCREF(<object>self.entries[i].key)
                Py_INCREF(<object>self.entries[i].value)
                pairs_push(&out, self.entries[i].key, self.entries[i].value)
                i = self.entries[i].next
        return pairs_list(&out)

    @property
    def weight(self):
        """Sum of the weights held."""
        return self.queues[MAIN].weight + self.queues[SMALL].weight

    @property
    def entry_overhead(self):
        """Bytes an entry takes at most beside its key and value, in a map of 1000 entries or more."""
        return 96 if self.times == NULL else 120

    def __contains__(self, key):
        """Whether :meth:`peek` finds it."""
        cdef uint32_t tag = tag_of(hash(key))
        cdef int64_t now = self.before_lookup()
        cdef int32_t i = self.find(key, tag)
        return i != NOWHERE and self.is_fresh(i, now)

    def __len__(self):
        return self.queues[MAIN].count + self.queues[SMALL].count

    def __sizeof__(self):
        """Bytes of the map, without keys and values."""
        cdef size_t size = object.__sizeof__(self)
        if self.table != NULL:
            size += self.capacity * (sizeof(Entry) + (sizeof(Times) if self.times != NULL else 0))
            size += (<size_t>self.mask + 1) * (sizeof(Slot) + sizeof(Ghost))
        return size

    def __reduce__(self):
        raise TypeError("CacheMap holds live entries and cannot be pickled")

    def __repr__(self):
        return f"<CacheMap {len(self)} keys, weight {self.weight} of {self.max_weight}>"


cdef int64_t later(int64_t now, int64_t after) noexcept nogil:
    """A moment from now; FOREVER for 0 and for what would pass it."""
    return now + after if after and (now <= 0 or after <= _FOREVER - now) else _FOREVER


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
    cdef CacheMap found = <CacheMap>self
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
    (<CacheMap>self).wipe()
    return clear_attributes(self)


visit_attributes = (<Type*>CacheMap).tp_traverse
clear_attributes = (<Type*>CacheMap).tp_clear
(<Type*>CacheMap).tp_traverse = map_traverse
(<Type*>CacheMap).tp_clear = map_clear
