// zp_linear: quantizes the input into scratch memory, then shares the output's columns among threads.
#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "core/internal.h"
#include "core/pool.h"
#include "core/product.h"

namespace zp {
namespace {

thread_local char last_error[256] = "";

struct Job {
  const Kernels* kernels;
  Multiply multiply;
  Product product;
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
  if (job.multiply.scratch_bytes > 0) {
    scratch = thread_scratch(static_cast<size_t>(job.multiply.scratch_bytes));
    if (scratch == nullptr) {
      job.out_of_memory.store(true);
      return;
    }
  }
  for (int64_t begin, end; take(job, begin, end);) job.multiply.run(job.product, begin, end, scratch);
}

// Rows [begin, end) by one thread alone, which quantizes them too: they stay in its own cache.
void rows_work(void* context, int) {
  Job& job = *static_cast<Job*>(context);
  const Weight& w = *job.product.weight;
  for (int64_t begin, end; take(job, begin, end);) {
    Product part = job.product;
    part.x += begin * part.x_stride;
    part.y += begin * part.y_stride;
    part.rows = end - begin;
    uint8_t* memory = call_scratch(input_bytes(w, part.rows));
    uint8_t* scratch = thread_scratch(static_cast<size_t>(job.multiply.scratch_bytes));
    if (memory == nullptr || scratch == nullptr) {
      job.out_of_memory.store(true);
      return;
    }
    part.input = lay_out_input(w, part.rows, memory);
    job.kernels->quantize(part, 0, part.rows);
    job.multiply.run(part, 0, w.blocks, scratch);
  }
}

// Below this, starting another thread takes longer than the work.
constexpr int64_t kSerialQuantize = 1 << 15;
constexpr int64_t kSerialProduct = 1 << 15;

zp_status run_pass(const Weight& w, Product& product, int threads) {
  Job job;
  job.kernels = active_kernels();
  Pool& pool = Pool::shared();
  if (const size_t bytes = input_bytes(w, product.rows); bytes > 0) {
    uint8_t* memory = call_scratch(bytes);
    if (memory == nullptr) return fail(ZP_NO_MEMORY, "no memory for the quantized input");
    product.input = lay_out_input(w, product.rows, memory);
    const int64_t size = product.rows * w.columns;
    job.product = product;
    job.count = product.rows;
    job.step = size < kSerialQuantize ? product.rows : ceil_div(product.rows, int64_t{threads} * 4);
    pool.run(size < kSerialQuantize ? 1 : threads, quantize_work, &job);
  }
  job.product = product;
  job.multiply = multiply_for(w, product.rows);
  if (w.rows * w.columns * product.rows < kSerialProduct) threads = 1;
  job.count = w.blocks;
  job.step = blocks_in_step(w, threads);
  job.next.store(0);
  pool.run(threads, product_work, &job);
  return job.out_of_memory.load() ? fail(ZP_NO_MEMORY, "no memory for a thread's tiles") : ZP_OK;
}

// With fewer rows a thread would wait for the weights, which each reads whole: these come from a cache that all
// cores share, or from memory.
constexpr int64_t kRowsAlone = 160;

int64_t rows_alone(const Weight& w, int64_t rows, int threads) {
  const int64_t each = round_up(ceil_div(rows, threads), 32);
  return multiply_for(w, rows).scratch_bytes > 0 && each >= kRowsAlone ? std::min(each, rows_in_pass(w)) : 0;
}

zp_status run_by_rows(const Weight& w, const Product& product, int64_t step, int threads) {
  Job job;
  job.kernels = active_kernels();
  job.product = product;
  job.multiply = multiply_for(w, step);
  job.count = product.rows;
  job.step = step;
  Pool::shared().run(threads, rows_work, &job);
  return job.out_of_memory.load() ? fail(ZP_NO_MEMORY, "no memory for a thread's rows") : ZP_OK;
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
  if (active_kernels() == nullptr) return ZP_UNSUPPORTED;  // the error is recorded
  Product all{};
  all.weight = &w;
  all.x = x;
  all.x_stride = x_stride;
  all.rows = rows;
  all.bias = bias;
  all.y = y;
  all.y_stride = y_stride;
  if (const int64_t step = rows_alone(w, rows, threads); step > 0) return run_by_rows(w, all, step, threads);
  const int64_t pass = rows_in_pass(w);
  for (int64_t begin = 0; begin < rows; begin += pass) {
    Product product = all;
    product.x += begin * x_stride;
    product.y += begin * y_stride;
    product.rows = std::min(pass, rows - begin);
    if (const zp_status status = run_pass(w, product, threads); status != ZP_OK) return status;
  }
  return ZP_OK;
}
