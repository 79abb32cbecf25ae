// The kernels' vector type on ARM64 with FEAT_DotProd.
#pragma once

#include "sdot.h"

namespace zp::ZP_LEVEL {
namespace {

struct Vec : Neon {
  static constexpr int kRows = 4;  // rows of the largest register tile
  static constexpr int kWide = 2;  // blocks of a tile with one row

  static constexpr int64_t most_columns(bool, bool) { return int64_t{1} << 32; }
  static constexpr int kRowsTogether = 1;
  template <int, bool>
  using ColumnSums = DotSums;
};

}  // namespace
}  // namespace zp::ZP_LEVEL
