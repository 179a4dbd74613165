/* The tweakable hash pi(pi(x) ^ i) ^ pi(x), pi = AES-128 under a public key, and half-gates garbling with it.

   A garbled circuit is a program of steps on slots, made by Python; it runs over LANE instances at a time, so that the
   slots stay in the cache. Its steps, and thus every branch and address, depend on the circuit alone: labels, delta and the
   garbler's bits are only ever combined by vector operations. Source: Guo, Katz, Wang, Yu, IEEE S&P 2020 (TMMO); Zahur,
   Rosulek, Evans, EUROCRYPT 2015, figure 2. */
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__)
#include "aes.h"

#define LANE 64   /* instances: the bits of a plane's word */
#define STEP 8    /* numbers in a step: kind, slot written, two read, two planes read, which AND it is, its level (not used) */
#define TILE 1024 /* blocks: half of a small first-level cache */

enum { STEP_XOR, STEP_AND, STEP_PLANE };

struct run {
    __m128i rounds[11];
    const int32_t *program;
    size_t steps;
    const int32_t *output_at; /* a slot and a plane for each output */
    size_t outputs;
    uint64_t *slots; /* of LANE blocks; the numbers after theirs are input rows */
    int32_t slot_count;
    uint64_t *planes; /* of one word; the numbers after theirs are rows of the garbler's bits */
    int32_t plane_count;
    const uint64_t *labels;
    size_t row; /* words from one input row to the next */
    const uint64_t *own;
    size_t words;
    uint64_t first;
    uint64_t *tables;
    uint64_t *out;
};

static inline uint64_t *slot(const struct run *run, int32_t at)
{
    return run->slots + 2 * LANE * (size_t)at;
}

static inline const uint64_t *lane(const struct run *run, int32_t at, size_t word)
{
    if (at < run->slot_count)
        return slot(run, at);
    return run->labels + (size_t)(at - run->slot_count) * run->row + 2 * LANE * word;
}

static inline const uint64_t *plane(const struct run *run, int32_t at, size_t word)
{
    if (at < run->plane_count)
        return run->planes + at;
    return run->own + (size_t)(at - run->plane_count) * run->words + word;
}

#define TARGET "aes,sse4.1"
#define NAME(x) x##_128
#define VECTOR __m128i
#define LOAD(place) _mm_loadu_si128((const __m128i *)(place))
#define STORE(place, value) _mm_storeu_si128((__m128i *)(place), value)
#define XOR _mm_xor_si128
#define AND _mm_and_si128
#define ADD64 _mm_add_epi64
#define SUB64 _mm_sub_epi64
#define LOW_WORDS(blocks) _mm_shuffle_epi32(blocks, 0x44)
#define ENCRYPT _mm_aesenc_si128
#define ENCRYPT_LAST _mm_aesenclast_si128
#define EACH(block) (block)
#define LANES(step) _mm_setzero_si128()
#define CHOOSE(bits, block) _mm_and_si128(_mm_set1_epi64x(-(long long)((bits) & 1)), block)
#define ZIP_LOW(a, b) (a)
#define ZIP_HIGH(a, b) (b)
#define UNZIP_EVEN(a, b) (a)
#define UNZIP_ODD(a, b) (b)
#include "garbling_gates.h"

#define TARGET "vaes,avx2"
#define NAME(x) x##_256
#define VECTOR __m256i
#define LOAD(place) _mm256_loadu_si256((const __m256i *)(place))
#define STORE(place, value) _mm256_storeu_si256((__m256i *)(place), value)
#define XOR _mm256_xor_si256
#define AND _mm256_and_si256
#define ADD64 _mm256_add_epi64
#define SUB64 _mm256_sub_epi64
#define LOW_WORDS(blocks) _mm256_shuffle_epi32(blocks, 0x44)
#define ENCRYPT _mm256_aesenc_epi128
#define ENCRYPT_LAST _mm256_aesenclast_epi128
#define EACH(block) _mm256_broadcastsi128_si256(block)
#define LANES(step) _mm256_set_epi64x(0, step, 0, 0)
#define BITS_256 _mm256_set_epi64x(2, 2, 1, 1)
#define CHOOSE(bits, block)                                                                                            \
    _mm256_and_si256(                                                                                                  \
        _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x((long long)(bits)), BITS_256), BITS_256), block)
#define ZIP_LOW(a, b) _mm256_permute2x128_si256(a, b, 0x20)
#define ZIP_HIGH(a, b) _mm256_permute2x128_si256(a, b, 0x31)
#define UNZIP_EVEN(a, b) _mm256_permute2x128_si256(a, b, 0x20)
#define UNZIP_ODD(a, b) _mm256_permute2x128_si256(a, b, 0x31)
#include "garbling_gates.h"

