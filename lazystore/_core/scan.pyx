"""A scan: items in dataset order, ``__next__`` in C.

While the next item's offset and bytes are where the last ones were, an item costs one table
load and a decode; everything else goes through the reader. The scan tells the store which
parts it has passed, so that they leave first.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from lazystore._core.arena cimport NO_KEY, READY, part_key, pin, unpin
from lazystore._core.frames cimport FrameStore, Lease
from lazystore._core.offsets cimport load_offset
from lazystore._core.reader cimport FOUND, Reader
from lazystore.errors import ClosedError, FormatError, ItemIndexError


cdef class ItemIterator:
    """The items ``start .. stop - 1`` of a reader in order. Remembers frames by number and key and holds no pin
    between items, so an abandoned iterator costs nothing; parts it has passed become the first to be evicted.

    Parameters:
        reader: the dataset's.
        start, stop: item numbers.
        ahead: an object whose ``at(chunk, part)`` is called when the scan enters another part, or None.

    Threads: one iterator belongs to one thread; any number of iterators may run. Pickling: refused.
    """

    def __cinit__(self, Reader reader not None, int64_t start, int64_t stop, ahead=None):
        if not 0 <= start <= stop <= <int64_t>reader.starts[reader.n_chunks]:
            raise ItemIndexError(
                f"items {start}..{stop} are not in a dataset of {reader.starts[reader.n_chunks]} items"
            )
        self.reader = reader
        self.ahead = ahead
        self.index = start
        self.stop = stop
        self.chunk = -1
        self.body = -1
        self.table = -1
        self.body_key = NO_KEY
        self.table_key = NO_KEY
        self.told = NO_KEY

    def __iter__(self):
        return self

    def __next__(self):
        # Decoding may call the user's code, and that this iterator: its place must not move under it.
        if self.running:
            raise ValueError("this iterator is already running: it was asked for an item while it decodes one")
        self.running = True
        try:
            item = self.advance()
        finally:
            self.running = False
        return item if self.reader.transform is None else self.reader.transform(item)

    cdef object advance(self):
        cdef Reader reader = self.reader
        if reader is None:
            raise StopIteration
        cdef FrameStore store = reader.store
        cdef uint64_t pos, end
        if self.index >= self.stop:
            self.finish()
            raise StopIteration
        if not self.primed or store.closed:
            return self.slow()
        # The next item's end: stride, or one table load from a frame that still holds the table.
        if reader.stride:
            end = self.begin + reader.stride
        else:
            pos = reader.table_at + <uint64_t>(self.index - self.chunk_start + 1) * reader.width
            if part_key(self.chunk, pos >> store.shift) != self.table_key:
                return self.slow()
            if store.frames[self.table].key != self.table_key or store.frames[self.table].state != READY:
                return self.slow()
            end = load_offset(
                store.arena + (<uint64_t>self.table << store.shift) + (pos & (store.frame_bytes - 1)), reader.width
            )
        # begin >= body_base holds since it was primed; end <= body_end implies it lies in the chunk.
        if end <= self.begin or end > self.body_end:
            return self.slow()
        if store.frames[self.body].key != self.body_key or store.frames[self.body].state != READY:
            return self.slow()
        try:
            item = self.emit(
                store.arena + (<uint64_t>self.body << store.shift) + (self.begin - self.body_base),
                end - self.begin, self.body,
            )
        except (FormatError, UnicodeDecodeError) as error:
            reader.fail(self.chunk, self.index - self.chunk_start, error)
        reader.hits += 1
        self.begin = end
        self.index += 1
        if self.index >= self.chunk_stop:
            self.primed = False
        return item

    cdef object emit(self, const uint8_t* p, uint64_t n, int32_t frame):
        """The item as an object, or into the sink; the frame is pinned meanwhile, for that may run Python code."""
        cdef FrameStore store = self.reader.store
        if self.sink is None:
            return self.reader.decode_at(p, n, frame)
        pin(store, frame)
        try:
            self.sink.add(p, n)
        finally:
            unpin(store, frame)

    cdef object read(self, int64_t chunk, uint64_t i):
        """One item from wherever it is."""
        cdef Lease lease
        if self.sink is None:
            return self.reader.read(chunk, i, True)
        lease = self.reader.lease(chunk, i, True)
        try:
            self.sink.add(lease.ptr, lease.length)
        except (FormatError, UnicodeDecodeError) as error:
            self.reader.fail(chunk, i, error)
        finally:
            lease.release()

    cdef object slow(self):
        """One item by the general path, then remember where the next ones are."""
        cdef Reader reader = self.reader
        reader.store.require_open()
        cdef int64_t chunk = reader.chunk_of(self.index)
        cdef uint64_t i = self.index - reader.starts[chunk], begin = 0, end = 0
        cdef int32_t table
        # Before the item is taken: what goes wrong in there costs none.
        if self.ahead is not None and reader.span(chunk, i, &begin, &end, &table) == FOUND and begin < end:
            if part_key(chunk, (end - 1) >> reader.store.shift) != self.told:
                self.told = part_key(chunk, (end - 1) >> reader.store.shift)
                self.ahead.at(chunk, (end - 1) >> reader.store.shift)
        item = self.read(chunk, i)
        if reader.store.closed:
            raise ClosedError("the dataset was closed while it was read")
        self.index += 1
        self.prime()
        if reader.span(chunk, i, &begin, &end, &table) == FOUND and begin < end:
            self.pass_item(chunk, begin, end)
        return item

    cdef void prime(self) noexcept:
        """Set the fast path up for item ``index``, if it is in the same chunk and resident; and tell the
        store which parts the scan has passed."""
        cdef Reader reader = self.reader
        cdef FrameStore store = reader.store
        cdef uint64_t end = 0, key, length
        cdef int32_t frame = -1
        self.primed = False
        if self.index >= self.stop:
            return
        cdef int64_t chunk = reader.chunk_of(self.index)
        if chunk != self.chunk:
            self.pass_table()
            self.chunk = chunk
            self.chunk_start = reader.starts[chunk]
            self.chunk_stop = reader.starts[chunk + 1]
        if reader.span(chunk, self.index - self.chunk_start, &self.begin, &end, &frame) != FOUND:
            return
        key = part_key(chunk, self.begin >> store.shift)
        frame = store.find(key)
        if key != self.body_key or self.body < 0:
            self.pass_body(key)
        if frame < 0 or store.frames[frame].state != READY:
            return
        if self.body != frame or self.body_key != key:
            store.hit(frame)
        self.body = frame
        self.body_key = key
        self.body_base = self.begin >> store.shift << store.shift
        length = self.body_base + store.frames[frame].used
        self.body_end = min(length, reader.lengths[chunk])
        if not reader.stride:
            if reader.table_entry(chunk, self.index - self.chunk_start + 1, &frame) == NULL:
                return
            if store.frames[frame].state != READY:
                return
            key = store.frames[frame].key
            if key != self.table_key:
                self.pass_table()
                store.hit(frame)
            self.table = frame
            self.table_key = key
        self.primed = True

    cdef void pass_item(self, int64_t chunk, uint64_t begin, uint64_t end) noexcept:
        """The parts of an item that straddles, or that is alone in its chunk, are never the body: passed here, but
        for those that the next item begins in or that hold the table entries to come."""
        cdef FrameStore store = self.reader.store
        cdef uint64_t key = part_key(chunk, begin >> store.shift)
        cdef uint64_t last = part_key(chunk, (end - 1) >> store.shift)
        cdef int32_t frame
        while key <= last:
            frame = store.find(key)
            if frame >= 0 and key != self.body_key and key != self.table_key and not self.still_table(key):
                store.passed(frame, key)
            key += 1

    cdef void pass_body(self, uint64_t new_key) noexcept:
        """The scan leaves its body part; not if table entries to come are still in it."""
        if (
            self.body >= 0 and self.body_key != new_key and self.body_key != self.table_key
            and not self.still_table(self.body_key)
        ):
            self.reader.store.passed(self.body, self.body_key)
        self.body = -1
        self.body_key = NO_KEY

    cdef bint still_table(self, uint64_t key) noexcept:
        """Whether a part holds offsets of items to come in the present chunk; pass_table sees to it later."""
        cdef Reader reader = self.reader
        cdef uint64_t next, last
        if reader.stride or self.index >= self.chunk_stop:
            return False
        next = reader.table_at + <uint64_t>(self.index - self.chunk_start) * reader.width
        last = reader.table_at + <uint64_t>(self.chunk_stop - self.chunk_start + 1) * reader.width - 1
        return (
            part_key(self.chunk, next >> reader.store.shift) <= key
            and key <= part_key(self.chunk, last >> reader.store.shift)
        )

    cdef void pass_table(self) noexcept:
        if self.table >= 0 and self.table_key != self.body_key:
            self.reader.store.passed(self.table, self.table_key)
        self.table = -1
        self.table_key = NO_KEY

    cdef finish(self):
        # The table first: a part that holds both is then the body's to pass.
        if not self.reader.store.closed:
            self.pass_table()
            self.pass_body(NO_KEY)

    def extend(self, int64_t stop):
        """Go on to ``stop`` instead of ending before it."""
        if not self.stop <= stop <= <int64_t>self.reader.starts[self.reader.n_chunks]:
            raise ItemIndexError(f"items up to {stop} do not extend a scan of those up to {self.stop}")
        self.stop = stop

    def __length_hint__(self):
        return max(self.stop - self.index, 0)

    @property
    def position(self):
        """Number of the next item."""
        return self.index

    def __reduce__(self):
        raise TypeError("an iterator cannot be pickled; pickle the dataset and the position")

    def __repr__(self):
        return f"<ItemIterator at {self.index} of {self.stop}>"
