/* Stochastic rounding of floats to integers, with the operations in the order of tacit.crypto.quantisation: built
   with -ffp-contract=off, the two agree in every bit. */
#include "kernels.h"

#include <string.h>

#define MAGIC 0x1p52 /* 2^52 + n holds the integer n < 2^52 in its low bits */

/* The integer n of a double n that is from 0 to 2^32 - 1. */
static inline __attribute__((always_inline)) uint64_t integer(double whole)
{
    double shifted = whole + MAGIC;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits & 0xffffffff;
}

static inline __attribute__((always_inline)) double number(uint32_t integer)
{
    uint64_t bits = 0x4330000000000000 | (uint64_t)integer;
    double shifted;
    memcpy(&shifted, &bits, sizeof shifted);
    return shifted - MAGIC;
}

static inline __attribute__((always_inline)) void body(const float *values, const uint32_t *coins, size_t count,
                                                       double clip, double scale, double top, int wide, void *out,
                                                       uint64_t *counts)
{
    uint64_t odd = 0, beyond = 0;
    for (size_t i = 0; i < count; i++) {
        double x = values[i], lowest = -clip;
        odd += (uint64_t) !(x - x == 0);
        beyond += (uint64_t)(x < lowest) + (uint64_t)(x > clip);
        x = x < lowest ? lowest : x;
        x = x > clip ? clip : x;
        x = (x + clip) * scale + number(coins[i]) * 0x1p-32;
        double whole = x + MAGIC - MAGIC; /* the nearest integer, of x >= 0 */
        whole -= whole > x ? 1.0 : 0.0;   /* floor */
        whole = whole > top ? top : whole;
        if (wide)
            ((uint64_t *)out)[i] = integer(whole);
        else
            ((uint32_t *)out)[i] = (uint32_t)integer(whole);
    }
    counts[0] += odd;
    counts[1] += beyond;
}

#define ARGUMENTS                                                                                                      \
    const float *values, const uint32_t *coins, size_t count, double clip, double scale, double top, int wide,         \
        void *out, uint64_t *counts

static void plain(ARGUMENTS)
{
    if (wide)
        body(values, coins, count, clip, scale, top, 1, out, counts);
    else
        body(values, coins, count, clip, scale, top, 0, out, counts);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void avx2(ARGUMENTS)
{
    if (wide)
        body(values, coins, count, clip, scale, top, 1, out, counts);
    else
        body(values, coins, count, clip, scale, top, 0, out, counts);
}
#endif

void tacit_quantise(ARGUMENTS)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
        avx2(values, coins, count, clip, scale, top, wide, out, counts);
        return;
    }
#endif
    plain(values, coins, count, clip, scale, top, wide, out, counts);
}
