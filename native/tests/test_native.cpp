// Tests of the kernels without Python, also run under sanitizers: every level against plain loops, and the pool under
// load.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "expect.h"
#include "levels.h"

namespace {

struct Case {
  zp_format format;
  std::vector<int8_t> codes, zero_point;
  std::vector<float> scale;

  int64_t group() const { return format.group_size > 0 ? format.group_size : format.columns; }
  int64_t groups() const { return (format.columns + group() - 1) / group(); }
  float weight(int64_t n, int64_t k) const {
    const int64_t at = format.per_tensor != 0 ? 0 : n * groups() + k / group();
    const int zero = format.asymmetric != 0 ? zero_point[static_cast<size_t>(at)] : 0;
    return static_cast<float>(codes[static_cast<size_t>(n * format.columns + k)] - zero) *
           scale[static_cast<size_t>(at)];
  }
};

Case make(const zp_format& format, std::mt19937& random) {
  Case c{format, {}, {}, {}};
  const int high = (1 << (format.bits - 1)) - 1;
  const int low = format.bits == 8 && format.asymmetric == 0 ? -127 : -high - 1;
  std::uniform_int_distribution<int> code(low, high), power(-4, 0);
  c.codes.resize(static_cast<size_t>(format.rows * format.columns));
  for (auto& v : c.codes) v = static_cast<int8_t>(code(random));
  const int64_t scales = format.per_tensor != 0 ? 1 : format.rows * c.groups();
  c.scale.resize(static_cast<size_t>(scales));
  for (auto& v : c.scale) v = std::ldexp(1.0f, power(random));
  if (format.scale_type == ZP_SCALE_NESTED) {
    std::uniform_int_distribution<int> multiple(1, format.bits < 5 ? 15 : 7);
    for (auto& v : c.scale) v = 0.0625f * static_cast<float>(multiple(random) * (random() % 2 == 0 ? 1 : -1));
  }
  if (format.asymmetric != 0) {
    c.zero_point.resize(static_cast<size_t>(scales));
    for (auto& v : c.zero_point) v = static_cast<int8_t>(code(random));
  }
  return c;
}

// Return the input that the kernels multiply: quantized and dequantized, or unchanged if the format says so.
std::vector<double> quantized(const Case& c, const std::vector<float>& x, int64_t rows) {
  const int64_t k = c.format.columns, size = c.format.activation > 0 ? c.format.activation : k;
  std::vector<double> out(x.begin(), x.end());
  if (c.format.activation == ZP_ACTIVATION_FLOAT) return out;
  const float most = c.format.activation_bits == 16 ? 127 * 128 + 63 : 127;
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t start = 0; start < k; start += size) {
      const int64_t stop = std::min(start + size, k);
      float absmax = 0;
      for (int64_t i = start; i < stop; ++i)
        absmax = std::max(absmax, std::fabs(x[static_cast<size_t>(m * k + i)]));
      for (int64_t i = start; i < stop; ++i) {
        const auto at = static_cast<size_t>(m * k + i);
        out[at] =
            absmax == 0 ? 0 : std::nearbyint(x[at] * (most / absmax)) * static_cast<double>(absmax / most);
      }
    }
  return out;
}

