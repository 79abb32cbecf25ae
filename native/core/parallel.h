// Loops over the pool of threads.
#pragma once

#include <atomic>

#include "core/pool.h"

namespace zp {

// Items [begin, end).
struct Share {
  int64_t begin, end;
};
// Return part `number` of [0, items) divided into `parts` nearly equal parts, cut at multiples of `unit`.
inline Share share_of(int number, int parts, int64_t items, int64_t unit) {
  const int64_t units = (items + unit - 1) / unit, end = units * (number + 1) / parts * unit;
  return {units * number / parts * unit, end < items ? end : items};
}

// Division of a loop's items among threads. Each thread has a share of its own and takes it in pieces of `step` items,
// in order. A thread that has finished its share takes pieces of the other shares.
//
// Fixed shares suit the caches and the prefetching: a core reads the same weights in every forward step. Taking pieces
// of other shares keeps a loop from waiting for a thread whose core is busy elsewhere.
class Shares {
 public:
  static constexpr int kMost = 16;  // with more threads, some threads have the same share

  static int parts(int threads) { return threads < kMost ? threads : kMost; }

  Shares(int threads, int64_t items, int64_t step, int64_t unit) : parts_(parts(threads)), step_(step) {
    for (int i = 0; i < parts_; ++i) {
      const Share share = share_of(i, parts_, items, unit);
      taken_[i].next.store(share.begin, std::memory_order_relaxed);
      taken_[i].end = share.end;
    }
  }
  // Call body(begin, end) for pieces until none is left.
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

// Call body(begin, end) on several threads for pieces of [0, count), and wait for all; see `Shares`.
template <class F>
void take_shares(int threads, int parts, int64_t count, int64_t step, F& body) {
  struct Job {
    F& body;
    Shares shares;
  } job{body, Shares(parts, count, step, step)};
  const auto work = [](void* context, int thread) {
    Job& j = *static_cast<Job*>(context);
    j.shares.take(thread, j.body);
  };
  Pool::shared().run(threads, work, &job);
}

// Call body(begin, end) for pieces of [0, count) of `step` items on several threads, and wait for all. With one thread
// it is called once, on the calling thread. Only then may the caller be a thread of the pool.
template <class F>
void parallel(int threads, int64_t count, int64_t step, F&& body) {
  if (threads > 1 && count > step)
    take_shares(threads, threads, count, step, body);
  else if (count > 0)
    body(int64_t{0}, count);
}

// Call body(i) for each item of [0, count) on several threads, and wait for all. Threads take the items one by one, in
// order, from one share. With the longest items first, all threads end at about the same time.
template <class F>
void in_order(int threads, int64_t count, F&& body) {
  const auto items = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  };
  if (threads > 1 && count > 1)
    take_shares(threads, 1, count, 1, items);
  else
    items(0, count);
}

// Call body(row) for each row on several threads, or on one if the work is too short to start another.
// `cost`: nanoseconds that a row takes, roughly.
template <class F>
void each_row(int threads, int64_t rows, double cost, F&& body) {
  constexpr double kMinNanoseconds = 4000;  // of work, for which several threads are used
  const bool alone = static_cast<double>(rows) * cost < kMinNanoseconds;
  const int64_t step = (rows + 4 * threads - 1) / (4 * threads);  // four pieces per thread
  parallel(alone ? 1 : threads, rows, step, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace zp
