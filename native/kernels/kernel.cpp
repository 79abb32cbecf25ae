// Input quantization and products with integer weights, for one instruction set level. CMake compiles this file once
// per level with the level's flags, ZP_LEVEL (the level's namespace) and ZP_VEC (the header of its vector type).
//
// Vec, the vector type (alias V), has 16 lanes: the 16 output channels of a block. Besides operations it has constants:
// kOffsetBytes (added to the codes that load_bytes returns), kRows (rows of the largest register tile) and kWide
// (blocks of a tile with one row).
// Form (stored.h) has constants of the stored codes: kNibbles (codes of at most 5 bits), kStreams (blocks of a tile
// with two rows), kMostColumns and others.
//
// V::dot adds the products of four columns to the lanes. Some levels multiply faster if they keep sums in another form:
// AVX2 sums products of nibbles in 16 bits, for example, which could overflow after 32 columns. There a V::ColumnSums
// sums the products of up to kMostColumns columns, and its add_to then adds these sums to the lanes. kMostColumns is 0
// for codes that V::dot multiplies.
//
// A row is a row of input codes: a token has one row for each of its limbs. (For float input a row is a token.) Columns
// are input channels, counted by k. A segment is a run of columns with one weight scale and one input scale (layout.h).
//
// Every level rounds in the same places, so all levels agree bit for bit:
//   for each segment: float_sum = fma(float(dot) * weight_scale, input_scale, float_sum)
//   after the last segment: y = float_sum * (the scales that are equal in all segments) + bias
// The first line leaves out a scale that is equal in all segments. If every float scale is equal in all segments, the
// segments are summed as integers first. A 16-bit token has two rows of integer sums, one for each limb.
// join(high, low) in output.h converts both to one float.
#include ZP_VEC

#include "core/layout.h"
#include "kernels/levels.h"
#include "output.h"
#include "quantize.h"
#include "stored.h"

namespace zp::ZP_LEVEL {
namespace {

// -- quantized input: int8, or 16 bits as two int8 limbs ------------------------------------------

// Compute a tile: `rows` rows from `row` on, times `blocks` blocks from `block` on. A tile has room for ROWS x BLOCKS.
// If `rows` or `blocks` is smaller, the rest of the tile computes the last row or block again and is not stored.
// NESTED: the weight has two-level scales and the input one scale per token. Then only integer multipliers vary between
// segments, and all segments are summed as integers. Two-level scales with a grouped input take NESTED = false.
template <int ROWS, int BLOCKS, Stored STORED, bool NESTED>
void integer_tile(const Product& p, int64_t row, int rows, int64_t block, int blocks) {
  using Form = Form<STORED>;
  constexpr bool kNibbles = Form::kNibbles;
  constexpr int32_t kOffset = Form::kOffset;
  constexpr int64_t kBytesPer8 = Form::kBytesPer8, kPrefetchBytes = Form::kPrefetchBytes;
  constexpr int kTogether = ROWS % V::kRowsTogether == 0 ? V::kRowsTogether : 1;  // rows of one ColumnSums
  using ColumnSums = typename V::template ColumnSums<kTogether, kNibbles>;
  const Weight& w = *p.weight;
  const int64_t block_bytes = w.columns_padded / 8 * kBytesPer8;
  // Blocks lie one behind the other. Near the end of a block b, the address to prefetch lies in block b + 1, which this
  // tile reads itself. So from column `turn` on, `jump` bytes are added: the prefetch then reaches block b + BLOCKS,
  // which the next tile reads.
  const int64_t turn = w.columns_padded - kPrefetchBytes / kBytesPer8 * 8, jump = (BLOCKS - 1) * block_bytes;
  const uint8_t* code[BLOCKS];
  const uint8_t* fifth[BLOCKS] = {};
  for (int n = 0; n < BLOCKS; ++n) {
    const int64_t b = smaller(block + n, block + blocks - 1);
    code[n] = w.codes + b * block_bytes;
    if constexpr (Form::kFifths) fifth[n] = w.fifth + b * w.columns_padded / 8 * Form::kFifthsPer8;
  }
  const int8_t* x[ROWS];
  int64_t sums_at[ROWS], scale_at[ROWS];
  for (int m = 0; m < ROWS; ++m) {
    const int64_t r = row + smaller(m, rows - 1);
    x[m] = p.input.codes + r * w.columns_padded;
    sums_at[m] = r * w.segments;
    scale_at[m] = r / w.limbs * w.segments;
  }
  // The sum of up to 256 input codes, each at most 127 in magnitude, fits 16 bits, so mul_short can multiply by it.
  const bool small_sums = w.segment <= 256;
  V::Float float_sum[ROWS][BLOCKS];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < BLOCKS; ++n) float_sum[m][n] = V::set_float(0.0f);
  V::Int integer_sum[ROWS][BLOCKS];
  if constexpr (NESTED) {
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) integer_sum[m][n] = V::set_int(0);
  }

