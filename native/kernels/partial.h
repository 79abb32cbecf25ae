// Loads and stores of less than a vector; needs ZP_VEC's vector type.
#pragma once

#include "core/layout.h"

namespace zp::ZP_LEVEL {
namespace {

using V = Vec;

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Load the first `count` lanes (all, if count is larger); the others are `fill`.
inline V::Float load(const float* p, int64_t count, float fill = 0.0f) {
  if (count >= kLanes) return V::load(p);
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? p[i] : fill;
  return V::load(lanes);
}

// Store the first `count` lanes (all, if count is larger).
inline void store(float* p, int64_t count, V::Float value) {
  if (count >= kLanes) {
    V::store(p, value);
    return;
  }
  float lanes[kLanes];
  V::store(lanes, value);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

}  // namespace
}  // namespace zp::ZP_LEVEL
