// zp_divergence: KL divergence, losses and argmax agreement of two models' logits; threads split the rows.
#include <cmath>

#include "core/internal.h"
#include "core/parallel.h"
#include "kernels/decoder_kernels.h"

namespace zp {
namespace {

zp_status check(const float* p, int64_t p_stride, const float* q, int64_t q_stride, const int64_t* targets,
                int64_t rows, int64_t count, const zp_divergence_row* out, int32_t threads) {
  if (rows < 0 || count < 1 || p_stride < count || q_stride < count || threads < 1 ||
      threads > Pool::kMaxThreads || !fits(rows, p_stride) || !fits(rows, q_stride))
    return fail(ZP_INVALID,
                "cannot compare %lld rows of %lld logits on %d threads: sizes, strides or threads are out of range",
                static_cast<long long>(rows), static_cast<long long>(count), threads);
  if (rows > 0 && (p == nullptr || q == nullptr || targets == nullptr || out == nullptr))
    return fail(ZP_INVALID, "a pointer is null");
  for (int64_t i = 0; i < rows; ++i)
    if (targets[i] < 0 || targets[i] >= count)
      return fail(ZP_INVALID, "token %lld is not one of %lld", static_cast<long long>(targets[i]),
                  static_cast<long long>(count));
  return active_decoder_kernels() == nullptr ? ZP_UNSUPPORTED : ZP_OK;  // the error is recorded
}

}  // namespace
}  // namespace zp

zp_status zp_divergence(const float* p, int64_t p_stride, const float* q, int64_t q_stride,
                        const int64_t* targets, int64_t rows, int64_t count, zp_divergence_row* out,
                        int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    if (const zp_status status = zp::check(p, p_stride, q, q_stride, targets, rows, count, out, threads);
        status != ZP_OK)
      return status;
    const zp::DecoderKernels* kernels = zp::active_decoder_kernels();
    zp::each_row(threads, rows, static_cast<double>(count), [&](int64_t row) {
      const float *a = p + row * p_stride, *b = q + row * q_stride;
      zp::DivergenceSums sums;
      kernels->divergence(a, b, count, &sums);
      const double p_log = std::log(sums.p_sum), q_log = std::log(sums.q_sum);
      zp_divergence_row& result = out[row];
      result.divergence = sums.excess / sums.p_sum - p_log + q_log;
      result.p_loss = p_log - (static_cast<double>(a[targets[row]]) - sums.p_most);
      result.q_loss = q_log - (static_cast<double>(b[targets[row]]) - sums.q_most);
      result.agrees = sums.p_first == sums.q_first;
    });
    return ZP_OK;
  });
}
