// Tests of the decoder without Python, also run under sanitizers. Tiny random models are compared with plain loops at
// every level. The number of threads, the chunks of a prompt and the other sequences of a step must not change a
// result.
#include "levels.h"
#include "steps.h"

#include <thread>

namespace {

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
    expect(difference(feed(*m, cache, tokens, 70, 2), expected) < f.tolerance, what);
    std::snprintf(what, sizeof what, "%s at level %d, int8 cache", f.name, level);
    expect(difference(feed(*m, bytes, tokens, 70, 2), expected) < f.tolerance + 0.12, what);
  }
}

// Logits are bit-identical for every chunking of the prompt, for every number of threads, and after a truncation.
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

// Growing a cache between and within pages, with two sequences in it, changes no bit and makes room for more tokens.
void test_growth(std::mt19937& random) {
  for (const int type : {ZP_CACHE_FLOAT16, ZP_CACHE_INT8}) {
    const auto m = make(small_config(), {.kind = Kind::kInt8, .window = 70}, random);
    const auto vocab = static_cast<size_t>(m->config.vocab);
    const auto tokens = random_tokens(*m, 400, random), others = random_tokens(*m, 100, random);
    const Cache whole(*m, 500, 2, type), grown(*m, 150, 2, type);
    const Floats expected = feed(*m, whole, tokens, 400, 1), beside = feed(*m, whole, others, 100, 1, 1);
    Floats seen;
    size_t read = 0;
    for (const int64_t room : {150, 151, 260, 300, 500}) {
      expect(zp_cache_grow(grown.cache, room) == ZP_OK, "grow");
      if (room == 260) expect(feed(*m, grown, others, 33, 1, 1) == beside, "the other sequence");
      const size_t end = static_cast<size_t>(room) - (room < 260 ? 0 : others.size());
      const std::vector<int32_t> part(tokens.begin() + static_cast<long>(read),
                                      tokens.begin() + static_cast<long>(end));
      const Floats logits = feed(*m, grown, part, 70, 1);
      seen.insert(seen.end(), logits.begin(), logits.end());
      read = end;
    }
    expect(seen == expected && seen.size() == 400 * vocab, "what was cached before it grew");
    const size_t bytes = zp_cache_bytes(grown.cache);
    expect(zp_cache_grow(grown.cache, 10) == ZP_OK && zp_cache_bytes(grown.cache) == bytes &&
               zp_cache_length(grown.cache, 0) == 400,
           "a cache does not shrink");
    expect(bytes == zp_cache_bytes(whole.cache), "as one made so large");
  }
}

// Sequences of different lengths in one step, with mixed tokens, give the same as each alone.
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
  std::vector<int32_t> positions(127);
  for (int32_t i = 0; i < 127; ++i) positions[static_cast<size_t>(i)] = 2 + i;
  expect(says(step(std::vector<int32_t>(127, 1), std::vector<int32_t>(127, 0), positions), "full"), "a full cache");
  positions.resize(129);
  expect(says(step(std::vector<int32_t>(129, 1), std::vector<int32_t>(129, 0), positions), "128 tokens in all"),
         "more tokens than a cache has places");
  expect(says(step({1}, {0}, {2}, 0), "threads"), "no threads");
  expect(says(zp_forward(other->decoder, cache.cache, 0, nullptr, nullptr, nullptr, nullptr, nullptr, 1),
              "another"),
         "another decoder's cache");
  expect(step({1, 1, 1, 1}, {1, 0, 1, 0}, {0, 2, 1, 3}) == ZP_OK, "the last place");
  expect(says(zp_cache_truncate(cache.cache, 0, 5), "cut"), "longer than it is");
  expect(says(zp_cache_grow(nullptr, 5), "null"), "growing nothing");
  expect(says(zp_cache_grow(cache.cache, 0), "tokens"), "growing to nothing");
  expect(says(zp_cache_grow(cache.cache, int64_t{1} << 40), "tokens"), "growing beyond what there is");
  expect(zp_cache_length(cache.cache, 0) == 4 && zp_cache_length(cache.cache, 1) == 2, "as before");
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

int main(int count, char** arguments) {
  std::mt19937 random(11);
  test_refused_parts(random);
  test_refused_steps(random);
  test_views(random);
  for (const int level : levels_of(count, arguments)) {
    expect(zp_isa_select(level) == ZP_OK, "select");
    test_families(level, random);
    test_cuts(random);
    test_growth(random);
    test_batch(random);
    test_callers(random);
  }
  return report();
}
