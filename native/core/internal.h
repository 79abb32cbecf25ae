// What the core's files know of each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>

#include "core/layout.h"
#include "zeropoint.h"

// The packed weight: one allocation, described by `layout`.
struct zp_weight {
  zp::Weight layout{};
  void* memory = nullptr;
  size_t bytes = 0;
};

namespace zp {

struct DecoderKernels;
struct QuantizerKernels;

constexpr size_t kAlignment = 64;
constexpr int64_t kMaxSegment = 65536;  // 255 * 127 * 65536 still fits 32 bits
// No array of more values is accepted. Sizes are checked against it before they are multiplied, so that no
// number of bytes, padding included, overflows 64 bits.
constexpr int64_t kMostValues = int64_t{1} << 40;

// Records a message for zp_last_error and returns the status.
__attribute__((format(printf, 2, 3))) zp_status fail(zp_status status, const char* message, ...);

// Aligned memory, on huge pages when large; null when there is none.
void* allocate(size_t bytes);
void release(void* memory);
// Gives the pages that lie wholly within back to the system; the contents are lost.
void forget(void* memory, size_t bytes);

// The tables of the level in use; null, with the error recorded, when ZEROPOINT_ISA cannot be met.
const Kernels* active_kernels();
const DecoderKernels* active_decoder_kernels();
const QuantizerKernels* active_quantizer_kernels();
int active_level();

// Sizes of a weight that can be packed: both at least 1, and not too many values.
zp_status check_size(int64_t rows, int64_t columns);

// Float weights: their check, layout and bytes, and one row as float.
zp_status check_floats(const zp_format* format);
Weight layout_of_floats(const zp_format& format);
size_t bytes_of_floats(const Weight& weight);
void row_of_floats(const Weight& weight, int64_t row, float* out);

// One row of an integer weight: codes [columns], scales and, of an asymmetric one, zero points [groups].
void unpack_row(const Weight& weight, int64_t row, int8_t* codes, float* scale, int8_t* zero_point);

// One row of any weight as float.
void read_row(const Weight& weight, int64_t row, float* out);

// Whether a and b, neither negative, multiply to at most kMostValues.
inline bool fits(int64_t a, int64_t b) {
  return a >= 0 && b >= 0 && (b == 0 || a <= kMostValues / b);
}

// A call during which the instruction set level must stay. It is chosen anew for every kernel, and data laid out for
// one level is not what another reads, so that zp_isa_select refuses while there is such a call.
class Running {
 public:
  Running();
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
};

// Runs the body of a function of the C interface: an exception becomes a status.
template <class F>
zp_status guarded(F&& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(ZP_NO_MEMORY, "no memory");
  } catch (const std::exception& error) {
    return fail(ZP_NO_MEMORY, "the system refused: %s", error.what());
  } catch (...) {
    return fail(ZP_NO_MEMORY, "the system refused");
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

}  // namespace zp
