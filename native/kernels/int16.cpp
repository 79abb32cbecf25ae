// The integer product of AVX2 and AVX-VNNI for 16-bit input codes. VPMADDWD (on AVX-VNNI VPDPWSSD) multiplies pairs of
// 16-bit numbers and adds the two products in 32 bits, exactly, so an input code stays one int16 number here. Other
// kernels split it into two int8 limbs.
//
// A vector of weights holds four channels times four columns as 16-bit numbers. It is multiplied by four input codes,
// repeated for each channel. Sums therefore have two numbers for each channel, which are added at the end (join_pairs).
//
// few_rows widens bytes to 16 bits in registers. many_rows widens a piece of a block to a panel in the first-level
// cache, and multiplies tiles of up to six rows by it. Making the panel includes subtracting zero points and
// multiplying by the multipliers of two-level scales. Few rows of nibbles are faster as limbs (on AVX2
// few_nibbles.cpp, on AVX-VNNI kernel.cpp).
//
// Outputs are rounded in the same places as in kernel.cpp, so they equal those of the other levels bit for bit.
#include ZP_VEC

#include "core/layout.h"
#include "output.h"
#include "stored.h"
#include "sums.h"

namespace zp::ZP_LEVEL {
namespace {

constexpr int kFewRows = 3;   // most rows for few_rows: 12 of 16 registers hold their sums
constexpr int kTileRows = 6;  // rows of a tile of many_rows: 12 registers hold the sums of half a block
// The most rows that are multiplied by a panel before the next panel is made. Their codes shall fit half of a
// second-level cache of 512 KiB, and their sums the first-level cache.
constexpr int64_t kGroupBytes = 256 << 10, kGroupRows = 96;

// A piece of the columns that is summed in 32 bits. BY_SEGMENT: it lies in one segment.
template <bool BY_SEGMENT>
struct Piece {
  const Weight& w;
  const int64_t length;  // the most columns of a piece, chosen so that pieces are about equally long
  int64_t begin = 0, end = 0, segment = -1;
  bool ends_segment = true;

  explicit Piece(const Weight& weight) : w(weight), length(length_of(weight)) {}

  // Go on to the next piece; return false if there is none.
  bool next() {
    if (is_last()) return false;
    begin = end;
    if (ends_segment) ++segment;
    // The last segment takes the zeros that pad a row, too.
    const int64_t limit = BY_SEGMENT && segment + 1 < w.segments ? (segment + 1) * w.segment : w.columns_padded;
    end = smaller(begin + length, limit);
    ends_segment = end == limit;
    return true;
  }
  bool is_last() const { return end == w.columns_padded; }

 private:
  static int64_t length_of(const Weight& w) {
    const int64_t most = w.asymmetric ? kMostColumnsWithZeros : kMostColumns;
    const int64_t whole = BY_SEGMENT && w.segments > 1 ? w.segment : w.columns_padded;
    const int64_t pieces = (whole + most - 1) / most;
    return (whole / 8 + pieces - 1) / pieces * 8;
  }
};

// Return a row's codes.
const int16_t* codes_of(const Product& p, int64_t row) {
  return reinterpret_cast<const int16_t*>(p.input.codes + row * p.input.token_bytes);
}

// Load four input codes, repeated four times.
__m256i load_four(const int16_t* x) {
  long long four;
  std::memcpy(&four, x, 8);
  return _mm256_set1_epi64x(four);
}

// Add the two numbers of each channel: `low` has channels 0 to 3, `high` 4 to 7.
__m256i join_pairs(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
}

// Make the compiler compute a and b here. Otherwise it multiplies for all rows before it adds, and runs out of
// registers.
void compute_now(__m256i& a, __m256i& b) {
  asm volatile("" : "+x"(a), "+x"(b));
}

// Load the bytes of channels 4 n to 4 n + 3 of `p` as 16-bit numbers, each repeated for four columns.
__m256i for_four_columns(const int8_t* p, int n) {
  int32_t four;
  std::memcpy(&four, p + 4 * n, 4);
  const __m128i repeat = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_cvtsi32_si128(four), repeat));
}

