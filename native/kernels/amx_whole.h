// Products of many rows on AMX tiles, if no float scale varies along the row: part of amx.cpp.
#pragma once

#include <utility>

#include "amx_panel.h"

namespace zp {
namespace {

// Where tile C = 2 * m + n of sums is stored: in slot 2 * n + m, so that the rows of a block follow one another.
template <int C>
constexpr int64_t kSlot = (C % 2 * 2 + C / 2) * kTile;

// Switch tile C from one output block to the next: store its sums to `before` (null: there was no block), then load the
// sums at `from` (null: start at zero).
template <int C>
ZP_INLINE void change_sums(uint8_t* before, const uint8_t* from) {
  if (before) tile_store<C>(before + kSlot<C>);
  if (from)
    tile_load<C>(from + kSlot<C>, 64);
  else
    tile_zero<C>();
}

// Conversion of an output block's integer sums to the output: subtract zero points, convert to float, scale, store. It
// runs a few rows at a time between the tile products of the next block, so that the matrix unit stays busy.
template <int LIMBS, bool ZERO, bool STREAMS>
class Finish {
 public:
  static constexpr int kRows = LIMBS == 2 ? 16 : 32;

  Finish(const Product& p, const Panel& panel) : p_(p), output_(p.y + panel.block * 16), stride_(p.y_stride) {
    for (int n = 0; n < 2; ++n) {
      scale_[n] = _mm512_load_ps(panel.scale + n * 16);
      if constexpr (ZERO) zero_[n] = _mm512_load_si512(panel.zero_point + n * 16);
      const OutputColumns columns = output_columns(p, panel.block + smaller(n, panel.blocks - 1), false);
      bias_[n] = columns.bias;
      mask_[n] = n < panel.blocks ? columns.mask : __mmask16{0};
    }
  }

  void start(const Rows& rows, const uint8_t* tiles) {
    const int64_t segments = p_.weight->segments;
    for (int t = 0; t < 2; ++t) {
      const int64_t tokens = LIMBS == 2 ? rows.first / 16 : rows.tile[t];
      _mm512_store_ps(by_row_ + t * 16, _mm512_loadu_ps(p_.input.scale + tokens * 16 * segments));
      if constexpr (ZERO)
        _mm512_store_si512(codes_ + t * 16, _mm512_loadu_si512(p_.input.sums + rows.tile[t] * 16 * segments));
    }
    tiles_ = tiles;
    y_ = output_ + rows.first * stride_;
    row_ = 0;
    end_ = smaller(kRows, p_.rows - rows.first);
  }
  // Convert the next `count` rows, or those that are left.
  ZP_INLINE void convert_some(int64_t count) {
    for (const int64_t stop = smaller(row_ + count, end_); row_ < stop; ++row_, y_ += stride_) {
      store(y_, mask_[0], value(0));
      store(y_ + 16, mask_[1], value(1));
    }
  }
  void convert_rest() { convert_some(kRows); }

 private:
  ZP_INLINE __m512i sum(int limb, int n) const {
    return sums_of_row<ZERO>(tiles_ + (n * 2 + limb) * kTile, row_, zero_[n], codes_ + limb * 16);
  }
  ZP_INLINE __m512 value(int n) const {
    __m512 total = LIMBS == 2 ? join_limbs(sum(1, n), sum(0, n)) : _mm512_cvtepi32_ps(sum(0, n));
    total = _mm512_mul_ps(_mm512_mul_ps(total, scale_[n]), _mm512_set1_ps(by_row_[row_]));
    return _mm512_add_ps(total, bias_[n]);
  }
  ZP_INLINE static void store(float* y, __mmask16 mask, __m512 value) {
    if constexpr (STREAMS)
      _mm512_stream_ps(y, value);
    else
      _mm512_mask_storeu_ps(y, mask, value);
  }

