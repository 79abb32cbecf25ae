// The instruction set levels of an Apple processor, on macOS. NEON belongs to every such processor.
#include <sys/sysctl.h>

#include "core/internal.h"

namespace zp {
namespace {

// True if the system says that the processor has a feature; false if it does not know the name.
bool has(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

uint32_t detect_levels() {
  uint32_t levels = 1u << ZP_SCALAR | 1u << ZP_NEON;
  if (has("hw.optional.arm.FEAT_DotProd")) levels |= 1u << ZP_DOTPROD;
  if ((levels >> ZP_DOTPROD & 1) != 0 && has("hw.optional.arm.FEAT_I8MM")) levels |= 1u << ZP_I8MM;
  return levels;
}

}  // namespace zp
