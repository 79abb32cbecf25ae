// The kernels' vector type in portable C++: 16 lanes in plain arrays. The operations are documented here; vec_avx2.h
// and vec_avx512.h have the same ones, with the same results.
//
// Int and Float hold 16 lanes. Codes holds 64 bytes, four per lane: codes of four columns of 16 output channels.
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

  static constexpr int kOffsetBytes = 0;  // load_bytes adds it to the codes
  static constexpr int kRows = 2;         // rows of the largest register tile
  static constexpr int kWide = 1;         // blocks of a tile with one row

  // The most columns whose products a ColumnSums can sum; 0: none, dot() adds the products of four columns to the lanes.
  static constexpr int64_t most_columns(bool /* nibbles */, bool /* fifths */) { return 0; }
  static constexpr int kRowsTogether = 1;  // rows of a ColumnSums in tiles whose number of rows it divides
  // Sums of products of ROWS rows by a block, at first 0. NIBBLES: no code is negative. Levels that have it define
  //   void add(Codes first, Codes second, const int8_t* const* x, int64_t k);  // columns k to k + 7 of rows x[0], ...
  //   Int add_to(Int sum, int row);  // returns `sum` plus the sums of a row
  template <int ROWS, bool NIBBLES>
  struct ColumnSums {};

  static Codes load_bytes(const uint8_t* p) {
    Codes c;
    std::memcpy(c.v, p, 64);
    return c;
  }
  // Load 128 nibbles: the low halves of the bytes into `first`, the high halves into `second`. Codes are raised by 8.
  static void load_nibbles(const uint8_t* p, Codes& first, Codes& second) {
    for (int i = 0; i < 64; ++i) {
      first.v[i] = static_cast<int8_t>(p[i] & 15);
      second.v[i] = static_cast<int8_t>(p[i] >> 4);
    }
  }
  // Add the fifth bits. Codes are raised by 16 then.
  static void add_fifths(const uint8_t* p, Codes& first, Codes& second) {
    for (int i = 0; i < 64; ++i) {
      first.v[i] = static_cast<int8_t>(first.v[i] + (p[i / 8] >> i % 8 & 1) * 16);
      second.v[i] = static_cast<int8_t>(second.v[i] + (p[8 + i / 8] >> i % 8 & 1) * 16);
    }
  }
  // Add to each lane the dot product of its four codes with x[0..3]. NIBBLES: no code is negative.
  template <bool NIBBLES>
  static Int dot(Int sum, const Codes& w, const int8_t* x) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 4; ++j) sum.v[i] += int32_t{w.v[4 * i + j]} * x[j];
    return sum;
  }
  // Return byte j of every lane.
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
  // Load 16 signed bytes.
  static Int widen(const int8_t* p) {
    Int r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i];
    return r;
  }
  // Sums wrap around on overflow, as on every other level.
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
  // Return a * b for a zero point a, where b fits 16 bits.
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
  // Return the bits of |a|, which compare like |a|.
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
  static Int round(Float a) {  // to the nearest, ties to even
    Int r;
    for (int i = 0; i < 16; ++i)  // NaN, and values beyond 32 bits: INT32_MIN, as on x86
      r.v[i] = a.v[i] >= -0x1p31f && a.v[i] < 0x1p31f ? static_cast<int32_t>(__builtin_nearbyintf(a.v[i]))
                                                      : INT32_MIN;
    return r;
  }
  // Store the lanes as bytes.
  static void store_bytes(int8_t* p, Int a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
  }
  // Store the lanes as 16-bit numbers.
  static void store_int16(int16_t* p, Int a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(a.v[i]);
  }

  static Float sub(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static Float div(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i];
    return a;
  }
  // If a or b is NaN, the result is b; the same for min.
  static Float max(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static Float min(Float a, Float b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  // Return a > b ? x : y in each lane; y if a or b is NaN.
  static Float if_greater(Float a, Float b, Float x, Float y) {
    for (int i = 0; i < 16; ++i) x.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i];
    return x;
  }
  // Return bits: bit i is set if a is greater than b in lane i.
  static uint32_t greater_bits(Float a, Float b) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= uint32_t{a.v[i] > b.v[i]} << i;
    return bits;
  }
  static Float magnitude(Float a) {
    for (auto& v : a.v) v = __builtin_fabsf(v);
    return a;
  }
  // Return 2^n for n in -127..127; 0 for -127.
  static Float power_of_two(Int n) {
    Float r;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(n.v[i] + 127) << 23;
      std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  // Add lanes i and i + 8, then i and i + 4, and so on: every level adds in this order.
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
  // Always inline: GCC takes a function that only prefetches for one without effect, and deletes calls that it does not
  // inline early.
  __attribute__((always_inline)) static void prefetch(const void* p) { __builtin_prefetch(p); }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
