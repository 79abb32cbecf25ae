// Keys and values in pages of 64 positions. A sequence's pages are the same in every layer.
//
// A cache in half precision becomes wide when a key or value is beyond 65,504: it is kept in single precision from
// then on, what fits half precision still rounded to it. So results do not depend on when it became wide.
#pragma once

#include <mutex>
#include <vector>

#include "core/internal.h"
#include "kernels/decoder_kernels.h"

struct zp_cache {
  const zp_decoder* decoder;  // whose it is; not used otherwise, since it may be gone
  int64_t layers, kv_heads;
  int64_t tokens;  // the most, of all sequences together
  int64_t pages;
  zp::PageLayout layout{};
  uint8_t* memory = nullptr;  // [layer][page][kv_head]
  size_t bytes = 0;

  struct Sequence {
    int64_t length = 0;
    std::vector<int32_t> pages;  // enough for `length`
  };
  mutable std::mutex lock;
  std::vector<Sequence> sequences;
  std::vector<int32_t> free_pages;

  zp_cache() = default;
  zp_cache(const zp_cache&) = delete;
  zp_cache& operator=(const zp_cache&) = delete;
  ~zp_cache() { zp::release(memory); }

  // Half precision becomes single, with its contents. False: no memory; the cache is then as before.
  bool widen();

  int64_t used_tokens() const;
  // The most tokens of all sequences together, while another thread may let the cache grow.
  int64_t room() const {
    const std::lock_guard<std::mutex> held(lock);
    return tokens;
  }
  // Page p of a sequence, of one layer and head, lies at head(layer, h) + table[p] * page_bytes().
  int64_t page_bytes() const { return kv_heads * layout.end; }
  uint8_t* head(int64_t layer, int64_t kv_head) const {
    return memory + (layer * pages * kv_heads + kv_head) * layout.end;
  }
  // Takes pages so that `length` positions fit; there are enough as long as `tokens` is respected.
  void reserve(Sequence& sequence, int64_t length);
  // Gives back the pages beyond the length.
  void trim(Sequence& sequence);
  // Makes room for `most` tokens, more than there is room for now; pages in use keep their number and contents.
  zp_status grow(int64_t most);
};
