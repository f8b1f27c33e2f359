"""A reader's part of an epoch, cut into blocks: item ranges of one chunk each, by arithmetic.

Two running sums a chunk are all that is kept; a block's range is computed when asked for. Which items are
in the part is decided elsewhere, and so is what is done with the blocks.
"""

from cpython.array cimport array, clone
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lazystore._core.permute cimport Feistel, Permutation, feistel_fill
from lazystore.errors import ConfigError, ItemIndexError

cdef array LONGS = array("q")
cdef array WORDS = array("I")
cdef uint64_t UNKNOWN_ITEM_BYTES = 4096    # stored bytes an item where nobody knows


cdef enum:
    BATCH = 256                # positions permuted at a time: together they cost less than one by one

cdef struct Range:
    int64_t first
    int64_t last


cdef inline Py_ssize_t _holder(const int64_t* ends, Py_ssize_t n, int64_t x) noexcept nogil:
    """Index of the first entry above ``x``; ``ends`` rises and its last entry is above ``x``. Without branches."""
    cdef const int64_t* base = ends
    cdef Py_ssize_t half
    while n > 1:
        half = n >> 1
        base += half * (base[half - 1] <= x)
        n -= half
    return base - ends


cdef inline Py_ssize_t _holder_near(const int64_t* ends, Py_ssize_t n, int64_t x) noexcept nogil:
    """The same, beginning where the entry would be if all steps were equal: among very many, few cache misses."""
    cdef Py_ssize_t low = <Py_ssize_t>(<double>x / <double>ends[n - 1] * <double>(n - 1)), high, step = 1
    if ends[low] > x:
        high = low
        while low and ends[low - 1] > x:
            high = low - 1
            low = max(<Py_ssize_t>0, low - 1 - step)
            step *= 2
    else:
        high = low
        while ends[high] <= x:
            low = high + 1
            high = min(n - 1, high + step)
            step *= 2
    return low + _holder(ends + low, high - low + 1, x)


cdef array _numbers(object values):
    """``values`` as unsigned 64-bit numbers; not copied when they are."""
    if isinstance(values, array) and values.typecode == "Q":
        return values
    try:
        return array("Q", values)
    except (OverflowError, TypeError) as error:
        raise ConfigError(f"item counts and chunk bytes must be integers from 0 on: {error}") from None


