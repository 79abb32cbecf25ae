#include "decoder/attention.h"

#include <algorithm>
#include <cstring>

#include "core/product.h"
#include "decoder/parallel.h"

namespace zp {
namespace {

constexpr int64_t kRowsOfItem = 96;    // query rows that share the conversion of a page
constexpr int64_t kPart = kPage * kPagesInPart;
constexpr double kSerialNanoseconds = 3000;

// A piece of work: rows [begin, end) of a run, for the query heads of one key-value head.
struct Item {
  const Run* run;
  int64_t begin, end;
  int64_t kv_head;
};

// How the work is cut. Items are found from their number, so that no list of them is kept.
class Items {
 public:
  explicit Items(const AttentionStep& step) : step_(step), kv_heads_(step.cache->kv_heads) {
    group_ = step.heads / kv_heads_;
    tokens_ = std::max<int64_t>(1, kRowsOfItem / group_);
    for (int64_t i = 0; i < step.run_count; ++i) count_ += blocks(step.runs[i]) * kv_heads_;
  }
  int64_t count() const { return count_; }
  int64_t group() const { return group_; }
  int64_t most_rows() const {
    int64_t most = 0;
    for (int64_t i = 0; i < step_.run_count; ++i) most = std::max(most, step_.runs[i].end - step_.runs[i].begin);
    return std::min(most, tokens_) * group_;
  }
  // The last rows of a run, which see the most, come first.
  Item at(int64_t number) const {
    const Run* run = step_.runs;
    for (; number >= blocks(*run) * kv_heads_; ++run) number -= blocks(*run) * kv_heads_;
    const int64_t block = blocks(*run) - 1 - number / kv_heads_;
    const int64_t begin = run->begin + block * tokens_;
    return {run, begin, std::min(begin + tokens_, run->end), number % kv_heads_};
  }

 private:
  int64_t blocks(const Run& run) const { return ceil_div(run.end - run.begin, tokens_); }

  const AttentionStep& step_;
  int64_t kv_heads_, group_, tokens_, count_ = 0;
};

// A thread's memory for one item.
struct Scratch {
  const float** query;
  int32_t *first, *last;
  AttentionState part, total;
  float* kernel;
};

size_t state_floats(int64_t rows, int64_t padded) {
  return static_cast<size_t>(rows * padded + 2 * round_up(rows, kLanes));
}

AttentionState state_in(float* memory, int64_t rows, int64_t padded) {
  float* sums = memory + rows * padded;
  return {sums, sums + round_up(rows, kLanes), memory};
}

bool scratch_for(int64_t rows, int64_t padded, Scratch& s) {
  const auto wide = static_cast<size_t>(round_up(rows, kLanes));
  const size_t state = state_floats(rows, padded);
  const size_t floats = 2 * state + static_cast<size_t>(attention_scratch(rows, padded));
  uint8_t* memory = thread_scratch(wide * (sizeof(float*) + 8) + floats * 4);
  if (memory == nullptr) return false;
  s.query = reinterpret_cast<const float**>(memory);
  s.first = reinterpret_cast<int32_t*>(memory + wide * sizeof(float*));
  s.last = s.first + wide;
  auto* at = reinterpret_cast<float*>(s.last + wide);
  s.part = state_in(at, rows, padded);
  s.total = state_in(at + state, rows, padded);
  s.kernel = at + 2 * state;
  return true;
}

Attention describe(const AttentionStep& step, const Item& item, int64_t group, const Scratch& s) {
  const zp_cache& cache = *step.cache;
  const int64_t head_dim = cache.layout.head_dim;
  int64_t rows = 0;
  for (int64_t row = item.begin; row < item.end; ++row) {
    const auto position = static_cast<int32_t>(item.run->position + (row - item.run->begin));
    for (int64_t g = 0; g < group; ++g, ++rows) {
      s.query[rows] = step.query + row * step.query_stride + (item.kv_head * group + g) * head_dim;
      s.first[rows] = step.window > 0 ? std::max(0, position - step.window + 1) : 0;
      s.last[rows] = position;
    }
  }
  Attention a{};
  a.layout = cache.layout;
  a.base = cache.head(step.layer, item.kv_head);
  a.table = cache.sequences[static_cast<size_t>(item.run->sequence)].pages.data();
  a.stride = cache.page_bytes();
  a.softcap = step.softcap;
  a.rows = rows;
  a.query = s.query;
  a.first = s.first;
  a.last = s.last;
  return a;
}

void write_out(const AttentionStep& step, const Item& item, int64_t group, int64_t padded,
               const AttentionState& total) {
  const int64_t head_dim = step.cache->layout.head_dim;
  int64_t m = 0;
  for (int64_t row = item.begin; row < item.end; ++row)
    for (int64_t g = 0; g < group; ++g, ++m) {
      float* out = step.out + row * step.out_stride + (item.kv_head * group + g) * head_dim;
      const float inverse = 1.0f / total.sum[m];
      for (int64_t i = 0; i < head_dim; ++i) out[i] = total.out[m * padded + i] * inverse;
    }
}

// All parts of an item, one after the other.
void attend_item(const DecoderKernels& kernels, const AttentionStep& step, const Item& item, int64_t group,
                 const Scratch& s) {
  const Attention a = describe(step, item, group, s);
  const int64_t padded = a.layout.padded, first = a.first[0] / kPart, last = a.last[a.rows - 1] / kPart;
  for (int64_t part = first; part <= last; ++part) {
    const AttentionState& sums = part == first ? s.total : s.part;
    kernels.attend(a, part * kPagesInPart, (part + 1) * kPagesInPart, sums, s.kernel);
    if (part != first) kernels.merge(a.rows, padded, s.part, s.total);
  }
  write_out(step, item, group, padded, s.total);
}

}  // namespace

bool attend(const AttentionStep& step, int threads) {
  const DecoderKernels& kernels = *active_decoder_kernels();
  const Items items(step);
  const int64_t padded = step.cache->layout.padded, rows = items.most_rows();
  std::atomic<bool> out_of_memory{false};
  parallel(threads, items.count(), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch{};
    if (!scratch_for(rows, padded, scratch)) {
      out_of_memory.store(true);
      return;
    }
    for (int64_t i = begin; i < end; ++i) attend_item(kernels, step, items.at(i), items.group(), scratch);
  });
  return !out_of_memory.load();
}

}  // namespace zp
