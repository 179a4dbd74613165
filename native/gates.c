/* One level of a Boolean circuit on bit-sliced shares: rows are wires, a word holds 64 instances.

   A range of words at a time goes through all gates, so that rows that several gates read stay in the cache. No branch and
   no address depends on a share. */
#include "kernels.h"

#define RANGE 512 /* words: 4 kB of a row */

static const uint64_t nothing[RANGE];

/* The row of a party's mask share: owned[0] rows known to party 0, owned[1] to party 1, the rest shared. */
static inline __attribute__((always_inline)) const uint64_t *mask_of(const uint64_t *own, const uint64_t *shared,
                                                                     const int32_t *owned, int party, int32_t row,
                                                                     size_t words, size_t at)
{
    if (row >= owned[0] + owned[1])
        return shared + (size_t)(row - owned[0] - owned[1]) * words + at;
    if ((row >= owned[0]) != party)
        return nothing;
    return own + (size_t)(row - (party ? owned[0] : 0)) * words + at;
}

#define ARGUMENTS                                                                                                      \
    uint64_t *wires, size_t words, const uint64_t *own, const uint64_t *shared, const int32_t *owned,                  \
        const uint64_t *opened, const uint64_t *products, const int32_t *ands, size_t count, int party
#define NAMES wires, words, own, shared, owned, opened, products, ands, count, party

static inline __attribute__((always_inline)) void body(ARGUMENTS)
{
    for (size_t at = 0; at < words; at += RANGE) {
        const size_t size = words - at < RANGE ? words - at : RANGE;
        for (size_t g = 0; g < count; g++) {
            const int32_t left = ands[3 * g + 1], right = ands[3 * g + 2];
            uint64_t *restrict out = wires + (size_t)ands[3 * g] * words + at;
            const uint64_t *u = opened + (size_t)left * words + at, *v = opened + (size_t)right * words + at;
            const uint64_t *a = mask_of(own, shared, owned, party, left, words, at);
            const uint64_t *b = mask_of(own, shared, owned, party, right, words, at);
            const uint64_t *c = products + g * words + at;
            if (party == 0)
                for (size_t i = 0; i < size; i++)
                    out[i] = (u[i] & (b[i] ^ v[i])) ^ (v[i] & a[i]) ^ c[i];
            else
                for (size_t i = 0; i < size; i++)
                    out[i] = (u[i] & b[i]) ^ (v[i] & a[i]) ^ c[i];
        }
    }
}

static void plain(ARGUMENTS)
{
    body(NAMES);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void avx2(ARGUMENTS)
{
    body(NAMES);
}
#endif

/* ands: output wire and two mask rows each; products: theirs, one after another; opened: by mask row. */
void tacit_gates_and(ARGUMENTS)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
        avx2(NAMES);
        return;
    }
#endif
    plain(NAMES);
}

/* gates: kind (0 XOR, 1 AND, 2 NOT by party 0, 3 NOT by party 1), output and two inputs each, in order. */
void tacit_gates_linear(uint64_t *wires, size_t words, const int32_t *gates, size_t count, int party)
{
    for (size_t at = 0; at < words; at += RANGE) {
        const size_t size = words - at < RANGE ? words - at : RANGE;
        for (size_t g = 0; g < count; g++) {
            const int32_t *gate = gates + 4 * g;
            uint64_t *restrict out = wires + (size_t)gate[1] * words + at;
            const uint64_t *a = wires + (size_t)gate[2] * words + at, *b = wires + (size_t)gate[3] * words + at;
            if (gate[0] == 0)
                for (size_t i = 0; i < size; i++)
                    out[i] = a[i] ^ b[i];
            else if (gate[0] == 1)
                for (size_t i = 0; i < size; i++)
                    out[i] = a[i] & b[i];
            else {
                const uint64_t flip = gate[0] - 2 == party ? ~UINT64_C(0) : 0;
                for (size_t i = 0; i < size; i++)
                    out[i] = a[i] ^ flip;
            }
        }
    }
}
