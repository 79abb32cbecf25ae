// Attention over cache pages: part of decoder_kernels.cpp, needs ZP_VEC's vector type.
//
// Online softmax (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018): pages are read in order,
// and a row's sums are scaled down when a page has a larger score than the pages before. A value outside a row's
// positions is not added to the row, not even times 0: an infinite or NaN value of a later position must not change
// earlier rows.
#pragma once

#include "core/layout.h"
#include "float_weights.h"
#include "kernels/decoder_kernels.h"
#include "vector_math.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr float kNothing = -3.402823466e38f;  // the largest score before the first one: no finite score is below
constexpr int kTileRows = V::kRows >= 12 || V::kRows == 4 ? 6 : 2;
// Vectors of a tile of ROWS rows. AVX2 has 16 registers of half a vector: the sums of a tile take at most 12 of them.
template <int ROWS>
constexpr int kTileVectors = V::kRows >= 12 || ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1;
constexpr int64_t kConvertRows = 12;  // from so many rows on, a page is converted to float once for all rows

// Element types of keys and values besides those of float_weights.h.
struct Byte {
  using Type = int8_t;
  static constexpr bool kInCache = true;
  static V::Float load(const Type* p) { return V::to_float(V::widen(p)); }
};

struct Wide {  // float32 in a cache page; Single is float32 in a page that was converted
  using Type = float;
  static constexpr bool kInCache = true;
  static V::Float load(const Type* p) { return V::load(p); }
};

// A number as a type, so that a lambda can use it at compile time.
template <int N>
struct Count {
  static constexpr int value = N;
};

// Call f for the last rows, which are at most N.
template <int N, class F>
void last_tile(int64_t rows, int64_t row, F& f) {
  if constexpr (N > 0) {
    if (rows == N)
      f(Count<N>(), row);
    else
      last_tile<N - 1>(rows, row, f);
  }
}

// Call f(Count<rows>, row) for tiles of kTileRows rows, and for the rows that are left.
template <class F>
void by_tiles(int64_t rows, F&& f) {
  int64_t row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) f(Count<kTileRows>(), row);
  last_tile<kTileRows - 1>(rows - row, row, f);
}

// Prefetch as many bytes as a tile reads at a time. A page is too short for the CPU's own prefetching.
template <class Source, int VECTORS>
void prefetch_row(const void* ahead, int64_t element) {
  constexpr int64_t kBytes = VECTORS * kLanes * static_cast<int64_t>(sizeof(typename Source::Type));
  const auto* at =
      static_cast<const uint8_t*>(ahead) + element * static_cast<int64_t>(sizeof(typename Source::Type));
#pragma GCC unroll 2
  for (int64_t i = 0; i < kBytes; i += 64) V::prefetch(at + i);
}

// Compute scores [rows][64] = query . key for VECTORS * 16 positions of a page, from `position` on. `ahead` is the
// memory to prefetch meanwhile.
template <class Source, int ROWS, int VECTORS>
void score_vectors(const float* const* query, const typename Source::Type* keys, int64_t head_dim,
                   int64_t position, const void* ahead, float* scores) {
  V::Float total[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) total[m][n] = V::set_float(0.0f);
  for (int64_t d = 0; d < head_dim; ++d) {
    V::Float key[VECTORS];
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) key[n] = Source::load(keys + d * kPage + position + n * kLanes);
    if constexpr (Source::kInCache && VECTORS == kTileVectors<ROWS>)
      prefetch_row<Source, VECTORS>(ahead, d * kPage + position);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      const V::Float q = V::set_float(query[m][d]);
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; ++n) total[m][n] = V::fma(q, key[n], total[m][n]);
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < VECTORS; ++n) V::store(scores + m * kPage + position + n * kLanes, total[m][n]);
}

// Compute the scores of the positions before `end`. The last few are computed one vector at a time: each sum waits for
// the one before, but that is faster than a whole tile of which few positions count.
template <class Source, int ROWS>
void score_tile(const float* const* query, const typename Source::Type* keys, int64_t head_dim, int64_t end,
                const void* ahead, float* scores) {
  constexpr int kVectors = kTileVectors<ROWS>;
  constexpr int64_t kWhole = kVectors * kLanes, kFew = kVectors / 2 * kLanes;
  int64_t j = 0;
  for (; j + kFew < end; j += kWhole)
    score_vectors<Source, ROWS, kVectors>(query, keys, head_dim, j, ahead, scores);
  for (; j < end; j += kLanes) score_vectors<Source, ROWS, 1>(query, keys, head_dim, j, ahead, scores);
}

// The positions of a page that the rows of a tile attend to: [begin, end) of each row, [first, last) of any row, and
// [all_begin, all_end) of all rows.
template <int ROWS>
struct Visible {
  int64_t begin[ROWS], end[ROWS];
  int64_t first, all_begin, all_end, last;

