// Dynamic quantization of a product's input: part of kernel.cpp, needs ZP_VEC's vector type.
//
// code = round(x * most / absmax), scale = absmax / most, with absmax over a token or a group of its channels. `most`
// is 127, or 16319 for 16-bit codes.
#pragma once

#include "partial.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000;
// The bits of 2^-112. A smaller absmax counts as zero, so that 16319 / absmax does not overflow.
constexpr int32_t kTinyBits = 15 << 23;

// Return the float with these bits.
float from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Return the bits of the largest magnitude. Bits of magnitudes compare like the magnitudes, with NaN the largest.
int32_t absmax_bits(const float* x, int64_t count) {
  V::Int most = V::set_int(0);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = V::max(most, V::magnitude_bits(V::load(x + i)));
  if (i < count) most = V::max(most, V::magnitude_bits(load(x + i, count - i)));
  return V::max_lane(most);
}

// Quantize one segment: `count` columns, then zeros up to column `padded`. Codes are stored in runs of `unit` columns,
// `unit_stride` bytes apart. Returns the sum of the codes.
int32_t quantize_segment(const float* x, int64_t count, int64_t padded, float inverse, int8_t* codes,
                         int64_t unit, int64_t unit_stride) {
  V::Int sum = V::set_int(0);
  const V::Float factor = V::set_float(inverse);
  for (int64_t start = 0; start < padded; start += unit, codes += unit_stride) {
    const int64_t end = smaller(start + unit, padded), whole = smaller(end, count);
    int64_t i = start;
    for (; i + kLanes <= whole; i += kLanes) {
      const V::Int code = V::round(V::mul(V::load(x + i), factor));
      sum = V::add(sum, code);
      V::store_bytes(codes + (i - start), code);
    }
    for (; i < end; i += kLanes) {
      int8_t tail[kLanes] = {};
      if (i < count) {
        const V::Int code = V::round(V::mul(load(x + i, count - i), factor));
        sum = V::add(sum, code);
        V::store_bytes(tail, code);
      }
      std::memcpy(codes + (i - start), tail, static_cast<size_t>(smaller(kLanes, end - i)));
    }
  }
  return V::sum_lanes(sum);
}

// Store zeros as the codes of a segment.
void zero_segment(int64_t padded, int8_t* codes, int64_t unit, int64_t unit_stride) {
  for (int64_t start = 0; start < padded; start += unit, codes += unit_stride)
    std::memset(codes, 0, static_cast<size_t>(smaller(unit, padded - start)));
}

constexpr float kMost16 = 127 * 128 + 63;  // the largest 16-bit code: both limbs are int8

struct Scales {
  float inverse;  // most / absmax; 0 if all codes are to be zero
  float scale;
};

// Return the scales for the absmax with these bits. A NaN or infinity makes the scale NaN, and with it the token's
// output; the codes are zeros.
Scales scales_of(int32_t bits, float most = 127.0f) {
  if (bits < kTinyBits) return {0.0f, 0.0f};
  if (bits >= kInfinityBits) return {0.0f, from_bits(0x7fc00000)};
  const float absmax = from_bits(bits);
  return {most / absmax, absmax / most};
}

// Where a row's codes, scales and sums go. `codes` and `sums` are the offsets of the low limb. Add `limb_codes` and
// `limb_sums` to get those of the high limb. A scale has no limbs.
struct Place {
  int64_t codes, unit, unit_stride, scale, scale_stride, sums, limb_codes, limb_sums;
};

// Return a row's place in the layout of Activations (core/layout.h).
Place place(const Weight& w, const Activations& input, int64_t row) {
  if (!input.tiled)
    return {row * w.limbs * w.columns_padded, w.columns_padded, 0,         row * w.segments, 1,
            row * w.limbs * w.segments,       w.columns_padded, w.segments};
  const int64_t tile = row / 16 * w.limbs;
  return {tile * 16 * w.columns_padded + row % 16 * w.k_unit,
          w.k_unit,
          16 * w.k_unit,
          row / 16 * 16 * w.segments + row % 16,
          16,
          tile * 16 * w.segments + row % 16,
          input.limbs_share_tile ? 8 * w.k_unit : 16 * w.columns_padded,
          16 * w.segments};
}

// Quantize columns [start, stop) of a row, which share a scale: one or more segments.
void quantize_group(const Product& p, const Place& at, const float* x, int64_t start, int64_t stop) {
  const Weight& w = *p.weight;
  const Scales s = scales_of(absmax_bits(x + start, stop - start));
  int64_t segment = start / w.segment;
  for (int64_t k = start; k < stop; k += w.segment, ++segment) {
    const int64_t real = smaller(stop - k, w.segment), padded = smaller(w.columns_padded - k, w.segment);
    int8_t* codes = p.input.codes + at.codes + (p.input.tiled ? k * 16 : k);
    int32_t sum = 0;
    if (s.inverse == 0.0f)
      zero_segment(padded, codes, at.unit, at.unit_stride);
    else
      sum = quantize_segment(x + k, real, padded, s.inverse, codes, at.unit, at.unit_stride);
    p.input.scale[at.scale + segment * at.scale_stride] = s.scale;
    p.input.sums[at.sums + segment * at.scale_stride] = sum;
  }
}

