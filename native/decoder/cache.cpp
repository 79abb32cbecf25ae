// The key-value cache: its page layout, growing and widening, and its C functions.
#include "decoder/cache.h"

#include <cstring>
#include <memory>

#include "core/half.h"
#include "decoder/model.h"

namespace zp {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 31;
constexpr int32_t kMostSequences = 1 << 20;

PageLayout page_layout(int64_t head_dim, Element element) {
  PageLayout p{};
  p.head_dim = head_dim;
  p.padded = round_up(head_dim, kLanes);
  p.element = element;
  const int64_t bytes = element == Element::kByte ? 1 : element == Element::kHalf ? 2 : 4;
  const int64_t scales = element == Element::kByte ? kPage * 4 : 0;
  p.values = kPage * head_dim * bytes;
  p.key_scale = p.values + kPage * p.padded * bytes;
  p.value_scale = p.key_scale + scales;
  p.end = p.value_scale + scales;
  return p;
}

// Return how pages are stored. `overflowed`: the decoder has met a key or value beyond float16.
Element element_of(int32_t type, bool overflowed) {
  if (type == ZP_CACHE_FLOAT16) return overflowed ? Element::kRounded : Element::kHalf;
  return type == ZP_CACHE_INT8 ? Element::kByte : Element::kSingle;
}

// Convert a page's keys and values from float16 to float32.
void widen_page(const uint8_t* from, const PageLayout& half, uint8_t* to) {
  const auto* values = reinterpret_cast<const uint16_t*>(from);
  auto* wide = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < half.end / 2; ++i) wide[i] = half_to_float(values[i]);
}

zp_status check_tokens(int64_t tokens) {
  if (tokens < 1 || tokens > kMostTokens)
    return fail(ZP_INVALID, "a cache has room for 1 to %ld tokens, not %ld", static_cast<long>(kMostTokens),
                static_cast<long>(tokens));
  return ZP_OK;
}

// Return how many pages suffice for `tokens` tokens, however they are split among `sequences` sequences.
int64_t pages_for(int64_t tokens, int64_t sequences) {
  const int64_t open = sequences < tokens ? sequences : tokens;
  return (tokens - open) / kPage + open;
}

// Allocate the pages of all layers, `bytes` in all. Returns null if there is no memory.
uint8_t* allocate_pages(const zp_cache& cache, const PageLayout& layout, int64_t pages, size_t& bytes) {
  const int64_t page = cache.kv_heads * layout.end;  // at most 2^16 heads of 2^22 bytes
  if (!fits(cache.layers * pages, page)) return nullptr;
  bytes = static_cast<size_t>(cache.layers * pages * page);
  return static_cast<uint8_t*>(allocate(bytes));
}

zp_status no_memory(int64_t tokens) {
  return fail(ZP_NO_MEMORY, "no memory for the keys and values of %ld tokens", static_cast<long>(tokens));
}

zp_status check_sequence(const zp_cache* cache, int32_t sequence) {
  if (cache == nullptr) return fail(ZP_INVALID, "the cache is null");
  if (sequence < 0 || sequence >= static_cast<int64_t>(cache->sequences.size()))
    return fail(ZP_INVALID, "there is no sequence %d in a cache of %zu", sequence, cache->sequences.size());
  return ZP_OK;
}

}  // namespace
}  // namespace zp

bool zp_cache::widen() {
  const zp::PageLayout wide = zp::page_layout(layout.head_dim, zp::Element::kRounded);
  size_t wide_bytes = 0;
  uint8_t* const fresh = zp::allocate_pages(*this, wide, pages, wide_bytes);
  if (fresh == nullptr) return false;
  for (const Sequence& sequence : sequences)
    for (const int64_t page : sequence.pages)
      for (int64_t i = 0; i < layers * kv_heads; ++i) {
        const int64_t number = (i / kv_heads * pages + page) * kv_heads + i % kv_heads;
        zp::widen_page(memory + number * layout.end, layout, fresh + number * wide.end);
      }
  zp::release(memory);
  memory = fresh;
  bytes = wide_bytes;
  layout = wide;
  return true;
}

int64_t zp_cache::used_tokens() const {
  int64_t used = 0;
  for (const Sequence& s : sequences) used += s.length;
  return used;
}

void zp_cache::reserve(Sequence& sequence, int64_t length) {
  const auto wanted = static_cast<size_t>(zp::ceil_div(length, zp::kPage));
  if (wanted > sequence.pages.size()) sequence.pages.reserve(wanted);
  while (sequence.pages.size() < wanted) {
    sequence.pages.push_back(free_pages.back());
    free_pages.pop_back();
  }
}

void zp_cache::trim(Sequence& sequence) {
  const auto wanted = static_cast<size_t>(zp::ceil_div(sequence.length, zp::kPage));
  while (sequence.pages.size() > wanted) {
    free_pages.push_back(sequence.pages.back());  // has capacity for all pages: does not throw
    sequence.pages.pop_back();
  }
}

