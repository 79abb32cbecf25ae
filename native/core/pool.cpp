#include "core/pool.h"

#include <chrono>
#include <exception>
#include <new>

#include "core/ahead.h"
#include "platform/platform.h"

namespace zp {
namespace {

constexpr uint32_t kThreadBits = 10;  // of job_: the number of threads; the other bits are the job's number
// Bits of gate_, see pool.h.
constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
// How long a worker spins before it sleeps: a little longer than the gap between two layers of a model.
constexpr auto kSpin = std::chrono::microseconds(60);

// Wait until `word` is no longer `before`, and return its new value: spin for kSpin, then sleep in the kernel. While
// spinning, prefetch what the thread will read next (ahead.h).
uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t before) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      const uint32_t now = word.load(std::memory_order_acquire);
      if (now != before) return now;
      if (!ahead().prefetch_some()) spin();
    }
  } while (std::chrono::steady_clock::now() < until);
  word.wait(before, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

Pool* shared_pool = nullptr;

// Make a new pool. In a forked child it replaces the parent's pool, whose threads do not exist there: they cannot be
// joined, so the old pool is not destroyed. The memory is static, because a forked child may have none to allocate.
void replace_pool() {
  alignas(Pool) static unsigned char place[sizeof(Pool)];
  shared_pool = new (place) Pool;
}

}  // namespace

Ahead& ahead() {
  thread_local Ahead own;
  return own;
}

Pool& Pool::shared() {
  static std::once_flag once;
  std::call_once(once, [] {
    replace_pool();
    after_fork(replace_pool);
  });
  return *shared_pool;
}

Pool::~Pool() {
  stop_.store(true);
  job_.fetch_add(1u << kThreadBits);
  job_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// Start threads until there are `workers`. If the system refuses one, the threads that exist do the work, and the next
// attempt is kJobs jobs later.
void Pool::grow(int workers) {
  constexpr int kJobs = 1000;
  if (static_cast<int>(workers_.size()) >= workers || (pause_ > 0 && --pause_ > 0)) return;
  try {
    while (static_cast<int>(workers_.size()) < workers)
      workers_.emplace_back(&Pool::serve, this, static_cast<int>(workers_.size()) + 1);
  } catch (const std::exception&) {  // no memory, or too many threads
    pause_ = kJobs;
  }
}

// Enter job `number`; return false if it is closed. The caller closes a job when its own work is done: it must not wait
// for a worker whose core was busy with another process all the time.
bool Pool::join(uint32_t number) {
  uint64_t gate = gate_.load(std::memory_order_relaxed);
  while (gate >> 32 == number && (gate & kOpen) != 0)
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed))
      return true;
  return false;
}

// The loop of worker `index`: wait for a job, join it, run it.
void Pool::serve(int index) {
  uint32_t job = 0;
  for (;;) {
    job = wait_for_change(job_, job);
    if (stop_.load()) return;
    if (index >= static_cast<int>(job & ((1u << kThreadBits) - 1)) || !join(job >> kThreadBits)) continue;
    work_(context_, index);
    const uint64_t gate = gate_.fetch_sub(1, std::memory_order_acq_rel) - 1;
    if ((gate & (kOpen | kInside)) == 0) {
      finished_.fetch_add(1, std::memory_order_release);
      finished_.notify_one();
    }
  }
}

void Pool::run(int threads, void (*work)(void*, int), void* context) {
  if (threads <= 1) {
    work(context, 0);
    return;
  }
  const std::lock_guard<std::mutex> lock(turn_);
  grow(threads - 1);
  work_ = work;
  context_ = context;
  constexpr uint32_t kNumbers = 1u << (32 - kThreadBits);
  const uint32_t number = ((job_.load(std::memory_order_relaxed) >> kThreadBits) + 1) % kNumbers;
  gate_.store(uint64_t{number} << 32 | kOpen, std::memory_order_release);
  job_.store((number << kThreadBits) | static_cast<uint32_t>(threads), std::memory_order_release);
  job_.notify_all();
  work(context, 0);
  const uint32_t before = finished_.load(std::memory_order_acquire);
  const uint64_t gate = gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  // Workers may still be inside. The last one to leave after the gate is closed increments finished_.
  if ((gate & kInside) != 0) wait_for_change(finished_, before);
}

}  // namespace zp
