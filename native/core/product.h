// One product in its parts, for those who arrange several of them: lay out the input, quantize its rows,
// then multiply blocks of output channels. zp_linear does the three in turn.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layout.h"

namespace zp {

// The kernel that multiplies `rows` rows by a weight, and the memory each thread lends it.
struct Multiply {
  void (*run)(const Product& product, int64_t begin, int64_t end, void* scratch);
  int64_t scratch_bytes;
};
// Needs active_kernels() to be there.
Multiply multiply_for(const Weight& weight, int64_t rows);

// Whether an input quantized for one weight serves the other as well.
bool same_input(const Weight& a, const Weight& b);

// Bytes of the quantized input of `rows` rows; 0 for weights that read float.
size_t input_bytes(const Weight& weight, int64_t rows);
// Where its parts lie in `memory`. active_kernels()->quantize fills it, rows in any order.
Activations lay_out_input(const Weight& weight, int64_t rows, void* memory);

// The input from `row`, a multiple of 16, on.
Activations rows_from(const Weight& weight, const Activations& input, int64_t row);

// Rows of one pass, so that a quantized input stays in the second-level cache.
int64_t rows_in_pass(const Weight& weight);

// Rows that each thread may take for itself, all columns of them; 0: too few. With fewer rows a thread would
// wait for the weights, which each then reads whole: these come from a cache that all cores share, or from
// memory.
int64_t rows_of_each(int64_t rows, int threads);

// Output blocks a thread takes at a time: several steps a thread, and as many for each.
int64_t blocks_in_step(const Weight& weight, int threads);

// Memory a thread keeps between calls, as large as its largest call needed; null when there is none. One
// piece for a kernel's own use, the other for whoever arranges the products.
uint8_t* thread_scratch(size_t bytes);
uint8_t* call_scratch(size_t bytes);

}  // namespace zp
