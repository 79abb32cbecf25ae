// The instruction set levels of an x86-64 processor.
#include <cpuid.h>

#include "core/internal.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace zp {
namespace {

// True if the CPU has AMX-TILE and AMX-INT8 and Linux grants this process the tile registers.
bool amx_available() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24 & 1) != 0, int8 = (d >> 25 & 1) != 0;
  return tiles && int8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// True if the CPU has the 256-bit forms of VPDPBUSD and VPDPWSSD (CPUID leaf 7, subleaf 1, bit 4 of EAX).
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

}  // namespace

uint32_t detect_levels() {
  uint32_t levels = 1u << ZP_SCALAR;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    levels |= 1u << ZP_AVX2 | (has_avx_vnni() ? 1u << ZP_AVXVNNI : 0);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni"))
    levels |= 1u << ZP_AVX512;
  if ((levels >> ZP_AVX512 & 1) != 0 && amx_available()) levels |= 1u << ZP_AMX;
  return levels;
}

}  // namespace zp
