#include "core/pool.h"

#include <pthread.h>

#include <chrono>

namespace zp {
namespace {

constexpr uint32_t kThreadBits = 10;
constexpr auto kSpin = std::chrono::microseconds(60);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins for a little longer than the gap between two layers of a model, then sleeps in the kernel.
uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t seen) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      const uint32_t now = word.load(std::memory_order_acquire);
      if (now != seen) return now;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  word.wait(seen, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

Pool* shared_pool = nullptr;

void replace_pool() { shared_pool = new Pool; }  // the old one's threads are gone: it cannot be joined

}  // namespace

Pool& Pool::shared() {
  static std::once_flag once;
  std::call_once(once, [] {
    replace_pool();
    pthread_atfork(nullptr, nullptr, replace_pool);
  });
  return *shared_pool;
}

Pool::~Pool() {
  stop_.store(true);
  job_.fetch_add(1u << kThreadBits);
  job_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers)
    workers_.emplace_back(&Pool::serve, this, static_cast<int>(workers_.size()) + 1);
}

void Pool::serve(int index) {
  uint32_t seen = 0;
  for (;;) {
    seen = wait_for_change(job_, seen);
    if (stop_.load()) return;
    if (index >= static_cast<int>(seen & ((1u << kThreadBits) - 1))) continue;
    work_(context_, index);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
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
  pending_.store(static_cast<uint32_t>(threads - 1), std::memory_order_relaxed);
  const uint32_t number = (job_.load(std::memory_order_relaxed) >> kThreadBits) + 1;
  job_.store((number << kThreadBits) | static_cast<uint32_t>(threads), std::memory_order_release);
  job_.notify_all();
  work(context, 0);
  for (uint32_t left = pending_.load(std::memory_order_acquire); left != 0;)
    left = wait_for_change(pending_, left);
}

}  // namespace zp
