// zp_linear, zp_quantize and zp_multiply: quantize the input, multiply by the weight on several threads.
//
// Threads split the work in one of two ways. With many rows each thread quantizes and multiplies rows of its own. With
// few rows all threads quantize first, then each computes some of the output channels for all rows.
#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "core/internal.h"
#include "core/parallel.h"
#include "core/product.h"

namespace zp {
namespace {

thread_local char last_error[256] = "";

// Less work is done on one thread: starting another takes longer. Values to quantize, multiplications to do.
constexpr int64_t kSerialQuantize = 1 << 15;
constexpr int64_t kSerialProduct = 1 << 15;

// Return how many rows a thread takes when threads split the rows; 0 if they split the output channels.
int64_t rows_alone(const Weight& w, int64_t rows, int threads) {
  const int64_t each = rows_of_each(rows, threads);
  return each > 0 && multiply_for(w, rows).scratch_bytes > 0 ? std::min(each, rows_at_once(w)) : 0;
}

void quantize_rows(const Product& product, int threads) {
  const Kernels* kernels = active_kernels();
  const bool alone = product.rows * product.weight->columns < kSerialQuantize;
  parallel(alone ? 1 : threads, product.rows, ceil_div(product.rows, int64_t{threads} * 4),
           [&](int64_t begin, int64_t end) { kernels->quantize(product, begin, end); });
}

// Multiply rows [begin, end) on the calling thread. If `x` is given, quantize them first: the codes then stay in this
// core's cache. Returns false if there is no memory.
bool multiply_alone(const Product& product, int64_t begin, int64_t end) {
  const Weight& w = *product.weight;
  Product part = product;
  part.y += begin * part.y_stride;
  part.rows = end - begin;
  // The last rows may be few enough for another kernel. If the input is quantized already, its layout fixes the kernel.
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

// Compute output blocks [begin, end) for all rows. Returns false if there is no memory.
bool multiply_columns(const Product& product, const Multiply& multiply, int64_t begin, int64_t end) {
  uint8_t* scratch = nullptr;
  if (multiply.scratch_bytes > 0) {
    scratch = thread_scratch(static_cast<size_t>(multiply.scratch_bytes));
    if (scratch == nullptr) return false;
  }
  multiply.run(product, begin, end, scratch);
  return true;
}

// Multiply on several threads, which split the rows or the output channels. If `x` is given, quantize the rows first.
zp_status multiply_rows(const Product& product, int threads) {
  const Weight& w = *product.weight;
  std::atomic<bool> out_of_memory{false};
  if (const int64_t step = rows_alone(w, product.rows, threads); step > 0) {
    parallel(threads, product.rows, step, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += step)  // parallel() gives a single thread all rows at once
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

// Check the arguments that every call has.
zp_status check_call(const zp_weight* weight, int64_t rows, const void* input, const float* y,
                     int64_t y_stride, int32_t threads) {
  if (weight == nullptr || input == nullptr || y == nullptr) return fail(ZP_INVALID, "a pointer is null");
  const Weight& w = weight->layout;
  if (rows < 0 || rows > kMostValues || y_stride < w.rows)
    return fail(ZP_INVALID, "rows overlap: %ld rows, stride %ld, weight [%ld, %ld]", static_cast<long>(rows),
                static_cast<long>(y_stride), static_cast<long>(w.rows), static_cast<long>(w.columns));
  if (!fits(round_up(rows, 64), std::max(w.columns_padded, y_stride)))
    return fail(ZP_INVALID, "%ld rows are too many for a weight [%ld, %ld]", static_cast<long>(rows),
                static_cast<long>(w.rows), static_cast<long>(w.columns));
  if (threads < 1 || threads > Pool::kMaxThreads)
    return fail(ZP_INVALID, "threads must be 1 to %d, not %d", Pool::kMaxThreads, threads);
  return active_kernels() == nullptr ? ZP_UNSUPPORTED : ZP_OK;  // the error is recorded
}

zp_status check_input(const Weight& w, int64_t rows, int64_t x_stride) {
  if (x_stride >= w.columns && fits(rows, x_stride)) return ZP_OK;
  return fail(ZP_INVALID, "input rows overlap, or are too many: stride %ld, weight [%ld, %ld]",
              static_cast<long>(x_stride), static_cast<long>(w.rows), static_cast<long>(w.columns));
}

// A header at the beginning of a quantized input: the layout of what follows. zp_multiply compares it with the layout
// that its weight reads.
struct Tag {
  int64_t rows, columns, segment;
  int32_t k_unit, activation, limbs, layout;
  int32_t has_sums;

  // True if a product that reads layout `other` can read this input. Unneeded sums do not matter.
  bool serves(const Tag& other) const {
    return rows == other.rows && columns == other.columns && segment == other.segment && k_unit == other.k_unit &&
           activation == other.activation && limbs == other.limbs && layout == other.layout &&
           has_sums >= other.has_sums;
  }
};
static_assert(sizeof(Tag) <= kAlignment);

Tag tag_of(const Weight& w, int64_t rows, const Activations& input) {
  return {rows,         w.columns, w.segment,           static_cast<int32_t>(w.k_unit),
          w.activation, w.limbs,   input.tiled ? 1 : input.int16 ? 2 : 0, input.want_sums ? 1 : 0};
}

uint8_t* behind_tag(void* input) {
  return static_cast<uint8_t*>(input) + kAlignment;
}

zp_status check_memory(const void* input) {
  if (reinterpret_cast<uintptr_t>(input) % kAlignment == 0) return ZP_OK;
  return fail(ZP_INVALID, "a quantized input must start at a multiple of %zu", kAlignment);
}

zp_status linear(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride, const float* bias,
                 float* y, int64_t y_stride, int32_t threads) {
  if (const zp_status status = check_call(weight, rows, x, y, y_stride, threads); status != ZP_OK)
    return status;
  const Weight& w = weight->layout;
  if (const zp_status status = check_input(w, rows, x_stride); status != ZP_OK) return status;
  const bool alone = rows_alone(w, rows, threads) > 0;  // a thread then lays out its own part of the input
  const int64_t at_once = alone ? rows : rows_at_once(w);
  for (int64_t begin = 0; begin < rows; begin += at_once) {
    Product product{};
    product.weight = &w;
    product.x = x + begin * x_stride;
    product.x_stride = x_stride;
    product.rows = std::min(at_once, rows - begin);
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

zp_status quantize(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride, void* input,
                   int32_t threads) {
  if (input == nullptr) return fail(ZP_INVALID, "a pointer is null");
  const int64_t y_stride = weight == nullptr ? 0 : weight->layout.rows;
  if (const zp_status status = check_call(weight, rows, x, x, y_stride, threads); status != ZP_OK)
    return status;
  const Weight& w = weight->layout;
  if (const zp_status status = check_input(w, rows, x_stride); status != ZP_OK) return status;
  if (const zp_status status = check_memory(input); status != ZP_OK) return status;
  if (rows == 0) return ZP_OK;
  if (input_bytes(w, rows) == 0) return fail(ZP_UNSUPPORTED, "the weight reads float input");
  Product product{};
  product.weight = &w;
  product.x = x;
  product.x_stride = x_stride;
  product.rows = rows;
  product.input = lay_out_input(w, rows, behind_tag(input));
  quantize_rows(product, threads);
  const Tag tag = tag_of(w, rows, product.input);
  std::memcpy(input, &tag, sizeof tag);
  return ZP_OK;
}

zp_status multiply(const zp_weight* weight, void* input, int64_t rows, const float* bias, float* y,
                   int64_t y_stride, int32_t threads) {
  if (const zp_status status = check_call(weight, rows, input, y, y_stride, threads); status != ZP_OK)
    return status;
  const Weight& w = weight->layout;
  if (const zp_status status = check_memory(input); status != ZP_OK) return status;
  if (rows == 0) return ZP_OK;
  if (input_bytes(w, rows) == 0) return fail(ZP_UNSUPPORTED, "the weight reads float input");
  Product product{};
  product.weight = &w;
  product.input = lay_out_input(w, rows, behind_tag(input));
  Tag stored{};
  std::memcpy(&stored, input, sizeof stored);
  if (!stored.serves(tag_of(w, rows, product.input)))
    return fail(ZP_INVALID, "the input was quantized for another weight, other rows or another instruction set");
  product.rows = rows;
  product.bias = bias;
  product.y = y;
  product.y_stride = y_stride;
  return multiply_rows(product, threads);
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
  return zp::guarded([&] {
    const zp::Running running;
    return zp::linear(weight, x, rows, x_stride, bias, y, y_stride, threads);
  });
}

size_t zp_input_bytes(const zp_weight* weight, int64_t rows) {
  using namespace zp;
  if (weight == nullptr || rows < 0 || rows > kMostValues) return 0;
  const Weight& w = weight->layout;
  if (!fits(round_up(rows, 64), w.columns_padded)) return 0;
  const size_t bytes = input_bytes(w, rows);
  return bytes == 0 ? 0 : kAlignment + bytes;
}

zp_status zp_quantize(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride, void* input,
                      int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    return zp::quantize(weight, x, rows, x_stride, input, threads);
  });
}

zp_status zp_multiply(const zp_weight* weight, void* input, int64_t rows, const float* bias, float* y,
                      int64_t y_stride, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    return zp::multiply(weight, input, rows, bias, y, y_stride, threads);
  });
}
