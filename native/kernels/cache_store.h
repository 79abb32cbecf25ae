// Writing keys and values into cache pages: part of decoder_kernels.cpp, needs ZP_VEC's vector type.
#pragma once

#include "core/layout.h"
#include "kernels/decoder_kernels.h"
#include "vector_math.h"

namespace zp::ZP_LEVEL {
namespace {

// Prefetch the cache lines of one position's key: its channels lie kPage elements apart. Stores that miss the
// first-level cache wait for one another, prefetches do not.
template <class T>
void fetch_channels(const T* keys, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; ++i) V::prefetch(keys + i * kPage);
}

// Store the first `count` lanes (all, if count is larger) kPage elements apart. Full vectors take a loop without a
// comparison per lane, which would take longer than the store.
template <class T>
void scatter_channels(const T* lanes, int64_t count, T* keys) {
  if (count < kLanes) {
    for (int64_t j = 0; j < count; ++j) keys[j * kPage] = lanes[j];
    return;
  }
#pragma GCC unroll 16
  for (int64_t j = 0; j < kLanes; ++j) keys[j * kPage] = lanes[j];
}

// The bits of 65520, the smallest magnitude that rounds to infinity in float16.
constexpr int32_t kBeyondHalf = 0x477ff000;

// True if float16 can hold every value.
bool is_half(const float* x, int64_t count) {
  V::Int most = V::set_int(0);
  for (int64_t i = 0; i < count; i += kLanes) most = V::max(most, V::magnitude_bits(load(x + i, count - i)));
  return V::max_lane(most) < kBeyondHalf;
}

// Return false if a channel is beyond float16 and was stored as infinity.
bool store_halves(const PageLayout& layout, const float* key, const float* value, int64_t position,
                  uint8_t* page) {
  auto* keys = reinterpret_cast<uint16_t*>(page);
  auto* values = reinterpret_cast<uint16_t*>(page + layout.values) + position * layout.padded;
  fetch_channels(keys + position, layout.head_dim);
  V::Int most = V::set_int(0);
  for (int64_t i = 0; i < layout.head_dim; i += kLanes) {
    const int64_t left = layout.head_dim - i;
    const V::Float k = load(key + i, left), v = load(value + i, left);
    most = V::max(most, V::max(V::magnitude_bits(k), V::magnitude_bits(v)));
    uint16_t lanes[kLanes];
    V::store_half(lanes, k);
    scatter_channels(lanes, left, keys + i * kPage + position);
    V::store_half(values + i, v);
  }
  return V::max_lane(most) < kBeyondHalf;
}

// Round to float16 and convert back.
V::Float rounded(V::Float x) {
  uint16_t half[kLanes];
  V::store_half(half, x);
  return V::load_half(half);
}

// Store float32. In a wide cache (Element::kRounded), a key or value that float16 can hold is rounded to float16.
void store_floats(const PageLayout& layout, const float* key, const float* value, int64_t position,
                  uint8_t* page) {
  auto* keys = reinterpret_cast<float*>(page);
  auto* values = reinterpret_cast<float*>(page + layout.values) + position * layout.padded;
  const bool may_round = layout.element == Element::kRounded;
  const bool round_key = may_round && is_half(key, layout.head_dim),
             round_value = may_round && is_half(value, layout.head_dim);
  fetch_channels(keys + position, layout.head_dim);
  for (int64_t i = 0; i < layout.head_dim; i += kLanes) {
    const int64_t left = layout.head_dim - i;
    const V::Float k = load(key + i, left), v = load(value + i, left);
    float lanes[kLanes];
    V::store(lanes, round_key ? rounded(k) : k);
    scatter_channels(lanes, left, keys + i * kPage + position);
    V::store(values + i, round_value ? rounded(v) : v);
  }
}

// Quantize to int8 codes [round_up(count, 16)] and return their scale: NaN if a value is not finite.
float to_bytes(const float* x, int64_t count, int8_t* codes) {
  V::Int most = V::set_int(0);
  for (int64_t i = 0; i < count; i += kLanes) most = V::max(most, V::magnitude_bits(load(x + i, count - i)));
  const int32_t bits = V::max_lane(most);
  float absmax;
  std::memcpy(&absmax, &bits, 4);
  constexpr int32_t kInfinity = 0x7f800000, kTiny = 15 << 23;  // bits of infinity and of 2^-112
  const float inverse = bits < kTiny || bits >= kInfinity ? 0.0f : 127.0f / absmax;
  for (int64_t i = 0; i < count; i += kLanes) {
    const V::Int code =
        inverse == 0.0f ? V::set_int(0) : V::round(V::mul(load(x + i, count - i), V::set_float(inverse)));
    V::store_bytes(codes + i, code);
  }
  if (bits >= kInfinity) return __builtin_nanf("");
  return inverse == 0.0f ? 0.0f : absmax / 127.0f;
}

void store_bytes(const PageLayout& layout, const float* key, const float* value, int64_t position,
                 uint8_t* page) {
  auto* keys = reinterpret_cast<int8_t*>(page);
  auto* values = reinterpret_cast<int8_t*>(page + layout.values) + position * layout.padded;
  auto* key_scale = reinterpret_cast<float*>(page + layout.key_scale);
  auto* value_scale = reinterpret_cast<float*>(page + layout.value_scale);
  fetch_channels(keys + position, layout.head_dim);
  value_scale[position] = to_bytes(value, layout.head_dim, values);
  int8_t codes[kMaxHeadDim];
  key_scale[position] = to_bytes(key, layout.head_dim, codes);
  for (int64_t i = 0; i < layout.head_dim; ++i) keys[i * kPage + position] = codes[i];
}

bool store_position(const PageLayout& layout, const float* key, const float* value, int64_t position,
                    uint8_t* page) {
  if (layout.element == Element::kHalf) return store_halves(layout, key, value, position, page);
  layout.element == Element::kByte ? store_bytes(layout, key, value, position, page)
                                   : store_floats(layout, key, value, position, page);
  return true;
}

}  // namespace
}  // namespace zp::ZP_LEVEL