  int64_t group = 0, segments_left = w.segments_per_group;
  for (int64_t s = 0; s < w.segments; ++s) {
    V::Int dot[ROWS][BLOCKS];
    if (w.asymmetric) {
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) {
        const int64_t b = smaller(block + n, block + blocks - 1);
        const V::Int zero =
            V::add(V::widen(w.zero_point + (b * w.groups + group) * kLanes), V::set_int(kOffset));
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m) {
          const int32_t sum = -p.input.sums[sums_at[m] + s];
          dot[m][n] = small_sums ? V::mul_short(zero, sum) : V::mul(zero, sum);
        }
      }
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const V::Int init = kOffset ? V::set_int(-kOffset * p.input.sums[sums_at[m] + s]) : V::set_int(0);
#pragma GCC unroll 4
        for (int n = 0; n < BLOCKS; ++n) dot[m][n] = init;
      }
    }
    constexpr bool kColumnSums = Form::kMostColumns > 0;
    // With few sums in a tile, a second chain of sums hides the latency of the first.
    constexpr bool kTwoChains = ROWS * BLOCKS <= 4 && !kColumnSums;
    V::Int chain[ROWS][BLOCKS];
    if constexpr (kTwoChains) {
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < BLOCKS; ++n) chain[m][n] = V::set_int(0);
    }
    const int64_t k_end = smaller((s + 1) * w.segment, w.columns_padded);
    for (int64_t k = s * w.segment; k < k_end;) {
      const int64_t stop = kColumnSums ? smaller(k + Form::kMostColumns, k_end) : k_end;
      [[maybe_unused]] ColumnSums sums[ROWS / kTogether][BLOCKS];
      for (; k < stop; k += 8) {
        typename V::Codes first[BLOCKS], second[BLOCKS];
#pragma GCC unroll 4
        for (int n = 0; n < BLOCKS; ++n) {
          const uint8_t* at = code[n] + k * (kBytesPer8 / 8);
          Form::load(at, fifth[n] + (Form::kFifths ? k * (Form::kFifthsPer8 / 8) : 0), first[n], second[n]);
          if constexpr (ROWS <= 8) {
            const uint8_t* ahead = at + kPrefetchBytes + (k < turn ? 0 : jump);
            V::prefetch(ahead);
            if constexpr (!kNibbles) V::prefetch(ahead + 64);
          }
        }
        if constexpr (kColumnSums) {
#pragma GCC unroll 16
          for (int m = 0; m < ROWS; m += kTogether)
#pragma GCC unroll 4
            for (int n = 0; n < BLOCKS; ++n) sums[m / kTogether][n].add(first[n], second[n], x + m, k);
        } else {
#pragma GCC unroll 16
          for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < BLOCKS; ++n) dot[m][n] = V::template dot<kNibbles>(dot[m][n], first[n], x[m] + k);
#pragma GCC unroll 16
          for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < BLOCKS; ++n) {
              V::Int& sum = kTwoChains ? chain[m][n] : dot[m][n];
              sum = V::template dot<kNibbles>(sum, second[n], x[m] + k + 4);
            }
        }
      }
      if constexpr (kColumnSums) {
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
          for (int n = 0; n < BLOCKS; ++n) dot[m][n] = sums[m / kTogether][n].add_to(dot[m][n], m % kTogether);
      }
    }
    if constexpr (kTwoChains) {
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < BLOCKS; ++n) dot[m][n] = V::add(dot[m][n], chain[m][n]);
    }
    if (NESTED || (kNibbles && w.nested)) {  // two-level scales: only codes of at most 5 bits have them
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) {
        const int64_t b = smaller(block + n, block + blocks - 1);
        const int8_t* multiples = w.multiplier + (b * w.groups + group) * kLanes;
        if constexpr (ROWS <= 8) V::prefetch(multiples + kPrefetchBytes / 2);
        const V::Int multiplier = V::widen(multiples);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m) {
          dot[m][n] = V::mul_lanes(dot[m][n], multiplier);
          if constexpr (NESTED) integer_sum[m][n] = V::add(integer_sum[m][n], dot[m][n]);
        }
      }
    }
    if constexpr (!NESTED) {
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) {
        const int64_t b = smaller(block + n, block + blocks - 1);
        const V::Float scale = w.scale_by_segment ? load_scale(w, b, group) : V::set_float(1.0f);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m) {
          if (ROWS % 2 == 0 && w.limbs == 2) {
            if (m % 2 == 0)
              float_sum[m][n] = V::fma(join(dot[(m + 1) % ROWS][n], dot[m][n]), scale, float_sum[m][n]);
            continue;
          }
          V::Float value = V::to_float(dot[m][n]);
          if (w.input_by_segment) {
            if (w.scale_by_segment) value = V::mul(value, scale);
            float_sum[m][n] = V::fma(value, V::set_float(p.input.scale[scale_at[m] + s]), float_sum[m][n]);
          } else {
            float_sum[m][n] = V::fma(value, scale, float_sum[m][n]);
          }
        }
      }
    }
    if (--segments_left == 0) {
      ++group;
      segments_left = w.segments_per_group;
    }
  }
  for (int n = 0; n < blocks; ++n) {
    const V::Float scale = w.scale_by_segment ? V::set_float(1.0f) : load_scale(w, block + n, 0);
    for (int m = 0; m < rows; m += w.limbs) {
      V::Float value = float_sum[m][n];
      if constexpr (NESTED) {
        const V::Int sum = integer_sum[m][n];
        value = w.limbs == 2 ? join(integer_sum[m + 1][n], sum) : V::to_float(sum);
      }
      if (!w.scale_by_segment) value = V::mul(value, scale);
      if (!w.input_by_segment) value = V::mul(value, V::set_float(p.input.scale[scale_at[m]]));
      store_output(p, (row + m) / w.limbs, block + n, value);
    }
  }
}

