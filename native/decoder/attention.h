// Attention of a step's rows over the cache, shared among threads.
#pragma once

#include <cstdint>

#include "decoder/cache.h"

namespace zp {

// Rows of a step that follow one another in the same sequence.
struct Run {
  int64_t begin, end;  // rows of the step
  int32_t sequence;
  int32_t position;  // of its first row
};

struct AttentionStep {
  const zp_cache* cache;
  int64_t layer, heads;
  int32_t window;  // 0: all
  float softcap;
  const Run* runs;
  int64_t run_count;
  const float* query;  // [row][heads * head_dim], times the scale
  int64_t query_stride;
  float* out;  // likewise
  int64_t out_stride;
};

// False: no memory.
bool attend(const AttentionStep& step, int threads);

}  // namespace zp
