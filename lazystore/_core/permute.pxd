# Keyed randomness as pure functions of 64-bit integers; the same on every platform, for ever.
#
# The mixer is the finaliser of SplitMix64 (G. Steele, D. Lea, C. Flood: "Fast splittable pseudorandom number
# generators", OOPSLA 2014; constants: D. Stafford's "Mix13"), the stream is SplitMix64 itself: a counter
# and the mixer. Bounded draws: D. Lemire, "Fast random integer generation in an interval", 2019.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    MAX_ROUNDS = 32

cdef inline uint64_t golden() noexcept nogil:
    """The step of SplitMix64's counter: 2**64 divided by the golden ratio, made odd."""
    return <uint64_t>0x9e3779b97f4a7c15ULL

cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """A bijection of 64 bits in which every output bit depends on every input bit."""
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9ULL
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111ebULL
    return x ^ (x >> 31)

cdef inline uint64_t absorb(uint64_t key, uint64_t number) noexcept nogil:
    """The key that ``number`` makes of ``key``: other numbers, other keys.

    The number goes through the mixer without the step that seeds get, else equal ones would cancel out.
    """
    return mix((key ^ mix(number)) + golden())

cdef inline uint32_t below(uint64_t* state, uint32_t bound) noexcept nogil:
    """A draw from 0..bound-1, each equally likely; ``state`` is the stream's counter."""
    cdef uint64_t product
    cdef uint32_t rest, unfair
    state[0] += golden()
    product = (mix(state[0]) >> 32) * <uint64_t>bound
    rest = <uint32_t>product
    if rest < bound:
        unfair = (<uint32_t>0 - bound) % bound
        while rest < unfair:
            state[0] += golden()
            product = (mix(state[0]) >> 32) * <uint64_t>bound
            rest = <uint32_t>product
    return <uint32_t>(product >> 32)

cdef struct Feistel:
    int64_t n
    uint64_t key
    int right_bits
    uint64_t left_mask
    uint64_t right_mask
    int rounds
    uint64_t keys[MAX_ROUNDS]

cdef void feistel_init(Feistel* f, int64_t n, uint64_t key) noexcept nogil
cdef int64_t feistel_forward(const Feistel* f, int64_t position) noexcept nogil
cdef int64_t feistel_inverse(const Feistel* f, int64_t element) noexcept nogil
cdef void feistel_fill(const Feistel* f, int64_t first, Py_ssize_t count, int64_t* out) noexcept nogil
cdef void shuffle_run(uint32_t* out, uint32_t first, Py_ssize_t count, uint64_t key) noexcept nogil

cdef class Permutation:
    cdef Feistel feistel
    cdef int _check(self, int64_t first, int64_t count) except -1