// -- few rows -------------------------------------------------------------------------------------

// Multiply R rows by blocks [begin, end) of a weight whose codes are bytes.
template <int R, bool BY_SEGMENT, bool ZERO>
void few_rows(const Product& p, int64_t begin, int64_t end) {
  const Weight& w = *p.weight;
  const int16_t* x[R];
  for (int m = 0; m < R; ++m) x[m] = codes_of(p, m);
  for (int64_t block = begin; block < end; ++block) {
    const uint8_t* codes = w.codes + block * w.columns_padded * kLanes;
    Sums sums[R];
    for (Piece<BY_SEGMENT> piece(w); piece.next();) {
      __m256i zero[4], dot[R][4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        if constexpr (ZERO) zero[n] = for_four_columns(w.zero_point + (block * w.groups + piece.segment) * kLanes, n);
#pragma GCC unroll 4
        for (int m = 0; m < R; ++m) dot[m][n] = _mm256_setzero_si256();
      }
      for (int64_t k = piece.begin; k < piece.end; k += 4, codes += 64) {
        __m256i four[R];
#pragma GCC unroll 4
        for (int m = 0; m < R; ++m) four[m] = load_four(x[m] + k);
        V::prefetch(codes + Form<Stored::kBytes>::kPrefetchBytes);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
          __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * n)));
          if constexpr (ZERO) code = _mm256_sub_epi16(code, zero[n]);
#pragma GCC unroll 4
          for (int m = 0; m < R; ++m) dot[m][n] = V::add_products(dot[m][n], code, four[m]);
        }
      }
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m) {
        sums[m].add({join_pairs(dot[m][0], dot[m][1]), join_pairs(dot[m][2], dot[m][3])});
        if (BY_SEGMENT && piece.ends_segment) sums[m].end_segment(load_scale(w, block, piece.segment));
      }
    }
    for (int m = 0; m < R; ++m) finish<BY_SEGMENT>(p, m, block, sums[m]);
  }
}

template <bool BY_SEGMENT, bool ZERO>
void few_rows(const Product& p, int64_t begin, int64_t end) {
  if (p.rows == 1) few_rows<1, BY_SEGMENT, ZERO>(p, begin, end);
  if (p.rows == 2) few_rows<2, BY_SEGMENT, ZERO>(p, begin, end);
  if (p.rows == 3) few_rows<3, BY_SEGMENT, ZERO>(p, begin, end);
}

// -- many rows ------------------------------------------------------------------------------------

constexpr int64_t kHalf = kMostColumns * 8;  // numbers of half a panel, which has eight channels

// Load eight columns of four channels, 4 n to 4 n + 3, as 16-bit numbers. Nibbles keep their offset.
template <Stored STORED>
void load_int16(const uint8_t* codes, const uint8_t* fifths, int n, __m256i& first, __m256i& second) {
  const auto bytes = [&](int64_t at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + at)); };
  if constexpr (STORED == Stored::kBytes) {
    first = _mm256_cvtepi8_epi16(bytes(16 * n));
    second = _mm256_cvtepi8_epi16(bytes(64 + 16 * n));
  } else {
    const __m256i both = _mm256_cvtepu8_epi16(bytes(16 * n));
    first = _mm256_and_si256(both, _mm256_set1_epi16(15));
    second = _mm256_srli_epi16(both, 4);
    if constexpr (STORED == Stored::kFives) {
      const __m256i bit =
          _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
      const auto add_fifths = [&](__m256i low, const uint8_t* at) {
        int16_t bits;
        std::memcpy(&bits, at, 2);
        const __m256i set = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(bits), bit), bit);
        return _mm256_add_epi16(low, _mm256_and_si256(set, _mm256_set1_epi16(16)));
      };
      first = add_fifths(first, fifths + 2 * n);
      second = add_fifths(second, fifths + 8 + 2 * n);
    }
  }
}

