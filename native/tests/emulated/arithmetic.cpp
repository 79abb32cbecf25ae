// The intrinsics of immintrin.h that compute, lane by lane. They access their operands alone. So this file is compiled
// without sanitizers, whose checks of each lane would make the tests several times slower.
#include "immintrin.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace zp {
namespace {

// A NaN keeps its sign and the high bits of its payload, and becomes quiet.
float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  if (exponent == 31 && fraction != 0) return std::bit_cast<float>(sign | 0x7fc00000u | fraction << 13);
  const float size = exponent == 31  ? INFINITY
                     : exponent == 0 ? static_cast<float>(fraction) * 0x1p-24f
                                     : std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
  return sign != 0 ? -size : size;
}

// Round to the nearest, ties to even.
uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const float size = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
  if (size >= 65520) return static_cast<uint16_t>(sign | 0x7c00u);
  // In units of the last place; the numbers below 2^-14 have the places of those from 2^-14 on. A sum that is carried
  // into the exponent is right, too.
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | ((static_cast<uint32_t>(exponent + 14) << 10) + units));
}

}  // namespace

// -- the same value in every lane, and no operation at all -----------------------------------------------------

__m512i _mm512_setzero_si512() {
  return {};
}
__m512 _mm512_setzero_ps() {
  return {};
}
__m512i _mm512_set1_epi8(char a) {
  return emulated::fill<int8_t>([=](int) { return static_cast<int8_t>(a); });
}
__m512i _mm512_set1_epi32(int a) {
  return emulated::fill<int32_t>([=](int) { return a; });
}
__m512 _mm512_set1_ps(float a) {
  return emulated::floats([=](int) { return a; });
}
__m512i _mm512_set4_epi32(int d, int c, int b, int a) {
  const int four[] = {a, b, c, d};
  return emulated::fill<int32_t>([&](int i) { return four[i % 4]; });
}
__m128i _mm_cvtsi32_si128(int a) {
  __m128i r = {};
  std::memcpy(r.bytes, &a, 4);
  return r;
}
__m512i _mm512_castps_si512(__m512 a) {
  return std::bit_cast<__m512i>(a);
}
__m512 _mm512_castsi512_ps(__m512i a) {
  return std::bit_cast<__m512>(a);
}
__m256 _mm512_castps512_ps256(__m512 a) {
  return emulated::load<__m256>(a.v);
}
__m256 _mm512_extractf32x8_ps(__m512 a, int half) {
  return emulated::load<__m256>(a.v + 8 * half);
}
__m128 _mm256_castps256_ps128(__m256 a) {
  return emulated::load<__m128>(a.v);
}
__m128 _mm256_extractf128_ps(__m256 a, int half) {
  return emulated::load<__m128>(a.v + 4 * half);
}

// -- integers: sums and products wrap around -------------------------------------------------------------------

