// The key-value cache: its page layout, sharing, growing and widening, and its C functions.
#include "decoder/cache.h"

#include <cstring>
#include <memory>

#include "core/half.h"
#include "decoder/model.h"

namespace zp {
namespace {

static_assert(kPage == ZP_PAGE);
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
  for (int64_t page = 0; page < pages; ++page)
    for (int64_t i = 0; i < layers * kv_heads && owners[static_cast<size_t>(page)] > 0; ++i) {
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

int32_t zp_cache::take_page() {
  const int32_t page = free_pages.back();
  free_pages.pop_back();
  owners[static_cast<size_t>(page)] = 1;
  return page;
}

void zp_cache::copy_page(int32_t from, int32_t to) {
  const int64_t size = page_bytes();
  for (int64_t layer = 0; layer < layers; ++layer)
    std::memcpy(head(layer, 0) + to * size, head(layer, 0) + from * size, static_cast<size_t>(size));
}

bool zp_cache::writes_to_shared(const Sequence& s, int64_t held) const {
  return s.length > held && held % zp::kPage != 0 && owners[static_cast<size_t>(s.pages.back())] > 1;
}

int64_t zp_cache::pages_needed(const std::vector<int64_t>& held) {
  int64_t needed = 0;
  // Pages that a sequence leaves because it copies them. Their owners are counted down meanwhile, because the last
  // owner of a page needs no copy.
  std::vector<int32_t> left;
  left.reserve(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& s = sequences[i];
    needed += zp::ceil_div(s.length, zp::kPage) - static_cast<int64_t>(s.pages.size());
    if (!writes_to_shared(s, held[i])) continue;
    left.push_back(s.pages.back());
    --owners[static_cast<size_t>(s.pages.back())];
    ++needed;
  }
  for (const int32_t page : left) ++owners[static_cast<size_t>(page)];
  return needed;
}

void zp_cache::take_pages(const std::vector<int64_t>& held) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = sequences[i];
    const auto wanted = static_cast<size_t>(zp::ceil_div(s.length, zp::kPage));
    s.pages.reserve(wanted);  // may throw, so it comes before any change
    if (writes_to_shared(s, held[i])) {
      const int32_t shared = s.pages.back();
      s.pages.back() = take_page();
      copy_page(shared, s.pages.back());
      --owners[static_cast<size_t>(shared)];
    }
    while (s.pages.size() < wanted) s.pages.push_back(take_page());
  }
}

void zp_cache::trim(Sequence& sequence) {
  const auto wanted = static_cast<size_t>(zp::ceil_div(sequence.length, zp::kPage));
  while (sequence.pages.size() > wanted) {
    const int32_t page = sequence.pages.back();
    sequence.pages.pop_back();
    if (--owners[static_cast<size_t>(page)] == 0) free_pages.push_back(page);  // has capacity: does not throw
  }
}

bool zp_cache::share(const Sequence& source, Sequence& target, int64_t length) {
  const auto whole = static_cast<size_t>(length / zp::kPage);
  const bool part = length % zp::kPage != 0;
  if (part && free_pages.empty()) return false;
  target.pages.reserve(whole + 1);  // may throw, so it comes before any change
  for (size_t i = 0; i < whole; ++i) {
    target.pages.push_back(source.pages[i]);
    ++owners[static_cast<size_t>(source.pages[i])];
  }
  if (part) {
    target.pages.push_back(take_page());
    copy_page(source.pages[whole], target.pages.back());
  }
  target.length = length;
  return true;
}

zp_status zp_cache::grow(int64_t most) {
  const int64_t wanted = zp::pages_for(most, static_cast<int64_t>(sequences.size()));
  free_pages.reserve(static_cast<size_t>(wanted));  // these may throw, so they come before any change
  owners.reserve(static_cast<size_t>(wanted));
  size_t larger_bytes = 0;
  uint8_t* const larger = zp::allocate_pages(*this, layout, wanted, larger_bytes);
  if (larger == nullptr) return zp::no_memory(most);
  const int64_t page = page_bytes();
  for (int64_t layer = 0; layer < layers; ++layer) {
    uint8_t* from = memory + layer * pages * page;
    for (int64_t p = 0; p < pages; ++p)
      if (owners[static_cast<size_t>(p)] > 0)
        std::memcpy(larger + (layer * wanted + p) * page, from + p * page, static_cast<size_t>(page));
    zp::forget(from, static_cast<size_t>(pages * page));  // so that memory need not hold both copies whole
  }
  zp::release(memory);
  // Pages are taken from the end of free_pages. New pages have the highest numbers and go to its beginning.
  free_pages.insert(free_pages.begin(), static_cast<size_t>(wanted - pages), 0);
  for (int64_t i = 0; i < wanted - pages; ++i)
    free_pages[static_cast<size_t>(i)] = static_cast<int32_t>(wanted - 1 - i);
  owners.resize(static_cast<size_t>(wanted), 0);
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
    cache->owners.resize(static_cast<size_t>(cache->pages), 0);
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

int64_t zp_cache_pages(const zp_cache* cache) {
  if (cache == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(cache->lock);
  return cache->pages;
}

int64_t zp_cache_free_pages(const zp_cache* cache) {
  if (cache == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(cache->lock);
  return static_cast<int64_t>(cache->free_pages.size());
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

zp_status zp_cache_share(zp_cache* cache, int32_t source, int32_t target, int64_t length) {
  for (const int32_t sequence : {source, target})
    if (const zp_status status = zp::check_sequence(cache, sequence); status != ZP_OK) return status;
  if (source == target) return fail(ZP_INVALID, "sequence %d cannot share with itself", source);
  return zp::guarded([&] {
    const std::lock_guard<std::mutex> lock(cache->lock);
    const zp_cache::Sequence& from = cache->sequences[static_cast<size_t>(source)];
    zp_cache::Sequence& to = cache->sequences[static_cast<size_t>(target)];
    if (to.length != 0)
      return fail(ZP_INVALID, "sequence %d has %ld tokens, and only an empty one can share another's", target,
                  static_cast<long>(to.length));
    if (length < 0 || length > from.length)
      return fail(ZP_INVALID, "sequence %d has %ld tokens, and cannot share %ld", source,
                  static_cast<long>(from.length), static_cast<long>(length));
    if (!cache->share(from, to, length))
      return fail(ZP_INVALID, "the cache is full: sharing %ld tokens copies a page, and no page is free",
                  static_cast<long>(length));
    return ZP_OK;
  });
}
