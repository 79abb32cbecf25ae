// Loads, stores and rounding where a lane is a row of the weight: part of quantizer_kernels.cpp, needs ZP_VEC's vector
// type.
#pragma once

#include "core/layout.h"
#include "kernels/quantizer_kernels.h"

namespace zp::ZP_LEVEL {
namespace {

using V = Vec;

// Return how many of the kLanes rows from `row` on exist.
int64_t rows_from(const Groups& groups, int64_t row) {
  return groups.rows - row < kLanes ? groups.rows - row : kLanes;
}

// Load one value of each of `rows` rows, `stride` apart; the other lanes are `beyond`.
template <class T>
V::Float gather(const T* p, int64_t stride, int64_t rows, T beyond) {
  float lanes[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) lanes[r] = static_cast<float>(r < rows ? p[r * stride] : beyond);
  return V::load(lanes);
}

// Store the first `rows` lanes, `stride` apart.
void scatter(float* p, int64_t stride, int64_t rows, V::Float values) {
  float lanes[kLanes];
  V::store(lanes, values);
  for (int64_t r = 0; r < rows; ++r) p[r * stride] = lanes[r];
}

// The levels of a group: whole numbers from qmin - zero point to qmax - zero point.
struct Levels {
  V::Float low, high;

  Levels(const Groups& groups, V::Float zero)
      : low(V::sub(V::set_float(groups.qmin), zero)), high(V::sub(V::set_float(groups.qmax), zero)) {}

  // Return the level nearest to x; the lowest level if x is NaN.
  V::Int nearest(V::Float x) const { return V::round(V::min(V::max(x, low), high)); }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