template <int ROWS, int BLOCKS, Stored STORED, bool NESTED>
void integer_strip(const Product& p, int64_t row, int rows, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; block += BLOCKS)
    integer_tile<ROWS, BLOCKS, STORED, NESTED>(p, row, rows, block,
                                                static_cast<int>(smaller(BLOCKS, end - block)));
}

template <Stored STORED, bool NESTED>
void integer_blocks(const Product& p, int64_t begin, int64_t end) {
  // A strip of kWide blocks stays in the first-level cache while all rows are multiplied by it.
  for (int64_t strip = begin; strip < end; strip += V::kWide) {
    const int64_t stop = smaller(strip + V::kWide, end);
    const int64_t rows = p.rows * p.weight->limbs;
    for (int64_t row = 0; row < rows;) {
      const int left = static_cast<int>(smaller(rows - row, V::kRows));
      if constexpr (V::kRows >= 12) {
        if (left > 8)
          integer_strip<12, 2, STORED, NESTED>(p, row, left, strip, stop);
        else if (left > 4)
          integer_strip<8, 2, STORED, NESTED>(p, row, left, strip, stop);
        else if (left > 2)
          integer_strip<4, 4, STORED, NESTED>(p, row, left, strip, stop);
      } else if constexpr (V::kRows >= 4) {
        if (left > 2) integer_strip<4, 1, STORED, NESTED>(p, row, left, strip, stop);
      }
      if (left == 2) integer_strip<2, Form<STORED>::kStreams, STORED, NESTED>(p, row, left, strip, stop);
      if (left == 1) integer_strip<1, V::kWide, STORED, NESTED>(p, row, left, strip, stop);
      row += left;
    }
  }
}

void integer(const Product& p, int64_t begin, int64_t end, void*) {
  const Weight& w = *p.weight;
  const bool whole_rows = w.nested && !w.input_by_segment;
  if (whole_rows && w.fifths)
    integer_blocks<Stored::kFives, true>(p, begin, end);
  else if (whole_rows)
    integer_blocks<Stored::kNibbles, true>(p, begin, end);
  else if (w.fifths)
    integer_blocks<Stored::kFives, false>(p, begin, end);
  else if (w.nibbles)
    integer_blocks<Stored::kNibbles, false>(p, begin, end);
  else
    integer_blocks<Stored::kBytes, false>(p, begin, end);
}

// -- float input ----------------------------------------------------------------------------------

