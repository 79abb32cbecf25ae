// What the vector types of the levels avx2 and avxvnni share: 16 lanes in two 256-bit registers. vec_scalar.h documents
// the operations. A level's own header adds how it multiplies codes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace zp::ZP_LEVEL {
namespace {

struct Avx2 {
  struct Int {
    __m256i a, b;
  };
  struct Float {
    __m256 a, b;
  };
  using Codes = Int;

  static constexpr int kRows = 4;  // rows of the largest register tile
  static constexpr int kWide = 2;  // blocks of a tile with one row

  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Codes load_stored(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
  static void load_nibbles(const uint8_t* p, Codes& first, Codes& second) {
    const __m256i mask = _mm256_set1_epi8(15);
    const Codes both = load_stored(p);
    first = {_mm256_and_si256(both.a, mask), _mm256_and_si256(both.b, mask)};
    second = {_mm256_and_si256(_mm256_srli_epi16(both.a, 4), mask),
              _mm256_and_si256(_mm256_srli_epi16(both.b, 4), mask)};
  }
  // Return 16 in each byte whose bit is set.
  static __m256i fifths(const uint8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i mask = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i own = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), mask);
    return _mm256_and_si256(_mm256_cmpeq_epi8(own, mask), _mm256_set1_epi8(16));
  }
  static void add_fifths(const uint8_t* p, Codes& first, Codes& second) {
    first = {_mm256_add_epi8(first.a, fifths(p)), _mm256_add_epi8(first.b, fifths(p + 4))};
    second = {_mm256_add_epi8(second.a, fifths(p + 8)), _mm256_add_epi8(second.b, fifths(p + 12))};
  }
  // Return x[0..3], repeated in each lane.
  static __m256i load_four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  static Int set_int(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
  static Float set_float(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
  static Int widen(const int8_t* p) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_srli_si128(all, 8))};
  }
  static Int add(Int x, Int y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static Int sub(Int x, Int y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
  static Int mul(Int x, int32_t y) {
    const __m256i all = _mm256_set1_epi32(y);
    return {_mm256_mullo_epi32(x.a, all), _mm256_mullo_epi32(x.b, all)};
  }
  static Int mul_short(Int x, int32_t y) {
    const __m256i all = _mm256_set1_epi32(y & 0xffff);
    return {_mm256_madd_epi16(x.a, all), _mm256_madd_epi16(x.b, all)};
  }
  static Int mul_lanes(Int x, Int y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
  template <int BITS>
  static Int shift_left(Int x) {
    return {_mm256_slli_epi32(x.a, BITS), _mm256_slli_epi32(x.b, BITS)};
  }
  template <int BITS>
  static Int shift_right(Int x) {
    return {_mm256_srai_epi32(x.a, BITS), _mm256_srai_epi32(x.b, BITS)};
  }
  static Float to_float(Int x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static Float mul(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static Float add(Float x, Float y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static Float fma(Float x, Float y, Float z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static Float load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, Float x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static __m256 from_bf16(__m128i half) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Float load_bf16(const uint16_t* p) {
    return {from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static Int magnitude_bits(Float x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(x.a), mask),
            _mm256_and_si256(_mm256_castps_si256(x.b), mask)};
  }
  static Int max(Int x, Int y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
  static int32_t max_lane(Int x) {
    const __m256i m = _mm256_max_epi32(x.a, x.b);
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    return _mm_cvtsi128_si32(h);
  }
  static int32_t sum_lanes(Int x) {
    const __m256i s = _mm256_add_epi32(x.a, x.b);
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    return _mm_cvtsi128_si32(h);
  }
  static Int round(Float x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
  static void store_bytes(int8_t* p, Int x) {
    __m256i words = _mm256_packs_epi32(x.a, x.b);
    words = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }

  static void store_int16(int16_t* p, Int x) {
    const __m256i words = _mm256_packs_epi32(x.a, x.b);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
  }

  static Float sub(Float x, Float y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static Float div(Float x, Float y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static Float max(Float x, Float y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static Float min(Float x, Float y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static Float if_greater(Float a, Float b, Float x, Float y) {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
            _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
  }
  static uint32_t greater_bits(Float a, Float b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
              high = _mm256_movemask_ps(_mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ));
    return static_cast<uint32_t>(high << 8 | low);
  }
  static Float magnitude(Float x) {
    const Int bits = magnitude_bits(x);
    return {_mm256_castsi256_ps(bits.a), _mm256_castsi256_ps(bits.b)};
  }
  static Float power_of_two(Int n) {
    n = shift_left<23>(add(n, set_int(127)));
    return {_mm256_castsi256_ps(n.a), _mm256_castsi256_ps(n.b)};
  }
  static float sum_lanes(Float x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float max_lane(Float x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static Float load_half(const uint16_t* p) {
    const auto* half = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
  }
  static void store_half(uint16_t* p, Float x) {
    auto* half = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(half, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(half + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
  }
  __attribute__((always_inline)) static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
