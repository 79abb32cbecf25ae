// Products of one input with up to three weights (such as q, k and v). Weights that can share a quantized input
// (same_input) share it.
#pragma once

#include <cstdint>

#include "core/layout.h"

namespace zp {

// One weight and where its product goes.
struct Term {
  const Weight* weight;
  const float* bias;
  float* y;
  int64_t y_stride;
};

// The weights of one of the next products.
struct Following {
  const Weight* weights[3];
  int count;
};

struct Products {
  static constexpr int kMost = 3;

  const float* x;
  int64_t x_stride;
  int64_t rows;
  Term terms[kMost];
  int count;
  Following next[2];  // the next two products, whose weights threads prefetch while they wait
};

// Compute all products. Returns false if there is no memory. With threads = 1 the caller may be a thread of the pool.
bool multiply(const Products& products, int threads);

}  // namespace zp
