"""Item offset tables: ``entry[0] .. entry[n]`` little-endian, u32 or u64, item i = [entry[i], entry[i+1]).

:func:`check_offsets` is the door: it walks a run of entries once. :class:`OffsetTable`
answers item -> byte range and byte -> item over entries that lie in one or many buffers
(frames). Leaf sizes of an item are read by :func:`leaf_sizes`.

Source: the chunk layout of LitData's and MosaicML's formats (``u32 n | u32 offset[n+1] | items``).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from lazystore.errors import ConfigError, FormatError, ItemIndexError


def check_offsets(
    const unsigned char[::1] entries not None,
    *, int width=4, uint64_t lowest=0, uint64_t highest, long long first=0
):
    """Check a run of table entries and return the last one.

    Parameters:
        entries: ``k * width`` bytes, k >= 1.
        width: bytes an entry, 4 or 8.
        lowest: smallest value the first entry may have (its predecessor, or the end of the table).
        highest: largest value any entry may have (the chunk's length in bytes).
        first: number of the run's first entry, for the message.

    Raises:
        FormatError: an entry goes backwards or past ``highest``; the message names it.
    """
    if width != 4 and width != 8:
        raise ConfigError(f"offset width {width} is not 4 or 8 bytes")
    cdef Py_ssize_t count = entries.shape[0] // width
    if count < 1 or count * width != entries.shape[0]:
        raise ConfigError(f"{entries.shape[0]} bytes are not a whole number of {width}-byte offsets")
    cdef const uint8_t* p = <const uint8_t*>&entries[0]
    cdef Py_ssize_t bad
    with nogil:
        bad = first_bad_offset(p, count, width, lowest, highest)
    if bad < 0:
        return load_offset(p + (count - 1) * width, width)
    cdef uint64_t value = load_offset(p + bad * width, width)
    if value > highest:
        raise FormatError(f"offset {first + bad} is {value}, past the end at {highest}")
    raise FormatError(f"offset {first + bad} is {value}, it goes backwards")


def leaf_sizes(const unsigned char[::1] item not None, int n_leaves):
    """The leaf sizes in bytes that stand before the leaves of an item (``u32 size[n_leaves] | leaves``).

    Raises:
        FormatError: the sizes do not add up to the item.
    """
    if n_leaves < 0:
        raise ConfigError(f"n_leaves={n_leaves} must not be negative")
    cdef Py_ssize_t total = 4 * <Py_ssize_t>n_leaves
    cdef list sizes = []
    cdef Py_ssize_t k
    cdef uint32_t size
    if item.shape[0] < total:
        raise FormatError(f"an item of {item.shape[0]} bytes cannot hold {n_leaves} leaf sizes")
    for k in range(n_leaves):
        size = load_u32(<const uint8_t*>&item[4 * k])
        sizes.append(size)
        total += size
    if total != item.shape[0]:
        raise FormatError(f"leaf sizes {sizes} need {total} bytes, the item has {item.shape[0]}")
    return tuple(sizes)


cdef class OffsetTable:
    """Checked offset table over one buffer or over the buffers of consecutive frames.

    Parameters:
        buffers: the table's entries, in order. All buffers but the last have the same
            length, a multiple of ``width``; the last may be shorter.
        width: bytes an entry, 4 or 8.
        lowest: smallest legal first offset.
        highest: largest legal offset, the length of the chunk in bytes.

    The buffers are held (a lease stays pinned) as long as the table lives.

    Raises:
        FormatError: offsets that go backwards or past ``highest``.

    Threads: read-only after construction. Fork: copied. Pickling: refused.
    """

    cdef Py_buffer* views
    cdef Py_ssize_t n_views
    cdef Py_ssize_t per_view
    cdef readonly Py_ssize_t n_items
    cdef readonly int width

    def __cinit__(self, buffers, *, int width=4, uint64_t lowest=0, uint64_t highest):
        cdef list held = list(buffers)
        cdef Py_ssize_t k, entries = 0
        if not held:
            raise ConfigError("an offset table needs at least one buffer")
        if width != 4 and width != 8:
            raise ConfigError(f"offset width {width} is not 4 or 8 bytes")
        self.width = width
        self.views = <Py_buffer*>calloc(len(held), sizeof(Py_buffer))
        if self.views == NULL:
            raise MemoryError("no memory for an offset table")
        for k in range(len(held)):
            PyObject_GetBuffer(held[k], &self.views[k], PyBUF_SIMPLE)
            self.n_views = k + 1
            if self.views[k].len % width or self.views[k].len == 0:
                raise ConfigError(f"buffer {k} of {self.views[k].len} bytes does not hold whole {width}-byte offsets")
            if self.views[k].len > self.views[0].len or (k < len(held) - 1 and self.views[k].len != self.views[0].len):
                raise ConfigError("all buffers of a table must have one length, but that the last may be shorter")
            lowest = check_offsets(held[k], width=width, lowest=lowest, highest=highest, first=entries)
            entries += self.views[k].len // width
        self.per_view = self.views[0].len // width
        self.n_items = entries - 1

    def __dealloc__(self):
        cdef Py_ssize_t k
        if self.views != NULL:
            for k in range(self.n_views):
                PyBuffer_Release(&self.views[k])
            free(self.views)

    cdef inline uint64_t entry(self, Py_ssize_t k) noexcept nogil:
        # k <= n_items, so the view exists: entries were counted from the views themselves.
        cdef const uint8_t* base = <const uint8_t*>self.views[k // self.per_view].buf
        return load_offset(base + (k % self.per_view) * self.width, self.width)

    def span(self, Py_ssize_t item):
        """``(begin, end)`` of an item in bytes. Cost: two loads.

        Raises:
            ItemIndexError: there is no such item.
        """
        if not 0 <= item < self.n_items:
            raise ItemIndexError(f"item {item} is not in 0..{self.n_items - 1}")
        return self.entry(item), self.entry(item + 1)

    def find(self, uint64_t byte):
        """The item whose bytes hold position ``byte``. Cost: O(log n) loads.

        Zero-length items hold no byte and are never the answer.

        Raises:
            ItemIndexError: the position is before the first or after the last item.
        """
        cdef Py_ssize_t low = 0, high = self.n_items, middle
        if self.n_items < 1 or byte < self.entry(0) or byte >= self.entry(self.n_items):
            raise ItemIndexError(f"byte {byte} is inside no item")
        while high - low > 1:
            middle = (low + high) // 2
            if self.entry(middle) <= byte:
                low = middle
            else:
                high = middle
        return low

    def __len__(self):
        return self.n_items

    def __reduce__(self):
        raise TypeError("OffsetTable holds buffers and cannot be pickled")

    def __repr__(self):
        return f"<OffsetTable {self.n_items} items, {self.width}-byte offsets in {self.n_views} buffers>"
