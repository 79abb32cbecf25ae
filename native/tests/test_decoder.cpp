// The decoder without Python, for sanitizers: tiny random models at every level against plain loops, and what
// must not change a result: threads, how a prompt is cut, and who else is in the batch.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "zeropoint.h"

namespace {

using Floats = std::vector<float>;

std::atomic<int> passed{0}, failed{0};  // several threads expect

void expect(bool good, const char* what) {
  (good ? passed : failed) += 1;
  if (!good) std::printf("FAILED: %s (%s)\n", what, zp_last_error());
}

// -- a random model, kept twice: as the library's decoder and as plain matrices ----------------------

struct Matrix {
  int64_t rows = 0, columns = 0;
  Floats values;
};

enum class Kind { kFloat32, kFloat16, kInt8 };

struct Model {
  zp_decoder_config config{};
  int window = 0;  // of every second layer
  std::map<std::pair<int, int>, Matrix> linear;
  std::map<std::pair<int, int>, Floats> bias, norm, norm_bias;
  Floats frequency;
  std::vector<zp_weight*> weights;
  zp_decoder* decoder = nullptr;

  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model() {
    zp_decoder_free(decoder);
    for (auto* weight : weights) zp_free(weight);
  }
};

zp_decoder_config small_config() {
  zp_decoder_config c{};
  c.layers = 2, c.hidden = 24, c.heads = 4, c.kv_heads = 2, c.head_dim = 8, c.intermediate = 40, c.vocab = 50;
  c.max_positions = 1000, c.norm = ZP_NORM_RMS, c.norm_eps = 1e-5f, c.rope = ZP_ROPE_HALVES, c.rotary_dim = 8;
  c.activation = ZP_SILU, c.gated = 1;
  c.embedding_scale = c.residual_scale = c.logit_scale = 1;
  c.attention_scale = 0.35f;
  return c;
}

Floats random_floats(int64_t count, float mean, float spread, std::mt19937& random) {
  std::normal_distribution<float> normal(mean, spread);
  Floats values(static_cast<size_t>(count));
  for (auto& v : values) v = normal(random);
  return values;
}

// Packs a random weight; `values` become what the packed ones stand for.
zp_weight* random_weight(Matrix& m, Kind kind, std::mt19937& random) {
  m.values = random_floats(m.rows * m.columns, 0, 0.3f, random);
  zp_format format{};
  format.rows = m.rows;
  format.columns = m.columns;
  zp_weight* weight = nullptr;
  if (kind == Kind::kInt8) {
    format.bits = 8;
    format.activation = ZP_ACTIVATION_TOKEN;
    format.activation_bits = 16;
    std::vector<int8_t> codes(m.values.size());
    const Floats scale(static_cast<size_t>(m.rows), 1.0f / 128);
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(m.values[i] * 128), -127.0f, 127.0f));
      m.values[i] = static_cast<float>(codes[i]) / 128;
    }
    expect(zp_pack(&format, codes.data(), scale.data(), nullptr, &weight) == ZP_OK, "pack");
    return weight;
  }
  format.kind = kind == Kind::kFloat16 ? ZP_FLOAT16 : ZP_FLOAT32;
  if (kind == Kind::kFloat32) {
    expect(zp_pack_float(&format, m.values.data(), &weight) == ZP_OK, "pack float32");
    return weight;
  }
  std::vector<uint16_t> halves(m.values.size());
  for (size_t i = 0; i < halves.size(); ++i) {  // small values with few bits, exact in half precision
    const auto steps = static_cast<int>(std::nearbyint(m.values[i] * 64));
    m.values[i] = static_cast<float>(steps) / 64;
    uint32_t bits;
    std::memcpy(&bits, &m.values[i], 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    halves[i] = static_cast<uint16_t>(bits == 0 ? 0 : sign | (bits - 0x38000000u) >> 13);
  }
  expect(zp_pack_float(&format, halves.data(), &weight) == ZP_OK, "pack float16");
  return weight;
}