// Compute `rows` rows of one block. Codes are converted to float; a group's sum is scaled at the group's end.
template <int ROWS, Stored STORED>
void floating_tile(const Product& p, int64_t row, int rows, int64_t block) {
  using Form = Form<STORED>;
  constexpr int32_t kOffset = Form::kOffset;
  constexpr int64_t kBytesPer8 = Form::kBytesPer8;
  const Weight& w = *p.weight;
  const uint8_t* code = w.codes + block * (w.columns_padded / 8 * kBytesPer8);
  const uint8_t* fifth = w.fifth + (Form::kFifths ? block * (w.columns_padded / 8 * Form::kFifthsPer8) : 0);
  const float* x[ROWS];
  for (int m = 0; m < ROWS; ++m) x[m] = p.x + (row + smaller(m, rows - 1)) * p.x_stride;
  V::Float total[ROWS];
  for (int m = 0; m < ROWS; ++m) total[m] = V::set_float(0.0f);
  for (int64_t g = 0; g < w.groups; ++g) {
    V::Int zero = V::set_int(kOffset);
    if (w.asymmetric) zero = V::add(zero, V::widen(w.zero_point + (block * w.groups + g) * kLanes));
    V::Float part[ROWS];
    for (int m = 0; m < ROWS; ++m) part[m] = V::set_float(0.0f);
    const int64_t k_end = smaller((g + 1) * w.segment, w.columns);
    for (int64_t k = g * w.segment; k < k_end; k += 8) {
      typename V::Codes quads[2];
      Form::load(code + k / 8 * kBytesPer8, fifth + k / 8 * Form::kFifthsPer8, quads[0], quads[1]);
      const int count = static_cast<int>(smaller(8, k_end - k));
      for (int j = 0; j < count; ++j) {
        const V::Float value = V::to_float(V::sub(V::lane_code(quads[j / 4], j % 4), zero));
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) part[m] = V::fma(value, V::set_float(x[m][k + j]), part[m]);
      }
    }
    V::Float scale = load_scale(w, block, g);
    if (w.nested)
      scale = V::mul(scale, V::to_float(V::widen(w.multiplier + (block * w.groups + g) * kLanes)));
    for (int m = 0; m < ROWS; ++m) total[m] = V::fma(part[m], scale, total[m]);
  }
  for (int m = 0; m < rows; ++m) store_output(p, row + m, block, total[m]);
}

template <Stored STORED>
void floating_blocks(const Product& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block)
    for (int64_t row = 0; row < p.rows; row += 4) {
      const int rows = static_cast<int>(smaller(4, p.rows - row));
      rows == 1 ? floating_tile<1, STORED>(p, row, 1, block) : floating_tile<4, STORED>(p, row, rows, block);
    }
}

void floating(const Product& p, int64_t begin, int64_t end, void*) {
  if (p.weight->fifths)
    floating_blocks<Stored::kFives>(p, begin, end);
  else if (p.weight->nibbles)
    floating_blocks<Stored::kNibbles>(p, begin, end);
  else
    floating_blocks<Stored::kBytes>(p, begin, end);
}

// -- memory bandwidth -----------------------------------------------------------------------------

// Prefetch distance in bytes, the same as for weights stored as bytes (kPrefetchBytes in stored.h).
constexpr int64_t kStreamAhead = 2048;

// Read all bytes, for bandwidth.cpp, as four streams side by side. (A product of one row reads kWide blocks side by
// side: 4 on AVX-512, 2 on AVX2, 1 on scalar.) The result only keeps the compiler from removing the reads.
uint64_t stream(const uint8_t* begin, int64_t bytes) {
  V::Int most[4] = {V::set_int(0), V::set_int(0), V::set_int(0), V::set_int(0)};
  const int64_t quarter = bytes / 4 / 64 * 64;
  for (int64_t i = 0; i < quarter; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const uint8_t* p = begin + j * quarter + i;
      V::prefetch(p + kStreamAhead);
      most[j] = V::max(most[j], V::magnitude_bits(V::load(reinterpret_cast<const float*>(p))));
    }
  }
  return static_cast<uint64_t>(V::max_lane(V::max(V::max(most[0], most[1]), V::max(most[2], most[3]))));
}

constexpr Kernels kTable = {quantize, integer, floating, stream};

}  // namespace

const Kernels* kernels() {
  return &kTable;
}

}  // namespace zp::ZP_LEVEL
