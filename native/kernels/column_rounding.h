// GPTQ error propagation: part of quantizer_kernels.cpp, needs ZP_VEC's vector type.
//
// In the given order, from the last column to the first, column j is rounded to the level nearest to
// w_j + sum_{i > j} ratio[j][i] e_i, where e_i = w_i - w'_i is the error left in column i. Rows do not depend on each
// other, so a lane is a row. A panel of kPanel rows is rounded through all columns while its errors stay in the cache.
// A tile of columns sums the errors of the columns after it in registers. Errors are added from the last column on,
// whatever the tile's width, so the result does not depend on it.
#pragma once

#include "rows_as_lanes.h"

namespace zp::ZP_LEVEL {
namespace {

// A tile's sums fill most registers, and the others are left for errors. AVX-512 sums 8 columns * 3 vectors in 24 of 32
// registers, AVX2 6 columns * 1 vector of two registers in 12 of 16.
constexpr int kTileColumns = V::kRows >= 12 ? 8 : 6;
constexpr int kTileVectors = V::kRows >= 12 ? 3 : 1;
static_assert(kPanel % (kTileVectors * kLanes) == 0);

// kTileVectors * kLanes rows of a panel: the first row, and their errors [columns][kPanel].
struct Strip {
  int64_t row;
  float* errors;
};

// A column of kLanes rows: the number of rows that exist, their scales, zero points and weights.
struct ColumnOfRows {
  int64_t rows;
  V::Float scale, zero, weight;
};

// Gather a column of a ColumnRounding or ColumnDescent.
template <class Job>
ColumnOfRows column_of_rows(const Job& c, int64_t row, int64_t column) {
  const Groups& groups = c.groups;
  const int64_t rows = rows_from(groups, row), at = row * groups.count + column / groups.size;
  return {rows, gather(c.scale + at, groups.count, rows, 1.0f),
          c.zero == nullptr ? V::set_float(0.0f) : gather(c.zero + at, groups.count, rows, 0.0f),
          gather(groups.weight + row * groups.columns + column, groups.columns, rows, 0.0f)};
}

// Round a column of kLanes rows to the levels nearest to weight + propagated. Returns its errors.
V::Float round_column(const ColumnRounding& c, int64_t row, int64_t column, V::Float propagated) {
  const Groups& groups = c.groups;
  const auto [rows, scale, zero, weight] = column_of_rows(c, row, column);
  const V::Int level = Levels(groups, zero).nearest(V::div(V::add(weight, propagated), scale));
  int8_t codes[kLanes];
  V::store_bytes(codes, V::add(level, V::round(zero)));
  for (int64_t r = 0; r < rows; ++r) c.codes[(row + r) * groups.columns + column] = codes[r];
  return V::sub(weight, V::mul(V::to_float(level), scale));
}

// Round columns [begin, begin + COLUMNS) of the order.
template <int COLUMNS>
void round_tile(const ColumnRounding& c, const Strip& strip, int64_t begin) {
  const int64_t columns = c.groups.columns, end = begin + COLUMNS;
  const float* ratio = c.ratio + begin * columns;
  V::Float sum[COLUMNS][kTileVectors];
#pragma GCC unroll 8
  for (int j = 0; j < COLUMNS; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) sum[j][v] = V::set_float(0.0f);
  for (int64_t i = columns - 1; i >= end; --i) {
    V::Float error[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) error[v] = V::load(strip.errors + i * kPanel + v * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; ++j) {
      const V::Float factor = V::set_float(ratio[j * columns + i]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sum[j][v] = V::fma(factor, error[v], sum[j][v]);
    }
  }
#pragma GCC unroll 8
  for (int j = COLUMNS - 1; j >= 0; --j) {
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t row = strip.row + v * kLanes;
      if (row >= c.groups.rows) break;
      const V::Float error = round_column(c, row, c.order[begin + j], sum[j][v]);
      V::store(strip.errors + (begin + j) * kPanel + v * kLanes, error);
#pragma GCC unroll 8
      for (int k = 0; k < j; ++k)
        sum[k][v] = V::fma(V::set_float(ratio[k * columns + begin + j]), error, sum[k][v]);
    }
  }
}

// Round the first `columns` columns of the order, at most COLUMNS.
template <int COLUMNS>
void round_first(const ColumnRounding& c, const Strip& strip, int64_t columns) {
  if constexpr (COLUMNS > 0) {
    if (columns == COLUMNS)
      round_tile<COLUMNS>(c, strip, 0);
    else
      round_first<COLUMNS - 1>(c, strip, columns);
  }
}

void round_columns(const ColumnRounding& c, int64_t row, float* scratch) {
  for (int64_t i = 0; i < c.groups.columns * kPanel; ++i) scratch[i] = 0.0f;  // rows beyond the last have no error
  for (int64_t part = 0; part < kPanel && row + part < c.groups.rows; part += kTileVectors * kLanes) {
    const Strip strip{row + part, scratch + part};
    int64_t end = c.groups.columns;
    for (; end >= kTileColumns; end -= kTileColumns) round_tile<kTileColumns>(c, strip, end - kTileColumns);
    round_first<kTileColumns - 1>(c, strip, end);
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