// Quantize a row with one scale. One limb: code = round(x * 127 / absmax). Two limbs: round(x * 16319 / absmax)
// = 128 * high + low, with low in -64..63 and high in -127..127.
template <int LIMBS>
void quantize_token(const Product& p, const Place& at, const float* x) {
  const Weight& w = *p.weight;
  const Scales s = scales_of(absmax_bits(x, w.columns), LIMBS == 2 ? kMost16 : 127.0f);
  p.input.scale[at.scale] = s.scale;
  const V::Float factor = V::set_float(s.inverse);
  int8_t* codes = p.input.codes + at.codes;
  for (int64_t segment = 0, k = 0; k < w.columns_padded; ++segment) {
    const int64_t stop = segment + 1 < w.segments ? (segment + 1) * w.segment : w.columns_padded;
    const int64_t real = s.inverse == 0.0f ? 0 : smaller(stop, w.columns);
    V::Int sum[2] = {V::set_int(0), V::set_int(0)};
    for (int64_t next; k < stop; k = next) {
      next = smaller(k + kLanes, stop);
      V::Int limb[2] = {V::set_int(0), V::set_int(0)};  // low, high
      if (k < real) {
        const V::Float values = load(x + k, real - k);
        limb[0] = V::round(V::mul(values, factor));
        if constexpr (LIMBS == 2) {
          limb[1] = V::shift_right<7>(V::add(limb[0], V::set_int(64)));
          limb[0] = V::sub(limb[0], V::shift_left<7>(limb[1]));
        }
      }
      int8_t* to = codes + (p.input.tiled ? k / w.k_unit * at.unit_stride + k % w.k_unit : k);
#pragma GCC unroll 2
      for (int d = 0; d < LIMBS; ++d, to += at.limb_codes) {
        sum[d] = V::add(sum[d], limb[d]);
        if (next - k == kLanes) {
          V::store_bytes(to, limb[d]);
        } else {
          int8_t tail[kLanes];
          V::store_bytes(tail, limb[d]);
          std::memcpy(to, tail, static_cast<size_t>(next - k));
        }
      }
    }
    if (p.input.want_sums)
      for (int d = 0; d < LIMBS; ++d)
        p.input.sums[at.sums + segment * at.scale_stride + d * at.limb_sums] = V::sum_lanes(sum[d]);
  }
}

// Quantize row `row` with one scale to int16 codes: round(x * 16319 / absmax). Rows have room for whole vectors.
void quantize_int16(const Product& p, int64_t row, const float* x) {
  const Weight& w = *p.weight;
  const Scales s = scales_of(absmax_bits(x, w.columns), kMost16);
  p.input.scale[row * w.segments] = s.scale;
  const V::Float factor = V::set_float(s.inverse);
  auto* codes = reinterpret_cast<int16_t*>(p.input.codes + row * p.input.token_bytes);
  const int64_t real = s.inverse == 0.0f ? 0 : w.columns;
  for (int64_t k = 0; k < w.columns_padded; k += kLanes)
    V::store_int16(codes + k, k < real ? V::round(V::mul(load(x + k, real - k), factor)) : V::set_int(0));
}

// Quantize all complete groups of a row. Group, segment and k_unit must all be VECTORS * 16 columns: then a group's
// values stay in registers from the search for the maximum to the rounding. Returns the first column that is left.
template <int VECTORS>
int64_t quantize_small_groups(const Product& p, const Place& at, const float* x) {
  const Weight& w = *p.weight;
  constexpr int64_t kGroup = VECTORS * kLanes;
  const int64_t groups = w.columns / kGroup, step = p.input.tiled ? 16 * kGroup : kGroup;
  int8_t* codes = p.input.codes + at.codes;
  for (int64_t g = 0; g < groups; ++g, x += kGroup, codes += step) {
    V::Float values[VECTORS];
    V::Int most = V::set_int(0), sum = V::set_int(0);
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) {
      values[i] = V::load(x + i * kLanes);
      most = V::max(most, V::magnitude_bits(values[i]));
    }
    const Scales s = scales_of(V::max_lane(most));
    p.input.scale[at.scale + g * at.scale_stride] = s.scale;
    int32_t total = 0;
    if (s.inverse == 0.0f) {
      std::memset(codes, 0, kGroup);
    } else {
      const V::Float factor = V::set_float(s.inverse);
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; ++i) {
        const V::Int code = V::round(V::mul(values[i], factor));
        sum = V::add(sum, code);
        V::store_bytes(codes + i * kLanes, code);
      }
      if (p.input.want_sums) total = V::sum_lanes(sum);
    }
    p.input.sums[at.sums + g * at.scale_stride] = total;
  }
  return groups * kGroup;
}

void quantize(const Product& p, int64_t begin, int64_t end) {
  const Weight& w = *p.weight;
  const int64_t group = w.activation > 0 ? smaller(w.activation, w.columns) : w.columns;
  const bool small = group == w.segment && group == w.k_unit;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = p.x + row * p.x_stride;
    if (p.input.int16) {
      quantize_int16(p, row, x);
      continue;
    }
    const Place at = place(w, p.input, row);
    if (!w.input_by_segment) {
      w.limbs == 2 ? quantize_token<2>(p, at, x) : quantize_token<1>(p, at, x);
      continue;
    }
    int64_t start = 0;
    if (small && group == 64) start = quantize_small_groups<4>(p, at, x);
    if (small && group == 32) start = quantize_small_groups<2>(p, at, x);
    for (; start < w.columns; start += group)
      quantize_group(p, at, x, start, smaller(start + group, w.columns));
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
