// zp_linear: quantizes the input into scratch memory, then shares the output's columns among threads.
#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "core/internal.h"
#include "core/parallel.h"
#include "core/product.h"

namespace zp {
namespace {

thread_local char last_error[256] = "";

// Below this, starting another thread takes longer than the work.
constexpr int64_t kSerialQuantize = 1 << 15;
constexpr int64_t kSerialProduct = 1 << 15;
// Rows that each thread takes for itself; 0 when threads share all rows and take columns.
int64_t rows_alone(const Weight& w, int64_t rows, int threads) {
  const int64_t each = rows_of_each(rows, threads);
  return each > 0 && multiply_for(w, rows).scratch_bytes > 0 ? std::min(each, rows_in_pass(w)) : 0;
}

void quantize_rows(const Product& product, int threads) {
  const Kernels* kernels = active_kernels();
  const bool alone = product.rows * product.weight->columns < kSerialQuantize;
  parallel(alone ? 1 : threads, product.rows, ceil_div(product.rows, int64_t{threads} * 4),
           [&](int64_t begin, int64_t end) { kernels->quantize(product, begin, end); });
}

// Rows [begin, end) by one thread alone. When it quantizes them too, they stay in its own cache. False: no
// memory.
bool multiply_alone(const Product& product, int64_t begin, int64_t end) {
  const Weight& w = *product.weight;
  Product part = product;
  part.y += begin * part.y_stride;
  part.rows = end - begin;
  // A few rows at the end may take another kernel, unless all rows are quantized for one already.
  const Multiply multiply = multiply_for(w, part.x == nullptr ? product.rows : part.rows);
  uint8_t* scratch = thread_scratch(static_cast<size_t>(multiply.scratch_bytes));
  if (multiply.scratch_bytes > 0 && scratch == nullptr) return false;
  if (part.x == nullptr) {
    part.input = rows_from(w, part.input, begin);
  } else {
    uint8_t* memory = call_scratch(input_bytes(w, part.rows));
    if (memory == nullptr) return false;
    part.x += begin * part.x_stride;
    part.input = lay_out_input(w, part.rows, memory);
    active_kernels()->quantize(part, 0, part.rows);
  }
  multiply.run(part, 0, w.blocks, scratch);
  return true;
}

// Output blocks [begin, end) of all rows. False: no memory.
bool multiply_columns(const Product& product, const Multiply& multiply, int64_t begin, int64_t end) {
  uint8_t* scratch = nullptr;
  if (multiply.scratch_bytes > 0) {
    scratch = thread_scratch(static_cast<size_t>(multiply.scratch_bytes));
    if (scratch == nullptr) return false;
  }
  multiply.run(product, begin, end, scratch);
  return true;
}

// By rows of their own, or by columns of all rows. Quantizes the rows first where `x` is given.
zp_status multiply_rows(const Product& product, int threads) {
  const Weight& w = *product.weight;
  std::atomic<bool> out_of_memory{false};
  if (const int64_t step = rows_alone(w, product.rows, threads); step > 0) {
    parallel(threads, product.rows, step, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += step)  // one thread has a single piece
        if (!multiply_alone(product, begin, std::min(begin + step, end))) out_of_memory.store(true);
    });
  } else {
    if (product.x != nullptr && input_bytes(w, product.rows) > 0) quantize_rows(product, threads);
    if (w.rows * w.columns * product.rows < kSerialProduct) threads = 1;
    const Multiply multiply = multiply_for(w, product.rows);
    parallel(threads, w.blocks, blocks_in_step(w, threads), [&](int64_t begin, int64_t end) {
      if (!multiply_columns(product, multiply, begin, end)) out_of_memory.store(true);
    });
  }
  return out_of_memory.load() ? fail(ZP_NO_MEMORY, "no memory for a thread's rows") : ZP_OK;
}

