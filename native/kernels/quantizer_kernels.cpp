// Quantizing weights, for one instruction set level. CMake compiles this file once per level, like kernel.cpp.
// Every level rounds in the same places and adds in the same order, so codes do not depend on the level.
#include "kernels/quantizer_kernels.h"
#include "kernels/levels.h"

#include ZP_VEC

#include "column_descent.h"
#include "column_rounding.h"
#include "grid.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr QuantizerKernels kQuantizerTable = {search, errors, round_columns, descend_columns};

}  // namespace

const QuantizerKernels* quantizer_kernels() {
  return &kQuantizerTable;
}

}  // namespace zp::ZP_LEVEL
