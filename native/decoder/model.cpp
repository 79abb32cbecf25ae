// The C functions that build a decoder. Each weight is checked when it is set; zp_decoder_finish checks that none is
// missing.
#include "decoder/model.h"

#include <cmath>
#include <memory>

#include "kernels/decoder_kernels.h"

namespace zp {
namespace {

constexpr const char* kLinearNames[ZP_LINEAR_COUNT] = {"q",  "k",    "v",         "o",         "gate",
                                                       "up", "down", "embedding", "positions", "head"};
constexpr const char* kNormNames[ZP_NORM_COUNT] = {
    "attention norm", "post-attention norm", "mlp norm",  "post-mlp norm", "q norm",
    "k norm",         "embedding norm",      "final norm"};
constexpr int32_t kMostLayers = 1 << 16, kMostSize = 1 << 28;

zp_status in_range(const char* name, int32_t value, int32_t least, int32_t most) {
  if (value >= least && value <= most) return ZP_OK;
  return fail(ZP_INVALID, "%s must be %d to %d, not %d", name, least, most, value);
}

zp_status check_sizes(const zp_decoder_config& c) {
  const struct {
    const char* name;
    int32_t value, least, most;
  } fields[] = {{"layers", c.layers, 1, kMostLayers},
                {"hidden", c.hidden, 1, kMostSize},
                {"heads", c.heads, 1, kMostLayers},
                {"kv_heads", c.kv_heads, 1, kMostLayers},
                {"head_dim", c.head_dim, 1, kMaxHeadDim},
                {"intermediate", c.intermediate, 1, kMostSize},
                {"vocab", c.vocab, 1, kMostSize},
                {"max_positions", c.max_positions, 1, INT32_MAX},
                {"norm", c.norm, ZP_NORM_RMS, ZP_NORM_LAYER},
                {"rope", c.rope, ZP_ROPE_NONE, ZP_ROPE_PAIRS},
                {"activation", c.activation, ZP_SILU, ZP_RELU},
                {"gated", c.gated, 0, 1},
                {"parallel", c.parallel, 0, 1},
                {"rotary_dim", c.rotary_dim, c.rope == ZP_ROPE_NONE ? 0 : 2, c.head_dim}};
  for (const auto& f : fields)
    if (const zp_status status = in_range(f.name, f.value, f.least, f.most); status != ZP_OK) return status;
  if (c.heads % c.kv_heads != 0)
    return fail(ZP_INVALID, "%d heads cannot share %d key-value heads evenly", c.heads, c.kv_heads);
  if (c.rotary_dim % 2 != 0) return fail(ZP_INVALID, "rotary_dim must be even, not %d", c.rotary_dim);
  return ZP_OK;
}

zp_status check_factors(const zp_decoder_config& c) {
  const struct {
    const char* name;
    float value;
    bool negative;
  } fields[] = {{"norm_eps", c.norm_eps, false},
                {"embedding_scale", c.embedding_scale, true},
                {"residual_scale", c.residual_scale, true},
                {"logit_scale", c.logit_scale, true},
                {"attention_scale", c.attention_scale, true},
                {"attention_softcap", c.attention_softcap, false},
                {"logit_softcap", c.logit_softcap, false}};
  for (const auto& f : fields)
    if (!std::isfinite(f.value) || (!f.negative && f.value < 0))
      return fail(ZP_INVALID, "%s cannot be %g", f.name, static_cast<double>(f.value));
  return ZP_OK;
}

zp_status check_open(const zp_decoder* decoder) {
  if (decoder == nullptr) return fail(ZP_INVALID, "the decoder is null");
  if (decoder->finished) return fail(ZP_INVALID, "the decoder is finished: its parts can no longer change");
  return ZP_OK;
}

// Return an error unless `layer` exists, or is -1 for a part of the model as a whole.
zp_status check_layer(const zp_decoder& d, int32_t layer, bool of_model, const char* part) {
  if (of_model ? layer == -1 : layer >= 0 && layer < d.config.layers) return ZP_OK;
  if (of_model) return fail(ZP_INVALID, "the %s belongs to the model: layer must be -1, not %d", part, layer);
  return fail(ZP_INVALID, "the %s of layer %d in a decoder with %d layers", part, layer, d.config.layers);
}

struct Shape {
  int64_t rows, columns;
};

// Return the shape that a slot's weight must have.
Shape shape_of(const zp_decoder& d, int32_t slot) {
  const zp_decoder_config& c = d.config;
  switch (slot) {
    case ZP_Q:
      return {d.query_size(), c.hidden};
    case ZP_K:
    case ZP_V:
      return {d.key_size(), c.hidden};
    case ZP_O:
      return {c.hidden, d.query_size()};
    case ZP_GATE:
    case ZP_UP:
      return {c.intermediate, c.hidden};
    case ZP_DOWN:
      return {c.hidden, c.intermediate};
    case ZP_POSITIONS:
      return {c.max_positions, c.hidden};
    default:
      return {c.vocab, c.hidden};
  }
}

Linear& linear_at(zp_decoder& d, int32_t layer, int32_t slot) {
  if (slot == ZP_EMBEDDING) return d.embedding;
  if (slot == ZP_POSITIONS) return d.positions;
  if (slot == ZP_HEAD) return d.head;
  return d.layers[static_cast<size_t>(layer)].linear[slot];
}

Norm& norm_at(zp_decoder& d, int32_t layer, int32_t slot) {
  if (slot == ZP_EMBEDDING_NORM) return d.embedding_norm;
  if (slot == ZP_FINAL_NORM) return d.final_norm;
  return d.layers[static_cast<size_t>(layer)].norm[slot];
}

bool norm_fits(const zp_decoder& d, int32_t slot, int32_t count) {
  if (slot == ZP_Q_NORM) return count == d.config.head_dim || count == d.query_size();
  if (slot == ZP_K_NORM) return count == d.config.head_dim || count == d.key_size();
  return count == d.config.hidden;
}

std::vector<float> copy(const float* values, int64_t count) {
  return values == nullptr ? std::vector<float>() : std::vector<float>(values, values + count);
}

zp_status check_complete(const zp_decoder& d) {
  if (d.embedding.weight == nullptr) return fail(ZP_INVALID, "the embedding is missing");
  if (d.head.weight == nullptr) return fail(ZP_INVALID, "the head is missing");
  for (int32_t i = 0; i < d.config.layers; ++i) {
    const Layer& layer = d.layers[static_cast<size_t>(i)];
    for (int32_t slot = 0; slot <= ZP_DOWN; ++slot) {
      const bool present = layer.linear[slot].weight != nullptr,
                 needed = slot != ZP_GATE || d.config.gated != 0;
      if (needed && !present)
        return fail(ZP_INVALID, "the %s weight of layer %d is missing", kLinearNames[slot], i);
      if (present && !needed) return fail(ZP_INVALID, "a gate in layer %d of a decoder that is not gated", i);
    }
    if (d.config.rope != ZP_ROPE_NONE && d.tables[layer.table].inverse_frequency.empty())
      return fail(ZP_INVALID, "layer %d turns by table %d, which is missing", i, layer.table);
  }
  return ZP_OK;
}

}  // namespace
}  // namespace zp

