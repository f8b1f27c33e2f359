# Intrusive doubly linked lists over small ints: several queues share one array of links,
# an entry is in at most one queue. Inline, so that frames.pyx pays no call for a touch.

from libc.stdint cimport int32_t, int64_t, uint32_t

cdef enum:
    NOWHERE = -1

cdef struct Link:
    int32_t prev
    int32_t next
    int32_t queue
    uint32_t weight

cdef struct Queue:
    int32_t head
    int32_t tail
    int32_t count
    int64_t weight

cdef inline void queues_clear(Link* links, int32_t n_links, Queue* queues, int32_t n_queues) noexcept nogil:
    cdef int32_t i
    for i in range(n_links):
        links[i].prev = NOWHERE
        links[i].next = NOWHERE
        links[i].queue = NOWHERE
        links[i].weight = 0
    for i in range(n_queues):
        queues[i].head = NOWHERE
        queues[i].tail = NOWHERE
        queues[i].count = 0
        queues[i].weight = 0

cdef inline void queue_remove(Link* links, Queue* queues, int32_t i) noexcept nogil:
    cdef Link* link = &links[i]
    cdef Queue* queue
    if link.queue == NOWHERE:
        return
    queue = &queues[link.queue]
    if link.prev == NOWHERE:
        queue.head = link.next
    else:
        links[link.prev].next = link.next
    if link.next == NOWHERE:
        queue.tail = link.prev
    else:
        links[link.next].prev = link.prev
    queue.count -= 1
    queue.weight -= link.weight
    link.prev = NOWHERE
    link.next = NOWHERE
    link.queue = NOWHERE

cdef inline void queue_push_front(Link* links, Queue* queues, int32_t q, int32_t i) noexcept nogil:
    cdef Queue* queue = &queues[q]
    queue_remove(links, queues, i)
    links[i].queue = q
    links[i].next = queue.head
    if queue.head == NOWHERE:
        queue.tail = i
    else:
        links[queue.head].prev = i
    queue.head = i
    queue.count += 1
    queue.weight += links[i].weight

cdef inline void queue_push_back(Link* links, Queue* queues, int32_t q, int32_t i) noexcept nogil:
    cdef Queue* queue = &queues[q]
    queue_remove(links, queues, i)
    links[i].queue = q
    links[i].prev = queue.tail
    if queue.tail == NOWHERE:
        queue.head = i
    else:
        links[queue.tail].next = i
    queue.tail = i
    queue.count += 1
    queue.weight += links[i].weight
