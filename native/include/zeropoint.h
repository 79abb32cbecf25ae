/* The C interface of Zeropoint's CPU kernels.
 *
 * Every function that can fail returns a zp_status; zp_last_error() then says what was wrong, in the
 * calling thread. No exception leaves the library. All functions may be called from several threads
 * at once; products are computed one after the other on a shared pool of threads.
 */
#ifndef ZEROPOINT_H
#define ZEROPOINT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZP_API __attribute__((visibility("default")))

/* Raised when a function or struct of this file changes; the Python loader refuses another version. */
#define ZP_ABI_VERSION 1

typedef enum { ZP_OK = 0, ZP_INVALID = 1, ZP_UNSUPPORTED = 2, ZP_NO_MEMORY = 3 } zp_status;

/* Instruction set levels, worst first. */
typedef enum { ZP_SCALAR = 0, ZP_AVX2 = 1, ZP_AVX512 = 2, ZP_AMX = 3, ZP_ISA_COUNT = 4 } zp_isa;

enum { ZP_ACTIVATION_FLOAT = -1, ZP_ACTIVATION_TOKEN = 0 };

/* The format of a weight [rows, columns] = [out, in] and of its input. */
typedef struct {
  int64_t rows;
  int64_t columns;
  int32_t bits;       /* 2..8; up to 4 bits are stored as nibbles, more as bytes */
  int32_t group_size; /* input channels that share a scale; 0: the whole row */
  int32_t per_tensor; /* 1: one scale (and zero point) in all; group_size is 0 */
  int32_t asymmetric; /* 1: zero points are given */
  int32_t activation; /* int8 input: channels of a token that share a scale, or ZP_ACTIVATION_TOKEN;
                         ZP_ACTIVATION_FLOAT: the input stays float */
  int32_t scale_bf16; /* 1: every scale is a bfloat16 value, and is kept in two bytes */
} zp_format;

typedef struct zp_weight zp_weight;

ZP_API int32_t zp_abi_version(void);
ZP_API const char* zp_last_error(void);

/* ZP_OK when zp_pack would accept the format. */
ZP_API zp_status zp_check(const zp_format* format);

/* Packs codes [rows, columns], scales and zero points [rows, groups] (or one value) in row-major
 * order. w = (code - zero_point) * scale. The result is independent of the instruction set. */
ZP_API zp_status zp_pack(const zp_format* format, const int8_t* codes, const float* scale,
                         const int8_t* zero_point, zp_weight** out);
ZP_API void zp_free(zp_weight* weight);
ZP_API size_t zp_weight_bytes(const zp_weight* weight);

/* y[m, n] = sum_k x[m, k] * w[n, k] + bias[n]; strides in elements, bias may be null.
 * The result does not depend on `threads`, nor on the number of rows in the call. */
ZP_API zp_status zp_linear(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride,
                           const float* bias, float* y, int64_t y_stride, int32_t threads);

/* out[i, :] = w[ids[i], :] as float. */
ZP_API zp_status zp_rows(const zp_weight* weight, const int64_t* ids, int64_t count, float* out,
                         int64_t out_stride);

/* Bit i set: this CPU (and operating system) can run level i. */
ZP_API uint32_t zp_isa_levels(void);
/* The level in use; negative when ZEROPOINT_ISA names one that does not exist or cannot run here. */
ZP_API int32_t zp_isa_active(void);
/* Chooses a level for the process; not to be called while a product runs. */
ZP_API zp_status zp_isa_select(int32_t level);

/* Streams through `bytes` of memory `repeats` times; the best rate in bytes a second. */
ZP_API zp_status zp_read_bandwidth(size_t bytes, int32_t threads, int32_t repeats, double* rate);

#ifdef __cplusplus
}
#endif
#endif
