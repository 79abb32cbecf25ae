// A function for each AMX instruction, included by amx.cpp only, the one file that is compiled with AMX flags.
//
// native/tests/emulated/kernels/amx_tiles.h has the same functions in plain C++. The build of zeropoint_emulated finds
// that file first, so this one holds nothing but what it replaces.
#pragma once

#include <cstdint>

namespace zp {
namespace {

#define ZP_INLINE __attribute__((always_inline)) inline

constexpr int64_t kTile = 1024;  // bytes of a tile of 16 rows of 16 int32 sums

// Set the sizes of the tiles: `config` is the 64 bytes that LDTILECFG reads.
ZP_INLINE void tile_configure(const void* config) {
  asm volatile("ldtilecfg %0" ::"m"(*static_cast<const uint8_t (*)[64]>(config)));
}
ZP_INLINE void tile_release() {
  asm volatile("tilerelease");
}
template <int T>
ZP_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// Operands of the asm statements below that its text does not name tell the compiler which memory it accesses: for a
// load an array of unknown length from p on, as GCC's manual recommends; for a store a whole tile.
// The T1 hint of tile_load: operands stream from the second-level cache and shall not push the sums out of the first.
template <int T>
ZP_INLINE void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(p), "r"(stride),
               "m"(*static_cast<const uint8_t (*)[]>(p)));
}
template <int T>
ZP_INLINE void tile_load_kept(const void* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(p), "r"(stride),
               "m"(*static_cast<const uint8_t (*)[]>(p)));
}
template <int T>
ZP_INLINE void tile_store(void* p) {
  asm volatile("tilestored %%tmm%c1, (%2,%3,1)"
               : "=m"(*static_cast<uint8_t (*)[kTile]>(p))
               : "i"(T), "r"(p), "r"(int64_t{64}));
}
template <int C, int A, int B>
ZP_INLINE void tile_dot() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace zp
