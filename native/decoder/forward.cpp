// One pass of a forward step: embedding, layers, head. See the formulas in zeropoint.h.
#include "decoder/forward.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "core/product.h"
#include "decoder/products.h"

namespace zp {
namespace {

// Nanoseconds per value, roughly: they decide whether rows are worth a second thread (each_row).
constexpr double kNormCost = 0.2, kAddCost = 0.1, kActivationCost = 0.5, kPlaceCost = 0.5, kReadCost = 2;

}  // namespace

Forward::Forward(const zp_decoder& decoder, const zp_cache& cache, int threads)
    : decoder_(decoder),
      config_(decoder.config),
      cache_(cache),
      kernels_(*active_decoder_kernels()),
      threads_(threads) {}

// -- memory ---------------------------------------------------------------------------------------

size_t Forward::workspace_bytes(int64_t rows) const {
  const int64_t hidden = round_up(config_.hidden, kLanes), queries = round_up(decoder_.query_size(), kLanes),
                keys = round_up(decoder_.key_size(), kLanes), wide = round_up(config_.intermediate, kLanes);
  const int64_t angles = round_up(int64_t{ZP_MAX_ROPE_TABLES} * config_.rotary_dim, kLanes);
  const int64_t of_hidden = config_.parallel != 0 ? 5 : 3;
  return static_cast<size_t>(rows * (of_hidden * hidden + 2 * queries + 2 * keys + 2 * wide + angles)) *
         sizeof(float);
}

void Forward::lay_out(int64_t rows, float* memory) {
  const auto take = [&](int64_t columns) {
    const Matrix matrix{memory, round_up(columns, kLanes)};
    memory += rows * matrix.stride;
    return matrix;
  };
  x_ = take(config_.hidden);
  normed_ = take(config_.hidden);
  out_ = take(config_.hidden);
  if (config_.parallel != 0) {
    normed_mlp_ = take(config_.hidden);
    out_mlp_ = take(config_.hidden);
  }
  q_ = take(decoder_.query_size());
  mixed_ = take(decoder_.query_size());
  k_ = take(decoder_.key_size());
  v_ = take(decoder_.key_size());
  gate_ = take(config_.intermediate);
  up_ = take(config_.intermediate);
  angles_ = take(int64_t{ZP_MAX_ROPE_TABLES} * config_.rotary_dim);
}

// -- before the layers ----------------------------------------------------------------------------

// Find the runs of rows that belong to the same sequence.
void Forward::find_runs() {
  runs_.clear();
  for (int64_t i = 0; i < tokens_.count; ++i) {
    if (i > 0 && tokens_.sequence[i] == tokens_.sequence[i - 1])
      runs_.back().end = i + 1;
    else
      runs_.push_back({i, i + 1, tokens_.sequence[i], tokens_.position[i]});
  }
}

// Compute cosines and sines of every row's rotation, for each table.
void Forward::find_angles() {
  if (config_.rope == ZP_ROPE_NONE) return;
  const int64_t half = config_.rotary_dim / 2;
  each_row(threads_, tokens_.count, 20.0 * static_cast<double>(half), [&](int64_t row) {
    for (int t = 0; t < ZP_MAX_ROPE_TABLES; ++t) {
      const RopeTable& table = decoder_.tables[t];
      float* to = angles_.row(row) + t * config_.rotary_dim;
      for (size_t i = 0; i < table.inverse_frequency.size(); ++i, ++to) {
        const float angle = static_cast<float>(tokens_.position[row]) * table.inverse_frequency[i];
        to[0] = std::cos(angle) * table.scale;
        to[half] = std::sin(angle) * table.scale;
      }
    }
  });
}

void Forward::embed() {
  const int64_t hidden = config_.hidden;
  each_row(threads_, tokens_.count, kReadCost * static_cast<double>(hidden), [&](int64_t row) {
    float* x = x_.row(row);
    read_row(*decoder_.embedding.weight, tokens_.token[row], x);
    if (config_.embedding_scale != 1.0f) kernels_.scale(config_.embedding_scale, hidden, x);
    if (decoder_.positions.weight != nullptr) {
      read_row(*decoder_.positions.weight, tokens_.position[row], out_.row(row));
      kernels_.add(out_.row(row), 1.0f, hidden, x);
    }
    if (decoder_.embedding_norm.exists()) normalize(decoder_.embedding_norm, x, hidden, x);
  });
}

// -- a layer --------------------------------------------------------------------------------------

void Forward::normalize(const Norm& norm, const float* x, int64_t count, float* out) const {
  kernels_.norm(config_.norm, x, norm.weight.data(), norm.bias.empty() ? nullptr : norm.bias.data(), count,
                config_.norm_eps, out);
}

// Normalize rows of x into `out` and return `out`; return x if the decoder does not have this norm.
const Forward::Matrix& Forward::normalized(const Norm& norm, const Matrix& x, const Matrix& out, Rows rows,
                                           int threads) const {
  if (!norm.exists()) return x;
  each_row(threads, rows.end - rows.begin, kNormCost * config_.hidden, [&](int64_t i) {
    normalize(norm, x.row(rows.begin + i), config_.hidden, out.row(rows.begin + i));
  });
  return out;
}

// Return the weights of the product `stage`, counted from the layer's first one. A stage beyond kStages belongs to the
// next layer.
Following Forward::following(int64_t layer, int stage) const {
  layer += stage / kStages;
  stage %= kStages;
  if (layer == config_.layers && stage == kProject) return {{decoder_.head.weight}, 1};
  if (layer >= config_.layers) return {};
  const Linear* linear = decoder_.layers[static_cast<size_t>(layer)].linear;
  switch (stage) {
    case kProject:
      return {{linear[ZP_Q].weight, linear[ZP_K].weight, linear[ZP_V].weight}, 3};
    case kJoin:
      return {{linear[ZP_O].weight}, 1};
    case kWiden:
      if (config_.gated == 0) return {{linear[ZP_UP].weight}, 1};
      return {{linear[ZP_GATE].weight, linear[ZP_UP].weight}, 2};
    default:
      return {{linear[ZP_DOWN].weight}, 1};
  }
}

void Forward::multiply(const Matrix& x, Rows rows, std::initializer_list<Output> outputs, int threads,
                       int64_t layer, Stage stage) {
  Products products{x.row(rows.begin), x.stride, rows.end - rows.begin, {}, 0, {}};
  for (int i = 0; i < 2; ++i) products.next[i] = following(layer, stage + 1 + i);
  for (const Output& output : outputs)
    products.terms[products.count++] = {output.linear.weight, output.linear.bias_data(),
                                        output.y.row(rows.begin), output.y.stride};
  if (!zp::multiply(products, threads)) out_of_memory_.store(true);
}

void Forward::normalize_heads(const Norm& norm, int64_t heads, float* x) const {
  const auto count = static_cast<int64_t>(norm.weight.size());
  for (int64_t i = 0; i < heads * config_.head_dim && count > 0; i += count)
    normalize(norm, x + i, count, x + i);
}

// Normalize, rotate and scale a row's queries; normalize and rotate its keys, and write keys and values to the cache.
void Forward::place(const Layer& layer, int64_t number, int64_t row) {
  const int64_t head_dim = config_.head_dim, half = config_.rotary_dim / 2, position = tokens_.position[row];
  const auto& sequence = cache_.sequences[static_cast<size_t>(tokens_.sequence[row])];
  const int64_t page = sequence.pages[static_cast<size_t>(position / kPage)];
  normalize_heads(layer.norm[ZP_Q_NORM], config_.heads, q_.row(row));
  normalize_heads(layer.norm[ZP_K_NORM], config_.kv_heads, k_.row(row));
  if (config_.rope != ZP_ROPE_NONE) {
    const float* cosine = angles_.row(row) + layer.table * config_.rotary_dim;
    const bool pairs = config_.rope == ZP_ROPE_PAIRS;
    for (int64_t h = 0; h < config_.heads; ++h)
      kernels_.rotate(pairs, cosine, cosine + half, half, q_.row(row) + h * head_dim);
    for (int64_t h = 0; h < config_.kv_heads; ++h)
      kernels_.rotate(pairs, cosine, cosine + half, half, k_.row(row) + h * head_dim);
  }
  kernels_.scale(config_.attention_scale, decoder_.query_size(), q_.row(row));
  bool stored = true;
  for (int64_t h = 0; h < config_.kv_heads; ++h)
    stored &= kernels_.store(cache_.layout, k_.row(row) + h * head_dim, v_.row(row) + h * head_dim,
                             position % kPage, cache_.head(number, h) + page * cache_.page_bytes());
  if (!stored) beyond_half_.store(true);
}

// Compute queries, keys and values of some rows.
void Forward::project(const Layer& layer, int64_t number, Rows rows, int threads) {
  const Matrix& input = normalized(layer.norm[ZP_ATTENTION_NORM], x_, normed_, rows, threads);
  multiply(input, rows, {{layer.linear[ZP_Q], q_}, {layer.linear[ZP_K], k_}, {layer.linear[ZP_V], v_}},
           threads, number, kProject);
  const double cost = kPlaceCost * static_cast<double>(decoder_.query_size() + 4 * decoder_.key_size());
  each_row(threads, rows.end - rows.begin, cost, [&](int64_t i) { place(layer, number, rows.begin + i); });
}

// Compute attention. Returns false if there is no memory.
bool Forward::mix(const Layer& layer, int64_t number) {
  AttentionStep step{};
  step.cache = &cache_;
  step.layer = number;
  step.heads = config_.heads;
  step.window = layer.window;
  step.softcap = config_.attention_softcap;
  step.runs = runs_.data();
  step.run_count = static_cast<int64_t>(runs_.size());
  step.query = q_.data;
  step.query_stride = q_.stride;
  step.out = mixed_.data;
  step.out_stride = mixed_.stride;
  return attend(step, threads_);
}

void Forward::feed_forward(const Layer& layer, int64_t number, const Matrix& x, const Matrix& y, Rows rows,
                           int threads) {
  const bool gated = config_.gated != 0;
  if (gated)
    multiply(x, rows, {{layer.linear[ZP_GATE], gate_}, {layer.linear[ZP_UP], up_}}, threads, number, kWiden);
  else
    multiply(x, rows, {{layer.linear[ZP_UP], gate_}}, threads, number, kWiden);
  each_row(threads, rows.end - rows.begin, kActivationCost * config_.intermediate, [&](int64_t i) {
    float* gate = gate_.row(rows.begin + i);
    kernels_.activate(config_.activation, gate, gated ? up_.row(rows.begin + i) : nullptr,
                      config_.intermediate, gate);
  });
  multiply(gate_, rows, {{layer.linear[ZP_DOWN], y}}, threads, number, kNarrow);
}

// Compute x += post_norm(y) * residual_scale.
void Forward::add(const Norm& post_norm, const Matrix& y, Rows rows, int threads) {
  each_row(threads, rows.end - rows.begin, kAddCost * config_.hidden, [&](int64_t i) {
    float* row = y.row(rows.begin + i);
    if (post_norm.exists()) normalize(post_norm, row, config_.hidden, row);
    kernels_.add(row, config_.residual_scale, config_.hidden, x_.row(rows.begin + i));
  });
}

// Run the rest of a layer after attention: output projection, MLP and residual additions.
void Forward::finish(const Layer& layer, int64_t number, Rows rows, int threads) {
  const Norm& mlp_norm = layer.norm[ZP_MLP_NORM];
  multiply(mixed_, rows, {{layer.linear[ZP_O], out_}}, threads, number, kJoin);
  if (config_.parallel == 0) {
    add(layer.norm[ZP_POST_ATTENTION_NORM], out_, rows, threads);
    const Matrix& input = normalized(mlp_norm, x_, normed_, rows, threads);
    feed_forward(layer, number, input, out_, rows, threads);
    add(layer.norm[ZP_POST_MLP_NORM], out_, rows, threads);
    return;
  }
  const Matrix& shared = layer.norm[ZP_ATTENTION_NORM].exists() ? normed_ : x_;
  const Matrix& input = mlp_norm.exists() ? normalized(mlp_norm, x_, normed_mlp_, rows, threads) : shared;
  feed_forward(layer, number, input, out_mlp_, rows, threads);
  add(layer.norm[ZP_POST_ATTENTION_NORM], out_, rows, threads);
  add(layer.norm[ZP_POST_MLP_NORM], out_mlp_, rows, threads);
}

// Call body(rows, threads). With many rows each thread calls it for rows of its own, which stay in its core's cache.
// With few rows it is called once, and all threads share each product.
template <class Body>
void Forward::by_rows(Body&& body) {
  const int64_t each = rows_of_each(tokens_.count, threads_);
  if (threads_ == 1 || each == 0) {
    body(Rows{0, tokens_.count}, threads_);
    return;
  }
  parallel(threads_, tokens_.count, each, [&](int64_t begin, int64_t end) { body(Rows{begin, end}, 1); });
}

void Forward::run_layer(int64_t number) {
  const Layer& layer = decoder_.layers[static_cast<size_t>(number)];
  by_rows([&](Rows rows, int threads) { project(layer, number, rows, threads); });
  if (out_of_memory_.load() || beyond_half_.load()) return;
  if (!mix(layer, number)) out_of_memory_.store(true);
  if (out_of_memory_.load()) return;
  by_rows([&](Rows rows, int threads) { finish(layer, number, rows, threads); });
}

// -- after the layers -----------------------------------------------------------------------------

// Write the logits of the wanted rows and return how many rows they are.
int64_t Forward::predict() {
  const int64_t vocab = config_.vocab;
  int64_t count = 0;
  for (int64_t row = 0; row < tokens_.count; ++row) {
    if (tokens_.wanted != nullptr && tokens_.wanted[row] == 0) continue;
    if (decoder_.final_norm.exists())
      normalize(decoder_.final_norm, x_.row(row), config_.hidden, normed_.row(count));
    else
      std::copy_n(x_.row(row), config_.hidden, normed_.row(count));
    ++count;
  }
  const Matrix logits{tokens_.logits, vocab};
  multiply(normed_, {0, count}, {{decoder_.head, logits}}, threads_, config_.layers, kProject);
  if (config_.logit_scale == 1.0f && config_.logit_softcap == 0.0f) return count;
  each_row(threads_, count, kActivationCost * config_.vocab, [&](int64_t row) {
    if (config_.logit_scale != 1.0f) kernels_.scale(config_.logit_scale, vocab, logits.row(row));
    if (config_.logit_softcap > 0.0f) kernels_.softcap(config_.logit_softcap, vocab, logits.row(row));
  });
  return count;
}

Forward::Result Forward::run(const Tokens& tokens, void* workspace, int64_t& written) {
  tokens_ = tokens;
  lay_out(tokens.count, static_cast<float*>(workspace));
  find_runs();
  find_angles();
  embed();
  for (int64_t number = 0; number < config_.layers; ++number) {
    run_layer(number);
    if (out_of_memory_.load()) return Result::kNoMemory;
    if (beyond_half_.load()) return Result::kBeyondHalf;
  }
  written = predict();
  return out_of_memory_.load() ? Result::kNoMemory : Result::kDone;
}

}  // namespace zp
