// Kernels that quantize weights: their arguments, and the table that each instruction set level fills.
//
// This header is compiled with every level's flags, so it holds plain structs only (see core/layout.h).
#pragma once

#include <cstdint>

#include "core/layout.h"

namespace zp {

// A weight [rows][columns] in groups of `size` columns, the last of which may be shorter, and the range of codes.
struct Groups {
  const float* weight;
  int64_t rows, columns, size;
  int64_t count;  // groups of a row
  float qmin, qmax;
};

// Input and output of the search for the scale and zero point with the least squared error of each group (grid.h).
// Outputs are [rows][groups].
struct GridSearch {
  Groups groups;
  const float* importance;  // [columns]
  const float* parts;       // fractions of the range to try, [tries]
  int64_t tries;
  float *low, *high;
  float* scale;
  float* zero;  // null: symmetric, no zero points
};

// Compute weighted squared errors: `scale`, `zero` (null: 0) and `error` are [grids][rows][groups].
struct GridErrors {
  Groups groups;
  const float* importance;  // [columns]
  int64_t grids;
  const float* scale;
  const float* zero;
  float* error;
};

// GPTQ error propagation, see column_rounding.h.
struct ColumnRounding {
  Groups groups;
  const float *scale, *zero;  // [rows][groups]; zero points may be null
  const float* ratio;         // [columns][columns]
  const int64_t* order;       // [columns]
  int8_t* codes;              // [rows][columns]
};

// Coordinate descent on codes, see column_descent.h.
struct ColumnDescent {
  Groups groups;
  const float *scale, *zero;  // [rows][groups]; zero points may be null
  const float* hessian;       // [columns][columns]
  int64_t sweeps;
  int8_t* codes;  // [rows][columns], in and out
};

// The kernels of one instruction-set level. Each call processes rows from `row` on.
struct QuantizerKernels {
  // Process kLanes rows. The caller gives `scratch` of grid_scratch floats.
  void (*search)(const GridSearch& search, int64_t row, float* scratch);
  void (*errors)(const GridErrors& errors, int64_t row, float* scratch);
  // Process kPanel rows. The caller gives `scratch` of kPanel floats per column.
  void (*round_columns)(const ColumnRounding& rounding, int64_t row, float* scratch);
  void (*descend_columns)(const ColumnDescent& descent, int64_t row, float* scratch);
};

constexpr int64_t kPanel = 48;  // rows whose errors are kept in the cache together

constexpr int64_t grid_scratch(const Groups& groups) {
  return kLanes * (groups.size < groups.columns ? groups.size : groups.columns);
}

}  // namespace zp