void give_linear(Model& m, int layer, int slot, int64_t rows, int64_t columns, Kind kind, bool bias,
                 std::mt19937& random) {
  Matrix& matrix = m.linear[{layer, slot}];
  matrix.rows = rows;
  matrix.columns = columns;
  m.weights.push_back(random_weight(matrix, kind, random));
  if (bias) m.bias[{layer, slot}] = random_floats(rows, 0, 0.2f, random);
  expect(zp_decoder_linear(m.decoder, layer, slot, m.weights.back(),
                           bias ? m.bias[{layer, slot}].data() : nullptr) == ZP_OK,
         "linear");
}

void give_norm(Model& m, int layer, int slot, int64_t count, std::mt19937& random) {
  const bool bias = m.config.norm == ZP_NORM_LAYER;
  m.norm[{layer, slot}] = random_floats(count, 1, 0.2f, random);
  if (bias) m.norm_bias[{layer, slot}] = random_floats(count, 0, 0.2f, random);
  expect(zp_decoder_norm(m.decoder, layer, slot, m.norm[{layer, slot}].data(),
                         bias ? m.norm_bias[{layer, slot}].data() : nullptr,
                         static_cast<int32_t>(count)) == ZP_OK,
         "norm");
}

struct Options {
  Kind kind = Kind::kFloat32;
  int window = 0;
  bool bias = false, positions = false, post_norms = false, head_norms = false, mlp_norm = true;
};

std::unique_ptr<Model> make(const zp_decoder_config& c, const Options& o, std::mt19937& random) {
  auto m = std::make_unique<Model>();
  m->config = c;
  m->window = o.window;
  expect(zp_decoder_create(&c, &m->decoder) == ZP_OK, "create");
  const int64_t queries = int64_t{c.heads} * c.head_dim, keys = int64_t{c.kv_heads} * c.head_dim;
  give_linear(*m, -1, ZP_EMBEDDING, c.vocab, c.hidden, o.kind, false, random);
  give_linear(*m, -1, ZP_HEAD, c.vocab, c.hidden, o.kind, o.bias, random);
  if (o.positions) give_linear(*m, -1, ZP_POSITIONS, c.max_positions, c.hidden, o.kind, false, random);
  give_norm(*m, -1, ZP_FINAL_NORM, c.hidden, random);
  for (int i = 0; i < c.layers; ++i) {
    give_linear(*m, i, ZP_Q, queries, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_K, keys, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_V, keys, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_O, c.hidden, queries, o.kind, o.bias, random);
    if (c.gated != 0) give_linear(*m, i, ZP_GATE, c.intermediate, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_UP, c.intermediate, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_DOWN, c.hidden, c.intermediate, o.kind, o.bias, random);
    give_norm(*m, i, ZP_ATTENTION_NORM, c.hidden, random);
    if (o.mlp_norm) give_norm(*m, i, ZP_MLP_NORM, c.hidden, random);
    if (o.post_norms) give_norm(*m, i, ZP_POST_ATTENTION_NORM, c.hidden, random);
    if (o.post_norms) give_norm(*m, i, ZP_POST_MLP_NORM, c.hidden, random);
    if (o.head_norms) give_norm(*m, i, ZP_Q_NORM, c.head_dim, random);
    if (o.head_norms) give_norm(*m, i, ZP_K_NORM, keys, random);
    expect(zp_decoder_layer(m->decoder, i, i % 2 == 1 ? o.window : 0, 0) == ZP_OK, "layer");
  }
  for (int i = 0; i < c.rotary_dim / 2; ++i)
    m->frequency.push_back(std::pow(100.0f, -2.0f * i / c.rotary_dim));
  if (c.rope != ZP_ROPE_NONE)
    expect(zp_decoder_rope(m->decoder, 0, m->frequency.data(), c.rotary_dim / 2, 1) == ZP_OK, "rope");
  expect(zp_decoder_finish(m->decoder) == ZP_OK, "finish");
  return m;
}

