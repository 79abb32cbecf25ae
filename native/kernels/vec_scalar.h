// The kernels' vector type in portable C++: 16 lanes in plain arrays.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace zp::ZP_LEVEL {
namespace {

struct Vec {
  struct Int {
    int32_t v[16];
  };
  struct Float {
    float v[16];
  };
  struct Codes {
    int8_t v[64];
  };

  static constexpr int kOffsetBytes = 0;  // what a code loaded from bytes is raised by
  static constexpr int kRows = 2;         // of a register tile
  static constexpr int kWide = 1;         // blocks of a tile with few rows

  static Codes load_bytes(const uint8_t* p) {
    Codes c;
    std::memcpy(c.v, p, 64);
    return c;
  }
  static void load_nibbles(const uint8_t* p, Codes& first, Codes& second) {
    for (int i = 0; i < 64; ++i) {
      first.v[i] = static_cast<int8_t>(p[i] & 15);
      second.v[i] = static_cast<int8_t>(p[i] >> 4);
    }
  }
  static void add_fifths(const uint8_t* p, Codes& first, Codes& second) {
    for (int i = 0; i < 64; ++i) {
      first.v[i] = static_cast<int8_t>(first.v[i] + (p[i / 8] >> i % 8 & 1) * 16);
      second.v[i] = static_cast<int8_t>(second.v[i] + (p[8 + i / 8] >> i % 8 & 1) * 16);
    }
  }
  template <bool NIBBLES>
  static Int dot(Int sum, const Codes& w, const int8_t* x) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 4; ++j) sum.v[i] += int32_t{w.v[4 * i + j]} * x[j];
    return sum;
  }
  static Int lane_code(const Codes& w, int j) {
    Int r;
    for (int i = 0; i < 16; ++i) r.v[i] = w.v[4 * i + j];
    return r;
  }
  static Int set_int(int32_t a) {
    Int r;
    for (auto& v : r.v) v = a;
    return r;
  }
  static Float set_float(float a) {
    Float r;
    for (auto& v : r.v) v = a;
    return r;
  }
  static Int widen(const int8_t* p) {
    Int r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i];
    return r;
  }
  // Sums wrap around, as on every other level.
  static int32_t wrapped(uint32_t a) { return static_cast<int32_t>(a); }
  static Int add(Int a, Int b) {
    for (int i = 0; i < 16; ++i)
      a.v[i] = wrapped(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static Int sub(Int a, Int b) {
    for (int i = 0; i < 16; ++i)
      a.v[i] = wrapped(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static Int mul(Int a, int32_t b) {
    for (int i = 0; i < 16; ++i)
      a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b));
    return a;
  }
  // a * b where b fits 16 bits and a is a zero point.
  static Int mul_short(Int a, int32_t b) { return mul(a, b); }
  static Int mul_lanes(Int a, Int b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
  }
  template <int BITS>
  static Int shift_left(Int a) {
    for (int i = 0; i < 16; ++i) a.v[i] *= 1 << BITS;
    return a;
  }
  template <int BITS>
  static Int shift_right(Int a) {  // keeps the sign
    for (int i = 0; i < 16; ++i) a.v[i] >>= BITS;
    return a;
  }
  static Float to_float(Int a) {
    Float r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
    return r;
  }
  static Float mul(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static Float add(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Float fma(Float a, Float b, Float c) {
    for (int i = 0; i < 16; ++i) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
  }
  static Float load(const float* p) {
    Float r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static void store(float* p, Float a) { std::memcpy(p, a.v, sizeof a.v); }
  static Float load_bf16(const uint16_t* p) {
    Float r;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
      std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  static Int magnitude_bits(Float a) {
    Int r;
    for (int i = 0; i < 16; ++i) {
      std::memcpy(&r.v[i], &a.v[i], 4);
      r.v[i] &= 0x7fffffff;
    }
    return r;
  }
  static Int max(Int a, Int b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static int32_t max_lane(Int a) {
    int32_t r = a.v[0];
    for (int i = 1; i < 16; ++i) r = a.v[i] > r ? a.v[i] : r;
    return r;
  }
  static int32_t sum_lanes(Int a) {
    int32_t r = 0;
    for (const auto v : a.v) r += v;
    return r;
  }
  static Int round(Float a) {  // half to even: the default rounding mode
    Int r;
    for (int i = 0; i < 16; ++i)  // beyond 32 bits and NaN: the least number, as on x86
      r.v[i] = a.v[i] >= -0x1p31f && a.v[i] < 0x1p31f ? static_cast<int32_t>(__builtin_nearbyintf(a.v[i]))
                                                      : INT32_MIN;
    return r;
  }
  static void store_bytes(int8_t* p, Int a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
  }

  static Float sub(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static Float div(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i];
    return a;
  }
  // With a NaN on either side the result is b.
  static Float max(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static Float min(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  // a > b ? x : y in each lane; y with a NaN on either side.
  static Float if_greater(Float a, Float b, Float x, Float y) {
    for (int i = 0; i < 16; ++i) x.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i];
    return x;
  }
  static Float magnitude(Float a) {
    for (auto& v : a.v) v = __builtin_fabsf(v);
    return a;
  }
  // 2 to the power of n in -127..127; 0 for -127.
  static Float power_of_two(Int n) {
    Float r;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(n.v[i] + 127) << 23;
      std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  // Lanes i and i + 8, then i and i + 4, ...: every level adds in this order.
  static float sum_lanes(Float a) {
    for (int half = 8; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    return a.v[0];
  }
  static float max_lane(Float a) {
    float r = a.v[0];
    for (int i = 1; i < 16; ++i) r = a.v[i] > r ? a.v[i] : r;
    return r;
  }
  static Float load_half(const uint16_t* p) {
    Float r;
    for (int i = 0; i < 16; ++i) r.v[i] = half_to_float(p[i]);
    return r;
  }
  static void store_half(uint16_t* p, Float a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