__m512i _mm512_and_si512(__m512i a, __m512i b) {
  return emulated::each<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; });
}
__m512i _mm512_xor_si512(__m512i a, __m512i b) {
  return emulated::each<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x ^ y; });
}
// Bit 4 * A + 2 * B + C of `table` is the result for bits A, B and C of the operands.
__m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  const auto x = emulated::lanes<uint32_t>(a), y = emulated::lanes<uint32_t>(b), z = emulated::lanes<uint32_t>(c);
  return emulated::fill<uint32_t>([&](int i) {
    uint32_t r = 0;
    for (int row = 0; row < 8; ++row)
      if (table >> row & 1)
        r |= (row & 4 ? x.v[i] : ~x.v[i]) & (row & 2 ? y.v[i] : ~y.v[i]) & (row & 1 ? z.v[i] : ~z.v[i]);
    return r;
  });
}
__m512i _mm512_add_epi8(__m512i a, __m512i b) {
  return emulated::each<uint8_t>(a, b, [](uint8_t x, uint8_t y) { return x + y; });
}
__m512i _mm512_sub_epi8(__m512i a, __m512i b) {
  return emulated::each<uint8_t>(a, b, [](uint8_t x, uint8_t y) { return x - y; });
}
__m512i _mm512_mask_add_epi8(__m512i other, __mmask64 mask, __m512i a, __m512i b) {
  const auto x = emulated::lanes<uint8_t>(a), y = emulated::lanes<uint8_t>(b), z = emulated::lanes<uint8_t>(other);
  return emulated::fill<uint8_t>([&](int i) { return mask >> i & 1 ? x.v[i] + y.v[i] : z.v[i]; });
}
__m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return emulated::each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}
__m512i _mm512_sub_epi32(__m512i a, __m512i b) {
  return emulated::each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x - y; });
}
__m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
  return emulated::each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x * y; });
}
// Promoted to int, a product of 16-bit lanes could overflow.
__m512i _mm512_mullo_epi16(__m512i a, __m512i b) {
  return emulated::each<uint16_t>(a, b, [](uint32_t x, uint32_t y) { return x * y; });
}
__m512i _mm512_max_epi32(__m512i a, __m512i b) {
  return emulated::each<int32_t>(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; });
}
__m512i _mm512_abs_epi32(__m512i a) {
  return emulated::each<uint32_t>(a, a, [](uint32_t x, uint32_t) { return x >> 31 ? 0 - x : x; });
}
__m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  const auto x = emulated::lanes<int16_t>(a), y = emulated::lanes<int16_t>(b);
  return emulated::fill<uint32_t>([&](int i) {
    return static_cast<uint32_t>(x.v[2 * i] * y.v[2 * i]) + static_cast<uint32_t>(x.v[2 * i + 1] * y.v[2 * i + 1]);
  });
}
// VPDPBUSD: `a` is unsigned, `b` signed. VPDPBUSDS would saturate.
__m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  const auto s = emulated::lanes<uint32_t>(sum);
  const auto x = emulated::lanes<uint8_t>(a);
  const auto y = emulated::lanes<int8_t>(b);
  return emulated::fill<uint32_t>([&](int i) {
    int32_t dot = 0;
    for (int j = 4 * i; j < 4 * i + 4; ++j) dot += x.v[j] * y.v[j];
    return s.v[i] + static_cast<uint32_t>(dot);
  });
}
// Within each 16 bytes of `a`, take the bytes whose numbers `index` names; 0 where bit 7 of a number is set.
__m512i _mm512_shuffle_epi8(__m512i a, __m512i index) {
  return emulated::fill<uint8_t>([&](int i) {
    const uint8_t at = index.bytes[i];
    return at & 0x80 ? 0 : a.bytes[(i & ~15) + (at & 15)];
  });
}

// A shift by more bits than a lane has gives 0, or copies of the sign.
__m512i _mm512_slli_epi32(__m512i a, unsigned bits) {
  return emulated::each<uint32_t>(a, a, [=](uint32_t x, uint32_t) { return bits > 31 ? 0 : x << bits; });
}
__m512i _mm512_srl_epi32(__m512i a, __m128i count) {
  uint64_t bits;
  std::memcpy(&bits, count.bytes, 8);
  return emulated::each<uint32_t>(a, a, [=](uint32_t x, uint32_t) { return bits > 31 ? 0 : x >> bits; });
}
__m512i _mm512_srai_epi32(__m512i a, unsigned bits) {
  return emulated::each<int32_t>(a, a, [=](int32_t x, int32_t) { return x >> (bits > 31 ? 31 : bits); });
}
__m512i _mm512_srli_epi16(__m512i a, unsigned bits) {
  return emulated::each<uint16_t>(a, a, [=](uint16_t x, uint16_t) { return bits > 15 ? 0 : x >> bits; });
}

int _mm512_reduce_add_epi32(__m512i a) {
  uint32_t sum = 0;
  for (const uint32_t x : emulated::lanes<uint32_t>(a).v) sum += x;
  return static_cast<int>(sum);
}
int _mm512_reduce_max_epi32(__m512i a) {
  int32_t most = INT32_MIN;
  for (const int32_t x : emulated::lanes<int32_t>(a).v) most = x > most ? x : most;
  return most;
}

// -- floats ------------------------------------------------------------------------------------------------

