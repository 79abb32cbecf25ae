// zp_sample and zp_score: the next token of each row of logits, and log probabilities; threads split the rows.
//
// The weight of a token is e^((logit - largest) / temperature), counted in whole units of 2^-40. The sums of units and
// the draw are integer arithmetic, which is exact in any order. So a row's token does not depend on the threads, the
// instruction set level or the other rows.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <functional>

#include "core/internal.h"
#include "core/parallel.h"
#include "core/product.h"
#include "kernels/sampler_kernels.h"

namespace zp {
namespace {

constexpr double kUnits = double{int64_t{1} << kUnitBits};
// A row has fewer than 2^23 tokens. So a token's units (at most 2^40) and its id fit one 64-bit key, and the units of a
// row add up to less than 2^63.
constexpr int kIdBits = 23;
constexpr int64_t kMostTokens = int64_t{1} << kIdBits;
constexpr double kSampleCost = 1.5;  // nanoseconds per logit, roughly (each_row)

// -- random numbers -------------------------------------------------------------------------------

// Return 64 random bits, a function of the seed and the number of the draw: Philox4x32-10 (Salmon et al., Parallel
// random numbers: as easy as 1, 2, 3, SC 2011). The seed is its key, the number its counter.
uint64_t random_bits(uint64_t seed, uint64_t number) {
  uint32_t c[4] = {static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy_n(next, 4, c);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return uint64_t{c[1]} << 32 | c[0];
}

// Return floor(bits / 2^64 * total).
int64_t scaled(uint64_t bits, int64_t total) {
  return static_cast<int64_t>(static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(total) >> 64);
}

// -- a row ----------------------------------------------------------------------------------------

// A thread's memory for one row of `count` logits.
struct Memory {
  float *logits, *weights;
  int64_t* sums;
  int32_t* indices;
  uint64_t *keys, *more_keys;

  // Get the memory. Returns false if there is none.
  bool get(int64_t count) {
    const auto size = static_cast<size_t>(round_up(count, kWeighBlock));
    uint8_t* memory = thread_scratch(size * 2 * (sizeof(uint64_t) + sizeof(float)) + size * sizeof(int32_t) +
                                     size / kWeighBlock * sizeof(int64_t));
    if (memory == nullptr) return false;
    keys = reinterpret_cast<uint64_t*>(memory);
    more_keys = keys + size;
    sums = reinterpret_cast<int64_t*>(more_keys + size);
    logits = reinterpret_cast<float*>(sums + size / kWeighBlock);
    weights = logits + size;
    indices = reinterpret_cast<int32_t*>(weights + size);
    return true;
  }
};

// Return the units of a weight: weight * 2^40, rounded to the nearest, ties to even.
int64_t units(float weight) {
  constexpr double kRound = double{int64_t{1} << 52};  // a double this large has no fraction: the sum is rounded
  return static_cast<int64_t>(double{weight} * kUnits + kRound) - (int64_t{1} << 52);
}

// Return a token's sort key. More units make a larger key; of two tokens with equal units, the lower id does.
uint64_t key_of(int64_t units, int64_t id) {
  return static_cast<uint64_t>(units) << kIdBits | static_cast<uint64_t>(kMostTokens - 1 - id);
}
int64_t units_of(uint64_t key) {
  return static_cast<int64_t>(key >> kIdBits);
}
int64_t id_of(uint64_t key) {
  return kMostTokens - 1 - static_cast<int64_t>(key & (kMostTokens - 1));
}

constexpr int kBuckets = (kUnitBits + 1) * 16;
// Return the histogram bucket of a number of units: the position of its highest bit, and the four bits below that. More
// units never have a lower bucket.
int bucket_of(int64_t units) {
  if (units == 0) return 0;
  const auto bits = static_cast<uint64_t>(units) << 4 | 1;  // the 1 gives one unit a bucket above that of none
  const int highest = std::bit_width(bits) - 5;             // 0 for one unit
  return highest * 16 + static_cast<int>(bits >> highest & 15);
}

class Row {
 public:
  Row(const SamplerKernels& kernels, const Memory& memory, const float* logits, int64_t count)
      : kernels_(kernels), memory_(memory), x_(logits), count_(count) {}

  // Find the most likely token. Returns false if its logit is not finite, or if any logit is NaN.
  bool find_largest() { return kernels_.largest(x_, count_, &most_, &first_); }
  int64_t first() const { return first_; }

  // Continue with a copy of the logits in which the tokens that the mask excludes have -infinity.
  void exclude(const int32_t* mask) {
    std::fill_n(memory_.logits, count_, -INFINITY);
    for (int64_t begin = 0; begin < count_; begin += 32)
      for (auto bits = static_cast<uint32_t>(mask[begin / 32]); bits != 0; bits &= bits - 1)
        if (const int64_t i = begin + __builtin_ctz(bits); i < count_) memory_.logits[i] = x_[i];
    x_ = memory_.logits;
  }

  // Return the k-th largest logit, 1 <= k <= count.
  float kth_largest(int64_t k) {
    // `bound` is the k-th largest maximum of the groups of 16 logits. So at least k logits are no smaller, and the k-th
    // largest logit is one of these.
    const int64_t groups = ceil_div(count_, kLanes);
    float *values = memory_.weights, bound = -INFINITY;
    if (k <= groups) {
      kernels_.maxima(x_, count_, values);
      std::nth_element(values, values + k - 1, values + groups, std::greater<>());
      bound = values[k - 1];
    }
    const int64_t found = kernels_.find(x_, count_, bound, memory_.indices);
    for (int64_t i = 0; i < found; ++i) values[i] = x_[memory_.indices[i]];
    std::nth_element(values, values + k - 1, values + found, std::greater<>());
    return values[k - 1];
  }

  // Compute the weights of the tokens, and return the sum of their units.
  int64_t weigh(float temperature, int64_t top_k) {
    float least = -INFINITY;
    if (top_k > 0 && top_k < count_) least = (kth_largest(top_k) - most_) / temperature;
    kernels_.weigh(x_, count_, most_, temperature, least, memory_.weights, memory_.sums);
    int64_t total = 0;
    for (int64_t b = 0; b < ceil_div(count_, kWeighBlock); ++b) total += memory_.sums[b];
    return total;
  }

  // Draw a token with a probability proportional to its weight, among those that top-k, top-p and min-p keep.
  int64_t draw(const zp_sampling& s) {
    const int64_t total = weigh(s.temperature, s.top_k);
    const uint64_t bits = random_bits(s.seed, s.number);
    const auto least = std::max(int64_t{1}, static_cast<int64_t>(std::ceil(s.min_p * kUnits)));
    if (least == 1 && s.top_p == 1) return draw_any(scaled(bits, total));
    uint64_t smallest = key_of(least, kMostTokens - 1);  // the smallest key that may be drawn
    const int64_t found = s.top_p < 1 ? collect_nucleus(s.top_p, total, smallest) : collect(least);
    int64_t sum = 0;
    for (int64_t i = 0; i < found; ++i)
      if (memory_.keys[i] >= smallest) sum += units_of(memory_.keys[i]);
    const uint64_t* key = memory_.keys;
    for (int64_t left = scaled(bits, sum);; ++key)
      if (*key >= smallest && (left -= units_of(*key)) < 0) return id_of(*key);
  }

  // Return the token's log probability.
  double score(int64_t token, int64_t total) const {
    return static_cast<double>(x_[token]) - most_ - std::log(static_cast<double>(total) / kUnits);
  }

  // Write the ids of the `top` largest logits, largest first (ties: lowest id first).
  void rank(int32_t top, int32_t* ids) {
    int32_t* indices = memory_.indices;
    const int64_t found = kernels_.find(x_, count_, kth_largest(top), indices);
    std::partial_sort(indices, indices + top, indices + found,
                      [&](int32_t a, int32_t b) { return x_[a] > x_[b] || (x_[a] == x_[b] && a < b); });
    std::copy_n(indices, top, ids);
  }

 private:
  // Write the keys of the tokens of at least `least` units, ids ascending, and return how many they are.
  int64_t collect(int64_t least) {
    const auto bound = static_cast<float>(static_cast<double>(least - 1) / kUnits);
    const int64_t found = kernels_.find(memory_.weights, count_, bound, memory_.indices);
    for (int64_t i = 0; i < found; ++i)
      memory_.keys[i] = key_of(units(memory_.weights[memory_.indices[i]]), memory_.indices[i]);
    return found;
  }

  // Write the keys of the tokens that top-p keeps and of some less likely ones, ids ascending, and return how many they
  // are. Top-p keeps the fewest most likely tokens that hold the share `top_p` of the units. Raise `smallest` to the
  // smallest key of those, unless it is larger already.
  int64_t collect_nucleus(double top_p, int64_t total, uint64_t& smallest) {
    const auto share = static_cast<int64_t>(std::ceil(top_p * static_cast<double>(total)));
    const int64_t target = std::clamp(share, int64_t{1}, total);
    for (int bits = bits_of_rest(total - target);; bits = std::max(bits - 2, 0)) {
      const int64_t found = collect(int64_t{1} << bits);
      int64_t sums[kBuckets] = {}, left = target;
      for (int64_t i = 0; i < found; ++i) sums[bucket_of(units_of(memory_.keys[i]))] += units_of(memory_.keys[i]);
      int bucket = kBuckets - 1;
      for (; bucket >= 0 && sums[bucket] < left; --bucket) left -= sums[bucket];
      if (bucket < 0) continue;
      smallest = std::max(smallest, smallest_of_bucket(found, bucket, left));
      return found;
    }
  }

  // Add up the units of a bucket's tokens, largest key first, and return the key at which the sum reaches `target`.
  uint64_t smallest_of_bucket(int64_t found, int bucket, int64_t target) {
    uint64_t* key = memory_.more_keys;
    uint64_t* end = std::copy_if(memory_.keys, memory_.keys + found, key,
                                 [=](uint64_t each) { return bucket_of(units_of(each)) == bucket; });
    std::sort(key, end, std::greater<>());
    for (; target > units_of(*key); ++key) target -= units_of(*key);
    return *key;
  }

  // Return an estimate of the largest b such that all tokens of fewer than 2^b units hold no more than three quarters
  // of `rest` units together. Only every 16th token is counted.
  int bits_of_rest(int64_t rest) const {
    int64_t sums[kUnitBits + 2] = {};  // of tokens of fewer than 2^b units, but no fewer than 2^(b - 1)
    for (int64_t i = 0; i < count_; i += 16) {
      const int64_t each = units(memory_.weights[i]);
      sums[std::bit_width(static_cast<uint64_t>(each))] += each;
    }
    int bits = 0;
    for (int64_t left = rest - rest / 4; bits < kUnitBits && (left -= 16 * sums[bits + 1]) >= 0;) ++bits;
    return bits;
  }

  // Return the token at which the running sum of units exceeds `left`, which is less than the units of all tokens.
  int64_t draw_any(int64_t left) const {
    int64_t i = 0;
    for (int64_t b = 0; left >= memory_.sums[b]; ++b, i += kWeighBlock) left -= memory_.sums[b];
    while (left >= units(memory_.weights[i])) left -= units(memory_.weights[i++]);
    return i;
  }

  const SamplerKernels& kernels_;
  const Memory& memory_;
  const float* x_;
  int64_t count_, first_ = 0;
  float most_ = 0;
};

int32_t sample(const SamplerKernels& kernels, const Memory& memory, const float* logits, int64_t count,
               const zp_sampling& sampling) {
  Row row(kernels, memory, logits, count);
  if (!row.find_largest()) return -1;
  if (sampling.mask != nullptr) {
    row.exclude(sampling.mask);
    if (!row.find_largest()) return -1;
  }
  return static_cast<int32_t>(sampling.temperature == 0 ? row.first() : row.draw(sampling));
}

// -- the calls ------------------------------------------------------------------------------------

zp_status check(const float* logits, int64_t stride, int64_t rows, int64_t count, int32_t threads) {
  if (rows < 0 || count < 1 || count >= kMostTokens || stride < count || threads < 1 ||
      threads > Pool::kMaxThreads || !fits(rows, stride))
    return fail(ZP_INVALID,
                "cannot choose from %lld rows of %lld logits on %d threads: sizes, stride or threads are out of range",
                static_cast<long long>(rows), static_cast<long long>(count), threads);
  if (rows > 0 && logits == nullptr) return fail(ZP_INVALID, "a pointer is null");
  return active_sampler_kernels() == nullptr ? ZP_UNSUPPORTED : ZP_OK;  // the error is recorded
}

zp_status check_sampling(const zp_sampling& s) {
  if (!(s.temperature >= 0 && s.temperature < INFINITY) || !(s.top_p > 0 && s.top_p <= 1) ||
      !(s.min_p >= 0 && s.min_p <= 1) || s.top_k < 0)
    return fail(ZP_INVALID, "sampling options out of range: temperature %g, top_k %lld, top_p %g, min_p %g",
                static_cast<double>(s.temperature), static_cast<long long>(s.top_k), s.top_p, s.min_p);
  return ZP_OK;
}

// Call body(row, memory) for each row, with the thread's memory for `count` logits.
template <class F>
zp_status each_row_with_memory(int threads, int64_t rows, int64_t count, F&& body) {
  std::atomic<bool> out_of_memory{false};
  each_row(threads, rows, kSampleCost * static_cast<double>(count), [&](int64_t row) {
    Memory memory{};
    memory.get(count) ? body(row, memory) : out_of_memory.store(true);
  });
  return out_of_memory.load() ? fail(ZP_NO_MEMORY, "no memory for a row of logits") : ZP_OK;
}

}  // namespace
}  // namespace zp

zp_status zp_sample(const float* logits, int64_t stride, int64_t rows, int64_t count, const zp_sampling* samplings,
                    int32_t* tokens, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    if (const zp_status status = zp::check(logits, stride, rows, count, threads); status != ZP_OK) return status;
    if (rows > 0 && (samplings == nullptr || tokens == nullptr)) return zp::fail(ZP_INVALID, "a pointer is null");
    for (int64_t i = 0; i < rows; ++i)
      if (const zp_status status = zp::check_sampling(samplings[i]); status != ZP_OK) return status;
    const zp::SamplerKernels& kernels = *zp::active_sampler_kernels();
    return zp::each_row_with_memory(threads, rows, count, [&](int64_t row, const zp::Memory& memory) {
      tokens[row] = zp::sample(kernels, memory, logits + row * stride, count, samplings[row]);
    });
  });
}