zp_status zp_cache::grow(int64_t most) {
  const int64_t wanted = zp::pages_for(most, static_cast<int64_t>(sequences.size()));
  free_pages.reserve(static_cast<size_t>(wanted));  // may throw, so it comes before any change
  size_t larger_bytes = 0;
  uint8_t* const larger = zp::allocate_pages(*this, layout, wanted, larger_bytes);
  if (larger == nullptr) return zp::no_memory(most);
  const int64_t page = page_bytes();
  for (int64_t layer = 0; layer < layers; ++layer) {
    uint8_t* from = memory + layer * pages * page;
    for (const Sequence& s : sequences)
      for (const int32_t p : s.pages)
        std::memcpy(larger + (layer * wanted + p) * page, from + p * page, static_cast<size_t>(page));
    zp::forget(from, static_cast<size_t>(pages * page));  // so that memory need not hold both copies whole
  }
  zp::release(memory);
  // Pages are taken from the end of free_pages. New pages have the highest numbers and go to its beginning.
  free_pages.insert(free_pages.begin(), static_cast<size_t>(wanted - pages), 0);
  for (int64_t i = 0; i < wanted - pages; ++i)
    free_pages[static_cast<size_t>(i)] = static_cast<int32_t>(wanted - 1 - i);
  memory = larger;
  bytes = larger_bytes;
  pages = wanted;
  tokens = most;
  return ZP_OK;
}

using zp::fail;

zp_status zp_cache_create(const zp_decoder* decoder, int64_t tokens, int32_t sequences, int32_t type,
                          zp_cache** out) {
  if (decoder == nullptr || out == nullptr) return fail(ZP_INVALID, "a pointer is null");
  *out = nullptr;
  if (!decoder->finished) return fail(ZP_INVALID, "the decoder is not finished");
  if (sequences < 1 || sequences > zp::kMostSequences)
    return fail(ZP_INVALID, "a cache has 1 to %d sequences, not %d", zp::kMostSequences, sequences);
  if (const zp_status status = zp::check_tokens(tokens); status != ZP_OK) return status;
  if (type < ZP_CACHE_FLOAT16 || type > ZP_CACHE_FLOAT32)
    return fail(ZP_INVALID, "there is no cache type %d", type);
  return zp::guarded([&] {
    auto cache = std::make_unique<zp_cache>();
    cache->decoder = decoder;
    cache->layers = decoder->config.layers;
    cache->kv_heads = decoder->config.kv_heads;
    cache->tokens = tokens;
    cache->pages = zp::pages_for(tokens, sequences);
    cache->layout =
        zp::page_layout(decoder->config.head_dim, zp::element_of(type, decoder->overflowed.load()));
    cache->memory = zp::allocate_pages(*cache, cache->layout, cache->pages, cache->bytes);
    if (cache->memory == nullptr) return zp::no_memory(tokens);
    cache->sequences.resize(static_cast<size_t>(sequences));
    cache->free_pages.reserve(static_cast<size_t>(cache->pages));
    for (int64_t page = cache->pages - 1; page >= 0; --page)
      cache->free_pages.push_back(static_cast<int32_t>(page));
    *out = cache.release();
    return ZP_OK;
  });
}

int32_t zp_cache_is_wide(const zp_cache* cache) {
  if (cache == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(cache->lock);
  return cache->layout.element == zp::Element::kRounded ? 1 : 0;
}

void zp_cache_free(zp_cache* cache) {
  delete cache;
}

size_t zp_cache_bytes(const zp_cache* cache) {
  if (cache == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(cache->lock);
  return cache->bytes;
}

zp_status zp_cache_grow(zp_cache* cache, int64_t tokens) {
  if (cache == nullptr) return fail(ZP_INVALID, "the cache is null");
  if (const zp_status status = zp::check_tokens(tokens); status != ZP_OK) return status;
  return zp::guarded([&] {
    const std::lock_guard<std::mutex> lock(cache->lock);
    return tokens <= cache->tokens ? ZP_OK : cache->grow(tokens);
  });
}

int64_t zp_cache_length(const zp_cache* cache, int32_t sequence) {
  if (zp::check_sequence(cache, sequence) != ZP_OK) return -1;
  const std::lock_guard<std::mutex> lock(cache->lock);
  return cache->sequences[static_cast<size_t>(sequence)].length;
}

zp_status zp_cache_truncate(zp_cache* cache, int32_t sequence, int64_t length) {
  if (const zp_status status = zp::check_sequence(cache, sequence); status != ZP_OK) return status;
  const std::lock_guard<std::mutex> lock(cache->lock);
  zp_cache::Sequence& s = cache->sequences[static_cast<size_t>(sequence)];
  if (length < 0 || length > s.length)
    return fail(ZP_INVALID, "sequence %d has %ld tokens and cannot be cut to %ld", sequence,
                static_cast<long>(s.length), static_cast<long>(length));
  s.length = length;
  cache->trim(s);
  return ZP_OK;
}
