"""CRC-32C (Castagnoli), as RFC 3720 (appendix B.4) has it: by the processor's own instruction where it has one.

The instruction gives 8 bytes a cycle but takes three to answer, so three streams of a buffer are hashed at once and
then joined: appending n zero bytes to a message multiplies its CRC by x**(8n) modulo the polynomial, a table look-up
a byte of the CRC. Where 512-bit vectors can be multiplied without carries, a long buffer is first folded into its
last 64 bytes (Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009),
twice as fast. What the processor can do is asked when the module is loaded; elsewhere tables are used, eight
bytes a step. Nothing about files or records lives here.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint8_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #include <immintrin.h>
    #define LZ_CRC_TARGET __attribute__((target("sse4.2")))
    #define LZ_CRC8(crc, word) _mm_crc32_u64((crc), (word))
    #define LZ_CRC1(crc, byte) _mm_crc32_u8((uint32_t)(crc), (byte))
    static int lz_crc_asked(void) { __builtin_cpu_init(); return __builtin_cpu_supports("sse4.2"); }
    #define LZ_CRC_NAME "sse4.2"
    #define LZ_FOLD_TARGET __attribute__((target("sse4.2,avx512f,vpclmulqdq")))
    static int lz_fold_asked(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"); }
    #define LZ_FOLD_NAME "avx512"
    #elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
    #if defined(__APPLE__)
    static int lz_crc_asked(void) { return 1; }  /* every arm64 Mac has it */
    #elif defined(__linux__)
    #include <sys/auxv.h>
    static int lz_crc_asked(void) { return (getauxval(AT_HWCAP) & (1UL << 7)) != 0; }  /* HWCAP_CRC32 */
    #else
    static int lz_crc_asked(void) { return 0; }
    #endif
    #if defined(__clang__)
    #define LZ_CRC_TARGET __attribute__((target("crc")))
    #define LZ_CRC8(crc, word) __builtin_arm_crc32cd((uint32_t)(crc), (word))
    #define LZ_CRC1(crc, byte) __builtin_arm_crc32cb((uint32_t)(crc), (byte))
    #else
    #define LZ_CRC_TARGET __attribute__((target("+crc")))
    #define LZ_CRC8(crc, word) __builtin_aarch64_crc32cx((uint32_t)(crc), (word))
    #define LZ_CRC1(crc, byte) __builtin_aarch64_crc32cb((uint32_t)(crc), (byte))
    #endif
    #define LZ_CRC_NAME "armv8"
    #endif

    #define LZ_POLY 0x82f63b78u          /* x**32 is left out, bits are reflected */
    #define LZ_LONG 2048                 /* bytes a stream in a round of three */
    #define LZ_SHORT 256
    static uint32_t lz_table[8][256];    /* [k][b]: byte b, then k zero bytes */
    static uint32_t lz_long[4][256], lz_short[4][256];

    static uint32_t lz_multiply(uint32_t a, uint32_t b) {
        uint32_t product = 0;
        for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
            if (a & bit)
                product ^= b;
            b = (b >> 1) ^ (b & 1 ? LZ_POLY : 0);
        }
        return product;
    }
    static uint32_t lz_power(size_t n) { /* x**n */
        uint32_t power = 1u << 31;
        for (size_t i = 0; i < n; i++)
            power = (power >> 1) ^ (power & 1 ? LZ_POLY : 0);
        return power;
    }
    static void lz_shift_table(uint32_t table[4][256], size_t zeros) {
        uint32_t power = lz_power(8 * zeros);
        for (int k = 0; k < 4; k++)
            for (uint32_t b = 0; b < 256; b++)
                table[k][b] = lz_multiply(power, b << (8 * k));
    }
    static inline uint32_t lz_shift(uint32_t table[4][256], uint32_t crc) {
        return table[0][crc & 255] ^ table[1][(crc >> 8) & 255] ^ table[2][(crc >> 16) & 255] ^ table[3][crc >> 24];
    }
    static uint32_t lz_crc_tables(uint32_t value, const uint8_t *p, size_t n) {
        uint32_t crc = ~value;
        for (; n >= 8; n -= 8, p += 8) {
            uint32_t low = crc ^ (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
            crc = lz_table[7][low & 255] ^ lz_table[6][(low >> 8) & 255]
                ^ lz_table[5][(low >> 16) & 255] ^ lz_table[4][low >> 24]
                ^ lz_table[3][p[4]] ^ lz_table[2][p[5]] ^ lz_table[1][p[6]] ^ lz_table[0][p[7]];
        }
        for (; n; n--, p++)
            crc = (crc >> 8) ^ lz_table[0][(crc ^ *p) & 255];
        return ~crc;
    }
    #ifdef LZ_CRC_NAME
    static inline uint64_t lz_word(const uint8_t *p) { uint64_t w; memcpy(&w, p, 8); return w; }
    #define LZ_ROUNDS(LENGTH, TABLE)                                                  \\
        for (; n >= 3 * LENGTH; n -= 3 * LENGTH, p += 3 * LENGTH) {                    \\
            uint64_t second = 0, third = 0;                                            \\
            for (size_t i = 0; i < LENGTH; i += 8) {                                   \\
                crc = LZ_CRC8(crc, lz_word(p + i));                                    \\
                second = LZ_CRC8(second, lz_word(p + LENGTH + i));                     \\
                third = LZ_CRC8(third, lz_word(p + 2 * LENGTH + i));                   \\
            }                                                                          \\
            crc = lz_shift(TABLE, (uint32_t)crc) ^ second;                             \\
            crc = lz_shift(TABLE, (uint32_t)crc) ^ third;                              \\
        }
    LZ_CRC_TARGET static uint32_t lz_crc_hardware(uint32_t value, const uint8_t *p, size_t n) {
        uint64_t crc = (uint32_t)~value;
        LZ_ROUNDS(LZ_LONG, lz_long)
        LZ_ROUNDS(LZ_SHORT, lz_short)
        for (; n >= 8; n -= 8, p += 8)
            crc = LZ_CRC8(crc, lz_word(p));
        for (; n; n--, p++)
            crc = LZ_CRC1(crc, *p);
        return ~(uint32_t)crc;
    }
    #endif
    #ifdef LZ_FOLD_NAME
    #define LZ_FOLD_FROM 512             /* bytes; shorter ones are not faster this way */
    static uint64_t lz_fold_4[2], lz_fold_1[2]; /* what moves the halves of 16 bytes on by 256 bytes, and by 64 */
    static void lz_fold_setup(uint64_t by[2], size_t bytes) { /* products of reflected words are one bit short */
        by[0] = lz_power(8 * bytes + 31);
        by[1] = lz_power(8 * bytes - 33);
    }
    LZ_FOLD_TARGET static inline __m512i lz_fold(__m512i x, __m512i by, __m512i next) {
        __m512i low = _mm512_clmulepi64_epi128(x, by, 0x00), high = _mm512_clmulepi64_epi128(x, by, 0x11);
        return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* all three xored */
    }
    LZ_FOLD_TARGET static uint32_t lz_crc_folding(uint32_t value, const uint8_t *p, size_t n) {
        if (n < LZ_FOLD_FROM)
            return lz_crc_hardware(value, p, n);
        uint8_t rest[64];
        uint64_t crc = 0;
        __m512i by = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)lz_fold_4));
        __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
        __m512i c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
        a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~value)));
        for (p += 256, n -= 256; n >= 256; p += 256, n -= 256) {
            a = lz_fold(a, by, _mm512_loadu_si512(p));
            b = lz_fold(b, by, _mm512_loadu_si512(p + 64));
            c = lz_fold(c, by, _mm512_loadu_si512(p + 128));
            d = lz_fold(d, by, _mm512_loadu_si512(p + 192));
        }
        by = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)lz_fold_1));
        d = lz_fold(lz_fold(lz_fold(a, by, b), by, c), by, d);
        for (; n >= 64; p += 64, n -= 64)
            d = lz_fold(d, by, _mm512_loadu_si512(p));
        _mm512_storeu_si512(rest, d);
        for (int i = 0; i < 64; i += 8)
            crc = LZ_CRC8(crc, lz_word(rest + i));
        return lz_crc_hardware(~(uint32_t)crc, p, n);
    }
    #endif
    static uint32_t (*lz_crc)(uint32_t, const uint8_t *, size_t) = lz_crc_tables;
    static uint32_t (*lz_crc_narrow)(uint32_t, const uint8_t *, size_t) = lz_crc_tables;
    static const char *lz_crc_setup(void) {
        for (uint32_t b = 0; b < 256; b++) {
            uint32_t crc = b;
            for (int i = 0; i < 8; i++)
                crc = (crc >> 1) ^ (crc & 1 ? LZ_POLY : 0);
            lz_table[0][b] = crc;
        }
        for (int k = 1; k < 8; k++)
            for (uint32_t b = 0; b < 256; b++)
                lz_table[k][b] = (lz_table[k - 1][b] >> 8) ^ lz_table[0][lz_table[k - 1][b] & 255];
    #ifdef LZ_CRC_NAME
        if (lz_crc_asked()) {
            lz_shift_table(lz_long, LZ_LONG);
            lz_shift_table(lz_short, LZ_SHORT);
            lz_crc = lz_crc_narrow = lz_crc_hardware;
    #ifdef LZ_FOLD_NAME
            if (lz_fold_asked()) {
                lz_fold_setup(lz_fold_4, 256);
                lz_fold_setup(lz_fold_1, 64);
                lz_crc = lz_crc_folding;
                return LZ_FOLD_NAME;
            }
    #endif
            return LZ_CRC_NAME;
        }
    #endif
        return "tables";
    }
    """
    uint32_t lz_crc(uint32_t value, const uint8_t* data, size_t n) noexcept nogil
    uint32_t lz_crc_narrow(uint32_t value, const uint8_t* data, size_t n) noexcept nogil
    uint32_t lz_crc_tables(uint32_t value, const uint8_t* data, size_t n) noexcept nogil
    const char* lz_crc_setup() noexcept

