// One pass of a forward step: up to 512 tokens (step.cpp) through all layers.
#pragma once

#include <atomic>
#include <initializer_list>
#include <vector>

#include "decoder/attention.h"
#include "decoder/model.h"
#include "decoder/products.h"

namespace zp {

// The tokens of a step or pass, and where the logits of the wanted ones go.
struct Tokens {
  int64_t count;
  const int32_t* token;
  const int32_t* sequence;
  const int32_t* position;
  const uint8_t* wanted;  // null: all
  float* logits;
};

class Forward {
 public:
  Forward(const zp_decoder& decoder, const zp_cache& cache, int threads);

  // Return the bytes of workspace that a pass over `rows` tokens needs.
  size_t workspace_bytes(int64_t rows) const;
  enum class Result { kDone, kNoMemory, kBeyondHalf };

  // Run the pass and write `written` rows of logits. The cache must have pages for the tokens. Returns kBeyondHalf if a
  // key or value is beyond the cache's float16.
  Result run(const Tokens& tokens, void* workspace, int64_t& written);

 private:
  struct Rows {
    int64_t begin, end;
  };
  struct Matrix {
    float* data;
    int64_t stride;
    float* row(int64_t i) const { return data + i * stride; }
  };
  struct Output {
    const Linear& linear;
    Matrix y;
  };
  // The products of a layer in order: q, k, v; o; gate, up; down. The head counts as kProject of a layer after the
  // last.
  enum Stage { kProject, kJoin, kWiden, kNarrow, kStages };

  void lay_out(int64_t rows, float* memory);
  void find_runs();
  void find_angles();
  void embed();
  void run_layer(int64_t number);
  template <class Body>
  void by_rows(Body&& body);
  void project(const Layer& layer, int64_t number, Rows rows, int threads);
  void place(const Layer& layer, int64_t number, int64_t row);
  void normalize_heads(const Norm& norm, int64_t heads, float* x) const;
  bool mix(const Layer& layer, int64_t number);
  void finish(const Layer& layer, int64_t number, Rows rows, int threads);
  void feed_forward(const Layer& layer, int64_t number, const Matrix& x, const Matrix& y, Rows rows,
                    int threads);
  int64_t predict();

  const Matrix& normalized(const Norm& norm, const Matrix& x, const Matrix& out, Rows rows,
                           int threads) const;
  void normalize(const Norm& norm, const float* x, int64_t count, float* out) const;
  Following following(int64_t layer, int stage) const;
  void multiply(const Matrix& x, Rows rows, std::initializer_list<Output> outputs, int threads, int64_t layer,
                Stage stage);
  void add(const Norm& post_norm, const Matrix& y, Rows rows, int threads);

  const zp_decoder& decoder_;
  const zp_decoder_config& config_;
  const zp_cache& cache_;
  const DecoderKernels& kernels_;
  const int threads_;
  Tokens tokens_{};
  std::vector<Run> runs_;
  std::atomic<bool> out_of_memory_{false}, beyond_half_{false};

  Matrix x_{}, normed_{}, normed_mlp_{}, q_{}, k_{}, v_{}, mixed_{}, out_{}, out_mlp_{}, gate_{}, up_{};
  Matrix angles_{};  // [row][table][cosines, sines]
};

}  // namespace zp