  const Product& p_;
  float* output_;
  int64_t stride_;
  __m512 scale_[2], bias_[2];
  __m512i zero_[2];
  __mmask16 mask_[2];
  alignas(64) float by_row_[32];   // the input's scales, by row
  alignas(64) int32_t codes_[32];  // sums of the input's codes: 16 of each limb, or of each tile
  const uint8_t* tiles_ = nullptr;
  float* y_ = nullptr;
  int64_t row_ = 0, end_ = 0;
};

// Run the tile products of 64 columns. `change<C>()` runs right before the product into tile C.
template <class Change>
ZP_INLINE void multiply_step(const int8_t* a0, const int8_t* a1, const uint8_t* b0, const uint8_t* b1,
                             Change&& change) {
  tile_load<4>(a0, 64);
  tile_load_kept<6>(b0, 64);
  change.template operator()<0>();
  tile_dot<0, 4, 6>();
  tile_load_kept<7>(b1, 64);
  change.template operator()<1>();
  tile_dot<1, 4, 7>();
  tile_load<5>(a1, 64);
  change.template operator()<2>();
  tile_dot<2, 5, 6>();
  change.template operator()<3>();
  tile_dot<3, 5, 7>();
}

// Columns [begin, end) of a panel's codes, as bytes. Every part of nibbles is widened to the same memory, so that it
// stays in the first-level cache.
struct Part {
  Part(const Weight& w, const Panel& panel, int64_t begin, int64_t end) {
    for (int n = 0; n < 2; ++n) {
      codes[n] =
          w.nibbles ? panel.widened + (n < panel.blocks ? n : 0) * kPart * 16 : panel.codes[n] + begin * 16;
      if (w.nibbles && n < panel.blocks)
        widen(w, panel.block + n, begin, end, panel.widened + n * kPart * 16);
    }
    compiler_barrier();
  }
  const uint8_t* codes[2];
};

// Multiply all rows by a panel. Long rows are multiplied in parts of the columns: a part of the panel stays in the
// first-level cache while all rows are multiplied by it, and the rows' sums wait in the second-level cache.
template <int LIMBS, bool ZERO, bool STREAMS>
void whole_rows(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  const int64_t pairs = pairs_of(w, p.rows), columns = w.columns_padded, width = part_columns(w);
  Prefetch ahead(p, panel, pairs * (columns / 64));
  Finish<LIMBS, ZERO, STREAMS> finish(p, panel);
  uint8_t* before = nullptr;
  Rows rows_before{};
  for (int64_t begin = 0; begin < columns; begin += width) {
    const int64_t end = smaller(begin + width, columns), steps = (end - begin) / 64;
    const int64_t at_once = (finish.kRows + steps - 1) / steps;
    const bool last = end == columns;
    const Part part(w, panel, begin, end);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const Rows rows = rows_at(p, pair);
      if (last) prefetch_output(p, panel, rows.first);
      uint8_t* kept = panel.kept + pair * 4 * kTile;
      const uint8_t* from = begin == 0 ? nullptr : kept;
      const int8_t* a0 = p.input.codes + rows.tile[0] * 16 * columns + begin * 16;
      const int8_t* a1 = p.input.codes + rows.tile[1] * 16 * columns + begin * 16;
      const uint8_t* b0 = part.codes[0];
      const uint8_t* b1 = part.codes[1];
      multiply_step(a0, a1, b0, b1, [&]<int C>() { change_sums<C>(before, from); });
      ahead.prefetch_some();
      compiler_barrier();
      if (last && pair > 0) finish.start(rows_before, before);
      for (int64_t k = kTile; k < steps * kTile; k += kTile) {
        multiply_step(a0 + k, a1 + k, b0 + k, b1 + k, []<int C>() {});
        ahead.prefetch_some();
        finish.convert_some(at_once);
      }
      if (last) finish.convert_rest();
      before = last ? panel.buffer + pair % 2 * 4 * kTile : kept;
      rows_before = rows;
    }
  }
  [&]<int... C>(std::integer_sequence<int, C...>) {
    (tile_store<C>(before + kSlot<C>), ...);
  }(std::make_integer_sequence<int, 4>());
  compiler_barrier();
  finish.start(rows_before, before);
  finish.convert_rest();
}

template <int LIMBS, bool ZERO>
void whole_rows(const Product& p, const Panel& panel) {
  const bool full = panel.blocks == 2 && (panel.block + 2) * 16 <= p.weight->rows;
  panel.streams&& full ? whole_rows<LIMBS, ZERO, true>(p, panel) : whole_rows<LIMBS, ZERO, false>(p, panel);
}

void whole_rows(const Product& p, const Panel& panel) {
  if (p.weight->limbs == 2)
    panel.zero_point ? whole_rows<2, true>(p, panel) : whole_rows<2, false>(p, panel);
  else
    panel.zero_point ? whole_rows<1, true>(p, panel) : whole_rows<1, false>(p, panel);
}

}  // namespace
}  // namespace zp
