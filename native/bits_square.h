/* Included by bits.c once for each width of vector, with these names defined: TARGET (an attribute, or nothing), NAME(x),
   LANES (how many 64-bit words a vector has). */

typedef uint64_t NAME(vector) __attribute__((vector_size(8 * LANES), may_alias));

/* Exchanges the upper bits of one row with the lower bits of the other: masked swaps at one distance. */
#define SWAP(one, other, distance, mask)                                                                               \
    do {                                                                                                               \
        NAME(vector) moved = (((one) >> (distance)) ^ (other)) & (mask);                                               \
        (other) ^= moved;                                                                                              \
        (one) ^= moved << (distance);                                                                                  \
    } while (0)

/* Three distances at a time, while eight rows are in registers. */
#define EIGHT(place, far, far_mask, middle, middle_mask, near, near_mask)                                              \
    do {                                                                                                               \
        NAME(vector) r0 = *place(0), r1 = *place(1), r2 = *place(2), r3 = *place(3);                                   \
        NAME(vector) r4 = *place(4), r5 = *place(5), r6 = *place(6), r7 = *place(7);                                   \
        SWAP(r0, r4, far, far_mask);                                                                                   \
        SWAP(r1, r5, far, far_mask);                                                                                   \
        SWAP(r2, r6, far, far_mask);                                                                                   \
        SWAP(r3, r7, far, far_mask);                                                                                   \
        SWAP(r0, r2, middle, middle_mask);                                                                             \
        SWAP(r1, r3, middle, middle_mask);                                                                             \
        SWAP(r4, r6, middle, middle_mask);                                                                             \
        SWAP(r5, r7, middle, middle_mask);                                                                             \
        SWAP(r0, r1, near, near_mask);                                                                                 \
        SWAP(r2, r3, near, near_mask);                                                                                 \
        SWAP(r4, r5, near, near_mask);                                                                                 \
        SWAP(r6, r7, near, near_mask);                                                                                 \
        *place(0) = r0, *place(1) = r1, *place(2) = r2, *place(3) = r3;                                                \
        *place(4) = r4, *place(5) = r5, *place(6) = r6, *place(7) = r7;                                                \
    } while (0)

#define FAR(k) ((NAME(vector) *)(square[first + 8 * (k)] + part))
#define NEAR(k) ((NAME(vector) *)(square[8 * first + (k)] + part))

/* WIDE squares of 64 x 64 bits, side by side, each mirrored at its diagonal. */
TARGET static void NAME(mirror)(uint64_t square[64][WIDE])
{
    for (size_t part = 0; part < WIDE; part += LANES) {
        for (size_t first = 0; first < 8; first++)
            EIGHT(FAR, 32, UINT64_C(0x00000000ffffffff), 16, UINT64_C(0x0000ffff0000ffff), 8,
                  UINT64_C(0x00ff00ff00ff00ff));
        for (size_t first = 0; first < 8; first++)
            EIGHT(NEAR, 4, UINT64_C(0x0f0f0f0f0f0f0f0f), 2, UINT64_C(0x3333333333333333), 1,
                  UINT64_C(0x5555555555555555));
    }
}

#undef SWAP
#undef EIGHT
#undef FAR
#undef NEAR
#undef TARGET
#undef NAME
#undef LANES
