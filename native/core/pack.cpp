// Packing integer weights: codes [out, in], scales and zero points to the kernels' layout (core/layout.h), and reading
// single rows back.
//
// Scales, multipliers and zero points of a weight lie [block][group][channel in the block]; see scale_index.
#include <cmath>
#include <cstring>
#include <new>

#include "core/internal.h"

namespace zp {
namespace {

// Return the largest multiplier of a two-level scale: a code of this many bits times it fits a signed byte.
int most_multiple(int bits) {
  return bits < 5 ? 15 : 7;
}

// Convert a value that bfloat16 holds exactly. The scales of a ZP_SCALE_BFLOAT16 weight are such values.
uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}

Weight layout_of(const zp_format& f) {
  Weight w{};
  w.rows = f.rows;
  w.columns = f.columns;
  w.blocks = ceil_div(f.rows, kLanes);
  w.activation = f.activation;
  w.nibbles = f.bits <= 5;
  w.fifths = f.bits == 5;
  w.asymmetric = f.asymmetric != 0;
  w.kind = f.kind;
  w.limbs = f.activation_bits == 16 ? 2 : 1;
  w.scale_bf16 = f.scale_type == ZP_SCALE_BFLOAT16;
  w.nested = f.scale_type == ZP_SCALE_NESTED;
  const int64_t group = f.group_size > 0 && f.group_size < f.columns ? f.group_size : 0;
  const int64_t input = f.activation > 0 && f.activation < f.columns ? f.activation : 0;
  w.scale_by_segment = group > 0 && !w.nested;
  w.input_by_segment = input > 0;
  w.segment = group == 0 ? input : input == 0 ? group : group < input ? group : input;
  w.k_unit = w.segment % 64 == 0 ? 64 : w.segment % 32 == 0 ? 32 : 8;
  if (w.nested && input == 0 && w.segment % 16 == 0) w.k_unit = 64;  // a tile may span segments: rows are summed whole
  w.columns_padded = round_up(f.columns, w.k_unit);
  if (w.segment == 0) w.segment = w.columns_padded;
  w.segments = ceil_div(f.columns, w.segment);
  w.groups = group == 0 ? 1 : ceil_div(f.columns, group);
  w.segments_per_group = group == 0 ? w.segments : group / w.segment;
  w.segments_per_input = input == 0 ? w.segments : input / w.segment;
  return w;
}

struct Parts {  // byte offsets into the packed weight; the codes are at 0
  size_t fifth, scale, multiplier, zero_point, end;
};

Parts parts_of(const Weight& w) {
  const auto aligned = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, kAlignment)); };
  Parts parts{};
  const int64_t codes = w.blocks * kLanes * w.columns_padded;
  parts.fifth = aligned(codes / (w.nibbles ? 2 : 1));
  parts.scale = parts.fifth + (w.fifths ? aligned(codes / 8) : 0);
  const int64_t groups = w.blocks * kLanes * w.groups;
  parts.multiplier =
      parts.scale + aligned(w.nested ? w.blocks * kLanes * 4 : groups * (w.scale_bf16 ? 2 : 4));
  parts.zero_point = parts.multiplier + (w.nested ? aligned(groups) : 0);
  parts.end = parts.zero_point + (w.asymmetric ? aligned(groups) : 0);
  return parts;
}

// Set the weight's pointers to their places in packed memory. The memory may still be empty.
void point_into(Weight& w, const uint8_t* memory) {
  const Parts parts = parts_of(w);
  w.codes = memory;
  w.fifth = memory + parts.fifth;
  w.scale = memory + parts.scale;
  w.multiplier = reinterpret_cast<const int8_t*>(memory + parts.multiplier);
  w.zero_point = reinterpret_cast<const int8_t*>(memory + parts.zero_point);
}

// Return the place of a row's group among scales, multipliers or zero points.
int64_t scale_index(const Weight& w, int64_t row, int64_t group) {
  return (row / kLanes * w.groups + group) * kLanes + row % kLanes;
}

// Return the byte that holds the fifth bit of code (row, k): a block has eight bytes for every four columns.
int64_t fifth_at(const Weight& w, int64_t row, int64_t k) {
  return row / kLanes * w.columns_padded * 2 + k / 4 * 8 + (row % kLanes * 4 + k % 4) / 8;
}

// Return the fifth bit's place in the byte fifth_at.
int fifth_bit(int64_t row, int64_t k) {
  return static_cast<int>((row * 4 + k % 4) % 8);
}

// True if all values lie between `least` and `most`.
bool within(const int8_t* values, int64_t count, int least, int most) {
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside &= values[i] >= least && values[i] <= most;
  return inside;
}

