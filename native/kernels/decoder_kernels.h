// What a decoder does between its products, in a table that each instruction set level fills.
//
// This header is compiled with every level's flags, so it holds plain structs only (see core/layout.h).
#pragma once

#include <cstdint>

#include "core/layout.h"

namespace zp {

constexpr int64_t kPage = 64;  // positions of a cache page
constexpr int64_t kMaxHeadDim = 4096;
// Attention is summed over so many pages by itself, and these sums are merged in order. Rows therefore come
// out the same to the last bit, whoever computes them: alone or in a block of rows, on one thread or several.
constexpr int64_t kPagesInPart = 4;

// How keys and values are kept. kRounded: in single precision, but rounded to half precision wherever all
// channels of a key, or of a value, are within its range.
enum class Element : int32_t { kHalf, kByte, kSingle, kRounded };

// A page of one layer and key-value head: keys [head_dim][64], so that a vector holds 16 positions, and
// values [64][padded]. Codes of 8 bits have a scale for each position.
struct PageLayout {
  int64_t head_dim;
  int64_t padded;  // to a multiple of 16
  Element element;
  int64_t values, key_scale, value_scale, end;  // offsets in bytes
};

struct Attention {
  PageLayout layout;
  const uint8_t* base;  // page p of the sequence is at base + table[p] * stride
  const int32_t* table;
  int64_t stride;
  float softcap;
  int64_t rows;
  const float* const* query;  // of each row [head_dim], times the scale of the scores
  const int32_t* first;       // the positions that each row sees
  const int32_t* last;
};

// Sums of rows over some positions: the largest score, and with weights exp(score - most) the sum of the
// weights and of the weighted values [rows][padded].
struct AttentionState {
  float* most;
  float* sum;
  float* out;
};

// Of two rows of logits, see divergence.h. The first place of the largest decides what is predicted.
struct DivergenceSums {
  float p_most, q_most;
  int64_t p_first, q_first;
  double p_sum, q_sum, excess;
};

struct DecoderKernels {
  // out = norm(x) of one row; the bias may be null. `kind` is ZP_NORM_...
  void (*norm)(int kind, const float* x, const float* weight, const float* bias, int64_t count, float eps,
               float* out);
  // out = activation(gate) * up, or activation(gate) when `up` is null. `kind` is ZP_SILU ...
  void (*activate)(int kind, const float* gate, const float* up, int64_t count, float* out);
  void (*add)(const float* y, float scale, int64_t count, float* x);  // x += y * scale
  void (*scale)(float factor, int64_t count, float* x);
  void (*softcap)(float cap, int64_t count, float* x);
  // Turns the channels of one head; cosine and sine [half].
  void (*rotate)(bool pairs, const float* cosine, const float* sine, int64_t half, float* head);
  // Writes one position of a page. False: a channel is beyond half precision, in which the page is kept, and
  // was written as infinity.
  bool (*store)(const PageLayout& layout, const float* key, const float* value, int64_t position,
                uint8_t* page);
  // Sums of all rows over pages [begin, end), into a state that it starts. `scratch`: attention_scratch
  // floats.
  void (*attend)(const Attention& attention, int64_t begin, int64_t end, const AttentionState& part,
                 float* scratch);
  void (*merge)(int64_t rows, int64_t padded, const AttentionState& part, const AttentionState& total);
  // Output blocks [begin, end) of a product by float weights.
  void (*floats)(const Product& product, int64_t begin, int64_t end, void* scratch);
  void (*divergence)(const float* p, const float* q, int64_t count, DivergenceSums* out);
};

// Floats of scratch: scores, corrections, and a page of keys and of values.
constexpr int64_t attention_scratch(int64_t rows, int64_t padded) {
  return rows * kPage + (rows + 15) / 16 * 16 + 2 * kPage * padded;
}

namespace scalar {
const DecoderKernels* decoder_kernels();
}
namespace avx2 {
const DecoderKernels* decoder_kernels();
}
namespace avx512 {
const DecoderKernels* decoder_kernels();
}

}  // namespace zp
