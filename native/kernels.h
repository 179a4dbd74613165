#ifndef TACIT_KERNELS_H
#define TACIT_KERNELS_H
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels read and write little-endian words; elsewhere tacit uses numpy"
#endif
#if FLT_EVAL_METHOD != 0
#error "the kernels round each operation to double as numpy does; elsewhere tacit uses numpy"
#endif
/* Apart from the lines that begin with a number sign, this file is what build.py declares to cffi. */

/* masks.c. Levels: 0 no AES instructions, 1 AES-NI, 2 VAES on 256 bits, 3 VAES on 512 bits. */
int tacit_masks_level(void);
int tacit_masks_expand_add(int level, void *total, size_t bytes, int wide, uint64_t first_block,
                           const uint8_t *seeds, const int8_t *signs, size_t keys);

/* quantisation.c. counts: values that are not finite, values beyond the clip. */
void tacit_quantise(const float *values, const uint32_t *coins, size_t count, double clip, double scale,
                    double top, int wide, void *out, uint64_t *counts);

/* packing.c. Bits of value i: [i * width, (i + 1) * width) of a little-endian stream. */
void tacit_pack(const void *values, int wide, size_t count, unsigned width, uint8_t *packed);
void tacit_unpack_add(const uint8_t *packed, size_t count, unsigned width, int wide, void *total);

/* shamir.c */
void tacit_shamir_evaluate(const uint64_t *coefficients, size_t threshold, size_t columns,
                           const uint64_t *xs, size_t points, uint64_t *out);
void tacit_shamir_combine(const uint64_t *shares, const uint64_t *weights, size_t groups, size_t threshold,
                          size_t columns, uint64_t *out);
void tacit_shamir_weights(const uint64_t *xs, size_t groups, size_t threshold, uint64_t *out);
#endif