using zp::fail;

zp_status zp_decoder_create(const zp_decoder_config* config, zp_decoder** out) {
  if (config == nullptr || out == nullptr) return fail(ZP_INVALID, "a pointer is null");
  *out = nullptr;
  if (const zp_status status = zp::check_sizes(*config); status != ZP_OK) return status;
  if (const zp_status status = zp::check_factors(*config); status != ZP_OK) return status;
  return zp::guarded([&] {
    auto decoder = std::make_unique<zp_decoder>();
    decoder->config = *config;
    decoder->layers.resize(static_cast<size_t>(config->layers));
    *out = decoder.release();
    return ZP_OK;
  });
}

void zp_decoder_free(zp_decoder* decoder) {
  delete decoder;
}

zp_status zp_decoder_layer(zp_decoder* decoder, int32_t layer, int32_t window, int32_t table) {
  if (const zp_status status = zp::check_open(decoder); status != ZP_OK) return status;
  if (const zp_status status = zp::check_layer(*decoder, layer, false, "window"); status != ZP_OK)
    return status;
  if (window < 0)
    return fail(ZP_INVALID, "layer %d sees a window of %d positions: use 0 for all", layer, window);
  if (table < 0 || table >= ZP_MAX_ROPE_TABLES)
    return fail(ZP_INVALID, "there is no rotation table %d: use 0 to %d", table, ZP_MAX_ROPE_TABLES - 1);
  decoder->layers[static_cast<size_t>(layer)].window = window;
  decoder->layers[static_cast<size_t>(layer)].table = table;
  return ZP_OK;
}

