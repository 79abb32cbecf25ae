// The integer product of several rows on AMX tiles. Only this file is compiled with AMX flags.
//
// There are three kernels. If no float scale varies along the row (K), amx_few.h multiplies rows that fit two tiles,
// and amx_whole.h more rows. If a float scale varies, by_segments in this file multiplies.
//
// by_segments computes an output block of 32 tokens x 32 channels at a time: 2 x 2 tiles of 16 x 16. With two limbs the
// block has 16 tokens: their low limbs fill one tile of rows, their high limbs the other. A tile's int32 sums of one
// segment are stored to a buffer in the first-level cache, then scaled and added to float registers. If tile products
// and float work took turns, the matrix unit and the vector unit would wait for each other. So the instructions of the
// tile products of one chunk of segments are interleaved with the float work on the chunk before.
#include "amx_few.h"
#include "amx_panel.h"
#include "amx_whole.h"

namespace zp {
namespace {

// The tile half of a chunk: operands A (input) and B (weight), and the buffer for the sums.
struct Chunk {
  const int8_t* a[2];
  const uint8_t* b[2];
  uint8_t* buffer;
  uint8_t* before;     // the buffer of the chunk before
  int64_t k_unit;      // bytes of a row of a tile of A
  int64_t units;       // tiles in a segment
  int64_t last_units;  // tiles in the chunk's last segment: fewer if the row ends within it
};

// The float half of a chunk.
struct Pending {
  const float* input_scale[2];
  const int32_t* sums[2];
  const float* scale;
  const int32_t* zero_point;
  const uint8_t* buffer;
  Rows rows;
  bool first, last;  // chunk of the row
};

// Run step L of a chunk: the product of tile L % 4 of segment L / 4. The chunk is passed by value so that it stays in
// registers.
template <bool SINGLE, int CHUNK, int L>
ZP_INLINE void tile_step(const Chunk c) {
  constexpr int kSegment = L / 4, kC = L % 4, kM = kC / 2, kN = kC % 2;
  constexpr int kStored = (L + 4 * CHUNK - 3) % (4 * CHUNK);
  tile_zero<kC>();
  if constexpr (SINGLE) {
    if constexpr (kN == 0) tile_load<4 + kM>(c.a[kM] + kSegment * 16 * c.k_unit, c.k_unit);
    if constexpr (kM == 0) tile_load<6 + kN>(c.b[kN] + kSegment * 16 * c.k_unit, 64);
    tile_dot<kC, 4 + kM, 6 + kN>();
  } else {
    const int64_t units = kSegment == CHUNK - 1 ? c.last_units : c.units;
    for (int64_t u = kSegment * c.units; u < kSegment * c.units + units; ++u) {
      tile_load<4 + kM>(c.a[kM] + u * 16 * c.k_unit, c.k_unit);
      tile_load<6 + kN>(c.b[kN] + u * 16 * c.k_unit, 64);
      tile_dot<kC, 4 + kM, 6 + kN>();
    }
  }
  // Store the tile of three steps ago, whose product is finished by now.
  tile_store<(L + 1) % 4>((L < 3 ? c.before : c.buffer) + kStored * kTile);
  if constexpr (L < 3) compiler_barrier();  // this call's float steps read it
}

// The rows of a group: eight rows of a tile; with two limbs four tokens, whose low limbs are in tiles 0 and 1 and whose
// high limbs are in tiles 2 and 3.
template <int LIMBS, int GROUP>
struct GroupRows {
  static constexpr int kCount = 8 / LIMBS;
  static constexpr int kTile = LIMBS == 2 ? 0 : GROUP / 2;  // tile of the input
  static constexpr int kFirst = LIMBS == 2 ? GROUP * 4 : GROUP % 2 * 8;
};

// Return the sums of a row of a tile. ZERO: minus the zero points times the sums of the input's codes.
template <bool ZERO>
ZP_INLINE __m512i sums_in_segment(const Pending& v, int segment, int m, int n, int row) {
  const __m512i dot = _mm512_load_si512(v.buffer + (segment * 4 + m * 2 + n) * kTile + row * 64);
  if constexpr (!ZERO) return dot;
  const __m512i zero = _mm512_load_si512(v.zero_point + segment * 32 + n * 16);
  return _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero, _mm512_set1_epi32(v.sums[m][segment * 16 + row])));
}

