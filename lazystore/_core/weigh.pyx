"""How many bytes an object holds: the weight of values whose size the caller did not say.

Containers and instances are walked as the garbage collector walks them (``tp_traverse``), so none of the objects'
own code runs but ``__sizeof__`` and, for arrays, tensors and tables, ``nbytes``; of pillow's images ``mode`` and
``size``.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport llround
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

from sys import getsizeof

from lazystore.errors import ConfigError

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #define LAZYSTORE_IMMORTAL(o) ((o) == Py_None || (o) == Py_True || (o) == Py_False || (o) == Py_Ellipsis)
    #elif PY_VERSION_HEX < 0x030E0000
    #define LAZYSTORE_IMMORTAL(o) _Py_IsImmortal(o)
    #else
    #define LAZYSTORE_IMMORTAL(o) PyUnstable_IsImmortal(o)
    #endif
    /* What the collector keeps in front of an object. */
    #define LAZYSTORE_GC_HEAD ((Py_ssize_t)(2 * sizeof(void *)))
    /* Attribute values that basicsize does not count. */
    #if defined(Py_TPFLAGS_MANAGED_DICT)
    #define LAZYSTORE_OUTSIDE_VALUES(t) ((t)->tp_flags & Py_TPFLAGS_MANAGED_DICT)
    #else
    #define LAZYSTORE_OUTSIDE_VALUES(t) 0
    #endif

    /* Of everybody, or of the program rather than of its data. */
    static inline int lazystore_is_shared(PyObject *o) {
        return LAZYSTORE_IMMORTAL(o) || PyType_Check(o) || PyModule_Check(o) || PyFunction_Check(o)
            || PyCFunction_Check(o) || PyCode_Check(o) || PyWeakref_Check(o)
            || (PyUnicode_CheckExact(o) && PyUnicode_CHECK_INTERNED(o));
    }

    /* Bytes of an object that holds no others and needs not be asked, else -1. */
    static inline Py_ssize_t lazystore_leaf_bytes(PyObject *o) {
        if (PyUnicode_CheckExact(o)) {
            Py_ssize_t n = PyUnicode_GET_LENGTH(o);
            if (PyUnicode_IS_COMPACT_ASCII(o))
                return (Py_ssize_t)sizeof(PyASCIIObject) + n + 1;
            if (PyUnicode_IS_COMPACT(o)) {
                Py_ssize_t size = (Py_ssize_t)sizeof(PyCompactUnicodeObject) + (n + 1) * PyUnicode_KIND(o);
                if (((PyCompactUnicodeObject *)o)->utf8)
                    size += ((PyCompactUnicodeObject *)o)->utf8_length + 1;
                return size;
            }
            return -1;
        }
        if (PyFloat_CheckExact(o))
            return (Py_ssize_t)sizeof(PyFloatObject);
        if (PyBytes_CheckExact(o))
            return Py_TYPE(o)->tp_basicsize + Py_SIZE(o);
        if (PyLong_CheckExact(o)) {
            int overflow;
            long long value = PyLong_AsLongLongAndOverflow(o, &overflow);
            if (overflow)
                return -1;
            if (value >= -5 && value <= 256)
                return 0;
            /* digits of 30 bits */
            return Py_TYPE(o)->tp_basicsize + Py_TYPE(o)->tp_itemsize
                * (1 + (value >= 1LL << 30 || value <= -(1LL << 30)) + (value >= 1LL << 60 || value <= -(1LL << 60)));
        }
        return -1;
    }

    /* How many objects a builtin container refers to, else -1. */
    static inline Py_ssize_t lazystore_children(PyObject *o) {
        if (PyList_CheckExact(o) || PyTuple_CheckExact(o))
            return Py_SIZE(o);
        if (PyDict_CheckExact(o))
            return 2 * PyDict_GET_SIZE(o);
        if (PyAnySet_CheckExact(o))
            return PySet_GET_SIZE(o);
        return -1;
    }

    /* Own bytes of a list or tuple with the collector's head, else -1. */
    static inline Py_ssize_t lazystore_sequence_bytes(PyObject *o) {
        if (PyList_CheckExact(o))
            return (Py_ssize_t)(sizeof(PyListObject) + (size_t)((PyListObject *)o)->allocated * sizeof(PyObject *))
                + LAZYSTORE_GC_HEAD;
        if (PyTuple_CheckExact(o))
            return Py_TYPE(o)->tp_basicsize + Py_SIZE(o) * (Py_ssize_t)sizeof(PyObject *) + LAZYSTORE_GC_HEAD;
        return -1;
    }
    """
    bint is_shared "lazystore_is_shared"(PyObject*) noexcept
    Py_ssize_t leaf_bytes "lazystore_leaf_bytes"(PyObject*) noexcept
    Py_ssize_t children_of "lazystore_children"(PyObject*) noexcept
    Py_ssize_t sequence_bytes "lazystore_sequence_bytes"(PyObject*) noexcept
    bint outside_values "LAZYSTORE_OUTSIDE_VALUES"(Type*) noexcept

