// The decoder of the C interface: config, weights, norms and rotation tables, and the workspace of its steps.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "core/internal.h"
#include "zeropoint.h"

namespace zp {

struct Linear {
  const Weight* weight = nullptr;
  std::vector<float> bias;

  const float* bias_data() const { return bias.empty() ? nullptr : bias.data(); }
};

struct Norm {
  std::vector<float> weight, bias;

  bool exists() const { return !weight.empty(); }
};

struct Layer {
  int32_t window = 0;
  int32_t table = 0;
  Linear linear[ZP_DOWN + 1];
  Norm norm[ZP_K_NORM + 1];
};

struct RopeTable {
  std::vector<float> inverse_frequency;
  float scale = 1;
};

// Memory that is kept between uses and grows when needed.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(memory_); }
  // Return at least `bytes` of memory, contents undefined; null if the system has none.
  void* get(size_t bytes) {
    if (bytes > bytes_) {
      release(memory_);
      memory_ = allocate(bytes);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }
  // Release the memory if it is larger than `bytes`.
  void shrink(size_t bytes) {
    if (bytes_ <= bytes) return;
    release(memory_);
    memory_ = nullptr;
    bytes_ = 0;
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace zp

struct zp_decoder {
  zp_decoder_config config{};
  bool finished = false;
  std::vector<zp::Layer> layers;
  zp::RopeTable tables[ZP_MAX_ROPE_TABLES];
  zp::Linear embedding, positions, head;
  zp::Norm embedding_norm, final_norm;

  // A key or value was beyond float16: new ZP_CACHE_FLOAT16 caches are wide from the start (see cache.h).
  mutable std::atomic<bool> overflowed{false};

  std::mutex step;  // held by the forward step that uses the workspace
  zp::Buffer workspace;

  int64_t query_size() const { return int64_t{config.heads} * config.head_dim; }
  int64_t key_size() const { return int64_t{config.kv_heads} * config.head_dim; }
};
