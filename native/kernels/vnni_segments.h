// The product of rows in segments, if a float scale of the weight or of the input varies along the row: part of
// vnni.cpp.
//
// A panel is multiplied by eight rows of input codes at a time: 3 x 8 registers hold the integer sums of a segment,
// which are then stored to a buffer. After a few segments the sums are scaled and added to float sums.
#pragma once

#include "vnni_panel.h"

namespace zp {
namespace {

constexpr int kSegmentRows = 8;  // rows of input codes multiplied at a time: eight tokens, or the limbs of four
constexpr int kChunk = 4;        // segments whose integer sums are stored before they are scaled

// Memory of one call.
struct SegmentScratch {
  uint8_t* panel;  // [block][k / 4][channel][k % 4]
  float* scale;    // of the weight: [segment of the part][block][16]
  int32_t* start;  // what the raised weights add to the products of a segment, negated: [row / 16][limb][segment][16]
  float* total;    // float sums of all rows: [token][block][16]

  static int64_t panel_bytes(const Weight& w) { return kBlocks * kLanes * part_columns(w, w.segment); }
  static int64_t scale_bytes(const Weight& w) { return part_columns(w, w.segment) / w.segment * kBlocks * 64; }
  static int64_t start_bytes(const Weight& w, int64_t rows) { return (rows + 15) / 16 * w.limbs * w.segments * 64; }
  static int64_t bytes(const Weight& w, int64_t rows) {
    return panel_bytes(w) + scale_bytes(w) + start_bytes(w, rows) + (rows + kSegmentRows) * kBlocks * 64;
  }

  SegmentScratch(const Product& p, uint8_t* memory) {
    const Weight& w = *p.weight;
    panel = memory;
    memory += panel_bytes(w);
    scale = reinterpret_cast<float*>(memory);
    memory += scale_bytes(w);
    start = reinterpret_cast<int32_t*>(memory);
    total = reinterpret_cast<float*>(memory + start_bytes(w, p.rows));
    for (int64_t i = 0; i < start_bytes(w, p.rows) / 4; i += 16)
      _mm512_store_si512(start + i,
                         _mm512_mullo_epi32(_mm512_loadu_si512(p.input.sums + i), _mm512_set1_epi32(-kRaise)));
  }
};

// The product of all rows with BLOCKS blocks of weights. SCALE: the weight's scale varies along the row; INPUT: so does
// the input's; ZERO: zero points are subtracted from the sums.
template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, int UNIT, int BLOCKS>
class RowsBySegments {
  static constexpr int kTokens = kSegmentRows / LIMBS;
  using Tile = Sums<kSegmentRows, BLOCKS>;

 public:
  RowsBySegments(const Product& p, int64_t block, const SegmentScratch& scratch)
      : p_(p), w_(*p.weight), block_(block), scratch_(scratch) {}

  void multiply_all() {
    const int64_t columns = w_.columns_padded, width = part_columns(w_, w_.segment);
    const int64_t groups = (p_.rows + kTokens - 1) / kTokens;
    for (int64_t begin = 0; begin < columns; begin += width) {
      const int64_t end = smaller(begin + width, columns);
      const bool last = end == columns;
      prepare(begin, end);
      Ahead<BLOCKS> ahead(w_, last ? block_ + BLOCKS : block_, last ? 0 : end,
                          last ? smaller(width, columns) : smaller(end + width, columns),
                          groups * ((end - begin) / UNIT));
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t token = group * kTokens;
        float* total = scratch_.total + token * BLOCKS * kLanes;
        if (last) prefetch_output(p_, token, kTokens, block_, BLOCKS);
        if (begin == 0) std::memset(total, 0, kTokens * BLOCKS * 64);
        add_segments(token, begin, end, ahead, total);
        if (last) finish(token, total);
      }
    }
  }

