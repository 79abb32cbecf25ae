// How far two rows of logits are apart: part of decoder_kernels.cpp.
#pragma once

#include "core/layout.h"
#include "vector_math.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr int64_t kDivergenceBlock = 512;  // channels that are summed in single precision

float largest(const float* x, int64_t count) {
  V::Float most = load(x, count, x[0]);
  for (int64_t i = kLanes; i < count; i += kLanes) most = V::max(most, load(x + i, count - i, x[0]));
  float lanes[kLanes];
  V::store(lanes, most);
  for (int64_t i = 1; i < kLanes; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

int64_t first_of(const float* x, int64_t count, float value) {
  int64_t i = 0;
  while (i < count - 1 && x[i] != value) ++i;
  return i;
}

// Sums over a row of p's weights e^(p - most), of q's, and of p's weights times how much further p is below
// its most than q is below its own.
void divergence(const float* p, const float* q, int64_t count, DivergenceSums* out) {
  out->p_most = largest(p, count), out->q_most = largest(q, count);
  out->p_first = first_of(p, count, out->p_most), out->q_first = first_of(q, count, out->q_most);
  out->p_sum = out->q_sum = out->excess = 0;
  const V::Float p_top = V::set_float(out->p_most), q_top = V::set_float(out->q_most);
  for (int64_t start = 0; start < count; start += kDivergenceBlock) {
    const int64_t end = smaller(start + kDivergenceBlock, count);
    V::Float p_sum = V::set_float(0.0f), q_sum = p_sum, excess = p_sum;
    for (int64_t i = start; i < end; i += kLanes) {
      const V::Float a = V::sub(load(p + i, end - i, -1e30f), p_top);
      const V::Float b = V::sub(load(q + i, end - i, -1e30f), q_top);
      // A word that is masked in both has no weight, and no difference of infinities shall make it count.
      const V::Float lowest = V::set_float(-1e4f);
      const V::Float weight = exponential(a);
      p_sum = V::add(p_sum, weight);
      q_sum = V::add(q_sum, exponential(b));
      excess = V::fma(weight, V::sub(V::max(lowest, a), V::max(lowest, b)), excess);
    }
    out->p_sum += V::sum_lanes(p_sum), out->q_sum += V::sum_lanes(q_sum), out->excess += V::sum_lanes(excess);
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