// What every call has in common. `x` is left out.
zp_status check_call(const zp_weight* weight, int64_t rows, const void* input, const float* y,
                     int64_t y_stride, int32_t threads) {
  if (weight == nullptr || input == nullptr || y == nullptr) return fail(ZP_INVALID, "a pointer is null");
  const Weight& w = weight->layout;
  if (rows < 0 || y_stride < w.rows)
    return fail(ZP_INVALID, "rows overlap: %ld rows, stride %ld, weight [%ld, %ld]", static_cast<long>(rows),
                static_cast<long>(y_stride), static_cast<long>(w.rows), static_cast<long>(w.columns));
  if (threads < 1 || threads > Pool::kMaxThreads)
    return fail(ZP_INVALID, "threads must be 1 to %d, not %d", Pool::kMaxThreads, threads);
  return active_kernels() == nullptr ? ZP_UNSUPPORTED : ZP_OK;  // the error is recorded
}

zp_status check_input(const Weight& w, int64_t x_stride) {
  if (x_stride >= w.columns) return ZP_OK;
  return fail(ZP_INVALID, "input rows overlap: stride %ld, weight [%ld, %ld]", static_cast<long>(x_stride),
              static_cast<long>(w.rows), static_cast<long>(w.columns));
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
  if (const zp_status status = check_call(weight, rows, x, y, y_stride, threads); status != ZP_OK)
    return status;
  const Weight& w = weight->layout;
  if (const zp_status status = check_input(w, x_stride); status != ZP_OK) return status;
  const bool alone = rows_alone(w, rows, threads) > 0;  // a thread then lays out its own part of the input
  const int64_t pass = alone ? rows : rows_in_pass(w);
  for (int64_t begin = 0; begin < rows; begin += pass) {
    Product product{};
    product.weight = &w;
    product.x = x + begin * x_stride;
    product.x_stride = x_stride;
    product.rows = std::min(pass, rows - begin);
    product.bias = bias;
    product.y = y + begin * y_stride;
    product.y_stride = y_stride;
    if (const size_t bytes = alone ? 0 : input_bytes(w, product.rows); bytes > 0) {
      uint8_t* memory = call_scratch(bytes);
      if (memory == nullptr) return fail(ZP_NO_MEMORY, "no memory for the quantized input");
      product.input = lay_out_input(w, product.rows, memory);
    }
    if (const zp_status status = multiply_rows(product, threads); status != ZP_OK) return status;
  }
  return ZP_OK;
}

size_t zp_input_bytes(const zp_weight* weight, int64_t rows) {
  return weight == nullptr || rows < 0 ? 0 : zp::input_bytes(weight->layout, rows);
}

zp_status zp_quantize(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride, void* input,
                      int32_t threads) {
  using namespace zp;
  if (input == nullptr) return fail(ZP_INVALID, "a pointer is null");
  const int64_t y_stride = weight == nullptr ? 0 : weight->layout.rows;
  if (const zp_status status = check_call(weight, rows, x, x, y_stride, threads); status != ZP_OK)
    return status;
  const Weight& w = weight->layout;
  if (const zp_status status = check_input(w, x_stride); status != ZP_OK) return status;
  if (input_bytes(w, rows) == 0)
    return rows == 0 ? ZP_OK : fail(ZP_UNSUPPORTED, "the weight reads float input");
  Product product{};
  product.weight = &w;
  product.x = x;
  product.x_stride = x_stride;
  product.rows = rows;
  product.input = lay_out_input(w, rows, input);
  quantize_rows(product, threads);
  return ZP_OK;
}

zp_status zp_multiply(const zp_weight* weight, void* input, int64_t rows, const float* bias, float* y,
                      int64_t y_stride, int32_t threads) {
  using namespace zp;
  if (const zp_status status = check_call(weight, rows, input, y, y_stride, threads); status != ZP_OK)
    return status;
  const Weight& w = weight->layout;
  if (rows == 0) return ZP_OK;
  if (input_bytes(w, rows) == 0) return fail(ZP_UNSUPPORTED, "the weight reads float input");
  Product product{};
  product.weight = &w;
  product.input = lay_out_input(w, rows, input);
  product.rows = rows;
  product.bias = bias;
  product.y = y;
  product.y_stride = y_stride;
  return multiply_rows(product, threads);
}
