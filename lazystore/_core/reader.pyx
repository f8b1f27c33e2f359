"""From an item number to an object, over whatever is resident.

:class:`Reader` knows where items begin (offset tables inside resident frames), and
decodes in place. What is not resident is asked of the *loader*, an object one floor up
that does the I/O:

    loader.item(chunk, i, scan) -> buffer with the bytes of item i (the loader keeps what it likes)
    loader.items([(chunk, i), ...]) -> iterator of (position in the list, buffer)
    loader.place(chunk, i) -> str, where an item is, for messages

Frames are pinned while a decode runs (it may run Python code), and never between calls.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_AsSsize_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from array import array

from lazystore._core.arena cimport ITEM_PIECE, TABLE_PIECE, part_key, pin, prefetch, unpin
from lazystore._core.decode cimport DecodePlan
from lazystore._core.frames cimport FrameStore, Lease, lease_bytes, lease_frame
from lazystore._core.offsets cimport load_offset
from lazystore._core.spread cimport decode_spread
from lazystore.errors import ConfigError, FormatError, ItemIndexError

cdef enum:
    SPOTS = 32       # items found before they are decoded; as many frames are pinned at most
    BEGINNING = 320  # bytes of an item whose cache lines are asked for

cdef struct Spot:
    const uint8_t* p
    uint64_t n
    int32_t frame
    Py_ssize_t k
    int64_t chunk
    uint64_t i

#: Entries of an offset table in one block (a piece): the pair of any item lies in one block.
TABLE_BLOCK = 512
cdef uint64_t MAX_ITEMS = <uint64_t>1 << 62
cdef int BLOCK_ENTRIES = 512


cdef class Reader:
    """Items of a chunked dataset by number.

    Parameters:
        store: where resident bytes are.
        plan: how an item's bytes become an object.
        loader: asked for what is not resident (see the module's docstring).
        counts: items of each chunk, in dataset order.
        table_at: position of the offset table in a chunk, bytes.
        width: bytes an offset, 4 or 8.
        stride: bytes an item when all have one length (no table is read then), else 0.
        transform: applied to every decoded item, or None.

    Cost: 24 bytes a chunk. Threads: any number may read; the GIL makes lookups atomic, and pins
    protect what is being decoded. Fork: copied with the store. Pickling: refused.
    """

    def __cinit__(
        self, FrameStore store not None, DecodePlan plan not None, loader, counts, *,
        int table_at=4, int width=4, int64_t stride=0, transform=None,
    ):
        if width not in (4, 8) or table_at < 0 or stride < 0:
            raise ConfigError(f"width={width}, table_at={table_at}, stride={stride} do not describe a chunk")
        self.store = store
        self.plan = plan
        self.loader = loader
        self.transform = transform
        self.table_at = table_at
        self.width = width
        self.stride = stride
        self.n_chunks = len(counts)
        if self.n_chunks >> 30:
            raise ConfigError(f"{self.n_chunks} chunks are more than 2**30")
        self.starts = <uint64_t*>calloc(self.n_chunks + 1, 8)
        self.lengths = <uint64_t*>calloc(max(self.n_chunks, 1), 8)
        self.bases = <uint64_t*>calloc(max(self.n_chunks, 1), 8)
        if not (self.starts and self.lengths and self.bases):
            raise MemoryError(f"no memory for {self.n_chunks} chunks")
        if not isinstance(counts, array):
            counts = array("Q", counts)
        self._number(counts)

    cdef int _number(self, const uint64_t[::1] counts) except -1:
        """Lay the chunks' items end to end."""
        cdef int64_t k
        cdef uint64_t total = 0
        if counts.shape[0] != self.n_chunks:
            raise ConfigError(f"the counts of {self.n_chunks} chunks changed while they were read")
        for k in range(self.n_chunks):
            if counts[k] > MAX_ITEMS - total:
                raise ConfigError(f"the counts of {self.n_chunks} chunks add up to more than 2**62 items")
            total += counts[k]
            self.starts[k + 1] = total
        return 0

    def __dealloc__(self):
        free(self.starts)
        free(self.lengths)
        free(self.bases)

    # -- where things are ---------------------------------------------------------------

    def open_chunk(self, int64_t chunk, uint64_t length, uint64_t base):
        """Tell the reader a chunk's length and the first byte an item of it may have."""
        self._check_chunk(chunk)
        if base > length:
            raise FormatError(
                f"{self.loader.place(chunk, 0)}: items would begin at {base}, the chunk has {length} bytes"
            )
        self.lengths[chunk] = length
        self.bases[chunk] = base

    def chunk_length(self, int64_t chunk):
        """Bytes of an opened chunk; 0 before it is opened."""
        self._check_chunk(chunk)
        return self.lengths[chunk]

    def chunk_items(self, int64_t chunk):
        """Number of items in a chunk."""
        self._check_chunk(chunk)
        return self.starts[chunk + 1] - self.starts[chunk]

    @property
    def n_items(self):
        """Items of all chunks."""
        return self.starts[self.n_chunks]

    def first_item(self, int64_t chunk):
        """Number in the dataset of a chunk's first item."""
        self._check_chunk(chunk)
        return self.starts[chunk]

    cdef int _check_chunk(self, int64_t chunk) except -1:
        if not 0 <= chunk < self.n_chunks:
            raise ItemIndexError(f"chunk {chunk} is not in 0..{self.n_chunks - 1}")
        return 0

    cdef int64_t chunk_of(self, uint64_t index) noexcept:
        """The chunk of an item number below the total; empty chunks are never the answer."""
        cdef int64_t low = 0, high = self.n_chunks, middle
        if self.starts[self.last_chunk] <= index < self.starts[self.last_chunk + 1]:
            return self.last_chunk
        while high - low > 1:
            middle = (low + high) // 2
            if self.starts[middle] <= index:
                low = middle
            else:
                high = middle
        self.last_chunk = low
        return low

    cdef uint64_t normal(self, object index) except? 0xFFFFFFFFFFFFFFFF:
        """A valid item number from an int-like, negative ones counted from the end."""
        cdef Py_ssize_t i
        cdef int64_t total = <int64_t>self.starts[self.n_chunks]
        try:
            i = PyNumber_AsSsize_t(index, OverflowError)
        except OverflowError:
            raise ItemIndexError(f"item {index} is not in a dataset of {total} items") from None
        if i < 0:
            i += total
        if not 0 <= i < total:
            raise ItemIndexError(f"item {index} is not in a dataset of {total} items")
        return <uint64_t>i

    def where(self, index):
        """``(chunk, number in the chunk)`` of an item."""
        cdef uint64_t i = self.normal(index)
        cdef int64_t chunk = self.chunk_of(i)
        return chunk, i - self.starts[chunk]

    cdef const uint8_t* table_entry(self, int64_t chunk, uint64_t k, int32_t* frame) noexcept:
        """Entry ``k`` of a chunk's table inside a resident frame, or NULL."""
        cdef FrameStore store = self.store
        cdef uint64_t pos = self.table_at + k * self.width
        cdef uint64_t inside = pos & (store.frame_bytes - 1)
        cdef int32_t f = store.find(part_key(chunk, pos >> store.shift))
        frame[0] = f
        if f < 0 or not store.covers(f, inside, inside + self.width):
            return NULL
        return store.arena + (<uint64_t>f << store.shift) + inside

    cdef Found span(self, int64_t chunk, uint64_t i, uint64_t* begin, uint64_t* end, int32_t* table) noexcept:
        """Byte range of item i of a chunk: checked against the chunk here, every time, so that
        whatever lies in the table no byte outside the chunk is ever read."""
        cdef const uint8_t* first
        cdef const uint8_t* second
        cdef uint32_t length
        cdef uint64_t limit = self.lengths[chunk]
        table[0] = -1
        if not limit:
            return MISSING
        if self.stride:
            begin[0] = self.bases[chunk] + i * self.stride
            end[0] = begin[0] + self.stride
            # Divided, not multiplied: nothing can wrap.
            return FOUND if i < (limit - self.bases[chunk]) // <uint64_t>self.stride else CORRUPT
        first = self.table_entry(chunk, i, table)
        second = self.table_entry(chunk, i + 1, table)
        if first == NULL or second == NULL:
            first = self.store.find_piece(TABLE_PIECE, chunk, i // BLOCK_ENTRIES, &length, table)
            if first == NULL or length < (i % BLOCK_ENTRIES + 2) * self.width:
                return MISSING
            first += i % BLOCK_ENTRIES * self.width
            second = first + self.width
        begin[0] = load_offset(first, self.width)
        end[0] = load_offset(second, self.width)
        if begin[0] < self.bases[chunk] or end[0] < begin[0] or end[0] > limit:
            return CORRUPT
        return FOUND

    cdef Found locate(
        self, int64_t chunk, uint64_t i, bint scan,
        uint64_t* begin, uint64_t* end, const uint8_t** p, int32_t* frame,
    ) noexcept:
        """Find item i among resident frames and pieces; on FOUND ``p`` points at it, in ``frame`` (-1: in none)."""
        cdef FrameStore store = self.store
        cdef int32_t table
        cdef uint64_t inside
        cdef uint32_t length
        cdef Found found = self.span(chunk, i, begin, end, &table)
        if found != FOUND:
            return found
        if begin[0] == end[0]:
            p[0] = <const uint8_t*>b""
            frame[0] = -1
            return FOUND
        if table >= 0:
            self.note(table, scan)
        if begin[0] >> store.shift == (end[0] - 1) >> store.shift:
            inside = begin[0] & (store.frame_bytes - 1)
            frame[0] = store.find(part_key(chunk, begin[0] >> store.shift))
            if frame[0] >= 0 and store.covers(frame[0], inside, inside + end[0] - begin[0]):
                p[0] = store.arena + (<uint64_t>frame[0] << store.shift) + inside
                return FOUND
        elif self.resident(chunk, begin[0], end[0]):
            return STRADDLES
        p[0] = store.find_piece(ITEM_PIECE, chunk, i, &length, frame)
        return FOUND if p[0] != NULL and length == end[0] - begin[0] else MISSING

    cdef void note(self, int32_t frame, bint scan) noexcept:
        """An access: a scan's only counts, any other makes the frame recent and takes it out of the scan's hands."""
        if scan:
            self.store.hit(frame)
        else:
            self.store.touch(frame)

    cdef bint resident(self, int64_t chunk, uint64_t begin, uint64_t end) noexcept:
        cdef FrameStore store = self.store
        cdef uint64_t base
        cdef int32_t f
        while begin < end:
            base = begin >> store.shift << store.shift
            f = store.find(part_key(chunk, begin >> store.shift))
            if f < 0 or not store.covers(f, begin - base, min(end - base, <uint64_t>store.frame_bytes)):
                return False
            begin = base + store.frame_bytes
        return True

    cdef bytes gather(self, int64_t chunk, uint64_t begin, uint64_t end, bint scan):
        """Bytes that lie across resident frames, copied together."""
        # Allocating bytes runs no Python code, so what was resident a moment ago still is.
        cdef FrameStore store = self.store
        cdef bytes out = PyBytes_FromStringAndSize(NULL, end - begin)
        cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(out)
        cdef uint64_t inside, n
        cdef int32_t f
        while begin < end:
            inside = begin & (store.frame_bytes - 1)
            n = min(end - begin, store.frame_bytes - inside)
            f = store.find(part_key(chunk, begin >> store.shift))
            self.note(f, scan)
            memcpy(to, store.arena + (<uint64_t>f << store.shift) + inside, n)
            to += n
            begin += n
        return out

    # -- reading ------------------------------------------------------------------------

    cdef object decode_at(self, const uint8_t* p, uint64_t n, int32_t frame):
        """Decode in place; the frame is pinned meanwhile, since decoding may run Python code."""
        cdef FrameStore store = self.store
        if frame < 0:
            return self.plan.decode(p, n)
        pin(store, frame)
        try:
            return self.plan.decode(p, n)
        finally:
            unpin(store, frame)

    cdef object decode_buffer(self, object buffer):
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            return self.plan.decode(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef object decode_across(self, int64_t chunk, uint64_t begin, uint64_t end, bint scan):
        """Decode an item that lies across resident frames."""
        cdef FrameStore store = self.store
        cdef uint64_t first = begin >> store.shift
        cdef Py_ssize_t k, n_parts = <Py_ssize_t>(((end - 1) >> store.shift) + 1 - first)
        # By number from here on: while Python code decodes a leaf, a filler may give a part up, and with it its key.
        # No object before the pins: making one may run the garbage collector, and that anything.
        cdef int32_t* held = <int32_t*>malloc(n_parts * sizeof(int32_t))
        if held == NULL:
            raise MemoryError(f"no memory to decode an item of {end - begin} bytes")
        for k in range(n_parts):
            held[k] = store.find(part_key(chunk, first + k))
            self.note(held[k], scan)
            pin(store, held[k])
        try:
            return decode_spread(store, self.plan, held, begin - (first << store.shift), end - begin)
        finally:
            # A store that was closed meanwhile lives until the last of these.
            for k in range(n_parts):
                unpin(store, held[k])
            free(held)

    cdef int fail(self, int64_t chunk, uint64_t i, object error) except -1:
        """Raise the same error with the place in front of it, unless it is there already."""
        cdef str place = self.loader.place(chunk, i)
        if not isinstance(error, FormatError):
            raise FormatError(f"{place}: {error}") from error
        if str(error).startswith(place.rpartition(", item ")[0] or place):
            raise error
        raise type(error)(f"{place}: {error}") from error

    cdef object corrupt(self, int64_t chunk, uint64_t i, uint64_t begin, uint64_t end):
        return FormatError(
            f"{self.loader.place(chunk, i)}: its offsets say bytes {begin}..{end}, items lie in "
            f"{self.bases[chunk]}..{self.lengths[chunk]}; the chunk is damaged or truncated, write or copy it again"
        )

    cdef object read(self, int64_t chunk, uint64_t i, bint scan):
        """Item i of a chunk as an object, from wherever it is."""
        cdef uint64_t begin = 0, end = 0
        cdef const uint8_t* p = NULL
        cdef int32_t frame = -1
        cdef Found found
        self.store.require_open()
        found = self.locate(chunk, i, scan, &begin, &end, &p, &frame)
        try:
            if found == FOUND:
                self.hits += 1
                if frame >= 0:
                    self.note(frame, scan)
                return self.decode_at(p, end - begin, frame)
            if found == STRADDLES:
                self.hits += 1
                return self.decode_across(chunk, begin, end, scan)
            if found == MISSING:
                self.misses += 1
                buffer = self.loader.item(chunk, i, scan)
        except (FormatError, UnicodeDecodeError) as error:
            self.fail(chunk, i, error)
        if found == CORRUPT:
            raise self.corrupt(chunk, i, begin, end)
        return self.decode_fetched(chunk, i, buffer)

    cdef object decode_fetched(self, int64_t chunk, uint64_t i, object buffer):
        try:
            return self.decode_buffer(buffer)
        except (FormatError, UnicodeDecodeError) as error:
            self.fail(chunk, i, error)

    def get(self, index):
        """Item ``index`` (int-like, negative from the end) as an object.

        Cost: two table loads and a decode when resident; else whatever the loader needs.

        Raises:
            ItemIndexError, FormatError, ClosedError; FetchError from the loader.
        """
        cdef uint64_t i = self.normal(index)
        cdef int64_t chunk = self.chunk_of(i)
        item = self.read(chunk, i - self.starts[chunk], False)
        return item if self.transform is None else self.transform(item)

    def get_many(self, indices):
        """Items in the order asked, as a list; what is not resident is asked of the loader together."""
        cdef list wanted = list(indices)
        cdef Py_ssize_t first, n = len(wanted)
        cdef list found = [None] * n
        cdef list missing = [], places = []
        self.store.require_open()
        for first in range(0, n, SPOTS):
            self.read_spots(wanted, first, min(first + SPOTS, n), found, missing, places)
        if missing:
            for position, buffer in self.loader.items(missing):
                chunk, i = missing[position]
                found[places[position]] = self.decode_fetched(chunk, i, buffer)
        if self.transform is not None:
            found = [self.transform(item) for item in found]
        return found

    cdef int read_spots(
        self, list wanted, Py_ssize_t first, Py_ssize_t last, list found, list missing, list places
    ) except -1:
        """Find up to SPOTS items, then decode them: their cache lines travel meanwhile."""
        cdef Spot spots[SPOTS]
        cdef Spot* spot
        cdef Py_ssize_t k
        cdef int count = 0, done = 0
        cdef uint64_t i = 0, begin = 0, end = 0
        cdef int64_t chunk = 0
        cdef const uint8_t* p = NULL
        cdef int32_t frame = -1
        cdef Found where
        self.store.require_open()
        try:
            for k in range(first, last):
                i = self.normal(wanted[k])
                chunk = self.chunk_of(i)
                i -= self.starts[chunk]
                self.store.require_open()   # an __index__, or decoding, may have run Python code that closed it
                where = self.locate(chunk, i, False, &begin, &end, &p, &frame)
                if where == FOUND:
                    if frame >= 0:
                        self.store.touch(frame)
                        pin(self.store, frame)
                    prefetch(p, min(end - begin, <uint64_t>BEGINNING))
                    spots[count] = Spot(p, end - begin, frame, k, chunk, i)
                    count += 1
                elif where == MISSING:
                    self.misses += 1
                    missing.append((chunk, i))
                    places.append(k)
                elif where == STRADDLES:
                    self.hits += 1
                    found[k] = self.decode_buffer(self.gather(chunk, begin, end, False))
                else:
                    raise self.corrupt(chunk, i, begin, end)
            while done < count:
                spot = &spots[done]
                chunk, i = spot.chunk, spot.i
                item = self.plan.decode(spot.p, spot.n)
                found[spot.k] = item
                done += 1
            self.hits += count
        except (FormatError, UnicodeDecodeError) as error:
            self.fail(chunk, i, error)
        finally:
            for done in range(count):
                if spots[done].frame >= 0:
                    unpin(self.store, spots[done].frame)
        return 0

    cdef Lease lease(self, int64_t chunk, uint64_t i, bint scan):
        """The bytes of an item without decoding: a pin on its frame, or a private copy."""
        cdef uint64_t begin = 0, end = 0
        cdef const uint8_t* p = NULL
        cdef int32_t frame = -1
        cdef Found found
        self.store.require_open()
        found = self.locate(chunk, i, scan, &begin, &end, &p, &frame)
        if found == CORRUPT:
            raise self.corrupt(chunk, i, begin, end)
        if found == MISSING:
            self.misses += 1
            try:
                buffer = self.loader.item(chunk, i, scan)
            except FormatError as error:
                self.fail(chunk, i, error)
            return buffer if isinstance(buffer, Lease) else lease_bytes(bytes(buffer))
        self.hits += 1
        if found == STRADDLES:
            return lease_bytes(self.gather(chunk, begin, end, scan))
        if frame < 0:
            return lease_bytes(b"")
        self.note(frame, scan)
        return lease_frame(self.store, frame, p, end - begin)

    def view(self, index):
        """A :class:`~lazystore._core.frames.Lease` on the stored bytes of an item."""
        cdef uint64_t i = self.normal(index)
        cdef int64_t chunk = self.chunk_of(i)
        return self.lease(chunk, i - self.starts[chunk], False)

    def get_bytes(self, index):
        """The stored bytes of an item, as a copy."""
        with self.view(index) as lease:
            return bytes(lease)

    # -- looking ------------------------------------------------------------------------

    cdef bint has(self, int64_t chunk, uint64_t i) noexcept:
        """Whether an item can be had without I/O; looking is no access."""
        cdef uint64_t begin = 0, end = 0
        cdef uint32_t length
        cdef int32_t frame
        if self.span(chunk, i, &begin, &end, &frame) != FOUND:
            return False
        return (
            self.resident(chunk, begin, end)
            or self.store.find_piece(ITEM_PIECE, chunk, i, &length, &frame) != NULL
        )

    def is_resident(self, index):
        """Whether an item can be had without I/O. Counts as no access."""
        cdef uint64_t i = self.normal(index)
        cdef int64_t chunk = self.chunk_of(i)
        self.store.require_open()
        return self.has(chunk, i - self.starts[chunk])

    def resident_span(self, int64_t chunk, uint64_t i):
        """``(begin, end)`` of item i of a chunk from resident offsets.

        Raises:
            KeyError: they are not resident.
            FormatError: they point outside the chunk.
        """
        cdef uint64_t begin = 0, end = 0
        cdef int32_t table
        self._check_chunk(chunk)
        if i >= self.starts[chunk + 1] - self.starts[chunk]:
            raise ItemIndexError(
                f"item {i} is not in chunk {chunk} of {self.starts[chunk + 1] - self.starts[chunk]} items"
            )
        self.store.require_open()
        cdef Found found = self.span(chunk, i, &begin, &end, &table)
        if found == MISSING:
            raise KeyError((chunk, i))
        if found == CORRUPT:
            raise self.corrupt(chunk, i, begin, end)
        return begin, end

    def items_resident(self, int64_t chunk):
        """How many items of a chunk can be had without I/O. Cost: O(items of the chunk), in C."""
        cdef uint64_t i, n, count = 0
        self._check_chunk(chunk)
        self.store.require_open()
        n = self.starts[chunk + 1] - self.starts[chunk]
        for i in range(n):
            count += self.has(chunk, i)
        return count

    def __reduce__(self):
        raise TypeError("a Reader holds C memory and cannot be pickled; pickle the dataset")

    def __repr__(self):
        return f"<Reader of {self.starts[self.n_chunks]} items in {self.n_chunks} chunks over {self.store!r}>"
