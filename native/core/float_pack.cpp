// Packing weights of float16, bfloat16 or float32: blocks of 16 output channels, [block][k][channel].
#include <cstring>
#include <new>

#include "core/half.h"
#include "core/internal.h"

namespace zp {
namespace {

int64_t element_bytes(const Weight& w) {
  return w.kind == ZP_FLOAT32 ? 4 : 2;
}

template <class T>
void pack_values(const Weight& w, const void* values, uint8_t* memory) {
  const auto* in = static_cast<const T*>(values);
  auto* out = reinterpret_cast<T*>(memory);
  for (int64_t row = 0; row < w.rows; ++row) {
    T* to = out + row / kLanes * kLanes * w.columns + row % kLanes;
    for (int64_t k = 0; k < w.columns; ++k) to[k * kLanes] = in[row * w.columns + k];
  }
}

}  // namespace

zp_status check_floats(const zp_format* f) {
  if (f == nullptr) return fail(ZP_INVALID, "the format is null");
  if (f->kind < ZP_FLOAT16 || f->kind > ZP_FLOAT32)
    return fail(ZP_INVALID, "%d is no kind of float weight", f->kind);
  if (const zp_status status = check_size(f->rows, f->columns); status != ZP_OK) return status;
  if ((f->bits | f->group_size | f->per_tensor | f->asymmetric | f->activation | f->activation_bits |
       f->scale_type) != 0)
    return fail(ZP_INVALID, "a float weight has neither codes nor scales: its other fields are 0");
  return ZP_OK;
}

Weight layout_of_floats(const zp_format& f) {
  Weight w{};
  w.kind = f.kind;
  w.rows = f.rows;
  w.columns = w.columns_padded = w.segment = f.columns;
  w.blocks = ceil_div(f.rows, kLanes);
  w.k_unit = w.segments = w.groups = w.segments_per_group = w.segments_per_input = 1;
  w.activation = ZP_ACTIVATION_FLOAT;
  w.limbs = 1;
  return w;
}

size_t bytes_of_floats(const Weight& w) {
  return static_cast<size_t>(round_up(w.blocks * kLanes * w.columns * element_bytes(w), kAlignment));
}

void row_of_floats(const Weight& w, int64_t row, float* out) {
  const int64_t start = row / kLanes * kLanes * w.columns + row % kLanes;
  for (int64_t k = 0; k < w.columns; ++k) {
    const int64_t at = start + k * kLanes;
    if (w.kind == ZP_FLOAT32)
      out[k] = reinterpret_cast<const float*>(w.codes)[at];
    else if (w.kind == ZP_FLOAT16)
      out[k] = half_to_float(reinterpret_cast<const uint16_t*>(w.codes)[at]);
    else
      out[k] = bfloat16_to_float(reinterpret_cast<const uint16_t*>(w.codes)[at]);
  }
}

namespace {

zp_status pack_float(const zp_format* format, const void* values, zp_weight** out) {
  if (out == nullptr || values == nullptr) return fail(ZP_INVALID, "a pointer is null");
  *out = nullptr;
  if (const zp_status status = check_floats(format); status != ZP_OK) return status;
  auto* weight = new (std::nothrow) zp_weight;
  if (weight == nullptr) return fail(ZP_NO_MEMORY, "no memory for a packed weight");
  Weight& w = weight->layout;
  w = layout_of_floats(*format);
  weight->bytes = bytes_of_floats(w);
  auto* memory = static_cast<uint8_t*>(allocate(weight->bytes));
  if (memory == nullptr) {
    const zp_status status = fail(ZP_NO_MEMORY, "no memory for a packed weight of %zu bytes", weight->bytes);
    delete weight;
    return status;
  }
  std::memset(memory, 0, weight->bytes);
  if (w.kind == ZP_FLOAT32)
    pack_values<float>(w, values, memory);
  else
    pack_values<uint16_t>(w, values, memory);
  weight->memory = memory;
  w.codes = memory;
  *out = weight;
  return ZP_OK;
}

}  // namespace
}  // namespace zp

zp_status zp_pack_float(const zp_format* format, const void* values, zp_weight** out) {
  return zp::guarded([&] { return zp::pack_float(format, values, out); });
}
