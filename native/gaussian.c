/* The table look-up of tacit.dp.discrete: a word's low bits choose a rectangle, the next ones a place in its block. */
#include "kernels.h"
#include <math.h>

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

/* Step 3. What is within the margin is left to the caller, so that the last bit of exp, which differs between libraries,
   decides nothing. */
size_t tacit_gaussian_decide(const void *words, int wide, const uint32_t *open, size_t count, const uint64_t *fresh,
                             const int16_t *blocks, const double *levels, unsigned bits, unsigned low, unsigned more,
                             uint64_t tails, double deviation, double height, double margin, int64_t *out,
                             uint32_t *rejected, uint32_t *close, size_t *closes)
{
    const uint64_t rectangles = ((uint64_t)1 << bits) - 1, places = ((uint64_t)1 << low) - 1;
    size_t lost = 0, near = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t word = wide ? ((const uint64_t *)words)[open[i]] : ((const uint32_t *)words)[open[i]];
        uint64_t index = word & rectangles, place = word >> bits & places;
        unsigned wider = index >= tails ? more : 0;
        if (wider)
            place = place << wider | (fresh[i] & 7 & (((uint64_t)1 << wider) - 1));
        int64_t x = (int64_t)(((uint64_t)(int64_t)blocks[index] << (low + wider)) + place);
        double far = (double)x / deviation;
        double scaled = exp(-(far * far) / 2) * ((double)(1u << wider) / height);
        double gap = scaled - levels[index] - (double)(fresh[i] >> 3) * 0x1p-61;
        out[open[i]] = x;
        close[near] = (uint32_t)i;
        near += fabs(gap) <= margin;
        rejected[lost] = open[i];
        lost += gap < -margin;
    }
    *closes = near;
    return lost;
}

/* tacit.dp.ziggurat: a word's low 8 bits choose a layer, the next one the sign, the others a fraction. */
size_t tacit_ziggurat(const uint32_t *words, size_t count, const float *widths, const uint32_t *limits, float *out,
                      uint32_t *open)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t layer = words[i] & 255, fraction = words[i] >> 9;
        out[i] = (float)fraction * widths[layer] * (float)(1 - (int)(words[i] >> 7 & 2));
        open[found] = (uint32_t)i;
        found += fraction >= limits[layer];
    }
    return found;
}

size_t tacit_ziggurat_decide(const uint32_t *words, const uint32_t *open, size_t count, const uint64_t *fresh,
                             const double *ends, const double *heights, uint32_t *rejected)
{
    size_t lost = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t word = words[open[i]], layer = word & 255;
        double x = (double)(word >> 9) * ends[layer] * 0x1p-23;
        double level = heights[layer] + (double)(fresh[i] >> 11) * 0x1p-53 * (heights[layer + 1] - heights[layer]);
        rejected[lost] = open[i];
        lost += !(layer && level < exp(-(x * x) / 2));
    }
    return lost;
}
