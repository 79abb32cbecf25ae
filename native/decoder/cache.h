// The key-value cache: pages of 64 positions. A sequence uses the same page numbers in every layer.
//
// A float16 cache becomes wide when a key or value is beyond 65,504: it stores float32 from then on, but still rounds
// to float16 what float16 can hold. So results do not depend on when it became wide.
#pragma once

#include <mutex>
#include <vector>

#include "core/internal.h"
#include "kernels/decoder_kernels.h"

struct zp_cache {
  const zp_decoder* decoder;  // the cache's decoder; only compared, because it may have been freed
  int64_t layers, kv_heads;
  int64_t tokens;  // the most tokens of all sequences together
  int64_t pages;
  zp::PageLayout layout{};
  uint8_t* memory = nullptr;  // [layer][page][kv_head]
  size_t bytes = 0;

  struct Sequence {
    int64_t length = 0;
    std::vector<int32_t> pages;  // page numbers, enough for `length` positions
  };
  mutable std::mutex lock;
  std::vector<Sequence> sequences;
  std::vector<int32_t> free_pages;

  zp_cache() = default;
  zp_cache(const zp_cache&) = delete;
  zp_cache& operator=(const zp_cache&) = delete;
  ~zp_cache() { zp::release(memory); }

  // Convert a float16 cache to a wide one. Returns false, and changes nothing, if there is no memory.
  bool widen();

  int64_t used_tokens() const;
  // Return `tokens`, also while another thread makes the cache grow.
  int64_t room() const {
    const std::lock_guard<std::mutex> held(lock);
    return tokens;
  }
  // Page p of a sequence is at head(layer, kv_head) + sequence.pages[p] * page_bytes().
  int64_t page_bytes() const { return kv_heads * layout.end; }
  uint8_t* head(int64_t layer, int64_t kv_head) const {
    return memory + (layer * pages * kv_heads + kv_head) * layout.end;
  }
  // Take free pages until `length` positions fit. There are enough as long as all sequences together have at most
  // `tokens` tokens.
  void reserve(Sequence& sequence, int64_t length);
  // Free the pages beyond the sequence's length.
  void trim(Sequence& sequence);
  // Make room for `most` tokens, which is more than `tokens`. Pages in use keep their numbers and contents.
  zp_status grow(int64_t most);
};
