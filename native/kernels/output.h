// From sums to outputs: scales, the joining of 16-bit sums, stores. Part of kernel.cpp and int16.cpp, needs ZP_VEC's
// vector type.
#pragma once

#include "partial.h"

namespace zp::ZP_LEVEL {
namespace {

// Return the float scales of a block's 16 channels for one group. Two-level scales have one float per channel for all
// groups; the caller applies the group's multipliers.
V::Float load_scale(const Weight& w, int64_t block, int64_t group) {
  const int64_t at = (w.nested ? block : block * w.groups + group) * kLanes;
  return w.scale_bf16 ? V::load_bf16(static_cast<const uint16_t*>(w.scale) + at)
                      : V::load(static_cast<const float*>(w.scale) + at);
}

// Add the bias to a block's 16 outputs of token `row`, and store them.
void store_output(const Product& p, int64_t row, int64_t block, V::Float value) {
  const int64_t column = block * kLanes, count = p.weight->rows - column;
  if (p.bias) value = V::add(value, load(p.bias + column, count));
  store(p.y + row * p.y_stride + column, count, value);
}

// Convert the integer 128 * high + low to float. First carry from `low` to `high`, so that `low` is 0 to 127: equal
// integers are then rounded to equal floats, whether a level sums 16-bit codes as one number or as two limbs.
V::Float join(V::Int high, V::Int low) {
  const V::Int carry = V::template shift_right<7>(low);
  const V::Int rest = V::sub(low, V::template shift_left<7>(carry));
  return V::fma(V::to_float(V::add(high, carry)), V::set_float(128.0f), V::to_float(rest));
}

}  // namespace
}  // namespace zp::ZP_LEVEL