  Visible(const Attention& a, int64_t row, int64_t start) {
    for (int m = 0; m < ROWS; ++m) {
      begin[m] = larger(0, a.first[row + m] - start);
      end[m] = smaller(kPage, a.last[row + m] + 1 - start);
      if (begin[m] >= end[m]) begin[m] = end[m] = 0;
    }
    first = all_begin = begin[0];
    last = all_end = end[0];
    for (int m = 1; m < ROWS; ++m) {
      first = smaller(first, begin[m]);
      last = larger(last, end[m]);
      all_begin = larger(all_begin, begin[m]);
      all_end = smaller(all_end, end[m]);
    }
    if (all_end < all_begin) all_begin = all_end = last;
  }
};

// Add the values of positions [begin, end), each to the rows that attend to it.
template <class Source, int ROWS, int VECTORS>
void add_visible(const Visible<ROWS>& visible, const float* weights, const typename Source::Type* values,
              int64_t padded, int64_t begin, int64_t end, V::Float (&total)[ROWS][VECTORS]) {
  for (int64_t i = begin; i < end; ++i)
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      if (i < visible.begin[m] || i >= visible.end[m]) continue;
      const V::Float weight = V::set_float(weights[m * kPage + i]);
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; ++n)
        total[m][n] = V::fma(weight, Source::load(values + i * padded + n * kLanes), total[m][n]);
    }
}

// Compute out = out * correction + weights . values for VECTORS * 16 channels, from `channel` on.
template <class Source, int ROWS, int VECTORS>
void value_tile(const Visible<ROWS>& visible, const float* weights, const float* correction,
                const typename Source::Type* values, int64_t padded, int64_t channel, const void* ahead,
                float* out) {
  V::Float total[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n)
      total[m][n] = V::mul(V::load(out + m * padded + channel + n * kLanes), V::set_float(correction[m]));
  add_visible<Source, ROWS, VECTORS>(visible, weights, values + channel, padded, visible.first, visible.all_begin,
                                     total);
  for (int64_t i = visible.all_begin; i < visible.all_end; ++i) {
    V::Float value[VECTORS];
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) value[n] = Source::load(values + i * padded + channel + n * kLanes);
    if constexpr (Source::kInCache && VECTORS == kTileVectors<ROWS>)
      prefetch_row<Source, VECTORS>(ahead, i * padded + channel);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      const V::Float weight = V::set_float(weights[m * kPage + i]);
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; ++n) total[m][n] = V::fma(weight, value[n], total[m][n]);
    }
  }
  add_visible<Source, ROWS, VECTORS>(visible, weights, values + channel, padded, visible.all_end, visible.last, total);
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < VECTORS; ++n) V::store(out + m * padded + channel + n * kLanes, total[m][n]);
}

template <class Source, int ROWS>
void value_tiles(const Visible<ROWS>& visible, const float* weights, const float* correction,
                 const typename Source::Type* values, int64_t padded, const void* ahead, float* out) {
  constexpr int kVectors = kTileVectors<ROWS>;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= padded; c += kVectors * kLanes)
    value_tile<Source, ROWS, kVectors>(visible, weights, correction, values, padded, c, ahead, out);
  for (; c < padded; c += kLanes)
    value_tile<Source, ROWS, 1>(visible, weights, correction, values, padded, c, ahead, out);
}

struct PageParts {
  const uint8_t* next;     // the page after this one, to prefetch; this page if it is the last
  const float* key_scale;  // null unless the cache is int8
  const float* value_scale;
  int64_t start;  // the page's first position
};

// Turn one row's scores of a page into weights exp(score - most). Returns the factor for the row's sums so far.
float weigh(const Attention& a, int64_t row, const PageParts& page, const AttentionState& part,
            float* scores) {
  const int64_t begin = larger(0, a.first[row] - page.start),
                end = smaller(kPage, a.last[row] + 1 - page.start);
  if (begin >= end) {
    for (int64_t i = 0; i < kPage; ++i) scores[i] = 0.0f;
    return 1.0f;
  }
  if (page.key_scale != nullptr)
    for (int64_t i = 0; i < kPage; i += kLanes)
      V::store(scores + i, V::mul(V::load(scores + i), V::load(page.key_scale + i)));
  if (a.softcap > 0) {
    const V::Float cap = V::set_float(a.softcap), inverse = V::set_float(1.0f / a.softcap);
    for (int64_t i = 0; i < kPage; i += kLanes)
      V::store(scores + i, V::mul(cap, hyperbolic_tangent(V::mul(V::load(scores + i), inverse))));
  }
  for (int64_t i = 0; i < begin; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = end; i < kPage; ++i) scores[i] = -__builtin_inff();
  V::Float most = V::set_float(part.most[row]);
  for (int64_t i = 0; i < kPage; i += kLanes) most = V::max(most, V::load(scores + i));
  const float before = part.most[row], now = V::max_lane(most);
  V::Float sum = V::set_float(0.0f);
  for (int64_t i = 0; i < kPage; i += kLanes) {
    V::Float weight = exponential(V::sub(V::load(scores + i), V::set_float(now)));
    sum = V::add(sum, weight);
    if (page.value_scale != nullptr) weight = V::mul(weight, V::load(page.value_scale + i));
    V::store(scores + i, weight);
  }
  const float correction = before == now ? 1.0f : exponential(before - now);
  part.most[row] = now;
  part.sum[row] = part.sum[row] * correction + V::sum_lanes(sum);
  return correction;
}

