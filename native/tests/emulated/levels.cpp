// detect_levels of zeropoint_emulated, whose AVX-VNNI, AVX-512 and AMX kernels run on any x86 processor that has AVX2.
#include "core/internal.h"

namespace zp {

uint32_t detect_levels() {
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return 1u << ZP_SCALAR | (avx2 ? 1u << ZP_AVX2 | 1u << ZP_AVXVNNI : 0) | 1u << ZP_AVX512 | 1u << ZP_AMX;
}

}  // namespace zp
