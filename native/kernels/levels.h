// The kernel tables of all instruction set levels. A library has those of its architecture's levels.
#pragma once

namespace zp {

struct Kernels;           // core/layout.h
struct DecoderKernels;    // kernels/decoder_kernels.h
struct QuantizerKernels;  // kernels/quantizer_kernels.h
struct SamplerKernels;    // kernels/sampler_kernels.h

#define ZP_DECLARE_LEVEL(level)                \
  namespace level {                            \
  const Kernels* kernels();                    \
  const DecoderKernels* decoder_kernels();     \
  const QuantizerKernels* quantizer_kernels(); \
  const SamplerKernels* sampler_kernels();     \
  }
ZP_DECLARE_LEVEL(scalar)
ZP_DECLARE_LEVEL(avx2)
ZP_DECLARE_LEVEL(avxvnni)
ZP_DECLARE_LEVEL(avx512)
ZP_DECLARE_LEVEL(neon)
ZP_DECLARE_LEVEL(dotprod)
ZP_DECLARE_LEVEL(i8mm)
#undef ZP_DECLARE_LEVEL

}  // namespace zp
