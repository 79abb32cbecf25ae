// The kernels' vector type on AVX-VNNI: the 256-bit forms of VPDPBUSD and VPDPWSSD, on processors without AVX-512.
#pragma once

#include "avx2.h"

namespace zp::ZP_LEVEL {
namespace {

struct Vec : Avx2 {
  // VPDPBUSD multiplies unsigned by signed bytes. The weight is the unsigned operand, raised by 128, as on AVX-512.
  static constexpr int kOffsetBytes = 128;

  static Codes load_bytes(const uint8_t* p) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    const Codes stored = load_stored(p);
    return {_mm256_xor_si256(stored.a, flip), _mm256_xor_si256(stored.b, flip)};
  }
  template <bool NIBBLES>
  static Int dot(Int sum, Codes w, const int8_t* x) {
    const __m256i all = load_four(x);
    return {_mm256_dpbusd_avx_epi32(sum.a, w.a, all), _mm256_dpbusd_avx_epi32(sum.b, w.b, all)};
  }
  // No ColumnSums: dot() adds the products of four columns to the lanes.
  static constexpr int64_t most_columns(bool, bool) { return 0; }
  static constexpr int kRowsTogether = 1;
  template <int, bool>
  struct ColumnSums {};
  // Return `sum` plus the products of pairs of 16-bit numbers.
  static __m256i add_products(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
  // Loaded codes are unsigned here.
  static Int lane_code(Codes w, int j) {
    const __m128i right = _mm_cvtsi32_si128(8 * j);
    const __m256i mask = _mm256_set1_epi32(255);
    return {_mm256_and_si256(_mm256_srl_epi32(w.a, right), mask), _mm256_and_si256(_mm256_srl_epi32(w.b, right), mask)};
  }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
