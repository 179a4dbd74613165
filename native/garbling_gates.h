/* Included by garbling.c once for each width of vector, with these names defined: TARGET, NAME(x), VECTOR and, on it,
   LOAD, STORE, XOR, AND, ADD64, SUB64, LOW_WORDS (each block's low word in both of its words), ENCRYPT, ENCRYPT_LAST,
   EACH(block of 128 bits), LANES(step) (0, step, 2 step ... in the low words), CHOOSE(bits, block) (lane j holds the block
   where bit j is set, else zero), ZIP_LOW, ZIP_HIGH (first blocks of two vectors by turns, then their last ones),
   UNZIP_EVEN, UNZIP_ODD (their inverses). */

#define WIDTH ((int)(sizeof(VECTOR) / 16)) /* blocks in a vector */
#define INLINE __attribute__((target(TARGET), always_inline)) static inline

/* Eight vectors through AES at once: they hide the latency of a round. */
INLINE void NAME(permute)(VECTOR *state, const __m128i *rounds)
{
    VECTOR key = EACH(rounds[0]);
    for (int j = 0; j < 8; j++)
        state[j] = XOR(state[j], key);
    for (int r = 1; r < 10; r++) {
        key = EACH(rounds[r]);
        for (int j = 0; j < 8; j++)
            state[j] = ENCRYPT(state[j], key);
    }
    key = EACH(rounds[10]);
    for (int j = 0; j < 8; j++)
        state[j] = ENCRYPT_LAST(state[j], key);
}

/* pi(pi(x) ^ tweak) ^ pi(x) in place. */
INLINE void NAME(hash)(VECTOR *state, const VECTOR *tweaks, const __m128i *rounds)
{
    VECTOR once[8];
    NAME(permute)(state, rounds);
    for (int j = 0; j < 8; j++) {
        once[j] = state[j];
        state[j] = XOR(state[j], tweaks[j]);
    }
    NAME(permute)(state, rounds);
    for (int j = 0; j < 8; j++)
        state[j] = XOR(state[j], once[j]);
}

/* All ones where the low bit of the block is set, else zero. */
INLINE VECTOR NAME(colour)(VECTOR blocks)
{
    VECTOR zero = XOR(blocks, blocks), one = EACH(_mm_set1_epi64x(1));
    return SUB64(zero, AND(LOW_WORDS(blocks), one));
}

/* The hash of a tile, whose length is a multiple of 8 vectors. */
__attribute__((target(TARGET))) static void
NAME(hash_tile)(const __m128i *rounds, uint64_t *tile, int blocks, uint64_t first, uint64_t domain)
{
    const VECTOR step = EACH(_mm_set_epi64x(0, WIDTH));
    VECTOR tweak = ADD64(EACH(_mm_set_epi64x((long long)domain, (long long)first)), LANES(1));
    for (int at = 0; at < blocks; at += 8 * WIDTH) {
        VECTOR state[8], tweaks[8];
        for (int j = 0; j < 8; j++) {
            state[j] = LOAD(tile + 2 * (at + j * WIDTH));
            tweaks[j] = tweak;
            tweak = ADD64(tweak, step);
        }
        NAME(hash)(state, tweaks, rounds);
        for (int j = 0; j < 8; j++)
            STORE(tile + 2 * (at + j * WIDTH), state[j]);
    }
}

/* pi of a tile, whose length is a multiple of 8 vectors. */
__attribute__((target(TARGET))) static void NAME(permute_tile)(const __m128i *rounds, uint64_t *tile, int blocks)
{
    for (int at = 0; at < blocks; at += 8 * WIDTH) {
        VECTOR state[8];
        for (int j = 0; j < 8; j++)
            state[j] = LOAD(tile + 2 * (at + j * WIDTH));
        NAME(permute)(state, rounds);
        for (int j = 0; j < 8; j++)
            STORE(tile + 2 * (at + j * WIDTH), state[j]);
    }
}