// -- the naive reference: one sequence, everything in double --------------------------------------------

using Doubles = std::vector<double>;

class Reference {
 public:
  explicit Reference(const Model& m) : m_(m), c_(m.config) {}

  std::vector<Doubles> logits(const std::vector<int32_t>& tokens) {
    std::vector<Doubles> x;
    for (size_t t = 0; t < tokens.size(); ++t) {
      x.push_back(row({-1, ZP_EMBEDDING}, tokens[t]));
      for (auto& v : x[t]) v *= static_cast<double>(c_.embedding_scale);
      if (m_.linear.count({-1, ZP_POSITIONS}) != 0)
        x[t] = sum(x[t], row({-1, ZP_POSITIONS}, static_cast<int>(t)), 1);
    }
    for (int i = 0; i < c_.layers; ++i) layer(i, x);
    for (auto& v : x) {
      v = linear(-1, ZP_HEAD, norm(-1, ZP_FINAL_NORM, v));
      for (auto& logit : v) {
        logit *= static_cast<double>(c_.logit_scale);
        if (c_.logit_softcap > 0) logit = c_.logit_softcap * std::tanh(logit / c_.logit_softcap);
      }
    }
    return x;
  }

 private:
  Doubles row(std::pair<int, int> at, int index) const {
    const Matrix& m = m_.linear.at(at);
    return {m.values.begin() + index * m.columns, m.values.begin() + (index + 1) * m.columns};
  }
  static Doubles sum(Doubles a, const Doubles& b, double scale) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i] * scale;
    return a;
  }
  Doubles linear(int layer, int slot, const Doubles& x) const {
    const Matrix& m = m_.linear.at({layer, slot});
    Doubles y(static_cast<size_t>(m.rows));
    for (size_t n = 0; n < y.size(); ++n) {
      for (size_t k = 0; k < x.size(); ++k) y[n] += x[k] * m.values[n * x.size() + k];
      if (m_.bias.count({layer, slot}) != 0) y[n] += m_.bias.at({layer, slot})[n];
    }
    return y;
  }
  Doubles norm(int layer, int slot, Doubles x) const {
    if (m_.norm.count({layer, slot}) == 0) return x;
    const Floats& weight = m_.norm.at({layer, slot});
    const size_t size = weight.size();
    for (size_t start = 0; start < x.size(); start += size) {
      double mean = 0, square = 0;
      if (c_.norm == ZP_NORM_LAYER)
        for (size_t i = 0; i < size; ++i) mean += x[start + i] / static_cast<double>(size);
      for (size_t i = 0; i < size; ++i)
        square += std::pow(x[start + i] - mean, 2) / static_cast<double>(size);
      for (size_t i = 0; i < size; ++i) {
        x[start + i] = (x[start + i] - mean) / std::sqrt(square + c_.norm_eps) * weight[i];
        if (m_.norm_bias.count({layer, slot}) != 0) x[start + i] += m_.norm_bias.at({layer, slot})[i];
      }
    }
    return x;
  }
  void turn(Doubles& x, int position) const {
    if (c_.rope == ZP_ROPE_NONE) return;
    const int half = c_.rotary_dim / 2;
    for (size_t head = 0; head < x.size(); head += static_cast<size_t>(c_.head_dim))
      for (int i = 0; i < half; ++i) {
        const bool pairs = c_.rope == ZP_ROPE_PAIRS;
        double& a = x[head + static_cast<size_t>(pairs ? 2 * i : i)];
        double& b = x[head + static_cast<size_t>(pairs ? 2 * i + 1 : i + half)];
        const double angle = position * static_cast<double>(m_.frequency[static_cast<size_t>(i)]);
        const double first = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = first;
      }
  }
  Doubles attention(int layer, const Doubles& q, const std::vector<Doubles>& k,
                    const std::vector<Doubles>& v) const {
    const auto dim = static_cast<size_t>(c_.head_dim);
    const size_t last = k.size(), window = layer % 2 == 1 ? static_cast<size_t>(m_.window) : 0;
    const size_t first = window > 0 && last > window ? last - window : 0;
    Doubles out(q.size());
    for (size_t h = 0; h < static_cast<size_t>(c_.heads); ++h) {
      const size_t kv = h / static_cast<size_t>(c_.heads / c_.kv_heads) * dim;
      Doubles score(last);
      double total = 0;
      for (size_t t = first; t < last; ++t) {
        for (size_t i = 0; i < dim; ++i) score[t] += q[h * dim + i] * k[t][kv + i];
        score[t] *= static_cast<double>(c_.attention_scale);
        if (c_.attention_softcap > 0)
          score[t] = c_.attention_softcap * std::tanh(score[t] / c_.attention_softcap);
        score[t] = std::exp(score[t]);
        total += score[t];
      }
      for (size_t t = first; t < last; ++t)
        for (size_t i = 0; i < dim; ++i) out[h * dim + i] += score[t] / total * v[t][kv + i];
    }
    return out;
  }
  double activation(double x) const {
    switch (c_.activation) {
      case ZP_SILU:
        return x / (1 + std::exp(-x));
      case ZP_GELU:
        return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
      case ZP_GELU_TANH:
        return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
      default:
        return std::max(x, 0.0);
    }
  }
  Doubles mlp(int layer, const Doubles& x) const {
    Doubles y = linear(layer, c_.gated != 0 ? ZP_GATE : ZP_UP, x);
    for (auto& value : y) value = activation(value);
    if (c_.gated != 0) {
      const Doubles up = linear(layer, ZP_UP, x);
      for (size_t i = 0; i < y.size(); ++i) y[i] *= up[i];
    }
    return linear(layer, ZP_DOWN, y);
  }
  void layer(int i, std::vector<Doubles>& x) const {
    const double scale = static_cast<double>(c_.residual_scale);
    std::vector<Doubles> k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Doubles normed = norm(i, ZP_ATTENTION_NORM, x[t]);
      Doubles q = norm(i, ZP_Q_NORM, linear(i, ZP_Q, normed));
      k.push_back(norm(i, ZP_K_NORM, linear(i, ZP_K, normed)));
      v.push_back(linear(i, ZP_V, normed));
      turn(q, static_cast<int>(t));
      turn(k[t], static_cast<int>(t));
      const Doubles a = norm(i, ZP_POST_ATTENTION_NORM, linear(i, ZP_O, attention(i, q, k, v)));
      if (c_.parallel != 0) {
        const bool own = m_.norm.count({i, ZP_MLP_NORM}) != 0;
        const Doubles y = norm(i, ZP_POST_MLP_NORM, mlp(i, own ? norm(i, ZP_MLP_NORM, x[t]) : normed));
        x[t] = sum(sum(x[t], a, scale), y, scale);
      } else {
        x[t] = sum(x[t], a, scale);
        x[t] = sum(x[t], norm(i, ZP_POST_MLP_NORM, mlp(i, norm(i, ZP_MLP_NORM, x[t]))), scale);
      }
    }
  }

  const Model& m_;
  const zp_decoder_config& c_;
};

