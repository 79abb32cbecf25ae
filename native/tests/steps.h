// Test support: caches and steps of a tiny model, and how far its logits are from the naive ones.
#pragma once

#include <cstring>

#include "naive_decoder.h"

namespace {

struct Cache {
  zp_cache* cache = nullptr;
  Cache(const Model& m, int64_t tokens, int sequences, int type = ZP_CACHE_FLOAT16) {
    expect(zp_cache_create(m.decoder, tokens, sequences, type, &cache) == ZP_OK, "cache");
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;
  ~Cache() { zp_cache_free(cache); }
};

// Return random tokens, of ids from `lowest` on.
std::vector<int32_t> random_tokens(const Model& m, int count, std::mt19937& random, int32_t lowest = 0) {
  std::uniform_int_distribution<int32_t> token(lowest, m.config.vocab - 1);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (auto& t : tokens) t = token(random);
  return tokens;
}

// Feed `tokens` to a sequence in chunks, and return the logits of all.
Floats feed(const Model& m, const Cache& cache, const std::vector<int32_t>& tokens, size_t chunk, int threads = 1,
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

// Return the largest difference from the expected logits, divided by the largest of these; infinity if a logit is not
// finite.
inline double difference(const Floats& logits, const std::vector<Doubles>& expected) {
  double worst = 0, size = 0;
  for (size_t t = 0; t < expected.size(); ++t)
    for (size_t i = 0; i < expected[t].size(); ++i) {
      const double got = static_cast<double>(logits[t * expected[t].size() + i]);
      worst = std::isfinite(got) ? std::max(worst, std::fabs(got - expected[t][i])) : INFINITY;
      size = std::max(size, std::fabs(expected[t][i]));
    }
  return worst / size;
}

inline bool says(zp_status status, const char* part) {
  return status == ZP_INVALID && std::strstr(zp_last_error(), part) != nullptr;
}

}  // namespace
