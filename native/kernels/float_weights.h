// Products with float weights, packed [block][k][16]: part of decoder_kernels.cpp.
//
// An output is one chain of fused multiply-adds along k, so it does not depend on the tile that computes it.
#pragma once

#include "core/layout.h"
#include "vector_math.h"
#include "zeropoint.h"

namespace zp::ZP_LEVEL {
namespace {

// Element types of weights, keys and values. kInCache: attention reads this type from cache pages, and prefetches the
// next ones; false for a page that was converted to float.
struct Half {
  using Type = uint16_t;
  static constexpr bool kInCache = true;
  static V::Float load(const Type* p) { return V::load_half(p); }
};
struct Brain {
  using Type = uint16_t;
  static constexpr bool kInCache = true;
  static V::Float load(const Type* p) { return V::load_bf16(p); }
};
struct Single {
  using Type = float;
  static constexpr bool kInCache = false;
  static V::Float load(const Type* p) { return V::load(p); }
};

constexpr int64_t kFloatsAhead = 2048;  // prefetch distance in bytes

// Compute `rows` rows of `blocks` blocks; rows and blocks of the tile beyond them repeat the last one, unstored.
template <class Source, int ROWS, int BLOCKS>
void float_tile(const Product& p, int64_t row, int rows, int64_t block, int blocks) {
  const Weight& w = *p.weight;
  const auto* weight = reinterpret_cast<const typename Source::Type*>(w.codes);
  const typename Source::Type* at[BLOCKS];
  const float* x[ROWS];
  for (int n = 0; n < BLOCKS; ++n)
    at[n] = weight + smaller(block + n, block + blocks - 1) * w.columns * kLanes;
  for (int m = 0; m < ROWS; ++m) x[m] = p.x + (row + smaller(m, rows - 1)) * p.x_stride;
  V::Float total[ROWS][BLOCKS];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < BLOCKS; ++n) total[m][n] = V::set_float(0.0f);
  for (int64_t k = 0; k < w.columns; ++k) {
    V::Float value[BLOCKS];
#pragma GCC unroll 8
    for (int n = 0; n < BLOCKS; ++n) {
      if constexpr (ROWS == 1)
        V::prefetch(reinterpret_cast<const uint8_t*>(at[n] + k * kLanes) + kFloatsAhead);
      value[n] = Source::load(at[n] + k * kLanes);
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m) {
      const V::Float input = V::set_float(x[m][k]);
#pragma GCC unroll 8
      for (int n = 0; n < BLOCKS; ++n) total[m][n] = V::fma(value[n], input, total[m][n]);
    }
  }
  for (int n = 0; n < blocks; ++n) {
    const int64_t column = (block + n) * kLanes, count = w.rows - column;
    for (int m = 0; m < rows; ++m) {
      V::Float value = total[m][n];
      if (p.bias != nullptr) value = V::add(value, load(p.bias + column, count));
      store(p.y + (row + m) * p.y_stride + column, count, value);
    }
  }
}

template <class Source, int ROWS, int BLOCKS>
void float_strip(const Product& p, int64_t row, int rows, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; block += BLOCKS)
    float_tile<Source, ROWS, BLOCKS>(p, row, rows, block, static_cast<int>(smaller(BLOCKS, end - block)));
}

template <class Source>
void float_blocks(const Product& p, int64_t begin, int64_t end) {
  // A strip of kWide blocks stays in the caches while all rows are multiplied by it.
  for (int64_t strip = begin; strip < end; strip += V::kWide) {
    const int64_t stop = smaller(strip + V::kWide, end);
    for (int64_t row = 0; row < p.rows;) {
      const int rows = static_cast<int>(smaller(p.rows - row, V::kRows));
      if constexpr (V::kRows >= 12) {
        if (rows > 8)
          float_strip<Source, 12, 2>(p, row, rows, strip, stop);
        else if (rows > 4)
          float_strip<Source, 8, 2>(p, row, rows, strip, stop);
        else if (rows > 1)
          float_strip<Source, 4, 4>(p, row, rows, strip, stop);
      } else if constexpr (V::kRows >= 4) {
        if (rows > 2) float_strip<Source, 4, 1>(p, row, rows, strip, stop);
        if (rows == 2) float_strip<Source, 2, 2>(p, row, rows, strip, stop);
      } else {
        if (rows == 2) float_strip<Source, 2, 1>(p, row, rows, strip, stop);
      }
      if (rows == 1) float_strip<Source, 1, V::kWide>(p, row, rows, strip, stop);
      row += rows;
    }
  }
}

void floats(const Product& p, int64_t begin, int64_t end, void*) {
  switch (p.weight->kind) {
    case ZP_FLOAT16:
      return float_blocks<Half>(p, begin, end);
    case ZP_BFLOAT16:
      return float_blocks<Brain>(p, begin, end);
    default:
      return float_blocks<Single>(p, begin, end);
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