// -- steps -----------------------------------------------------------------------------------------------

struct Cache {
  zp_cache* cache = nullptr;
  Cache(const Model& m, int64_t tokens, int sequences, int type = ZP_CACHE_FLOAT16) {
    expect(zp_cache_create(m.decoder, tokens, sequences, type, &cache) == ZP_OK, "cache");
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;
  ~Cache() { zp_cache_free(cache); }
};

std::vector<int32_t> random_tokens(const Model& m, int count, std::mt19937& random) {
  std::uniform_int_distribution<int32_t> token(0, m.config.vocab - 1);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (auto& t : tokens) t = token(random);
  return tokens;
}

// Feeds `tokens` to a sequence in chunks; the logits of all.
Floats feed(const Model& m, const Cache& cache, const std::vector<int32_t>& tokens, size_t chunk, int threads,
            int32_t sequence = 0) {
  const auto vocab = static_cast<size_t>(m.config.vocab);
  Floats logits(tokens.size() * vocab);
  const auto start = static_cast<int32_t>(zp_cache_length(cache.cache, sequence));
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const size_t count = std::min(chunk, tokens.size() - begin);
    const std::vector<int32_t> sequences(count, sequence);
    std::vector<int32_t> positions(count);
    for (size_t i = 0; i < count; ++i) positions[i] = start + static_cast<int32_t>(begin + i);
    expect(zp_forward(m.decoder, cache.cache, static_cast<int64_t>(count), tokens.data() + begin,
                      sequences.data(), positions.data(), nullptr, logits.data() + begin * vocab,
                      threads) == ZP_OK,
           "forward");
  }
  return logits;
}

