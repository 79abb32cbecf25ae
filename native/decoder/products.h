// Products of one input by several weights, which it is quantized for once where they agree.
#pragma once

#include <cstdint>

#include "core/layout.h"

namespace zp {

struct Term {
  const Weight* weight;
  const float* bias;
  float* y;
  int64_t y_stride;
};

// The weights of a product that follows.
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
  Following next[2];  // what threads ask for while they wait, the nearest first
};

// False: no memory. On one thread it may run in a thread of the pool.
bool multiply(const Products& products, int threads);

}  // namespace zp