// Return an error unless codes and zero points suit the kernels, which subtract zero points from unpacked nibbles in
// signed bytes.
zp_status check_nibbles(const Weight& w, const zp_format& f, const int8_t* codes, const int8_t* zero_point) {
  if (!w.nibbles) return ZP_OK;
  const int half = w.fifths ? 16 : 8;
  constexpr int kMostZero = 96;  // code - zero_point, and offset + zero_point, fit a signed byte
  if (!within(codes, w.rows * w.columns, -half, half - 1))
    return fail(ZP_INVALID, "a code of %d bits lies outside %d to %d", f.bits, -half, half - 1);
  if (zero_point != nullptr &&
      !within(zero_point, f.per_tensor != 0 ? 1 : w.rows * w.groups, -kMostZero, kMostZero))
    return fail(ZP_INVALID, "a zero point of %d bits lies outside %d to %d", f.bits, -kMostZero, kMostZero);
  return ZP_OK;
}

void pack_codes(const Weight& w, const int8_t* codes, uint8_t* out, uint8_t* fifth) {
  for (int64_t row = 0; row < w.rows; ++row) {
    const int8_t* in = codes + row * w.columns;
    const int64_t lane = row % kLanes * 4;
    if (!w.nibbles) {
      uint8_t* block = out + row / kLanes * kLanes * w.columns_padded;
      for (int64_t k = 0; k < w.columns; ++k) block[k / 4 * 64 + lane + k % 4] = static_cast<uint8_t>(in[k]);
      continue;
    }
    uint8_t* block = out + row / kLanes * kLanes * w.columns_padded / 2;
    const int offset = w.fifths ? 16 : 8;
    for (int64_t k = 0; k < w.columns; ++k) {
      const auto code = static_cast<unsigned>(in[k] + offset);
      uint8_t& byte = block[k / 8 * 64 + lane + k % 4];
      byte = static_cast<uint8_t>(byte | (k % 8 < 4 ? code & 15u : (code & 15u) << 4));
      if (w.fifths) {
        uint8_t& high = fifth[fifth_at(w, row, k)];
        high = static_cast<uint8_t>(high | (code >> 4 & 1u) << fifth_bit(row, k));
      }
    }
  }
}

int code_at(const Weight& w, int64_t row, int64_t k) {
  const int64_t block = row / kLanes, lane = row % kLanes * 4;
  if (!w.nibbles)
    return static_cast<int8_t>(w.codes[block * kLanes * w.columns_padded + k / 4 * 64 + lane + k % 4]);
  const uint8_t byte = w.codes[block * kLanes * w.columns_padded / 2 + k / 8 * 64 + lane + k % 4];
  const int low = k % 8 < 4 ? byte & 15 : byte >> 4;
  if (!w.fifths) return low - 8;
  return low + (w.fifth[fifth_at(w, row, k)] >> fifth_bit(row, k) & 1) * 16 - 16;
}

float scale_at(const Weight& w, int64_t at) {
  if (w.nested)
    return static_cast<const float*>(w.scale)[at / (kLanes * w.groups) * kLanes + at % kLanes] *
           static_cast<float>(w.multiplier[at]);
  if (!w.scale_bf16) return static_cast<const float*>(w.scale)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(w.scale)[at]) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Return the base of a row's two-level scales: the largest magnitude divided by 1, 2, ... or `multiples`, such that
// every scale is an integer times it. Returns 0 if there is none.
float nested_base(const float* scale, int64_t groups, int multiples) {
  float most = 0;
  for (int64_t g = 0; g < groups; ++g) most = std::fabs(scale[g]) > most ? std::fabs(scale[g]) : most;
  for (int divisor = 1; divisor <= multiples; ++divisor) {
    const float base = most / static_cast<float>(divisor);
    bool fits = true;
    for (int64_t g = 0; g < groups && fits; ++g)
      fits = scale[g] != 0 && std::nearbyint(scale[g] / base) * base == scale[g];
    if (fits) return base;
  }
  return 0;
}

// Pack two-level scales: a float base per row and an int8 multiplier per group. Return false if the scales of some row
// are not integer multiples of one base.
bool pack_nested(const Weight& w, const float* scale, int multiples, uint8_t* memory, const Parts& parts) {
  auto* bases = reinterpret_cast<float*>(memory + parts.scale);
  auto* multipliers = reinterpret_cast<int8_t*>(memory + parts.multiplier);
  for (int64_t row = 0; row < w.rows; ++row) {
    const float base = nested_base(scale + row * w.groups, w.groups, multiples);
    if (base == 0) return false;
    bases[row] = base;
    for (int64_t g = 0; g < w.groups; ++g)
      multipliers[scale_index(w, row, g)] = static_cast<int8_t>(std::nearbyint(scale[row * w.groups + g] / base));
  }
  return true;
}