ctypedef uint32_t (*Function)(uint32_t value, const uint8_t* data, size_t n) noexcept nogil

#: Letting go of the GIL takes about as long as hashing so many bytes.
cdef Py_ssize_t LARGE = 32768

IMPLEMENTATION = (<bytes>lz_crc_setup()).decode()


cdef uint32_t crc32c_update(uint32_t value, const uint8_t* data, size_t n) noexcept nogil:
    """CRC-32C of what gave ``value``, followed by ``data``; 0 to begin with."""
    return lz_crc(value, data, n)


def crc32c(data, uint32_t value=0):
    """CRC-32C of ``data``.

    Parameters:
        data: any contiguous buffer.
        value: the CRC of the bytes before it, to go on from there.

    Cost: about 20 GB/s with the instruction (twice that with wide vectors), 2 GB/s without. Large buffers are hashed
    without the GIL.
    """
    return over(data, value, lz_crc)


def crc32c_narrow(data, uint32_t value=0):
    """The same without wide vectors: what most processors use."""
    return over(data, value, lz_crc_narrow)


def crc32c_tables(data, uint32_t value=0):
    """The same by tables alone: what processors without the instruction use."""
    return over(data, value, lz_crc_tables)


cdef uint32_t over(data, uint32_t value, Function function) except? 0xFFFFFFFF:
    cdef Py_buffer view
    cdef const uint8_t* begin
    cdef size_t n
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        begin = <const uint8_t*>view.buf
        n = <size_t>view.len
        if view.len >= LARGE:
            with nogil:
                value = function(value, begin, n)
        else:
            value = function(value, begin, n)
    finally:
        PyBuffer_Release(&view)
    return value