cdef extern from "Python.h":
    ctypedef int (*Visit "visitproc")(PyObject*, void*) noexcept
    ctypedef int (*Traverse "traverseproc")(PyObject*, Visit, void*) noexcept
    ctypedef struct Type "PyTypeObject":
        Traverse tp_traverse
        Py_ssize_t tp_basicsize
    Type* Py_TYPE(PyObject*) noexcept
    Py_ssize_t Py_REFCNT(PyObject*) noexcept
    bint PyObject_IS_GC(PyObject*) noexcept
    bint PyMemoryView_Check(PyObject*) noexcept
    PyObject* _PyType_Lookup(Type*, name) noexcept

cdef struct Frame:         # a container whose children are being weighed
    double own             # bytes that need no extrapolation
    double sum             # bytes of the children weighed
    double total           # children there are
    Py_ssize_t start       # of the sampled children in items
    Py_ssize_t count
    Py_ssize_t done
    Py_ssize_t spread      # step from one to the next: not all may get their turn

cdef struct Walk:
    Frame* frames
    Py_ssize_t depth
    Py_ssize_t frames_room
    PyObject** items       # owned: sizes may be asked of Python code, which may drop them
    Py_ssize_t count
    Py_ssize_t items_room
    uintptr_t* seen        # open addressing; objects with one reference are not entered
    Py_ssize_t seen_count
    Py_ssize_t seen_slots
    Py_ssize_t walked
    Py_ssize_t sample      # children of one container that are looked at; of more, an even sample
    Py_ssize_t stride      # every which child is taken
    Py_ssize_t passed      # children of the current container
    double leaves          # bytes of its leaves
    bint failed            # no memory


cdef int fits(void** array, Py_ssize_t* room, Py_ssize_t count, size_t size) noexcept nogil:
    """Room for one more in a growing array; 0 when there is no memory."""
    cdef void* moved
    cdef Py_ssize_t wanted = max(2 * room[0], 64)
    if count < room[0]:
        return 1
    moved = PyMem_RawRealloc(array[0], <size_t>wanted * size)
    if moved == NULL:
        return 0
    array[0] = moved
    room[0] = wanted
    return 1


cdef bint seen_grow(Walk* walk) noexcept nogil:
    cdef Py_ssize_t slots = max(2 * walk.seen_slots, 256), before = walk.seen_slots, i
    cdef uintptr_t* old = walk.seen
    walk.seen = <uintptr_t*>PyMem_RawCalloc(slots, sizeof(uintptr_t))
    if walk.seen == NULL:
        walk.seen = old
        return False
    walk.seen_slots = slots
    walk.seen_count = 0
    for i in range(before):
        if old[i]:
            seen_before(walk, <PyObject*>old[i])
    PyMem_RawFree(old)
    return True


cdef bint seen_before(Walk* walk, PyObject* item) noexcept nogil:
    """Whether an object was met; it is now."""
    cdef uintptr_t at = <uintptr_t>item
    cdef Py_ssize_t s
    if 2 * walk.seen_count >= walk.seen_slots and not seen_grow(walk):
        walk.failed = True
        return True
    s = <Py_ssize_t>((<uint64_t>at * <uint64_t>0x9E3779B97F4A7C15ULL) >> 20) & (walk.seen_slots - 1)
    while walk.seen[s]:
        if walk.seen[s] == at:
            return True
        s = (s + 1) & (walk.seen_slots - 1)
    walk.seen[s] = at
    walk.seen_count += 1
    return False


cdef int count_child(PyObject* child, void* arg) noexcept:
    (<Walk*>arg).passed += 1
    return 0


cdef int meet_child(PyObject* child, void* arg) noexcept:
    """Weigh a leaf, note anything else for later."""
    cdef Walk* walk = <Walk*>arg
    cdef Py_ssize_t size
    walk.passed += 1
    if walk.passed % walk.stride or is_shared(child):
        return 0
    if Py_REFCNT(child) > 1 and seen_before(walk, child):
        return 0
    size = leaf_bytes(child)
    if size >= 0:
        walk.walked += 1
        walk.leaves += size
        return 0
    if not fits(<void**>&walk.items, &walk.items_room, walk.count, sizeof(PyObject*)):
        walk.failed = True
        return 1
    Py_INCREF(<object>child)
    walk.items[walk.count] = child
    walk.count += 1
    return 0


cdef bint tells(PyObject* item, str name) noexcept:
    return _PyType_Lookup(Py_TYPE(item), name) != NULL


cdef double own_bytes(PyObject* item, bint* walked) except -1:
    """Bytes of the object alone, as far as it knows; whether what it refers to comes on top."""
    cdef Py_ssize_t size = sequence_bytes(item)
    walked[0] = True
    if size >= 0:
        return size
    if children_of(item) < 0:
        if tells(item, "nbytes"):
            walked[0] = holds_objects(<object>item)
            return max(<double>getsizeof(<object>item), <double>Py_TYPE(item).tp_basicsize + (<object>item).nbytes)
        walked[0] = PyObject_IS_GC(item) and not tells(item, "memory_usage")    # pandas: __sizeof__ is deep
        if tells(item, "getbands") and tells(item, "tobytes"):
            return getsizeof(<object>item) + pixel_bytes(<object>item)
    return getsizeof(<object>item)