bool agrees(const Case& c, int64_t rows, int threads, std::mt19937& random) {
  const int64_t n = c.format.rows, k = c.format.columns;
  std::normal_distribution<float> normal;
  // Exactly sized buffers, so that AddressSanitizer sees any read or write past them.
  std::vector<float> x(static_cast<size_t>(rows * k)), bias(static_cast<size_t>(n)),
      y(static_cast<size_t>(rows * n));
  for (auto& v : x) v = normal(random);
  for (auto& v : bias) v = normal(random);
  zp_weight* weight = nullptr;
  if (zp_pack(&c.format, c.codes.data(), c.scale.data(), c.zero_point.empty() ? nullptr : c.zero_point.data(),
              &weight) != ZP_OK)
    return false;
  bool good = zp_linear(weight, x.data(), rows, k, bias.data(), y.data(), n, threads) == ZP_OK;
  const std::vector<double> input = quantized(c, x, rows);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 1;
      for (int64_t i = 0; i < k; ++i) {
        const double product = input[static_cast<size_t>(m * k + i)] * c.weight(j, i);
        sum += product;
        size += std::fabs(product);
      }
      sum += bias[static_cast<size_t>(j)];
      good = good && std::fabs(sum - y[static_cast<size_t>(m * n + j)]) <= 2e-6 * size;
    }
  std::vector<float> row(static_cast<size_t>(k));
  const int64_t last = n - 1;
  good = good && zp_rows(weight, &last, 1, row.data(), k) == ZP_OK;
  for (int64_t i = 0; i < k; ++i) good = good && row[static_cast<size_t>(i)] == c.weight(last, i);
  zp_free(weight);
  return good;
}

void test_shapes(int level, std::mt19937& random) {
  struct Format {
    int bits, group, tensor, asymmetric, activation, activation_bits, scale_type;
  };
  constexpr int kHalf = ZP_SCALE_BFLOAT16, kNested = ZP_SCALE_NESTED;
  const Format formats[] = {
      {8, 0, 0, 0, 64, 8, kHalf},    {8, 0, 0, 0, 0, 8, kHalf},     {8, 0, 1, 1, 0, 8, kHalf},
      {8, 32, 0, 1, 32, 8, kHalf},   {8, 40, 0, 1, 8, 8, kHalf},    {4, 32, 0, 1, 32, 8, kHalf},
      {4, 0, 0, 0, 32, 8, kHalf},    {4, 32, 0, 0, 0, 8, kHalf},    {4, 128, 0, 1, 64, 8, kHalf},
      {4, 24, 0, 1, -1, 0, kHalf},   {5, 64, 0, 0, 128, 8, kHalf},  {8, 0, 0, 0, -1, 0, kHalf},
      {8, 0, 0, 0, 0, 16, kHalf},    {8, 0, 0, 1, 0, 16, kHalf},    {4, 64, 0, 1, 0, 16, kHalf},
      {4, 32, 0, 0, 0, 16, kNested}, {4, 24, 0, 0, 0, 16, kNested}, {3, 64, 0, 0, 0, 8, kNested},
      {4, 32, 0, 0, 32, 8, kNested}, {4, 32, 0, 0, -1, 0, kNested}, {5, 32, 0, 0, 0, 16, kHalf},
      {5, 32, 0, 1, 0, 16, kHalf},   {5, 0, 0, 0, 0, 16, kHalf},    {5, 0, 0, 1, 0, 8, kHalf},
      {5, 24, 0, 1, -1, 0, kHalf},   {5, 32, 0, 0, 0, 16, kNested}, {5, 24, 0, 0, 0, 8, kNested},
      {5, 32, 0, 0, 32, 8, kNested}, {5, 64, 0, 0, -1, 0, kNested}};
  const int64_t shapes[][2] = {{1, 1}, {16, 64}, {17, 31}, {33, 200}, {50, 129}, {64, 320}};
  for (const auto& f : formats)
    for (const auto& shape : shapes)
      for (const int64_t rows : {1, 2, 7, 13, 37}) {
        const zp_format format = {shape[0],          shape[1],    ZP_INTEGER,   f.bits,
                                  f.group,           f.tensor,    f.asymmetric, f.activation,
                                  f.activation_bits, f.scale_type};
        char what[160];
        std::snprintf(what, sizeof what, "level %d, %ld x %ld, %ld rows, %d bits, groups %d and %d", level,
                      static_cast<long>(shape[0]), static_cast<long>(shape[1]), static_cast<long>(rows),
                      f.bits, f.group, f.activation);
        expect(agrees(make(format, random), rows, 1 + static_cast<int>(rows % 3), random), what);
      }
}

