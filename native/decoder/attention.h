// Attention of a pass over the key-value cache, on several threads.
#pragma once

#include <cstdint>

#include "decoder/cache.h"

namespace zp {

// Tokens of one sequence that follow each other in a pass.
struct Run {
  int64_t begin, end;  // tokens of the pass
  int32_t sequence;
  int32_t position;  // of token `begin`
};

// Arguments of attend: one layer.
struct AttentionStep {
  const zp_cache* cache;
  int64_t layer, heads;
  int32_t window;  // sliding window in positions; 0: all
  float softcap;
  const Run* runs;
  int64_t run_count;
  const float* query;  // [token][heads * head_dim], times the attention scale
  int64_t query_stride;
  float* out;  // [token][heads * head_dim]
  int64_t out_stride;
};

// Compute attention. Returns false if there is no memory.
bool attend(const AttentionStep& step, int threads);

}  // namespace zp
