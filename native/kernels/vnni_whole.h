// The product of whole rows, if no float scale varies along them: part of vnni.cpp.
//
// A panel is multiplied by eight rows of input codes at a time: 3 x 8 registers hold the sums. If a row has several
// parts, the sums wait in memory between them. If there are few rows, byte codes are raised in registers, and no panel
// is made of them.
#pragma once

#include "vnni_panel.h"

namespace zp {
namespace {

constexpr int kRows = 8;           // rows of input codes multiplied at a time: eight tokens, or the limbs of four
constexpr int64_t kWholeUnit = 64;  // k_unit of weights without float scales that vary along the row

// The most groups of eight rows for which no panel of byte codes is made. Then each group raises the stored codes in
// registers, which takes an eighth of the product's instructions. Making a panel takes as long as the product of one or
// two groups.
constexpr int64_t kStoredGroups = 8;

int64_t groups_of(const Weight& w, int64_t rows) {
  const int64_t tokens = kRows / w.limbs;
  return (rows + tokens - 1) / tokens;
}

// Memory of one call.
struct WholeScratch {
  uint8_t* panel;      // [block][k / 4][channel][k % 4]
  int32_t* code_sums;  // of each row of input codes, over all columns: [row / 16][limb][16]
  uint8_t* kept;       // sums kept between two parts of a row: [group of rows][kRows][kBlocks][16]

  static int64_t panel_bytes(const Weight& w) { return kBlocks * kLanes * part_columns(w, kWholeUnit); }
  static int64_t code_sums_bytes(const Weight& w, int64_t rows) { return (rows + 15) / 16 * w.limbs * 64; }
  static int64_t bytes(const Weight& w, int64_t rows) {
    const bool keeps = w.columns_padded > part_columns(w, kWholeUnit);
    return panel_bytes(w) + code_sums_bytes(w, rows) + (keeps ? groups_of(w, rows) * kRows * kBlocks * 64 : 0);
  }

  WholeScratch(const Product& p, uint8_t* memory) {
    panel = memory;
    memory += panel_bytes(*p.weight);
    code_sums = reinterpret_cast<int32_t*>(memory);
    kept = memory + code_sums_bytes(*p.weight, p.rows);
  }
};

// Add up the sums of the input's codes over all segments.
void add_code_sums(const Product& p, int32_t* out) {
  const Weight& w = *p.weight;
  const int32_t* in = p.input.sums;
  for (int64_t tile = 0; tile < (p.rows + 15) / 16 * w.limbs; ++tile, out += 16) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t s = 0; s < w.segments; ++s, in += 16) sum = _mm512_add_epi32(sum, _mm512_loadu_si512(in));
    _mm512_store_si512(out, sum);
  }
}

// The product of all rows with BLOCKS blocks of weights. ZERO: zero points are subtracted from the sums. STORED: byte
// codes are multiplied as they are stored.
template <int LIMBS, bool ZERO, bool STORED, int BLOCKS>
class WholeRows {
  static constexpr int kTokens = kRows / LIMBS;
  using Tile = Sums<kRows, BLOCKS>;

 public:
  WholeRows(const Product& p, int64_t block, const WholeScratch& scratch)
      : p_(p), w_(*p.weight), block_(block), scratch_(scratch) {
#pragma GCC unroll 4
    for (int n = 0; n < BLOCKS; ++n) {
      offset_[n] = _mm512_set1_epi32(kRaise);
      if constexpr (ZERO) offset_[n] = _mm512_add_epi32(offset_[n], load_zero(w_, (block + n) * w_.groups * kLanes));
    }
  }

