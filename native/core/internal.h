// Declarations shared by the source files of core/ and decoder/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>

#include "core/layout.h"
#include "kernels/levels.h"
#include "platform/platform.h"
#include "zeropoint.h"

// The packed weight of the C interface.
struct zp_weight {
  zp::Weight layout{};     // sizes, and pointers into the packed bytes
  void* memory = nullptr;  // the allocation; null if the weight is a view of a caller's memory (zp_view)
  size_t bytes = 0;        // of the packed weight
};

namespace zp {

constexpr size_t kAlignment = 64;  // bytes: a cache line, and an AVX-512 register
// The most columns that are summed as integers: the sum of 65536 products of at most 255 * 127 fits 32 bits.
constexpr int64_t kMaxSegment = 65536;
// The largest number of values in an array. Sizes are checked against it before they are multiplied, so that no
// number of bytes, padding included, overflows 64 bits.
constexpr int64_t kMostValues = int64_t{1} << 40;

// Record a message for zp_last_error and return the status.
__attribute__((format(printf, 2, 3))) zp_status fail(zp_status status, const char* message, ...);

// Return the kernel tables of the level in use; null, with the error recorded, when ZEROPOINT_ISA names a level that
// does not exist or cannot run here. active_level returns a negative number then.
const Kernels* active_kernels();
const DecoderKernels* active_decoder_kernels();
const QuantizerKernels* active_quantizer_kernels();
const SamplerKernels* active_sampler_kernels();
int active_level();

// Return an error unless a weight of this size can be packed: both at least 1, at most kMostValues values.
zp_status check_size(int64_t rows, int64_t columns);

// Float weights (float_pack.cpp): check the format, describe the layout, count the packed bytes, read a row as float.
zp_status check_floats(const zp_format* format);
Weight layout_of_floats(const zp_format& format);
size_t bytes_of_floats(const Weight& weight);
void row_of_floats(const Weight& weight, int64_t row, float* out);

// Unpack one row of an integer weight: codes [columns], scales [groups] and, if asymmetric, zero points [groups].
void unpack_row(const Weight& weight, int64_t row, int8_t* codes, float* scale, int8_t* zero_point);

// Dequantize one row of any weight into out [columns].
void read_row(const Weight& weight, int64_t row, float* out);

// True if neither a nor b is negative and a * b is at most kMostValues.
inline bool fits(int64_t a, int64_t b) {
  return a >= 0 && b >= 0 && (b == 0 || a <= kMostValues / b);
}

// Scope guard of a call during which the instruction set level must not change: zp_isa_select refuses meanwhile. A call
// looks the level up for each kernel, and one level cannot read an input that was laid out for another.
class Running {
 public:
  Running();
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
};

// Run the body of a C interface function; turn an exception into a status.
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
