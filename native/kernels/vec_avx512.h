// The kernels' vector type on AVX-512 with VNNI: one 512-bit register. vec_scalar.h documents the operations.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace zp::ZP_LEVEL {
namespace {

struct Vec {
  using Int = __m512i;
  using Float = __m512;
  using Codes = __m512i;

  // VPDPBUSD multiplies unsigned by signed bytes. The weight is the unsigned operand, raised by 128. The correction is
  // then one number per token and segment: 128 times the sum of the input's codes.
  static constexpr int kOffsetBytes = 128;
  static constexpr int kRows = 12;  // rows of the largest register tile
  static constexpr int kWide = 4;   // blocks of a tile with one row

  // No ColumnSums: dot() adds the products of four columns to the lanes.
  static constexpr int64_t most_columns(bool, bool) { return 0; }
  static constexpr int kRowsTogether = 1;
  template <int, bool>
  struct ColumnSums {};

  static Codes load_bytes(const uint8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static void load_nibbles(const uint8_t* p, Codes& first, Codes& second) {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i both = _mm512_loadu_si512(p);
    first = _mm512_and_si512(both, mask);
    second = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
  static void add_fifths(const uint8_t* p, Codes& first, Codes& second) {
    uint64_t bits[2];
    std::memcpy(bits, p, 16);
    const __m512i fifth = _mm512_set1_epi8(16);
    first = _mm512_mask_add_epi8(first, bits[0], first, fifth);
    second = _mm512_mask_add_epi8(second, bits[1], second, fifth);
  }
  template <bool NIBBLES>
  static Int dot(Int sum, Codes w, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
  }
  // Loaded codes are unsigned here.
  static Int lane_code(Codes w, int j) {
    return _mm512_and_si512(_mm512_srl_epi32(w, _mm_cvtsi32_si128(8 * j)), _mm512_set1_epi32(255));
  }
  static Int set_int(int32_t a) { return _mm512_set1_epi32(a); }
  static Float set_float(float a) { return _mm512_set1_ps(a); }
  static Int widen(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int mul(Int a, int32_t b) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(b)); }
  static Int mul_short(Int a, int32_t b) { return _mm512_madd_epi16(a, _mm512_set1_epi32(b & 0xffff)); }
  static Int mul_lanes(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  template <int BITS>
  static Int shift_left(Int a) {
    return _mm512_slli_epi32(a, BITS);
  }
  template <int BITS>
  static Int shift_right(Int a) {
    return _mm512_srai_epi32(a, BITS);
  }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static Float load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Int magnitude_bits(Float a) {
    return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
  }
  static Int max(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static int32_t max_lane(Int a) { return _mm512_reduce_max_epi32(a); }
  static int32_t sum_lanes(Int a) { return _mm512_reduce_add_epi32(a); }
  static Int round(Float a) { return _mm512_cvtps_epi32(a); }
  static void store_bytes(int8_t* p, Int a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  static void store_int16(int16_t* p, Int a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
  }

  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float if_greater(Float a, Float b, Float x, Float y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
  }
  static uint32_t greater_bits(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static Float magnitude(Float a) { return _mm512_castsi512_ps(magnitude_bits(a)); }
  static Float power_of_two(Int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  static float sum_lanes(Float a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float max_lane(Float a) { return _mm512_reduce_max_ps(a); }
  static Float load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_half(uint16_t* p, Float a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  __attribute__((always_inline)) static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
