// The accesses of the kernels' memory: in a build with sanitizers these are checked, and nothing else is (lanes.h).
#include <cstring>

#include "immintrin.h"
#include "lanes.h"

namespace zp {

void emulated::copy(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

// These do nothing that a result depends on.
void _mm_prefetch(const char*, int) {}
void _mm_sfence() {}

__m128i _mm_loadu_si128(const __m128i* p) {
  return emulated::load<__m128i>(p);
}
void _mm_storeu_si128(__m128i* p, __m128i a) {
  std::memcpy(p, &a, sizeof a);
}
__m256i _mm256_loadu_si256(const __m256i* p) {
  return emulated::load<__m256i>(p);
}
void _mm256_storeu_si256(__m256i* p, __m256i a) {
  std::memcpy(p, &a, sizeof a);
}
__m512i _mm512_loadu_si512(const void* p) {
  return emulated::load<__m512i>(p);
}
__m512i _mm512_load_si512(const void* p) {
  emulated::require_aligned(p);
  return emulated::load<__m512i>(p);
}
void _mm512_store_si512(void* p, __m512i a) {
  emulated::require_aligned(p);
  std::memcpy(p, &a, sizeof a);
}
__m512 _mm512_loadu_ps(const void* p) {
  return emulated::load<__m512>(p);
}
__m512 _mm512_load_ps(const void* p) {
  emulated::require_aligned(p);
  return emulated::load<__m512>(p);
}
void _mm512_storeu_ps(void* p, __m512 a) {
  std::memcpy(p, &a, sizeof a);
}
void _mm512_store_ps(void* p, __m512 a) {
  emulated::require_aligned(p);
  std::memcpy(p, &a, sizeof a);
}
void _mm512_stream_ps(void* p, __m512 a) {
  _mm512_store_ps(p, a);
}
// Lanes whose bit is not set are not accessed.
__m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  __m512 r = {};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) std::memcpy(&r.v[i], static_cast<const float*>(p) + i, 4);
  return r;
}
void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) std::memcpy(static_cast<float*>(p) + i, &a.v[i], 4);
}

}  // namespace zp
