/* Extension of oblivious transfer: key streams, the message u and the transpose, a cache-sized range of rows at a time.

   A column's stream is AES-128-CTR under its key from the counter block first_block on. No branch and no address depends
   on a key, a choice or delta. Source: Ishai, Kilian, Nissim, Petrank, CRYPTO 2003, section 3. */
#include "kernels.h"

#include <string.h>

#define COLUMNS 128
#define RANGE 256           /* words of a column at a time: the scratch stays in the second-level cache */
#define STRIDE (RANGE + 8) /* a power of two would put the columns into the same few sets of the cache */

/* total = the stream; words is even unless the stream ends there. */
static void stream(int aes, const uint8_t *key, uint64_t block, size_t words, uint64_t *total)
{
    static const int8_t plus = 1;
    memset(total, 0, 8 * words);
    tacit_masks_expand_add(aes, total, 8 * words, 1, block, key, &plus, 1);
}

static int lacking(int aes, int level)
{
    return aes < 1 || aes > tacit_masks_level() || level < 0 || level > tacit_bits_level();
}

/* The words of scratch that the two functions need. */
int tacit_ot_scratch(void)
{
    return COLUMNS * STRIDE;
}

/* keys [128][2][16], choices [words]; u [128][words], rows [64 * words][2]; scratch as tacit_ot_scratch says.
   Returns 0, or -1 and writes nothing where the processor does not have these levels. */
int tacit_ot_receive(int aes, int level, const uint8_t *keys, uint64_t first_block, const uint64_t *choices,
                     size_t words, uint64_t *u, uint64_t *rows, uint64_t *scratch)
{
    if (lacking(aes, level))
        return -1;
    for (size_t word = 0; word < words; word += RANGE) {
        size_t used = words - word < RANGE ? words - word : RANGE;
        uint64_t block = first_block + word / 2;
        for (size_t i = 0; i < COLUMNS; i++) {
            uint64_t *restrict sent = u + i * words + word;
            uint64_t *restrict kept = scratch + i * STRIDE;
            stream(aes, keys + 32 * i, block, used, kept);
            stream(aes, keys + 32 * i + 16, block, used, sent);
            for (size_t w = 0; w < used; w++)
                sent[w] ^= kept[w] ^ choices[word + w];
        }
        tacit_bits_rows(level, scratch, STRIDE, used, rows + 128 * word);
    }
    return 0;
}

/* keys [128][16], delta [2], u [128][words]; rows [64 * words][2]; scratch as tacit_ot_scratch says. */
int tacit_ot_send(int aes, int level, const uint8_t *keys, uint64_t first_block, const uint64_t *delta,
                  const uint64_t *u, size_t words, uint64_t *rows, uint64_t *scratch)
{
    if (lacking(aes, level))
        return -1;
    for (size_t word = 0; word < words; word += RANGE) {
        size_t used = words - word < RANGE ? words - word : RANGE;
        uint64_t block = first_block + word / 2;
        for (size_t i = 0; i < COLUMNS; i++) {
            const uint64_t *restrict came = u + i * words + word;
            const uint64_t bit = 0 - (delta[i / 64] >> (i % 64) & 1);
            uint64_t *restrict kept = scratch + i * STRIDE;
            stream(aes, keys + 16 * i, block, used, kept);
            for (size_t w = 0; w < used; w++)
                kept[w] ^= came[w] & bit;
        }
        tacit_bits_rows(level, scratch, STRIDE, used, rows + 128 * word);
    }
    return 0;
}