double worst(const Floats& logits, const std::vector<Doubles>& expected) {
  double difference = 0, size = 0;
  for (size_t t = 0; t < expected.size(); ++t)
    for (size_t i = 0; i < expected[t].size(); ++i) {
      difference = std::max(
          difference, std::fabs(static_cast<double>(logits[t * expected[t].size() + i]) - expected[t][i]));
      size = std::max(size, std::fabs(expected[t][i]));
    }
  return difference / size;
}

void test_families(int level, std::mt19937& random) {
  struct Family {
    const char* name;
    zp_decoder_config config;
    Options options;
    double tolerance;
  };
  std::vector<Family> families;
  const zp_decoder_config c = small_config();
  families.push_back({"llama", c, {}, 1e-2});
  families.push_back({"llama in half precision", c, {.kind = Kind::kFloat16}, 1e-2});
  families.push_back({"llama in int8", c, {.kind = Kind::kInt8}, 1e-2});
  zp_decoder_config gpt2 = c;
  gpt2.norm = ZP_NORM_LAYER, gpt2.rope = ZP_ROPE_NONE, gpt2.rotary_dim = 0, gpt2.activation = ZP_GELU_TANH;
  gpt2.gated = 0, gpt2.kv_heads = 4;
  families.push_back({"gpt2", gpt2, {.bias = true, .positions = true}, 1e-2});
  zp_decoder_config neox = c;
  neox.norm = ZP_NORM_LAYER, neox.activation = ZP_GELU, neox.gated = 0, neox.parallel = 1,
  neox.rotary_dim = 4;
  families.push_back({"neox", neox, {.bias = true}, 1e-2});
  families.push_back({"phi", neox, {.bias = true, .mlp_norm = false}, 1e-2});
  zp_decoder_config gemma = c;
  gemma.activation = ZP_GELU_TANH, gemma.embedding_scale = 4.9f, gemma.attention_softcap = 5,
  gemma.logit_softcap = 3;
  families.push_back({"gemma", gemma, {.window = 5, .post_norms = true, .head_norms = true}, 1e-2});
  zp_decoder_config granite = c;
  granite.residual_scale = 0.22f, granite.logit_scale = 0.5f, granite.rope = ZP_ROPE_PAIRS,
  granite.activation = ZP_RELU;
  granite.head_dim = 20, granite.kv_heads = 1, granite.rotary_dim = 20;
  families.push_back({"granite", granite, {}, 1e-2});
  for (const Family& f : families) {
    const auto m = make(f.config, f.options, random);
    const auto tokens = random_tokens(*m, 70, random);
    const Cache cache(*m, 100, 1), bytes(*m, 100, 1, ZP_CACHE_INT8);
    char what[100];
    std::snprintf(what, sizeof what, "%s at level %d", f.name, level);
    const auto expected = Reference(*m).logits(tokens);
    expect(worst(feed(*m, cache, tokens, 70, 2), expected) < f.tolerance, what);
    std::snprintf(what, sizeof what, "%s at level %d, int8 cache", f.name, level);
    expect(worst(feed(*m, bytes, tokens, 70, 2), expected) < f.tolerance + 0.12, what);
  }
}