INLINE void NAME(xor_lane)(uint64_t *out, const uint64_t *a, const uint64_t *b)
{
    for (int at = 0; at < LANE; at += WIDTH)
        STORE(out + 2 * at, XOR(LOAD(a + 2 * at), LOAD(b + 2 * at)));
}

/* One AND gate for LANE instances. The zero-labels of its inputs are those at a and b plus delta where the bit of the
   instance is set in flip_a and flip_b. out may be a or b. */
INLINE void NAME(garble_and)(const __m128i *rounds, const VECTOR delta, uint64_t *out, const uint64_t *a,
                             const uint64_t *b, uint64_t flip_a, uint64_t flip_b, uint64_t tweak, uint64_t *table)
{
    const VECTOR other_half = EACH(_mm_set_epi64x(0, 1)), step = EACH(_mm_set_epi64x(0, 2 * WIDTH));
    VECTOR next = ADD64(EACH(_mm_set_epi64x(0, (long long)tweak)), LANES(2));
    for (int at = 0; at < LANE; at += 2 * WIDTH) {
        VECTOR state[8], tweaks[8], zero_a[2], zero_b[2];
        for (int j = 0; j < 2; j++) {
            int i = at + j * WIDTH;
            zero_a[j] = XOR(LOAD(a + 2 * i), CHOOSE(flip_a >> i, delta));
            zero_b[j] = XOR(LOAD(b + 2 * i), CHOOSE(flip_b >> i, delta));
            state[j] = zero_a[j];
            state[2 + j] = XOR(zero_a[j], delta);
            state[4 + j] = zero_b[j];
            state[6 + j] = XOR(zero_b[j], delta);
            tweaks[j] = tweaks[2 + j] = next;
            tweaks[4 + j] = tweaks[6 + j] = ADD64(next, other_half);
            next = ADD64(next, step);
        }
        NAME(hash)(state, tweaks, rounds);
        for (int j = 0; j < 2; j++) {
            int i = at + j * WIDTH;
            VECTOR colour_a = NAME(colour)(zero_a[j]), colour_b = NAME(colour)(zero_b[j]);
            VECTOR generator = XOR(XOR(state[j], state[2 + j]), AND(colour_b, delta));
            VECTOR hashed_b = XOR(state[4 + j], state[6 + j]); /* the evaluator's half, plus a's zero-label */
            VECTOR evaluator = XOR(hashed_b, zero_a[j]);
            STORE(out + 2 * i, XOR(XOR(state[j], AND(colour_a, generator)),
                                   XOR(state[4 + j], AND(colour_b, hashed_b))));
            STORE(table + 4 * i, ZIP_LOW(generator, evaluator));
            STORE(table + 4 * i + 2 * WIDTH, ZIP_HIGH(generator, evaluator));
        }
    }
}

/* One AND gate for LANE instances, from the active labels at a and b. out may be a or b. What lies so many bytes ahead in the
   tables is prefetched: the next gate's, which is nowhere near. */
INLINE void NAME(evaluate_and)(const __m128i *rounds, uint64_t *out, const uint64_t *a, const uint64_t *b,
                               uint64_t tweak, const uint64_t *table, uintptr_t ahead)
{
    const VECTOR other_half = EACH(_mm_set_epi64x(0, 1)), step = EACH(_mm_set_epi64x(0, 2 * WIDTH));
    VECTOR next = ADD64(EACH(_mm_set_epi64x(0, (long long)tweak)), LANES(2));
    for (int at = 0; at < LANE; at += 4 * WIDTH) {
        VECTOR state[8], tweaks[8], active_a[4], active_b[4];
        for (int j = 0; j < 4; j++) {
            int i = at + j * WIDTH;
            state[j] = active_a[j] = LOAD(a + 2 * i);
            state[4 + j] = active_b[j] = LOAD(b + 2 * i);
            tweaks[j] = next;
            tweaks[4 + j] = ADD64(next, other_half);
            next = ADD64(next, step);
        }
        NAME(hash)(state, tweaks, rounds);
        for (int j = 0; j < 4; j++) {
            int i = at + j * WIDTH;
            uintptr_t later = (uintptr_t)(table + 4 * i) + ahead;
            _mm_prefetch((const char *)later, _MM_HINT_T0);
            _mm_prefetch((const char *)(later + 32 * WIDTH - 16), _MM_HINT_T0);
            VECTOR low = LOAD(table + 4 * i), high = LOAD(table + 4 * i + 2 * WIDTH);
            VECTOR generator = UNZIP_EVEN(low, high), evaluator = UNZIP_ODD(low, high);
            STORE(out + 2 * i, XOR(XOR(state[j], AND(NAME(colour)(active_a[j]), generator)),
                                   XOR(state[4 + j], AND(NAME(colour)(active_b[j]), XOR(evaluator, active_a[j])))));
        }
    }
}

