// Norms, activations, additions, rotations and softcaps: part of decoder_kernels.cpp, which documents them in
// decoder_kernels.h.
#pragma once

#include "core/layout.h"
#include "vector_math.h"
#include "zeropoint.h"

namespace zp::ZP_LEVEL {
namespace {

// Return the sum of (x - mean)^POWER.
template <int POWER>
float moment(const float* x, int64_t count, float mean) {
  const V::Float center = V::set_float(mean);
  V::Float total = V::set_float(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const V::Float away = V::sub(load(x + i, count - i, mean), center);
    total = POWER == 2 ? V::fma(away, away, total) : V::add(total, away);
  }
  return V::sum_lanes(total);
}

void norm(int kind, const float* x, const float* weight, const float* bias, int64_t count, float eps,
          float* out) {
  const auto size = static_cast<float>(count);
  const float mean = kind == ZP_NORM_LAYER ? moment<1>(x, count, 0.0f) / size : 0.0f;
  const V::Float center = V::set_float(mean);
  const V::Float factor = V::set_float(1.0f / __builtin_sqrtf(moment<2>(x, count, mean) / size + eps));
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    V::Float value = V::mul(V::mul(V::sub(load(x + i, left), center), factor), load(weight + i, left));
    if (bias != nullptr) value = V::add(value, load(bias + i, left));
    store(out + i, left, value);
  }
}

template <int KIND>
V::Float activation(V::Float x) {
  const V::Float one = V::set_float(1.0f), half = V::set_float(0.5f);
  if constexpr (KIND == ZP_SILU) {
    // Below -88 SiLU is 0 to within 1e-36. x is bounded, because exponential() ends at e^88 and x / e^88 would grow.
    const V::Float bounded = V::max(V::set_float(-88.0f), x);
    return V::div(bounded, V::add(one, exponential(V::mul(bounded, V::set_float(-1.0f)))));
  } else if constexpr (KIND == ZP_GELU) {  // x erf(x / sqrt 2) is the same for x and -x; error_function takes x >= 0
    const V::Float size = V::magnitude(x);
    return V::mul(half, V::fma(size, error_function(V::mul(size, V::set_float(0.70710678f))), x));
  } else if constexpr (KIND == ZP_GELU_TANH) {
    const V::Float cube = V::mul(V::mul(x, x), x);
    const V::Float inner = V::mul(V::set_float(0.79788456f), V::fma(cube, V::set_float(0.044715f), x));
    return V::mul(V::mul(half, x), V::add(one, hyperbolic_tangent(inner)));
  } else {
    return V::max(V::set_float(0.0f), x);
  }
}

template <int KIND>
void activate_row(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    V::Float value = activation<KIND>(load(gate + i, left));
    if (up != nullptr) value = V::mul(value, load(up + i, left));
    store(out + i, left, value);
  }
}

void activate(int kind, const float* gate, const float* up, int64_t count, float* out) {
  switch (kind) {
    case ZP_SILU:
      return activate_row<ZP_SILU>(gate, up, count, out);
    case ZP_GELU:
      return activate_row<ZP_GELU>(gate, up, count, out);
    case ZP_GELU_TANH:
      return activate_row<ZP_GELU_TANH>(gate, up, count, out);
    default:
      return activate_row<ZP_RELU>(gate, up, count, out);
  }
}

void add(const float* y, float scale, int64_t count, float* x) {
  const V::Float factor = V::set_float(scale);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    store(x + i, left, V::fma(load(y + i, left), factor, load(x + i, left)));
  }
}

void scale(float factor, int64_t count, float* x) {
  for (int64_t i = 0; i < count; i += kLanes)
    store(x + i, count - i, V::mul(load(x + i, count - i), V::set_float(factor)));
}

void softcap(float cap, int64_t count, float* x) {
  const V::Float most = V::set_float(cap), inverse = V::set_float(1.0f / cap);
  for (int64_t i = 0; i < count; i += kLanes)
    store(x + i, count - i, V::mul(most, hyperbolic_tangent(V::mul(load(x + i, count - i), inverse))));
}

void rotate(bool pairs, const float* cosine, const float* sine, int64_t half, float* head) {
  if (pairs) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = head[2 * i], b = head[2 * i + 1];
      head[2 * i] = a * cosine[i] - b * sine[i];
      head[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const V::Float c = load(cosine + i, left), s = load(sine + i, left);
    const V::Float a = load(head + i, left), b = load(head + half + i, left);
    store(head + i, left, V::sub(V::mul(a, c), V::mul(b, s)));
    store(head + half + i, left, V::add(V::mul(b, c), V::mul(a, s)));
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
