// Attention: cut the work into items, share them among threads, call the kernels.
#include "decoder/attention.h"

#include <algorithm>
#include <cstring>

#include "core/product.h"
#include "core/parallel.h"

namespace zp {
namespace {

// Most query rows of an item. The kernel converts a page of keys and values to float32 once for all rows of an item.
constexpr int64_t kRowsOfItem = 96;
// Least query rows of an item, if the run has so many. Smaller items would convert the same pages more often.
constexpr int64_t kFewRowsOfItem = 12;
constexpr int64_t kPart = kPage * kPagesInPart;  // positions of a part; the sums of parts are merged
constexpr int64_t kItemsOfThread = 4;  // per thread; with fewer items, threads share the parts of items
// A step with fewer multiplications than this is computed on one thread.
constexpr int64_t kSerialProducts = 1 << 16;

// A piece of work: tokens [begin, end) of a run, for all query heads that share one key-value head. A run is the tokens
// of one sequence that follow each other in the pass (attention.h). A query row is one token with one query head.
struct Item {
  const Run* run;
  int64_t begin, end;
  int64_t kv_head;
};

// The items of a step. An item is computed from its number, so there is no list of them. The last runs come first: the
// server puts prompts behind the sequences that decode, and items of prompts take longest.
class Items {
 public:
  Items(const AttentionStep& step, int threads) : step_(step), kv_heads_(step.cache->kv_heads) {
    group_ = step.heads / kv_heads_;
    int64_t tokens = 0;
    for (int64_t i = 0; i < step.run_count; ++i) tokens += step.runs[i].end - step.runs[i].begin;
    const int64_t fair = tokens * kv_heads_ / (kItemsOfThread * threads);
    const int64_t most = std::max<int64_t>(1, kRowsOfItem / group_);
    tokens_ = std::clamp(fair, std::min(most, ceil_div(kFewRowsOfItem, group_)), most);
    for (int64_t i = 0; i < step.run_count; ++i) count_ += ranges_of(step.runs[i]) * kv_heads_;
  }
  int64_t count() const { return count_; }
  int64_t group() const { return group_; }
  int64_t most_rows() const {
    int64_t most = 0;
    for (int64_t i = 0; i < step_.run_count; ++i)
      most = std::max(most, step_.runs[i].end - step_.runs[i].begin);
    return std::min(most, tokens_) * group_;
  }
  // Return an item. The last tokens of a run come first: they attend to the most positions, so they take longest.
  Item at(int64_t number) const {
    const Run* run = step_.runs + step_.run_count - 1;
    for (; number >= ranges_of(*run) * kv_heads_; --run) number -= ranges_of(*run) * kv_heads_;
    const int64_t range = ranges_of(*run) - 1 - number / kv_heads_;
    const int64_t begin = run->begin + range * tokens_;
    return {run, begin, std::min(begin + tokens_, run->end), number % kv_heads_};
  }

