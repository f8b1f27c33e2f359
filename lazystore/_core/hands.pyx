"""Dealing blocks into the rounds of a shuffling window: whose turn it is, how many items, which.

:class:`Hand` is a block in the window, :func:`deal` one round. Which blocks there are and when they enter is
decided one floor up; so is what is made of a round.
"""

from cpython.array cimport array, clone
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lazystore._core.permute cimport shuffle_run
from lazystore.errors import ConfigError

cdef array WORDS = array("I")


cdef inline int64_t _size(int64_t items, int64_t part, int64_t parts) noexcept nogil:
    """Items of one of ``parts`` parts, which differ by one item at most; 0 <= items, parts < 2**32."""
    return items * (part + 1) // parts - items * part // parts


cdef class Hand:
    """A block that has entered the window: its items in random order, and how many of them are dealt.

    Parameters:
        span: of the block, (chunk, first, last).
        order: key of the items' order.
        turn: any number; which rounds get an item more than others when the rounds do not divide the items.
        born: the round in which the block enters.

    Memory: four bytes an item. Threads: calls are atomic under the GIL. Pickling: refused.
    """

    cdef readonly object span
    cdef array numbers
    cdef int64_t count, at, born, late
    cdef uint64_t turn

    def __cinit__(self, object span, uint64_t order, uint64_t turn, int64_t born):
        cdef uint32_t first = span[1], last = span[2]
        if first > last:
            raise ConfigError(f"a block cannot end at {last} and begin at {first}")
        self.span = span
        self.count = last - first
        self.born = born
        self.turn = turn
        self.numbers = clone(WORDS, self.count, zero=False)
        shuffle_run(<uint32_t*>self.numbers.data.as_voidptr, first, self.count, order)

    cdef int64_t _due(self, int64_t number, int64_t window, int64_t steps) noexcept:
        """Items dealt in this round."""
        if number < steps:
            return _size(self.count, <int64_t>((number - self.born + self.turn % window) % window), window)
        if number == steps:
            self.late = self.count - self.at
        return _size(self.late, <int64_t>((number - steps + self.turn % (window - 1)) % (window - 1)), window - 1)

    cdef array _take(self, int64_t size):
        cdef array taken = clone(WORDS, size, zero=False)
        memcpy(taken.data.as_voidptr, <uint32_t*>self.numbers.data.as_voidptr + self.at, size * sizeof(uint32_t))
        self.at += size
        return taken

    def __reduce__(self):
        raise TypeError("a Hand is half dealt and cannot be pickled; pickle the route and the position")


def deal(list hands not None, int64_t number, int64_t window, int64_t steps, make_group not None):
    """One round: of each hand the items that are due, ``1 / window`` of the block.

    What is left after the last step, when no more blocks enter, is spread over the ``window - 1`` rounds that
    follow, whenever its block entered: else the last blocks would come nearly unmixed.

    Parameters:
        hands: in the order they entered; the finished ones are taken out.
        number: of the round; rounds are dealt one after the other, from that on in which the first hand entered.
        window: rounds that a block stays.
        steps: rounds in which blocks enter.
        make_group: called with the span and the in-chunk numbers (``array('I')``) of each hand that has any due.

    Returns:
        (groups, spans of the hands that are finished).

    Cost: some 10 ns a hand and 300 ns a group.
    """
    if window < 1 or number >= steps + window - 1:
        raise ConfigError(f"there is no round {number} of a window of {window} over {steps} steps")
    cdef list groups = [], finished = [], left = []
    cdef Hand hand
    cdef int64_t size
    for hand in hands:
        size = hand._due(number, window, steps)
        if size:
            groups.append(make_group(hand.span, hand._take(size)))
        if hand.at < hand.count:
            left.append(hand)
        else:
            finished.append(hand.span)
    hands[:] = left
    return groups, finished