cdef double pixel_bytes(image) except -1:
    """Of a pillow image, which keeps several bands in four bytes; of one that is not loaded yet, what it will take."""
    cdef str mode = image.mode
    cdef int each = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    width, height = image.size
    return <double>width * <double>height * each


cdef bint holds_objects(item) except -1:
    """Whether it is an array of references."""
    return hasattr(item, "tolist") and getattr(getattr(item, "dtype", None), "hasobject", False)


cdef int enter(Walk* walk, PyObject* item) except -1:
    """Begin with an object that is not a leaf: a frame for its children."""
    cdef Frame* frame
    cdef PyObject* whole = item
    cdef Py_ssize_t children, start = walk.count
    cdef bint walked
    cdef double own = own_bytes(item, &walked)
    if walked and not PyObject_IS_GC(item):
        elements = (<object>item).ravel().tolist()    # an array shows its elements to nobody else
        whole = <PyObject*>elements
    if not fits(<void**>&walk.frames, &walk.frames_room, walk.depth, sizeof(Frame)):
        raise MemoryError("no memory to weigh an object")
    walk.walked += 1
    walk.leaves = 0
    walk.stride = 1
    if walked:
        children = children_of(whole)
        if children < 0:
            walk.passed = 0
            Py_TYPE(whole).tp_traverse(whole, count_child, walk)
            children = walk.passed
            if outside_values(Py_TYPE(whole)):
                own += 8 * children + 16
        if children > walk.sample:
            walk.stride = children // walk.sample | 1     # odd: keys and values of a dict in turn
        walk.passed = 0
        Py_TYPE(whole).tp_traverse(whole, meet_child, walk)
    if walk.failed:
        raise MemoryError("no memory to weigh an object")
    frame = &walk.frames[walk.depth]
    frame.own = own + walk.leaves * walk.stride
    frame.sum = 0
    frame.start = start
    frame.count = walk.count - start
    frame.total = <double>frame.count * walk.stride
    frame.done = 0
    frame.spread = frame.count * 5 // 8 | 1
    while not coprime(frame.spread, frame.count):
        frame.spread += 2
    walk.depth += 1
    return 0


cdef double leave(Walk* walk) except -1:
    """End with the last frame: its bytes, those of children not weighed taken to be like those that were."""
    cdef Frame* frame = &walk.frames[walk.depth - 1]
    cdef double bytes_ = frame.own
    cdef Py_ssize_t start = frame.start
    if frame.done:
        bytes_ += frame.sum * frame.total / frame.done
    walk.depth -= 1
    while walk.count > start:
        walk.count -= 1
        Py_DECREF(<object>walk.items[walk.count])
    return bytes_


cdef double weigh_all(Walk* walk, PyObject* first, Py_ssize_t limit) except -1:
    cdef Frame* frame
    cdef Py_ssize_t at
    cdef double bytes_
    enter(walk, first)
    while True:
        frame = &walk.frames[walk.depth - 1]
        if frame.done < frame.count and walk.walked < (limit if frame.done else 2 * limit):
            at = frame.start + frame.done * frame.spread % frame.count
            frame.done += 1
            enter(walk, walk.items[at])
            continue
        bytes_ = leave(walk)
        if not walk.depth:
            return bytes_
        walk.frames[walk.depth - 1].sum += bytes_


cdef bint coprime(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    while b:
        a, b = b, a % b
    return a == 1


def weigh(obj, Py_ssize_t limit_objects=10_000):
    """Bytes that an object and what it holds take.

    Parameters:
        limit_objects: how many objects to look at, about; what lies beyond is extrapolated from their like
            (what lies deeper than that many is not seen).

    Counted: strings, bytes, numbers, builtin containers, instances with ``__dict__`` or slots, and everything they
    refer to, each object once; arrays, tensors and tables by ``nbytes`` (a view: what it shows, not what it keeps
    alive), images by their pixels. Not counted: what is shared by all (interned strings, small ints, None), types,
    modules, functions.

    Raises:
        ConfigError: ``limit_objects`` is below 1.

    Cost: 10 to 150 ns an object, of at most twice ``limit_objects``, and a look at the references of containers met.
    Threads: runs under the GIL without letting others in, but where a size is asked of Python code.
    """
    cdef Walk walk
    cdef Py_ssize_t size, i
    if limit_objects < 1:
        raise ConfigError(f"limit_objects={limit_objects} must be at least 1")
    if is_shared(<PyObject*>obj):
        return 0
    size = leaf_bytes(<PyObject*>obj)
    if size >= 0:
        return size
    memset(&walk, 0, sizeof(Walk))
    walk.sample = min(max(limit_objects // 8, 16), 1024)
    seen_before(&walk, <PyObject*>obj)
    try:
        return llround(weigh_all(&walk, <PyObject*>obj, limit_objects))
    finally:
        for i in range(walk.count):
            Py_DECREF(<object>walk.items[i])
        PyMem_RawFree(walk.items)
        PyMem_RawFree(walk.frames)
        PyMem_RawFree(walk.seen)
