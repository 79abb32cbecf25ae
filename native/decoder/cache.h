// The key-value cache: pages of 64 positions. A sequence uses the same page numbers in every layer.
//
// Sequences that begin with the same tokens may share the pages of that beginning. The owners of a page are the
// sequences that use it, and a page without owners is free. A sequence writes only behind its last token. A truncated
// sequence can end within a shared page: it copies the page before it writes to it.
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
  int64_t tokens;  // this many tokens fit, however they are split among the sequences
  int64_t pages;
  zp::PageLayout layout{};
  uint8_t* memory = nullptr;  // [layer][page][kv_head]
  size_t bytes = 0;

  struct Sequence {
    int64_t length = 0;
    std::vector<int32_t> pages;  // page numbers, just enough for `length` positions
  };
  mutable std::mutex lock;
  std::vector<Sequence> sequences;
  std::vector<int32_t> owners;      // of each page: the number of sequences that use it
  std::vector<int32_t> free_pages;  // pages without owners; has capacity for all

  zp_cache() = default;
  zp_cache(const zp_cache&) = delete;
  zp_cache& operator=(const zp_cache&) = delete;
  ~zp_cache() { zp::release(memory); }

  // Convert a float16 cache to a wide one. Returns false, and changes nothing, if there is no memory.
  bool widen();

  // Return the sum of the sequences' lengths.
  int64_t used_tokens() const;
  // Return the most tokens that all pages can hold. Takes the lock, because another thread may make the cache grow.
  int64_t room() const {
    const std::lock_guard<std::mutex> held(lock);
    return pages * zp::kPage;
  }
  // Page p of a sequence is at head(layer, kv_head) + sequence.pages[p] * page_bytes().
  int64_t page_bytes() const { return kv_heads * layout.end; }
  uint8_t* head(int64_t layer, int64_t kv_head) const {
    return memory + (layer * pages * kv_heads + kv_head) * layout.end;
  }
  // Return how many free pages the sequences need for their lengths, copies of shared pages included. held[i] is the
  // length of sequence i before the step, for which it has pages.
  int64_t pages_needed(const std::vector<int64_t>& held);
  // Take the pages that pages_needed counts; so many must be free. If the step fails later, a sequence keeps its copy
  // of a shared page: the page's last owner may have written to the original.
  void take_pages(const std::vector<int64_t>& held);
  // Leave the pages beyond the sequence's length. Those without other owners become free.
  void trim(Sequence& sequence);
  // Let the empty `target` begin with the first `length` tokens of `source`. Returns false if there is no free page for
  // the copy of a page that `length` fills in part.
  bool share(const Sequence& source, Sequence& target, int64_t length);
  // Make room for `most` tokens, which is more than `tokens`. Pages in use keep their numbers and contents.
  zp_status grow(int64_t most);

 private:
  int32_t take_page();
  void copy_page(int32_t from, int32_t to);
  // True if a sequence that goes on at position `held` would write to a page that has other owners.
  bool writes_to_shared(const Sequence& sequence, int64_t held) const;
};
