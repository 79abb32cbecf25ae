// The kernels' vector type on AVX2. VPMADDUBSW multiplies bytes, VPMADDWD 16-bit numbers.
#pragma once

#include "avx2.h"

namespace zp::ZP_LEVEL {
namespace {

struct Vec : Avx2 {
  static constexpr int kOffsetBytes = 0;

  static Codes load_bytes(const uint8_t* p) { return load_stored(p); }
  // Return the sums of four products. VPMADDUBSW multiplies unsigned by signed bytes and adds two products in 16 bits,
  // saturating. Bytes: the unsigned operand is |w| <= 128, and x within +-127 takes the sign of w. A pair of products
  // is then at most 2 * 128 * 127 = 32512, so the sum is exact.
  template <bool NIBBLES>
  static __m256i quad(__m256i w, __m256i x) {
    const __m256i pairs = NIBBLES ? _mm256_maddubs_epi16(w, x)
                                  : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  template <bool NIBBLES>
  static Int dot(Int sum, Codes w, const int8_t* x) {
    const __m256i all = load_four(x);
    return {_mm256_add_epi32(sum.a, quad<NIBBLES>(w.a, all)),
            _mm256_add_epi32(sum.b, quad<NIBBLES>(w.b, all))};
  }
  // Products of nibbles are summed in 16 bits first, two products in each. 32 columns of nibbles do not overflow (8 sums
  // of at most 2 * 15 * 127), nor do 16 columns with fifth bits (4 sums of at most 2 * 31 * 127).
  static constexpr int64_t most_columns(bool nibbles, bool fifths) { return nibbles ? (fifths ? 16 : 32) : 0; }
  static Int dot_pairs(Int sum, Codes w, const int8_t* x) {
    const __m256i all = load_four(x);
    return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(w.a, all)),
            _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(w.b, all))};
  }
  // Add both 16-bit sums of each lane.
  static Int add_pairs(Int sum, Int pairs) {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(pairs.a, one)),
            _mm256_add_epi32(sum.b, _mm256_madd_epi16(pairs.b, one))};
  }
  static constexpr int kRowsTogether = 1;
  template <int, bool>
  struct ColumnSums {
    Int pairs = set_int(0);

    void add(Codes first, Codes second, const int8_t* const* x, int64_t k) {
      pairs = dot_pairs(dot_pairs(pairs, first, *x + k), second, *x + k + 4);
    }
    Int add_to(Int sum, int) const { return add_pairs(sum, pairs); }
  };
  // Return `sum` plus the products of pairs of 16-bit numbers.
  static __m256i add_products(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  static Int lane_code(Codes w, int j) {
    const __m128i left = _mm_cvtsi32_si128(24 - 8 * j);
    return {_mm256_srai_epi32(_mm256_sll_epi32(w.a, left), 24),
            _mm256_srai_epi32(_mm256_sll_epi32(w.b, left), 24)};
  }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