// Widen columns [begin, end) of a block to 16 bits, [half][k / 4][8 channels][4 columns]. Subtract zero points,
// multiply by the multipliers of two-level scales.
template <Stored STORED>
void widen(const Weight& w, int64_t block, int64_t begin, int64_t end, int16_t* panel) {
  using Form = Form<STORED>;
  const int64_t first = (block * w.columns_padded + begin) / 8;
  const uint8_t* codes = w.codes + first * Form::kBytesPer8;
  const uint8_t* fifths = w.fifth + (Form::kFifths ? first * Form::kFifthsPer8 : 0);
  const bool has_offset = Form::kNibbles || w.asymmetric;
  for (int64_t k = begin; k < end;) {
    const int64_t s = smaller(k / w.segment, w.segments - 1), at = (block * w.groups + s) * kLanes;
    const int64_t stop = s + 1 < w.segments ? smaller((s + 1) * w.segment, end) : end;
    __m256i offset[4], multiplier[4];
    for (int n = 0; n < 4; ++n) {
      offset[n] = _mm256_set1_epi16(Form::kFifths ? 16 : 8);
      if (w.asymmetric) {
        const __m256i zero = for_four_columns(w.zero_point + at, n);
        offset[n] = Form::kNibbles ? _mm256_add_epi16(offset[n], zero) : zero;
      }
      multiplier[n] = w.nested ? for_four_columns(w.multiplier + at, n) : _mm256_set1_epi16(1);
    }
    for (; k < stop; k += 8, codes += Form::kBytesPer8, panel += 64) {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        __m256i both[2];
        load_int16<STORED>(codes, fifths, n, both[0], both[1]);
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
          if (has_offset) both[q] = _mm256_sub_epi16(both[q], offset[n]);
          if (Form::kNibbles && w.nested) both[q] = _mm256_mullo_epi16(both[q], multiplier[n]);
          _mm256_store_si256(reinterpret_cast<__m256i*>(panel + n / 2 * kHalf + q * 32 + n % 2 * 16), both[q]);
        }
      }
      if constexpr (Form::kFifths) fifths += Form::kFifthsPer8;
    }
  }
}

// Multiply R rows by `count` columns of half a panel. `sum` gets one vector for each row: the sums of the half's eight
// channels. STEP: bytes to prefetch, from `ahead` on, for every four columns.
template <int R, int STEP>
__attribute__((always_inline)) inline void multiply_half(const int16_t* x, int64_t stride, const int16_t* panel,
                                                         int64_t count, const uint8_t* ahead, __m256i (&sum)[R]) {
  __m256i total[R][2];
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) total[m][0] = total[m][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < count; k += 4, panel += 32) {
    const __m256i low = V::load256(panel), high = V::load256(panel + 16);
    if constexpr (STEP > 0) {
      V::prefetch(ahead);
      ahead += STEP;
    }
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const __m256i four = load_four(x + m * stride + k);
      total[m][0] = V::add_products(total[m][0], low, four);
      total[m][1] = V::add_products(total[m][1], high, four);
      compute_now(total[m][0], total[m][1]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) sum[m] = join_pairs(total[m][0], total[m][1]);
}

// Multiply R rows by half a panel. Store eight sums for each row, 16 apart; those of the other half fill the gaps.
template <int R, int STEP>
void half_tile(const int16_t* x, int64_t stride, const int16_t* panel, int64_t count, const uint8_t* ahead,
               int32_t* out) {
  __m256i sum[R];
  multiply_half<R, STEP>(x, stride, panel, count, ahead, sum);
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) _mm256_store_si256(reinterpret_cast<__m256i*>(out + m * kLanes), sum[m]);
}

