// What a thread is going to read. It asks for it while it waits for others, so that memory is not idle
// meanwhile.
#pragma once

#include <cstdint>

namespace zp {

class Ahead {
 public:
  void clear() { count_ = at_ = 0; }
  // Nobody has to keep the memory: asking for what is gone does no harm.
  void add(const uint8_t* begin, int64_t bytes) {
    if (count_ < kMost) ranges_[count_++] = {begin, begin + bytes};
  }
  // Asks for a few cache lines more, into the second-level cache; false when all were asked for.
  bool some() {
    while (at_ < count_ && ranges_[at_].begin >= ranges_[at_].end) ++at_;
    if (at_ == count_) return false;
    Range& range = ranges_[at_];
    for (int i = 0; i < kLines; ++i, range.begin += kLine) __builtin_prefetch(range.begin, 0, 2);
    return true;
  }

 private:
  static constexpr int kMost = 8, kLines = 8;
  static constexpr int64_t kLine = 64;

  struct Range {
    const uint8_t *begin, *end;
  };
  Range ranges_[kMost];
  int count_ = 0, at_ = 0;
};

// The calling thread's.
Ahead& ahead();

}  // namespace zp
