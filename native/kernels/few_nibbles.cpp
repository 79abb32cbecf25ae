// The product of few rows of 16-bit input codes by nibbles on AVX2.
//
// For few rows, widening the nibbles to 16 bits takes as long as multiplying them. So the input codes are split into
// int8 limbs, and VPMADDUBSW multiplies nibbles by limbs. Products are summed in 16 bits over as many columns as
// possible.
#include ZP_VEC

#include "core/layout.h"
#include "output.h"
#include "stored.h"
#include "sums.h"

namespace zp::ZP_LEVEL {
namespace {

// Read positions: in the block's codes and in the two limbs of the row.
struct Operands {
  const uint8_t* codes;
  const uint8_t* fifths;
  const int8_t* low;
  const int8_t* high;
};

// Add the products of eight columns to 16-bit sums of both limbs, and go on to the next eight.
template <Stored STORED>
__attribute__((always_inline)) inline void add_columns(Operands& at, V::Int& low, V::Int& high) {
  using Form = Form<STORED>;
  V::prefetch(at.codes + Form::kPrefetchBytes);
  V::Codes first, second;
  Form::load(at.codes, at.fifths, first, second);
  low = V::dot_pairs(low, first, at.low);
  high = V::dot_pairs(high, first, at.high);
  low = V::dot_pairs(low, second, at.low + 4);
  high = V::dot_pairs(high, second, at.high + 4);
  at.codes += Form::kBytesPer8;
  if constexpr (Form::kFifths) at.fifths += Form::kFifthsPer8;
  at.low += 8;
  at.high += 8;
}

// Return `sum` plus the products of `columns` columns. Codes are raised by 8 or 16; the caller's `sum` corrects for it.
template <Stored STORED>
__attribute__((always_inline)) inline V::Int sum_of_columns(Operands& at, int64_t columns, V::Int sum) {
  constexpr int64_t kSteps = Form<STORED>::kMostColumns / 8;
  for (int64_t left = columns / 8; left > 0; left -= kSteps) {
    V::Int low = V::set_int(0), high = V::set_int(0);
    if (left >= kSteps) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSteps; ++i) add_columns<STORED>(at, low, high);
    } else {
      for (int64_t i = 0; i < left; ++i) add_columns<STORED>(at, low, high);
    }
    sum = V::add_pairs(sum, low);
    sum = V::add(sum, V::shift_left<7>(V::add_pairs(V::set_int(0), high)));
  }
  return sum;
}

// Multiply one row by a block. The weight must fulfil supports_few_nibbles.
template <Stored STORED, bool BY_SEGMENT>
void row_by_nibbles(const Product& p, int64_t row, int64_t block) {
  using Form = Form<STORED>;
  const Weight& w = *p.weight;
  const int64_t first = block * (w.columns_padded / 8);
  const int8_t* low = p.input.codes + row * 2 * w.columns_padded;
  const uint8_t* fifths = w.fifth + (Form::kFifths ? first * Form::kFifthsPer8 : 0);
  Operands operands = {w.codes + first * Form::kBytesPer8, fifths, low, low + w.columns_padded};
  const int32_t* low_sums = p.input.sums + row * 2 * w.segments;
  Sums sums;
  V::Int whole = V::set_int(0);
  int64_t added = 0;  // columns in `whole`
  for (int64_t s = 0; s < w.segments; ++s) {
    const int64_t begin = s * w.segment, end = s + 1 < w.segments ? begin + w.segment : w.columns_padded;
    const int64_t at = (block * w.groups + s) * kLanes;
    const V::Int input_sum = V::set_int(-(128 * low_sums[w.segments + s] + low_sums[s]));
    V::Int offset = V::set_int(Form::kOffset);
    if (w.asymmetric) offset = V::add(offset, V::widen(w.zero_point + at));
    V::Int sum = sum_of_columns<STORED>(operands, end - begin, V::mul_lanes(offset, input_sum));
    if constexpr (BY_SEGMENT) {
      sums.total = V::fma(V::to_float(sum), load_scale(w, block, s), sums.total);
    } else {
      if (w.nested) {
        V::prefetch(w.multiplier + at + Form::kPrefetchBytes / 2);
        sum = V::mul_lanes(sum, V::widen(w.multiplier + at));
      }
      if (added + end - begin > kMostColumns) {
        sums.add(whole);
        whole = V::set_int(0);
        added = 0;
      }
      whole = V::add(whole, sum);
      added += end - begin;
    }
  }
  sums.add(whole);
  finish<BY_SEGMENT>(p, row, block, sums);
}

template <Stored STORED, bool BY_SEGMENT>
void few_rows_of_nibbles(const Product& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block)
    for (int64_t row = 0; row < p.rows; ++row) row_by_nibbles<STORED, BY_SEGMENT>(p, row, block);
}

}  // namespace

bool supports_few_nibbles(const Weight& w) {
  return w.nibbles && w.segment <= kMostColumnsWithZeros;
}

void few_nibbles(const Product& p, int64_t begin, int64_t end, void*) {
  const bool by_segment = p.weight->scale_by_segment;
  if (p.weight->fifths)
    by_segment ? few_rows_of_nibbles<Stored::kFives, true>(p, begin, end)
               : few_rows_of_nibbles<Stored::kFives, false>(p, begin, end);
  else
    by_segment ? few_rows_of_nibbles<Stored::kNibbles, true>(p, begin, end)
               : few_rows_of_nibbles<Stored::kNibbles, false>(p, begin, end);
}

}  // namespace zp::ZP_LEVEL