void test_errors() {
  zp_format format = {16, 64, ZP_INTEGER, 8, 24, 0, 0, 32, 8, ZP_SCALE_BFLOAT16};
  expect(zp_check(&format) == ZP_UNSUPPORTED && std::strstr(zp_last_error(), "nest") != nullptr,
         "groups that do not nest");
  format.bits = 9;
  expect(zp_check(&format) == ZP_UNSUPPORTED, "9 bits");
  expect(zp_check(nullptr) == ZP_INVALID, "null");
  expect(zp_isa_select(99) == ZP_INVALID, "an unknown level");
  zp_weight* weight = nullptr;
  expect(zp_pack(nullptr, nullptr, nullptr, nullptr, &weight) == ZP_INVALID && weight == nullptr,
         "nothing to pack");
  zp_free(nullptr);
}

void test_threads(std::mt19937& random) {
  const Case c = make({200, 256, ZP_INTEGER, 8, 0, 0, 0, 64, 8, ZP_SCALE_BFLOAT16}, random);
  zp_weight* weight = nullptr;
  expect(zp_pack(&c.format, c.codes.data(), c.scale.data(), nullptr, &weight) == ZP_OK, "pack");
  std::vector<float> x(40 * 256, 0.5f), expected(40 * 200);
  expect(zp_linear(weight, x.data(), 40, 256, nullptr, expected.data(), 200, 1) == ZP_OK, "one thread");
  std::vector<std::thread> callers;
  bool good[4] = {true, true, true, true};
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&, t] {
      std::vector<float> y(expected.size());
      for (int i = 0; i < 50; ++i) {
        std::fill(y.begin(), y.end(), -1.0f);
        good[t] = good[t] &&
                  zp_linear(weight, x.data(), 40, 256, nullptr, y.data(), 200, 1 + (i + t) % 4) == ZP_OK &&
                  y == expected;
        if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));  // lets the pool sleep
      }
    });
  for (auto& caller : callers) caller.join();
  for (const bool g : good) expect(g, "four callers at once");
  zp_free(weight);
}

void test_divergence(std::mt19937& random) {
  constexpr int64_t rows = 7, words = 1037;
  std::normal_distribution<float> normal;
  std::vector<float> p(rows * words), q(rows * words);
  for (auto& v : p) v = 5 * normal(random);
  for (size_t i = 0; i < q.size(); ++i) q[i] = p[i] + normal(random);
  std::vector<int64_t> targets(rows, words - 1);
  std::vector<zp_divergence_row> found(rows);
  expect(zp_divergence(p.data(), words, q.data(), words, targets.data(), rows, words, found.data(), 2) ==
             ZP_OK,
         "divergence");
  for (int64_t row = 0; row < rows; ++row) {
    const float *a = p.data() + row * words, *b = q.data() + row * words;
    double p_sum = 0, q_sum = 0, kl = 0;
    for (int64_t i = 0; i < words; ++i) p_sum += std::exp(double{a[i]}), q_sum += std::exp(double{b[i]});
    for (int64_t i = 0; i < words; ++i)
      kl += std::exp(double{a[i]}) / p_sum * (double{a[i]} - std::log(p_sum) - b[i] + std::log(q_sum));
    expect(std::abs(found[row].divergence - kl) < 2e-6, "divergence of a row");
    expect(std::abs(found[row].q_loss - (std::log(q_sum) - b[words - 1])) < 1e-5, "loss of a row");
  }
  targets[3] = words;
  expect(zp_divergence(p.data(), words, q.data(), words, targets.data(), rows, words, found.data(), 2) ==
             ZP_INVALID,
         "a token out of range");
}

