"""Results handed out one by one, and a function called item by item, without Python code between two items.

What comes next (which results, which items) is decided by an engine that is asked once in a while: ``more``.
"""

from libc.time cimport time_t

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(clockid_t clock, timespec *now)
    const clockid_t CLOCK_MONOTONIC
    const clockid_t CLOCK_THREAD_CPUTIME_ID

ctypedef long long nanoseconds


cdef inline nanoseconds _read(clockid_t clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <nanoseconds>now.tv_sec * 1000000000 + now.tv_nsec


cdef class Delivery:
    """The fast half of an iterator.

    ``more()``, which a subclass has, gives it results (``deliver``) or items to call a function with (``serve``) and
    returns True, or returns False at the end. ``caught(error, index, item)`` says what stands for an item whose call
    raised: a tuple of one value, or an empty one for nothing; or it raises.

    Used by one thread at a time: a second one gets a ValueError, as it does from a generator.
    """

    def __init__(self):
        self._held = []
        self._func = None

    def __iter__(self):
        return self

    def __next__(self):
        if self._busy:
            raise ValueError("this iterator is at work already, in another thread or further up in this one")
        self._busy = True
        try:
            return self._next()
        finally:
            self._busy = False

    cdef object _next(self):
        cdef object value, instead
        while True:
            if self._at == self._end or self._over:
                self._over = False
                if not self.more():
                    raise StopIteration
                continue
            value = self._held[self._at]
            self._held[self._at] = None  # what was handed out is the caller's alone
            self._at += 1
            if self._func is None:
                return value
            try:
                return self._call(value)
            except Exception as error:
                instead = self.caught(error, self._first + self._at - 1, value)
            if instead:
                return instead[0]

    cdef object _call(self, object item):
        cdef nanoseconds began, took, computed = 0
        self._until_timed -= 1
        if self._until_timed > 0:
            return self._func(item)
        self._until_timed = self._every
        if self._cpu:
            computed = _read(CLOCK_THREAD_CPUTIME_ID)
        began = _read(CLOCK_MONOTONIC)
        try:
            return self._func(item)
        finally:
            took = _read(CLOCK_MONOTONIC) - began
            if self._cpu:
                self._cpu_ns += _read(CLOCK_THREAD_CPUTIME_ID) - computed
            self._timed += 1
            self._timed_ns += took
            if self._budget_ns and self._timed_ns * self._every > self._budget_ns:
                self._over = True
            if took > self._longest_ns:
                self._longest_ns = took
                self._longest_at = self._first + self._at - 1

    def deliver(self, list results):
        """Hand these out next; the list is used up."""
        self._held = results
        self._at = 0
        self._end = len(results)
        self._func = None
        self._over = False

    def serve(self, func, list items, Py_ssize_t first, Py_ssize_t every, bint cpu, double budget_s=0.0):
        """Call ``func`` with these next, the first one being number ``first``.

        The first and then each ``every``-th call is timed, with ``cpu`` also for the time this thread computed
        (which takes 0.8 us more). When they take longer than ``budget_s`` seconds altogether (0: whatever they take),
        ``more()`` is asked before the rest, which it may have by ``untouched()``.
        """
        self._over = False
        self._budget_ns = <nanoseconds>(budget_s * 1e9)
        self._held = items
        self._at = 0
        self._end = len(items)
        self._func = func
        self._first = first
        self._every = max(1, every)
        self._until_timed = 1
        self._timed = 0
        self._timed_ns = 0
        self._cpu = cpu
        self._cpu_ns = 0
        self._longest_ns = 0
        self._longest_at = -1

    def served(self):
        """Calls timed since ``serve``, seconds they took and computed; seconds of the longest, its item's number."""
        return self._timed, self._timed_ns * 1e-9, self._cpu_ns * 1e-9, self._longest_ns * 1e-9, self._longest_at

    @property
    def waiting(self):
        """Results that are there, or items not yet called with."""
        return self._end - self._at

    def take(self):
        """All results that are there, and hand none of them out; nothing where items are to be called with."""
        if self._func is not None:
            return []
        cdef list taken = self._held[self._at:self._end]
        self._held = []
        self._at = self._end = 0
        return taken

    def untouched(self):
        """Items that were not called with yet, and hand them back; nothing where results are handed out."""
        if self._func is None:
            return []
        cdef list rest = self._held[self._at:self._end]
        self._held = []
        self._at = self._end = 0
        return rest
