// The instruction set levels of an ARM64 processor, on Linux and Android. NEON belongs to every such processor.
#include <sys/auxv.h>

#include "core/internal.h"

namespace zp {

uint32_t detect_levels() {
  constexpr unsigned long kDotprod = 1ul << 20;  // HWCAP_ASIMDDP of AT_HWCAP
  constexpr unsigned long kI8mm = 1ul << 13;     // HWCAP2_I8MM of AT_HWCAP2
  uint32_t levels = 1u << ZP_SCALAR | 1u << ZP_NEON;
  if ((getauxval(AT_HWCAP) & kDotprod) != 0) levels |= 1u << ZP_DOTPROD;
  if ((levels >> ZP_DOTPROD & 1) != 0 && (getauxval(AT_HWCAP2) & kI8mm) != 0) levels |= 1u << ZP_I8MM;
  return levels;
}

}  // namespace zp