zp_status zp_score(const float* logits, int64_t stride, int64_t rows, int64_t count, const int32_t* tokens,
                   int32_t top, float* scores, int32_t* top_ids, float* top_scores, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    if (const zp_status status = zp::check(logits, stride, rows, count, threads); status != ZP_OK) return status;
    if (top < 0 || top > count || !zp::fits(rows, top))
      return zp::fail(ZP_INVALID, "cannot list the %d most likely of %lld tokens", top, static_cast<long long>(count));
    if (rows > 0 && (tokens == nullptr || scores == nullptr ||
                     (top > 0 && (top_ids == nullptr || top_scores == nullptr))))
      return zp::fail(ZP_INVALID, "a pointer is null");
    for (int64_t i = 0; i < rows; ++i)
      if (tokens[i] < 0 || tokens[i] >= count)
        return zp::fail(ZP_INVALID, "token %d is not one of %lld", tokens[i], static_cast<long long>(count));
    const zp::SamplerKernels& kernels = *zp::active_sampler_kernels();
    return zp::each_row_with_memory(threads, rows, count, [&](int64_t row, const zp::Memory& memory) {
      zp::Row logits_of_row(kernels, memory, logits + row * stride, count);
      int32_t* ids = top_ids + row * top;
      float* best = top_scores + row * top;
      if (!logits_of_row.find_largest()) {
        scores[row] = NAN;
        for (int32_t i = 0; i < top; ++i) ids[i] = i, best[i] = NAN;
        return;
      }
      if (top > 0) logits_of_row.rank(top, ids);
      const int64_t total = logits_of_row.weigh(1.0f, 0);
      scores[row] = static_cast<float>(logits_of_row.score(tokens[row], total));
      for (int32_t i = 0; i < top; ++i) best[i] = static_cast<float>(logits_of_row.score(ids[i], total));
    });
  });
}
