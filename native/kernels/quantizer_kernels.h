// What choosing the codes of a weight takes, in a table that each instruction set level fills.
//
// This header is compiled with every level's flags, so it holds plain structs only (see core/layout.h).
#pragma once

#include <cstdint>

#include "core/layout.h"

namespace zp {

// A weight [rows][columns] in groups along its rows, of which the last may be short, and its range of codes.
struct Groups {
  const float* weight;
  int64_t rows, columns, size;
  int64_t count;  // of a row
  float qmin, qmax;
};

// The grid of each group that fits best, see grid.h. Results are [rows][groups].
struct GridSearch {
  Groups groups;
  const float* importance;  // [columns]
  const float* parts;       // of the range, [tries]
  int64_t tries;
  float *low, *high;
  float* scale;
  float* zero;  // null: there are no zero points
};

// The weighted squared errors of some grids, [grids][rows][groups] like the scales and zero points (null: 0).
struct GridErrors {
  Groups groups;
  const float* importance;
  int64_t grids;
  const float* scale;
  const float* zero;
  float* error;
};

// Columns rounded in turn, see column_rounding.h.
struct ColumnRounding {
  Groups groups;
  const float *scale, *zero;  // [rows][groups]; zero points may be null
  const float* ratio;         // [columns][columns]
  const int64_t* order;       // [columns]
  int8_t* codes;              // [rows][columns]
};

// Codes changed in turn, see column_descent.h.
struct ColumnDescent {
  Groups groups;
  const float *scale, *zero;  // [rows][groups]; zero points may be null
  const float* hessian;       // [columns][columns]
  int64_t sweeps;
  int8_t* codes;  // [rows][columns], in and out
};

struct QuantizerKernels {
  // Of kLanes rows from `row` on; `scratch` has grid_scratch floats.
  void (*search)(const GridSearch& search, int64_t row, float* scratch);
  void (*errors)(const GridErrors& errors, int64_t row, float* scratch);
  // Of kPanel rows from `row` on; `scratch` has kPanel floats for each column.
  void (*round_columns)(const ColumnRounding& rounding, int64_t row, float* scratch);
  void (*descend_columns)(const ColumnDescent& descent, int64_t row, float* scratch);
};

constexpr int64_t kPanel = 48;

constexpr int64_t grid_scratch(const Groups& groups) {
  return kLanes * (groups.size < groups.columns ? groups.size : groups.columns);
}

namespace scalar {
const QuantizerKernels* quantizer_kernels();
}
namespace avx2 {
const QuantizerKernels* quantizer_kernels();
}
namespace avx512 {
const QuantizerKernels* quantizer_kernels();
}

}  // namespace zp