zp_status zp_decoder_rope(zp_decoder* decoder, int32_t table, const float* inverse_frequency, int32_t count,
                          float scale) {
  if (const zp_status status = zp::check_open(decoder); status != ZP_OK) return status;
  if (inverse_frequency == nullptr) return fail(ZP_INVALID, "a pointer is null");
  if (table < 0 || table >= ZP_MAX_ROPE_TABLES)
    return fail(ZP_INVALID, "there is no rotation table %d: use 0 to %d", table, ZP_MAX_ROPE_TABLES - 1);
  if (decoder->config.rope == ZP_ROPE_NONE)
    return fail(ZP_INVALID, "a rotation table, but the decoder has no rope");
  if (count != decoder->config.rotary_dim / 2)
    return fail(ZP_INVALID, "%d frequencies for %d rotary channels: give one for two", count,
                decoder->config.rotary_dim);
  bool finite = std::isfinite(scale);
  for (int32_t i = 0; i < count; ++i) finite = finite && std::isfinite(inverse_frequency[i]);
  if (!finite) return fail(ZP_INVALID, "rotation table %d is not finite", table);
  return zp::guarded([&] {
    decoder->tables[table].inverse_frequency = zp::copy(inverse_frequency, count);
    decoder->tables[table].scale = scale;
    return ZP_OK;
  });
}

zp_status zp_decoder_linear(zp_decoder* decoder, int32_t layer, int32_t slot, const zp_weight* weight,
                            const float* bias) {
  if (const zp_status status = zp::check_open(decoder); status != ZP_OK) return status;
  if (slot < 0 || slot >= ZP_LINEAR_COUNT) return fail(ZP_INVALID, "there is no linear layer %d", slot);
  const char* name = zp::kLinearNames[slot];
  if (const zp_status status = zp::check_layer(*decoder, layer, slot >= ZP_EMBEDDING, name); status != ZP_OK)
    return status;
  if (weight == nullptr) return fail(ZP_INVALID, "the %s weight is null", name);
  const zp::Weight& w = weight->layout;
  const zp::Shape shape = zp::shape_of(*decoder, slot);
  const bool more = slot == ZP_POSITIONS && w.rows > shape.rows;
  if ((w.rows != shape.rows && !more) || w.columns != shape.columns)
    return fail(ZP_INVALID, "the %s weight of layer %d is [%ld, %ld], not [%ld, %ld]", name, layer,
                static_cast<long>(w.rows), static_cast<long>(w.columns), static_cast<long>(shape.rows),
                static_cast<long>(shape.columns));
  if (bias != nullptr && (slot == ZP_EMBEDDING || slot == ZP_POSITIONS))
    return fail(ZP_INVALID, "the %s has no bias", name);
  return zp::guarded([&] {
    zp::Linear& linear = zp::linear_at(*decoder, layer, slot);
    linear.bias = zp::copy(bias, w.rows);
    linear.weight = &w;
    return ZP_OK;
  });
}

zp_status zp_decoder_norm(zp_decoder* decoder, int32_t layer, int32_t slot, const float* weight,
                          const float* bias, int32_t count) {
  if (const zp_status status = zp::check_open(decoder); status != ZP_OK) return status;
  if (slot < 0 || slot >= ZP_NORM_COUNT) return fail(ZP_INVALID, "there is no norm %d", slot);
  const char* name = zp::kNormNames[slot];
  if (const zp_status status = zp::check_layer(*decoder, layer, slot >= ZP_EMBEDDING_NORM, name);
      status != ZP_OK)
    return status;
  if (weight == nullptr) return fail(ZP_INVALID, "the weight of the %s is null", name);
  if (!zp::norm_fits(*decoder, slot, count))
    return fail(ZP_INVALID, "the %s of layer %d has %d values, which does not fit", name, layer, count);
  return zp::guarded([&] {
    zp::Norm& norm = zp::norm_at(*decoder, layer, slot);
    norm.bias = zp::copy(bias, count);
    norm.weight = zp::copy(weight, count);
    return ZP_OK;
  });
}

zp_status zp_decoder_finish(zp_decoder* decoder) {
  if (const zp_status status = zp::check_open(decoder); status != ZP_OK) return status;
  if (const zp_status status = zp::check_complete(*decoder); status != ZP_OK) return status;
  decoder->finished = true;
  return ZP_OK;
}
