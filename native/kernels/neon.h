// What the vector types of the ARM64 levels share: 16 lanes in four 128-bit registers. vec_scalar.h documents the
// operations. A level's own header adds how it multiplies codes (ColumnSums).
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace zp::ZP_LEVEL {
namespace {

struct Neon {
  struct Int {
    int32x4_t v[4];
  };
  struct Float {
    float32x4_t v[4];
  };
  struct Codes {
    int8x16_t v[4];
  };

  static constexpr int kOffsetBytes = 0;

  // Return {f(0), ..., f(3)}: the four registers of a result.
  template <class Result, class F>
  __attribute__((always_inline)) static Result each(F&& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  static Codes load_bytes(const uint8_t* p) {
    const uint8x16x4_t all = vld1q_u8_x4(p);
    return each<Codes>([&](int i) { return vreinterpretq_s8_u8(all.val[i]); });
  }
  static void load_nibbles(const uint8_t* p, Codes& first, Codes& second) {
    const uint8x16_t mask = vdupq_n_u8(15);
    const uint8x16x4_t both = vld1q_u8_x4(p);
    first = each<Codes>([&](int i) { return vreinterpretq_s8_u8(vandq_u8(both.val[i], mask)); });
    second = each<Codes>([&](int i) { return vreinterpretq_s8_u8(vshrq_n_u8(both.val[i], 4)); });
  }
  // Add 16 to each byte of `codes` whose bit is set. The bits are bytes `at` to `at` + 7 of `bits`.
  static void add_fifths(uint8x16_t bits, int at, Codes& codes) {
    const uint8x16_t own = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    for (int i = 0; i < 4; ++i) {
      const uint8_t low = static_cast<uint8_t>(at + 2 * i), high = static_cast<uint8_t>(low + 1);
      const uint8x16_t spread = vqtbl1q_u8(bits, vcombine_u8(vdup_n_u8(low), vdup_n_u8(high)));
      const uint8x16_t set = vandq_u8(vtstq_u8(spread, own), vdupq_n_u8(16));
      codes.v[i] = vreinterpretq_s8_u8(vorrq_u8(vreinterpretq_u8_s8(codes.v[i]), set));
    }
  }
  static void add_fifths(const uint8_t* p, Codes& first, Codes& second) {
    const uint8x16_t bits = vld1q_u8(p);
    add_fifths(bits, 0, first);
    add_fifths(bits, 8, second);
  }
  template <bool NIBBLES>
  static Int dot(const Int& sum, const Codes& w, const int8_t* x);  // not defined: all products go to a ColumnSums
  static Int lane_code(const Codes& w, int j) {
    const int32x4_t left = vdupq_n_s32(24 - 8 * j);
    return each<Int>([&](int i) { return vshrq_n_s32(vshlq_s32(vreinterpretq_s32_s8(w.v[i]), left), 24); });
  }
  static Int set_int(int32_t a) {
    return each<Int>([&](int) { return vdupq_n_s32(a); });
  }
  static Float set_float(float a) {
    return each<Float>([&](int) { return vdupq_n_f32(a); });
  }
  static Int widen(const int8_t* p) {
    const int8x16_t all = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(all)), high = vmovl_high_s8(all);
    return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
  }
  static Int add(const Int& a, const Int& b) {
    return each<Int>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
  }
  static Int sub(const Int& a, const Int& b) {
    return each<Int>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
  }
  static Int mul(const Int& a, int32_t b) {
    return each<Int>([&](int i) { return vmulq_n_s32(a.v[i], b); });
  }
  static Int mul_short(const Int& a, int32_t b) { return mul(a, b); }
  static Int mul_lanes(const Int& a, const Int& b) {
    return each<Int>([&](int i) { return vmulq_s32(a.v[i], b.v[i]); });
  }
  template <int BITS>
  static Int shift_left(const Int& a) {
    return each<Int>([&](int i) { return vshlq_n_s32(a.v[i], BITS); });
  }
  template <int BITS>
  static Int shift_right(const Int& a) {
    return each<Int>([&](int i) { return vshrq_n_s32(a.v[i], BITS); });
  }
  static Float to_float(const Int& a) {
    return each<Float>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
  }
  static Float mul(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
  }
  static Float add(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
  }
  static Float sub(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
  }
  static Float div(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each<Float>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  static Float load(const float* p) {
    return each<Float>([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static void store(float* p, const Float& a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
  }
  static Float load_bf16(const uint16_t* p) {
    return each<Float>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static Int magnitude_bits(const Float& a) {
    return each<Int>([&](int i) { return vreinterpretq_s32_f32(vabsq_f32(a.v[i])); });
  }
  static Int max(const Int& a, const Int& b) {
    return each<Int>([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
  }
  static int32_t max_lane(const Int& a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
  }
  static int32_t sum_lanes(const Int& a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
  }
  // FCVTNS turns NaN into 0, and values beyond 32 bits into the nearest number.
  static Int round(const Float& a) {
    const float32x4_t limit = vdupq_n_f32(0x1p31f);
    return each<Int>([&](int i) {
      return vbslq_s32(vcaltq_f32(a.v[i], limit), vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
    });
  }
  static void store_bytes(int8_t* p, const Int& a) {
    const int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(a.v[0]), vreinterpretq_s16_s32(a.v[1]));
    const int16x8_t high = vuzp1q_s16(vreinterpretq_s16_s32(a.v[2]), vreinterpretq_s16_s32(a.v[3]));
    vst1q_s8(p, vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
  }
  static void store_int16(int16_t* p, const Int& a) {
    vst1q_s16(p, vuzp1q_s16(vreinterpretq_s16_s32(a.v[0]), vreinterpretq_s16_s32(a.v[1])));
    vst1q_s16(p + 8, vuzp1q_s16(vreinterpretq_s16_s32(a.v[2]), vreinterpretq_s16_s32(a.v[3])));
  }
  // FMAX and FMIN give NaN if a or b is NaN, and order zeros by sign. These give b, as other levels do.
  static float32x4_t max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Float max(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return max(a.v[i], b.v[i]); });
  }
  static Float min(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static Float if_greater(const Float& a, const Float& b, const Float& x, const Float& y) {
    return each<Float>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]); });
  }
  static uint32_t greater_bits(const Float& a, const Float& b) {
    constexpr uint32_t kBits[4] = {1, 2, 4, 8};
    const uint32x4_t own = vld1q_u32(kBits);
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits |= vaddvq_u32(vandq_u32(vcgtq_f32(a.v[i], b.v[i]), own)) << 4 * i;
    return bits;
  }
  static Float magnitude(const Float& a) {
    return each<Float>([&](int i) { return vabsq_f32(a.v[i]); });
  }
  static Float power_of_two(const Int& n) {
    return each<Float>(
        [&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23)); });
  }
  static float sum_lanes(const Float& a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(vpadd_f32(two, two), 0);
  }
  static float max_lane(const Float& a) {
    const float32x4_t four = max(max(a.v[0], a.v[2]), max(a.v[1], a.v[3]));
    const float32x4_t two = max(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(max(two, vextq_f32(two, two, 1)), 0);
  }
  static Float load_half(const uint16_t* p) {
    return each<Float>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static void store_half(uint16_t* p, const Float& a) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
  }
  __attribute__((always_inline)) static void prefetch(const void* p) { __builtin_prefetch(p); }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
