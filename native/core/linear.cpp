// zp_linear: quantizes the input into scratch memory, then shares the output's columns among threads.
#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "core/internal.h"
#include "core/pool.h"

namespace zp {
namespace {

thread_local char last_error[256] = "";

// Memory a thread keeps between calls, as large as its largest call needed.
class Scratch {
 public:
  ~Scratch() { release(memory_); }
  uint8_t* get(size_t bytes) {
    if (bytes > bytes_) {
      release(memory_);
      memory_ = allocate(bytes);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return static_cast<uint8_t*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

thread_local Scratch call_scratch;    // the quantized input, of the calling thread
thread_local Scratch thread_scratch;  // a kernel's own, of every thread

struct Job {
  const Kernels* kernels;
  void (*product_kernel)(const Product&, int64_t, int64_t, void*);
  Product product;
  int64_t scratch_bytes;
  int64_t count, step;  // rows to quantize, or blocks of columns
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};
};

// Threads take the next piece when they are done: a core that is shared with another process gets less.
bool take(Job& job, int64_t& begin, int64_t& end) {
  begin = job.next.fetch_add(job.step, std::memory_order_relaxed);
  end = begin + job.step < job.count ? begin + job.step : job.count;
  return begin < job.count;
}

void quantize_work(void* context, int) {
  Job& job = *static_cast<Job*>(context);
  for (int64_t begin, end; take(job, begin, end);) job.kernels->quantize(job.product, begin, end);
}

void product_work(void* context, int) {
  Job& job = *static_cast<Job*>(context);
  uint8_t* scratch = nullptr;
  if (job.scratch_bytes > 0) {
    scratch = thread_scratch.get(static_cast<size_t>(job.scratch_bytes));
    if (scratch == nullptr) {
      job.out_of_memory.store(true);
      return;
    }
  }
  for (int64_t begin, end; take(job, begin, end);) job.product_kernel(job.product, begin, end, scratch);
}

// Below this, starting another thread takes longer than the work.
constexpr int64_t kSerialQuantize = 1 << 15;
constexpr int64_t kSerialProduct = 1 << 15;
// The quantized rows of one pass stay in the second-level cache.
constexpr int64_t kPassBytes = 1 << 20;

// About eight steps a thread, and as many for each, so that equal threads finish together.
int64_t blocks_in_step(const Weight& w, int threads) {
  if (threads == 1) return w.blocks;
  int64_t step = round_up(ceil_div(w.blocks, int64_t{threads} * 8), 2);
  while (step < w.blocks && ceil_div(w.blocks, step) % threads != 0) step += 2;
  return step;
}

zp_status run_pass(const Weight& w, Product& product, int threads) {
  const Kernels* kernels = active_kernels();
  if (kernels == nullptr) return ZP_UNSUPPORTED;  // the error is recorded
  Job job;
  job.kernels = kernels;
  job.scratch_bytes = 0;
  Pool& pool = Pool::shared();
  const bool integer = w.activation != ZP_ACTIVATION_FLOAT;
  const bool amx = integer && active_level() == ZP_AMX && product.rows >= kAmxMinRows && w.k_unit >= 32;
  if (integer) {
    const int64_t rows = round_up(product.rows, 32);
    const size_t code_bytes = static_cast<size_t>(round_up(rows * w.columns_padded, kAlignment));
    const size_t scale_bytes = static_cast<size_t>(rows * w.segments) * 4;
    uint8_t* memory = call_scratch.get(code_bytes + 2 * scale_bytes);
    if (memory == nullptr) return fail(ZP_NO_MEMORY, "no memory for the quantized input");
    product.input = {reinterpret_cast<int8_t*>(memory), reinterpret_cast<float*>(memory + code_bytes),
                     reinterpret_cast<int32_t*>(memory + code_bytes + scale_bytes), amx,
                     !amx || (w.asymmetric && !w.nibbles)};
    const int64_t size = product.rows * w.columns;
    job.product = product;
    job.count = product.rows;
    job.step = size < kSerialQuantize ? product.rows : ceil_div(product.rows, int64_t{threads} * 4);
    pool.run(size < kSerialQuantize ? 1 : threads, quantize_work, &job);
  }
  job.product = product;
  job.product_kernel = kernels->floating;
  if (integer) job.product_kernel = kernels->integer;
#if defined(__x86_64__)
  if (amx) {
    job.product_kernel = amx_integer;
    job.scratch_bytes = amx_scratch_bytes(w);
  }
#endif
  if (w.rows * w.columns * product.rows < kSerialProduct) threads = 1;
  job.count = w.blocks;
  job.step = blocks_in_step(w, threads);
  job.next.store(0);
  pool.run(threads, product_work, &job);
  return job.out_of_memory.load() ? fail(ZP_NO_MEMORY, "no memory for a thread's tiles") : ZP_OK;
}

}  // namespace

zp_status fail(zp_status status, const char* message, ...) {
  va_list arguments;
  va_start(arguments, message);
  std::vsnprintf(last_error, sizeof last_error, message, arguments);
  va_end(arguments);
  return status;
}

}  // namespace zp

int32_t zp_abi_version(void) {
  return ZP_ABI_VERSION;
}

const char* zp_last_error(void) {
  return zp::last_error;
}

zp_status zp_linear(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride,
                    const float* bias, float* y, int64_t y_stride, int32_t threads) {
  using namespace zp;
  if (weight == nullptr || x == nullptr || y == nullptr) return fail(ZP_INVALID, "a pointer is null");
  const Weight& w = weight->layout;
  if (rows < 0 || x_stride < w.columns || y_stride < w.rows)
    return fail(ZP_INVALID, "rows overlap: %ld rows, strides %ld and %ld, weight [%ld, %ld]",
                static_cast<long>(rows), static_cast<long>(x_stride), static_cast<long>(y_stride),
                static_cast<long>(w.rows), static_cast<long>(w.columns));
  if (threads < 1 || threads > Pool::kMaxThreads)
    return fail(ZP_INVALID, "threads must be 1 to %d, not %d", Pool::kMaxThreads, threads);
  const int64_t pass = round_up(ceil_div(kPassBytes, w.columns_padded), 32);
  for (int64_t begin = 0; begin < rows; begin += pass) {
    Product product{};
    product.weight = &w;
    product.x = x + begin * x_stride;
    product.x_stride = x_stride;
    product.rows = rows - begin < pass ? rows - begin : pass;
    product.bias = bias;
    product.y = y + begin * y_stride;
    product.y_stride = y_stride;
    if (const zp_status status = run_pass(w, product, threads); status != ZP_OK) return status;
  }
  return ZP_OK;
}
