from libc.stdint cimport int32_t, uint64_t

from lazystore._core.decode cimport DecodePlan
from lazystore._core.frames cimport FrameStore

# Bytes `at .. at + n` of a row of frames: position 0 is the first byte of frames[0].
cdef bytes gather(FrameStore store, const int32_t* frames, uint64_t at, uint64_t n)
cdef object decode_spread(FrameStore store, DecodePlan plan, const int32_t* frames, uint64_t at, uint64_t n)
