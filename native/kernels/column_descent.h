// Coordinate descent on tr(E H E'), with E = W - W' the error of the dequantized codes W': part of
// quantizer_kernels.cpp, needs ZP_VEC's vector type.
//
// With the other columns fixed, tr(E H E') is least where W'_j moves by (H E)_j / H_jj; column j gets the nearest
// codes. A lane is a row, and a panel of rows is changed through all columns while its errors stay in the cache, as
// in column_rounding.h. A tile of columns sums H E in registers. For every column j the sum runs from column j to the
// last, then from the first to column j - 1, whatever the tile's width. So the columns of the same tile that have
// just changed are added last.
#pragma once

#include "column_rounding.h"

namespace zp::ZP_LEVEL {
namespace {

// Change the codes of a column of kLanes rows; `pull` is the column of H E. Returns the column's new errors.
V::Float change_column(const ColumnDescent& c, int64_t row, int64_t column, V::Float pull) {
  const Groups& groups = c.groups;
  const auto [rows, scale, zero, weight] = column_of_rows(c, row, column);
  int8_t* const codes = c.codes + row * groups.columns + column;
  const V::Float before = gather(codes, groups.columns, rows, int8_t{0});
  const V::Float diagonal = V::set_float(c.hessian[column * groups.columns + column]);
  const V::Float step = V::div(pull, V::mul(scale, diagonal));
  const V::Int code = Levels(groups, V::set_float(0.0f)).nearest(V::add(before, step));
  int8_t bytes[kLanes];
  V::store_bytes(bytes, code);
  for (int64_t r = 0; r < rows; ++r) codes[r * groups.columns] = bytes[r];
  return V::sub(weight, V::mul(V::sub(V::to_float(code), zero), scale));
}

// Add the terms of columns [begin, end) to the sums of H E of a whole tile. `hessian` is the row of its first column.
template <int COLUMNS>
void add_columns(const ColumnDescent& c, const Strip& strip, const float* hessian, int64_t begin, int64_t end,
                 V::Float (&sum)[COLUMNS][kTileVectors]) {
  for (int64_t i = begin; i < end; ++i) {
    V::Float error[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) error[v] = V::load(strip.errors + i * kPanel + v * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; ++j) {
      const V::Float factor = V::set_float(hessian[j * c.groups.columns + i]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sum[j][v] = V::fma(factor, error[v], sum[j][v]);
    }
  }
}

// Change columns [begin, begin + COLUMNS).
template <int COLUMNS>
void descend_tile(const ColumnDescent& c, const Strip& strip, int64_t begin) {
  const int64_t columns = c.groups.columns;
  const float* hessian = c.hessian + begin * columns;
  V::Float sum[COLUMNS][kTileVectors];
#pragma GCC unroll 8
  for (int j = 0; j < COLUMNS; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      sum[j][v] = V::set_float(0.0f);
#pragma GCC unroll 8
      for (int i = j; i < COLUMNS; ++i)
        sum[j][v] = V::fma(V::set_float(hessian[j * columns + begin + i]),
                           V::load(strip.errors + (begin + i) * kPanel + v * kLanes), sum[j][v]);
    }
  add_columns<COLUMNS>(c, strip, hessian, begin + COLUMNS, columns, sum);
  add_columns<COLUMNS>(c, strip, hessian, 0, begin, sum);
#pragma GCC unroll 8
  for (int j = 0; j < COLUMNS; ++j) {
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t row = strip.row + v * kLanes;
      if (row >= c.groups.rows) break;
      const V::Float error = change_column(c, row, begin + j, sum[j][v]);
      V::store(strip.errors + (begin + j) * kPanel + v * kLanes, error);
#pragma GCC unroll 8
      for (int k = j + 1; k < COLUMNS; ++k)
        sum[k][v] = V::fma(V::set_float(hessian[k * columns + begin + j]), error, sum[k][v]);
    }
  }
}

// Change the last `columns` columns, at most COLUMNS.
template <int COLUMNS>
void descend_last(const ColumnDescent& c, const Strip& strip, int64_t columns) {
  if constexpr (COLUMNS > 0) {
    if (columns == COLUMNS)
      descend_tile<COLUMNS>(c, strip, c.groups.columns - columns);
    else
      descend_last<COLUMNS - 1>(c, strip, columns);
  }
}

// Compute the errors of the initial codes, [columns][kPanel]; 0 in rows beyond the last.
void begin_errors(const ColumnDescent& c, int64_t row, float* errors) {
  const Groups& groups = c.groups;
  for (int64_t i = 0; i < groups.columns * kPanel; ++i) errors[i] = 0.0f;
  for (int64_t r = 0; r < kPanel && row + r < groups.rows; ++r) {
    const int64_t at = (row + r) * groups.columns, of = (row + r) * groups.count;
    for (int64_t i = 0; i < groups.columns; ++i) {
      const int64_t group = of + i / groups.size;
      const float zero = c.zero == nullptr ? 0.0f : c.zero[group];
      const float level = static_cast<float>(c.codes[at + i]) - zero;
      errors[i * kPanel + r] = groups.weight[at + i] - level * c.scale[group];
    }
  }
}

void descend_columns(const ColumnDescent& c, int64_t row, float* scratch) {
  begin_errors(c, row, scratch);
  for (int64_t part = 0; part < kPanel && row + part < c.groups.rows; part += kTileVectors * kLanes) {
    const Strip strip{row + part, scratch + part};
    for (int64_t sweep = 0; sweep < c.sweeps; ++sweep) {
      int64_t begin = 0;
      for (; c.groups.columns - begin >= kTileColumns; begin += kTileColumns)
        descend_tile<kTileColumns>(c, strip, begin);
      descend_last<kTileColumns - 1>(c, strip, c.groups.columns - begin);
    }
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
