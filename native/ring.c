/* Products of matrices modulo 2^64 and 2^32, with AVX-512's products of integers. No branch and no address depends on a value. */
#include "kernels.h"

#include <string.h>

#define ROWS 8
#define INNER 256  /* of the inner dimension at a time */
#define ACROSS 256 /* columns of the right operand at a time: packed, they fit the second-level cache */

#if defined(__x86_64__)
#include <immintrin.h>

#define NAME(x) x##_64
#define WORD uint64_t
#define LANES 8
#define BROADCAST(word) _mm512_set1_epi64((long long)(word))
#define TIMES _mm512_mullo_epi64
#define PLUS _mm512_add_epi64
#include "ring_tile.h"

#define NAME(x) x##_32
#define WORD uint32_t
#define LANES 16
#define BROADCAST(word) _mm512_set1_epi32((int)(word))
#define TIMES _mm512_mullo_epi32
#define PLUS _mm512_add_epi32
#include "ring_tile.h"

int tacit_ring_level(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
}

/* Returns 0, or -1 and leaves the result as it is where the processor lacks AVX-512. */
int tacit_ring_multiply_add(const void *left, const size_t *left_strides, const void *right,
                            const size_t *right_strides, void *out, size_t m, size_t k, size_t n, int wide, void *scratch)
{
    if (!tacit_ring_level())
        return -1;
    if (wide)
        multiply_64(left, left_strides, right, right_strides, out, m, k, n, scratch);
    else
        multiply_32(left, left_strides, right, right_strides, out, m, k, n, scratch);
    return 0;
}

#else

int tacit_ring_level(void)
{
    return 0;
}

int tacit_ring_multiply_add(const void *left, const size_t *left_strides, const void *right,
                            const size_t *right_strides, void *out, size_t m, size_t k, size_t n, int wide, void *scratch)
{
    (void)left, (void)left_strides, (void)right, (void)right_strides, (void)out, (void)m, (void)k, (void)n, (void)wide;
    (void)scratch;
    return -1;
}

#endif

/* Bytes of scratch, without alignment. */
size_t tacit_ring_scratch(void)
{
    return 8 * INNER * (ACROSS + 32);
}
