// The preparation of weights and rows for the AMX instructions: part of amx.cpp.
//
// Tiles 0 to 3 hold sums, 4 and 5 input (A), 6 and 7 weights (B).
#pragma once

#include "kernels/amx_tiles.h"
#include "widened.h"

namespace zp {
namespace {

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

int64_t widened_bytes(const Weight& w) {
  return w.nibbles ? 32 * (sums_whole_rows(w) ? kPart : w.columns_padded) : 0;
}

int64_t kept_bytes(const Weight& w, int64_t rows) {
  return sums_whole_rows(w) && w.columns_padded > kPart ? pairs_of(w, rows) * 4 * kTile : 0;
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