// Multiply R rows by half a panel of several segments, of `segment` columns each; add their sums times
// scale [segments][16] to total [R][16].
template <int R>
void half_tile_of_segments(const int16_t* x, int64_t stride, const int16_t* panel, int64_t count, int64_t segment,
                           const float* scale, float* total) {
  for (int64_t k = 0; k < count; k += segment, scale += kLanes) {
    __m256i sum[R];
    multiply_half<R, 0>(x + k, stride, panel + k * 8, smaller(segment, count - k), nullptr, sum);
    const __m256 factor = _mm256_load_ps(scale);
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      float* at = total + m * kLanes;
      _mm256_store_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m]), factor, _mm256_load_ps(at)));
    }
  }
}

// half_tile<1, STEP> to half_tile<6, STEP>.
template <int STEP>
constexpr decltype(&half_tile<1, STEP>) kHalfTiles[kTileRows] = {half_tile<1, STEP>, half_tile<2, STEP>,
                                                                 half_tile<3, STEP>, half_tile<4, STEP>,
                                                                 half_tile<5, STEP>, half_tile<6, STEP>};

constexpr decltype(&half_tile_of_segments<1>) kHalfTilesOfSegments[kTileRows] = {
    half_tile_of_segments<1>, half_tile_of_segments<2>, half_tile_of_segments<3>,
    half_tile_of_segments<4>, half_tile_of_segments<5>, half_tile_of_segments<6>};

// Prefetch the lines of a tile's outputs for writing.
void prefetch_output(const Product& p, int64_t row, int rows, int64_t block) {
  for (int m = 0; m < rows; ++m) __builtin_prefetch(p.y + (row + m) * p.y_stride + block * kLanes, 1);
}

// Multiply rows [first, last) by a block.
template <Stored STORED, bool BY_SEGMENT>
void group_of_rows(const Product& p, int64_t first, int64_t last, int64_t block, int16_t* panel, Sums* sums) {
  const Weight& w = *p.weight;
  constexpr int64_t kBytesPer4 = Form<STORED>::kBytesPer8 / 2;
  for (Piece<BY_SEGMENT> piece(w); piece.next();) {
    widen<STORED>(w, block, piece.begin, piece.end, panel);
    const V::Float scale = BY_SEGMENT ? load_scale(w, block, piece.segment) : V::set_float(0.0f);
    // The first tile prefetches the codes of the next piece, which may be the next block's.
    const uint8_t* ahead = w.codes + (block * w.columns_padded + piece.end) / 4 * kBytesPer4;
    for (int64_t row = first; row < last; row += kTileRows) {
      const int rows = static_cast<int>(smaller(kTileRows, last - row));
      if (piece.is_last()) prefetch_output(p, row, rows, block);
      alignas(32) int32_t sum[kTileRows * kLanes];
      const auto first_half = (row == first ? kHalfTiles<kBytesPer4> : kHalfTiles<0>)[rows - 1];
      const auto second_half = kHalfTiles<0>[rows - 1];
      const int16_t* x = codes_of(p, row) + piece.begin;
      first_half(x, p.input.token_bytes / 2, panel, piece.end - piece.begin, ahead, sum);
      second_half(x, p.input.token_bytes / 2, panel + kHalf, piece.end - piece.begin, ahead, sum + 8);
      for (int m = 0; m < rows; ++m) {
        Sums of_row = piece.begin == 0 ? Sums() : sums[row - first + m];
        of_row.add({V::load256(sum + m * kLanes), V::load256(sum + m * kLanes + 8)});
        if (BY_SEGMENT && piece.ends_segment) of_row.end_segment(scale);
        sums[row - first + m] = of_row;
      }
    }
  }
  for (int64_t row = first; row < last; ++row) finish<BY_SEGMENT>(p, row, block, sums[row - first]);
}

