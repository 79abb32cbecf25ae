// The kernels for choosing tokens from logits: their arguments, and the table that each instruction set level fills.
//
// This header is compiled with every level's flags, so it holds plain structs only (see core/layout.h).
#pragma once

#include <cstdint>

namespace zp {

// Weights of tokens are counted in units of 2^-40, so that sums are exact in any order. The most likely token has 2^40
// units.
constexpr int kUnitBits = 40;
constexpr int64_t kWeighBlock = 512;  // tokens in a block: `weigh` sums the units of each block

// The kernels of one level.
struct SamplerKernels {
  // Find the largest of `count` logits and its lowest index. Returns false if the largest is not finite, or any is NaN.
  bool (*largest)(const float* x, int64_t count, float* most, int64_t* first);
  // Compute weights[i] = e^s, with s = (x[i] - most) / temperature, or 0 if s < least; and sums[b], the units of the
  // tokens of block b.
  void (*weigh)(const float* x, int64_t count, float most, float temperature, float least, float* weights,
                int64_t* sums);
  // Compute maxima[g], the largest of x[16 g] ... x[16 g + 15].
  void (*maxima)(const float* x, int64_t count, float* maxima);
  // Write the indices with x[i] >= least in ascending order, and return how many they are.
  int64_t (*find)(const float* x, int64_t count, float least, int32_t* indices);
};

}  // namespace zp
