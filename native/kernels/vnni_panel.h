// Panels of weights, and their product with a few rows of input codes: part of vnni.cpp.
//
// The input is stored in tiles of 16 rows, as for AMX: k_unit columns (UNIT) of one row follow those of the row before.
// So the distance between two rows is a constant that the compiler knows, and one address serves several rows.
#pragma once

#include "widened.h"

namespace zp {
namespace {

constexpr int kBlocks = 3;   // blocks of a panel
constexpr int kRaise = 128;  // added to the weights, because VPDPBUSD's first operand is unsigned
// The most columns of a part: the 48 channels of a panel and the codes of eight rows fit a first-level cache of 32 KiB.
constexpr int64_t kMostColumns = 576;

// Return the columns of a part, a multiple of `unit`. Parts are equally long and as few as possible.
int64_t part_columns(const Weight& w, int64_t unit) {
  const int64_t units = (w.columns_padded + unit - 1) / unit, most = unit < kMostColumns ? kMostColumns / unit : 1;
  const int64_t parts = (units + most - 1) / most;
  return (units + parts - 1) / parts * unit;
}

// Fill a block's part of a panel: columns [begin, end) as unsigned bytes.
void fill(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  if (w.nibbles) return widen<kRaise>(w, block, begin, end, out);
  const uint8_t* in = w.codes + (block * w.columns_padded + begin) * kLanes;
  const __m512i raise = _mm512_set1_epi8(static_cast<char>(kRaise));
  for (int64_t i = 0; i < (end - begin) * kLanes; i += 64)
    _mm512_store_si512(out + i, _mm512_xor_si512(_mm512_loadu_si512(in + i), raise));
}

// Prefetches the codes of the next part while this part is multiplied: a few lines before each unit of columns.
template <int BLOCKS>
class Ahead {
 public:
  // `block`: the first block of the next part; `steps`: the number of calls of prefetch_some.
  Ahead(const Weight& w, int64_t block, int64_t begin, int64_t end, int64_t steps) {
    const int64_t bytes = w.nibbles ? 8 : 16;  // of a column
    for (int n = 0; n < BLOCKS; ++n) {
      const int64_t b = smaller(block + n, w.blocks - 1);
      next_[n] = reinterpret_cast<const char*>(w.codes + (b * w.columns_padded + begin) * bytes);
    }
    left_ = block < w.blocks ? (end - begin) * bytes / 64 : 0;
    at_once_ = (left_ + steps - 1) / steps;
  }
  ZP_INLINE void prefetch_some() {
    if (left_ <= 0) return;
    left_ -= at_once_;
    for (int64_t i = 0; i < at_once_; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) {
        _mm_prefetch(next_[n], _MM_HINT_T1);
        next_[n] += 64;
      }
  }

 private:
  const char* next_[BLOCKS];
  int64_t left_, at_once_;  // lines of a block
};

// Int32 sums of ROWS rows of input codes. These are the rows of ROWS / LIMBS tokens: with two limbs, first the low
// limbs of all tokens, then the high limbs of all tokens.
template <int ROWS, int BLOCKS>
using Sums = __m512i[ROWS][BLOCKS];

// Add the products of `units` units of columns to the sums. Rows of high limbs lie `limb_bytes` behind those of low
// limbs, blocks of the panel `block_bytes` apart. STORED: the panel is the weight's own byte codes, not raised yet.
template <int LIMBS, bool STORED, int UNIT, int ROWS, int BLOCKS>
ZP_INLINE void multiply(const int8_t* x, int64_t limb_bytes, const uint8_t* panel, int64_t block_bytes, int64_t units,
                        Ahead<BLOCKS>& ahead, Sums<ROWS, BLOCKS>& sum) {
  constexpr int kTokens = ROWS / LIMBS;
  const int8_t* high = x + limb_bytes;
  for (; units > 0; --units, x += 16 * UNIT, high += 16 * UNIT) {
    ahead.prefetch_some();
    for (int64_t j = 0; j < UNIT; j += 4, panel += 64) {
      __m512i weight[BLOCKS];
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) {
        weight[n] = _mm512_load_si512(panel + n * block_bytes);
        if constexpr (STORED) weight[n] = _mm512_xor_si512(weight[n], _mm512_set1_epi8(static_cast<char>(kRaise)));
      }
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) {
        int32_t four;
        std::memcpy(&four, (m < kTokens ? x : high) + m % kTokens * UNIT + j, 4);
        const __m512i codes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int n = 0; n < BLOCKS; ++n) sum[m][n] = _mm512_dpbusd_epi32(sum[m][n], weight[n], codes);
      }
    }
  }
}

// Prefetch the lines of an output tile for writing, before its sums are ready.
ZP_INLINE void prefetch_output(const Product& p, int64_t token, int64_t tokens, int64_t block, int blocks) {
  const int64_t stop = smaller(token + tokens, p.rows);
  for (; token < stop; ++token)
    for (int n = 0; n < blocks; ++n) __builtin_prefetch(p.y + token * p.y_stride + (block + n) * kLanes, 1);
}

}  // namespace
}  // namespace zp
