// exp, tanh and erf: part of decoder_kernels.cpp, needs ZP_VEC's vector type.
#pragma once

#include "partial.h"

namespace zp::ZP_LEVEL {
namespace {

int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Return e^x to one or two ulp; 0 below -88, e^88 above 88. Computed as 2^n times a Taylor polynomial of r, with
// x = n ln 2 + r.
V::Float exponential(V::Float x) {
  x = V::min(V::set_float(88.0f), V::max(V::set_float(-88.0f), x));
  const V::Int n = V::round(V::mul(x, V::set_float(1.44269504f)));
  const V::Float whole = V::to_float(n);
  V::Float r = V::fma(whole, V::set_float(-0.693359375f), x);
  r = V::fma(whole, V::set_float(2.12194440e-4f), r);
  V::Float p = V::set_float(1.0f / 5040);
  p = V::fma(p, r, V::set_float(1.0f / 720));
  p = V::fma(p, r, V::set_float(1.0f / 120));
  p = V::fma(p, r, V::set_float(1.0f / 24));
  p = V::fma(p, r, V::set_float(1.0f / 6));
  p = V::fma(p, r, V::set_float(0.5f));
  p = V::fma(p, r, V::set_float(1.0f));
  p = V::fma(p, r, V::set_float(1.0f));
  return V::mul(p, V::power_of_two(n));
}

float exponential(float x) {
  float lanes[kLanes];
  V::store(lanes, exponential(V::set_float(x)));
  return lanes[0];
}

V::Float hyperbolic_tangent(V::Float x) {  // 1 - 2 / (e^2x + 1), to 1e-7
  const V::Float one = V::set_float(1.0f);
  const V::Float e = exponential(V::add(x, x));
  return V::sub(one, V::div(V::set_float(2.0f), V::add(e, one)));
}

// Return erf(x) for x >= 0, to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
V::Float error_function(V::Float x) {
  const V::Float one = V::set_float(1.0f);
  const V::Float t = V::div(one, V::fma(V::set_float(0.3275911f), x, one));
  V::Float p = V::set_float(1.061405429f);
  p = V::fma(p, t, V::set_float(-1.453152027f));
  p = V::fma(p, t, V::set_float(1.421413741f));
  p = V::fma(p, t, V::set_float(-0.284496736f));
  p = V::fma(p, t, V::set_float(0.254829592f));
  const V::Float e = exponential(V::mul(V::mul(x, x), V::set_float(-1.0f)));
  return V::sub(one, V::mul(V::mul(p, t), e));
}

}  // namespace
}  // namespace zp::ZP_LEVEL
