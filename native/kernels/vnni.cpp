// The integer product of several rows on AVX-512 VNNI, if no float scale varies along the row. (The name `vnni` stands
// for VPDPBUSD, the instruction that multiplies 64 unsigned bytes by 64 signed ones and adds four products to each
// int32 lane.) kernel.cpp computes the other products.
//
// A panel is a part of the columns of three blocks of weights, as unsigned bytes: codes are widened, multiplied by the
// multipliers of two-level scales, and raised by 128. It stays in the first-level cache while all rows are multiplied
// by it, eight rows of input codes at a time: 3 x 8 registers hold the sums. If a row has several parts, the sums wait
// in memory meanwhile.
//
// The input is stored in tiles of 16 rows, as for AMX: 64 columns of one row follow those of the row before, so the
// addresses of eight rows are constants apart.
#include "widened.h"

namespace zp {
namespace {

constexpr int kBlocks = 3;     // blocks of a panel
constexpr int kRows = 8;       // rows of input codes multiplied at a time: eight tokens, or the limbs of four
constexpr int64_t kUnit = 64;  // columns of a row that follow one another in the input
// The most columns of a panel: its 48 channels and the codes of eight rows fit a first-level cache of 32 KiB.
constexpr int64_t kMostColumns = 576;
constexpr int kRaise = 128;  // added to the weights

template <int LIMBS>
constexpr int kTokens = kRows / LIMBS;

// Return the columns of a part. Parts are equally long and as few as possible.
int64_t part_columns(const Weight& w) {
  const int64_t units = w.columns_padded / kUnit, parts = (w.columns_padded + kMostColumns - 1) / kMostColumns;
  return (units + parts - 1) / parts * kUnit;
}

int64_t groups_of(const Weight& w, int64_t rows) {
  const int64_t tokens = kRows / w.limbs;
  return (rows + tokens - 1) / tokens;
}

// Memory of one call.
struct Scratch {
  uint8_t* panel;      // [block][k / 4][channel][k % 4]
  int32_t* code_sums;  // of each row of input codes, over all columns: [row / 16][limb][16]
  uint8_t* kept;       // sums kept between two parts of a row: [group of rows][kRows][kBlocks][16]