// Multiply rows [first, last) by a block with a float scale for each segment. A panel holds several segments. `total`
// has kLanes floats for each row.
template <Stored STORED>
void group_by_segments(const Product& p, int64_t first, int64_t last, int64_t block, int16_t* panel, float* total) {
  const Weight& w = *p.weight;
  const int64_t segments = kMostColumnsWithZeros / w.segment;  // of a panel
  for (int64_t i = 0; i < (last - first) * kLanes; i += kLanes) V::store(total + i, V::set_float(0.0f));
  for (int64_t s = 0; s < w.segments; s += segments) {
    const int64_t stop = smaller(s + segments, w.segments), begin = s * w.segment;
    const int64_t end = stop < w.segments ? stop * w.segment : w.columns_padded;
    widen<STORED>(w, block, begin, end, panel);
    alignas(32) float scale[kMostColumnsWithZeros / 8 * kLanes];
    for (int64_t i = s; i < stop; ++i) V::store(scale + (i - s) * kLanes, load_scale(w, block, i));
    for (int64_t row = first; row < last; row += kTileRows) {
      const int rows = static_cast<int>(smaller(kTileRows, last - row));
      const auto half_tile = kHalfTilesOfSegments[rows - 1];
      const int16_t* x = codes_of(p, row) + begin;
      for (int half = 0; half < 2; ++half)
        half_tile(x, p.input.token_bytes / 2, panel + half * kHalf, end - begin, w.segment, scale + half * 8,
                  total + (row - first) * kLanes + half * 8);
    }
  }
  for (int64_t row = first; row < last; ++row) store_sums(p, row, block, V::load(total + (row - first) * kLanes));
}

// Multiply all rows by blocks [begin, end). `scratch` has int16_scratch_bytes.
template <Stored STORED, bool BY_SEGMENT>
void many_rows(const Product& p, int64_t begin, int64_t end, uint8_t* scratch) {
  auto* panel = reinterpret_cast<int16_t*>(scratch);
  auto* sums = reinterpret_cast<Sums*>(panel + 2 * kHalf);
  const int64_t most = smaller(kGroupRows, kGroupBytes / p.input.token_bytes);
  const int64_t group = most < kTileRows ? kTileRows : most / kTileRows * kTileRows;
  for (int64_t first = 0; first < p.rows; first += group)
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = smaller(first + group, p.rows);
      if (BY_SEGMENT && p.weight->segment * 2 <= kMostColumnsWithZeros)
        group_by_segments<STORED>(p, first, last, block, panel, reinterpret_cast<float*>(sums));
      else
        group_of_rows<STORED, BY_SEGMENT>(p, first, last, block, panel, sums);
    }
}

template <bool BY_SEGMENT>
void multiply(const Product& p, int64_t begin, int64_t end, uint8_t* scratch) {
  const Weight& w = *p.weight;
  if (w.fifths)
    many_rows<Stored::kFives, BY_SEGMENT>(p, begin, end, scratch);
  else if (w.nibbles)
    many_rows<Stored::kNibbles, BY_SEGMENT>(p, begin, end, scratch);
  else if (p.rows > kFewRows)
    many_rows<Stored::kBytes, BY_SEGMENT>(p, begin, end, scratch);
  else if (w.asymmetric)
    few_rows<BY_SEGMENT, true>(p, begin, end);
  else
    few_rows<BY_SEGMENT, false>(p, begin, end);
}

}  // namespace

int64_t int16_scratch_bytes() {
  return 2 * kHalf * static_cast<int64_t>(sizeof(int16_t)) + kGroupRows * static_cast<int64_t>(sizeof(Sums));
}

void int16_integer(const Product& p, int64_t begin, int64_t end, void* scratch) {
  auto* memory = static_cast<uint8_t*>(scratch);
  p.weight->scale_by_segment ? multiply<true>(p, begin, end, memory) : multiply<false>(p, begin, end, memory);
}

}  // namespace zp::ZP_LEVEL
