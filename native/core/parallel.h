// Loops over the pool of threads.
#pragma once

#include <atomic>

#include "core/pool.h"

namespace zp {

// body(begin, end) over pieces of [0, count), which threads take when they are done with one. On one thread,
// which may be a thread of the pool, there is one piece.
template <class F>
void parallel(int threads, int64_t count, int64_t step, F&& body) {
  if (threads <= 1 || count <= step) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  struct Job {
    F& body;
    int64_t count, step;
    std::atomic<int64_t> next{0};
  } job{body, count, step};
  const auto work = [](void* context, int) {
    Job& j = *static_cast<Job*>(context);
    for (int64_t begin; (begin = j.next.fetch_add(j.step, std::memory_order_relaxed)) < j.count;)
      j.body(begin, begin + j.step < j.count ? begin + j.step : j.count);
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
