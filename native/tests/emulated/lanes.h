// Loops over the lanes of the registers of immintrin.h; part of the .cpp files beside it.
//
// Every function has internal linkage: memory.cpp is compiled with sanitizers, the other files are not.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "immintrin.h"

namespace zp::emulated {

// Copy bytes of the kernels' memory (memory.cpp).
void copy(void* to, const void* from, size_t bytes);

namespace {

// End the process where a processor would fault.
[[maybe_unused]] void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "emulated instructions: %s\n", what);
  std::abort();
}
[[maybe_unused]] void require_aligned(const void* p) {
  require(reinterpret_cast<uintptr_t>(p) % 64 == 0, "an aligned access at an address that is no multiple of 64");
}

template <class Register>
Register load(const void* p) {
  Register r;
  std::memcpy(&r, p, sizeof r);
  return r;
}

template <class T, int N = 64 / sizeof(T)>
struct Lanes {
  T v[N];
};

template <class T>
Lanes<T> lanes(const __m512i& a) {
  return std::bit_cast<Lanes<T>>(a);
}

// Return the register of lanes f(0), f(1), ..., of which the low bits are kept.
template <class T, class F>
__m512i fill(F f) {
  Lanes<T> r;
  for (int i = 0; i < static_cast<int>(64 / sizeof(T)); ++i) r.v[i] = static_cast<T>(f(i));
  return std::bit_cast<__m512i>(r);
}

// Return the register of lanes f(a, b).
template <class T, class F>
__m512i each(const __m512i& a, const __m512i& b, F f) {
  const Lanes<T> x = lanes<T>(a), y = lanes<T>(b);
  return fill<T>([&](int i) { return f(x.v[i], y.v[i]); });
}

template <class F>
__m512 floats(F f) {
  __m512 r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}

}  // namespace
}  // namespace zp::emulated
