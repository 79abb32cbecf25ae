// The preparation of weights and rows for the AMX instructions: part of amx.cpp.
//
// Tiles 0 to 3 hold sums, 4 and 5 input (A), 6 and 7 weights (B).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/layout.h"
#include "kernels/amx_tiles.h"

namespace zp {
namespace {

// Keep the compiler from moving accesses of memory across this point.
ZP_INLINE void compiler_barrier() {
  asm volatile("" ::: "memory");
}

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Set the sizes of the tiles for a weight's k_unit.
void configure(int64_t k_unit) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? k_unit : 64);
    config.rows[t] = static_cast<uint8_t>(t < 6 ? 16 : k_unit / 4);
  }
  tile_configure(&config);
}

int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Set the four tiles of sums to zero.
void zero_tiles() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

void store_tiles(uint8_t* to) {
  tile_store<0>(to);
  tile_store<1>(to + kTile);
  tile_store<2>(to + 2 * kTile);
  tile_store<3>(to + 3 * kTile);
}

constexpr int kMaxChunk = 4;  // segments of a chunk at most

// Two blocks of output channels, prepared once for all rows: codes as signed bytes, scales as float.
struct Panel {
  const uint8_t* codes[2];  // null if nibbles are widened part by part
  uint8_t* widened;         // nibbles widened to bytes: a part of the columns, or all
  uint8_t* kept;            // tiles of sums, kept between two parts of a long row
  float* scale;             // [segments or 1][2][16]
  int32_t* zero_point;      // [segments][2][16]; null unless the weight has zero points and byte codes
  uint8_t* buffer;          // two chunks of tiles
  float* total;             // [4][16][16] sums kept between chunks
  int64_t block;
  int blocks;
  bool streams;  // output stores bypass the caches
};

__m512 load_scale(const Weight& w, int64_t at) {
  if (w.nested) return _mm512_loadu_ps(static_cast<const float*>(w.scale) + at / w.groups);
  if (!w.scale_bf16) return _mm512_loadu_ps(static_cast<const float*>(w.scale) + at);
  const void* p = static_cast<const uint16_t*>(w.scale) + at;
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
}

__m512i load_zero(const Weight& w, int64_t at) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero_point + at)));
}

// The most columns in a part of a long row: 32 channels of a part, as bytes, stay in the first-level cache.
constexpr int64_t kPart = 1024;

// Return the columns of a part. Parts are equally long and as few as possible, because each one stores and loads sums.
int64_t part_columns(const Weight& w) {
  const int64_t parts = (w.columns_padded + kPart - 1) / kPart;
  return (w.columns_padded / 64 + parts - 1) / parts * 64;
}

// Return the number of pairs of input tiles.
int64_t pairs_of(const Weight& w, int64_t rows) {
  return w.limbs == 2 ? (rows + 15) / 16 : (rows + 31) / 32;
}

// True if no float scale varies along the row, so that whole rows are summed as integers.
bool sums_whole_rows(const Weight& w) {
  return !w.scale_by_segment && !w.input_by_segment;
}

int64_t widened_bytes(const Weight& w) {
  return w.nibbles ? 32 * (sums_whole_rows(w) ? kPart : w.columns_padded) : 0;
}

int64_t kept_bytes(const Weight& w, int64_t rows) {
  return sums_whole_rows(w) && w.columns_padded > kPart ? pairs_of(w, rows) * 4 * kTile : 0;
}

// Codes of eight columns of a block, without their offset subtracted (8, or 16 with fifth bits): columns 0 to 3 and 4
// to 7.
struct Raised {
  __m512i first, second;
};

