// Weights widened to bytes, and outputs from integer sums, for the kernels that sum many rows: part of amx.cpp and
// vnni.cpp, needs AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/layout.h"

#ifndef ZP_INLINE
#define ZP_INLINE __attribute__((always_inline)) inline
#endif

namespace zp {
namespace {

// Keep the compiler from moving accesses of memory across this point.
ZP_INLINE void compiler_barrier() {
  asm volatile("" ::: "memory");
}

int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

__m512 load_scale(const Weight& w, int64_t at) {
  if (w.nested) return _mm512_loadu_ps(static_cast<const float*>(w.scale) + at / w.groups);
  if (!w.scale_bf16) return _mm512_loadu_ps(static_cast<const float*>(w.scale) + at);
  const void* p = static_cast<const uint16_t*>(w.scale) + at;
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
}

__m512i load_zero(const Weight& w, int64_t at) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero_point + at)));
}

// True if no float scale varies along the row, so that whole rows are summed as integers.
bool sums_whole_rows(const Weight& w) {
  return !w.scale_by_segment && !w.input_by_segment;
}

// True if zero points are subtracted from the sums. That is so for codes of 6 to 8 bits, because code - zero_point may
// not fit a byte.
bool byte_zeros(const Weight& w) {
  return w.asymmetric && !w.nibbles;
}

// The stored codes of eight columns of a block: code + 8, or code + 16 with fifth bits. `first` has columns 0 to 3,
// `second` columns 4 to 7.
struct Raised {
  __m512i first, second;
};

template <bool FIFTHS>
ZP_INLINE Raised raised(const uint8_t* nibbles, const uint8_t* fifths) {
  const __m512i mask = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
  const __m512i both = _mm512_loadu_si512(nibbles);
  Raised codes = {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
  if constexpr (FIFTHS) {
    uint64_t set[2];
    std::memcpy(set, fifths, 16);
    codes.first = _mm512_mask_add_epi8(codes.first, set[0], codes.first, fifth);
    codes.second = _mm512_mask_add_epi8(codes.second, set[1], codes.second, fifth);
  }
  return codes;
}

// Widen columns [begin, end) of a block's nibbles to bytes: code - zero_point + RAISE.
template <bool FIFTHS, int RAISE>
ZP_INLINE void widen_plain(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  const __m512i spread = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const int64_t group = w.segment * w.segments_per_group;
  const uint8_t* in = w.codes + (block * w.columns_padded + begin) * 8;
  const uint8_t* bits = w.fifth + (FIFTHS ? (block * w.columns_padded + begin) * 2 : 0);
  for (int64_t k = begin; k < end;) {
    const int64_t g = smaller(k / group, w.groups - 1),
                  stop = g + 1 < w.groups ? smaller((g + 1) * group, end) : end;
    __m512i zero = _mm512_set1_epi8(static_cast<char>((FIFTHS ? 16 : 8) - RAISE));
    if (w.asymmetric)
      zero = _mm512_add_epi8(zero, _mm512_shuffle_epi8(load_zero(w, (block * w.groups + g) * 16), spread));
    for (; k < stop; k += 8, in += 64, bits += 16, out += 128) {
      const Raised codes = raised<FIFTHS>(in, bits);
      _mm512_store_si512(out, _mm512_sub_epi8(codes.first, zero));
      _mm512_store_si512(out + 64, _mm512_sub_epi8(codes.second, zero));
    }
  }
}

// Widen the codes of a weight with two-level scales to bytes: (nibble - 8) * multiplier + RAISE. The multiplier's
// magnitude m is at most 15, so m * nibble <= 15 * 15 fits a byte. So one 16-bit multiplication by m multiplies two
// bytes at once, and nothing carries from the low one into the high one. For a negative multiplier the nibble n is
// complemented first: (n - 8) * -m = (15 - n) * m - 7 * m. Codes of 5 bits have 16 in place of 8 and m at most 7: the
// product is at most 7 * 31, which fits a byte too.
template <bool FIFTHS, int RAISE>
ZP_INLINE void widen_nested(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  constexpr int kHalf = FIFTHS ? 4 : 3;  // the offset of the codes is 2^kHalf
  const __m512i mask = _mm512_set1_epi8((2 << kHalf) - 1);
  const __m512i words = _mm512_set4_epi32(0x0d0c0d0c, 0x09080908, 0x05040504, 0x01000100);
  const __m512i bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  constexpr int kFlipAndMask = 0x28;  // (a ^ b) & c
  const int64_t group = w.segment * w.segments_per_group;
  const uint8_t* in = w.codes + (block * w.columns_padded + begin) * 8;
  const uint8_t* bits = w.fifth + (FIFTHS ? (block * w.columns_padded + begin) * 2 : 0);
  for (int64_t k = begin; k < end;) {
    const int64_t g = smaller(k / group, w.groups - 1),
                  stop = g + 1 < w.groups ? smaller((g + 1) * group, end) : end;
    const __m512i multiple = _mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.multiplier + (block * w.groups + g) * kLanes)));
    const __m512i size = _mm512_abs_epi32(multiple), sign = _mm512_srai_epi32(multiple, 31);
    const __m512i factor = _mm512_shuffle_epi8(size, words);
    const __m512i below = _mm512_sub_epi32(_mm512_slli_epi32(size, kHalf), size);
    const __m512i offset =
        _mm512_sub_epi8(_mm512_shuffle_epi8(_mm512_max_epi32(below, _mm512_slli_epi32(multiple, kHalf)), bytes),
                        _mm512_set1_epi8(static_cast<char>(RAISE)));
    for (; k < stop; k += 8, in += 64, bits += 16, out += 128) {
      const Raised codes = raised<FIFTHS>(in, bits);
      const __m512i first = _mm512_ternarylogic_epi32(codes.first, sign, mask, kFlipAndMask);
      const __m512i second = _mm512_ternarylogic_epi32(codes.second, sign, mask, kFlipAndMask);
      _mm512_store_si512(out, _mm512_sub_epi8(_mm512_mullo_epi16(first, factor), offset));
      _mm512_store_si512(out + 64, _mm512_sub_epi8(_mm512_mullo_epi16(second, factor), offset));
    }
  }
}