  static int64_t panel_bytes(const Weight& w) { return kBlocks * kLanes * part_columns(w); }
  static int64_t code_sums_bytes(const Weight& w, int64_t rows) { return (rows + 15) / 16 * w.limbs * 64; }
  static int64_t kept_bytes(const Weight& w, int64_t rows) {
    return w.columns_padded > part_columns(w) ? groups_of(w, rows) * kRows * kBlocks * 64 : 0;
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

// Fill a block's part of a panel.
void fill(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  if (w.nibbles) return widen<kRaise>(w, block, begin, end, out);
  const uint8_t* in = w.codes + (block * w.columns_padded + begin) * kLanes;
  const __m512i raise = _mm512_set1_epi8(static_cast<char>(kRaise));
  for (int64_t i = 0; i < (end - begin) * kLanes; i += 64)
    _mm512_store_si512(out + i, _mm512_xor_si512(_mm512_loadu_si512(in + i), raise));
}

// Prefetching of the codes of the next part of a panel: some lines with every unit of columns of this part.
template <int BLOCKS>
class Ahead {
 public:
  // `steps`: how many times prefetch_some will be called. block: the first block of the next part.
  Ahead(const Weight& w, int64_t block, int64_t begin, int64_t end, int64_t steps) {
    const int64_t bytes = w.nibbles ? 8 : 16;  // of a column
    for (int n = 0; n < BLOCKS; ++n) {
      const int64_t b = smaller(block + n, w.blocks - 1);
      next_[n] = reinterpret_cast<const char*>(w.codes + (b * w.columns_padded + begin) * bytes);
    }
    lines_ = block < w.blocks ? ((end - begin) * bytes / 64 + steps - 1) / steps : 0;
  }
  ZP_INLINE void prefetch_some() {
    for (int64_t i = 0; i < lines_; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) {
        _mm_prefetch(next_[n], _MM_HINT_T1);
        next_[n] += 64;
      }
  }

 private:
  const char* next_[BLOCKS];
  int64_t lines_;
};

template <int BLOCKS>
using Sums = __m512i[kRows][BLOCKS];

// Multiply eight rows of `units` units of columns by a panel. Rows of high limbs lie `limb_bytes` behind those of low
// limbs, blocks of the panel `block_bytes` apart.
template <int LIMBS, int BLOCKS>
ZP_INLINE void multiply(const int8_t* x, int64_t limb_bytes, const uint8_t* panel, int64_t block_bytes, int64_t units,
                        Ahead<BLOCKS>& ahead, Sums<BLOCKS>& sum) {
  const int8_t* high = x + limb_bytes;
  for (; units > 0; --units, x += 16 * kUnit, high += 16 * kUnit) {
    ahead.prefetch_some();
#pragma GCC unroll 4
    for (int64_t j = 0; j < kUnit; j += 4, panel += 64) {
      __m512i weight[BLOCKS];
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) weight[n] = _mm512_load_si512(panel + n * block_bytes);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        int32_t four;
        std::memcpy(&four, (m < kTokens<LIMBS> ? x : high) + m % kTokens<LIMBS> * kUnit + j, 4);
        const __m512i codes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int n = 0; n < BLOCKS; ++n) sum[m][n] = _mm512_dpbusd_epi32(sum[m][n], weight[n], codes);
      }
    }
  }
}

// The product of all rows with BLOCKS blocks of weights. ZERO: zero points are subtracted from the sums.
template <int LIMBS, bool ZERO, int BLOCKS>
class Strip {
 public:
  Strip(const Product& p, int64_t block, const Scratch& scratch) : p_(p), w_(*p.weight), block_(block), scratch_(scratch) {
#pragma GCC unroll 4
    for (int n = 0; n < BLOCKS; ++n) {
      const int64_t at = (block + n) * w_.groups * kLanes;
      offset_[n] = _mm512_set1_epi32(kRaise);
      if constexpr (ZERO) offset_[n] = _mm512_add_epi32(offset_[n], load_zero(w_, at));
    }
  }

  void multiply_all() {
    const int64_t columns = w_.columns_padded, width = part_columns(w_), groups = groups_of(w_, p_.rows);
    for (int64_t begin = 0; begin < columns; begin += width) {
      const int64_t end = smaller(begin + width, columns), block_bytes = (end - begin) * kLanes;
      for (int n = 0; n < BLOCKS; ++n) fill(w_, block_ + n, begin, end, scratch_.panel + n * block_bytes);
      const bool last = end == columns;
      Ahead<BLOCKS> ahead(w_, last ? block_ + BLOCKS : block_, last ? 0 : end, last ? width : smaller(end + width, columns),
                          groups * ((end - begin) / kUnit));
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t token = group * kTokens<LIMBS>, tile = token / 16 * LIMBS;
        const int8_t* x = p_.input.codes + (tile * columns + begin) * 16 + token % 16 * kUnit;
        uint8_t* kept = scratch_.kept + group * kRows * BLOCKS * 64;
        if (last) prefetch_output(token);
        Sums<BLOCKS> sum;
        begin == 0 ? start(tile * 16 + token % 16, sum) : load(kept, sum);
        multiply<LIMBS, BLOCKS>(x, columns * 16, scratch_.panel, block_bytes, (end - begin) / kUnit, ahead, sum);
        last ? finish(token, sum) : store(kept, sum);
      }
    }
  }

