// Products by SDOT, of the levels dotprod and i8mm: part of their vector types.
#pragma once

#include "neon.h"

namespace zp::ZP_LEVEL {
namespace {

// ColumnSums of one row: a register holds the sums of four channels. SDOT adds four products of bytes to a sum.
struct DotSums {
  int32x4_t v[4] = {};

  void add(const Neon::Codes& first, const Neon::Codes& second, const int8_t* const* x, int64_t k) {
    const int8x8_t eight = vld1_s8(*x + k);
    for (int i = 0; i < 4; ++i) v[i] = vdotq_lane_s32(v[i], first.v[i], eight, 0);
    for (int i = 0; i < 4; ++i) v[i] = vdotq_lane_s32(v[i], second.v[i], eight, 1);
  }
  Neon::Int add_to(const Neon::Int& sum, int) const {
    return Neon::each<Neon::Int>([&](int i) { return vaddq_s32(sum.v[i], v[i]); });
  }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
