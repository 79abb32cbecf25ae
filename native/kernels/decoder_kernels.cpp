// The decoder's kernels for one instruction set level. CMake compiles this file once per level, like kernel.cpp.
// Every level rounds in the same places.
#include "kernels/decoder_kernels.h"
#include "kernels/levels.h"

#include ZP_VEC

#include "attention.h"
#include "cache_store.h"
#include "divergence.h"
#include "elementwise.h"
#include "float_weights.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr DecoderKernels kDecoderTable = {norm,   activate,       add,    scale, softcap,
                                          rotate, store_position, attend, merge, floats, divergence};

}  // namespace

const DecoderKernels* decoder_kernels() {
  return &kDecoderTable;
}

}  // namespace zp::ZP_LEVEL