 private:
  // Return the number of items of a run for one key-value head.
  int64_t ranges_of(const Run& run) const { return ceil_div(run.end - run.begin, tokens_); }

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

// Fill in the kernel's arguments for an item.
Attention describe(const AttentionStep& step, const Item& item, int64_t group, const Scratch& s) {
  const zp_cache& cache = *step.cache;
  const int64_t head_dim = cache.layout.head_dim;
  int64_t rows = 0;
  for (int64_t token = item.begin; token < item.end; ++token) {
    const auto position = static_cast<int32_t>(item.run->position + (token - item.run->begin));
    for (int64_t g = 0; g < group; ++g, ++rows) {
      s.query[rows] = step.query + token * step.query_stride + (item.kv_head * group + g) * head_dim;
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

// Divide the weighted sums by the sums of weights, and write them to the output.
void write_out(const AttentionStep& step, const Item& item, int64_t group, int64_t padded,
               const AttentionState& total) {
  const int64_t head_dim = step.cache->layout.head_dim;
  int64_t m = 0;
  for (int64_t token = item.begin; token < item.end; ++token)
    for (int64_t g = 0; g < group; ++g, ++m) {
      float* out = step.out + token * step.out_stride + (item.kv_head * group + g) * head_dim;
      const float inverse = 1.0f / total.sum[m];
      for (int64_t i = 0; i < head_dim; ++i) out[i] = total.out[m * padded + i] * inverse;
    }
}

// The first and last part (of kPart positions) that an item's rows attend to.
struct Parts {
  int64_t first, last;
};

Parts parts_of(const AttentionStep& step, const Item& item) {
  const int64_t first = item.run->position + (item.begin - item.run->begin),
                last = first + (item.end - item.begin) - 1;
  return {step.window > 0 ? std::max<int64_t>(0, first - step.window + 1) / kPart : 0, last / kPart};
}

void attend_part(const DecoderKernels& kernels, const Attention& a, int64_t part, const AttentionState& sums,
                 const Scratch& s) {
  kernels.attend(a, part * kPagesInPart, (part + 1) * kPagesInPart, sums, s.kernel);
}

// Compute the attention of one item over all its parts, first to last.
void attend_item(const DecoderKernels& kernels, const AttentionStep& step, const Item& item, int64_t group,
                 const Scratch& s) {
  const Attention a = describe(step, item, group, s);
  const Parts parts = parts_of(step, item);
  attend_part(kernels, a, parts.first, s.total, s);
  for (int64_t part = parts.first + 1; part <= parts.last; ++part) {
    attend_part(kernels, a, part, s.part, s);
    kernels.merge(a.rows, a.layout.padded, s.part, s.total);
  }
  write_out(step, item, group, a.layout.padded, s.total);
}

// Compute few items of many parts, as when decoding one long text: threads share the parts, which are then merged in
// order. Returns false if there is no memory.
bool attend_by_parts(const DecoderKernels& kernels, const AttentionStep& step, const Items& items,
                     int64_t most_parts, int threads) {
  const int64_t padded = step.cache->layout.padded, rows = items.most_rows();
  const size_t state = state_floats(rows, padded);
  auto* memory = reinterpret_cast<float*>(
      call_scratch(state * sizeof(float) * static_cast<size_t>(items.count() * most_parts)));
  if (memory == nullptr) return false;
  const auto state_at = [&](int64_t item_part) {
    return state_in(memory + static_cast<int64_t>(state) * item_part, rows, padded);
  };
  std::atomic<bool> out_of_memory{false};
  parallel(threads, items.count() * most_parts, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch{};
    if (!scratch_for(rows, padded, scratch)) return out_of_memory.store(true);
    for (int64_t item_part = begin; item_part < end; ++item_part) {
      const Item item = items.at(item_part / most_parts);
      const Parts parts = parts_of(step, item);
      const int64_t part = parts.first + item_part % most_parts;
      if (part > parts.last) continue;
      attend_part(kernels, describe(step, item, items.group(), scratch), part, state_at(item_part), scratch);
    }
  });
  if (out_of_memory.load()) return false;
  for (int64_t i = 0; i < items.count(); ++i) {
    const Item item = items.at(i);
    const Parts parts = parts_of(step, item);
    const AttentionState total = state_at(i * most_parts);
    for (int64_t part = 1; part <= parts.last - parts.first; ++part)
      kernels.merge((item.end - item.begin) * items.group(), padded, state_at(i * most_parts + part), total);
    write_out(step, item, items.group(), padded, total);
  }
  return true;
}

}  // namespace

bool attend(const AttentionStep& step, int threads) {
  const DecoderKernels& kernels = *active_decoder_kernels();
  const Items items(step, threads);
  int64_t most_parts = 1, scores = 0;
  for (int64_t i = 0; i < items.count(); ++i) {
    const Item item = items.at(i);
    const Parts parts = parts_of(step, item);
    most_parts = std::max(most_parts, parts.last - parts.first + 1);
    scores += (item.end - item.begin) * items.group() *
              (item.run->position + (item.end - item.run->begin) - parts.first * kPart);
  }
  const int64_t padded = step.cache->layout.padded, rows = items.most_rows();
  if (scores * padded < kSerialProducts) threads = 1;
  if (threads > 1 && most_parts > 1 && items.count() < kItemsOfThread * threads)
    return attend_by_parts(kernels, step, items, most_parts, threads);
  std::atomic<bool> out_of_memory{false};
  in_order(threads, items.count(), [&](int64_t i) {
    Scratch scratch{};
    if (!scratch_for(rows, padded, scratch)) return out_of_memory.store(true);
    attend_item(kernels, step, items.at(i), items.group(), scratch);
  });
  return !out_of_memory.load();
}

}  // namespace zp
