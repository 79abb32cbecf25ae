// The AMX instructions of native/kernels/amx_tiles.h in plain C++. Without sanitizers, like arithmetic.cpp; they check
// the rows that tiles load and store in `copy`, as they cannot for the instructions themselves.
//
// What faults on a processor (a tile that is not configured, sizes that do not fit) ends the process.
#include "kernels/amx_tiles.h"

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace zp {
namespace {

struct Tile {
  uint8_t bytes[16][64];
  int rows, row_bytes;  // 0: not configured
};

thread_local Tile tiles[8];

Tile& configured(int t) {
  emulated::require(tiles[t].rows > 0, "a tile that is not configured");
  return tiles[t];
}

}  // namespace

void tile_release() {
  std::memset(tiles, 0, sizeof tiles);
}

// `config` is the 64 bytes that LDTILECFG reads: the palette, the first row, 14 bytes of 0, then the bytes of a row of
// each of 16 tiles (16 bits each), then their numbers of rows (8 bits each). There are 8 tiles.
void tile_configure(const void* config) {
  uint8_t bytes[64];
  std::memcpy(bytes, config, sizeof bytes);
  bool good = bytes[0] == 1;
  for (int i = 1; i < 16; ++i) good = good && bytes[i] == 0;
  tile_release();
  for (int t = 0; t < 16; ++t) {
    const int row_bytes = bytes[16 + 2 * t] + 256 * bytes[17 + 2 * t], rows = bytes[48 + t];
    const int most = t < 8 ? 1 : 0;
    good = good && rows <= most * 16 && row_bytes <= most * 64 && (rows == 0) == (row_bytes == 0);
    if (good && t < 8) tiles[t].rows = rows, tiles[t].row_bytes = row_bytes;
  }
  emulated::require(good, "a tile configuration that LDTILECFG refuses");
}

namespace emulated {

void tile_zero(int t) {
  std::memset(configured(t).bytes, 0, sizeof(Tile::bytes));
}

void tile_load(int t, const void* p, int64_t stride) {
  tile_zero(t);
  Tile& tile = tiles[t];
  for (int row = 0; row < tile.rows; ++row)
    copy(tile.bytes[row], static_cast<const uint8_t*>(p) + row * stride, static_cast<size_t>(tile.row_bytes));
}

// Rows are stored one after the other, 64 bytes apart.
void tile_store(int t, void* p) {
  const Tile& tile = configured(t);
  for (int row = 0; row < tile.rows; ++row)
    copy(static_cast<uint8_t*>(p) + row * 64, tile.bytes[row], static_cast<size_t>(tile.row_bytes));
}

// TDPBSSD: add to each sum of tile `sums` the products of a row of tile `left` and a column of tile `right`, whose rows
// hold four signed bytes for each column. Sums wrap around.
void tile_dot(int sums, int left, int right) {
  Tile& c = configured(sums);
  const Tile &a = configured(left), &b = configured(right);
  require(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows, "tiles whose sizes do not fit");
  for (int m = 0; m < c.rows; ++m) {
    auto row = load<Lanes<uint32_t>>(c.bytes[m]);
    for (int k = 0; k < b.rows; ++k) {
      const auto x = load<Lanes<int8_t, 4>>(a.bytes[m] + 4 * k);
      const auto y = load<Lanes<int8_t>>(b.bytes[k]);
      for (int n = 0; n < 16; ++n) {
        int32_t dot = 0;
        for (int j = 0; j < 4; ++j) dot += x.v[j] * y.v[4 * n + j];
        row.v[n] += static_cast<uint32_t>(dot);
      }
    }
    std::memcpy(c.bytes[m], &row, sizeof row);
  }
}

}  // namespace emulated
}  // namespace zp
