cdef class Delivery:
    cdef list _held
    cdef object _func
    cdef Py_ssize_t _at, _end, _first, _every, _until_timed, _timed, _longest_at
    cdef long long _timed_ns, _cpu_ns, _longest_ns, _budget_ns
    cdef bint _busy, _cpu, _over
    cdef object _next(self)
    cdef object _call(self, object item)