// How a prompt is cut, threads, and a cut back: the same bits.
void test_cuts(std::mt19937& random) {
  for (const int window : {0, 70})
    for (const int type : {ZP_CACHE_FLOAT16, ZP_CACHE_INT8}) {
      const auto m = make(small_config(), {.kind = Kind::kInt8, .window = window}, random);
      const auto tokens = random_tokens(*m, 600, random);
      const Cache whole(*m, 600, 1, type);
      const Floats expected = feed(*m, whole, tokens, 600, 1);
      for (const size_t chunk : {1, 37, 64, 300}) {
        const Cache cache(*m, 600, 1, type);
        expect(feed(*m, cache, tokens, chunk, 2) == expected, "chunks");
      }
      for (const int threads : {2, 3}) {
        expect(zp_cache_truncate(whole.cache, 0, 130) == ZP_OK, "truncate");
        const std::vector<int32_t> rest(tokens.begin() + 130, tokens.end());
        const Floats again = feed(*m, whole, rest, 600, threads);
        expect(std::equal(again.begin(), again.end(), expected.begin() + 130 * m->config.vocab),
               "after a cut back");
      }
    }
}

// Sequences of different lengths in one step, their tokens mixed, against each alone.
void test_batch(std::mt19937& random) {
  const auto m = make(small_config(), {.kind = Kind::kInt8}, random);
  const auto vocab = static_cast<size_t>(m->config.vocab);
  constexpr int kSequences = 5;
  const Cache together(*m, 400, kSequences);
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Floats> expected;
  std::vector<int32_t> token, sequence, position;
  std::vector<uint8_t> wanted;
  for (int s = 0; s < kSequences; ++s) {
    tokens.push_back(random_tokens(*m, 3 + 29 * s, random));
    const Cache alone(*m, 200, 1);
    expected.push_back(feed(*m, alone, tokens.back(), 1000, 1));
  }
  for (size_t t = 0; t < 3 + 29 * (kSequences - 1); ++t)
    for (int s = 0; s < kSequences; ++s) {
      const auto& own = tokens[static_cast<size_t>(s)];
      if (t >= own.size()) continue;
      token.push_back(own[t]);
      sequence.push_back(s);
      position.push_back(static_cast<int32_t>(t));
      wanted.push_back(t + 1 == own.size());
    }
  Floats logits(kSequences * vocab);
  expect(zp_forward(m->decoder, together.cache, static_cast<int64_t>(token.size()), token.data(),
                    sequence.data(), position.data(), wanted.data(), logits.data(), 2) == ZP_OK,
         "a batch");
  for (size_t s = 0; s < kSequences; ++s) {
    const size_t last = (tokens[s].size() - 1) * vocab;
    expect(std::equal(logits.begin() + static_cast<long>(s * vocab),
                      logits.begin() + static_cast<long>((s + 1) * vocab),
                      expected[s].begin() + static_cast<long>(last)),
           "a batch gives what each gets alone");
  }
}

