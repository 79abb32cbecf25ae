// Tests of zp_sample and zp_score against plain loops: random options on rows of odd sizes, at every level. The number
// of threads and the other rows of a call must not change a token.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "expect.h"
#include "levels.h"

namespace {

using Floats = std::vector<float>;
using Random = std::mt19937;

// -- plain loops -----------------------------------------------------------------------------------------

// e^x for x <= 0, one float operation after the other.
float exponential(float x) {
  x = std::max(x, -88.0f);
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x + n * -0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  return n < -126 ? 0 : std::ldexp(p, static_cast<int>(n));
}

uint64_t random_bits(uint64_t seed, uint64_t number) {
  uint32_t c[4] = {static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), 0, 0};
  for (uint32_t round = 0; round < 10; ++round) {
    const uint64_t a = c[0] * uint64_t{0xD2511F53}, b = c[2] * uint64_t{0xCD9E8D57};
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ (static_cast<uint32_t>(seed) + round * 0x9E3779B9);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ (static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85);
    c[1] = static_cast<uint32_t>(b), c[3] = static_cast<uint32_t>(a);
  }
  return c[0] | uint64_t{c[1]} << 32;
}

int32_t naive(Floats x, const zp_sampling& s) {
  const auto finite = [&] {
    const bool has_nan = std::any_of(x.begin(), x.end(), [](float v) { return std::isnan(v); });
    return !has_nan && std::isfinite(*std::max_element(x.begin(), x.end()));
  };
  if (!finite()) return -1;
  for (size_t i = 0; i < x.size() && s.mask != nullptr; ++i)
    if ((static_cast<uint32_t>(s.mask[i / 32]) >> i % 32 & 1) == 0) x[i] = -INFINITY;
  if (!finite()) return -1;
  const auto best = std::max_element(x.begin(), x.end());
  if (s.temperature == 0) return static_cast<int32_t>(best - x.begin());
  Floats scaled(x.size());
  for (size_t i = 0; i < x.size(); ++i) scaled[i] = (x[i] - *best) / s.temperature;
  Floats sorted = scaled;
  std::sort(sorted.rbegin(), sorted.rend());
  const auto k = static_cast<size_t>(s.top_k);
  std::vector<int64_t> units(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    if (k == 0 || k >= x.size() || scaled[i] >= sorted[k - 1])
      units[i] = std::llrint(std::ldexp(static_cast<double>(exponential(scaled[i])), 40));
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return units[a] > units[b]; });
  const auto sum = [&] { return std::accumulate(units.begin(), units.end(), int64_t{0}); };
  if (s.top_p < 1) {
    auto left = static_cast<int64_t>(std::ceil(s.top_p * static_cast<double>(sum())));
    for (const size_t i : order) {
      if (left <= 0) units[i] = 0;
      left -= units[i];
    }
  }
  for (auto& u : units)
    if (static_cast<double>(u) < s.min_p * 0x1p40) u = 0;
  auto left = static_cast<int64_t>(static_cast<unsigned __int128>(random_bits(s.seed, s.number)) *
                                       static_cast<uint64_t>(sum()) >> 64);
  size_t i = 0;
  while (left >= units[i]) left -= units[i++];
  return static_cast<int32_t>(i);
}

// -- tests -----------------------------------------------------------------------------------------------

Floats random_logits(size_t count, Random& random) {
  std::normal_distribution<float> normal(0, std::uniform_real_distribution<float>(0.01f, 8)(random));
  Floats x(count);
  const int kind = static_cast<int>(random() % 4);  // ordinary, many ties, some masked, many masked
  for (auto& v : x) {
    v = normal(random);
    if (kind == 1) v = std::nearbyint(v);
    if ((kind == 2 && random() % 8 == 0) || (kind == 3 && random() % 8 != 0)) v = -INFINITY;
  }
  if (random() % 10 == 0) x[random() % count] = random() % 2 == 0 ? NAN : INFINITY;
  return x;
}

zp_sampling random_sampling(size_t count, const std::vector<int32_t>& mask, Random& random) {
  const auto any = [&](std::initializer_list<double> values) { return values.begin()[random() % values.size()]; };
  zp_sampling s{};
  s.temperature = static_cast<float>(any({0, 0.2, 0.8, 1, 3, 1e-38, 1e30}));
  s.top_p = any({1, 1, 0.95, 0.5, 0.01, 1 - 1e-16, 1e-300});
  s.min_p = any({0, 0, 0.1, 0.001, 1, 1e-300});
  const auto tokens = static_cast<int64_t>(count);
  s.top_k = static_cast<int64_t>(any({0, 0, 1, 2, 40, 400, 0.5e18}));
  if (s.top_k == 400) s.top_k = std::max<int64_t>(1, tokens - static_cast<int64_t>(random() % 20));
  s.seed = random() | uint64_t{random()} << 32, s.number = random() % 100;
  s.mask = random() % 3 == 0 ? mask.data() : nullptr;
  return s;
}

