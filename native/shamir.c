/* Shamir's secret sharing over the integers modulo p = 2^61 - 1: shares, Lagrange weights at zero, secrets.
 *
 * Every value that comes in is below p, and so is every value that goes out. In between a value may be anything up to
 * 2^61 + 7: 2^61 = 1 modulo p, so what stands above bit 61 is added below it, and once is enough before the next product.
 *
 * No branch and no address depends on a secret, a coefficient, a share or a weight; lengths and points are public.
 */

#include "kernels.h"

__extension__ typedef unsigned __int128 u128;

#define P ((UINT64_C(1) << 61) - 1)
#define LANES 8   /* independent chains, which hide the latency of a product */
#define RUN 32    /* products below 2^122 that are summed before a reduction; 64 would still fit */
#define BATCH 256 /* values that share one inversion */

/* Any 64 bits to at most 2^61 + 6. */
static inline uint64_t fold(uint64_t a)
{
    return (a & P) + (a >> 61);
}

/* Any 64 bits to the value below p. */
static inline uint64_t reduce(uint64_t a)
{
    uint64_t r = fold(a) - P;
    return r + (P & (0 - (r >> 63)));
}

/* a * b + c for a <= 2^61 + 7, b and c below p, b8 = 8 * b: the high word is then (a * b) >> 61. At most 2^61 + 2. */
static inline uint64_t step(uint64_t a, uint64_t b8, uint64_t c)
{
    u128 product = (u128)a * b8;
    return fold((uint64_t)(product >> 64) + ((uint64_t)product >> 3) + c);
}

static inline uint64_t times(uint64_t a, uint64_t b)
{
    return reduce(step(a, b << 3, 0));
}

/* 1 / a = a^(p - 2) by Fermat; p - 2 = 2^61 - 3 has every bit but the second. */
static uint64_t inverse(uint64_t a)
{
    uint64_t r = a;
    for (int bit = 59; bit >= 0; bit--) {
        r = times(r, r);
        if (bit != 1)
            r = times(r, a);
    }
    return r;
}

/* coefficients [threshold][columns], row 0 the secrets; xs [points]; out [points][columns], by Horner. */
void tacit_shamir_evaluate(const uint64_t *coefficients, size_t threshold, size_t columns,
                           const uint64_t *xs, size_t points, uint64_t *out)
{
    for (size_t start = 0; start < points; start += LANES) {
        size_t here = points - start < LANES ? points - start : LANES;
        uint64_t x8[LANES] = {0};
        for (size_t lane = 0; lane < here; lane++)
            x8[lane] = xs[start + lane] << 3;
        for (size_t column = 0; column < columns; column++) {
            uint64_t at[LANES] = {0};
            for (size_t row = threshold; row-- > 0;) {
                uint64_t coefficient = coefficients[row * columns + column];
                for (size_t lane = 0; lane < LANES; lane++)
                    at[lane] = step(at[lane], x8[lane], coefficient);
            }
            for (size_t lane = 0; lane < here; lane++)
                out[(start + lane) * columns + column] = reduce(at[lane]);
        }
    }
}

/* shares [groups][threshold][columns], weights [groups][threshold]; out [groups][columns], the weighted sums. */
void tacit_shamir_combine(const uint64_t *shares, const uint64_t *weights, size_t groups,
                          size_t threshold, size_t columns, uint64_t *out)
{
    for (size_t group = 0; group < groups; group++) {
        const uint64_t *weight = weights + group * threshold;
        for (size_t column = 0; column < columns; column++) {
            const uint64_t *share = shares + group * threshold * columns + column;
            uint64_t total = 0;
            for (size_t start = 0; start < threshold; start += RUN) {
                size_t stop = threshold - start < RUN ? threshold : start + RUN;
                u128 sum = total;
                for (size_t row = start; row < stop; row++)
                    sum += (u128)weight[row] * share[row * columns];
                total = reduce(((uint64_t)sum & P) + ((uint64_t)(sum >> 61) & P) + (uint64_t)(sum >> 122));
            }
            out[group * columns + column] = total;
        }
    }
}

/* xs [groups][threshold], in each group distinct and not zero; out [groups][threshold]:
 * weight i = product of x_j / (x_j - x_i) over the other j = (product of all x_j) / (x_i * product of (x_j - x_i)). */
void tacit_shamir_weights(const uint64_t *xs, size_t groups, size_t threshold, uint64_t *out)
{
    for (size_t group = 0; group < groups; group++) { /* the denominators */
        const uint64_t *x = xs + group * threshold;
        for (size_t start = 0; start < threshold; start += LANES) {
            size_t here = threshold - start < LANES ? threshold - start : LANES;
            uint64_t own[LANES] = {0}, at[LANES];
            for (size_t lane = 0; lane < LANES; lane++)
                at[lane] = 1;
            for (size_t lane = 0; lane < here; lane++)
                own[lane] = x[start + lane];
            for (size_t j = 0; j < threshold; j++) {
                for (size_t lane = 0; lane < LANES; lane++) {
                    uint64_t factor = x[j] - own[lane];
                    factor += P & (0 - (factor >> 63));
                    factor += own[lane] & (0 - (uint64_t)(factor == 0)); /* its own point */
                    at[lane] = step(at[lane], factor << 3, 0);
                }
            }
            for (size_t lane = 0; lane < here; lane++)
                out[group * threshold + start + lane] = reduce(at[lane]);
        }
    }
    for (size_t start = 0; start < groups * threshold; start += BATCH) { /* their inverses (Montgomery's trick) */
        size_t here = groups * threshold - start < BATCH ? groups * threshold - start : BATCH;
        uint64_t *value = out + start, before[BATCH], product = 1;
        for (size_t i = 0; i < here; i++) {
            before[i] = product;
            product = times(product, value[i]);
        }
        uint64_t inverted = inverse(product);
        for (size_t i = here; i-- > 0;) {
            uint64_t own = value[i];
            value[i] = times(inverted, before[i]);
            inverted = times(inverted, own);
        }
    }
    for (size_t group = 0; group < groups; group++) { /* times the numerator */
        uint64_t all = 1;
        for (size_t i = 0; i < threshold; i++)
            all = times(all, xs[group * threshold + i]);
        for (size_t i = 0; i < threshold; i++)
            out[group * threshold + i] = times(out[group * threshold + i], all);
    }
}