  void multiply_all() {
    const int64_t columns = w_.columns_padded, width = part_columns(w_, kWholeUnit), groups = groups_of(w_, p_.rows);
    for (int64_t begin = 0; begin < columns; begin += width) {
      const int64_t end = smaller(begin + width, columns), units = (end - begin) / kWholeUnit;
      const int64_t block_bytes = (STORED ? columns : end - begin) * kLanes;
      const bool last = end == columns;
      const uint8_t* panel = STORED ? w_.codes + (block_ * columns + begin) * kLanes : scratch_.panel;
      if constexpr (!STORED)
        for (int n = 0; n < BLOCKS; ++n) fill(w_, block_ + n, begin, end, scratch_.panel + n * block_bytes);
      Ahead<BLOCKS> ahead(w_, last ? block_ + BLOCKS : block_, last ? 0 : end,
                          last ? width : smaller(end + width, columns), groups * units);
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t token = group * kTokens, tile = token / 16 * LIMBS;
        const int8_t* x = p_.input.codes + (tile * columns + begin) * 16 + token % 16 * kWholeUnit;
        uint8_t* kept = scratch_.kept + group * kRows * BLOCKS * 64;
        if (last) prefetch_output(p_, token, kTokens, block_, BLOCKS);
        Tile sum;
        begin == 0 ? start(tile * 16 + token % 16, sum) : load(kept, sum);
        multiply<LIMBS, STORED, kWholeUnit, kRows, BLOCKS>(x, columns * 16, panel, block_bytes, units, ahead, sum);
        last ? finish(token, sum) : store(kept, sum);
      }
    }
  }

 private:
  // Start with what the raised weights and the zero points add to the products, negated.
  ZP_INLINE void start(int64_t row, Tile& sum) const {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512i codes = _mm512_set1_epi32(-scratch_.code_sums[row + m / kTokens * 16 + m % kTokens]);
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n)
        sum[m][n] = ZERO ? _mm512_mullo_epi32(codes, offset_[n]) : _mm512_slli_epi32(codes, 7);
    }
  }
  ZP_INLINE static void load(const uint8_t* kept, Tile& sum) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) sum[m][n] = _mm512_load_si512(kept + (m * BLOCKS + n) * 64);
  }
  ZP_INLINE static void store(uint8_t* kept, const Tile& sum) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) _mm512_store_si512(kept + (m * BLOCKS + n) * 64, sum[m][n]);
  }
  // Scale the sums and store the output.
  ZP_INLINE void finish(int64_t token, const Tile& sum) const {
    const float* by_row = p_.input.scale + token / 16 * 16 * w_.segments + token % 16;
#pragma GCC unroll 4
    for (int n = 0; n < BLOCKS; ++n) {
      const OutputColumns columns = output_columns(p_, block_ + n, false);
      const __m512 scale = load_scale(w_, (block_ + n) * w_.groups * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kTokens; ++m) {
        if (token + m >= p_.rows) break;
        const __m512 value =
            LIMBS == 2 ? join_limbs(sum[(m + kTokens) % kRows][n], sum[m][n]) : _mm512_cvtepi32_ps(sum[m][n]);
        columns.store(token + m, _mm512_mul_ps(_mm512_mul_ps(value, scale), _mm512_set1_ps(by_row[m])));
      }
    }
  }

  const Product& p_;
  const Weight& w_;
  int64_t block_;
  WholeScratch scratch_;
  __m512i offset_[BLOCKS];
};

template <int LIMBS, bool ZERO, bool STORED>
void whole_rows(const Product& p, int64_t begin, int64_t end, const WholeScratch& scratch) {
  int64_t block = begin;
  for (; block + kBlocks <= end; block += kBlocks)
    WholeRows<LIMBS, ZERO, STORED, kBlocks>(p, block, scratch).multiply_all();
  if (end - block == 2) WholeRows<LIMBS, ZERO, STORED, 2>(p, block, scratch).multiply_all();
  if (end - block == 1) WholeRows<LIMBS, ZERO, STORED, 1>(p, block, scratch).multiply_all();
}

template <int LIMBS>
void whole_rows(const Product& p, int64_t begin, int64_t end, const WholeScratch& scratch) {
  const Weight& w = *p.weight;
  const bool stored = groups_of(w, p.rows) <= kStoredGroups;
  if (w.nibbles)
    whole_rows<LIMBS, false, false>(p, begin, end, scratch);
  else if (w.asymmetric)
    stored ? whole_rows<LIMBS, true, true>(p, begin, end, scratch)
           : whole_rows<LIMBS, true, false>(p, begin, end, scratch);
  else
    stored ? whole_rows<LIMBS, false, true>(p, begin, end, scratch)
           : whole_rows<LIMBS, false, false>(p, begin, end, scratch);
}

void whole_rows(const Product& p, int64_t begin, int64_t end, uint8_t* memory) {
  const WholeScratch scratch(p, memory);
  add_code_sums(p, scratch.code_sums);
  p.weight->limbs == 2 ? whole_rows<2>(p, begin, end, scratch) : whole_rows<1>(p, begin, end, scratch);
}

}  // namespace
}  // namespace zp
