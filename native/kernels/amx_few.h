// Products of few rows on AMX tiles: part of amx.cpp. Reading the weight from memory takes most of the time, so its
// codes are prefetched, and nibbles are widened to bytes two steps before the tile product that reads them.
#pragma once

#include "amx_panel.h"

namespace zp {
namespace {

constexpr int64_t kAheadBytes = 4096;  // prefetch distance in a block's codes
// Size of the ring of widened codes, and how far ahead of the product a slot is filled, both in steps of 64 columns.
// The lead is needed because a tile load waits for stores to the same cache lines.
constexpr int64_t kSlots = 4, kLead = 2;
constexpr int64_t kFewBytes = (4 + 4 * kSlots) * kTile;  // scratch: tiles of sums, ring

// True if all rows fit two tiles of the input, and whole rows are summed as integers.
bool is_few(const Weight& w, int64_t rows) {
  return sums_whole_rows(w) && rows * w.limbs <= 32;
}

// The product of TILES tiles of input by kBlocks = 4 / TILES blocks. Its four tiles of sums: with TILES = 2, those of
// tile t and block n are number 2 * t + n; with TILES = 1, those of block n are number n.
template <int TILES, int LIMBS, bool ZERO, bool NIBBLES>
class FewRows {
 public:
  FewRows(const Product& p, uint8_t* scratch)
      : p_(p), w_(*p.weight), sums_(scratch), ring_(scratch + 4 * kTile) {}

  void multiply(int64_t block, int blocks) {
    block_ = block;
    last_ = blocks - 1;
    for (int n = 0; n < kBlocks; ++n) {
      const int64_t b = block + smaller(n, last_);
      codes_[n] = w_.codes + b * w_.columns_padded * kColumnBytes;
      if constexpr (NIBBLES)
        for (int64_t k = 0; k < kLead * 64; k += 64) fill(n, k);
    }
    zero_tiles();
    for (int64_t k = 0; k < w_.columns_padded; k += 64) {
      tile_load_kept<4>(p_.input.codes + k * 16, 64);
      if constexpr (TILES == 2)
        tile_load_kept<5>(p_.input.codes + second_tile() * w_.columns_padded * 16 + k * 16, 64);
      step<0>(k);
      step<1>(k);
      if constexpr (kBlocks == 4) {
        step<2>(k);
        step<3>(k);
      }
    }
    store_tiles(sums_);
    compiler_barrier();
    for (int n = 0; n < blocks; ++n) finish(n);
  }

  static constexpr int kBlocks = 4 / TILES;

 private:
  static constexpr int64_t kColumnBytes = NIBBLES ? 8 : 16;  // bytes of a column of a block

  int64_t second_tile() const { return LIMBS == 2 || p_.rows > 16 ? 1 : 0; }
  uint8_t* slot(int n, int64_t k) const { return ring_ + (k / 64 % kSlots * kBlocks + n) * kTile; }
  ZP_INLINE void fill(int n, int64_t k) {
    if (k < w_.columns_padded) widen(w_, block_ + smaller(n, last_), k, k + 64, slot(n, k));
  }

  template <int N>
  ZP_INLINE void step(int64_t k) {
    constexpr int kB = 6 + N % 2;
    const uint8_t* codes = codes_[N] + k * kColumnBytes;
    // At the block's end, jump over this strip's blocks to the block that the next strip reads in its place.
    const bool beyond = (k + kAheadBytes / kColumnBytes) >= w_.columns_padded;
    const uint8_t* ahead =
        codes + kAheadBytes + (beyond ? (kBlocks - 1) * w_.columns_padded * kColumnBytes : 0);
#pragma GCC unroll 16
    for (int64_t i = 0; i < 64 * kColumnBytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(ahead + i), _MM_HINT_T0);
    if constexpr (NIBBLES) fill(N, k + kLead * 64);
    tile_load<kB>(NIBBLES ? slot(N, k) : codes, 64);
    tile_dot<N, 4, kB>();
    if constexpr (TILES == 2) tile_dot<2 + N, 5, kB>();
  }

  void finish(int n) const {
    const OutputColumns columns = output_columns(p_, block_ + n, false);
    const __m512 scale = load_scale(w_, (block_ + n) * w_.groups * 16);
    const __m512i zero = ZERO ? load_zero(w_, (block_ + n) * w_.groups * 16) : _mm512_setzero_si512();
    // The high limbs are 8 rows further in the same tile, or in the other tile.
    constexpr int64_t kHighLimb = TILES == 1 ? 8 * 64 : 2 * kTile;
    for (int64_t row = 0; row < p_.rows; ++row) {
      const int64_t tile = row / 16, r = row % 16;
      const uint8_t* sums = sums_ + (tile * 2 + n) * kTile;
      const int32_t* codes = p_.input.sums + tile * 16;
      const __m512i sum = sums_of_row<ZERO>(sums, r, zero, codes);
      const __m512 value = LIMBS == 2
                               ? join_limbs(sums_of_row<ZERO>(sums + kHighLimb, r, zero, codes + 16), sum)
                               : _mm512_cvtepi32_ps(sum);
      const float by_row = p_.input.scale[tile * 16 * w_.segments + r];
      columns.store(row, _mm512_mul_ps(_mm512_mul_ps(value, scale), _mm512_set1_ps(by_row)));
    }
  }

  const Product& p_;
  const Weight& w_;
  uint8_t* sums_;
  uint8_t* ring_;
  int64_t block_ = 0, last_ = 0;
  const uint8_t* codes_[kBlocks] = {};
};

template <int TILES, int LIMBS, bool ZERO, bool NIBBLES>
void few_rows(const Product& p, int64_t begin, int64_t end, uint8_t* scratch) {
  FewRows<TILES, LIMBS, ZERO, NIBBLES> few(p, scratch);
  for (int64_t block = begin; block < end; block += few.kBlocks)
    few.multiply(block, static_cast<int>(smaller(few.kBlocks, end - block)));
}

template <int TILES, int LIMBS>
void few_rows(const Product& p, int64_t begin, int64_t end, uint8_t* scratch) {
  if (p.weight->nibbles)
    few_rows<TILES, LIMBS, false, true>(p, begin, end, scratch);
  else if (p.weight->asymmetric)
    few_rows<TILES, LIMBS, true, false>(p, begin, end, scratch);
  else
    few_rows<TILES, LIMBS, false, false>(p, begin, end, scratch);
}

void few_rows(const Product& p, int64_t begin, int64_t end, uint8_t* scratch) {
  const bool one = p.input.limbs_share_tile || (p.weight->limbs == 1 && p.rows <= 16);
  if (p.weight->limbs == 2)
    one ? few_rows<1, 2>(p, begin, end, scratch) : few_rows<2, 2>(p, begin, end, scratch);
  else
    one ? few_rows<1, 1>(p, begin, end, scratch) : few_rows<2, 1>(p, begin, end, scratch);
}

}  // namespace
}  // namespace zp
