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

  // Runs work(context, thread) for thread 0 (the caller) and for those of the threads 1 to threads - 1
  // that arrive while it is running, and waits for these. A thread that the system refuses to start does not
  // take part. `work` takes its pieces from a shared counter
  // until none is left, so that the caller alone can finish it. Calls from several threads take turns.
  // `work` must not call run, nor throw.
  void run(int threads, void (*work)(void*, int), void* context);

  // The process's pool. A forked child gets a new one: threads do not survive a fork.
  static Pool& shared();

 private:
  void serve(int index);
  bool join(uint32_t number);
  void grow(int workers);

  std::mutex turn_;
  std::vector<std::thread> workers_;
  int pause_ = 0;  // jobs until a thread that was refused is asked for again
  // Job number and its threads in one word, so that a worker never sees half a new job.
  alignas(64) std::atomic<uint32_t> job_{0};
  // Job number (high half), whether the job is open to workers, and how many are inside it.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};
  std::atomic<bool> stop_{false};
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
};

}  // namespace zp