 private:
  // Start with what the raised weights and the zero points add to the products, negated.
  ZP_INLINE void start(int64_t row, Sums<BLOCKS>& sum) const {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const int64_t at = row + m / kTokens<LIMBS> * 16 + m % kTokens<LIMBS>;
      const __m512i codes = _mm512_set1_epi32(-scratch_.code_sums[at]);
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n)
        sum[m][n] = ZERO ? _mm512_mullo_epi32(codes, offset_[n]) : _mm512_slli_epi32(codes, 7);
    }
  }
  ZP_INLINE static void load(const uint8_t* kept, Sums<BLOCKS>& sum) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) sum[m][n] = _mm512_load_si512(kept + (m * BLOCKS + n) * 64);
  }
  ZP_INLINE static void store(uint8_t* kept, const Sums<BLOCKS>& sum) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < BLOCKS; ++n) _mm512_store_si512(kept + (m * BLOCKS + n) * 64, sum[m][n]);
  }
  // Prefetch the lines of the output for writing, before the sums are ready.
  ZP_INLINE void prefetch_output(int64_t token) const {
    const int64_t stop = smaller(token + kTokens<LIMBS>, p_.rows);
    for (; token < stop; ++token)
      for (int n = 0; n < BLOCKS; ++n) __builtin_prefetch(p_.y + token * p_.y_stride + (block_ + n) * kLanes, 1);
  }
  // Scale the sums and store the output.
  ZP_INLINE void finish(int64_t token, const Sums<BLOCKS>& sum) const {
    const float* by_row = p_.input.scale + token / 16 * 16 * w_.segments + token % 16;
#pragma GCC unroll 4
    for (int n = 0; n < BLOCKS; ++n) {
      const OutputColumns columns = output_columns(p_, block_ + n, false);
      const __m512 scale = load_scale(w_, (block_ + n) * w_.groups * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kTokens<LIMBS>; ++m) {
        if (token + m >= p_.rows) break;
        const __m512 value =
            LIMBS == 2 ? join_limbs(sum[(m + kTokens<LIMBS>) % kRows][n], sum[m][n]) : _mm512_cvtepi32_ps(sum[m][n]);
        columns.store(token + m, _mm512_mul_ps(_mm512_mul_ps(value, scale), _mm512_set1_ps(by_row[m])));
      }
    }
  }

  const Product& p_;
  const Weight& w_;
  int64_t block_;
  Scratch scratch_;
  __m512i offset_[BLOCKS];
};

template <int LIMBS, bool ZERO>
void multiply_blocks(const Product& p, int64_t begin, int64_t end, const Scratch& scratch) {
  int64_t block = begin;
  for (; block + kBlocks <= end; block += kBlocks) Strip<LIMBS, ZERO, kBlocks>(p, block, scratch).multiply_all();
  if (end - block == 2) Strip<LIMBS, ZERO, 2>(p, block, scratch).multiply_all();
  if (end - block == 1) Strip<LIMBS, ZERO, 1>(p, block, scratch).multiply_all();
}

}  // namespace

int64_t vnni_scratch_bytes(const Weight& w, int64_t rows) {
  return Scratch::panel_bytes(w) + Scratch::code_sums_bytes(w, rows) + Scratch::kept_bytes(w, rows);
}

bool supports_vnni(const Weight& w) {
  return sums_whole_rows(w) && w.k_unit == kUnit;
}

void vnni_integer(const Product& p, int64_t begin, int64_t end, void* memory) {
  const Weight& w = *p.weight;
  auto* bytes = static_cast<uint8_t*>(memory);
  Scratch scratch{};
  scratch.panel = bytes;
  bytes += Scratch::panel_bytes(w);
  scratch.code_sums = reinterpret_cast<int32_t*>(bytes);
  scratch.kept = bytes + Scratch::code_sums_bytes(w, p.rows);
  add_code_sums(p, scratch.code_sums);
  const bool zero = byte_zeros(w);
  if (w.limbs == 2)
    zero ? multiply_blocks<2, true>(p, begin, end, scratch) : multiply_blocks<2, false>(p, begin, end, scratch);
  else
    zero ? multiply_blocks<1, true>(p, begin, end, scratch) : multiply_blocks<1, false>(p, begin, end, scratch);
}

}  // namespace zp