void test_callers(std::mt19937& random) {
  const auto m = make(small_config(), {.kind = Kind::kInt8}, random);
  const auto tokens = random_tokens(*m, 80, random);
  const Cache cache(*m, 80, 1);
  const Floats expected = feed(*m, cache, tokens, 80, 1);
  std::vector<std::thread> callers;
  std::vector<std::unique_ptr<Cache>> caches;
  bool good[4] = {};
  for (int t = 0; t < 4; ++t) caches.push_back(std::make_unique<Cache>(*m, 80, 1));
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&, t] {
      const Cache& own = *caches[static_cast<size_t>(t)];
      const std::vector<int32_t> sequences(80, 0);
      std::vector<int32_t> positions(80);
      for (int32_t i = 0; i < 80; ++i) positions[static_cast<size_t>(i)] = i;
      Floats logits(expected.size());
      good[t] = zp_forward(m->decoder, own.cache, 80, tokens.data(), sequences.data(), positions.data(),
                           nullptr, logits.data(), 1 + t % 3) == ZP_OK &&
                logits == expected;
    });
  for (auto& caller : callers) caller.join();
  for (const bool g : good) expect(g, "four callers at once");
}

bool says(zp_status status, const char* part) {
  return status == ZP_INVALID && std::strstr(zp_last_error(), part) != nullptr;
}

void test_refused_parts(std::mt19937& random) {
  zp_decoder_config c = small_config();
  zp_decoder* decoder = nullptr;
  c.kv_heads = 3;
  expect(says(zp_decoder_create(&c, &decoder), "evenly") && decoder == nullptr, "heads that do not divide");
  c = small_config();
  c.rotary_dim = 10;
  expect(says(zp_decoder_create(&c, &decoder), "rotary_dim"), "more rotary channels than a head has");
  c = small_config();
  c.norm_eps = NAN;
  expect(says(zp_decoder_create(&c, &decoder), "norm_eps"), "not a number");
  c = small_config();
  c.hidden = -1;
  expect(says(zp_decoder_create(&c, &decoder), "hidden"), "a negative size");
  expect(says(zp_decoder_create(nullptr, &decoder), "null"), "no config");
  c = small_config();
  expect(zp_decoder_create(&c, &decoder) == ZP_OK, "create");
  Matrix matrix{c.hidden, c.hidden, {}};
  zp_weight* weight = random_weight(matrix, Kind::kFloat32, random);
  const Floats ones(64, 1.0f);
  expect(says(zp_decoder_linear(decoder, 0, ZP_Q, weight, nullptr), "[24, 24], not [32, 24]"),
         "a wrong shape");
  expect(says(zp_decoder_linear(decoder, 5, ZP_Q, weight, nullptr), "layer 5"), "a layer too many");
  expect(says(zp_decoder_linear(decoder, 0, ZP_HEAD, weight, nullptr), "-1"), "a head in a layer");
  expect(says(zp_decoder_linear(decoder, 0, 99, weight, nullptr), "99"), "an unknown slot");
  expect(says(zp_decoder_norm(decoder, 0, ZP_Q_NORM, ones.data(), nullptr, 9), "fit"), "a norm of 9");
  expect(says(zp_decoder_norm(decoder, 0, -1, ones.data(), nullptr, 9), "-1"), "an unknown norm");
  expect(says(zp_decoder_rope(decoder, 0, ones.data(), 3, 1), "3 frequencies"), "too few frequencies");
  expect(says(zp_decoder_rope(decoder, 2, ones.data(), 4, 1), "table 2"), "a third table");
  expect(says(zp_decoder_layer(decoder, 0, -1, 0), "window"), "a negative window");
  expect(says(zp_decoder_finish(decoder), "embedding is missing"), "an incomplete decoder");
  zp_cache* cache = nullptr;
  expect(says(zp_cache_create(decoder, 10, 1, 0, &cache), "finished"), "a cache too early");
  zp_decoder_free(decoder);
  zp_free(weight);
}