// Add one page to the sums of all rows.
template <class Source>
void attend_page(const Attention& a, const typename Source::Type* keys, const typename Source::Type* values,
                 const PageParts& page, const AttentionState& part, float* scratch) {
  float* scores = scratch;
  float* correction = scratch + a.rows * kPage;
  by_tiles(a.rows, [&](auto count, int64_t row) {
    constexpr int kRows = decltype(count)::value;
    const Visible<kRows> visible(a, row, page.start);
    score_tile<Source, kRows>(a.query + row, keys, a.layout.head_dim, visible.last, values, scores + row * kPage);
    for (int64_t m = row; m < row + kRows; ++m) correction[m] = weigh(a, m, page, part, scores + m * kPage);
    value_tiles<Source, kRows>(visible, scores + row * kPage, correction + row, values, a.layout.padded,
                               page.next, part.out + row * a.layout.padded);
  });
}

template <class Source>
void convert(const typename Source::Type* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) V::store(to + i, Source::load(from + i));
}

// Compute the sums of all rows over pages [begin, end).
template <class Source>
void attend_pages(const Attention& a, int64_t begin, int64_t end, const AttentionState& part,
                  float* scratch) {
  const PageLayout& layout = a.layout;
  int64_t first = a.first[0], last = a.last[0];
  for (int64_t m = 0; m < a.rows; ++m) {
    part.most[m] = kNothing;
    part.sum[m] = 0.0f;
    first = smaller(first, a.first[m]);
    last = larger(last, a.last[m]);
  }
  for (int64_t i = 0; i < a.rows * layout.padded; i += kLanes) V::store(part.out + i, V::set_float(0.0f));
  float* keys_float = scratch + a.rows * kPage + (a.rows + 15) / 16 * 16;
  float* values_float = keys_float + kPage * layout.padded;
  const int64_t stop = smaller(end, last / kPage + 1);
  for (int64_t p = larger(begin, first / kPage); p < stop; ++p) {
    const uint8_t* memory = a.base + a.table[p] * a.stride;
    const auto* keys = reinterpret_cast<const typename Source::Type*>(memory);
    const auto* values = reinterpret_cast<const typename Source::Type*>(memory + layout.values);
    PageParts page{a.base + a.table[p + 1 < stop ? p + 1 : p] * a.stride, nullptr, nullptr, p * kPage};
    if (layout.element == Element::kByte) {
      page.key_scale = reinterpret_cast<const float*>(memory + layout.key_scale);
      page.value_scale = reinterpret_cast<const float*>(memory + layout.value_scale);
    }
    if (a.rows < kConvertRows || sizeof(typename Source::Type) == sizeof(float)) {
      attend_page<Source>(a, keys, values, page, part, scratch);
    } else {
      // Values beyond the rows' positions are not read: they may never have been written.
      convert<Source>(keys, layout.head_dim * kPage, keys_float);
      convert<Source>(values, smaller(kPage, last + 1 - page.start) * layout.padded, values_float);
      attend_page<Single>(a, keys_float, values_float, page, part, scratch);
    }
  }
}

void attend(const Attention& a, int64_t begin, int64_t end, const AttentionState& part, float* scratch) {
  switch (a.layout.element) {
    case Element::kHalf:
      return attend_pages<Half>(a, begin, end, part, scratch);
    case Element::kByte:
      return attend_pages<Byte>(a, begin, end, part, scratch);
    default:
      return attend_pages<Wide>(a, begin, end, part, scratch);
  }
}

// Add the sums `part` to the sums `total`, scaled to the larger of both maxima.
void merge(int64_t rows, int64_t padded, const AttentionState& part, const AttentionState& total) {
  for (int64_t m = 0; m < rows; ++m) {
    const float most = part.most[m] > total.most[m] ? part.most[m] : total.most[m];
    const float old = exponential(total.most[m] - most), fresh = exponential(part.most[m] - most);
    total.most[m] = most;
    total.sum[m] = total.sum[m] * old + part.sum[m] * fresh;
    for (int64_t i = m * padded; i < (m + 1) * padded; i += kLanes)
      V::store(total.out + i, V::fma(V::load(part.out + i), V::set_float(fresh),
                                     V::mul(V::load(total.out + i), V::set_float(old))));
  }
}

}  // namespace
}  // namespace zp::ZP_LEVEL
