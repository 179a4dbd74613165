/* Values of any width from 1 to 64 bits as a little-endian stream of bits, and back. */
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_AVX2 1
#endif

static inline __attribute__((always_inline)) uint64_t value_at(const void *values, int wide, size_t i)
{
    return wide ? ((const uint64_t *)values)[i] : ((const uint32_t *)values)[i];
}

/* Appends the low width bits of value, which has no others, to the bits that are held; always fewer than 64 are. */
#define APPEND(value, width)                                                                                           \
    do {                                                                                                               \
        held |= (value) << bits;                                                                                       \
        bits += (width);                                                                                               \
        if (bits >= 64) {                                                                                              \
            memcpy(packed, &held, 8);                                                                                  \
            packed += 8;                                                                                               \
            bits -= 64;                                                                                                \
            held = bits ? (value) >> ((width) - bits) : 0;                                                             \
        }                                                                                                              \
    } while (0)

static inline __attribute__((always_inline)) void pack(const void *values, int wide, size_t count, unsigned width,
                                                       uint8_t *packed)
{
    const uint64_t mask = ~(uint64_t)0 >> (64 - width);
    uint64_t held = 0, value;
    unsigned bits = 0;
    size_t i = 0;
    if (width <= 32) {
        for (; i + 2 <= count; i += 2) {
            value = (value_at(values, wide, i) & mask) | (value_at(values, wide, i + 1) & mask) << width;
            APPEND(value, 2 * width);
        }
    }
    for (; i < count; i++) {
        value = value_at(values, wide, i) & mask;
        APPEND(value, width);
    }
    memcpy(packed, &held, (bits + 7) / 8);
}

void tacit_pack(const void *values, int wide, size_t count, unsigned width, uint8_t *packed)
{
    if (wide)
        pack(values, 1, count, width, packed);
    else
        pack(values, 0, count, width, packed);
}

/* The value whose first bit is bit shift (0 to 7) of the byte at. */
static inline __attribute__((always_inline)) uint64_t read(const uint8_t *at, unsigned shift, unsigned width, int two)
{
    uint64_t low, value;
    memcpy(&low, at, 8);
    value = low >> shift;
    if (two && shift) /* more than 57 bits may reach into a ninth byte */
        value |= (uint64_t)at[8] << (64 - shift);
    return value & ~(uint64_t)0 >> (64 - width);
}

static inline __attribute__((always_inline)) void add(void *total, int wide, size_t i, uint64_t value)
{
    if (wide)
        ((uint64_t *)total)[i] += value;
    else
        ((uint32_t *)total)[i] += (uint32_t)value;
}

/* The values from the start-th on. */
static inline __attribute__((always_inline)) void unpack_add(const uint8_t *packed, size_t count, unsigned width,
                                                             int wide, int two, size_t start, void *total)
{
    const size_t bytes = (count * width + 7) / 8;
    /* Of these values each begins nine bytes or more before the end and is read where it lies. */
    const size_t safe = bytes < 9 ? 0 : (bytes - 9) * 8 / width;
    size_t i = start, bit = start * width;

    for (; i < safe; i++, bit += width)
        add(total, wide, i, read(packed + bit / 8, bit % 8, width, two));
    for (; i < count; i++, bit += width) {
        uint8_t end[9] = {0};
        size_t left = bytes - bit / 8;
        memcpy(end, packed + bit / 8, left < 9 ? left : 9);
        add(total, wide, i, read(end, bit % 8, width, two));
    }
}

#ifdef HAVE_AVX2
/* Eight values at a time, four a lane: a shuffle brings the four bytes in which a value lies to its place, a shift takes
   the bits before it away. For widths whose values, with the bits before them, fit into four bytes. Returns how many values
   were added; the rest is too close to the end to be read like this. */
__attribute__((target("avx2"))) static size_t unpack_add_avx2(const uint8_t *packed, size_t count, unsigned width,
                                                              uint32_t *total)
{
    const size_t bytes = (count * width + 7) / 8, second = width / 2;
    uint8_t places[32];
    uint32_t shifts[8];
    size_t i = 0;

    for (unsigned value = 0; value < 8; value++) {
        unsigned bit = value * width - (value < 4 ? 0 : 8 * (unsigned)second);
        shifts[value] = bit % 8;
        if (shifts[value] + width > 32)
            return 0;
        for (unsigned byte = 0; byte < 4; byte++)
            places[4 * value + byte] = (uint8_t)(bit / 8 + byte);
    }
    const __m256i place = _mm256_loadu_si256((const __m256i *)places);
    const __m256i shift = _mm256_loadu_si256((const __m256i *)shifts);
    const __m256i mask = _mm256_set1_epi32((int)(0xffffffffu >> (32 - width)));
    for (size_t at = 0; i + 8 <= count && at + second + 16 <= bytes; i += 8, at += width) {
        __m256i both = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(packed + at)));
        both = _mm256_inserti128_si256(both, _mm_loadu_si128((const __m128i *)(packed + at + second)), 1);
        both = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(both, place), shift), mask);
        __m256i *where = (__m256i *)(total + i);
        _mm256_storeu_si256(where, _mm256_add_epi32(_mm256_loadu_si256(where), both));
    }
    return i;
}
#endif

void tacit_unpack_add(const uint8_t *packed, size_t count, unsigned width, int wide, void *total)
{
    size_t start = 0;
#ifdef HAVE_AVX2
    if (!wide && __builtin_cpu_supports("avx2"))
        start = unpack_add_avx2(packed, count, width, total);
#endif
    if (!wide)
        unpack_add(packed, count, width, 0, 0, start, total);
    else if (width > 57)
        unpack_add(packed, count, width, 1, 1, 0, total);
    else
        unpack_add(packed, count, width, 1, 0, 0, total);
}