void test_refused_steps(std::mt19937& random) {
  const auto m = make(small_config(), {}, random), other = make(small_config(), {}, random);
  expect(says(zp_decoder_layer(m->decoder, 0, 0, 0), "finished"), "a change too late");
  zp_cache* none = nullptr;
  expect(says(zp_cache_create(m->decoder, 0, 1, 0, &none), "tokens"), "a cache of nothing");
  expect(says(zp_cache_create(m->decoder, 10, 1, 7, &none), "type"), "an unknown cache type");
  const Cache cache(*m, 6, 2);
  expect(zp_cache_bytes(cache.cache) > 0 && zp_cache_length(cache.cache, 2) == -1, "no third sequence");
  Floats logits(50 * 8);
  const auto step = [&](std::vector<int32_t> token, std::vector<int32_t> sequence,
                        std::vector<int32_t> position, int threads = 1) {
    return zp_forward(m->decoder, cache.cache, static_cast<int64_t>(token.size()), token.data(),
                      sequence.data(), position.data(), nullptr, logits.data(), threads);
  };
  expect(step({1, 2}, {0, 0}, {0, 1}) == ZP_OK, "two tokens");
  expect(says(step({50}, {0}, {2}), "vocabulary"), "an unknown token");
  expect(says(step({1}, {2}, {0}), "sequence 2"), "an unknown sequence");
  expect(says(step({1}, {0}, {1000}), "beyond"), "beyond the context");
  expect(says(step({1, 1}, {0, 0}, {2, 4}), "goes on at position 3"), "a gap");
  expect(zp_cache_length(cache.cache, 0) == 2, "a refused step leaves the cache");
  expect(says(step({1, 1, 1, 1, 1}, {0, 0, 0, 1, 1}, {2, 3, 4, 0, 1}), "full"), "a full cache");
  expect(says(step({1}, {0}, {2}, 0), "threads"), "no threads");
  expect(says(zp_forward(other->decoder, cache.cache, 0, nullptr, nullptr, nullptr, nullptr, nullptr, 1),
              "another"),
         "another decoder's cache");
  expect(step({1, 1, 1, 1}, {1, 0, 1, 0}, {0, 2, 1, 3}) == ZP_OK, "the last place");
  expect(says(zp_cache_truncate(cache.cache, 0, 5), "cut"), "longer than it is");
  expect(zp_cache_truncate(cache.cache, 0, 0) == ZP_OK && zp_cache_length(cache.cache, 0) == 0,
         "from the start");
  zp_decoder_free(nullptr);
  zp_cache_free(nullptr);
}

void test_views(std::mt19937& random) {
  Matrix matrix{20, 24, {}};
  zp_weight *weight = random_weight(matrix, Kind::kFloat16, random), *view = nullptr;
  zp_format format{};
  format.rows = 20, format.columns = 24, format.kind = ZP_FLOAT16;
  const auto* memory = static_cast<const uint8_t*>(zp_weight_memory(weight));
  const size_t bytes = zp_weight_bytes(weight);
  expect(zp_view(&format, memory, bytes, &view) == ZP_OK, "a view");
  Floats row(24);
  const int64_t id = 17;
  expect(zp_rows(view, &id, 1, row.data(), 24) == ZP_OK &&
             std::equal(row.begin(), row.end(), &matrix.values[17 * 24]),
         "a row of a view");
  zp_free(view);
  expect(says(zp_view(&format, memory, bytes - 64, &view), "bytes"), "too few bytes");
  expect(says(zp_view(&format, memory + 8, bytes, &view), "multiple"), "unaligned bytes");
  format.bits = 8;
  expect(says(zp_view(&format, memory, bytes, &view), "neither codes"), "bits of floats");
  zp_free(weight);
}

}  // namespace

int main() {
  std::mt19937 random(11);
  test_refused_parts(random);
  test_refused_steps(random);
  test_views(random);
  for (int level = 0; level < ZP_ISA_COUNT; ++level)
    if ((zp_isa_levels() >> level & 1) != 0) {
      expect(zp_isa_select(level) == ZP_OK, "select");
      test_families(level, random);
      test_cuts(random);
      test_batch(random);
      test_callers(random);
    }
  std::printf("%d passed, %d failed\n", passed.load(), failed.load());
  return failed == 0 ? 0 : 1;
}
