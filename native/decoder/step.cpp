// zp_forward: check the step, reserve cache pages for it, and run it in passes. On an error, restore the
// sequences' lengths and free their new pages.
#include <algorithm>

#include "core/pool.h"
#include "decoder/forward.h"

namespace zp {
namespace {

// Tokens of a pass: so many that reading the weights takes little of the time. More would only enlarge the workspace.
constexpr int64_t kRowsOfPass = 512;
// A larger workspace is released after the step: a long prompt needs one, decoding does not.
constexpr size_t kKeptWorkspace = size_t{2} << 20;

zp_status check_tokens(const zp_decoder& d, const zp_cache& cache, const Tokens& t) {
  const auto sequences = static_cast<int64_t>(cache.sequences.size());
  for (int64_t i = 0; i < t.count; ++i) {
    if (t.token[i] < 0 || t.token[i] >= d.config.vocab)
      return fail(ZP_INVALID, "token %d is outside the vocabulary of %d", t.token[i], d.config.vocab);
    if (t.sequence[i] < 0 || t.sequence[i] >= sequences)
      return fail(ZP_INVALID, "there is no sequence %d in a cache of %ld", t.sequence[i],
                  static_cast<long>(sequences));
    if (t.position[i] < 0 || t.position[i] >= d.config.max_positions)
      return fail(ZP_INVALID, "position %d is beyond the %d that the model takes", t.position[i],
                  d.config.max_positions);
  }
  return ZP_OK;
}

// Append the tokens to their sequences, and take pages for them. `held`: the sequences' lengths before the step.
zp_status lengthen(zp_cache& cache, const Tokens& t, const std::vector<int64_t>& held) {
  for (int64_t i = 0; i < t.count; ++i) {
    zp_cache::Sequence& s = cache.sequences[static_cast<size_t>(t.sequence[i])];
    if (t.position[i] != s.length)
      return fail(ZP_INVALID, "sequence %d goes on at position %ld, not at %d", t.sequence[i],
                  static_cast<long>(s.length), t.position[i]);
    ++s.length;
  }
  const auto free = static_cast<int64_t>(cache.free_pages.size());
  if (const int64_t needed = cache.pages_needed(held); needed > free)
    return fail(ZP_INVALID,
                "the cache is full: it has %ld tokens and room for %ld in all, and %ld more do not fit: they need %ld "
                "pages of %ld tokens, and %ld are free",
                static_cast<long>(cache.used_tokens() - t.count), static_cast<long>(cache.tokens),
                static_cast<long>(t.count), static_cast<long>(needed), static_cast<long>(kPage),
                static_cast<long>(free));
  cache.take_pages(held);
  return ZP_OK;
}

// Run all passes. They stop with beyond_half = true at a key or value that the cache's float16 cannot hold.
zp_status run_passes(zp_decoder& d, const zp_cache& cache, const Tokens& all, int threads, bool& beyond_half) {
  Forward forward(d, cache, threads);
  const int64_t most = std::min(all.count, kRowsOfPass);
  void* workspace = d.workspace.get(forward.workspace_bytes(most));
  if (workspace == nullptr)
    return fail(ZP_NO_MEMORY, "no memory for a step of %ld tokens", static_cast<long>(most));
  float* logits = all.logits;
  for (int64_t begin = 0; begin < all.count; begin += most) {
    const Tokens pass{std::min(most, all.count - begin),
                      all.token + begin,
                      all.sequence + begin,
                      all.position + begin,
                      all.wanted == nullptr ? nullptr : all.wanted + begin,
                      logits};
    int64_t written = 0;
    const Forward::Result result = forward.run(pass, workspace, written);
    if (result == Forward::Result::kNoMemory) return fail(ZP_NO_MEMORY, "no memory for the threads of a step");
    beyond_half = result == Forward::Result::kBeyondHalf;
    if (beyond_half) return ZP_OK;
    logits += written * d.config.vocab;
  }
  return ZP_OK;
}

// Run all passes. If a key or value is beyond float16, make the cache wide and run them again from the first.
zp_status run_step(zp_decoder& d, zp_cache& cache, const Tokens& all, int threads) {
  bool beyond_half = false;
  if (const zp_status status = run_passes(d, cache, all, threads, beyond_half); status != ZP_OK || !beyond_half)
    return status;
  if (!cache.widen())
    return fail(ZP_NO_MEMORY,
                "a key or value is beyond float16, and there is no memory for a cache in float32: use an int8 cache");
  d.overflowed.store(true);
  return run_passes(d, cache, all, threads, beyond_half);
}

// Scope guard that restores the lengths of the cache's sequences and frees their new pages, unless keep() is called.
class Undo {
 public:
  explicit Undo(zp_cache& cache) : cache_(cache) {
    lengths_.reserve(cache.sequences.size());
    for (const auto& s : cache.sequences) lengths_.push_back(s.length);
  }
  Undo(const Undo&) = delete;
  Undo& operator=(const Undo&) = delete;
  ~Undo() {
    if (kept_) return;
    for (size_t i = 0; i < lengths_.size(); ++i) {
      cache_.sequences[i].length = lengths_[i];
      cache_.trim(cache_.sequences[i]);
    }
  }
  void keep() { kept_ = true; }
  const std::vector<int64_t>& lengths() const { return lengths_; }

