// A pool of worker threads. Workers spin briefly after a job, so that the next one starts in about a microsecond, and
// then sleep.
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

  // Run work(context, thread) on the caller (thread 0) and on workers 1 to threads - 1; wait for all that take part.
  // A worker that arrives after the caller has returned from `work` does not take part, nor does one that the system
  // refused to start. So `work` must take pieces from a shared counter until none is left: then the caller alone can
  // finish the job. `work` must not call run, nor throw. Calls of run from several threads take turns.
  void run(int threads, void (*work)(void*, int), void* context);

  // Return the process's pool. A forked child gets a new one, because threads do not survive a fork.
  static Pool& shared();

 private:
  void serve(int index);
  bool join(uint32_t number);
  void grow(int workers);

  std::mutex turn_;
  std::vector<std::thread> workers_;
  int pause_ = 0;  // jobs to wait before asking the system again for a thread that it refused
  // The job's number and its number of threads in one word, so that a worker always reads both of the same job.
  alignas(64) std::atomic<uint32_t> job_{0};
  // The job's number (high half), whether workers may still join it (kOpen), and how many are inside (kInside).
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};
  std::atomic<bool> stop_{false};
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
};

}  // namespace zp