// Add a segment's sums of a group's rows to `total`. SCALE: the weight's scale varies along the row; INPUT: so does the
// input's.
template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, int GROUP>
ZP_INLINE void float_step(const Pending& v, int segment, __m512 (&total)[16]) {
  using Group = GroupRows<LIMBS, GROUP>;
  const float* input_scale = v.input_scale[Group::kTile] + segment * 16 + Group::kFirst;
  __m512 scale[2];
  if constexpr (SCALE) {
    scale[0] = _mm512_load_ps(v.scale + segment * 32);
    scale[1] = _mm512_load_ps(v.scale + segment * 32 + 16);
  }
#pragma GCC unroll 8
  for (int r = 0; r < Group::kCount; ++r) {
    const __m512 by_row = INPUT ? _mm512_set1_ps(input_scale[r]) : _mm512_setzero_ps();
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      const __m512i dot = sums_in_segment<ZERO>(v, segment, Group::kTile, n, Group::kFirst + r);
      __m512 value;
      if constexpr (LIMBS == 2)
        value = join_small_limbs(sums_in_segment<ZERO>(v, segment, 1, n, Group::kFirst + r), dot);
      else
        value = _mm512_cvtepi32_ps(dot);
      if constexpr (INPUT) {
        if constexpr (SCALE) value = _mm512_mul_ps(value, scale[n]);
        total[2 * r + n] = _mm512_fmadd_ps(value, by_row, total[2 * r + n]);
      } else {
        total[2 * r + n] = _mm512_fmadd_ps(value, scale[n], total[2 * r + n]);
      }
    }
  }
}

// Apply the scales that do not vary along the row, and store the output.
template <int LIMBS, bool SCALE, bool INPUT, int GROUP>
ZP_INLINE void finish(const Product& p, const Panel& panel, const Pending& v, __m512 (&total)[16]) {
  using Group = GroupRows<LIMBS, GROUP>;
#pragma GCC unroll 8
  for (int r = 0; r < Group::kCount; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      __m512 value = total[2 * r + n];
      if constexpr (!SCALE) value = _mm512_mul_ps(value, _mm512_load_ps(panel.scale + n * 16));
      if constexpr (!INPUT) {
        const int64_t tile = v.rows.tile[Group::kTile] / LIMBS;  // of the input's scales, which have no limbs
        const float* scale = p.input.scale + tile * 16 * p.weight->segments;
        value = _mm512_mul_ps(value, _mm512_set1_ps(scale[Group::kFirst + r]));
      }
      store_row(p, panel, v.rows.first + Group::kTile * 16 + Group::kFirst + r, n, value);
    }
}

// Run the steps of one group of rows. TILES: tile products of this chunk; FLOATS: float work of the chunk before.
template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK, int GROUP, bool TILES, bool FLOATS,
          int I>
ZP_INLINE void steps(const Chunk c, const Pending& v, __m512 (&total)[16]) {
  if constexpr (I < CHUNK) {
    if constexpr (TILES) tile_step<SINGLE, CHUNK, GROUP * CHUNK + I>(c);
    if constexpr (FLOATS) float_step<LIMBS, SCALE, INPUT, ZERO, GROUP>(v, I, total);
    steps<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, GROUP, TILES, FLOATS, I + 1>(c, v, total);
  }
}

template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK, int GROUP, bool TILES, bool FLOATS>
ZP_INLINE void group(const Product& p, const Panel& panel, const Chunk c, const Pending& v) {
  __m512 total[16];
  float* kept = panel.total + GROUP * 256;
  if constexpr (FLOATS) {
    if (v.first) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) total[i] = _mm512_setzero_ps();
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) total[i] = _mm512_load_ps(kept + i * 16);
    }
  }
  steps<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, GROUP, TILES, FLOATS, 0>(c, v, total);
  if constexpr (FLOATS) {
    if (v.last) {
      finish<LIMBS, SCALE, INPUT, GROUP>(p, panel, v, total);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_ps(kept + i * 16, total[i]);
    }
  }
}

template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK, bool TILES, bool FLOATS>
__attribute__((noinline)) void chunk(const Product& p, const Panel& panel, const Chunk& now,
                                     const Pending& pending) {
  const Chunk c = now;
  const Pending v = pending;
  compiler_barrier();
  group<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, 0, TILES, FLOATS>(p, panel, c, v);
  group<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, 1, TILES, FLOATS>(p, panel, c, v);
  group<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, 2, TILES, FLOATS>(p, panel, c, v);
  group<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, 3, TILES, FLOATS>(p, panel, c, v);
  compiler_barrier();
}

// Store the last three tiles of a chunk.
template <int CHUNK>
ZP_INLINE void store_last_tiles(uint8_t* buffer) {
  uint8_t* last = buffer + (4 * CHUNK - 3) * kTile;
  tile_store<1>(last);
  tile_store<2>(last + kTile);
  tile_store<3>(last + 2 * kTile);
}