void pack_scales(const Weight& w, const zp_format& format, const float* scale, uint8_t* memory,
                 const Parts& parts) {
  for (int64_t row = 0; row < w.rows; ++row)
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t from = format.per_tensor != 0 ? 0 : row * w.groups + g;
      const int64_t to = scale_index(w, row, g);
      if (w.scale_bf16)
        reinterpret_cast<uint16_t*>(memory + parts.scale)[to] = to_bf16(scale[from]);
      else
        reinterpret_cast<float*>(memory + parts.scale)[to] = scale[from];
    }
}

void pack_zero_points(const Weight& w, const zp_format& format, const int8_t* zero_point, uint8_t* memory,
                      const Parts& parts) {
  auto* out = reinterpret_cast<int8_t*>(memory + parts.zero_point);
  for (int64_t row = 0; row < w.rows; ++row)
    for (int64_t g = 0; g < w.groups; ++g)
      out[scale_index(w, row, g)] =
          zero_point[format.per_tensor != 0 ? 0 : row * w.groups + g];
}

}  // namespace

void unpack_row(const Weight& w, int64_t row, int8_t* codes, float* scale, int8_t* zero_point) {
  for (int64_t k = 0; k < w.columns; ++k) codes[k] = static_cast<int8_t>(code_at(w, row, k));
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t at = scale_index(w, row, g);
    scale[g] = scale_at(w, at);
    if (w.asymmetric) zero_point[g] = w.zero_point[at];
  }
}

void read_row(const Weight& w, int64_t row, float* out) {
  if (w.kind != ZP_INTEGER) return row_of_floats(w, row, out);
  const int64_t group = w.segment * w.segments_per_group;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t at = scale_index(w, row, g);
    const float scale = scale_at(w, at);
    const int zero = w.asymmetric ? w.zero_point[at] : 0;
    const int64_t end = (g + 1) * group < w.columns ? (g + 1) * group : w.columns;
    for (int64_t k = g * group; k < end; ++k) out[k] = static_cast<float>(code_at(w, row, k) - zero) * scale;
  }
}

zp_status check_size(int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1) return fail(ZP_INVALID, "a weight has at least one row and one column");
  if (!fits(rows, columns)) return fail(ZP_INVALID, "a weight of more than 2^40 values");
  return ZP_OK;
}