__attribute__((target(TARGET))) static void NAME(garble)(const struct run *run, const uint64_t *delta_block)
{
    const VECTOR delta = EACH(_mm_loadu_si128((const __m128i *)delta_block));
    for (size_t word = 0; word < run->words; word++) {
        for (size_t s = 0; s < run->steps; s++) {
            const int32_t *step = run->program + STEP * s;
            if (step[0] == STEP_PLANE) {
                run->planes[step[1]] = *plane(run, step[2], word) ^ *plane(run, step[3], word);
            } else if (step[0] == STEP_XOR) {
                NAME(xor_lane)(slot(run, step[1]), lane(run, step[2], word), lane(run, step[3], word));
            } else {
                size_t at = LANE * (step[6] * run->words + word);
                NAME(garble_and)(run->rounds, delta, slot(run, step[1]), lane(run, step[2], word),
                                 lane(run, step[3], word), *plane(run, step[4], word), *plane(run, step[5], word),
                                 run->first + 2 * at, run->tables + 4 * at);
            }
        }
        for (size_t k = 0; k < run->outputs; k++) {
            const uint64_t *from = lane(run, run->output_at[2 * k], word);
            uint64_t flip = *plane(run, run->output_at[2 * k + 1], word);
            uint64_t *to = run->out + 2 * LANE * (k * run->words + word);
            for (int at = 0; at < LANE; at += WIDTH)
                STORE(to + 2 * at, XOR(LOAD(from + 2 * at), CHOOSE(flip >> at, delta)));
        }
    }
}

__attribute__((target(TARGET))) static void NAME(evaluate)(const struct run *run)
{
    for (size_t word = 0; word < run->words; word++) {
        for (size_t s = 0; s < run->steps; s++) {
            const int32_t *step = run->program + STEP * s;
            if (step[0] == STEP_XOR) {
                NAME(xor_lane)(slot(run, step[1]), lane(run, step[2], word), lane(run, step[3], word));
            } else if (step[0] == STEP_AND) {
                size_t at = LANE * (step[6] * run->words + word);
                NAME(evaluate_and)(run->rounds, slot(run, step[1]), lane(run, step[2], word), lane(run, step[3], word),
                                   run->first + 2 * at, run->tables + 4 * at, 32 * LANE * run->words);
            }
        }
        for (size_t k = 0; k < run->outputs; k++)
            memcpy(run->out + 2 * LANE * (k * run->words + word), lane(run, run->output_at[2 * k], word), 16 * LANE);
    }
}

#undef WIDTH
#undef INLINE
#undef TARGET
#undef NAME
#undef VECTOR
#undef LOAD
#undef STORE
#undef XOR
#undef AND
#undef ADD64
#undef SUB64
#undef LOW_WORDS
#undef ENCRYPT
#undef ENCRYPT_LAST
#undef EACH
#undef LANES
#undef CHOOSE
#undef ZIP_LOW
#undef ZIP_HIGH
#undef UNZIP_EVEN
#undef UNZIP_ODD
