// Reading a packed weight: rows as float (zp_rows), and the whole weight as codes, scales and zero points (zp_unpack).
#include "core/internal.h"

namespace zp {
namespace {

zp_status rows(const zp_weight* weight, const int64_t* ids, int64_t count, float* out,
                  int64_t out_stride) {
  if (weight == nullptr || (count > 0 && (ids == nullptr || out == nullptr)))
    return fail(ZP_INVALID, "a pointer is null");
  const Weight& w = weight->layout;
  if (count < 0 || out_stride < w.columns || !fits(count, out_stride))
    return fail(ZP_INVALID, "cannot write %ld rows of %ld values at a stride of %ld: rows must not overlap, nor reach "
                "beyond 2^40 values", static_cast<long>(count), static_cast<long>(w.columns),
                static_cast<long>(out_stride));
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= w.rows)
      return fail(ZP_INVALID, "row %ld of a weight with %ld rows", static_cast<long>(ids[i]),
                  static_cast<long>(w.rows));
  for (int64_t i = 0; i < count; ++i) read_row(w, ids[i], out + i * out_stride);
  return ZP_OK;
}

}  // namespace
}  // namespace zp

using zp::fail;

zp_status zp_unpack(const zp_weight* weight, int8_t* codes, float* scale, int8_t* zero_point) {
  if (weight == nullptr || codes == nullptr || scale == nullptr) return fail(ZP_INVALID, "a pointer is null");
  const zp::Weight& w = weight->layout;
  if (w.kind != ZP_INTEGER) return fail(ZP_UNSUPPORTED, "kind %d: only integer weights have codes", w.kind);
  if ((zero_point != nullptr) != w.asymmetric)
    return fail(ZP_INVALID, "zero points go with an asymmetric format, and only with it");
  for (int64_t row = 0; row < w.rows; ++row)
    zp::unpack_row(w, row, codes + row * w.columns, scale + row * w.groups,
                   zero_point == nullptr ? nullptr : zero_point + row * w.groups);
  return ZP_OK;
}

zp_status zp_rows(const zp_weight* weight, const int64_t* ids, int64_t count, float* out,
                  int64_t out_stride) {
  return zp::guarded([&] { return zp::rows(weight, ids, count, out, out_stride); });
}
