// Attention of a pass over the key-value cache, on several threads.
#pragma once

#include <cstdint>

#include "decoder/cache.h"

namespace zp {

// Consecutive rows of a pass that belong to the same sequence.
struct Run {
  int64_t begin, end;  // rows of the pass
  int32_t sequence;
  int32_t position;  // of row `begin`
};

// Arguments of attend: one layer.
struct AttentionStep {
  const zp_cache* cache;
  int64_t layer, heads;
  int32_t window;  // sliding window in positions; 0: all
  float softcap;
  const Run* runs;
  int64_t run_count;
  const float* query;  // [row][heads * head_dim], times the attention scale
  int64_t query_stride;
  float* out;  // [row][heads * head_dim]
  int64_t out_stride;
};

// Compute attention. Returns false if there is no memory.
bool attend(const AttentionStep& step, int threads);

}  // namespace zp