// Reported errors are those of the scales, and each column is rounded to the nearest level.
void test_quantizer(std::mt19937& random) {
  constexpr int64_t rows = 53, columns = 75, size = 32, count = 3;
  std::normal_distribution<float> normal;
  std::vector<float> weight(rows * columns), importance(columns, 1.0f), ratio(columns * columns);
  for (auto& v : weight) v = normal(random);
  for (auto& v : ratio) v = 0.1f * normal(random);
  std::vector<int64_t> order(columns);
  for (int64_t j = 0; j < columns; ++j) order[static_cast<size_t>(j)] = (j * 7 + 3) % columns;
  const float parts[] = {1.0f, 0.8f};
  std::vector<float> low(rows * count), high(low), scale(low), zero(low), error(low);
  std::vector<int8_t> codes(rows * columns);
  zp_groups groups{weight.data(), rows, columns, size, -8, 7};
  expect(zp_grid_search(&groups, importance.data(), parts, 2, low.data(), high.data(), scale.data(),
                        zero.data(), 2) == ZP_OK,
         "search");
  expect(zp_grid_errors(&groups, importance.data(), 1, scale.data(), zero.data(), error.data(), 2) == ZP_OK,
         "errors");
  expect(zp_round_columns(&groups, scale.data(), zero.data(), ratio.data(), order.data(), codes.data(), 2) ==
             ZP_OK,
         "columns");
  const auto step = [&](int64_t row, int64_t column) { return row * count + column / size; };
  std::vector<double> sums(rows * count);
  bool nearest = true;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> left(columns);
    for (int64_t j = columns - 1; j >= 0; --j) {
      const int64_t column = order[static_cast<size_t>(j)], at = step(row, column);
      const double x = weight[row * columns + column], s = scale[at], z = zero[at];
      const double plain = (std::clamp(std::nearbyint(x / s) + z, -8.0, 7.0) - z) * s - x;
      sums[at] += plain * plain;
      double wanted = x;
      for (int64_t i = j + 1; i < columns; ++i) wanted += ratio[j * columns + i] * left[i];
      const double code = codes[row * columns + column];
      left[j] = x - (code - z) * s;
      nearest = nearest && std::abs(std::clamp(wanted / s + z, -8.0, 7.0) - code) < 0.5 + 1e-4;
    }
  }
  expect(nearest, "each column the nearest level");
  bool same = true;
  for (size_t i = 0; i < sums.size(); ++i) same = same && std::abs(sums[i] - error[i]) < 1e-4 * (1 + sums[i]);
  expect(same, "errors of the groups");
  // With a diagonal H, one sweep rounds each weight to its nearest level, and a second sweep changes nothing.
  std::vector<float> hessian(columns * columns, 0.0f);
  for (int64_t j = 0; j < columns; ++j) hessian[static_cast<size_t>(j * columns + j)] = 2.0f;
  expect(zp_descend_columns(&groups, scale.data(), zero.data(), hessian.data(), 1, codes.data(), 2) == ZP_OK,
         "descent");
  bool plain = true;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t j = 0; j < columns; ++j) {
      const double s = scale[step(row, j)], z = zero[step(row, j)], code = codes[row * columns + j];
      plain = plain && std::abs(std::clamp(weight[row * columns + j] / s + z, -8.0, 7.0) - code) < 0.5 + 1e-4;
    }
  expect(plain, "each column its nearest level");
  const std::vector<int8_t> before = codes;
  expect(zp_descend_columns(&groups, scale.data(), zero.data(), hessian.data(), 3, codes.data(), 1) == ZP_OK &&
             codes == before,
         "a descent that has arrived");
  expect(zp_descend_columns(&groups, scale.data(), zero.data(), hessian.data(), -1, codes.data(), 2) ==
             ZP_INVALID,
         "no sweeps");
  order[5] = columns;
  expect(zp_round_columns(&groups, scale.data(), zero.data(), ratio.data(), order.data(), codes.data(), 2) ==
             ZP_INVALID,
         "a column out of range");
  groups.qmin = 7;
  expect(zp_grid_errors(&groups, importance.data(), 1, scale.data(), zero.data(), error.data(), 2) ==
             ZP_INVALID,
         "no codes");
}

}  // namespace

int main(int count, char** arguments) {
  std::mt19937 random(7);
  test_errors();
  for (const int level : levels_of(count, arguments)) {
    expect(zp_isa_select(level) == ZP_OK, "select");
    test_shapes(level, random);
    test_threads(random);
    test_divergence(random);
    test_quantizer(random);
  }
  return report();
}
