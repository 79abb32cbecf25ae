// Sums for the KL divergence and the losses of two rows of logits: part of decoder_kernels.cpp. core/divergence.cpp
// computes the divergence from them.
#pragma once

#include "core/layout.h"
#include "vector_math.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr int64_t kDivergenceBlock = 512;  // logits whose terms are summed in float32; blocks are added in float64

// Return the largest of `count` floats.
float largest(const float* x, int64_t count) {
  V::Float most = load(x, count, x[0]);
  for (int64_t i = kLanes; i < count; i += kLanes) most = V::max(most, load(x + i, count - i, x[0]));
  float lanes[kLanes];
  V::store(lanes, most);
  for (int64_t i = 1; i < kLanes; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

// Return the lowest index at which x is `value`.
int64_t first_of(const float* x, int64_t count, float value) {
  int64_t i = 0;
  while (i < count - 1 && x[i] != value) ++i;
  return i;
}

// Compute p_sum = sum of e^a, q_sum = sum of e^b and excess = sum of e^a (a - b), with a = p - max(p) and
// b = q - max(q), both at least -10000. Then KL(p || q) = excess / p_sum - ln p_sum + ln q_sum.
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
      // A token that both models mask has weight 0. The bound keeps a - b finite, so that 0 * (a - b) is 0 and not NaN.
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