#define TARGET "vaes,avx512f,avx512bw"
#define NAME(x) x##_512
#define VECTOR __m512i
#define LOAD(place) _mm512_loadu_si512(place)
#define STORE(place, value) _mm512_storeu_si512(place, value)
#define XOR _mm512_xor_si512
#define AND _mm512_and_si512
#define ADD64 _mm512_add_epi64
#define SUB64 _mm512_sub_epi64
#define LOW_WORDS(blocks) _mm512_shuffle_epi32(blocks, 0x44)
#define ENCRYPT _mm512_aesenc_epi128
#define ENCRYPT_LAST _mm512_aesenclast_epi128
#define EACH(block) _mm512_broadcast_i32x4(block)
#define LANES(step) _mm512_set_epi64(0, 3 * (step), 0, 2 * (step), 0, step, 0, 0)
#define CHOOSE(bits, block)                                                                                            \
    _mm512_maskz_mov_epi64(                                                                                            \
        _mm512_test_epi64_mask(_mm512_set1_epi64((long long)(bits)), _mm512_set_epi64(8, 8, 4, 4, 2, 2, 1, 1)), block)
#define ZIP_LOW(a, b) _mm512_permutex2var_epi64(a, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), b)
#define ZIP_HIGH(a, b) _mm512_permutex2var_epi64(a, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), b)
#define UNZIP_EVEN(a, b) _mm512_shuffle_i64x2(a, b, 0x88)
#define UNZIP_ODD(a, b) _mm512_shuffle_i64x2(a, b, 0xdd)
#include "garbling_gates.h"

__attribute__((target("aes,sse4.1"))) static void schedule(const uint8_t *key, __m128i *rounds)
{
    tacit_aes_schedule(key, rounds);
}

static int refused(int level)
{
    return level < 1 || level > tacit_masks_level();
}

static void hash_tile(int level, const __m128i *rounds, uint64_t *tile, int blocks, uint64_t first, uint64_t domain)
{
    (level == 3 ? hash_tile_512 : level == 2 ? hash_tile_256 : hash_tile_128)(rounds, tile, blocks, first, domain);
}

static void permute_tile(int level, const __m128i *rounds, uint64_t *tile, int blocks)
{
    (level == 3 ? permute_tile_512 : level == 2 ? permute_tile_256 : permute_tile_128)(rounds, tile, blocks);
}

/* Tiles are padded to this many blocks, eight vectors of the widest kind. */
static int padded(size_t blocks)
{
    return (int)((blocks + 31) / 32 * 32);
}

/* Block j is hashed with the tweak (first + j, domain). blocks may be out. These functions return 0, or -1 and do nothing
   where the processor does not have that level. */
int tacit_hash_blocks(int level, const uint8_t *key, const uint64_t *blocks, size_t count, uint64_t first,
                      uint64_t domain, uint64_t *out)
{
    _Alignas(64) uint64_t tile[2 * TILE] = {0};
    __m128i rounds[11];
    if (refused(level))
        return -1;
    schedule(key, rounds);
    for (size_t at = 0; at < count; at += TILE) {
        size_t used = count - at < TILE ? count - at : TILE;
        memcpy(tile, blocks + 2 * at, 16 * used);
        hash_tile(level, rounds, tile, padded(used), first + at, domain);
        memcpy(out + 2 * at, tile, 16 * used);
    }
    return 0;
}

/* Part c of block j is its hash with the tweak (first + j, c + 1); pi(block) is computed once. */
int tacit_hash_expand(int level, const uint8_t *key, const uint64_t *blocks, size_t count, size_t parts, uint64_t first,
                      uint64_t *out)
{
    _Alignas(64) uint64_t once[2 * TILE] = {0}, tile[2 * TILE] = {0};
    __m128i rounds[11];
    if (refused(level))
        return -1;
    schedule(key, rounds);
    for (size_t at = 0; at < count; at += TILE) {
        size_t used = count - at < TILE ? count - at : TILE, held = 0, written = at * parts;
        memcpy(once, blocks + 2 * at, 16 * used);
        permute_tile(level, rounds, once, padded(used));
        /* (j, c) runs over the parts of this tile; a tile of them at a time is encrypted and goes out. */
        size_t from_j = 0, from_c = 0;
        for (size_t j = 0; j < used; j++)
            for (size_t c = 0; c < parts; c++) {
                tile[2 * held] = once[2 * j] ^ (first + at + j);
                tile[2 * held + 1] = once[2 * j + 1] ^ (c + 1);
                held++;
                if (held < TILE && !(j == used - 1 && c == parts - 1))
                    continue;
                permute_tile(level, rounds, tile, padded(held));
                for (size_t k = 0; k < held; k++) {
                    out[2 * (written + k)] = tile[2 * k] ^ once[2 * from_j];
                    out[2 * (written + k) + 1] = tile[2 * k + 1] ^ once[2 * from_j + 1];
                    if (++from_c == parts)
                        from_c = 0, from_j++;
                }
                written += held;
                held = 0;
            }
    }
    return 0;
}