template <bool FIFTHS>
ZP_INLINE Raised raised(const uint8_t* nibbles, const uint8_t* fifths) {
  const __m512i mask = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
  const __m512i both = _mm512_loadu_si512(nibbles);
  Raised codes = {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
  if constexpr (FIFTHS) {
    uint64_t set[2];
    std::memcpy(set, fifths, 16);
    codes.first = _mm512_mask_add_epi8(codes.first, set[0], codes.first, fifth);
    codes.second = _mm512_mask_add_epi8(codes.second, set[1], codes.second, fifth);
  }
  return codes;
}

// Widen columns [begin, end) of a block's nibbles to bytes: code - zero_point.
template <bool FIFTHS>
ZP_INLINE void widen_plain(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  const __m512i spread = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const int64_t group = w.segment * w.segments_per_group;
  const uint8_t* in = w.codes + (block * w.columns_padded + begin) * 8;
  const uint8_t* bits = w.fifth + (FIFTHS ? (block * w.columns_padded + begin) * 2 : 0);
  for (int64_t k = begin; k < end;) {
    const int64_t g = smaller(k / group, w.groups - 1),
                  stop = g + 1 < w.groups ? smaller((g + 1) * group, end) : end;
    __m512i zero = _mm512_set1_epi8(FIFTHS ? 16 : 8);
    if (w.asymmetric)
      zero = _mm512_add_epi8(zero, _mm512_shuffle_epi8(load_zero(w, (block * w.groups + g) * 16), spread));
    for (; k < stop; k += 8, in += 64, bits += 16, out += 128) {
      const Raised codes = raised<FIFTHS>(in, bits);
      _mm512_store_si512(out, _mm512_sub_epi8(codes.first, zero));
      _mm512_store_si512(out + 64, _mm512_sub_epi8(codes.second, zero));
    }
  }
}

// Widen the codes of a weight with two-level scales to bytes: (nibble - 8) * multiplier. One 16-bit multiplication by
// the multiplier's magnitude m multiplies two nibbles at once, because m * nibble is at most 15 * 15 < 256. For a
// negative multiplier the nibble n is complemented first: (n - 8) * -m = (15 - n) * m - 7 * m. The same holds for 5
// bits with 16 in place of 8, because 7 * 31 < 256.
template <bool FIFTHS>
ZP_INLINE void widen_nested(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  constexpr int kHalf = FIFTHS ? 4 : 3;  // the offset of the codes is 2^kHalf
  const __m512i mask = _mm512_set1_epi8((2 << kHalf) - 1);
  const __m512i words = _mm512_set4_epi32(0x0d0c0d0c, 0x09080908, 0x05040504, 0x01000100);
  const __m512i bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  constexpr int kFlipAndMask = 0x28;  // (a ^ b) & c
  const int64_t group = w.segment * w.segments_per_group;
  const uint8_t* in = w.codes + (block * w.columns_padded + begin) * 8;
  const uint8_t* bits = w.fifth + (FIFTHS ? (block * w.columns_padded + begin) * 2 : 0);
  for (int64_t k = begin; k < end;) {
    const int64_t g = smaller(k / group, w.groups - 1),
                  stop = g + 1 < w.groups ? smaller((g + 1) * group, end) : end;
    const __m512i multiple = _mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.multiplier + (block * w.groups + g) * kLanes)));
    const __m512i size = _mm512_abs_epi32(multiple), sign = _mm512_srai_epi32(multiple, 31);
    const __m512i factor = _mm512_shuffle_epi8(size, words);
    const __m512i below = _mm512_sub_epi32(_mm512_slli_epi32(size, kHalf), size);
    const __m512i offset =
        _mm512_shuffle_epi8(_mm512_max_epi32(below, _mm512_slli_epi32(multiple, kHalf)), bytes);
    for (; k < stop; k += 8, in += 64, bits += 16, out += 128) {
      const Raised codes = raised<FIFTHS>(in, bits);
      const __m512i first = _mm512_ternarylogic_epi32(codes.first, sign, mask, kFlipAndMask);
      const __m512i second = _mm512_ternarylogic_epi32(codes.second, sign, mask, kFlipAndMask);
      _mm512_store_si512(out, _mm512_sub_epi8(_mm512_mullo_epi16(first, factor), offset));
      _mm512_store_si512(out + 64, _mm512_sub_epi8(_mm512_mullo_epi16(second, factor), offset));
    }
  }
}

ZP_INLINE void widen(const Weight& w, int64_t block, int64_t begin, int64_t end, uint8_t* out) {
  if (w.nested && w.fifths)
    widen_nested<true>(w, block, begin, end, out);
  else if (w.nested)
    widen_nested<false>(w, block, begin, end, out);
  else if (w.fifths)
    widen_plain<true>(w, block, begin, end, out);
  else
    widen_plain<false>(w, block, begin, end, out);
}

// True if zero points are subtracted from the sums: codes are bytes, which cannot hold code - zero_point.
bool byte_zeros(const Weight& w) {
  return w.asymmetric && !w.nibbles;
}

// Prepare blocks [block, block + blocks) of the weight, in `scratch` of amx_scratch_bytes.
Panel prepare(const Weight& w, int64_t rows, int64_t block, int blocks, bool streams, uint8_t* scratch) {
  Panel p{};
  p.block = block;
  p.blocks = blocks;
  p.streams = streams;
  p.buffer = scratch;
  scratch += 2 * 4 * kMaxChunk * kTile;
  p.kept = scratch;
  scratch += kept_bytes(w, rows);
  p.total = reinterpret_cast<float*>(scratch);
  scratch += 4 * kTile;
  const int64_t parts = w.scale_by_segment ? w.segments : 1;
  p.scale = reinterpret_cast<float*>(scratch);
  scratch += parts * 128;
  if (byte_zeros(w)) {
    p.zero_point = reinterpret_cast<int32_t*>(scratch);
    scratch += w.segments * 128;
  }
  p.widened = scratch;
  for (int n = 0; n < 2; ++n) {
    const int64_t b = block + (n < blocks ? n : 0);
    for (int64_t s = 0; s < parts; ++s)
      _mm512_store_ps(p.scale + s * 32 + n * 16,
                      load_scale(w, (b * w.groups + s / w.segments_per_group) * 16));
    if (p.zero_point)
      for (int64_t s = 0; s < w.segments; ++s)
        _mm512_store_si512(p.zero_point + s * 32 + n * 16,
                           load_zero(w, (b * w.groups + s / w.segments_per_group) * 16));
    if (!w.nibbles) {
      p.codes[n] = w.codes + b * w.columns_padded * 16;
    } else if (!sums_whole_rows(w)) {
      p.codes[n] = p.widened + (b - block) * w.columns_padded * 16;
      if (n < blocks) widen(w, b, 0, w.columns_padded, p.widened + n * w.columns_padded * 16);
    }
  }
  compiler_barrier();
  return p;
}

