// The instruction set levels of a processor for which there are no kernels but the portable ones.
#include "core/internal.h"

namespace zp {

uint32_t detect_levels() {
  return 1u << ZP_SCALAR;
}

}  // namespace zp
