/* Included by masks.c once for each width of vector, with these names defined: TARGET, NAME(x), VECTOR and, on it,
   LOAD, STORE, XOR, SHUFFLE, ADD32, SUB32, ADD64, SUB64, ENCRYPT, ENCRYPT_LAST, EACH(block of 128 bits), COUNTERS(first). */

/* Adds one key stream to a tile, whose length is a multiple of 8 vectors; eight blocks hide the latency of a round. */
__attribute__((target(TARGET), always_inline)) static inline void
NAME(one_key)(uint8_t *tile, size_t bytes, uint64_t block, const __m128i *rounds, int wide, int negative)
{
    const VECTOR swap = EACH(_mm_set_epi8(8, 9, 10, 11, 12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1));
    const VECTOR step = EACH(_mm_set_epi64x(sizeof(VECTOR) / 16, 0));
    VECTOR counter = COUNTERS(block);
    for (size_t at = 0; at < bytes; at += 8 * sizeof(VECTOR)) {
        VECTOR state[8], key = EACH(rounds[0]);
        for (int j = 0; j < 8; j++) {
            state[j] = XOR(SHUFFLE(counter, swap), key);
            counter = ADD64(counter, step);
        }
        for (int r = 1; r < 10; r++) {
            key = EACH(rounds[r]);
            for (int j = 0; j < 8; j++)
                state[j] = ENCRYPT(state[j], key);
        }
        key = EACH(rounds[10]);
        for (int j = 0; j < 8; j++) {
            VECTOR *place = (VECTOR *)(tile + at) + j;
            VECTOR mask = ENCRYPT_LAST(state[j], key), old = LOAD(place);
            if (wide)
                STORE(place, negative ? SUB64(old, mask) : ADD64(old, mask));
            else
                STORE(place, negative ? SUB32(old, mask) : ADD32(old, mask));
        }
    }
}

__attribute__((target(TARGET))) static void
NAME(all_keys)(uint8_t *tile, size_t bytes, uint64_t block, const __m128i (*schedules)[11], const int8_t *signs,
               size_t keys, int wide)
{
    for (size_t k = 0; k < keys; k++) {
        if (wide && signs[k] < 0)
            NAME(one_key)(tile, bytes, block, schedules[k], 1, 1);
        else if (wide)
            NAME(one_key)(tile, bytes, block, schedules[k], 1, 0);
        else if (signs[k] < 0)
            NAME(one_key)(tile, bytes, block, schedules[k], 0, 1);
        else
            NAME(one_key)(tile, bytes, block, schedules[k], 0, 0);
    }
}

#undef TARGET
#undef NAME
#undef VECTOR
#undef LOAD
#undef STORE
#undef XOR
#undef SHUFFLE
#undef ADD32
#undef SUB32
#undef ADD64
#undef SUB64
#undef ENCRYPT
#undef ENCRYPT_LAST
#undef EACH
#undef COUNTERS