 private:
  // Fill the panel, and load the weight's scales of its segments.
  void prepare(int64_t begin, int64_t end) {
    for (int n = 0; n < BLOCKS; ++n)
      fill(w_, block_ + n, begin, end, scratch_.panel + n * (end - begin) * kLanes);
    if constexpr (SCALE) {
      float* out = scratch_.scale;
      for (int64_t k = begin; k < end; k += w_.segment)
        for (int n = 0; n < BLOCKS; ++n, out += kLanes) _mm512_store_ps(out, load_scale(w_, place(n, k / w_.segment)));
    }
  }
  // Return the place of a block's scales and zero points for a segment.
  int64_t place(int n, int64_t segment) const {
    return ((block_ + n) * w_.groups + segment / w_.segments_per_group) * kLanes;
  }

  // Add the scaled sums of the segments in columns [begin, end).
  void add_segments(int64_t token, int64_t begin, int64_t end, Ahead<BLOCKS>& ahead, float* total) const {
    const int64_t columns = w_.columns_padded, tile = token / 16, row = token % 16;
    const int8_t* x = p_.input.codes + (tile * LIMBS * columns + begin) * 16 + row * UNIT;
    const uint8_t* panel = scratch_.panel;
    const int64_t stop = (end + w_.segment - 1) / w_.segment;
    for (int64_t first = begin / w_.segment; first < stop; first += kChunk) {
      const int count = static_cast<int>(smaller(kChunk, stop - first));
      for (int i = 0; i < count; ++i) {
        const int64_t width = smaller(w_.segment, end - (first + i) * w_.segment);
        multiply_segment(x, panel, (end - begin) * kLanes, width / UNIT, tile, row, first + i, ahead, buffer_[i]);
        x += width * 16;
        panel += width * kLanes;
      }
      compiler_barrier();
      scale_sums(tile, row, first, count, scratch_.scale + (first - begin / w_.segment) * BLOCKS * kLanes, total);
    }
  }
  // Store the integer sums of a segment.
  __attribute__((noinline)) void multiply_segment(const int8_t* x, const uint8_t* panel, int64_t block_bytes,
                                                  int64_t units, int64_t tile, int64_t row, int64_t segment,
                                                  Ahead<BLOCKS>& ahead, __m512i* out) const {
    Tile sum;
    start(tile, row, segment, sum);
    multiply<LIMBS, false, UNIT, kSegmentRows, BLOCKS>(x, w_.columns_padded * 16, panel, block_bytes, units, ahead,
                                                       sum);
#pragma GCC unroll 8
    for (int m = 0; m < kSegmentRows; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < BLOCKS; ++n) out[m * BLOCKS + n] = sum[m][n];
  }
  // Scale the sums of `count` segments from `first` on, and add them to the float sums.
  __attribute__((noinline)) void scale_sums(int64_t tile, int64_t row, int64_t first, int count, const float* scale,
                                            float* total) const {
    const float* by_row = p_.input.scale + (tile * w_.segments + first) * 16 + row;
    for (int n = 0; n < BLOCKS; ++n, total += kLanes) {
      __m512 sum[kTokens];
#pragma GCC unroll 8
      for (int m = 0; m < kTokens; ++m) sum[m] = _mm512_load_ps(total + m * BLOCKS * kLanes);
      for (int i = 0; i < count; ++i) {
        const __m512 factor = SCALE ? _mm512_load_ps(scale + (i * BLOCKS + n) * kLanes) : _mm512_setzero_ps();
        const __m512i* dot = buffer_[i] + n;
#pragma GCC unroll 8
        for (int m = 0; m < kTokens; ++m) {
          __m512 value = LIMBS == 2 ? join_small_limbs(dot[(m + kTokens) % kSegmentRows * BLOCKS], dot[m * BLOCKS])
                                    : _mm512_cvtepi32_ps(dot[m * BLOCKS]);
          if constexpr (INPUT) {
            if constexpr (SCALE) value = _mm512_mul_ps(value, factor);
            sum[m] = _mm512_fmadd_ps(value, _mm512_set1_ps(by_row[i * 16 + m]), sum[m]);
          } else {
            sum[m] = _mm512_fmadd_ps(value, factor, sum[m]);
          }
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < kTokens; ++m) _mm512_store_ps(total + m * BLOCKS * kLanes, sum[m]);
    }
  }
  // Start the sums of a segment.
  ZP_INLINE void start(int64_t tile, int64_t row, int64_t segment, Tile& sum) const {
    __m512i zero[BLOCKS];
    if constexpr (ZERO) {
#pragma GCC unroll 8
      for (int n = 0; n < BLOCKS; ++n) zero[n] = load_zero(w_, place(n, segment));
    }
#pragma GCC unroll 8
    for (int m = 0; m < kSegmentRows; ++m) {
      const int64_t at = ((tile * LIMBS + m / kTokens) * w_.segments + segment) * 16 + row + m % kTokens;
      const __m512i raised = _mm512_set1_epi32(scratch_.start[at]);
#pragma GCC unroll 8
      for (int n = 0; n < BLOCKS; ++n) {
        sum[m][n] = raised;
        if constexpr (ZERO)
          sum[m][n] = _mm512_sub_epi32(raised, _mm512_mullo_epi32(zero[n], _mm512_set1_epi32(p_.input.sums[at])));
      }
    }
  }
  // Apply the scales that do not vary along the row, and store the output.
  ZP_INLINE void finish(int64_t token, const float* total) const {
    const float* by_row = p_.input.scale + token / 16 * 16 * w_.segments + token % 16;
#pragma GCC unroll 8
    for (int n = 0; n < BLOCKS; ++n) {
      const OutputColumns columns = output_columns(p_, block_ + n, false);
      const __m512 scale = load_scale(w_, place(n, 0));
#pragma GCC unroll 8
      for (int m = 0; m < kTokens; ++m) {
        if (token + m >= p_.rows) break;
        __m512 value = _mm512_load_ps(total + (m * BLOCKS + n) * kLanes);
        if constexpr (!SCALE) value = _mm512_mul_ps(value, scale);
        if constexpr (!INPUT) value = _mm512_mul_ps(value, _mm512_set1_ps(by_row[m]));
        columns.store(token + m, value);
      }
    }
  }

  const Product& p_;
  const Weight& w_;
  int64_t block_;
  SegmentScratch scratch_;
  mutable __m512i buffer_[kChunk][kSegmentRows * BLOCKS];
};

template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, int UNIT>
void by_segments(const Product& p, int64_t begin, int64_t end, const SegmentScratch& scratch) {
  int64_t block = begin;
  for (; block + kBlocks <= end; block += kBlocks)
    RowsBySegments<LIMBS, SCALE, INPUT, ZERO, UNIT, kBlocks>(p, block, scratch).multiply_all();
  for (; block < end; ++block) RowsBySegments<LIMBS, SCALE, INPUT, ZERO, UNIT, 1>(p, block, scratch).multiply_all();
}

template <int LIMBS, bool SCALE, bool INPUT, bool ZERO>
void by_segments(const Product& p, int64_t begin, int64_t end, const SegmentScratch& scratch) {
  if (p.weight->k_unit == 64)
    by_segments<LIMBS, SCALE, INPUT, ZERO, 64>(p, begin, end, scratch);
  else
    by_segments<LIMBS, SCALE, INPUT, ZERO, 32>(p, begin, end, scratch);
}

template <bool ZERO>
void by_segments(const Product& p, int64_t begin, int64_t end, const SegmentScratch& scratch) {
  const Weight& w = *p.weight;
  if (w.limbs == 2)
    by_segments<2, true, false, ZERO>(p, begin, end, scratch);
  else if (w.scale_by_segment && w.input_by_segment)
    by_segments<1, true, true, ZERO>(p, begin, end, scratch);
  else if (w.scale_by_segment)
    by_segments<1, true, false, ZERO>(p, begin, end, scratch);
  else
    by_segments<1, false, true, ZERO>(p, begin, end, scratch);
}

void by_segments(const Product& p, int64_t begin, int64_t end, uint8_t* memory) {
  const SegmentScratch scratch(p, memory);
  byte_zeros(*p.weight) ? by_segments<true>(p, begin, end, scratch) : by_segments<false>(p, begin, end, scratch);
}

}  // namespace
}  // namespace zp
