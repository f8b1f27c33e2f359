"""The map of a cache in memory: weights in bytes, freshness by entry, eviction by S3-FIFO or recency.

:class:`CacheMap` is a hash table of its own: entries lie in C arrays and are linked by numbers, so a hit is a probe
and one saturating increment, and an entry costs no Python object. Nothing here loads, waits, locks or calls back: the
GIL makes every call atomic as seen from other threads, and what leaves the map is handed to the caller. How keys
are found and who leaves first is in ``cache_table``.
"""

from cpython.mem cimport PyMem_RawCalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from lazystore._core.cache_table cimport (
    FIRST,
    FREE,
    MAIN,
    NOWHERE,
    SMALL,
    CacheTable,
    Entry,
    Ghost,
    Pairs,
    Slot,
    Times,
    pairs_at,
    pairs_drop,
    pairs_init,
    pairs_push,
    pairs_reserve,
    queue_push,
)
from lazystore.errors import ConfigError

#: What is left of a time that never ends, in nanoseconds.
FOREVER = 0x7FFFFFFFFFFFFFFF
POLICIES = ("s3fifo", "lru")

cdef int64_t _FOREVER = 0x7FFFFFFFFFFFFFFF
cdef int64_t _UNREAD = -0x7FFFFFFFFFFFFFFF
#: Entries that :meth:`CacheMap.expire` looks at in one call.
cdef int32_t STEP = 1024


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


cdef int64_t later(int64_t now, int64_t after) noexcept nogil:
    """A moment from now; FOREVER for 0 and for what would pass it."""
    return now + after if after and (now <= 0 or after <= _FOREVER - now) else _FOREVER


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


cdef class CacheMap(CacheTable):
    """A mapping with a limit of weight, and with entries that age.

    Parameters:
        max_weight: upper bound of the sum of weights, in the caller's unit (bytes); below 2**55.
        policy: who leaves when it is full: ``"s3fifo"`` (a key that is asked for once only does not push out those
            asked for again, so a scan passes by) or ``"lru"`` (the key not asked for longest).
        clock: nanoseconds that never go back; default the system's monotonic clock. Read only when an entry that
            expires is put or met.

    An entry is *fresh* until ``fresh_ns`` after it was put, then *stale* until ``keep_ns``, then *dead*: as good as
    not there, and dropped by whoever meets it.

    Cost: :meth:`get` and :meth:`put` are one call each, O(1) on average (a table that grows is copied now and then);
    an entry takes :attr:`entry_overhead` bytes beside its key and value.

    Threads: each call is atomic under the GIL as far as the keys' ``__hash__`` and ``__eq__`` are plain C code.
    Python-level ones, a ``clock``, and finalizers of keys and values may call the map again: lookups then start
    over, and every change is made whole before such code can run. Fork: copied. Pickling: refused. Interpreter exit:
    nothing is left to do.
    """

    def __cinit__(self, int64_t max_weight, *, str policy="s3fifo", clock=None):
        check_limit(max_weight)
        if policy not in POLICIES:
            raise ConfigError(f"policy={policy!r} is not one of {', '.join(POLICIES)}")
        self.max_weight = max_weight
        self.lru = policy == "lru"
        self.clock = clock

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
            fresh_ns: nanoseconds until it is stale; 0: never; -1: stale from the start, only :meth:`entry` finds it.
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
            seen=<uint32_t>(self.hits + self.misses), prev=NOWHERE, next=NOWHERE,
            queue=queue, freq=freq, expires=expires,
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
        if fresh_ns < -1 or keep_ns < 0:
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
        cdef int32_t i, _
        cdef Pairs out
        if not self.expiring:
            return []
        now = self.read_clock()
        pairs_init(&out)
        for _ in range(min(self.used, STEP)):
            i = self.hand if self.hand < self.used else 0
            self.hand = i + 1
            if self.entries[i].queue != FREE and self.is_dead(i, now):
                if not pairs_reserve(&out, 1):
                    break
                self.take(i, &out)
                self.expirations += 1
        return pairs_list(&out)

    def keys(self):
        """Keys held, from the one to stay to the one to leave, roughly; dead ones may be among them. Cost O(n)."""
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
