// Tests of pages that sequences share. Random steps, shares, truncations and growths run on a small cache and on a
// large one without sharing: logits are equal bit for bit, and the small cache uses as many pages as a naive model of
// them. Sharing is the same at every instruction set level, so one level is tested.
#include "steps.h"

#include <set>

namespace {

// A naive model of a cache's pages: each sequence has a list of page numbers, and pages in no list are free.
class Pages {
 public:
  Pages(int sequences, int64_t pages) : pages_(pages), lists_(static_cast<size_t>(sequences)) {}

  int64_t free() const {
    std::set<int64_t> used;
    for (const auto& list : lists_) used.insert(list.begin(), list.end());
    return pages_ - static_cast<int64_t>(used.size());
  }
  // Append tokens at position `length` of a sequence.
  void write(int sequence, int64_t length, int64_t count) {
    auto& list = lists_[static_cast<size_t>(sequence)];
    if (count > 0 && length % ZP_PAGE != 0 && owners(list.back()) > 1) list.back() = next_++;
    while (static_cast<int64_t>(list.size()) * ZP_PAGE < length + count) list.push_back(next_++);
  }
  void truncate(int sequence, int64_t length) {
    lists_[static_cast<size_t>(sequence)].resize(static_cast<size_t>((length + ZP_PAGE - 1) / ZP_PAGE));
  }
  void share(int source, int target, int64_t length) {
    auto& list = lists_[static_cast<size_t>(target)];
    list = lists_[static_cast<size_t>(source)];
    list.resize(static_cast<size_t>(length / ZP_PAGE));
    if (length % ZP_PAGE != 0) list.push_back(next_++);
  }
  void grow(int64_t pages) { pages_ = pages; }

 private:
  int owners(int64_t page) const {
    int count = 0;
    for (const auto& list : lists_) count += static_cast<int>(std::count(list.begin(), list.end(), page));
    return count;
  }
  int64_t pages_, next_ = 0;
  std::vector<std::vector<int64_t>> lists_;
};

// A small cache whose sequences share pages, and a large one in which each sequence is fed all its tokens.
class Pair {
 public:
  static constexpr int kSequences = 5;

  Pair(const Model& m, int type, std::mt19937& random)
      : m_(m),
        random_(random),
        small_(m, 300, kSequences, type),
        plain_(m, 1 << 13, kSequences, type),
        pages_(kSequences, zp_cache_pages(small_.cache)),
        texts_(kSequences) {}

  void act() {
    const int choice = pick(0, 19);
    if (choice < 10) step();
    else if (choice < 14) truncate();
    else if (choice < 19) share();
    else grow();
    bool as_it_should = zp_cache_free_pages(small_.cache) == pages_.free();
    for (int i = 0; i < kSequences; ++i) as_it_should &= zp_cache_length(small_.cache, i) == length(i);
    expect(as_it_should, "pages and lengths");
  }
  bool is_wide() const { return zp_cache_is_wide(small_.cache) == 1; }
  int refused() const { return refused_; }

 private:
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  int64_t length(int i) const { return static_cast<int64_t>(texts_[static_cast<size_t>(i)].size()); }

  // Run a step of random sequences: each sequence's tokens in one block, or token by token in turns.
  void step() {
    std::vector<std::vector<int32_t>> added(kSequences);
    for (auto& tokens : added)
      if (pick(0, 1) == 0) tokens = random_tokens(m_, pick(0, 3) == 0 ? pick(1, 150) : pick(1, 6), random_);
    std::vector<int32_t> token, sequence, position;
    const size_t block = pick(0, 1) == 0 ? 1 : 150;
    for (size_t begin = 0; begin < 150; begin += block)
      for (int i = 0; i < kSequences; ++i) {
        const auto& tokens = added[static_cast<size_t>(i)];
        for (size_t k = begin; k < std::min(begin + block, tokens.size()); ++k) {
          token.push_back(tokens[k]);
          sequence.push_back(i);
          position.push_back(static_cast<int32_t>(length(i) + static_cast<int64_t>(k)));
        }
      }
    Pages after = pages_;
    for (int i = 0; i < kSequences; ++i)
      after.write(i, length(i), static_cast<int64_t>(added[static_cast<size_t>(i)].size()));
    const auto run = [&](const Cache& cache, Floats& logits, int threads) {
      logits.assign(token.size() * static_cast<size_t>(m_.config.vocab), 0.0f);
      return zp_forward(m_.decoder, cache.cache, static_cast<int64_t>(token.size()), token.data(), sequence.data(),
                        position.data(), nullptr, logits.data(), threads);
    };
    Floats shared, plain;
    const zp_status status = run(small_, shared, pick(1, 2));
    if (after.free() < 0) {
      ++refused_;
      expect(says(status, "full"), "a step without pages is refused");
      return;
    }
    expect(status == ZP_OK && run(plain_, plain, 1) == ZP_OK, "a step");
    expect(same(shared, plain), "logits with and without sharing");
    pages_ = after;
    for (size_t i = 0; i < kSequences; ++i) texts_[i].insert(texts_[i].end(), added[i].begin(), added[i].end());
  }
  static bool same(const Floats& a, const Floats& b) {  // NaN too
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }

  void truncate() {
    const int i = pick(0, kSequences - 1), kept = pick(0, 2) == 0 ? 0 : pick(0, static_cast<int>(length(i)));
    expect(zp_cache_truncate(small_.cache, i, kept) == ZP_OK && zp_cache_truncate(plain_.cache, i, kept) == ZP_OK,
           "truncate");
    pages_.truncate(i, kept);
    texts_[static_cast<size_t>(i)].resize(static_cast<size_t>(kept));
  }

