/* The table look-up of tacit.dp.discrete: a word's low bits choose a rectangle, the next ones a place in its block. */
#include "kernels.h"

static inline __attribute__((always_inline)) size_t body(const void *words, int wide, size_t count,
                                                         const int16_t *blocks, unsigned bits, unsigned low,
                                                         uint64_t sure, int64_t *out, uint32_t *open)
{
    const uint64_t rectangles = ((uint64_t)1 << bits) - 1, places = ((uint64_t)1 << low) - 1;
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t word = wide ? ((const uint64_t *)words)[i] : ((const uint32_t *)words)[i];
        uint64_t index = word & rectangles;
        uint64_t start = (uint64_t)(int64_t)blocks[index] << low;
        out[i] = (int64_t)(start | (word >> bits & places));
        open[found] = (uint32_t)i;
        found += index >= sure;
    }
    return found;
}

size_t tacit_gaussian_propose(const void *words, int wide, size_t count, const int16_t *blocks, unsigned bits,
                              unsigned low, uint64_t sure, int64_t *out, uint32_t *open)
{
    return wide ? body(words, 1, count, blocks, bits, low, sure, out, open)
                : body(words, 0, count, blocks, bits, low, sure, out, open);
}
