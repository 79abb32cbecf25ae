// Tests that all levels give the same bits. Products with quantized input, of many formats and shapes, are computed at
// every level and compared with the first level's. test_native.cpp tests that the results are right.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "expect.h"
#include "levels.h"

namespace {

using Random = std::mt19937;
using Floats = std::vector<float>;

int64_t any(Random& random, std::initializer_list<int64_t> values) {
  return values.begin()[random() % values.size()];
}

int64_t between(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

// How large codes and inputs are: of any size, or as large as they can be, so that sums become as large as they can.
enum class Size { kAny, kMost };

zp_weight* pack(const zp_format& format, Size size, Random& random) {
  const int high = (1 << (format.bits - 1)) - 1;
  const int low = format.bits == 8 && format.asymmetric == 0 ? -127 : -high - 1;
  const int64_t group = format.group_size > 0 ? format.group_size : format.columns;
  const int64_t scales = format.per_tensor != 0 ? 1 : format.rows * ((format.columns + group - 1) / group);
  std::vector<int8_t> codes(static_cast<size_t>(format.rows * format.columns)), zero(static_cast<size_t>(scales));
  const int64_t ends = between(random, 0, 2);  // all codes the least, all the largest, or both
  const auto code = [&] {
    if (size == Size::kAny) return static_cast<int8_t>(between(random, low, high));
    return static_cast<int8_t>(ends == 0 || (ends == 2 && random() % 2 == 0) ? low : high);
  };
  for (auto& v : codes) v = code();
  for (auto& v : zero) v = code();
  Floats scale(static_cast<size_t>(scales));
  for (auto& v : scale) v = std::ldexp(static_cast<float>(between(random, 128, 255)), -10);
  if (format.scale_type == ZP_SCALE_NESTED) {
    const int most = format.bits < 5 ? 15 : 7;
    for (auto& v : scale) {
      const auto multiple = static_cast<float>(size == Size::kAny ? between(random, 1, most) : most);
      v = 0.0625f * (random() % 2 == 0 ? multiple : -multiple);
    }
  }
  zp_weight* weight = nullptr;
  if (zp_pack(&format, codes.data(), scale.data(), format.asymmetric != 0 ? zero.data() : nullptr, &weight) != ZP_OK)
    std::printf("not packed: %s\n", zp_last_error());
  return weight;
}

Floats input(int64_t count, Size size, Random& random) {
  std::normal_distribution<float> normal;
  const int64_t ends = between(random, 0, 2);
  Floats x(static_cast<size_t>(count));
  for (auto& v : x)
    v = size == Size::kAny ? normal(random) : ends == 0 || (ends == 2 && random() % 2 == 0) ? -1.0f : 1.0f;
  return x;
}

// The output of a product. AMX writes large ones past the caches, if rows begin at multiples of 64 bytes. No level may
// write to the floats between rows, of which there are some unless rows are so aligned.
struct Output {
  Output(int64_t rows, int64_t columns) : stride(columns % 16 == 0 ? columns : columns + 3), size(rows * stride) {
    const int64_t bytes = (size * 4 + 63) / 64 * 64;
    values = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
    std::fill_n(values, size, -7.0f);
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  ~Output() { std::free(values); }

  int64_t stride, size;
  float* values;
};

// Multiply at each level, and compare the whole output with that of the first level.
void compare(const std::vector<int>& levels, const zp_format& f, int64_t rows, Size size, int threads,
             Random& random) {
  zp_weight* weight = pack(f, size, random);
  const Floats x = input(rows * f.columns, size, random), some = input(f.rows, Size::kAny, random);
  const float* bias = random() % 2 == 0 ? some.data() : nullptr;
  const Output first(rows, f.rows);
  for (const int level : levels) {
    const Output other(rows, f.rows);
    const Output& y = level == levels.front() ? first : other;
    const bool done = zp_isa_select(level) == ZP_OK && zp_linear(weight, x.data(), rows, f.columns, bias, y.values,
                                                                 y.stride, threads) == ZP_OK;
    const bool same = done && std::memcmp(y.values, first.values, static_cast<size_t>(y.size) * 4) == 0;
    (same ? passed : failed) += 1;
    if (same) continue;
    std::printf("FAILED: level %d is not level %d for [%ld, %ld], %ld rows, %d bits, group %d, per tensor %d, "
                "asymmetric %d, activation %d of %d bits, scale type %d, size %d%s%s\n",
                level, levels.front(), static_cast<long>(f.rows), static_cast<long>(f.columns),
                static_cast<long>(rows), f.bits, f.group_size, f.per_tensor, f.asymmetric, f.activation,
                f.activation_bits, f.scale_type, static_cast<int>(size), done ? "" : ": ",
                done ? "" : zp_last_error());
  }
  zp_free(weight);
}

// Return a format that zp_pack accepts.
zp_format any_format(int64_t rows, int64_t columns, Random& random) {
  for (;;) {
    zp_format f = {rows, columns, ZP_INTEGER, 0, 0, 0, 0, ZP_ACTIVATION_TOKEN, 16, 0};
    f.bits = static_cast<int32_t>(any(random, {2, 3, 4, 4, 5, 5, 6, 8, 8}));
    f.group_size = static_cast<int32_t>(any(random, {0, 8, 24, 32, 32, 64, 64, 128, 600}));
    f.per_tensor = f.group_size == 0 && random() % 4 == 0;
    f.asymmetric = random() % 2 == 0;
    f.scale_type = static_cast<int32_t>(any(random, {ZP_SCALE_FLOAT32, ZP_SCALE_BFLOAT16, ZP_SCALE_NESTED}));
    if (random() % 2 == 0) {
      f.activation = static_cast<int32_t>(any(random, {ZP_ACTIVATION_TOKEN, 8, 24, 32, 64, 128}));
      f.activation_bits = 8;
    }
    if (zp_check(&f) == ZP_OK) return f;
  }
}

void test_any(const std::vector<int>& levels, Random& random) {
  for (int i = 0; i < 700; ++i) {
    const int64_t columns = i % 4 == 0 ? between(random, 301, 2400) : between(random, 1, 300);
    const zp_format f = any_format(between(random, 1, 100), columns, random);
    const int64_t rows = between(random, 1, i % 2 == 0 ? 8 : 40);
    compare(levels, f, rows, i % 3 == 0 ? Size::kMost : Size::kAny, 1 + i % 2, random);
  }
}

// Scales by segment, of the weight, of the input or of both. AMX takes several segments at a time: as many as divide
// their number.
void test_segments(const std::vector<int>& levels, Random& random) {
  for (const int size : {32, 64, 128})
    for (const int segments : {1, 2, 3, 4, 5, 6, 8})
      for (const int vary : {1, 2, 3})
        for (const int bits : {4, 8})
          for (const int asymmetric : {0, 1}) {
            const int64_t columns = size * segments - (random() % 2 == 0 ? 0 : 5);
            const int group = vary == 1 ? 0 : size, activation = vary == 2 ? ZP_ACTIVATION_TOKEN : size;
            compare(levels, {50, columns, ZP_INTEGER, bits, group, 0, asymmetric, activation, 8, ZP_SCALE_FLOAT32},
                    between(random, 30, 40), segments % 3 == 0 ? Size::kMost : Size::kAny, 1, random);
          }
}

// Rows that kernels sum in several pieces, and numbers of rows around those at which another kernel multiplies.
void test_long_rows(const std::vector<int>& levels, Random& random) {
  constexpr int kFloat = ZP_SCALE_FLOAT32, kNested = ZP_SCALE_NESTED;
  const zp_format formats[] = {
      {0, 0, ZP_INTEGER, 8, 0, 0, 0, 0, 16, kFloat},    {0, 0, ZP_INTEGER, 8, 0, 0, 1, 0, 16, kFloat},
      {0, 0, ZP_INTEGER, 8, 1024, 0, 1, 0, 16, kFloat}, {0, 0, ZP_INTEGER, 4, 0, 0, 1, 0, 16, kFloat},
      {0, 0, ZP_INTEGER, 4, 600, 0, 1, 0, 16, kFloat},  {0, 0, ZP_INTEGER, 4, 32, 0, 0, 0, 16, kNested},
      {0, 0, ZP_INTEGER, 5, 32, 0, 0, 0, 16, kNested},  {0, 0, ZP_INTEGER, 5, 64, 0, 0, 0, 16, kFloat},
      {0, 0, ZP_INTEGER, 8, 0, 0, 1, 0, 8, kFloat},     {0, 0, ZP_INTEGER, 4, 64, 0, 0, 0, 8, kNested},
      {0, 0, ZP_INTEGER, 5, 32, 0, 0, 0, 8, kNested},   {0, 0, ZP_INTEGER, 4, 32, 0, 1, 32, 8, kFloat}};
  for (zp_format f : formats)
    for (const int64_t columns : {520, 1096, 2300})
      for (const int64_t rows : {1, 2, 3, 4, 8, 9, 16, 17, 33}) {
        f.rows = rows == 1 ? 100 : 40, f.columns = columns;
        compare(levels, f, rows, rows % 3 == 0 ? Size::kMost : Size::kAny, 2, random);
      }
}

// Outputs of more than 16 MiB, by one thread. Where the float scales vary (the last), another AMX kernel writes them.
void test_large_outputs(const std::vector<int>& levels, Random& random) {
  compare(levels, {16400, 100, ZP_INTEGER, 8, 0, 0, 1, 0, 8, ZP_SCALE_FLOAT32}, 260, Size::kAny, 1, random);
  compare(levels, {16400, 64, ZP_INTEGER, 4, 32, 0, 0, 0, 16, ZP_SCALE_NESTED}, 260, Size::kAny, 1, random);
  compare(levels, {16400, 32, ZP_INTEGER, 4, 32, 0, 0, 32, 8, ZP_SCALE_FLOAT32}, 260, Size::kAny, 1, random);
}

}  // namespace

int main(int count, char** arguments) {
  Random random(3);
  const std::vector<int> levels = levels_of(count, arguments);
  test_any(levels, random);
  test_segments(levels, random);
  test_long_rows(levels, random);
  if (levels.back() <= ZP_AMX) test_large_outputs(levels, random);  // no level of ARM writes them otherwise
  return report();
}
