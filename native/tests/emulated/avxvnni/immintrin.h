// The instructions of AVX-VNNI that the kernels use, computed by those of AVX2, so that any CPU with AVX2 runs the
// level avxvnni in zeropoint_emulated.
#pragma once

#include_next <immintrin.h>

inline __m256i emulated_dpwssd(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

// Bytes are widened first: VPMADDUBSW would saturate.
inline __m256i emulated_dpbusd(__m256i sum, __m256i a, __m256i b) {
  const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)),
                                        _mm256_cvtepi8_epi16(_mm256_castsi256_si128(b)));
  const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1)),
                                         _mm256_cvtepi8_epi16(_mm256_extracti128_si256(b, 1)));
  return _mm256_add_epi32(sum, _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8));
}

#define _mm256_dpwssd_avx_epi32 emulated_dpwssd
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
