// A packed weight back in the neutral layout, for writing it down.
#include "core/internal.h"

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