__m512 _mm512_add_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.v[i] + b.v[i]; });
}
__m512 _mm512_sub_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.v[i] - b.v[i]; });
}
__m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.v[i] * b.v[i]; });
}
__m512 _mm512_div_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.v[i] / b.v[i]; });
}
__m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return emulated::floats([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
// If one operand is NaN, or both are zero, the result is b.
__m512 _mm512_max_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
__m512 _mm512_min_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// Both halves of the lanes are compared, then both halves of the result, and so on, as compilers do it: the order
// matters where there is a NaN.
float _mm512_reduce_max_ps(__m512 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i + half] > a.v[i] ? a.v[i + half] : a.v[i];
  return a.v[0];
}
__mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  emulated::require(predicate == _CMP_GT_OQ, "a comparison other than _CMP_GT_OQ");
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= unsigned{a.v[i] > b.v[i]} << i;
  return static_cast<__mmask16>(mask);
}
__m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b) {
  return emulated::floats([&](int i) { return mask >> i & 1 ? b.v[i] : a.v[i]; });
}

__m256 _mm256_add_ps(__m256 a, __m256 b) {
  for (int i = 0; i < 8; ++i) a.v[i] += b.v[i];
  return a;
}
__m128 _mm_add_ps(__m128 a, __m128 b) {
  for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
  return a;
}
__m128 _mm_add_ss(__m128 a, __m128 b) {
  a.v[0] += b.v[0];
  return a;
}
__m128 _mm_movehl_ps(__m128 a, __m128 b) {
  return {{b.v[2], b.v[3], a.v[2], a.v[3]}};
}
__m128 _mm_movehdup_ps(__m128 a) {
  return {{a.v[1], a.v[1], a.v[3], a.v[3]}};
}
float _mm_cvtss_f32(__m128 a) {
  return a.v[0];
}

// -- conversions -------------------------------------------------------------------------------------------

__m512i _mm512_cvtepi8_epi32(__m128i a) {
  return emulated::fill<int32_t>([&](int i) { return static_cast<int8_t>(a.bytes[i]); });
}
__m512i _mm512_cvtepu16_epi32(__m256i a) {
  const auto x = std::bit_cast<emulated::Lanes<uint16_t, 16>>(a);
  return emulated::fill<int32_t>([&](int i) { return x.v[i]; });
}
// Narrower integers keep the low bits.
__m128i _mm512_cvtepi32_epi8(__m512i a) {
  const auto x = emulated::lanes<uint32_t>(a);
  __m128i r;
  for (int i = 0; i < 16; ++i) r.bytes[i] = static_cast<uint8_t>(x.v[i]);
  return r;
}
__m256i _mm512_cvtepi32_epi16(__m512i a) {
  const auto x = emulated::lanes<uint32_t>(a);
  emulated::Lanes<uint16_t, 16> r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<uint16_t>(x.v[i]);
  return std::bit_cast<__m256i>(r);
}
__m512 _mm512_cvtepi32_ps(__m512i a) {
  const auto x = emulated::lanes<int32_t>(a);
  return emulated::floats([&](int i) { return static_cast<float>(x.v[i]); });
}
// To the nearest, ties to even; INT32_MIN for NaN and for what 32 bits cannot hold.
__m512i _mm512_cvtps_epi32(__m512 a) {
  return emulated::fill<int32_t>([&](int i) {
    const float x = a.v[i];
    return x >= -0x1p31f && x < 0x1p31f ? static_cast<int32_t>(std::nearbyint(x)) : INT32_MIN;
  });
}
__m512 _mm512_cvtph_ps(__m256i a) {
  const auto x = std::bit_cast<emulated::Lanes<uint16_t, 16>>(a);
  return emulated::floats([&](int i) { return half_to_float(x.v[i]); });
}
__m256i _mm512_cvtps_ph(__m512 a, int rounding) {
  emulated::require(rounding == _MM_FROUND_TO_NEAREST_INT, "a rounding other than to the nearest");
  emulated::Lanes<uint16_t, 16> r;
  for (int i = 0; i < 16; ++i) r.v[i] = float_to_half(a.v[i]);
  return std::bit_cast<__m256i>(r);
}

}  // namespace zp
