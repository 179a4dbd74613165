/* Values of any width from 1 to 64 bits as a little-endian stream of bits, and back. */
#include "kernels.h"

#include <string.h>

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

static inline __attribute__((always_inline)) void unpack_add(const uint8_t *packed, size_t count, unsigned width,
                                                             int wide, int two, void *total)
{
    const size_t bytes = (count * width + 7) / 8;
    /* Of these values each begins nine bytes or more before the end and is read where it lies. */
    const size_t safe = bytes < 9 ? 0 : (bytes - 9) * 8 / width;
    size_t bit = 0;

    for (size_t i = 0; i < safe; i++, bit += width)
        add(total, wide, i, read(packed + bit / 8, bit % 8, width, two));
    for (size_t i = safe; i < count; i++, bit += width) {
        uint8_t end[9] = {0};
        size_t left = bytes - bit / 8;
        memcpy(end, packed + bit / 8, left < 9 ? left : 9);
        add(total, wide, i, read(end, bit % 8, width, two));
    }
}

void tacit_unpack_add(const uint8_t *packed, size_t count, unsigned width, int wide, void *total)
{
    if (!wide)
        unpack_add(packed, count, width, 0, 0, total);
    else if (width > 57)
        unpack_add(packed, count, width, 1, 1, total);
    else
        unpack_add(packed, count, width, 1, 0, total);
}
