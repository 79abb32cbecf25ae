// The kernels' vector type on ARM64 with FEAT_I8MM. SMMLA multiplies two rows by two channels, eight columns at a time;
// a single row takes SDOT.
#pragma once

#include <type_traits>

#include "sdot.h"

namespace zp::ZP_LEVEL {
namespace {

// ColumnSums of two rows. A register holds the sums of two channels: row 0 by both, then row 1 by both.
struct MatrixSums {
  int32x4_t v[8] = {};

  void add(const Neon::Codes& first, const Neon::Codes& second, const int8_t* const* x, int64_t k) {
    const int8x16_t rows = vcombine_s8(vld1_s8(x[0] + k), vld1_s8(x[1] + k));
    for (int i = 0; i < 4; ++i) {
      // Side by side, for each channel: columns 0 to 3 of `first`, 4 to 7 of `second`.
      const int32x4_t a = vreinterpretq_s32_s8(first.v[i]), b = vreinterpretq_s32_s8(second.v[i]);
      v[2 * i] = vmmlaq_s32(v[2 * i], rows, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
      v[2 * i + 1] = vmmlaq_s32(v[2 * i + 1], rows, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
    }
  }
  Neon::Int add_to(const Neon::Int& sum, int row) const {
    return Neon::each<Neon::Int>([&](int i) {
      const int64x2_t a = vreinterpretq_s64_s32(v[2 * i]), b = vreinterpretq_s64_s32(v[2 * i + 1]);
      return vaddq_s32(sum.v[i], vreinterpretq_s32_s64(row == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b)));
    });
  }
};

struct Vec : Neon {
  static constexpr int kRows = 4;  // rows of the largest register tile
  static constexpr int kWide = 2;  // blocks of a tile with one row

  static constexpr int64_t most_columns(bool, bool) { return int64_t{1} << 32; }
  static constexpr int kRowsTogether = 2;
  template <int ROWS, bool>
  using ColumnSums = std::conditional_t<ROWS == 2, MatrixSums, DotSums>;
};

}  // namespace
}  // namespace zp::ZP_LEVEL