// Widen columns [begin, end) of a block of nibbles to signed bytes (RAISE = 0) or unsigned ones (RAISE = 128).
template <int RAISE = 0>
ZP_INLINE void widen(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  if (w.nested && w.fifths)
    widen_nested<true, RAISE>(w, block, begin, end, out);
  else if (w.nested)
    widen_nested<false, RAISE>(w, block, begin, end, out);
  else if (w.fifths)
    widen_plain<true, RAISE>(w, block, begin, end, out);
  else
    widen_plain<false, RAISE>(w, block, begin, end, out);
}

// A block of 16 columns of the output; fewer at the output's end.
struct OutputColumns {
  float* y;
  int64_t stride;
  __m512 bias;
  __mmask16 mask;
  bool streams;

  ZP_INLINE void store(int64_t row, __m512 value) const {
    value = _mm512_add_ps(value, bias);
    if (streams)
      _mm512_stream_ps(y + row * stride, value);
    else
      _mm512_mask_storeu_ps(y + row * stride, mask, value);
  }
};

ZP_INLINE OutputColumns output_columns(const Product& p, int64_t block, bool streams) {
  const int64_t column = block * 16;
  const int64_t count = smaller(16, p.weight->rows - column);
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  // Without a bias -0 is added, which changes no value.
  const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + column) : _mm512_set1_ps(-0.0f);
  return {p.y + column, p.y_stride, bias, mask, streams && count == 16};
}

// Return 128 * high + low as float, rounded as `join` in output.h rounds it.
ZP_INLINE __m512 join_limbs(__m512i high, __m512i low) {
  const __m512i rest = _mm512_and_si512(low, _mm512_set1_epi32(127));
  high = _mm512_add_epi32(high, _mm512_srai_epi32(low, 7));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(rest));
}

// Return 128 * high + low as float, rounded as join_limbs rounds it. Both sums must be exact as floats: at most 2^24.
ZP_INLINE __m512 join_small_limbs(__m512i high, __m512i low) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(low));
}
// True if the weight needs no join_small_limbs, or the sums of its segments are exact as floats. Two limbs with a float
// scale that varies along the row need it. Their sums are exact in segments of up to 518 columns: a limb times a weight
// is at most 127 * 255 in magnitude, and 518 * 127 * 255 is less than 2^24.
bool joins_exactly(const Weight& w) {
  return w.limbs == 1 || sums_whole_rows(w) || w.segment <= 518;
}

}  // namespace
}  // namespace zp
