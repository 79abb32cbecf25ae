// A pool of threads that starts a job in about a microsecond and costs nothing when idle.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace zp {

class Pool {
 public:
  static constexpr int kMaxThreads = 256;

  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  // Runs work(context, thread) for thread 0 (the caller) to threads - 1, and waits for all. Calls from
  // several threads take turns. `work` must not call run, nor throw.
  void run(int threads, void (*work)(void*, int), void* context);

  // The process's pool. A forked child gets a new one: threads do not survive a fork.
  static Pool& shared();

 private:
  void serve(int index);
  void grow(int workers);

  std::mutex turn_;
  std::vector<std::thread> workers_;
  // Job number and its threads in one word, so that a worker never sees half a new job.
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<uint32_t> pending_{0};
  std::atomic<bool> stop_{false};
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
};

}  // namespace zp