  void share() {
    const int source = pick(0, kSequences - 1), target = pick(0, kSequences - 1);
    int kept = pick(0, static_cast<int>(length(source)));
    if (pick(0, 1) == 0) kept = kept / ZP_PAGE * ZP_PAGE;
    const zp_status status = zp_cache_share(small_.cache, source, target, kept);
    if (source == target) return expect(says(status, "itself"), "a sequence and itself");
    if (length(target) > 0) return expect(says(status, "empty"), "a sequence that has tokens");
    if (kept % ZP_PAGE != 0 && pages_.free() == 0) {
      ++refused_;
      return expect(says(status, "full"), "no page for a copy");
    }
    expect(status == ZP_OK, "share");
    pages_.share(source, target, kept);
    auto& text = texts_[static_cast<size_t>(target)];
    text = texts_[static_cast<size_t>(source)];
    text.resize(static_cast<size_t>(kept));
    if (kept > 0) feed(m_, plain_, text, 1000, 1, target);
  }

  void grow() {
    const int64_t more = 300 + pick(0, 100);
    expect(zp_cache_grow(small_.cache, more) == ZP_OK, "grow");
    pages_.grow(zp_cache_pages(small_.cache));
  }

  const Model& m_;
  std::mt19937& random_;
  Cache small_, plain_;
  Pages pages_;
  std::vector<std::vector<int32_t>> texts_;
  int refused_ = 0;
};

void test_random_walks(std::mt19937& random) {
  int refused = 0;
  for (const int type : {ZP_CACHE_FLOAT16, ZP_CACHE_INT8, ZP_CACHE_FLOAT32})
    for (const int window : {0, 70}) {
      const auto m = make(small_config(), {.kind = Kind::kInt8, .window = window}, random);
      Pair pair(*m, type, random);
      for (int i = 0; i < 60; ++i) pair.act();
      refused += pair.refused();
    }
  expect(refused > 0, "some steps did not fit");
}

// Sequences keep their shared pages when the cache becomes wide.
void test_widening(std::mt19937& random) {
  int widened = 0;
  for (int turn = 0; turn < 4; ++turn) {
    const auto m = make(small_config(), {.value_scale = 13000}, random);
    Pair pair(*m, ZP_CACHE_FLOAT16, random);
    bool was_wide = pair.is_wide();
    for (int i = 0; i < 40; ++i) {
      pair.act();
      widened += !was_wide && pair.is_wide();
      was_wide = pair.is_wide();
    }
  }
  expect(widened > 0, "a cache became wide in the middle");
}

// Two sequences are truncated to positions within the page that they share. The first one to write copies the page; the
// other one writes to the original.
void test_last_owner(std::mt19937& random) {
  const auto m = make(small_config(), {.kind = Kind::kInt8}, random);
  const auto tokens = random_tokens(*m, 64, random), other = random_tokens(*m, 1, random);
  const Cache cache(*m, 66, 2), plain(*m, 200, 2);  // three pages
  feed(*m, cache, tokens, 64, 1);
  expect(zp_cache_share(cache.cache, 0, 1, 64) == ZP_OK && zp_cache_free_pages(cache.cache) == 2, "share");
  expect(zp_cache_truncate(cache.cache, 0, 50) == ZP_OK && zp_cache_truncate(cache.cache, 1, 40) == ZP_OK, "cut");
  expect(zp_cache_free_pages(cache.cache) == 2 && zp_cache_pages(cache.cache) == 3, "still one page");
  feed(*m, plain, {tokens.begin(), tokens.begin() + 50}, 64, 1, 0);
  feed(*m, plain, {tokens.begin(), tokens.begin() + 40}, 64, 1, 1);
  const int32_t token[] = {other[0], other[0]}, sequence[] = {0, 1}, position[] = {50, 40};
  const auto vocab = static_cast<size_t>(m->config.vocab);
  Floats shared(2 * vocab), alone(2 * vocab);
  for (const auto& [each, logits] : {std::pair{&cache, &shared}, std::pair{&plain, &alone}})
    expect(zp_forward(m->decoder, each->cache, 2, token, sequence, position, nullptr, logits->data(), 1) == ZP_OK,
           "both write");
  expect(shared == alone && zp_cache_free_pages(cache.cache) == 1, "one copy");
}

void test_refusals(std::mt19937& random) {
  const auto m = make(small_config(), {}, random);
  const Cache cache(*m, 100, 2);
  feed(*m, cache, random_tokens(*m, 70, random), 70, 1);
  expect(says(zp_cache_share(nullptr, 0, 1, 0), "null"), "no cache");
  expect(says(zp_cache_share(cache.cache, 2, 1, 0), "no sequence 2"), "no such source");
  expect(says(zp_cache_share(cache.cache, 0, -1, 0), "no sequence -1"), "no such target");
  expect(says(zp_cache_share(cache.cache, 0, 1, -1), "cannot share -1"), "fewer than none");
  expect(says(zp_cache_share(cache.cache, 0, 1, 71), "cannot share 71"), "more than there are");
  expect(zp_cache_share(cache.cache, 1, 0, 0) == ZP_INVALID, "a target that has tokens");
  expect(zp_cache_share(cache.cache, 0, 1, 0) == ZP_OK && zp_cache_length(cache.cache, 1) == 0, "nothing");
  expect(zp_cache_pages(nullptr) == 0 && zp_cache_free_pages(nullptr) == 0, "pages of no cache");
}

}  // namespace

int main() {
  std::mt19937 random(5);
  test_refusals(random);
  test_random_walks(random);
  test_widening(random);
  test_last_owner(random);
  return report();
}
