// Many rows on AMX tiles when one scale serves a row and a channel: part of amx.cpp.
#pragma once

#include "amx_panel.h"

namespace zp {
namespace {

// Tile C's way from one block of the output to the next: its sums go to `before`, if there was a block
// before, and it goes on from those at `from`, or from zero.
template <int C>
ZP_INLINE void change_sums(uint8_t* before, const uint8_t* from) {
  if (before) tile_store<C>(before + C * kTile);
  if (from)
    tile_load<C>(from + C * kTile, 64);
  else
    tile_zero<C>();
}

// A finished block's way from integer sums to the output: less the zero points, to float, scaled, stored. The
// matrix unit would wait for it, so it goes a few rows at a time between the tile products of the block
// after.
template <int DIGITS, bool ZERO>
class Finish {
 public:
  static constexpr int kRows = DIGITS == 2 ? 16 : 32;

  Finish(const Product& p, const Panel& panel)
      : p_(p),
        panel_(panel),
        columns_{output_columns(p, panel.block, panel.streams),
                 output_columns(p, panel.block + panel.blocks - 1, panel.streams)} {
    for (int n = 0; n < 2; ++n) {
      scale_[n] = _mm512_load_ps(panel.scale + n * 16);
      if constexpr (ZERO) zero_[n] = _mm512_load_si512(panel.zero_point + n * 16);
    }
  }

  void start(const Rows& rows, const uint8_t* tiles) {
    rows_ = rows;
    tiles_ = tiles;
    row_ = 0;
    end_ = static_cast<int>(smaller(kRows, p_.rows - rows.first));
  }
  // The next `count` rows, if there are any left.
  ZP_INLINE void some(int count) {
    const int stop = row_ + count < end_ ? row_ + count : end_;
    for (; row_ < stop; ++row_)
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n)
        if (n < panel_.blocks) columns_[n].store(rows_.first + row_, value(row_ / 16, row_ % 16, n));
  }
  void rest() { some(kRows); }

 private:
  ZP_INLINE __m512 sum(int tile, int r, int n) const {
    const int32_t* codes = p_.input.sums + rows_.tile[tile] * 16 * p_.weight->segments;
    return sums_of_row<ZERO>(tiles_ + (tile * 2 + n) * kTile, r, zero_[n], codes);
  }
  ZP_INLINE __m512 value(int tile, int r, int n) const {
    __m512 found = sum(tile, r, n);
    if constexpr (DIGITS == 2) found = _mm512_fmadd_ps(sum(1, r, n), _mm512_set1_ps(128.0f), found);
    const float* scale = p_.input.scale + (rows_.first / 16 + tile) * 16 * p_.weight->segments;
    return _mm512_mul_ps(_mm512_mul_ps(found, scale_[n]), _mm512_set1_ps(scale[r]));
  }

  const Product& p_;
  const Panel& panel_;
  OutputColumns columns_[2];
  __m512 scale_[2];
  __m512i zero_[2];
  Rows rows_{};
  const uint8_t* tiles_ = nullptr;
  int row_ = 0, end_ = 0;
};

// The products of 64 columns. `change<C>()` comes right before tile C's.
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

// A long row is multiplied in parts, so that the panel's part stays in the first-level cache while all rows
// pass over it; the sums wait in the second.
template <int DIGITS, bool ZERO>
void whole_rows(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  const int64_t pairs = pairs_of(w, p.rows), columns = w.columns_padded;
  Prefetch ahead(p, panel, pairs * (columns / 64));
  Finish<DIGITS, ZERO> finish(p, panel);
  uint8_t* before = nullptr;
  Rows rows_before{};
  for (int64_t begin = 0; begin < columns; begin += kPart) {
    const int64_t end = smaller(begin + kPart, columns);
    const bool last = end == columns;
    const int steps = static_cast<int>((end - begin) / 64), at_once = (finish.kRows + steps - 1) / steps;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const Rows rows = rows_at(p, pair);
      if (last) prefetch_output(p, panel, rows.first);
      uint8_t* kept = panel.kept + pair * 4 * kTile;
      const uint8_t* from = begin == 0 ? nullptr : kept;
      const int8_t* a0 = p.input.codes + rows.tile[0] * 16 * columns;
      const int8_t* a1 = p.input.codes + rows.tile[1] * 16 * columns;
      multiply_step(a0 + begin * 16, a1 + begin * 16, panel.codes[0] + begin * 16,
                    panel.codes[1] + begin * 16, [&]<int C>() { change_sums<C>(before, from); });
      ahead.some();
      compiler_barrier();
      if (last && pair > 0) finish.start(rows_before, before);
      for (int64_t k = begin + 64; k < end; k += 64) {
        multiply_step(a0 + k * 16, a1 + k * 16, panel.codes[0] + k * 16, panel.codes[1] + k * 16,
                      []<int C>() {});
        ahead.some();
        finish.some(at_once);
      }
      if (last) finish.rest();
      before = last ? panel.buffer + pair % 2 * 4 * kTile : kept;
      rows_before = rows;
    }
  }
  store_tiles(before);
  compiler_barrier();
  finish.start(rows_before, before);
  finish.rest();
}

void whole_rows(const Product& p, const Panel& panel) {
  if (p.weight->digits == 2)
    panel.zero_point ? whole_rows<2, true>(p, panel) : whole_rows<2, false>(p, panel);
  else
    panel.zero_point ? whole_rows<1, true>(p, panel) : whole_rows<1, false>(p, panel);
}

}  // namespace
}  // namespace zp
