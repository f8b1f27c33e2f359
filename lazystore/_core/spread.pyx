"""Items that lie across frames: joined, or decoded leaf by leaf so that a long leaf is copied once.

The caller has pinned the frames, and knows which ones they are; nothing is looked up here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memcpy

from lazystore._core.decode cimport OP_BYTES, DecodePlan, Leaf
from lazystore._core.frames cimport FrameStore
from lazystore._core.offsets cimport load_offset

cdef uint64_t WHOLE_BYTES = 4096    # shorter items are gathered whole: that costs less than finding their leaves


cdef bytes gather(FrameStore store, const int32_t* frames, uint64_t at, uint64_t n):
    """A copy of ``n`` bytes from position ``at`` of a row of frames."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n)
    cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(out)
    cdef uint64_t inside, step
    while n:
        inside = at & (store.frame_bytes - 1)
        step = min(n, store.frame_bytes - inside)
        memcpy(to, store.arena + (<uint64_t>frames[at >> store.shift] << store.shift) + inside, step)
        to += step
        at += step
        n -= step
    return out


cdef object leaf_spread(
    FrameStore store, DecodePlan plan, Leaf* leaf, const int32_t* frames, uint64_t at, uint64_t n,
):
    """One leaf: in place when one frame holds it, else from a copy."""
    cdef uint64_t inside = at & (store.frame_bytes - 1)
    cdef bytes data
    if n and inside + n <= <uint64_t>store.frame_bytes:
        return plan.leaf(leaf, store.arena + (<uint64_t>frames[at >> store.shift] << store.shift) + inside, n)
    data = gather(store, frames, at, n)
    if leaf.op == OP_BYTES:
        return data
    return plan.leaf(leaf, <const uint8_t*>PyBytes_AS_STRING(data), n)


cdef object decode_spread(FrameStore store, DecodePlan plan, const int32_t* frames, uint64_t at, uint64_t n):
    """The item of ``n`` bytes at position ``at`` of a row of frames."""
    cdef uint64_t head = 4 * <uint64_t>plan.n_leaves, size, done = head
    cdef bytes data
    cdef list values = []
    cdef int k
    if plan.headless or n < WHOLE_BYTES or n < head:
        data = gather(store, frames, at, n)
        return plan.decode(<const uint8_t*>PyBytes_AS_STRING(data), n)
    data = gather(store, frames, at, head)
    for k in range(plan.n_leaves):
        size = load_offset(<const uint8_t*>PyBytes_AS_STRING(data) + 4 * k, 4)
        if size > n - done:
            raise plan.size_error(n)
        values.append(leaf_spread(store, plan, &plan.leaves[k], frames, at + done, size))
        done += size
    if done != n:
        raise plan.size_error(n)
    return plan.build(values)
