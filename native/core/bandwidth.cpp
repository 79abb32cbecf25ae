// How fast this machine reads memory: the limit of a decode step.
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/internal.h"
#include "core/pool.h"

namespace {

struct Stream {
  const zp::Kernels* kernels;
  const uint8_t* memory;
  int64_t bytes;
  int threads;
  std::atomic<uint64_t> result{0};  // used, so that the reads are not removed
};

void work(void* context, int thread) {
  Stream& s = *static_cast<Stream*>(context);
  const int64_t part = s.bytes / s.threads / 4096 * 4096;
  s.result += s.kernels->stream(s.memory + thread * part, part);
}

}  // namespace

zp_status zp_read_bandwidth(size_t bytes, int32_t threads, int32_t repeats, double* rate) {
  using Clock = std::chrono::steady_clock;
  if (rate == nullptr || threads < 1 || threads > zp::Pool::kMaxThreads || repeats < 1 || bytes < (1u << 20))
    return zp::fail(ZP_INVALID, "a bandwidth test needs at least 1 MiB, one thread and one repeat");
  Stream stream;
  stream.kernels = zp::active_kernels();
  if (stream.kernels == nullptr) return ZP_UNSUPPORTED;
  void* memory = zp::allocate(bytes);
  if (memory == nullptr) return zp::fail(ZP_NO_MEMORY, "no memory for a bandwidth test of %zu bytes", bytes);
  std::memset(memory, 1, bytes);
  stream.memory = static_cast<const uint8_t*>(memory);
  stream.bytes = static_cast<int64_t>(bytes);
  stream.threads = threads;
  const double read = static_cast<double>(stream.bytes / threads / 4096 * 4096 * threads);
  *rate = 0;
  for (int32_t i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    zp::Pool::shared().run(threads, work, &stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (read / seconds > *rate) *rate = read / seconds;
  }
  zp::release(memory);
  return ZP_OK;
}
