/* Bits of values as planes and back, and the transpose of oblivious-transfer extension: all are 64 x 64 squares of bits,
   mirrored eight at a time, so that whole cache lines are read of each plane or column.

   No branch and no address depends on a value. Source of the masked swaps: Warren, "Hacker's Delight", section 7-3. */
#include "kernels.h"

#include <string.h>

#define WIDE 8

#define TARGET
#define NAME(x) x##_base
#define LANES 2
#include "bits_square.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_LEVELS 1

#define TARGET __attribute__((target("avx2")))
#define NAME(x) x##_256
#define LANES 4
#include "bits_square.h"

#define TARGET __attribute__((target("avx512f")))
#define NAME(x) x##_512
#define LANES 8
#include "bits_square.h"
#endif

typedef void (*mirror)(uint64_t square[64][WIDE]);

int tacit_bits_level(void)
{
#ifdef HAVE_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return 2;
    return __builtin_cpu_supports("avx2") ? 1 : 0;
#else
    return 0;
#endif
}

/* NULL where the processor does not have that level. */
static mirror mirror_of(int level)
{
    if (level < 0 || level > tacit_bits_level())
        return NULL;
#ifdef HAVE_LEVELS
    if (level > 0)
        return level == 2 ? mirror_512 : mirror_256;
#endif
    return mirror_base;
}

/* values [count] of 32 or 64 bits; planes [bits][ceil(count / 64)]. Returns 0, or -1 and writes nothing. */
int tacit_bits_slice(int level, const void *values, int wide, size_t count, size_t bits, uint64_t *planes)
{
    _Alignas(64) uint64_t square[64][WIDE];
    const mirror turn = mirror_of(level);
    const size_t words = (count + 63) / 64;

    if (!turn)
        return -1;
    for (size_t word = 0; word < words; word += WIDE) {
        size_t used = words - word < WIDE ? words - word : WIDE;
        if (count < 64 * (word + WIDE))
            memset(square, 0, sizeof square);
        for (size_t w = 0; w < used; w++) {
            size_t start = 64 * (word + w), held = count - start < 64 ? count - start : 64;
            if (wide)
                for (size_t i = 0; i < held; i++)
                    square[i][w] = ((const uint64_t *)values)[start + i];
            else
                for (size_t i = 0; i < held; i++)
                    square[i][w] = ((const uint32_t *)values)[start + i];
        }
        turn(square);
        for (size_t bit = 0; bit < bits; bit++)
            memcpy(planes + bit * words + word, square[bit], 8 * used);
    }
    return 0;
}

/* planes [bits][ceil(count / 64)]; values [count] of 32 or 64 bits, where bits is no more. */
int tacit_bits_join(int level, const uint64_t *planes, size_t bits, size_t count, int wide, void *values)
{
    _Alignas(64) uint64_t square[64][WIDE];
    const mirror turn = mirror_of(level);
    const size_t words = (count + 63) / 64;

    if (!turn)
        return -1;
    for (size_t word = 0; word < words; word += WIDE) {
        size_t used = words - word < WIDE ? words - word : WIDE;
        if (bits < 64 || used < WIDE)
            memset(square, 0, sizeof square);
        for (size_t bit = 0; bit < bits; bit++)
            memcpy(square[bit], planes + bit * words + word, 8 * used);
        turn(square);
        for (size_t w = 0; w < used; w++) {
            size_t start = 64 * (word + w), held = count - start < 64 ? count - start : 64;
            if (wide)
                for (size_t i = 0; i < held; i++)
                    ((uint64_t *)values)[start + i] = square[i][w];
            else
                for (size_t i = 0; i < held; i++)
                    ((uint32_t *)values)[start + i] = (uint32_t)square[i][w];
        }
    }
    return 0;
}

/* columns [128][stride], of which words are read; rows [64 * words][2]. */
int tacit_bits_rows(int level, const uint64_t *columns, size_t stride, size_t words, uint64_t *rows)
{
    _Alignas(64) uint64_t low[64][WIDE], high[64][WIDE];
    const mirror turn = mirror_of(level);

    if (!turn)
        return -1;
    for (size_t word = 0; word < words; word += WIDE) {
        size_t used = words - word < WIDE ? words - word : WIDE;
        if (used < WIDE) {
            memset(low, 0, sizeof low);
            memset(high, 0, sizeof high);
        }
        for (size_t i = 0; i < 64; i++) {
            memcpy(low[i], columns + i * stride + word, 8 * used);
            memcpy(high[i], columns + (64 + i) * stride + word, 8 * used);
        }
        turn(low);
        turn(high);
        for (size_t w = 0; w < used; w++) {
            uint64_t *row = rows + 128 * (word + w);
            for (size_t i = 0; i < 64; i++) {
                row[2 * i] = low[i][w];
                row[2 * i + 1] = high[i][w];
            }
        }
    }
    return 0;
}