/* Shapes as in tacit.crypto.garbled: own (rows, words), labels (rows, 64 words, 2) with `row`
   words from each row to the next, tables (ands, 64 words, 2, 2), out
   (outputs, 64 words, 2). slots: room for slot_count * 128 words, slot 0 zero; planes: for plane_count words, plane 0 zero
   and plane 1 all ones. */
int tacit_garble(int level, const uint8_t *key, const int32_t *program, size_t steps, const int32_t *output_at,
                 size_t outputs, uint64_t *slots, int32_t slot_count, uint64_t *planes, int32_t plane_count,
                 const uint64_t *own, const uint64_t *labels, size_t row, const uint64_t *delta, size_t words,
                 uint64_t first, uint64_t *tables, uint64_t *out)
{
    struct run run = {.program = program, .steps = steps, .output_at = output_at, .outputs = outputs, .slots = slots,
                      .slot_count = slot_count, .planes = planes, .plane_count = plane_count, .labels = labels,
                      .row = row, .own = own, .words = words, .first = first, .tables = tables, .out = out};
    if (refused(level))
        return -1;
    schedule(key, run.rounds);
    (level == 3 ? garble_512 : level == 2 ? garble_256 : garble_128)(&run, delta);
    return 0;
}

int tacit_evaluate(int level, const uint8_t *key, const int32_t *program, size_t steps, const int32_t *output_at,
                   size_t outputs, uint64_t *slots, int32_t slot_count, const uint64_t *labels, size_t row,
                   const uint64_t *tables, size_t words, uint64_t first, uint64_t *out)
{
    struct run run = {.program = program, .steps = steps, .output_at = output_at, .outputs = outputs, .slots = slots,
                      .slot_count = slot_count, .labels = labels, .row = row, .words = words, .first = first,
                      .tables = (uint64_t *)tables, .out = out};
    if (refused(level))
        return -1;
    schedule(key, run.rounds);
    (level == 3 ? evaluate_512 : level == 2 ? evaluate_256 : evaluate_128)(&run);
    return 0;
}

#else

int tacit_hash_blocks(int level, const uint8_t *key, const uint64_t *blocks, size_t count, uint64_t first,
                      uint64_t domain, uint64_t *out)
{
    (void)level, (void)key, (void)blocks, (void)count, (void)first, (void)domain, (void)out;
    return -1;
}

int tacit_hash_expand(int level, const uint8_t *key, const uint64_t *blocks, size_t count, size_t parts, uint64_t first,
                      uint64_t *out)
{
    (void)level, (void)key, (void)blocks, (void)count, (void)parts, (void)first, (void)out;
    return -1;
}

int tacit_garble(int level, const uint8_t *key, const int32_t *program, size_t steps, const int32_t *output_at,
                 size_t outputs, uint64_t *slots, int32_t slot_count, uint64_t *planes, int32_t plane_count,
                 const uint64_t *own, const uint64_t *labels, size_t row, const uint64_t *delta, size_t words,
                 uint64_t first, uint64_t *tables, uint64_t *out)
{
    (void)level, (void)key, (void)program, (void)steps, (void)output_at, (void)outputs, (void)slots, (void)slot_count;
    (void)planes, (void)plane_count, (void)own, (void)labels, (void)row, (void)delta, (void)words, (void)first, (void)tables;
    (void)out;
    return -1;
}

int tacit_evaluate(int level, const uint8_t *key, const int32_t *program, size_t steps, const int32_t *output_at,
                   size_t outputs, uint64_t *slots, int32_t slot_count, const uint64_t *labels, size_t row,
                   const uint64_t *tables, size_t words, uint64_t first, uint64_t *out)
{
    (void)level, (void)key, (void)program, (void)steps, (void)output_at, (void)outputs, (void)slots, (void)slot_count;
    (void)labels, (void)row, (void)tables, (void)words, (void)first, (void)out;
    return -1;
}

#endif