// Multiply all rows by a panel, in chunks of CHUNK segments. SINGLE: a segment is one tile. The last chunk's float work
// follows after the loop.
template <int LIMBS, bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK>
void by_segments(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  constexpr int64_t kBuffer = 4 * kMaxChunk * kTile;
  // Steps 0 to 2 of a chunk store the last three tiles of the chunk before. With two limbs, group 0 reads all four
  // tiles of a segment, and reads those of the last segment right after step CHUNK - 1. If CHUNK < 3, step 2 would
  // store one of these tiles after it is read. So short chunks do not interleave tile products and float work.
  constexpr bool kInTurn = LIMBS == 2 && CHUNK < 3;
  const int64_t chunks = w.segments / CHUNK;
  const int64_t pairs = pairs_of(w, p.rows);
  Prefetch ahead(p, panel, pairs * chunks);
  Pending pending{};
  int64_t job = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const Rows rows = rows_at(p, pair);
    prefetch_output(p, panel, rows.first);
    for (int64_t i = 0; i < chunks; ++i, ++job) {
      const int64_t s = i * CHUNK;
      Chunk now;
      Pending next;
      for (int t = 0; t < 2; ++t) {
        now.a[t] = p.input.codes + rows.tile[t] * 16 * w.columns_padded + s * w.segment * 16;
        now.b[t] = panel.codes[t] + s * w.segment * 16;
        next.input_scale[t] = p.input.scale + (rows.tile[t] / LIMBS * w.segments + s) * 16;
        next.sums[t] = p.input.sums + (rows.tile[t] * w.segments + s) * 16;
      }
      now.buffer = panel.buffer + (job & 1) * kBuffer;
      now.before = panel.buffer + (~job & 1) * kBuffer;
      now.k_unit = w.k_unit;
      now.units = w.segment / w.k_unit;
      now.last_units = smaller(now.units, (w.columns_padded - (s + CHUNK - 1) * w.segment) / w.k_unit);
      next.scale = panel.scale + (SCALE ? s * 32 : 0);
      next.zero_point = ZERO ? panel.zero_point + s * 32 : nullptr;
      next.buffer = now.buffer;
      next.rows = rows;
      next.first = i == 0;
      next.last = i == chunks - 1;
      ahead.prefetch_some();
      if constexpr (kInTurn) {
        chunk<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, true, false>(p, panel, now, pending);
        store_last_tiles<CHUNK>(now.buffer);
        chunk<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, false, true>(p, panel, now, next);
      } else if (job == 0) {
        chunk<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, true, false>(p, panel, now, pending);
      } else {
        chunk<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, true, true>(p, panel, now, pending);
      }
      pending = next;
    }
  }
  if constexpr (kInTurn) return;
  store_last_tiles<CHUNK>(panel.buffer + ((job - 1) & 1) * kBuffer);
  chunk<LIMBS, SCALE, INPUT, ZERO, SINGLE, CHUNK, false, true>(p, panel, Chunk{}, pending);
}

// Choose the largest chunk that divides the number of segments.
template <int LIMBS, bool SCALE, bool INPUT, bool ZERO>
void by_chunks(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  if (w.segment == w.k_unit) {
    if (w.segments % 4 == 0)
      by_segments<LIMBS, SCALE, INPUT, ZERO, true, 4>(p, panel);
    else if (w.segments % 3 == 0)
      by_segments<LIMBS, SCALE, INPUT, ZERO, true, 3>(p, panel);
    else if (w.segments % 2 == 0)
      by_segments<LIMBS, SCALE, INPUT, ZERO, true, 2>(p, panel);
    else
      by_segments<LIMBS, SCALE, INPUT, ZERO, true, 1>(p, panel);
  } else if (w.segments % 4 == 0) {
    by_segments<LIMBS, SCALE, INPUT, ZERO, false, 4>(p, panel);
  } else {
    by_segments<LIMBS, SCALE, INPUT, ZERO, false, 1>(p, panel);
  }
}

template <bool ZERO>
void multiply_segments(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  if (w.limbs == 2)
    by_chunks<2, true, false, ZERO>(p, panel);
  else if (w.scale_by_segment && w.input_by_segment)
    by_chunks<1, true, true, ZERO>(p, panel);
  else if (w.scale_by_segment)
    by_chunks<1, true, false, ZERO>(p, panel);
  else
    by_chunks<1, false, true, ZERO>(p, panel);
}

// Least size of an output, in bytes, that is stored past the caches. A core's caches would not keep such an output, and
// a store that bypasses them does not read the line first.
constexpr int64_t kStreamBytes = 16 << 20;

}  // namespace

bool supports_amx(const Weight& w) {
  return w.k_unit >= 32 && joins_exactly(w);
}

int64_t amx_scratch_bytes(const Weight& w, int64_t rows) {
  if (is_few(w, rows)) return kFewBytes;
  return (8 * kMaxChunk + 4) * kTile + kept_bytes(w, rows) + w.segments * 256 + 256 + widened_bytes(w);
}

void amx_integer(const Product& p, int64_t begin, int64_t end, void* scratch) {
  const Weight& w = *p.weight;
  configure(w.k_unit);
  const bool streams = p.rows * w.rows * 4 >= kStreamBytes &&
                       (reinterpret_cast<uintptr_t>(p.y) | static_cast<uintptr_t>(p.y_stride * 4)) % 64 == 0;
  if (is_few(w, p.rows)) {
    few_rows(p, begin, end, static_cast<uint8_t*>(scratch));
    begin = end;
  }
  for (int64_t block = begin; block < end; block += 2) {
    const int blocks = static_cast<int>(smaller(2, end - block));
    const Panel panel = prepare(w, p.rows, block, blocks, streams, static_cast<uint8_t*>(scratch));
    if (sums_whole_rows(w))
      whole_rows(p, panel);
    else if (byte_zeros(w))
      multiply_segments<true>(p, panel);
    else
      multiply_segments<false>(p, panel);
  }
  tile_release();
  if (streams) _mm_sfence();
}

}  // namespace zp
