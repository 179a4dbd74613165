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

/* gaussian.c. bits: of a rectangle's number, blocks has 2^bits; low: of a place in a block; sure: rectangles below are
   accepted; open: the places of the others, as long as words. Returns how many are open. */
size_t tacit_gaussian_propose(const void *words, int wide, size_t count, const int16_t *blocks, unsigned bits,
                              unsigned low, uint64_t sure, int64_t *out, uint32_t *open);
/* open, count: places whose points are drawn, by a fresh word each; levels: (2^bits,); more: log2 of how much wider blocks are
   from rectangle tails on. out: all integers; rejected: places; close: those of open within the margin, undecided, closes of
   them. Returns how many are rejected. */
size_t tacit_gaussian_decide(const void *words, int wide, const uint32_t *open, size_t count, const uint64_t *fresh,
                             const int16_t *blocks, const double *levels, unsigned bits, unsigned low, unsigned more,
                             uint64_t tails, double deviation, double height, double margin, int64_t *out,
                             uint32_t *rejected, uint32_t *close, size_t *closes);
/* widths, limits: of 256 layers; open: the places of what is not accepted as it stands. Returns how many these are. */
size_t tacit_ziggurat(const uint32_t *words, size_t count, const float *widths, const uint32_t *limits, float *out,
                      uint32_t *open);
/* ends, heights: (257,). rejected: those of the open places that a fresh word each does not accept. Returns how many. */
size_t tacit_ziggurat_decide(const uint32_t *words, const uint32_t *open, size_t count, const uint64_t *fresh,
                             const double *ends, const double *heights, uint32_t *rejected);

/* packing.c. Bits of value i: [i * width, (i + 1) * width) of a little-endian stream. */
void tacit_pack(const void *values, int wide, size_t count, unsigned width, uint8_t *packed);
void tacit_unpack_add(const uint8_t *packed, size_t count, unsigned width, int wide, void *total);

/* shamir.c */
void tacit_shamir_evaluate(const uint64_t *coefficients, size_t threshold, size_t columns,
                           const uint64_t *xs, size_t points, uint64_t *out);
void tacit_shamir_combine(const uint64_t *shares, const uint64_t *weights, size_t groups, size_t threshold,
                          size_t columns, uint64_t *out);
void tacit_shamir_weights(const uint64_t *xs, size_t groups, size_t threshold, uint64_t *out);

/* bits.c. Levels: 0 what the compiler has everywhere, 1 AVX2, 2 AVX-512. */
int tacit_bits_level(void);
int tacit_bits_slice(int level, const void *values, int wide, size_t count, size_t bits, uint64_t *planes);
int tacit_bits_join(int level, const uint64_t *planes, size_t bits, size_t count, int wide, void *values);
int tacit_bits_rows(int level, const uint64_t *columns, size_t stride, size_t words, uint64_t *rows);

/* ot.c. aes: a level of masks.c, from 1 on; level: one of bits.c. */
int tacit_ot_scratch(void);
int tacit_ot_receive(int aes, int level, const uint8_t *keys, uint64_t first_block, const uint64_t *choices,
                     size_t words, uint64_t *u, uint64_t *rows, uint64_t *scratch);
int tacit_ot_send(int aes, int level, const uint8_t *keys, uint64_t first_block, const uint64_t *delta,
                  const uint64_t *u, size_t words, uint64_t *rows, uint64_t *scratch);

/* garbling.c. Levels as in masks.c. */
int tacit_hash_blocks(int level, const uint8_t *key, const uint64_t *blocks, size_t count, uint64_t first,
                      uint64_t domain, uint64_t *out);
int tacit_hash_expand(int level, const uint8_t *key, const uint64_t *blocks, size_t count, size_t parts, uint64_t first,
                      uint64_t *out);
int tacit_garble(int level, const uint8_t *key, const int32_t *program, size_t steps, const int32_t *output_at,
                 size_t outputs, uint64_t *slots, int32_t slot_count, uint64_t *planes, int32_t plane_count,
                 const uint64_t *own, const uint64_t *labels, size_t row, const uint64_t *delta, size_t words,
                 uint64_t first, uint64_t *tables, uint64_t *out);
int tacit_evaluate(int level, const uint8_t *key, const int32_t *program, size_t steps, const int32_t *output_at,
                   size_t outputs, uint64_t *slots, int32_t slot_count, const uint64_t *labels, size_t row,
                   const uint64_t *tables, size_t words, uint64_t first, uint64_t *out);

/* gates.c */
void tacit_gates_and(uint64_t *wires, size_t words, const uint64_t *own, const uint64_t *shared, const int32_t *owned,
                     const uint64_t *opened, const uint64_t *products, const int32_t *ands, size_t count, int party);
void tacit_gates_linear(uint64_t *wires, size_t words, const int32_t *gates, size_t count, int party);

/* ring.c. out += left right, of wide (64-bit) or 32-bit elements; strides in elements; scratch aligned to 64 bytes. */
int tacit_ring_level(void);
size_t tacit_ring_scratch(void);
int tacit_ring_multiply_add(const void *left, const size_t *left_strides, const void *right,
                            const size_t *right_strides, void *out, size_t m, size_t k, size_t n, int wide, void *scratch);
#endif
