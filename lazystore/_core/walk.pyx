"""A walk: the items of a route, whatever its order, ``__next__`` in C.

The *feed* (Python, one floor up) brings one leg at a time and says where its items are; a walk
finds them all at once, and hands them out while the memory of the next ones is on its way to the cache:

    feed.turn() -> ("range", ItemIterator)                                  items in order
                 | ("slabs", [(chunk, Slab or list of buffers, numbers)], places, skip, stop)
                 | ("list", [(chunk, number, buffer)])                      items fetched alone
                 ; raises StopIteration at the end
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from lazystore._core.arena cimport prefetch
from lazystore._core.collate cimport Sink
from lazystore._core.frames cimport FrameStore
from lazystore._core.reader cimport Reader
from lazystore._core.scan cimport ItemIterator
from lazystore._core.slab cimport Slab
from lazystore._core.spread cimport decode_spread, gather
from lazystore.errors import FormatError

cdef enum:
    AHEAD = 10            # items whose memory is asked for before they are decoded
    ENTRIES_AHEAD = 16    # offsets that are asked for before they are read
    WHOLE = 1280          # items shorter than this are asked for as a whole,
    BEGINNING = 384       # others as far as this

cdef enum:
    DIRECT = 1       # contiguous, at an address
    SPREAD = 2       # across the frames of a slab
    BUFFER = 3       # in a buffer of a list
    DAMAGED = 4      # its offsets point outside its slab

cdef uint32_t NOBODY = 0xFFFFFFFF


cdef class Progress:
    """How far a walk has come; outlives it, so that whoever made the walk can tell.

    ``position`` counts the items handed out, from where the route was entered; ``finished`` says that
    the route ended.
    """

    def __init__(self, int64_t position=0):
        self.position = position

    def __repr__(self):
        return f"<Progress {self.position}{', finished' if self.finished else ''}>"


cdef class Walk:
    """Items in the order of a route.

    Parameters:
        reader: the dataset's.
        feed: brings the legs (see the module's docstring); told ``close()`` at the end.
        progress: counts the items.

    Memory: 24 bytes an item of one leg. Threads: belongs to one thread. Fork: the child's copy goes on by itself.
    Pickling: refused; pickle the dataset's state.
    """

    def __cinit__(self, Reader reader not None, feed, Progress progress not None):
        self.reader = reader
        self.feed = feed
        self.progress = progress
        self.held = []

    def __dealloc__(self):
        free(self.spots)

    def __iter__(self):
        return self

    def __next__(self):
        # Decoding may call the user's code, and that this iterator: its place must not move under it.
        if self.running:
            raise ValueError("this iterator is already running: it was asked for an item while it decodes one")
        self.running = True
        try:
            item = self.advance(None)
        finally:
            self.running = False
        return item if self.reader.transform is None else self.reader.transform(item)

    cpdef Py_ssize_t pour(self, Sink sink, Py_ssize_t n) except -1:
        """Give the stored bytes of up to ``n`` next items to a sink; returns how many, 0 at the end."""
        cdef Py_ssize_t done = 0
        if self.running:
            raise ValueError("this iterator is already running: it was asked for items while it decodes one")
        self.running = True
        try:
            while done < n:
                self.advance(sink)
                done += 1
        except StopIteration:
            pass
        finally:
            self.running = False
        return done

    cdef object advance(self, Sink sink):
        """The next item, decoded or into the sink."""
        cdef ItemIterator scan
        while True:
            scan = self.scan    # held here: decoding may run code that lets go of it
            if scan is not None:
                if scan.index < scan.stop:
                    scan.sink = sink
                    item = scan.advance()
                    self.progress.position += 1
                    return item
            elif self.k < self.n:
                item = self.here(sink)
                self.k += 1
                self.progress.position += 1
                return item
            self.turn()

    cdef object here(self, Sink sink):
        """The item at the present spot of the leg."""
        cdef Reader reader = self.reader
        cdef FrameStore store = reader.store
        cdef Spot* spot = &self.spots[self.k]
        cdef Slab slab
        cdef bytes data
        cdef Py_buffer view
        if store.closed:
            store.require_open()
        if self.k + AHEAD < self.n and spot[AHEAD].kind == DIRECT:
            prefetch(<const uint8_t*>spot[AHEAD].where, spot[AHEAD].n if spot[AHEAD].n < WHOLE else BEGINNING)
        try:
            if spot.kind == DIRECT:
                if sink is None:
                    return reader.plan.decode(<const uint8_t*>spot.where, spot.n)
                sink.add(<const uint8_t*>spot.where, spot.n)
                return None
            owner = self.held[spot.owner]
            if spot.kind == SPREAD:
                slab = <Slab>owner
                if sink is None:
                    return decode_spread(store, reader.plan, slab.body(), spot.where, spot.n)
                data = gather(store, slab.body(), spot.where, spot.n)
                sink.add(<const uint8_t*><char*>data, spot.n)
                return None
            if spot.kind == DAMAGED:
                raise FormatError("its offsets point outside its part of the chunk, which is damaged or truncated")
            PyObject_GetBuffer((<list>owner)[spot.where], &view, PyBUF_SIMPLE)
            try:
                if sink is None:
                    return reader.plan.decode(<const uint8_t*>view.buf, view.len)
                sink.add(<const uint8_t*>view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
        except (FormatError, UnicodeDecodeError) as error:
            reader.fail(self.chunks[spot.owner], spot.number, error)

    cdef int turn(self) except -1:
        """Go to the next leg; StopIteration after the last."""
        if self.over:
            raise StopIteration
        if self.reader.store.closed:
            self.let_go()
            self.reader.store.require_open()
        self.n = self.k = 0
        self.scan = None
        self.held = []
        self.chunks = []
        try:
            leg = self.feed.turn()
        except StopIteration:
            self.progress.finished = True
            self.over = True
            self.let_go()
            raise
        if not isinstance(leg, tuple) or len(leg) < 2:
            raise TypeError(f"a feed's leg is a tuple of its kind and its items, not {leg!r}")
        if leg[0] == "range":
            self.scan = <ItemIterator?>leg[1]
        elif leg[0] == "slabs":
            _, groups, places, skip, stop = leg
            self.lay_out(groups, places, skip, stop)
        else:
            self.lay_out_list(leg[1])

    cdef int room_for(self, Py_ssize_t n) except -1:
        cdef Spot* spots
        if n > self.room:
            spots = <Spot*>realloc(self.spots, n * sizeof(Spot))
            if spots == NULL:
                raise MemoryError(f"no memory for a leg of {n} items")
            self.spots = spots
            self.room = n
        memset(self.spots, 0xFF, n * sizeof(Spot))   # nobody's

    cdef int lay_out(self, list groups, const uint32_t[::1] places, Py_ssize_t skip, Py_ssize_t stop) except -1:
        """Find every item of a leg: group by group, so that offsets are read in order."""
        cdef Py_ssize_t total = places.shape[0], done = 0, k, size
        cdef uint32_t owner = 0
        cdef const uint32_t[::1] numbers
        cdef uint64_t at = 0, n = 0
        cdef Spot* spot
        cdef Slab slab
        cdef const uint8_t* p
        cdef list held = [], chunks = []
        if not 0 <= skip <= stop <= total:
            raise ValueError(f"a leg of {total} items cannot be walked from {skip} to {stop}")
        self.room_for(total)
        for chunk, where, numbers in groups:
            held.append(where)
            chunks.append(chunk)
            slab = <Slab>where if isinstance(where, Slab) else None
            size = numbers.shape[0]
            if slab is None and len(<list?>where) < size:
                raise ValueError(f"a group of {size} items has {len(where)} buffers")
            if size > total - done:
                raise ValueError(f"the groups of a leg hold more than its {total} items")
            for k in range(size):
                if places[done] >= total:
                    raise ValueError(f"place {places[done]} is not in a leg of {total} items")
                spot = &self.spots[places[done]]
                done += 1
                if spot.owner != NOBODY:
                    raise ValueError(f"place {places[done - 1]} of a leg is given twice")
                spot.owner = owner
                spot.number = numbers[k]
                if slab is None:
                    spot.kind = BUFFER
                    spot.where = k
                    continue
                if not slab.first <= <int64_t>numbers[k] < slab.last or slab.released:
                    raise ValueError(f"item {numbers[k]} is not in {slab!r}")
                if k + ENTRIES_AHEAD < size:
                    slab.expect(numbers[k + ENTRIES_AHEAD])
                if not slab.find(numbers[k], &at, &n):
                    spot.kind = DAMAGED   # told when its turn comes: those before it are well
                    continue
                p = slab.pointer(at, n)
                spot.kind = DIRECT if p != NULL else SPREAD
                spot.where = <uint64_t>p if p != NULL else at
                spot.n = <uint32_t>n
            owner += 1
        if done != total:
            raise ValueError(f"the groups of a leg hold {done} items, it has {total}")
        self.held = held
        self.chunks = chunks
        self.k, self.n = skip, stop
        self.reader.hits += stop - skip

    cdef int lay_out_list(self, list items) except -1:
        cdef Py_ssize_t k, n = len(items)
        self.room_for(n)
        self.held = []
        self.chunks = []
        for k in range(n):
            chunk, number, buffer = items[k]
            self.spots[k] = Spot(0, 0, number, <uint32_t>k, BUFFER)
            self.held.append([buffer])
            self.chunks.append(chunk)
        self.k, self.n = 0, n

    def close(self):
        """Stop: what was fetched ahead is given up, nothing more is handed out. Twice is fine."""
        if self.running:
            raise ValueError("this iterator is running: it was closed while it decodes an item")
        self.over = True
        self.let_go()

    cdef let_go(self):
        feed, self.feed = self.feed, None
        self.n = self.k = 0
        self.scan = None
        self.held = []
        self.chunks = []
        if feed is not None:
            feed.close()

    def __reduce__(self):
        raise TypeError("an iterator cannot be pickled; keep the dataset's state_dict()")

    def __repr__(self):
        return f"<Walk at item {self.progress.position}{', over' if self.over else ''}>"