void test_tokens(Random& random) {
  for (const size_t count : {1, 2, 15, 16, 17, 300, 511, 512, 513, 5000})
    for (int turn = 0; turn < 6; ++turn) {
      constexpr size_t kRows = 8;
      Floats all;
      std::vector<int32_t> mask((count + 31) / 32), expected(kRows), found(kRows), alone(kRows);
      for (auto& word : mask) word = static_cast<int32_t>(random() % 3 == 0 ? 0 : random());
      std::vector<zp_sampling> samplings;
      for (size_t row = 0; row < kRows; ++row) {
        const Floats x = random_logits(count, random);
        all.insert(all.end(), x.begin(), x.end());
        samplings.push_back(random_sampling(count, mask, random));
        expected[row] = naive(x, samplings.back());
      }
      const auto size = static_cast<int64_t>(count);
      expect(zp_sample(all.data(), size, kRows, size, samplings.data(), found.data(), 2) == ZP_OK, "sample");
      expect(found == expected, "tokens");
      for (size_t row = 0; row < kRows; ++row)
        expect(zp_sample(all.data() + row * count, size, 1, size, &samplings[row], &alone[row], 1) == ZP_OK, "a row");
      expect(alone == expected, "each row alone");
    }
}

void test_scores(Random& random) {
  for (const size_t count : {1, 16, 17, 700, 5000}) {
    const Floats x = random_logits(count, random);
    const auto token = static_cast<int32_t>(random() % count);
    const auto top = static_cast<int32_t>(std::min<size_t>(count, 20));
    float score = 0;
    Floats scores(20);
    std::vector<int32_t> ids(20);
    const auto size = static_cast<int64_t>(count);
    expect(zp_score(x.data(), size, 1, size, &token, top, &score, ids.data(), scores.data(), 1) == ZP_OK, "score");
    zp_sampling greedy{};
    greedy.top_p = 1;
    if (naive(x, greedy) < 0) {
      expect(std::isnan(score) && std::isnan(scores[0]), "no scores");
      continue;
    }
    const double most = static_cast<double>(*std::max_element(x.begin(), x.end()));
    double sum = 0;
    for (const float v : x) sum += std::exp(static_cast<double>(v) - most);
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    const auto at = [&](int32_t i) { return x[static_cast<size_t>(i)]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return at(a) > at(b); });
    const auto close = [&](float got, int32_t id) {
      const double expected = static_cast<double>(at(id)) - most - std::log(sum), actual = static_cast<double>(got);
      return actual == expected || std::fabs(actual - expected) < 1e-6 * (1 + std::fabs(expected));
    };
    bool good = close(score, token) && std::equal(order.begin(), order.begin() + top, ids.begin());
    for (size_t i = 0; i < static_cast<size_t>(top); ++i) good &= close(scores[i], ids[i]);
    expect(good, "scores");
  }
}

void test_refusals() {
  const float x[4] = {};
  zp_sampling s{};
  s.top_p = 1;
  int32_t token = 0;
  const auto refused = [](zp_status status) { expect(status == ZP_INVALID, "refused"); };
  refused(zp_sample(x, 4, -1, 4, &s, &token, 1));
  refused(zp_sample(x, 3, 1, 4, &s, &token, 1));
  refused(zp_sample(x, 4, 1, 0, &s, &token, 1));
  refused(zp_sample(x, int64_t{1} << 23, 1, int64_t{1} << 23, &s, &token, 1));
  refused(zp_sample(x, int64_t{1} << 39, 4, 4, &s, &token, 1));
  refused(zp_sample(x, 4, 1, 4, &s, &token, 0));
  refused(zp_sample(nullptr, 4, 1, 4, &s, &token, 1));
  refused(zp_sample(x, 4, 1, 4, nullptr, &token, 1));
  refused(zp_sample(x, 4, 1, 4, &s, nullptr, 1));
  for (const float temperature : {-1.0f, NAN, INFINITY}) {
    zp_sampling bad = s;
    bad.temperature = temperature;
    refused(zp_sample(x, 4, 1, 4, &bad, &token, 1));
  }
  for (const double value : {-0.1, 1.1, static_cast<double>(NAN)}) {
    zp_sampling bad = s;
    bad.top_p = value;
    refused(zp_sample(x, 4, 1, 4, &bad, &token, 1));
    bad.top_p = 1, bad.min_p = value;
    refused(zp_sample(x, 4, 1, 4, &bad, &token, 1));
  }
  s.top_k = -1;
  refused(zp_sample(x, 4, 1, 4, &s, &token, 1));
  expect(zp_sample(nullptr, 4, 0, 4, nullptr, nullptr, 1) == ZP_OK, "no rows");
  float score = 0, best[4] = {};
  int32_t ids[4] = {};
  token = 4;
  refused(zp_score(x, 4, 1, 4, &token, 0, &score, nullptr, nullptr, 1));
  token = 3;
  expect(zp_score(x, 4, 1, 4, &token, 0, &score, nullptr, nullptr, 1) == ZP_OK, "no list");
  refused(zp_score(x, 4, 1, 4, &token, 5, &score, ids, best, 1));
  refused(zp_score(x, 4, 1, 4, &token, -1, &score, ids, best, 1));
  refused(zp_score(x, 4, 1, 4, &token, 2, &score, nullptr, best, 1));
  refused(zp_score(x, 4, 1, 4, nullptr, 0, &score, nullptr, nullptr, 1));
}

}  // namespace

int main(int count, char** arguments) {
  Random random(7);
  test_refusals();
  for (const int level : levels_of(count, arguments)) {
    expect(zp_isa_select(level) == ZP_OK, "select");
    test_tokens(random);
    test_scores(random);
  }
  return report();
}
