// Search for scales and zero points: part of quantizer_kernels.cpp, needs ZP_VEC's vector type.
//
// A lane is a row. A group of 16 rows is transposed first, so that sums need no additions across lanes and columns are
// added in order on every level. A "grid" is a scale and a zero point.
#pragma once

#include "rows_as_lanes.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr float kTiny = 1e-30f;  // the largest magnitude that a group of zeros is taken to have

// Transpose columns [begin, begin + count) of kLanes rows to [count][kLanes]; rows beyond the last are zeros.
void transpose(const Groups& groups, int64_t row, int64_t begin, int64_t count, float* out) {
  const float* from = groups.weight + row * groups.columns + begin;
  const int64_t rows = rows_from(groups, row);
  if (rows == kLanes) {
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 16
      for (int64_t r = 0; r < kLanes; ++r) out[i * kLanes + r] = from[r * groups.columns + i];
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t r = 0; r < kLanes; ++r) out[i * kLanes + r] = r < rows ? from[r * groups.columns + i] : 0.0f;
}

// For each group call f(transposed columns, first column, number of columns, index of the group's results).
template <class F>
void each_group(const Groups& groups, int64_t row, float* scratch, F&& f) {
  for (int64_t g = 0; g < groups.count; ++g) {
    const int64_t begin = g * groups.size, left = groups.columns - begin;
    const int64_t count = groups.size < left ? groups.size : left;
    transpose(groups, row, begin, count, scratch);
    f(scratch, begin, count, row * groups.count + g);
  }
}

// The best grid so far of 16 groups. A candidate scale s gives levels L and the error d = x - L s. For the same levels
// the best scale is s + (L . d) / (L . L), and its squared error is d . d - (L . d)^2 / (L . L). These are sums of
// small numbers, so float32 is precise enough even for 8-bit codes, where errors are tiny against x.
struct Best {
  V::Float least = V::set_float(__builtin_inff()), scale = V::set_float(0.0f), zero = V::set_float(0.0f);

  void attempt(const Groups& groups, const float* x, const float* importance, int64_t count, V::Float tried,
               V::Float offset) {
    const Levels levels(groups, offset);
    const V::Float inverse = V::div(V::set_float(1.0f), tried), negative = V::sub(V::set_float(0.0f), tried);
    V::Float error = V::set_float(0.0f), product = error, square = error;
    for (int64_t i = 0; i < count; ++i) {
      const V::Float value = V::load(x + i * kLanes), counts = V::set_float(importance[i]);
      const V::Float level = V::to_float(levels.nearest(V::mul(value, inverse)));
      const V::Float left = V::fma(level, negative, value), counted = V::mul(level, counts);
      error = V::fma(V::mul(left, counts), left, error);
      product = V::fma(counted, left, product);
      square = V::fma(counted, level, square);
    }
    const V::Float step = V::div(product, V::max(square, V::set_float(1e-12f)));
    error = V::sub(error, V::mul(product, step));
    scale = V::if_greater(least, error, V::add(tried, step), scale);
    zero = V::if_greater(least, error, offset, zero);
    least = V::if_greater(least, error, error, least);
  }
};

// Try symmetric grids. The weight of largest magnitude is placed at qmin, with a negative scale if it is positive,
// because there is one more code below zero than above. If qmin is -qmax the scale is always positive.
void try_symmetric(const GridSearch& s, const float* x, const float* importance, int64_t count, V::Float low,
                   V::Float high, Best& best) {
  const V::Float below = V::sub(V::set_float(0.0f), low);
  V::Float most = V::max(V::max(below, high), V::set_float(kTiny));
  if (s.groups.qmin == -s.groups.qmax)
    most = V::sub(V::set_float(0.0f), most);
  else
    most = V::if_greater(below, high, V::sub(V::set_float(0.0f), most), most);
  for (int64_t i = 0; i < s.tries; ++i) {
    const V::Float tried = V::div(V::mul(most, V::set_float(s.parts[i])), V::set_float(s.groups.qmin));
    best.attempt(s.groups, x, importance, count, tried, V::set_float(0.0f));
  }
}

// Try grids with a zero point: each fraction of the smallest weight with each fraction of the largest.
void try_asymmetric(const GridSearch& s, const float* x, const float* importance, int64_t count, V::Float low,
                    V::Float high, Best& best) {
  const Levels codes(s.groups, V::set_float(0.0f));
  const V::Float steps = V::set_float(s.groups.qmax - s.groups.qmin);
  low = V::min(low, V::set_float(-kTiny));
  high = V::max(high, V::set_float(kTiny));
  for (int64_t i = 0; i < s.tries; ++i)
    for (int64_t j = 0; j < s.tries; ++j) {
      const V::Float left = V::mul(low, V::set_float(s.parts[i]));
      const V::Float tried = V::div(V::sub(V::mul(high, V::set_float(s.parts[j])), left), steps);
      const V::Float zero =
          V::to_float(codes.nearest(V::sub(V::set_float(s.groups.qmin), V::div(left, tried))));
      best.attempt(s.groups, x, importance, count, tried, zero);
    }
}

void search(const GridSearch& s, int64_t row, float* scratch) {
  const int64_t rows = rows_from(s.groups, row);
  each_group(s.groups, row, scratch, [&](const float* x, int64_t begin, int64_t count, int64_t at) {
    V::Float low = V::set_float(0.0f), high = low;
    for (int64_t i = 0; i < count; ++i) {
      low = V::min(low, V::load(x + i * kLanes));
      high = V::max(high, V::load(x + i * kLanes));
    }
    Best best;
    if (s.zero == nullptr)
      try_symmetric(s, x, s.importance + begin, count, low, high, best);
    else
      try_asymmetric(s, x, s.importance + begin, count, low, high, best);
    scatter(s.low + at, s.groups.count, rows, low);
    scatter(s.high + at, s.groups.count, rows, high);
    scatter(s.scale + at, s.groups.count, rows, best.scale);
    if (s.zero != nullptr) scatter(s.zero + at, s.groups.count, rows, best.zero);
  });
}

void errors(const GridErrors& e, int64_t row, float* scratch) {
  const int64_t rows = rows_from(e.groups, row), stride = e.groups.count;
  each_group(e.groups, row, scratch, [&](const float* x, int64_t begin, int64_t count, int64_t at) {
    for (int64_t grid = 0; grid < e.grids; ++grid, at += e.groups.rows * stride) {
      const V::Float scale = gather(e.scale + at, stride, rows, 1.0f);
      const Levels levels(e.groups,
                          e.zero == nullptr ? V::set_float(0.0f) : gather(e.zero + at, stride, rows, 0.0f));
      V::Float sum = V::set_float(0.0f);
      for (int64_t i = 0; i < count; ++i) {
        const V::Float value = V::load(x + i * kLanes);
        const V::Float level = V::to_float(levels.nearest(V::div(value, scale)));
        const V::Float error = V::sub(V::mul(level, scale), value);
        sum = V::fma(V::mul(error, V::set_float(e.importance[begin + i])), error, sum);
      }
      scatter(e.error + at, stride, rows, sum);
    }
  });
}

}  // namespace
}  // namespace zp::ZP_LEVEL
