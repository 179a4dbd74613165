/* AES-128's key schedule and the levels' common parts, for the files that encrypt blocks (x86-64 alone).
   Source: FIPS 197; Intel's white paper on AES-NI for the key schedule. */
#ifndef TACIT_AES_H
#define TACIT_AES_H
#include <immintrin.h>
#include <stdint.h>

#define TACIT_AES_NEXT(i, constant)                                                                                    \
    do {                                                                                                               \
        __m128i mixed = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(last, constant), 0xff);                            \
        last = _mm_xor_si128(last, _mm_slli_si128(last, 4));                                                           \
        last = _mm_xor_si128(last, _mm_slli_si128(last, 8));                                                           \
        rounds[i] = last = _mm_xor_si128(last, mixed);                                                                 \
    } while (0)

__attribute__((target("aes,sse4.1"))) static inline void tacit_aes_schedule(const uint8_t *key, __m128i *rounds)
{
    __m128i last = rounds[0] = _mm_loadu_si128((const __m128i *)key);
    TACIT_AES_NEXT(1, 0x01);
    TACIT_AES_NEXT(2, 0x02);
    TACIT_AES_NEXT(3, 0x04);
    TACIT_AES_NEXT(4, 0x08);
    TACIT_AES_NEXT(5, 0x10);
    TACIT_AES_NEXT(6, 0x20);
    TACIT_AES_NEXT(7, 0x40);
    TACIT_AES_NEXT(8, 0x80);
    TACIT_AES_NEXT(9, 0x1b);
    TACIT_AES_NEXT(10, 0x36);
}

#endif
