// The integer product of several rows on AMX tiles. Only this file is compiled with AMX flags.
//
// There are three kernels. If no float scale varies along the row (K), amx_few.h multiplies rows that fit two tiles,
// and amx_whole.h more rows. If a float scale varies, by_segments in this file multiplies.
//
// by_segments computes an output block of 32 rows x 32 channels at a time: 2 x 2 tiles of 16 x 16. A tile's int32
// sums of one segment are stored to a buffer in the first-level cache, then scaled and added to float registers. Done
// in turn, the matrix unit and the vector unit would wait for each other. So the instructions of the tile products of
// one chunk of segments are interleaved with the float work on the chunk before.
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

// Add a segment's sums of eight rows (GROUP) to `total`. SCALE: the weight's scale varies along the row; INPUT: so does
// the input's; ZERO: subtract zero points.
template <bool SCALE, bool INPUT, bool ZERO, int GROUP>
ZP_INLINE void float_step(const Pending& v, int segment, __m512 (&total)[16]) {
  constexpr int kM = GROUP / 2, kRow = GROUP % 2 * 8;
  const uint8_t* tiles = v.buffer + (segment * 4 + kM * 2) * kTile + kRow * 64;
  const float* input_scale = v.input_scale[kM] + segment * 16 + kRow;
  __m512 scale[2];
  if constexpr (SCALE) {
    scale[0] = _mm512_load_ps(v.scale + segment * 32);
    scale[1] = _mm512_load_ps(v.scale + segment * 32 + 16);
  }
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    const __m512 by_row = INPUT ? _mm512_set1_ps(input_scale[r]) : _mm512_setzero_ps();
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      __m512i dot = _mm512_load_si512(tiles + n * kTile + r * 64);
      if constexpr (ZERO) {
        const __m512i zero = _mm512_load_si512(v.zero_point + segment * 32 + n * 16);
        dot = _mm512_sub_epi32(
            dot, _mm512_mullo_epi32(zero, _mm512_set1_epi32(v.sums[kM][segment * 16 + kRow + r])));
      }
      __m512 value = _mm512_cvtepi32_ps(dot);
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
template <bool SCALE, bool INPUT, int GROUP>
ZP_INLINE void finish(const Product& p, const Panel& panel, const Pending& v, __m512 (&total)[16]) {
  constexpr int kM = GROUP / 2, kRow = GROUP % 2 * 8;
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      __m512 value = total[2 * r + n];
      if constexpr (!SCALE) value = _mm512_mul_ps(value, _mm512_load_ps(panel.scale + n * 16));
      if constexpr (!INPUT) {
        const float* scale = p.input.scale + v.rows.tile[kM] * 16 * p.weight->segments;
        value = _mm512_mul_ps(value, _mm512_set1_ps(scale[kRow + r]));
      }
      store_row(p, panel, v.rows.first + kM * 16 + kRow + r, n, value);
    }
}

// Run the steps of one group of eight rows. TILES: tile products of this chunk; FLOATS: float work of the chunk before.
template <bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK, int GROUP, bool TILES, bool FLOATS,
          int I>
ZP_INLINE void steps(const Chunk c, const Pending& v, __m512 (&total)[16]) {
  if constexpr (I < CHUNK) {
    if constexpr (TILES) tile_step<SINGLE, CHUNK, GROUP * CHUNK + I>(c);
    if constexpr (FLOATS) float_step<SCALE, INPUT, ZERO, GROUP>(v, I, total);
    steps<SCALE, INPUT, ZERO, SINGLE, CHUNK, GROUP, TILES, FLOATS, I + 1>(c, v, total);
  }
}

template <bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK, int GROUP, bool TILES, bool FLOATS>
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
  steps<SCALE, INPUT, ZERO, SINGLE, CHUNK, GROUP, TILES, FLOATS, 0>(c, v, total);
  if constexpr (FLOATS) {
    if (v.last) {
      finish<SCALE, INPUT, GROUP>(p, panel, v, total);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_ps(kept + i * 16, total[i]);
    }
  }
}

template <bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK, bool TILES, bool FLOATS>
__attribute__((noinline)) void chunk(const Product& p, const Panel& panel, const Chunk& now,
                                     const Pending& pending) {
  const Chunk c = now;
  const Pending v = pending;
  compiler_barrier();
  group<SCALE, INPUT, ZERO, SINGLE, CHUNK, 0, TILES, FLOATS>(p, panel, c, v);
  group<SCALE, INPUT, ZERO, SINGLE, CHUNK, 1, TILES, FLOATS>(p, panel, c, v);
  group<SCALE, INPUT, ZERO, SINGLE, CHUNK, 2, TILES, FLOATS>(p, panel, c, v);
  group<SCALE, INPUT, ZERO, SINGLE, CHUNK, 3, TILES, FLOATS>(p, panel, c, v);
  compiler_barrier();
}

// Multiply all rows by a panel, in chunks of CHUNK segments. SINGLE: a segment is one tile. The last chunk's float work
// follows after the loop.
template <bool SCALE, bool INPUT, bool ZERO, bool SINGLE, int CHUNK>
void by_segments(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  constexpr int64_t kBuffer = 4 * kMaxChunk * kTile;
  const int64_t chunks = w.segments / CHUNK;
  const int64_t pairs = (p.rows + 31) / 32;
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
        next.input_scale[t] = p.input.scale + (rows.tile[t] * w.segments + s) * 16;
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
      if (job == 0)
        chunk<SCALE, INPUT, ZERO, SINGLE, CHUNK, true, false>(p, panel, now, pending);
      else
        chunk<SCALE, INPUT, ZERO, SINGLE, CHUNK, true, true>(p, panel, now, pending);
      pending = next;
    }
  }
  uint8_t* rest = panel.buffer + ((job - 1) & 1) * kBuffer + (4 * CHUNK - 3) * kTile;
  tile_store<1>(rest);
  tile_store<2>(rest + kTile);
  tile_store<3>(rest + 2 * kTile);
  chunk<SCALE, INPUT, ZERO, SINGLE, CHUNK, false, true>(p, panel, Chunk{}, pending);
}

// Choose the largest chunk that divides the number of segments.
template <bool SCALE, bool INPUT, bool ZERO>
void by_chunks(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  if (w.segment == w.k_unit) {
    if (w.segments % 4 == 0)
      by_segments<SCALE, INPUT, ZERO, true, 4>(p, panel);
    else if (w.segments % 3 == 0)
      by_segments<SCALE, INPUT, ZERO, true, 3>(p, panel);
    else if (w.segments % 2 == 0)
      by_segments<SCALE, INPUT, ZERO, true, 2>(p, panel);
    else
      by_segments<SCALE, INPUT, ZERO, true, 1>(p, panel);
  } else if (w.segments % 4 == 0) {
    by_segments<SCALE, INPUT, ZERO, false, 4>(p, panel);
  } else {
    by_segments<SCALE, INPUT, ZERO, false, 1>(p, panel);
  }
}

template <bool ZERO>
void multiply_segments(const Product& p, const Panel& panel) {
  const Weight& w = *p.weight;
  if (w.scale_by_segment && w.input_by_segment)
    by_chunks<true, true, ZERO>(p, panel);
  else if (w.scale_by_segment)
    by_chunks<true, false, ZERO>(p, panel);
  else
    by_chunks<false, true, ZERO>(p, panel);
}

// Bytes of output from which stores bypass the caches: a core's caches would not keep such an output, and bypassing
// them saves reading its lines first.
constexpr int64_t kStreamBytes = 16 << 20;

}  // namespace

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
