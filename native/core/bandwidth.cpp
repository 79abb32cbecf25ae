// Measuring memory bandwidth, which limits the speed of decoding: each token reads all weights.
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/internal.h"
#include "core/pool.h"

namespace {

struct Stream {
  const zp::Kernels* kernels;
  const uint8_t* memory;
  int64_t pieces;
  std::atomic<int64_t> next{0};
  std::atomic<uint64_t> result{0};  // keeps the compiler from removing the reads
};

constexpr int64_t kPiece = 1 << 18;  // bytes that a thread takes at a time

void work(void* context, int) {
  Stream& s = *static_cast<Stream*>(context);
  for (int64_t piece; (piece = s.next.fetch_add(1, std::memory_order_relaxed)) < s.pieces;)
    s.result += s.kernels->stream(s.memory + piece * kPiece, kPiece);
}

zp_status read_bandwidth(size_t bytes, int32_t threads, int32_t repeats, double* rate) {
  using Clock = std::chrono::steady_clock;
  if (rate == nullptr || threads < 1 || threads > zp::Pool::kMaxThreads || repeats < 1 || bytes < (1u << 20) ||
      bytes > (size_t{1} << 40))
    return zp::fail(ZP_INVALID, "a bandwidth test needs 1 MiB to 1 TiB, 1 to %d threads and at least one repeat",
                    zp::Pool::kMaxThreads);
  Stream stream;
  stream.kernels = zp::active_kernels();
  if (stream.kernels == nullptr) return ZP_UNSUPPORTED;
  void* memory = zp::allocate(bytes);
  if (memory == nullptr) return zp::fail(ZP_NO_MEMORY, "no memory for a bandwidth test of %zu bytes", bytes);
  std::memset(memory, 1, bytes);
  stream.memory = static_cast<const uint8_t*>(memory);
  stream.pieces = static_cast<int64_t>(bytes) / kPiece;
  const double read = static_cast<double>(stream.pieces * kPiece);
  *rate = 0;
  for (int32_t i = 0; i < repeats; ++i) {
    stream.next.store(0);
    const auto start = Clock::now();
    zp::Pool::shared().run(threads, work, &stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (read / seconds > *rate) *rate = read / seconds;
  }
  zp::release(memory);
  return ZP_OK;
}

}  // namespace

zp_status zp_read_bandwidth(size_t bytes, int32_t threads, int32_t repeats, double* rate) {
  return zp::guarded([&] {
    const zp::Running running;
    return read_bandwidth(bytes, threads, repeats, rate);
  });
}
