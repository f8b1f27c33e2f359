"""A run of items held in memory: the frames of its offsets and bytes, pinned until the plan is done with it.

A shuffled reader knows which items it will draw from and when it is through with them; a slab
is that knowledge. It finds an item by two loads from a row of frames instead of a table lookup.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport malloc, free

from lazystore._core.arena cimport READY, pin, prefetch, unpin
from lazystore._core.frames cimport FrameStore
from lazystore._core.offsets cimport load_u32
from lazystore._core.spread cimport gather
from lazystore.errors import ClosedError, ConfigError, FormatError, ItemIndexError


# no_gc: a slab refers to the store only, and the store to no Python object, so no cycle can pass through it;
# the collector must not clear that reference before __dealloc__ has taken the pins off.
@cython.final
@cython.no_gc
cdef class Slab:
    """The items ``first .. last - 1`` of a chunk, resident and pinned.

    Parameters:
        store: where the frames are.
        chunk, first, last: the items, numbered in their chunk.
        table: ``(key chunk, first part, parts)``: the frames that hold the offsets, consecutive parts.
        table_at: bytes from the start of the first of them to the entry (u32) of item ``first``.
        body: the same for the frames that hold the items' bytes.
        body_at: bytes from the start of the first of them to byte ``begin`` of the chunk.
        begin, end: bytes of the chunk in which the items lie; offsets outside are refused.
        stride: bytes an item when all have one length (the table is not looked at then), else 0.

    Raises:
        KeyError: a frame is not resident; nothing is pinned then.

    Memory: 4 bytes a frame, and the pins. Threads: belongs to one iterator. Fork: the child's copy
    pins the child's frames. Pickling: refused.
    """

    def __cinit__(
        self, FrameStore store not None, int64_t chunk, int64_t first, int64_t last, *,
        tuple table not None, uint64_t table_at, tuple body not None, uint64_t body_at,
        uint64_t begin, uint64_t end, uint64_t stride=0,
    ):
        cdef Py_ssize_t n_table, n_body, room
        cdef uint64_t table_chunk, table_part, body_chunk, body_part
        table_chunk, table_part, n_table = table
        body_chunk, body_part, n_body = body
        store.require_open()
        cdef uint64_t items = <uint64_t>(last - first), frame = store.frame_bytes
        if not 0 <= first <= last or end < begin or not (
            0 <= n_table <= store.n_frames and 0 <= n_body <= store.n_frames
        ):
            raise ConfigError(f"items {first}..{last} in bytes {begin}..{end} are no slab of this store")
        # Compared by division and subtraction: no sum can wrap.
        if stride == 0 and (
            table_at & 3 or table_at > n_table * frame or items + 1 > (n_table * frame - table_at) // 4
        ):
            raise ConfigError(f"{n_table} frames do not hold the offsets of {items} items from byte {table_at}")
        if stride and items > (end - begin) // stride:
            raise ConfigError(f"{end - begin} bytes do not hold {items} items of {stride}")
        if end > begin and (body_at > n_body * frame or end - begin > n_body * frame - body_at):
            raise ConfigError(f"{n_body} frames do not hold bytes {begin}..{end} from byte {body_at}")
        self.store = store
        self.chunk, self.first, self.last = chunk, first, last
        self.table_at, self.body_at = table_at, body_at
        self.begin, self.end, self.stride = begin, end, stride
        self.n_table = n_table
        room = max(n_table + n_body, 1)
        self.frames = <int32_t*>malloc(room * sizeof(int32_t))
        if self.frames == NULL:
            raise MemoryError(f"no memory for a slab of {room} frames")
        try:
            self.hold(table_chunk, table_part, n_table)
            self.hold(body_chunk, body_part, n_body)
        except BaseException:
            self.let_go(False)
            raise

    cdef int hold(self, uint64_t key_chunk, uint64_t part, Py_ssize_t n) except -1:
        cdef Py_ssize_t k
        cdef int32_t f
        for k in range(n):
            f = self.store.find_part(key_chunk, part + k)
            if f < 0 or self.store.frames[f].state != READY:
                raise KeyError((key_chunk, part + k))
            self.store.hit(f)
            pin(self.store, f)
            self.frames[self.n_frames] = f
            self.n_frames += 1
        return 0

    cdef void let_go(self, bint passed) noexcept:
        cdef Py_ssize_t k
        cdef int32_t f
        cdef FrameStore store = self.store
        self.released = True
        for k in range(self.n_frames):
            f = self.frames[k]
            # The last pin of a closed store gives its tables back: look before letting go.
            if passed and not store.closed and store.frames[f].pins == 1:
                store.passed(f, store.frames[f].key)
            unpin(store, f)
        self.n_frames = 0

    def release(self):
        """Unpin the frames; they are the first to be evicted from now on. Twice is fine."""
        self.let_go(True)

    def __dealloc__(self):
        if self.store is not None and self.frames != NULL:
            self.let_go(True)
        free(self.frames)

    cdef const int32_t* body(self) noexcept:
        return self.frames + self.n_table

    cdef bint find(self, uint64_t i, uint64_t* at, uint64_t* n) noexcept:
        cdef uint64_t begin, end, v
        cdef FrameStore store = self.store
        if self.stride:
            begin = self.begin + (i - <uint64_t>self.first) * self.stride
            end = begin + self.stride
        else:
            # Entries are 4-aligned in the row, so none straddles.
            v = self.table_at + 4 * (i - <uint64_t>self.first)
            begin = load_u32(store.arena + (<uint64_t>self.frames[v >> store.shift] << store.shift)
                             + (v & (store.frame_bytes - 1)))
            v += 4
            end = load_u32(store.arena + (<uint64_t>self.frames[v >> store.shift] << store.shift)
                           + (v & (store.frame_bytes - 1)))
        if begin < self.begin or end < begin or end > self.end:
            return False
        at[0] = self.body_at + (begin - self.begin)
        n[0] = end - begin
        return True

    cdef void expect(self, uint64_t i) noexcept:
        cdef uint64_t v
        cdef FrameStore store = self.store
        if not self.stride:
            v = self.table_at + 4 * (i - <uint64_t>self.first)
            if v >> store.shift < <uint64_t>self.n_table:
                prefetch(store.arena + (<uint64_t>self.frames[v >> store.shift] << store.shift)
                         + (v & (store.frame_bytes - 1)), 1)

    cdef const uint8_t* pointer(self, uint64_t at, uint64_t n) noexcept:
        cdef FrameStore store = self.store
        cdef const int32_t* body = self.frames + self.n_table
        cdef uint64_t part = at >> store.shift, last
        cdef const uint8_t* p
        if not n:
            return store.arena
        p = store.arena + (<uint64_t>body[part] << store.shift) + (at & (store.frame_bytes - 1))
        last = (at + n - 1) >> store.shift
        while part < last:   # frames that are neighbours in memory too make one piece
            if body[part + 1] != body[part] + 1:
                return NULL
            part += 1
        return p

    def item(self, int64_t i):
        """The stored bytes of item ``i`` of the chunk, as a copy.

        Raises:
            FormatError: its offsets point outside the slab.
        """
        cdef uint64_t at = 0, n = 0
        if self.released:
            raise ClosedError("this slab was released")
        if not self.first <= i < self.last:
            raise ItemIndexError(f"item {i} is not among {self.first}..{self.last - 1} of this slab")
        if not self.find(i, &at, &n):
            raise FormatError(f"item {i} of chunk {self.chunk} has offsets outside {self.begin}..{self.end}")
        return gather(self.store, self.body(), at, n)

    def __len__(self):
        return self.last - self.first

    def __reduce__(self):
        raise TypeError("a Slab pins memory and cannot be pickled")

    def __repr__(self):
        return (
            f"<Slab of items {self.first}..{self.last} of chunk {self.chunk}, "
            f"{'released' if self.released else f'{self.n_frames} frames'}>"
        )