 private:
  zp_cache& cache_;
  std::vector<int64_t> lengths_;
  bool kept_ = false;
};

zp_status forward_step(zp_decoder& d, zp_cache& cache, const Tokens& tokens, int threads) {
  const std::lock_guard<std::mutex> step(d.step);
  const std::lock_guard<std::mutex> lock(cache.lock);
  if (const zp_status status = check_tokens(d, cache, tokens); status != ZP_OK) return status;
  Undo undo(cache);
  zp_status status = lengthen(cache, tokens, undo.lengths());
  if (status == ZP_OK) status = run_step(d, cache, tokens, threads);
  d.workspace.shrink(kKeptWorkspace);
  if (status == ZP_OK) undo.keep();
  return status;
}

zp_status check_call(const zp_decoder* decoder, const zp_cache* cache, const Tokens& t, int32_t threads) {
  if (decoder == nullptr || cache == nullptr) return fail(ZP_INVALID, "a pointer is null");
  if (!decoder->finished) return fail(ZP_INVALID, "the decoder is not finished");
  if (cache->decoder != decoder) return fail(ZP_INVALID, "the cache was made for another decoder");
  if (t.count < 0) return fail(ZP_INVALID, "a step has 0 or more tokens, not %ld", static_cast<long>(t.count));
  const int64_t room = cache->room();
  if (t.count > room)
    return fail(ZP_INVALID, "the cache is full: it has room for %ld tokens in all, and a step of %ld does not fit",
                static_cast<long>(room), static_cast<long>(t.count));
  if (threads < 1 || threads > Pool::kMaxThreads)
    return fail(ZP_INVALID, "threads must be 1 to %d, not %d", Pool::kMaxThreads, threads);
  if (t.count == 0) return ZP_OK;
  if (t.token == nullptr || t.sequence == nullptr || t.position == nullptr)
    return fail(ZP_INVALID, "a pointer is null");
  const bool wanted = t.wanted == nullptr ||
                      std::any_of(t.wanted, t.wanted + t.count, [](uint8_t w) { return w != 0; });
  if (t.logits == nullptr && wanted)
    return fail(ZP_INVALID, "logits are wanted, but their pointer is null");
  return active_kernels() == nullptr ? ZP_UNSUPPORTED : ZP_OK;  // the error is recorded
}

}  // namespace
}  // namespace zp

zp_status zp_forward(zp_decoder* decoder, zp_cache* cache, int64_t count, const int32_t* token,
                     const int32_t* sequence, const int32_t* position, const uint8_t* wanted, float* logits,
                     int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    const zp::Tokens tokens{count, token, sequence, position, wanted, logits};
    const zp_status status = zp::check_call(decoder, cache, tokens, threads);
    if (status != ZP_OK || count == 0) return status;
    return zp::forward_step(*decoder, *cache, tokens, threads);
  });
}