cdef class Blocks:
    """The items ``0 .. items - 1`` of a part, in the order of its chunks, cut into ``len(blocks)`` blocks.

    Made by :func:`cut_blocks`; the arguments are what it keeps, 20 bytes a chunk.

    Attributes:
        items: items of the part.
        nbytes: stored bytes of the part, estimated where unknown.
        largest: items of the largest block.

    Threads: immutable. Fork: copied. Pickling: its arrays.
    """

    cdef array chunks           # uint32: the part's chunks that have items, in order
    cdef array item_ends        # int64: items of the part up to and including the chunk's
    cdef array block_ends       # int64: blocks likewise
    cdef const uint32_t* chunk
    cdef const int64_t* item_end
    cdef const int64_t* block_end
    cdef Py_ssize_t n_chunks
    cdef int64_t lead           # number, in its chunk, of the part's first item
    cdef int64_t n_blocks
    cdef readonly int64_t items
    cdef readonly int64_t nbytes
    cdef readonly int64_t largest

    def __cinit__(
        self, array chunks not None, array item_ends not None, array block_ends not None,
        *, int64_t lead, int64_t nbytes, int64_t largest
    ):
        self.n_chunks = len(chunks)
        if (chunks.typecode, item_ends.typecode, block_ends.typecode) != ("I", "q", "q"):
            raise ConfigError("blocks are made by cut_blocks")
        if len(item_ends) != self.n_chunks or len(block_ends) != self.n_chunks:
            raise ConfigError("blocks are made by cut_blocks")
        self.chunks, self.item_ends, self.block_ends = chunks, item_ends, block_ends
        self.chunk = <const uint32_t*>chunks.data.as_voidptr
        self.item_end = <const int64_t*>item_ends.data.as_voidptr
        self.block_end = <const int64_t*>block_ends.data.as_voidptr
        self.lead = lead
        self.nbytes = nbytes
        self.largest = largest
        self.items = self.item_end[self.n_chunks - 1] if self.n_chunks else 0
        self.n_blocks = self.block_end[self.n_chunks - 1] if self.n_chunks else 0

    cdef inline Range _range(self, int64_t block, Py_ssize_t at) noexcept nogil:
        """The items of a block, counted from its chunk's first item of the part; ``at``: the chunk's place."""
        cdef uint64_t items = self.item_end[at] - (self.item_end[at - 1] if at else 0)
        cdef uint64_t before = self.block_end[at - 1] if at else 0
        cdef uint64_t blocks = self.block_end[at] - before
        cdef uint64_t k = block - before
        cdef Range found
        found.first = items * k // blocks
        found.last = items * (k + 1) // blocks
        return found

    def span(self, int64_t block):
        """(chunk, first, last): the block's items are ``first .. last - 1`` of the chunk.

        Raises:
            ItemIndexError: there is no such block.
        """
        if not 0 <= block < self.n_blocks:
            raise ItemIndexError(f"block {block} is not in 0 .. {self.n_blocks - 1}")
        cdef Py_ssize_t at = _holder(self.block_end, self.n_chunks, block)
        cdef Range found = self._range(block, at)
        cdef int64_t lead = 0 if at else self.lead
        return self.chunk[at], lead + found.first, lead + found.last

    def count(self, Permutation order not None, int64_t first, int64_t last):
        """Items of the blocks at positions ``first .. last - 1`` of ``order``; costs what :meth:`find` does."""
        self._check(order, first, last)
        cdef int64_t total
        with nogil:
            self._walk(&order.feistel, first, last, self.items, &total)
        return total

    def find(self, Permutation order not None, int64_t item):
        """(position, items before it) of the block with the ``item``-th item when they lie end to end in ``order``.

        Walks the blocks from the first on: some 50 ns each, without the GIL; more when there are very many chunks.

        Raises:
            ItemIndexError: there are not that many items.
        """
        self._check(order, 0, 0)
        if not 0 <= item < self.items:
            raise ItemIndexError(f"item {item} is not in 0 .. {self.items - 1}")
        cdef int64_t before, position
        with nogil:
            position = self._walk(&order.feistel, 0, self.n_blocks, item, &before)
        return position, before

    cdef int64_t _walk(
        self, const Feistel* order, int64_t first, int64_t last, int64_t most, int64_t* total
    ) noexcept nogil:
        """Add up the items of blocks as long as they are ``most`` at most; the position of the one too many."""
        cdef int64_t[BATCH] blocks
        cdef int64_t position = first, items
        cdef Py_ssize_t i, n
        cdef Range found
        total[0] = 0
        while position < last:
            n = min(<int64_t>BATCH, last - position)
            feistel_fill(order, position, n, blocks)
            for i in range(n):
                found = self._range(blocks[i], _holder_near(self.block_end, self.n_chunks, blocks[i]))
                items = found.last - found.first
                if total[0] + items > most:
                    return position + i
                total[0] += items
            position += n
        return last

    cdef int _check(self, Permutation order, int64_t first, int64_t last) except -1:
        if order.feistel.n != self.n_blocks or not 0 <= first <= last <= self.n_blocks:
            raise ItemIndexError(
                f"positions {first} .. {last - 1} of {order.feistel.n} do not fit {self.n_blocks} blocks"
            )
        return 0

    def deal(self, Permutation order not None, int64_t first, Py_ssize_t count):
        """The part's items at positions ``first .. first + count - 1`` of ``order``, sorted by block.

        Returns:
            (dealt, places): (block, in-chunk numbers as ``array('I')``) of each block that has one of the items,
            first needed first; lay these numbers end to end: the k-th has place ``places[k]`` among the ``count``.

        Raises:
            ItemIndexError: the positions are not in ``0 .. items - 1``.

        Cost: some 50 ns an item, and four bytes a block for as long as the call takes.
        """
        if order.feistel.n != self.items or not 0 <= first <= self.items or not 0 <= count <= self.items - first:
            raise ItemIndexError(f"{count} items from position {first} on are not in 0 .. {self.items - 1}")
        cdef array items = clone(LONGS, count, zero=False), owners = clone(LONGS, count, zero=False)
        cdef array numbers = clone(WORDS, count, zero=False)
        cdef int64_t* item = <int64_t*>items.data.as_voidptr
        cdef int64_t* owner = <int64_t*>owners.data.as_voidptr
        with nogil:
            feistel_fill(&order.feistel, first, count, item)
            self._locate(item, count, owner, <uint32_t*>numbers.data.as_voidptr)
        return self._sort(owner, <const uint32_t*>numbers.data.as_voidptr, count)

    cdef void _locate(
        self, const int64_t* items, Py_ssize_t count, int64_t* owners, uint32_t* numbers
    ) noexcept nogil:
        """The block of each item and its number in the chunk."""
        cdef Py_ssize_t i, at
        cdef uint64_t inside, held, blocks
        cdef int64_t items_before, blocks_before
        for i in range(count):
            at = _holder(self.item_end, self.n_chunks, items[i])
            items_before = self.item_end[at - 1] if at else 0
            blocks_before = self.block_end[at - 1] if at else 0
            held = self.item_end[at] - items_before
            blocks = self.block_end[at] - blocks_before
            inside = items[i] - items_before
            # the last block whose first item, held * k // blocks, is not past this one
            owners[i] = blocks_before + <int64_t>(((inside + 1) * blocks - 1) // held)
            numbers[i] = <uint32_t>(inside + (0 if at else self.lead))

    cdef tuple _sort(self, const int64_t* owners, const uint32_t* numbers, Py_ssize_t count):
        """A counting sort: which group each item goes to, how many each has, then everything to its place."""
        cdef array places = clone(WORDS, count, zero=False), groups = clone(WORDS, count, zero=False)
        cdef array starts = clone(LONGS, count + 1, zero=True), sorted_numbers = clone(WORDS, count, zero=False)
        cdef uint32_t* place = <uint32_t*>places.data.as_voidptr
        cdef uint32_t* group = <uint32_t*>groups.data.as_voidptr
        cdef int64_t* start = <int64_t*>starts.data.as_voidptr
        cdef uint32_t* out = <uint32_t*>sorted_numbers.data.as_voidptr
        cdef list met = []
        cdef Py_ssize_t i, k, n_groups = 0
        cdef int32_t* group_of = <int32_t*>malloc(self.n_blocks * sizeof(int32_t) + 1)
        if group_of == NULL:
            raise MemoryError(f"no memory to sort items into {self.n_blocks} blocks")
        try:
            memset(group_of, 0xff, self.n_blocks * sizeof(int32_t))
            for i in range(count):
                if group_of[owners[i]] < 0:
                    group_of[owners[i]] = n_groups
                    n_groups += 1
                    met.append(owners[i])
                group[i] = group_of[owners[i]]
                start[group[i] + 1] += 1
        finally:
            free(group_of)
        for k in range(n_groups):
            start[k + 1] += start[k]
        dealt = []
        for i in range(count):
            k = start[group[i]]
            start[group[i]] += 1
            place[k] = i
            out[k] = numbers[i]
        # each start has moved on to its group's end
        for k in range(n_groups):
            dealt.append((met[k], sorted_numbers[start[k - 1] if k else 0:start[k]]))
        return dealt, places

    def __len__(self):
        return self.n_blocks

    def __reduce__(self):
        return _rebuild, (self.chunks, self.item_ends, self.block_ends, self.lead, self.nbytes, self.largest)


def _rebuild(chunks, item_ends, block_ends, lead, nbytes, largest):
    return Blocks(chunks, item_ends, block_ends, lead=lead, nbytes=nbytes, largest=largest)


cdef inline uint64_t _bytes_of(uint64_t nbytes, uint64_t held, uint64_t items) noexcept nogil:
    """Stored bytes of ``items`` of a chunk's ``held`` items, by proportion; whole numbers, so the same everywhere."""
    if nbytes == 0:
        return UNKNOWN_ITEM_BYTES * items
    return nbytes // held * items + nbytes % held * items // held


def cut_blocks(
    counts, nbytes, Permutation order, int64_t first, int64_t last, *, uint64_t block_bytes, uint64_t block_items
):
    """Cut items ``first .. last - 1`` of all chunks, laid end to end, into :class:`Blocks`.

    Parameters:
        counts: items of each chunk; those without items take no part.
        nbytes: stored bytes of each chunk, 0 where unknown (4 KiB an item are assumed).
        order: of the chunks; None: as they are.
        first, last: positions in the sequence of all items.
        block_bytes: about what a block has, and more only where one item has more.
        block_items: most items a block may have.

    Raises:
        ConfigError: counts that no chunk can have, or positions past the items.

    Cost: some 30 ns a chunk of the dataset.
    """
    cdef array count_of = _numbers(counts), bytes_of = _numbers(nbytes)
    cdef Py_ssize_t n = len(count_of), i, m = 0
    if len(bytes_of) != n or (order is not None and order.feistel.n != n):
        raise ConfigError(f"{n} item counts, {len(bytes_of)} chunk sizes and the chunk order must be as many")
    if block_bytes < 1 or block_items < 1 or not 0 <= first <= last:
        raise ConfigError(f"cannot cut items {first} .. {last - 1} into blocks of {block_bytes} bytes")
    cdef array chunks = clone(WORDS, n, zero=False)
    cdef array item_ends = clone(LONGS, n, zero=False), block_ends = clone(LONGS, n, zero=False)
    cdef uint32_t* chunk = <uint32_t*>chunks.data.as_voidptr
    cdef int64_t* item_end = <int64_t*>item_ends.data.as_voidptr
    cdef int64_t* block_end = <int64_t*>block_ends.data.as_voidptr
    cdef const uint64_t* held = <const uint64_t*>count_of.data.as_voidptr
    cdef const uint64_t* stored = <const uint64_t*>bytes_of.data.as_voidptr
    cdef int64_t[BATCH] batch
    cdef int64_t c, begin, end = 0, low, high, lead = 0
    cdef uint64_t items, size, blocks, one = 1, total_bytes = 0, total_blocks = 0, largest = 0
    for i in range(n):
        if end >= last:
            break
        if i % BATCH == 0 and order is not None:
            feistel_fill(&order.feistel, i, min(<Py_ssize_t>BATCH, n - i), batch)
        c = i if order is None else batch[i % BATCH]
        if held[c] > <uint64_t>0xffffffff:
            raise ConfigError(f"chunk {c} has {held[c]} items; there can be 2**32 - 1")
        begin, end = end, end + <int64_t>held[c]
        low, high = max(begin, first), min(end, last)
        if low >= high:
            continue
        if m == 0:
            lead = low - begin
        items = high - low
        size = _bytes_of(stored[c], held[c], items)
        blocks = max(one, (size + block_bytes - 1) // block_bytes, (items + block_items - 1) // block_items)
        blocks = min(blocks, items)
        total_bytes += size
        total_blocks += blocks
        largest = max(largest, (items + blocks - 1) // blocks)
        chunk[m] = c
        item_end[m] = high - first
        block_end[m] = total_blocks
        m += 1
    if end < last:
        raise ConfigError(f"items {first} .. {last - 1} are asked for, the chunks have {end}")
    return Blocks(
        chunks[:m], item_ends[:m], block_ends[:m], lead=lead, nbytes=total_bytes, largest=largest
    )
