// One pass of a forward step: up to a few hundred tokens through all layers.
#pragma once

#include <atomic>
#include <initializer_list>
#include <vector>

#include "decoder/attention.h"
#include "decoder/model.h"
#include "decoder/products.h"

namespace zp {

// The tokens of a pass, and where the logits of the wanted ones go.
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

  // Of the workspace of a pass over so many tokens.
  size_t workspace_bytes(int64_t rows) const;
  enum class Result { kDone, kNoMemory, kBeyondHalf };

  // The cache has pages for the tokens. Writes `written` rows of logits. kBeyondHalf: a key or value does not fit
  // the cache's half precision.
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
  static constexpr int kMatrices = 12;
  // The products of a layer in their order; beyond the last layer, the head.
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
  Matrix angles_{};  // of each row and table: cosines, sines
};

}  // namespace zp
