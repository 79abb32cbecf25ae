// The sampler's kernels for one instruction set level. CMake compiles this file once per level, like kernel.cpp.
// Every level gives the same bits, and so does numpy in src/zeropoint/kernels/sampling.py.
#include "kernels/sampler_kernels.h"
#include "kernels/levels.h"

#include ZP_VEC

#include "partial.h"

namespace zp::ZP_LEVEL {
namespace {

bool largest(const float* x, int64_t count, float* most, int64_t* first) {
  V::Int bits = V::set_int(0);
  int64_t block = 0;
  *most = -__builtin_inff();
  for (int64_t begin = 0; begin < count; begin += kWeighBlock) {
    const int64_t end = smaller(begin + kWeighBlock, count);
    V::Float lanes = V::set_float(x[begin]);
    for (int64_t i = begin; i < end; i += kLanes) {
      const V::Float values = load(x + i, end - i, x[begin]);
      lanes = V::max(lanes, values);
      bits = V::max(bits, V::magnitude_bits(values));
    }
    const float best = V::max_lane(lanes);
    if (best > *most) *most = best, block = begin;
  }
  constexpr int32_t kInfinity = 0x7f800000;  // the bits of infinity; as integers, those of NaN are greater
  if (V::max_lane(bits) > kInfinity || !(*most - *most == 0.0f)) return false;
  *first = block;
  while (x[*first] != *most) ++*first;
  return true;
}

// Return e^x for x <= 0 to two ulp. This is `exponential` of vector_math.h with separate multiplications and additions:
// numpy, which must get the same bits, has no fused ones.
V::Float plain_exponential(V::Float x) {
  x = V::max(V::set_float(-88.0f), x);
  const V::Int n = V::round(V::mul(x, V::set_float(1.44269504f)));
  const V::Float whole = V::to_float(n);
  V::Float r = V::add(x, V::mul(whole, V::set_float(-0.693359375f)));
  r = V::add(r, V::mul(whole, V::set_float(2.12194440e-4f)));
  V::Float p = V::set_float(1.0f / 5040);
  constexpr float kTaylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float c : kTaylor) p = V::add(V::mul(p, r), V::set_float(c));
  return V::mul(p, V::power_of_two(n));
}

void weigh(const float* x, int64_t count, float most, float temperature, float least, float* weights,
           int64_t* sums) {
  // Units are counted in two halves that fit 32 bits each. `high` counts `whole`, which is weight * 2^20 rounded; `low`
  // counts (weight * 2^20 - whole) * 2^20 rounded. Both products are exact, so the sum is weight * 2^40 rounded.
  constexpr int kHalf = kUnitBits / 2;
  const V::Float top = V::set_float(most), divisor = V::set_float(temperature), limit = V::set_float(least),
                 zero = V::set_float(0.0f), scale = V::set_float(1 << kHalf);
  for (int64_t begin = 0; begin < count; begin += kWeighBlock) {
    const int64_t end = smaller(begin + kWeighBlock, count);
    V::Int high = V::set_int(0), low = high;
    for (int64_t i = begin; i < end; i += kLanes) {
      const V::Float s = V::div(V::sub(load(x + i, end - i, -__builtin_inff()), top), divisor);
      const V::Float weight = V::if_greater(limit, s, zero, plain_exponential(s));
      store(weights + i, end - i, weight);
      const V::Float scaled = V::mul(weight, scale);
      const V::Int whole = V::round(scaled);
      high = V::add(high, whole);
      low = V::add(low, V::round(V::mul(V::sub(scaled, V::to_float(whole)), scale)));
    }
    sums[begin / kWeighBlock] = int64_t{V::sum_lanes(high)} * (1 << kHalf) + V::sum_lanes(low);
  }
}

void maxima(const float* x, int64_t count, float* maxima) {
  for (int64_t i = 0; i < count; i += kLanes) maxima[i / kLanes] = V::max_lane(load(x + i, count - i, x[i]));
}

int64_t find(const float* x, int64_t count, float least, int32_t* indices) {
  const V::Float limit = V::set_float(least);
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    uint32_t bits = ~V::greater_bits(limit, load(x + i, count - i)) & ((1u << smaller(kLanes, count - i)) - 1);
    for (; bits != 0; bits &= bits - 1) indices[found++] = static_cast<int32_t>(i + __builtin_ctz(bits));
  }
  return found;
}

constexpr SamplerKernels kSamplerTable = {largest, weigh, maxima, find};

}  // namespace

const SamplerKernels* sampler_kernels() {
  return &kSamplerTable;
}

}  // namespace zp::ZP_LEVEL
