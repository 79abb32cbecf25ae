// Loops over the pool of threads.
#pragma once

#include <atomic>

#include "core/pool.h"

namespace zp {

// Part `number` of `parts` of [0, items), cut at multiples of `unit`.
struct Share {
  int64_t begin, end;
};
inline Share share_of(int number, int parts, int64_t items, int64_t unit) {
  const int64_t units = (items + unit - 1) / unit, end = units * (number + 1) / parts * unit;
  return {units * number / parts * unit, end < items ? end : items};
}

// How threads divide a loop. Each has a share of its own, which it takes in pieces of `step` from the
// beginning on; a thread that is done with its own goes on with the others'. So a core reads the same part of
// the weights in every step of a model, one piece after the other, which suits its caches and the fetching
// ahead; and yet no share waits for a thread that has no core.
class Shares {
 public:
  static constexpr int kMost = 16;  // threads beyond them have one together with another thread

  static int parts(int threads) { return threads < kMost ? threads : kMost; }

  Shares(int threads, int64_t items, int64_t step, int64_t unit) : parts_(parts(threads)), step_(step) {
    for (int i = 0; i < parts_; ++i) {
      const Share share = share_of(i, parts_, items, unit);
      taken_[i].next.store(share.begin, std::memory_order_relaxed);
      taken_[i].end = share.end;
    }
  }
  // body(begin, end) over pieces until none is left.
  template <class F>
  void take(int thread, F&& body) {
    for (int i = 0; i < parts_; ++i) {
      Taken& share = taken_[(thread + i) % parts_];
      for (int64_t begin; (begin = share.next.fetch_add(step_, std::memory_order_relaxed)) < share.end;)
        body(begin, begin + step_ < share.end ? begin + step_ : share.end);
    }
  }

 private:
  struct alignas(64) Taken {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  Taken taken_[kMost];
  int parts_;
  int64_t step_;
};

// body(begin, end) over pieces of [0, count). On one thread, which may be a thread of the pool, there is one
// piece.
template <class F>
void parallel(int threads, int64_t count, int64_t step, F&& body) {
  if (threads <= 1 || count <= step) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  struct Job {
    F& body;
    Shares shares;
  } job{body, Shares(threads, count, step, step)};
  const auto work = [](void* context, int thread) {
    Job& j = *static_cast<Job*>(context);
    j.shares.take(thread, j.body);
  };
  Pool::shared().run(threads, work, &job);
}

// Rows that take about `cost` nanoseconds each: in pieces, unless starting a thread takes longer.
template <class F>
void each_row(int threads, int64_t rows, double cost, F&& body) {
  constexpr double kWorthwhile = 4000;
  const bool alone = static_cast<double>(rows) * cost < kWorthwhile;
  const int64_t step = (rows + 4 * threads - 1) / (4 * threads);
  parallel(alone ? 1 : threads, rows, step, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace zp
