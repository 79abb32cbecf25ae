// The kernels' vector type on any ARM64 processor: SMULL multiplies bytes to 16-bit products.
#pragma once

#include <type_traits>

#include "neon.h"

namespace zp::ZP_LEVEL {
namespace {

// Load x[0..3] twice.
int8x8_t load_four(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return vreinterpret_s8_s32(vdup_n_s32(four));
}

// ColumnSums of nibbles: a 16-bit sum for each code, four in a lane. 64 columns do not overflow (16 products of at most
// 15 * 127), nor do 32 columns with fifth bits (8 products of at most 31 * 127).
struct NibbleSums {
  int16x8_t v[8] = {};

  void add(const Neon::Codes& w, int8x8_t x) {
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = vmlal_s8(v[2 * i], vget_low_s8(w.v[i]), x);
      v[2 * i + 1] = vmlal_s8(v[2 * i + 1], vget_high_s8(w.v[i]), x);
    }
  }
  void add(const Neon::Codes& first, const Neon::Codes& second, const int8_t* const* x, int64_t k) {
    add(first, load_four(*x + k));
    add(second, load_four(*x + k + 4));
  }
  Neon::Int add_to(const Neon::Int& sum, int) const {
    return Neon::each<Neon::Int>([&](int i) {
      return vaddq_s32(sum.v[i], vpaddq_s32(vpaddlq_s16(v[2 * i]), vpaddlq_s16(v[2 * i + 1])));
    });
  }
};

// ColumnSums of bytes: two 32-bit sums in a lane. 16 bits hold two products, of at most 128 * 127 each.
struct ByteSums {
  int32x4_t v[8] = {};

  void add(const Neon::Codes& first, const Neon::Codes& second, const int8_t* const* x, int64_t k) {
    const int8x8_t low = load_four(*x + k), high = load_four(*x + k + 4);
    for (int i = 0; i < 4; ++i) {
      const int16x8_t a = vmlal_s8(vmull_s8(vget_low_s8(first.v[i]), low), vget_low_s8(second.v[i]), high);
      const int16x8_t b = vmlal_s8(vmull_s8(vget_high_s8(first.v[i]), low), vget_high_s8(second.v[i]), high);
      v[2 * i] = vpadalq_s16(v[2 * i], a);
      v[2 * i + 1] = vpadalq_s16(v[2 * i + 1], b);
    }
  }
  Neon::Int add_to(const Neon::Int& sum, int) const {
    return Neon::each<Neon::Int>([&](int i) { return vaddq_s32(sum.v[i], vpaddq_s32(v[2 * i], v[2 * i + 1])); });
  }
};

struct Vec : Neon {
  static constexpr int kRows = 2;  // rows of the largest register tile
  static constexpr int kWide = 1;  // blocks of a tile with one row

  static constexpr int64_t most_columns(bool nibbles, bool fifths) {
    return nibbles ? (fifths ? 32 : 64) : int64_t{1} << 32;
  }
  static constexpr int kRowsTogether = 1;
  template <int, bool NIBBLES>
  using ColumnSums = std::conditional_t<NIBBLES, NibbleSums, ByteSums>;
};

}  // namespace
}  // namespace zp::ZP_LEVEL
