// Stands in for native/kernels/amx_tiles.h where the AMX kernels are compiled for zeropoint_emulated: the same
// functions, in plain C++ (amx_tiles.cpp).
#pragma once

#include <cstdint>

namespace zp {

// No tile number must become a constant in the machine code here, so functions need not be inlined. If all were, they
// would take the compiler minutes.
#define ZP_INLINE inline

constexpr int64_t kTile = 1024;  // bytes of a tile of 16 rows of 16 int32 sums

namespace emulated {
void tile_zero(int t);
void tile_load(int t, const void* p, int64_t stride);
void tile_store(int t, void* p);
void tile_dot(int c, int a, int b);
}  // namespace emulated

void tile_configure(const void* config);
void tile_release();

template <int T>
void tile_zero() {
  emulated::tile_zero(T);
}
template <int T>
void tile_load(const void* p, int64_t stride) {
  emulated::tile_load(T, p, stride);
}
template <int T>
void tile_load_kept(const void* p, int64_t stride) {
  emulated::tile_load(T, p, stride);
}
template <int T>
void tile_store(void* p) {
  emulated::tile_store(T, p);
}
template <int C, int A, int B>
void tile_dot() {
  emulated::tile_dot(C, A, B);
}

}  // namespace zp
