// The decoder's kernels besides integer products: their arguments, and the table that each instruction set level fills.
//
// This header is compiled with every level's flags, so it holds plain structs only (see core/layout.h).
#pragma once

#include <cstdint>

#include "core/layout.h"

namespace zp {

constexpr int64_t kPage = 64;  // positions of a cache page
constexpr int64_t kMaxHeadDim = 4096;
// Attention is summed over parts of so many pages, and the parts' sums are merged in order. A row's result is therefore
// the same bits whether it is computed alone or with other rows, on one thread or several.
constexpr int64_t kPagesInPart = 4;

// How keys and values are stored: float16, int8, float32, or (kRounded, a wide float16 cache) float32, rounded to
// float16 where float16 can hold all channels of the key or value.
enum class Element : int32_t { kHalf, kByte, kSingle, kRounded };

// A page of one layer and key-value head: keys [head_dim][64], so that a vector holds 16 positions, and values
// [64][padded]. int8 keys and values have a float scale per position.
struct PageLayout {
  int64_t head_dim;
  int64_t padded;  // head_dim rounded up to a multiple of 16
  Element element;
  int64_t values, key_scale, value_scale, end;  // offsets in bytes
};

// Arguments of attention: rows that share a sequence, a layer and a key-value head.
struct Attention {
  PageLayout layout;
  const uint8_t* base;  // page p of the sequence is at base + table[p] * stride
  const int32_t* table;
  int64_t stride;
  float softcap;
  int64_t rows;
  const float* const* query;  // each row's query [head_dim], times the attention scale
  const int32_t* first;       // the first position that each row attends to
  const int32_t* last;        // and the last
};

// Sums of rows over some positions, with weights exp(score - most).
struct AttentionState {
  float* most;  // largest score [rows]
  float* sum;   // sum of the weights [rows]
  float* out;   // weighted sum of the values [rows][padded]
};

// Sums over two rows of logits p and q, see divergence.h.
struct DivergenceSums {
  float p_most, q_most;         // largest logit
  int64_t p_first, q_first;     // its lowest id: the predicted token
  double p_sum, q_sum, excess;
};

// The kernels of one level.
struct DecoderKernels {
  // out = norm(x) of one row; `bias` may be null. `kind` is ZP_NORM_...
  void (*norm)(int kind, const float* x, const float* weight, const float* bias, int64_t count, float eps,
               float* out);
  // out = activation(gate) * up, or activation(gate) when `up` is null. `kind` is ZP_SILU ...
  void (*activate)(int kind, const float* gate, const float* up, int64_t count, float* out);
  void (*add)(const float* y, float scale, int64_t count, float* x);  // x += y * scale
  void (*scale)(float factor, int64_t count, float* x);               // x *= factor
  void (*softcap)(float cap, int64_t count, float* x);                // x = cap * tanh(x / cap)
  // Rotate 2 * half channels of one head (RoPE); cosine and sine are [half]. `pairs`: as in ZP_ROPE_PAIRS.
  void (*rotate)(bool pairs, const float* cosine, const float* sine, int64_t half, float* head);
  // Write one position's key and value to a page. Returns false if the page is float16 and a channel is beyond its
  // range, which is written as infinity.
  bool (*store)(const PageLayout& layout, const float* key, const float* value, int64_t position,
                uint8_t* page);
  // Compute the sums of all rows over pages [begin, end) into `part`, which need not be initialized. `scratch` has
  // attention_scratch floats.
  void (*attend)(const Attention& attention, int64_t begin, int64_t end, const AttentionState& part,
                 float* scratch);
  // Add the sums of `part` to those of `total`.
  void (*merge)(int64_t rows, int64_t padded, const AttentionState& part, const AttentionState& total);
  // Compute output blocks [begin, end) of a product with float weights. `scratch` is not read.
  void (*floats)(const Product& product, int64_t begin, int64_t end, void* scratch);
  // Compare two rows of `count` logits.
  void (*divergence)(const float* p, const float* q, int64_t count, DivergenceSums* out);
};

// Return the floats of scratch of `attend`: scores, corrections, and a page of keys and values as float.
constexpr int64_t attention_scratch(int64_t rows, int64_t padded) {
  return rows * kPage + (rows + 15) / 16 * 16 + 2 * kPage * padded;
}

}  // namespace zp
