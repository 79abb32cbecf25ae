// Test support: a tiny random model, kept as the library's decoder and as plain matrices, and a naive forward pass of
// the matrices in double precision that the decoder is compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "expect.h"

namespace {

using Floats = std::vector<float>;

// -- a random model, kept twice: as the library's decoder and as plain matrices ----------------------

struct Matrix {
  int64_t rows = 0, columns = 0;
  Floats values;
};

constexpr int32_t kDamagedToken = 1;

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

// Pack a random weight, and set `values` to its dequantized values.
zp_weight* random_weight(Matrix& m, Kind kind, std::mt19937& random, float scale = 1, float damage = 0) {
  m.values = random_floats(m.rows * m.columns, 0, 0.3f * scale, random);
  if (damage != 0) m.values[static_cast<size_t>(kDamagedToken * m.columns)] = damage;
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
                 std::mt19937& random, float scale = 1, float damage = 0) {
  Matrix& matrix = m.linear[{layer, slot}];
  matrix.rows = rows;
  matrix.columns = columns;
  m.weights.push_back(random_weight(matrix, kind, random, scale, damage));
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
  float value_scale = 1;  // of the values' weights
  float damage = 0;       // what kDamagedToken's embedding begins with
};

std::unique_ptr<Model> make(const zp_decoder_config& c, const Options& o, std::mt19937& random) {
  auto m = std::make_unique<Model>();
  m->config = c;
  m->window = o.window;
  expect(zp_decoder_create(&c, &m->decoder) == ZP_OK, "create");
  const int64_t queries = int64_t{c.heads} * c.head_dim, keys = int64_t{c.kv_heads} * c.head_dim;
  give_linear(*m, -1, ZP_EMBEDDING, c.vocab, c.hidden, o.kind, false, random, 1, o.damage);
  give_linear(*m, -1, ZP_HEAD, c.vocab, c.hidden, o.kind, o.bias, random);
  if (o.positions) give_linear(*m, -1, ZP_POSITIONS, c.max_positions, c.hidden, o.kind, false, random);
  give_norm(*m, -1, ZP_FINAL_NORM, c.hidden, random);
  for (int i = 0; i < c.layers; ++i) {
    give_linear(*m, i, ZP_Q, queries, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_K, keys, c.hidden, o.kind, o.bias, random);
    give_linear(*m, i, ZP_V, keys, c.hidden, o.kind, o.bias, random, o.value_scale);
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

// -- the naive forward pass: one sequence, all in double     --------------------------------------------

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

}  // namespace
