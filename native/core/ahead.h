// Prefetching while a thread waits: the memory that the thread will read next, brought into its second-level cache.
#pragma once

#include <cstdint>

namespace zp {

// A list of memory ranges to prefetch.
class Ahead {
 public:
  void clear() { count_ = at_ = 0; }
  // Add a range; ignored if the list is full. The memory may be freed meanwhile: a prefetch of it does no harm.
  void add(const uint8_t* begin, int64_t bytes) {
    if (count_ < kMost) ranges_[count_++] = {begin, begin + bytes};
  }
  // Prefetch the next few cache lines into the second-level cache. Returns false if none is left.
  bool prefetch_some() {
    while (at_ < count_ && ranges_[at_].begin >= ranges_[at_].end) ++at_;
    if (at_ == count_) return false;
    Range& range = ranges_[at_];
    for (int i = 0; i < kLines; ++i, range.begin += kLine) __builtin_prefetch(range.begin, 0, 2);
    return true;
  }

 private:
  static constexpr int kMost = 8;       // ranges
  static constexpr int kLines = 8;      // cache lines at a time
  static constexpr int64_t kLine = 64;  // bytes of a cache line

  struct Range {
    const uint8_t *begin, *end;
  };
  Range ranges_[kMost];
  int count_ = 0, at_ = 0;
};

// Return the calling thread's list.
Ahead& ahead();

}  // namespace zp
