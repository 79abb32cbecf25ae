// What a product needs before its kernel runs: the kernel, the layout of the quantized input, and the division of rows
// and blocks among the threads.
//
// zp_linear (linear.cpp) computes the product of one weight, the decoder (decoder/products.cpp) those of up to three
// weights that share an input.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layout.h"

namespace zp {

// A kernel, and the bytes of scratch memory that each thread must pass to `run`.
struct Multiply {
  void (*run)(const Product& product, int64_t begin, int64_t end, void* scratch);
  int64_t scratch_bytes;
};
// Return the kernel that multiplies `rows` rows by a weight. active_kernels() must not be null.
Multiply multiply_for(const Weight& weight, int64_t rows);

// True if `rows` rows quantized for weight a can be multiplied by weight b. Both must agree in columns, activation
// format (group size, number of limbs), k_unit (the unit to which columns are padded), segment length, whether the
// weight's float scale varies along the row, whether the product reads the sums of the input's codes, and whether
// 16-bit codes are stored as limbs.
bool same_input(const Weight& a, const Weight& b, int64_t rows);

// Return the bytes of `rows` quantized rows; 0 for weights with float input.
size_t input_bytes(const Weight& weight, int64_t rows);
// Return pointers into `memory`, which has input_bytes. active_kernels()->quantize fills it, rows in any order.
Activations lay_out_input(const Weight& weight, int64_t rows, void* memory);

// Return the part of `input` that starts with `row`, a multiple of 16.
Activations rows_from(const Weight& weight, const Activations& input, int64_t row);

// Return how many rows to quantize and multiply at a time, so that their codes stay in the second-level cache.
int64_t rows_at_once(const Weight& weight);

// Return how many rows (a multiple of 32) each thread takes when threads split the rows. Returns 0 if a thread would
// have fewer than 129 rows: then threads split the output channels. When threads split the rows, each thread reads all
// weights, from memory or from a cache that all cores share. With few rows a thread would wait for the weights.
int64_t rows_of_each(int64_t rows, int threads);

// Return how many blocks of 16 output channels a thread takes at a time: one step. The number of steps is a multiple of
// the number of threads. A weight with too few blocks for that is one step.
int64_t blocks_in_step(const Weight& weight, int threads);

// Return memory of the calling thread, kept between calls; null when the system has none.
uint8_t* thread_scratch(size_t bytes);  // for one kernel: Multiply::scratch_bytes and the like
// Return such memory, separate from that of thread_scratch.
uint8_t* call_scratch(size_t bytes);  // for the caller of the kernels: quantized inputs and the like

}  // namespace zp
