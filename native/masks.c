/* total += sign * AES-128-CTR(seed), over many seeds: the key stream never leaves the registers.

   A tile of the total stays in the first-level cache while the loop runs over a chunk of keys, whose schedules are
   expanded once. Source: NIST SP 800-38A (CTR), FIPS 197 (AES), Intel's white paper on AES-NI for the key schedule. */
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

#define TILE 16384 /* bytes: half of a small first-level cache */
#define CHUNK 256  /* keys: 45 kB of schedules, read one after the other */

#define TARGET "aes,sse4.1"
#define NAME(x) x##_128
#define VECTOR __m128i
#define LOAD _mm_load_si128
#define STORE _mm_store_si128
#define XOR _mm_xor_si128
#define SHUFFLE _mm_shuffle_epi8
#define ADD32 _mm_add_epi32
#define SUB32 _mm_sub_epi32
#define ADD64 _mm_add_epi64
#define SUB64 _mm_sub_epi64
#define ENCRYPT _mm_aesenc_si128
#define ENCRYPT_LAST _mm_aesenclast_si128
#define EACH(block) (block)
#define COUNTERS(first) _mm_set_epi64x(first, 0)
#include "masks_tile.h"

#define TARGET "vaes,avx2"
#define NAME(x) x##_256
#define VECTOR __m256i
#define LOAD _mm256_load_si256
#define STORE _mm256_store_si256
#define XOR _mm256_xor_si256
#define SHUFFLE _mm256_shuffle_epi8
#define ADD32 _mm256_add_epi32
#define SUB32 _mm256_sub_epi32
#define ADD64 _mm256_add_epi64
#define SUB64 _mm256_sub_epi64
#define ENCRYPT _mm256_aesenc_epi128
#define ENCRYPT_LAST _mm256_aesenclast_epi128
#define EACH(block) _mm256_broadcastsi128_si256(block)
#define COUNTERS(first) _mm256_set_epi64x((first) + 1, 0, first, 0)
#include "masks_tile.h"

#define TARGET "vaes,avx512f,avx512bw"
#define NAME(x) x##_512
#define VECTOR __m512i
#define LOAD _mm512_load_si512
#define STORE _mm512_store_si512
#define XOR _mm512_xor_si512
#define SHUFFLE _mm512_shuffle_epi8
#define ADD32 _mm512_add_epi32
#define SUB32 _mm512_sub_epi32
#define ADD64 _mm512_add_epi64
#define SUB64 _mm512_sub_epi64
#define ENCRYPT _mm512_aesenc_epi128
#define ENCRYPT_LAST _mm512_aesenclast_epi128
#define EACH(block) _mm512_broadcast_i32x4(block)
#define COUNTERS(first) _mm512_set_epi64((first) + 3, 0, (first) + 2, 0, (first) + 1, 0, first, 0)
#include "masks_tile.h"

#define NEXT(i, constant)                                                                                              \
    do {                                                                                                               \
        __m128i mixed = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(key, constant), 0xff);                             \
        key = _mm_xor_si128(key, _mm_slli_si128(key, 4));                                                              \
        key = _mm_xor_si128(key, _mm_slli_si128(key, 8));                                                              \
        rounds[i] = key = _mm_xor_si128(key, mixed);                                                                   \
    } while (0)

__attribute__((target("aes,sse4.1"))) static void expand(const uint8_t *seed, __m128i *rounds)
{
    __m128i key = rounds[0] = _mm_loadu_si128((const __m128i *)seed);
    NEXT(1, 0x01);
    NEXT(2, 0x02);
    NEXT(3, 0x04);
    NEXT(4, 0x08);
    NEXT(5, 0x10);
    NEXT(6, 0x20);
    NEXT(7, 0x40);
    NEXT(8, 0x80);
    NEXT(9, 0x1b);
    NEXT(10, 0x36);
}

int tacit_masks_level(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("aes") || !__builtin_cpu_supports("sse4.1"))
        return 0;
    if (!__builtin_cpu_supports("vaes") || !__builtin_cpu_supports("avx2"))
        return 1;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") ? 3 : 2;
}

/* Returns 0, or -1 and leaves the total as it is where the processor does not have that level. */
int tacit_masks_expand_add(int level, void *total, size_t bytes, int wide, uint64_t first_block, const uint8_t *seeds,
                           const int8_t *signs, size_t keys)
{
    _Alignas(64) uint8_t tile[TILE];
    __m128i schedules[CHUNK][11];
    const size_t group = 8 * 16 << (level > 0 ? level - 1 : 0); /* bytes in flight */

    if (level < 1 || level > tacit_masks_level())
        return -1;
    for (size_t k = 0; k < keys; k += CHUNK) {
        size_t held = keys - k < CHUNK ? keys - k : CHUNK;
        for (size_t i = 0; i < held; i++)
            expand(seeds + 16 * (k + i), schedules[i]);
        for (size_t at = 0; at < bytes; at += TILE) {
            size_t used = bytes - at < TILE ? bytes - at : TILE;
            size_t padded = (used + group - 1) / group * group;
            uint64_t block = first_block + at / 16;
            memcpy(tile, (uint8_t *)total + at, used);
            memset(tile + used, 0, padded - used);
            if (level == 3)
                all_keys_512(tile, padded, block, schedules, signs + k, held, wide);
            else if (level == 2)
                all_keys_256(tile, padded, block, schedules, signs + k, held, wide);
            else
                all_keys_128(tile, padded, block, schedules, signs + k, held, wide);
            memcpy((uint8_t *)total + at, tile, used);
        }
    }
    return 0;
}

#else

int tacit_masks_level(void)
{
    return 0;
}

int tacit_masks_expand_add(int level, void *total, size_t bytes, int wide, uint64_t first_block, const uint8_t *seeds,
                           const int8_t *signs, size_t keys)
{
    (void)level, (void)total, (void)bytes, (void)wide, (void)first_block, (void)seeds, (void)signs, (void)keys;
    return -1;
}

#endif
