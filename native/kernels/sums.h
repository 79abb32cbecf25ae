// Sums of products of 16-bit input codes, exact beyond 32 bits: part of int16.cpp, needs ZP_VEC's vector type.
#pragma once

#include "output.h"

namespace zp::ZP_LEVEL {
namespace {

// Columns that are summed in 32 bits at most: 640 products of at most 16319 * 128 fit, or 512 of 16319 * 255 with zero
// points. A panel of 640 columns and the codes of a tile's rows fill the first-level cache.
constexpr int64_t kMostColumns = 640, kMostColumnsWithZeros = 512;

// The sums of a block's 16 channels for one row: the exact integers 128 * high + low, and the scaled float sums of the
// segments that are complete.
struct Sums {
  V::Int high = V::set_int(0), low = V::set_int(0);
  V::Float total = V::set_float(0.0f);

  void add(V::Int sum) {
    const V::Int carry = V::shift_right<7>(sum);
    high = V::add(high, carry);
    low = V::add(low, V::sub(sum, V::shift_left<7>(carry)));
  }
  // Add the segment's sums, scaled, to the float sums.
  void end_segment(V::Float scale) {
    total = V::fma(join(high, low), scale, total);
    high = low = V::set_int(0);
  }
};

// Apply the input's scale to a block's 16 sums of token `row`, and store them.
void store_sums(const Product& p, int64_t row, int64_t block, V::Float sums) {
  store_output(p, row, block, V::mul(sums, V::set_float(p.input.scale[row * p.weight->segments])));
}

// Apply the scales that do not vary along the row, and store a row's 16 outputs.
template <bool BY_SEGMENT>
void finish(const Product& p, int64_t row, int64_t block, const Sums& sums) {
  store_sums(p, row, block,
             BY_SEGMENT ? sums.total : V::mul(join(sums.high, sums.low), load_scale(*p.weight, block, 0)));
}

}  // namespace
}  // namespace zp::ZP_LEVEL