namespace {

zp_status check(const zp_format* f) {
  if (f == nullptr) return fail(ZP_INVALID, "the format is null");
  const auto group = static_cast<long>(f->group_size), input = static_cast<long>(f->activation);
  if (f->kind != ZP_INTEGER) return fail(ZP_UNSUPPORTED, "kind %d: zp_pack_float packs floats", f->kind);
  if (const zp_status status = check_size(f->rows, f->columns); status != ZP_OK) return status;
  if (f->bits < 2 || f->bits > 8)
    return fail(ZP_UNSUPPORTED, "%d-bit codes: the kernels take 2 to 8 bits", f->bits);
  if (group < 0 || group % 8 != 0)
    return fail(ZP_UNSUPPORTED, "weight groups of %ld: the kernels take multiples of 8", group);
  if (f->per_tensor != 0 && group != 0)
    return fail(ZP_INVALID, "one scale for the tensor and groups of %ld", group);
  if (input < ZP_ACTIVATION_FLOAT || (input > 0 && input % 8 != 0))
    return fail(ZP_UNSUPPORTED, "activation groups of %ld: the kernels take multiples of 8", input);
  if (f->activation_bits != (input == ZP_ACTIVATION_FLOAT ? 0 : 8) &&
      (f->activation_bits != 16 || input != 0))
    return fail(ZP_UNSUPPORTED, "activations of %d bits: the kernels take 8, or 16 with one scale per token",
                f->activation_bits);
  if (f->scale_type < ZP_SCALE_FLOAT32 || f->scale_type > ZP_SCALE_NESTED)
    return fail(ZP_INVALID, "there is no scale type %d", f->scale_type);
  if (f->scale_type == ZP_SCALE_NESTED && (f->bits > 5 || group == 0 || f->asymmetric != 0))
    return fail(ZP_UNSUPPORTED, "two-level scales need a symmetric weight with groups and at most 5 bits");
  const bool weight_whole = group == 0 || group >= f->columns,
             input_whole = input <= 0 || input >= f->columns;
  if (!weight_whole && !input_whole && group % input != 0 && input % group != 0)
    return fail(ZP_UNSUPPORTED, "weight groups of %ld and activation groups of %ld do not nest", group,
                input);
  const Weight w = layout_of(*f);
  // Two-level scales with one activation scale per token are summed as integers to the row's end.
  const int64_t summed = w.nested && !w.input_by_segment ? w.columns : w.segment;
  if (input != ZP_ACTIVATION_FLOAT && summed > kMaxSegment)
    return fail(ZP_UNSUPPORTED, "sums over %ld columns do not fit 32 bits: use groups of at most %ld",
                static_cast<long>(summed), static_cast<long>(kMaxSegment));
  return ZP_OK;
}

void discard(zp_weight* weight) {
  if (weight == nullptr) return;
  release(weight->memory);
  delete weight;
}

zp_status pack(const zp_format* format, const int8_t* codes, const float* scale, const int8_t* zero_point,
                  zp_weight** out) {
  if (out == nullptr || codes == nullptr || scale == nullptr) return fail(ZP_INVALID, "a pointer is null");
  *out = nullptr;
  if (const zp_status status = check(format); status != ZP_OK) return status;
  if ((zero_point != nullptr) != (format->asymmetric != 0))
    return fail(ZP_INVALID, "zero points go with an asymmetric format, and only with it");
  if (const zp_status status = check_nibbles(layout_of(*format), *format, codes, zero_point);
      status != ZP_OK)
    return status;
  auto* weight = new (std::nothrow) zp_weight;
  if (weight == nullptr) return fail(ZP_NO_MEMORY, "no memory for a packed weight");
  Weight& w = weight->layout;
  w = layout_of(*format);
  const Parts parts = parts_of(w);
  auto* memory = static_cast<uint8_t*>(allocate(parts.end));
  if (memory == nullptr) {
    delete weight;
    return fail(ZP_NO_MEMORY, "no memory for a packed weight of %zu bytes", parts.end);
  }
  std::memset(memory, 0, parts.end);
  weight->memory = memory;
  weight->bytes = parts.end;
  point_into(w, memory);
  pack_codes(w, codes, memory, memory + parts.fifth);
  if (w.asymmetric) pack_zero_points(w, *format, zero_point, memory, parts);
  if (!w.nested) {
    pack_scales(w, *format, scale, memory, parts);
  } else if (const int most = most_multiple(format->bits);
             !pack_nested(w, scale, most, memory, parts)) {
    discard(weight);
    return fail(ZP_INVALID,
                "the two-level scales of a row are not integer multiples, of magnitude 1 to %d, of one number", most);
  }
  *out = weight;
  return ZP_OK;
}

zp_status view(const zp_format* format, const void* memory, size_t bytes, zp_weight** out) {
  if (out == nullptr || memory == nullptr || format == nullptr) return fail(ZP_INVALID, "a pointer is null");
  *out = nullptr;
  const bool floats = format->kind != ZP_INTEGER;
  if (const zp_status status = floats ? check_floats(format) : check(format); status != ZP_OK)
    return status;
  Weight w = floats ? layout_of_floats(*format) : layout_of(*format);
  const size_t needed = floats ? bytes_of_floats(w) : parts_of(w).end;
  if (bytes != needed)
    return fail(ZP_INVALID, "a packed weight of this format has %zu bytes, not %zu", needed, bytes);
  if (reinterpret_cast<uintptr_t>(memory) % kAlignment != 0)
    return fail(ZP_INVALID, "packed bytes must start at a multiple of %zu", kAlignment);
  auto* weight = new (std::nothrow) zp_weight;
  if (weight == nullptr) return fail(ZP_NO_MEMORY, "no memory for a weight's description");
  const auto* packed = static_cast<const uint8_t*>(memory);
  if (floats)
    w.codes = packed;
  else
    point_into(w, packed);
  weight->layout = w;
  weight->bytes = bytes;
  *out = weight;
  return ZP_OK;
}

}  // namespace
}  // namespace zp

zp_status zp_check(const zp_format* format) {
  return zp::guarded([&] { return zp::check(format); });
}

zp_status zp_pack(const zp_format* format, const int8_t* codes, const float* scale, const int8_t* zero_point,
                  zp_weight** out) {
  return zp::guarded([&] { return zp::pack(format, codes, scale, zero_point, out); });
}

void zp_free(zp_weight* weight) {
  zp::discard(weight);
}

zp_status zp_view(const zp_format* format, const void* memory, size_t bytes, zp_weight** out) {
  return zp::guarded([&] { return zp::view(format, memory, bytes, out); });
}

const void* zp_weight_memory(const zp_weight* weight) {
  return weight == nullptr ? nullptr : weight->layout.codes;
}

size_t zp_weight_bytes(const zp_weight* weight) {
  return weight == nullptr ? 0 : weight->bytes;
}
