// A lane is a row: part of quantizer_kernels.cpp, needs ZP_VEC's vector type.
#pragma once

#include "core/layout.h"
#include "kernels/quantizer_kernels.h"

namespace zp::ZP_LEVEL {
namespace {

using V = Vec;

// Rows of a vector that begins with `row`.
int64_t rows_from(const Groups& groups, int64_t row) {
  return groups.rows - row < kLanes ? groups.rows - row : kLanes;
}

// One value of each of `rows` rows, which lie `stride` apart; `beyond` in the other lanes.
template <class T>
V::Float gather(const T* p, int64_t stride, int64_t rows, T beyond) {
  float lanes[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) lanes[r] = static_cast<float>(r < rows ? p[r * stride] : beyond);
  return V::load(lanes);
}

void scatter(float* p, int64_t stride, int64_t rows, V::Float values) {
  float lanes[kLanes];
  V::store(lanes, values);
  for (int64_t r = 0; r < rows; ++r) p[r * stride] = lanes[r];
}

struct Levels {  // of a group: its codes less its zero point
  V::Float low, high;

  Levels(const Groups& groups, V::Float zero)
      : low(V::sub(V::set_float(groups.qmin), zero)), high(V::sub(V::set_float(groups.qmax), zero)) {}

  V::Int nearest(V::Float x) const { return V::round(V::min(V::max(x, low), high)); }  // the lowest for NaN
};

}  // namespace
}  // namespace zp::ZP_LEVEL
