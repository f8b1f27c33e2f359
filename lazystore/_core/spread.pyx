"""Items that lie across frames: joined, or decoded leaf by leaf so that a long leaf is copied once.

The caller has pinned the frames, and knows which ones they are; nothing is looked up here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memcpy

from lazystore._core.decode cimport OP_BYTES, DecodePlan, Leaf, next_size
from lazystore._core.frames cimport FrameStore

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
    cdef uint64_t done = plan.head
    cdef Py_ssize_t size
    cdef const uint8_t* sizes
    cdef bytes data
    cdef list values = []
    cdef int k
    if plan.opener is not None:
        return plan.decode_opened(plan.open_item(gather(store, frames, at, n)))
    if plan.headless or n < WHOLE_BYTES or n < done:
        data = gather(store, frames, at, n)
        return plan.decode(<const uint8_t*>PyBytes_AS_STRING(data), n)
    # An item of no leaves may be loose, and then begins with its mark.
    data = gather(store, frames, at, max(done, <uint64_t>4) if plan.loose else done)
    sizes = <const uint8_t*>PyBytes_AS_STRING(data)
    if plan.is_loose(sizes, len(data)):
        data = gather(store, frames, at, n)
        return plan.decode_item(<const uint8_t*>PyBytes_AS_STRING(data), n)
    for k in range(plan.n_leaves):
        size = next_size(&plan.leaves[k], &sizes)
        if size < 0:
            values.append(None)
            continue
        if <uint64_t>size > n - done:
            raise plan.size_error(n)
        values.append(leaf_spread(store, plan, &plan.leaves[k], frames, at + done, size))
        done += size
    if done != n:
        raise plan.size_error(n)
    return plan.build(values)
