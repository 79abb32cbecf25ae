// Stands in for the compiler's <immintrin.h> where the AVX-512 and AMX kernels are compiled for zeropoint_emulated: the
// intrinsics that these kernels use, in plain C++, so that tests run those kernels on any processor.
//
// Each function computes what Intel's Intrinsics Guide says of its name. A kernel that begins to use another intrinsic
// does not compile for zeropoint_emulated until that one is written here too. What would fault on a processor (an
// aligned access at another address), or is not emulated (a rounding that no kernel asks for), ends the process.
//
// The functions are defined in memory.cpp and arithmetic.cpp. Defined here, they would be inlined into the unrolled
// loops of the kernels, and the compiler would take minutes.
//
// The names lie in namespace zp, where the kernels find them before any of the same name that a header of the compiler
// may declare outside of it.
#pragma once

#include <cstdint>

#define _CMP_GT_OQ 0x1e
#define _MM_FROUND_TO_NEAREST_INT 0x00
#define _MM_HINT_T0 3
#define _MM_HINT_T1 2

namespace zp {

struct __m128 {
  float v[4];
};
struct __m256 {
  float v[8];
};
struct __m512 {
  float v[16];
};
struct __m128i {
  uint8_t bytes[16];
};
struct __m256i {
  uint8_t bytes[32];
};
struct __m512i {
  uint8_t bytes[64];
};
using __mmask16 = uint16_t;
using __mmask64 = uint64_t;

// Memory.
void _mm_prefetch(const char*, int);
void _mm_sfence();
__m128i _mm_loadu_si128(const __m128i* p);
void _mm_storeu_si128(__m128i* p, __m128i a);
__m256i _mm256_loadu_si256(const __m256i* p);
void _mm256_storeu_si256(__m256i* p, __m256i a);
__m512i _mm512_loadu_si512(const void* p);
__m512i _mm512_load_si512(const void* p);
void _mm512_store_si512(void* p, __m512i a);
__m512 _mm512_loadu_ps(const void* p);
__m512 _mm512_load_ps(const void* p);
void _mm512_storeu_ps(void* p, __m512 a);
void _mm512_store_ps(void* p, __m512 a);
void _mm512_stream_ps(void* p, __m512 a);
__m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p);
void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 a);

// Constants, and registers of another type or size.
__m512i _mm512_setzero_si512();
__m512 _mm512_setzero_ps();
__m512i _mm512_set1_epi8(char a);
__m512i _mm512_set1_epi32(int a);
__m512 _mm512_set1_ps(float a);
__m512i _mm512_set4_epi32(int d, int c, int b, int a);
__m128i _mm_cvtsi32_si128(int a);
__m512i _mm512_castps_si512(__m512 a);
__m512 _mm512_castsi512_ps(__m512i a);
__m256 _mm512_castps512_ps256(__m512 a);
__m256 _mm512_extractf32x8_ps(__m512 a, int half);
__m128 _mm256_castps256_ps128(__m256 a);
__m128 _mm256_extractf128_ps(__m256 a, int half);

// Integers.
__m512i _mm512_and_si512(__m512i a, __m512i b);
__m512i _mm512_xor_si512(__m512i a, __m512i b);
__m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table);
__m512i _mm512_add_epi8(__m512i a, __m512i b);
__m512i _mm512_sub_epi8(__m512i a, __m512i b);
__m512i _mm512_mask_add_epi8(__m512i other, __mmask64 mask, __m512i a, __m512i b);
__m512i _mm512_add_epi32(__m512i a, __m512i b);
__m512i _mm512_sub_epi32(__m512i a, __m512i b);
__m512i _mm512_mullo_epi32(__m512i a, __m512i b);
__m512i _mm512_mullo_epi16(__m512i a, __m512i b);
__m512i _mm512_max_epi32(__m512i a, __m512i b);
__m512i _mm512_abs_epi32(__m512i a);
__m512i _mm512_madd_epi16(__m512i a, __m512i b);
__m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b);
__m512i _mm512_shuffle_epi8(__m512i a, __m512i index);
__m512i _mm512_slli_epi32(__m512i a, unsigned bits);
__m512i _mm512_srl_epi32(__m512i a, __m128i count);
__m512i _mm512_srai_epi32(__m512i a, unsigned bits);
__m512i _mm512_srli_epi16(__m512i a, unsigned bits);
int _mm512_reduce_add_epi32(__m512i a);
int _mm512_reduce_max_epi32(__m512i a);

// Floats.
__m512 _mm512_add_ps(__m512 a, __m512 b);
__m512 _mm512_sub_ps(__m512 a, __m512 b);
__m512 _mm512_mul_ps(__m512 a, __m512 b);
__m512 _mm512_div_ps(__m512 a, __m512 b);
__m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c);
__m512 _mm512_max_ps(__m512 a, __m512 b);
__m512 _mm512_min_ps(__m512 a, __m512 b);
float _mm512_reduce_max_ps(__m512 a);
__mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate);
__m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b);
__m256 _mm256_add_ps(__m256 a, __m256 b);
__m128 _mm_add_ps(__m128 a, __m128 b);
__m128 _mm_add_ss(__m128 a, __m128 b);
__m128 _mm_movehl_ps(__m128 a, __m128 b);
__m128 _mm_movehdup_ps(__m128 a);
float _mm_cvtss_f32(__m128 a);

// Conversions.
__m512i _mm512_cvtepi8_epi32(__m128i a);
__m512i _mm512_cvtepu16_epi32(__m256i a);
__m128i _mm512_cvtepi32_epi8(__m512i a);
__m256i _mm512_cvtepi32_epi16(__m512i a);
__m512 _mm512_cvtepi32_ps(__m512i a);
__m512i _mm512_cvtps_epi32(__m512 a);
__m512 _mm512_cvtph_ps(__m256i a);
__m256i _mm512_cvtps_ph(__m512 a, int rounding);

}  // namespace zp