// The rows of one 32 x 32 output block, or of a 16 x 32 block for two limbs.
struct Rows {
  int64_t first;    // first row of the output
  int64_t tile[2];  // two tiles: rows 0 to 15 and 16 to 31 (the first tile again if there are none), or both limbs
};

Rows rows_at(const Product& p, int64_t pair) {
  if (p.weight->limbs == 2) return {pair * 16, {pair * 2, pair * 2 + 1}};
  const int64_t tiles = (p.rows + 15) / 16;
  return {pair * 32, {pair * 2, smaller(pair * 2 + 1, tiles - 1)}};
}

// A block of 16 columns of the output; fewer at the output's end.
struct OutputColumns {
  float* y;
  int64_t stride;
  __m512 bias;
  __mmask16 mask;
  bool streams;

  ZP_INLINE void store(int64_t row, __m512 value) const {
    value = _mm512_add_ps(value, bias);
    if (streams)
      _mm512_stream_ps(y + row * stride, value);
    else
      _mm512_mask_storeu_ps(y + row * stride, mask, value);
  }
};

ZP_INLINE OutputColumns output_columns(const Product& p, int64_t block, bool streams) {
  const int64_t column = block * 16;
  const int64_t count = smaller(16, p.weight->rows - column);
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  // Without a bias -0 is added, which changes no value.
  const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + column) : _mm512_set1_ps(-0.0f);
  return {p.y + column, p.y_stride, bias, mask, streams && count == 16};
}

ZP_INLINE void store_row(const Product& p, const Panel& panel, int64_t row, int n, __m512 value) {
  if (row < p.rows && n < panel.blocks) output_columns(p, panel.block + n, panel.streams).store(row, value);
}

// Return row r of a tile of sums; ZERO: minus the zero points times the sum of the input's codes.
template <bool ZERO>
ZP_INLINE __m512i sums_of_row(const uint8_t* tile, int64_t r, __m512i zero_point, const int32_t* codes) {
  __m512i dot = _mm512_load_si512(tile + r * 64);
  if constexpr (ZERO)
    dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero_point, _mm512_set1_epi32(codes[r])));
  return dot;
}

// Return 128 * high + low as float, rounded as `join` in output.h rounds it.
ZP_INLINE __m512 join_limbs(__m512i high, __m512i low) {
  const __m512i rest = _mm512_and_si512(low, _mm512_set1_epi32(127));
  high = _mm512_add_epi32(high, _mm512_srai_epi32(low, 7));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(rest));
}

// Prefetching of the next panel's codes, which may still be in memory: some lines with every step of this panel.
class Prefetch {
 public:
  Prefetch(const Product& p, const Panel& panel, int64_t steps) {
    const Weight& w = *p.weight;
    const int64_t bytes = w.columns_padded * (w.nibbles ? 8 : 16);
    const int64_t blocks = smaller(2, w.blocks - (panel.block + 2));
    next_ = reinterpret_cast<const char*>(w.codes + (panel.block + 2) * bytes);
    lines_ = blocks > 0 ? (blocks * bytes / 64 + steps - 1) / steps : 0;
  }
  ZP_INLINE void prefetch_some() {
    for (int64_t i = 0; i < lines_; ++i, next_ += 64) _mm_prefetch(next_, _MM_HINT_T1);
  }

 private:
  const char* next_;
  int64_t lines_;
};

// Prefetch the cache lines of an output block for writing, before its sums are ready. Stores are done in order:
// behind an output store that misses every cache, the stores of tiles would wait.
void prefetch_output(const Product& p, const Panel& panel, int64_t first) {
  if (panel.streams) return;
  const int64_t stop = smaller(first + (p.weight->limbs == 2 ? 16 : 32), p.rows);
  for (int64_t row = first; row < stop; ++row) {
    const float* y = p.y + row * p.y_stride + panel.block * 16;
    for (int n = 0; n < panel.blocks; ++n) __builtin_prefetch(y + n * 16, 1);
  }
}

}  // namespace
}  // namespace zp
