// Conversions between float32 and float16 or bfloat16 in portable arithmetic, without the CPU's conversion
// instructions.
//
// Files with different instruction set flags include this header, so every function has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

namespace zp {
namespace {

// Multiplying by 2^112 moves the exponent's bias from 15 to 127, and makes float16 subnormals normal.
[[maybe_unused]] float half_to_float(uint16_t half) {
  uint32_t bits = (half & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  value *= 0x1p112f;
  std::memcpy(&bits, &value, 4);
  if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= (half & 0x8000u) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to the nearest float16, ties to even; values beyond the range become infinite.
[[maybe_unused]] uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (bits < 0x38800000u) {  // a float16 subnormal: adding 0.5 rounds, and leaves its bits in the last places
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | (bits - 0x38000000u) >> 13);
}

[[maybe_unused]] float bfloat16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace
}  // namespace zp
